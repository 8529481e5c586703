"""Secrets given to a real daemon, looked for everywhere it leaves a trace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hfagent.client.sync import SyncClient
from hfagent.foundation.errors import AgentError
from hfagent.foundation.redaction import MASK
from hfagent.transport.framing import JSON, MSGPACK
from tests.e2e.plugin import install
from tests.e2e.test_daemon_life import WithPlugin
from tests.fixtures.canary import assert_no_canary, new_canary


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[WithPlugin]:
    install(tmp_path / "plugin")
    running = WithPlugin(tmp_path / "agent", options=("--log-level", "debug"))
    running.start()
    yield running
    running.stop()


@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
def test_no_secret_gets_out(daemon: WithPlugin, encoding: Any) -> None:
    daemon.encoding = encoding
    client = daemon.connect()
    canaries = {label: new_canary(label) for label in ("stored", "wrong", "rotated", "trial", "misplaced", "file")}
    said: list[str] = []

    def ask(method: str, **params: Any) -> Any:
        try:
            result = client.request(method, params, progress=lambda value: said.append(repr(value)))
        except AgentError as exc:
            said.extend([str(exc), repr(exc.to_data())])
            return None
        said.append(repr(result))
        return result

    stored, wrong, rotated = canaries["stored"], canaries["wrong"], canaries["rotated"]
    ask("connectors/create", name="main", type="slow", config={"password": stored})
    ask("connectors/create", name="bad", type="slow", config={"password": wrong})
    ask("connectors/create", name="x", type="slow", config={"pasword": canaries["misplaced"]})
    ask("connectors/create", name="x", type="slow", config={"password": [canaries["misplaced"]]})
    ask("connectors/create", name="x", type="slow", config=canaries["misplaced"])
    ask("connectors/create", name="x", type="slow", confg={"password": canaries["misplaced"]})
    ask("connectors/bootstrap", name="x", type="slow", config={"password": stored}, schedule_cron="nonsense")
    assert ask("connectors/get", connector="main")["config"]["password"] == MASK
    ask("connectors/list")
    ask("connectors/test", connector="main")
    ask("connectors/test", connector="bad")
    ask("connectors/test", type="slow", config={"password": canaries["trial"]})
    ask("connectors/test", connector="main", config={"password": f"wrong {canaries['trial']}"})
    ask("connectors/testHistory", connector="bad")
    ask("connectors/rotate", connector="main", config={"password": f"wrong {rotated}"})
    assert ask("connectors/rotate", connector="main", config={"password": rotated})["rotated"]
    ask("connectors/update", connector="main", changes={"config": {"host": "elsewhere"}})
    ask("connectors/update", connector="main", changes={"config": {"password": MASK + "x"}})
    ask("query/execute", connector="main", sql="rows 3")
    ask("query/execute", connector="main", sql="fail")
    ask("query/execute", connector="bad", sql="rows 3")
    ask("connectors/models", connector="bad")
    ask("connectors/apply", connectors=[{"name": "f", "type": "slow", "config": {"password": canaries["file"]}}])
    ask("connectors/apply", connectors=[{"name": "f", "type": "slow", "config": {"password": canaries["file"]}}])
    ask("vault/status")
    ask("vault/rotate")
    ask("agent/doctor", connectors=True)
    ask("agent/status")
    ask("connectors/delete", connector="bad")
    assert daemon.process is not None
    proc = Path(f"/proc/{daemon.process.pid}")
    places = [proc.joinpath(name).read_bytes() for name in ("cmdline", "environ", "comm")]
    assert daemon.stop() == 0
    log = daemon.paths.log_file.read_text()
    assert "driver failed with" in "".join(said) or "driver failed with" in log  # the plug-in did quote it
    # The misplaced ones are no secrets to the agent, which cannot know them; but it must not repeat values either.
    assert_no_canary([*said, *places, daemon.data_dir], canaries.values())


def test_the_harness_sees_what_is_there(daemon: WithPlugin) -> None:
    """The control: a canary in a place that is no secret is found."""
    client: SyncClient = daemon.connect()
    canary = new_canary("control")
    client.request("connectors/create", {"name": "main", "type": "slow", "config": {}, "description": canary})
    daemon.stop()
    with pytest.raises(AssertionError, match="a secret got out"):
        assert_no_canary([daemon.data_dir], [canary])
    assert os.path.exists(daemon.paths.store_file)
