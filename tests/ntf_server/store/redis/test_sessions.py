"""SMP servers under leases: one node speaks for each, and the store takes what it says under its fence only."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from redis_servers import Cluster
from redis_stores import How, Nodes, ask, bucket, fault, keep

from ntf_server.store.contract import FencedError
from ntf_server.store.records import Confirmed, Lost, ServiceCertificate, Session
from ntf_server.store.redis import asking, holders
from ntf_server.store.redis.asking import Parts, Word
from ntf_server.store.redis.buckets import take_back
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import LEASE
from ntf_server.store.redis.sessions import key
from ntf_server.testing.store_suite.medium import (
    OTHER_SMP,
    SMP,
    Bench,
    acquire,
    activate,
    delivered,
    drain,
    found,
    ids_hash,
    new_queue,
    notify,
    pages,
    record,
    stamp,
    subscribe,
    take,
    tend,
)
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import SubscriptionStatus

ACTIVE, END = SubscriptionStatus.ACTIVE, SubscriptionStatus.END


def servers(count: int) -> list[ServerAddress]:
    return [ServerAddress("smp", (f"smp{n}.example.org",), "", b"h" * 32) for n in range(count)]


async def wanted(store: RedisStore, count: int) -> list[ServerAddress]:
    """Servers that something is wanted of."""
    token = await activate(store)
    found_ = servers(count)
    for server in found_:
        await subscribe(store, token, b"a", server=server)
    return found_


async def share(store: RedisStore, held: dict[ServerAddress, Session]) -> None:
    """Take and give what this node should, and keep what it has."""
    for lost in await store.renew(list(held.values())):
        del held[lost.server]
    found_ = await store.share(list(held.values()))
    for session in found_.give:
        await store.release(held.pop(session.server))
    for server in found_.take:
        session = await store.acquire(server)
        if session is not None:
            held[server] = session


# --- leases and fences


async def test_a_fence_grows_with_each_session(nodes: Nodes) -> None:
    first, second = await nodes.open("one"), await nodes.open("two")
    fences = []
    for store in (first, first, second, first):
        session = await acquire(store)
        fences.append(session.fence)
        if store is not first or len(fences) > 1:
            await store.release(session)
    assert fences == sorted(set(fences))


async def test_a_lease_ends_that_is_not_renewed(nodes: Nodes) -> None:
    first, second = await nodes.open("one"), await nodes.open("two")
    session = await acquire(first)
    for _ in range(3):
        await nodes.pass_(LEASE - 1, first, second)
        assert await first.renew([session]) == []
        assert await second.acquire(SMP) is None
    await nodes.pass_(LEASE, first, second)
    taken = await acquire(second)
    assert await first.renew([session]) == [session]
    assert await second.renew([taken]) == []
    assert first.lease == LEASE


async def test_what_is_late_but_was_nobodys_is_kept(nodes: Nodes) -> None:
    """Its lease is over, and nobody took the server: no need to begin again."""
    store = await nodes.open()
    session = await acquire(store)
    nodes.clock.pass_(10 * LEASE)
    assert await store.renew([session]) == []
    await store.begin(session, None)


async def test_calls_that_are_done_twice(nodes: Nodes) -> None:
    first, second = await nodes.open("one"), await nodes.open("two")
    with fault(first, How.TWICE, "acquire", "renew", "release", "begin", "confirm", "finish"):
        session = await acquire(first)
        assert await first.renew([session]) == []
        await first.begin(session, b"service")
        await subscribe(first, await activate(first), b"a", b"b")
        refs = [w.ref for w in await pages(first, session)]
        await first.confirm(session, [Confirmed(ref, ACTIVE, associated=True) for ref in refs])
        assert (await first.service_state(session)).associated == 2
        assert await first.end(session, [b"a"], END) == 1
        state = await first.service_state(session)
        assert (state.associated, state.ids_hash) == (1, ids_hash([b"b"]))
        await first.release(session)
    assert (await acquire(second)).fence > session.fence


async def test_an_end_that_is_done_again_spares_what_was_subscribed_anew(nodes: Nodes) -> None:
    """Its answer did not come, and the device subscribed the queue before it was asked for once more."""
    store = await nodes.open()
    token = await activate(store)
    queue = new_queue(b"a")
    assert await store.subscribe(token.ref, queue)
    session = await acquire(store)
    first, second = (store.arrive(session, 1).first for _ in range(2))
    assert await store.end(session, [b"a"], END, first) == 1
    assert await store.subscribe(token.ref, queue)
    assert await store.end(session, [b"a"], END, first) == 1
    assert (await found(store, queue.subscription_id)).status is SubscriptionStatus.NEW
    [wanted_] = await pages(store, session)
    await store.confirm(session, [Confirmed(wanted_.ref, ACTIVE)])
    assert await store.end(session, [b"a"], END, second) == 1
    assert (await found(store, queue.subscription_id)).status is END


async def test_what_ended_is_known_for_an_hour(nodes: Nodes) -> None:
    store = await nodes.open()
    await subscribe(store, await activate(store), b"a", b"b")
    session = await acquire(store)
    await store.end(session, [b"a"], END)
    ends = bucket(store, b"a") + b":ends"
    assert await ask(store, b"ZCARD", ends) == 1
    nodes.clock.pass_(3601)
    assert await take_back(store._node, server_id(SMP)) == []
    for _ in range(2):  # that the queue was to come is settled first
        await tend(Bench(None, nodes.clock), store)  # type: ignore[arg-type]
        nodes.clock.pass_(100)
    assert await ask(store, b"ZCARD", ends) == 0


async def test_all_that_a_session_may_do_is_refused_to_an_older_one(nodes: Nodes) -> None:
    first, second = await nodes.open("one"), await nodes.open("two")
    [i] = await subscribe(first, await activate(first), b"a")
    old = await acquire(first)
    ref = (await found(first, i)).ref
    await nodes.pass_(2 * LEASE, second)
    new = await acquire(second)
    calls = [
        lambda: first.begin(old, None),
        lambda: first.service_state(old),
        lambda: first.reassociate(old),
        lambda: first.set_released(old, 1),
        lambda: first.page(old, None, 10),
        lambda: first.load(old, [ref]),
        lambda: first.confirm(old, [Confirmed(ref, END)]),
        lambda: first.end(old, [b"a"], END),
        lambda: first.give_up(old, "why", 10),
        lambda: first.prove(old, "192.0.2.0/24"),
        lambda: first.mark_lost(old, None, 10, 60),
        lambda: first.notify(old, stamp(first, old, b"a"), {}),
    ]
    for call in calls:
        with pytest.raises(FencedError):
            await call()
    await first.release(old)
    assert await second.renew([new]) == []
    assert (await found(second, i)).status is SubscriptionStatus.NEW


async def test_notifications_of_an_earlier_session_of_this_node_are_taken(nodes: Nodes) -> None:
    """Nobody else has them; also when the lease is over, if nobody took the server."""
    store = await nodes.open()
    await subscribe(store, await activate(store), b"a")
    old = await acquire(store)
    block = stamp(store, old, b"a")
    await store.release(old)
    await store.notify(old, block, {})
    [claim] = await take(store)
    await record(store, delivered(claim))


# --- shares


async def test_nodes_share_all_servers(nodes: Nodes) -> None:
    stores = [await nodes.open("one"), await nodes.open("two"), await nodes.open("three")]
    all_ = await wanted(stores[0], 30)
    held: list[dict[ServerAddress, Session]] = [{}, {}, {}]

    async def settle(*numbers: int) -> None:
        for _ in range(10):
            await nodes.pass_(2, *(stores[n] for n in numbers))
            for n in numbers:
                await share(stores[n], held[n])

    await settle(0)
    assert held[0].keys() == set(all_)
    await settle(0, 1)
    assert held[0].keys() | held[1].keys() == set(all_) and not held[0].keys() & held[1].keys()
    two = [set(h) for h in held]
    assert all(two[:2])
    await settle(0, 1, 2)
    three = [set(h) for h in held]
    assert set.union(*three) == set(all_) and sum(map(len, three)) == 30
    assert three[0] <= two[0] and three[1] <= two[1]  # what moved, moved to the new one
    fences = {s.server: s.fence for h in held[:2] for s in h.values()}
    nodes._open.remove(stores[2])
    await stores[2]._node.database.close()  # it dies
    await settle(0, 1)
    assert [held[0].keys(), held[1].keys()] == two[:2]
    for h in held[:2]:
        for s in h.values():
            assert s.fence == fences.get(s.server, s.fence)


async def test_a_server_of_a_dead_node_is_taken_when_its_lease_is_over(nodes: Nodes) -> None:
    first = await nodes.open("one")
    all_ = await wanted(first, 8)
    held: dict[ServerAddress, Session] = {}
    await share(first, held)
    assert held.keys() == set(all_)
    second = await nodes.open("two")
    await nodes.kill(first)
    assert (await second.share([])).take == []
    await nodes.pass_(LEASE + 2, second)
    assert set((await second.share([])).take) == set(all_)


async def test_nodes_have_as_many_queues_each_though_servers_differ(nodes: Nodes) -> None:
    stores = [await nodes.open("one"), await nodes.open("two")]
    all_ = await wanted(stores[0], 24)
    large = all_[:8]
    weights = [word for server in large for word in (server_id(server), 1_000_000)]
    await ask(stores[0], b"HSET", stores[0]._node.names.weights, *weights)
    held: list[dict[ServerAddress, Session]] = [{}, {}]
    for _ in range(5):
        await nodes.pass_(2, *stores)
        for store, its in zip(stores, held, strict=True):
            await share(store, its)
    assert held[0].keys() | held[1].keys() == set(all_)
    assert [sum(server in its for server in large) for its in held] == [4, 4]


async def test_who_takes_leave_has_no_share(nodes: Nodes) -> None:
    """The other has all at once."""
    first = await nodes.open("one")
    all_ = await wanted(first, 8)
    held: dict[ServerAddress, Session] = {}
    await share(first, held)
    second = await nodes.open("two")
    await first.leave()
    await second._node.look()
    assert (await second.share([])).take == []
    await share(first, held)
    assert not held
    assert set((await second.share([])).take) == set(all_)
    await nodes.pass_(3 * LEASE, first, second)
    assert (await first.share([])).take == []


@pytest.mark.parametrize("least", [1, 256])
async def test_servers_whose_node_is_gone_are_unsettled_until_they_are_taken(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """However few of them are looked at in their turn."""
    monkeypatch.setattr(holders, "LEAST", least)
    first = await nodes.open("one")
    all_ = await wanted(first, 8)
    assert not (await first.share([])).unsettled  # that nobody ever had
    held: dict[ServerAddress, Session] = {}
    await share(first, held)
    second = await nodes.open("two")
    await nodes.pass_(2, first, second)
    for lost in await first.renew(list(held.values())):
        raise AssertionError(lost)
    assert not (await second.share([])).unsettled
    await nodes.kill(first)
    await nodes.pass_(LEASE / 2 + 0.1, second)
    assert (await second.share([])).unsettled
    await nodes.pass_(LEASE / 2, second)
    found_ = await second.share([])
    assert set(found_.take) == set(all_) and not found_.unsettled
    sessions = [await acquire(second, server) for server in all_]
    assert not (await second.share(sessions)).unsettled


async def test_of_many_servers_few_are_looked_at(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as nodes live that have them. One that is new is among those that are."""
    monkeypatch.setattr(holders, "LEAST", 2)
    first = await nodes.open("one")
    all_ = await wanted(first, 20)
    for one in all_:
        await acquire(first, one)
    second = await nodes.open("two")
    await nodes.pass_(2, first, second)
    looked_at: list[int] = []
    run = second._node.run_by_key

    async def run_by_key(name: str, head: Sequence[Word], parts: Parts) -> dict[bytes, Any]:
        looked_at.append(len(parts))
        return await run(name, head, parts)

    monkeypatch.setattr(second._node, "run_by_key", run_by_key)
    for _ in range(3):
        assert (await second.share([])).take == []
    new = servers(21)[20]
    await subscribe(first, await activate(first, 7), b"a", server=new)
    taken = (await second.share([])).take
    assert taken == ([new] if second._node.is_mine(server_id(new)) else [])
    assert looked_at == [20, 2, 2, 3]


async def test_of_a_thousand_servers_which_there_are_is_known_for_a_while(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in servers(2):
        await store._node.know(one)
        known_ = await store._node.known_lately()
    assert len(known_) == 2
    monkeypatch.setattr(asking, "_SOME", 1)
    assert len(await store._node.known_lately()) == 2
    await store._node.know(servers(3)[2])
    assert len(await store._node.known_lately()) == 2
    assert len(await store._node.known()) == 3


async def test_what_should_be_anothers_is_taken_when_it_is_late(nodes: Nodes) -> None:
    """A node that lives but does not come: a server that nobody has for a lease is anybody's."""
    first, second = await nodes.open("one"), await nodes.open("two")
    all_ = await wanted(first, 12)
    sessions = [await acquire(first, server) for server in all_]
    await nodes.pass_(4, first, second)
    for session in sessions:
        await first.release(session)
    mine = set((await first.share([])).take)
    assert mine and mine < set(all_)
    await nodes.pass_(LEASE, first, second)
    assert set((await first.share([])).take) == set(all_)


async def test_servers_that_nothing_is_wanted_of_are_nobodys(store: RedisStore) -> None:
    [server] = await wanted(store, 1)
    session = await acquire(store, server)
    await store.end(session, [b"a"], END)
    await store.release(session)
    assert (await store.share([])).take == []
    assert await store.servers() == []
    assert not await store.is_wanted(server) and not await store.is_wanted(OTHER_SMP)


async def test_of_many_that_acquire_at_once_one_does(nodes: Nodes) -> None:
    stores = [await nodes.open(name) for name in ("one", "two", "three")]
    found_ = await asyncio.gather(*(store.acquire(SMP) for store in stores))
    assert sum(session is not None for session in found_) == 1


# --- services


async def test_associations_hold_within_their_generation(nodes: Nodes) -> None:
    """Another service id, and none of before holds; a session of another node sees the same."""
    first = await nodes.open("one")
    await subscribe(first, await activate(first), *(b"%d" % n for n in range(4)))
    session = await acquire(first)
    assert not (await first.begin(session, b"service")).changed
    some = (await first.page(session, None, 2)).wanted
    await first.confirm(session, [Confirmed(w.ref, ACTIVE, associated=True) for w in some])
    await first.release(session)
    second = await nodes.open("two")
    session = await acquire(second)
    state = await second.begin(session, b"service")
    assert (state.associated, state.changed) == (2, False)
    assert state.ids_hash == ids_hash([w.notifier_id for w in some])
    assert len((await second.page(session, None, 10)).wanted) == 2
    assert len((await second.page(session, None, 10, associated=True)).wanted) == 2
    state = await second.begin(session, b"another")
    assert (state.associated, state.changed) == (0, True)
    assert len((await second.page(session, None, 10)).wanted) == 4
    assert (await second.begin(session, None)).associated == 0


async def test_the_first_certificate_wins_over_two_nodes(nodes: Nodes) -> None:
    stores = [await nodes.open("one"), await nodes.open("two")]
    numbers = itertools.count()

    def make() -> ServiceCertificate:
        n = next(numbers)
        return ServiceCertificate(b"chain %d" % n, b"key %d" % n)

    found_ = await asyncio.gather(*(stores[n % 2].service_certificate(SMP, make) for n in range(20)))
    assert len(set(map(bytes, (c.chain for c in found_)))) == len({c.key for c in found_}) == 1
    made = next(numbers)
    for store in stores:
        assert await store.service_certificate(SMP, make) == found_[0]
    assert next(numbers) == made + 1
    assert (await stores[0].service_certificate(OTHER_SMP, make)).chain != found_[0].chain


async def test_a_certificate_whose_key_cannot_be_read_is_made_anew(nodes: Nodes) -> None:
    stores = [await nodes.open("one"), await nodes.open("two")]
    old = await stores[0].service_certificate(SMP, lambda: ServiceCertificate(b"old", b"old key"))
    await ask(stores[0], b"HSET", key(stores[0]._node, SMP), b"key", b"rubbish")
    new = [ServiceCertificate(b"new %d" % n, b"new key %d" % n) for n in range(2)]
    with fault(stores[0], How.TWICE, "keep_certificate"):
        found_ = await asyncio.gather(
            stores[0].service_certificate(SMP, lambda: new[0]), stores[1].service_certificate(SMP, lambda: new[1])
        )
    assert found_[0] == found_[1] != old
    assert found_[0] in new


# --- what was lost, what is silent


async def test_a_check_for_what_may_be_lost_is_owed_once(nodes: Nodes) -> None:
    store = await nodes.open()
    for n in range(10):
        await subscribe(store, await activate(store, n), b"%d" % n)
    session = await acquire(store)
    with fault(store, How.TWICE, "lost"):
        after, marked = None, 0
        for _ in range(20):
            count, after, _ = await store.mark_lost(session, after, 3, 60)
            marked += count
            if after is None:
                break
    assert len(await drain(Bench(None, nodes.clock), store)) == 10  # type: ignore[arg-type]
    assert (await store.mark_lost(session, None, 100, 0))[:2] == (0, None)
    await nodes.pass_(3700, store)
    assert (await store.renew([session])) == []
    assert await store.mark_lost(session, None, 100, 0) == Lost(10, None)


async def test_all_queues_of_all_servers_are_audited_in_pages(nodes: Nodes) -> None:
    store = await nodes.open()
    token = await activate(store)
    for server in servers(4):
        await subscribe(store, token, *(b"%d" % n for n in range(5)), server=server)
    nodes.clock.pass_(3600)
    await keep(store)
    await notify(store, await acquire(store, servers(1)[0]), b"3")
    seen, after = [], None
    while True:
        items, after = await store.to_audit(after, 3, 600)
        assert len(items) <= 3
        seen += items
        if after is None:
            break
    assert len(seen) == len({item.ref for item in seen}) == 20
    assert [item.ref.notifier_id for item in seen if not item.silent] == [b"3"]  # type: ignore[attr-defined]


async def test_in_a_cluster(cluster: Cluster) -> None:
    nodes = Nodes(cluster.url)
    store = await nodes.open(shards=16)
    all_ = await wanted(store, 10)
    assert set((await store.share([])).take) == set(all_) == set(await store.servers())
    session = await acquire(store, all_[0])
    assert await store.renew([session]) == []
    assert len((await store.to_audit(None, 100, 60))[0]) == 10
    await nodes.close()
