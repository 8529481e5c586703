"""The lakehouse's own errors, and how the disk's become the agent's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfagent.foundation.errors import AgentError

__all__ = ["damaged", "writing"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL_TEXTS = ("no space left on device", "os error 28", "disk quota exceeded", "os error 122")


def damaged(directory: Path, detail: str) -> AgentError:
    """The error for a table that is broken where it was known to be whole. Nothing was changed."""
    return AgentError(
        f"the table in {directory} is damaged: {detail}; nothing was changed",
        code="lakehouse.damaged",
        hint="put a backup of the directory back, or reset the dataset: its next run then loads everything anew",
    )


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Translate what goes wrong while a table is written. What was begun is not part of the table."""
    try:
        yield
    except AgentError:
        raise
    except OSError as exc:
        if exc.errno in _FULL or _is_full(exc):
            raise _disk_full(directory) from exc
        raise AgentError(
            f"the table in {directory} cannot be written: {exc.strerror or exc}",
            code="internal.store",
            hint="check the disk, and the owner and mode of the directory; the next run goes on from the last good state",
        ) from exc
    except Exception as exc:  # delta-rs raises classes of its own, also for what the file system said
        if _is_full(exc):
            raise _disk_full(directory) from exc
        raise


def _is_full(exc: BaseException) -> bool:
    text = str(exc).lower()
    return any(sign in text for sign in _FULL_TEXTS)


def _disk_full(directory: Path) -> AgentError:
    return AgentError(
        f"the disk with the table {directory} is full; the table is as it was",
        code="agent.disk_full",
        hint=f"free space on the file system of {directory.parent}; the next run goes on from the last good state",
    )
