-- name: left_behind
-- $1 at most. Loans of ended epochs of which something is left, although their return was closed.
SELECT escrow.account_id, account.bucket, escrow.epoch, lent_nanos - returned_nanos - settled_nanos AS rest_nanos
FROM escrow
JOIN account ON account.id = escrow.account_id
JOIN bucket ON bucket.bucket = account.bucket AND bucket.epoch > escrow.epoch
JOIN fence ON fence.bucket = account.bucket AND fence.epoch = escrow.epoch AND fence.returned_at IS NOT NULL
WHERE lent_nanos - returned_nanos - settled_nanos > 0
ORDER BY escrow.account_id, escrow.epoch LIMIT $1;

-- name: reopen_fences
-- $1 buckets, $2 epochs
UPDATE fence SET returned_at = NULL
FROM unnest($1::smallint[], $2::bigint[]) AS left_behind (bucket, epoch)
WHERE fence.bucket = left_behind.bucket AND fence.epoch = left_behind.epoch;

-- name: rests
-- $1 account ids, $2 epochs
SELECT account_id, epoch, lent_nanos - returned_nanos - settled_nanos AS rest_nanos FROM escrow
WHERE (account_id, epoch) IN (SELECT * FROM unnest($1::text[], $2::bigint[]));
