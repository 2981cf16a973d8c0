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

-- `doc` is the flow; status, owner and updated_at repeat what `flow list` looks for. There is no
-- index on them: each update would pay for it, and only a person at a terminal would gain.
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
    doc           TEXT    NOT NULL
);

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
