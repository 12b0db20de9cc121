"""Records that cannot be read are set aside, told once, and take nothing else with them."""

import pytest
from redis_stores import How, Nodes, ask, fault

from ntf_server.observe.metrics import KindCounter
from ntf_server.store.contract import DamagedRecordError
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.quarantine import set_aside, set_queues_aside
from ntf_server.store.redis.rows import HEAD, Queue
from ntf_server.testing.store_suite.medium import (
    SMP,
    acquire,
    activate,
    new_token,
    notify,
    pages,
    register,
    subscribe,
    take,
)


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
    record = await ask(store, b"HGET", store._node.names.server(server_id(SMP)) + b":q", b"a")
    assert HEAD.unpack_from(record)[:2] == (0, 1)
