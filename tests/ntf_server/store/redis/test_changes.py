"""Changes of servers, through a stream: each reaches who holds the server, or nobody does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from redis_servers import Server
from redis_stores import SHARDS, How, Nodes, ask, fault

from ntf_server.store.changes import Changes
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.records import Change, ChangeKind, Removed, ToAudit
from ntf_server.store.redis import buckets, changes
from ntf_server.store.redis.changes import change, follow, newest, tell
from ntf_server.store.redis.database import Bounds, Database
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.rows import Cursor, Queue
from ntf_server.testing.store_suite.medium import OTHER_SMP, SMP, acquire, activate, found, pages, subscribe
from smp_bridge.ntf import SubscriptionStatus

A, B = Queue(server_id(SMP), b"a"), Queue(server_id(SMP), b"b" * 255)


@asynccontextmanager
async def followed(store: RedisStore) -> AsyncIterator[AsyncIterator[Change]]:
    """What this node hears from now on."""
    told = Changes()
    names = store._node.names
    after = {key: await newest(store._node.database, key) for key in (names.changes, names.bell)}
    task = asyncio.create_task(follow(store._node, after, told, lambda _: None))
    try:
        yield aiter(told)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def next_of(stream: AsyncIterator[Change]) -> Change:
    return await asyncio.wait_for(anext(stream), 5)


@pytest.mark.parametrize(
    "told",
    [
        Change(ChangeKind.ADDED, SMP, (A, B)),
        Change(ChangeKind.AUDIT, OTHER_SMP, (A,)),
        Change(ChangeKind.AUDIT, OTHER_SMP),
        Change(
            ChangeKind.REMOVED,
            SMP,
            removed=(Removed(A, True, False, Cursor(3, 1, 7)), Removed(B, False, True, Cursor(0, 0, 2**40))),
        ),
    ],
    ids=lambda told: told.kind.value,
)
async def test_there_and_back(store: RedisStore, told: Change) -> None:
    await tell(store._node.database, store._node.names, told)
    [[_, fields]] = await ask(store, b"XRANGE", store._node.names.changes, b"-", b"+")
    assert change(dict(zip(fields[::2], fields[1::2], strict=True))) == told


async def test_a_node_hears_of_servers_that_it_holds_or_nobody_does(nodes: Nodes) -> None:
    first, second = await nodes.open("one"), await nodes.open("two")
    await acquire(first, SMP)
    async with followed(first) as one, followed(second) as two:
        for server in (SMP, OTHER_SMP):
            await tell(first._node.database, first._node.names, Change(ChangeKind.ADDED, server, (A,)))
        assert [(await next_of(one)).server for _ in range(2)] == [SMP, OTHER_SMP]
        assert (await next_of(two)).server == OTHER_SMP
        await nodes.pass_(7, second)  # the other's lease is over
        await tell(second._node.database, second._node.names, Change(ChangeKind.ADDED, SMP, (B,)))
        assert (await next_of(two)).server == SMP


async def test_what_was_told_before_is_not_heard(store: RedisStore) -> None:
    await tell(store._node.database, store._node.names, Change(ChangeKind.ADDED, SMP, (A,)))
    async with followed(store) as stream:
        await tell(store._node.database, store._node.names, Change(ChangeKind.ADDED, OTHER_SMP, (B,)))
        assert (await next_of(stream)).server == OTHER_SMP


async def test_commands_tell(store: RedisStore) -> None:
    token = await activate(store)
    async with followed(store) as stream:
        [subscription_id] = await subscribe(store, token, b"a")
        ref = (await found(store, subscription_id)).ref
        assert await next_of(stream) == Change(ChangeKind.ADDED, SMP, (ref,))
        await store.request_audit([ToAudit(ref, SMP, True)])
        assert await next_of(stream) == Change(ChangeKind.AUDIT, SMP, (ref,))
        await store.unsubscribe(ref)
        told = await next_of(stream)
        assert (told.kind, [removed.ref for removed in told.removed]) == (ChangeKind.REMOVED, [ref])


async def test_who_leaves_is_missed_at_once(nodes: Nodes) -> None:
    """Also the servers that it had are told of, to those alone whose they are now."""
    first, second, third = [await nodes.open(name) for name in ("one", "two", "three")]
    token = await activate(first)
    servers = [replace(SMP, key_hash=bytes([n]) * 32) for n in range(12)]
    for server in servers:
        await subscribe(first, token, b"a", server=server)
    held = [await acquire(first, server) for server in servers]
    async with followed(second) as two, followed(third) as three:
        await first.leave()
        with fault(first, How.TWICE, "release"):
            for session in held:
                await first.release(session)
        told = []
        for stream in (two, three):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    async for change in stream:
                        assert change.kind is ChangeKind.FREE and not change.refs
                        told.append(change.server)
    assert sorted(told, key=lambda s: s.key_hash) == servers
    assert second._node.held.keys() | third._node.held.keys() == set(range(SHARDS))


async def test_a_server_that_nobody_wants_is_not_told_of(nodes: Nodes) -> None:
    first, second = await nodes.open("one"), await nodes.open("two")
    async with followed(second) as two:
        await first.leave()
        await first.release(await acquire(first, SMP))
        await tell(first._node.database, first._node.names, Change(ChangeKind.ADDED, OTHER_SMP, (A,)))
        assert (await next_of(two)).server == OTHER_SMP


async def test_what_cannot_be_looked_at_now_is_looked_at_later(nodes: Nodes) -> None:
    """A change that a failure meets is not passed over."""
    first, second = await nodes.open("one"), await nodes.open("two")
    with fault(second, How.UNDONE, "HMGET") as failed:
        async with followed(second) as two:
            await tell(first._node.database, first._node.names, Change(ChangeKind.ADDED, SMP, (A,)))
            async with asyncio.timeout(5):
                while not failed:
                    await asyncio.sleep(0.01)
            second._node.database.command = Database.command.__get__(second._node.database)  # type: ignore[method-assign]
            assert (await next_of(two)).server == SMP


async def test_an_outage_loses_none(own_server: Server) -> None:
    """Though the server that comes back tells late what it was told before."""
    nodes = Nodes(own_server.url)
    store = await nodes.open(bounds=Bounds(limit=1.0, answer=0.4, connect=0.4))
    async with followed(store) as stream:
        own_server.freeze()
        with pytest.raises(StoreUnavailableError):
            await tell(store._node.database, store._node.names, Change(ChangeKind.ADDED, OTHER_SMP, (A,)))
        own_server.thaw()
        async with asyncio.timeout(5):
            while True:
                try:
                    await tell(store._node.database, store._node.names, Change(ChangeKind.ADDED, SMP, (A,)))
                    break
                except StoreUnavailableError:
                    continue
        while (await next_of(stream)).server != SMP:
            pass  # what was told without an answer was told as often as it was tried
    await nodes.close()


async def test_a_failover_is_told_of_all_servers_whoever_holds_them(nodes: Nodes) -> None:
    """Their nodes may lose them before they have made it good."""
    stores = await nodes.open("one"), await nodes.open("two")
    await acquire(stores[0], SMP)
    for store in stores:
        told = asyncio.ensure_future(next_of(store.changes()))
        await asyncio.sleep(0)
        store._node.database.on_lost()
        assert await told == Change(ChangeKind.LOST, SMP)


@pytest.mark.parametrize("late", [False, True])
async def test_ends_by_a_node_whose_fence_is_lost_are_taken_back(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Another node had acquired the server and subscribed its queues, and of that the store knows nothing any more: who
    had it before has their ENDs stored, before it hears of the failover or after.
    """
    monkeypatch.setattr(changes, "LEASE", 0.0 if late else 60.0)
    monkeypatch.setattr(changes, "_LATE_ENDS", 0.3)
    store = await nodes.open()
    ids = await subscribe(store, await activate(store), *(b"%d" % n for n in range(7)))
    session = await acquire(store)
    await store.end(session, [b"6"], SubscriptionStatus.DELETED)
    ends = [b"%d" % n for n in range(6)]
    monkeypatch.setattr(changes, "_TOLD", 2)
    monkeypatch.setattr(buckets, "_TAKEN_BACK", 1)
    if not late:
        await store.end(session, ends, SubscriptionStatus.END)
    async with followed(store) as stream:
        store._node.database.on_lost()
        if late:
            await asyncio.sleep(0.1)
            await store.end(session, ends, SubscriptionStatus.END)
        told = [await next_of(stream) for _ in range(3)]
        assert {told_.kind for told_ in told} == {ChangeKind.ADDED}
        assert {ref.notifier_id for told_ in told for ref in told_.refs} == set(ends)  # type: ignore[attr-defined]
    statuses = [(await found(store, i)).status for i in ids]
    assert statuses == [SubscriptionStatus.NEW] * 6 + [SubscriptionStatus.DELETED]
    assert {wanted.notifier_id for wanted in await pages(store, session)} == set(ends)
