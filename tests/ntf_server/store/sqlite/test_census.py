"""What tokens there are, in the SQLite store."""

import pytest
from store_world import FakeClock

from ntf_server.store.records import ACTIVE_SPANS
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.rows import DamagedRowError, quarantine
from ntf_server.testing.store_suite.medium import delivered, new_token, register, take


async def test_those_that_are_set_aside_are_damaged(store: SqliteStore) -> None:
    for n in range(3):
        await register(store, new_token(n))
    await store._database.run(lambda c: quarantine(c, store._state, [DamagedRowError("tokens", 2)]))
    counted, cursor = await store.census(None, 100)
    assert counted.tokens == {("AP", "REGISTERED"): 2, ("AP", "damaged"): 1}
    assert cursor is None


@pytest.mark.parametrize("limit", [1, 4, 7, 100])
async def test_slices_against_a_plain_look(store: SqliteStore, clock: FakeClock, limit: int) -> None:
    for n in range(12):
        await register(store, new_token(n))
        if n % 3 == 0:
            await store.record([delivered(claim) for claim in await take(store)])
            clock.pass_(5 * 24 * 3600)
    rows = await store._database.read(
        lambda c: c.execute("SELECT status, delivered_at FROM tokens t JOIN deliveries d ON d.token = t.ref").fetchall()
    )
    now = store._state.clock.wall()
    whole, cursor = await store.census(None, limit)
    while cursor is not None:
        more, cursor = await store.census(cursor, limit)
        whole.add(more)
    assert sum(whole.tokens.values()) == 12
    assert {status for _, status in whole.tokens} == {status for status, _ in rows}
    for span, seconds in ACTIVE_SPANS.items():
        assert whole.active[span] == sum(at is not None and int(now) - at < seconds for _, at in rows), span
