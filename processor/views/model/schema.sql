-- What a view worker has projected. Whoever changes this file raises FORMAT in database.py: a file
-- of another format is thrown away and projected anew from the audit topic.

-- The next offset of a partition of a topic, written in the transaction of the rows that come from
-- the offsets before it. `event_id` is the newest event in here.
CREATE TABLE position (
    topic     TEXT    NOT NULL,
    partition INTEGER NOT NULL,
    next      INTEGER NOT NULL,
    event_id  INTEGER NOT NULL,
    at_ms     INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;

-- `n` is the id of the event that created the flow, so that a flow that was pruned and created
-- again is another row. The row of a pruned flow stays, without its state, for its events' sake.
-- `state` comes last, so that no list reads the pages that a long one overflows to.
CREATE TABLE flow (
    n             INTEGER PRIMARY KEY,
    id            TEXT    NOT NULL,
    partition     INTEGER NOT NULL,
    created_ms    INTEGER NOT NULL,
    owner         TEXT    NOT NULL,
    controller    TEXT    NOT NULL,
    origin        TEXT    NOT NULL,
    status        TEXT    NOT NULL,
    updated_ms    INTEGER NOT NULL,
    since_ms      INTEGER NOT NULL,
    cancel        INTEGER NOT NULL,
    revision      INTEGER NOT NULL,
    events        INTEGER NOT NULL,
    last_event_id INTEGER NOT NULL,
    wait_kind     TEXT,
    wait_ends_ms  INTEGER,
    pruned        INTEGER NOT NULL,
    step          TEXT    NOT NULL,
    goal          TEXT    NOT NULL,
    wait          TEXT    NOT NULL,
    state_bytes   INTEGER NOT NULL,
    state         TEXT    NOT NULL
);
-- `n` breaks ties in all orders, and ends every index by itself. Behind it stand columns that are
-- only filtered by: a row that does not fit is then never fetched.
CREATE INDEX flow_id ON flow (id);
CREATE INDEX flow_owner ON flow (owner, updated_ms, n, status, cancel, wait_kind) WHERE pruned = 0;
CREATE INDEX flow_controller ON flow (controller, updated_ms, n, status, cancel, wait_kind)
    WHERE pruned = 0;
CREATE INDEX flow_status ON flow (status, updated_ms) WHERE pruned = 0;
CREATE INDEX flow_updated ON flow (updated_ms, n, status, cancel, wait_kind) WHERE pruned = 0;
CREATE INDEX flow_cancel ON flow (updated_ms, n, status) WHERE cancel = 1 AND pruned = 0;
CREATE INDEX flow_created ON flow (created_ms);
CREATE INDEX flow_waits ON flow (wait_ends_ms) WHERE wait_ends_ms IS NOT NULL;
CREATE INDEX flow_waiting ON flow (wait_kind, updated_ms) WHERE wait_kind IS NOT NULL;

-- Its words are those of words.py.
CREATE VIRTUAL TABLE goal USING fts5 (
    words, content='', detail=none, tokenize='unicode61 remove_diacritics 2', columnsize=0
);

-- `n` is the id of the event that made the step, and so says its partition.
CREATE TABLE step (
    n          INTEGER PRIMARY KEY,
    flow       INTEGER NOT NULL,
    run_id     TEXT    NOT NULL,
    task       TEXT    NOT NULL,
    status     TEXT    NOT NULL,
    holder     TEXT,
    updated_ms INTEGER NOT NULL,
    doc        TEXT    NOT NULL,
    UNIQUE (flow, run_id)
);
CREATE INDEX step_updated ON step (updated_ms);
CREATE INDEX step_task ON step (task, updated_ms, n, status);
CREATE INDEX step_status ON step (status, updated_ms, n, task);
CREATE INDEX step_holder ON step (holder, updated_ms) WHERE holder IS NOT NULL;

-- `doc` is the record's value, byte for byte.
CREATE TABLE event (
    id       INTEGER PRIMARY KEY,
    flow     INTEGER NOT NULL,
    at_ms    INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    kind     TEXT    NOT NULL,
    doc      BLOB    NOT NULL
);
CREATE INDEX event_flow ON event (flow);

CREATE TABLE letter (
    partition INTEGER NOT NULL,
    "offset"  INTEGER NOT NULL,
    at_ms     INTEGER NOT NULL,
    code      TEXT    NOT NULL,
    doc       BLOB    NOT NULL,
    PRIMARY KEY (partition, "offset")
) WITHOUT ROWID;
CREATE INDEX letter_at ON letter (at_ms, partition, "offset");

-- The rows of Faust's tables; `start_s` is a window's beginning, 0 without windows.
CREATE TABLE aggregate (
    name      TEXT    NOT NULL,
    partition INTEGER NOT NULL,
    start_s   INTEGER NOT NULL,
    doc       BLOB    NOT NULL,
    PRIMARY KEY (name, partition, start_s)
) WITHOUT ROWID;
