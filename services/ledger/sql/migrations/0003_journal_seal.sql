-- The hash chain over the journal. Block n covers every journal transaction with an id from first_id to
-- last_id; no id up to last_id can appear any more when the block is written.
-- The identity of journal_transaction must keep CACHE 1: a session that caches ids would use an old one later.

CREATE TABLE journal_block (
    number bigint PRIMARY KEY CHECK (number > 0),
    first_id bigint NOT NULL,
    last_id bigint NOT NULL UNIQUE CHECK (last_id >= first_id),
    transactions bigint NOT NULL CHECK (transactions > 0),
    entries bigint NOT NULL CHECK (entries >= 0),
    -- What the entries above zero sum up to; those below zero are as much.
    moved_nanos numeric(38, 0) NOT NULL CHECK (moved_nanos >= 0),
    sealed_at timestamptz NOT NULL,
    prev_hash bytea NOT NULL CHECK (octet_length(prev_hash) = 32),
    hash bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    -- What was hashed, compressed: so that a later change of a row can be named.
    content bytea NOT NULL
);
ALTER TABLE journal_block ALTER COLUMN content SET STORAGE EXTERNAL;

CREATE FUNCTION require_next_block() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    head journal_block;
BEGIN
    SELECT * INTO head FROM journal_block ORDER BY number DESC LIMIT 1;
    IF NEW.number <> coalesce(head.number, 0) + 1
        OR NEW.first_id <> coalesce(head.last_id, 0) + 1
        OR NEW.prev_hash <> coalesce(head.hash, decode(repeat('00', 32), 'hex'))
    THEN
        RAISE EXCEPTION 'journal block % does not continue block %', NEW.number, coalesce(head.number, 0)
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END;
$$;

CREATE TRIGGER journal_block_next BEFORE INSERT ON journal_block
    FOR EACH ROW EXECUTE FUNCTION require_next_block();
CREATE TRIGGER journal_block_append_only BEFORE UPDATE OR DELETE ON journal_block
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_history();
CREATE TRIGGER journal_block_no_truncate BEFORE TRUNCATE ON journal_block
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_history();
