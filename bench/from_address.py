"""Connections to a notification server from one address of many: on loopback each client may have its own."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from smp_bridge.address import ServerAddress
from smp_bridge.connecting import shake_hands
from smp_bridge.tls import SslTls, client_context
from smp_bridge.transmission import Session
from smp_bridge.transport import BlockConnection, Scratch

Connection = tuple[BlockConnection, Session]

TIMEOUT: Final = 60.0  # seconds
_BIND_NO_PORT: Final = 24  # IP_BIND_ADDRESS_NO_PORT: the port is chosen by connect, so that ports go further
_context: Final = client_context("ntf")
_scratch: Final = Scratch()


def bound(source: str) -> socket.socket:
    """A socket that will connect from this address."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, _BIND_NO_PORT, 1)
    sock.bind((source, 0))
    return sock


async def open_tcp(source: str, target: ServerAddress) -> socket.socket:
    """A connected socket. Raises OSError."""
    sock = bound(source)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (target.hosts[0], target.port_number))
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_from(source: str, target: ServerAddress, timeout: float = TIMEOUT) -> Connection:
    """A session. Raises what `connecting.connect` raises."""
    async with asyncio.timeout(timeout):
        sock = await open_tcp(source, target)
        connection = BlockConnection("ntf", SslTls(_context), handshake_timeout=timeout, scratch=_scratch)
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, sock=sock)
        except BaseException:
            connection.abort()
            sock.close()
            raise
        return connection, await shake_hands(connection, target, None, None, time.time())


@contextlib.asynccontextmanager
async def session_from(source: str, target: ServerAddress) -> AsyncIterator[Connection]:
    """A session until the block ends. Raises what `connect_from` raises."""
    connection, session = await connect_from(source, target)
    try:
        yield connection, session
    finally:
        connection.abort()


def many_addresses(count: int) -> Callable[[int], str]:
    """The i-th of so many loopback addresses, from 127.66.0.1 on."""

    def address(i: int) -> str:
        high, low = divmod(i % count, 250)
        return f"127.66.{high}.{low + 1}"

    return address
