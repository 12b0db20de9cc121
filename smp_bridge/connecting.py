"""Connecting to a server: its hosts in turn, TLS, its identity, the handshake (wire.md, sections 3 and 4)."""

import asyncio
import datetime
import ssl
import time
from collections.abc import Callable
from typing import Protocol

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
from smp_bridge.network import Network, open_socket
from smp_bridge.tls import SslTls, client_context
from smp_bridge.transmission import Session
from smp_bridge.transport import BlockConnection, Scratch


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
) -> tuple[BlockConnection, Session]:
    """Connect to the first of a server's hosts that answers, check its identity, shake hands.

    `network` None: directly, to any host. `service` needs a `context` with the same certificates. `clock`: Unix
    seconds, by which certificates are valid.
    Raises OSError (no host answers; of these ssl.SSLError and those of `network`), TimeoutError, HandshakeError;
    IdentityMismatchError when the identity is not the address's, ServiceRefusedError: these end the search.
    """
    network = network or Network(allow_private=True)
    context = context or client_context(address.scheme)
    failed: Exception | None = None
    for host in network.hosts(address):
        try:
            async with asyncio.timeout(network.connect_timeout):
                connection = await _open_connection(address, host, context, network, scratch)
                return connection, await shake_hands(connection, address, versions, service, clock())
        except (IdentityMismatchError, ServiceRefusedError):
            raise
        except (OSError, HandshakeError) as e:
            failed = e
    raise failed or OSError("the address has no host")


async def _open_connection(
    address: ServerAddress, host: str, context: ssl.SSLContext, network: Network, scratch: Scratch | None
) -> BlockConnection:
    sock = await open_socket(host, address.port_number, network, str(address))
    connection = BlockConnection(
        address.scheme, SslTls(context), handshake_timeout=network.connect_timeout, scratch=scratch
    )
    try:
        await asyncio.get_running_loop().create_connection(lambda: connection, sock=sock)
    except BaseException:
        connection.abort()  # its timer runs from the first moment on
        sock.close()
        raise
    return connection


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
        service=service,
    )
    while handshake.session is None:
        answer = handshake.receive(await connection.receive())
        if answer is not None:
            connection.send(answer)
    connection.encrypt(handshake.session)
    return handshake.session
