-- name: newest_transaction
-- The newest id that can be seen, and when this server started: what was known of another one says nothing.
SELECT coalesce((SELECT max(id) FROM journal_transaction), 0) AS id, pg_postmaster_start_time() AS server_started;

-- name: writers
-- Who may have taken an id and not committed yet: an INSERT locks the table before it takes its id, and lets
-- go only after its transaction has become visible, or is gone.
SELECT virtualtransaction AS writer FROM pg_locks
WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND relation = 'journal_transaction'::regclass;

-- name: try_lock
-- One ledger seals at a time; held until the end of the transaction.
SELECT pg_try_advisory_xact_lock(hashtext('meterway.journal_seal'));

-- name: head
SELECT number, last_id, hash FROM journal_block ORDER BY number DESC LIMIT 1;

-- name: transactions
-- $1 after this id, $2 up to this id, $3 at most. The time as Postgres keeps it: 8 bytes, microseconds since 2000.
SELECT id, timestamptz_send(created_at), kind, ref, reason, actor FROM journal_transaction
WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3;

-- name: entries
-- $1 after this transaction id, $2 up to this one
SELECT transaction_id, ledger_account, amount_nanos, account_id, epoch FROM journal_entry
WHERE transaction_id > $1 AND transaction_id <= $2 ORDER BY transaction_id;

-- name: insert_block
INSERT INTO journal_block
    (number, first_id, last_id, transactions, entries, moved_nanos, sealed_at, prev_hash, hash, content)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: waiting
-- $1 count at most. What no block has yet, and how old the oldest is.
SELECT
    (
        SELECT count(*) FROM (
            SELECT FROM journal_transaction WHERE id > (SELECT coalesce(max(last_id), 0) FROM journal_block) LIMIT $1
        ) AS unsealed
    ) AS transactions,
    (
        SELECT greatest(0, extract(epoch FROM now() - created_at))::float8 FROM journal_transaction
        WHERE id > (SELECT coalesce(max(last_id), 0) FROM journal_block) ORDER BY id LIMIT 1
    ) AS lag_s;
