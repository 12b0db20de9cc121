"""That a token is due: by a row, unless memory knows it."""

from pathlib import Path

import pytest
from store_world import MASTER, NOW, PHONE, FakeClock, again, new_token, register, take, take_one

from ntf_server.store.clock import Clock
from ntf_server.store.sqlite import due as module
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.ntf import DeviceToken, Provider


async def rows(store: SqliteStore) -> list[tuple[int, int | None]]:
    query = "SELECT token, due_at FROM deliveries ORDER BY token"
    return await store._database.read(lambda c: c.execute(query).fetchall())


async def test_of_what_is_claimed_no_row_says_that_it_is_due(store: SqliteStore) -> None:
    token = await register(store)
    assert await rows(store) == [(token.ref, NOW * 1000)]
    assert await take(store)
    await register(store)
    assert await rows(store) == [(token.ref, None)]


async def test_a_mark_moves_no_retry(store: SqliteStore) -> None:
    token = await register(store)
    await store.record([again(await take_one(store), 10)])
    await store._database.run(lambda c: module.mark(c, store._state, [1, 10**6]))
    assert await rows(store) == [(token.ref, (NOW + 10) * 1000)]


async def test_a_lane_is_due_only_if_a_row_is(store: SqliteStore, clock: FakeClock) -> None:
    async def is_due() -> bool:
        return await store._database.run(lambda c: module.is_due(c, store._state, b"AP"))

    assert not await is_due()
    await register(store)
    assert await is_due()
    await store.record([again(await take_one(store), 10)])
    assert not await is_due()
    assert not store._state.owes(b"AP")
    clock.pass_(10)
    assert await is_due()


async def test_recovery_does_not_hide_what_is_already_written(store: SqliteStore) -> None:
    await register(store)
    await register(store, DeviceToken(Provider.FCM, b"x"))
    await store.record([again(await take_one(store), 10)])
    before = await rows(store)
    await store._database.run(lambda c: module.recover(c, store._state))
    assert await rows(store) == before
    assert store._state.owes(b"FC")


@pytest.mark.parametrize("step", [-1000, 1000, 10**8])
async def test_a_shift_moves_what_is_kept_but_not_into_the_future(store: SqliteStore, step: int) -> None:
    await register(store, PHONE)
    await store.record([again(await take_one(store), 10)])
    await store._database.run(lambda c: module.shift(c, store._state, step))
    [(_, due_at)] = await rows(store)
    assert due_at == min(NOW + 10 + step, NOW + 3600) * 1000
    query = "SELECT verification_due, registered_at FROM tokens"
    times = await store._database.read(lambda c: c.execute(query).fetchone())
    assert times == (min(NOW + step, NOW),) * 2


async def active_at(store: SqliteStore) -> list[int]:
    rows = await store._database.read(lambda c: c.execute("SELECT active_at FROM tokens ORDER BY ref").fetchall())
    return [at for (at,) in rows]


async def test_nobody_was_silent_before_there_was_anybody_to_hear(store: SqliteStore, clock: FakeClock) -> None:
    """What was migrated, what a wrong clock wrote, and all of them after a long stop."""
    for n in range(3):
        await register(store, DeviceToken(Provider.APNS, b"%d" % n))

    async def recovered(*before: int) -> list[int]:
        for ref, at in enumerate(before, 1):
            await store._database.run(
                lambda c, row=(at, ref): c.execute("UPDATE tokens SET active_at = ? WHERE ref = ?", row) and None
            )
        await store._database.run(lambda c: module.recover(c, store._state))
        return await active_at(store)

    assert await recovered(NOW - 5, 0, NOW + 10**8) == [NOW - 5, NOW, NOW]
    assert await recovered(NOW - 86_400, NOW - 10**7, NOW - 90_000) == [NOW - 86_400, NOW - 10**7, NOW - 90_000]
    assert await recovered(NOW - 86_401, NOW - 10**7, NOW - 90_000) == [NOW, NOW - 10**7 + 86_401, NOW - 3599]


async def turn(store: SqliteStore) -> int:
    """When the code is due."""
    query = "SELECT verification_due FROM tokens"
    [due] = await store._database.read(lambda c: c.execute(query).fetchone())
    return int(due)


@pytest.mark.parametrize(("step", "moved"), [(-1000, -400), (-10, 590), (1000, 600), (10**8, 600)])
async def test_a_turn_moves_with_the_clock_and_is_never_later_than_it_was(
    store: SqliteStore, step: int, moved: int
) -> None:
    assert await store.register(new_token(), 600.0) is not None
    await store._database.run(lambda c: module.shift(c, store._state, step))
    assert await turn(store) == NOW + moved


@pytest.mark.parametrize(("ahead", "kept"), [(600, 600), (module.LAST_TURN, module.LAST_TURN), (10**8, 0)])
async def test_a_turn_that_is_further_ahead_than_any_was_set_by_a_wrong_clock(
    store: SqliteStore, ahead: int, kept: int
) -> None:
    assert await store.register(new_token(), float(ahead)) is not None
    await store._database.run(lambda c: module.recover(c, store._state))
    assert await turn(store) == NOW + kept


@pytest.mark.parametrize("boot", ["this run", "", "another run"])
async def test_a_clock_that_is_set_while_nobody_looks(path: Path, boot: str) -> None:
    """Nothing expires by that, if the machine ran on; else nobody can tell it from so long a time."""
    clock = FakeClock()

    async def opened(boot: str) -> SqliteStore:
        timed = Clock(clock.clock.wall, clock.clock.steady, boot)
        return await SqliteStore.open(path, master_key=MASTER, clock=timed)

    store = await opened(boot if boot != "another run" else "this run")
    token = await register(store)
    await store.close()
    clock.pass_(5)
    clock.set_by(400 * 86_400)
    store = await opened(boot)
    claims = await take(store)
    assert [c.token for c in claims] == ([token.ref] if boot == "this run" else [])
    clock.set_by(-400 * 86_400)
    await store.backlog(Provider.APNS)
    await store.close()
