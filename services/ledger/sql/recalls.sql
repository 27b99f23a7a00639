-- name: share_bucket
-- $1 bucket. Held until commit: a fence waits for the recall that was written before it.
SELECT epoch FROM bucket WHERE bucket = $1 FOR SHARE;

-- name: lock_escrow
-- $1 account id, $2 epoch
SELECT lent_nanos - returned_nanos - settled_nanos AS rest_nanos FROM escrow
WHERE account_id = $1 AND epoch = $2 FOR NO KEY UPDATE;

-- name: unanswered
SELECT rseq, wanted_nanos FROM recall WHERE account_id = $1 AND epoch = $2 AND recalled_nanos IS NULL;

-- name: all_unanswered
-- $1 at most
SELECT account_id, epoch, rseq, wanted_nanos FROM recall WHERE recalled_nanos IS NULL
ORDER BY asked_at LIMIT $1;

-- name: last_rseq
SELECT coalesce(max(rseq), 0) FROM recall WHERE account_id = $1 AND epoch = $2;

-- name: insert_recall
INSERT INTO recall (account_id, epoch, rseq, wanted_nanos) VALUES ($1, $2, $3, $4);

-- name: lock_recall
SELECT recalled_nanos FROM recall WHERE account_id = $1 AND epoch = $2 AND rseq = $3 FOR NO KEY UPDATE;

-- name: answer_recall
-- $1 account id, $2 epoch, $3 rseq, $4 nanos
UPDATE recall SET recalled_nanos = $4, answered_at = now() WHERE account_id = $1 AND epoch = $2 AND rseq = $3;
