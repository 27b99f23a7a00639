-- name: insert_audit_entry
-- $1 actor, $2 action, $3 target, $4 detail
INSERT INTO audit_log (actor, action, target, detail) VALUES ($1, $2, $3, $4);

-- name: audit_entries
-- $1 only ids under this or NULL, $2 target or NULL, $3 limit
SELECT id, (extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms, actor, action, target, detail
FROM audit_log
WHERE ($1::bigint IS NULL OR id < $1) AND ($2::text IS NULL OR target = $2)
ORDER BY id DESC LIMIT $3;
