"""A store on a file of its own, with a clock that a test sets."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_world import MASTER, FakeClock

from ntf_server.store.sqlite.engine import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(path: Path, clock: FakeClock) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path, master_key=MASTER, clock=clock.clock)
    yield store
    await store.close()
