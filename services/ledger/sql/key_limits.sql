-- name: key
SELECT id, account_id, name, quota_nanos, expires_at_ms, models, addresses, requests_per_minute,
    tokens_per_minute, concurrency, budget_day_nanos, budget_month_nanos
FROM api_key WHERE id = $1;

-- name: set_limits
-- $1 key id, then name and all limits. The account is locked before.
UPDATE api_key
SET name = $2, quota_nanos = $3, expires_at_ms = $4, models = $5, addresses = $6, requests_per_minute = $7,
    tokens_per_minute = $8, concurrency = $9, budget_day_nanos = $10, budget_month_nanos = $11,
    revision = nextval('revision_sequence')
WHERE id = $1;
