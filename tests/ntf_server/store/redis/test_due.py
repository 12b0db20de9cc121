"""What other nodes make due: they ring, and each looks of itself now and then."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis_servers import Server
from redis_stores import How, Nodes, fault, keep

from ntf_server.store.records import NewToken, Token
from ntf_server.store.redis import due
from ntf_server.store.redis.changes import follow, newest
from ntf_server.store.redis.engine import RedisStore
from ntf_server.testing.store_suite.medium import SMP, acquire, new_token, notify, register, subscribe, take
from smp_bridge.ntf import Provider


@pytest.fixture
async def pair(nodes: Nodes) -> tuple[RedisStore, RedisStore]:
    """Both know of each other, and have their shares."""
    one, other = await nodes.open("one"), await nodes.open("other")
    for _ in range(4):
        await nodes.pass_(2.0, one, other)
    assert one._node.held and other._node.held and not one._node.is_alone
    return one, other


@asynccontextmanager
async def at_work(store: RedisStore) -> AsyncIterator["asyncio.Queue[Provider]"]:
    """What its dispatcher hears that is due."""
    heard: asyncio.Queue[Provider] = asyncio.Queue()
    node = store._node
    store.watch(lambda provider, seconds: heard.put_nowait(provider) if seconds <= 0 else None)
    after = {key: await newest(node.database, key) for key in (node.names.changes, node.names.bell)}
    tasks = [
        asyncio.create_task(follow(node, after, store._changes, store._due.hear)),
        asyncio.create_task(store._due.run()),
    ]
    try:
        yield heard
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def new(store: RedisStore) -> NewToken:
    """A registration of a shard that this node has."""
    held, number = store._node.held, store._node.names.number
    return next(made for made in (new_token(n) for n in itertools.count()) if number(made.token_id) in held)


async def active(store: RedisStore, made: NewToken) -> Token:
    token = await register(store, made)
    assert await store.verify(token.ref, made.code)
    return token


def rings(server: Server) -> int:
    return int(server.ask("XLEN", "nodes:{g}:bell"))


async def test_who_has_the_shard_hears_of_a_notification(
    pair: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due, "_LOOK", 60.0)
    one, other = pair
    token = await active(one, new(other))
    await subscribe(one, token, b"queue")
    session = await acquire(one, SMP)
    async with at_work(other) as heard:
        await asyncio.sleep(0.1)  # what was due before is heard of
        while not heard.empty():
            heard.get_nowait()
        assert await take(other) == []
        await notify(one, session, b"queue")
        assert await asyncio.wait_for(heard.get(), 10) is Provider.APNS
        [claim] = await take(other)
    assert [e.notifier_id for e in claim.entries] == [b"queue"]


async def test_who_has_the_shard_hears_of_a_code(
    pair: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due, "_LOOK", 60.0)
    one, other = pair
    async with at_work(other) as heard:
        await register(one, new(other))
        assert await asyncio.wait_for(heard.get(), 10) is Provider.APNS
        assert len(await take(other)) == 1


async def test_a_ring_that_is_lost_is_made_up_for_by_a_look(
    pair: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due, "_LOOK", 0.1)
    one, other = pair
    async with at_work(other) as heard:
        with fault(one, How.UNDONE, "publish") as lost:
            await register(one, new(other))
            assert await asyncio.wait_for(heard.get(), 10) is Provider.APNS
        assert lost == ["publish"]


async def test_what_is_due_of_an_own_shard_needs_no_ring(pair: tuple[RedisStore, RedisStore], server: Server) -> None:
    one, _ = pair
    await register(one, new(one))
    await asyncio.sleep(0.05)
    assert rings(server) == 0
    assert len(await take(one)) == 1


async def test_many_rings_are_few(pair: tuple[RedisStore, RedisStore], server: Server) -> None:
    one, other = pair
    for _ in range(50):
        one._node.made_due([new(other).token_id])
    async with asyncio.timeout(10):
        while one._due._rings:
            await asyncio.sleep(0.01)
    assert rings(server) == 1
    told = server.ask("XRANGE", "nodes:{g}:bell", "-", "+")[0][1][1]
    assert {int(n) for n in told.split()} <= other._node.held.keys()


async def test_who_is_alone_rings_for_nobody(nodes: Nodes, server: Server) -> None:
    """Shards that nobody has are the next holder's, who looks."""
    store = await nodes.open()
    await keep(store)
    store._node.held.clear()
    store._node.made_due([new_token(1).token_id])
    async with asyncio.timeout(10):
        while store._due._rings:
            await asyncio.sleep(0.01)
    assert rings(server) == 0
