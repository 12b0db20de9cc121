"""Upkeep: each shard by its holder; what is left of tokens, queues and servers goes."""

import asyncio
import re
from collections.abc import Awaitable

import pytest
from redis_servers import Server
from redis_stores import SHARDS, How, Nodes, ask, fault, keys, patched
from scrape import sample

from ntf_server.observe.names import Counter, Gauge, KindCounter
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.memory import Times
from ntf_server.store.redis import rendezvous
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.upkeep import run_slice
from ntf_server.testing.store_suite.medium import (
    DAY,
    OTHER_SMP,
    ROOM,
    SMP,
    Bench,
    acquire,
    activate,
    found,
    known,
    new_queue,
    new_token,
    notify,
    register,
    subscribe,
    take,
    tend,
)
from smp_bridge.ntf import Provider

# What is of the store itself, or of its nodes, whatever is in it.
OWN = {b"{g}:store", b"{g}:clock", b"{g}:nodes", b"{g}:changes", *(b"{t%d}" % n for n in range(SHARDS))}


async def tended(nodes: Nodes, *stores: RedisStore) -> None:
    nodes.clock.pass_(121)
    for store in stores:
        await tend(Bench(None, nodes.clock), store)  # type: ignore[arg-type]


async def left(store: RedisStore) -> set[bytes]:
    """Keys beside those, and the counters of shards."""
    return {key for key in await keys(store) if key not in OWN and not key.endswith(b":arrived")}


async def test_nothing_is_left_of_what_was_deleted(nodes: Nodes, store: RedisStore) -> None:
    for n in range(10):
        token = await activate(store, n, Provider.WEB_PUSH if n % 2 else Provider.APNS)
        await store.set_period(token.ref, 20)
        await subscribe(store, token, b"a%d" % n, b"b%d" % n)
        await subscribe(store, token, b"c%d" % n, server=OTHER_SMP)
        await register(store, new_token(100 + n))
    session = await acquire(store)
    await notify(store, session, *(b"a%d" % n for n in range(10)))
    claims = await take(store)
    assert claims
    for shard in store._node.names.shards:
        for token_id in await ask(store, b"ZRANGE", shard + b":all", 0, -1):
            await store.delete_token(token_id)
    await store.release(session)
    await tended(nodes, store)
    assert await left(store) == set()
    assert store._metrics.value(Counter.SERVERS_FORGOTTEN) == 2


async def test_nothing_is_left_of_what_was_forgotten(nodes: Nodes) -> None:
    store = await nodes.open(times=Times(silent_ttl=30 * 24 * 3600))
    await register(store, new_token(0))
    await subscribe(store, await activate(store, 1), b"a")
    await nodes.pass_(0.1, store)
    nodes.clock.pass_(DAY + 60)
    await tended(nodes, store)
    assert store._metrics.value(KindCounter.TOKENS_EXPIRED, "unverified") == 1
    nodes.clock.pass_(30 * DAY)
    await tended(nodes, store)
    assert store._metrics.value(KindCounter.TOKENS_EXPIRED, "silent") == 1
    await tended(nodes, store)
    assert await left(store) == set()


async def test_each_shard_is_its_holders(nodes: Nodes) -> None:
    first, second = await nodes.open("one"), await nodes.open("two")
    await nodes.pass_(20, first, second)
    assert first._node.held and second._node.held
    for n in range(20):
        await register(first, new_token(n))
    nodes.clock.pass_(DAY + 60)
    for store in (first, second):
        await tended(nodes, store)
    found = [store._metrics.value(KindCounter.TOKENS_EXPIRED, "unverified") for store in (first, second)]
    assert sum(found) == 20


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
@pytest.mark.parametrize("step", ["forgotten", "drop", "expire", "SRANDMEMBER", "forget_server", "HDEL"])
async def test_a_round_that_fails_goes_on_later(nodes: Nodes, store: RedisStore, step: str, how: How) -> None:
    for n in range(5):
        await register(store, new_token(n))
    token = await activate(store, 10)
    await subscribe(store, token, b"a")
    session = await acquire(store)
    await store.release(session)
    await store.delete_token(token.ref)
    nodes.clock.pass_(DAY + 60)
    with fault(store, how, step) as happened, pytest.raises(StoreUnavailableError):
        await tended(nodes, store)
    assert happened
    await tended(nodes, store)
    await tended(nodes, store)
    # An index entry whose registration was deleted by a call without an answer leads nowhere: the next one uses it.
    assert {key for key in await left(store) if not key.startswith(b"{d")} == set()


async def test_that_a_token_was_seen_is_written_once_a_day(nodes: Nodes, store: RedisStore) -> None:
    token = await activate(store)
    store.seen(token)
    assert await run_slice(store._node, store._sweep) > 0
    assert (await known(store, token)).active_at == token.active_at
    await nodes.pass_(1, store)
    nodes.clock.pass_(DAY + 1)
    with fault(store, How.TWICE, "seen") as happened:
        store.seen(token)
        store.seen(token)
        await tended(nodes, store)
    assert happened == ["seen"]
    assert (await known(store, token)).active_at >= token.active_at + DAY


async def test_a_server_that_somebody_needs_again_meanwhile_stays(nodes: Nodes) -> None:
    """It is forgotten in one slot, and listed in another."""
    first, second = await nodes.open("one"), await nodes.open("two")
    token = await activate(first)
    await first.release(await acquire(first))
    command = first._node.database.command

    async def subscribe_first(*words: bytes, **options: object) -> object:
        if words[0] == b"HDEL":
            await subscribe(second, token, b"a")
        return await command(*words, **options)  # type: ignore[arg-type]

    nodes.clock.pass_(61)
    with patched(first._node.database, command=subscribe_first):
        await tended(nodes, first)
    assert await second.servers() == [SMP]
    await tended(nodes, first, second)
    assert await second.servers() == [SMP]


async def test_a_server_with_a_session_is_kept(nodes: Nodes) -> None:
    """And one that was proved, for a week."""
    store = await nodes.open()
    token = await activate(store)
    await subscribe(store, token, b"a")
    session = await acquire(store)
    await store.prove(session, "192.0.2.0/24")
    await store.delete_token(token.ref)
    await tended(nodes, store)
    assert await ask(store, b"HLEN", store._node.names.servers) == 1
    await store.release(session)
    nodes.clock.pass_(6 * DAY)
    await tended(nodes, store)
    assert await ask(store, b"HLEN", store._node.names.servers) == 1
    nodes.clock.pass_(DAY)
    await tended(nodes, store)
    assert await ask(store, b"HLEN", store._node.names.servers) == 0


async def test_what_is_over_its_time_is_counted_once(nodes: Nodes) -> None:
    """By upkeep of two nodes at once, or a take: whichever sees it."""
    stores = [await nodes.open(name, times=Times(message_ttl=3600, verification_ttl=600)) for name in ("one", "two")]
    await nodes.pass_(20, *stores)
    for n in range(10):
        token = await activate(stores[0], n)
        await subscribe(stores[0], token, b"%d" % n)
        await register(stores[0], new_token(100 + n))
    session = await acquire(stores[0])
    await notify(stores[0], session, *(b"%d" % n for n in range(10)))
    nodes.clock.pass_(3700)
    await asyncio.gather(*(tended(nodes, store) for store in stores))
    for store in stores:
        assert await take(store) == []
    found = [
        sum(store._metrics.value(KindCounter.EXPIRED, kind) for kind in KindCounter.EXPIRED.kinds) for store in stores
    ]
    assert sum(found) == 20


KNOWN = re.compile(
    rb"\{g\}:(store|clock|nodes|servers|changes)"
    rb"|\{t\d+\}(:(all|unproven|active|period|codes|checks|waiting|taken|gone|doubts|arrived)"
    rb"|:(due|lanes):(AP|WP).*|:[tnuhq]:.{24})?"
    rb"|\{d[0-9a-f]{2}\}:.{32}|\{i[0-9a-f]{2}\}|\{s[0-9a-f]{16}\}(:b)?|\{s[0-9a-f]{16}\.[0-9a-f]{2}\}(:q|:e|:g|:w:\d+)?",
    re.DOTALL,
)


async def test_no_key_is_left_that_nobody_looks_at(nodes: Nodes) -> None:
    """After all kinds of commands, and kills in their middle: each is of a kind that is known, and none is a lock."""
    for turn in range(6):
        store = await nodes.open("two" if turn % 2 else "one")
        await nodes.pass_(14, store)
        session = await acquire(store)
        work: list[Awaitable[object]] = []
        for n in range(12):
            provider = Provider.WEB_PUSH if n % 3 else Provider.APNS
            token = await activate(store, 100 * turn + n, provider)
            await store.set_period(token.ref, 20)
            await subscribe(store, token, b"a%d-%d" % (turn, n))
            work += [
                notify(store, session, b"a%d-%d" % (turn, n)),
                store.subscribe(token.ref, new_queue(b"b%d-%d" % (turn, n), OTHER_SMP)),
                store.take(provider, ROOM),
            ]
            if n % 4 == 0:
                work.append(store.delete_token(token.ref))
        running = asyncio.gather(*work, return_exceptions=True)
        await asyncio.sleep(0.002 * turn)
        await nodes.kill(store)
        await running
    store = await nodes.open("one")
    await nodes.pass_(14, store)
    assert {key for key in await keys(store) if not KNOWN.fullmatch(key)} == set()
    for shard in store._node.names.shards:
        for token in await ask(store, b"ZRANGE", shard + b":all", 0, -1):
            await store.delete_token(token)
    await tended(nodes, store)
    await tended(nodes, store)
    assert {key for key in await left(store) if not key.startswith((b"{d", b"{i"))} == set()


async def test_large_servers_are_weighed(nodes: Nodes, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_LARGE", 2)
    token = await activate(store)
    ids = await subscribe(store, token, *(b"%d" % number for number in range(4)))
    await subscribe(store, token, b"a", server=OTHER_SMP)
    await tended(nodes, store)
    key = store._node.names.weights
    assert await ask(store, b"HGETALL", key) == [server_id(SMP), b"4"]
    for subscription_id in ids[1:]:
        await store.unsubscribe((await found(store, subscription_id)).ref)
    nodes.clock.pass_(600)
    await tended(nodes, store)
    assert await ask(store, b"EXISTS", key) == 0


async def test_what_is_used_and_what_room_is_left(store: RedisStore, server: Server) -> None:
    used, log, room = await store.space()
    assert 2**18 < used < 2**30
    assert (log, room) == (None, None)  # it has no limit
    server.ask("CONFIG", "SET", "maxmemory", 2**40)
    space = await store.space()
    assert space.room is not None and 2**40 - 2**30 < space.room < 2**40 - 2**18
    server.ask("CONFIG", "SET", "maxmemory", 1)
    assert (await store.space()).room == 0


async def test_what_this_node_holds_is_shown(store: RedisStore) -> None:
    assert sample(store._metrics, Gauge.STORE_SHARDS) == len(store._node.held) == SHARDS
    assert sample(store._metrics, Gauge.STORE_NODES) == 1
