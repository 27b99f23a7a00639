-- name: balance
SELECT balance.available_nanos, bucket.epoch,
    coalesce((
        SELECT sum(nanos - served_nanos) FROM claim WHERE claim.account_id = account.id AND served_nanos < nanos
    ), 0)::bigint AS claimed_nanos
FROM account
JOIN balance ON balance.account_id = account.id
JOIN bucket ON bucket.bucket = account.bucket
WHERE account.id = $1;

-- name: escrows
SELECT epoch, lent_nanos, returned_nanos, settled_nanos FROM escrow WHERE account_id = $1 ORDER BY epoch;
