"""A server that shakes hands and leaves the rest to the test."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from smp_bridge.address import Scheme, ServerAddress
from smp_bridge.connecting import connect
from smp_bridge.handshake import (
    Versions,
)
from smp_bridge.identity import Credentials
from smp_bridge.tls import TlsFactory
from smp_bridge.transmission import Session
from smp_bridge.transport import (
    BlockConnection,
    accept,
    serve,
)


@dataclass
class Listener:
    """A server that shakes hands and leaves the rest to the test."""

    address: ServerAddress
    accepted: asyncio.Queue[tuple[BlockConnection, Session]] = field(default_factory=asyncio.Queue)
    failed: asyncio.Queue[Exception] = field(default_factory=asyncio.Queue)

    async def pair(self) -> tuple[BlockConnection, BlockConnection]:
        """(client's, server's) side of a new connection."""
        client, _ = await connect(self.address)
        return client, (await self.accepted.get())[0]


@contextlib.asynccontextmanager
async def listen(
    credentials: Credentials | None = None,
    scheme: Scheme = "smp",
    versions: Versions | None = None,
    timeout: float = 10.0,
    tls: TlsFactory | None = None,
) -> AsyncIterator[Listener]:
    credentials = credentials or Credentials.generate("ED25519", "localhost")[0]
    tasks: set[asyncio.Task[None]] = set()
    connections: list[BlockConnection] = []

    async def run(connection: BlockConnection) -> None:
        try:
            session = await accept(connection, credentials, versions=versions, timeout=timeout)
        except Exception as e:
            connection.abort()
            out.failed.put_nowait(e)
        else:
            out.accepted.put_nowait((connection, session))

    def on_connected(connection: BlockConnection) -> None:
        connections.append(connection)
        task = asyncio.create_task(run(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await serve(scheme, credentials, on_connected, "127.0.0.1", 0, tls=tls)
    port = str(server.sockets[0].getsockname()[1])
    out = Listener(ServerAddress(scheme, ("localhost",), port, credentials.key_hash))
    try:
        yield out
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        for connection in connections:
            connection.abort()


async def exchange(client: BlockConnection, server: BlockConnection) -> None:
    client.send(b"ping")
    assert await server.receive() == b"ping"
    server.send(b"pong")
    assert await client.receive() == b"pong"
