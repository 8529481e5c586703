"""What this agent allows, whoever asks: connector types, hosts, paths. Read from the settings, never from a client."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

from hfagent.foundation.errors import ConfigError
from hfagent.model.settings import PolicySettings
from hfagent.sdk.config import ConnectorConfig

__all__ = ["Policy"]


class Policy:
    """The local policy. All checks raise `ConfigError` (`config.policy_denied`) naming the setting that decides."""

    def __init__(self, settings: PolicySettings, *, data_dir: Path | None = None) -> None:
        """`data_dir` is the agent's own: nobody exports into it."""
        self.settings = settings
        self._data_dir = data_dir

    @property
    def allowed_paths(self) -> tuple[Path, ...]:
        """Directories that file connectors may read, resolved."""
        return tuple(Path(path).expanduser().resolve() for path in self.settings.allowed_paths)

    def check_type(self, type_name: str) -> None:
        """Refuse a connector type that the policy excludes."""
        allowed, denied = self.settings.allowed_types, self.settings.denied_types
        if type_name in denied or (allowed and type_name not in allowed):
            setting = "policy.denied_types" if type_name in denied else "policy.allowed_types"
            raise ConfigError(
                f"this agent's policy does not allow connectors of type {type_name}",
                code="config.policy_denied",
                field="type",
                hint=f"the agent's owner decides with the setting {setting}",
            )

    def check_config(self, model: type[ConnectorConfig], config: dict[str, Any]) -> None:
        """Refuse hosts that the policy excludes (fields marked as endpoints that hold host names)."""
        patterns = [pattern.lower() for pattern in self.settings.allowed_hosts]
        if not patterns:
            return
        properties = model.properties()
        for name in model.marked("x-endpoint"):
            value = config.get(name, properties[name].get("default"))
            if not isinstance(value, str) or name == "unix_socket":
                continue
            for host in map(_bare, value.split(",")):
                if not any(fnmatch.fnmatchcase(host, pattern) for pattern in patterns):
                    raise ConfigError(
                        f"this agent's policy does not allow connections to {host!r}",
                        code="config.policy_denied",
                        field=name,
                        hint="the agent's owner decides with the setting policy.allowed_hosts",
                    )

    def check_export(self, path: Path, *, owner: bool = True) -> Path:
        """Return the resolved target of an export.

        Refuses relative paths, the agent's own data directory, and places outside `policy.export_paths`. Who is not the
        agent's own user (`owner` false) writes to these only: the files would be written with the agent's rights.
        """
        text = str(path)
        if not path.is_absolute() or "\0" in text or path.name in ("", "..") or text.endswith("/"):
            raise ConfigError(
                f"the export path {text!r} is not the absolute path of a file", code="config.invalid", field="path"
            )
        target = path.parent.resolve() / path.name
        roots = [Path(root).expanduser().resolve() for root in self.settings.export_paths]
        own = self._data_dir is not None and target.is_relative_to(self._data_dir.resolve())
        if own or not (any(target.is_relative_to(root) for root in roots) or (owner and not roots)):
            raise ConfigError(
                f"this agent's policy does not allow exports to {target.parent}",
                code="config.policy_denied",
                field="path",
                hint="choose a place outside the agent's own directory"
                if own
                else "the agent's owner decides with the setting policy.export_paths",
            )
        return target


def _bare(host: str) -> str:
    """The host name in what a host or address field holds: scheme, user, port, path and brackets are taken away."""
    text = host.strip().lower()
    text = text.split("://", 1)[-1].split("/", 1)[0] if not text.startswith("/") else text
    text = text.rsplit("@", 1)[-1]
    if text.startswith("["):
        return text[1:].split("]", 1)[0]
    return text.split(":", 1)[0] if text.count(":") == 1 else text
