"""What is written to a Redis that nobody uses yet."""

import struct
from typing import Any

from moving import MARK, NOW, browser
from redis_servers import Server
from redis_stores import MASTER, Nodes, ask, measured
from store_world import CODE, SMP, acquire, anywhere, notify

from ntf_server.store.portable import Moved, MovedNotification, MovedQueue, MovedServer, MovedToken
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.portable import PortableRedis
from ntf_server.store.redis.rows import queue_on
from ntf_server.store.redis.writing import Writing
from ntf_server.store.sealing import Sealer
from smp_bridge.ntf import Provider

ADDRESS = SMP.plain.encode()


def server_record() -> MovedServer:
    return MovedServer(ADDRESS, None, 0, bytes(16), 0, bytes(16), "", 0, NOW, 0, b"", b"")


def token(provider: Provider = Provider.APNS, **changes: Any) -> MovedToken:
    device = browser(b"push.example.org").token if provider is Provider.WEB_PUSH else b"device"
    values: dict[str, Any] = {
        "token_id": b"t" * 24,
        "provider": provider.value,
        "device_token": device,
        "verify_key": b"key",
        "client_dh": b"client dh",
        "server_private": b"",
        "server_dh": b"server dh",
        "secret": b"s" * 32,
        "code": CODE,
        "app": "",
        "vapid_key": b"",
        "status": "ACTIVE",
        "reason": "",
        "registration": 3,
        "registered_at": NOW,
        "active_at": NOW,
        "proven": True,
        "period": 0,
        "period_at": 0,
        "verification_due": 0,
        "check_due": 0,
        "due_ms": None,
        "attempts": 0,
        "push_id": b"",
        "pushed_at": 0,
        "ended": "",
        "ended_reason": "",
        "delivered_at": 0,
    }
    return MovedToken(**(values | changes))


def queue(number: int, sent: int | None, place: int | None = None) -> MovedQueue:
    newest = MovedNotification(1, number, NOW + number // 3, b"n" * 24, b"%d" % number, sent or 0)
    notification = None if sent is None else newest
    name, id_ = b"queue%03d" % number, b"subscription%03d" % number
    at = number + 1 if place is None else place
    return MovedQueue(ADDRESS, name, id_, b"key", b"", "ACTIVE", "", False, NOW, at, notification)


async def written(nodes: Nodes, *moved: Moved) -> None:
    portable = await PortableRedis.open(await nodes.database(), MASTER, make=True)
    await write(portable, *moved)


async def write(portable: PortableRedis, *moved: Moved) -> None:
    await portable.begin(MARK)
    assert isinstance(portable._writing, Writing)
    await portable.write_servers([server_record()])
    await portable.write(moved, MARK)
    await portable.write(moved, MARK)  # once more, as after a kill
    await portable.end(0)
    await portable.close()


async def test_the_oldest_go_out_first_and_what_comes_then_is_behind_them(nodes: Nodes) -> None:
    now = int(nodes.clock.wall())
    queues = [queue(n, 0) for n in range(9)]
    shifted = tuple(
        MovedQueue(*(*_values(q)[:-1], MovedNotification(1, n, now - 9 + n // 3, b"n" * 24, b"old", 0)))
        for n, q in enumerate(queues)
    )
    await written(nodes, Moved(token(due_ms=(now - 9) * 1000), shifted))
    store = await nodes.open()
    session = await acquire(store)
    await notify(store, session, (b"queue001", b"new"))
    [claim] = (await store.take(Provider.APNS, anywhere()[Provider.APNS])).claims
    said = [(e.notifier_id, e.meta) for e in claim.entries]
    assert said == [(b"queue%03d" % n, b"old") for n in (0, 2, 3, 4, 5, 6)]


def _values(record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in record.__struct_fields__)


async def test_a_token_with_many_queues_has_them_all(nodes: Nodes, server: Server) -> None:
    portable = await PortableRedis.open(await nodes.database(), MASTER, make=True)
    with measured(server, portable._database, {"put_token", "put_queues"}) as costs:
        await write(portable, Moved(token(), tuple(queue(n, n % 3) for n in range(350))))
    assert [len(costs[name]) for name in ("put_token", "put_queues")] == [8, 8]
    assert max(costs["put_token"] + costs["put_queues"]) < 600
    store = await nodes.open()
    assert await store.subscription_count() == 350
    names = store._node.names
    assert await ask(store, b"SCARD", names.queues_of(b"t" * 24)) == 350
    last = [b"\0\x10" + queue_on(SMP, b"queue%03d" % n).packed for n in range(334, 350, 3)]
    kept = await ask(store, b"HGET", names.token(b"t" * 24), b"q")
    first = [b"\0\x10" + queue_on(SMP, b"queue%03d" % n).packed for n in range(0, 48, 3)]
    assert kept == struct.pack(">ddIB", 0, NOW, 117, 16) + b"".join(first + last)
    session = await acquire(store)
    assert len((await store.page(session, None, 1000)).wanted) == 350


async def test_new_queues_come_behind_those_that_were_moved(nodes: Nodes) -> None:
    await written(nodes, Moved(token(), (queue(1, None, place=7_000_000_000),)))
    store = await nodes.open()
    assert await ask(store, b"HGET", store._node.names.server(server_id(SMP)), b"number") == b"7000000000"


async def test_the_origin_is_hashed_with_the_new_key(nodes: Nodes) -> None:
    await written(nodes, Moved(token(Provider.WEB_PUSH, due_ms=NOW * 1000), ()))
    store = await nodes.open()
    [lane] = await store._node.fields(b"t" * 24, [b"l"])
    sealer: Sealer = store._node.state.sealer
    assert lane == b"WP" + sealer.origin("https://push.example.org")


async def test_nothing_of_it_stands_in_the_clear(nodes: Nodes, server: Server) -> None:
    secret = b"a secret of nobody's else"
    secrets = dict.fromkeys(("device_token", "client_dh", "server_private", "server_dh", "secret", "code"), secret)
    await written(nodes, Moved(token(**secrets), ()))
    server.ask("CONFIG", "SET", "rdbcompression", "no")
    for key in server.ask("KEYS", "*"):
        assert secret not in (server.ask("DUMP", key) or b"")
