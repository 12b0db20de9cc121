"""What a Redis tells whoever only looks at it."""

import pytest
from redis_servers import Cluster, Server, free_port
from redis_stores import SHARDS, Nodes

from ntf_server.store.contract import StoreError, StoreUnavailableError
from ntf_server.store.pulse import Holding
from ntf_server.store.redis import glance as module
from ntf_server.store.redis.database import Bounds
from ntf_server.store.redis.glance import glance
from ntf_server.store.redis.url import parse_redis_url
from ntf_server.testing.store_suite.medium import acquire, activate, new_token, notify, register, subscribe
from smp_bridge.ntf import Provider


@pytest.mark.parametrize("kind", ["one server", "a cluster"])
async def test_a_store_with_nodes(kind: str, server: Server, cluster: Cluster) -> None:
    """It is not one of them, and takes nothing."""
    url = server.url if kind == "one server" else cluster.url
    nodes = Nodes(url)
    try:
        store = await nodes.open(manual=False)
        await subscribe(store, await activate(store, 1), b"queue")
        await notify(store, await acquire(store), b"queue")
        await register(store, new_token(2, Provider.FCM))
        found = await glance(parse_redis_url(f"{url}?prefix={nodes.prefix}"))
        assert (found.registrations, found.subscriptions, found.nodes) == ({"all": 2}, None, 1)
        assert found.due == {"AP": 1, "FC": 1}
        assert found.oldest_due is not None and 0 <= found.oldest_due < 30
        assert store.pulse.holding() == Holding(SHARDS, SHARDS, silent=0, nodes=1)
    finally:
        await nodes.close()
    assert (await glance(parse_redis_url(f"{url}?prefix={nodes.prefix}"))).nodes == 0


async def test_no_store(server: Server) -> None:
    url = parse_redis_url(f"{server.url}?prefix=nothing")
    with pytest.raises(StoreError, match="there is no store under the prefix nothing; the first start makes one"):
        await glance(url)
    assert server.ask("DBSIZE") == 0
    for schema in ("99", "rubbish" * 10):
        server.ask("HSET", "nothing:{g}:store", "schema", schema)
        with pytest.raises(StoreError, match=f"schema {schema[:20]}, not "):
            await glance(url)
    server.ask("DEL", "nothing:{g}:store")
    server.ask("SET", "nothing:{g}:store", "a string")
    with pytest.raises(StoreError):
        await glance(url)


async def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BOUNDS", Bounds(limit=0.2))
    with pytest.raises(StoreUnavailableError):
        await glance(parse_redis_url(f"redis://127.0.0.1:{free_port()}"))
