-- name: register_edge
-- $1 edge id, $2 incarnation, $3 internal URL. Repeated by a running edge: it has been seen again. Answers
-- whether this is another process than before.
WITH before AS (
    SELECT incarnation FROM edge WHERE id = $1
)
INSERT INTO edge (id, incarnation, internal_url) VALUES ($1, $2, $3)
ON CONFLICT (id) DO UPDATE
SET incarnation = EXCLUDED.incarnation, internal_url = EXCLUDED.internal_url, last_seen = now(), state = 'active'
RETURNING coalesce((SELECT incarnation FROM before), '') <> $2 AS is_new;

-- name: list_edges
SELECT id, incarnation, internal_url, state,
    (extract(epoch FROM last_seen) * 1000)::bigint AS last_seen_ms,
    (extract(epoch FROM gone_at) * 1000)::bigint AS gone_at_ms,
    (
        SELECT count(*) FROM open_session WHERE open_session.edge_id = edge.id AND resolved_at IS NULL
    ) AS open_sessions,
    (
        SELECT count(*) FROM bucket
        LEFT JOIN promise ON promise.bucket = bucket.bucket AND promise.edge_id = edge.id
        WHERE bucket.epoch > 1
            AND (promise.epoch IS NULL OR promise.epoch < bucket.epoch OR promise.incarnation <> edge.incarnation)
    ) AS buckets_not_promised
FROM edge ORDER BY id;

-- name: lock_edge
SELECT id, state, internal_url FROM edge WHERE id = $1 FOR UPDATE;

-- name: set_gone
UPDATE edge SET state = 'gone', gone_at = now(), cleared_at = NULL WHERE id = $1;

-- name: silent_edges
-- $1 milliseconds
SELECT id FROM edge
WHERE state = 'active' AND last_seen <= now() - $1::bigint * interval '1 millisecond' ORDER BY id;

-- name: uncleared_edges
SELECT id, gone_at FROM edge WHERE gone_at IS NOT NULL AND cleared_at IS NULL ORDER BY id;

-- name: sessions_of_gone_edge
-- $1 edge id. Sessions listed before it was gone.
SELECT session_id::text, account_id, epoch FROM open_session JOIN edge ON edge.id = open_session.edge_id
WHERE edge_id = $1 AND resolved_at IS NULL AND listed_at <= gone_at
ORDER BY session_id LIMIT 1000;

-- name: lost_sessions
-- $1 milliseconds. Listed so long ago by a process that has been replaced, and by no other since.
SELECT session_id::text, account_id, open_session.epoch
FROM open_session JOIN edge ON edge.id = open_session.edge_id
WHERE resolved_at IS NULL AND open_session.incarnation <> edge.incarnation
    AND listed_at <= now() - $1::bigint * interval '1 millisecond'
ORDER BY session_id LIMIT 1000;

-- name: resolve_gone
-- $1 session ids. Those that were posted meanwhile are charged.
UPDATE open_session SET resolved_at = now(), resolution = 'gone'
WHERE session_id = ANY($1::uuid[]) AND resolved_at IS NULL
    AND NOT EXISTS (SELECT FROM usage WHERE usage.session_id = open_session.session_id)
RETURNING session_id::text, account_id, held_nanos;

-- name: set_cleared
-- $1 edge id, $2 gone since
UPDATE edge SET cleared_at = now() WHERE id = $1 AND gone_at = $2;
