-- name: usage_of_account
-- $1 account id, $2 before this session id or NULL, $3 at most. Newest first.
SELECT * FROM usage
WHERE account_id = $1 AND session_id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
ORDER BY session_id DESC
LIMIT $3;
