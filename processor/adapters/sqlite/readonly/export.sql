-- What `taskflow export` writes: a copy of the topics at one cut, to be asked with any SQLite.
-- JSON stands in `doc` as it stands on the topics; the columns beside it repeat what is asked for most.

CREATE TABLE about (prefix TEXT NOT NULL, partitions INTEGER NOT NULL, made_at TEXT NOT NULL);

-- What the file stands for: of each topic's partition, all committed records of [first, next).
CREATE TABLE cut (
    topic     TEXT    NOT NULL,
    partition INTEGER NOT NULL,
    first     INTEGER NOT NULL,
    next      INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- How far each partition was decided there: next offsets of both sources, id of the next event.
CREATE TABLE position (
    partition     INTEGER PRIMARY KEY,
    commands      INTEGER NOT NULL,
    control       INTEGER NOT NULL,
    next_event_id INTEGER NOT NULL
);

CREATE TABLE flow (
    id                TEXT PRIMARY KEY,
    partition         INTEGER NOT NULL,
    status            TEXT    NOT NULL,
    revision          INTEGER NOT NULL,
    owner_session_key TEXT    NOT NULL,
    controller_id     TEXT    NOT NULL,
    goal              TEXT    NOT NULL,
    current_step      TEXT    NOT NULL,
    cancel_requested  INTEGER NOT NULL,
    created_at        TEXT    NOT NULL,
    updated_at        TEXT    NOT NULL,
    state_json        TEXT    NOT NULL,
    wait_json         TEXT,
    last_event_id     INTEGER NOT NULL,
    chain             TEXT    NOT NULL,
    doc               TEXT    NOT NULL
);

-- From `input_json` on, all is null of a step that was only observed. `child_session_key` is the holder
-- of a managed one; `progress` and `last_failure` are JSON.
CREATE TABLE step (
    flow_id           TEXT NOT NULL,
    run_id            TEXT NOT NULL,
    runtime           TEXT NOT NULL,
    task              TEXT NOT NULL,
    status            TEXT NOT NULL,
    child_session_key TEXT,
    created_at        TEXT NOT NULL,
    updated_at        TEXT NOT NULL,
    result_json       TEXT,
    input_json        TEXT,
    attempt           INTEGER,
    max_attempts      INTEGER,
    due_at            TEXT,
    timeout_at        TEXT,
    progress          TEXT,
    last_failure      TEXT,
    doc               TEXT NOT NULL,
    PRIMARY KEY (flow_id, run_id)
);

CREATE TABLE event (
    id         INTEGER PRIMARY KEY,
    flow_id    TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    at         TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    status     TEXT    NOT NULL,
    actor      TEXT    NOT NULL,
    command_id TEXT    NOT NULL,
    partition  INTEGER NOT NULL,
    "offset"   INTEGER NOT NULL,
    chain      TEXT    NOT NULL,
    doc        TEXT    NOT NULL
);
