"""Step 2: datasets with the state of their syncs, runs, and the outbox."""

from __future__ import annotations

__all__ = ["SQL"]

SQL = """
CREATE TABLE dataset (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    name_key TEXT NOT NULL UNIQUE,              -- the name with case folded: names are unique whatever their case
    connector_id TEXT REFERENCES connector (id) ON DELETE SET NULL,
    connector_name TEXT NOT NULL,
    stream TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('active', 'detached', 'paused')),
    status_reason TEXT,
    location TEXT NOT NULL UNIQUE,              -- two datasets must never write into one directory
    options TEXT NOT NULL,                      -- how it is read and kept, as JSON
    schema_hash TEXT NOT NULL,
    cached_columns BLOB NOT NULL,               -- deflated JSON
    version INTEGER NOT NULL CHECK (version > 0),
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    CHECK (status <> 'detached' OR connector_id IS NULL)
);
CREATE INDEX dataset_by_connector ON dataset (connector_id);

CREATE TRIGGER dataset_detached BEFORE DELETE ON connector BEGIN
    UPDATE dataset SET connector_id = NULL, status = 'detached', status_reason = 'its connector was deleted',
        version = version + 1, updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE connector_id = OLD.id;
END;

CREATE TRIGGER dataset_follows_rename AFTER UPDATE OF name ON connector WHEN NEW.name <> OLD.name BEGIN
    UPDATE dataset SET connector_name = NEW.name WHERE connector_id = NEW.id;
END;

CREATE TABLE sync_state (
    dataset_id TEXT PRIMARY KEY REFERENCES dataset (id) ON DELETE CASCADE,
    epoch INTEGER NOT NULL DEFAULT 1 CHECK (epoch > 0),
    sequence INTEGER NOT NULL DEFAULT 0 CHECK (sequence >= 0),
    strategy TEXT NOT NULL DEFAULT '',
    column_name TEXT,
    column_type TEXT,
    lo TEXT,                                    -- the watermark as exact text
    source_id TEXT NOT NULL DEFAULT '',
    schema_hash TEXT NOT NULL DEFAULT '',
    rows_total INTEGER NOT NULL DEFAULT 0,
    durable_version INTEGER,
    updated_at TEXT NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER dataset_made AFTER INSERT ON dataset BEGIN
    INSERT INTO sync_state (dataset_id, updated_at) VALUES (NEW.id, NEW.created_at);
END;

CREATE TABLE sync_intent (                      -- the frozen bounds of the sequence that is being run, if one is
    dataset_id TEXT PRIMARY KEY REFERENCES sync_state (dataset_id) ON DELETE CASCADE,
    sequence INTEGER NOT NULL CHECK (sequence > 0),
    mode TEXT NOT NULL CHECK (mode IN ('full', 'incremental')),
    lo TEXT,
    hi TEXT,
    next_lo TEXT,
    include_nulls INTEGER NOT NULL CHECK (include_nulls IN (0, 1)),
    started_at TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE run (                              -- no foreign key: the rows are removed in steps, after the dataset
    id TEXT PRIMARY KEY,
    dataset_id TEXT NOT NULL,
    dataset_name TEXT NOT NULL,
    connector_name TEXT NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('full', 'incremental')),
    "trigger" TEXT NOT NULL CHECK ("trigger" IN ('schedule', 'manual', 'bootstrap')),
    status TEXT NOT NULL CHECK (status IN ('running', 'succeeded', 'failed', 'cancelled', 'skipped')),
    sequence INTEGER NOT NULL,
    started_at TEXT NOT NULL,
    details TEXT NOT NULL                       -- everything else, as JSON
);
CREATE INDEX run_newest ON run (dataset_id, id DESC);
CREATE INDEX run_by_status ON run (status, id DESC);
CREATE UNIQUE INDEX run_running ON run (dataset_id) WHERE status = 'running';

CREATE TABLE run_orphaned (                     -- datasets that are gone and may have left runs, to be removed
    dataset_id TEXT PRIMARY KEY
) WITHOUT ROWID;

CREATE TRIGGER dataset_gone AFTER DELETE ON dataset BEGIN
    INSERT OR IGNORE INTO run_orphaned VALUES (OLD.id);
END;

CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,       -- never used twice: what was acknowledged stays acknowledged
    kind TEXT NOT NULL,
    stream TEXT NOT NULL,
    payload TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    dead_at TEXT,
    dead_reason TEXT
);
CREATE INDEX outbox_dead ON outbox (id) WHERE dead_at IS NOT NULL;

CREATE TABLE outbox_size (                      -- kept by the triggers below, so that the quota costs no scan
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    pending INTEGER NOT NULL,
    bytes INTEGER NOT NULL                      -- dead letters included: they take space too
);
INSERT INTO outbox_size VALUES (1, 0, 0);

CREATE TRIGGER outbox_grows AFTER INSERT ON outbox BEGIN
    UPDATE outbox_size SET pending = pending + (NEW.dead_at IS NULL), bytes = bytes + NEW.bytes;
END;
CREATE TRIGGER outbox_shrinks AFTER DELETE ON outbox BEGIN
    UPDATE outbox_size SET pending = pending - (OLD.dead_at IS NULL), bytes = bytes - OLD.bytes;
END;
CREATE TRIGGER outbox_loses AFTER UPDATE OF dead_at ON outbox BEGIN
    UPDATE outbox_size SET pending = pending - (OLD.dead_at IS NULL) + (NEW.dead_at IS NULL);
END;
"""
