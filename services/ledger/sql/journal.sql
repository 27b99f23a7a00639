-- name: insert_transactions
-- $1 kind, $2 refs, $3 reason, $4 actor. Answers ids and refs.
INSERT INTO journal_transaction (kind, ref, reason, actor)
SELECT $1, ref, $3, $4 FROM unnest($2::text[]) AS ref
RETURNING id, ref;

-- name: insert_entries
-- $1 transaction ids, $2 ledger accounts, $3 amounts, $4 account ids or NULLs, $5 epochs or NULLs
INSERT INTO journal_entry (transaction_id, ledger_account, amount_nanos, account_id, epoch)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[]);

-- name: find_transaction
-- $1 kind, $2 ref
SELECT id FROM journal_transaction WHERE kind = $1 AND ref = $2;

-- name: account_amount
-- $1 transaction id, $2 ledger account: what the transaction moved there.
SELECT coalesce(sum(amount_nanos), 0)::bigint FROM journal_entry
WHERE transaction_id = $1 AND ledger_account = $2;
