"""Cached directories and environments are made once, and a failed build leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.cache import cached_directory
from tests.fixtures.environments import EnvironmentUnavailable, cached_environment


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFAGENT_TEST_CACHE", str(tmp_path / "cache"))


def test_built_once_per_key() -> None:
    built: list[Path] = []
    first = cached_directory("thing", "1", built.append)
    assert cached_directory("thing", "1", built.append) == first
    assert built == [first]
    assert cached_directory("thing", "2", built.append) != first


def test_an_interrupted_build_is_not_taken_for_a_finished_one() -> None:
    def build(directory: Path) -> None:
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_directory("thing", "1", build)
    assert list(cached_directory("thing", "1", lambda directory: None).iterdir()) != []
    assert not (cached_directory("thing", "1", lambda directory: None) / "half").exists()


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from tests.fixtures.cache import cached_directory\n"
        "def build(where): open(sys.argv[1], 'a').write('built\\n'); time.sleep(0.5); (where / 'f').touch()\n"
        "assert (cached_directory('slow', '1', build) / 'f').exists()\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    for process in [subprocess.Popen(command, cwd=root) for _ in range(3)]:
        assert process.wait(30) == 0
    assert (tmp_path / "log").read_text() == "built\n"


def test_an_environment_is_a_python_of_its_own() -> None:
    python = cached_environment("empty", ["pip"])
    where = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert Path(where.stdout.strip()) == python.parent.parent
    assert cached_environment("empty", ["pip"]) == python


def test_what_cannot_be_installed_is_said_with_pips_words() -> None:
    with pytest.raises(EnvironmentUnavailable, match=r"pip install failed: .*requirement"):
        cached_environment("broken", ["not a requirement"])
