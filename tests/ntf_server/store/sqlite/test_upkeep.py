"""Upkeep in slices."""

import sqlite3
from pathlib import Path

import pytest
from store_world import (
    MASTER,
    NOW,
    OTHER_SMP,
    SMP,
    FakeClock,
    acquire,
    activate,
    again,
    dead,
    look,
    notify,
    register,
    subscribe,
    take,
    take_one,
)

from ntf_server.observe.names import Counter, KindCounter
from ntf_server.store.contract import StoreCorruptError
from ntf_server.store.records import ServiceCertificate
from ntf_server.store.sqlite import upkeep as module
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.ntf import DeviceToken, Provider


def device(number: int) -> DeviceToken:
    return DeviceToken(Provider.APNS, b"device %d" % number)


async def tended(store: SqliteStore) -> int:
    """All that is due: how many slices."""
    slices = 1
    while await store.tend() < 1:
        slices += 1
    return slices


async def rows(store: SqliteStore, query: str) -> list[tuple[object, ...]]:
    return await store._database.read(lambda c: c.execute(query).fetchall())


async def test_there_is_nothing_to_do(store: SqliteStore) -> None:
    assert await store.tend() == module.LOOK
    assert 0 < await store.tend() <= module.LOOK


async def test_what_expired_in_a_lane_that_nobody_takes_from_is_given_up(
    store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SWEEP", 3)
    token = await activate(store)
    queues = [b"%d" % i for i in range(10)]
    await subscribe(store, token, *queues)
    session = await acquire(store)
    await notify(store, session, *queues)
    await store.record([again(await take_one(store), 3600)])
    clock.pass_(23 * 3600)
    await tended(store)
    assert (await store.backlog(Provider.APNS)).tokens == 1
    clock.pass_(3600)
    assert await tended(store) > 3
    assert (await store.backlog(Provider.APNS)).tokens == 0
    assert store._metrics.value(KindCounter.EXPIRED, "notification") == 10
    assert not await take(store)


async def test_a_code_and_a_check_that_nobody_took_are_given_up(store: SqliteStore, clock: FakeClock) -> None:
    await register(store)
    checked = await activate(store, key=b"checked")
    await store.set_period(checked.ref, 1)
    clock.pass_(66)
    await store.mark_checks(10)
    clock.pass_(600)
    await tended(store)
    assert store._metrics.value(KindCounter.EXPIRED, "verification") == 0  # TVFY took that registration away
    assert (await store.backlog(Provider.APNS)).tokens == 1
    clock.pass_(24 * 3600)
    await tended(store)
    assert store._metrics.value(KindCounter.EXPIRED, "check") == 1
    assert (await store.backlog(Provider.APNS)).tokens == 0


async def test_what_is_in_flight_is_not_given_up_under_it(store: SqliteStore, clock: FakeClock) -> None:
    await register(store)
    assert await take(store)
    clock.pass_(24 * 3600)
    await tended(store)
    assert store._metrics.value(KindCounter.EXPIRED, "verification") == 0


async def test_servers_without_subscriptions_go_but_for_sessions_and_proven_ones(
    store: SqliteStore, clock: FakeClock
) -> None:
    token = await activate(store)
    [a] = await subscribe(store, token, b"a")
    [b] = await subscribe(store, token, b"b", server=OTHER_SMP)
    session, other = await acquire(store), await acquire(store, OTHER_SMP)
    await store.service_certificate(OTHER_SMP, lambda: ServiceCertificate(b"chain", b"key"))
    for added in (a, b):
        found = await store.find_subscription(added.subscription_id)
        assert found is not None
        if added is b:
            await store.prove(other, "192.0.2.0/24")
        await store.unsubscribe(found[1].ref)
    await store.release(other)
    await tended(store)
    assert await rows(store, "SELECT proven FROM servers ORDER BY ref") == [(0,), (NOW,)]
    await store.release(session)
    clock.pass_(60)
    await tended(store)
    assert await rows(store, "SELECT certificate FROM servers") == [(b"chain",)]
    assert store._metrics.value(Counter.SERVERS_FORGOTTEN) == 1
    clock.pass_(7 * 24 * 3600)
    await tended(store)
    assert await rows(store, "SELECT count(*) FROM servers") == [(0,)]
    assert store._metrics.value(Counter.SERVERS_FORGOTTEN) == 2
    await subscribe(store, await activate(store), b"c")
    assert await store.servers() == [SMP]


async def test_registrations_that_are_forgotten_are_counted_by_kind(store: SqliteStore, clock: FakeClock) -> None:
    def counted() -> list[int]:
        kinds = KindCounter.TOKENS_EXPIRED.kinds
        return [store._metrics.value(KindCounter.TOKENS_EXPIRED, kind) for kind in kinds]

    gone, silent, heard = [await activate(store, device(n), b"%d" % n) for n in range(3)]
    await register(store, device(0), b"0")
    await store.record([dead(await take_one(store))])
    await register(store)
    clock.pass_(24 * 3600)
    await tended(store)
    assert counted() == [1, 0, 0]
    clock.pass_(300 * 24 * 3600)
    store.seen(await look(store, heard))
    await tended(store)
    clock.pass_(100 * 24 * 3600)
    await tended(store)
    assert counted() == [1, 1, 1]
    assert await rows(store, "SELECT ref FROM tokens") == [(heard.ref,)]
    assert await store.find_token(gone.token_id) is await store.find_token(silent.token_id) is None


async def test_that_a_token_sent_a_command_is_written_once_a_day(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    clock.pass_(24 * 3600 - 1)
    store.seen(token)
    assert not store._seen.take()
    clock.pass_(1)
    for _ in range(3):
        store.seen(token)
    await store.tend()
    assert await rows(store, "SELECT active_at FROM tokens") == [(NOW + 24 * 3600,)]
    store.seen(await look(store, token))
    assert not store._seen.take()


async def test_a_token_with_many_subscriptions_is_forgotten_in_slices(store: SqliteStore, clock: FakeClock) -> None:
    tokens = [await activate(store, device(n), b"%d" % n) for n in range(4)]
    for n, token in enumerate(tokens):
        await subscribe(store, token, *(b"%d %d" % (n, i) for i in range(300)))
    clock.pass_(366 * 24 * 3600)
    left = []
    while await store.tend() < 1:
        left.append((await rows(store, "SELECT count(*) FROM tokens"))[0][0])
    assert 2 in left
    assert left[-1] == 0
    assert await store.subscription_count() == 0


async def test_a_file_that_was_moved_away_is_told(path: Path) -> None:
    told: list[StoreCorruptError] = []
    store = await SqliteStore.open(path, master_key=MASTER, on_corrupt=told.append)
    await store.tend()
    path.rename(path.with_name("moved.db"))
    with pytest.raises(StoreCorruptError, match="moved, deleted or replaced"):
        await store.tend()
    assert len(told) == 1
    await store.close()


async def test_a_wal_that_a_long_read_made_large_is_shortened(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGE_WAL", 100_000)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM tokens").fetchall()
    for i in range(30):
        await register(store, key=b"%d" % i)
    wal = path.with_name("relay.db-wal")
    assert wal.stat().st_size > 100_000
    await store.tend()
    assert wal.stat().st_size > 100_000
    reader.close()
    await store.tend()
    assert wal.stat().st_size == 0
    assert len(await take(store)) == 30
