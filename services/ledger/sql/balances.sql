-- name: balance
SELECT balance.available_nanos, bucket.epoch
FROM account
JOIN balance ON balance.account_id = account.id
JOIN bucket ON bucket.bucket = account.bucket
WHERE account.id = $1;

-- name: escrows
SELECT epoch, lent_nanos, returned_nanos, settled_nanos FROM escrow WHERE account_id = $1 ORDER BY epoch;
