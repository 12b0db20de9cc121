"""A store on a file of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path, master_key=MasterKey(b"a master key of thirty-two bytes"))
    yield store
    await store.close()
