"""What an operator decides about the vault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

__all__ = ["SOURCE_NAMES", "SourceName", "VaultSettings"]

SourceName = Literal["license", "systemd", "keyring", "file"]

SOURCE_NAMES: Final[tuple[SourceName, ...]] = ("license", "systemd", "keyring", "file")
"""In the order in which a new vault tries them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultSettings:
    """Settings of the vault."""

    key_source: SourceName | None = None
    """Where a new vault keeps its key; by default the best place that works. An existing vault stays where it is."""
    license_key_file: Path | None = None
    """File with the organisation's licensed sign key."""
    key_directory: Path | None = None
    """Folder for key files, by default the vault's own. On another disk, a stolen data directory is of no use."""
    keyring_timeout_s: float = 15.0
    """How long the OS keyring may take to answer; it may be waiting for somebody to unlock it."""
