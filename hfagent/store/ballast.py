"""Space set aside for the day the disk is full: SQLite needs room even to delete.

With the disk full, a DELETE in WAL mode fails too, so a full store could never be emptied. The ballast is a file of
incompressible bytes beside the store; it is given up for deletions only, and made again as soon as there is room.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["Ballast"]

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Ballast:
    """A file of `size` bytes at `path`."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size

    @property
    def size(self) -> int:
        """What is set aside, in bytes."""
        return self._size

    @property
    def held(self) -> bool:
        """Whether the whole ballast is on disk."""
        try:
            return self._path.stat().st_size >= self._size
        except FileNotFoundError:
            return False

    def restore(self) -> bool:
        """Make the ballast when it is missing or cut short. Return False, leaving nothing, when there is no space."""
        if self.held:
            return True
        try:
            self._write()
        except OSError as exc:
            self.release()
            if exc.errno in _NO_SPACE:
                return False
            raise
        return True

    def release(self) -> None:
        """Give the space back. Repeating it does nothing."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        # Random, so that a compressing file system really sets the space aside; synced, so that it does so now.
        self._path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o600), "wb") as file:
            block = os.urandom(min(self._size, 1 << 20))
            left = self._size
            while left > 0:
                left -= file.write(block[:left])
            file.flush()
            os.fsync(file.fileno())
