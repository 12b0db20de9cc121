"""Subscriptions, each of them in three slots: every step of SNEW and SDEL left undone, and many at once."""

import asyncio

import pytest
from redis_servers import Cluster
from redis_stores import How, Nodes, ask, before, fault

from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.records import Added, Change, ChangeKind, LimitReached, Limits, NewSubscription
from ntf_server.store.redis import queues as module
from ntf_server.store.redis.changes import change
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import NODES
from ntf_server.store.redis.rows import Queue, queue, row, split
from ntf_server.testing.store_suite.medium import (
    OTHER_SMP,
    SMP,
    Bench,
    acquire,
    activate,
    new_queue,
    notify,
    subscribe,
    take,
    take_one,
    tend,
)
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import SubscriptionStatus

SERVER = LimitReached.SERVER
SNEW = ["join", "HSETNX", "enlist", "subscribe", "HSET", "publish"]
SDEL = ["find", "join", "HMGET", "unsubscribe", "HDEL", "leave", "publish"]


async def slots(store: RedisStore) -> tuple[set[tuple[bytes, bytes]], set[tuple[bytes, bytes]], set[bytes]]:
    """Tokens and queues, as tokens have them and as servers have them; queues that an id leads to."""
    names_ = store._node.names
    of_tokens, of_servers, found = set(), set(), set()
    for shard in names_.shards:
        for token in await ask(store, b"ZRANGE", shard + b":all", 0, -1):
            of_tokens |= {(token, packed) for packed in await ask(store, b"SMEMBERS", names_.queues_of(token))}
    for server in await ask(store, b"HKEYS", names_.servers):
        buckets = [names_.bucket(server, n) for n in range(names_.buckets)]
        records = [word for key in buckets for word in await ask(store, b"HGETALL", key + b":q")]
        for notifier_id, record in zip(records[::2], records[1::2], strict=True):
            of_servers.add((row(record).token, Queue(server, notifier_id).packed))
            subscription_id = row(record).subscription_id
            packed = await ask(store, b"HGET", names_.subscription(subscription_id), subscription_id)
            assert packed in (None, Queue(server, notifier_id).packed)
            found |= {packed} - {None}
    return of_tokens, of_servers, found


async def told(store: RedisStore) -> list[Change]:
    """Changes of servers so far."""
    entries = [fields for _, fields in await ask(store, b"XRANGE", store._node.names.changes, b"-", b"+")]
    return [change(dict(zip(fields[::2], fields[1::2], strict=True))) for fields in entries if fields[1] != NODES]


async def agree(store: RedisStore, count: int) -> None:
    """All slots say the same of so many subscriptions."""
    of_tokens, of_servers, found = await slots(store)
    assert of_tokens == of_servers
    assert {packed for _, packed in of_tokens} == found
    assert len(found) == count == await store.subscription_count()


async def tended(nodes: Nodes, *stores: RedisStore) -> None:
    nodes.clock.pass_(121)
    for store in stores:
        await tend(Bench(None, nodes.clock), store)  # type: ignore[arg-type]
    for shard in stores[0]._node.names.shards:
        assert await ask(stores[0], b"EXISTS", stores[0]._node.names.doubts(shard)) == 0


# --- SNEW


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
@pytest.mark.parametrize("step", SNEW)
async def test_a_subscription_that_was_cut_off_is_made_by_the_next(
    nodes: Nodes, store: RedisStore, step: str, how: How
) -> None:
    token = await activate(store)
    with fault(store, how, step), pytest.raises(StoreUnavailableError):
        await store.subscribe(token.ref, new_queue(b"a"))
    before_ = len(await told(store))
    added = await store.subscribe(token.ref, new_queue(b"a"))
    assert isinstance(added, Added)
    found = await store.find_subscription(added.subscription_id)
    assert found is not None and found[1].status is SubscriptionStatus.NEW
    assert (await told(store))[before_:] == [Change(ChangeKind.ADDED, SMP, (found[1].ref,))]
    await agree(store, 1)
    await tended(nodes, store)
    await agree(store, 1)


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
@pytest.mark.parametrize("step", SNEW)
async def test_a_subscription_that_was_cut_off_is_settled_by_upkeep(
    nodes: Nodes, store: RedisStore, step: str, how: How
) -> None:
    """It is there in all slots, or in none; it counts for no limit if it is not."""
    token = await activate(store)
    new = new_queue(b"a")
    with fault(store, how, step), pytest.raises(StoreUnavailableError):
        await store.subscribe(token.ref, new)
    before_ = len(await told(store))
    await tended(nodes, store)
    made = step in ("HSET", "publish") or (step == "subscribe" and how is How.LOST)
    await agree(store, int(made))
    found = await store.find_subscription(new.subscription_id)
    assert (found is not None) is made
    now_told = [Change(ChangeKind.ADDED, SMP, (found[1].ref,))] if found else []
    assert (await told(store))[before_:] == now_told  # or it would be pending until the next session
    other = await store.subscribe(token.ref, new_queue(b"b"), Limits(per_token=1))
    assert (other is LimitReached.TOKEN) is made


@pytest.mark.parametrize("step", SNEW)
async def test_a_subscription_of_a_token_that_is_deleted_meanwhile(nodes: Nodes, store: RedisStore, step: str) -> None:
    """Whenever that was, and though SNEW was cut off then: nothing of it stays."""
    token = await activate(store)

    async def deleted() -> None:
        await store.delete_token(token.ref)

    if step in ("join", "subscribe"):
        with before(store, step, deleted):
            assert await store.subscribe(token.ref, new_queue(b"a")) is None
    else:
        with fault(store, How.LOST, step), pytest.raises(StoreUnavailableError):
            await store.subscribe(token.ref, new_queue(b"a"))
        await deleted()
    await tended(nodes, store)
    await agree(store, 0)


async def test_a_subscription_that_is_cut_off_when_its_token_was_deleted(nodes: Nodes, store: RedisStore) -> None:
    """The deletion saw nothing of it yet."""
    token = await activate(store)

    async def deleted() -> None:
        await store.delete_token(token.ref)

    with before(store, "subscribe", deleted), fault(store, How.LOST, "HSET"), pytest.raises(StoreUnavailableError):
        await store.subscribe(token.ref, new_queue(b"a"))
    assert await store.subscription_count() == 1
    await tended(nodes, store)
    await agree(store, 0)


@pytest.mark.parametrize("step", SNEW)
async def test_a_queue_that_is_claimed_is_the_tokens_at_once(nodes: Nodes, store: RedisStore, step: str) -> None:
    """Another one is refused whose SNEW comes before the first one's next step, and after it was cut off there."""
    first, other = await activate(store, 0), await activate(store, 1)
    with fault(store, How.LOST, step), pytest.raises(StoreUnavailableError):
        await store.subscribe(first.ref, new_queue(b"a"))
    claimed = step in ("subscribe", "HSET", "publish")
    assert (await store.subscribe(other.ref, new_queue(b"a")) is None) is claimed
    assert (await store.subscribe(first.ref, new_queue(b"a")) is None) is not claimed
    await tended(nodes, store)
    await agree(store, 1)


async def test_a_queue_that_a_deleted_token_had_is_anybodys(store: RedisStore) -> None:
    old, new = await activate(store, 0), await activate(store, 1)
    [old_id] = await subscribe(store, old, b"a")
    with fault(store, How.UNDONE, "SSCAN"), pytest.raises(StoreUnavailableError):
        await store.delete_token(old.ref)
    assert isinstance(await store.subscribe(new.ref, new_queue(b"a")), Added)
    assert await store.find_subscription(old_id) is None
    await agree(store, 1)


async def test_steps_that_are_done_twice(nodes: Nodes, store: RedisStore) -> None:
    token = await activate(store)
    with fault(store, How.TWICE, *SNEW, *SDEL):
        added = await store.subscribe(token.ref, new_queue(b"a"))
        assert isinstance(added, Added)
        await agree(store, 1)
        found = await store.find_subscription(added.subscription_id)
        assert found is not None
        await store.unsubscribe(found[1].ref)
    await tended(nodes, store)
    await agree(store, 0)


async def test_many_of_one_queue_at_once_are_one(nodes: Nodes) -> None:
    stores = [await nodes.open("one"), await nodes.open("two")]
    token = await activate(stores[0])
    found = await asyncio.gather(*(stores[n % 2].subscribe(token.ref, new_queue(b"a")) for n in range(20)))
    assert len({added.subscription_id for added in found if isinstance(added, Added)}) == 1
    assert sum(isinstance(added, Added) and added.created for added in found) == 1
    await agree(stores[0], 1)


async def test_many_tokens_want_one_queue_at_once(store: RedisStore) -> None:
    tokens = [await activate(store, n) for n in range(10)]
    found = await asyncio.gather(*(store.subscribe(token.ref, new_queue(b"a")) for token in tokens))
    assert sum(isinstance(added, Added) for added in found) == 1
    await agree(store, 1)


async def test_limits_hold_for_many_at_once(nodes: Nodes) -> None:
    stores = [await nodes.open("one"), await nodes.open("two")]
    tokens = [await activate(stores[0], n) for n in range(2)]
    limits = Limits(per_token=5, per_server=8)
    asked = [stores[n % 2].subscribe(tokens[n % 2].ref, new_queue(b"%d" % n), limits) for n in range(40)]
    found = await asyncio.gather(*asked)
    made = sum(isinstance(added, Added) for added in found)
    assert 8 <= made <= 10  # those of a token are counted where it is, so no more come; the server's before
    assert LimitReached.TOKEN in found
    await agree(stores[0], made)
    for n in range(40, 50):
        assert await stores[n % 2].subscribe(tokens[n % 2].ref, new_queue(b"%d" % n), Limits(per_server=8)) is SERVER
    assert isinstance(await stores[0].subscribe(tokens[0].ref, new_queue(b"50"), Limits(per_server=made + 1)), Added)


async def test_another_key_is_refused_and_changes_nothing(store: RedisStore) -> None:
    token = await activate(store)
    new = new_queue(b"a")
    assert isinstance(await store.subscribe(token.ref, new), Added)
    other = NewSubscription(b"i" * 24, new.server, new.notifier_id, b"another key, of the same size")
    assert await store.subscribe(token.ref, other) is None
    await agree(store, 1)


async def test_another_spelling_is_kept_with_the_queue_that_has_it(store: RedisStore) -> None:
    token = await activate(store)
    spelled = ServerAddress("smp", ("SMP.example.org",), "5223", SMP.key_hash)
    for server, name in ((SMP, b"a"), (spelled, b"b")):
        assert isinstance(await store.subscribe(token.ref, new_queue(name, server)), Added)
    assert server_id(SMP) == server_id(spelled)
    session = await acquire(store)
    await notify(store, session, b"a", b"b")
    assert [e.server.encode() for e in (await take_one(store)).entries] == [SMP.encode(), spelled.encode()]


# --- SDEL


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
@pytest.mark.parametrize("step", SDEL)
async def test_a_deletion_that_was_cut_off(nodes: Nodes, store: RedisStore, step: str, how: How) -> None:
    """It is found no more or is deleted by the next; what is left of it upkeep settles."""
    token = await activate(store)
    [subscription_id] = await subscribe(store, token, b"a")
    session = await acquire(store)
    await notify(store, session, b"a")
    found = await store.find_subscription(subscription_id)
    assert found is not None
    with fault(store, how, step), pytest.raises(StoreUnavailableError):
        await store.unsubscribe(found[1].ref)
    if await store.find_subscription(subscription_id) is not None:
        assert step in ("find", "join", "HMGET") or (step == "unsubscribe" and how is How.UNDONE)
        await store.unsubscribe(found[1].ref)
        assert await take(store) == []
    await store.unsubscribe(found[1].ref)
    assert await store.find_subscription(subscription_id) is None
    await tended(nodes, store)
    await agree(store, 0)
    assert await ask(store, b"EXISTS", store._node.names.queues_of(token.token_id)) == 0
    words = await ask(store, b"HGETALL", store._node.names.token(token.token_id))
    fields, notifications = split(dict(zip(words[::2], words[1::2], strict=True)))
    assert fields and not notifications


async def test_a_queue_that_is_subscribed_while_it_is_deleted(nodes: Nodes, store: RedisStore) -> None:
    """Whichever of its steps comes first, in the end all slots say the same."""
    token = await activate(store)
    for turn, step in enumerate(("unsubscribe", "leave")):
        [subscription_id] = await subscribe(store, token, b"%d" % turn)
        found = await store.find_subscription(subscription_id)
        assert found is not None

        async def subscribed(name: bytes = b"%d" % turn) -> None:
            assert isinstance(await store.subscribe(token.ref, new_queue(name)), Added)

        with before(store, step, subscribed):
            await store.unsubscribe(found[1].ref)
    await tended(nodes, store)
    await agree(store, await store.subscription_count())


async def test_deletions_at_once(nodes: Nodes) -> None:
    stores = [await nodes.open("one"), await nodes.open("two")]
    token = await activate(stores[0])
    ids = await subscribe(stores[0], token, *(b"%d" % n for n in range(30)))
    found = [await stores[0].find_subscription(i) for i in ids]
    refs = [pair[1].ref for pair in found if pair is not None] * 2
    await asyncio.gather(*(stores[n % 2].unsubscribe(ref) for n, ref in enumerate(refs)))
    await agree(stores[0], 0)


async def test_more_doubts_than_are_settled_at_once(nodes: Nodes, store: RedisStore) -> None:
    token = await activate(store)
    names_ = [b"%d" % n for n in range(250)]
    with fault(store, How.LOST, "join"):
        await asyncio.gather(*(store.subscribe(token.ref, new_queue(name)) for name in names_), return_exceptions=True)
    of_tokens, *_ = await slots(store)
    assert len(of_tokens) == 250
    assert not await module.settle(store._node, store._node.names.shard(token.token_id))  # they may still go on
    await tended(nodes, store)
    await agree(store, 0)


# --- the rest


async def test_an_id_that_leads_to_another_subscription_finds_none(store: RedisStore) -> None:
    token = await activate(store)
    [subscription_id] = await subscribe(store, token, b"a")
    packed = Queue(server_id(SMP), b"a").packed
    assert queue(packed) == Queue(server_id(SMP), b"a")
    await ask(store, b"HSET", store._node.names.subscription(b"x"), b"x", packed)
    assert await store.find_subscription(b"x") is None
    assert await store.find_subscription(subscription_id) is not None


async def test_in_a_cluster(cluster: Cluster) -> None:
    nodes = Nodes(cluster.url)
    store = await nodes.open(shards=16)
    tokens = [await activate(store, n) for n in range(10)]
    for n, token in enumerate(tokens):
        await subscribe(store, token, b"a%d" % n, b"b%d" % n)
        await subscribe(store, token, b"c%d" % n, server=OTHER_SMP)
    await agree(store, 30)
    for token in tokens:
        await store.delete_token(token.ref)
    await tended(nodes, store)
    await agree(store, 0)
    await nodes.close()
