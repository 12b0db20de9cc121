"""A database as a whole: read, made, and kept from relays while it is not all there."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from moving import MARK, contents, keeps, mixed, read
from msgspec.structs import replace
from store_world import MASTER, SMP, acquire, new_token, subscribe

from ntf_server.store.clock import boot_id, since_boot
from ntf_server.store.contract import StoreConflictError, StoreError, StoreUnavailableError
from ntf_server.store.portable import Moved
from ntf_server.store.records import ServiceCertificate
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.portable import PortableDatabase
from smp_bridge.ntf import DeviceToken, Provider


def opened(path: Path, *, make: bool = True) -> PortableDatabase:
    return PortableDatabase.open(path, MASTER, make=make)


async def relay(path: Path) -> SqliteStore:
    return await SqliteStore.open(path, master_key=MASTER)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents())
async def test_what_is_written_is_read(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "relay.db"
    path.unlink(missing_ok=True)
    store = opened(path)
    await keeps(store, content)
    await store.close()


async def test_writing_it_twice_changes_nothing(path: Path) -> None:
    relay_ = await relay(path)
    await mixed(relay_)
    await relay_.close()
    store, copy = opened(path), opened(path.with_name("copy.db"))
    before = await read(store)
    await copy.begin(MARK)
    for _ in range(2):
        async for servers in store.servers():
            await copy.write_servers(servers.moved)
        await copy.write((await store.read(b"", 100)).moved, replace(MARK, cursor=None))
    mark = await copy.mark()
    assert mark is not None and mark.cursor is None
    assert await read(copy) == before
    await copy.end(0)
    assert await copy.mark() is None
    for each in (store, copy):
        await each.close()


async def test_while_it_is_filled_nobody_else_has_it(path: Path) -> None:
    store = opened(path)
    await store.begin(MARK)
    assert await store.mark() == MARK
    with pytest.raises(StoreUnavailableError, match="another ntf-server uses this database"):
        await relay(path)
    await store.close()
    with pytest.raises(StoreConflictError, match="being filled by `ntf-server migrate`"):
        await relay(path)
    with pytest.raises(StoreConflictError, match="being filled by `ntf-server migrate`"):
        opened(path, make=False)
    store = opened(path)
    await store.end(0)
    await store.close()
    await (await relay(path)).close()


async def test_one_that_has_something_is_not_filled(path: Path) -> None:
    relay_ = await relay(path)
    await acquire(relay_)
    await relay_.close()
    store = opened(path)
    with pytest.raises(StoreConflictError, match="registrations or servers already"):
        await store.begin(MARK)
    assert await store.mark() is None
    await store.close()


def test_there_has_to_be_one_to_read(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        opened(path, make=False)
    assert not path.exists()


async def test_a_store_is_known_by_its_key(path: Path) -> None:
    found = []
    for name in (path, path, path.with_name("other.db")):
        store = opened(name)
        await store.check_idle()
        found.append(store.identity)
        await store.close()
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 16


_DAMAGES = {
    "code": "UPDATE tokens SET code = zeroblob(60) WHERE ref = 1",
    "set aside": "UPDATE tokens SET damaged = 1 WHERE ref = 1",
    "status": "UPDATE tokens SET status = 'WHAT' WHERE ref = 1",
    "provider": "UPDATE tokens SET provider = '??' WHERE ref = 1",
}
_OF_SUBSCRIPTIONS = {
    "key": "UPDATE subscriptions SET notifier_key = x'00' WHERE ref = 1",
    "set aside": "UPDATE subscriptions SET damaged = 1 WHERE ref = 1",
    "status": "UPDATE subscriptions SET status = 'WHAT' WHERE ref = 1",
    "spelling": "UPDATE subscriptions SET spelling = x'ff' WHERE ref = 1",
    "server": "UPDATE subscriptions SET server = 99 WHERE ref = 1",
}


OF = "of a subscription: "


@pytest.mark.parametrize("what", [*_DAMAGES, *(f"{OF}{name}" for name in _OF_SUBSCRIPTIONS), "certificate", "address"])
async def test_what_cannot_be_read_is_left_out_and_counted(path: Path, what: str) -> None:
    relay_ = await relay(path)
    for n in range(2):
        token = await relay_.register(new_token(DeviceToken(Provider.APNS, b"%d" % n)))
        assert token is not None
        await subscribe(relay_, token, *(b"queue%d%d" % (n, q) for q in range(2)))
    await relay_.service_certificate(SMP, lambda: ServiceCertificate(b"chain", b"key"))
    await relay_.close()
    subscription = _OF_SUBSCRIPTIONS[what.removeprefix(OF)] if what.startswith(OF) else None
    statement = _DAMAGES.get(what) or subscription
    with closing(sqlite3.connect(path)) as c, c:
        columns = "address = x'ff'" if what == "address" else "certificate_key = x'00'"
        c.execute(statement or f"UPDATE servers SET {columns}")
    store = opened(path)
    servers, moved, left_out = await read(store)
    await store.close()
    assert len(servers) == (what != "address")
    if what in _DAMAGES:
        assert left_out == {"registrations": 1, "subscriptions": 2} and len(moved) == 1
    elif subscription:
        assert left_out == {"subscriptions": 1} and len(moved) == 2
    elif what == "address":
        assert left_out == {"servers": 1, "subscriptions": 4}
    else:
        assert left_out == {"certificates": 1} and servers[0][-2:] == (b"", b"")


async def test_what_was_deleted_and_not_yet_cleared_stays_behind(path: Path) -> None:
    relay_ = await relay(path)
    token = await relay_.register(new_token())
    assert token is not None
    await subscribe(relay_, token, b"queue")
    await relay_.close()
    with closing(sqlite3.connect(path)) as c, c:
        c.execute("DELETE FROM tokens")
        c.execute("INSERT INTO gone (token, subscriptions) VALUES (1, 1)")
    store = opened(path)
    servers, moved, left_out = await read(store)
    assert (len(servers), moved, left_out) == (1, [], {})
    await store.close()


async def test_a_clock_that_was_set_meanwhile_shifts_all(path: Path) -> None:
    """A store that nobody opened since has its times by the old one."""
    relay_ = await relay(path)
    token = await relay_.register(new_token())
    assert token is not None
    await relay_.close()
    ahead = time.time() - since_boot()
    with closing(sqlite3.connect(path)) as c, c:
        c.execute("INSERT OR REPLACE INTO clock (ref, boot, ahead) VALUES (1, ?, ?)", (boot_id(), ahead - 3600))
    store = opened(path)
    assert store.ahead == -3600
    [moved] = (await store.read(b"", 10)).moved
    assert isinstance(moved, Moved)
    assert abs(moved.token.active_at - token.active_at - 3600) <= 1
    assert moved.token.due_ms is not None and abs(moved.token.due_ms / 1000 - token.active_at - 3600) <= 2
    await store.close()
