-- name: revision
-- The current revision of `catalogue` or `routing`.
SELECT value FROM revision WHERE name = $1;

-- name: count_models
SELECT count(*) FROM model;

-- name: lock_seeding
-- Two ledgers that start on an empty database: the second one waits, then finds it seeded.
SELECT pg_advisory_xact_lock(7202202);

-- name: insert_model
-- Answers the id, or no row when the model exists already.
INSERT INTO model (
    id, owner, kind, context_tokens, output_tokens_max, knowledge_cutoff, capabilities, hidden_reasoning,
    list_input_micros, list_cached_input_micros, list_cache_write_micros, list_audio_input_micros,
    list_output_micros, list_reasoning_micros, list_audio_output_micros,
    note_en, note_zh, created_at
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, coalesce($18, now()))
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: lock_model
-- Price versions of one model are numbered under this lock.
SELECT id FROM model WHERE id = $1 FOR UPDATE;

-- name: insert_price
-- Starts now, by the database's clock, when no start is given.
INSERT INTO price (
    model_id, version, starts_at, input_micros, cached_input_micros, cache_write_micros, audio_input_micros,
    output_micros, reasoning_micros, audio_output_micros
)
SELECT $1, coalesce(max(version), 0) + 1, coalesce($2, date_trunc('milliseconds', clock_timestamp())),
       $3, $4, $5, $6, $7, $8, $9
FROM price WHERE model_id = $1
RETURNING version, starts_at;

-- name: models
SELECT id, owner, kind, context_tokens, output_tokens_max, knowledge_cutoff, capabilities, hidden_reasoning,
       list_input_micros, list_cached_input_micros, list_cache_write_micros, list_audio_input_micros,
       list_output_micros, list_reasoning_micros, list_audio_output_micros,
       note_en, note_zh, enabled, created_at
FROM model ORDER BY position;

-- name: live_prices
-- Versions in force, coming, or over for less than an hour (clocks differ), in the order in which they
-- come into force; of two with the same start the later version wins.
SELECT model_id, version, starts_at, input_micros, cached_input_micros, cache_write_micros,
       audio_input_micros, output_micros, reasoning_micros, audio_output_micros
FROM (
    SELECT *, lead(starts_at) OVER (PARTITION BY model_id ORDER BY starts_at, version) AS ends_at FROM price
) AS ordered
WHERE ends_at IS NULL OR ends_at > now() - interval '1 hour'
ORDER BY model_id, starts_at, version;

-- name: price_in_force
SELECT version, starts_at, input_micros, cached_input_micros, cache_write_micros, audio_input_micros,
       output_micros, reasoning_micros, audio_output_micros
FROM price WHERE model_id = $1 AND starts_at <= clock_timestamp()
ORDER BY starts_at DESC, version DESC LIMIT 1;

-- name: set_model_enabled
UPDATE model SET enabled = $2 WHERE id = $1;
