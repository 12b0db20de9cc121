"""Streams as they grow, through what may happen to who has them."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.crc import key_slot
from redis_servers import Cluster, Server
from redis_world import opened

from ntf_server.store.contract import StoreConflictError, StoreUnavailableError
from ntf_server.store.redis.database import Bounds, Database
from ntf_server.store.redis.streams import Entry, StreamReader

BEGINNING = b"0-0"


async def add(database: Database, key: bytes, number: int) -> bytes:
    told: bytes = await database.command(b"XADD", key, b"%d-1" % number, b"n", number, b"odd\xff", b"\x00", key=key)
    return told


def entry(number: int) -> Entry:
    return Entry(b"%d-1" % number, {b"n": b"%d" % number, b"odd\xff": b"\x00"})


@pytest.fixture
async def reader(database: Database) -> AsyncIterator[StreamReader]:
    reader = database.stream_reader()
    yield reader
    await reader.close()


async def test_what_is_there_comes_at_once(database: Database, reader: StreamReader) -> None:
    for number in (1, 2, 3):
        await add(database, b"s", number)
    await add(database, b"t", 9)
    after = {b"s": b"1-1", b"t": BEGINNING, b"none": BEGINNING}
    assert await reader.read(after, block=0.0) == {b"s": [entry(2), entry(3)], b"t": [entry(9)]}
    assert await reader.read(after, block=5.0, count=1) == {b"s": [entry(2)], b"t": [entry(9)]}


async def test_what_comes_later_is_waited_for(database: Database, reader: StreamReader) -> None:
    waiting = asyncio.create_task(reader.read({b"s": BEGINNING}, block=10.0))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await add(database, b"s", 1)  # not held up by who waits
    assert await waiting == {b"s": [entry(1)]}


async def test_nothing_comes(database: Database, reader: StreamReader) -> None:
    async with asyncio.timeout(5):
        assert await reader.read({b"s": BEGINNING}, block=0.1) == {}
        assert await reader.read({b"s": BEGINNING}, block=0.0) == {}


async def test_who_is_cancelled_can_read_on(database: Database, reader: StreamReader) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read({b"s": BEGINNING}, block=10.0)
    await add(database, b"t", 1)
    await add(database, b"s", 2)
    assert await reader.read({b"t": BEGINNING}, block=1.0) == {b"t": [entry(1)]}


async def test_a_key_that_is_no_stream(database: Database, reader: StreamReader) -> None:
    await database.command(b"SET", b"k", 1, key=b"k")
    with pytest.raises(StoreConflictError, match="XREAD: WRONGTYPE"):
        await reader.read({b"k": BEGINNING}, block=1.0)


async def test_a_server_that_is_started_again(own_server: Server) -> None:
    async with opened(own_server.url) as database:
        reader = database.stream_reader()
        waiting = asyncio.create_task(reader.read({b"s": BEGINNING}, block=10.0))
        await asyncio.sleep(0.1)
        own_server.restart()
        await add(database, b"s", 1)
        assert await waiting == {b"s": [entry(1)]}
        await reader.close()


async def test_a_server_that_is_gone(own_server: Server) -> None:
    async with opened(own_server.url, bounds=Bounds(limit=0.3)) as database:
        reader = database.stream_reader()
        own_server.kill()
        with pytest.raises(StoreUnavailableError, match=own_server.address):
            await reader.read({b"s": BEGINNING}, block=0.1)
        await reader.close()


async def test_who_still_reads_is_told_of_the_end(database: Database) -> None:
    reader = database.stream_reader()
    waiting = asyncio.create_task(reader.read({b"s": BEGINNING}, block=10.0))
    await asyncio.sleep(0.1)
    await database.close()
    with pytest.raises(StoreConflictError, match="closed"):
        await waiting


async def test_a_stream_moves_to_another_node(cluster: Cluster) -> None:
    key = next(cluster.keys_of(cluster.primaries[0]))
    slot, source, to = key_slot(key), cluster.primaries[0], cluster.primaries[1]
    async with opened(cluster.url) as database:
        reader = database.stream_reader()
        seen: list[Entry] = []

        async def follow() -> None:
            while len(seen) < 40:
                after = seen[-1].id if seen else BEGINNING
                seen.extend((await reader.read({key: after}, block=0.5)).get(key, []))

        following = asyncio.create_task(follow())
        try:
            for number in range(1, 41):
                match number:
                    case 10:
                        cluster.begin_move(slot, source, to)
                    case 20:
                        cluster.move_keys(slot, source, to, 10)
                    case 30:  # all that came until now is there already, and asked for there
                        async with asyncio.timeout(3):
                            while len(seen) < 29:
                                await asyncio.sleep(0.01)
                        cluster.end_move(slot, source, to)
                await add(database, key, number)
                await asyncio.sleep(0.02)
            async with asyncio.timeout(10):
                await following
            assert seen == [entry(number) for number in range(1, 41)]
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            cluster.move(slot, to, source)
            await reader.close()
