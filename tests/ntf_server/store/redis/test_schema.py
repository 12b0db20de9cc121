"""What makes a Redis this store: made once, whoever comes first; another one is refused with one line."""

import asyncio

import pytest
from redis_stores import MASTER, How, Nodes, ask, fault

from ntf_server.store.contract import StoreConflictError
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import Names
from ntf_server.store.redis.schema import SCHEMA, identify
from ntf_server.store.sealing import MasterKey, SealingError, WrongMasterKeyError


async def test_many_at_the_same_time_make_one(nodes: Nodes) -> None:
    databases = await asyncio.gather(*(nodes.database() for _ in range(10)))
    found = await asyncio.gather(
        *(identify(d, Names(nodes.prefix, n + 1), MASTER, n + 1) for n, d in enumerate(databases))
    )
    assert len(set(found)) == 1
    assert len(found[0].key) == 32 and len(found[0].store_id) == 16
    for database in databases:
        await database.close()


async def test_it_is_the_same_when_it_is_opened_again(nodes: Nodes) -> None:
    store = await nodes.open()
    database, names = store._node.database, store._node.names
    before = await identify(database, names, MASTER)
    with fault(store, How.TWICE, "make"):
        assert await identify(database, names, MASTER, shards=99) == before


async def test_two_stores_are_two(nodes: Nodes) -> None:
    other = Nodes(nodes._url, "others")
    first, second = await nodes.open(), await other.open()
    found = [await identify(s._node.database, s._node.names, MASTER) for s in (first, second)]
    assert found[0].store_id != found[1].store_id and found[0].key != found[1].key
    await other.close()


@pytest.mark.parametrize("schema", [b"2", b"0", b"12345"])
async def test_another_schema_is_refused(nodes: Nodes, store: RedisStore, schema: bytes) -> None:
    await ask(store, b"HSET", store._node.names.store, b"schema", schema)
    with pytest.raises(StoreConflictError) as caught:
        await nodes.open("two")
    assert str(caught.value) == f"this Redis has schema {int(schema)} of a relay, this one needs {SCHEMA}"
    await ask(store, b"HDEL", store._node.names.store, b"schema")
    with pytest.raises(StoreConflictError, match="has schema None"):
        await nodes.open("two")


async def test_another_master_key_is_refused(nodes: Nodes, store: RedisStore) -> None:
    with pytest.raises(WrongMasterKeyError) as caught:
        await nodes.open("two", master=MasterKey(b"another key of thirty-two bytes."))
    assert "\n" not in str(caught.value)
    await ask(store, b"HSET", store._node.names.store, b"key", b"rubbish")
    with pytest.raises(SealingError, match="7 bytes instead of"):
        await nodes.open("two")
