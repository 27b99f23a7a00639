-- name: insert_claim
-- $1 account id, $2 nanos, $3 reason, $4 actor, $5 ref
INSERT INTO claim (account_id, nanos, reason, actor, ref) VALUES ($1, $2, $3, $4, $5);

-- name: lock_claims
-- $1 account ids. Oldest first.
SELECT id, account_id, nanos - served_nanos AS open_nanos, served_nanos FROM claim
WHERE account_id = ANY($1::text[]) AND served_nanos < nanos
ORDER BY account_id, id
FOR NO KEY UPDATE;

-- name: serve_claims
-- $1 claim ids, $2 nanos
UPDATE claim SET served_nanos = served_nanos + served.nanos
FROM unnest($1::bigint[], $2::bigint[]) AS served (id, nanos) WHERE claim.id = served.id;

-- name: take_from_balances
-- $1 account ids, $2 nanos
UPDATE balance SET available_nanos = available_nanos - taken.nanos
FROM unnest($1::text[], $2::bigint[]) AS taken (account_id, nanos)
WHERE balance.account_id = taken.account_id;

-- name: open_claims
-- $1 account id: the unserved sum.
SELECT coalesce(sum(nanos - served_nanos), 0)::bigint FROM claim WHERE account_id = $1 AND served_nanos < nanos;

-- name: due_claims
-- $1 at most. Accounts with an open claim and a loan of the current epoch out, whose time to ask has come.
SELECT claim.account_id, sum(nanos - served_nanos)::bigint AS open_nanos
FROM claim
JOIN account ON account.id = claim.account_id
JOIN bucket ON bucket.bucket = account.bucket
JOIN escrow ON escrow.account_id = account.id AND escrow.epoch = bucket.epoch
WHERE served_nanos < nanos AND lent_nanos - returned_nanos - settled_nanos > 0
GROUP BY claim.account_id
HAVING min(ask_at) <= now()
ORDER BY claim.account_id LIMIT $1;

-- name: note_asked
-- $1 account id. The holds may end at any time: ask again after 1 s, 2 s, 4 s ... at most a minute.
UPDATE claim SET asks = least(asks + 1, 30),
    ask_at = now() + least(60, 2 ^ least(asks, 6)) * interval '1 second'
WHERE account_id = $1 AND served_nanos < nanos;
