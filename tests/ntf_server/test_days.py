"""Days as they are counted and kept, over midnights, restarts and failures of the store."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from store_world import MASTER, SMP, TABLET, FakeClock, activate, register, subscribe

from ntf_server import days as module
from ntf_server.days import Days, before, count_heard
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter
from ntf_server.observe.totals import Active, Total
from ntf_server.periodic import count_all
from ntf_server.store.contract import StoreConflictError, StoreCorruptError, StoreUnavailableError
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.statistics import by_day, own_row
from ntf_server.testing.store_suite.medium import ROOM, acquire, delivered, stamp

DAY, NEXT = "2027-01-15", "2027-01-16"
MIDNIGHT = 1_800_057_600.0  # between them


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(MIDNIGHT - 100)


@pytest.fixture
async def store(tmp_path: Path, clock: FakeClock) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "relay.db", master_key=MASTER, clock=clock.clock)
    yield store
    await store.close()


class World:
    """A process that counts, on a store that outlives it."""

    def __init__(self, store: SqliteStore, clock: FakeClock) -> None:
        self._store = store
        self._clock = clock
        self.restart()

    def restart(self, **options: float) -> None:
        self.metrics = Metrics()
        self.days = Days(self._store, self.metrics, lambda: self._clock.now, **options)

    def count(self, n: int) -> None:
        self.metrics.count_kind(KindCounter.TOKEN_EVENTS, "created", n)

    async def kept(self, name: str = Total.TOKENS_CREATED) -> dict[str, int]:
        return {day: c[name] for day, c in by_day(await self._store.statistics.rows()).items() if name in c}


@pytest.fixture
async def world(store: SqliteStore, clock: FakeClock) -> World:
    return World(store, clock)


async def test_a_day_goes_on_after_a_restart(world: World) -> None:
    world.count(3)
    await world.days.keep()
    world.count(4)
    await world.days.keep()
    assert await world.kept() == {DAY: 7}
    world.restart()
    world.count(5)
    await world.days.keep()
    assert await world.kept() == {DAY: 12}
    assert world.days.since_start()[Total.TOKENS_CREATED] == 5


async def test_days_are_apart(world: World, clock: FakeClock) -> None:
    world.count(3)
    await world.days.keep()
    world.count(4)  # of which it is seen after midnight
    clock.pass_(100)
    await world.days.keep()
    world.count(5)
    await world.days.keep()
    assert await world.kept() == {DAY: 7, NEXT: 5}


async def test_a_day_on_which_nothing_happens_has_a_row(world: World, store: SqliteStore, clock: FakeClock) -> None:
    await world.days.keep()
    clock.pass_(100)
    await world.days.keep()
    rows = await store.statistics.rows()
    assert list(rows) == [own_row(DAY, ""), own_row(NEXT, "")]
    assert all(row == dict.fromkeys(Total, 0) for row in rows.values())


async def test_nothing_is_written_while_nothing_happens(
    world: World, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.days.keep()
    written: list[Any] = []
    monkeypatch.setattr(store.statistics, "keep", lambda *row: written.append(row))
    await world.days.keep()
    assert written == []


async def test_what_cannot_be_kept_is_kept_later_as_of_its_day(
    world: World, store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.days.keep()

    async def fail(*_: Any) -> None:
        raise StoreUnavailableError("locked")

    world.count(3)
    with monkeypatch.context() as failing:
        failing.setattr(store.statistics, "keep", fail)
        for seconds in (0, 50, 50, 60):
            clock.pass_(seconds)
            with pytest.raises(StoreUnavailableError):
                await world.days.keep()
            world.count(10)
    await world.days.keep()
    assert await world.kept() == {DAY: 23, NEXT: 20}


@pytest.mark.parametrize(
    "error", [StoreUnavailableError("locked"), StoreConflictError("closed"), StoreCorruptError("gone"), None], ids=str
)
async def test_a_stop_waits_for_no_store_that_fails(
    world: World, store: SqliteStore, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    async def fail(*_: Any) -> None:
        if error is not None:
            raise error
        await asyncio.Event().wait()  # it does not answer

    world.count(3)
    await world.days.close()
    monkeypatch.setattr(module, "_LAST", 0.01)
    world.count(1)
    with monkeypatch.context() as failing:
        failing.setattr(store.statistics, "keep", fail)
        await world.days.close()
    assert await world.kept() == {DAY: 3}


async def test_a_clock_that_is_set_back_finds_its_day_again(world: World, clock: FakeClock) -> None:
    world.count(1)
    await world.days.keep()
    clock.set_by(86_400)
    world.count(2)
    await world.days.keep()
    world.count(4)
    clock.set_by(-86_400)
    await world.days.keep()
    world.count(8)
    await world.days.keep()
    assert await world.kept() == {DAY: 11, NEXT: 4}


async def test_days_long_ago_are_forgotten(world: World, store: SqliteStore, clock: FakeClock) -> None:
    for day in ("2024-11-06", "2024-11-07", before(NEXT)):
        await store.statistics.keep(own_row(day, "another"), {Total.TOKENS_CREATED: 1})
    await world.days.keep()
    clock.pass_(100)
    await world.days.keep()
    assert list(await world.kept()) == ["2024-11-07", DAY, NEXT]


async def test_it_looks_by_itself_and_counts_active_tokens(
    world: World, store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the day that ends at midnight, too."""
    monkeypatch.setattr(module, "_LOOK", 0.0)
    token = await activate(store)
    await subscribe(store, token, b"one", b"two", b"three")
    session = await acquire(store, SMP)
    await store.notify(session, stamp(store, session, b"one", b"three"), {})
    assert (await count_all(store, pause=0, everywhere=True)).active["day"] == 0
    assert await count_heard(store, [60], pause=0) == [2]
    world.restart(first=0.0, again=1e9)
    running = asyncio.create_task(world.days.run())
    try:
        async with asyncio.timeout(10):
            while await world.kept(Active.DAY) != {DAY: 0}:
                await asyncio.sleep(0.005)
            await register(store, TABLET)
            claims = (await store.take(TABLET.provider, ROOM)).claims
            await store.record([delivered(claim) for claim in claims])
            clock.pass_(100)
            while await world.kept(Active.DAY) != {DAY: 1}:
                await asyncio.sleep(0.005)
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert await world.kept(Active.MONTH) == {DAY: 1}
    assert await world.kept(Active.SUBSCRIPTIONS_DAY) == {DAY: 2}
