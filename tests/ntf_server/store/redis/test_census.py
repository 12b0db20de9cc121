"""What tokens there are, in the Redis store."""

from redis_stores import Nodes

from ntf_server.store.records import Census
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.quarantine import set_aside
from ntf_server.testing.store_suite.medium import new_token, register


async def count(store: RedisStore, limit: int = 7) -> Census:
    counted, cursor = await store.census(None, limit)
    while cursor is not None:
        more, cursor = await store.census(cursor, limit)
        counted.add(more)
    return counted


async def test_those_that_are_set_aside_are_damaged(store: RedisStore) -> None:
    tokens = [await register(store, new_token(n)) for n in range(3)]
    await set_aside(store._node, [tokens[1].token_id])
    assert (await count(store)).tokens == {("AP", "REGISTERED"): 2, ("AP", "damaged"): 1}


async def test_each_node_counts_those_of_its_shards(nodes: Nodes, store: RedisStore) -> None:
    other = await nodes.open("two")
    await nodes.pass_(60, store, other)
    for n in range(40):
        await register(store, new_token(n))
    mine, others = await count(store), await count(other)
    assert 0 < mine.tokens["AP", "REGISTERED"] < 40
    mine.add(others)
    assert mine.tokens == {("AP", "REGISTERED"): 40}
