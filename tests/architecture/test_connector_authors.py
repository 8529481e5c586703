"""The example of CONNECTOR_AUTHORS.md is run as it stands: as a package of its own, found by its entry point."""

from __future__ import annotations

import re
import sqlite3
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, ConfigError
from hfagent.sdk.connector import BaseConnector
from hfagent.sdk.probe import Probe
from hfagent.sdk.reading import Bound, ReadRequest, SchemaRequest
from hfagent.sdk.registry import ENTRY_POINT_GROUP, Registry, describe
from tests.architecture.tree import PACKAGE

_DOCUMENT = PACKAGE / "docs" / "CONNECTOR_AUTHORS.md"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry that finds the example installed beside hfagent, as its own packaging declares it."""
    (entry,) = _packaging()["entry-points"][ENTRY_POINT_GROUP].items()
    module = entry[1].split(":")[0]
    (tmp_path / f"{module}.py").write_text(_block("python"), encoding="utf-8")
    information = tmp_path / f"{module}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{entry[0]} = {entry[1]}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Registry()
    sys.modules.pop(module, None)


@pytest.fixture
def connector(registry: Registry, tmp_path: Path) -> BaseConnector[Any]:
    database = sqlite3.connect(tmp_path / "shop #1.db")
    with database:
        database.execute('CREATE TABLE "odd ""name""; --" (id INTEGER NOT NULL, label TEXT, price REAL)')
        database.executemany(
            'INSERT INTO "odd ""name""; --" VALUES (?, ?, ?)', [(n, f"ü{n}", n / 4) for n in range(25_000)]
        )
    database.close()
    cls = registry.get("sqlite")
    return cls(cls.Config.parse({"path": str(tmp_path / "shop #1.db")}))


def test_the_example_is_a_complete_type(registry: Registry) -> None:
    assert "sqlite" in registry.names()
    entry = describe(registry.get("sqlite"))
    assert (entry.type, entry.title, entry.capabilities, entry.driver_installed) == ("sqlite", "SQLite", (), True)
    assert entry.config_schema["properties"]["path"]["x-agent-path"] is True
    assert entry.config_schema["examples"] == [{"path": "/srv/data/shop.db"}]
    with pytest.raises(ConfigError, match="unknown field 'pth'"):
        registry.get("sqlite").Config.parse({"path": "x", "pth": "x"})


def test_the_example_tests(connector: BaseConnector[Any]) -> None:
    probe = Probe()
    connector.test(probe)
    report = probe.report()
    assert report.ok
    assert {stage.stage for stage in report.stages if stage.status == "passed"} == {"server", "permission"}
    assert report.server["product"] == "SQLite"


def test_the_example_says_what_is_wrong(registry: Registry, tmp_path: Path) -> None:
    cls = registry.get("sqlite")
    (tmp_path / "text.db").write_text("this is no database, but longer than a header of one hundred bytes " * 3)
    for name in ("missing.db", "text.db"):
        probe = Probe()
        cls(cls.Config.parse({"path": str(tmp_path / name)})).test(probe)
        report = probe.report()
        assert report.error is not None
        assert (report.ok, report.error.code, report.error.stage) == (False, "namespace.not_found", "server")
    assert not (tmp_path / "missing.db").exists()


def test_the_example_reads(connector: BaseConnector[Any]) -> None:
    connection = connector.connect(Deadline(5))
    (stream,) = connector.read_schema(connection, SchemaRequest())
    assert [(c.name, str(c.type), c.nullable) for c in stream.columns] == [
        ("id", "int64", False), ("label", "string", True), ("price", "string", True),
    ]  # fmt: skip
    with connector.read_rows(connection, stream, ReadRequest()) as reader:
        table = pa.Table.from_batches(list(reader), reader.schema)
    assert table.num_rows == 25_000
    assert table.slice(24_999).to_pylist() == [{"id": 24_999, "label": "ü24999", "price": "6249.75"}]
    with connector.read_rows(connection, stream, ReadRequest(columns=("label",), limit=3)) as reader:
        assert [batch.to_pylist() for batch in reader] == [[{"label": f"ü{n}"} for n in range(3)]]
    cancel = CancelToken()
    with connector.read_rows(connection, stream, ReadRequest(cancel=cancel)) as reader:
        next(reader)
        cancel.cancel()
        with pytest.raises(Cancelled):
            next(reader)
    with pytest.raises(AgentError) as caught:
        connector.read_rows(connection, stream, ReadRequest(bounds=(Bound("id", ">", 1),)))
    assert caught.value.code == "unsupported"
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("CREATE TABLE more (n)")
    connector.close(connection)


def test_a_taken_name_is_an_error_at_the_start(registry: Registry, tmp_path: Path) -> None:
    (information,) = tmp_path.glob("*.dist-info")
    (information / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\nmysql = hfagent_sqlite:Sqlite\n")
    with pytest.raises(RuntimeError, match="exists already"):
        Registry()


def _block(language: str) -> str:
    (text,) = re.findall(
        rf"^```{language}\n(.*?)^```$", _DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return str(text)


def _packaging() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(_block("toml"))["project"]
    return found
