"""What scripts give of a token, as a claim of it."""

import struct

import pytest
from redis_stores import How, Nodes, ask, fault

from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.records import Ended, Lane, Outcome, PushKind
from ntf_server.store.redis.content import Content, claim, count_expired
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.sealing import CODE
from ntf_server.testing.store_suite.medium import (
    SMP,
    acquire,
    activate,
    delivered,
    names,
    new_token,
    notify,
    record,
    register,
    subscribe,
    take,
    take_one,
)
from smp_bridge.ntf import Provider


async def test_a_claim_holds_all_that_a_push_needs(nodes: Nodes, store: RedisStore) -> None:
    new = new_token(7, Provider.WEB_PUSH, origin="https://push.example.org")
    await register(store, new)
    nodes.clock.pass_(3)
    made = await take_one(store, Provider.WEB_PUSH)
    assert (made.token, made.device, made.secret, made.code) == (new.token_id, new.device, new.secret, new.code)
    assert made.lane == Lane(Provider.WEB_PUSH, store._state.sealer.origin("https://push.example.org"))
    assert (made.kind, made.entries, made.attempts, made.delivered_before) == (PushKind.VERIFICATION, (), 0, False)
    assert (made.vapid_key, made.app, len(made.push_id)) == (new.vapid_key, new.app, 16)
    assert made.since == made.registered_at == int(nodes.clock.wall() - 3)


async def test_a_retry_has_the_same_push_id_until_it_is_delivered(nodes: Nodes, store: RedisStore) -> None:
    await subscribe(store, await activate(store), b"a")
    session = await acquire(store)
    await notify(store, session, b"a")
    first = await take_one(store)
    await record(store, Outcome(first, Ended.AGAIN))
    second = await take_one(store)
    assert (second.push_id, second.attempts, second.delivered_before) == (first.push_id, 1, False)
    await record(store, delivered(second))
    await notify(store, session, b"a")
    await nodes.pass_(1, store)
    third = await take_one(store)
    assert third.push_id != first.push_id
    assert (third.attempts, third.delivered_before) == (0, True)


async def test_up_to_six_queues_the_oldest_first_and_sent_ones_fill_up(nodes: Nodes, store: RedisStore) -> None:
    queues = [b"%d" % n for n in range(8)]
    await subscribe(store, await activate(store), *queues)
    session = await acquire(store)
    for queue in queues:
        await notify(store, session, queue)
    said = []
    for _ in range(2):
        claims = await take(store)
        said.append([(e.notifier_id, e.sent) for e in claims[0].entries])
        assert all(e.server == SMP for e in claims[0].entries)
        await record(store, *map(delivered, claims))
        await nodes.pass_(1, store)
    assert await take(store) == []
    assert said[0] == [(queue, False) for queue in queues[:6]]
    assert [name for name, sent in said[1] if not sent] == queues[6:]
    assert [name for name, sent in said[1] if sent] == queues[2:6]


async def test_one_that_cannot_be_opened_takes_no_other_with_it(store: RedisStore) -> None:
    """Though the store fails when it is to be set aside: that is done later."""
    tokens = [await register(store, new_token(n)) for n in range(6)]
    bad = tokens[2].token_id
    await ask(store, b"HSET", store._node.names.token(bad), b"c", store._state.sealer.seal(b"code", CODE + b"another"))
    with fault(store, How.UNDONE, "set_aside") as happened:
        claims = await take(store)
    assert happened and {c.token for c in claims} == {t.token_id for t in tokens} - {bad}
    assert await take(store) == []
    assert await ask(store, b"HGET", store._node.names.token(bad), b"x")
    assert not {token for s in store._node.names.shards for token in await ask(store, b"HKEYS", s + b":taken")} - {
        c.token for c in claims
    }
    await record(store, *map(delivered, claims))


async def test_a_token_that_rests_is_not_claimed(nodes: Nodes, store: RedisStore) -> None:
    """Its push just ended: what comes together goes out together."""
    await subscribe(store, await activate(store), b"a", b"b")
    session = await acquire(store)
    await notify(store, session, b"a")
    await record(store, delivered(await take_one(store)))
    await notify(store, session, b"a")
    assert await take(store) == []
    await notify(store, session, b"b")
    assert await take(store) == []
    await nodes.pass_(0.1, store)
    assert names(await take_one(store)) == [b"a", b"b"]


async def test_what_is_over_its_time_is_counted(store: RedisStore) -> None:
    node = store._node
    content = Content.of([struct.pack(">idBBBIBI", -1, 0, 0, 1, 2, 3, 0, 0), b"token"])
    assert content.is_nothing
    assert await claim(node, [content], 1) == []
    expired = node.state.effects.expired
    assert (expired["verification"], expired["check"], expired["notification"]) == (1, 2, 3)
    count_expired(node, content)
    assert expired["notification"] == 6


async def test_the_store_that_is_away_is_no_damage(store: RedisStore) -> None:
    await register(store, new_token())
    with fault(store, How.UNDONE, "take"), pytest.raises(StoreUnavailableError):
        await take(store)
    assert len(await take(store)) == 1
