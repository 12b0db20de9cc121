"""The line that docs/how-to/many-nodes.md gives for an ACL user is enough, and no wider than it says."""

import re
from pathlib import Path

import pytest
from moving import mixed
from redis_media import MASTER, RedisMedium
from redis_servers import Cluster, Server
from redis_stores import Nodes

from ntf_server.store.ledger import Charge, Revision
from ntf_server.store.migrate import migrate
from ntf_server.store.redis import engine
from ntf_server.store.redis.url import parse_redis_url
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing.store_suite import Check, checks, name, run

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "many-nodes.md"
CHECKS = [c for c in checks(shared=True) if c.__module__.rpartition(".")[2] in {"deliveries", "nodes", "services"}]


def rules() -> list[str]:
    """Of the user `relay`, whose password is `sesame`."""
    found = re.search(r"`user relay on >PASSWORD ([^`]+)`", PAGE.read_text())
    assert found is not None
    return ["reset", "on", ">sesame", *found[1].replace("~ntf:", "~*suite*:").split()]


def test_the_engine_is_what_the_page_is_about() -> None:
    assert engine.RedisStore.__module__ == "ntf_server.store.redis.engine"


@pytest.mark.parametrize("check", CHECKS, ids=name)
async def test_it_is_enough(check: Check, server: Server) -> None:
    server.ask("ACL", "SETUSER", "relay", *rules())
    await run(check, RedisMedium(server.url.replace("redis://", "redis://relay:sesame@")))


async def test_it_is_enough_for_what_nodes_count_together(server: Server) -> None:
    server.ask("ACL", "SETUSER", "relay", *rules())
    nodes = Nodes(server.url.replace("redis://", "redis://relay:sesame@"), "suite")
    ledger = (await nodes.open()).ledger
    try:
        paces = ((1.0, 1.0),)
        await ledger.spend([Charge("registrations", 1, ((b"address", 1),), paces, paces, paces)], 20.0)
        for value in (b"kept", None):
            await ledger.revise(bytes(16), lambda _, __, value=value: Revision(value, 60.0, None))
    finally:
        await nodes.close()


async def test_it_is_enough_to_move_a_store(server: Server, tmp_path: Path) -> None:
    server.ask("ACL", "SETUSER", "relay", *rules())
    file = tmp_path / "relay.db"
    store = await SqliteStore.open(file, master_key=MASTER)
    await mixed(store)
    await store.close()
    there = parse_redis_url(f"{server.url.replace('redis://', 'redis://relay:sesame@')}?prefix=suite")
    moved = await migrate(file, there, master_key=MASTER)
    assert (await migrate(there, tmp_path / "back.db", master_key=MASTER)).counts == moved.counts


async def test_it_is_enough_in_a_cluster(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.ask("ACL", "SETUSER", "relay", *rules())
    await run(CHECKS[0], RedisMedium(cluster.url.replace("redis+cluster://", "redis+cluster://relay:sesame@")))
