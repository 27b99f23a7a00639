-- name: resolve_exception
-- $1 id. Nothing when it is resolved already.
UPDATE exception_list SET resolved_at = now() WHERE id = $1 AND resolved_at IS NULL
RETURNING id, kind, ref, session_id, account_id, (extract(epoch FROM resolved_at) * 1000)::bigint AS resolved_at_ms;

-- name: is_exception
SELECT EXISTS (SELECT FROM exception_list WHERE id = $1);
