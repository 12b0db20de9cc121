"""Several relay processes on one Redis, with one identity, as behind a balancer."""

import contextlib
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import redis
from harness import RelayProcess, environment
from redis_servers import Server

from ntf_server.store.redis.rows import STAMP, queue, split
from ntf_server.testing import MockApns

_SIZE = 2


@dataclass
class Nodes:
    """`nodes`: by their names `node0`, `node1`, …; `url` of the store."""

    directory: Path
    environment: dict[str, str]
    url: str
    nodes: list[RelayProcess] = field(default_factory=list)

    async def init(self, count: int) -> None:
        """Make them; none runs yet."""
        first = self._node(0)
        await first.init()
        for number in range(1, count):
            node = self._node(number)
            shutil.copytree(first.directory, node.directory)
            node.key_hash = first.key_hash

    def _node(self, number: int) -> RelayProcess:
        name = f"node{number}"
        own = {"NTF_SERVER__STORE__URL": self.url, "NTF_SERVER__STORE__NODE": name}
        node = RelayProcess(self.directory / name, self.environment | own, log=self.directory / f"{name}.log")
        self.nodes.append(node)
        return node

    async def start(self) -> None:
        for node in self.nodes:
            await node.start()

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop(signal.SIGKILL)

    def log(self) -> str:
        return "\n".join((self.directory / f"node{n}.log").read_text() for n in range(len(self.nodes)))


@contextlib.asynccontextmanager
async def running(directory: Path, url: str, mock_apns: MockApns, **settings: str) -> AsyncIterator[Nodes]:
    """Two relays on this store; `settings` of its section."""
    store = {f"NTF_SERVER__STORE__{name.upper()}": value for name, value in settings.items()}
    nodes = Nodes(directory, environment(mock_apns) | store, url)
    await nodes.init(2)
    await nodes.start()
    try:
        yield nodes
    finally:
        await nodes.stop()


def kept(*servers: Server, prefix: str = "ntf") -> dict[bytes, tuple[bytes, bool]]:
    """Of each queue, by notifier id, the newest notification's nonce, and if it was sent, as primaries have it."""
    out: dict[bytes, tuple[bytes, bool]] = {}
    for server in servers:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(server.url) as client:
            if client.info("replication")["role"] != "master":
                continue
            for key in client.scan_iter(f"{prefix}:{{t*}}:t:*", count=1000):
                _, notifications = split(client.hgetall(key))
                for name, value in notifications.items():
                    out[queue(name).notifier_id] = _nonce(value), bool(STAMP.unpack_from(value)[3])
    return out


def _nonce(value: bytes) -> bytes:
    at = STAMP.size
    at += _SIZE + int.from_bytes(value[at : at + _SIZE])
    size = int.from_bytes(value[at : at + _SIZE])
    return value[at + _SIZE : at + _SIZE + size]
