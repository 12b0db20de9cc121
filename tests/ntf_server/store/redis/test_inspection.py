"""What operators look at in the Redis store; the rest: `store_suite.inspection`."""

import asyncio
from collections import Counter as Tally

from redis_stores import Nodes

from ntf_server.store.inspection import DAMAGED
from ntf_server.store.redis.engine import RedisStore
from ntf_server.testing.store_suite.medium import SMP, activate, new_queue, new_token, register

MANY = 3000  # queues of a server: more than Redis has in one piece, in each of its buckets


async def test_any_node_sees_all_tokens(nodes: Nodes, store: RedisStore) -> None:
    other = await nodes.open("two")
    await nodes.pass_(60, store, other)
    made = {(await register(store, new_token(n))).token_id for n in range(40)}
    for node in (store, other):
        found, after = [], None
        while True:
            some, after = await node.inspection.tokens(after, 7)
            found += some
            if after is None:
                break
        assert sorted(r.token_id for r in found) == sorted(made)


async def test_a_server_with_many_queues_is_counted_little_by_little(store: RedisStore) -> None:
    token = await activate(store)
    for first in range(0, MANY, 500):
        names = (b"%d" % n for n in range(first, first + 500))
        await asyncio.gather(*(store.subscribe(token.ref, new_queue(name)) for name in names))
    counted, slices, after = Tally[str](), 0, None
    while True:
        some, after = await store.inspection.subscriptions(after, 100)
        assert sum(one.statuses.total() for one in some) < 1000
        counted.update(*(one.statuses for one in some if one.server == SMP))
        slices += 1
        if after is None:
            break
    assert counted == {"NEW": MANY} and slices > 10
    assert await store.inspection.statuses(token.ref) == {"NEW": MANY}


async def test_a_registration_that_is_cut_is_damaged(store: RedisStore) -> None:
    token = await register(store, new_token(1))
    node = store._node
    key = node.names.shard(token.token_id)
    await node.database.command(b"HSET", node.names.token(token.token_id), b"r", b"rubbish", key=key)
    [found], after = await store.inspection.tokens(None, 5)
    assert (found.status, found.token_id, after) == (DAMAGED, token.token_id, None)
