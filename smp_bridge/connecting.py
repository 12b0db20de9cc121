"""Connecting to a server: its hosts in turn, TLS, its identity, the handshake (wire.md, sections 3 and 4)."""

import asyncio
import datetime
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge.address import ServerAddress
from smp_bridge.handshake import (
    ClientHandshake,
    HandshakeError,
    IdentityMismatchError,
    ServiceCredentials,
    ServiceRefusedError,
    Versions,
)
from smp_bridge.identity import IdentityError, verify_chain
from smp_bridge.network import Network, Route, find_route, open_socket, prefix_reached
from smp_bridge.tls import SslTls, client_context
from smp_bridge.transmission import Session
from smp_bridge.transport import BlockConnection, Scratch

MAX_HOSTS: Final = 3  # of an address, that are tried: a stranger may have put dozens into it


class Turn(Protocol):
    """Lets one that connects wait until it may, and is told how far it gets."""

    async def route(self, host: str, port: int, network: Network) -> Route:
        """What `find_route` gives, and raises; TimeoutError too."""
        ...

    def connecting(self, route: Route) -> AbstractAsyncContextManager[None]:
        """While it connects. Raises OSError if it may not, TimeoutError if it took too long."""
        ...

    def reached(self, prefix: str) -> None:
        """It did connect, and that is where (`network.prefix`)."""
        ...


class AtOnce:
    """The turn of those that need not wait."""

    async def route(self, host: str, port: int, network: Network) -> Route:
        """See `Turn`."""
        async with asyncio.timeout(network.connect_timeout):
            return await find_route(host, port, network)

    def connecting(self, route: Route) -> AbstractAsyncContextManager[None]:
        """See `Turn`."""
        return nullcontext()

    def reached(self, prefix: str) -> None:
        """See `Turn`."""


class Connect(Protocol):
    """What `connect` does, by whatever means: a simulator's servers have no hosts."""

    async def __call__(
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
        """See `connect`."""
        ...


async def connect(
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
    """Connect to the first of a server's hosts that answers, of the first three, check its identity, shake hands.

    `network` None: directly, to any host. `service` needs a `context` with the same certificates; it is shown where TLS
    asks for one. `clock`: Unix
    seconds, by which certificates are valid.
    Raises OSError (no host answers; of these ssl.SSLError and those of `network`), TimeoutError, HandshakeError;
    IdentityMismatchError when the identity is not the address's, ServiceRefusedError: these end the search.
    """
    network = network or Network(allow_private=True)
    context = context or client_context(address.scheme)
    turn = turn or AtOnce()
    failed: Exception | None = None
    for host in network.hosts(address)[:MAX_HOSTS]:
        try:
            route = await turn.route(host, address.port_number, network)
            async with turn.connecting(route), asyncio.timeout(network.connect_timeout):
                connection, prefix = await _open_connection(address, route, context, network, scratch)
                session = await shake_hands(connection, address, versions, service, clock())
            turn.reached(prefix)
            return connection, session
        except (IdentityMismatchError, ServiceRefusedError):
            raise
        except (OSError, HandshakeError) as e:
            failed = e
    raise failed or OSError("the address has no host")


async def _open_connection(
    address: ServerAddress, route: Route, context: ssl.SSLContext, network: Network, scratch: Scratch | None
) -> tuple[BlockConnection, str]:
    """And where it leads."""
    sock = await open_socket(route, str(address), network.connect_timeout)
    prefix = prefix_reached(route, sock)
    connection = BlockConnection(
        address.scheme, SslTls(context), handshake_timeout=network.connect_timeout, scratch=scratch
    )
    try:
        await asyncio.get_running_loop().create_connection(lambda: connection, sock=sock)
    except BaseException:
        connection.abort()  # its timer runs from the first moment on
        sock.close()
        raise
    return connection, prefix


async def shake_hands(
    connection: BlockConnection,
    address: ServerAddress,
    versions: Versions | None,
    service: ServiceCredentials | None,
    now: float,
) -> Session:
    """TLS, the server's identity, the handshake; a connection for which these fail is aborted. `now`: Unix seconds.

    Raises ssl.SSLError, ConnectionClosedError, HandshakeError (IdentityMismatchError, ServiceRefusedError).
    """
    try:
        await connection.secured()
        _check_identity(connection, address, now)
        return await _agree(connection, address, versions, service)
    except BaseException:
        connection.abort()
        raise


def _check_identity(connection: BlockConnection, address: ServerAddress, now: float) -> None:
    try:
        verify_chain(connection.peer_chain, address.key_hash, datetime.datetime.fromtimestamp(now, datetime.UTC))
    except IdentityError as e:
        raise IdentityMismatchError(str(e)) from e


async def _agree(
    connection: BlockConnection,
    address: ServerAddress,
    versions: Versions | None,
    service: ServiceCredentials | None,
) -> Session:
    handshake = ClientHandshake(
        address.scheme,
        connection.session_id,
        connection.peer_chain,
        address.key_hash,
        X25519PrivateKey.generate(),
        versions=versions,
        service=service if connection.was_asked else None,  # else services are switched off there
    )
    while handshake.session is None:
        answer = handshake.receive(await connection.receive())
        if answer is not None:
            connection.send(answer)
    connection.encrypt(handshake.session)
    return handshake.session
