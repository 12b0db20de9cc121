"""Servers for tests of the layer under the engine."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis_servers import Cluster, Replicated, Server, programs
from redis_stores import Nodes
from redis_world import opened

from ntf_server.store.redis.database import Database
from ntf_server.store.redis.engine import RedisStore


@pytest.fixture(scope="session", params=programs(), ids=lambda path: path.name)
def shared_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), program=request.param) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """One that nothing is done to but what can be taken back."""
    for name, value in (("maxmemory", 0), ("maxmemory-policy", "noeviction"), ("min-replicas-to-write", 0)):
        shared_server.ask("CONFIG", "SET", name, value)
    shared_server.ask("FLUSHALL")
    shared_server.ask("SCRIPT", "FLUSH")
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """One that anything may be done to."""
    with Server(tmp_path / "server") as server:
        yield server


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), replicas=0) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """Three primaries that keep their slots and live on."""
    for node in shared_cluster.nodes:
        node.ask("FLUSHALL")
        node.ask("SCRIPT", "FLUSH")
    return shared_cluster


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """With a replica of each."""
    with Cluster(tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[Replicated]:
    with Replicated(tmp_path / "replicated") as replicated:
        yield replicated


@pytest.fixture
async def database(server: Server) -> AsyncIterator[Database]:
    async with opened(server.url) as database:
        yield database


@pytest.fixture
async def nodes(server: Server) -> AsyncIterator[Nodes]:
    nodes = Nodes(server.url)
    yield nodes
    await nodes.close()


@pytest.fixture
async def store(nodes: Nodes) -> RedisStore:
    """The only node."""
    return await nodes.open()
