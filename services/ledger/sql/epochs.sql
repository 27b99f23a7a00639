-- name: all_epochs
SELECT epoch FROM bucket ORDER BY bucket;

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

-- name: open_fences
-- $1 grace in milliseconds, $2 at most. Oldest first, only those whose grace is over.
SELECT bucket, epoch FROM fence
WHERE returned_at IS NULL AND fenced_at <= now() - $1::bigint * interval '1 millisecond'
ORDER BY fenced_at, bucket
LIMIT $2;

-- name: count_open_fences
SELECT count(*) FROM fence WHERE returned_at IS NULL;

-- name: frozen_accounts
-- $1 bucket, $2 epoch: who still has a loan of that epoch out.
SELECT escrow.account_id
FROM account JOIN escrow ON escrow.account_id = account.id AND escrow.epoch = $2
WHERE account.bucket = $1 AND escrow.lent_nanos - escrow.returned_nanos - escrow.settled_nanos > 0
ORDER BY escrow.account_id;

-- name: lock_frozen
-- $1 account ids, $2 epoch
SELECT account_id, lent_nanos - returned_nanos - settled_nanos AS rest_nanos
FROM escrow
WHERE account_id = ANY($1::text[]) AND epoch = $2
ORDER BY account_id
FOR NO KEY UPDATE;

-- name: return_escrows
-- $1 account ids, $2 epoch, $3 nanos
UPDATE escrow SET returned_nanos = returned_nanos + back.nanos
FROM unnest($1::text[], $3::bigint[]) AS back (account_id, nanos)
WHERE escrow.account_id = back.account_id AND escrow.epoch = $2;

-- name: lock_balances
SELECT account_id FROM balance WHERE account_id = ANY($1::text[]) ORDER BY account_id FOR NO KEY UPDATE;

-- name: return_to_balances
-- $1 account ids, $2 nanos
UPDATE balance SET available_nanos = available_nanos + back.nanos
FROM unnest($1::text[], $2::bigint[]) AS back (account_id, nanos)
WHERE balance.account_id = back.account_id;

-- name: close_fence
UPDATE fence SET returned_at = now() WHERE bucket = $1 AND epoch = $2 AND returned_at IS NULL;
