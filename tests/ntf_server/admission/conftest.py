"""Nodes of a store that they share, for budgets that are counted in it."""

from collections.abc import AsyncIterator, Iterator

import pytest
from redis_servers import Server
from redis_stores import Nodes

from ntf_server.store.redis.engine import RedisStore


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
async def nodes(server: Server) -> AsyncIterator[Nodes]:
    server.ask("FLUSHALL")
    nodes = Nodes(server.url)
    yield nodes
    await nodes.close()


@pytest.fixture
async def two(nodes: Nodes) -> tuple[RedisStore, RedisStore]:
    return await nodes.open("one"), await nodes.open("two")
