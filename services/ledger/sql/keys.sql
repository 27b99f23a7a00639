-- name: insert_key
INSERT INTO api_key (
    id, account_id, key_hash, name, hint, quota_nanos, expires_at_ms, models, addresses,
    requests_per_minute, tokens_per_minute, concurrency, budget_day_nanos, budget_month_nanos
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14);

-- name: owner
SELECT account_id FROM api_key WHERE id = $1;

-- name: set_key_state
UPDATE api_key SET state = $2, revision = nextval('revision_sequence') WHERE id = $1;

-- name: keys_of_account
-- $1 account id, $2 after this key id, $3 at most
SELECT id, account_id, name, hint, state, quota_nanos, expires_at_ms, models, addresses,
    requests_per_minute, tokens_per_minute, concurrency, budget_day_nanos, budget_month_nanos, created_at,
    coalesce((SELECT used_nanos FROM key_usage WHERE key_id = api_key.id AND usage_window = 'all'), 0) AS used_nanos
FROM api_key
WHERE account_id = $1 AND id > $2
ORDER BY id
LIMIT $3;

-- name: snapshot_by_hash
SELECT * FROM key_snapshot WHERE key_hash = $1;

-- name: snapshot_of_key
SELECT * FROM key_snapshot WHERE key_id = $1;

-- name: snapshots_of_account
-- $1 account id, $2 after this key id, $3 at most
SELECT * FROM key_snapshot WHERE account_id = $1 AND key_id > $2 ORDER BY key_id LIMIT $3;
