-- name: try_lock
-- One verification at a time; held until the connection ends.
SELECT pg_try_advisory_lock(hashtext('meterway.verify'));

-- name: block_hash
SELECT last_id, hash FROM journal_block WHERE number = $1;

-- name: blocks
-- $1 from this number
SELECT number, first_id, last_id, transactions, entries, moved_nanos, timestamptz_send(sealed_at) AS sealed_at,
    prev_hash, hash, content
FROM journal_block WHERE number >= $1 ORDER BY number;

-- name: transactions
-- $1 from this id
SELECT id, timestamptz_send(created_at), kind, ref, reason, actor FROM journal_transaction
WHERE id >= $1 ORDER BY id;

-- name: entries
-- $1 from this transaction id
SELECT transaction_id, ledger_account, amount_nanos, account_id, epoch FROM journal_entry
WHERE transaction_id >= $1 ORDER BY transaction_id;

-- name: total
SELECT coalesce(sum(amount_nanos), 0)::text FROM journal_entry;

-- name: stray_entries
-- $1 at most. Entries whose ledger account is none, or another than their account and epoch say.
SELECT transaction_id, ledger_account, amount_nanos, account_id, epoch FROM journal_entry
WHERE (
    ledger_account LIKE 'platform:_%' AND epoch IS NULL
    OR ledger_account = 'account:' || account_id || ':available' AND epoch IS NULL
    OR ledger_account = 'account:' || account_id || ':escrow' AND epoch IS NOT NULL
) IS NOT TRUE
ORDER BY transaction_id LIMIT $1;

-- name: accounts_without_balance
-- $1 at most
SELECT account.id AS account_id FROM account LEFT JOIN balance ON balance.account_id = account.id
WHERE balance.account_id IS NULL ORDER BY account.id LIMIT $1;
