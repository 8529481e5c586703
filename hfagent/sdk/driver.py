"""Third-party drivers, imported when a connector of that type first connects."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from hfagent.foundation.errors import ConfigError

__all__ = ["Driver"]


@dataclass(frozen=True)
class Driver:
    """A driver module and the extra that brings it.

    `module` is what is imported, `distribution` what pip installs (default: the module's name), `extra` hfagent's extra.
    """

    module: str
    extra: str
    distribution: str = ""

    @property
    def package(self) -> str:
        """Name of the distribution."""
        return self.distribution or self.module

    def installed(self) -> bool:
        """Tell whether the driver is there, without importing it."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except (ImportError, ValueError):
            return False

    def version(self) -> str | None:
        """Version of the installed distribution, or None."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    @property
    def install_hint(self) -> str:
        """The command that installs it."""
        return f"pip install 'hfagent[{self.extra}]'"

    def load(self, submodule: str = "") -> ModuleType:
        """Import the driver (or one of its submodules). Raises `ConfigError` with the install command when absent."""
        name = f"{self.module}.{submodule}" if submodule else self.module
        try:
            return importlib.import_module(name)
        except ImportError as exc:
            raise ConfigError(
                f"the driver {self.package} is not installed on this agent ({exc})",
                code="config.driver_missing",
                hint=f"run {self.install_hint} in the agent's environment and restart it",
            ) from exc
