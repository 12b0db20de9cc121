"""What of a Redis is read: what counts there, and nothing that cannot be read."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from moving import read
from redis_servers import Server
from redis_stores import MASTER, Nodes, ask, bucket, measured
from store_world import SMP, acquire, activate, new_subscription, new_token, notify, register, subscribe, take

from ntf_server.store.records import Added, Registered, ServiceCertificate
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.portable import PortableRedis
from ntf_server.store.redis.reading import Reading
from ntf_server.store.redis.rows import HEAD, queue_on, registration
from smp_bridge.ntf import DeviceToken, Provider

QUEUES = [b"queue%03d" % n for n in range(130)]  # more than one script gives


async def found(nodes: Nodes, *stores: RedisStore) -> tuple[list[Any], list[Any], dict[str, int]]:
    """In a Redis whose nodes are killed."""
    for store in stores:
        await nodes.kill(store)
    portable = await PortableRedis.open(await nodes.database(), MASTER, make=False)
    assert isinstance(portable._reading, Reading)
    try:
        return await read(portable)
    finally:
        await portable.close()


async def test_a_token_with_many_queues_is_read_whole(nodes: Nodes) -> None:
    store = await nodes.open(manual=False)
    token = await activate(store)
    await subscribe(store, token, *QUEUES)
    await notify(store, await acquire(store), *QUEUES[:120])
    _, [(_, queues)], _ = await found(nodes, store)
    assert {q[1] for q in queues} == set(QUEUES)
    assert sum(bool(q[-1]) for q in queues) == 120


async def test_what_a_node_had_in_memory_is_due(nodes: Nodes) -> None:
    store = await nodes.open(manual=False)
    session = await acquire(store)
    tokens = []
    for n in range(3):
        tokens.append(await activate(store, DeviceToken(Provider.APNS, b"%d" % n), b"%d" % n))
        await subscribe(store, tokens[n], b"queue%d" % n)
    await notify(store, session, b"queue0")
    [claim] = await take(store)
    await notify(store, session, b"queue1")
    await nodes.kill(store)
    portable = await PortableRedis.open(await nodes.database(), MASTER, make=False)
    due: dict[bytes, Any] = {}
    cursor: bytes | None = b""
    while cursor is not None:
        slice_ = await portable.read(cursor, 100)
        cursor = slice_.cursor
        due |= {one.token.token_id: one.token.due_ms for one in slice_.moved}
    first, second, third = (due[token.token_id] for token in tokens)
    now = time.time() * 1000
    assert now - 20_000 < first <= now and now - 20_000 < second <= now and third is None
    assert first == claim.since * 1000
    await portable.close()


async def test_what_commands_have_left_that_were_cut_off_does_not_count(nodes: Nodes) -> None:
    store = await nodes.open(manual=False)
    names = store._node.names
    first = await activate(store)
    second = await activate(store, DeviceToken(Provider.FCM, b"other"), b"other")
    await subscribe(store, first, b"queue")
    for name in (b"queue", b"never claimed"):
        await ask(store, b"SADD", names.queues_of(second.token_id), queue_on(SMP, name).packed)
    gone = await register(store, DeviceToken(Provider.FCM, b"third"), b"third")
    await subscribe(store, gone, b"of one that is gone")
    await store._node.run("drop", [names.shard(gone.token_id)], gone.token_id, "", store._node.ahead)
    _, moved, left_out = await found(nodes, store)
    assert [len(queues) for _, queues in moved] in ([1, 0], [0, 1])
    assert left_out == {}


@pytest.mark.parametrize("how", ["its device is another's", "it only is not deleted yet"])
async def test_a_registration_that_another_took_the_place_of_is_left_out(nodes: Nodes, how: str) -> None:
    store = await nodes.open(manual=False)
    token = await activate(store)
    [packed] = await store._node.fields(token.token_id, [b"r"])
    index = store._node.names.device(registration(packed).lookup)
    if how.startswith("its"):
        await ask(store, b"HSET", index, token.verify_key, b"another")
    else:
        await ask(store, b"HDEL", index, token.verify_key)
        await ask(store, b"HSET", index, b"-" + token.token_id, token.token_id)
    _, moved, left_out = await found(nodes, store)
    assert (moved, left_out) == ([], {"superseded registrations": 1})


async def test_a_registration_that_nothing_leads_to_is_kept(nodes: Nodes) -> None:
    """Its index was lost, as in a failover: its device goes on using it."""
    store = await nodes.open(manual=False)
    token = await activate(store)
    [packed] = await store._node.fields(token.token_id, [b"r"])
    await ask(store, b"DEL", store._node.names.device(registration(packed).lookup))
    _, moved, left_out = await found(nodes, store)
    assert (len(moved), left_out) == (1, {})


async def two(store: RedisStore) -> list[tuple[Registered, list[Added]]]:
    made = []
    for n in range(2):
        token = await store.register(new_token(DeviceToken(Provider.APNS, b"%d" % n), b"%d" % n))
        assert token is not None
        added = [await store.subscribe(token.ref, new_subscription(b"queue%d%d" % (n, q))) for q in range(2)]
        made.append((token, [a for a in added if isinstance(a, Added)]))
    await store.service_certificate(SMP, lambda: ServiceCertificate(b"chain", b"key"))
    return made


_TOKEN: dict[str, Sequence[bytes]] = {
    "code": (b"c", b"rubbish"),
    "set aside": (b"x", b"1"),
    "status": (b"s", b"WHAT"),
    "number": (b"ra", b"one"),
    "record": (b"r", b"rubbish"),
}


@pytest.mark.parametrize("what", _TOKEN)
async def test_a_token_that_cannot_be_read_is_left_out_with_its_queues(nodes: Nodes, what: str) -> None:
    store = await nodes.open(manual=False)
    [(token, _), _] = await two(store)
    await ask(store, b"HSET", store._node.names.token(token.token_id), *_TOKEN[what])
    _, moved, left_out = await found(nodes, store)
    assert (len(moved), left_out) == (1, {"registrations": 1, "subscriptions": 2})


async def test_a_token_whose_device_cannot_be_opened_is_left_out(nodes: Nodes) -> None:
    store = await nodes.open(manual=False)
    [(token, _), _] = await two(store)
    [packed] = await store._node.fields(token.token_id, [b"r"])
    bad = msgspec.structs.replace(registration(packed), device_token=bytes(60))
    await ask(store, b"HSET", store._node.names.token(token.token_id), b"r", msgspec.msgpack.encode(bad))
    _, moved, left_out = await found(nodes, store)
    assert (len(moved), left_out) == (1, {"registrations": 1, "subscriptions": 2})


@pytest.mark.parametrize("what", ["key", "set aside", "status", "head", "server", "notification"])
async def test_a_queue_that_cannot_be_read_is_left_out(nodes: Nodes, what: str) -> None:
    store = await nodes.open(manual=False)
    [(token, _), _] = await two(store)
    names, ref = store._node.names, queue_on(SMP, b"queue00")
    key = bucket(store, ref.notifier_id, SMP)
    record = await ask(store, b"HGET", key + b":q", ref.notifier_id)
    head = HEAD.unpack_from(record)
    if what == "key":
        record = record[:-60] + bytes(60)
    elif what == "set aside":
        record = HEAD.pack(head[0], 1, *head[2:]) + record[HEAD.size :]
    elif what == "status":
        record = b"\xff" + record[1:]
    elif what == "head":
        record = record[:10]
    elif what == "notification":
        await ask(store, b"HSET", names.token(token.token_id), ref.packed, b"rubbish")
    await ask(store, b"HSET", key + b":q", ref.notifier_id, record)
    if what == "server":
        await ask(store, b"HSET", names.server(ref.server), b"address", b"\xff")
    servers, moved, left_out = await found(nodes, store)
    if what == "server":
        assert (len(servers), left_out) == (0, {"servers": 1, "subscriptions": 4})
    else:
        assert (len(servers), left_out) == (1, {"subscriptions": 1})
    assert len(moved) == 2


async def test_a_certificate_that_cannot_be_opened_is_left_out(nodes: Nodes) -> None:
    store = await nodes.open(manual=False)
    await two(store)
    await ask(store, b"HSET", store._node.names.server(queue_on(SMP, b"").server), b"key", b"rubbish")
    [server], moved, left_out = await found(nodes, store)
    assert server[-2:] == (b"", b"") and len(moved) == 2 and left_out == {"certificates": 1}


async def test_no_script_holds_the_server_for_long(nodes: Nodes, server: Server) -> None:
    """Tokens with as many queues as one script gives at most."""
    store = await nodes.open(manual=False, shards=1)
    session = await acquire(store)
    for n in range(60):
        token = await activate(store, DeviceToken(Provider.APNS, b"%d" % n), b"%d" % n)
        queues = [b"%d of %d" % (q, n) for q in range(100 if n < 25 else 1)]
        await asyncio.gather(*(store.subscribe(token.ref, new_subscription(queue)) for queue in queues))
        await notify(store, session, *queues)
    await nodes.kill(store)
    portable = await PortableRedis.open(await nodes.database(), MASTER, make=False)
    with measured(server, portable._database, {"read_tokens"}) as costs:
        _, moved, _ = await read(portable, 200)
    assert len(moved) == 60
    assert len(costs["read_tokens"]) == 3 and max(costs["read_tokens"]) < 300
    await portable.close()
