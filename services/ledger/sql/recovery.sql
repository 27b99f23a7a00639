-- name: posted_among
-- $1 session ids; $2 the smallest and $3 the largest of them, so that only their partitions are read.
SELECT session_id::text, usage_source, cost_nanos FROM usage
WHERE session_id = ANY($1::uuid[]) AND session_id BETWEEN $2::uuid AND $3::uuid;

-- name: ended_among
SELECT session_id FROM ended_session WHERE session_id = ANY($1::text[]);

-- name: insert_ended
-- $1 session ids, $2 how
INSERT INTO ended_session (session_id, how)
SELECT session_id, $2 FROM (SELECT DISTINCT unnest($1::text[]) AS session_id) AS given ORDER BY session_id
ON CONFLICT (session_id) DO UPDATE SET ended_at = now();

-- name: resolve_released
UPDATE open_session SET resolved_at = now(), resolution = 'released'
WHERE session_id = ANY($1::uuid[]) AND resolved_at IS NULL;

-- name: too_late
-- $1 session ids, $2 ids of their edges, $3 buckets, $4 epochs, $5 their times in Unix milliseconds. Answers
-- those whose edge was given up before: they cost nobody but the operator.
SELECT session_id FROM unnest($1::text[], $2::text[], $3::smallint[], $4::bigint[], $5::bigint[])
    AS given (session_id, edge_id, bucket, epoch, began_at_ms)
WHERE EXISTS (
        SELECT FROM edge WHERE edge.id = given.edge_id AND extract(epoch FROM gone_at) * 1000 >= began_at_ms
    ) OR EXISTS (
        SELECT FROM promise WHERE promise.edge_id = given.edge_id AND promise.bucket = given.bucket
            AND gone_epoch > given.epoch
    ) OR EXISTS (
        SELECT FROM open_session
        WHERE open_session.session_id::text = given.session_id AND resolution = 'gone'
    );

-- name: epochs_of
SELECT bucket, epoch FROM bucket WHERE bucket = ANY($1::smallint[]);
