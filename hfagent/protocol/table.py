"""The one table of all methods."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

from hfagent.protocol import agent, connectors, query, vault
from hfagent.protocol.method import Method

__all__ = ["METHODS"]


def _collect(modules: Iterable[ModuleType]) -> dict[str, Method[Any, Any]]:
    found: dict[str, Method[Any, Any]] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Method) and found.setdefault(value.name, value) is not value:
                raise RuntimeError(f"the method {value.name} is declared twice")
    return dict(sorted(found.items()))


METHODS: Final[dict[str, Method[Any, Any]]] = _collect([agent, connectors, query, vault])
"""Method name → declaration, sorted by name."""
