-- name: open_fences
-- $1 at most. Oldest first.
SELECT bucket, epoch FROM fence WHERE returned_at IS NULL ORDER BY fenced_at, bucket, epoch LIMIT $1;

-- name: count_open_fences
SELECT count(*) FROM fence WHERE returned_at IS NULL;

-- name: frozen_accounts
-- $1 bucket, $2 epoch: who still has a loan of that epoch out.
SELECT escrow.account_id
FROM account JOIN escrow ON escrow.account_id = account.id AND escrow.epoch = $2
WHERE account.bucket = $1 AND escrow.lent_nanos - escrow.returned_nanos - escrow.settled_nanos > 0
ORDER BY escrow.account_id;

-- name: lock_edges
-- Until the loans are back, no edge may register anew. $1 bucket
SELECT edge.id, edge.incarnation, (extract(epoch FROM now() - last_seen) * 1000)::bigint AS silent_ms,
    coalesce(promise.incarnation, '') AS promised_by, coalesce(promise.epoch, 0) AS promised_epoch,
    coalesce(promise.gone_epoch, 0) AS gone_epoch
FROM edge LEFT JOIN promise ON promise.edge_id = edge.id AND promise.bucket = $1
WHERE edge.state = 'active'
ORDER BY edge.id
FOR SHARE OF edge;

-- name: lock_frozen
-- $1 account ids, $2 epoch
SELECT account_id, returned_nanos, lent_nanos - returned_nanos - settled_nanos AS rest_nanos
FROM escrow
WHERE account_id = ANY($1::text[]) AND epoch = $2
ORDER BY account_id
FOR NO KEY UPDATE;

-- name: holds
-- $1 account ids, $2 epoch. After the escrows are locked: what is posted then has left the escrow.
SELECT account_id, sum(held_nanos)::bigint AS held_nanos
FROM open_session
WHERE account_id = ANY($1::text[]) AND epoch = $2 AND resolved_at IS NULL
    AND NOT EXISTS (SELECT FROM usage WHERE usage.session_id = open_session.session_id)
GROUP BY account_id;

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
