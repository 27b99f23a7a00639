-- name: insert_account
-- $1 id, $2 email or NULL, $3 bucket
WITH new_account AS (
    INSERT INTO account (id, email, bucket) VALUES ($1, $2, $3) RETURNING id
)
INSERT INTO balance (account_id) SELECT id FROM new_account;

-- name: account
SELECT account.id, email, state, group_name, ratio_ppm, bucket, revision, created_at
FROM account JOIN account_group ON account_group.name = account.group_name
WHERE account.id = $1;

-- name: accounts
-- $1 after this id, $2 at most
SELECT account.id, email, state, group_name, ratio_ppm, bucket, revision, account.created_at, available_nanos
FROM account
JOIN account_group ON account_group.name = account.group_name
JOIN balance ON balance.account_id = account.id
WHERE account.id > $1
ORDER BY account.id
LIMIT $2;

-- name: lock_account
-- Taken before any change of the account or its keys, so that revisions grow in the order of commits.
SELECT id, state FROM account WHERE id = $1 FOR NO KEY UPDATE;

-- name: set_account_state
UPDATE account SET state = $2, revision = nextval('revision_sequence') WHERE id = $1;

-- name: lock_balance
SELECT available_nanos FROM balance WHERE account_id = $1 FOR NO KEY UPDATE;

-- name: add_to_balance
UPDATE balance SET available_nanos = available_nanos + $2 WHERE account_id = $1;

-- name: owner_of_credit
-- $1 transaction id. Where nothing was available all of it is a claim.
SELECT coalesce(
    (SELECT account_id FROM journal_entry WHERE transaction_id = $1 AND account_id IS NOT NULL LIMIT 1),
    (
        SELECT account_id FROM claim JOIN journal_transaction ON journal_transaction.ref = claim.ref
        WHERE journal_transaction.id = $1
    )
);
