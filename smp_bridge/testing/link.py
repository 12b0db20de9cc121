"""Connections in memory, without sockets: for event loops whose time is virtual, and for nets that are slow at will."""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from smp_bridge.address import ServerAddress
from smp_bridge.connecting import AtOnce, Turn, shake_hands
from smp_bridge.handshake import ServiceCredentials, Versions
from smp_bridge.network import Network, Route
from smp_bridge.testing.server import SmpServer
from smp_bridge.tls import SslTls, client_context
from smp_bridge.transmission import Session
from smp_bridge.transport import BlockConnection, Scratch

_WINDOW: Final = 2**18  # bytes on their way or not read, from which on the writer is to pause


class _End(asyncio.Transport):
    """One end. What is written arrives `latency` seconds later, in order, while the reader does not pause."""

    peer: "_End"

    def __init__(self, protocol: asyncio.BufferedProtocol, latency: float, host: str) -> None:
        super().__init__({"peername": (host, 0)} if host else {})
        self._protocol = protocol
        self._latency = latency
        self._under_way: deque[bytes] = deque()  # to this end; b"": the other closed
        self._arrived: deque[bytes] = deque()
        self._size = 0  # of both
        self._paused = False
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        if self._closing or not data:
            return
        self.peer._send(bytes(data))
        if self.peer._size >= _WINDOW:
            self._protocol.pause_writing()

    def _send(self, data: bytes) -> None:
        self._under_way.append(data)
        self._size += len(data)
        asyncio.get_running_loop().call_later(self._latency, self._arrive)

    def _arrive(self) -> None:
        self._arrived.append(self._under_way.popleft())  # timers of the same moment come in any order
        self._read()

    def _read(self) -> None:
        while self._arrived and not self._paused and not self._closing:
            data = self._arrived.popleft()
            if not data:
                self._protocol.eof_received()
                self.close()
                return
            buffer = memoryview(self._protocol.get_buffer(len(data)))
            count = min(len(data), len(buffer))
            if count < len(data):
                self._arrived.appendleft(data[count:])
            self._size -= count
            buffer[:count] = data[:count]
            self._protocol.buffer_updated(count)
        if self._size < _WINDOW and not self.peer._closing:
            self.peer._protocol.resume_writing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Who is told from now on."""
        assert isinstance(protocol, asyncio.BufferedProtocol)
        self._protocol = protocol

    def pause_reading(self) -> None:
        """Let what arrives wait."""
        self._paused = True

    def resume_reading(self) -> None:
        """Hand on what waits."""
        self._paused = False
        asyncio.get_running_loop().call_soon(self._read)

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closing

    def close(self) -> None:
        """Close; what was written arrives."""
        if not self._closing:
            self._closing = True
            self.peer._send(b"")
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        """As `close`."""
        self.close()


def link(one: asyncio.BufferedProtocol, other: asyncio.BufferedProtocol, latency: float = 0.0, host: str = "") -> None:
    """Connect two ends, `latency` seconds apart. `host`: the address that they see of each other."""
    ends = _End(one, latency, host), _End(other, latency, host)
    ends[0].peer, ends[1].peer = ends[1], ends[0]
    for end in ends:
        end._protocol.connection_made(end)


class Links:
    """How in-memory servers are connected to: `Links(server).connect` is a `connecting.Connect`.

    The servers need not be started. `latency`: seconds in one direction; `down`: servers that refuse connections.
    """

    def __init__(self, *servers: SmpServer, latency: float = 0.0) -> None:
        self._servers = {server.address: server for server in servers}
        self.latency = latency
        self.down: set[ServerAddress] = set()

    async def connect(
        self,
        address: ServerAddress,
        *,
        context: ssl.SSLContext | None = None,
        versions: Versions | None = None,
        service: ServiceCredentials | None = None,
        network: Network | None = None,
        scratch: Scratch | None = None,
        clock: Callable[[], float] = time.time,
        turn: Turn | None = None,
    ) -> tuple[BlockConnection, Session]:
        """See `connecting.connect`; of `network` only the time limit counts. Raises ConnectionRefusedError too.

        Each host is a prefix of its own.
        """
        turn, host, limit = turn or AtOnce(), address.hosts[0], (network or Network()).connect_timeout
        route = Route(host, address.port_number, prefixes=(host,), destinations=(host,))
        async with turn.connecting(route), asyncio.timeout(limit):
            if address not in self._servers or address in self.down:
                await asyncio.sleep(2 * self.latency)
                raise ConnectionRefusedError("there is no such server")
            tls = SslTls(context or client_context("smp"))
            connection = BlockConnection("smp", tls, handshake_timeout=limit, scratch=scratch)
            link(connection, self._servers[address].protocol(), self.latency)
            session = await shake_hands(connection, address, versions, service, clock())
        turn.reached(host)
        return connection, session
