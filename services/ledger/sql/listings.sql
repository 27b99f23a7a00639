-- name: journal
-- $1 only transactions under this id or NULL, $2 limit
SELECT t.id, t.kind, t.ref, t.reason, t.actor, (extract(epoch FROM t.created_at) * 1000)::bigint AS created_at_ms,
       (SELECT jsonb_agg(jsonb_build_object('ledger_account', e.ledger_account, 'amount_nanos', e.amount_nanos)
                         ORDER BY e.ledger_account, e.amount_nanos)
        FROM journal_entry e WHERE e.transaction_id = t.id) AS entries
FROM journal_transaction t
WHERE $1::bigint IS NULL OR t.id < $1
ORDER BY t.id DESC LIMIT $2;

-- name: journal_of_account
-- $1 account id, $2 only transactions under this id or NULL, $3 limit
SELECT t.id, t.kind, t.ref, t.reason, t.actor, (extract(epoch FROM t.created_at) * 1000)::bigint AS created_at_ms,
       (SELECT jsonb_agg(jsonb_build_object('ledger_account', e.ledger_account, 'amount_nanos', e.amount_nanos)
                         ORDER BY e.ledger_account, e.amount_nanos)
        FROM journal_entry e WHERE e.transaction_id = t.id) AS entries
FROM (
    SELECT DISTINCT transaction_id FROM journal_entry
    WHERE account_id = $1 AND ($2::bigint IS NULL OR transaction_id < $2)
    ORDER BY transaction_id DESC LIMIT $3
) AS page
JOIN journal_transaction t ON t.id = page.transaction_id
ORDER BY t.id DESC;

-- name: exceptions
-- $1 with resolved ones, $2 only ids under this or NULL, $3 limit
SELECT id, kind, ref, session_id, account_id, detail,
       (extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms,
       (extract(epoch FROM resolved_at) * 1000)::bigint AS resolved_at_ms
FROM exception_list
WHERE ($1 OR resolved_at IS NULL) AND ($2::bigint IS NULL OR id < $2)
ORDER BY id DESC LIMIT $3;
