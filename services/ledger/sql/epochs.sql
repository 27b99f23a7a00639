-- name: all_epochs
SELECT epoch FROM bucket ORDER BY bucket;

-- name: wait_for_postings
-- A posting knows the epochs of its time: none may be under way while they change.
SELECT pg_advisory_xact_lock(5012);

-- name: lock_buckets
SELECT bucket, epoch FROM bucket WHERE bucket = ANY($1::smallint[]) ORDER BY bucket FOR UPDATE;

-- name: set_epochs
-- $1 buckets, $2 new epochs, $3 run id of the Redis node they are opened on
UPDATE bucket SET epoch = opened.epoch, run_id = $3
FROM unnest($1::smallint[], $2::bigint[]) AS opened (bucket, epoch)
WHERE bucket.bucket = opened.bucket;

-- name: insert_fences
-- $1 buckets, $2 the epochs that end, $3 run id, $4 reason
INSERT INTO fence (bucket, epoch, run_id, reason)
SELECT bucket, epoch, $3, $4 FROM unnest($1::smallint[], $2::bigint[]) AS ended (bucket, epoch);
