-- What the sink writes, in the schema of TASKFLOW_SINK_SCHEMA; the columns are described in
-- processor/docs/sinking.md.

CREATE TABLE taskflow_positions (
    partition integer PRIMARY KEY,
    topic text NOT NULL,
    event_id bigint NOT NULL,
    audit_offset bigint NOT NULL,
    chain bytea NOT NULL,
    event_at timestamptz NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE taskflow_positions IS 'taskflow sink, format 1';

CREATE TABLE taskflow_flows (
    id uuid PRIMARY KEY,
    controller_id text NOT NULL,
    goal text NOT NULL,
    owner_session_key text NOT NULL,
    requester_origin text NOT NULL,
    current_step text NOT NULL,
    state_json jsonb,
    wait_json jsonb,
    status text NOT NULL,
    cancel_requested boolean NOT NULL,
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    last_event_id bigint NOT NULL,
    chain bytea NOT NULL
);
CREATE INDEX taskflow_flows_status ON taskflow_flows (status, updated_at);
CREATE INDEX taskflow_flows_owner ON taskflow_flows (owner_session_key, updated_at);

CREATE TABLE taskflow_steps (
    id uuid PRIMARY KEY,
    flow_id uuid NOT NULL,
    runtime text NOT NULL,
    child_session_key text,
    run_id text NOT NULL,
    task text NOT NULL,
    status text NOT NULL,
    result_json jsonb,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    input_json jsonb,
    execution jsonb
);
CREATE INDEX taskflow_steps_flow ON taskflow_steps (flow_id, run_id);
CREATE INDEX taskflow_steps_task ON taskflow_steps (task, status, updated_at);

CREATE TABLE taskflow_events (
    id bigint PRIMARY KEY,
    flow_id uuid NOT NULL,
    kind text NOT NULL,
    payload_json jsonb NOT NULL,
    at timestamptz NOT NULL,
    revision bigint NOT NULL,
    status text NOT NULL,
    command_id uuid NOT NULL,
    actor text NOT NULL,
    source jsonb NOT NULL,
    chain bytea NOT NULL
);
CREATE INDEX taskflow_events_flow ON taskflow_events (flow_id, id);
CREATE INDEX taskflow_events_at ON taskflow_events (at);
