"""Step 1: connectors with what belongs to them, audit, and the store's own facts."""

from __future__ import annotations

__all__ = ["SQL"]

SQL = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE connector (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    name_key TEXT NOT NULL UNIQUE,              -- the name with case folded: names are unique whatever their case
    type TEXT NOT NULL,
    description TEXT NOT NULL,
    config TEXT NOT NULL,
    output_schemas TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('active', 'disabled', 'locked', 'invalid')),
    status_reason TEXT,
    production INTEGER NOT NULL CHECK (production IN (0, 1)),
    source TEXT NOT NULL CHECK (source IN ('api', 'file')),
    source_file TEXT,
    version INTEGER NOT NULL CHECK (version > 0),
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);

CREATE TABLE secret (
    connector_id TEXT NOT NULL REFERENCES connector (id) ON DELETE CASCADE,
    field TEXT NOT NULL,
    endpoint TEXT NOT NULL,                     -- what the blob is bound to, as it was when it was sealed
    blob BLOB NOT NULL,
    key_id TEXT NOT NULL,
    record_version INTEGER NOT NULL CHECK (record_version > 0),
    fingerprint TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    PRIMARY KEY (connector_id, field)
);
CREATE INDEX secret_by_key ON secret (key_id);

CREATE TABLE secret_history (
    connector_id TEXT NOT NULL REFERENCES connector (id) ON DELETE CASCADE,
    field TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    blob BLOB NOT NULL,
    key_id TEXT NOT NULL,
    record_version INTEGER NOT NULL CHECK (record_version > 0),
    fingerprint TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    PRIMARY KEY (connector_id, field, record_version)
);
CREATE INDEX secret_history_by_key ON secret_history (key_id);

CREATE TABLE connector_check (
    id TEXT PRIMARY KEY,
    connector_id TEXT NOT NULL REFERENCES connector (id) ON DELETE CASCADE,
    tested_at TEXT NOT NULL,
    ok INTEGER NOT NULL CHECK (ok IN (0, 1)),
    report TEXT NOT NULL
);
CREATE INDEX connector_check_newest ON connector_check (connector_id, id DESC);

CREATE TABLE catalogue (
    connector_id TEXT PRIMARY KEY REFERENCES connector (id) ON DELETE CASCADE,
    generation INTEGER NOT NULL,                -- the discovery whose streams are shown
    discovered_at TEXT NOT NULL,
    namespaces TEXT NOT NULL,
    warnings TEXT NOT NULL,
    streams INTEGER NOT NULL
);

CREATE TABLE catalogue_unseen (                -- generations that no catalogue shows: being written, or to be removed
    connector_id TEXT NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (connector_id, generation)
) WITHOUT ROWID;

CREATE TRIGGER catalogue_gone AFTER DELETE ON catalogue BEGIN
    INSERT OR IGNORE INTO catalogue_unseen VALUES (OLD.connector_id, OLD.generation);
END;

CREATE TABLE catalogue_stream (                -- no foreign key: the rows are removed in steps, after the connector
    connector_id TEXT NOT NULL,
    generation INTEGER NOT NULL,
    sort_key BLOB NOT NULL,                     -- namespace and name, so that bytes sort as the pair does
    stream_id TEXT NOT NULL,
    namespace TEXT,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    schema_hash TEXT NOT NULL,
    folded TEXT NOT NULL,                       -- namespace.name with case folded, for search
    body BLOB NOT NULL,                         -- one byte that tells the encoding, then the stream as JSON
    UNIQUE (connector_id, generation, sort_key)
);

CREATE TABLE schedule (
    id TEXT PRIMARY KEY,
    connector_id TEXT NOT NULL UNIQUE REFERENCES connector (id) ON DELETE CASCADE,
    cron TEXT NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('incremental', 'full')),
    timezone TEXT NOT NULL,
    paused INTEGER NOT NULL CHECK (paused IN (0, 1)),
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    resource_type TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    details TEXT NOT NULL
);
CREATE INDEX audit_by_resource ON audit (resource_type, resource_id, id);
"""
