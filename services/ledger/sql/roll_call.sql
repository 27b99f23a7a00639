-- name: debts
-- $1 milliseconds. By edge and bucket: the current epoch where this process has not promised it, or where a
-- session that it listed so long ago has not ended. A bucket in its first epoch has no older one.
SELECT edge.id AS edge_id, edge.incarnation, edge.internal_url,
    (extract(epoch FROM now() - edge.last_seen) * 1000)::bigint AS silent_ms,
    bucket.bucket, bucket.epoch,
    coalesce(promise.gone_epoch, 0) >= bucket.epoch OR coalesce(promise.epoch, 0) >= bucket.epoch
        AND promise.incarnation = edge.incarnation AS is_optional
FROM edge
CROSS JOIN bucket
LEFT JOIN promise ON promise.edge_id = edge.id AND promise.bucket = bucket.bucket
WHERE edge.state = 'active' AND bucket.epoch > 1 AND (
    promise.epoch IS NULL OR promise.epoch < bucket.epoch OR promise.incarnation <> edge.incarnation
    OR EXISTS (
        SELECT FROM open_session
        WHERE resolved_at IS NULL AND open_session.bucket = bucket.bucket AND open_session.edge_id = edge.id
            AND listed_at <= now() - $1::bigint * interval '1 millisecond'
    )
)
ORDER BY edge.id, bucket.bucket;

-- name: insert_promises
-- $1 edge id, $2 incarnation, $3 buckets, $4 epochs. A late or repeated answer takes nothing back.
INSERT INTO promise (edge_id, bucket, incarnation, epoch)
SELECT $1, bucket, $2, epoch FROM unnest($3::smallint[], $4::bigint[]) AS given (bucket, epoch)
ORDER BY bucket
ON CONFLICT (edge_id, bucket) DO UPDATE
SET incarnation = excluded.incarnation, epoch = greatest(promise.epoch, excluded.epoch), promised_at = now();

-- name: gone_marks
-- $1 edge id, $2 buckets: up to which epoch the roll-call did without this edge.
SELECT bucket, gone_epoch FROM promise WHERE edge_id = $1 AND bucket = ANY($2::smallint[]);

-- name: insert_open_sessions
-- $1 edge id, $2 incarnation, then of each session: $3 id, $4 account id, $5 bucket, $6 epoch, $7 held nanos.
-- One that has ended already stays so.
INSERT INTO open_session (session_id, edge_id, incarnation, account_id, bucket, epoch, held_nanos)
SELECT session_id, $1, $2, account_id, bucket, epoch, held_nanos
FROM unnest($3::uuid[], $4::text[], $5::smallint[], $6::bigint[], $7::bigint[])
    AS listed (session_id, account_id, bucket, epoch, held_nanos)
WHERE NOT EXISTS (SELECT FROM ended_session WHERE ended_session.session_id = listed.session_id::text)
ORDER BY session_id
ON CONFLICT (session_id) DO UPDATE
SET edge_id = excluded.edge_id, incarnation = excluded.incarnation, listed_at = now(),
    held_nanos = greatest(open_session.held_nanos, excluded.held_nanos)
WHERE open_session.resolved_at IS NULL;

-- name: resolve_unlisted
-- $1 edge id, $2 incarnation, $3 buckets, $4 epochs promised, $5 ids that are listed. The same process lists
-- them no more: they have ended.
UPDATE open_session SET resolved_at = now(), resolution = 'ended'
FROM unnest($3::smallint[], $4::bigint[]) AS given (bucket, epoch)
WHERE open_session.bucket = given.bucket AND open_session.epoch < given.epoch
    AND edge_id = $1 AND incarnation = $2 AND resolved_at IS NULL
    AND session_id <> ALL ($5::uuid[]);

-- name: edge_seen
UPDATE edge SET last_seen = now() WHERE id = $1;

-- name: mark_gone
-- $1 edge id, $2 buckets, $3 epochs that the roll-call goes on without this edge. Answers what is new.
INSERT INTO promise (edge_id, bucket, incarnation, epoch, gone_epoch)
SELECT $1, bucket, '', 0, epoch FROM unnest($2::smallint[], $3::bigint[]) AS given (bucket, epoch)
ORDER BY bucket
ON CONFLICT (edge_id, bucket) DO UPDATE SET gone_epoch = excluded.gone_epoch
WHERE promise.gone_epoch < excluded.gone_epoch
RETURNING bucket;

-- name: resolve_posted
UPDATE open_session SET resolved_at = now(), resolution = 'posted'
FROM usage
WHERE usage.session_id = open_session.session_id AND resolved_at IS NULL;

-- name: count_unresolved
SELECT count(*) FROM open_session WHERE resolved_at IS NULL;

-- name: forget_old
-- $1 hours that ended sessions are remembered.
WITH ended AS (
    DELETE FROM ended_session WHERE session_id IN (
        SELECT session_id FROM ended_session WHERE ended_at < now() - $1::bigint * interval '1 hour' LIMIT 10000
    )
)
DELETE FROM open_session WHERE session_id IN (
    SELECT session_id FROM open_session
    WHERE resolved_at < now() - $1::bigint * interval '1 hour' LIMIT 10000
);
