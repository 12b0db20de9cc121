"""Which tokens are next: each once, whatever happens to the call that hands them out."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from redis_servers import Cluster
from redis_stores import How, Nodes, ask, each_by, fault, patched, regained

from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.records import Claim
from ntf_server.store.redis import taking as module
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.engine import RedisStore
from ntf_server.testing.store_suite.medium import (
    ROOM,
    Room,
    acquire,
    activate,
    again,
    delivered,
    new_token,
    notify,
    record,
    register,
    subscribe,
    take,
)
from smp_bridge.ntf import Provider

WEB = Provider.WEB_PUSH


async def due(store: RedisStore, count: int, provider: Provider = Provider.APNS, *, origins: int = 1) -> set[bytes]:
    tokens = set()
    for n in range(count):
        origin = f"https://push{n % origins}.example.org" if provider is WEB else ""
        tokens.add((await register(store, new_token(n, provider, origin=origin))).token_id)
    return tokens


async def all_due(store: RedisStore, provider: Provider, tokens: set[bytes]) -> None:
    """They are due, each once, and of nothing else the store says that somebody has it."""
    claims = await take(store, provider)
    assert Counter(claim.token for claim in claims) == Counter(tokens)
    taken = {t for s in store._node.names.shards for t in await ask(store, b"HKEYS", s + b":taken")}
    assert taken == {claim.token for claim in claims}
    assert await take(store, provider) == []


@pytest.mark.parametrize("provider", [Provider.APNS, WEB])
async def test_a_take_whose_answer_was_lost_gives_each_once(store: RedisStore, provider: Provider) -> None:
    tokens = await due(store, 30, provider, origins=3)
    with fault(store, How.TWICE, "take", "peek", "lanes") as happened:
        await all_due(store, provider, tokens)
    assert "take" in happened


@pytest.mark.parametrize("how", [How.LOST, How.UNDONE])
@pytest.mark.parametrize(
    ("provider", "name"),
    [(Provider.APNS, "peek"), (Provider.APNS, "take"), (WEB, "lanes"), (WEB, "peek"), (WEB, "take")],
)
async def test_a_take_that_failed_strands_nothing(store: RedisStore, provider: Provider, name: str, how: How) -> None:
    tokens = await due(store, 30, provider, origins=3)
    with fault(store, how, name), pytest.raises(StoreUnavailableError):
        await take(store, provider)
    await all_due(store, provider, tokens)


async def test_a_take_that_fails_in_its_middle_gives_what_it_has(store: RedisStore) -> None:
    """Web Push has its lanes in turn, in several calls."""
    tokens = await due(store, 80, WEB, origins=80)
    database, run = store._node.database, store._node.database.run
    calls = 0

    async def fail_later(call: object) -> object:
        nonlocal calls
        if call.script.name == "take":  # type: ignore[attr-defined]
            calls += 1
            if calls > 1:
                raise StoreUnavailableError("away")
        return await run(call)  # type: ignore[arg-type]

    with patched(database, **each_by(fail_later)):
        found = await store.take(WEB, Room(total=1000, each=1))
    assert calls == 2 and 0 < len(found.claims) < 80
    assert found.next_in == 0
    claims = found.claims + await take(store, WEB)
    assert Counter(claim.token for claim in claims) == Counter(tokens)


async def test_takes_at_once_do_not_ask_for_the_same(store: RedisStore) -> None:
    """A third of what was asked for in a burst was another take's already."""
    tokens = await due(store, 30)
    asked: Counter[bytes] = Counter()
    run_prompt = store._node.database.run_prompt

    async def note(calls: Sequence[Call]) -> list[object]:
        for call in calls:
            if call.script.name == "take":
                asked.update(word for word in call.args if isinstance(word, bytes) and word in tokens)
        return await run_prompt(calls)

    with patched(store._node.database, run_prompt=note):
        several = await asyncio.gather(*(take(store) for _ in range(3)))
    assert Counter(claim.token for claims in several for claim in claims) == Counter(tokens) == asked
    assert not store._node.taking


async def test_what_another_take_finds_ripe_meanwhile_is_due(nodes: Nodes, store: RedisStore) -> None:
    token = await activate(store, 0, Provider.FCM)
    await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    await notify(store, session, b"a")
    [claim] = await take(store, Provider.FCM)
    await notify(store, session, b"b")
    assert await store.record([delivered(claim)]) == 0  # and there is more
    run_prompt = store._node.database.run_prompt
    others = iter([Provider.APNS])

    async def slow(calls: Sequence[Call]) -> list[object]:
        for provider in others:
            nodes.clock.pass_(1)
            assert await take(store, provider) == []
        return await run_prompt(calls)

    with patched(store._node.database, run_prompt=slow):
        taken = await store.take(Provider.FCM, ROOM)
    assert not taken.claims and taken.next_in == 0
    assert [claim.token for claim in await take(store, Provider.FCM)] == [token.token_id]


async def test_who_rested_is_claimed_once(nodes: Nodes, store: RedisStore) -> None:
    """Memory says that it is due, not the store; the call is done twice, or its answer lost."""
    await subscribe(store, await activate(store), b"a")
    session = await acquire(store)
    await notify(store, session, b"a")
    for how in (How.TWICE, How.LOST, How.UNDONE):
        [claim] = await take(store)
        await notify(store, session, b"a")
        await record(store, delivered(claim))
        await nodes.pass_(0.1, store)
        found: list[Claim] = []
        try:
            with fault(store, how, "take") as happened:
                found += await take(store)
        except StoreUnavailableError:
            assert how is not How.TWICE
        assert happened
        found += await take(store)
        assert len(found) == 1
        await record(store, again(found[0]))


async def test_takes_at_once_give_each_once(store: RedisStore) -> None:
    tokens = await due(store, 100)
    takes = [store.take(Provider.APNS, Room(total=9)) for _ in range(20)]
    found = [claim.token for taken in await asyncio.gather(*takes) for claim in taken.claims]
    assert len(found) == len(set(found))
    found += [claim.token for claim in await take(store)]
    assert sorted(map(bytes, found)) == sorted(tokens)  # type: ignore[arg-type]


async def test_the_oldest_of_all_shards_first(nodes: Nodes, store: RedisStore) -> None:
    order = []
    for number in range(12):
        order.append((await register(store, new_token(number))).token_id)
        nodes.clock.pass_(0.1)
    for first in range(0, 12, 3):
        assert [claim.token for claim in await take(store, places=Room(total=3))] == order[first : first + 3]


async def test_when_the_next_is_due(nodes: Nodes, store: RedisStore) -> None:
    assert (await store.take(Provider.APNS, ROOM)).next_in is None
    await due(store, 3)
    taken = await store.take(Provider.APNS, Room(total=2))
    assert len(taken.claims) == 2 and taken.next_in == 0
    await record(store, *(again(claim, 20 + n) for n, claim in enumerate(taken.claims)))
    taken = await store.take(Provider.APNS, ROOM)
    assert taken.next_in == pytest.approx(20, abs=0.01)
    assert (await store.take(Provider.APNS, Room(total=0))).claims == []


async def test_how_many_are_due(nodes: Nodes, store: RedisStore) -> None:
    """Claimed ones are not."""
    await due(store, 10)
    await due(store, 3, WEB)
    assert ((await store.backlog(Provider.APNS)).tokens, (await store.backlog(WEB)).tokens) == (10, 3)
    claims = await take(store, places=Room(total=4))
    assert (await module.backlog(store._node, Provider.APNS)).tokens == 6
    await record(store, again(claims[0], 60))
    assert (await store.backlog(Provider.APNS)).tokens == 7


async def test_lanes_in_turn_go_on_where_the_last_take_stopped(store: RedisStore) -> None:
    """However few places there are: no origin waits for ever."""
    await due(store, 40, WEB, origins=8)
    first = await take(store, WEB, Room(total=8, each=1))
    assert len({claim.lane for claim in first}) == 8
    lanes = set()
    for _ in range(4):
        lanes |= {claim.lane for claim in await take(store, WEB, Room(total=2, each=1))}
    assert len(lanes) == 8


async def test_an_origin_without_room_keeps_what_is_ready_for_later(nodes: Nodes, store: RedisStore) -> None:
    """What rested is due in the store again."""
    await subscribe(store, await activate(store, 0, WEB), b"a")
    session = await acquire(store)
    await notify(store, session, b"a")
    [claim] = await take(store, WEB)
    await notify(store, session, b"a")
    await record(store, delivered(claim))
    await nodes.pass_(0.1, store)
    with fault(store, How.TWICE, "park") as happened:
        assert await take(store, WEB, Room(each=0)) == []
    assert happened and not store._state.ready
    assert len(await take(store, WEB)) == 1


@pytest.mark.parametrize("how", [How.TWICE, How.LOST])
async def test_in_a_cluster(cluster: Cluster, how: How) -> None:
    nodes = Nodes(cluster.url)
    store = await nodes.open(shards=16)
    tokens = await due(store, 60)
    found: list[Claim] = []
    with fault(store, how, "take"):
        found += await take(store)
    await regained(store)
    found += await take(store)
    assert Counter(claim.token for claim in found) == Counter(tokens)
    await nodes.close()
