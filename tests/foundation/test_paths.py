"""Where things are, by option, environment and default; and that asking costs no heavy import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hfagent.foundation.paths import MAX_SOCKET_PATH, AgentPaths

NAMES = (
    "HFAGENT_DATA_DIR", "HFAGENT_SOCK", "HFAGENT_CONFIG", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR",
    "XDG_DATA_HOME", "XDG_CONFIG_HOME",
)  # fmt: skip


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_defaults(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = AgentPaths()
    assert paths.data_dir == tmp_path / ".local/share/hfagent"
    assert paths.config_file == tmp_path / ".config/hfagent/config.toml"
    assert paths.socket == tmp_path / ".local/state/hfagent/run/agent.sock"
    env.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert AgentPaths().socket == Path("/run/user/7/hfagent/agent.sock")


def test_another_data_directory_is_another_agent(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    env.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    paths = AgentPaths(data_dir=str(tmp_path / "other"))
    inside = [
        paths.data_dir, paths.socket, paths.config_file, paths.lock_file, paths.store_file, paths.vault_dir, paths.log_file,
        paths.token_file, paths.lakehouse_dir, paths.connectors_dir,
    ]  # fmt: skip
    assert all(path.is_relative_to(tmp_path / "other") for path in inside)
    assert len(set(inside)) == len(inside)


def test_options_win_over_the_environment(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    env.setenv("HFAGENT_DATA_DIR", "/env/data")
    env.setenv("HFAGENT_SOCK", "/env/sock")
    env.setenv("HFAGENT_CONFIG", "/env/config.toml")
    env.setenv("STATE_DIRECTORY", "/var/lib/hfagent")
    paths = AgentPaths()
    assert (paths.data_dir, paths.socket, paths.config_file) == (
        Path("/env/data"), Path("/env/sock"), Path("/env/config.toml"),
    )  # fmt: skip
    paths = AgentPaths(data_dir="~/d", socket="~/s", config_file="~/c")
    assert (paths.data_dir, paths.socket, paths.config_file) == (tmp_path / "d", tmp_path / "s", tmp_path / "c")


def test_under_systemd(env: pytest.MonkeyPatch) -> None:
    env.setenv("STATE_DIRECTORY", "/var/lib/hfagent:/var/lib/other")
    env.setenv("RUNTIME_DIRECTORY", "/run/hfagent")
    assert (AgentPaths().data_dir, AgentPaths().socket) == (Path("/var/lib/hfagent"), Path("/run/hfagent/agent.sock"))


def test_relative_paths_do_not_move_with_the_directory(
    env: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert AgentPaths(data_dir="d").data_dir == tmp_path / "d"
    words = AgentPaths(data_dir="d", socket="s").arguments()
    assert words == ["--data-dir", str(tmp_path / "d"), "--socket", str(tmp_path / "s")]
    assert AgentPaths().arguments() == []


def test_the_longest_socket_path_is_the_systems(tmp_path: Path) -> None:
    import socket

    for length, fits in ((MAX_SOCKET_PATH, True), (MAX_SOCKET_PATH + 1, False)):
        path = "/tmp/" + "x" * (length - 5)
        with socket.socket(socket.AF_UNIX) as one:
            if fits:
                with pytest.raises(FileNotFoundError):
                    one.connect(path)
            else:
                with pytest.raises(OSError, match="too long"):
                    one.connect(path)


def test_a_chosen_directory_needs_no_third_party_package() -> None:
    script = (
        "import sys; from hfagent.foundation.paths import AgentPaths; p = AgentPaths(data_dir='/x'); p.socket; p.config_file\n"
        "found = [m for m in ('platformdirs', 'pydantic', 'asyncio') if m in sys.modules]; sys.exit(','.join(found) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
