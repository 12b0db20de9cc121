"""What goes on beside a transaction."""

import sqlite3

import pytest
from store_world import FakeClock, activate, subscribe

from ntf_server.store.sqlite.engine import SqliteStore


async def test_a_transaction_has_the_time_of_its_beginning(store: SqliteStore, clock: FakeClock) -> None:
    async def now() -> int:
        return await store._database.run(lambda _: store._state.now)

    first = await now()
    clock.pass_(90)
    assert await now() == first + 90


async def test_what_failed_left_nothing_in_memory(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"queue")
    before = dict(store._state.lost.items())

    def fail(c: sqlite3.Connection) -> None:
        store._state.lost.put(1, 1.0)
        store._state.effects.servers_forgotten += 1
        raise KeyError

    with pytest.raises(KeyError):
        await store._database.run(fail)
    assert dict(store._state.lost.items()) == before
    assert not store._state.effects.servers_forgotten
