"""What a database's file tells whoever only looks at it, and that nothing is left of that look."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from old_databases import NEWEST_OLD, OLDEST, OldToken, make
from store_world import MASTER, activate, register

from ntf_server.store.contract import StoreCorruptError, StoreError
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.file import is_locked
from ntf_server.store.sqlite.glance import glance
from smp_bridge.ntf import DeviceToken, Provider


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


async def filled(path: Path) -> SqliteStore:
    store = await SqliteStore.open(path, master_key=MASTER)
    await activate(store)
    for number in range(3):
        await register(store, DeviceToken(Provider.FCM, b"token %d" % number), b"key %d" % number)
    return store


async def test_one_that_was_closed(path: Path) -> None:
    store = await filled(path)
    await store.close()
    before = files(path)
    found = glance(path)
    assert files(path) == before
    assert (found.registrations, found.subscriptions, found.nodes) == ({"ACTIVE": 1, "REGISTERED": 3}, 0, None)
    assert found.due == {"FC": 3}
    assert found.oldest_due is not None and 0 <= found.oldest_due < 60


async def test_one_whose_server_was_killed(path: Path, tmp_path: Path) -> None:
    """What is in its -wal counts."""
    store = await filled(path)
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        shutil.copy(path.with_name(name), killed)
    await store.close()
    assert glance(killed / path.name).due == {"FC": 3}
    assert not is_locked(killed / path.name)


async def test_one_that_is_used(path: Path) -> None:
    assert not is_locked(path)
    store = await filled(path)
    assert is_locked(path)
    assert glance(path).registrations == {"ACTIVE": 1, "REGISTERED": 3}
    await store.close()
    assert not is_locked(path)


@pytest.mark.parametrize("schema", range(OLDEST, NEWEST_OLD + 1))
def test_one_of_an_older_server(path: Path, schema: int) -> None:
    """It stays so: a start brings it up to date."""
    make(path, schema, [OldToken(DeviceToken(Provider.APNS, b"t" * 64), b"key")])
    with closing(sqlite3.connect(path)) as c:
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = path.read_bytes()
    assert sum(glance(path).registrations.values()) == 1
    assert path.read_bytes() == before


def test_what_is_no_database_of_ours(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database; the first start makes one"):
        glance(path)
    path.touch()
    with pytest.raises(StoreCorruptError, match="it is empty"):
        glance(path)
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(StoreCorruptError, match="the database is corrupt"):
        glance(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as c:
        c.execute("CREATE TABLE theirs (a)")
    with pytest.raises(StoreError, match="the database of another program"):
        glance(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError):
        glance(path)
