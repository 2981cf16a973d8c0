-- One partition's table; its indexes are in indexes.sql. Whoever changes one of the two raises FORMAT in files.py: a table of another
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
-- `steps` counts the flow's steps (domain.steps.StepTotals) and has a CRC of its own, for they decide
-- bounds and joins; NULL of a flow without steps.
-- `doc` comes last, so that a scan does not read the pages that a long one overflows to.
CREATE TABLE flow (
    n             INTEGER PRIMARY KEY,
    id            TEXT    NOT NULL,
    revision      INTEGER NOT NULL,
    last_event_id INTEGER NOT NULL,
    chain         BLOB    NOT NULL,
    status        TEXT    NOT NULL,
    owner         TEXT    NOT NULL,
    updated_at    TEXT    NOT NULL,
    crc           INTEGER NOT NULL,
    due_ms        INTEGER,
    steps         TEXT,
    doc           TEXT    NOT NULL
);

-- `status` is a number of records.STEP_STATUSES, NULL of an observed step. `due_ms` is when the
-- processor looks at a managed step that has not ended, NULL of any other: so it says which are live.
-- `input_bytes` is what the input of a live one takes, 0 of any other. The CRC covers none of them:
-- they name steps to look at, and sums for a table that is filled anew.
CREATE TABLE step (
    n           INTEGER PRIMARY KEY,
    flow_id     TEXT    NOT NULL,
    run_id      TEXT    NOT NULL,
    status      INTEGER,
    due_ms      INTEGER,
    input_bytes INTEGER NOT NULL,
    crc         INTEGER NOT NULL,
    doc         TEXT    NOT NULL
);

-- Rows are appended, by generation. `tag` is the number of the row's generation and 32 bits of the
-- key; `entry` is row_codec.ENTRY: the answer in a fixed width. `details` is [code, details] as JSON,
-- without a code that of an accepted command that has details; NULL of one that has none. Of two
-- rows with one key that with the higher `n` counts.
CREATE TABLE ledger (
    n       INTEGER PRIMARY KEY,
    tag     INTEGER NOT NULL,
    entry   BLOB    NOT NULL,
    details TEXT
);

-- The full generations of the ledger: their rows are those up to `last_n`, none is newer than
-- `newest_ms`. `bits` says which keys they may hold (ledger.Generation), and `crc` covers it.
CREATE TABLE generation (
    number    INTEGER PRIMARY KEY,
    last_n    INTEGER NOT NULL,
    newest_ms INTEGER NOT NULL,
    crc       INTEGER NOT NULL,
    bits      BLOB    NOT NULL
);
