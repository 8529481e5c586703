"""What the vault's tests share: places to seal for, a keyring that is only a dictionary, and a way to break off anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfagent.vault import description, sources
from hfagent.vault.envelope import key_id_of
from hfagent.vault.settings import VaultSettings
from hfagent.vault.vault import Vault

AGENT = "01j0000000000000000000agnt"

Place = dict[str, Any]


def place(connector: str = "c1", field: str = "password", endpoint: str = "db1:5432", version: int = 1) -> Place:
    return {"connector_id": connector, "field": field, "endpoint": endpoint, "version": version}


@dataclasses.dataclass
class Cabinet:
    """Sealed secrets with their places: what the store is for the real agent."""

    sealed: list[tuple[Place, bytes, str]] = dataclasses.field(default_factory=list)
    """Place, blob, and the secret that must come out."""

    def fill(self, vault: Vault, count: int) -> None:
        for number in range(count):
            where = place(f"c{number}", version=number + 1)
            self.sealed.append(
                (where, vault.seal(**where, plaintext=f"secret number {number}"), f"secret number {number}")
            )

    def any(self) -> bool:
        return bool(self.sealed)

    def key_ids(self) -> set[str]:
        return {key_id_of(blob).hex() for _, blob, _ in self.sealed}

    def assert_all_open(self, vault: Vault) -> None:
        assert vault.status().state == "unlocked", vault.status().reason
        for where, blob, expected in self.sealed:
            assert vault.unseal(**where, blob=blob) == expected

    def rotate(self, vault: Vault, step: Callable[[], None], **kwargs: Any) -> bool:
        """The loop that the agent runs. Safe to break off and begin again."""
        vault.begin_rotation(**kwargs)
        for index, (where, blob, expected) in enumerate(self.sealed):
            if key_id_of(blob).hex() != vault.active_key_id:
                step()
                self.sealed[index] = (where, vault.reseal(**where, blob=blob).blob, expected)
        return vault.finish_rotation(self.key_ids())


def open_vault(folder: Path, cabinet: Cabinet, *, agent: str = AGENT, **settings: Any) -> Vault:
    return Vault.open_or_create(folder, agent_id=agent, has_ciphertexts=cabinet.any, settings=VaultSettings(**settings))


class FakeKeyring:
    """Behaves like the Secret Service backend, which is what its class claims to be."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], str] = {}
        self.calls = 0

    def get_password(self, service: str, user: str) -> str | None:
        self.calls += 1
        return self.entries.get((service, user))

    def set_password(self, service: str, user: str, value: str) -> None:
        self.entries[service, user] = value

    def delete_password(self, service: str, user: str) -> None:
        del self.entries[service, user]


def as_backend(kind: type, name: str) -> Any:
    """An instance of `kind` whose class has the full name of a keyring backend."""
    module, _, qualname = name.rpartition(".")
    return type(qualname, (kind,), {"__module__": module, "__qualname__": qualname})()


class Breakdown(BaseException):
    """The process is gone. Not an Exception: no handler may go on working."""


class Breaker:
    """Breaks off at the n-th of the steps that change something on disk, before or after it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = 0
        self.after = False
        self.count = 0
        for owner, name in (
            (description, "write_atomic"),
            (sources, "write_new"),
            (sources.FileSource, "destroy"),
            (FakeKeyring, "set_password"),
            (FakeKeyring, "delete_password"),
        ):
            monkeypatch.setattr(owner, name, self._breaking(getattr(owner, name)))

    def _breaking(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            here = self.count == self.at
            if here and not self.after:
                raise Breakdown
            result = real(*args, **kwargs)
            if here:
                raise Breakdown
            return result

        return step

    def step(self) -> None:
        """One more place to break off at."""
        self._breaking(lambda: None)()

    def arm(self, at: int, *, after: bool) -> None:
        self.at, self.after, self.count = at, after, 0

    def disarm(self) -> None:
        self.at = 0
