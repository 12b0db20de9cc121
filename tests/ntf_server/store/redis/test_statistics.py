"""Statistics of days in the Redis store, of several nodes; the rest: `store_suite.statistics`."""

from redis_stores import Nodes

from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.statistics import by_day, own_row, shared_row
from ntf_server.testing.store_suite.medium import new_token, register

DAY = "2027-01-15"


async def test_each_node_has_its_row_and_all_one_together(nodes: Nodes, store: RedisStore) -> None:
    other = await nodes.open("two")
    assert (store.statistics.node, other.statistics.node) == ("one", "two")
    for node, count in ((store, 3), (other, 4)):
        await node.statistics.keep(own_row(DAY, node.statistics.node), {"count": count})
        await node.statistics.keep(shared_row(DAY), {"level": count})
    for node in (store, other):
        assert by_day(await node.statistics.rows()) == {DAY: {"count": 7, "level": 4}}


async def test_one_that_comes_back_under_its_name_goes_on(nodes: Nodes, store: RedisStore) -> None:
    await store.statistics.keep(own_row(DAY, "one"), {"count": 3})
    await nodes.kill(store)
    again = await nodes.open("one")
    assert await again.statistics.kept(own_row(DAY, again.statistics.node)) == {"count": 3}


async def test_all_tokens_can_be_counted_by_any_node(nodes: Nodes, store: RedisStore) -> None:
    other = await nodes.open("two")
    await nodes.pass_(60, store, other)
    for n in range(20):
        await register(store, new_token(n))
    for node in (store, other):
        counted, cursor = await node.census(None, 1000, everywhere=True)
        assert cursor is None and counted.tokens == {("AP", "REGISTERED"): 20}
