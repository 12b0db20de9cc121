"""Where the conformance suite tries Redis: a prefix of its own on a real server."""

import itertools
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter
from ntf_server.store import clock, contract, memory
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import BUCKETS, Names
from ntf_server.store.redis.rows import queue, registration, row
from ntf_server.store.redis.url import parse_redis_url
from ntf_server.store.sealing import MasterKey
from ntf_server.testing.store_suite import ManualClock, Times

MASTER = MasterKey(b"a master key of thirty-two bytes")
_numbers = itertools.count()


class RedisMedium:
    """`url` without options. After a kill a node's connections are closed, and nothing else is done."""

    shared = True

    def __init__(self, url: str) -> None:
        self._prefix = f"suite{next(_numbers)}"
        self._url = url
        self._metrics: WeakKeyDictionary[object, Metrics] = WeakKeyDictionary()
        self._names = Names(self._prefix)
        self._nodes: dict[object, str] = {}  # that are open, and their names

    async def open(self, manual: ManualClock, times: Times) -> contract.Store:
        metrics = Metrics()
        name = next(n for n in ("one", "two", "three") if n not in self._nodes.values())
        database = await Database.open(parse_redis_url(f"{self._url}?prefix={self._prefix}"))
        store = await RedisStore.open(
            database,
            master_key=MASTER,
            times=memory.Times(times.message_ttl, times.verification_ttl, times.spacing, silent_ttl=times.silent_ttl),
            clock=clock.Clock(manual.wall, manual.steady),
            metrics=metrics,
            name=name,
            buckets=BUCKETS,
        )
        self._nodes[store] = name
        close = store.close

        async def close_and_forget() -> None:
            self._nodes.pop(store, None)
            await close()

        store.close = close_and_forget  # type: ignore[method-assign]
        self._metrics[store] = metrics
        return store

    async def kill(self, store: Any) -> None:
        for task in list(store._tasks):
            task.cancel()
        await store._node.database.close()
        self._nodes.pop(store, None)

    async def damage_token(self, store: Any, token_id: bytes) -> None:
        database, key = store._node.database, self._names.token(token_id)
        [packed] = await database.command(b"HMGET", key, b"r", key=key)
        old = registration(packed)
        bad = msgspec.structs.replace(
            old, **{n: bytes(len(getattr(old, n))) for n in ("device_token", "client_dh", "server_dh", "secret")}
        )
        await database.command(b"HSET", key, b"r", msgspec.msgpack.encode(bad), b"c", bytes(60), key=key)

    async def damage_subscription(self, store: Any, subscription_id: bytes) -> None:
        database, index = store._node.database, self._names.subscription(subscription_id)
        ref = queue(await database.command(b"HGET", index, subscription_id, key=index))
        key = self._names.bucket(ref.server, self._names.bucket_number(ref.notifier_id)) + b":q"
        record = await database.command(b"HGET", key, ref.notifier_id, key=key)
        size = len(row(record).key)
        await database.command(b"HSET", key, ref.notifier_id, record[:-size] + bytes(size), key=key)

    async def expired(self, store: Any) -> int:
        kinds = KindCounter.EXPIRED.kinds
        return round(sum(self._metrics[store].value(KindCounter.EXPIRED, kind) for kind in kinds))

    async def close(self) -> None:
        pass  # the next test empties the server
