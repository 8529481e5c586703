"""Where the agent keeps its things. Built on `os` alone: the forwarders import this and must start in milliseconds.

| what | default | overridden by |
|---|---|---|
| data directory | `$STATE_DIRECTORY` (systemd), else the user's data directory | `--data-dir`, `HFAGENT_DATA_DIR` |
| socket | `$XDG_RUNTIME_DIR/hfagent/agent.sock`, else `~/.local/state/hfagent/run/agent.sock` | `--socket`, `HFAGENT_SOCK` |
| configuration | `<user config>/hfagent/config.toml` | `--config`, `HFAGENT_CONFIG` |

A data directory that is not the default has its socket inside (`run/agent.sock`), so that two agents never meet. `TMPDIR`
is never used: environments differ between editors, and each would get a daemon of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["MAX_SOCKET_PATH", "AgentPaths"]

MAX_SOCKET_PATH = 107
"""`sun_path` holds 108 bytes with its terminating NUL."""


class AgentPaths:
    """All paths of one agent. Nothing is created here, and nothing is looked up before it is asked for."""

    __slots__ = ("_chosen", "_config", "_socket")

    def __init__(
        self, *, data_dir: str | None = None, socket: str | None = None, config_file: str | None = None
    ) -> None:
        env = os.environ
        self._chosen = data_dir or env.get("HFAGENT_DATA_DIR") or env.get("STATE_DIRECTORY", "").split(":")[0]
        self._socket = socket or env.get("HFAGENT_SOCK") or ""
        self._config = config_file or env.get("HFAGENT_CONFIG") or ""

    def arguments(self) -> list[str]:
        """Return options that give another process the same paths, whatever its directory and environment."""
        chosen = {"--data-dir": self._chosen, "--socket": self._socket, "--config": self._config}
        return [
            word for flag, value in chosen.items() if value for word in (flag, str(Path(value).expanduser().absolute()))
        ]

    @property
    def data_dir(self) -> Path:
        """Everything the agent must not lose."""
        if self._chosen:
            return Path(self._chosen).expanduser().absolute()
        import platformdirs  # only when the default is wanted: a forwarder never needs it

        return Path(platformdirs.user_data_dir("hfagent", appauthor=False))

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        if self._socket:
            return Path(self._socket).expanduser().absolute()
        runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
        if runtime:  # given by systemd to the service itself
            return Path(runtime) / "agent.sock"
        if self._chosen:
            return self.data_dir / "run" / "agent.sock"
        if os.environ.get("XDG_RUNTIME_DIR"):
            return Path(os.environ["XDG_RUNTIME_DIR"]) / "hfagent" / "agent.sock"
        return Path.home() / ".local" / "state" / "hfagent" / "run" / "agent.sock"

    @property
    def config_file(self) -> Path:
        """The agent's configuration; it need not exist."""
        if self._config:
            return Path(self._config).expanduser().absolute()
        if self._chosen:
            return self.data_dir / "config.toml"
        import platformdirs

        return Path(platformdirs.user_config_dir("hfagent", appauthor=False)) / "config.toml"

    @property
    def lock_file(self) -> Path:
        """Held with flock by the one daemon of this data directory."""
        return self.data_dir / "agent.lock"

    @property
    def store_file(self) -> Path:
        """The agent's own SQLite file."""
        return self.data_dir / "agent.db"

    @property
    def vault_dir(self) -> Path:
        """Key material and its description."""
        return self.data_dir / "vault"

    @property
    def log_file(self) -> Path:
        """Log of an auto-started daemon; under systemd the journal has it."""
        return self.data_dir / "log" / "agent.log"

    @property
    def token_file(self) -> Path:
        """Token for TCP clients, made anew at each start (mode 0600)."""
        return self.data_dir / "run" / "token"

    @property
    def lakehouse_dir(self) -> Path:
        """Delta tables."""
        return self.data_dir / "lakehouse"

    @property
    def connectors_dir(self) -> Path:
        """Watched for connectors-as-code files."""
        return self.data_dir / "connectors.d"
