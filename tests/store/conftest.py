"""A store in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hfagent.store.connectors import ConnectorRecord
from hfagent.store.store import Store
from tests.store.rows import draft


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "agent.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, ballast_bytes=64 * 1024) as store:
        yield store


@pytest.fixture
def connector(store: Store) -> ConnectorRecord:
    return store.connectors.insert(draft(store, "Sales"))
