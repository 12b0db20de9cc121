"""An SMP server's queues in buckets: each in a slot of its own, with the fence of who speaks for the server."""

import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from redis_servers import Cluster, Server
from redis_stores import MASTER, How, Nodes, ask, before, bucket, fault, keys, measured

from ntf_server.store.contract import FencedError
from ntf_server.store.records import Added, Confirmed, LimitReached, Limits, ServiceState, Session, Token
from ntf_server.store.redis.buckets import listed, walk, who
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import LEASE
from ntf_server.testing.store_suite.medium import (
    OTHER_SMP,
    SMP,
    Bench,
    acquire,
    activate,
    found,
    ids_hash,
    names,
    new_queue,
    notify,
    pages,
    stamp,
    subscribe,
    take_one,
    tend,
)
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.service import xor

ACTIVE, END = SubscriptionStatus.ACTIVE, SubscriptionStatus.END
MANY = [b"queue %d" % n for n in range(40)]


@pytest.fixture(params=["server", "cluster"])
async def anywhere(request: pytest.FixtureRequest, server: Server, cluster: Cluster) -> AsyncIterator[Nodes]:
    nodes = Nodes(server.url if request.param == "server" else cluster.url)
    yield nodes
    await nodes.close()


async def serving(store: RedisStore, *ids: bytes) -> Session:
    """A session of a service that has these."""
    session = await acquire(store)
    await store.begin(session, b"service")
    await associate(store, session, *ids)
    return session


async def associate(store: RedisStore, session: Session, *ids: bytes) -> None:
    refs = [(await found(store, i)).ref for i in ids]
    await store.confirm(session, [Confirmed(ref, ACTIVE, associated=True) for ref in refs])


async def unsubscribe(store: RedisStore, subscription_id: bytes) -> None:
    await store.unsubscribe((await found(store, subscription_id)).ref)


def counts(state: ServiceState) -> tuple[int, int, bytes, bytes]:
    return state.associated, state.released, state.ids_hash, state.released_hash


def said(associated: list[bytes], released: list[bytes]) -> tuple[int, int, bytes, bytes]:
    return len(associated), len(released), ids_hash([*associated, *released]), ids_hash(released)


async def tended(nodes: Nodes, *stores: RedisStore) -> None:
    nodes.clock.pass_(121)
    for store in stores:
        await tend(Bench(None, nodes.clock), store)  # type: ignore[arg-type]


# --- where they are


async def test_a_servers_queues_are_in_slots_of_all_primaries(cluster: Cluster) -> None:
    nodes = Nodes(cluster.url)
    store = await nodes.open(buckets=16)
    token = await activate(store)
    await subscribe(store, token, *MANY)
    mine = b"{s%s." % server_id(SMP).hex().encode()
    primaries = Counter[int]()
    for number, primary in enumerate(cluster.nodes):
        for key in primary.ask("KEYS", "nodes:*"):
            if mine in key and key.endswith(b":q"):
                primaries[number] += primary.ask("HLEN", key)
    assert len(primaries) == 3 and sum(primaries.values()) == len(MANY) == await store.subscription_count()
    session = await acquire(store)
    assert sorted(w.notifier_id for w in await pages(store, session, 7)) == sorted(MANY)
    await notify(store, session, *MANY[:5])
    assert sorted(names(await take_one(store))) == sorted(MANY[:5])
    await store.delete_token(token.ref)
    assert await store.subscription_count() == 0
    await nodes.close()


async def test_a_server_with_one_queue_has_one_bucket(anywhere: Nodes) -> None:
    """And nobody asks for others of it."""
    store = await anywhere.open(buckets=16)
    await subscribe(store, await activate(store), b"a")
    there = {key for key in await keys(store) if key.startswith(b"{s")}
    mine, its = (key.partition(b":")[2] for key in (store._node.names.server(server_id(SMP)), bucket(store, b"a")))
    assert there == {mine, mine + b":b", its, its + b":q", its + b":g", its + b":w:0"}
    with fault(store, How.TWICE, "overtake", "page", "counts") as asked:
        session = await acquire(store)
        await store.begin(session, None)
        assert len((await store.page(session, None, 500)).wanted) == 1
    assert sorted(asked) == ["counts", "overtake", "page"]


async def test_on_one_primary_there_is_nothing_to_spread(server: Server, cluster: Cluster) -> None:
    for at, usual in ((server, 1), (cluster, 16)):
        database = await Nodes(at.url).database()
        store = await RedisStore.open(database, master_key=MASTER)
        assert store._node.names.buckets == usual
        await store.close()


async def test_the_number_of_buckets_is_that_of_the_stores_beginning(nodes: Nodes) -> None:
    first = await nodes.open("one", buckets=7)
    await subscribe(first, await activate(first), *MANY)
    second = await nodes.open("two", buckets=3)
    assert second._node.names.buckets == 7
    assert await listed(second._node, server_id(SMP)) == list(range(7))
    assert len(await pages(second, await acquire(second))) == len(MANY)


# --- fences


async def test_an_older_session_is_refused_in_each_bucket(anywhere: Nodes) -> None:
    """From the moment in which the newer one was acquired; also where a queue comes later."""
    first, second = await anywhere.open("one"), await anywhere.open("two")
    token = await activate(first)
    ids = await subscribe(first, token, *MANY[:-1])
    old = await acquire(first)
    await anywhere.pass_(2 * LEASE, second)
    new = await acquire(second)
    ids += await subscribe(second, token, b"later", server=SMP)
    for subscription_id in ids:
        s = await found(second, subscription_id)
        with pytest.raises(FencedError):
            await first.confirm(old, [Confirmed(s.ref, ACTIVE)])
        with pytest.raises(FencedError):
            await first.end(old, [s.notifier_id], END)
        with pytest.raises(FencedError):
            await first.notify(old, stamp(first, old, s.notifier_id), {})
    for number in await listed(first._node, server_id(SMP)):
        key = first._node.names.bucket(server_id(SMP), number)
        assert await ask(first, b"HMGET", key, b"fence", b"node") == [b"%d" % new.fence, b"two"]
    assert len(await pages(second, new)) == len(ids)


async def test_a_bucket_that_comes_knows_who_speaks(nodes: Nodes) -> None:
    """Though the session began before there was one."""
    first, second = await nodes.open("one"), await nodes.open("two")
    old = await acquire(first)
    await nodes.pass_(2 * LEASE, second)
    await acquire(second)
    [subscription_id] = await subscribe(second, await activate(second), b"a")
    with pytest.raises(FencedError):
        await first.confirm(old, [Confirmed((await found(second, subscription_id)).ref, ACTIVE)])


async def test_what_came_in_any_session_of_a_node_is_stored_until_another_node_spoke(nodes: Nodes) -> None:
    first, second = await nodes.open("one"), await nodes.open("two")
    await subscribe(first, await activate(first), b"a")
    old = await acquire(first)
    await nodes.pass_(2 * LEASE, second)
    await first.notify(old, stamp(first, old, b"a"), {})  # the lease is over, nobody else has the server
    newer = await acquire(first)
    await first.notify(old, stamp(first, old, b"a"), {})
    await first.release(newer)
    await first.notify(old, stamp(first, old, b"a"), {})
    await second.release(await acquire(second))
    for session in (old, newer):
        with pytest.raises(FencedError):
            await first.notify(session, stamp(first, session, b"a"), {})


async def test_a_fence_that_only_buckets_know_is_not_the_highest(nodes: Nodes) -> None:
    """The server's primary failed over, and lost it."""
    store = await nodes.open()
    await subscribe(store, await activate(store), *MANY)
    before_ = await acquire(store)
    await ask(store, b"HSET", bucket(store, MANY[0]), b"fence", before_.fence + 10**12)
    session = await acquire(store)
    assert session.fence > before_.fence + 10**12
    assert len(await pages(store, session)) == len(MANY)
    await store.release(session)


# --- what a service has


@pytest.mark.parametrize("how", [None, How.TWICE])
async def test_counts_are_those_of_all_buckets(anywhere: Nodes, how: How | None) -> None:
    store = await anywhere.open()
    ids = dict(zip(MANY, await subscribe(store, await activate(store), *MANY), strict=True))
    with fault(store, How.TWICE, *(["confirm", "finish", "unsubscribe", "set_released"] if how else [])):
        session = await serving(store, *ids.values())
        assert counts(await store.service_state(session)) == said(MANY, [])
        released, ended, kept = MANY[:12], MANY[12:20], MANY[20:]
        for name in released:
            await unsubscribe(store, ids[name])
        assert await store.end(session, ended, END) == len(ended)
        assert counts(await store.service_state(session)) == said(kept, released)
        assert await store.end(session, [*released[:2], b"other"], END) == 0
        rest = released[2:]
        state = await store.service_state(session)
        assert (state.associated, state.released) == (len(kept), len(rest) - 1)  # which one is not known, nor asked
        await store.set_released(session, len(rest), ids_hash(rest))
        assert counts(await store.service_state(session)) == said(kept, rest)
        assert await store.end(session, [rest[0]], END) == 0
        await store.set_released(session, 0)
        assert counts(await store.service_state(session)) == said(kept, [])


async def test_what_is_deleted_while_it_is_said_how_many_were_comes_on_top(nodes: Nodes) -> None:
    store = await nodes.open()
    ids = await subscribe(store, await activate(store), *MANY)
    session = await serving(store, *ids)
    await unsubscribe(store, ids[0])

    async def another() -> None:
        await unsubscribe(store, ids[1])

    with before(store, "set_released", another):
        await store.set_released(session, 2, ids_hash([b"x", b"y"]))
    assert counts(await store.service_state(session)) == said(MANY[2:], [b"x", b"y", MANY[1]])


async def test_who_else_says_how_many_were_released_is_not_overwritten(nodes: Nodes) -> None:
    store = await nodes.open()
    session = await serving(store, *await subscribe(store, await activate(store), b"a"))
    await store.set_released(session, 3, ids_hash([b"x", b"y", b"z"]))

    async def another() -> None:
        assert await store.end(session, [b"x"], END) == 0

    with before(store, "set_released", another):
        assert await store.end(session, [b"y"], END) == 0
    assert counts(await store.service_state(session)) == said([b"a"], [b"z"])


async def test_what_was_released_outlives_associations_but_no_service(nodes: Nodes) -> None:
    store = await nodes.open()
    ids = await subscribe(store, await activate(store), *MANY)
    session = await serving(store, *ids)
    for subscription_id in ids[:3]:
        await unsubscribe(store, subscription_id)
    assert counts(await store.reassociate(session)) == said([], MANY[:3])
    await unsubscribe(store, ids[3])  # the service had it before, and has it no more
    await associate(store, session, *ids[4:10])
    await unsubscribe(store, ids[4])
    assert counts(await store.service_state(session)) == said(MANY[5:10], [*MANY[:3], MANY[4]])
    assert counts(await store.begin(session, b"another")) == said([], [])
    await associate(store, session, *ids[5:7])
    await unsubscribe(store, ids[5])
    assert counts(await store.service_state(session)) == said([MANY[6]], [MANY[5]])
    await store.begin(session, None)
    await unsubscribe(store, ids[6])
    assert counts(await store.service_state(session)) == said([], [])


async def test_the_sum_is_right_whatever_is_done(nodes: Nodes) -> None:
    store = await nodes.open()
    token, rng = await activate(store), random.Random(7)
    ids = dict(zip(MANY, await subscribe(store, token, *MANY), strict=True))
    session = await serving(store)
    has, released = set[bytes](), list[bytes]()
    for _ in range(300):
        name = rng.choice(MANY)
        match rng.randrange(6):
            case 0 | 1 if name in ids:
                await associate(store, session, ids[name])
                has.add(name)
            case 2 if name in ids:
                await store.confirm(session, [Confirmed((await found(store, ids[name])).ref, ACTIVE, associated=False)])
                has.discard(name)
            case 3 if name in ids:
                await unsubscribe(store, ids.pop(name))
                released += [name] if name in has else []
                has.discard(name)
            case 4 if name not in ids:
                [ids[name]] = await subscribe(store, token, name)
            case 5 if rng.random() < 0.1:
                await store.reassociate(session)
                has.clear()
        state = await store.service_state(session)
        assert counts(state) == said(sorted(has), released)
        assert xor(state.ids_hash, state.released_hash) == ids_hash(sorted(has))


# --- pages


@pytest.mark.parametrize("limit", [1, 3, 11, 100])
async def test_pages_while_queues_go_and_come(anywhere: Nodes, limit: int) -> None:
    """Of all buckets in turn: what stays comes, once."""
    store = await anywhere.open(buckets=5)
    token, rng = await activate(store), random.Random(limit)
    ids = dict(zip(MANY, await subscribe(store, token, *MANY), strict=True))
    session = await acquire(store)
    seen, gone, after = list[bytes](), set[bytes](), None
    for number in range(1000):
        page = await store.page(session, after, limit)
        cursors = [(await found(store, ids[w.notifier_id])).cursor for w in page.wanted if w.notifier_id in ids]
        assert cursors == sorted(cursors)
        seen += [w.notifier_id for w in page.wanted]
        after = page.cursor
        if after is None:
            break
        assert len(page.wanted) == limit
        for name in rng.sample(MANY, 2):
            if name not in gone:
                gone.add(name)
                await unsubscribe(store, ids.pop(name))
        if number < 20:
            await subscribe(store, token, b"new %d" % number)
    assert len(seen) == len(set(seen))
    assert set(MANY) - gone <= set(seen)


async def test_buckets_are_asked_for_what_is_wanted(cluster: Cluster) -> None:
    """Of many queues not much more than is given, of few all at once."""
    nodes = Nodes(cluster.url)
    store = await nodes.open(buckets=8)
    token = await activate(store)
    await subscribe(store, token, *(b"%d" % n for n in range(200)))
    await subscribe(store, token, *MANY[:10], server=OTHER_SMP)
    for server, limit, most in ((SMP, 10, 45), (OTHER_SMP, 100, 8), (SMP, 500, 8)):
        session, after = await acquire(store, server), None
        with fault(store, How.TWICE, "page") as asked:
            while True:
                items = await walk(store._node, server_id(server), who(store._node, session), after, limit)
                if len(items) < limit:
                    break
                after = items[-1].cursor
        assert len(asked) <= most
    await nodes.close()


# --- limits


async def test_a_limit_is_of_all_buckets(anywhere: Nodes) -> None:
    store = await anywhere.open()
    tokens = [await activate(store, n) for n in range(2)]
    limits = Limits(per_server=20)
    made = [await store.subscribe(tokens[n % 2].ref, new_queue(name), limits) for n, name in enumerate(MANY)]
    assert [isinstance(added, Added) for added in made] == [True] * 20 + [False] * 20
    assert set(made[20:]) == {LimitReached.SERVER}
    assert isinstance(await store.subscribe(tokens[0].ref, new_queue(MANY[0]), limits), Added)  # it is there
    assert isinstance(await store.subscribe(tokens[0].ref, new_queue(b"a", OTHER_SMP), limits), Added)
    assert isinstance(made[0], Added)
    await unsubscribe(store, made[0].subscription_id)
    assert isinstance(await store.subscribe(tokens[0].ref, new_queue(MANY[30]), limits), Added)
    assert await store.subscription_count() == 21


# --- upkeep


async def of_server(store: RedisStore) -> set[bytes]:
    return {key for key in await keys(store) if key.startswith(b"{s")}


async def test_buckets_without_queues_go(nodes: Nodes) -> None:
    """While the server has a session as well; what comes then is as before."""
    store = await nodes.open()
    token = await activate(store)
    ids = await subscribe(store, token, *MANY)
    session = await acquire(store)
    last = [subscription_id for subscription_id, name in zip(ids, MANY, strict=True) if name != MANY[0]]
    for subscription_id in last:
        await unsubscribe(store, subscription_id)
    await tended(nodes, store)
    assert {bucket(store, MANY[0])} == {
        store._node.names.bucket(server_id(SMP), n) for n in await listed(store._node, server_id(SMP))
    }
    assert len(await of_server(store)) == 6
    [again] = await subscribe(store, token, MANY[1])
    assert (await found(store, again)).cursor.number > len(MANY)
    assert {w.notifier_id for w in await pages(store, session)} == set(MANY[:2])


async def test_a_bucket_that_counts_something_stays(nodes: Nodes) -> None:
    """As long as the server is of use to anybody."""
    store = await nodes.open()
    [subscription_id] = await subscribe(store, await activate(store), b"a")
    session = await serving(store, subscription_id)
    await store.prove(session, "192.0.2.0/24")
    await unsubscribe(store, subscription_id)
    await tended(nodes, store)
    assert counts(await store.service_state(session)) == said([], [b"a"])
    await store.release(session)
    nodes.clock.pass_(8 * 24 * 3600)
    await tended(nodes, store)
    assert await of_server(store) == set()


@pytest.mark.parametrize("step", ["clear", "delist", "forget_server"])
async def test_a_queue_that_comes_while_its_bucket_goes(nodes: Nodes, step: str) -> None:
    store = await nodes.open()
    token = await activate(store)
    [subscription_id] = await subscribe(store, token, b"a")
    await unsubscribe(store, subscription_id)

    async def again() -> None:
        await subscribe(store, token, b"a")

    nodes.clock.pass_(121)
    with before(store, step, again):
        await tend(Bench(None, nodes.clock), store)  # type: ignore[arg-type]
    await tended(nodes, store)
    assert await store.servers() == [SMP]
    assert [w.notifier_id for w in await pages(store, await acquire(store))] == [b"a"]


@pytest.mark.parametrize("step", ["needs", "clear", "use", "delist", "forget_server"])
@pytest.mark.parametrize("how", How)
async def test_upkeep_of_a_server_that_is_cut_off(nodes: Nodes, step: str, how: How) -> None:
    store = await nodes.open()
    [subscription_id] = await subscribe(store, await activate(store), b"a")
    await unsubscribe(store, subscription_id)
    with fault(store, how, step) as happened:
        try:
            await tended(nodes, store)
        except Exception:  # as it was made to
            assert how is not How.TWICE
    assert happened
    await tended(nodes, store)
    assert await of_server(store) == set()
    assert await store._node.known() == {}


async def test_a_bucket_that_is_not_listed_any_more_is_by_upkeep(nodes: Nodes) -> None:
    """The server's primary failed over, and lost what was written last."""
    store = await nodes.open()
    token: Token = await activate(store)
    await subscribe(store, token, b"a")
    server = store._node.names.server(server_id(SMP))
    await ask(store, b"DEL", server + b":b")
    await ask(store, b"DEL", server)
    await store._node.database.command(
        b"HDEL", store._node.names.servers, server_id(SMP), key=store._node.names.servers
    )
    assert await store.servers() == []
    await tended(nodes, store)
    assert await store.servers() == [SMP]
    await subscribe(store, token, *MANY)
    assert len(await pages(store, await acquire(store))) == len(MANY) + 1


async def test_no_call_does_what_many_could(server: Server, nodes: Nodes) -> None:
    """On one primary a block, a page and answers are a call each, whatever buckets they are of."""
    store = await nodes.open(buckets=16)
    ids = await subscribe(store, await activate(store), *MANY)
    session = await acquire(store)
    with measured(server, store._node.database, {"owners", "page", "confirm", "load", "finish"}) as costs:
        await notify(store, session, *MANY)
        page = await store.page(session, None, 500)
        await store.load(session, [w.ref for w in page.wanted])
        await store.confirm(session, [Confirmed(w.ref, ACTIVE) for w in page.wanted])
        await store.end(session, MANY, END)
    assert len(ids) == len(page.wanted)
    assert {name: len(found_) for name, found_ in costs.items()} == dict.fromkeys(costs, 1) and len(costs) == 5
