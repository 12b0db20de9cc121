"""Whose a pair of device token and verify key is: what others do while a TNEW or TRPL is between two of its steps."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from msgspec.structs import replace
from redis_stores import How, Nodes, ask, before, cut, fault

from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.records import NewToken, Replacement, Token
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.rows import lead
from ntf_server.testing.store_suite.medium import (
    Bench,
    acquire,
    delivered,
    device,
    known,
    new_token,
    notify,
    record,
    register,
    subscribe,
    take,
    tend,
)
from smp_bridge.ntf import Provider, TokenStatus

KEY = b"one key"  # of all registrations here, but where another one is named


def new(number: int, key: bytes = KEY) -> NewToken:
    """All are of one client, with one code."""
    return replace(new_token(0, key=key), device=device(number), code=b"c" * 32)


def onto(number: int) -> Replacement:
    return Replacement(device(number), b"c" * 32)


async def has(store: RedisStore, number: int, key: bytes = KEY) -> bytes | None:
    """Whose the pair is by the index."""
    name = store._node.names.device(store._state.sealer.lookup(Provider.APNS, device(number).token))
    packed = await ask(store, b"HGET", name, key)
    return None if packed is None else lead(packed).token


async def tended(nodes: Nodes, *stores: RedisStore) -> None:
    bench = Bench(None, nodes.clock)  # type: ignore[arg-type]
    await nodes.pass_(61, *stores)
    for store in stores:
        await tend(bench, store)


async def prepared(store: RedisStore) -> int:
    """How many are to become something."""
    counts: list[int] = [await ask(store, b"ZCARD", shard + b":coming") for shard in store._node.names.shards]
    return sum(counts)


async def is_at(store: RedisStore, token: Token, number: int) -> bool:
    """Its device token is this, and the pair leads to it."""
    found = await store.find_registration(device(number), KEY)
    return found is not None and found.token_id == token.token_id == await has(store, number)


@pytest.fixture
async def stores(nodes: Nodes) -> list[RedisStore]:
    """Two nodes."""
    return [await nodes.open("one"), await nodes.open("two")]


@pytest.fixture
async def tokens(stores: Sequence[RedisStore]) -> list[Token]:
    """Of devices 0 to 3."""
    return [await register(stores[0], new(n)) for n in range(4)]


# --- between the claim and its end


async def test_a_replacement_that_another_one_meets_has_the_pair(
    stores: Sequence[RedisStore], tokens: Sequence[Token]
) -> None:
    """Whoever claimed it first: the other one is refused, and keeps what it had."""
    one, two = stores
    said = []

    async def another() -> None:
        said.append(await two.replace(tokens[1].ref, onto(9)))

    with before(one, "apply", another):
        said.append(await one.replace(tokens[0].ref, onto(9)))
    assert said == [False, True]
    assert await is_at(one, tokens[0], 9)
    assert await is_at(one, tokens[1], 1)
    claims = {c.token: c.device for store in stores for c in await take(store)}
    assert [claims[t.ref] for t in tokens] == [device(9), device(1), device(2), device(3)]
    assert await prepared(one) == 0


async def test_of_those_that_prepared_all_the_first_claim_counts(
    stores: Sequence[RedisStore], tokens: Sequence[Token]
) -> None:
    one, two = stores
    said = []

    async def another() -> None:
        said.append(await two.replace(tokens[1].ref, onto(9)))

    with before(one, "claim", another):
        said.append(await one.replace(tokens[0].ref, onto(9)))
    assert said == [True, False]
    assert await is_at(one, tokens[1], 9)
    assert await is_at(one, tokens[0], 0)


async def test_a_registration_that_meets_a_replacement_is_that_one(
    stores: Sequence[RedisStore], tokens: Sequence[Token]
) -> None:
    one, two = stores
    found = []

    async def registered() -> None:
        found.append(await register(two, new(9)))

    with before(one, "apply", registered):
        assert await one.replace(tokens[0].ref, onto(9))
    assert [token.token_id for token in found] == [tokens[0].token_id]
    assert await is_at(one, tokens[0], 9)


async def test_a_replacement_that_meets_a_registration_is_refused(
    stores: Sequence[RedisStore], tokens: Sequence[Token]
) -> None:
    one, two = stores
    said = []

    async def another() -> None:
        said.append(await two.replace(tokens[0].ref, onto(9)))

    with before(one, "apply", another):
        token = await register(one, new(9))
    assert said == [False]
    assert await is_at(one, token, 9)
    assert await is_at(one, tokens[0], 0)


async def test_a_registration_that_meets_its_twin_is_that_one(stores: Sequence[RedisStore]) -> None:
    one, two = stores
    first, found = new(0), []

    async def twin() -> None:
        found.append(await register(two, new(0)))

    with before(one, "apply", twin):
        token = await register(one, first)
    assert [f.token_id for f in found] == [token.token_id] == [first.token_id]
    assert len([claim for store in stores for claim in await take(store)]) == 1


@pytest.mark.parametrize("what", ["register", "replace"])
async def test_a_verification_meets_what_is_to_be_another_of_its_device(
    stores: Sequence[RedisStore], tokens: Sequence[Token], what: str
) -> None:
    """None is left that has the device, and that the device's index does not lead to."""
    one, two = stores
    mine = new(9, b"mine")
    winner = await register(two, mine)

    async def verified() -> None:
        assert await two.verify(winner.ref, mine.code)

    with before(one, "apply", verified):
        if what == "register":
            token = await register(one, new(9))
            assert await is_at(one, token, 9)  # it is registered once more
        else:
            assert not await one.replace(tokens[0].ref, onto(9))
            assert await one.find_token(tokens[0].token_id) is None
            assert await has(one, 9) is None
    assert await has(one, 9, b"mine") == winner.token_id


async def test_what_a_replacement_leaves_behind_may_be_its_own_again(
    stores: Sequence[RedisStore], tokens: Sequence[Token]
) -> None:
    """It goes there and back while the first of the two is in its last step."""
    one, two = stores

    async def back() -> None:
        assert await two.replace(tokens[0].ref, onto(0))

    with before(one, "unclaim", back):
        assert await one.replace(tokens[0].ref, onto(9))
    assert await is_at(one, tokens[0], 0)
    assert (await register(one, new(0))).token_id == tokens[0].token_id


async def test_who_finds_a_claim_of_no_use_is_told_when_it_is_claimed_again(
    stores: Sequence[RedisStore], tokens: Sequence[Token]
) -> None:
    """By the same registration: as it was, and yet another claim."""
    one, two = stores
    with fault(one, How.UNDONE, "apply"), pytest.raises(StoreUnavailableError):
        await one.replace(tokens[0].ref, onto(9))
    assert await one.replace(tokens[0].ref, onto(8))
    assert await has(one, 9) == tokens[0].token_id

    async def again() -> None:
        assert await two.replace(tokens[0].ref, onto(9))

    with before(one, "claim", again):
        assert not await one.replace(tokens[1].ref, onto(9))
    assert await is_at(one, tokens[0], 9)
    assert await is_at(one, tokens[1], 1)


async def test_what_another_node_brought_to_its_end_is_pushed(nodes: Nodes, stores: Sequence[RedisStore]) -> None:
    """Memory here had more to push for it, and let go of that before."""
    one, two = stores
    await nodes.pass_(10, one, two)
    held, number_of = one._node.held, one._node.names.number
    first = next(n for n in map(new, range(20, 99)) if number_of(n.token_id) in held)
    token, other = await register(one, first), await register(two, new(100))
    assert await one.verify(token.ref, first.code)
    await subscribe(one, token, b"a")
    session = await acquire(one)
    await notify(one, session, b"a")
    [claim] = [claim for claim in await take(one) if claim.token == token.ref]
    await notify(one, session, b"a")
    await record(one, delivered(claim))
    assert await ask(one, b"HEXISTS", one._node.names.shard(token.token_id) + b":taken", token.token_id)

    async def another() -> None:
        assert not await two.replace(other.ref, onto(200))

    with before(one, "apply", another):
        assert await one.replace(token.ref, onto(200))
    await nodes.pass_(4, one, two)
    assert [claim.device for claim in await take(one) if claim.token == token.ref] == [device(200)]


# --- who began is gone


async def test_a_pair_that_a_dead_node_claimed_has_who_claimed_it(
    nodes: Nodes, stores: Sequence[RedisStore], tokens: Sequence[Token]
) -> None:
    """Until it is withdrawn, whoever asks brings it to its end: at once, and with all that the registration had."""
    one, two = stores
    await one.verify(tokens[0].ref, new(0).code)
    await subscribe(one, tokens[0], b"a")
    with fault(one, How.UNDONE, "apply"), pytest.raises(StoreUnavailableError):
        await one.replace(tokens[0].ref, onto(9))
    await nodes.kill(one)
    assert await is_at(two, tokens[0], 0)
    assert not await two.replace(tokens[1].ref, onto(9))
    assert await is_at(two, tokens[0], 9)
    assert await two.subscription_count() == 1
    assert (await register(two, new(0))).token_id != tokens[0].token_id  # that pair is free


@pytest.mark.parametrize("step", ["claim", "apply"])
@pytest.mark.parametrize("what", ["register", "replace"])
async def test_a_pair_that_a_dead_node_claimed_is_free_after_a_minute(
    nodes: Nodes, stores: Sequence[RedisStore], tokens: Sequence[Token], what: str, step: str
) -> None:
    one, two = stores

    async def began() -> object:
        return await (one.register(new(9)) if what == "register" else one.replace(tokens[0].ref, onto(9)))

    with fault(one, How.UNDONE, step), pytest.raises(StoreUnavailableError):
        await began()
    await nodes.kill(one)
    assert await prepared(two) == 1
    await tended(nodes, two)
    assert await prepared(two) == 0
    assert await has(two, 9) is None
    assert await is_at(two, tokens[0], 0)
    assert await two.replace(tokens[1].ref, onto(9))
    assert await is_at(two, tokens[1], 9)


@pytest.mark.parametrize("is_wanted", [False, True])
@pytest.mark.parametrize("step", ["claim", "apply"])
async def test_a_replacement_that_stood_still_for_longer(
    nodes: Nodes, stores: Sequence[RedisStore], tokens: Sequence[Token], step: str, is_wanted: bool
) -> None:
    """What it prepared was withdrawn: it begins again, and is refused if another one has the pair by now."""
    one, two = stores

    async def longer() -> None:
        await tended(nodes, one, two)
        if is_wanted:
            assert await two.replace(tokens[1].ref, onto(9))

    with before(one, step, longer):
        assert await one.replace(tokens[0].ref, onto(9)) is not is_wanted
    assert await is_at(one, tokens[1 if is_wanted else 0], 9)
    assert await is_at(one, tokens[0], 0) is is_wanted


@pytest.mark.parametrize("is_wanted", [False, True])
@pytest.mark.parametrize("step", ["claim", "apply"])
async def test_a_registration_that_stood_still_for_longer(
    nodes: Nodes, stores: Sequence[RedisStore], tokens: Sequence[Token], step: str, is_wanted: bool
) -> None:
    """It begins again, and is the other one if that has the pair by now."""
    one, two = stores

    async def longer() -> None:
        await tended(nodes, one, two)
        if is_wanted:
            assert await two.replace(tokens[1].ref, onto(9))

    with before(one, step, longer):
        token = await register(one, new(9))
    assert (token.token_id == tokens[1].token_id) is is_wanted
    assert await is_at(one, token, 9)


async def test_a_registration_that_was_deleted_becomes_nothing(
    stores: Sequence[RedisStore], tokens: Sequence[Token]
) -> None:
    one, two = stores

    async def deleted() -> None:
        await two.delete_token(tokens[0].ref)

    with before(one, "apply", deleted):
        assert not await one.replace(tokens[0].ref, onto(9))
    assert await one.find_token(tokens[0].token_id) is None
    assert await has(one, 0) is await has(one, 9) is None
    assert await prepared(one) == 0


@pytest.mark.parametrize("step", ["prepare", "apply"])
async def test_steps_that_end_in_the_middle_and_are_done_again(
    nodes: Nodes, stores: Sequence[RedisStore], step: str
) -> None:
    """As in a slot that moves to another server."""
    one = stores[0]
    for commands in range(50):
        with cut(one, step, commands) as happened:
            token = await register(one, new(2 * commands, b"key %d" % commands))
            assert await one.replace(token.ref, onto(2 * commands + 1))
        assert await has(one, 2 * commands + 1, b"key %d" % commands) == token.token_id
        assert await one.verify(token.ref, b"c" * 32)
        if not happened:
            break
    assert commands > 3
    assert not happened
    await tended(nodes, *stores)
    assert await prepared(one) == 0


# --- many at once


@pytest.mark.parametrize("pairs", [1, 3])
async def test_whatever_their_order_each_pair_has_one(
    nodes: Nodes, stores: Sequence[RedisStore], tokens: Sequence[Token], pairs: int
) -> None:
    """Replacements and registrations: who is told yes has what he asked for, or had it and was replaced again."""

    def one(n: int) -> Callable[[], Awaitable[object]]:
        store, number = stores[n % 2], 9 + n % pairs
        if n % 3 == 2:
            return lambda: store.register(new(number))
        return lambda: store.replace(tokens[n % 4].ref, onto(number))

    for turn in range(10):
        await asyncio.gather(*(one(turn + n)() for n in range(8)))
        there = {
            t for shard in stores[0]._node.names.shards for t in await ask(stores[0], b"ZRANGE", shard + b":all", 0, -1)
        }
        found = [await stores[0].find_registration(device(n), KEY) for n in range(12)]
        assert {token.token_id for token in found if token is not None} == there
        assert len([token for token in found if token is not None]) == len(there)
    await tended(nodes, *stores)
    assert await prepared(stores[0]) == 0
    statuses = {(await known(stores[0], t)).status for t in tokens}
    assert statuses == {TokenStatus.REGISTERED}
