-- name: waiting_pushes
-- $1 at most
SELECT key_id, version FROM key_push ORDER BY key_id LIMIT $1;

-- name: snapshots_of_keys
SELECT * FROM key_snapshot WHERE key_id = ANY($1::text[]) ORDER BY key_id;

-- name: pushed
-- $1 key ids, $2 versions that Redis has heard of. Later use waits for its own push.
DELETE FROM key_push USING unnest($1::text[], $2::bigint[]) AS done (key_id, version)
WHERE key_push.key_id = done.key_id AND key_push.version = done.version;
