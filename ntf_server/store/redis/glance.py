"""What a Redis can tell of the store that it has, without being a node of it, and without its key."""

import asyncio
from typing import Any, Final

from ntf_server.store.contract import StoreError
from ntf_server.store.records import Glance
from ntf_server.store.redis.asking import Asking
from ntf_server.store.redis.database import Bounds, Database
from ntf_server.store.redis.names import Names
from ntf_server.store.redis.schema import SCHEMA
from ntf_server.store.redis.url import RedisUrl
from smp_bridge.ntf import Provider

_BOUNDS: Final = Bounds(limit=3.0)
_SHOWN: Final = 20  # characters of what is no schema


async def glance(url: RedisUrl) -> Glance:
    """Raises StoreError: it cannot be reached, or there is no store, or one of another schema."""
    database = await Database.open(url, bounds=_BOUNDS)
    try:
        return await _glance(database)
    finally:
        await database.close()


async def _glance(database: Database) -> Glance:
    async def read(*words: bytes | str | int, key: bytes) -> Any:
        return await database.command(*words, key=key, writes=False)

    names = Names(database.prefix)
    schema, shards = await read(b"HMGET", names.store, b"schema", b"shards", key=names.store)
    if schema is None:
        raise StoreError(
            f"{database.url}: there is no store under the prefix {database.prefix}; the first start makes one"
        )
    if schema != b"%d" % SCHEMA:
        found = schema.decode(errors="replace")[:_SHOWN]
        raise StoreError(f"{database.url}: the store is of another ntf-server (schema {found}, not {SCHEMA})")
    names = Names(database.prefix, int(shards))
    seconds, micros = await read(b"TIME", key=names.clock)
    offset = int(await read(b"HGET", names.clock, b"offset", key=names.clock) or 0)
    now = int(seconds) * 1000 + int(micros) // 1000 + offset
    nodes = await read(b"ZCOUNT", names.nodes, now, b"+inf", key=names.nodes)
    counts = await asyncio.gather(*(read(b"ZCARD", s + b":all", key=s) for s in names.shards))
    asking, parts = Asking(database, names), dict.fromkeys(names.shards, ())
    due: dict[str, int] = {}
    oldest = 0
    for provider in Provider:
        answers = await asking.run_on("backlog", [offset, provider.encode()], parts)
        if count := sum(ready + waiting for ready, waiting, _ in answers):
            due[provider.value] = count
        oldest = max(oldest, *(first for _, _, first in answers))
    return Glance({"all": sum(counts)}, None, due, oldest / 1000 if oldest else None, nodes=int(nodes))
