"""Kill -9 at every single system call that writes, during a rotation of a real store: nothing is lost, the old key goes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hfagent.store.secrets import SealedSecret
from hfagent.store.store import Store
from hfagent.vault.failures import CredentialUnreadable
from hfagent.vault.settings import VaultSettings
from hfagent.vault.vault import Vault
from tests.store.rows import draft

ROOT = Path(__file__).parents[2]
CALLS = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,ftruncate"
SECRETS = {"password": "first secret", "token": "second secret", "private_key": "third secret"}

VICTIM = "import sys; from pathlib import Path; from tests.vault.test_kill import rotate; rotate(Path(sys.argv[1]))"


def open_both(data: Path) -> tuple[Store, Vault]:
    store = Store.open(data / "agent.db", ballast_bytes=4096)
    vault = Vault.open_or_create(
        data / "vault",
        agent_id=store.agent_id,
        has_ciphertexts=store.secrets.any,
        settings=VaultSettings(key_source="file"),
    )
    return store, vault


def rotate(data: Path) -> None:
    """The loop that the agent runs."""
    store, vault = open_both(data)
    with store:
        vault.begin_rotation()
        while secrets := store.secrets.not_under(vault.active_key_id):
            for secret in secrets:
                resealed = vault.reseal(
                    connector_id=secret.connector_id, field=secret.field, endpoint=secret.endpoint,
                    version=secret.record_version, blob=secret.blob,
                )  # fmt: skip
                store.secrets.reseal(secret, **resealed._asdict())
        with store.transaction():
            assert vault.finish_rotation(store.secrets.key_ids())


def prepare(data: Path) -> SealedSecret:
    """A store with three secrets; returns one of them, as it is sealed under the old key."""
    data.mkdir(mode=0o700)
    store, vault = open_both(data)
    with store:
        record = store.connectors.insert(draft(store, "Sales"))
        for field, text in SECRETS.items():
            with store.transaction():
                version = store.secrets.next_version(record.id, field)
                store.secrets.put(
                    SealedSecret(
                        connector_id=record.id, field=field, endpoint="db1:5432", record_version=version,
                        key_id=vault.active_key_id, fingerprint=vault.fingerprint(text),
                        blob=vault.seal(
                            connector_id=record.id, field=field, endpoint="db1:5432", version=version, plaintext=text
                        ),
                    )
                )  # fmt: skip
        return store.secrets.of(record.id)[0]


def unsealed(store: Store, vault: Vault) -> dict[str, str]:
    record = store.connectors.get("Sales")
    return {
        secret.field: vault.unseal(
            connector_id=record.id, field=secret.field, endpoint=secret.endpoint, version=secret.record_version,
            blob=secret.blob,
        )
        for secret in store.secrets.of(record.id)
    }  # fmt: skip


def traced(data: Path, trace: Path, *options: str) -> int:
    """Run a rotation under strace and return its exit status."""
    done = subprocess.run(
        ["strace", "-f", "-qqq", "-o", str(trace), *options, sys.executable, "-c", VICTIM, str(data)],
        cwd=ROOT, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    return done.returncode


def every_point(start: Path, trace: Path) -> list[tuple[str, int]]:
    """Each writing call that a rotation makes, as (name, how many of that name so far): strace counts per name."""
    data = start.with_name("counted")
    shutil.copytree(start, data)
    assert traced(data, trace, "-e", f"trace={CALLS}") == 0
    points: list[tuple[str, int]] = []
    counts: Counter[str] = Counter()
    for line in trace.read_text().splitlines():
        name = line.split(maxsplit=1)[1].split("(")[0]
        if name in CALLS.split(","):
            counts[name] += 1
            points.append((name, counts[name]))
    return points


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(not shutil.which("strace"), reason="killing at a chosen system call needs strace")
def test_kill_9_at_every_writing_system_call_of_a_rotation(tmp_path: Path) -> None:
    old = prepare(tmp_path / "start")
    points = every_point(tmp_path / "start", tmp_path / "trace")
    print(len(points), "points:", Counter(name for name, _ in points))
    assert {"rename", "unlink", "fsync", "fdatasync", "pwrite64"} <= {name for name, _ in points}
    for call, number in points:
        data = tmp_path / f"{call}-{number}"
        shutil.copytree(tmp_path / "start", data)
        status = traced(
            data, tmp_path / "trace", "-e", f"trace={CALLS}", "-e", f"inject={call}:signal=KILL:when={number}"
        )
        assert status != 0, f"not killed at {call} number {number}"
        store, vault = open_both(data)
        with store:
            assert unsealed(store, vault) == SECRETS, (call, number)
        rotate(data)
        store, vault = open_both(data)
        with store:
            assert unsealed(store, vault) == SECRETS, (call, number)
            assert store.check() == []
            assert store.secrets.key_ids() == {vault.active_key_id}
            with pytest.raises(CredentialUnreadable):
                vault.unseal(
                    connector_id=old.connector_id, field=old.field, endpoint=old.endpoint, version=old.record_version,
                    blob=old.blob,
                )  # fmt: skip
        assert [file.name for file in (data / "vault").glob("*.key")] == [f"{vault.active_key_id}.key"]
        assert vault.active_key_id != old.key_id
        shutil.rmtree(data)


def test_a_rotation_of_a_real_store(tmp_path: Path) -> None:
    """The same, not killed: what the test above rests on, and quick enough for every day."""
    old = prepare(tmp_path / "data")
    rotate(tmp_path / "data")
    store, vault = open_both(tmp_path / "data")
    with store:
        assert unsealed(store, vault) == SECRETS
        assert store.secrets.count_not_under(vault.active_key_id) == 0
        assert old.key_id not in store.secrets.key_ids()
        assert store.secrets.of(old.connector_id)[0].fingerprint == vault.fingerprint(SECRETS[old.field])
