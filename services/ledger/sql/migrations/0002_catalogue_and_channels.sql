-- Models, prices, channels and their credentials; revisions that wake whoever waits for a change.

-- One row per thing that is pushed out whole. A row, not a sequence: its value becomes visible in the
-- order of commits, so that nobody who has seen revision n can miss a change that has a lower one.
CREATE TABLE revision (
    name  text PRIMARY KEY CHECK (name IN ('catalogue', 'routing')),
    value bigint NOT NULL CHECK (value > 0)
);
INSERT INTO revision (name, value) VALUES ('catalogue', 1), ('routing', 1);

CREATE FUNCTION bump_routing_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE revision SET value = value + 1 WHERE name = 'routing';
    PERFORM pg_notify('meterway_routing', '');
    RETURN NULL;
END $$;

-- The routing answer carries the catalogue: a change of it is a change of both.
CREATE FUNCTION bump_catalogue_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE revision SET value = value + 1 WHERE name = 'catalogue';
    UPDATE revision SET value = value + 1 WHERE name = 'routing';
    PERFORM pg_notify('meterway_catalogue', '');
    PERFORM pg_notify('meterway_routing', '');
    RETURN NULL;
END $$;

-- `list_*_micros`: the maker's own price, micro-USD per 1M tokens, all NULL when unknown.
CREATE TABLE model (
    id                       text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 200),
    owner                    text NOT NULL,
    kind                     text NOT NULL CHECK (kind IN ('chat', 'completion', 'embedding', 'moderation')),
    context_tokens           bigint CHECK (context_tokens > 0),
    output_tokens_max        bigint CHECK (output_tokens_max > 0),
    knowledge_cutoff         text NOT NULL DEFAULT '',
    capabilities             text[] NOT NULL DEFAULT '{}',
    hidden_reasoning         boolean NOT NULL DEFAULT false,
    list_input_micros        bigint CHECK (list_input_micros >= 0),
    list_cached_input_micros bigint CHECK (list_cached_input_micros >= 0),
    list_cache_write_micros  bigint CHECK (list_cache_write_micros >= 0),
    list_audio_input_micros  bigint CHECK (list_audio_input_micros >= 0),
    list_output_micros       bigint CHECK (list_output_micros >= 0),
    list_reasoning_micros    bigint CHECK (list_reasoning_micros >= 0),
    list_audio_output_micros bigint CHECK (list_audio_output_micros >= 0),
    note_en                  text NOT NULL DEFAULT '',
    note_zh                  text NOT NULL DEFAULT '',
    enabled                  boolean NOT NULL DEFAULT true,
    position                 bigint GENERATED ALWAYS AS IDENTITY,
    created_at               timestamptz NOT NULL DEFAULT now(),
    CHECK (num_nulls(list_input_micros, list_cached_input_micros, list_cache_write_micros,
                     list_audio_input_micros, list_output_micros, list_reasoning_micros,
                     list_audio_output_micros) IN (0, 7))
);
CREATE TRIGGER model_changed AFTER INSERT OR UPDATE OR DELETE ON model
    FOR EACH STATEMENT EXECUTE FUNCTION bump_catalogue_revision();

-- A version never changes: usage rows name it. Micro-USD per 1M tokens, which is picodollars a token.
-- The bound keeps 2M tokens x price x any ratio up to 1 under 2^53 picodollars.
CREATE TABLE price (
    model_id            text NOT NULL REFERENCES model (id),
    version             integer NOT NULL CHECK (version > 0),
    starts_at           timestamptz NOT NULL,
    input_micros        bigint NOT NULL CHECK (input_micros BETWEEN 0 AND 4500000000),
    cached_input_micros bigint NOT NULL CHECK (cached_input_micros BETWEEN 0 AND 4500000000),
    cache_write_micros  bigint NOT NULL CHECK (cache_write_micros BETWEEN 0 AND 4500000000),
    audio_input_micros  bigint NOT NULL CHECK (audio_input_micros BETWEEN 0 AND 4500000000),
    output_micros       bigint NOT NULL CHECK (output_micros BETWEEN 0 AND 4500000000),
    reasoning_micros    bigint NOT NULL CHECK (reasoning_micros BETWEEN 0 AND 4500000000),
    audio_output_micros bigint NOT NULL CHECK (audio_output_micros BETWEEN 0 AND 4500000000),
    created_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_id, version)
);
CREATE FUNCTION refuse_price_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'price versions are immutable: set a new version' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER price_is_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON price
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_price_change();
CREATE TRIGGER price_added AFTER INSERT ON price
    FOR EACH STATEMENT EXECUTE FUNCTION bump_catalogue_revision();

-- An upstream. `models`: our model id -> the upstream's name; NULL: every model, not renamed.
CREATE TABLE channel (
    id                      text PRIMARY KEY,
    name                    text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    kind                    text NOT NULL DEFAULT 'openai' CHECK (kind IN ('openai', 'azure')),
    base_url                text NOT NULL,
    models                  jsonb CHECK (models IS NULL OR jsonb_typeof(models) = 'object'),
    priority                integer NOT NULL DEFAULT 0,
    weight                  integer NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 10000),
    headers                 jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(headers) = 'object'),
    connect_timeout_ms      integer NOT NULL DEFAULT 10000 CHECK (connect_timeout_ms > 0),
    first_byte_timeout_ms   integer NOT NULL DEFAULT 600000 CHECK (first_byte_timeout_ms > 0),
    idle_timeout_ms         integer NOT NULL DEFAULT 300000 CHECK (idle_timeout_ms > 0),
    enabled                 boolean NOT NULL DEFAULT true,
    allow_private_addresses boolean NOT NULL DEFAULT false,
    revision                bigint NOT NULL DEFAULT 1,
    created_at              timestamptz NOT NULL DEFAULT now()
);
CREATE TRIGGER channel_changed AFTER INSERT OR UPDATE OR DELETE ON channel
    FOR EACH ROW EXECUTE FUNCTION bump_routing_revision();

-- `secret`: AES-GCM under the key from the settings; only `hint` is ever shown.
CREATE TABLE channel_credential (
    id               text PRIMARY KEY,
    channel_id       text NOT NULL REFERENCES channel (id) ON DELETE CASCADE,
    secret           bytea NOT NULL,
    hint             text NOT NULL,
    state            text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'set_aside')),
    set_aside_status integer,
    set_aside_at     timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 'set_aside') = (set_aside_at IS NOT NULL))
);
CREATE INDEX channel_credential_channel ON channel_credential (channel_id);
CREATE TRIGGER channel_credential_changed AFTER INSERT OR UPDATE OR DELETE ON channel_credential
    FOR EACH ROW EXECUTE FUNCTION bump_routing_revision();

-- The command line's channel is in no table; a keyed fingerprint shows when it has changed between
-- two starts, so that edges which kept running fetch the routing again.
CREATE TABLE command_line_channel (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    fingerprint text NOT NULL
);
CREATE TRIGGER command_line_channel_changed AFTER INSERT OR UPDATE OR DELETE ON command_line_channel
    FOR EACH ROW EXECUTE FUNCTION bump_routing_revision();
