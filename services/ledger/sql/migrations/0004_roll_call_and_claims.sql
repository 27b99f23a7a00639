-- Roll-call after a fence, edges that are gone, recall of loans, claims, and key use that came past Redis.

-- `gone`: forgotten by an operator, or silent for too long. Its log may not charge what began before gone_at.
-- cleared_at: since then nothing of it is left in Redis or among the open sessions.
ALTER TABLE edge
    ADD COLUMN state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'gone')),
    ADD COLUMN gone_at timestamptz,
    ADD COLUMN cleared_at timestamptz;

-- The newest epoch of a bucket that an edge has promised. gone_epoch: a bucket's newest epoch for which the
-- roll-call did not wait for it.
CREATE TABLE promise (
    edge_id text NOT NULL REFERENCES edge (id),
    bucket smallint NOT NULL REFERENCES bucket (bucket),
    incarnation text NOT NULL,
    epoch bigint NOT NULL,
    gone_epoch bigint NOT NULL DEFAULT 0,
    promised_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (edge_id, bucket)
) WITH (fillfactor = 70);

-- Sessions of ended epochs that edges have listed: what they hold of the old escrow stays there.
-- resolution: posted, released, ended (its edge lists it no more) or gone (its edge is).
CREATE TABLE open_session (
    session_id uuid PRIMARY KEY,
    edge_id text NOT NULL REFERENCES edge (id),
    incarnation text NOT NULL,
    account_id text NOT NULL,
    bucket smallint NOT NULL REFERENCES bucket (bucket),
    epoch bigint NOT NULL,
    held_nanos bigint NOT NULL CHECK (held_nanos >= 0),
    listed_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolution text CHECK (resolution IN ('posted', 'released', 'ended', 'gone')),
    CHECK ((resolved_at IS NULL) = (resolution IS NULL))
);
CREATE INDEX open_session_unresolved ON open_session (bucket, epoch, account_id) WHERE resolved_at IS NULL;
CREATE INDEX open_session_resolved ON open_session (resolved_at) WHERE resolved_at IS NOT NULL;

-- Sessions of edges' logs that have ended and are no usage: released, or on the exception list. Kept for some
-- time only, so that a log needn't tell of them again.
CREATE TABLE ended_session (
    session_id text PRIMARY KEY,
    how text NOT NULL CHECK (how IN ('released', 'exception')),
    ended_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ended_session_by_time ON ended_session (ended_at);

-- What was asked back of a loan. Written before Redis is asked; recalled_nanos NULL: not answered yet.
CREATE TABLE recall (
    account_id text NOT NULL,
    epoch bigint NOT NULL,
    rseq bigint NOT NULL CHECK (rseq > 0),
    wanted_nanos bigint NOT NULL CHECK (wanted_nanos > 0),
    recalled_nanos bigint CHECK (recalled_nanos BETWEEN 0 AND wanted_nanos),
    asked_at timestamptz NOT NULL DEFAULT now(),
    answered_at timestamptz,
    PRIMARY KEY (account_id, epoch, rseq),
    FOREIGN KEY (account_id, epoch) REFERENCES escrow (account_id, epoch)
);
CREATE UNIQUE INDEX recall_unanswered ON recall (account_id, epoch) WHERE recalled_nanos IS NULL;

-- What an account owes because its balance did not cover an adjustment: served first from what returns. The
-- unserved sum of all is the receivable: the journal's account platform:receivable.
CREATE TABLE claim (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id text NOT NULL REFERENCES account (id),
    nanos bigint NOT NULL CHECK (nanos > 0),
    served_nanos bigint NOT NULL DEFAULT 0 CHECK (served_nanos BETWEEN 0 AND nanos),
    reason text NOT NULL,
    actor text NOT NULL,
    ref text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    asks integer NOT NULL DEFAULT 0,
    ask_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX claim_open ON claim (account_id, id) WHERE served_nanos < nanos;

-- Keys whose use Redis must hear of. version grows with each use that came past Redis.
CREATE TABLE key_push (
    key_id text PRIMARY KEY,
    version bigint NOT NULL DEFAULT 1
);

-- key_usage.usage_window may also be 'late': the part of 'all' that came past Redis.
CREATE OR REPLACE VIEW key_snapshot AS
SELECT
    api_key.id AS key_id, api_key.key_hash, api_key.account_id, account.bucket,
    greatest(api_key.revision, account.revision) AS revision,
    api_key.state AS key_state, account.state AS account_state, account_group.ratio_ppm,
    quota_nanos, expires_at_ms, models, addresses, requests_per_minute, tokens_per_minute, concurrency,
    budget_day_nanos, budget_month_nanos, utc.used_day, utc.used_month,
    coalesce(used.used_nanos, 0) AS used_nanos,
    coalesce(used_day.used_nanos, 0) AS used_day_nanos,
    coalesce(used_month.used_nanos, 0) AS used_month_nanos,
    coalesce(used_late.used_nanos, 0) AS late_nanos,
    bucket.epoch
FROM api_key
JOIN account ON account.id = api_key.account_id
JOIN bucket ON bucket.bucket = account.bucket
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
    ON used_month.key_id = api_key.id AND used_month.usage_window = 'month:' || utc.used_month
LEFT JOIN key_usage AS used_late ON used_late.key_id = api_key.id AND used_late.usage_window = 'late';
