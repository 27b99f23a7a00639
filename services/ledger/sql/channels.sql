-- name: channels
SELECT id, name, kind, base_url, models, priority, weight, headers, connect_timeout_ms,
       first_byte_timeout_ms, idle_timeout_ms, enabled, allow_private_addresses, revision, created_at
FROM channel ORDER BY priority DESC, name;

-- name: lock_channel
-- Taken before any change of the channel or its credentials.
SELECT id, name, kind, base_url, models, priority, weight, headers, connect_timeout_ms,
       first_byte_timeout_ms, idle_timeout_ms, enabled, allow_private_addresses, revision, created_at
FROM channel WHERE id = $1 FOR UPDATE;

-- name: count_channels
SELECT count(*) FROM channel;

-- name: insert_channel
INSERT INTO channel (
    id, name, kind, base_url, models, priority, weight, headers, connect_timeout_ms,
    first_byte_timeout_ms, idle_timeout_ms, enabled, allow_private_addresses
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: update_channel
UPDATE channel
SET name = $2, kind = $3, base_url = $4, models = $5, priority = $6, weight = $7, headers = $8,
    connect_timeout_ms = $9, first_byte_timeout_ms = $10, idle_timeout_ms = $11, enabled = $12,
    allow_private_addresses = $13, revision = revision + 1
WHERE id = $1;

-- name: delete_channel
DELETE FROM channel WHERE id = $1;

-- name: channel_credentials
SELECT id, channel_id, hint, state, set_aside_status, set_aside_at, created_at
FROM channel_credential ORDER BY created_at, id;

-- name: credentials_of_channel
SELECT id, channel_id, hint, state, set_aside_status, set_aside_at, created_at
FROM channel_credential WHERE channel_id = $1 ORDER BY created_at, id;

-- name: insert_credential
INSERT INTO channel_credential (id, channel_id, secret, hint) VALUES ($1, $2, $3, $4);

-- name: delete_credentials
-- Answers the ids that were there.
DELETE FROM channel_credential WHERE channel_id = $1 AND id = ANY ($2::text[]) RETURNING id;

-- name: activate_credentials
-- Answers the ids that are there, whether they were set aside or not.
UPDATE channel_credential SET state = 'active', set_aside_status = NULL, set_aside_at = NULL
WHERE channel_id = $1 AND id = ANY ($2::text[]) RETURNING id;

-- name: set_credential_aside
-- Answers the hint, or no row when it is gone or set aside already.
UPDATE channel_credential SET state = 'set_aside', set_aside_status = $3, set_aside_at = now()
WHERE channel_id = $1 AND id = $2 AND state = 'active' RETURNING hint;

-- name: routable_channels
SELECT id, name, kind, base_url, models, priority, weight, headers, connect_timeout_ms,
       first_byte_timeout_ms, idle_timeout_ms
FROM channel WHERE enabled ORDER BY priority DESC, id;

-- name: routable_credentials
SELECT c.id, c.channel_id, c.secret
FROM channel_credential c JOIN channel ON channel.id = c.channel_id
WHERE channel.enabled AND c.state = 'active' ORDER BY c.id;

-- name: stored_secrets
SELECT id, channel_id, secret FROM channel_credential ORDER BY id FOR UPDATE;

-- name: replace_secret
UPDATE channel_credential SET secret = $2 WHERE id = $1;

-- name: note_command_line_channel
-- Changes the row, and with it the routing revision, only when the fingerprint differs.
INSERT INTO command_line_channel (fingerprint) VALUES ($1)
ON CONFLICT (only_row) DO UPDATE SET fingerprint = EXCLUDED.fingerprint
WHERE command_line_channel.fingerprint <> EXCLUDED.fingerprint;
