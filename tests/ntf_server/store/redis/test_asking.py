"""What spans shards and primaries: where one of a cluster's primaries is away, all that others have goes on."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from redis_servers import Cluster, Server
from redis_stores import Nodes, ask, each_by, keep, patched, regained

from ntf_server.store.contract import (
    PartlyUnavailableError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from ntf_server.store.records import Claim, Notification, Outcome, Session
from ntf_server.store.redis.buckets import bucket_of, is_wanted
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.database import CLOSE, Bounds
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import Names, server_id
from ntf_server.store.redis.node import LEASE, RENEW
from ntf_server.store.redis.rows import Queue, row
from ntf_server.testing.store_suite.medium import (
    DAY,
    ROOM,
    acquire,
    activate,
    delivered,
    known,
    notify,
    record,
    stamp,
    subscribe,
    take,
)
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider

T = TypeVar("T")

EVERYWHERE = dict.fromkeys(Provider, ROOM)
HEAD = [b"0", b"AP"]
QUICK = Bounds(limit=1.0, connect=0.5, answer=0.5)
SOON = 1.0  # seconds that whatever does not concern who is away may take


async def test_what_spans_shards_is_one_call_where_it_can_be(nodes: Nodes) -> None:
    node = (await nodes.open())._node
    assert await node.run_on("backlog", HEAD, {}) == []
    assert await node.run_on("backlog", HEAD, {shard: [] for shard in node.names.shards}) == [[0, 0, 0]]
    assert await node.run_some("backlog", HEAD, {}) == ([], [])
    some = await node.run_some("backlog", HEAD, {shard: [] for shard in node.names.shards})
    assert some == ([[0, 0, 0]], node.names.shards)
    tokens = [b"%d" % n for n in range(50)]
    parts = node.by_shard(tokens)
    assert sorted(token for part in parts.values() for token in part) == sorted(tokens)
    assert all(node.names.shard(token) == shard for shard, part in parts.items() for token in part)


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), StoreFullError("full")], ids=["away", "full"])
async def test_what_another_nodes_shards_do_not_take_costs_no_renewals(cluster: Cluster, error: StoreError) -> None:
    """There is nothing of them to be recovered here; and one with a full memory is not away."""
    nodes = Nodes(cluster.url)
    first = await nodes.open("one")
    await subscribe(first, await activate(first), b"queue")
    second = await nodes.open("two")
    node = second._node
    session, run, asked = await acquire(second), node.database.run, Counter[str]()

    async def run_one(call: Call) -> object:
        asked[call.script.name] += 1
        if call.script.name == "notify":
            raise error
        return await run(call)

    with patched(node.database, **each_by(run_one)):
        notified = await second.notify(session, stamp(second, session, b"queue"), EVERYWHERE)
        assert [n.notifier_id for n in notified.unstored] == [b"queue"]
        assert bool(node.silent) is not isinstance(error, StoreFullError)
        await regained(second)
        await keep(second)
        asked.clear()
        for _ in range(3):
            await second.notify(session, [], EVERYWHERE)
        assert not node.held and not asked["hold"]
    await nodes.close()


# --- a primary of a cluster is away


@pytest.fixture
def partial(tmp_path: Path) -> Iterator[Cluster]:
    """Without replicas: who is away is missing until he is back."""
    with Cluster(tmp_path / "partial", replicas=0, options=Cluster.PARTIAL) as cluster:
        yield cluster


@pytest.fixture
async def on_partial(partial: Cluster) -> AsyncIterator[Nodes]:
    nodes = Nodes(partial.url)
    yield nodes
    await nodes.close()


def servers_of(cluster: Cluster, primary: Server, nodes: Nodes) -> Iterator[ServerAddress]:
    """SMP servers whose slots it has."""
    names = Names(nodes.prefix)
    for number in range(1000):
        server = ServerAddress("smp", (f"smp{number}.example.org",), "", number.to_bytes(32))
        if cluster.owner_of(names.server(server_id(server))) is primary:
            yield server


class Load:
    """Blocks of notifications for all `queues` of one SMP server, and pushes of what is due, each recorded at once."""

    def __init__(self, store: RedisStore, session: Session, queues: Sequence[bytes]) -> None:
        self.store, self.session, self.queues = store, session, queues
        self.pushed: Counter[bytes] = Counter()
        self.slowest = 0.0
        self._unstored: list[Notification] = []
        self._unrecorded: list[Outcome] = []

    async def once(self) -> None:
        """One of each queue, behind what could not be stored, or recorded, before."""
        block = [*self._unstored, *stamp(self.store, self.session, *self.queues)]
        await self._notify(list({n.notifier_id: n for n in block}.values()))
        await self.take()

    async def take(self) -> None:
        await self._push((await self._timed(lambda: self.store.take(Provider.APNS, ROOM))).claims)

    async def _notify(self, block: Sequence[Notification]) -> None:
        claims = []
        if block:
            notified = await self._timed(lambda: self.store.notify(self.session, block, EVERYWHERE))
            assert notified.unknown == 0
            self._unstored, claims = notified.unstored, notified.claims
        await self._push(claims)

    async def _push(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self.pushed.update(e.notifier_id for e in claim.entries if not e.sent)
        outcomes, self._unrecorded = [*self._unrecorded, *map(delivered, claims)], []
        try:
            assert await self._timed(lambda: self.store.record(outcomes)) == 0
        except PartlyUnavailableError as e:
            self._unrecorded = list(e.left)

    async def _timed(self, work: Callable[[], Awaitable[T]]) -> T:
        began = time.monotonic()
        try:
            return await work()
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)

    async def go_on(self, seconds: float) -> set[bytes]:
        """For so long; the queues that were pushed for meanwhile."""
        before, until = Counter(self.pushed), time.monotonic() + seconds
        self.slowest = 0.0
        while time.monotonic() < until:
            await self.once()
            await asyncio.sleep(0.05)
        return set(self.pushed - before)

    async def end(self) -> None:
        """All that is owed goes out, once."""
        async with asyncio.timeout(20):
            while self._unstored or self._unrecorded:
                await asyncio.sleep(0.05)
                await self._notify(self._unstored)
        await asyncio.sleep(0.1)  # between two pushes of a token
        before = Counter(self.pushed)
        await self.take()
        assert max((self.pushed - before).values(), default=0) <= 1
        before = Counter(self.pushed)
        await asyncio.sleep(0.1)
        await self.take()
        assert self.pushed == before


async def load(
    store: RedisStore, server: ServerAddress, count: int = 40, may_be_in: Callable[[bytes], bool] = lambda _: True
) -> Load:
    """That many tokens with a queue each, in buckets that it may be in."""
    ids = (b"q%03d" % number for number in itertools.count())
    found = (i for i in ids if may_be_in(bucket_of(store._node, Queue(server_id(server), i))))
    queues = list(itertools.islice(found, count))
    for number, queue in enumerate(queues):
        await subscribe(store, await activate(store, number), queue, server=server)
    return Load(store, await acquire(store, server), queues)


async def queues_of(load: Load, cluster: Cluster, primary: Server) -> set[bytes]:
    """Those that it has, or the shards of whose tokens it has."""
    node, found = load.store._node, set()
    for queue in load.queues:
        bucket = bucket_of(node, Queue(server_id(load.session.server), queue))
        [record] = await node.database.command(b"HMGET", bucket + b":q", queue, key=bucket)
        if primary in (cluster.owner_of(bucket), cluster.owner_of(node.names.shard(row(record).token))):
            found.add(queue)
    return found


async def test_what_only_memory_knows_is_due_once_its_shard_is_back(nodes: Nodes) -> None:
    store = await nodes.open()
    node, told = store._node, dict[Provider, float]()
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    await notify(store, session, b"a")
    [claim] = await take(store)
    await notify(store, session, b"b")
    await record(store, delivered(claim))  # and there is more
    nodes.clock.pass_(1)
    number = node.names.number(token.token_id)
    node.silent.add(number)
    assert await take(store) == []
    node.on_effects = lambda: told.update(node.state.effects.wake)
    await node._ask_for(number)
    assert told == {Provider.APNS: 0.0}
    assert [claim.token for claim in await take(store)] == [token.token_id]


async def test_a_primary_stands_still_and_what_others_have_goes_on(partial: Cluster, on_partial: Nodes) -> None:
    """Nothing of them waits for it; nothing is lost, and nothing goes out twice, when it goes on."""
    store = await on_partial.open(manual=False)
    names = store._node.names
    away, there = (n for n in partial.primaries if n is not partial.owner_of(names.store))
    work = await load(store, next(servers_of(partial, there, on_partial)))
    theirs = await queues_of(work, partial, away)
    others = set(work.queues) - theirs
    assert theirs and others
    assert await work.go_on(0.5) == set(work.queues)
    held = dict(store._node.held)
    away.freeze()
    try:
        await work.go_on(0.2)  # what was handed out before may end
        assert await work.go_on(2.5) == others
    finally:
        away.thaw()
    assert work.slowest < SOON
    assert {names.shards[n] for n in store._node.silent} == {s for s in names.shards if partial.owner_of(s) is away}
    assert (await store.backlog(Provider.APNS)).tokens == 0
    await regained(store)
    assert dict(store._node.held) == held  # nobody could take them
    assert await work.go_on(0.5) == set(work.queues)
    await work.end()


@pytest.mark.long
@pytest.mark.parametrize("of_all", [False, True], ids=["of some shards", "of what is everybody's"])
async def test_two_nodes_go_on_while_a_primary_is_dead(partial: Cluster, on_partial: Nodes, of_all: bool) -> None:
    """For longer than all leases: those of others are renewed, and it is as it was once it is back. While what is
    everybody's is away it goes on by what is known.
    """
    stores = [await on_partial.open(name, manual=False) for name in ("one", "two")]
    names = stores[0]._node.names
    everybodys = partial.owner_of(names.store)
    dies = everybodys if of_all else next(n for n in partial.primaries if n is not everybodys)
    lives = next(n for n in partial.primaries if n not in (dies, everybodys))
    work = await load(stores[0], next(servers_of(partial, lives, on_partial)))
    other = Load(stores[1], work.session, [])  # which takes only
    theirs = await queues_of(work, partial, dies)
    others = set(work.queues) - theirs

    async def both(seconds: float) -> set[bytes]:
        *_, found = await asyncio.gather(other.go_on(seconds), work.go_on(seconds))
        return found | set(other.pushed)

    async with asyncio.timeout(20):
        while not all(store._node.held for store in stores):
            await both(0.5)
    await both(3 * RENEW)
    held = [dict(store._node.held) for store in stores]
    await asyncio.to_thread(dies.kill)
    await both(0.2)
    for one in (work, other):
        one.pushed.clear()
    assert await both(2 * LEASE) == others
    assert work.slowest < SOON and other.slowest < SOON
    for shard in names.shards:
        if partial.owner_of(shard) is not dies:
            until = float(await ask(stores[0], b"HGET", shard, b"until"))
            assert until / 1000 > stores[0]._node.now() + LEASE / 3
    await asyncio.to_thread(dies.start)
    for store in stores:
        await regained(store)
    await both(3 * RENEW)
    assert [set(store._node.held) for store in stores] == [set(h) for h in held]
    for one in (work, other):
        one.pushed.clear()
    assert await both(2.0) == set(work.queues)
    await work.end()
    await other.end()


@pytest.mark.long
async def test_a_node_starts_while_a_primary_is_dead(partial: Cluster, on_partial: Nodes) -> None:
    """It serves what others have, and takes the shards of that one when it is back. So it ends, too."""
    first = await on_partial.open(manual=False)
    names = first._node.names
    dies, lives = (n for n in partial.primaries if n is not partial.owner_of(names.store))
    server = next(servers_of(partial, lives, on_partial))  # its session begins while that one is dead
    work = await load(first, server, may_be_in=lambda bucket: partial.owner_of(bucket) is not dies)
    theirs = await queues_of(work, partial, dies)
    on_partial._open.remove(first)
    await first.close()
    await asyncio.to_thread(dies.kill)
    store = await on_partial.open("two", manual=False, bounds=QUICK)
    assert {n for n, shard in enumerate(names.shards) if partial.owner_of(shard) is not dies} == set(store._node.held)
    again = Load(store, await acquire(store, work.session.server), work.queues)
    assert await again.go_on(0.5) == set(work.queues) - theirs
    began = time.monotonic()
    on_partial._open.remove(store)
    await store.close()
    assert time.monotonic() - began < 2 * SOON + CLOSE
    store = await on_partial.open("three", manual=False, bounds=QUICK)
    assert store._node.held.keys() == set(range(len(names.shards))) - store._node.silent
    await asyncio.to_thread(dies.start)
    await regained(store)
    await store._node.look()
    assert store._node.held.keys() == set(range(len(names.shards)))
    last = Load(store, await acquire(store, work.session.server), work.queues)
    assert await last.go_on(1.0) == set(work.queues)
    await last.end()


@pytest.mark.long
async def test_what_nobody_was_silent_for_is_heard_of_when_its_shard_is_back(
    partial: Cluster, on_partial: Nodes
) -> None:
    """A registration is not deleted for days in which no node ran."""
    store = await on_partial.open()
    tokens = [await activate(store, number) for number in range(20)]
    await on_partial.kill(store)
    on_partial.clock.pass_(3 * DAY)
    dies = next(n for n in partial.primaries if n is not partial.owner_of(store._node.names.store))
    await asyncio.to_thread(dies.kill)
    store = await on_partial.open(bounds=QUICK)
    await asyncio.to_thread(dies.start)
    await regained(store)
    for token in tokens:
        assert on_partial.clock.wall() - (await known(store, token)).active_at == pytest.approx(0, abs=2)


async def test_of_sessions_those_that_can_be_had_are_renewed_and_shared_out(
    partial: Cluster, on_partial: Nodes
) -> None:
    """An audit passes over the others, and they are counted when they are back."""
    store = await on_partial.open(manual=False)
    everybodys = partial.owner_of(store._node.names.store)
    away, there = (n for n in partial.primaries if n is not everybodys)
    tokens = [await activate(store, number) for number in range(20)]
    names = store._node.names
    token = next(token for token in tokens if partial.owner_of(names.shard(token.token_id)) is not away)
    servers = [
        server for n in (there, away, everybodys) for server in itertools.islice(servers_of(partial, n, on_partial), 2)
    ]
    for server in servers:
        owner = partial.owner_of(names.server(server_id(server)))
        queues = (Queue(server_id(server), b"q%d" % number) for number in itertools.count())
        queue = next(queue for queue in queues if partial.owner_of(bucket_of(store._node, queue)) is owner)
        await subscribe(store, token, queue.notifier_id, server=server)
    held = [await acquire(store, server) for server in servers[::2]]
    away.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(PartlyUnavailableError) as caught:
            await store.renew(held)
        assert caught.value.left == [held[1]] and caught.value.result == []
        share = await store.share(held)
        assert set(share.take) == {servers[1], servers[5]} and not share.give
        assert set(await store.servers()) == {*servers[:2], *servers[4:]}
        assert await store.subscription_count() == 4
        assert time.monotonic() - began < 4 * SOON
        found, after = await store.to_audit(None, 100, 1.0)
        assert {item.server for item in found} == {*servers[:2], *servers[4:]} and after is None
        with pytest.raises(StoreUnavailableError, match="an SMP server's queues cannot be had now"):
            await is_wanted(store._node, server_id(servers[2]))  # which SNEW asks too
    finally:
        away.thaw()
    await regained(store)
    assert await store.renew(held) == []
    assert await store.subscription_count() == 6
