-- name: unbalanced_transactions
SELECT transaction_id::text AS subject, 0::bigint AS expected, sum(amount_nanos)::bigint AS found
FROM journal_entry GROUP BY transaction_id HAVING sum(amount_nanos) <> 0
ORDER BY transaction_id LIMIT $1;

-- name: wrong_balances
-- A balance is the sum of its entries.
SELECT balance.account_id AS subject, coalesce(entries.nanos, 0)::bigint AS expected, available_nanos AS found
FROM balance
LEFT JOIN (
    SELECT account_id, sum(amount_nanos) AS nanos FROM journal_entry
    WHERE account_id IS NOT NULL AND ledger_account = 'account:' || account_id || ':available'
    GROUP BY account_id
) AS entries ON entries.account_id = balance.account_id
WHERE available_nanos <> coalesce(entries.nanos, 0)
ORDER BY balance.account_id LIMIT $1;

-- name: wrong_escrows
SELECT coalesce(escrow.account_id, entries.account_id) || ' epoch ' || coalesce(escrow.epoch, entries.epoch) AS subject,
    coalesce(entries.nanos, 0)::bigint AS expected,
    coalesce(lent_nanos - returned_nanos - settled_nanos, 0) AS found
FROM escrow
FULL JOIN (
    SELECT account_id, epoch, sum(amount_nanos) AS nanos FROM journal_entry
    WHERE account_id IS NOT NULL AND ledger_account = 'account:' || account_id || ':escrow'
    GROUP BY account_id, epoch
) AS entries ON entries.account_id = escrow.account_id AND entries.epoch = escrow.epoch
WHERE coalesce(lent_nanos - returned_nanos - settled_nanos, 0) <> coalesce(entries.nanos, 0)
ORDER BY 1 LIMIT $1;

-- name: wrong_lent
SELECT escrow.account_id || ' epoch ' || escrow.epoch AS subject,
    coalesce(loans.nanos, 0)::bigint AS expected, lent_nanos AS found
FROM escrow
LEFT JOIN (
    SELECT account_id, epoch, sum(nanos) AS nanos FROM loan GROUP BY account_id, epoch
) AS loans ON loans.account_id = escrow.account_id AND loans.epoch = escrow.epoch
WHERE lent_nanos <> coalesce(loans.nanos, 0)
ORDER BY 1 LIMIT $1;

-- name: wrong_settled
SELECT coalesce(escrow.account_id, posted.account_id) || ' epoch ' || coalesce(escrow.epoch, posted.epoch) AS subject,
    coalesce(posted.nanos, 0)::bigint AS expected, coalesce(settled_nanos, 0) AS found
FROM escrow
FULL JOIN (
    SELECT account_id, epoch, sum(loan_nanos) AS nanos FROM usage GROUP BY account_id, epoch
) AS posted ON posted.account_id = escrow.account_id AND posted.epoch = escrow.epoch
WHERE coalesce(settled_nanos, 0) <> coalesce(posted.nanos, 0)
ORDER BY 1 LIMIT $1;

-- name: wrong_key_use
SELECT coalesce(posted.key_id, windows.key_id) AS subject, coalesce(posted.nanos, 0)::bigint AS expected,
    coalesce(windows.all_nanos, 0)::bigint AS found
FROM (SELECT key_id, sum(cost_nanos) AS nanos FROM usage WHERE cost_nanos > 0 GROUP BY key_id) AS posted
FULL JOIN (
    SELECT key_id,
        sum(used_nanos) FILTER (WHERE usage_window = 'all') AS all_nanos,
        sum(used_nanos) FILTER (WHERE usage_window LIKE 'day:%') AS day_nanos,
        sum(used_nanos) FILTER (WHERE usage_window LIKE 'month:%') AS month_nanos
    FROM key_usage GROUP BY key_id
) AS windows ON windows.key_id = posted.key_id
WHERE coalesce(posted.nanos, 0) <> coalesce(all_nanos, 0)
    OR coalesce(posted.nanos, 0) <> coalesce(day_nanos, 0)
    OR coalesce(posted.nanos, 0) <> coalesce(month_nanos, 0)
ORDER BY 1 LIMIT $1;

-- name: platform_totals
-- What usage says the platform accounts hold.
SELECT subject, expected, found FROM (
    SELECT 'platform:revenue' AS subject, (SELECT coalesce(sum(cost_nanos), 0) FROM usage)::bigint AS expected,
        (SELECT coalesce(sum(amount_nanos), 0) FROM journal_entry WHERE ledger_account = 'platform:revenue')::bigint
            AS found
    UNION ALL
    SELECT 'platform:overrun', (SELECT -coalesce(sum(overrun_nanos), 0) FROM usage)::bigint,
        (SELECT coalesce(sum(amount_nanos), 0) FROM journal_entry WHERE ledger_account = 'platform:overrun')::bigint
) AS totals
WHERE expected <> found LIMIT $1;

-- name: open_exceptions
-- $1 at most. Newest first.
SELECT id, kind, session_id, account_id, detail, created_at FROM exception_list
WHERE resolved_at IS NULL ORDER BY id DESC LIMIT $1;

-- name: flagged_usage
-- $1 at most. Sessions whose count a person may want to look at.
SELECT session_id::text, account_id, flags, cost_nanos FROM usage
WHERE flags <> '{}' ORDER BY session_id DESC LIMIT $1;

-- name: lent_accounts
-- $1 first bucket, $2 last bucket: accounts that have settled from a loan of the current epoch.
SELECT escrow.account_id
FROM bucket
JOIN account ON account.bucket = bucket.bucket
JOIN escrow ON escrow.account_id = account.id AND escrow.epoch = bucket.epoch
WHERE bucket.bucket BETWEEN $1 AND $2 AND settled_nanos > 0;

-- name: account_positions
-- $1 account ids, $2 epochs, $3 the last gseq and $4 the last rseq applied in Redis. applied_nanos: what is
-- granted then. is_recalling: Redis has carried out a recall whose answer is still awaited.
SELECT wanted.account_id, account.id IS NOT NULL AS is_known, coalesce(settled_nanos, 0) AS settled_nanos,
    (
        SELECT coalesce(sum(nanos), 0) FROM loan
        WHERE loan.account_id = wanted.account_id AND loan.epoch = wanted.epoch AND gseq <= wanted.gseq
    )::bigint - (
        SELECT coalesce(sum(recalled_nanos), 0) FROM recall
        WHERE recall.account_id = wanted.account_id AND recall.epoch = wanted.epoch AND rseq <= wanted.rseq
    )::bigint AS applied_nanos,
    EXISTS (
        SELECT FROM recall
        WHERE recall.account_id = wanted.account_id AND recall.epoch = wanted.epoch AND rseq <= wanted.rseq
            AND recalled_nanos IS NULL
    ) AS is_recalling,
    (
        SELECT coalesce(max(rseq), 0) FROM recall
        WHERE recall.account_id = wanted.account_id AND recall.epoch = wanted.epoch
            AND recalled_nanos IS NOT NULL
    ) AS last_rseq,
    (
        SELECT coalesce(max(gseq), 0) FROM loan
        WHERE loan.account_id = wanted.account_id AND loan.epoch = wanted.epoch
    ) AS last_gseq
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS wanted (account_id, epoch, gseq, rseq)
LEFT JOIN account ON account.id = wanted.account_id
LEFT JOIN escrow ON escrow.account_id = wanted.account_id AND escrow.epoch = wanted.epoch;

-- name: key_positions
-- $1 account ids
SELECT api_key.id AS key_id, coalesce(used_nanos, 0) AS used_nanos
FROM api_key
LEFT JOIN key_usage ON key_usage.key_id = api_key.id AND usage_window = 'all'
WHERE api_key.account_id = ANY($1::text[]);

-- name: waiting_pushes
-- $1 account id: keys whose use Redis has not been told of yet.
SELECT key_push.key_id FROM key_push JOIN api_key ON api_key.id = key_push.key_id WHERE account_id = $1;

-- name: wrong_returned
-- What has come back of a loan is the sum of the journal's returns and recalls (and repairs).
SELECT escrow.account_id || ' epoch ' || escrow.epoch AS subject,
    coalesce(entries.nanos, 0)::bigint AS expected, returned_nanos AS found
FROM escrow
LEFT JOIN (
    SELECT account_id, epoch, -sum(amount_nanos) AS nanos
    FROM journal_entry JOIN journal_transaction ON journal_transaction.id = transaction_id
    WHERE account_id IS NOT NULL AND epoch IS NOT NULL AND kind NOT IN ('loan', 'usage')
    GROUP BY account_id, epoch
) AS entries ON entries.account_id = escrow.account_id AND entries.epoch = escrow.epoch
WHERE returned_nanos <> coalesce(entries.nanos, 0)
ORDER BY 1 LIMIT $1;

-- name: wrong_recalled
SELECT coalesce(recalled.account_id, entries.account_id) || ' epoch ' || coalesce(recalled.epoch, entries.epoch)
        AS subject,
    coalesce(recalled.nanos, 0)::bigint AS expected, coalesce(entries.nanos, 0)::bigint AS found
FROM (
    SELECT account_id, epoch, sum(recalled_nanos) AS nanos FROM recall
    WHERE recalled_nanos > 0 GROUP BY account_id, epoch
) AS recalled
FULL JOIN (
    SELECT account_id, epoch, -sum(amount_nanos) AS nanos
    FROM journal_entry JOIN journal_transaction ON journal_transaction.id = transaction_id
    WHERE kind = 'recall' AND epoch IS NOT NULL GROUP BY account_id, epoch
) AS entries ON entries.account_id = recalled.account_id AND entries.epoch = recalled.epoch
WHERE coalesce(recalled.nanos, 0) <> coalesce(entries.nanos, 0)
ORDER BY 1 LIMIT $1;

-- name: wrong_receivable
-- What the claims leave unserved is the receivable.
SELECT 'platform:receivable' AS subject, expected, found FROM (
    SELECT (SELECT -coalesce(sum(nanos - served_nanos), 0) FROM claim)::bigint AS expected,
        (
            SELECT coalesce(sum(amount_nanos), 0) FROM journal_entry WHERE ledger_account = 'platform:receivable'
        )::bigint AS found
) AS totals WHERE expected <> found LIMIT $1;

-- name: open_claims
-- $1 at most
SELECT account_id, reason, nanos, nanos - served_nanos AS open_nanos FROM claim
WHERE served_nanos < nanos ORDER BY id LIMIT $1;

-- name: holds_beyond_escrow
-- $1 at most. Listed sessions of ended epochs hold more than is left of their loan: what they cost above it
-- would be charged to the balance.
SELECT open_session.account_id, open_session.epoch, sum(held_nanos)::bigint AS held_nanos,
    coalesce(min(lent_nanos - returned_nanos - settled_nanos), 0)::bigint AS rest_nanos
FROM open_session
LEFT JOIN escrow ON escrow.account_id = open_session.account_id AND escrow.epoch = open_session.epoch
WHERE resolved_at IS NULL
    AND NOT EXISTS (SELECT FROM usage WHERE usage.session_id = open_session.session_id)
GROUP BY open_session.account_id, open_session.epoch
HAVING sum(held_nanos) > coalesce(min(lent_nanos - returned_nanos - settled_nanos), 0)
ORDER BY 1, 2 LIMIT $1;

-- name: waits_for_promise
-- $1 at most. Edges that loans of ended epochs wait for.
SELECT edge.id AS edge_id, count(*) AS buckets
FROM fence
CROSS JOIN edge
LEFT JOIN promise ON promise.edge_id = edge.id AND promise.bucket = fence.bucket
WHERE returned_at IS NULL AND edge.state = 'active'
    AND (promise.epoch IS NULL OR promise.epoch <= fence.epoch OR promise.incarnation <> edge.incarnation)
    AND coalesce(promise.gone_epoch, 0) <= fence.epoch
GROUP BY edge.id ORDER BY edge.id LIMIT $1;
