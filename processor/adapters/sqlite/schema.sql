-- One partition's table. Whoever changes this file raises FORMAT in files.py: a table of another
-- format is thrown away and filled anew from Kafka.

CREATE TABLE about (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    prefix     TEXT    NOT NULL,
    partition  INTEGER NOT NULL,
    partitions INTEGER NOT NULL
);

CREATE TABLE stored (
    one           INTEGER PRIMARY KEY CHECK (one = 1),
    commands      INTEGER NOT NULL,
    control       INTEGER NOT NULL,
    next_event_id INTEGER NOT NULL,
    audit         INTEGER NOT NULL,
    outcomes      INTEGER NOT NULL,
    as_of_ms      INTEGER NOT NULL
);

-- `doc` is the flow; status, owner and updated_at repeat what `flow list` looks for. due_ms is when
-- a wait ends by itself (0: at once), NULL if it does not or the flow does not wait. The row's CRC
-- covers none of them: they only say which flows to look at, and whoever wakes or prunes one looks
-- at its `doc` before. A wait's time that was damaged into a later one is found by the check of the
-- file, which compares each row with its indexes.
-- `doc` comes last, so that a scan does not read the pages that a long one overflows to.
CREATE TABLE flow (
    n             INTEGER PRIMARY KEY,
    id            TEXT    NOT NULL UNIQUE,
    revision      INTEGER NOT NULL,
    last_event_id INTEGER NOT NULL,
    chain         BLOB    NOT NULL,
    status        TEXT    NOT NULL,
    owner         TEXT    NOT NULL,
    updated_at    TEXT    NOT NULL,
    crc           INTEGER NOT NULL,
    due_ms        INTEGER,
    doc           TEXT    NOT NULL
);

-- No query by time reads a row but for `flow_open`, and an update pays for an index only where its
-- flow begins or ceases to be in it. `flow_open` has the waits that do not end by themselves, by
-- number and in 8 bytes each. OR: an IN of three is looked up by every update, at half a µs.
CREATE INDEX flow_due ON flow (due_ms, id) WHERE due_ms IS NOT NULL;
CREATE INDEX flow_open ON flow (due_ms) WHERE status = 'waiting' AND due_ms IS NULL;
CREATE INDEX flow_ended ON flow (updated_at, id, status)
    WHERE status = 'finished' OR status = 'failed' OR status = 'cancelled';

CREATE TABLE step (
    n       INTEGER PRIMARY KEY,
    flow_id TEXT    NOT NULL,
    run_id  TEXT    NOT NULL,
    crc     INTEGER NOT NULL,
    doc     TEXT    NOT NULL,
    UNIQUE (flow_id, run_id)
);

-- `n` grows with each answer, so that the oldest are found without an index on time.
-- `refusal` is [code, details] as JSON; NULL for an accepted command.
CREATE TABLE ledger (
    n              INTEGER PRIMARY KEY,
    key            BLOB    NOT NULL UNIQUE,
    at_ms          INTEGER NOT NULL,
    digest         BLOB    NOT NULL,
    revision       INTEGER,
    status         INTEGER,
    first_event_id INTEGER NOT NULL,
    event_count    INTEGER NOT NULL,
    refusal        TEXT
);
