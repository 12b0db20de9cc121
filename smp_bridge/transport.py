"""TLS connections of fixed-size blocks (wire.md, sections 3 and 4), on asyncio."""

import asyncio
import contextlib
import datetime
import ssl
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto
from smp_bridge.address import Scheme, ServerAddress
from smp_bridge.handshake import (
    ClientHandshake,
    IdentityMismatchError,
    ServerHandshake,
    ServiceCredentials,
    Versions,
)
from smp_bridge.identity import Credentials, IdentityError, private_key_pem, verify_chain
from smp_bridge.network import resolve
from smp_bridge.transmission import BLOCK_SIZE, Session

HANDSHAKE_TIMEOUT = 60.0
CONNECT_TIMEOUT = 45.0
_MAX_QUEUED_BLOCKS = 16
_SHUTDOWN_TIMEOUT = 2.0


class ConnectionClosedError(ConnectionError):
    """The peer closed, or this side did, or a block was not what it must be."""


def _context(protocol: int, scheme: Scheme) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+CHACHA20")  # of TLS 1.2; those of 1.3 all include ChaCha20-Poly1305
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([f"{scheme}/1"])
    return context


def client_context(scheme: Scheme) -> ssl.SSLContext:
    """TLS for a client. The chain is checked by pinning after the TLS handshake, see `connect`."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, scheme)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def server_context(scheme: Scheme, credentials: Credentials) -> ssl.SSLContext:
    """TLS for a server. Raises ssl.SSLError if OpenSSL refuses the credentials."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, scheme)
    context.num_tickets = 0
    with tempfile.TemporaryDirectory() as name:  # the ssl module reads files only
        path = Path(name, "chain.pem")
        path.touch(mode=0o600)
        path.write_bytes(credentials.chain_pem + private_key_pem(credentials.key))
        context.load_cert_chain(path)
    return context


def _peer_chain(tls: Any) -> tuple[bytes, ...]:
    """DER of the peer's certificates, leaf first, as it sent them."""
    if hasattr(tls, "get_unverified_chain"):  # Python >= 3.13
        return tuple(tls.get_unverified_chain())
    chain = tls._sslobj.get_unverified_chain() or ()
    return tuple(ssl.PEM_cert_to_DER_cert(c.public_bytes()) for c in chain)


class BlockConnection(asyncio.BufferedProtocol):
    """A TLS connection that carries blocks. Both ends use it; see `connect` and `serve`."""

    def __init__(self, scheme: Scheme, on_connected: "Callable[[BlockConnection], None] | None" = None) -> None:
        self.scheme: Scheme = scheme
        self.started_at = time.monotonic()
        self._on_connected = on_connected
        self._size = BLOCK_SIZE[scheme]
        self._buffer = bytearray(self._size)
        self._filled = 0
        self._blocks: deque[bytes] = deque()
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None
        self._lost: ConnectionClosedError | None = None
        self._send_chain: bytes | None = None
        self._receive_chain: bytes | None = None
        self._closed = asyncio.Event()

    # --- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._on_connected:
            self._on_connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room for the rest of a block."""
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Some of a block arrived."""
        self._filled += nbytes
        if self._filled < self._size:
            return
        self._filled = 0
        self._blocks.append(bytes(self._buffer))
        self._wake()
        if len(self._blocks) >= _MAX_QUEUED_BLOCKS and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The peer closed: so do we."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Waiters get ConnectionClosedError, after the blocks that came before."""
        self._lost = self._lost or ConnectionClosedError("the connection was closed")
        self._writable.set()
        self._closed.set()
        self._wake()

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._writable.set()

    # --- what the rest uses

    @property
    def session_id(self) -> bytes:
        """The client's TLS Finished message (RFC 5929 tls-unique)."""
        binding: bytes | None = self._tls.get_channel_binding("tls-unique")
        if not binding:
            raise ConnectionClosedError("TLS gave no channel binding")
        return binding

    @property
    def alpn(self) -> str | None:
        """The negotiated ALPN protocol."""
        protocol: str | None = self._tls.selected_alpn_protocol()
        return protocol

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """The peer's certificates as DER, leaf first."""
        return _peer_chain(self._tls)

    @property
    def _tls(self) -> Any:
        assert self._transport is not None
        tls = self._transport.get_extra_info("ssl_object")
        if tls is None:
            raise ConnectionClosedError("the connection was closed")
        return tls

    def encrypt(self, session: Session) -> None:
        """Encrypt all further blocks, if the session says so (SMP >= 11)."""
        self._send_chain, self._receive_chain = session.send_chain, session.receive_chain

    def send(self, content: bytes) -> None:
        """Queue one block with this content. Raises ConnectionClosedError, ValueError if it is too large."""
        if self._lost or self._transport is None or self._transport.is_closing():
            raise self._lost or ConnectionClosedError("the connection is closing")
        if self._send_chain is None:
            block = crypto.pad(content, self._size)
        else:
            padded = crypto.pad(content, self._size - crypto.TAG_SIZE)  # first: the chain must not move if it raises
            self._send_chain, key, nonce = crypto.sb_chain_step(self._send_chain)
            block = crypto.box(key, nonce, padded)
        self._transport.write(block)

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was sent."""
        await self._writable.wait()

    async def receive(self) -> bytes:
        """Content of the next block. Raises ConnectionClosedError, also for a block that does not open."""
        while not self._blocks:
            if self._lost:
                raise self._lost
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        block = self._blocks.popleft()
        if self._paused and not self._blocks and self._transport and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        return self._open(block)

    def has_blocks(self) -> bool:
        """Whether `receive` would return at once."""
        return bool(self._blocks)

    def _open(self, block: bytes) -> bytes:
        try:
            if self._receive_chain is not None:
                self._receive_chain, key, nonce = crypto.sb_chain_step(self._receive_chain)
                block = crypto.unbox(key, nonce, block)
            return crypto.unpad(block)
        except crypto.CryptoError as e:
            raise BadBlockError(str(e)) from e

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._lost = self._lost or ConnectionClosedError("the connection was closed")
        if self._transport is not None and not self._closed.is_set():  # Python 3.11.2 fails on a closed one
            self._transport.abort()

    async def close(self) -> None:
        """Send what is queued, close, and wait for it, 2 s at most."""
        if self._transport is None or self._closed.is_set():
            return
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), _SHUTDOWN_TIMEOUT)
        self.abort()


class BadBlockError(ConnectionClosedError):
    """A block of the right size that does not unpad or open."""


async def connect(
    address: ServerAddress,
    *,
    context: ssl.SSLContext | None = None,
    versions: Versions | None = None,
    service: ServiceCredentials | None = None,
    allow_private: bool = True,
    timeout: float = CONNECT_TIMEOUT,
) -> tuple[BlockConnection, Session]:
    """Connect to the first of a server's hosts that answers, check its identity, shake hands.

    Raises OSError (no host answers), TimeoutError, HandshakeError; IdentityMismatchError when the identity is
    not the address's.
    """
    async with asyncio.timeout(timeout):
        connection = await _open_connection(address, context or client_context(address.scheme), allow_private)
        try:
            return connection, await _client_handshake(connection, address, versions, service)
        except BaseException:
            connection.abort()
            raise


async def _open_connection(address: ServerAddress, context: ssl.SSLContext, allow_private: bool) -> BlockConnection:
    loop = asyncio.get_running_loop()
    failed: OSError | None = None
    for host in address.hosts:
        try:
            for ip in await resolve(host, address.port_number, allow_private=allow_private):
                try:
                    _, connection = await loop.create_connection(
                        lambda: BlockConnection(address.scheme),
                        ip,
                        address.port_number,
                        ssl=context,
                        server_hostname=host,
                        ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT,
                    )
                    return connection
                except OSError as e:
                    failed = e
        except OSError as e:
            failed = e
    raise failed or OSError("the address has no host")


async def _client_handshake(
    connection: BlockConnection,
    address: ServerAddress,
    versions: Versions | None,
    service: ServiceCredentials | None,
) -> Session:
    chain = connection.peer_chain
    try:
        verify_chain(chain, address.key_hash, datetime.datetime.now(datetime.UTC))
    except IdentityError as e:
        raise IdentityMismatchError(str(e)) from e
    handshake = ClientHandshake(
        address.scheme,
        connection.session_id,
        chain,
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


async def accept(
    connection: BlockConnection,
    credentials: Credentials,
    *,
    versions: Versions | None = None,
    timeout: float = HANDSHAKE_TIMEOUT,
) -> Session:
    """A server's side of the handshake; the time counts from the TCP connection.

    Raises TimeoutError, HandshakeError, ConnectionClosedError.
    """
    async with asyncio.timeout(timeout - (time.monotonic() - connection.started_at)):
        handshake = ServerHandshake(
            connection.scheme,
            connection.session_id,
            credentials.chain_der,
            credentials.key,
            X25519PrivateKey.generate(),
            alpn=connection.alpn is not None,
            versions=versions,
        )
        connection.send(handshake.hello)
        session = handshake.receive(await connection.receive())
    connection.encrypt(session)
    return session


async def serve(
    scheme: Scheme,
    credentials: Credentials,
    on_connected: Callable[[BlockConnection], None],
    host: str | None,
    port: int,
    *,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
) -> asyncio.Server:
    """Listen for TLS connections; `on_connected` is called for each whose TLS handshake is done in time.

    Raises OSError (port in use, address unknown), ssl.SSLError.
    """
    return await asyncio.get_running_loop().create_server(
        lambda: BlockConnection(scheme, on_connected),
        host,
        port,
        ssl=server_context(scheme, credentials),
        backlog=1024,
        reuse_address=True,
        ssl_handshake_timeout=handshake_timeout,
        ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT,
    )
