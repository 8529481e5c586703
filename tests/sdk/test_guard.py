"""The statement guard: what passes, what is refused and as what, dialect by dialect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hfagent.foundation.errors import AgentError, UserError
from hfagent.sdk.guard import MAX_LENGTH, check_statement
from hfagent.sdk.sql_tokens import tokenize

# --- what passes: dialect → kind → statements ---

ALLOWED: dict[str, dict[str, list[str]]] = {
    "postgres": {
        "select": [
            "SELECT 1",
            "select * from t where a = 'x;y'",
            "SELECT 'it''s; DROP TABLE t'",
            "SELECT E'it\\'s; DROP TABLE t'",
            "SELECT E'a'\n  'b\\'; DROP TABLE t'",
            "SELECT $$; DROP TABLE t$$, $tag$ $$ ; $tag$",
            'SELECT "a;b", "drop table", "x""; DROP" FROM "insert"',
            "SELECT 1 -- ; DROP TABLE t",
            "SELECT 1 /* ; DROP /* nested ; */ TABLE t */",
            "SELECT /*! DROP TABLE t */ 1",  # a comment like any other here
            "SELECT * FROM t WHERE data->>'a' = 'b' AND data @> '{\"x\": 1}' AND tags ?| array['a']",
            "SELECT 5 # 3",
            "SELECT $1, $2::int",
            "SELECT * FROM t WHERE a = %s AND b = %(name)s",
            "(SELECT 1) UNION ALL (SELECT 2) ORDER BY 1",
            "WITH a AS (SELECT 1), b AS MATERIALIZED (SELECT 2) SELECT * FROM a, b",
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT * FROM n",
            "SELECT count(*) FILTER (WHERE a), sum(b) OVER (PARTITION BY c ORDER BY d ROWS 2 PRECEDING) FROM t",
            "SELECT t.update, t.delete, t.insert FROM t",
            "SELECT pg_sleep(1), current_setting('TimeZone'), pg_get_viewdef('v'::regclass)",
            "SELECT substring(a FROM 2 FOR 3), extract(epoch FROM now()), trim(both 'x' FROM a) FROM t",
            "SELECT DISTINCT ON (a) a, b FROM t ORDER BY a, b DESC NULLS LAST LIMIT 10 OFFSET 5",
            "SELECT * FROM t TABLESAMPLE system (1) JOIN LATERAL (SELECT 1) x ON true",
            "SELECT * FROM generate_series(1, 3) WITH ORDINALITY AS g(n, i)",
            "SELECT 1 AS \"into\", 'FOR UPDATE', lower('SELECT INTO') ",
            ";;SELECT 1;;",
            "SELECT replace(a, 'x', 'y'), format('%s', b) FROM t",
            "SELECT a::numeric(10,2), b::text[], c AT TIME ZONE 'UTC', '{}'::jsonb #>> '{a}' FROM t",
            "SELECT currval('s'), lastval()",
        ],
        "values": ["VALUES (1, 'a'), (2, 'b')"],
        "table": ["TABLE t", 'TABLE "s"."t"'],
        "show": ["SHOW server_version", "SHOW ALL", "SHOW TIME ZONE"],
        "explain": [
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE SELECT * FROM t",
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT 1",
            "EXPLAIN (SELECT 1)",
            "EXPLAIN VERBOSE TABLE t",
            "EXPLAIN DELETE FROM t",
            "EXPLAIN (COSTS off) INSERT INTO t SELECT * FROM u",
            "EXPLAIN UPDATE t SET a = 1 WHERE b = 2",
        ],
    },
    "mysql": {
        "select": [
            "SELECT 1",
            "SELECT 'it\\'s; DROP TABLE t', \"a;b\", `c;d` FROM `drop`",
            "SELECT 1 # ; DROP TABLE t",
            "SELECT 1 -- ; DROP TABLE t",
            "SELECT 5--1",
            "SELECT /*+ INDEX(t i) NO_ICP(t) */ * FROM t",
            "SELECT SQL_NO_CACHE a, @@version, @x := @x + 1 FROM t LIMIT 5, 10",
            "SELECT INSERT('abc', 1, 2, 'x'), REPLACE(a, 'b', 'c'), TRUNCATE(1.5, 0) FROM t",
            "SELECT CONVERT(a USING utf8mb4), CAST(b AS CHAR CHARACTER SET utf8mb4) FROM t",
            "SELECT * FROM t FORCE INDEX (i) WHERE MATCH(a) AGAINST ('+x' IN BOOLEAN MODE)",
            "SELECT GROUP_CONCAT(a ORDER BY b SEPARATOR ';') FROM t",
            "SELECT data->>'$.a' FROM t",
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "SELECT SLEEP(0)",
            "(SELECT 1) UNION (SELECT 2)",
            "SELECT 'load_file' FROM t WHERE a = 'INTO OUTFILE'",
        ],
        "values": ["VALUES ROW(1, 2), ROW(3, 4)"],
        "table": ["TABLE t"],
        "show": [
            "SHOW TABLES", "SHOW CREATE TABLE t", "SHOW FULL PROCESSLIST", "SHOW GRANTS", "SHOW VARIABLES LIKE '%x%'",
            "SHOW INDEX FROM t", "SHOW BINARY LOGS", "SHOW ENGINE INNODB STATUS", "SHOW TABLE STATUS WHERE Name = 'x'",
        ],
        "describe": ["DESCRIBE t", "DESC `update`"],
        "explain": [
            "EXPLAIN SELECT 1",
            "EXPLAIN FORMAT=JSON SELECT * FROM t",
            "EXPLAIN FORMAT = TREE SELECT * FROM t",
            "EXPLAIN ANALYZE SELECT * FROM t",
            "EXPLAIN t",
            "EXPLAIN FOR CONNECTION 5",
            "EXPLAIN DELETE FROM t WHERE a = 1",
            "DESCRIBE SELECT 1",
        ],
    },
    "duckdb": {
        "select": [
            "FROM t",
            "FROM t SELECT a WHERE b > 1",
            "SELECT * EXCLUDE (a) REPLACE (b + 1 AS b) FROM t",
            "SELECT COLUMNS('a.*') FROM t",
            "SELECT {'a': 1, 'b': [1, 2]}.a, [x * 2 FOR x IN [1, 2]], list_filter([1], x -> x > 1)",
            "SELECT 1 /* a /* b */ c */",
            "SELECT E'it\\'s' , $x$;$x$",
            "SELECT * FROM range(10) r(i) QUALIFY row_number() OVER () < 3",
            "SELECT * FROM (PIVOT t ON year USING sum(v))",
            "SELECT extract(year FROM '2020-01-01'::DATE), trim('x' FROM 'xax')",
            "SELECT 'a.csv', 'b.csv' FROM t",
            "SELECT a FROM t ASOF JOIN u USING (id, ts)", "SELECT a FROM t USING SAMPLE 10%",
            "SELECT unnest([1, 2]), struct_pack(a := 1), read_at FROM t",
        ],
        "describe": ["DESCRIBE t", "DESCRIBE SELECT 1 AS a", "SUMMARIZE t", "SUMMARIZE SELECT * FROM t", "DESCRIBE FROM t"],
        "show": ["SHOW TABLES", "SHOW ALL TABLES"],
        "explain": ["EXPLAIN SELECT 1", "EXPLAIN ANALYZE FROM t", "EXPLAIN (FORMAT JSON) SELECT 1"],
    },
    "tsql": {
        "select": [
            "SELECT TOP (5) * FROM dbo.t WITH (NOLOCK) ORDER BY a",
            "SELECT [update], [drop table], \"exec\" FROM [a]]b].[c]",
            "SELECT N'it''s; DROP TABLE t', 0xDEADBEEF",
            "SELECT 1 /* a /* b ; */ c */",
            "WITH x AS (SELECT 1 AS a) SELECT * FROM x OPTION (MAXRECURSION 5)",
            "SELECT a, COUNT(*) OVER () FROM t ORDER BY a OFFSET 5 ROWS FETCH NEXT 10 ROWS ONLY",
            "SELECT a FROM t FOR JSON PATH",
            "SELECT * FROM #temp CROSS APPLY STRING_SPLIT(a, ',')",
            "SELECT IIF(a > 1, 'x', 'y'), TRY_CAST(b AS int), @@VERSION FROM t WHERE c = @p1",
            "SELECT t.[set] FROM t PIVOT (SUM(a) FOR b IN ([x], [y])) p",
            "SELECT * FROM sys.tables",
        ],
    },
    "oracle": {
        "select": [
            "SELECT * FROM dual WHERE ROWNUM < 5",
            "SELECT q'[it's; drop table t]', nq'{a;b}', Q'!x;!' FROM dual",
            "SELECT /*+ PARALLEL(t 4) */ * FROM t",
            "SELECT * FROM t START WITH a IS NULL CONNECT BY PRIOR id = parent",
            "SELECT DBMS_LOB.SUBSTR(c, 100, 1), dbms_random.value, UTL_RAW.CAST_TO_VARCHAR2(r) FROM t",
            "SELECT NVL(a, 0), SYSDATE, TO_CHAR(d, 'YYYY') FROM t FETCH FIRST 5 ROWS ONLY",
            "SELECT a FROM t WHERE b = :1 AND c = :name",
            "WITH x AS (SELECT 1 a FROM dual) SELECT * FROM x",
            "SELECT * FROM v$session, x$y",
            "SELECT seq.currval FROM dual",
        ],
    },
    "snowflake": {
        "select": [
            "SELECT 1 // ; DROP TABLE t",
            "SELECT 'it\\'s; x', $$;$$",
            "SELECT a:b.c::int, f.value FROM t, LATERAL FLATTEN(input => a) f",
            "SELECT * FROM t AT (OFFSET => -60) QUALIFY ROW_NUMBER() OVER (PARTITION BY a ORDER BY b) = 1",
            "SELECT * FROM TABLE(RESULT_SCAN(LAST_QUERY_ID()))",
            "SELECT SYSTEM$TYPEOF(1), SYSTEM$CLUSTERING_INFORMATION('t')",
            "SELECT $1 FROM @stage (FILE_FORMAT => 'f')",
            "SELECT IFF(a, 1, 2), TRY_TO_NUMBER(b), ILIKE_x FROM t SAMPLE (10)",
        ],
        "values": ["VALUES (1), (2)"],
        "show": ["SHOW TABLES IN SCHEMA a.b", "SHOW GRANTS TO ROLE r"],
        "describe": ["DESC TABLE t", "DESCRIBE VIEW v"],
        "explain": ["EXPLAIN SELECT 1", "EXPLAIN USING JSON SELECT * FROM t"],
    },
    "bigquery": {
        "select": [
            "SELECT * EXCEPT (a) FROM `p.d.t` WHERE _PARTITIONDATE = '2024-01-01'",
            "SELECT 'a;b', \"c;d\", '''e\n;'f''', r'\\d', r\"\\d;\", b'x', rb'''y;'''",
            "SELECT 1 # ; DROP TABLE t",
            "SELECT ARRAY<STRUCT<a INT64, b STRING>>[(1, 'x')], [1, 2][OFFSET(0)]",
            "FROM t |> WHERE a > 1 |> SELECT a |> LIMIT 5",
            "SELECT * FROM t, UNNEST(items) AS i WITH OFFSET o",
            "SELECT SAFE_DIVIDE(a, b), @param, @@time_zone FROM t",
            "WITH x AS (SELECT 1 AS a) SELECT AS STRUCT * FROM x",
            "SELECT * FROM `p`.d.INFORMATION_SCHEMA.TABLES FOR SYSTEM_TIME AS OF CURRENT_TIMESTAMP()",
        ],
    },
    "sqlite": {
        "select": ["SELECT [a b], `c`, \"d\" FROM t", "SELECT replace(a, 'x', 'y') FROM t"],
        "explain": ["EXPLAIN SELECT 1", "EXPLAIN QUERY PLAN SELECT * FROM t"],
    },
}  # fmt: skip

WRITE, MULTI, SYNTAX = "guard.write_blocked", "guard.multi_statement", "query.syntax"

# --- what is refused, everywhere ---

REFUSED_EVERYWHERE: list[tuple[str, str]] = [
    ("INSERT INTO t VALUES (1)", WRITE),
    ("UPDATE t SET a = 1", WRITE),
    ("DELETE FROM t", WRITE),
    ("MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE", WRITE),
    ("REPLACE INTO t VALUES (1)", WRITE),
    ("TRUNCATE TABLE t", WRITE),
    ("CREATE TABLE t (a int)", WRITE),
    ("CREATE TABLE t AS SELECT 1", WRITE),
    ("CREATE OR REPLACE VIEW v AS SELECT 1", WRITE),
    ("ALTER TABLE t ADD COLUMN b int", WRITE),
    ("DROP TABLE t", WRITE),
    ("GRANT SELECT ON t TO u", WRITE),
    ("REVOKE SELECT ON t FROM u", WRITE),
    ("CALL p()", WRITE),
    ("EXEC p", WRITE),
    ("EXECUTE p", WRITE),
    ("EXECUTE IMMEDIATE 'DROP TABLE t'", WRITE),
    ("DO $$ BEGIN END $$", WRITE),
    ("BEGIN", WRITE),
    ("BEGIN DELETE FROM t", WRITE),
    ("COMMIT", WRITE),
    ("ROLLBACK", WRITE),
    ("START TRANSACTION READ WRITE", WRITE),
    ("SET x = 1", WRITE),
    ("SET default_transaction_read_only = off", WRITE),
    ("RESET ALL", WRITE),
    ("USE other", WRITE),
    ("LOCK TABLE t", WRITE),
    ("COPY t FROM '/etc/passwd'", WRITE),
    ("COPY t TO PROGRAM 'sh'", WRITE),
    ("COPY (SELECT 1) TO '/tmp/x'", WRITE),
    ("ATTACH 'x.db'", WRITE),
    ("DETACH x", WRITE),
    ("INSTALL httpfs", WRITE),
    ("LOAD httpfs", WRITE),
    ("PRAGMA writable_schema = 1", WRITE),
    ("EXPORT DATABASE '/tmp/x'", WRITE),
    ("IMPORT DATABASE '/tmp/x'", WRITE),
    ("VACUUM t", WRITE),
    ("ANALYZE t", WRITE),
    ("REINDEX TABLE t", WRITE),
    ("REFRESH MATERIALIZED VIEW v", WRITE),
    ("PREPARE p AS SELECT 1", WRITE),
    ("DEALLOCATE p", WRITE),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", WRITE),
    ("LISTEN x", WRITE),
    ("NOTIFY x", WRITE),
    ("KILL 5", WRITE),
    ("SHUTDOWN", WRITE),
    ("COMMENT ON TABLE t IS 'x'", WRITE),
    ("SELECT 1; SELECT 2", MULTI),
    ("SELECT 1; DROP TABLE t", MULTI),
    ("SELECT 1;;SELECT 2", MULTI),
    ("SELECT 1 /* ; */ ; DROP TABLE t --", MULTI),
    ("SELECT ';'; DROP TABLE t", MULTI),
    ('SELECT "a"; DROP TABLE t', MULTI),
    ("SELECT 1 -- x\n; DROP TABLE t", MULTI),
    ("", SYNTAX),
    ("   \n\t", SYNTAX),
    (";", SYNTAX),
    ("-- nothing", SYNTAX),
    ("/* nothing */", SYNTAX),
    ("SELECT 'open", SYNTAX),
    ('SELECT "open', SYNTAX),
    ("SELECT 1 /* open", SYNTAX),
    ("SELECT 1\0; DROP TABLE t", SYNTAX),
    ("SELECT \x1a 1", SYNTAX),
    ("SELECT 1 -- x\r; DROP TABLE t", SYNTAX),
    ("SELECT '\ud800' \ud800", SYNTAX),
    ("\\copy t to program 'sh'", SYNTAX),
    ("HELLO WORLD", SYNTAX),
    ("SELCT 1", SYNTAX),
    ("123", SYNTAX),
    ("()", SYNTAX),
    ("SELECT * INTO other FROM t", WRITE),
    ("SELECT 1 INTO x", WRITE),
    ("SELECT * FROM (SELECT 1 INTO y) z", WRITE),
    ("SELECT * FROM t FOR UPDATE", WRITE),
    ("SELECT * FROM (SELECT * FROM t FOR UPDATE) x", WRITE),
    ("SELECT * FROM t for/**/update", WRITE),
    ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", WRITE),
    ("WITH x AS (SELECT 1) UPDATE t SET a = 1", WRITE),
    ("WITH x AS (SELECT 1) DELETE FROM t", WRITE),
    ("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", WRITE),
    ("WITH x AS (/* a */ UPDATE t SET a = 1 RETURNING *) SELECT * FROM x", WRITE),
    ("WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x", WRITE),
    ("SELECT * FROM OPENROWSET('a', 'b', 'c')", WRITE),
    ("SELECT dbms_scheduler.run_job('x') FROM dual", WRITE),
]

# --- what is refused in one dialect ---

REFUSED: dict[str, list[tuple[str, str]]] = {
    "postgres": [
        ("SELECT pg_read_file('/etc/passwd')", WRITE),
        ("SELECT pg_catalog.pg_read_file('/etc/passwd')", WRITE),
        ("SELECT \"pg_read_file\"('/etc/passwd')", WRITE),
        ('SELECT "pg_catalog"."pg_read_file" /* x */ (\'/etc/passwd\')', WRITE),
        ("SELECT U&\"pg\\005fread_file\"('/etc/passwd')", WRITE),
        ("SELECT PG_READ_BINARY_FILE('/x')", WRITE),
        ("SELECT * FROM pg_ls_dir('/')", WRITE),
        ("SELECT pg_ls_waldir()", WRITE),
        ("SELECT lo_import('/etc/passwd')", WRITE),
        ("SELECT lo_export(1, '/tmp/x')", WRITE),
        ("SELECT lo_from_bytea(0, 'x')", WRITE),
        ("SELECT * FROM dblink('host=x', 'SELECT 1') AS t(a int)", WRITE),
        ("SELECT dblink_exec('c', 'DROP TABLE t')", WRITE),
        ("SELECT pg_terminate_backend(1)", WRITE),
        ("SELECT pg_cancel_backend(1)", WRITE),
        ("SELECT set_config('transaction_read_only', 'off', false)", WRITE),
        ("SELECT nextval('s')", WRITE),
        ("SELECT setval('s', 1)", WRITE),
        ("SELECT pg_advisory_lock(1)", WRITE),
        ("SELECT pg_try_advisory_xact_lock(1)", WRITE),
        ("SELECT query_to_xml('DELETE FROM t RETURNING 1', true, true, '')", WRITE),
        ("SELECT database_to_xml(true, true, '')", WRITE),
        ("SELECT ts_stat('DELETE FROM t')", WRITE),
        ("SELECT * FROM crosstab('DELETE FROM t') AS c(a int)", WRITE),
        ("SELECT pg_notify('a', 'b')", WRITE),
        ("SELECT pg_reload_conf()", WRITE),
        ("SELECT pg_create_logical_replication_slot('a', 'b')", WRITE),
        ("SELECT pg_logical_emit_message(true, 'a', 'b')", WRITE),
        ("SELECT pg_stat_reset()", WRITE),
        ("SELECT pg_switch_wal()", WRITE),
        ("SELECT * FROM t FOR NO KEY UPDATE", WRITE),
        ("SELECT * FROM t FOR KEY SHARE SKIP LOCKED", WRITE),
        ("SELECT * FROM t FOR SHARE OF t NOWAIT", WRITE),
        ("SELECT * INTO TEMP x FROM t", WRITE),
        ("WITH x AS MATERIALIZED (DELETE FROM t RETURNING *) SELECT 1", WRITE),
        ("WITH x AS NOT MATERIALIZED (INSERT INTO t VALUES (1) RETURNING *) TABLE x", WRITE),
        ("EXPLAIN ANALYZE DELETE FROM t", WRITE),
        ("EXPLAIN ANALYSE UPDATE t SET a = 1", WRITE),
        ("EXPLAIN (ANALYZE true) UPDATE t SET a = 1", WRITE),
        ("EXPLAIN (VERBOSE, ANALYZE) INSERT INTO t VALUES (1)", WRITE),
        ("EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1", WRITE),
        ("EXPLAIN ANALYZE EXECUTE p", WRITE),
        ("EXPLAIN EXECUTE p", WRITE),
        ("EXPLAIN DELETE FROM t WHERE a = lo_import('/x')", WRITE),
        ("EXPLAIN ANALYZE WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x", WRITE),
        ("EXPLAIN SELECT * FROM t FOR UPDATE", WRITE),
        ("EXPLAIN SELECT 1; DROP TABLE t", MULTI),
        ("EXPLAIN", SYNTAX),
        ("SELECT E'a\\'; DROP TABLE t", SYNTAX),
        ("SELECT 'a\\'; DROP TABLE t --'", MULTI),  # no escape in a plain string: it ended before the semicolon
        ("SELECT E'a'\n'\\' || '; DELETE FROM t --'", MULTI),  # the continued string does have them
        ("SELECT $a$ $b$; DROP TABLE t", SYNTAX),
        ("SELECT $a$ $a$; DROP TABLE t --$a$", MULTI),
        ("SELECT 1 /* /* */ ; DROP TABLE t", SYNTAX),
        ("SECURITY LABEL ON TABLE t IS 'x'", WRITE),
        ("DISCARD ALL", WRITE),
        ("REASSIGN OWNED BY a TO b", WRITE),
        ("DESCRIBE t", SYNTAX),
        ("FROM t", SYNTAX),
    ],
    "mysql": [
        ("/*! DROP TABLE t */", WRITE),
        ("/*!50000 DROP TABLE t */", WRITE),
        ("/*M!100000 DELETE FROM t */", WRITE),
        ("SELECT 1 /*!, 2 INTO OUTFILE '/tmp/x' */", WRITE),
        ("SELECT /*! * FROM t; DROP TABLE */ t", WRITE),
        ("SELECT 1 INTO OUTFILE '/tmp/x'", WRITE),
        ("SELECT 1 INTO DUMPFILE '/tmp/x'", WRITE),
        ("SELECT 1 INTO @x", WRITE),
        ("SELECT LOAD_FILE('/etc/passwd')", WRITE),
        ("SELECT `load_file`('/etc/passwd')", WRITE),
        ("SELECT \"load_file\"('/etc/passwd')", WRITE),
        ("SELECT load_file/**/('/etc/passwd')", WRITE),
        ("SELECT GET_LOCK('a', 1)", WRITE),
        ("SELECT RELEASE_ALL_LOCKS()", WRITE),
        ("SELECT sys_exec('id')", WRITE),
        ("SELECT group_replication_set_as_primary('x')", WRITE),
        ("SELECT * FROM t LOCK IN SHARE MODE", WRITE),
        ("SELECT * FROM t FOR SHARE", WRITE),
        ("SELECT NEXTVAL(s)", WRITE),
        ("SELECT NEXT VALUE FOR s", WRITE),
        ("SELECT /*+ SET_VAR(foreign_key_checks=OFF) */ 1", WRITE),
        ("SELECT /*+ MAX_EXECUTION_TIME(0) */ 1", WRITE),
        ("SELECT 1 --; DROP TABLE t", MULTI),  # without a blank these are two minus signs
        ("SELECT 'a\\'; DROP TABLE t; -- '", "passes"),
        ("SELECT 'a\\\\'; DROP TABLE t; -- '", MULTI),
        ("SELECT 1 # x\n; DROP TABLE t", MULTI),
        ("SELECT 1 /* /* */ ; DROP TABLE t", MULTI),  # comments do not nest
        ("EXPLAIN ANALYZE DELETE FROM t", WRITE),
        ("DESCRIBE ANALYZE UPDATE t SET a = 1", WRITE),
        ("ANALYZE FORMAT=JSON DELETE FROM t", WRITE),
        ("EXPLAIN FORMAT=JSON INSERT INTO t SELECT LOAD_FILE('/x')", WRITE),
        ("EXPLAIN FORMAT=JSON INTO @x SELECT 1", WRITE),
        ("EXPLAIN DROP TABLE t", WRITE),
        ("SET STATEMENT max_statement_time=0 FOR SELECT 1", WRITE),
        ("LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE t", WRITE),
        ("HANDLER t OPEN", WRITE),
        ("FLUSH TABLES", WRITE),
        ("RENAME TABLE a TO b", WRITE),
        ("XA START 'x'", WRITE),
        ("BINLOG 'x'", WRITE),
        ("CHANGE MASTER TO x", WRITE),
        ("OPTIMIZE TABLE t", WRITE),
        ("UNLOCK TABLES", WRITE),
        ("SHOW TABLES WHERE LOAD_FILE('/x') IS NULL", WRITE),
    ],
    "duckdb": [
        ("SELECT * FROM read_text('/etc/passwd')", WRITE),
        ("FROM read_blob('/etc/passwd')", WRITE),
        ("FROM read_csv_auto('/etc/passwd')", WRITE),
        ("SELECT * FROM read_parquet(['a', 'b'])", WRITE),
        ("SELECT * FROM \"read_json\"('x')", WRITE),
        ("SELECT * FROM glob('/etc/*')", WRITE),
        ("SELECT * FROM sniff_csv('x')", WRITE),
        ("SELECT * FROM parquet_metadata('x')", WRITE),
        ("SELECT * FROM query('DROP TABLE t')", WRITE),
        ("SELECT * FROM query_table('t')", WRITE),
        ("SELECT * FROM json_execute_serialized_sql('x')", WRITE),
        ("SELECT * FROM sqlite_scan('a', 'b')", WRITE),
        ("SELECT * FROM postgres_query('a', 'b')", WRITE),
        ("SELECT * FROM delta_scan('x')", WRITE),
        ("SELECT * FROM duckdb_secrets()", WRITE),
        ("SELECT getenv('HOME')", WRITE),
        ("SELECT nextval('s')", WRITE),
        ("SELECT * FROM '/etc/passwd'", WRITE),
        ("FROM 'a.parquet'", WRITE),
        ("SELECT * FROM t JOIN 'a.csv' ON true", WRITE),
        ("SELECT * FROM t, 'a.csv'", WRITE),
        ("DESCRIBE FROM 'a.csv'", WRITE),
        ("SUMMARIZE SELECT * FROM read_text('x')", WRITE),
        ("EXPLAIN ANALYZE DELETE FROM t", WRITE),
        ("EXPLAIN ANALYZE INSERT INTO t VALUES (1)", WRITE),
        ("CHECKPOINT", WRITE),
        ("FORCE CHECKPOINT", WRITE),
        ("SET VARIABLE x = 1", WRITE),
        ("CREATE SECRET s (TYPE s3)", WRITE),
        ("SELECT 1 /* /* */ ; DROP TABLE t", SYNTAX),
    ],
    "tsql": [
        ("SELECT 1 DROP TABLE t", WRITE),
        ("SELECT * FROM t DELETE FROM t", WRITE),
        ("SELECT * FROM t SHUTDOWN", WRITE),
        ("SELECT * FROM t SHUTDOWN WITH NOWAIT", WRITE),
        ("SELECT 1 EXEC xp_cmdshell 'dir'", WRITE),
        ("SELECT 1 EXEC('DROP TABLE t')", WRITE),
        ("SELECT 1DELETE FROM t", WRITE),
        ("SELECT 1 WAITFOR DELAY '0:0:5'", WRITE),
        ("SELECT 1 BACKUP DATABASE x TO DISK = 'y'", WRITE),
        ("SELECT 1 RECONFIGURE", WRITE),
        ("SELECT * FROM t IF 1=1 PRINT 'x'", WRITE),
        ("SELECT 1 SET NOCOUNT ON", WRITE),
        ("SELECT 1 DECLARE @x int", WRITE),
        ("SELECT * FROM OPENQUERY(linked, 'DELETE FROM t')", WRITE),
        ("SELECT * FROM [OPENROWSET](BULK 'c:\\x', SINGLE_CLOB) AS x", WRITE),
        ("SELECT * FROM OPENDATASOURCE('a', 'b').d.s.t", WRITE),
        ("SELECT * FROM t WITH (UPDLOCK)", WRITE),
        ("SELECT * FROM t WITH (TABLOCKX, HOLDLOCK)", WRITE),
        ("SELECT NEXT VALUE FOR s", WRITE),
        ("SELECT * INTO #x FROM t", WRITE),
        ("SELECT * FROM sys.fn_get_audit_file('x', default, default)", WRITE),
        ("sp_who", SYNTAX),
        ("xp_cmdshell 'dir'", SYNTAX),
        ("show tables", SYNTAX),  # would run a procedure called show
        ("SELECT [a; DROP TABLE t", SYNTAX),
        ("SELECT [a]]; DROP", SYNTAX),
        ("SELECT [a]; DROP TABLE t --]", MULTI),
        ("SELECT 1 SELECT 2", SYNTAX),
        ("DBCC CHECKDB", WRITE),
        ("BULK INSERT t FROM 'x'", WRITE),
        ("RESTORE DATABASE x", WRITE),
    ],
    "oracle": [
        ("SELECT UTL_HTTP.REQUEST('http://x') FROM dual", WRITE),
        ("SELECT utl_inaddr.get_host_address('x') FROM dual", WRITE),
        ("SELECT sys.utl_file.fopen('a', 'b', 'r') FROM dual", WRITE),
        ("SELECT DBMS_XMLGEN.GETXML('DELETE FROM t') FROM dual", WRITE),
        ('SELECT "DBMS_LOCK"."SLEEP"(1) FROM dual', WRITE),
        ("SELECT dbms_session.something FROM dual", WRITE),
        ("SELECT HTTPURITYPE('http://x').getclob() FROM dual", WRITE),
        ("SELECT BFILENAME('D', 'x') FROM dual", WRITE),
        ("SELECT s.NEXTVAL FROM dual", WRITE),
        ("SELECT apex_web_service.make_rest_request('x') FROM dual", WRITE),
        ("EXPLAIN PLAN FOR SELECT 1 FROM dual", WRITE),
        ("WITH FUNCTION f RETURN NUMBER IS BEGIN DELETE FROM t; RETURN 1; END; SELECT f FROM dual", MULTI),
        ("SELECT q'[a]' ; DROP TABLE t --]'", MULTI),
        ("SELECT q'[a; DROP", SYNTAX),
        ("SELECT 1 /* /* */ ; DROP TABLE t", MULTI),
        ("FLASHBACK TABLE t TO BEFORE DROP", WRITE),
        ("AUDIT SELECT ON t", WRITE),
    ],
    "snowflake": [
        ("SELECT SYSTEM$CANCEL_ALL_QUERIES(1)", WRITE),
        ("SELECT system$abort_session(1)", WRITE),
        ("SELECT s.NEXTVAL", WRITE),
        ("SHOW TABLES ->> SELECT * FROM $1", MULTI),
        ("SHOW TABLES ->> DROP TABLE t", MULTI),
        ("SELECT 1 // x\n; DROP TABLE t", MULTI),
        ("SELECT 'a\\'; DROP TABLE t", SYNTAX),
        ("SELECT $$a$$; DROP TABLE t --$$", MULTI),
        ("PUT file:///etc/passwd @s", WRITE),
        ("GET @s file:///tmp", WRITE),
        ("REMOVE @s", WRITE),
        ("UNDROP TABLE t", WRITE),
        ("EXPLAIN DELETE FROM t", WRITE),
        ("EXECUTE TASK t", WRITE),
        ("UNSET x", WRITE),
    ],
    "bigquery": [
        ("SELECT * FROM EXTERNAL_QUERY('c', 'DELETE FROM t')", WRITE),
        ("EXPORT DATA OPTIONS (uri = 'gs://x') AS SELECT 1", WRITE),
        ("LOAD DATA INTO t FROM FILES (uris = ['gs://x'])", WRITE),
        ("DECLARE x INT64", WRITE),
        ("ASSERT 1 = 1", WRITE),
        ("FROM t |> INSERT INTO u", WRITE),
        ("FROM t |> CREATE TABLE x", WRITE),
        ("SELECT '''a''' ; DROP TABLE t --'''", MULTI),
        ("SELECT '''a'; DROP TABLE t", SYNTAX),
        ("SELECT r'\\'; DROP TABLE t", SYNTAX),
        ("SELECT 1 # x\n; DROP TABLE t", MULTI),
        ("SELECT 1 /* /* */ ; DROP TABLE t", MULTI),
        ("SELECT `a\\`; DROP TABLE t", SYNTAX),
        ("show tables", SYNTAX),
    ],
    "sqlite": [
        ("SELECT load_extension('x')", WRITE),
        ("SELECT writefile('x', 'y')", WRITE),
        ("SELECT readfile('/etc/passwd')", WRITE),
        ("EXPLAIN QUERY PLAN DROP TABLE t", WRITE),
    ],
}

DIALECTS = [*ALLOWED, "mariadb", "", "redshift", "clickhouse", "trino", "nonsense"]


def cases(table: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(dialect, row) for dialect, rows in table.items() for row in rows]


@pytest.mark.parametrize(
    ("dialect", "kind", "sql"),
    [(dialect, kind, sql) for dialect, kinds in ALLOWED.items() for kind, rows in kinds.items() for sql in rows],
)
def test_allowed(dialect: str, kind: str, sql: str) -> None:
    guarded = check_statement(
        sql, dialect, server_enforces_read_only=False
    )  # nothing here needs the server's judgement
    assert guarded.kind == kind
    assert guarded.text in sql
    assert not guarded.text.endswith(";")


@pytest.mark.parametrize("enforced", [True, False])
@pytest.mark.parametrize(("dialect", "case"), cases(REFUSED))
def test_refused(dialect: str, case: tuple[str, str], enforced: bool) -> None:
    refuse(dialect, *case, enforced)


@pytest.mark.parametrize("enforced", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("sql", "code"), REFUSED_EVERYWHERE)
def test_refused_everywhere(dialect: str, sql: str, code: str, enforced: bool) -> None:
    if not enforced and code == WRITE:
        # Without a server that enforces, what cannot be parsed is refused as that; refused it is.
        with pytest.raises(UserError) as caught:
            check_statement(sql, dialect, server_enforces_read_only=False)
        assert caught.value.code in (WRITE, SYNTAX, MULTI)
    else:
        refuse(dialect, sql, code, enforced)


def refuse(dialect: str, sql: str, code: str, enforced: bool) -> None:
    if code == "passes":
        check_statement(sql, dialect, server_enforces_read_only=enforced)
        return
    if code == SYNTAX and enforced and sql == "SELECT 1 SELECT 2":
        assert check_statement(sql, dialect, server_enforces_read_only=True).kind == "unparsed"  # two reads, at worst
        return
    with pytest.raises(UserError) as caught:
        check_statement(sql, dialect, server_enforces_read_only=enforced)
    error = caught.value
    assert error.code == code, error.message
    assert error.hint
    assert error.retryable is False


# --- statements that sqlglot does not know ---

UNPARSED = [
    ("postgres", "SELECT FROM WHERE"),
    ("postgres", "SELECT a b c d FROM t"),
    ("duckdb", "SELECT FROM WHERE"),
    ("mysql", "SELECT * FROM t WHERE"),
]


@pytest.mark.parametrize(("dialect", "sql"), UNPARSED)
def test_a_wrong_select_gets_the_servers_own_message_where_the_server_enforces(dialect: str, sql: str) -> None:
    assert check_statement(sql, dialect, server_enforces_read_only=True).kind == "unparsed"
    with pytest.raises(UserError) as caught:
        check_statement(sql, dialect, server_enforces_read_only=False)
    assert caught.value.code == SYNTAX
    assert "cannot be parsed" in caught.value.message


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT FROM WHERE DELETE FROM t",
        "WITH x AS SELECT 1 DELETE FROM t WHERE",
        "SELECT SELECT DROP TABLE t",
        "WITH x AS (SELECT 1 WHERE) , y AS (UPDATE t SET a = 1 RETURNING *) SELECT FROM WHERE",
        "SELECT FROM WHERE pg_read_file('x')",
        "EXPLAIN WITH x AS SELECT 1 DELETE FROM t WHERE",
    ],
)
def test_unparsed_statements_are_searched_for_writes(sql: str) -> None:
    with pytest.raises(UserError) as caught:
        check_statement(sql, "postgres", server_enforces_read_only=True)
    assert caught.value.code == WRITE


def test_the_default_is_the_strict_one() -> None:
    with pytest.raises(UserError) as caught:
        check_statement("SELECT FROM WHERE", "postgres")
    assert caught.value.code == SYNTAX


# --- text and messages ---


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("SELECT 1", "SELECT 1"),
        ("  SELECT 1 ;\n", "SELECT 1"),
        ("-- first\nSELECT 1 /* mid */ + 2; -- last\n", "SELECT 1 /* mid */ + 2"),
        ("/* a */ ; SELECT 'x;' ;; /* b */", "SELECT 'x;'"),
        ("(SELECT 1) -- ;", "(SELECT 1)"),
    ],
)
def test_the_text_can_be_wrapped(sql: str, text: str) -> None:
    assert check_statement(sql, "postgres").text == text


def test_hints_of_the_optimizer_stay_where_they_are() -> None:
    guarded = check_statement("/*+ lost */ SELECT /*+ INDEX(t i) */ 1 /*+ lost */;", "mysql")
    assert guarded.text == "SELECT /*+ INDEX(t i) */ 1"


def test_messages_help() -> None:
    with pytest.raises(UserError, match="begins with SELCT") as caught:
        check_statement("SELCT 1", "postgres")
    assert caught.value.hint == "did you mean SELECT?"
    with pytest.raises(UserError, match="the function pg_read_file") as caught:
        check_statement("SELECT pg_read_file('/etc/passwd')", "postgres")
    assert "/etc/passwd" not in str(caught.value.to_data())
    with pytest.raises(UserError, match="a quote that does not close"):
        check_statement("SELECT 'x", "postgres")
    with pytest.raises(UserError, match=r"cannot be parsed: .* near 'WHERE'"):
        check_statement("SELECT a FROM t WHERE WHERE", "postgres")


def test_limits() -> None:
    long = "SELECT " + " + ".join(["1"] * 20)
    assert check_statement(long, "postgres").kind == "select"
    with pytest.raises(UserError) as caught:
        check_statement("SELECT '" + "x" * MAX_LENGTH + "'", "postgres")
    assert caught.value.code == "read.limit_exceeded"
    for sql in ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "SELECT " + "[" * 5000):
        with pytest.raises(UserError) as caught:
            check_statement(sql, "postgres", server_enforces_read_only=True)
        assert caught.value.code == SYNTAX
    deep = "SELECT " + "(" * 150 + "1" + ")" * 150
    assert check_statement(deep, "postgres", server_enforces_read_only=True).kind in ("select", "unparsed")


def test_a_long_flat_statement_is_no_problem() -> None:
    sql = "SELECT * FROM t WHERE a IN (" + ",".join(map(str, range(5000))) + ")"
    assert check_statement(sql, "mysql").kind == "select"


# --- tokens ---


@pytest.mark.parametrize(
    ("dialect", "sql", "kinds"),
    [
        ("postgres", "SELECT 1.5e3+a$b", ["word", "number", "sign", "word"]),
        ("tsql", "1DELETE", ["number", "word"]),
        ("tsql", "@x #t a@b", ["word", "word", "word"]),
        ("postgres", "$1 $x$y$x$", ["sign", "number", "string"]),
        ("mysql", "/*+ a */ /*! b */ /* c */ # d", ["hint", "executable"]),
        ("snowflake", "a->>b |> c", ["word", "sign", "word", "sign", "word"]),
        ("postgres", "é日本 _x", ["word", "word"]),
    ],
)
def test_tokens(dialect: str, sql: str, kinds: list[str]) -> None:
    assert [token.kind for token in tokenize(sql, dialect)] == kinds


@given(st.text(), st.sampled_from(DIALECTS))
def test_tokens_cover_the_text_in_order(sql: str, dialect: str) -> None:
    try:
        tokens = tokenize(sql, dialect)
    except ValueError:
        return
    end = 0
    for token in tokens:
        assert end <= token.start < token.end <= len(sql)
        end = token.end


@given(st.text(), st.sampled_from(["'{}'", "$q${}$q$", "E'{}'", '"{}"', "/*{}*/"]))
def test_quoted_text_is_never_code(inner: str, form: str) -> None:
    """Whatever stands in a correctly written literal, identifier or comment changes nothing around it."""
    if form.startswith("E"):
        inner = inner.replace("\\", "\\\\").replace("'", "\\'")
    elif form[0] in "'\"":
        inner = inner.replace(form[0], form[0] * 2)
    elif form[0] == "$":
        inner = inner.replace("$q$", "")
    else:
        inner = inner.replace("*", "").replace("/", "")
    sql = "SELECT 1 " + form.format(inner).replace("\0", "") + " FROM t"
    tokens = [t for t in tokenize(sql, "postgres") if t.kind not in ("string", "name")]
    assert [t.value for t in tokens] == ["select", "1", "from", "t"]


PIECES = [
    "SELECT", "1", "FROM", "t", "WITH", "x", "AS", "(", ")", "DELETE", "INSERT", "UPDATE", "INTO", ";", "'", '"', "`", "[",
    "]", "$$", "$a$", "--", "#", "/*", "*/", "/*!", "E'", "q'[", "\\", ",", "FOR", "EXPLAIN", "ANALYZE", "SHOW", "->>",
    "|>", "pg_read_file", ".", "DESCRIBE", "UNION", "VALUES", "'''", "r'", "CASE", "WHEN", "{", "}", ":", "::", "%s", "?",
    "@", "é", "\n", "FOR UPDATE",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join)),
    st.sampled_from(DIALECTS),
    st.booleans(),
)
@example("SELECT 1 WITHIN", "nonsense", True)
@example("((((", "bigquery", True)
@example("EXPLAIN (", "postgres", True)
@example("EXPLAIN FORMAT", "mysql", True)
@example("EXPLAIN query", "sqlite", True)
@example("DESCRIBE", "duckdb", True)
@example("SELECT .", "mysql", False)
def test_it_passes_or_raises_an_agent_error(sql: str, dialect: str, enforced: bool) -> None:
    try:
        guarded = check_statement(sql, dialect, server_enforces_read_only=enforced)
    except AgentError as error:
        assert error.code in (WRITE, MULTI, SYNTAX, "read.limit_exceeded")
    else:
        assert guarded.text
        assert guarded.text in sql
        # What passed passes again: the text is a statement by itself.
        assert check_statement(guarded.text, dialect, server_enforces_read_only=enforced) == guarded


def test_the_corpus_is_large_enough() -> None:
    allowed = sum(len(rows) for kinds in ALLOWED.values() for rows in kinds.values())
    refused = sum(map(len, REFUSED.values())) + len(REFUSED_EVERYWHERE)
    assert allowed + refused >= 400
