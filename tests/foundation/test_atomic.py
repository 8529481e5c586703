"""Files are the old or the new content, with the right mode, whatever happens in between."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hfagent.foundation.atomic import make_private_directory, sync_directory, write_atomic, write_new


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_replaces_the_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two", mode=0o640)
    assert (path.read_bytes(), mode(path)) == (b"two", 0o640)
    assert os.listdir(tmp_path) == ["state.json"]


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        write_atomic(tmp_path / "a", b"x")
        write_new(tmp_path / "b", b"x")
        make_private_directory(tmp_path / "c" / "d")
    finally:
        os.umask(previous)
    assert [mode(tmp_path / name) for name in ("a", "b", "c", "c/d")] == [0o600, 0o600, 0o700, 0o700]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_a_failure_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "state.json"
    write_atomic(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_the_data_are_durable_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def spy(*args: object, name: str = name, real: object = real, **kwargs: object) -> object:
            if name == "fsync":
                kind = "directory" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"  # type: ignore[arg-type]
                steps.append(f"fsync {kind}")
            else:
                steps.append(name)
            return real(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(os, name, spy)
    write_atomic(tmp_path / "a", b"x")
    assert steps == ["fsync file", "replace", "fsync directory"]
    steps.clear()
    write_new(tmp_path / "b", b"x")
    assert steps == ["fsync file", "fsync directory"]


def test_write_new_never_replaces_nor_follows(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_new(path, b"first")
    with pytest.raises(FileExistsError):
        write_new(path, b"second")
    assert path.read_bytes() == b"first"
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OSError):
        write_new(tmp_path / "link", b"x")
    assert not target.exists()


def test_write_new_removes_a_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        write_new(tmp_path / "key", b"x")
    assert os.listdir(tmp_path) == []


def test_private_directories(tmp_path: Path) -> None:
    make_private_directory(tmp_path / "a" / "b" / "c")
    make_private_directory(tmp_path / "a" / "b" / "c")
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o700] * 3
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match=r"run chmod 700 .*open"):
        make_private_directory(tmp_path / "open")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_private_directory(tmp_path / "file")


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_private_directory(tmp_path / "a")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(PermissionError, match="belongs to user id"):
        make_private_directory(tmp_path / "a")


def test_existing_parents_keep_their_mode(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    make_private_directory(tmp_path / "shared" / "mine")
    assert (mode(tmp_path / "shared"), mode(tmp_path / "shared" / "mine")) == (0o755, 0o700)


def test_sync_directory_wants_a_directory(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    (tmp_path / "f").touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "f")
