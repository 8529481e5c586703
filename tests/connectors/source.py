"""The system behind a connector, as the conformance suite sees it: what it can do to it and look at in it.

A subclass per type wraps a real server (or a directory). Everything runs with an administrator's rights and on
connections of its own, never through the connector under test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hfagent.sdk.connector import BaseConnector, ConnectorContext


class Source(ABC):
    """One empty namespace of a running system.

    `config` signs in with the account that users are told to make: it can read, not write.
    """

    config: dict[str, Any]
    namespace: str | None

    @abstractmethod
    def create(self, name: str, columns: Mapping[str, str], rows: Sequence[Sequence[str]] = ()) -> None:
        """Make a stream with columns of native types; values are literals in the source's own notation."""

    @abstractmethod
    def create_rows(self, name: str, count: int) -> None:
        """Make a stream `(id, text)` with ids 1..count and about 150 bytes of text in each row, readable as any other."""

    @abstractmethod
    def contents(self) -> Any:
        """Everything stored, in a form that two snapshots can be compared by: definitions, rows, accounts."""

    def quote(self, name: str) -> str:
        """A name as the source's statements want it."""
        return '"' + name.replace('"', '""') + '"'

    def qualified(self, name: str) -> str:
        """A stream of this namespace, quoted."""
        return f"{self.quote(self.namespace)}.{self.quote(name)}" if self.namespace else self.quote(name)

    # --- servers only ---

    def execute(self, statement: str) -> None:
        """Run one statement as the administrator."""
        raise NotImplementedError

    def sessions(self) -> int:
        """Sessions of the connector's account that are open now."""
        raise NotImplementedError

    def running(self, marker: str) -> int:
        """Statements whose text contains `marker` and that run now."""
        raise NotImplementedError

    def kill_sessions(self) -> None:
        """End every session of the connector's account, as an administrator or a failover does."""
        raise NotImplementedError

    def restart(self) -> None:
        """Stop the server without a word to its clients and start it again."""
        raise NotImplementedError


@dataclass(frozen=True)
class Broken:
    """A configuration that must fail, and how."""

    config: dict[str, Any]
    stage: str
    code: str
    output_schemas: tuple[str, ...] = ()


@dataclass(frozen=True)
class TypeCase:
    """One native type: how it is declared, what it must become, and values with what they must be read as.

    `values` maps a literal in the source's notation to the Python value that Arrow gives for it. NULL is added by the suite.
    """

    native: str
    type: str
    values: Mapping[str, Any] = field(default_factory=dict)


def make(cls: type[BaseConnector[Any]], config: Mapping[str, Any], *schemas: str, **context: Any) -> BaseConnector[Any]:
    """A connector of this class from a plain configuration."""
    made = ConnectorContext(name="conformance", output_schemas=tuple(schemas), agent_version="0", **context)
    return cls(cls.Config.parse(dict(config)), made)
