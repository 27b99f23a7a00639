-- Accounts, balances, loans, the journal, usage and API keys. Amounts are nanodollars (bigint).

CREATE SEQUENCE revision_sequence;

CREATE TABLE account_group (
    name text PRIMARY KEY,
    ratio_ppm bigint NOT NULL CHECK (ratio_ppm >= 0)
);
INSERT INTO account_group (name, ratio_ppm) VALUES ('default', 1000000);

CREATE TABLE account (
    id text PRIMARY KEY,
    email text UNIQUE,
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended')),
    group_name text NOT NULL DEFAULT 'default' REFERENCES account_group (name),
    bucket smallint NOT NULL CHECK (bucket BETWEEN 0 AND 255),
    revision bigint NOT NULL DEFAULT nextval('revision_sequence'),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX account_by_bucket ON account (bucket);

CREATE TABLE api_key (
    id text PRIMARY KEY,
    account_id text NOT NULL REFERENCES account (id),
    key_hash text NOT NULL UNIQUE,
    name text NOT NULL DEFAULT '',
    hint text NOT NULL,
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'disabled')),
    quota_nanos bigint CHECK (quota_nanos >= 0),
    expires_at_ms bigint,
    models text[],
    addresses text[],
    requests_per_minute bigint CHECK (requests_per_minute >= 0),
    tokens_per_minute bigint CHECK (tokens_per_minute >= 0),
    concurrency bigint CHECK (concurrency >= 0),
    budget_day_nanos bigint CHECK (budget_day_nanos >= 0),
    budget_month_nanos bigint CHECK (budget_month_nanos >= 0),
    revision bigint NOT NULL DEFAULT nextval('revision_sequence'),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX api_key_by_account ON api_key (account_id);

-- usage_window: 'all', 'day:2026-11-24' or 'month:2026-11' (UTC).
CREATE TABLE key_usage (
    key_id text NOT NULL,
    usage_window text NOT NULL,
    used_nanos bigint NOT NULL CHECK (used_nanos >= 0),
    PRIMARY KEY (key_id, usage_window)
) WITH (fillfactor = 80);

-- What a meter is told of a key and its account, with the use posted so far.
CREATE VIEW key_snapshot AS
SELECT
    api_key.id AS key_id, api_key.key_hash, api_key.account_id, account.bucket,
    greatest(api_key.revision, account.revision) AS revision,
    api_key.state AS key_state, account.state AS account_state, account_group.ratio_ppm,
    quota_nanos, expires_at_ms, models, addresses, requests_per_minute, tokens_per_minute, concurrency,
    budget_day_nanos, budget_month_nanos, utc.used_day, utc.used_month,
    coalesce(used.used_nanos, 0) AS used_nanos,
    coalesce(used_day.used_nanos, 0) AS used_day_nanos,
    coalesce(used_month.used_nanos, 0) AS used_month_nanos
FROM api_key
JOIN account ON account.id = api_key.account_id
JOIN account_group ON account_group.name = account.group_name
CROSS JOIN (
    SELECT
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS used_day,
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM') AS used_month
) AS utc
LEFT JOIN key_usage AS used ON used.key_id = api_key.id AND used.usage_window = 'all'
LEFT JOIN key_usage AS used_day
    ON used_day.key_id = api_key.id AND used_day.usage_window = 'day:' || utc.used_day
LEFT JOIN key_usage AS used_month
    ON used_month.key_id = api_key.id AND used_month.usage_window = 'month:' || utc.used_month;

CREATE TABLE balance (
    account_id text PRIMARY KEY REFERENCES account (id),
    available_nanos bigint NOT NULL DEFAULT 0 CHECK (available_nanos >= 0)
) WITH (fillfactor = 70);

-- Money lent to Redis, by epoch. What is neither returned nor settled is still out.
CREATE TABLE escrow (
    account_id text NOT NULL REFERENCES account (id),
    epoch bigint NOT NULL CHECK (epoch > 0),
    lent_nanos bigint NOT NULL DEFAULT 0 CHECK (lent_nanos >= 0),
    returned_nanos bigint NOT NULL DEFAULT 0 CHECK (returned_nanos >= 0),
    settled_nanos bigint NOT NULL DEFAULT 0 CHECK (settled_nanos >= 0),
    PRIMARY KEY (account_id, epoch),
    CHECK (lent_nanos - returned_nanos - settled_nanos >= 0)
) WITH (fillfactor = 70);

CREATE TABLE loan (
    account_id text NOT NULL,
    epoch bigint NOT NULL,
    gseq bigint NOT NULL CHECK (gseq > 0),
    nanos bigint NOT NULL CHECK (nanos > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, epoch, gseq),
    FOREIGN KEY (account_id, epoch) REFERENCES escrow (account_id, epoch)
);

CREATE TABLE bucket (
    bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 255),
    epoch bigint NOT NULL CHECK (epoch > 0),
    run_id text NOT NULL DEFAULT ''
) WITH (fillfactor = 70);
INSERT INTO bucket (bucket, epoch) SELECT number, 1 FROM generate_series(0, 255) AS number;

-- One row per epoch that has ended; open until its escrow has gone back.
CREATE TABLE fence (
    bucket smallint NOT NULL REFERENCES bucket (bucket),
    epoch bigint NOT NULL,
    run_id text NOT NULL,
    reason text NOT NULL,
    fenced_at timestamptz NOT NULL DEFAULT now(),
    returned_at timestamptz,
    PRIMARY KEY (bucket, epoch)
);
CREATE INDEX fence_open ON fence (fenced_at) WHERE returned_at IS NULL;

CREATE TABLE journal_transaction (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    ref text NOT NULL,
    reason text NOT NULL DEFAULT '',
    actor text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (kind, ref)
);

-- ledger_account: account:<id>:available, account:<id>:escrow, platform:revenue, platform:credit,
-- platform:cash or platform:overrun.
CREATE TABLE journal_entry (
    transaction_id bigint NOT NULL REFERENCES journal_transaction (id),
    ledger_account text NOT NULL,
    amount_nanos bigint NOT NULL CHECK (amount_nanos <> 0),
    account_id text REFERENCES account (id),
    epoch bigint
);
CREATE INDEX journal_entry_by_transaction ON journal_entry (transaction_id);
CREATE INDEX journal_entry_by_account ON journal_entry (account_id, transaction_id) WHERE account_id IS NOT NULL;

CREATE FUNCTION refuse_change_of_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: correct it with a new row', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END;
$$;

CREATE TRIGGER journal_entry_append_only BEFORE UPDATE OR DELETE ON journal_entry
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_history();
CREATE TRIGGER journal_entry_no_truncate BEFORE TRUNCATE ON journal_entry
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_history();
CREATE TRIGGER journal_transaction_append_only BEFORE UPDATE OR DELETE ON journal_transaction
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_history();
CREATE TRIGGER journal_transaction_no_truncate BEFORE TRUNCATE ON journal_transaction
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_history();

CREATE FUNCTION require_zero_sum() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    total numeric;
BEGIN
    SELECT sum(amount_nanos) INTO total FROM journal_entry WHERE transaction_id = NEW.transaction_id;
    IF total <> 0 THEN
        RAISE EXCEPTION 'journal transaction % is off by % nanodollars', NEW.transaction_id, total
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END;
$$;

CREATE CONSTRAINT TRIGGER journal_entry_zero_sum AFTER INSERT ON journal_entry
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION require_zero_sum();

-- One row per session, partitioned by month: a UUIDv7 starts with its time, so ranges of ids are
-- ranges of time, and the session id alone is unique over all partitions.
CREATE TABLE usage (
    session_id uuid PRIMARY KEY,
    account_id text NOT NULL,
    key_id text NOT NULL,
    edge_id text NOT NULL,
    endpoint text NOT NULL,
    model text NOT NULL,
    price_version bigint NOT NULL,
    ratio_ppm bigint NOT NULL,
    epoch bigint NOT NULL,
    input_tokens bigint NOT NULL,
    cached_input_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    audio_input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    audio_output_tokens bigint NOT NULL,
    cost_nanos bigint NOT NULL CHECK (cost_nanos >= 0),
    loan_nanos bigint NOT NULL CHECK (loan_nanos >= 0),
    available_nanos bigint NOT NULL CHECK (available_nanos >= 0),
    overrun_nanos bigint NOT NULL CHECK (overrun_nanos >= 0),
    held_nanos bigint NOT NULL,
    stream boolean NOT NULL,
    outcome text NOT NULL,
    usage_source text NOT NULL,
    channel_id text NOT NULL,
    upstream_model text NOT NULL,
    request_id text NOT NULL,
    started_at_ms bigint NOT NULL,
    first_byte_ms bigint NOT NULL,
    duration_ms bigint NOT NULL,
    usage_json text NOT NULL,
    flags text[] NOT NULL,
    posted_at timestamptz NOT NULL DEFAULT now(),
    CHECK (cost_nanos = loan_nanos + available_nanos + overrun_nanos)
) PARTITION BY RANGE (session_id);
CREATE INDEX usage_by_account ON usage (account_id, session_id);
CREATE TABLE usage_default PARTITION OF usage DEFAULT;

-- The lowest UUIDv7 of a moment.
CREATE FUNCTION uuid7_floor(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0')
        || '00000000000000000000')::uuid;
$$;

-- Creates the partition of a UTC month. Attaching locks out nobody but the default partition;
-- rows that are already there keep that month in it.
CREATE FUNCTION ensure_usage_partition(month_start date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    partition_name text := 'usage_' || to_char(month_start, 'YYYY_MM');
    lower_bound uuid := uuid7_floor(month_start::timestamp AT TIME ZONE 'UTC');
    upper_bound uuid := uuid7_floor((month_start + interval '1 month') AT TIME ZONE 'UTC');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('meterway.usage_partition'));
    IF to_regclass(partition_name) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE usage INCLUDING ALL)', partition_name);
    EXECUTE format('ALTER TABLE usage ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        partition_name, lower_bound, upper_bound);
EXCEPTION WHEN check_violation THEN
    RAISE WARNING 'usage of % stays in the default partition', partition_name;
END;
$$;

CREATE TABLE edge (
    id text PRIMARY KEY,
    incarnation text NOT NULL,
    internal_url text NOT NULL,
    last_seen timestamptz NOT NULL DEFAULT now()
);

-- What a person should look at. The same finding comes once (kind, ref), whatever is sent again.
CREATE TABLE exception_list (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    ref text NOT NULL,
    session_id text,
    account_id text,
    detail jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    UNIQUE (kind, ref)
);
CREATE INDEX exception_list_open ON exception_list (id) WHERE resolved_at IS NULL;

CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_history();

CREATE TABLE operator (
    email text PRIMARY KEY,
    password_hash text NOT NULL,
    role text NOT NULL DEFAULT 'owner' CHECK (role IN ('owner', 'finance', 'support', 'read_only')),
    created_at timestamptz NOT NULL DEFAULT now()
);
