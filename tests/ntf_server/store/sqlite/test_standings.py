"""What SMP servers have proved: what the suite cannot see."""

from store_world import SMP, FakeClock, acquire, activate, plan, subscribe

from ntf_server.store.sqlite import standings as module
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.sessions import LIVE
from smp_bridge.places import ANYWHERE


async def test_of_an_older_database_it_is_not_known_where(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"queue")
    await store._database.run(lambda c: c.execute("UPDATE servers SET prefixes = ?, proven = 1", (ANYWHERE,)) and None)
    standing = await store.standing(SMP)
    assert standing is not None
    assert standing.is_proven_at(["192.0.2.0/24"])
    await store.prove(await acquire(store), "198.51.100.0/24")
    standing = await store.standing(SMP)
    assert standing is not None
    assert standing.prefixes == ("198.51.100.0/24",)


async def test_when_a_server_was_first_proven_stays(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await subscribe(store, token, b"queue")
    session = await acquire(store)
    await store.prove(session, "a")
    [first] = await store._database.read(lambda c: c.execute("SELECT proven FROM servers").fetchone())
    clock.pass_(100)
    await store.prove(session, "b")
    assert await store._database.read(lambda c: c.execute("SELECT proven FROM servers").fetchone()) == (first,)


async def test_claims_are_found_by_the_servers_index(store: SqliteStore) -> None:
    query = f"SELECT token FROM subscriptions WHERE server = 1 AND {LIVE} ORDER BY association"
    for tail in (", ref", " DESC, ref DESC"):
        details = await plan(store, f"{query}{tail} LIMIT {module._CLAIMS}")
        assert "INDEX subscriptions_server" in details[0], details
        assert not any("TEMP B-TREE" in d for d in details), details
