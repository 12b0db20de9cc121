"""The conformance suite on Redis: one server, and a cluster."""

from typing import Any

import pytest
from redis_media import RedisMedium
from redis_servers import Cluster, Server

from ntf_server.testing.store_suite import Check, checks, name, run


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
