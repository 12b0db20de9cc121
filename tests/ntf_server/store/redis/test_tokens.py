"""Registrations, whose index is in another slot: each step of what crosses slots left undone, and many at once."""

import asyncio
from collections.abc import Awaitable

import pytest
from msgspec.structs import replace
from redis_servers import Cluster
from redis_stores import How, Nodes, ask, before, between, fault

from ntf_server.store.contract import DamagedRecordError, StoreUnavailableError
from ntf_server.store.records import Claim, PushKind, Registered, Replacement, Token
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.rows import lead
from ntf_server.store.redis.tokens import clear, drop
from ntf_server.testing.store_suite.medium import (
    OTHER_SMP,
    Bench,
    acquire,
    activate,
    delivered,
    device,
    known,
    new_queue,
    new_token,
    notify,
    record,
    register,
    subscribe,
    take,
    take_one,
    tend,
)
from smp_bridge.ntf import Provider, TokenStatus


def replacement(number: int, code: bytes = b"c" * 32) -> Replacement:
    return Replacement(device(number), code)


async def index(store: RedisStore, number: int) -> dict[bytes, bytes]:
    """Which registrations a device token has: verify keys and ids."""
    lookup = store._state.sealer.lookup(Provider.APNS, device(number).token)
    found = await ask(store, b"HGETALL", store._node.names.device(lookup))
    return {key: lead(packed).token for key, packed in zip(found[::2], found[1::2], strict=True)}


async def everything(store: RedisStore) -> set[bytes]:
    """Ids of all registrations that are there."""
    return {t for shard in store._node.names.shards for t in await ask(store, b"ZRANGE", shard + b":all", 0, -1)}


async def tended(nodes: Nodes, store: RedisStore) -> None:
    bench = Bench(None, nodes.clock)  # type: ignore[arg-type]
    nodes.clock.pass_(61)
    await tend(bench, store)


async def fails(work: Awaitable[object]) -> None:
    with pytest.raises(StoreUnavailableError):
        await work


# --- TNEW


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
@pytest.mark.parametrize("name", ["prepare", "claim", "apply"])
async def test_a_registration_that_was_cut_off_is_made_by_the_next(store: RedisStore, name: str, how: How) -> None:
    new = new_token()
    with fault(store, how, name):
        await fails(store.register(new))
    found = await store.find_registration(new.device, new.verify_key)
    assert (found is not None) is (name == "apply" and how is How.LOST)
    token = await register(store, new_token())  # the same, with another id
    assert await everything(store) == {token.token_id} == set((await index(store, 0)).values())
    assert len(await take(store)) == 1


async def test_a_registration_that_is_done_twice_is_one(store: RedisStore) -> None:
    new = new_token()
    with fault(store, How.TWICE, "prepare", "claim", "apply", "revive"):
        token = await register(store, new)
        assert (await register(store, new)).token_id == token.token_id
    assert await everything(store) == {token.token_id}
    claim = await take_one(store)
    assert claim.code == new.code


@pytest.mark.parametrize("name", ["revive", "apply"])
async def test_what_was_claimed_before_it_is_done_once_more_stays_claimed(
    nodes: Nodes, store: RedisStore, name: str
) -> None:
    """Memory has a token that more is to be pushed to, and it is registered again or replaced: its code is handed out,
    and the answer does not come. Done once more that hands out nothing a second time.
    """
    new = new_token()
    token = await register(store, new)
    assert await store.verify(token.ref, new.code)
    await subscribe(store, token, *(b"%d" % n for n in range(9)))
    await notify(store, await acquire(store), *(b"%d" % n for n in range(9)))
    await record(store, delivered(await take_one(store)))
    assert token.token_id in store._state.cooling
    claims: list[Claim] = []

    async def claimed() -> None:
        claims.extend(await take(store))

    with between(store, name, claimed) as happened:
        if name == "revive":
            assert await store.register(new) is not None
        else:
            assert await store.replace(token.ref, replacement(7))
    assert happened == [name]
    assert [claim.kind for claim in claims] == [PushKind.VERIFICATION]
    nodes.clock.pass_(1)
    assert await take(store) == []


async def test_many_registrations_at_once_are_one(nodes: Nodes) -> None:
    stores = [await nodes.open("one"), await nodes.open("two")]
    new = [new_token() for _ in range(20)]
    found = await asyncio.gather(*(stores[n % 2].register(one) for n, one in enumerate(new)))
    assert all(isinstance(one, Registered) for one in found)
    [token_id] = {one.token_id for one in found if one is not None}
    assert await everything(stores[0]) == {token_id}


async def test_many_keys_of_a_device_at_once_are_many(store: RedisStore) -> None:
    new = [new_token(0, key=b"key %d" % n) for n in range(20)]
    found = await asyncio.gather(*map(store.register, new))
    assert len({one.token_id for one in found if one is not None}) == 20
    assert len(await index(store, 0)) == 20
    assert await store.verify(new[3].token_id, new[3].code)
    assert await everything(store) == {new[3].token_id}
    assert list((await index(store, 0)).values()) == [new[3].token_id]


# --- TDEL


STEPS = ["drop", "unclaim", "SSCAN", "unsubscribe", "leave", "SREM"]


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
@pytest.mark.parametrize("step", STEPS)
async def test_a_deletion_that_was_cut_off_is_finished_by_upkeep(
    nodes: Nodes, store: RedisStore, step: str, how: How
) -> None:
    new = new_token()
    token = await activate(store)
    ids = await subscribe(store, token, b"a", b"b")
    with fault(store, how, step):
        await fails(store.delete_token(token.ref))
    if step == "drop" and how is How.UNDONE:
        await store.delete_token(token.ref)
    assert await store.find_token(token.token_id) is None
    assert await store.find_registration(new.device, new.verify_key) is None
    assert [await store.find_subscription(i) for i in ids] == [None, None]
    await tended(nodes, store)
    assert await store.subscription_count() == 0
    for shard in store._node.names.shards:
        assert await ask(store, b"SCARD", store._node.names.gone(shard)) == 0


@pytest.mark.parametrize("step", STEPS)
async def test_a_deletion_that_was_cut_off_may_be_repeated(store: RedisStore, step: str) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    with fault(store, How.LOST, step):
        await fails(store.delete_token(token.ref))
    await store.delete_token(token.ref)
    assert await store.subscription_count() == 0


@pytest.mark.parametrize("step", STEPS)
async def test_who_registers_after_a_deletion_that_was_cut_off_loses_nothing(
    nodes: Nodes, store: RedisStore, step: str
) -> None:
    """Upkeep clears the queues of the old one, and none of the new one's."""
    old = await activate(store)
    await subscribe(store, old, b"a", b"b")
    with fault(store, How.LOST, step):
        await fails(store.delete_token(old.ref))
    new = await activate(store)
    await subscribe(store, new, b"c")
    await tended(nodes, store)
    assert await store.subscription_count() == 1
    session = await acquire(store)
    await notify(store, session, b"c")
    assert [e.notifier_id for e in (await take_one(store)).entries] == [b"c"]
    assert (await store.find_registration(new_token().device, new_token().verify_key)) == await known(store, new)


async def test_who_registers_while_it_is_deleted_is_found(nodes: Nodes, store: RedisStore) -> None:
    """The deletion's last steps are of the old one only."""
    old = await activate(store)
    await subscribe(store, old, b"a")
    made: list[Token] = []

    async def register_meanwhile() -> None:
        made.append(await activate(store))
        await subscribe(store, made[0], b"b")

    with before(store, "unclaim", register_meanwhile):
        await store.delete_token(old.ref)
    [new] = made
    assert await store.find_registration(new_token().device, new_token().verify_key) == await known(store, new)
    await tended(nodes, store)
    assert await store.subscription_count() == 1


async def test_one_with_more_queues_than_are_deleted_at_once(store: RedisStore) -> None:
    token = await activate(store)
    await subscribe(store, token, *(b"%d" % n for n in range(1100)))
    assert await drop(store._node, token.token_id)
    assert not await drop(store._node, token.token_id)
    await clear(store._node, token.token_id)
    assert await store.subscription_count() == 0
    assert await ask(store, b"EXISTS", store._node.names.queues_of(token.token_id)) == 0


# --- TVFY


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
@pytest.mark.parametrize("step", ["verify", "win", "drop", "unclaim", "SSCAN"])
async def test_a_verification_that_was_cut_off_may_be_repeated(
    nodes: Nodes, store: RedisStore, step: str, how: How
) -> None:
    """Then other registrations of the device token are gone."""
    others = [await register(store, new_token(0, key=b"key %d" % n)) for n in range(3)]
    await subscribe(store, others[0], b"a")
    new = new_token(0, key=b"mine")
    token = await register(store, new)
    with fault(store, how, step):
        await fails(store.verify(token.ref, new.code))
    assert await store.verify(token.ref, new.code)
    assert (await known(store, token)).status is TokenStatus.ACTIVE
    assert await everything(store) == {token.token_id}
    assert set((await index(store, 0)).values()) == {token.token_id}
    await tended(nodes, store)
    assert await store.subscription_count() == 0


async def test_a_verification_that_a_replacement_overtakes_deletes_nothing(store: RedisStore) -> None:
    """The old code was right, and the device is another by the time in which it would win it."""
    new = new_token(0)
    token = await register(store, new)

    async def replaced() -> None:
        assert await store.replace(token.ref, Replacement(device(1), b"c" * 32))

    with before(store, "win", replaced):
        assert not await store.verify(token.ref, new.code)
    assert (await known(store, token)).status is TokenStatus.REGISTERED
    assert await everything(store) == {token.token_id}
    assert await store.verify(token.ref, b"c" * 32)


async def test_of_many_verifications_at_once_one_wins(nodes: Nodes) -> None:
    stores = [await nodes.open("one"), await nodes.open("two")]
    new = [new_token(0, key=b"key %d" % n) for n in range(10)]
    for one in new:
        await register(stores[0], one)
    done = await asyncio.gather(*(stores[n % 2].verify(one.token_id, one.code) for n, one in enumerate(new)))
    [winner] = await everything(stores[0])
    assert done[[one.token_id for one in new].index(winner)]
    assert list((await index(stores[0], 0)).values()) == [winner]


async def test_a_verification_done_twice(store: RedisStore) -> None:
    other, new = new_token(0, key=b"other"), new_token(0, key=b"mine")
    await register(store, other)
    await register(store, new)
    with fault(store, How.TWICE, "verify", "win", "drop", "unclaim"):
        assert await store.verify(new.token_id, new.code)
    assert await everything(store) == {new.token_id}


async def test_a_registration_that_has_another_device_by_now_is_no_other_of_this_one(store: RedisStore) -> None:
    """Its replacement was cut off in its last step, or is just under way: what is left behind is not what is meant."""
    moved = await activate(store, 0)
    await subscribe(store, moved, b"a")
    with fault(store, How.UNDONE, "unclaim"):
        await fails(store.replace(moved.ref, replacement(1)))
    new = new_token(0, key=b"another")
    token = await register(store, new)
    assert await store.verify(token.ref, new.code)
    assert await everything(store) == {moved.token_id, token.token_id}
    assert await store.subscription_count() == 1
    assert list((await index(store, 0)).values()) == [token.token_id]
    assert list((await index(store, 1)).values()) == [moved.token_id]


# --- TRPL


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
@pytest.mark.parametrize("step", ["prepare", "claim", "apply", "unclaim"])
async def test_a_replacement_that_was_cut_off_may_be_repeated(store: RedisStore, step: str, how: How) -> None:
    new = new_token()
    token = await activate(store)
    with fault(store, how, step):
        await fails(store.replace(token.ref, replacement(1)))
    replaced = step == "unclaim" or (step == "apply" and how is How.LOST)
    for number in (0, 1):
        found = await store.find_registration(device(number), new.verify_key)
        assert (found is not None) is (replaced == bool(number))
    assert await store.replace(token.ref, replacement(1))
    assert await store.find_registration(device(0), new.verify_key) is None
    assert await store.find_registration(device(1), new.verify_key) == await known(store, token)
    claim = await take_one(store)
    assert (claim.device, claim.code) == (device(1), b"c" * 32)


@pytest.mark.parametrize("step", ["prepare", "claim", "apply", "unclaim"])
@pytest.mark.parametrize("number", [0, 1])
async def test_who_registers_after_a_replacement_that_was_cut_off(store: RedisStore, step: str, number: int) -> None:
    """On the old device or the new one, with the same key: one registration has each; what was claimed comes."""
    token = await activate(store)
    with fault(store, How.LOST, step):
        await fails(store.replace(token.ref, replacement(1)))
    found = await register(store, replace(new_token(), device=device(number)))
    has = {"prepare": [0], "claim": [0, 1], "apply": [1], "unclaim": [1]}[step]
    assert (found.token_id == token.token_id) is (number in has)
    assert list((await index(store, number)).values()) == [found.token_id]


async def test_a_device_that_another_registration_has_is_refused(store: RedisStore) -> None:
    key = new_token().verify_key
    token = await activate(store)
    await register(store, new_token(1, key=key))
    assert not await store.replace(token.ref, replacement(1))
    assert not await store.replace(b"nobody", replacement(2))
    assert (await known(store, token)).status is TokenStatus.ACTIVE
    assert await index(store, 2) == {}


async def test_many_replacements_at_once_end_as_one(store: RedisStore) -> None:
    """Each index entry leads to what the registration has by then, or counts for nothing."""
    new = new_token()
    token = await activate(store)
    await asyncio.gather(*(store.replace(token.ref, replacement(n)) for n in range(1, 9)))
    found = [n for n in range(9) if await store.find_registration(device(n), new.verify_key)]
    claim = await take_one(store)
    assert [device(n) for n in found] == [claim.device]


async def test_of_two_that_take_one_device_at_once_one_has_it(store: RedisStore) -> None:
    key = new_token().verify_key
    tokens = [await register(store, new_token(n, key=key)) for n in range(4)]
    done = await asyncio.gather(*(store.replace(token.ref, replacement(9)) for token in tokens))
    [winner] = {t.token_id for t, d in zip(tokens, done, strict=True) if d}
    assert await index(store, 9) == {key: winner}


# --- the rest


async def test_what_cannot_be_read_is_made_anew(store: RedisStore) -> None:
    new = new_token()
    token = await activate(store)
    await subscribe(store, token, b"a")
    await ask(store, b"HSET", store._node.names.token(token.token_id), b"r", b"rubbish")
    assert await store.find_registration(new.device, new.verify_key) is None
    anew = await register(store, new)
    assert anew.token_id != token.token_id
    assert await everything(store) == {anew.token_id}


async def test_a_code_that_cannot_be_read(store: RedisStore) -> None:
    """Sets the registration aside: nothing of it becomes due, whoever asks for it."""
    new = new_token()
    token = await register(store, new)
    await ask(store, b"HSET", store._node.names.token(token.token_id), b"c", b"rubbish")
    with pytest.raises(DamagedRecordError):
        await store.verify(token.ref, new.code)
    with pytest.raises(DamagedRecordError):
        await store.find_token(token.token_id)
    assert await take(store) == []


async def test_what_is_put_off_though_it_was_set_aside(nodes: Nodes, store: RedisStore) -> None:
    new = new_token()
    token = await store.register(new, wait=30)
    assert token is not None
    await ask(store, b"HSET", store._node.names.token(token.token_id), b"x", 1)
    await store.put_off({token.ref: 60, b"nobody": 5})
    await nodes.pass_(100, store)
    assert await take(store) == []
    await store.put_off({token.ref: None})


async def test_operations_on_a_token_are_done_twice(nodes: Nodes, store: RedisStore) -> None:
    new = new_token()
    names = ("set_period", "put_off", "invalidate", "mark_checks", "seen", "prepare", "claim", "apply", "unclaim")
    with fault(store, How.TWICE, *names) as happened:
        token = await activate(store)
        await store.set_period(token.ref, 20)
        nodes.clock.pass_(1400)
        await store.mark_checks(10)
        await record(store, delivered(await take_one(store)))
        assert await store.replace(token.ref, replacement(1, new.code), 30)
        await store.put_off({token.ref: 60})
    assert set(happened) == set(names) - {"invalidate", "seen"}
    assert await take(store) == []
    await nodes.pass_(61, store)
    await store.put_off({token.ref: 60})
    [claim] = await take(store)
    await record(store, delivered(claim))


async def test_everything_at_once_ends_well(nodes: Nodes) -> None:
    """Registrations, verifications, subscriptions and deletions of one device, from two nodes."""
    stores = [await nodes.open("one"), await nodes.open("two")]

    async def one(store: RedisStore, number: int) -> None:
        for turn in range(3):
            new = new_token(0, key=b"key %d" % (number % 3))
            token = await store.register(new)
            if token is None:
                continue
            await store.verify(token.ref, new.code)
            await store.subscribe(token.ref, new_queue(b"%d" % number))
            await store.subscribe(token.ref, new_queue(b"shared", OTHER_SMP))
            if (number + turn) % 3 == 0:
                await store.delete_token(token.ref)

    await asyncio.gather(*(one(stores[number % 2], number) for number in range(10)))
    store = stores[0]
    for each in stores:
        await tended(nodes, each)
    there = await everything(store)
    assert set((await index(store, 0)).values()) <= there
    for token_id in there:
        await store.delete_token(token_id)
    for each in stores:
        await tended(nodes, each)
    assert await store.subscription_count() == 0
    assert await take(stores[0]) == await take(stores[1]) == []


async def test_in_a_cluster(cluster: Cluster) -> None:
    """All steps are in slots of their own."""
    nodes = Nodes(cluster.url)
    store = await nodes.open(shards=16)
    for number in range(20):
        new = new_token(number)
        token = await register(store, new)
        assert await store.verify(token.ref, new.code)
        assert await store.replace(token.ref, replacement(100 + number, new.code))
        assert await store.verify(token.ref, new.code)
        await subscribe(store, token, b"%d" % number)
        await store.delete_token(token.ref)
    assert await everything(store) == set()
    assert await store.subscription_count() == 0
    await nodes.close()
