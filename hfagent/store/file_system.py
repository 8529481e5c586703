"""Whether a file system can hold the store: WAL needs shared memory and honest locks, which network ones lack."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

__all__ = ["NETWORK", "UNSURE", "judge", "magic_of"]

NETWORK: Final = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x01021997: "9P",
    0x5346414F: "AFS",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x73757245: "Coda",
}
"""`statfs` magic numbers of network file systems: two machines, or a lost lock, and the store is corrupted."""

UNSURE: Final = {
    0x65735546: "FUSE (it may be a network file system)",
    0x786F4256: "a VirtualBox shared folder",
    0x794C7630: "an overlay (a container's own layer: it goes away with the container)",
    0x01021994: "in memory (tmpfs: it goes away when the machine restarts)",
    0x858458F6: "in memory (ramfs: it goes away when the machine restarts)",
}
"""Magic numbers that work as far as the store is concerned, with a doubt worth telling."""


def judge(folder: Path, magic: int | None) -> tuple[str | None, str | None]:
    """Return (reason to refuse, warning) for a file system of that magic number; at most one is set."""
    if magic in NETWORK:
        return f"{folder} is on a network file system ({NETWORK[magic]}), which would corrupt the store", None
    if magic in UNSURE:
        return None, f"the store's folder {folder} is on {UNSURE[magic]}"
    return None, None


def magic_of(folder: Path) -> int | None:
    """Return the `statfs` magic number of `folder`'s file system; None where that cannot be asked (not Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes  # here only: Python has statvfs, which does not tell the type

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)  # struct statfs is at most 120 bytes; its first word is f_type
    if libc.statfs(os.fsencode(folder), buffer) != 0:
        return None
    word = ctypes.sizeof(ctypes.c_long)
    return int.from_bytes(buffer.raw[:word], sys.byteorder) & 0xFFFFFFFF
