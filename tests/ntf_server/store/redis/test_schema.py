"""What makes a Redis this store: made once, whoever comes first; another one is refused with one line."""

import asyncio
from typing import Any

import pytest
from redis_stores import MASTER, How, Nodes, ask, fault, patched

from ntf_server.store.contract import StoreConflictError
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import Names
from ntf_server.store.redis.schema import MARK, SCHEMA, identify, look
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


@pytest.mark.parametrize("schema", [b"4", b"2", b"0", b"12345"])
async def test_another_schema_is_refused(nodes: Nodes, store: RedisStore, schema: bytes) -> None:
    await ask(store, b"HSET", store._node.names.store, b"schema", schema)
    with pytest.raises(StoreConflictError) as caught:
        await nodes.open("two")
    whose = "a newer" if int(schema) > SCHEMA else "an older"
    begins = f"{nodes._url}: the store is of {whose} ntf-server (schema {int(schema)}, this one has {SCHEMA}); "
    assert str(caught.value).startswith(begins) and "\n" not in str(caught.value)
    for rubbish in ([b"HDEL", b"schema"], [b"HSET", b"schema", b"x"]):
        await ask(store, rubbish[0], store._node.names.store, *rubbish[1:])
        with pytest.raises(StoreConflictError, match="is no relay's store"):
            await nodes.open("two")


async def test_one_that_is_being_filled_is_refused(nodes: Nodes, store: RedisStore) -> None:
    await ask(store, b"HSET", store._node.names.store, MARK, b"mark")
    with pytest.raises(StoreConflictError, match="being filled by `ntf-server migrate`"):
        await nodes.open("two")
    found = await look(store._node.database, store._node.names, MASTER)
    assert found is not None and found.mark == b"mark"


async def test_one_that_is_about_to_be_filled_while_a_node_starts_is_refused(nodes: Nodes, store: RedisStore) -> None:
    """Who lives is seen by whoever fills it; so a node looks once more when it is seen."""
    database, names = await nodes.database(), store._node.names
    run, asked = database.run, list[str]()

    async def run_one(call: Call) -> Any:
        answer = await run(call)
        asked.append(call.script.name)
        if call.script.name == "clock":
            await ask(store, b"HSET", names.store, MARK, b"mark")
        return answer

    with patched(database, run=run_one), pytest.raises(StoreConflictError, match="being filled"):
        await RedisStore.open(database, master_key=MASTER, name="two")
    assert asked.count("make") == 2
    assert await ask(store, b"ZSCORE", names.nodes, b"two") is None
    await database.close()


async def test_nothing_is_no_store(nodes: Nodes) -> None:
    database = await nodes.database()
    assert await look(database, Names(nodes.prefix), MASTER) is None
    await database.close()


async def test_another_master_key_is_refused(nodes: Nodes, store: RedisStore) -> None:
    with pytest.raises(WrongMasterKeyError) as caught:
        await nodes.open("two", master=MasterKey(b"another key of thirty-two bytes."))
    assert "\n" not in str(caught.value)
    await ask(store, b"HSET", store._node.names.store, b"key", b"rubbish")
    with pytest.raises(SealingError, match="7 bytes instead of"):
        await nodes.open("two")
