"""Notifications in, claims out, and what came of them, when answers are lost and when a call is done twice."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from redis_servers import Cluster, Server
from redis_stores import How, Nodes, ask, between, each_by, fault, keep, patched, regained

from ntf_server.store.contract import StoreFullError, StoreUnavailableError
from ntf_server.store.memory import CROWD, Times
from ntf_server.store.records import Claim, Ended, Outcome, PushKind, Session
from ntf_server.store.redis import deliveries as module
from ntf_server.store.redis.asking import Some
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.node import LEASE
from ntf_server.testing.store_suite.medium import (
    NOWHERE,
    ROOM,
    acquire,
    activate,
    again,
    dead,
    delivered,
    names,
    new_token,
    notify,
    record,
    register,
    stamp,
    subscribe,
    take,
    take_one,
)
from smp_bridge.ntf import Provider

EVERYWHERE = dict.fromkeys(Provider, ROOM)


async def phones(store: RedisStore, count: int) -> list[bytes]:
    """Their queues, one of each; the store has found out that nothing is due for them."""
    queues = [b"q%02d" % number for number in range(count)]
    for number, queue in enumerate(queues):
        await subscribe(store, await activate(store, number), queue)
    assert await take(store) == []
    return queues


def said(claims: Sequence[Claim]) -> list[bytes]:
    """The queues whose notifications no push held yet; each is claimed once."""
    found = [e.notifier_id for c in claims for e in c.entries if not e.sent]
    assert len({c.token for c in claims}) == len(claims)
    return sorted(found)


async def taken(store: RedisStore) -> set[bytes]:
    """Tokens that the store has handed out."""
    return {token for shard in store._node.names.shards for token in await ask(store, b"HKEYS", shard + b":taken")}


async def deliver_all(nodes: Nodes, store: RedisStore, *claims: Claim) -> list[Claim]:
    """Till nothing is due; all claims."""
    out: list[Claim] = []
    left = list(claims)
    while left:
        out += left
        await record(store, *map(delivered, left))
        await nodes.pass_(0.1, store)
        left = await take(store)
    return out


# --- NMSG


async def test_a_block_whose_answer_was_lost_hands_out_each_token_once(nodes: Nodes, store: RedisStore) -> None:
    queues = await phones(store, 20)
    with fault(store, How.TWICE, "notify") as happened:
        notified = await notify(store, await acquire(store), *queues, places=EVERYWHERE)
    assert happened and said(notified.claims) == queues
    assert await taken(store) == {claim.token for claim in notified.claims}
    assert await take(store) == []
    await record(store, *map(delivered, notified.claims))
    await nodes.pass_(1, store)
    assert await take(store) == [] and not await taken(store)


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
@pytest.mark.parametrize("name", ["owners", "notify"])
async def test_a_block_that_failed_is_repeated(nodes: Nodes, store: RedisStore, name: str, how: How) -> None:
    queues = await phones(store, 20)
    session = await acquire(store)
    block = stamp(store, session, *queues)
    with fault(store, how, name), pytest.raises(StoreUnavailableError):
        await store.notify(session, block, EVERYWHERE)
    claims = (await store.notify(session, block, EVERYWHERE)).claims
    claims += await take(store)
    assert said(claims) == queues
    assert len(await deliver_all(nodes, store, *claims)) == 20


async def test_nothing_is_handed_out_in_vain(store: RedisStore) -> None:
    """Where something older is owed, or there is no place, it is due at once, and not put back."""
    queues = await phones(store, 6)
    session = await acquire(store)
    full = dict.fromkeys(Provider, ROOM._replace(total=0))
    scripts = []
    run = store._node.database.run

    async def note(call: Any) -> Any:
        scripts.append(call.script.name)
        return await run(call)

    with patched(store._node.database, **each_by(note)):
        for some, places in ((queues[:2], full), (queues[2:], EVERYWHERE)):
            assert not (await notify(store, session, *some, places=places)).claims and not await taken(store)
    assert "park" not in scripts and scripts.count("notify") == 2
    assert said(await take(store)) == queues


async def test_what_is_owed_since_a_block_was_asked_for_holds_nothing_of_it_up(store: RedisStore) -> None:
    queues = await phones(store, 4)
    run = store._node.database.run

    async def owed(call: Any) -> Any:
        answer = await run(call)
        if call.script.name == "notify":
            store._state.owe(b"AP")
        return answer

    with patched(store._node.database, **each_by(owed)):
        notified = await notify(store, await acquire(store), *queues, places=EVERYWHERE)
    assert said(notified.claims) == queues and store._state.owes(b"AP")


async def test_a_block_that_failed_and_is_not_repeated_is_due(store: RedisStore) -> None:
    queues = await phones(store, 20)
    session = await acquire(store)
    with fault(store, How.LOST, "notify"), pytest.raises(StoreUnavailableError):
        await notify(store, session, *queues, places=EVERYWHERE)
    assert said(await take(store)) == queues


async def test_what_is_out_is_recorded_while_there_is_no_room(nodes: Nodes, store: RedisStore, server: Server) -> None:
    """Pushes end, leases are kept and deletions go on; only what comes has to wait."""
    queues = await phones(store, 20)
    session = await acquire(store)
    claims = (await notify(store, session, *queues[:10], places=EVERYWHERE)).claims
    await notify(store, session, *queues[10:15])
    server.ask("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(StoreFullError):
        await notify(store, session, *queues[15:])
    claims += await take(store)
    assert said(claims) == queues[:15]
    assert await store.record(list(map(delivered, claims))) == 0
    assert await store.renew([session]) == []
    await nodes.pass_(LEASE / 2, store)
    assert store._node.held
    await store.delete_token(claims[0].token)
    server.ask("CONFIG", "SET", "maxmemory", 0)
    await notify(store, session, *queues[15:])
    await nodes.pass_(1, store)
    assert said(await take(store)) == queues[15:]


async def test_those_that_are_handed_out_are_not_lost_with_those_that_are_put_back(store: RedisStore) -> None:
    """There is room for some of them, and the store fails when it is told that the others are due."""
    queues = await phones(store, 20)
    session = await acquire(store)
    few = dict.fromkeys(Provider, ROOM._replace(total=5))
    with fault(store, How.UNDONE, "park") as happened:
        claims = (await notify(store, session, *queues, places=few)).claims
    assert happened and len(claims) == 5
    assert said(claims + await take(store)) == queues


async def test_what_there_is_no_room_for_is_due(store: RedisStore) -> None:
    queues = await phones(store, 20)
    few = dict.fromkeys(Provider, ROOM._replace(total=5))
    with fault(store, How.TWICE, "park"):
        claims = (await notify(store, await acquire(store), *queues, places=few)).claims
    assert len(claims) == 5
    assert await taken(store) == {claim.token for claim in claims}
    assert said(claims + await take(store)) == queues


async def test_a_block_that_comes_late_replaces_nothing(nodes: Nodes, store: RedisStore) -> None:
    """Nor one that is done again when its push is over."""
    [queue] = await phones(store, 1)
    session = await acquire(store)
    old, new = stamp(store, session, queue, meta=b"old"), stamp(store, session, queue, meta=b"new")
    await store.notify(session, new, NOWHERE)
    assert (await store.notify(session, old, NOWHERE)).unknown == 0
    claim = await take_one(store)
    assert [entry.meta for entry in claim.entries] == [b"new"]
    await record(store, delivered(claim))
    for block in (new, old):
        await store.notify(session, block, EVERYWHERE)
    await nodes.pass_(1, store)
    assert await take(store) == []


async def test_a_crowd_waits_for_what_else_comes(nodes: Nodes) -> None:
    """A token with several queues, while more comes than can be stored; nothing of it is claimed by nobody."""
    store = await nodes.open(times=Times(crowded_spacing=1.0))
    token = await activate(store)
    queues = [b"%03d" % number for number in range(CROWD)]
    await subscribe(store, token, *queues)
    assert await take(store) == []
    session = await acquire(store)
    await notify(store, session, *queues[2:], places=NOWHERE)
    await record(store, Outcome(await take_one(store), Ended.DELIVERED))
    await nodes.pass_(1, store)
    claims = await take(store)
    await record(store, *(delivered(c) for c in claims))
    await nodes.pass_(1, store)
    while claims := await take(store):
        await record(store, *(delivered(c) for c in claims))
        await nodes.pass_(1, store)
    store._state.crowded_until = store._state.steady + 0.25
    assert (await notify(store, session, queues[0], places=EVERYWHERE)).claims == []
    assert (await notify(store, session, queues[1], places=EVERYWHERE)).claims == []
    await nodes.pass_(2, store)
    assert said(await take(store)) == queues[:2]


# --- what came of it


@pytest.mark.parametrize("ended", list(Ended))
async def test_an_outcome_is_recorded_once(nodes: Nodes, store: RedisStore, ended: Ended) -> None:
    [queue] = await phones(store, 1)
    session = await acquire(store)
    await notify(store, session, queue)
    claim = await take_one(store)
    held = claim.entries if ended is Ended.DELIVERED else ()
    with fault(store, How.TWICE, "record"):
        await store.record([Outcome(claim, ended, "why", after=30.0, held=held)])
    attempts = {Ended.AGAIN: 1, Ended.OURS: 1}.get(ended, 0)
    key = store._node.names.token(claim.token)  # type: ignore[arg-type]
    assert int(await ask(store, b"HGET", key, b"n") or 0) == attempts
    await nodes.pass_(29, store)
    early = await take(store)
    await nodes.pass_(2, store)
    late = await take(store)
    assert len(early + late) == (ended not in (Ended.DELIVERED, Ended.DEAD))
    if ended in (Ended.AGAIN, Ended.OURS, Ended.UNTRIED):
        assert not early and late[0].attempts == attempts


async def test_an_outcome_whose_answer_never_came_may_be_told_again(nodes: Nodes, store: RedisStore) -> None:
    queues = await phones(store, 20)
    session = await acquire(store)
    await notify(store, session, *queues)
    outcomes = [delivered(claim) for claim in await take(store)]
    with fault(store, How.LOST, "record"), pytest.raises(StoreUnavailableError):
        await store.record(outcomes)
    assert await store.record(outcomes) == 20  # they were not claimed any more
    await nodes.pass_(1, store)
    assert await take(store) == [] and not await taken(store)


async def test_an_outcome_that_did_not_reach_the_store_is_told_again(nodes: Nodes, store: RedisStore) -> None:
    queues = await phones(store, 20)
    await notify(store, await acquire(store), *queues)
    outcomes = [delivered(claim) for claim in await take(store)]
    with fault(store, How.UNDONE, "record"), pytest.raises(StoreUnavailableError):
        await store.record(outcomes)
    await keep(store)
    assert await take(store) == []
    await record(store, *outcomes)
    await nodes.pass_(1, store)
    assert await take(store) == []


async def test_a_late_outcome_of_an_old_claim_changes_nothing_of_a_newer_one(nodes: Nodes, store: RedisStore) -> None:
    """The store had done it, and does it once more when the token is claimed again."""
    [queue] = await phones(store, 1)
    session = await acquire(store)
    await notify(store, session, queue, meta=b"1")
    first = await take_one(store)
    calls = []
    run = store._node.database.run

    async def note(call: object) -> object:
        calls.append(call)
        return await run(call)  # type: ignore[arg-type]

    with patched(store._node.database, **each_by(note)):
        await record(store, delivered(first))
    [call] = [call for call in calls if call.script.name == "record"]  # type: ignore[attr-defined]
    await notify(store, session, queue, meta=b"2")
    await nodes.pass_(1, store)
    second = await take_one(store)
    assert [e.meta for e in second.entries] == [b"2"]
    await run(call)  # type: ignore[arg-type]
    assert await taken(store) == {second.token}
    await record(store, again(second, 5))
    await nodes.pass_(6, store)
    assert [e.meta for e in (await take_one(store)).entries] == [b"2"]


async def test_one_claim_is_recorded_once_in_a_call(store: RedisStore) -> None:
    await register(store, new_token())
    claim = await take_one(store)
    assert await store.record([delivered(claim), delivered(claim), dead(claim)]) == 2
    assert await store.record([delivered(claim)]) == 1
    assert await store.record([]) == 0


async def test_what_came_while_it_was_out_is_pushed_next(nodes: Nodes, store: RedisStore) -> None:
    [queue] = await phones(store, 1)
    session = await acquire(store)
    [claim] = (await notify(store, session, queue, meta=b"1", places=EVERYWHERE)).claims
    assert (await notify(store, session, queue, meta=b"2", places=EVERYWHERE)).claims == []
    with fault(store, How.TWICE, "record"):
        await record(store, delivered(claim))
    assert await take(store) == []
    await nodes.pass_(0.1, store)
    [claim] = await take(store)
    assert [e.meta for e in claim.entries] == [b"2"]


async def test_without_time_between_pushes_the_next_is_due_at_once(nodes: Nodes) -> None:
    store = await nodes.open(times=Times(spacing=0.0))
    [queue] = await phones(store, 1)
    session = await acquire(store)
    [claim] = (await notify(store, session, queue, places=EVERYWHERE)).claims
    await notify(store, session, queue)
    await record(store, delivered(claim))
    assert names(await take_one(store)) == [queue]


async def test_of_a_providers_words_a_line_is_kept(store: RedisStore) -> None:
    token = await register(store, new_token())
    await record(store, again(await take_one(store), reason="x" * 5000))
    push = await store.last_push(token.ref)
    assert push is not None and push.reason == "x" * 200


async def test_a_claim_of_a_registration_that_came_anew_meanwhile(nodes: Nodes, store: RedisStore) -> None:
    """Is worth nothing, and the new code is due when it has ended."""
    new = new_token()
    await register(store, new)
    claim = await take_one(store)
    await register(store, new)
    assert await store.record([delivered(claim)]) == 1
    await nodes.pass_(0.1, store)
    anew = await take_one(store)
    assert anew.kind is PushKind.VERIFICATION and anew.registration == claim.registration + 1


# --- many nodes, many slots


@pytest.mark.parametrize("how", [How.TWICE, How.LOST])
async def test_in_a_cluster(cluster: Cluster, how: How) -> None:
    """Each shard's call ends for itself: what of a block was done is due, or handed out, and no more."""
    nodes = Nodes(cluster.url)
    store = await nodes.open(shards=16)
    queues = await phones(store, 30)
    session = await acquire(store)
    claims: list[Claim] = []
    with fault(store, how, "notify"):
        notified = await notify(store, session, *queues, places=EVERYWHERE)
    claims += notified.claims
    left = {n.notifier_id for n in notified.unstored}
    assert left == (set(queues) if how is How.LOST else set())
    await regained(store)
    claims += (await notify(store, session, *left, places=EVERYWHERE)).claims
    claims += await take(store)
    assert said(claims) == queues
    pushed = await deliver_all(nodes, store, *claims)
    assert len(pushed) in (30, 60)  # those that were told again were new ones
    await nodes.close()


@pytest.mark.parametrize("how", [How.UNDONE, How.LOST])
async def test_in_a_cluster_nobody_waits_to_put_back_what_there_is_no_room_for(cluster: Cluster, how: How) -> None:
    """It is due once its shard can be had again, whether the store heard of that or not."""
    nodes = Nodes(cluster.url)
    store = await nodes.open(shards=16)
    queues = await phones(store, 30)
    few = dict.fromkeys(Provider, ROOM._replace(total=5))
    with fault(store, how, "park") as happened:
        claims = (await notify(store, await acquire(store), *queues, places=few)).claims
    assert happened and len(claims) == 5
    await regained(store)
    assert said(claims + await take(store)) == queues
    await nodes.close()


async def test_what_there_is_no_room_for_of_a_shard_that_fell_silent_is_due_later(cluster: Cluster) -> None:
    nodes = Nodes(cluster.url)
    store = await nodes.open(shards=16)
    node, [queue] = store._node, await phones(store, 1)
    session = await acquire(store)
    few = dict.fromkeys(Provider, ROOM._replace(total=0))
    run_some = node.run_some

    async def falls_silent(name: str, *args: Any) -> Some:
        if name == "park":
            node.silent.update(range(16))
        return await run_some(name, *args)

    with patched(node, run_some=falls_silent):
        assert (await notify(store, session, queue, places=few)).claims == []
    for number in range(16):
        await node._ask_for(number)
    assert said(await take(store)) == [queue]
    await nodes.close()


async def test_blocks_at_once(store: RedisStore) -> None:
    """For the same tokens: each is handed out once."""
    queues = await phones(store, 10)
    session = await acquire(store)
    blocks = [notify(store, session, *queues, places=EVERYWHERE) for _ in range(10)]
    takes = [store.take(Provider.APNS, ROOM) for _ in range(5)]
    found: list[Claim] = []
    for some in await asyncio.gather(*blocks, *takes):
        found += some.claims
    found += await take(store)
    assert said(found) == queues


async def test_what_was_claimed_before_it_is_put_back_once_more_stays_claimed(nodes: Nodes, store: RedisStore) -> None:
    """There was no room for it; when there was, the answer had not come yet."""
    queues = await phones(store, 3)
    claims: list[Claim] = []

    async def claimed() -> None:
        claims.extend(await take(store))

    with between(store, "park", claimed) as happened:
        few = dict.fromkeys(Provider, ROOM._replace(total=1))
        claims += (await notify(store, await acquire(store), *queues, places=few)).claims
    assert happened and said(claims) == queues
    nodes.clock.pass_(1)
    assert await take(store) == []
    await record(store, *map(delivered, claims))


async def test_nothing_is_parked_for_nobody(store: RedisStore) -> None:
    await module.park(store._node, [])
    await module.park(store._node, [b"nobody"])
    assert not await taken(store) and not store._state.backlog


# --- connections that end at any time


class World:
    """What has to be pushed, and who is being pushed to: no token twice at a time, nothing forgotten."""

    def __init__(self, stores: Sequence[RedisStore], seed: int) -> None:
        self.stores = stores
        self.random = random.Random(seed)
        self.out: dict[object, RedisStore] = {}
        self.newest: dict[bytes, bytes] = {}  # metadata of queues that no push held yet
        self.pushes = 0

    def claimed(self, store: RedisStore, claims: Sequence[Claim]) -> list[Claim]:
        for claim in claims:
            assert claim.token not in self.out, "a token is pushed to twice at a time"
            self.out[claim.token] = store
        return list(claims)

    async def push(self, store: RedisStore, claims: Sequence[Claim]) -> None:
        """Some at once, some a little later; some are to be tried again."""
        left = self.claimed(store, claims)
        self.random.shuffle(left)
        while left:
            some = [left.pop() for _ in range(min(len(left), self.random.randrange(1, 8)))]
            await asyncio.sleep(self.random.random() / 200)
            outcomes = [delivered(c) if self.random.random() < 0.8 else again(c) for c in some]
            for outcome in outcomes:
                del self.out[outcome.claim.token]
                for e in outcome.held:
                    if self.newest.get(e.notifier_id) == e.meta:
                        del self.newest[e.notifier_id]
            self.pushes += len(outcomes)
            await store.record(outcomes)

    async def tell(self, store: RedisStore, session: Session, queues: Sequence[bytes]) -> None:
        for _ in range(60):
            some = self.random.sample(queues, 5)
            meta = self.random.randbytes(8)
            self.newest |= dict.fromkeys(some, meta)
            block = stamp(store, session, *some, meta=meta)
            claims = (await store.notify(session, block, EVERYWHERE)).claims
            await self.push(store, claims)

    async def take(self, store: RedisStore, while_: asyncio.Event) -> None:
        while not while_.is_set():
            await self.push(store, (await store.take(Provider.APNS, ROOM._replace(total=10))).claims)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
async def test_connections_end_all_the_time(nodes: Nodes, server: Server, count: int, seed: int) -> None:
    """Answers are lost, calls are done twice: each message is pushed, and no token has two claims at a time."""
    stores = [await nodes.open(name) for name in ("one", "two")[:count]]
    await nodes.pass_(14, *stores)
    world = World(stores, seed)
    queues = [b"q%02d" % n for n in range(20)]
    for n, queue in enumerate(queues):
        await subscribe(stores[0], await activate(stores[0], n), queue)
    session = await acquire(stores[0])
    over, killed = asyncio.Event(), list[int]()

    async def cut() -> None:
        while not over.is_set():
            await asyncio.sleep(world.random.random() / 50)
            killed.append(server.ask("CLIENT", "KILL", "TYPE", "normal"))
            nodes.clock.pass_(0.01)

    others = [asyncio.create_task(work) for work in (cut(), *(world.take(store, over) for store in stores))]
    await asyncio.gather(*(world.tell(stores[0], session, queues) for _ in range(4)))
    over.set()
    await asyncio.gather(*others)
    async with asyncio.timeout(20):
        while world.newest:
            await nodes.pass_(0.1, *stores)
            for store in stores:
                await world.push(store, await take(store))
    assert sum(killed) > 10
    for store in stores:
        assert not store._state.claims
    assert not await taken(stores[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nodes_die_and_join_under_load(nodes: Nodes, seed: int) -> None:
    """What the dead ones had is pushed by those that live, once their leases are over."""
    first = await nodes.open("first")
    world = World([first], seed)
    queues = [b"q%02d" % n for n in range(20)]
    for n, queue in enumerate(queues):
        await subscribe(first, await activate(first, n), queue)
    session = await acquire(first)
    for name in ("second", "third", "second"):
        other = await nodes.open(name)
        for _ in range(8):  # it gets its share, which is given when nothing of it is out
            await nodes.pass_(2, first, other)
        assert other._node.held and first._node.held
        over = asyncio.Event()
        taking = [asyncio.create_task(world.take(store, over)) for store in (first, other)]
        await asyncio.gather(*(world.tell(first, session, queues) for _ in range(2)))
        taking[1].cancel()
        await asyncio.gather(taking[1], return_exceptions=True)
        await nodes.kill(other)
        world.out = {token: store for token, store in world.out.items() if store is not other}
        over.set()
        await taking[0]
    async with asyncio.timeout(20):
        while world.newest:
            await nodes.pass_(1, first)
            await world.push(first, await take(first))
    await nodes.pass_(14, first)
    assert not await taken(first)
    assert await take(first) == []
