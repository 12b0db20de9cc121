"""The line that docs/how-to/many-nodes.md gives for an ACL user is enough, and no wider than it says."""

import re
from pathlib import Path

import pytest
from redis_media import RedisMedium
from redis_servers import Cluster, Server

from ntf_server.store.redis import engine
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


async def test_it_is_enough_in_a_cluster(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.ask("ACL", "SETUSER", "relay", *rules())
    await run(CHECKS[0], RedisMedium(cluster.url.replace("redis+cluster://", "redis+cluster://relay:sesame@")))
