-- name: key_by_hash
SELECT api_key.id, api_key.account_id, api_key.name, api_key.state, api_key.quota_nanos, api_key.expires_at_ms,
    api_key.addresses, (extract(epoch FROM api_key.created_at) * 1000)::bigint AS created_at_ms,
    coalesce((SELECT used_nanos FROM key_usage WHERE key_id = api_key.id AND usage_window = 'all'), 0) AS used_nanos
FROM api_key
WHERE key_hash = $1;

-- name: days_of_key
-- $1 key id, $2 at most. The last days with use, newest first.
SELECT substr(usage_window, 5) AS day, used_nanos
FROM key_usage
WHERE key_id = $1 AND usage_window >= 'day:' AND usage_window < 'day:a'
ORDER BY usage_window DESC
LIMIT $2;

-- name: usage_of_key
-- $1 account id, $2 key id, $3 before this session id or NULL, $4 rows looked at, $5 rows, at most. Newest first. There is
-- no index by key, which every posting would pay for: so many rows of the account are looked at. `last_seen`:
-- the last of them, when there may be more.
WITH seen AS (
    SELECT * FROM usage
    WHERE account_id = $1 AND session_id < coalesce($3::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
    ORDER BY session_id DESC
    LIMIT $4
), edge_of_seen AS (
    SELECT count(*) AS rows_seen, (array_agg(session_id ORDER BY session_id))[1] AS last_seen FROM seen
)
SELECT CASE WHEN rows_seen = $4 THEN last_seen END AS last_seen, seen.*
FROM edge_of_seen LEFT JOIN seen ON seen.key_id = $2
ORDER BY session_id DESC
LIMIT $5;
