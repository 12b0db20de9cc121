"""A stranger's own SMP server, which is what he wants it to be."""

import asyncio
from typing import Any, Final

import smp_load

from smp_bridge.address import ServerAddress
from smp_bridge.tls import SslTls, server_context
from smp_bridge.transport import HANDSHAKE_TIMEOUT, BlockConnection, Scratch


class Tarpit(asyncio.Protocol):
    """Takes the connection, and says nothing; `on_accepted` is called with it."""

    def __init__(self, held: set[asyncio.BaseTransport]) -> None:
        self._held = held
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """One more."""
        self._transport = transport
        self._held.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """One less."""
        assert self._transport is not None
        self._held.discard(self._transport)


class OwnSmp(smp_load.SmpLoad):
    """A server that takes every NSUB of its queues, or, while it `hangs`, says nothing to new connections."""

    def __init__(self, queues: int) -> None:
        super().__init__(1, queues, services=False)
        self.hangs = False
        self.held: set[asyncio.BaseTransport] = set()
        self.port = 0

    async def listen(self, host: str) -> None:
        """On any port."""
        [server] = self._servers
        context, scratch = server_context("smp", self._credentials), Scratch()

        def connected(connection: BlockConnection) -> None:
            task = asyncio.create_task(self._run(server, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        def accepted() -> Any:
            if self.hangs:
                return Tarpit(self.held)
            return BlockConnection("smp", SslTls(context, server_side=True), connected, HANDSHAKE_TIMEOUT, scratch)

        listening = await asyncio.get_running_loop().create_server(accepted, host, 0, backlog=4096)
        self._listening.append(listening)
        self.port = listening.sockets[0].getsockname()[1]

    def address(self, host: str) -> ServerAddress:
        """By this name of it."""
        return ServerAddress("smp", (host,), str(self.port), self._credentials.key_hash)


async def tarpit(host: str, held: set[asyncio.BaseTransport]) -> int:
    """A port that takes connections and says nothing, as long as the loop runs."""
    server = await asyncio.get_running_loop().create_server(lambda: Tarpit(held), host, 0, backlog=4096)
    _open.append(server)
    port: int = server.sockets[0].getsockname()[1]
    return port


_open: Final[list[asyncio.Server]] = []
