"""Keeps other programs of the same user out of this process's memory, where opened secrets are.

Python cannot wipe a text, and drivers keep copies of their own, so nothing here promises that. What is promised: no core
file, and no debugger or `/proc/<pid>/mem` without being root.
"""

from __future__ import annotations

import resource
import sys
from typing import Final

__all__ = ["protect_memory"]

_PR_SET_DUMPABLE: Final = 4


def protect_memory() -> tuple[str, ...]:
    """Turn core files and debugging off for this process, and return what could not be done. Call it once, at start."""
    failed: list[str] = []
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as exc:
        failed.append(f"core files stay possible: {exc}")
    if sys.platform.startswith("linux"):
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            failed.append(f"the process stays open to debuggers of the same user (errno {ctypes.get_errno()})")
    return tuple(failed)
