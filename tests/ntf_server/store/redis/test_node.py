"""Leases of shards, what becomes of what was claimed there, and the clock that all nodes have."""

import asyncio
import contextlib
import gc
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis_servers import Server
from redis_stores import SHARDS, How, Nodes, ask, before, fault, keep

from ntf_server.store.contract import FencedError, StoreCorruptError, StoreUnavailableError
from ntf_server.store.memory import Times
from ntf_server.store.records import Claim, Outcome
from ntf_server.store.redis import deliveries, sessions
from ntf_server.store.redis.database import Bounds
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.node import LEASE, NODES, RENEW, identity, unless_cancelled
from ntf_server.testing.store_suite.medium import (
    ROOM,
    SMP,
    acquire,
    activate,
    delivered,
    names,
    new_token,
    notify,
    record,
    register,
    stamp,
    subscribe,
    take,
)
from smp_bridge.ntf import Provider

EVERYWHERE = dict.fromkeys(Provider, ROOM)
ALL = set(range(SHARDS))


def held(store: RedisStore) -> set[int]:
    return set(store._node.held)


async def due(store: RedisStore, count: int) -> None:
    """Registrations whose codes are due."""
    for number in range(count):
        await register(store, new_token(number))


async def claimed(store: RedisStore, count: int) -> list[Outcome]:
    """They are claimed: the pushes that went well."""
    await due(store, count)
    claims = await take(store)
    assert len(claims) == count
    return [delivered(claim) for claim in claims]


async def phones(store: RedisStore, count: int) -> list[bytes]:
    """Their queues, one of each; the store has found out that nothing is due for them."""
    queues = [b"q%02d" % number for number in range(count)]
    for number, queue in enumerate(queues):
        await subscribe(store, await activate(store, number), queue)
    assert await take(store) == []
    return queues


# --- leases


async def test_who_is_alone_holds_all_and_keeps_it(nodes: Nodes) -> None:
    store = await nodes.open()
    before = dict(store._node.held)
    assert before.keys() == ALL
    await nodes.pass_(5 * LEASE, store)
    assert store._node.held == before


async def test_a_lease_lasts_so_long_from_its_last_renewal(nodes: Nodes) -> None:
    store = await nodes.open()
    for _ in range(3):
        await nodes.pass_(RENEW, store)
        until = float(await ask(store, b"HGET", store._node.names.shards[0], b"until"))
        assert until == round((nodes.clock.wall() + LEASE) * 1000)


async def test_what_was_claimed_by_a_dead_node_is_due_after_its_lease(nodes: Nodes) -> None:
    """And is recorded once: the dead node, should it only have slept, is refused, and forgets it."""
    first = await nodes.open("one")
    outcomes = await claimed(first, 20)
    second = await nodes.open("two")
    await nodes.pass_(LEASE - RENEW, second)
    assert await take(second) == []
    assert not held(second)
    await nodes.pass_(2 * LEASE, second)
    assert held(second) == ALL
    claims = await take(second)
    assert {c.token for c in claims} == {o.claim.token for o in outcomes}
    assert await first.record(outcomes) == 20
    await record(second, *map(delivered, claims))
    assert not first._state.claims
    assert await take(first) == await take(second) == []


async def test_who_slept_forgets_what_another_node_has_by_now(nodes: Nodes) -> None:
    first = await nodes.open("one", times=Times(spacing=60))
    queues = await phones(first, 9)
    session = await acquire(first)
    claims = (await notify(first, session, *queues, places=EVERYWHERE)).claims
    assert len(claims) == 9
    await record(first, *(delivered(c) for c in claims[:4]))
    await notify(first, session, *queues, places=EVERYWHERE)  # some rest, and have more
    assert len(first._state.eager) == 4
    second = await nodes.open("two")
    await nodes.pass_(2 * LEASE, second)
    await keep(first)
    for kept in (first._state.claims, first._state.cooling, first._state.eager, first._state.ready):
        assert not {token for token in kept if first._node.names.number(token) in held(second)}  # type: ignore[attr-defined]
    assert len(await take(second)) + len(first._state.claims) + len(first._state.eager) == 9


async def test_a_node_that_joins_is_given_its_share_and_nothing_that_is_out(nodes: Nodes) -> None:
    """A shard goes when its claims have ended; till then nobody else has them, and nothing more of it goes out."""
    first = await nodes.open("one")
    for number in itertools.count():
        if {first._node.names.number(token) for token in first._state.claims} == ALL:
            break
        await register(first, new_token(number))
        assert len(await take(first)) == 1
    outcomes = [delivered(kept.claim) for kept in first._state.claims.values()]
    second = await nodes.open("two")
    await nodes.pass_(4 * LEASE, first, second)
    assert held(first) == ALL and not held(second)
    leaving = set(first._node.leaving)
    assert leaving and leaving < ALL
    late = new_token(10_000)
    while first._node.names.number(late.token_id) not in leaving:
        late = new_token(10_000)
    await register(first, late)
    assert await take(first) == []
    assert await first.record(outcomes) == 0
    await nodes.pass_(0.1 + 2 * RENEW, first, second)
    assert held(second) == leaving and held(first) == ALL - leaving
    assert [c.token for c in await take(second)] == [late.token_id]
    assert await take(first) == []


async def test_what_only_waits_in_memory_holds_up_no_shard(nodes: Nodes) -> None:
    """As for a provider that is away: nobody takes it, and everything else of the shard would wait with it."""
    first = await nodes.open("one")
    queues = await phones(first, 20)
    session = await acquire(first)
    claims = (await notify(first, session, *queues, places=EVERYWHERE)).claims
    await notify(first, session, *queues)
    await record(first, *map(delivered, claims))  # and all have more
    assert len(first._state.eager) == 20
    second = await nodes.open("two")
    await nodes.pass_(4 * RENEW, first, second)
    assert held(second) and held(first) == {n for n in ALL if first._node.is_mine(first._node.names.shards[n])}
    found = await take(second) + await take(first)
    assert sorted(name for claim in found for name in names(claim)) == queues


async def test_a_node_that_leaves_gives_all_at_once(nodes: Nodes) -> None:
    first = await nodes.open("one")
    await claimed(first, 20)
    second = await nodes.open("two")
    nodes._open.remove(first)
    await first.close()
    await nodes.pass_(RENEW, second)
    assert held(second) == ALL
    assert len(await take(second)) == 20


async def test_who_takes_leave_gives_what_is_not_out_and_the_rest_when_it_has_ended(nodes: Nodes) -> None:
    """No time goes by, and it takes nothing back."""
    first, second = await nodes.open("one"), await nodes.open("two")
    outcomes = await claimed(first, 3)
    busy = {first._node.names.number(o.claim.token) for o in outcomes}  # type: ignore[arg-type]
    assert await first.leave() == len(busy)
    assert held(first) == busy
    await second._node.look()
    assert held(second) == ALL - busy
    late = new_token(10_000)
    while first._node.names.number(late.token_id) not in busy:
        late = new_token(10_000)
    await register(second, late)
    assert await take(first) == await take(second) == []
    assert await first.record(outcomes) == 0
    nodes.clock.pass_(0.1)
    assert await first.leave() == 0
    await second._node.look()
    assert held(second) == ALL
    assert [claim.token for claim in await take(second)] == [late.token_id]
    await nodes.pass_(3 * LEASE, first, second)
    assert not held(first) and held(second) == ALL


async def test_who_leaves_the_last_takes_nothing_back(nodes: Nodes) -> None:
    """Whoever starts next has all at once."""
    store = await nodes.open("one")
    assert await store.leave() == 0
    await nodes.pass_(3 * LEASE, store)
    assert not held(store)
    assert held(await nodes.open("two")) == ALL


async def test_a_leave_that_could_not_be_told_is_told_later(own_server: Server) -> None:
    nodes = Nodes(own_server.url)
    store = await nodes.open(bounds=Bounds(limit=1.0, answer=0.4, connect=0.4))
    own_server.freeze()
    with pytest.raises(StoreUnavailableError):
        await store.leave()
    own_server.thaw()
    async with asyncio.timeout(5):
        while held(store):
            nodes.clock.pass_(0.1)
            with contextlib.suppress(StoreUnavailableError):
                await store.leave()
    [*_, (_, fields)] = await ask(store, b"XRANGE", store._node.names.changes, b"-", b"+")
    assert fields == [b"k", NODES]
    await nodes.close()


async def test_who_sees_that_a_node_is_gone_looks_more_often(nodes: Nodes) -> None:
    """What it had is taken half a second after its lease at the latest, and not before."""
    first, second = await nodes.open("one"), await nodes.open("two")
    await nodes.pass_(3 * LEASE, first, second)
    theirs = held(first)
    assert theirs and theirs < ALL
    for seconds in range(4):  # it was renewed just now
        nodes.clock.pass_(1)
        await keep(second)
        assert not held(second) & theirs, seconds
    waited = 4.0
    while held(second) != ALL:
        assert waited < LEASE + 0.6
        nodes.clock.pass_(0.1)
        waited += 0.1
        await keep(second)
    assert waited > LEASE - 0.05


async def test_a_node_of_the_same_name_takes_its_own_at_once(nodes: Nodes) -> None:
    first = await nodes.open("one")
    fences = first._node.held
    await claimed(first, 20)
    await nodes.kill(first)
    again_ = await nodes.open("one")
    assert held(again_) == ALL
    assert all(int(again_._node.held[n]) > int(fences[n]) for n in ALL)
    assert len(await take(again_)) == 20


async def test_what_should_be_anothers_is_taken_when_nobody_wants_it_for_long(nodes: Nodes) -> None:
    """A node that lives, and cannot take what it should have, leaves nothing undone."""
    first, second = await nodes.open("one"), await nodes.open("two")
    await nodes.pass_(3 * LEASE, first, second)
    assert held(first) and held(second)
    await due(first, 40)
    found: list[Claim] = []
    for _ in range(12):
        names = first._node.names
        keys, last = [names.nodes, names.clock, names.store], [b"two", 5000, 0, first._node._store_id]
        await first._node.run("alive", keys, first._node.ahead, *last)  # and it renews nothing
        await nodes.pass_(RENEW, first)
        found += await take(first)
        await record(first, *(delivered(claim) for claim in found if claim.token in first._state.claims))
    assert len(found) == 40


@pytest.mark.parametrize("shared", [False, True])
async def test_fences_never_go_back(nodes: Nodes, shared: bool) -> None:
    """Though the server's clock may be far behind what is kept, as after a failover to another machine."""
    store = await nodes.open()
    future = 8_000_000_000_000_000
    shard = store._node.names.shards[0]
    await ask(store, b"HSET", shard, b"fence", future)
    if shared:
        store = await nodes.open("two")
    await nodes.pass_(3 * LEASE, store)
    assert int(store._node.held[0]) > future
    assert await ask(store, b"HGET", shard, b"fence") == store._node.held[0]
    session = await acquire(store)
    key = await ask(store, b"HKEYS", store._node.names.servers)
    await ask(store, b"HSET", store._node.names.server(key[0]), b"fence", future)
    assert (await acquire(store)).fence == future + 1
    assert session.fence < future


async def test_a_fence_is_the_servers_time(nodes: Nodes, server: Server) -> None:
    """So that one which a failover lost is not given to somebody else."""
    seconds, micros = (int(word) for word in server.ask("TIME"))
    store = await nodes.open()
    assert all(0 <= int(fence) - seconds * 1_000_000 - micros < 60_000_000 for fence in store._node.held.values())


# --- what is not in memory is due again


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
async def test_a_recovery_that_fails_is_done_later(nodes: Nodes, how: How) -> None:
    first = await nodes.open("one")
    await claimed(first, 20)
    second = await nodes.open("two")
    await nodes.kill(first)
    nodes.clock.pass_(3 * LEASE)
    with fault(second, how, "recover") as happened, pytest.raises(StoreUnavailableError):
        await keep(second)
    assert happened
    await nodes.pass_(RENEW, second)
    assert len(await take(second)) == 20


async def test_nothing_is_handed_out_of_a_shard_before_it_is_recovered(nodes: Nodes) -> None:
    """Or it would be recovered from who was just handed it, and pushed twice at a time."""
    first = await nodes.open("one")
    queues = await phones(first, 9)
    second = await nodes.open("two")
    await nodes.kill(first)
    nodes.clock.pass_(3 * LEASE)
    found: list[Claim] = []

    async def notify_meanwhile() -> None:
        """An operation that began before, and goes on when the shards are ours."""
        session = await sessions.acquire(second._node, SMP)
        assert session is not None
        block = stamp(second, session, *queues)
        found.extend((await deliveries.notify(second._node, session, block, EVERYWHERE)).claims)

    with before(second, "recover", notify_meanwhile):
        await keep(second)
    found += await take(second)
    assert sorted(name for claim in found for name in names(claim)) == queues
    assert len({claim.token for claim in found}) == len(found) == 9


async def test_nothing_is_recovered_from_who_was_handed_it_meanwhile(nodes: Nodes) -> None:
    """By calls that began after the one whose answer was lost, and before it was known that it is."""
    store = await nodes.open()
    queues = await phones(store, 20)
    session = await acquire(store)
    found: list[Claim] = []

    async def notify_meanwhile() -> None:
        block = stamp(store, session, *queues[10:])
        found.extend((await deliveries.notify(store._node, session, block, EVERYWHERE)).claims)

    with fault(store, How.LOST, "notify"), pytest.raises(StoreUnavailableError):
        await notify(store, session, *queues[:10], places=EVERYWHERE)
    with before(store, "recover", notify_meanwhile):
        await keep(store)
    assert len(found) == 10
    found += await take(store)
    assert sorted(name for claim in found for name in names(claim)) == queues


async def test_an_outage_strands_nothing(own_server: Server) -> None:
    """Answers are lost in the middle of everything."""
    nodes = Nodes(own_server.url)
    store = await nodes.open(bounds=Bounds(limit=1.0, answer=0.4, connect=0.4), manual=False)
    queues = await phones(store, 20)
    session = await acquire(store)
    own_server.freeze()
    with pytest.raises(StoreUnavailableError):
        await notify(store, session, *queues, places=EVERYWHERE)
    with pytest.raises(StoreUnavailableError):
        await take(store)
    own_server.thaw()
    found = []
    async with asyncio.timeout(10):
        while not found:
            try:
                found = (await notify(store, session, *queues, places=EVERYWHERE)).claims
                found += await take(store)
            except StoreUnavailableError:
                continue
    assert len({claim.token for claim in found}) == len(found) == 20
    await nodes.close()


async def test_a_renewal_that_fails_when_nobody_waits_any_more_is_no_fault(nodes: Nodes) -> None:
    """asyncio said that its exception was never retrieved, where a renewal took too long (the simulator's seed 2)."""
    store = await nodes.open()
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    with fault(store, How.UNDONE, "hold"):
        store._node._kept_at = float("-inf")
        waiting = asyncio.create_task(store._node.begin())
        await asyncio.sleep(0)
        renewal = store._node._keeping
        assert renewal is not None and not renewal.done()
        waiting.cancel()
        await asyncio.wait([waiting, renewal])
    del renewal
    store._node._keeping = None
    gc.collect()
    await asyncio.sleep(0)
    assert told == []


# --- small things


async def test_the_result_of_who_was_cancelled_goes_elsewhere() -> None:
    lost: list[int] = []

    async def work(fails: bool) -> int:
        await asyncio.sleep(0.01)
        if fails:
            raise StoreUnavailableError("away")
        return 1

    assert await unless_cancelled(work(fails=False), lost.append) == 1
    for fails in (False, True):
        task = asyncio.create_task(unless_cancelled(work(fails), lost.append))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.02)
    assert lost == [1]


def test_each_run_has_a_name_of_its_own() -> None:
    names_ = {identity(lambda size, n=n: bytes([n]) * size) for n in range(100)}  # type: ignore[misc]
    assert len(names_) == 100 and all(len(name) == 16 for name in names_)


# --- a store that is gone


def emptied(server: Server) -> None:
    server.ask("FLUSHALL")


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "durable", {"appendonly": "yes", "appendfsync": "always"}) as server:
        yield server


@contextlib.asynccontextmanager
async def lost(server: Server, store: RedisStore) -> AsyncIterator[None]:
    """What is written in here is lost, as after a loss of power; nothing that was asked for failed meanwhile."""
    [file] = (server.folder / "appendonlydir").glob("*.incr.aof")
    size = file.stat().st_size
    yield
    server.kill()
    os.truncate(file, size)
    server.start()
    await store.find_token(b"whoever")  # the node hears of it


async def test_where_what_came_of_a_push_is_lost_the_push_is_due_again(durable: Server) -> None:
    nodes = Nodes(durable.url)
    store = await nodes.open()
    [outcome] = await claimed(store, 1)
    async with lost(durable, store):
        await record(store, outcome)
    await nodes.pass_(1.0, store)  # between two pushes
    [again] = await take(store)
    assert again.token == outcome.claim.token
    await record(store, delivered(again))
    await nodes.close()


async def test_where_it_is_lost_by_which_call_a_push_was_handed_out_its_outcome_counts_nevertheless(
    durable: Server,
) -> None:
    nodes = Nodes(durable.url)
    store = await nodes.open()
    token = await activate(store)
    queues = [b"queue %d" % i for i in range(8)]  # more than a push has room for
    await subscribe(store, token, *queues)
    session = await acquire(store, SMP)
    await notify(store, session, *queues)
    [first] = await take(store)
    await record(store, delivered(first))
    await nodes.pass_(1.0, store)
    async with lost(durable, store):
        [second] = await take(store)
    await keep(store)
    await record(store, delivered(second))
    assert {e.notifier_id for e in (*first.entries, *second.entries)} == set(queues)
    await nodes.pass_(1.0, store)
    await notify(store, session, queues[0])
    [third] = await take(store)
    await record(store, delivered(third))
    await nodes.close()


def replaced(server: Server) -> None:
    """By another one: its id tells."""
    server.ask("FLUSHALL")
    server.ask("HSET", "nodes:{g}:store", "id", "another", "schema", 1)


@pytest.mark.parametrize("happens", [emptied, replaced])
async def test_a_store_that_is_gone_is_noticed_at_the_next_renewal(
    nodes: Nodes, server: Server, happens: Callable[[Server], None]
) -> None:
    """Once is said; nothing is written, then or at the end."""
    store = await nodes.open()
    said: list[StoreCorruptError] = []
    store._node.on_corrupt = said.append
    await nodes.pass_(RENEW, store)
    happens(server)
    there = set(server.ask("KEYS", "*"))
    nodes.clock.pass_(RENEW)
    for _ in range(2):
        with pytest.raises(StoreCorruptError, match=r"emptied or replaced .*Put it back"):
            await due(store, 1)
    assert len(said) == 1
    assert not store._node.held
    await store.close()
    assert set(server.ask("KEYS", "*")) == there


async def test_who_is_refused_looks_at_once_whether_the_store_is_there(nodes: Nodes, server: Server) -> None:
    store = await nodes.open()
    session = await store.acquire(SMP)
    assert session is not None
    server.ask("FLUSHALL")
    with pytest.raises(FencedError):
        await store.service_state(session)
    with pytest.raises(StoreCorruptError):
        await store.acquire(SMP)
    assert server.ask("KEYS", "*") == []


async def test_a_store_that_is_gone_is_not_written_at_a_stop(nodes: Nodes, server: Server) -> None:
    """Though no renewal came between."""
    store = await nodes.open()
    server.ask("FLUSHALL")
    await store.close()
    assert server.ask("KEYS", "*") == []


async def test_what_comes_back_after_the_end_is_the_next_holders(nodes: Nodes) -> None:
    """Of a call that was cancelled, and ended as the store was closed: nothing is begun any more. (Seed 3 on Redis.)"""
    store = await nodes.open()
    [outcome] = await claimed(store, 1)
    await store.close()
    store._give_back([outcome.claim])
    assert not store._tasks
