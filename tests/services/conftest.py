"""The services of an agent over a fake source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.fakes import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    before = os.umask(0o077)  # as the daemon sets it
    world = World(tmp_path / "data")
    try:
        yield world
    finally:
        world.close()
        os.umask(before)
