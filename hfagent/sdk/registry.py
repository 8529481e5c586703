"""Finds connector types: by file name in `hfagent.connectors`, and by the entry-point group `hfagent.connectors`.

Listing names imports nothing. A class is imported when its type is first asked for (and all of them for the catalog,
which loads no driver either). Two types or aliases of one name are an error at start, never a surprise later.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
from functools import cached_property
from typing import Any

from hfagent.foundation.errors import ConfigError
from hfagent.model.connector import ConnectorType
from hfagent.sdk.connector import BaseConnector

__all__ = ["ENTRY_POINT_GROUP", "Registry", "describe"]

ENTRY_POINT_GROUP = "hfagent.connectors"
_PACKAGE = "hfagent.connectors"

ConnectorClass = type[BaseConnector[Any]]


class Registry:
    """All connector types of this installation."""

    def __init__(self) -> None:
        self._sources = _find_sources()
        self._classes: dict[str, ConnectorClass] = {}
        self.broken: dict[str, str] = {}
        """Type name → why it cannot be loaded, for those that were tried."""

    def names(self) -> tuple[str, ...]:
        """Canonical type names, sorted. Imports no connector."""
        return tuple(sorted(self._sources))

    def resolve(self, name: str) -> str:
        """Return the canonical name for a type or alias. Raises `ConfigError` (`config.type_unknown`) with near names."""
        if name in self._sources:
            return name
        canonical = self.aliases.get(name)
        if canonical is None:
            import difflib

            known = [*self._sources, *self.aliases]
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "run `hfagent connector catalog` for the list"
            raise ConfigError(
                f"there is no connector type {name!r}", code="config.type_unknown", field="type", hint=hint
            )
        return canonical

    def get(self, name: str) -> ConnectorClass:
        """Return the class of a type or alias. Raises `ConfigError` (`config.type_unknown`), also for a broken plug-in."""
        canonical = self.resolve(name)
        found = self._classes.get(canonical)
        if found is None:
            try:
                found = _load(canonical, self._sources[canonical])
            except Exception as exc:
                # A third party's module may raise anything; it takes its own type down and no other.
                self.broken[canonical] = f"{type(exc).__name__}: {exc}"
                raise ConfigError(
                    f"the connector type {canonical!r} cannot be loaded ({self.broken[canonical]})",
                    code="config.type_unknown",
                    field="type",
                    hint="mend or uninstall the package that brings it, then restart the agent",
                ) from exc
            self._classes[canonical] = found
        return found

    def all(self) -> tuple[ConnectorClass, ...]:
        """Every class, by type name; the ones that cannot be loaded are left out and named in `broken`."""
        return tuple(found for name in self.names() if (found := self._loaded(name)) is not None)

    def _loaded(self, name: str) -> ConnectorClass | None:
        try:
            return self.get(name)
        except ConfigError:
            return None

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Alias → canonical name. Raises `RuntimeError` when a name is taken twice."""
        result: dict[str, str] = {}
        for cls in self.all():
            for alias in cls.aliases:
                if alias in self._sources or alias in result:
                    raise RuntimeError(f"the connector type name {alias!r} is claimed twice")
                result[alias] = cls.type_name
        return result


def describe(cls: ConnectorClass) -> ConnectorType:
    """Return the catalog entry of a type."""
    driver = cls.driver
    return ConnectorType(
        type=cls.type_name,
        title=cls.title,
        description=cls.description,
        category=cls.category,
        is_queryable=cls.is_queryable,
        aliases=cls.aliases,
        config_schema=cls.Config.json_schema(),
        secret_fields=cls.Config.secret_fields(),
        capabilities=cls.capabilities(),
        driver_installed=driver is None or driver.installed(),
        driver=driver.package if driver else None,
        driver_version=driver.version() if driver else None,
        install_hint=driver.install_hint if driver and not driver.installed() else None,
        dialect=cls.dialect,
    )


def _find_sources() -> dict[str, importlib.metadata.EntryPoint | None]:
    package = importlib.import_module(_PACKAGE)
    sources: dict[str, importlib.metadata.EntryPoint | None] = {
        module.name: None for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")
    }
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if point.name in sources:
            raise RuntimeError(f"the connector type {point.name!r} of {point.value} exists already")
        sources[point.name] = point
    return sources


def _load(name: str, point: importlib.metadata.EntryPoint | None) -> ConnectorClass:
    if point is not None:
        found = point.load()
    else:
        module = importlib.import_module(f"{_PACKAGE}.{name}")
        own = [
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, BaseConnector) and value.__module__ == module.__name__
        ]
        if len(own) != 1:
            raise RuntimeError(f"{module.__name__} must define exactly one connector class, found {len(own)}")
        found = own[0]
    found.type_name = name
    return found  # type: ignore[no-any-return]
