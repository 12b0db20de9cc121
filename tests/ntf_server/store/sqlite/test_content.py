"""The statements that load what pushes say. What they load is tested in test_deliveries.py."""

import pytest
from store_world import FakeClock, acquire, activate, notify, plan, subscribe, take

from ntf_server.store.sqlite import content as module
from ntf_server.store.sqlite.engine import SqliteStore


@pytest.mark.parametrize("name", ["_TOKENS", "_UNSENT", "_UNSENT_IN_TIME", "_SENT_BEFORE", "_EXPIRE"])
async def test_no_statement_goes_through_a_whole_table(store: SqliteStore, name: str) -> None:
    query: str = getattr(module, name)
    values = {"refs": "[1]", "limit": 6, "oldest": 0}
    details = await plan(store, query, values)
    assert not [d for d in details if d.startswith("SCAN") and " j " not in d], details
    assert not [d for d in details if "TEMP B-TREE" in d], details


async def test_one_look_gives_up_so_many_at_most(
    store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_EXPIRED", 4)
    token = await activate(store)
    queues = [b"%d" % i for i in range(10)]
    await subscribe(store, token, *queues)
    await notify(store, await acquire(store), *queues)
    clock.pass_(24 * 3600)
    assert not await take(store)
    query = "SELECT count(*) FROM notifications WHERE sent = 0"
    assert await store._database.read(lambda c: c.execute(query).fetchone()) == (6,)
    await store.tend()
    assert await store._database.read(lambda c: c.execute(query).fetchone()) == (0,)


async def test_addresses_that_are_remembered_are_bounded(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ADDRESSES", 0)
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    await notify(store, await acquire(store), b"a", b"b")
    [claim] = await take(store)
    assert len({e.server for e in claim.entries}) == 1
    assert len(store._state.addresses) == 1
