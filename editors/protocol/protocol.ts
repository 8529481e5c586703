// Generated from the declarations; do not edit. Regenerate: HFAGENT_UPDATE=1 python -m pytest tests/architecture/test_generated.py

/** The version of the protocol that these types describe. */
export const PROTOCOL_VERSION = 1;

/** Stable error codes: match on them, never on a message. */
export type ErrorCode =
  | "config.invalid"
  | "config.unknown_field"
  | "config.missing_field"
  | "config.secret_reentry_required"
  | "config.policy_denied"
  | "config.driver_missing"
  | "config.type_unknown"
  | "auth.invalid_credentials"
  | "auth.expired"
  | "auth.locked"
  | "auth.method_unsupported"
  | "auth.not_permitted_from_host"
  | "auth.mfa_required"
  | "auth.token_expired"
  | "net.dns"
  | "net.refused"
  | "net.timeout"
  | "net.unreachable"
  | "net.reset"
  | "net.proxy"
  | "net.protocol"
  | "net.tunnel_auth"
  | "net.tunnel_hostkey"
  | "tls.untrusted"
  | "tls.hostname_mismatch"
  | "tls.expired"
  | "tls.version"
  | "tls.client_cert"
  | "tls.plaintext_refused"
  | "tls.unverified"
  | "tls.plaintext"
  | "permission.denied"
  | "permission.read_missing"
  | "permission.row_security"
  | "permission.can_write"
  | "permission.superuser"
  | "namespace.not_found"
  | "model.not_found"
  | "column.not_found"
  | "capacity.too_many_connections"
  | "capacity.pool_exhausted"
  | "capacity.rate_limited"
  | "capacity.overloaded"
  | "capacity.warehouse_suspended"
  | "capacity.quota_exceeded"
  | "timeout.connect"
  | "timeout.statement"
  | "timeout.lock"
  | "timeout.total"
  | "transient.starting"
  | "transient.failover"
  | "transient.replica_conflict"
  | "transient.deadlock"
  | "transient.serialization"
  | "transient.backend"
  | "read.cursor_lost"
  | "read.snapshot_too_old"
  | "read.partial_results"
  | "read.stalled"
  | "read.repeated_page"
  | "read.limit_exceeded"
  | "read.data_invalid"
  | "read.corrupt"
  | "incremental.no_watermark"
  | "incremental.type_changed"
  | "incremental.regressed"
  | "incremental.null_values"
  | "incremental.history_lost"
  | "incremental.boundary_overflow"
  | "schema.drift_blocked"
  | "schema.type_conflict"
  | "lakehouse.damaged"
  | "lakehouse.null_key"
  | "lakehouse.shrink_held"
  | "lakehouse.foreign"
  | "lakehouse.busy"
  | "lakehouse.conflict"
  | "query.syntax"
  | "query.failed"
  | "query.not_found"
  | "guard.write_blocked"
  | "guard.multi_statement"
  | "guard.cost_limit"
  | "credential.unreadable"
  | "credential.key_missing"
  | "credential.reference"
  | "request.invalid_params"
  | "request.not_initialized"
  | "request.unknown_method"
  | "request.too_large"
  | "request.malformed"
  | "access.denied"
  | "connector.not_found"
  | "connector.name_taken"
  | "connector.not_queryable"
  | "connector.conflict"
  | "unsupported"
  | "internal.bug"
  | "internal.driver"
  | "internal.store"
  | "agent.offline"
  | "agent.draining"
  | "agent.disk_full"
  | "cancelled";

/** What happened, or would happen, to one entry. */
export interface ApplyChange {
  name: string;
  action: "created" | "updated" | "unchanged" | "removed" | "failed";
  message: string | null;
}

/** All entries. */
export interface ApplyResult {
  changes: Array<ApplyChange>;
  dry_run: boolean;
}

/** All connector types, by title. */
export interface CatalogResult {
  types: Array<ConnectorType>;
}

/** One line of the doctor's list. */
export interface Check {
  name: string;
  status: "ok" | "warning" | "error" | "info";
  message: string;
  /** The remedy. */
  hint: string | null;
  details: Record<string, unknown>;
}

/** The outcome of a test: `ok` when no stage failed. */
export interface CheckReport {
  ok: boolean;
  /** Wall time of tunnel to ping: what a first connection costs, in milliseconds. */
  latency_ms: number;
  /** Median of three warm round trips, in milliseconds. */
  rtt_ms: number | null;
  error: ErrorInfo | null;
  stages: Array<StageResult>;
  warnings: Array<string>;
  /** Product, version, role and the like. */
  server: Record<string, unknown>;
  mode: "quick" | "standard" | "deep";
  test_id: string | null;
  connector_id: string | null;
  tested_at: string | null;
}

/** One column of a stream or of a query result. */
export interface Column {
  /** Exactly as the source stores it. */
  name: string;
  /** Canonical type. */
  type: string;
  /** The source's own type name. */
  native_type: string;
  nullable: boolean;
  /** Position, from 1; 0 when unknown. */
  ordinal: number;
  /** Computed by the source. */
  generated: boolean;
  /** Not part of SELECT *. */
  hidden: boolean;
  /** The source masks it for this account. */
  masked: boolean;
  description: string | null;
  /** Default expression, as text. */
  default: string | null;
}

/** A configured connector. Secrets appear as eight bullets when set. */
export interface Connector {
  id: string;
  name: string;
  type: string;
  description: string;
  config: Record<string, unknown>;
  output_schemas: Array<string>;
  status: "active" | "disabled" | "locked" | "invalid";
  status_reason: string | null;
  is_queryable: boolean;
  schedule_cron: string | null;
  schedule_mode: "incremental" | "full" | null;
  /** `file`: defined by a connectors-as-code file. */
  source: "api" | "file";
  /** Clients ask before anything unusual. */
  production: boolean;
  /** Grows with each change; send it back to detect conflicts. */
  version: number;
  created_at: string;
  updated_at: string;
  last_test_ok: boolean | null;
  last_tested_at: string | null;
}

/** One entry of the catalog: enough to draw a form and to know whether it will work here. */
export interface ConnectorType {
  type: string;
  title: string;
  description: string;
  category: "database" | "warehouse" | "document" | "search" | "api" | "file" | "object_store" | "llm" | "vector_store" | "webhook" | "messaging";
  is_queryable: boolean;
  aliases: Array<string>;
  /** JSON Schema 2020-12 of the configuration (dialect: §0.1). */
  config_schema: Record<string, unknown>;
  secret_fields: Array<string>;
  capabilities: Array<string>;
  driver_installed: boolean;
  /** Distribution that brings the driver. */
  driver: string | null;
  driver_version: string | null;
  /** Command that installs the driver, when it is missing. */
  install_hint: string | null;
  /** SQL dialect name (sqlglot's), for queryable SQL types. */
  dialect: string | null;
}

/** All checks; `ok` when none is an error. */
export interface DoctorResult {
  ok: boolean;
  checks: Array<Check>;
}

/** It is done. */
export interface Done {
  ok: boolean;
}

/** An error as clients see it: the JSON-RPC `error.data` object. */
export interface ErrorInfo {
  code: string;
  message: string;
  hint: string | null;
  stage: string | null;
  retryable: boolean;
  retry_after: number | null;
  native: Record<string, unknown> | null;
  field: string | null;
}

/** A finished export. */
export interface ExportReport {
  path: string;
  format: "csv" | "parquet" | "jsonl";
  rows: number;
  bytes: number;
  elapsed_ms: number;
  truncated: boolean;
}

/** A declared reference to another stream. */
export interface ForeignKey {
  name: string | null;
  columns: Array<string>;
  references_namespace: string | null;
  references_name: string;
  references_columns: Array<string>;
}

/** The daemon's side of the introduction. */
export interface HelloResult {
  /** The version that both speak. */
  protocol: number;
  build: string;
  pid: number;
  session: string;
  capabilities: Array<string>;
  /** Required capabilities that this daemon lacks. */
  missing: Array<string>;
  /** Where the daemon logs. */
  log: string | null;
  /** A sentence for the user when client and daemon are of different builds. */
  skew: string | null;
}

/** An index, as far as the optimiser and the watermark doctor care. */
export interface Index {
  name: string | null;
  columns: Array<string>;
  unique: boolean;
}

/** The connectors, by name. Secrets are masked. */
export interface ListResult {
  connectors: Array<Connector>;
}

/** Counters of one connector's pool. */
export interface PoolStats {
  connector_id: string;
  name: string;
  /** Connections kept (`pool_size`). */
  size: number;
  max_overflow: number;
  /** Connections open now. */
  open: number;
  idle: number;
  busy: number;
  waiting: number;
  /** Connections ever opened. */
  opened: number;
  closed: number;
  /** Closed for age. */
  recycled: number;
  /** Closed because dead, dirty or past a deadline. */
  discarded: number;
  checkouts: number;
  timeouts: number;
  /** Failed attempts to connect. */
  errors: number;
  wait_ms_max: number;
}

/** One entry per open pool. */
export interface PoolStatsResult {
  pools: Array<PoolStats>;
}

/**
 * A page of a result. Exactly one of `rows` and `arrow` is set, as the request asked.
 *
 * Wire form of values in `rows` (connector specification §0.10): decimals, integers beyond 2^53 and timestamps are
 * strings, bytes are base64, NaN and infinities are strings, JSON stays text.
 */
export interface QueryPage {
  /** Names the open result within this session. */
  query_id: string;
  columns: Array<Column>;
  rows: Array<Array<unknown>> | null;
  /** Arrow IPC stream (MessagePack connections only). */
  arrow: Uint8Array | null;
  /** Rows in this page. */
  row_count: number;
  /** Rows of earlier pages. */
  rows_before: number;
  /** False on the last page; the result is then closed. */
  has_more: boolean;
  /** The row limit cut the result. */
  truncated: boolean;
  elapsed_ms: number;
  /** The statement that ran. */
  statement: string | null;
  warnings: Array<string>;
}

/** The source's plan for a statement. */
export interface QueryPlan {
  format: "text" | "json";
  plan: unknown;
  estimated_rows: number | null;
  estimated_cost: number | null;
}

/** The recovery key, shown once. */
export interface RecoveryKey {
  /** Groups of letters and digits; keep it off this machine. */
  recovery_key: string;
}

/** What changed. */
export interface ReloadResult {
  changed: Array<string>;
  /** Settings that take effect at the next start only. */
  restart_needed: Array<string>;
}

/** Whether the secrets were replaced, and what the test said. */
export interface RotateResult {
  rotated: boolean;
  test: CheckReport;
}

/** One connected client. */
export interface SessionInfo {
  session: string;
  client: string;
  transport: string;
  peer: string;
  pid: number | null;
  connected_at: string;
  requests: number;
  in_flight: number;
  open_queries: number;
  encoding: string;
}

/** The connected clients. */
export interface SessionsResult {
  sessions: Array<SessionInfo>;
}

/** One step of a test. */
export interface StageResult {
  stage: string;
  status: "passed" | "failed" | "warning" | "skipped";
  /** Duration in milliseconds. */
  ms: number;
  code: string | null;
  message: string | null;
  hint: string | null;
  details: Record<string, unknown>;
}

/** The daemon's state in one page. */
export interface StatusResult {
  build: string;
  protocol: number;
  pid: number;
  started_at: string;
  uptime_s: number;
  data_dir: string;
  socket: string | null;
  config_file: string | null;
  log: string | null;
  state: "ready" | "draining";
  /** `unlocked`, `locked` or `empty`. */
  vault: string;
  connectors: number;
  connectors_by_status: Record<string, number>;
  sessions: number;
  open_queries: number;
  open_connections: number;
  rss_bytes: number;
  threads: number;
  problems: Array<Record<string, unknown>>;
}

/** One table, view, collection, index, endpoint or file of a connector (connector specification §0.5). */
export interface Stream {
  /** Stable within the connector: namespace and name, dot-joined, parts quoted when needed. */
  id: string;
  /** Schema, database or folder. */
  namespace: string | null;
  name: string;
  kind: "table" | "view" | "materialized_view" | "collection" | "index" | "data_stream" | "endpoint" | "file" | "delta" | "llm_model" | "vector_collection";
  columns: Array<Column>;
  primary_key: Array<string>;
  primary_key_source: "declared" | "unique_index" | "inferred" | "none";
  unique_keys: Array<Array<string>>;
  foreign_keys: Array<ForeignKey>;
  indexes: Array<Index>;
  partitioning: string | null;
  /** The source's own estimate; never counted. */
  row_estimate: number | null;
  byte_estimate: number | null;
  readable: "yes" | "no" | "unknown";
  unreadable_columns: Array<string>;
  last_modified: string | null;
  capabilities: Array<"full" | "incremental" | "change_tracking" | "parallel">;
  watermark_candidates: Array<WatermarkCandidate>;
  description: string | null;
  warnings: Array<string>;
  /** Type-specific extras. */
  details: Record<string, unknown>;
  schema_hash: string;
}

/** One page of a connector's catalogue. */
export interface StreamPage {
  streams: Array<Stream>;
  /** Pass as `page_token` for the next page; null on the last one. */
  next_page: string | null;
  /** The namespaces that were looked at (resolved `output_schemas`). */
  namespaces: Array<string>;
  /** Streams in the whole catalogue, when known. */
  total: number | null;
  /** When the source was asked (UTC); older than now when cached. */
  discovered_at: string | null;
  cached: boolean;
  warnings: Array<string>;
}

/** Past results, newest first. */
export interface TestHistoryResult {
  tests: Array<CheckReport>;
}

/** The vault's state. */
export interface VaultStatus {
  state: "unlocked" | "locked" | "empty";
  /** Why it is locked, and what to do. */
  reason: string | null;
  /** license, systemd, keyring, file or recovery. */
  key_source: string | null;
  key_id: string | null;
  created_at: string | null;
  secrets: number;
  /** Secrets still under an older key. */
  pending_rotation: number;
  /** Connectors whose secrets cannot be opened. */
  unreadable: Array<string>;
  /** Whether a recovery key was made. */
  recovery_key: boolean;
}

/** A column that could drive incremental syncs, with the reasons for its score (0 to 1). */
export interface WatermarkCandidate {
  column: string;
  score: number;
  reasons: Array<string>;
}

/** Changes to a connector; absent fields stay as they are. */
export interface ConnectorPatch {
  name?: string | null;
  description?: string | null;
  /** Merged into the present config; null clears a field, eight bullets keep a secret. */
  config?: Record<string, unknown> | null;
  output_schemas?: Array<string> | null;
  status?: "active" | "disabled" | null;
  production?: boolean | null;
  schedule_cron?: string | null;
  schedule_mode?: "incremental" | "full" | null;
  /** Refuse when the connector's version is another one. */
  if_version?: number | null;
}

/**
 * Check everything a support person would ask for.
 *
 * Store, vault, permissions, disk, clock, drivers, sockets, connectors. With `connectors` each active connector is tested
 * too (mode quick).
 */
export interface AgentDoctorParams {
  /** Test every active connector too. */
  connectors?: boolean;
}

/**
 * Introduce a client and agree on the protocol.
 *
 * Sent by the forwarders before anything else. On TCP it carries the token of the token file. The daemon answers with its
 * own version, so that skew between an updated client and a running daemon is told, not suffered.
 */
export interface AgentHelloParams {
  /** Lowest and highest version spoken. */
  protocol?: [number, number];
  /** Version of the client. */
  build?: string;
  /** Process id of the client. */
  pid?: number | null;
  /** Its working directory. */
  cwd?: string | null;
  /** What the client is: `hfagent rpc`, `hfagent lsp`, …. */
  client?: string;
  /** Allow-listed environment of the client. */
  env?: Record<string, string>;
  /** Content of the token file; needed on TCP only. */
  token?: string | null;
  /** Capabilities without which the client will not work. */
  required?: Array<string>;
}

/**
 * Read the configuration file again, as SIGHUP does.
 *
 * A broken file is refused and the old configuration stays in force.
 */
export interface AgentReloadParams {
}

/** List the connected clients. */
export interface AgentSessionsParams {
}

/** Stop the daemon: finish or cancel what runs, then exit. */
export interface AgentShutdownParams {
  /** Seconds to let running requests finish before cancelling them. */
  drain_s?: number;
}

/** Show the daemon's state. */
export interface AgentStatusParams {
}

/**
 * Bring the connectors into the state that a connectors-as-code file describes.
 *
 * Each entry is created or changed, matched by name; entries are only removed with `prune`, and only those that came from
 * a file. With `dry_run` nothing is changed. Secrets are given by reference (`{"$ref": "env:NAME"}`).
 */
export interface ConnectorsApplyParams {
  /** Entries with name, type, config, …. */
  connectors: Array<Record<string, unknown>>;
  /** Remove connectors that came from a file and are not among these. */
  prune?: boolean;
  /** Only tell what would change. */
  dry_run?: boolean;
  /** Name of the file, for messages. */
  source?: string;
}

/** Create a connector and attach a schedule in one call. */
export interface ConnectorsBootstrapParams {
  /** Unique on this agent. */
  name: string;
  /** Connector type or one of its aliases. */
  type: string;
  /** Five-field cron expression. */
  schedule_cron: string;
  /** Fields of the type's config schema. */
  config?: Record<string, unknown>;
  /** What it is for. */
  description?: string;
  /** Schemas to discover and read; empty = the owned ones. */
  output_schemas?: Array<string>;
  /** Clients ask before anything unusual. */
  production?: boolean;
  /** Changed rows since the last run, or everything. */
  schedule_mode?: "incremental" | "full";
}

/**
 * List the connector types with their configuration schemas.
 *
 * Every type is listed, whether its driver is installed or not; `install_hint` says how to get it.
 */
export interface ConnectorsCatalogParams {
  /** Only this type (or alias). */
  type?: string | null;
}

/** Create a connector. Its secrets are sealed before anything is written. */
export interface ConnectorsCreateParams {
  /** Unique on this agent. */
  name: string;
  /** Connector type or one of its aliases. */
  type: string;
  /** Fields of the type's config schema. */
  config?: Record<string, unknown>;
  /** What it is for. */
  description?: string;
  /** Schemas to discover and read; empty = the owned ones. */
  output_schemas?: Array<string>;
  /** Clients ask before anything unusual. */
  production?: boolean;
}

/** Remove a connector with its secrets, test history and cached streams. */
export interface ConnectorsDeleteParams {
  /** Id or name. */
  connector: string;
}

/** Show one connector. Secrets are masked. */
export interface ConnectorsGetParams {
  /** Id or name. */
  connector: string;
}

/** List the configured connectors. */
export interface ConnectorsListParams {
  /** Only this type (or alias). */
  type?: string | null;
  /** Only types of this category. */
  category?: string | null;
  /** Only what can, or cannot, be queried. */
  queryable?: boolean | null;
}

/**
 * List what a connector exposes: tables, views, collections, files.
 *
 * Answers from the cached catalogue unless `refresh` is set or nothing is cached; always in pages.
 */
export interface ConnectorsModelsParams {
  /** Id or name. */
  connector: string;
  /** Ask the source again. */
  refresh?: boolean;
  /** Only these namespaces (within output_schemas). */
  schemas?: Array<string>;
  /** Only streams whose namespace.name contains this text, case ignored. */
  search?: string | null;
  /** Glob patterns on namespace.name. */
  include?: Array<string>;
  /** Glob patterns of what to leave out. */
  exclude?: Array<string>;
  /** Only this stream (id as listed). */
  stream?: string | null;
  /** How much of each stream to return. */
  depth?: "names" | "columns" | "full";
  /** Streams per page. */
  page_size?: number;
  /** `next_page` of the page before. */
  page_token?: string | null;
}

/** Show the connection pools. */
export interface ConnectorsPoolStatsParams {
  /** Id or name; all when absent. */
  connector?: string | null;
}

/**
 * Replace a connector's secrets after testing the new ones.
 *
 * The new configuration is tested first; a failure changes nothing unless `force_save`. Eight bullets keep a secret.
 */
export interface ConnectorsRotateParams {
  /** Id or name. */
  connector: string;
  /** Fields to change, secrets among them. */
  config: Record<string, unknown>;
  /** Kept in the audit log. */
  reason?: string;
  /** Save even when the test fails. */
  force_save?: boolean;
}

/**
 * Test a stored connector, or a configuration that is not stored.
 *
 * With `connector` alone the stored configuration is tested; with `config` beside it, the stored one with these changes;
 * with `type` and `config`, a configuration that does not exist yet. Nothing is changed. Results of stored connectors go
 * to the test history. Progress carries each stage as it ends.
 */
export interface ConnectorsTestParams {
  /** Id or name. */
  connector?: string | null;
  /** Type (or alias) of a configuration that is not stored. */
  type?: string | null;
  /** That configuration, or changes to the stored one. */
  config?: Record<string, unknown> | null;
  /** Schemas to check instead of the stored ones. */
  output_schemas?: Array<string> | null;
  /** How far the test goes. */
  mode?: "quick" | "standard" | "deep";
}

/** Show past test results of a connector, newest first (100 are kept). */
export interface ConnectorsTestHistoryParams {
  /** Id or name. */
  connector: string;
  /** Results to return. */
  limit?: number;
}

/**
 * Change a connector.
 *
 * `config` is merged field by field: absent keeps, null clears, eight bullets keep a secret. Changing an endpoint field
 * (where secrets are sent) without entering the secrets again is refused.
 */
export interface ConnectorsUpdateParams {
  /** Id or name. */
  connector: string;
  /** What to change; absent fields stay as they are. */
  changes: ConnectorPatch;
}

/** Cancel a statement by its `query_id`, also from another connection of the same user. */
export interface QueryCancelParams {
  /** Names the result, as in its pages. */
  query_id: string;
}

/** Close an open result; what still runs is cancelled on the server. Closing twice is no error. */
export interface QueryCloseParams {
  /** Names the result, as in its pages. */
  query_id: string;
}

/**
 * Run one reading statement and return its first page.
 *
 * The page comes as soon as its rows are there; the rest is fetched with `query/fetch`. Cancelling the request cancels the
 * statement on the server. The result stays open until its last page, `query/close`, or five idle minutes.
 */
export interface QueryExecuteParams {
  /** Id or name. */
  connector: string;
  /** One statement in the connector's dialect. */
  sql: string;
  /** Bound values: `%s` / `%(name)s` placeholders. */
  params?: Array<unknown> | Record<string, unknown> | null;
  /** Rows per page. */
  page_size?: number;
  /** Stop after so many rows; the page then says `truncated`. */
  max_rows?: number | null;
  /** Seconds; default and upper bound: query_timeout_s. */
  timeout_s?: number | null;
  /** `arrow` (MessagePack only) or `rows`; `auto` follows the message's encoding. */
  format?: "auto" | "rows" | "arrow";
  /** Your own name for the result; one is made when absent. */
  query_id?: string | null;
}

/** Show the plan of a statement without running it. */
export interface QueryExplainParams {
  /** Id or name. */
  connector: string;
  /** One statement in the connector's dialect. */
  sql: string;
  /** Seconds it may take; at most query_timeout_s. */
  timeout_s?: number | null;
}

/**
 * Run a statement and write its whole result to a file on the agent's machine.
 *
 * Written under a temporary name and renamed when complete, mode 0600; an existing file is only replaced with `overwrite`.
 * Progress carries rows and bytes.
 */
export interface QueryExportParams {
  /** Id or name. */
  connector: string;
  /** One statement in the connector's dialect. */
  sql: string;
  /** Absolute path on the agent's machine. */
  path: string;
  /** Bound values, as in `query/execute`. */
  params?: Array<unknown> | Record<string, unknown> | null;
  /** Default: by the path's ending. */
  format?: "csv" | "parquet" | "jsonl" | null;
  /** Stop after so many rows. */
  max_rows?: number | null;
  /** Seconds it may take; at most query_timeout_s. */
  timeout_s?: number | null;
  /** Replace an existing file. */
  overwrite?: boolean;
}

/** Fetch the next page of an open result. */
export interface QueryFetchParams {
  /** Names the result, as in its pages. */
  query_id: string;
  /** Default: as in `query/execute`. */
  page_size?: number | null;
}

/**
 * Make a recovery key and return it, once.
 *
 * Whoever has it and the data directory can open the vault: print it and lock it away. An earlier one stops working.
 */
export interface VaultRecoveryKeyParams {
}

/**
 * Make a new key and re-encrypt every secret under it.
 *
 * Online and resumable: both keys open secrets until the last one is done; then the old key is destroyed.
 */
export interface VaultRotateParams {
  /** Move the key to another source; default: stay. */
  key_source?: "license" | "systemd" | "keyring" | "file" | null;
}

/** Show the vault's state: locked or not, key source, how many secrets. */
export interface VaultStatusParams {
}

/** Unlock a vault whose key is lost, with its recovery key, and give it a new key. */
export interface VaultUnlockParams {
  /** As it was shown; dashes and case do not matter. */
  recovery_key: string;
  /** Where the new key goes. */
  key_source?: "keyring" | "file";
}

/** Every method with its parameters and its result. */
export interface Methods {
  "agent/doctor": {
    params: AgentDoctorParams;
    result: DoctorResult;
  };
  "agent/hello": {
    params: AgentHelloParams;
    result: HelloResult;
  };
  "agent/reload": {
    params: AgentReloadParams;
    result: ReloadResult;
  };
  "agent/sessions": {
    params: AgentSessionsParams;
    result: SessionsResult;
  };
  "agent/shutdown": {
    params: AgentShutdownParams;
    result: Done;
  };
  "agent/status": {
    params: AgentStatusParams;
    result: StatusResult;
  };
  "connectors/apply": {
    params: ConnectorsApplyParams;
    result: ApplyResult;
  };
  "connectors/bootstrap": {
    params: ConnectorsBootstrapParams;
    result: Connector;
  };
  "connectors/catalog": {
    params: ConnectorsCatalogParams;
    result: CatalogResult;
  };
  "connectors/create": {
    params: ConnectorsCreateParams;
    result: Connector;
  };
  "connectors/delete": {
    params: ConnectorsDeleteParams;
    result: Done;
  };
  "connectors/get": {
    params: ConnectorsGetParams;
    result: Connector;
  };
  "connectors/list": {
    params: ConnectorsListParams;
    result: ListResult;
  };
  "connectors/models": {
    params: ConnectorsModelsParams;
    result: StreamPage;
  };
  "connectors/poolStats": {
    params: ConnectorsPoolStatsParams;
    result: PoolStatsResult;
  };
  "connectors/rotate": {
    params: ConnectorsRotateParams;
    result: RotateResult;
  };
  "connectors/test": {
    params: ConnectorsTestParams;
    result: CheckReport;
  };
  "connectors/testHistory": {
    params: ConnectorsTestHistoryParams;
    result: TestHistoryResult;
  };
  "connectors/update": {
    params: ConnectorsUpdateParams;
    result: Connector;
  };
  "query/cancel": {
    params: QueryCancelParams;
    result: Done;
  };
  "query/close": {
    params: QueryCloseParams;
    result: Done;
  };
  "query/execute": {
    params: QueryExecuteParams;
    result: QueryPage;
  };
  "query/explain": {
    params: QueryExplainParams;
    result: QueryPlan;
  };
  "query/export": {
    params: QueryExportParams;
    result: ExportReport;
  };
  "query/fetch": {
    params: QueryFetchParams;
    result: QueryPage;
  };
  "vault/recoveryKey": {
    params: VaultRecoveryKeyParams;
    result: RecoveryKey;
  };
  "vault/rotate": {
    params: VaultRotateParams;
    result: VaultStatus;
  };
  "vault/status": {
    params: VaultStatusParams;
    result: VaultStatus;
  };
  "vault/unlock": {
    params: VaultUnlockParams;
    result: VaultStatus;
  };
}

export type MethodName = keyof Methods;
