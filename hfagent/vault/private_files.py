"""Reading a small file that holds something secret, without being led elsewhere or held up by it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["Unusable", "read_small"]


class Unusable(Exception):
    """Why a file cannot be taken. The message begins with the path and never holds content."""


def read_small(path: Path, *, limit: int, follow_links: bool) -> tuple[bytes, os.stat_result]:
    """Return the content of a regular file of at most `limit` bytes, and its status.

    Raises `FileNotFoundError`, `Unusable`. The status is of the very file that was read, not of the name; a FIFO or device
    is refused without waiting for it.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as exc:
        if path.is_symlink() and not follow_links:
            raise Unusable(f"{path} is a symbolic link") from exc
        raise Unusable(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unusable(f"{path} is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    except OSError as exc:
        raise Unusable(f"{path} cannot be read: {exc.strerror}") from exc
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise Unusable(f"{path} is larger than {limit} bytes")
    return content, status
