-- name: share_epochs
-- Held until commit: a fence waits, so that what is posted as of the current epoch is so.
SELECT pg_advisory_xact_lock_shared(5012);

-- name: epochs_of
SELECT bucket, epoch FROM bucket WHERE bucket = ANY($1::smallint[]);

-- name: lock_escrows
-- $1 account ids, $2 epochs. In account order, so that posters never wait for each other in a circle.
SELECT account_id, epoch, lent_nanos - returned_nanos - settled_nanos AS rest_nanos
FROM escrow
WHERE (account_id, epoch) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))
ORDER BY account_id, epoch
FOR NO KEY UPDATE;

-- name: known_accounts
SELECT id FROM account WHERE id = ANY($1::text[]);

-- name: posted_sessions
-- $1 session ids; $2 the smallest and $3 the largest of them, so that only their partitions are read.
SELECT session_id::text, account_id, cost_nanos
FROM usage
WHERE session_id = ANY($1::uuid[]) AND session_id BETWEEN $2::uuid AND $3::uuid;

-- name: lock_balances
SELECT account_id, available_nanos FROM balance
WHERE account_id = ANY($1::text[])
ORDER BY account_id
FOR NO KEY UPDATE;

-- name: settle_escrows
-- $1 account ids, $2 epochs, $3 nanos
UPDATE escrow SET settled_nanos = settled_nanos + charged.nanos
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS charged (account_id, epoch, nanos)
WHERE escrow.account_id = charged.account_id AND escrow.epoch = charged.epoch;

-- name: charge_balances
-- $1 account ids, $2 nanos
UPDATE balance SET available_nanos = available_nanos - charged.nanos
FROM unnest($1::text[], $2::bigint[]) AS charged (account_id, nanos)
WHERE balance.account_id = charged.account_id;

-- name: add_key_use
-- $1 key ids, $2 windows, $3 nanos
INSERT INTO key_usage (key_id, usage_window, used_nanos)
SELECT key_id, usage_window, nanos
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS used (key_id, usage_window, nanos)
ORDER BY key_id, usage_window
ON CONFLICT (key_id, usage_window) DO UPDATE SET used_nanos = key_usage.used_nanos + excluded.used_nanos;

-- name: wish_push
-- $1 key ids: Redis must hear of their use.
INSERT INTO key_push (key_id) SELECT DISTINCT unnest($1::text[]) AS key_id ORDER BY key_id
ON CONFLICT (key_id) DO UPDATE SET version = key_push.version + 1;

-- name: insert_exceptions
-- $1 kinds, $2 refs, $3 session ids, $4 account ids, $5 details as JSON texts
INSERT INTO exception_list (kind, ref, session_id, account_id, detail)
SELECT kind, ref, session_id, account_id, detail::jsonb
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    AS found (kind, ref, session_id, account_id, detail)
ON CONFLICT (kind, ref) DO NOTHING;

-- name: prices
-- $1 model ids, $2 versions
SELECT model_id, version, input_micros, cached_input_micros, cache_write_micros, audio_input_micros,
    output_micros, reasoning_micros, audio_output_micros
FROM price
WHERE (model_id, version) IN (SELECT model_id, version FROM unnest($1::text[], $2::bigint[]) AS named (model_id, version));

-- name: ensure_usage_partition
-- $1 the first day of a UTC month
SELECT ensure_usage_partition($1::date);
