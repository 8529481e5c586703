"""The vault's verbs: rotation keeps every secret readable, resumes, and names what it could not take along."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hfagent.foundation.errors import AgentError
from hfagent.model.connector import ConnectorPatch
from hfagent.vault.settings import VaultSettings
from hfagent.vault.vault import Vault
from tests.services.fakes import World, call, counted, scenario


def reopen(world: World) -> None:
    """What a restart does."""
    world.vault = world.credentials._vault = Vault.open_or_create(
        world.paths.vault_dir,
        agent_id=world.store.agent_id,
        has_ciphertexts=world.store.secrets.any,
        settings=VaultSettings(key_source="file"),
    )


def opened(world: World, name: str) -> dict[str, str]:
    record = world.store.connectors.get(name)
    return world.credentials.open_stored(world.registry.get(record.type), record)


async def filled(world: World) -> None:
    for number in range(5):
        await world.add(f"c{number}", password=f"secret-{number}")
    await world.connectors.update(call(), "c0", ConnectorPatch(config={"password": "secret-new"}))


@scenario
async def test_rotation_reseals_everything_and_destroys_the_old_key(world: World) -> None:
    await filled(world)
    before = await world.vault_verbs.status()
    reports: list[dict[str, Any]] = []
    after = await world.vault_verbs.rotate(call(reports=reports))
    assert after["key_id"] != before["key_id"]
    assert (after["state"], after["secrets"], after["pending_rotation"], after["unreadable"]) == ("unlocked", 5, 0, ())
    assert world.store.secrets.key_ids() == {after["key_id"]}
    assert world.vault.status().retiring == ()
    assert len(list(world.paths.vault_dir.glob("*.key"))) == 1
    assert reports[0]["kind"] == "begin" and reports[-1] == {"kind": "end", "message": "done"}
    reopen(world)
    assert opened(world, "c0") == {"password": "secret-new"}
    assert opened(world, "c4") == {"password": "secret-4"}
    world.source.password = "secret-4"
    world.source.on("select", counted(1, 1))
    assert (await world.query.execute(call(), "c4", "select")).row_count == 1


@scenario
async def test_an_interrupted_rotation_is_finished_at_the_next_start(world: World) -> None:
    await filled(world)
    world.vault.begin_rotation()
    row = world.store.secrets.not_under(world.vault.active_key_id, limit=1)[0]
    anew = world.vault.reseal(
        connector_id=row.connector_id, field=row.field, endpoint=row.endpoint, version=row.record_version, blob=row.blob
    )
    world.store.secrets.reseal(row, blob=anew.blob, key_id=anew.key_id, fingerprint=anew.fingerprint)
    reopen(world)
    assert (await world.vault_verbs.status())["pending_rotation"] == 5
    await world.vault_verbs.resume()
    facts = await world.vault_verbs.status()
    assert (facts["pending_rotation"], facts["unreadable"]) == (0, ())
    assert world.vault.status().retiring == ()
    await world.vault_verbs.resume()  # nothing to do


@scenario
async def test_rotations_at_once_do_not_disturb_each_other(world: World) -> None:
    await filled(world)
    await asyncio.gather(*(world.vault_verbs.rotate(call()) for _ in range(3)), world.vault_verbs.resume())
    facts = await world.vault_verbs.status()
    assert (facts["pending_rotation"], facts["unreadable"]) == (0, ())
    assert len(list(world.paths.vault_dir.glob("*.key"))) == 1


@scenario
async def test_secrets_change_while_the_key_rotates(world: World) -> None:
    await filled(world)

    async def change() -> None:
        for number in range(20):
            await world.connectors.update(call(), "c1", ConnectorPatch(config={"password": f"changed-{number}"}))

    await asyncio.gather(change(), world.vault_verbs.rotate(call()), world.vault_verbs.rotate(call()))
    assert opened(world, "c1") == {"password": "changed-19"}
    await world.vault_verbs.rotate(call())
    assert world.vault.status().retiring == ()


@scenario
async def test_what_does_not_open_is_named_and_keeps_its_key(world: World) -> None:
    await filled(world)
    record = world.store.connectors.get("c2")
    row = world.store.secrets.of(record.id)[0]
    flipped = row.blob[:-1] + bytes([row.blob[-1] ^ 1])
    world.store.secrets.reseal(row, blob=flipped, key_id=row.key_id, fingerprint=row.fingerprint)
    facts = await world.vault_verbs.status()
    assert facts["unreadable"] == ("c2",)
    assert (await world.vault_verbs.status(quick=True))["unreadable"] == ()
    with pytest.raises(AgentError) as caught:
        await world.query.execute(call(), "c2", "select")
    assert caught.value.code == "credential.unreadable"
    assert "'c2'" in caught.value.message
    facts = await world.vault_verbs.rotate(call())
    assert (facts["unreadable"], facts["pending_rotation"]) == (("c2",), 1)
    assert opened(world, "c3") == {"password": "secret-3"}
    entry = world.store.audit.list(resource_type="vault")[0]
    assert (entry.action, entry.details) == ("vault.rotate", {"failed": ["c2"], "finished": False})


@scenario
async def test_a_lost_key_is_recovered_with_the_recovery_key_and_nothing_else(world: World) -> None:
    await filled(world)
    key = await world.vault_verbs.recovery_key(call())
    for file in world.paths.vault_dir.glob("*.key"):
        file.unlink()
    reopen(world)
    facts = await world.vault_verbs.status()
    assert facts["state"] == "locked"
    assert "hfagent vault unlock" in facts["reason"]
    assert facts["problem"] and facts["hint"]
    assert facts["pending_rotation"] == 0
    for attempt in (world.vault_verbs.rotate(call()), world.vault_verbs.recovery_key(call())):
        with pytest.raises(AgentError) as caught:
            await attempt
        assert caught.value.code == "credential.key_missing"
    with pytest.raises(AgentError) as caught:
        await world.vault_verbs.unlock(call(), key[:-1] + ("A" if key[-1] != "A" else "B"))
    assert caught.value.code == "credential.unreadable"
    await world.vault_verbs.resume()  # no error while locked
    facts = await world.vault_verbs.unlock(call(), key)
    assert (facts["state"], facts["pending_rotation"], facts["unreadable"]) == ("unlocked", 0, ())
    reopen(world)
    assert opened(world, "c0") == {"password": "secret-new"}
    assert [e.action for e in world.store.audit.list(resource_type="vault")] == [
        "vault.rotate", "vault.unlock", "vault.recovery_key"
    ]  # fmt: skip
