-- A store of version 1, as hfagent wrote it. Never edited: it has to open for ever.
BEGIN TRANSACTION;
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    resource_type TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    details TEXT NOT NULL
);
INSERT INTO "audit" VALUES(1,'2026-01-02T03:04:05.000Z','cli','connector.created','connector','01j000000000000000000sales','{"name": "Sales"}');
CREATE TABLE catalogue (
    connector_id TEXT PRIMARY KEY REFERENCES connector (id) ON DELETE CASCADE,
    generation INTEGER NOT NULL,                -- the discovery whose streams are shown
    discovered_at TEXT NOT NULL,
    namespaces TEXT NOT NULL,
    warnings TEXT NOT NULL,
    streams INTEGER NOT NULL
);
INSERT INTO "catalogue" VALUES('01j000000000000000000sales',1,'2026-01-02T03:04:05.000Z','["public"]','["a warning"]',1);
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
INSERT INTO "catalogue_stream" VALUES('01j000000000000000000sales',1,X'017075626C696300016F7264657273','public.orders','public','orders','table','34c88e4be87e47a3e1b1e2da','public.orders',X'7A7801958ED10A83300C45FF25CF65AC5AA6F82B63485AC30CD82AB63A86F4DF9789B8E73DE69E7B926CC01D34302D76607719E78EE6080A027A8A133A3AD911CA7C96DC382C3E4468EEDB2E087357E9A5F7F4F538A49BD9B5C42BB5476AF929406259C301076874563F5FFFEF17F9A1601E5F2DC5C41E93DCAE1444D793C7B6C7D8CB2FA571754DC6525D91A9B0246D35151D42FE004F525329');
CREATE TABLE catalogue_unseen (                -- generations that no catalogue shows: being written, or to be removed
    connector_id TEXT NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (connector_id, generation)
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
INSERT INTO "connector" VALUES('01j000000000000000000sales','Sales','sales','postgresql','it''s “quoted”','{"host": "db1", "password": {"$ref": "env:SALES_PASSWORD"}}','["public", "marts"]','active',NULL,0,'api',NULL,3,'2026-01-02T03:04:05.000Z','2026-01-02T03:04:05.000Z');
CREATE TABLE connector_check (
    id TEXT PRIMARY KEY,
    connector_id TEXT NOT NULL REFERENCES connector (id) ON DELETE CASCADE,
    tested_at TEXT NOT NULL,
    ok INTEGER NOT NULL CHECK (ok IN (0, 1)),
    report TEXT NOT NULL
);
INSERT INTO "connector_check" VALUES('01kdyak348wemyj2jma3d3df36','01j000000000000000000sales','2026-01-02T03:04:05.000Z',1,'{"ok":true,"latency_ms":3.5,"rtt_ms":null,"error":null,"stages":[],"warnings":[],"server":{"product":"PostgreSQL"},"mode":"standard","test_id":"01kdyak348wemyj2jma3d3df36","connector_id":"01j000000000000000000sales","tested_at":"2026-01-02T03:04:05.000Z"}');
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "meta" VALUES('agent_id','01j0000000000000000000agnt');
INSERT INTO "meta" VALUES('created_at','2026-01-02T03:04:05.000Z');
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
INSERT INTO "schedule" VALUES('01kdyak348x4gp3v194csfspv7','01j000000000000000000sales','0 2 * * *','incremental','Europe/Berlin',0,'2026-01-02T03:04:05.000Z','2026-01-02T03:04:05.000Z');
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
INSERT INTO "secret" VALUES('01j000000000000000000sales','password','db1:5432',X'007365616C6564FF','k1',2,'0badcafe','2026-01-02T03:04:05.000Z');
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
INSERT INTO "secret_history" VALUES('01j000000000000000000sales','password','db1:5432',X'006F6C646572FF','k1',1,'0badcafe','2026-01-02T03:04:05.000Z');
CREATE INDEX secret_by_key ON secret (key_id);
CREATE INDEX secret_history_by_key ON secret_history (key_id);
CREATE INDEX connector_check_newest ON connector_check (connector_id, id DESC);
CREATE TRIGGER catalogue_gone AFTER DELETE ON catalogue BEGIN
    INSERT OR IGNORE INTO catalogue_unseen VALUES (OLD.connector_id, OLD.generation);
END;
CREATE INDEX audit_by_resource ON audit (resource_type, resource_id, id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('audit',1);
COMMIT;
PRAGMA application_id = 1212563783;
PRAGMA user_version = 1;
