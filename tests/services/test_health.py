"""The doctor: every finding that is not good comes with a remedy, and no single trouble hides the others."""

from __future__ import annotations

import logging
import resource
import socket
from typing import Any

import pytest

from hfagent.foundation.clock import SystemClock
from hfagent.foundation.redaction import MASK
from hfagent.model.connector import ConnectorPatch
from hfagent.model.settings import Settings
from hfagent.sdk.driver import Driver
from hfagent.services import health as module
from hfagent.services.configuration import load_settings
from hfagent.services.health import Finding, Health
from hfagent.store.connectors import ConnectorRecord
from hfagent.vault.settings import VaultSettings
from hfagent.vault.vault import Vault
from tests.services.fakes import World, call, scenario


def health(world: World, settings: Settings | None = None, **options: Any) -> Health:
    return Health(
        world.paths, lambda: settings or Settings(), world.store, world.vault_verbs, world.connectors, world.registry,
        options.pop("watch", None) or world.watch(), world.workers, world.workers.lane("store"), **options,
    )  # fmt: skip


async def doctor(
    world: World, settings: Settings | None = None, *, connectors: bool = False, **options: Any
) -> list[Finding]:
    findings = await health(world, settings, **options).doctor(call(), connectors=connectors)
    for finding in findings:
        assert finding.message
        assert finding.status in ("ok", "info") or finding.hint, f"no remedy: {finding}"
    return findings


def bad(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings if finding.status in ("warning", "error")}


@scenario
async def test_a_sound_agent_has_nothing_to_complain_of(world: World) -> None:
    await world.add(password="some-secret")
    findings = await doctor(world)
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    assert set(bad(findings)) <= ({"core dumps"} if soft else set()) | {"store"}  # a store in memory, on some machines
    names = {finding.name for finding in findings}
    assert {"version", "data directory", "disk", "store", "clock", "configuration", "vault", "recovery key"} <= names
    assert await health(world).problems() == []


@scenario
async def test_modes_that_let_others_in(world: World) -> None:
    world.paths.vault_dir.chmod(0o750)
    world.directory.chmod(0o755)
    found = bad(await doctor(world))
    assert found["data directory"].hint == f"run: chmod 700 {world.directory}"
    assert found["vault directory"].hint == f"run: chmod 700 {world.paths.vault_dir}"
    world.paths.socket.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(world.paths.socket))
        world.paths.socket.chmod(0o666)
        assert bad(await doctor(world))["socket"].hint == f"run: chmod 600 {world.paths.socket}"
        world.paths.socket.chmod(0o660)
        assert "socket" not in bad(await doctor(world))
    world.directory.chmod(0o700)


@scenario
async def test_a_configuration_that_is_broken_or_was_changed(world: World) -> None:
    file = world.paths.config_file
    file.write_text("[log]\nlevel = 'loud'\n")
    found = bad(await doctor(world))["configuration"]
    assert "log.level" in found.message and found.status == "error"
    file.write_text("[policy]\nalowed_types = []\n")
    assert "did you mean" in (bad(await doctor(world))["configuration"].hint or "")
    file.write_text("[log]\nlevel = 'debug'\n")
    found = bad(await doctor(world))["configuration"]
    assert "log.level" in found.message and "hfagent reload" in (found.hint or "")
    settings = load_settings(file, environment={})
    assert "configuration" not in bad(await doctor(world, settings))
    flags = {"log.level": "error"}
    assert "configuration" not in bad(
        await doctor(world, load_settings(file, environment={}, flags=flags), flags=flags)
    )
    file.chmod(0o666)
    assert bad(await doctor(world, settings))["configuration"].hint == f"run: chmod go-w {file}"


@scenario
async def test_a_clock_that_went_back(world: World) -> None:
    class Past(SystemClock):
        def now(self) -> Any:
            return super().now().replace(year=2001)

    assert "set-ntp" in (bad(await doctor(world, clock=Past()))["clock"].hint or "")


@scenario
async def test_little_space_and_few_descriptors(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOW_DISK", 1 << 62)
    monkeypatch.setattr(module, "_LOW_DESCRIPTORS", 1 << 62)
    found = bad(await doctor(world))
    assert str(world.directory) in (found["disk"].hint or "")
    assert "LimitNOFILE" in (found["open files"].hint or "")
    assert [finding.name for finding in await health(world).problems()] == ["disk"]


@scenario
async def test_drivers_and_types_that_are_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.registry.get("fake"), "driver", Driver("no_such_driver", extra="fake"))
    world.break_plugin()
    findings = {finding.name: finding for finding in await doctor(world)}
    assert findings["driver fake"].status == "info"
    assert findings["connector type broken"].status == "warning"
    await world.add()
    world.store.connectors.insert(ConnectorRecord(id=world.store.new_id(), name="sick", type="broken"))
    found = bad(await doctor(world))
    assert "pip install 'hfagent[fake]'" in (found["driver fake"].hint or "")
    assert found["connector type broken"].status == "error"
    assert "left_pad" in found["connector sick"].message


@scenario
async def test_files_with_errors(world: World) -> None:
    world.paths.connectors_dir.mkdir(mode=0o700)
    (world.paths.connectors_dir / "a.toml").write_text("broken")
    watch = world.watch()
    await watch._run()
    found = bad(await doctor(world, watch=watch))["connectors as code"]
    assert "not valid TOML" in found.message
    assert [f.name for f in await health(world, watch=watch).problems()] == ["connectors as code"]


@scenario
async def test_a_locked_vault_and_secrets_that_do_not_open(world: World) -> None:
    await world.add("main", password="some-secret")
    row = world.store.secrets.of(world.store.connectors.get("main").id)[0]
    world.store.secrets.reseal(row, blob=row.blob[:-1] + b"x", key_id=row.key_id, fingerprint=row.fingerprint)
    found = bad(await doctor(world))["vault"]
    assert "main" in found.message and "hfagent connector rotate" in (found.hint or "")
    assert await health(world).problems() == []  # status does not open every secret
    for key in world.paths.vault_dir.glob("*.key"):
        key.unlink()
    world.credentials._vault = Vault.open_or_create(
        world.paths.vault_dir, agent_id=world.store.agent_id, has_ciphertexts=world.store.secrets.any,
        settings=VaultSettings(key_source="file"),
    )  # fmt: skip
    found = bad(await doctor(world))["vault"]
    assert found.message.startswith("locked: ")
    assert [f.name for f in await health(world).problems()] == ["vault"]


@scenario
async def test_connectors_are_tested_when_asked_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for number in range(12):
        await world.add(f"c{number}", password="right-secret")
    await world.add("wrong one", password="wrong-secret")
    await world.add("off")
    await world.connectors.update(call(), "off", ConnectorPatch(status="disabled"))
    world.source.password = "right-secret"
    findings = {f.name: f for f in await doctor(world, connectors=True)}
    assert sum(name.startswith("connector c") and f.status == "ok" for name, f in findings.items()) == 12
    assert findings["connector wrong one"].status == "error"
    assert (
        "wrong-secret" not in findings["connector wrong one"].message
        and MASK in findings["connector wrong one"].message
    )
    assert findings["connector off"].status == "info"
    tested = world.source.counts["connect"]
    found = bad(await doctor(world))["connector wrong one"]
    assert "last test failed" in found.message
    assert found.hint == "hfagent connector test 'wrong one'"
    assert world.source.counts["connect"] == tested


@scenario
async def test_a_damaged_store_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.store, "check", lambda: ["row 5 missing from index"])
    assert "row 5 missing" in bad(await doctor(world))["store"].message
