"""File connectors: the conformance suite over a folder of CSV files, and everything that only files can do wrong."""

from __future__ import annotations

import base64
import codecs
import csv
import datetime as dt
import gc
import gzip
import io
import json
import os
import stat
import string
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import openpyxl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hfagent.connectors import _files_stage
from hfagent.connectors._files_config import CsvConfig
from hfagent.connectors._files_rows import Refused, exact_batches, fast_batches, fast_possible, plan_text
from hfagent.connectors._files_source import find_files
from hfagent.connectors._files_text import BadRow
from hfagent.connectors.csv import Csv
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, ConfigError
from hfagent.model.report import CheckReport
from hfagent.model.stream import Stream
from hfagent.sdk.connector import BaseConnector, ConnectorContext
from hfagent.sdk.probe import Probe
from hfagent.sdk.reading import Bound, ReadRequest, SchemaRequest, Statement
from tests.connectors.conformance import INJECTIONS, WEIRD_NAMES, ConnectorConformance, drain, read_all
from tests.connectors.source import Source, TypeCase, make

UTC = ZoneInfo("UTC")


# --- the conformance suite ---


class FolderSource(Source):
    """A folder of CSV files."""

    namespace = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = {"path": str(folder)}
        self.connections: list[Any] = []

    def create(self, name: str, columns: Mapping[str, str], rows: Sequence[Sequence[str]] = ()) -> None:
        with (self.folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as handle:
            if columns:
                writer = csv.writer(handle, quoting=csv.QUOTE_ALL if len(columns) == 1 else csv.QUOTE_MINIMAL)
                writer.writerow(columns)
                writer.writerows([[_literal(value) for value in row] for row in rows])

    def create_rows(self, name: str, count: int) -> None:
        filler = "x" * 140
        with (self.folder / f"{name}.csv").open("w", encoding="utf-8") as handle:
            handle.write("id,text\n")
            handle.writelines(f"{number},row {number} {filler}\n" for number in range(1, count + 1))

    def contents(self) -> Any:
        return {path.name: (path.read_bytes(), path.stat().st_mode) for path in sorted(self.folder.iterdir())}

    def running(self, marker: str) -> int:
        return sum(marker in (connection.running or "") for connection in self.connections)


def _literal(text: str) -> str:
    if text == "NULL":
        return ""
    return text[1:-1] if text.startswith("'") and text.endswith("'") and len(text) > 1 else text


_NO_NETWORK = "files lie on the agent's own machine; there is no network to fail"


class TestCsv(ConnectorConformance):
    type_name = "csv"
    unsupported: ClassVar[Mapping[str, str]] = {
        "wrong_host": _NO_NETWORK,
        "closed_port": _NO_NETWORK,
        "black_hole_port": _NO_NETWORK,
        "untrusted_certificate": _NO_NETWORK,
        "wrong_host_name": _NO_NETWORK,
        "slow_server": _NO_NETWORK,
        "garbage_protocol": _NO_NETWORK,
        "too_many_connections": "no server counts connections",
        "kill": _NO_NETWORK,
        "restart": "there is no server to restart",
        "wrong_password": "files need no password",
        "secrets": "files need no secrets",
        "no_grants": "no account reads; see test_unreadable_files",
        "permissions": "no account reads; see test_unreadable_files",
        "missing_database": "there is no database; see test_what_is_not_there",
        "missing_namespace": "a sub-folder is the namespace; see test_output_schemas_name_sub_folders",
        "sessions": "no server holds sessions",
        "pool": "no pool settings: a connection costs no server anything",
    }
    weird_names = tuple(name for name in WEIRD_NAMES if "/" not in name)  # a file name cannot hold a slash
    text_type = "text"
    integer_type = "integer"
    slow_statement = "SELECT count(*) AS {marker} FROM range(200000000000) r(i) WHERE i % 7 = 8"
    endless_statement = "SELECT i AS {marker} FROM range(200000000000) r(i)"
    param_statement = "SELECT CAST(? AS VARCHAR)"
    writes = (
        "INSERT INTO {victim} VALUES (3, 'three')", "UPDATE {victim} SET n = 9", "DELETE FROM {victim}", "TRUNCATE {victim}",
        "DROP VIEW {victim}", "DROP TABLE {victim}", "ALTER TABLE {victim} ADD COLUMN x INTEGER", "CREATE TABLE t AS SELECT 1",
        "CREATE TEMP TABLE t AS SELECT 1", "CREATE VIEW v AS SELECT 1", "CREATE SCHEMA s", "CREATE MACRO m(a) AS a",
        "CREATE SEQUENCE s", "CREATE TYPE ty AS ENUM ('a')", "COPY (SELECT 1) TO '/tmp/hf_pwn.csv'", "COPY {victim} FROM '/etc/passwd'",
        "ATTACH '/tmp/hf_pwn.db'", "ATTACH ':memory:' AS other", "INSTALL httpfs", "LOAD httpfs", "SET threads = 9",
        "SET VARIABLE x = 1", "RESET threads", "PRAGMA enable_profiling", "EXPORT DATABASE '/tmp/hf_pwn'", "IMPORT DATABASE '/tmp/x'",
        "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')", "CALL pragma_version()", "CHECKPOINT", "VACUUM", "BEGIN", "COMMIT",
        "USE memory", "PREPARE p AS SELECT 1", "EXECUTE p", "DETACH memory", "EXPLAIN ANALYZE DELETE FROM {victim}",
        "SELECT 1; DROP VIEW {victim}", "WITH x AS (DELETE FROM {victim} RETURNING *) SELECT * FROM x",
        "MERGE INTO {victim} USING (SELECT 1 AS n) s ON false WHEN NOT MATCHED THEN INSERT VALUES (1, 'x')",
    )  # fmt: skip
    dirt: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "temporary table": ("CREATE TEMP TABLE dirty AS SELECT 1",),
        "table": ("CREATE TABLE dirty AS SELECT 1",),
        "view": ("CREATE VIEW dirty AS SELECT 1",),
        "temporary view": ("CREATE TEMP VIEW dirty AS SELECT 1",),
        "schema": ("CREATE SCHEMA dirty", "USE dirty"),
        "macro": ("CREATE MACRO dirty(a) AS a",),
        "variable": ("SET VARIABLE dirty = 1",),
        "prepared statement": ("PREPARE dirty AS SELECT 1",),
        "transaction": ("BEGIN",),
        "aborted transaction": ("BEGIN TRANSACTION READ ONLY",),
        "attached database": ("ATTACH ':memory:' AS dirty",),
        "type": ("CREATE TYPE dirty AS ENUM ('a')",),
        "sequence": ("CREATE SEQUENCE dirty",),
    }

    @pytest.fixture
    def source(self, tmp_path: Path) -> Iterator[FolderSource]:
        folder = tmp_path / "data"
        folder.mkdir()
        yield FolderSource(folder)

    @pytest.fixture
    def connector(
        self, connector_class: type[BaseConnector[Any]], source: Source, tmp_path: Path
    ) -> BaseConnector[Any]:
        return make(connector_class, source.config, allowed_paths=(tmp_path / "data",), scratch_dir=tmp_path)

    @pytest.fixture
    def connection(self, connector: BaseConnector[Any], source: Source) -> Iterator[Any]:
        assert isinstance(source, FolderSource)
        connection = connector.connect(Deadline(20))
        source.connections.append(connection)
        yield connection
        connector.close(connection)

    def type_cases(self) -> tuple[TypeCase, ...]:
        return (
            TypeCase("integer", "int64", {"0": 0, "-1": -1, "999999999999999": 999999999999999}),
            TypeCase("decimal", "decimal(18,2)", {"1.5": Decimal("1.50"), "-0.01": Decimal("-0.01"), "3": Decimal("3.00")}),
            TypeCase("wide decimal", "decimal(38,9)", {"123456789012345.123456789": Decimal("123456789012345.123456789")}),
            TypeCase("exponent", "float64", {"1e10": 1e10, "-2.5E-3": -0.0025, "1": 1.0}),
            TypeCase("long fraction", "float64", {"0.1234567890123": 0.1234567890123}),
            TypeCase("boolean", "bool", {"true": True, "FALSE": False}),
            TypeCase("date", "date", {"2024-02-29": dt.date(2024, 2, 29), "0001-01-01": dt.date(1, 1, 1), "9999-12-31": dt.date(9999, 12, 31)}),
            TypeCase("timestamp", "timestamp", {
                "2024-01-02 03:04:05.123456": dt.datetime(2024, 1, 2, 3, 4, 5, 123456), "2024-01-02T03:04": dt.datetime(2024, 1, 2, 3, 4),
                "2024-01-02": dt.datetime(2024, 1, 2),
            }),
            TypeCase("timestamptz", "timestamptz", {
                "2024-01-02T03:04:05Z": dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
                "2024-01-02 03:04:05+07:00": dt.datetime(2024, 1, 1, 20, 4, 5, tzinfo=UTC),
            }),
            TypeCase("time", "time", {"23:59:59.999999": dt.time(23, 59, 59, 999999), "00:00:00": dt.time(0)}),
            TypeCase("leading zeros", "string", {"'007'": "007", "'1'": "1"}),
            TypeCase("phone", "string", {"'+491234'": "+491234", "'5551234'": "5551234"}),
            TypeCase("long number", "string", {"'1234567890123456'": "1234567890123456"}),
            TypeCase("text", "string", {"'naïve 表 🦆'": "naïve 表 🦆", "'a\nb'": "a\nb", "' x '": " x ", "'\"q\"'": '"q"'}),
            TypeCase("impossible date", "string", {"'2023-02-29'": "2023-02-29"}),
        )  # fmt: skip

    def _storable(self, name: str) -> bool:
        return "/" not in name

    def make_broken_view(self, source: Source, name: str) -> None:
        assert isinstance(source, FolderSource)
        (source.folder / f"{name}.csv").write_bytes(b"a,b\n1,\x81\x8d\n")  # neither UTF-8 nor windows-1252

    def run_raw(self, connection: Any, statement: str) -> None:
        connection.engine.execute(statement)

    def session_state(self, connection: Any) -> Any:
        engine = connection.engine
        queries = (
            "SELECT schema_name, table_name FROM duckdb_tables()", "SELECT schema_name FROM duckdb_schemas() ORDER BY ALL",
            "SELECT view_name FROM duckdb_views() WHERE NOT internal", "SELECT name FROM duckdb_prepared_statements()",
            "SELECT name FROM duckdb_variables()", "SELECT function_name FROM duckdb_functions() WHERE NOT internal",
            "SELECT database_name FROM duckdb_databases() ORDER BY ALL", "SELECT type_name FROM duckdb_types() WHERE NOT internal",
            "SELECT sequence_name FROM duckdb_sequences()", "SELECT current_schema()",
        )  # fmt: skip
        state: list[Any] = [engine.execute(query).fetchall() for query in queries]
        engine.execute("BEGIN")  # an open transaction would refuse this
        engine.execute("ROLLBACK")
        return state

    def test_many_rows_in_little_memory(self, source: Source, tmp_path: Path) -> None:
        source.create_rows("many", self.many)
        context = {"allowed_paths": [source.config["path"]], "scratch_dir": None}
        task = {"type": "csv", "config": source.config, "namespace": None, "name": "many", "context": context}
        done = subprocess.run(
            [sys.executable, "-m", "tests.connectors.drain"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        assert seen["rows"] == self.many
        assert seen["bytes"] > 100 * self.many
        assert seen["largest"] <= 64 * 1024 * 1024
        assert seen["growth"] < self.memory_cap, seen


# --- what the tests below are written with ---


class Files:
    """A folder, connectors on it, and short ways to read."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch

    def put(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    def connector(self, path: Path | str | None = None, *, schemas: tuple[str, ...] = (), **config: Any) -> Csv:
        context = ConnectorContext(allowed_paths=(self.folder,), scratch_dir=self.scratch, output_schemas=schemas)
        return Csv(CsvConfig.parse({"path": str(path or self.folder)} | config), context)

    def streams(self, path: Path | str | None = None, **config: Any) -> dict[str, Stream]:
        connector = self.connector(path, **config)
        connection = connector.connect(Deadline(20))
        try:
            return {s.id: s for s in connector.read_schema(connection, SchemaRequest())}
        finally:
            connector.close(connection)

    def read(self, path: Path | str, **config: Any) -> tuple[Stream, list[dict[str, Any]]]:
        """The one stream of a file, and its rows. Raises what reading raises."""
        connector = self.connector(path, **config)
        connection = connector.connect(Deadline(20))
        try:
            (stream,) = connector.read_schema(connection, SchemaRequest())
            with connector.read_rows(connection, stream, ReadRequest()) as reader:
                return stream, read_all(reader).to_pylist()
        finally:
            connector.close(connection)

    def rows(self, content: str | bytes, *, name: str = "t.csv", **config: Any) -> list[dict[str, Any]]:
        return self.read(self.put(name, content), **config)[1]

    def sql(self, sql: str, *params: Any, **config: Any) -> list[tuple[Any, ...]]:
        """Run a statement past the guard: what the engine itself allows."""
        connector = self.connector(**config)
        connection = connector.connect(Deadline(20))
        try:
            with connector.open_result(connection, sql, params, Statement(sql, params)) as reader:
                return [tuple(row.values()) for row in read_all(reader).to_pylist()]
        finally:
            connector.close(connection)

    def test(self, path: Path | str | None = None, mode: Any = "standard", **config: Any) -> CheckReport:
        probe = Probe(mode=mode, deadline=Deadline(30))
        self.connector(path, **config).test(probe)
        return probe.report()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "data"
    folder.mkdir()
    return Files(folder, tmp_path / "scratch")


def types_of(stream: Stream) -> dict[str, str]:
    return {column.name: str(column.type) for column in stream.columns}


def stage(report: CheckReport, name: str) -> Any:
    return next(s for s in report.stages if s.stage == name)


def failure(code: str, work: Callable[[], Any]) -> AgentError:
    with pytest.raises(AgentError) as caught:
        work()
    assert caught.value.code == code, caught.value
    return caught.value


# --- encodings ---

_TEXTS = {
    "utf-8": "naïve 表 🦆", "utf-8-sig": "naïve 表 🦆", "utf-16": "naïve 表 🦆", "utf-16-le": "naïve 表 🦆", "utf-16-be": "naïve 表 🦆",
    "utf-32": "naïve 表 🦆", "windows-1252": "naïve – €", "iso-8859-1": "naïve ÿ", "gb18030": "表中文 €", "shift_jis": "京都テスト",
}  # fmt: skip


@pytest.mark.parametrize("encoding", sorted(_TEXTS))
def test_declared_encodings_are_read_exactly(files: Files, encoding: str) -> None:
    text = f"id,name\r\n1,{_TEXTS[encoding]}\r\n2,plain\r\n" * 1
    declared = {"utf-8-sig": "utf-8", "utf-16-be": "utf-16-be", "utf-16-le": "utf-16-le"}.get(encoding, encoding)
    assert files.rows(text.encode(encoding), encoding=declared) == [
        {"id": 1, "name": _TEXTS[encoding]},
        {"id": 2, "name": "plain"},
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_auto_knows_utf8_and_byte_order_marks(files: Files, encoding: str) -> None:
    stream, rows = files.read(files.put("t.csv", f"id,name\n1,{_TEXTS[encoding]}\n".encode(encoding)))
    assert rows == [{"id": 1, "name": _TEXTS[encoding]}]
    assert not stream.warnings


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_seen_and_said(files: Files, encoding: str) -> None:
    stream, rows = files.read(files.put("t.csv", "id,name\n1,plain words\n2,naïve\n".encode(encoding)))
    assert [row["name"] for row in rows] == ["plain words", "naïve"]
    assert "without a byte order mark" in stream.warnings[0]


def test_fallback_is_used_with_a_warning_that_says_where(files: Files) -> None:
    content = b"id,name\n1,plain\n2,na\xefve \x80\n"
    stream, rows = files.read(files.put("t.csv", content))
    assert rows[1]["name"] == "naïve €"
    assert "line 3, byte 20" in stream.warnings[0]
    error = failure("config.invalid", lambda: files.rows(content, name="u.csv", fallback_encoding=""))
    assert "0xef" in error.message
    assert "line 3" in error.message
    assert error.hint is not None


def test_a_late_misfit_is_found(files: Files) -> None:
    """A byte after many megabytes of ASCII decides as well, and splits no character at a block's end."""
    body = b"id,name\n" + b"".join(b"%d,%s\n" % (i, b"x" * 50) for i in range(60_000)) + "é".encode() + b",y\n"
    stream, rows = files.read(files.put("t.csv", body), infer_types=False)
    assert (rows[-1], len(rows)) == ({"id": "é", "name": "y"}, 60_001)
    assert stream.details["encoding"] == "utf-8"
    stream, rows = files.read(files.put("u.csv", body[:-4] + b"\xe9,y\n"), infer_types=False)
    assert stream.details["encoding"] == "cp1252"
    assert rows[-1]["id"].endswith("é")
    assert "line 60002" in stream.warnings[0]


@pytest.mark.parametrize("encoding", ["utf-8", "shift_jis", "gb18030", "utf-16-le", "windows-1252", "ascii"])
def test_nothing_is_ever_replaced(files: Files, encoding: str) -> None:
    bad = {"utf-16-le": b"\x00\xd8,\x00"}.get(encoding, b"\x81\x20\xff")
    content = "id,name\n1,a\n2,".encode(encoding) + bad + "\n".encode(encoding)
    error = failure("config.invalid", lambda: files.rows(content, encoding=encoding))
    assert "line 3" in error.message
    assert error.field == "encoding" if isinstance(error, ConfigError) else False


@pytest.mark.parametrize("cut", range(1, 12))
def test_characters_across_block_ends(files: Files, cut: int) -> None:
    text = "a,b\n" + "x" * (1024 * 1024 - 4 - cut) + "🦆,京\r\n1,2\r\n"
    rows = files.rows(text, infer_types=False, max_field_bytes=2**21)
    assert rows[0]["a"].endswith("x🦆")
    assert rows[0]["b"] == "京"
    assert rows[1] == {"a": "1", "b": "2"}


def test_unknown_encodings_are_refused_in_the_form(files: Files) -> None:
    for name in ("klingon", "rot13", "base64", "hex"):
        assert (
            "encoding"
            in failure("config.invalid", lambda name=name: CsvConfig.parse({"path": "/x", "encoding": name})).message
        )


# --- lines, records, dialects ---


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("comment", ["", "#"])
def test_line_ends(files: Files, end: str, last: bool, comment: str) -> None:
    lines = ["id,text", '1,"two\r\nlines"', "", '2,"x\ry"', "3,z"]
    content = end.join(lines) + (end if last else "")
    expected = [{"id": 1, "text": "two\r\nlines"}, {"id": 2, "text": "x\ry"}, {"id": 3, "text": "z"}]
    assert files.rows(content, comment=comment) == expected


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "^", "~"])
def test_delimiters_are_found(files: Files, delimiter: str) -> None:
    stream, rows = files.read(files.put("t.csv", delimiter.join(["id", "when", "note"]) + "\n" + "".join(
        delimiter.join([str(i), "2024-01-02 10:11:12", '"a, b; c"' if i % 2 else "plain"]) + "\n" for i in range(1, 9)
    )))  # fmt: skip
    assert stream.details["delimiter"] == delimiter
    assert stream.details["delimiter_confidence"] > 0.6
    assert types_of(stream) == {"id": "int64", "when": "timestamp", "note": "string"}
    assert rows[0]["note"] == "a, b; c"


def test_delimiter_of_a_single_column_is_unsure(files: Files) -> None:
    stream, rows = files.read(files.put("t.csv", "name\nAnn\nBob\n"))
    assert rows == [{"name": "Ann"}, {"name": "Bob"}]
    assert stream.details["delimiter_confidence"] < 0.5


def test_the_spreadsheet_hint_line(files: Files) -> None:
    assert files.rows("sep=;\r\na;b\r\n1;2,5\r\n") == [{"a": 1, "b": "2,5"}]


@pytest.mark.parametrize(
    ("content", "header"),
    [
        ("id,name\n1,Ann\n2,Bob\n", True), ("1,Ann\n2,Bob\n3,Cid\n", False), ("Ann,Berlin\nBob,Paris\nAnn,Rome\n", False),
        ("name,city\nAnn,Berlin\nBob,Paris\n", True), ("id,name\n", True), ("1,2\n", False), ("2023,2024\nx,y\n", False),
        ("2024-01-01,5\n2024-01-02,6\n", False), ("day,n\n2024-01-01,5\n", True),
    ],
)  # fmt: skip
def test_header_is_found(files: Files, content: str, header: bool) -> None:
    stream, rows = files.read(files.put("t.csv", content))
    assert stream.details["header"] is header
    assert len(rows) == content.count("\n") - header


def test_header_as_configured(files: Files) -> None:
    assert files.rows("1,2\n3,4\n", header="true") == [{"1": 3, "2": 4}]
    assert files.rows("a,b\n3,4\n", header=False) == [
        {"column_1": "a", "column_2": "b"},
        {"column_1": "3", "column_2": "4"},
    ]


def test_duplicate_and_empty_names(files: Files) -> None:
    stream, rows = files.read(files.put("t.csv", "a,a,,A,a_2, ,column_3\n1,2,3,4,5,6,7\n"), header="true")
    names = list(rows[0])
    assert names[0] == "a"
    assert len({n.lower() for n in names}) == 7
    assert names[4] == "a_2"
    assert list(rows[0].values()) == [1, 2, 3, 4, 5, 6, 7]
    assert any("repeated" in w for w in stream.warnings)


def test_names_of_nul_only(files: Files) -> None:
    assert files.rows("\0,a\0b\n1,2\n", header="true") == [{"column_1": 1, "ab": 2}]


def test_emoji_and_odd_names(files: Files) -> None:
    odd = ["🦆", 'q"q', "select", "a.b", " padded ", "new\nline", "semi;colon", "x" * 300]
    out = io.StringIO()
    csv.writer(out).writerows([odd, range(8)])
    assert files.rows(out.getvalue(), header="true") == [dict(zip(odd, range(8), strict=True))]


def test_empty_and_header_only_files(files: Files) -> None:
    for name, content in {
        "empty.csv": b"",
        "blank.csv": b"\n\r\n\n",
        "mark.csv": codecs.BOM_UTF8,
        "empty.jsonl": b"\n",
    }.items():
        path = files.put(name, content)
        (stream,) = files.streams(path).values()
        assert stream.columns == ()
        assert any("is empty" in w for w in stream.warnings)
        assert "no columns" in failure("column.not_found", lambda path=path: files.read(path)).message
    stream, rows = files.read(files.put("h.csv", codecs.BOM_UTF8 + b"id,name"))
    assert ([c.name for c in stream.columns], rows) == (["id", "name"], [])


def test_skip_comments_and_footer(files: Files) -> None:
    content = 'Report\n"of June\nid;x\n# note; "with quote\n1;a\n2;"b\n# no comment"\n#3;c\nTotal;2\nEnd;\n'
    config = {"skip_rows": 2, "comment": "#", "footer_rows": 2, "delimiter": ";", "header": "true"}
    assert files.rows(content, **config) == [{"id": 1, "x": "a"}, {"id": 2, "x": "b\n# no comment"}]


def test_escapes_and_quotes(files: Files) -> None:
    assert files.rows('a,b\n"x\\"y",p\\,q\n', escapechar="\\") == [{"a": 'x"y', "b": "p,q"}]
    assert files.rows("a;b\n'x;''y';2\n", quotechar="'") == [{"a": "x;'y", "b": 2}]
    assert files.rows('a;b\n5" pipe;"2\n', quotechar="", delimiter=";") == [{"a": '5" pipe', "b": '"2'}]


def test_nul_bytes_are_data(files: Files) -> None:
    assert files.rows(b"a,b\nx\0y,1\n", name="fast.csv") == [{"a": "x\0y", "b": 1}]
    assert files.rows(b"a,b\nx\0y,1\n", name="exact.csv", comment="#") == [{"a": "x\0y", "b": 1}]


def test_null_values(files: Files) -> None:
    content = 'a,b,c\nNULL,,"\\N"\n1,"",x\nN/A,2, \n'
    assert files.rows(content) == [
        {"a": None, "b": None, "c": None},
        {"a": 1, "b": None, "c": "x"},
        {"a": None, "b": 2, "c": " "},
    ]
    exact = files.rows(content, null_values=[])
    assert [list(row.values()) for row in exact] == [["NULL", "", "\\N"], ["1", "", "x"], ["N/A", "2", " "]]


def test_four_thousand_columns(files: Files) -> None:
    width = 4_096
    content = (
        ",".join(f"c{i}" for i in range(width)) + "\n" + "\n".join(",".join([str(k)] * width) for k in range(3)) + "\n"
    )
    stream, rows = files.read(files.put("wide.csv", content))
    assert len(stream.columns) == width
    assert {str(c.type) for c in stream.columns} == {"int64"}
    assert list(rows[2].values()) == [2] * width
    too_wide = ",".join(f"c{i}" for i in range(width + 1)) + "\n"
    assert "max_columns" in failure("read.limit_exceeded", lambda: files.rows(too_wide, name="wider.csv")).message


# --- bad rows ---

_RAGGED = 'id,name,city\n1,Ann,Rome\n2,"Bob\nBill",Oslo\n3,Cid\n4,Dan,Bonn,x\n5,Eve,Nice,,\n6,Flo,Linz\n'


def test_bad_rows_are_kept_apart_with_their_lines(files: Files) -> None:
    path = files.put("t.csv", _RAGGED)
    stream, rows = files.read(path)
    assert [row["id"] for row in rows] == [1, 2, 5, 6]
    assert stream.details["bad_rows"] == 2
    assert stream.details["first_bad_rows"] == [
        {"line": 5, "reason": "has 2 fields, expected 3"}, {"line": 6, "reason": "has 4 fields, expected 3"},
    ]  # fmt: skip
    assert "2 bad rows kept apart: line 5 has 2 fields" in stream.warnings[0]
    assert files.sql("SELECT line, text FROM t__bad_rows ORDER BY line") == [(5, "3,Cid"), (6, "4,Dan,Bonn,x")]


def test_bad_rows_are_skipped_or_refused(files: Files) -> None:
    path = files.put("t.csv", _RAGGED)
    stream, rows = files.read(path, on_bad_row="skip")
    assert len(rows) == 4
    assert "2 bad rows skipped" in stream.warnings[0]
    assert files.sql("SELECT count(*) FROM t__bad_rows", on_bad_row="skip") == [(0,)]
    error = failure("read.data_invalid", lambda: files.read(path, on_bad_row="error"))
    assert "t.csv, line 5" in error.message
    assert "on_bad_row" in (error.hint or "")


def test_descriptions_carry_no_row_text(files: Files) -> None:
    files.put("t.csv", _RAGGED.replace("3,Cid", "3,Canary-4711"))
    assert "Canary-4711" not in next(iter(files.streams().values())).model_dump_json()
    assert "Canary-4711" not in files.test().model_dump_json()


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_quote_that_never_closes_costs_one_row(files: Files, where: str) -> None:
    rows = [f"{i},name {i},city" for i in range(1, 50)]
    at = {"first": 0, "middle": 20, "last": 48}[where]
    rows[at] = f'{at + 1},"open,city'
    stream, read = files.read(files.put("t.csv", "id,name,city\n" + "\n".join(rows) + "\n"))
    assert [row["id"] for row in read] == [i for i in range(1, 50) if i != at + 1]
    assert stream.details["first_bad_rows"] == [{"line": at + 2, "reason": "a quoted field is not closed"}]


def test_huge_fields_are_bad_rows(files: Files) -> None:
    content = f"id,text\n1,short\n2,{'é' * 1500}\n3,{'x' * 2000}\n4,end\n"
    stream, rows = files.read(files.put("t.csv", content), max_field_bytes=2000)
    assert [row["id"] for row in rows] == [1, 3, 4]
    assert stream.details["first_bad_rows"] == [
        {"line": 3, "reason": "the value of text is longer than max_field_bytes"}
    ]


def test_a_trailing_delimiter_is_no_column(files: Files) -> None:
    assert files.rows("a,b\n1,2,\n3,4,\n", header="true") == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


# --- types ---


def test_what_must_stay_text(files: Files) -> None:
    stream, rows = files.read(files.put("t.csv", (
        "plz,phone,card,version,mixed,one\n01067,+49351,1234567890123456,1.2.3,1,1\n80331,0351,12,4.5.6,x,2\n"
    )))  # fmt: skip
    assert types_of(stream) == dict.fromkeys(["plz", "phone", "card", "version", "mixed"], "string") | {"one": "int64"}
    assert rows[0]["plz"] == "01067"


def test_one_late_value_decides(files: Files) -> None:
    """The sample suggests numbers and dates; a value far behind it does not fit."""
    lines = [f"{i},{i}.5,2024-01-02,true,{i}" for i in range(30_000)]
    lines[25_000] = "x25,x,2024-13-02,maybe,2500000000000000"
    stream, rows = files.read(files.put("t.csv", "a,b,c,d,e\n" + "\n".join(lines) + "\n"))
    assert set(types_of(stream).values()) == {"string"}
    assert list(rows[25_000].values()) == lines[25_000].split(",")
    assert rows[3]["b"] == "3.5"


def test_widening_instead_of_text(files: Files) -> None:
    lines = [f"{i},2024-01-02,{i}.25" for i in range(3_000)]
    lines[2_900] = "2900.125,2024-01-02 10:11:12,2.9e3"
    stream, rows = files.read(files.put("t.csv", "a,b,c\n" + "\n".join(lines) + "\n"))
    assert types_of(stream) == {"a": "decimal(18,4)", "b": "timestamp", "c": "float64"}
    assert rows[2_900] == {"a": Decimal("2900.1250"), "b": dt.datetime(2024, 1, 2, 10, 11, 12), "c": 2900.0}


def test_a_column_that_starts_empty(files: Files) -> None:
    content = "a,b,c\n" + ",,x\n" * 2_000 + "7,2024-01-02,x\n"
    assert types_of(files.read(files.put("t.csv", content))[0]) == {"a": "int64", "b": "date", "c": "string"}
    assert types_of(files.read(files.put("u.csv", "a,b\n,\n,\n"), header="true")[0]) == {"a": "string", "b": "string"}


def test_order_of_rows_is_kept(files: Files) -> None:
    """Also with several threads, typed columns and null texts, over many row groups."""
    count = 400_000
    content = "n,t\n" + "".join(f"{i},v{i % 7}\n" for i in range(count))
    stream, _ = files.read(files.put("first.csv", "n\n1\n"))
    path = files.put("t.csv", content)
    connector = files.connector(path, threads=2)
    connection = connector.connect(Deadline(20))
    (stream,) = connector.read_schema(connection, SchemaRequest())
    with connector.read_rows(connection, stream, ReadRequest(columns=("n",))) as reader:
        assert read_all(reader)["n"].to_pylist() == list(range(count))
    connector.close(connection)


@pytest.mark.parametrize(
    ("values", "config", "type_", "first"),
    [
        (["31/01/2024", "02/03/2024"], {}, "date", dt.date(2024, 1, 31)),
        (["01/31/2024", "02/03/2024"], {}, "date", dt.date(2024, 1, 31)),
        (["02/03/2024", "04/05/2024"], {}, "string", "02/03/2024"),
        (["31/01/2024", "01/31/2024"], {}, "string", "31/01/2024"),
        (["02/03/2024", "04/05/2024"], {"day_first": True}, "date", dt.date(2024, 3, 2)),
        (["02/03/2024", "04/05/2024"], {"day_first": "false"}, "date", dt.date(2024, 2, 3)),
        (["02/03/2024", "31/05/2024"], {"day_first": "false"}, "string", "02/03/2024"),
        (["02.03.2024", "4.5.2024"], {}, "date", dt.date(2024, 3, 2)),
        (["31-01-2024 10:20", "02-03-2024 11:30:40"], {}, "timestamp", dt.datetime(2024, 1, 31, 10, 20)),
        (["2024/01/31", "2024/02/01"], {}, "date", dt.date(2024, 1, 31)),
        (["20240131", "20240201"], {"date_format": "%Y%m%d"}, "date", dt.date(2024, 1, 31)),
        (["20240131", "x"], {"date_format": "%Y%m%d"}, "string", "20240131"),
        (["1.234,50", "-2,5"], {"decimal": ",", "thousands": "."}, "decimal(18,2)", Decimal("1234.50")),
        (["1,234", "999"], {"thousands": ","}, "int64", 1234),
        (["1'234.5", "1'000'000"], {"thousands": "'"}, "decimal(18,2)", Decimal("1234.50")),
        (["1,23", "999"], {"thousands": ","}, "string", "1,23"),
        (["1,5", "2"], {}, "string", "1,5"),
        (["2024-01-02 03:04:05"], {"timezone": "Asia/Jakarta"}, "timestamptz", dt.datetime(2024, 1, 1, 20, 4, 5, tzinfo=UTC)),
        (["2024-01-02T03:04:05+0700"], {}, "timestamptz", dt.datetime(2024, 1, 1, 20, 4, 5, tzinfo=UTC)),
        ([" 12", "13 "], {}, "int64", 12), (["1e999", "1e5"], {}, "string", "1e999"), (["-", "-"], {}, "string", "-"),
        (["", "0.5", ".25"], {}, "decimal(18,2)", None), (["36:00:00", "01:00:00"], {}, "string", "36:00:00"),
    ],
)  # fmt: skip
def test_types_by_what_the_column_proves(
    files: Files, values: list[str], config: dict[str, Any], type_: str, first: Any
) -> None:
    content = "id;v\n" + "".join(f"{i};{v}\n" for i, v in enumerate(values))
    stream, rows = files.read(files.put("t.csv", content), delimiter=";", header="true", **config)
    assert types_of(stream)["v"] == type_
    assert rows[0]["v"] == first
    ambiguous = values == ["02/03/2024", "04/05/2024"] and not config
    assert any("day or month first" in w for w in stream.warnings) is ambiguous


def test_types_can_be_switched_off(files: Files) -> None:
    stream, rows = files.read(files.put("t.csv", "a,b\n1,2024-01-01\n,x\n"), infer_types=False)
    assert set(types_of(stream).values()) == {"string"}
    assert rows == [{"a": "1", "b": "2024-01-01"}, {"a": None, "b": "x"}]


# --- the two readers, and random tables ---

_ALPHABET = st.characters(exclude_categories=["Cs"])
_CELLS = st.one_of(
    st.text(_ALPHABET, max_size=12), st.text(st.sampled_from(list(" ,;|\t\"'\\\r\n#ab1.-")), max_size=10),
    st.integers(-(10**18), 10**18).map(str), st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.dates().map(str), st.sampled_from(["", "NULL", "N/A", "007", "+1", "true", "1e5"]),
)  # fmt: skip


@st.composite
def _tables(draw: st.DrawFn) -> tuple[list[list[str]], dict[str, Any], dict[str, Any]]:
    width = draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(_CELLS, min_size=width, max_size=width), min_size=1, max_size=25))
    delimiter = draw(st.sampled_from([",", ";", "\t", "|", "~", " "]))
    quote = draw(st.sampled_from(['"', "'"]))
    style = draw(st.sampled_from(["minimal", "all", "nonnumeric", "escaped"]))
    ends = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    how = {
        "minimal": csv.QUOTE_MINIMAL,
        "all": csv.QUOTE_ALL,
        "nonnumeric": csv.QUOTE_NONNUMERIC,
        "escaped": csv.QUOTE_ALL,
    }[style]
    writing = {"delimiter": delimiter, "quotechar": quote, "lineterminator": ends, "quoting": how}
    config: dict[str, Any] = {"delimiter": delimiter, "quotechar": quote, "header": "false", "null_values": []}
    if style == "escaped":
        writing |= {"doublequote": False, "escapechar": "\\"}
        config["escapechar"] = "\\"
    assume(how == csv.QUOTE_ALL or not _ambiguous(rows, ends))
    return rows, writing, config


def _ambiguous(rows: list[list[str]], ends: str) -> bool:
    """What Python's writer leaves unquoted and no reader can know: the other kinds of line end, a line that is blank."""
    return any({"\r", "\n"} & set("".join(row)) or not "".join(row).strip() for row in rows)


def _written(rows: list[list[str]], writing: dict[str, Any]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, **writing).writerows(rows)
    return out.getvalue()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_tables(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"]))
def test_random_tables_come_back_exactly_from_both_readers(
    files: Files, table: tuple[list[list[str]], dict[str, Any], dict[str, Any]], encoding: str
) -> None:
    rows, writing, options = table
    path = files.put("random.csv", _written(rows, writing).encode(encoding))
    declared = "auto" if encoding.startswith("utf") else encoding
    config = CsvConfig.parse({"path": str(path), "encoding": declared} | options)
    context = ConnectorContext(allowed_paths=(files.folder,))
    (file,) = find_files(config, context)
    plan = plan_text(file, config, context)
    assert len(plan.names) == len(rows[0])
    schema = pa.schema([(f"c{i}", pa.string()) for i in range(len(plan.names))])
    bad: list[BadRow] = []
    common: dict[str, Any] = {"schema": schema, "still_wanted": lambda: None}
    exact = [
        list(r.values())
        for b in exact_batches(file, plan, config, context, bad=bad.append, **common)
        for r in b.to_pylist()
    ]
    assert (exact, bad) == (rows, [])
    if fast_possible(plan, config):
        try:
            fast = [
                list(r.values()) for b in fast_batches(file, plan, config, context, **common) for r in b.to_pylist()
            ]
        except Refused:
            return  # the exact reader then has the last word
        assert fast == rows


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_tables())
def test_random_tables_come_back_exactly_as_text(
    files: Files, table: tuple[list[list[str]], dict[str, Any], dict[str, Any]]
) -> None:
    rows, writing, options = table
    read = files.rows(_written(rows, writing), infer_types=False, **options)
    assert [list(row.values()) for row in read] == rows


_TYPED: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(), "int64": st.integers(-(10**15) + 1, 10**15 - 1), "date": st.dates(),
    "timestamp": st.datetimes(), "time": st.times(),
    "decimal(18,2)": st.integers(-(10**12), 10**12).map(lambda n: Decimal(n).scaleb(-2)),
    "string": st.text(_ALPHABET, min_size=1, max_size=8).map(lambda s: "t" + s),
}  # fmt: skip


def _form(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dt.datetime):
        return value.isoformat(" ", "microseconds")
    if isinstance(value, dt.time):
        return value.isoformat("microseconds")
    return format(value, "f") if isinstance(value, Decimal) else str(value)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_typed_tables_come_back_exactly(files: Files, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(_TYPED)), min_size=1, max_size=6))
    rows = data.draw(st.lists(st.tuples(*(st.none() | _TYPED[k] for k in kinds)), min_size=1, max_size=20))
    first = tuple({"decimal(18,2)": Decimal("0.25"), "string": "text", "bool": True, "int64": 7}.get(k) for k in kinds)
    rows = [first, *rows]
    text = [[f"c{i}" for i in range(len(kinds))], *(["" if v is None else _form(v) for v in row] for row in rows)]
    content = _written(text, {"quoting": csv.QUOTE_ALL})
    stream, read = files.read(files.put("typed.csv", content), header="true", delimiter=",")
    expected = [k if any(row[i] is not None for row in rows) else "string" for i, k in enumerate(kinds)]
    assert [str(c.type) for c in stream.columns] == expected
    assert [tuple(row.values()) for row in read] == rows


# --- JSON Lines ---


def test_jsonl_union_nested_and_exact_numbers(files: Files) -> None:
    content = (
        '{"id":1,"big":9007199254740993,"money":0.10,"on":true,"at":"2024-01-02T03:04:05Z","code":"007"}\r\n\r\n'
        '{"id":2,"tags":["a",{"x":1.50}],"money":12,"day":"2024-01-02","mix":1,"id2":null}\n'
        '{"id":3,"mix":"x","tags":{},"wide":123456789012345678901,"real":1.5e3,"code":"1"}'
    )
    stream, rows = files.read(files.put("t.jsonl", content))
    assert types_of(stream) == {
        "id": "int64", "big": "int64", "money": "decimal(18,2)", "on": "bool", "at": "timestamptz", "code": "string",
        "tags": "json", "day": "date", "mix": "string", "id2": "string", "wide": "decimal(38,0)", "real": "float64",
    }  # fmt: skip
    assert rows[0]["big"] == 9007199254740993
    assert rows[0]["at"] == dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert rows[1]["tags"] == '["a",{"x":1.50}]'
    assert [row["mix"] for row in rows] == [None, "1", "x"]
    assert rows[2]["wide"] == Decimal("123456789012345678901")


def test_jsonl_bad_lines(files: Files) -> None:
    content = '{"a":1}\n{"a":\n[1]\n"x"\n{"a":NaN}\n' + '{"a":' + "[" * 100_000 + "\n" + '{"a":"\\ud83d"}\n{"a":2}\n'
    stream, rows = files.read(files.put("t.jsonl", content))
    assert [row["a"] for row in rows] == ["1", "\\ud83d", "2"]
    assert [b["line"] for b in stream.details["first_bad_rows"]] == [2, 3, 4, 5, 6]
    failure("read.data_invalid", lambda: files.read(files.folder / "t.jsonl", on_bad_row="error"))


def test_jsonl_of_thousands_of_keys(files: Files) -> None:
    content = "\n".join(json.dumps({f"k{row * 40 + i}": i for i in range(41)}) for row in range(50))
    stream, rows = files.read(files.put("t.jsonl", content))
    assert len(stream.columns) == 2_001
    assert {str(c.type) for c in stream.columns} == {"int64"}
    assert [sum(v is not None for v in row.values()) for row in rows] == [41] * 50


def test_jsonl_limits_and_columns_that_come_late(files: Files) -> None:
    lines = [json.dumps({"a": i}) for i in range(25_000)] + ['{"late":"x","A":5}']
    stream, rows = files.read(files.put("t.jsonl", "\n".join(lines)))
    assert [c.name for c in stream.columns] == ["a", "late", "A_2"]
    assert rows[-1] == {"a": None, "late": "x", "A_2": 5}
    keys = "\n".join(json.dumps({f"k{i}": 1}) for i in range(30))
    assert "keys" in failure("read.limit_exceeded", lambda: files.rows(keys, name="k.jsonl", max_columns=20)).message
    long = '{"a":"' + "x" * 5_000 + '"}\n{"a":"y"}\n'
    stream, rows = files.read(files.put("l.jsonl", long), max_field_bytes=1_000)
    assert rows == [{"a": "y"}]
    assert stream.details["bad_rows"] == 1


@given(
    st.lists(
        st.dictionaries(st.text(_ALPHABET, min_size=1, max_size=5), st.integers() | st.text(_ALPHABET), max_size=4),
        min_size=1,
        max_size=10,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_jsonl_comes_back_as_text(files: Files, objects: list[dict[str, Any]]) -> None:
    content = "\n".join(json.dumps(o, ensure_ascii=False) for o in objects)
    path = files.put("r.jsonl", content)
    keys = list(dict.fromkeys(k for o in objects for k in o))
    if not keys:
        return
    stream, rows = files.read(path, infer_types=False)
    assert len(stream.columns) == len(keys)
    expected = [[None if k not in o else str(o[k]) for k in keys] for o in objects]
    assert [list(row.values()) for row in rows] == expected


# --- workbooks ---

_OLD_XLS = zlib.decompress(
    base64.b85decode(
        "c-rk)O=wd=5dQYPr1`PUPfdkZD4}50+DfYjy|hoI+EZ%vq7^~gCI@LrB=n#jv|4i%1W$?xg?jK(_2LhDQ1IYEsOUiugj7$`lc3<C&2whndzwat"
        "2DH$!U)b5%nVs3m&hEZ_@AYiFICZ~i4i)HuiIN>cO_@wl33-heNN?NBdUcSBt+A>Q3Q{6#{CHCLD!@79e9ytaJ>PSpz(*>_aT@)(Y$mya*e5Xz"
        "DUP9=sKQN>M9?Tv)e9XFx?bpA>G@RX9+6xT+D(0n>KJCN{<hujDn4qoh%N&5`%rA&i=+z;c*(2y!d2z;^<!`T)X>-}Q#AW(F%3#+UnZN$b32OL"
        "2m^zJj#R3nx3`D{C3_m*>?H8j+ttsKTE4P!1(JVXDi8cc9;75z%C8wdU;_3@*(3$5L&C=z69>oA3)n8Fa?m-wvsA{Zq^ZY9E}bFvvk7!|?jr6C"
        "ZGf&FVLs#KOo%Nx6Y6BI)Dlf2DtugaOpJUl-1+h*H9TOQ5Xpp$<~%Jnad5D4kuAtL0w**EYudzOo6t+*b))c2LKC!{scs!;aG3*>(&w^hTWOq~"
        "g16S@GJXs3h518|nhT$-t;Emt&7DikytAgzLQk(W+4FA_?W$efxXyTNd9`v+mJdQ3e>-J@M$C=fb{~mREb_i0#DzL7o*nhGWw>+Yv`lK5t}j*L"
        ">%0*bSzP9v`z!IqbLHp^ityG8!_~1bzw68RgD*pT&6|!dCu^Q(L##Q$Jw`nqa927xe<2JF4Gj$q4Gj&AwFf2lQ|C_3w@kl#-w(Lobrz|V^k<Sa"
        "i^Is#Z=7B#_ajSn9%rjsKO5jzo-egb8}EA|;|PtO$0&v+j?t>uFTJm+^8d4J!`Q#uLe-96swU3=JpK;{NY(%"
    )
)


def workbook(path: Path, **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_workbook_types(files: Files) -> None:
    path = workbook(files.folder / "b.xlsx", S=[
        ["n", "f", "t", "b", "d", "m", "clock", "zip", "mixed", "long"],
        [1, 1.5, "x", True, dt.date(2024, 2, 29), dt.datetime(2024, 1, 2, 3, 4, 5), dt.time(10, 20, 30), "007", 1, dt.timedelta(hours=30)],
        [None] * 10,
        [-2, 0.1, "y 🦆", False, dt.date(1950, 1, 1), dt.datetime(2024, 1, 2, 3, 4, 6), None, "8", "z", None],
    ])  # fmt: skip
    stream, rows = files.read(path)
    assert stream.id == "b"
    assert types_of(stream) == {
        "n": "int64", "f": "float64", "t": "string", "b": "bool", "d": "date", "m": "timestamp", "clock": "time", "zip": "string",
        "mixed": "string", "long": "string",
    }  # fmt: skip
    assert list(rows[0].values()) == [
        1, 1.5, "x", True, dt.date(2024, 2, 29), dt.datetime(2024, 1, 2, 3, 4, 5), dt.time(10, 20, 30), "007", "1", "30:00:00",
    ]  # fmt: skip
    assert rows[1]["f"] == 0.1
    assert len(rows) == 2


def test_old_and_open_document_workbooks(files: Files) -> None:
    _stream, rows = files.read(files.put("old.xls", _OLD_XLS))
    assert rows == [
        {"n": 1.0, "t": "é", "d": dt.date(2024, 2, 29), "code": "007"}, {"n": 2.5, "t": "x", "d": None, "code": "12"},
    ]  # fmt: skip
    office = "urn:oasis:names:tc:opendocument:xmlns:"
    content = (
        f'<?xml version="1.0"?><office:document-content xmlns:office="{office}office:1.0" xmlns:table="{office}table:1.0" '
        f'xmlns:text="{office}text:1.0"><office:body><office:spreadsheet><table:table table:name="T">'
        '<table:table-row><table:table-cell office:value-type="string"><text:p>a</text:p></table:table-cell></table:table-row>'
        '<table:table-row><table:table-cell office:value-type="float" office:value="7"/></table:table-row>'
        "</table:table></office:spreadsheet></office:body></office:document-content>"
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr("META-INF/manifest.xml", '<?xml version="1.0"?><manifest/>')
        archive.writestr("content.xml", content)
    assert files.read(files.put("o.ods", out.getvalue()))[1] == [{"a": 7}]


def test_the_1904_epoch(files: Files) -> None:
    from openpyxl.utils.datetime import CALENDAR_MAC_1904

    book = openpyxl.Workbook()
    book.epoch = CALENDAR_MAC_1904
    book.active.append(["d"])
    book.active.append([dt.datetime(2024, 1, 2)])
    book.save(files.folder / "mac.xlsx")
    assert files.read(files.folder / "mac.xlsx")[1] == [{"d": dt.date(2024, 1, 2)}]


def test_sheets_are_streams_and_hidden_ones_are_not(files: Files) -> None:
    path = workbook(files.folder / "b.xlsx", One=[["a"], [1]], Two=[["b"], [2]], Secret=[["c"], [3]], Empty=[])
    book = openpyxl.load_workbook(path)
    book["Secret"].sheet_state = "hidden"
    book.save(path)
    assert sorted(files.streams()) == ["b__Empty", "b__One", "b__Two"]
    assert files.sql('SELECT * FROM b__One, "b__Two"') == [(1, 2)]
    assert files.read(path, sheet="Secret")[1] == [{"c": 3}]
    assert files.streams(path, sheet="none") == {}


def test_range_header_row_and_footer(files: Files) -> None:
    path = workbook(files.folder / "b.xlsx", S=[
        ["Report of June"], [], [None, "x", "id", "name", "z"], [None, 0, 1, "Ann", 9], [None, 0, 2, "Bob", 9], [None, 0, "Total", 2, 9],
    ])  # fmt: skip
    assert files.read(path, range="C3:D5")[1] == [{"id": 1, "name": "Ann"}, {"id": 2, "name": "Bob"}]
    assert files.read(path, range="C:D", header_row=3, footer_rows=1)[1] == [
        {"id": 1, "name": "Ann"},
        {"id": 2, "name": "Bob"},
    ]
    shifted = workbook(files.folder / "c.xlsx", S=[[], [None, None, "id", "v"], [None, None, 1, 2]])
    assert files.read(shifted)[1] == [{"id": 1, "v": 2}]
    assert files.read(shifted, range="D2:D9")[1] == [{"v": 2}]


def test_errors_formulas_and_merged_cells_are_said(files: Files) -> None:
    path = workbook(files.folder / "b.xlsx", S=[["a", "b", "c"], ["#DIV/0!", "=1+1", "m"], ["x", 5, None]])
    book = openpyxl.load_workbook(path)
    book["S"]["A2"].data_type = "e"
    book["S"].merge_cells("C2:C3")
    book.save(path)
    stream, rows = files.read(path)
    assert rows == [{"a": None, "b": None, "c": "m"}, {"a": "x", "b": 5, "c": None}]
    text = "\n".join(stream.warnings)
    assert "1 cells hold an error" in text
    assert "1 formulas have no stored result" in text
    assert "1 merged ranges" in text


def test_formulas_give_their_stored_results(files: Files) -> None:
    path = workbook(files.folder / "b.xlsx", S=[["a"], ["=6*7"]])
    content = rewrite(
        path,
        "xl/worksheets/sheet1.xml",
        lambda xml: xml.replace(b"<v />", b"<v>42</v>").replace(b"<v></v>", b"<v>42</v>"),
    )
    stream, rows = files.read(files.put("c.xlsx", content))
    assert rows == [{"a": 42}]
    assert not stream.warnings


def rewrite(path: Path, member: str, change: Callable[[bytes], bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, change(data) if name == member else data)
    return out.getvalue()


def test_encrypted_and_damaged_workbooks(files: Files) -> None:
    files.put(
        "secret.xlsx",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 2000 + "EncryptedPackage".encode("utf-16-le") + b"\0" * 600,
    )
    files.put("text.xlsx", "not a workbook")
    files.put("cut.xlsx", workbook(files.folder / "good.xlsx", S=[["a"], [1]]).read_bytes()[:-200])
    files.put("ole.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 2000)
    streams = files.streams()
    assert streams["good"].readable == "yes"
    assert {name for name, s in streams.items() if s.readable == "no"} == {"secret", "text", "cut", "ole"}
    assert "password" in streams["secret"].warnings[0]
    failure("auth.method_unsupported", lambda: files.read(files.folder / "secret.xlsx"))
    for name in ("text.xlsx", "cut.xlsx", "ole.xls"):
        failure("config.invalid", lambda name=name: files.read(files.folder / name))


def test_workbook_bombs(files: Files) -> None:
    """Sizes are what unpacking yields, whatever the archive's directory claims; far away cells do not eat the machine."""
    good = workbook(files.folder / "good.xlsx", S=[["a"], [1]])
    bomb = files.put("bomb.xlsx", rewrite(good, "xl/worksheets/sheet1.xml", lambda xml: xml + b" " * 30_000_000))
    error = failure("read.limit_exceeded", lambda: files.read(bomb, max_unzipped_bytes=10_000_000))
    assert "max_unzipped_bytes" in error.message
    liar = bytearray(bomb.read_bytes())
    with zipfile.ZipFile(bomb) as archive:
        size = struct.pack("<I", archive.getinfo("xl/worksheets/sheet1.xml").file_size)
    assert size in liar
    files.put("liar.xlsx", bytes(liar).replace(size, struct.pack("<I", 1000)))
    failure("read.limit_exceeded", lambda: files.read(files.folder / "liar.xlsx", max_unzipped_bytes=10_000_000))
    far = rewrite(good, "xl/worksheets/sheet1.xml", lambda xml: xml.replace(
        b"</sheetData>", b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
    ))  # fmt: skip
    failure("read.limit_exceeded", lambda: files.read(files.put("far.xlsx", far)))


def test_large_sheets_come_in_order(files: Files) -> None:
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("S")
    sheet.append(["id", "t"])
    for number in range(9_000):
        sheet.append([number, f"t{number}"])
    book.save(files.folder / "big.xlsx")
    rows = files.read(files.folder / "big.xlsx")[1]
    assert [row["id"] for row in rows] == list(range(9_000))


# --- finding files ---


def test_names_namespaces_and_globs(files: Files) -> None:
    for name in (
        "orders.csv",
        "orders.tsv",
        "a.b.csv",
        "sub/deep/x.csv",
        "sub/y.csv",
        ".hidden.csv",
        "~$lock.xlsx",
        "notes.md",
    ):
        files.put(name, "a,b\n1,2\n".replace(",", "\t" if name.endswith("tsv") else ","))
    files.put("packed.csv.gz", gzip.compress(b"a,b\n1,2\n"))
    assert sorted(files.streams()) == ['"a.b"', '"orders.csv"', '"orders.tsv"', "packed"]
    assert sorted(files.streams(recursive=True)) == [
        '"a.b"',
        '"orders.csv"',
        '"orders.tsv"',
        "packed",
        "sub.y",
        "sub/deep.x",
    ]
    assert sorted(files.streams(glob="*.tsv")) == ["orders"]
    assert sorted(files.streams(glob="notes.*")) == ['"notes.md"']  # an unknown ending is part of the name
    assert sorted(files.streams(str(files.folder / "or*.csv"))) == ["orders"]
    assert sorted(files.streams(str(files.folder / "**" / "*.csv"))) == ['"a.b"', "orders", "sub.y", "sub/deep.x"]
    assert files.sql('SELECT x.a FROM "sub/deep".x, sub.y', recursive=True) == [(1,)]
    error = failure("read.limit_exceeded", lambda: files.streams(max_files=2))
    assert "max_files" in f"{error.message} {error.hint}"


def test_output_schemas_name_sub_folders(files: Files) -> None:
    files.put("root.csv", "a\n1\n")
    files.put("sub/y.csv", "a\n1\n")

    def names(*schemas: str) -> list[str]:
        connector = files.connector(schemas=schemas, recursive=True)
        connection = connector.connect(Deadline(5))
        found = [s.id for s in connector.read_schema(connection, SchemaRequest())]
        connector.close(connection)
        return found

    assert names() == ["root", "sub.y"]
    assert names("sub") == ["sub.y"]
    assert names("main") == ["root"]
    probe = Probe()
    files.connector(schemas=("nope",), recursive=True).test(probe)
    report = probe.report()
    assert report.error is not None
    assert (report.error.stage, report.error.code) == ("namespace", "namespace.not_found")


def test_what_is_not_there(files: Files) -> None:
    error = failure("model.not_found", lambda: files.streams(files.folder / "no.csv"))
    assert "no.csv" in error.message
    failure("namespace.not_found", lambda: files.streams(str(files.folder / "nodir" / "*.csv")))
    report = files.test(files.folder / "no.csv")
    assert report.error is not None
    assert (report.error.stage, report.error.code) == ("namespace", "model.not_found")
    assert not files.test(files.folder / "no.csv", "quick").ok
    assert stage(files.test(), "namespace").code == "model.not_found"  # an empty folder is a warning


def test_policy(files: Files, tmp_path: Path) -> None:
    outside = tmp_path / "outside.csv"
    outside.write_text("secret\n1\n")
    (files.folder / "link.csv").symlink_to(outside)
    (files.folder / "dirlink").symlink_to(tmp_path)
    (files.folder / "dangling.csv").symlink_to(tmp_path / "nothing.csv")
    files.put("good.csv", "a\n1\n")
    (files.folder / "alias.csv").symlink_to(files.folder / "good.csv")
    for path in (outside, files.folder / "link.csv", files.folder / ".." / "outside.csv", files.folder / "dirlink" / "outside.csv",
                 tmp_path, "/etc/passwd", "/", tmp_path / "absent.csv", str(tmp_path / "*.csv")):  # fmt: skip
        error = failure("config.policy_denied", lambda path=path: files.streams(path))
        assert "policy.allowed_paths" in (error.hint or "")
        report = files.test(path)
        assert report.error is not None
        assert (report.error.stage, report.error.code) == ("config", "config.policy_denied")
    streams = files.streams(recursive=True)
    assert {name: s.readable for name, s in streams.items()} == {
        "alias": "yes",
        "dangling": "no",
        "good": "yes",
        "link": "no",
    }
    assert "policy.allowed_paths" in streams["link"].warnings[0]
    failure("config.policy_denied", lambda: Csv(CsvConfig.parse({"path": str(outside)})).connect(Deadline(5)))


def test_a_path_exchanged_after_the_look_gains_nothing(files: Files, tmp_path: Path) -> None:
    from hfagent.connectors._files_source import open_source

    outside = tmp_path / "outside.csv"
    outside.write_text("s,t\n9,9\n")
    path = files.put("t.csv", "a,b\n1,2\n")
    config = CsvConfig.parse({"path": str(path)})
    context = ConnectorContext(allowed_paths=(files.folder,))
    (file,) = find_files(config, context)
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(AgentError):
        open_source(file, context)
    path.unlink()
    os.link(outside, path)
    failure("read.partial_results", lambda: open_source(file, context))


def test_only_regular_files(files: Files) -> None:
    os.mkfifo(files.folder / "pipe.csv")
    files.put("good.csv", "a\n1\n")
    assert sorted(files.streams()) == ["good"]
    failure("config.invalid", lambda: files.streams(files.folder / "pipe.csv"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files(files: Files) -> None:
    files.put("closed.csv", "a\n1\n").chmod(0)
    files.put("open.csv", "a\n1\n")
    streams = files.streams()
    assert (streams["closed"].readable, streams["open"].readable) == ("no", "yes")
    failure("permission.denied", lambda: files.read(files.folder / "closed.csv"))


def test_sizes(files: Files) -> None:
    path = files.put("big.csv", "a,b\n" + "1,2\n" * 1000)
    error = failure("read.limit_exceeded", lambda: files.read(path, max_bytes=1000))
    assert "max_bytes" in error.message
    bomb = files.put("bomb.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 2_000_000))
    failure("read.limit_exceeded", lambda: files.read(bomb, max_unzipped_bytes=1_000_000))
    assert (
        "gzip" in failure("read.corrupt", lambda: files.read(files.put("cut.csv.gz", bomb.read_bytes()[:-9]))).message
    )
    assert files.read(files.put("ok.csv.gz", gzip.compress(b"a,b\n1,2\n")))[1] == [{"a": 1, "b": 2}]


def test_a_drop_folder_waits(files: Files) -> None:
    old, new = files.put("old.csv", "a\n1\n"), files.put("new.csv", "a\n1\n")
    hour_ago = new.stat().st_mtime - 3600
    os.utime(old, (hour_ago, hour_ago))
    assert sorted(files.streams(source="watch", settle_s=600)) == ["old"]
    assert sorted(files.streams()) == ["new", "old"]


def test_the_key_applies_where_its_columns_are(files: Files) -> None:
    files.put("a.csv", "id,x\n1,2\n")
    files.put("b.csv", "y\n1\n")
    streams = files.streams(primary_key=["id"])
    assert streams["a"].primary_key == ("id",)
    assert streams["a"].primary_key_source == "declared"
    assert streams["b"].primary_key == ()
    assert any("primary_key" in w for w in streams["b"].warnings)


# --- changes, copies, cancelling ---


@pytest.mark.parametrize("how", ["changed", "removed", "replaced"])
def test_a_file_changed_while_it_is_read(files: Files, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.put("t.csv", "a,b\n1,2\n")
    real = _files_stage.settle_types

    def meanwhile(*args: Any) -> Any:
        if how == "changed":
            path.write_text("a,b\n1,2\n3,4\n")
        elif how == "removed":
            path.unlink()
        else:
            other = path.with_name("other")
            other.write_text("a,b\n5,6\n")
            other.replace(path)
        return real(*args)

    monkeypatch.setattr(_files_stage, "settle_types", meanwhile)
    # A file that is gone is looked for anew, and then it is simply not there.
    error = failure("model.not_found" if how == "removed" else "read.partial_results", lambda: files.read(path))
    assert ("does not exist" if how == "removed" else "changed") in error.message
    assert error.retryable is (how != "removed")
    monkeypatch.undo()
    assert list(files.scratch.glob("*/*.draft*")) == []
    if how != "removed":
        assert len(files.read(path)[1]) >= 1


def test_a_changed_file_is_read_anew_and_old_copies_go(files: Files) -> None:
    path = files.put("t.csv", "a\n1\n")
    connector = files.connector()
    connection = connector.connect(Deadline(5))

    def total() -> Any:
        with connector.open_result(connection, "SELECT sum(a) FROM t", (), Statement("")) as reader:
            return int(next(iter(read_all(reader).to_pylist()[0].values())))

    assert total() == 1
    path.write_text("a\n1\n10\n")
    assert total() == 11
    files.put("u.csv", "a\n5\n")
    with connector.open_result(connection, "SELECT t.a + u.a FROM t, u", (), Statement("")) as reader:
        assert read_all(reader).num_rows == 2
    assert len(list(files.scratch.glob("*/*.duckdb"))) == 2
    (stream,) = (s for s in connector.read_schema(connection, SchemaRequest()) if s.name == "t")
    path.unlink()
    failure("model.not_found", lambda: connector.read_rows(connection, stream, ReadRequest()))
    connector.close(connection)


def test_copies_are_private_and_shared_between_connectors(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.put("t.csv", "a\n1\n")
    files.read(path)
    (directory,) = files.scratch.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in directory.iterdir() if p.is_file()} == {0o600}
    monkeypatch.setattr(_files_stage.Stager, "_build", None)  # nothing may be built a second time
    assert files.read(path)[1] == [{"a": 1}]


def test_a_damaged_description_is_made_again(files: Files) -> None:
    path = files.put("t.csv", "a\n1\n")
    files.read(path)
    (about,) = files.scratch.glob("*/*.json")
    about.write_text("{")
    assert files.read(path)[1] == [{"a": 1}]


def test_without_a_scratch_directory_nothing_stays(files: Files) -> None:
    path = files.put("t.csv", "a\n1\n")
    connector = Csv(CsvConfig.parse({"path": str(path)}), ConnectorContext(allowed_paths=(files.folder,)))
    connection = connector.connect(Deadline(5))
    assert len(list(connector.read_schema(connection, SchemaRequest()))) == 1
    directory = connector._private()[1]
    assert directory.exists()
    connector.close(connection)
    del connector, connection
    gc.collect()
    assert not directory.exists()


def test_cancel_and_deadline_while_a_file_is_prepared(files: Files) -> None:
    path = files.put("t.csv", "a,b\n" + "1,x\n" * 300_000)
    connector = files.connector(path)
    connection = connector.connect(Deadline(5))
    cancel = CancelToken()
    real = _files_stage._Building._load_text

    def cancelled(self: Any) -> None:
        cancel.cancel()
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files_stage._Building, "_load_text", cancelled)
        with pytest.raises(Cancelled):
            list(connector.read_schema(connection, SchemaRequest(cancel=cancel)))
    with pytest.raises(AgentError) as caught:
        list(connector.read_schema(connection, SchemaRequest(deadline=Deadline(0.0))))
    assert caught.value.code in ("timeout.statement", "timeout.total")
    assert list(files.scratch.glob("*/*.draft*")) == []
    assert len(list(connector.read_schema(connection, SchemaRequest()))) == 1
    connector.close(connection)


def test_many_threads_make_one_copy(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.put("t.csv", "a\n" + "1\n" * 1000)
    connector = files.connector()
    built: list[int] = []
    real = _files_stage.Stager._build

    def counted(self: Any, *args: Any) -> Any:
        built.append(1)
        return real(self, *args)

    monkeypatch.setattr(_files_stage.Stager, "_build", counted)
    totals: list[Any] = []

    def work() -> None:
        connection = connector.connect(Deadline(20))
        with connector.open_result(connection, "SELECT count(*) FROM t", (), Statement("")) as reader:
            totals.append(next(iter(read_all(reader).to_pylist()[0].values())))
        connector.close(connection)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert totals == [1000] * 6
    assert len(built) == 1


# --- statements ---


def test_statements_join_files_under_many_names(files: Files) -> None:
    files.put("orders.csv", "id,who\n1,7\n2,8\n")
    files.put("people.jsonl", '{"id":7,"name":"Ann"}\n{"id":8,"name":"Bob"}\n')
    workbook(files.folder / "cities.xlsx", S=[["name", "city"], ["Ann", "Rome"]])
    sql = "SELECT o.id, p.name, c.city FROM orders o JOIN people p ON o.who = p.id LEFT JOIN cities c USING (name) ORDER BY 1"
    assert files.sql(sql) == [(1, "Ann", "Rome"), (2, "Bob", None)]
    assert files.sql("SELECT count(*) FROM ORDERS") == [(2,)]
    assert files.sql("SELECT count(*) FROM 'orders.csv'") == [(2,)]
    assert files.sql("SELECT count(*) FROM main.orders WHERE id > ?", 1) == [(1,)]
    assert files.sql("WITH orders AS (SELECT 5 AS id) SELECT id FROM orders") == [(5,)]
    assert ("orders",) in files.sql("SELECT table_name FROM information_schema.tables")
    failure("model.not_found", lambda: files.sql("SELECT * FROM nope"))
    failure("column.not_found", lambda: files.sql("SELECT nope FROM orders"))
    failure("query.syntax", lambda: files.sql("SELECT FROM WHERE"))
    failure("query.failed", lambda: files.sql("SELECT CAST(name AS INTEGER) FROM people"))


def test_names_that_differ_in_case_only(files: Files) -> None:
    files.put("Data.csv", "a\n1\n")
    files.put("data.csv", "a\n2\n")
    assert files.sql('SELECT a FROM "Data"') == [(1,)]
    assert files.sql("SELECT a FROM data") == [(2,)]
    failure("request.invalid_params", lambda: files.sql('SELECT * FROM "Data" x, data y'))
    failure("model.not_found", lambda: files.sql("SELECT * FROM DATA"))


def test_bounds_compare_in_the_columns_own_type(files: Files) -> None:
    path = files.put("t.csv", "id,at,v\n9,2024-01-01 00:00:00.000001,1.10\n10,2024-01-02,2\n11,,3\n")
    connector = files.connector(path)
    connection = connector.connect(Deadline(5))
    (stream,) = connector.read_schema(connection, SchemaRequest())

    def ids(*bounds: Bound) -> list[int]:
        with connector.read_rows(connection, stream, ReadRequest(bounds=bounds, order_by=("id",))) as reader:
            return [row["id"] for row in read_all(reader).to_pylist()]

    assert ids(Bound("id", ">", "9")) == [10, 11]
    assert ids(Bound("at", ">", "2024-01-01 00:00:00")) == [9, 10]
    assert ids(Bound("at", ">", "2024-01-01 00:00:00.000001")) == [10]
    assert ids(Bound("at", "is null")) == [11]
    assert ids(Bound("v", "=", "1.1")) == [9]
    connector.close(connection)


_ESCAPES = (
    "SELECT * FROM read_csv('{file}')", "SELECT * FROM '{file}'", "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')", "SELECT * FROM glob('/etc/*')", "COPY (SELECT 1) TO '{folder}/pwn.csv'",
    "COPY (SELECT 1) TO '{file}'", "COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)", "COPY (SELECT 1) TO '{scratch}/pwn.csv'",
    "ATTACH '{folder}/pwn.db'", "ATTACH '{file}' AS stolen", "INSTALL httpfs", "LOAD httpfs", "LOAD '{folder}/x.duckdb_extension'",
    "SET enable_external_access = true", "SET allowed_directories = ['/']", "SET allowed_paths = ['/etc/passwd']",
    "RESET lock_configuration", "SET lock_configuration = false", "SELECT getenv('HOME')", "SET memory_limit = '1TB'",
    "SET threads = 64", "SET temp_directory = '/etc'", "SELECT * FROM read_csv('{folder}/../data/t.csv')", "EXPORT DATABASE '{folder}/exp'",
    "SELECT * FROM sqlite_scan('x.db', 't')", "PRAGMA enable_profiling", "SET profiling_output = '{folder}/prof.txt'",
    "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')", "CREATE PERSISTENT SECRET s (TYPE s3)", "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM sniff_csv('{file}')", "SELECT * FROM read_json('{file}')", "SELECT * FROM read_parquet('{file}')",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')", "SELECT * FROM query_table('{file}')", "IMPORT DATABASE '{folder}'",
    "SELECT * FROM secret_frame", "INSERT INTO \"file:t\".main.rows VALUES (9, 9)", "DELETE FROM \"file:t\".main.rows",
    "DROP TABLE \"file:t\".main.rows", "CREATE TABLE \"file:t\".main.pwn AS SELECT 1", "CREATE TABLE pwn AS SELECT 1",
    "SELECT * FROM 'https://127.0.0.1:9/x.csv'", "SELECT * FROM 's3://x/y.parquet'", "DETACH \"file:t\"", "FORCE INSTALL excel",
)  # fmt: skip


def test_the_engine_alone_lets_nothing_out_and_nothing_in(files: Files, tmp_path: Path) -> None:
    """Every statement goes straight to the engine: the guard is not asked."""
    path = files.put("t.csv", "a,b\n1,2\n")
    secret_frame = pa.table({"x": [1]})  # DuckDB would look for such names in its callers' variables
    connector = files.connector()
    connection = connector.connect(Deadline(5))
    assert drain(connector.open_result(connection, "SELECT * FROM t", (), Statement(""))) == 1
    # Profiling is the one thing that a locked engine still lets a PRAGMA change; `reset` throws the engine away.
    ask = "SELECT name, value FROM duckdb_settings() WHERE name NOT LIKE '%profil%'"
    settings_wanted = connection.engine.execute(ask).fetchall()

    def on_disk() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    before, harmless, passed = on_disk(), {"SELECT * FROM '{file}'"}, []
    for template in _ESCAPES:
        text = template.format(file=path, folder=files.folder, scratch=files.scratch)
        try:
            drain(connector.open_result(connection, text, (), Statement(text)))
            passed.append(template)
        except AgentError as error:
            assert error.code != "internal.bug", (text, error)
        assert on_disk() == before, text
        assert connection.engine.execute(ask).fetchall() == settings_wanted, text
        assert connector.reset(connection)
        assert drain(connector.open_result(connection, "SELECT * FROM t", (), Statement(""))) == 1, text
    assert set(passed) <= harmless, passed
    assert secret_frame.num_rows == 1
    connector.close(connection)


def test_wide_values_of_a_statement_do_not_pile_up(files: Files) -> None:
    files.put("t.csv", "a,b\n" + "1,x\n" * 5_000)
    connector = files.connector()
    connection = connector.connect(Deadline(5))
    sql = "SELECT repeat(b, 20000) AS w FROM t"
    with connector.open_result(connection, sql, (), Statement(sql)) as reader:
        sizes = [(batch.num_rows, batch.nbytes) for batch in reader]
    assert sum(rows for rows, _ in sizes) == 5_000
    assert max(nbytes for _, nbytes in sizes) <= 8 * 1024 * 1024 + 20_000
    connector.close(connection)


# --- the test of a connection ---


def test_report_of_a_folder(files: Files) -> None:
    files.put("bad.csv", "id,x\n1,2\n3\n4,5\n")
    files.put("latin.csv", b"id;name\n1;na\xefve\n")
    files.put("e.jsonl", '{"a":1}\n')
    workbook(files.folder / "w.xlsx", S=[["a"], [1]])
    report = files.test()
    assert report.ok
    assert report.server["product"] == "DuckDB"
    assert [s.status for s in report.stages if s.stage in ("secrets", "tunnel", "dns", "tcp", "tls", "auth")] == [
        "skipped"
    ] * 6
    found = stage(report, "permission")
    assert found.status == "warning"
    assert found.details["readable"] == 4
    bad = found.details["streams"]["bad"]
    assert (bad["rows_parsed"], bad["bad_rows"]) == (2, [{"line": 3, "reason": "has 1 fields, expected 2"}])
    latin = found.details["streams"]["latin"]
    assert (latin["encoding"], latin["delimiter"], latin["header"]) == ("cp1252", ";", True)
    assert any("not UTF-8" in w for w in report.warnings)
    assert stage(report, "namespace").details["files"] == 4
    assert list(files.scratch.glob("*/*.duckdb")) == []  # a test copies nothing


def test_report_when_nothing_can_be_read(files: Files) -> None:
    files.put("secret.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"))
    report = files.test()
    assert report.error is not None
    assert (report.error.stage, report.error.code) == ("permission", "auth.method_unsupported")


def test_only_the_head_is_looked_at(files: Files) -> None:
    path = files.put("t.csv", "a,b\n" + "1,2\n" * 5_000 + "bad\n")
    details = stage(files.test(path), "permission").details["streams"]["t"]
    assert details["rows_parsed"] == 1_000
    assert "bad_rows" not in details


# --- the configuration ---


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"path": "relative.csv"}, "path"), ({"path": "/x\0y"}, "path"), ({"path": ""}, "path"), ({"path": "/x", "glob": "../*.csv"}, "glob"),
        ({"path": "/x", "delimiter": "::"}, "delimiter"), ({"path": "/x", "delimiter": "\n"}, "delimiter"),
        ({"path": "/x", "range": "A1"}, "range"), ({"path": "/x", "timezone": "Mars/Base"}, "timezone"),
        ({"path": "/x", "delimiter": ",", "quotechar": ","}, None), ({"path": "/x", "decimal": ",", "thousands": ","}, None),
        ({"path": "/x", "quotechar": "\n"}, None), ({"path": "/x", "max_columns": 0}, "max_columns"), ({"path": "/x", "source": "upload"}, "source"),
    ],
)  # fmt: skip
def test_wrong_configurations_name_their_field(config: dict[str, Any], field: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        CsvConfig.parse(config)
    assert (caught.value.code, caught.value.field) == ("config.invalid", field)


def test_form(files: Files) -> None:
    properties = CsvConfig.properties()
    assert properties["path"]["x-agent-path"] is True
    assert properties["delimiter"]["x-show-when"] == {"format": ["auto", "csv", "tsv"]}
    assert all(len(spec.get("description", "")) > 15 for spec in properties.values())
    assert CsvConfig.parse({"path": "/x", "delimiter": "tab"}).delimiter == "\t"
    assert set(string.ascii_lowercase) > set(Csv.aliases[0])


def test_importing_loads_no_engine() -> None:
    code = "import sys, hfagent.connectors.csv; print([m for m in ('duckdb', 'pyarrow', 'sqlglot', 'python_calamine') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_injections_are_file_names_too(files: Files) -> None:
    for payload in (p for p in INJECTIONS if "/" not in p):
        files.put(f"{payload}.csv", "a\n1\n")
        assert files.sql(f'SELECT a FROM "{payload.replace(chr(34), chr(34) * 2)}"') == [(1,)]
