"""The conformance suite on Redis: one server, and a cluster."""

from typing import Any

import pytest
from redis_media import RedisMedium
from redis_servers import Cluster, Server
from scrape import sample

from ntf_server.observe.names import Histogram
from ntf_server.store.redis.engine import RedisStore
from ntf_server.testing.store_suite import Check, checks, name, run
from ntf_server.testing.store_suite.medium import new_token, register
from smp_bridge.ntf import Provider


@pytest.mark.parametrize("check", checks(shared=True), ids=name)
async def test_on_one_server(check: Check, server: Server) -> None:
    await run(check, RedisMedium(server.url))


QUICK = {"deliveries", "nodes", "queues"}  # of the checks, on a cluster too


def of_cluster() -> list[Any]:
    """All of them, under `scripts/test --all`."""
    mark = pytest.mark.long
    return [
        check if name(check).partition("-")[0] in QUICK else pytest.param(check, marks=mark)
        for check in checks(shared=True)
    ]


@pytest.mark.parametrize("check", of_cluster(), ids=name)
async def test_on_a_cluster(check: Check, cluster: Cluster) -> None:
    await run(check, RedisMedium(cluster.url))


async def test_what_commits_take_is_measured(store: RedisStore) -> None:
    before = sample(store._metrics, f"{Histogram.STORE_COMMIT}_count")
    await store.backlog(Provider.APNS)
    await register(store, new_token())
    assert sample(store._metrics, f"{Histogram.STORE_COMMIT}_count") > before
    assert 0 < sample(store._metrics, f"{Histogram.STORE_COMMIT}_sum") < 10
