-- name: share_buckets
-- $1 buckets. Held until commit: a fence of these buckets waits for the loans made before it.
SELECT bucket, epoch FROM bucket WHERE bucket = ANY($1::smallint[]) ORDER BY bucket FOR SHARE;

-- name: account_states
SELECT id, state FROM account WHERE id = ANY($1::text[]);

-- name: insert_escrows
-- $1 account ids, $2 epochs. Before locking: a row that does not exist cannot be locked.
INSERT INTO escrow (account_id, epoch)
SELECT account_id, epoch FROM unnest($1::text[], $2::bigint[]) AS wanted (account_id, epoch)
ORDER BY account_id, epoch
ON CONFLICT DO NOTHING;

-- name: lock_escrows
SELECT account_id, epoch, lent_nanos, lent_nanos - returned_nanos - settled_nanos AS rest_nanos
FROM escrow
WHERE (account_id, epoch) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))
ORDER BY account_id, epoch
FOR NO KEY UPDATE;

-- name: lock_balances
SELECT account_id, available_nanos FROM balance
WHERE account_id = ANY($1::text[])
ORDER BY account_id
FOR NO KEY UPDATE;

-- name: loans_after
-- $1 account ids, $2 epochs, $3 the last gseq that Redis has applied
SELECT loan.account_id, loan.gseq, loan.nanos
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS wanted (account_id, epoch, applied_gseq)
JOIN loan ON loan.account_id = wanted.account_id AND loan.epoch = wanted.epoch
    AND loan.gseq > wanted.applied_gseq
ORDER BY loan.account_id, loan.gseq;

-- name: last_loans
-- $1 account ids, $2 epochs
SELECT wanted.account_id, (
    SELECT gseq FROM loan
    WHERE loan.account_id = wanted.account_id AND loan.epoch = wanted.epoch
    ORDER BY gseq DESC LIMIT 1
) AS gseq
FROM unnest($1::text[], $2::bigint[]) AS wanted (account_id, epoch);

-- name: frozen
-- $1 account ids, $2 their current epochs
SELECT escrow.account_id,
    sum(escrow.lent_nanos - escrow.returned_nanos - escrow.settled_nanos)::bigint AS frozen_nanos
FROM unnest($1::text[], $2::bigint[]) AS wanted (account_id, epoch)
JOIN escrow ON escrow.account_id = wanted.account_id AND escrow.epoch < wanted.epoch
GROUP BY escrow.account_id;

-- name: insert_loans
-- $1 account ids, $2 epochs, $3 gseqs, $4 nanos
INSERT INTO loan (account_id, epoch, gseq, nanos)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]);

-- name: lend_from_escrows
-- $1 account ids, $2 epochs, $3 nanos
UPDATE escrow SET lent_nanos = lent_nanos + new_loan.nanos
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS new_loan (account_id, epoch, nanos)
WHERE escrow.account_id = new_loan.account_id AND escrow.epoch = new_loan.epoch;

-- name: take_from_balances
-- $1 account ids, $2 nanos
UPDATE balance SET available_nanos = available_nanos - new_loan.nanos
FROM unnest($1::text[], $2::bigint[]) AS new_loan (account_id, nanos)
WHERE balance.account_id = new_loan.account_id;
