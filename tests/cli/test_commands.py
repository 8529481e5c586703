"""The command line as a user runs it: processes, exit codes, what is on stdout and what on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fixtures.canary import assert_no_canary
from tests.fixtures.postgres import PostgresDatabase

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run `hfagent …` with a data directory of its own; the agent it starts is stopped afterwards."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HFAGENT_")}
    environment["HFAGENT_DATA_DIR"] = str(tmp_path / "agent")
    environment["TMPDIR"] = str(tmp_path)

    def command(*words: str, input: str | None = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hfagent", *words],
            env=environment,
            input=input,
            capture_output=True,
            text=True,
            timeout=90,
        )

    yield command
    command("stop", "--drain", "0")


def test_the_demo_does_the_main_job_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    done = run("demo", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] is True
    assert [c["type"] for c in result["connectors"]] == ["csv"]
    assert [t["ok"] for t in result["tests"]] == [True]
    assert result["models"][0]["count"] == 6
    assert result["query"]["row_count"] == 5
    assert result["exports"][0]["rows"] == 5_000
    assert list(tmp_path.glob("hfagent-demo-*")) == []


def test_the_demo_looks_into_a_postgresql(run: Run, postgres_database: PostgresDatabase) -> None:
    postgres_database.execute("CREATE TABLE t (id int PRIMARY KEY, price numeric(9,2))")
    postgres_database.execute("INSERT INTO t VALUES (1, 2.50), (2, NULL)")
    postgres_database.execute("GRANT SELECT ON t TO hf_rw")
    postgres_database.execute("ANALYZE t")
    done = run("demo", "--json", "--postgres", postgres_database.dsn("hf_rw"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [t["ok"] for t in result["tests"]] == [True, True]
    assert sorted(result["query"]["rows"]) == [[1, "2.50"], [2, None]]
    assert_no_canary([done.stdout, done.stderr], [postgres_database.server.passwords["hf_rw"]])


def test_the_demo_tells_the_truth_about_a_failure(run: Run, postgres_database: PostgresDatabase) -> None:
    url = postgres_database.dsn("hf_rw").replace("postgresql://hf_rw:", "postgresql://hf_rw:wrong")
    done = run("demo", "--json", "--postgres", url)
    assert done.returncode == 1
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] is False
    assert result["error"]["code"] == "auth.invalid_credentials"
    assert "Try:" in done.stderr


def test_the_catalog_is_an_array(run: Run) -> None:
    types = json.loads(run("connector", "catalog", "--json").stdout)
    assert {t["type"] for t in types} >= {"postgresql", "mysql", "mariadb", "csv"}
    for entry in types:
        assert entry["driver_installed"] is True
        assert entry["config_schema"]["additionalProperties"] is False
        assert isinstance(entry["is_queryable"], bool)
        assert isinstance(entry["aliases"], list)


def test_add_query_export_delete(run: Run, postgres_database: PostgresDatabase, tmp_path: Path) -> None:
    postgres_database.execute("CREATE TABLE t AS SELECT i AS id, 'name ' || i AS name FROM generate_series(1, 1200) i")
    postgres_database.execute("GRANT SELECT ON t TO hf_rw")
    server = postgres_database.server
    secret = server.passwords["hf_rw"]
    added = run(
        "connector", "add", "rds", "--name", "sales", "--host", server.host, "--port", str(server.port), "--dbname",
        postgres_database.name, "--user", "hf_rw", "--password-stdin", "--json", input=secret,
    )  # fmt: skip
    assert added.returncode == 0, added.stdout + added.stderr
    assert json.loads(added.stdout)["config"]["password"] == "\u2022" * 8
    rows = run("query", "sales", "select * from t order by id", "--format", "jsonl").stdout.splitlines()
    assert [json.loads(row)["id"] for row in rows] == list(range(1, 1201))
    exported = run("query", "sales", "select * from t", "-o", str(tmp_path / "t.csv"), "--json")
    assert json.loads(exported.stdout)["rows"] == 1_200
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1_201
    refused = run("query", "sales", "drop table t")
    assert (refused.returncode, "guard.write_blocked" in refused.stderr) == (1, True)
    assert run("connector", "delete", "sales").returncode == 1  # nobody there to confirm
    assert run("connector", "delete", "sales", "--yes").returncode == 0
    missing = run("query", "sales", "select 1", "--json")
    assert json.loads(missing.stdout)["error"]["code"] == "connector.not_found"
    assert_no_canary([added.stdout, added.stderr, refused.stderr, tmp_path / "agent"], [secret])


def test_a_secret_never_goes_on_the_command_line(run: Run) -> None:
    refused = run("connector", "add", "postgresql", "--name", "x", "--password", "hunter2-canary")
    assert refused.returncode == 1
    assert "--password-stdin" in refused.stderr
    assert_no_canary([refused.stdout, refused.stderr], ["hunter2-canary"])


def test_every_method_can_be_called(run: Run) -> None:
    names = {m["name"] for m in json.loads(run("methods", "--json").stdout)}
    assert "query/execute" in names
    assert json.loads(run("call", "connectors/list", "{}").stdout) == {"connectors": []}
    unknown = run("call", "connectors/lst")
    assert (unknown.returncode, "connectors/list" in unknown.stderr) == (1, True)


def test_completion_scripts(run: Run) -> None:
    for shell in ("bash", "zsh", "tcsh"):
        assert "connector" in run("completion", shell).stdout
