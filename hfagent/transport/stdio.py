"""Stdio as a transport: descriptor 1 belongs to the protocol from the first instruction on.

Built on `os` alone. The daemon itself never serves stdio; the forwarders do.
"""

from __future__ import annotations

import os

__all__ = ["claim"]


def claim() -> tuple[int, int]:
    """Return descriptors to read requests from and write replies to; nothing else can reach the latter any more.

    Whatever prints to standard output from here on (a library, a child process) prints to standard error.
    """
    reading = os.dup(0)
    writing = os.dup(1)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return reading, writing
