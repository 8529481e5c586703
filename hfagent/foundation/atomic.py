"""Files that are either the old or the new content, never half of it, also after a power cut."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["make_private_directory", "sync_directory", "sync_file", "write_atomic", "write_new"]


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` with `content`: temporary file in the same directory, fsync, rename, fsync of the directory.

    `mode` is set before the first byte is written. Raises `OSError`; the old file is then untouched.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105  same directory, must be one rename
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_new(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Create `path` with `content`. Raises `FileExistsError` when it exists; never follows a symlink."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable, whoever wrote it. Its name needs `sync_directory`. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_directory(path: Path) -> None:
    """Create `path` (and its parents) with mode 0700 and check that it is ours and closed to others.

    Raises `PermissionError` naming the remedy when the directory belongs to another user or is open to others.
    """
    for directory in (*reversed(path.parents), path):  # `Path.mkdir(parents=True)` gives the mode to the last one only
        if not directory.is_dir():
            directory.mkdir(mode=0o700, exist_ok=True)
            sync_directory(directory.parent)  # what is in it may be synced with care, and gone with its name
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise PermissionError(
            f"{path} belongs to user id {status.st_uid}, not to {os.geteuid()}: choose another directory"
        )
    if status.st_mode & 0o077:
        raise PermissionError(f"{path} is open to other users (mode {status.st_mode & 0o777:o}): run chmod 700 {path}")
