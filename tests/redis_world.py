"""Small scripts that tests of the layer to Redis run, and a database that is closed for sure."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis_servers import HOST, Server

from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.redis.call import Call, Word
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.script import Script
from ntf_server.store.redis.url import parse_redis_url

ECHO = Script("echo", "#!lua flags=no-writes\nreturn ARGV[1]")
PUT = Script("put", "redis.call('SET', KEYS[1], ARGV[1]) return ARGV[1]")
GET = Script("get", "#!lua flags=no-writes\nreturn redis.call('GET', KEYS[1])")
COUNT = Script("count", "redis.call('SADD', KEYS[1], ARGV[1]) return redis.call('SCARD', KEYS[1])")  # each id once
DROP = Script("drop", "#!lua flags=allow-oom\nreturn redis.call('DEL', KEYS[1])")
FAIL = Script("fail", "return redis.error_reply(ARGV[1])")
BROKEN = Script("broken", "return nothing.there")
PUT_BOTH = Script("put both", "redis.call('SET', KEYS[1], 1) redis.call('SET', KEYS[2], 1) return 2")


def echo(word: Word, key: bytes = b"k") -> Call:
    return Call(ECHO, [key], [word])


def count(key: bytes, number: int) -> Call:
    return Call(COUNT, [key], [number])


def sent(database: Database) -> int:
    """Pipelines until now, to primaries that are so still."""
    return sum(primary.pipelines for primary in database._primaries.values())


async def in_the_end(database: Database, call: Call) -> Any:
    """Asked for until it is available again, as callers do."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await database.run(call)
            except StoreUnavailableError:
                continue


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Database]:
    database = await Database.open(parse_redis_url(url), **options)
    try:
        yield database
    finally:
        async with asyncio.timeout(5):
            await database.close()


@asynccontextmanager
async def front(server: Server, context: ssl.SSLContext, shown: list[int] | None = None) -> AsyncIterator[int]:
    """A port that speaks TLS and hands what is in it to the server; as operators do with stunnel. `shown`: gets the
    serial numbers of clients' certificates.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if shown is not None:
            shown.append(int(writer.get_extra_info("peercert")["serialNumber"], 16))
        inner_reader, inner_writer = await asyncio.open_connection(HOST, server.port)
        for ends in ((reader, inner_writer), (inner_reader, writer)):
            tasks.add(asyncio.create_task(pump(*ends)))

    listening = await asyncio.start_server(accept, HOST, 0, ssl=context)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
