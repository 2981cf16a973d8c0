-- The outbox: producers insert commands, the relay writes their outcomes. processor/docs/outbox.md
-- describes the columns. `taskflow outbox --ddl` prints these statements; PostgreSQL 13 or newer.

CREATE TABLE taskflow_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    flow_id uuid NOT NULL,
    command_id uuid NOT NULL DEFAULT gen_random_uuid(),
    command jsonb NOT NULL,
    traceparent text,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Written by the relay when it sends the row.
    topic text,
    sent_at timestamptz,
    expires_at timestamptz,
    outcomes_offset bigint,
    -- Written by the relay with the outcome.
    outcome_at timestamptz,
    verdict text,
    code text,
    message text,
    revision bigint,
    status text,
    allowed text[],
    event_ids bigint[],
    details jsonb
);
CREATE INDEX taskflow_outbox_pending ON taskflow_outbox (flow_id, id) WHERE outcome_at IS NULL;
CREATE INDEX taskflow_outbox_outcomes ON taskflow_outbox (outcome_at) WHERE outcome_at IS NOT NULL;

-- Adds the row's ids to the command: Debezium sends the command as it is in the row.
CREATE FUNCTION taskflow_outbox_complete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF jsonb_typeof(NEW.command) = 'object' THEN
        NEW.command := NEW.command
            || CASE WHEN NEW.command ? 'flow_id' THEN '{}'::jsonb
                    ELSE jsonb_build_object('flow_id', NEW.flow_id) END
            || CASE WHEN NEW.command ? 'command_id' THEN '{}'::jsonb
                    ELSE jsonb_build_object('command_id', NEW.command_id) END;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER taskflow_outbox_complete BEFORE INSERT ON taskflow_outbox
    FOR EACH ROW EXECUTE FUNCTION taskflow_outbox_complete();

-- Notifies the relay of a commit; without it, the relay polls once a second.
CREATE FUNCTION taskflow_outbox_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('taskflow_outbox', TG_TABLE_SCHEMA);
    RETURN NULL;
END
$$;
CREATE TRIGGER taskflow_outbox_wake AFTER INSERT ON taskflow_outbox
    FOR EACH STATEMENT EXECUTE FUNCTION taskflow_outbox_wake();

COMMENT ON TABLE taskflow_outbox IS 'taskflow outbox, format 1';
