"""A Redis as a whole: whose it is, whether somebody uses it, and kept from nodes while it is not all there."""

import asyncio
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from moving import MARK, contents, copied, keeps, mixed, read
from redis_servers import Cluster, Server
from redis_stores import MASTER, Nodes, ask
from store_world import acquire

from ntf_server.store.contract import StoreConflictError, StoreError, StoreUnavailableError
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import Names
from ntf_server.store.redis.portable import LIVES, PortableRedis
from ntf_server.store.redis.url import parse_redis_url
from ntf_server.store.sealing import MasterKey, WrongMasterKeyError


async def opened(nodes: Nodes, *, make: bool = True, shards: int | None = None) -> PortableRedis:
    return await PortableRedis.open(await nodes.database(), MASTER, shards=shards, make=make)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents())
async def test_what_is_written_is_read(server: Server, cluster: Cluster, content: Any) -> None:
    for at in (server, cluster):
        for one in getattr(at, "nodes", [at]):
            one.ask("FLUSHALL")
        database = await Database.open(parse_redis_url(at.url))
        store = await PortableRedis.open(database, MASTER, shards=3, make=True)
        await keeps(store, content)
        await store.close()


async def test_writing_it_twice_changes_nothing(nodes: Nodes) -> None:
    store = await nodes.open(manual=False)
    await mixed(store)
    await store.close()
    source, other = await opened(nodes), Nodes(nodes._url, "copy")
    copy = await opened(other)
    before = await read(source)
    await copy.begin(MARK)
    for _ in range(2):
        await copied(source, copy)
    mark = await copy.mark()
    assert mark is not None and mark.cursor is None
    assert await read(copy) == before
    await copy.end(0)
    assert await copy.mark() is None
    for each in (source, copy):
        await each.close()


async def test_while_it_is_filled_no_node_starts(nodes: Nodes) -> None:
    store = await opened(nodes)
    await store.begin(MARK)
    assert await store.mark() == MARK
    await store.begin(MARK)  # once more, as when its answer did not arrive
    for attempt in (nodes.open(), opened(nodes, make=False)):
        with pytest.raises(StoreConflictError, match="being filled by `ntf-server migrate`"):
            await attempt
    await store.end(0)
    await store.end(0)  # as that
    assert await ask_all(nodes, store._names.store) == {b"id", b"schema", b"shards", b"buckets", b"key"}
    await nodes.open()
    await store.close()


async def ask_all(nodes: Nodes, key: bytes) -> set[bytes]:
    """Names of a hash's fields."""
    database = await nodes.database()
    fields: list[bytes] = await database.command(b"HKEYS", key, key=key)
    await database.close()
    return set(fields)


async def test_one_process_fills_it_at_a_time(nodes: Nodes) -> None:
    """Whoever comes second is refused as soon as the first was heard of once more; when that has ended, it goes on."""
    first, second = await opened(nodes), await opened(nodes)
    await first.begin(MARK)
    for attempt in (second.begin(MARK), second.take_over()):
        with pytest.raises(StoreConflictError, match="another `ntf-server migrate` is filling this store") as caught:
            await attempt
        assert "\n" not in str(caught.value)
    await first.write([], MARK)
    await first.close()
    async with asyncio.timeout(1):
        await second.take_over()
    await second.write([], MARK)
    await second.end(0)
    await second.close()


async def kill(store: PortableRedis) -> None:
    """Nobody hears of it any more."""
    assert store._living is not None
    store._living.cancel()
    await asyncio.wait([store._living])


async def test_who_was_killed_is_waited_for_and_writes_nothing_more(nodes: Nodes) -> None:
    first, second = await opened(nodes), await opened(nodes)
    await first.begin(MARK)
    await kill(first)
    began = time.monotonic()
    await second.take_over()
    assert time.monotonic() - began < LIVES + 1
    with pytest.raises(StoreConflictError, match="fills it by now"):
        await first.write([], MARK)
    with pytest.raises(StoreConflictError, match="is filling this store"):
        await first.end(0)
    await second.write([], MARK)
    await second.end(0)
    with pytest.raises(StoreConflictError, match="or did, and ended"):
        await first.write([], MARK)
    assert await first.mark() is None
    for each in (first, second):
        await each.close()


async def test_where_a_node_lives_nothing_is_read_or_filled(nodes: Nodes, store: RedisStore) -> None:
    portable = await opened(nodes)
    for attempt in (portable.check_idle(), portable.begin(MARK)):
        with pytest.raises(StoreUnavailableError, match="a relay uses this store"):
            await attempt
    assert await portable.mark() is None
    await portable.close()


@pytest.mark.parametrize("left", ["its life", "its leases"])
async def test_a_node_that_was_killed_counts_for_a_while(nodes: Nodes, left: str) -> None:
    store = await nodes.open(manual=False)
    names = store._node.names
    if left == "its leases":
        await ask(store, b"DEL", names.nodes)
    else:
        for shard in names.shards:
            await ask(store, b"DEL", shard)
    await nodes.kill(store)
    portable = await opened(nodes)
    with pytest.raises(StoreUnavailableError, match="one that was killed counts for six seconds"):
        await portable.check_idle()
    await portable.close()


async def test_one_that_has_something_is_not_filled(nodes: Nodes) -> None:
    store = await nodes.open(manual=False)
    await acquire(store)
    await store.close()
    portable = await opened(nodes)
    with pytest.raises(StoreConflictError, match="registrations or servers already"):
        await portable.begin(MARK)
    assert await portable.mark() is None
    await portable.close()


async def test_what_it_is_opened_with(nodes: Nodes) -> None:
    with pytest.raises(StoreError, match="there is no store under the prefix"):
        await opened(nodes, make=False)
    store = await opened(nodes, shards=5)
    assert store.identity == ""
    await store.begin(MARK)
    assert len(store.identity) == 16
    again = await opened(nodes)
    assert again.identity == store.identity
    assert len(again._names.shards) == 5
    with pytest.raises(StoreConflictError, match="has 5 shards, which never changes"):
        await opened(nodes, shards=6)
    with pytest.raises(WrongMasterKeyError):
        await PortableRedis.open(await nodes.database(), MasterKey(b"another key of thirty-two bytes."), make=True)
    for each in (store, again):
        await each.close()


async def test_the_stores_own_clock_is_taken_into_account(nodes: Nodes, server: Server) -> None:
    store = await nodes.open(manual=False)
    await mixed(store)
    await store.close()
    portable = await opened(nodes)
    servers, moved, _ = await read(portable)
    await portable.close()
    names = Names(nodes.prefix)
    for shift in (3600, -3600):
        server.ask("HSET", names.clock, "offset", shift * 1000)
        portable = await opened(nodes)
        assert portable.ahead == shift
        portable.ahead = 0
        assert (await read(portable))[:2] == (servers, moved)
        portable.ahead = shift
        shifted = (await portable.read(b"", 100)).moved
        other = await opened(Nodes(nodes._url, f"shift{shift}"), shards=3)
        other.ahead = shift
        await other.begin(MARK)
        await other.write(shifted, MARK)
        other.ahead = 0  # as they were kept
        again = [one async for one in slices(other)]
        assert {(m.token.token_id, m.token.active_at, m.token.due_ms) for m in again} == {
            (m.token.token_id, m.token.active_at + shift, m.token.due_ms and m.token.due_ms + shift * 1000)
            for m in shifted
        }
        for each in (portable, other):
            await each.close()


async def slices(store: PortableRedis) -> Any:
    cursor: bytes | None = b""
    while cursor is not None:
        slice_ = await store.read(cursor, 100)
        cursor = slice_.cursor
        for one in slice_.moved:
            yield one
