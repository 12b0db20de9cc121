"""Records that cannot be read are set aside, told once, and take nothing else with them."""

from typing import Any

import pytest
from redis_stores import BUCKETS, How, Nodes, ask, between, bucket, fault

from ntf_server.observe.names import KindCounter
from ntf_server.store.contract import DamagedRecordError
from ntf_server.store.memory import Times
from ntf_server.store.records import Added, Claim, Confirmed, Session, ToAudit, Token
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.quarantine import set_aside, set_queues_aside
from ntf_server.store.redis.rows import HEAD, Queue
from ntf_server.testing.store_suite.medium import (
    SMP,
    Bench,
    acquire,
    activate,
    delivered,
    new_queue,
    new_token,
    notify,
    pages,
    record,
    register,
    stamp,
    subscribe,
    take,
    tend,
)
from smp_bridge.ntf import SubscriptionStatus


def counted(store: RedisStore, table: str) -> float:
    store._node.done()
    return store._metrics.value(KindCounter.QUARANTINED, table)


async def test_tokens(store: RedisStore, caplog: pytest.LogCaptureFixture) -> None:
    tokens = [await register(store, new_token(n)) for n in range(4)]
    bad = [tokens[0].token_id, tokens[2].token_id, b"nobody"]
    with fault(store, How.TWICE, "set_aside"):
        await set_aside(store._node, bad[1:])
    await set_aside(store._node, bad)
    assert counted(store, "tokens") == 1  # of the other one the first answer was lost
    assert "1 records of tokens cannot be read: they are set aside; register or subscribe anew" in caplog.text
    assert {claim.token for claim in await take(store)} == {t.token_id for t in tokens} - set(bad)
    for token in tokens:
        if token.token_id in bad:
            with pytest.raises(DamagedRecordError):
                await store.find_token(token.token_id)


async def test_a_claim_of_one_that_is_set_aside_is_forgotten(nodes: Nodes, store: RedisStore) -> None:
    token = await register(store, new_token())
    [claim] = await take(store)
    await set_aside(store._node, [token.token_id])
    assert claim.token not in store._state.claims
    await nodes.pass_(60, store)
    assert await take(store) == []


async def test_nothing_becomes_due_of_it(nodes: Nodes, store: RedisStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a")
    await store.set_period(token.ref, 20)
    await set_aside(store._node, [token.token_id])
    await notify(store, await acquire(store), b"a")
    await nodes.pass_(3600, store)
    await store.mark_checks(10)
    assert await take(store) == []


async def test_subscriptions(store: RedisStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b", b"c")
    session = await acquire(store)
    queues = [Queue(server_id(SMP), name) for name in (b"a", b"c", b"none")]
    await set_queues_aside(store._node, [])
    await set_queues_aside(store._node, queues)
    await set_queues_aside(store._node, queues)
    assert counted(store, "subscriptions") == 2
    assert [wanted.notifier_id for wanted in await pages(store, session)] == [b"b"]
    record = await ask(store, b"HGET", bucket(store, b"a") + b":q", b"a")
    assert HEAD.unpack_from(record)[:2] == (0, 1)


# --- records that are cut, wherever


async def names_of_cut(store: RedisStore, token: Token) -> list[bytes]:
    """Queues of a token, of whose records each is a byte longer than the one before: from nothing to all but one."""
    await subscribe(store, token, b"whole")
    size = len(await ask(store, b"HGET", bucket(store, b"whole") + b":q", b"whole"))
    names = [b"%05d" % n for n in range(size)]
    await subscribe(store, token, *names)
    for n, name in enumerate(names):
        records = bucket(store, name) + b":q"
        record = await ask(store, b"HGET", records, name)
        await ask(store, b"HSET", records, name, record[:n])
    return names


async def notified(store: RedisStore, session: Session, names: list[bytes]) -> None:
    done = await store.notify(session, stamp(store, session, *names, b"good"), {})
    assert 0 < done.unknown < len(names)
    assert b"good" in {entry.notifier_id for claim in await take(store) for entry in claim.entries}


async def loaded(store: RedisStore, session: Session, names: list[bytes]) -> None:
    refs = [Queue(server_id(SMP), name) for name in (*names, b"good")]
    assert [wanted.notifier_id for wanted in await store.load(session, refs)] == [b"good"]


async def audited(store: RedisStore, session: Session, names: list[bytes]) -> None:
    found, after = list[ToAudit](), None
    while True:
        some, after = await store.to_audit(after, 50, 60.0)
        found += some
        if after is None:
            break
    assert b"good" in {item.ref.notifier_id for item in found}  # type: ignore[attr-defined]


async def lost(store: RedisStore, session: Session, names: list[bytes]) -> None:
    marked, after = 0, None
    while True:
        some, after, _ = await store.mark_lost(session, after, 50, 0.0)
        marked += some
        if after is None:
            break
    assert marked == 2


async def confirmed(store: RedisStore, session: Session, names: list[bytes]) -> None:
    active = SubscriptionStatus.ACTIVE
    refs = [Queue(server_id(SMP), name) for name in (*names, b"good")]
    await store.confirm(session, [Confirmed(ref, active, associated=True) for ref in refs])


async def ended(store: RedisStore, session: Session, names: list[bytes]) -> None:
    assert await store.end(session, names, SubscriptionStatus.END) == len(names)


async def paged(store: RedisStore, session: Session, names: list[bytes]) -> None:
    """What is done after all of them."""


@pytest.mark.parametrize("does", [paged, notified, loaded, audited, lost, confirmed, ended], ids=lambda f: f.__name__)
async def test_cut_subscriptions_take_nothing_else_with_them(store: RedisStore, does: Any) -> None:
    """They are set aside as they are met, and subscribed anew."""
    bad, good = await activate(store, 1), await activate(store, 2)
    names = await names_of_cut(store, bad)
    await subscribe(store, good, b"good")
    session = await acquire(store)
    await does(store, session, names)
    for _ in range(2):
        assert {wanted.notifier_id for wanted in await pages(store, session, 50)} == {b"whole", b"good"}
    if does is not ended:
        assert counted(store, "subscriptions") == len(names)
    for name in names:
        assert isinstance(await store.subscribe(bad.ref, new_queue(name)), Added)
    assert {w.notifier_id for w in await pages(store, session, 50)} == {*names, b"whole", b"good"}


async def test_a_token_with_cut_subscriptions_is_deleted_with_them(store: RedisStore) -> None:
    bad, good = await activate(store, 1), await activate(store, 2)
    await names_of_cut(store, bad)
    await subscribe(store, good, b"good")
    await store.delete_token(bad.ref)
    left = [await ask(store, b"HKEYS", store._node.names.bucket(server_id(SMP), n) + b":q") for n in range(BUCKETS)]
    assert [name for names in left for name in names] == [b"good"]
    session = await acquire(store)
    assert [wanted.notifier_id for wanted in await pages(store, session)] == [b"good"]


async def test_what_was_cut_off_with_a_cut_record_does_not_keep_upkeep_from_the_rest(
    nodes: Nodes, store: RedisStore
) -> None:
    token = await activate(store)
    await names_of_cut(store, token)
    doubts = store._node.names.doubts(store._node.names.shard(token.token_id))
    assert await ask(store, b"ZCARD", doubts) > 0
    await nodes.pass_(70, store)
    await tend(Bench(None, nodes.clock), store)  # type: ignore[arg-type]
    assert await ask(store, b"ZCARD", doubts) == 0


async def cut_notifications(store: RedisStore, token: Token, names: list[bytes], step: int) -> None:
    """Of what is kept for each queue so many bytes more than of the one before."""
    values = store._node.names.token(token.token_id)
    for n, name in enumerate(names):
        queue = Queue(server_id(SMP), name).packed
        value = await ask(store, b"HGET", values, queue)
        await ask(store, b"HSET", values, queue, value[: n * step])


@pytest.mark.parametrize("then", ["taken", "notified", "expired"])
async def test_cut_notifications_take_nothing_else_with_them(nodes: Nodes, then: str) -> None:
    store = await nodes.open(times=Times(message_ttl=600))
    bad, good = await activate(store, 1), await activate(store, 2)
    names = [b"%05d" % n for n in range(20)]
    await subscribe(store, bad, *names, b"whole")
    await subscribe(store, good, b"good")
    session = await acquire(store)
    await notify(store, session, *names, b"whole", b"good")
    await cut_notifications(store, bad, names, 4)
    if then == "notified":
        await notify(store, session, *names, b"good")
    if then == "expired":
        await nodes.pass_(610, store)
        await tend(Bench(None, nodes.clock), store)  # type: ignore[arg-type]
        assert await take(store) == []
        return
    pushed: set[bytes] = set()
    for _ in range(60):
        nodes.clock.pass_(1)
        claims = await take(store)
        pushed |= {entry.notifier_id for claim in claims for entry in claim.entries if not entry.sent}
        assert await store.record([delivered(claim) for claim in claims]) == 0
    given_up = counted(store, "notifications")
    if then == "notified":
        assert pushed == {*names, b"whole", b"good"} and given_up == 0
    else:
        assert {b"whole", b"good"} <= pushed and given_up == len(names) - len(pushed & set(names)) > 0
    assert counted(store, "tokens") == 0


async def test_what_came_before_a_cut_notification_is_given_up_once_more_stays(nodes: Nodes, store: RedisStore) -> None:
    """Its answer did not come: by then the queue has another one, which is claimed."""
    token = await activate(store)
    await subscribe(store, token, b"a")
    session = await acquire(store)
    await notify(store, session, b"a")
    await cut_notifications(store, token, [b"a"], 0)
    claims: list[Claim] = []

    async def comes() -> None:
        await notify(store, session, b"a", meta=b"new")
        claims.extend(await take(store))

    with between(store, "drop_notification", comes) as happened:
        assert await take(store) == []
    assert happened and [[entry.meta for entry in claim.entries] for claim in claims] == [[b"new"]]
    nodes.clock.pass_(1)
    assert await take(store) == []
    await record(store, *map(delivered, claims))
