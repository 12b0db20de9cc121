"""Copies of a database that is in use."""

import asyncio
import stat
from pathlib import Path

import pytest
from archive_world import files_of_at_most
from store_world import CODE, MASTER, FakeClock, activate, register

from ntf_server.store.contract import StoreCorruptError, StoreError, StoreUnavailableError
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.backup import backup
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.ntf import DeviceToken, Provider


async def test_a_backup_ends_under_load_and_opens(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    token = await activate(store)
    stop = False
    written = 0

    async def write(writer: int) -> None:
        nonlocal written
        while not stop:
            name = b"%d %d" % (writer, written)
            await register(store, DeviceToken(Provider.APNS, name), name)
            written += 1

    writers = [asyncio.create_task(write(i)) for i in range(8)]
    await asyncio.sleep(0.2)
    before = written
    target = tmp_path / "copy.db"
    size = await asyncio.wait_for(asyncio.to_thread(backup, path, target), 20)
    stop = True
    await asyncio.gather(*writers)
    assert size == target.stat().st_size
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    copy = await SqliteStore.open(target, master_key=MASTER, clock=FakeClock().clock)
    assert await copy.find_token(token.token_id) == token
    assert (await copy.backlog(Provider.APNS)).tokens >= before
    assert await copy.verify(token.ref, CODE)
    await copy.close()


async def test_a_file_that_is_there_is_not_written_over(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    with pytest.raises(StoreError, match="is there already"):
        backup(path, target)
    assert target.read_bytes() == b"precious"


async def test_what_cannot_be_copied_is_told_and_leaves_nothing(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no database"):
        backup(tmp_path / "absent.db", tmp_path / "copy.db")
    with pytest.raises(StoreError, match="cannot be written"):
        backup(path, tmp_path / "absent" / "copy.db")
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database\n" * 100)
    with pytest.raises((StoreError, StoreCorruptError)):
        backup(other, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


async def test_without_room_for_the_copy(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    await register(store)
    with (
        files_of_at_most(20_000),
        pytest.raises(StoreUnavailableError, match=r"copy\.db: disk I/O error; make room there"),
    ):
        backup(path, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


async def test_an_empty_file_keeps_its_wal(tmp_path: Path) -> None:
    path, wal = tmp_path / "relay.db", tmp_path / "relay.db-wal"
    path.touch()
    wal.write_bytes(b"all that is left")
    with pytest.raises(StoreCorruptError, match="it is empty"):
        backup(path, tmp_path / "copy.db")
    assert wal.read_bytes() == b"all that is left"
    assert not (tmp_path / "copy.db").exists()


async def test_a_copy_needs_the_same_master_key(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    backup(path, tmp_path / "copy.db")
    with pytest.raises(StoreError, match="master key"):
        await SqliteStore.open(tmp_path / "copy.db", master_key=MasterKey(bytes(32)))
