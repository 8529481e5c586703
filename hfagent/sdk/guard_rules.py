"""What the statement guard refuses, as data: words, functions, hints, per dialect.

Functions are listed because they reach outside the database (files, network, other sessions), run SQL given as text, or
change something although they stand in a SELECT. A list can never be complete: user-defined functions do what they like.
The account and the read-only session are what protects the data (`sdk/guard.py`).
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "FORBIDDEN_HINTS", "NEVER_IN_A_READ", "READING", "RESERVED", "WRITING", "forbidden_function",
]  # fmt: skip


def words(text: str) -> frozenset[str]:
    """Split a table that is easier to read without quotes."""
    return frozenset(text.split())


_ANYWHERE: Final = frozenset({"select", "with", "values", "table", "show", "describe", "desc", "explain"})
READING: Final[dict[str, frozenset[str]]] = {
    "postgres": frozenset({"select", "with", "values", "table", "show", "explain"}),
    "mysql": _ANYWHERE,
    "duckdb": _ANYWHERE | {"from", "summarize"},
    "tsql": frozenset({"select", "with"}),  # any other first word would be the name of a procedure to run
    "oracle": frozenset({"select", "with"}),
    "snowflake": _ANYWHERE - {"table"},
    "bigquery": frozenset({"select", "with", "from"}),
    "sqlite": frozenset({"select", "with", "values", "explain"}),
    "": _ANYWHERE,
}
"""First words of reading statements."""

WRITING: Final = words(
    """
    insert update delete merge replace upsert truncate create alter drop rename undrop comment grant revoke deny
    call exec execute do begin start commit rollback savepoint release abort end set reset unset use lock unlock
    copy load unload import export put get remove rm attach detach install pragma vacuum analyze analyse reindex
    cluster refresh checkpoint prepare deallocate declare fetch move close listen notify unlisten discard handler
    kill flush optimize repair check checksum purge shutdown restart security reassign bulk reconfigure backup
    restore dbcc waitfor print raiserror throw if while goto return save revert setuser writetext updatetext enable
    disable binlog change cache uncache clone xa signal resignal execute immediate assert audit noaudit flashback
    administer associate disassociate force
    """
)
"""First words of statements that are known and not allowed."""

NEVER_IN_A_READ: Final = words(
    """
    insert update delete merge truncate create alter drop grant revoke call exec execute copy vacuum attach detach
    install pragma outfile dumpfile waitfor shutdown
    """
)
"""Words that refuse a statement which could not be parsed, unless they are quoted, qualified or called."""

RESERVED: Final[dict[str, frozenset[str]]] = {
    # T-SQL statements need no separator: `SELECT * FROM t SHUTDOWN` is two of them. All of these are reserved words, so
    # none can be meant as a name or an alias.
    "tsql": words(
        """
    alter backup begin break bulk checkpoint close commit continue create dbcc deallocate declare delete deny drop
    dump errlvl exec execute exit goto grant holdlock if insert kill lineno load open print raiserror readtext
    reconfigure restore return revert revoke rollback save set setuser shutdown truncate update updatetext use
    waitfor while writetext updlock xlock tablockx
    """
    ),
}
"""Words that never occur in a reading statement of the dialect, outside quotes."""

FORBIDDEN_HINTS: Final = ("set_var", "max_execution_time", "resource_group")
"""MySQL's optimizer hints that change the session or lift its time limit."""

_FUNCTIONS: Final = words(
    """
    pg_read_file pg_read_binary_file pg_stat_file pg_rotate_logfile pg_rotate_logfile_old pg_reload_conf
    pg_terminate_backend pg_cancel_backend pg_switch_wal pg_switch_xlog pg_create_restore_point pg_start_backup
    pg_stop_backup pg_backup_start pg_backup_stop pg_promote pg_wal_replay_pause pg_wal_replay_resume
    pg_drop_replication_slot pg_copy_physical_replication_slot pg_copy_logical_replication_slot
    pg_sync_replication_slots pg_import_system_collations pg_notify pg_prewarm pg_log_backend_memory_contexts
    pg_export_snapshot pg_clear_relation_stats pg_clear_attribute_stats pg_restore_relation_stats
    pg_restore_attribute_stats pg_execute_server_program brin_summarize_range brin_summarize_new_values
    brin_desummarize_range gin_clean_pending_list lo_import lo_export lo_create lo_creat lo_unlink lo_put lo_open
    lo_from_bytea lo_truncate lo_truncate64 lowrite set_config nextval setval ts_stat ts_rewrite connectby
    xpath_table plpgsql_call_handler query_to_xml query_to_xmlschema query_to_xml_and_xmlschema cursor_to_xml
    cursor_to_xmlschema table_to_xml table_to_xmlschema table_to_xml_and_xmlschema schema_to_xml schema_to_xmlschema
    schema_to_xml_and_xmlschema database_to_xml database_to_xmlschema database_to_xml_and_xmlschema load_file
    get_lock release_lock release_all_locks master_pos_wait source_pos_wait wait_for_executed_gtid_set
    wait_until_sql_thread_after_gtids sys_exec sys_eval sys_get sys_set openrowset openquery opendatasource
    fn_get_audit_file fn_xe_file_target_read_file fn_trace_gettable fn_dump_dblog fn_dblog httpuritype uritype
    bfilename xdburitype dburitype external_query load_extension writefile readfile edit fts3_tokenizer
    """
)
_PREFIXES: Final = (
    "pg_ls_", "pg_file_", "pg_logical_", "pg_replication_", "pg_create_", "pg_advisory_", "pg_try_advisory_",
    "pg_stat_reset", "pg_stat_statements_reset", "dblink", "postgres_fdw_", "crosstab", "aws_s3", "aws_lambda",
    "xp_", "sp_", "group_replication_", "asynchronous_connection_failover_", "mysql_firewall_", "audit_log_", "keyring_",
    "version_tokens_", "service_get_", "service_release_", "gen_blocklist", "dbms_", "utl_", "owa_", "apex_", "ctx_",
)  # fmt: skip
_DUCKDB: Final = words(
    """
    glob sniff_csv query query_table json_execute_serialized_sql getenv duckdb_secrets which_secret write_log
    truncate_duckdb_logs add_parquet_key copy_database import_database checkpoint force_checkpoint
    python_map_function load_aws_credentials sqlite_attach postgres_attach delta_scan iceberg_scan iceberg_metadata
    iceberg_snapshots excel_scan st_read st_read_meta shapefile_meta
    """
)
_DUCKDB_PREFIXES: Final = (
    "read_",
    "parquet_",
    "enable_",
    "disable_",
    "pragma_",
    "sqlite_",
    "postgres_",
    "mysql_",
    "http_",
)
_DUCKDB_SUFFIXES: Final = ("_scan", "_scan_pushdown", "_scan_dumb", "_query", "_execute")
_SNOWFLAKE_SAFE: Final = words(
    """
    system$typeof system$clustering_information system$clustering_depth system$estimate_search_optimization_costs
    system$last_change_commit_time system$stream_has_data system$get_tag system$version system$table_ddl
    """
)
_ORACLE_SAFE: Final = words(
    """
    dbms_lob.substr dbms_lob.getlength dbms_lob.instr dbms_lob.compare dbms_random.value dbms_random.string
    dbms_random.normal dbms_metadata.get_ddl dbms_xplan.display dbms_crypto.hash utl_raw.cast_to_varchar2
    utl_raw.cast_to_raw utl_raw.length utl_raw.substr utl_raw.bit_and utl_raw.bit_or utl_raw.bit_xor
    utl_match.edit_distance utl_match.edit_distance_similarity utl_match.jaro_winkler
    utl_match.jaro_winkler_similarity utl_i18n.string_to_raw utl_i18n.raw_to_char utl_encode.base64_encode
    utl_encode.base64_decode
    """
)
"""Functions of otherwise forbidden packages that compute and do nothing else."""


def forbidden_function(name: str, qualifier: str, dialect: str) -> bool:
    """Tell whether a call of `qualifier.name` (lower case, qualifier may be empty) is refused."""
    if qualifier.startswith(("dbms_", "utl_", "owa_", "apex_")):
        return f"{qualifier}.{name}" not in _ORACLE_SAFE
    if name in _FUNCTIONS or name.startswith(_PREFIXES):
        return True
    if name.startswith("system$"):
        return name not in _SNOWFLAKE_SAFE
    if dialect == "duckdb":
        return name in _DUCKDB or name.startswith(_DUCKDB_PREFIXES) or name.endswith(_DUCKDB_SUFFIXES)
    return False
