"""TLS connections of fixed-size blocks (wire.md, sections 3 and 4), on asyncio.

TLS runs inside the protocol, on the blocks themselves: asyncio's own TLS layer would take 256 KiB a connection.
"""

import asyncio
import contextlib
import datetime
import errno
import ssl
import time
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto
from smp_bridge.address import Scheme
from smp_bridge.failure import ConnectError, Happened
from smp_bridge.handshake import ServerHandshake, ServiceIds, Versions
from smp_bridge.identity import Credentials
from smp_bridge.network import keep_alive
from smp_bridge.tls import SslTls, Tls, TlsClosedError, TlsFactory, server_context
from smp_bridge.transmission import BLOCK_SIZE, Session

HANDSHAKE_TIMEOUT = 60.0
MAX_QUEUED_BLOCKS: Final = 16  # of a connection, before it is read no more
_MAX_QUEUED_IN_ALL: Final = 1024  # of all that share a Scratch; over it a connection has one
_MAX_REST = 64  # reads of a buffer each
_MAX_ANSWERS = 2**9  # bytes of TLS's own answers (to KeyUpdates, of 27 bytes) between two blocks of a peer
_SHUTDOWN_TIMEOUT = 2.0
_DEAD_WAY = frozenset([errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH])
# Bytes given to TLS at once: it keeps buffers of the largest size that they ever had, and of KeyUpdates each costs it
# 0.1 ms. A block of NTF is smaller, one of SMP larger.
_SLICE: Final[dict[Scheme, int]] = {"ntf": 1024, "smp": 4096}


class ConnectionClosedError(ConnectError, ConnectionError):
    """The peer closed, or this side did, or a block was not what it must be."""

    happened = Happened.HANDSHAKE_FAILED  # before it there is no TLS to lose, and after it nobody connects


class BadBlockError(ConnectionClosedError):
    """A block of the right size that does not unpad or open."""


class Scratch:
    """Buffers that connections of one event loop share, as each needs them only while it takes what arrived."""

    def __init__(self) -> None:
        self.received = bytearray(2**16)
        self.block = bytearray(max(BLOCK_SIZE.values()))
        self.queued = 0  # blocks that were read and not received, of all of them


class BlockConnection(asyncio.BufferedProtocol):
    """A TLS connection that carries blocks. Both ends use it; see `connecting.connect` and `serve`."""

    # There are many that do nothing: what is small, and what is made only when it is needed.
    __slots__ = (
        "_answers",
        "_blocks",
        "_deadline",
        "_ended",
        "_finished",
        "_is_closed",
        "_lost",
        "_on_connected",
        "_partial",
        "_paused",
        "_receive_chain",
        "_resumed",
        "_scratch",
        "_secured",
        "_send_chain",
        "_size",
        "_tls",
        "_transport",
        "_waiter",
        "received",
        "scheme",
        "started_at",
        "timed_out",
    )

    def __init__(
        self,
        scheme: Scheme,
        tls: Tls,
        on_connected: "Callable[[BlockConnection], None] | None" = None,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        scratch: Scratch | None = None,
    ) -> None:
        self.scheme: Scheme = scheme
        self.received = 0  # bytes, TLS and all
        self.timed_out = False  # TCP gave it up: what was sent was not acknowledged
        self._tls = tls
        self._on_connected = on_connected
        self._size = BLOCK_SIZE[scheme]
        self._scratch = scratch or Scratch()
        self._partial = b""  # of the next block
        self._blocks: list[bytes] = []
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._resumed: asyncio.Future[None] | None = None  # while the peer reads too slowly
        self._answers = 0
        self._transport: asyncio.Transport | None = None
        self._lost: Exception | None = None
        self._send_chain: bytes | None = None
        self._receive_chain: bytes | None = None
        self._is_closed = False
        self._ended = False  # no more is sent
        self._finished: asyncio.Future[None] | None = None  # while somebody waits for the end
        loop = asyncio.get_running_loop()
        self.started_at = loop.time()
        self._secured: asyncio.Future[None] | None = loop.create_future()
        self._deadline: asyncio.TimerHandle | None = loop.call_later(handshake_timeout, self.abort)

    def __del__(self) -> None:
        self._scratch.queued -= len(self._blocks)

    # --- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP is up; TLS begins."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if (sock := transport.get_extra_info("socket")) is not None:  # it may be in memory
            keep_alive(sock)
        self._advance()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Room for what arrived."""
        return self._scratch.received

    def buffer_updated(self, nbytes: int) -> None:
        """Some bytes arrived."""
        self.received += nbytes
        received = memoryview(self._scratch.received)
        size = _SLICE[self.scheme]
        for i in range(0, nbytes, size):
            if self._lost:
                return
            self._tls.feed(received[i : min(i + size, nbytes)])
            self._advance()

    def eof_received(self) -> bool:
        """The peer closed: so do we."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Waiters get ConnectionClosedError, after the blocks that came before."""
        self._is_closed = True
        self.timed_out = isinstance(exc, OSError) and exc.errno in _DEAD_WAY
        if self._lost is None and self._secured is None:
            self._read_rest()
        self._lose(ConnectionClosedError("the connection was closed"))
        self._end_handshake()
        self.resume_writing()
        _resolve(self._finished)
        self._wake()

    def _read_rest(self) -> None:
        """Take what the socket still holds: asyncio gives it up when sending fails, or reading was paused."""
        assert self._transport is not None
        connected = self._transport.get_extra_info("socket")
        if connected is None:
            return
        with contextlib.suppress(OSError), connected.dup() as sock:
            for _ in range(_MAX_REST):
                count = sock.recv_into(self._scratch.received)
                if not count or self._lost:
                    break
                self.buffer_updated(count)

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        if self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """The peer reads again."""
        _resolve(self._resumed)
        self._resumed = None

    # --- TLS

    def _advance(self) -> None:
        """Do what the bytes that came allow."""
        was_secured = self._secured is None
        try:
            if self._secured is not None and self._tls.handshake():
                self._end_handshake()
                if self._on_connected:
                    self._on_connected(self)
            if self._secured is None:
                self._read()
        except TlsClosedError:
            self._lose(ConnectionClosedError("the connection was closed"))
            self._flush()
            if self._transport:
                self._transport.close()
        except ssl.SSLError as e:
            handshaking = self._secured is not None
            self._lose(e.with_traceback(None) if handshaking else ConnectionClosedError(f"TLS failed: {e.reason}"))
            self._flush()  # the alert
            self.abort()
        else:
            size = self._flush()
            if was_secured:
                self._answered(size)

    def _answered(self, size: int) -> None:
        """TLS itself answered what came, as it does again and again if a peer sends KeyUpdates.

        These are in no budget: each costs the peer little, and us new keys. Who speaks the protocol sends blocks.
        """
        self._answers += size
        if self._answers > _MAX_ANSWERS:
            self._lose(ConnectionClosedError("the peer has TLS answer, and sends no block"))
            self.abort()

    def _end_handshake(self) -> None:
        secured, self._secured = self._secured, None
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
        _resolve(secured)

    def _read(self) -> None:
        """Take whole blocks out of TLS."""
        block = memoryview(self._scratch.block)[: self._size]
        filled = len(self._partial)
        block[:filled] = self._partial
        while count := self._tls.read_into(block[filled:]):
            filled += count
            if filled == self._size:
                filled = self._answers = 0
                self._blocks.append(bytes(block))
                self._scratch.queued += 1
                self._wake()
        self._partial = bytes(block[:filled])
        room = MAX_QUEUED_BLOCKS if self._scratch.queued < _MAX_QUEUED_IN_ALL else 1
        if len(self._blocks) >= room and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def _flush(self) -> int:
        """Send what TLS has; how many bytes that is."""
        data = self._tls.output()
        if data and self._transport and not self._transport.is_closing():  # asyncio would log each write in vain
            self._transport.write(data)
        return len(data)

    # --- what the rest uses

    async def secured(self) -> None:
        """Wait until the TLS handshake is done. Raises ssl.SSLError, ConnectionClosedError."""
        if self._secured is not None:
            await asyncio.shield(self._secured)
        if self._lost:
            raise self._error()

    @property
    def session_id(self) -> bytes:
        """The client's TLS Finished message (RFC 5929 tls-unique)."""
        finished = self._tls.finished()
        if not finished:
            raise ConnectionClosedError("TLS gave no channel binding")
        return finished

    @property
    def alpn(self) -> str | None:
        """The negotiated ALPN protocol."""
        return self._tls.alpn()

    @property
    def was_asked(self) -> bool:
        """Whether the peer asked for the certificate that this client has."""
        return self._tls.was_asked()

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """The peer's certificates as DER, leaf first; empty if it showed none."""
        return self._tls.peer_chain()

    def encrypt(self, session: Session) -> None:
        """Encrypt all further blocks, if the session says so (SMP >= 11)."""
        self._send_chain, self._receive_chain = session.send_chain, session.receive_chain

    @property
    def is_over(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._ended or self._lost is not None or self._transport is None or self._transport.is_closing()

    def send(self, content: bytes) -> None:
        """Queue one block with this content. Raises ConnectionClosedError, ValueError if it is too large."""
        if self.is_over:
            raise self._closed_error()
        if self._send_chain is None:
            block = crypto.pad(content, self._size)
        else:
            padded = crypto.pad(content, self._size - crypto.TAG_SIZE)  # first: the chain must not move if it raises
            self._send_chain, key, nonce = crypto.sb_chain_step(self._send_chain)
            block = crypto.box(key, nonce, padded)
        try:
            self._tls.write(block)
        except ssl.SSLError as e:
            self._lose(ConnectionClosedError(f"TLS failed: {e.reason}"))
            self.abort()
            raise self._closed_error() from e
        self._flush()

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was sent."""
        while self._resumed is not None:
            await asyncio.wait([self._resumed])  # which leaves it to others when this is cancelled

    async def receive(self) -> bytes:
        """Content of the next block. Raises ConnectionClosedError, also for a block that does not open."""
        while not self._blocks:
            if self._lost:
                raise self._closed_error()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        block = self._blocks.pop(0)  # of a few
        self._scratch.queued -= 1
        if self._paused and not self._blocks and self._transport and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        return self._open(block)

    def has_blocks(self) -> bool:
        """Whether `receive` would return at once."""
        return bool(self._blocks)

    @property
    def blocks(self) -> int:
        """How many blocks were read from the socket and not received yet."""
        return len(self._blocks)

    @property
    def reading_paused(self) -> bool:
        """Whether nothing is read from the socket, as many blocks wait to be received."""
        return self._paused and self._lost is None

    def _open(self, block: bytes) -> bytes:
        try:
            if self._receive_chain is not None:
                self._receive_chain, key, nonce = crypto.sb_chain_step(self._receive_chain)
                block = crypto.unbox(key, nonce, block)
            return crypto.unpad(block)
        except crypto.CryptoError as e:
            raise BadBlockError(str(e)) from e

    def _wake(self) -> None:
        _resolve(self._waiter)

    def _lose(self, reason: Exception) -> None:
        """The connection is lost; the first reason counts."""
        self._lost = self._lost or reason

    def _closed_error(self) -> ConnectionClosedError:
        """A new one each time: it is raised, and its traceback leads here. Kept, it would keep this connection, and all
        that TLS has, until Python looks for circles, which may take days.
        """
        if isinstance(self._lost, ConnectionClosedError):
            return ConnectionClosedError(*self._lost.args)
        return ConnectionClosedError("the connection is closed")

    def _error(self) -> Exception:
        """What the connection was lost for; it is not kept either."""
        lost = self._lost
        if not isinstance(lost, ssl.SSLError):
            return self._closed_error()
        self._lost = ConnectionClosedError(f"TLS failed: {lost.reason}")
        return lost

    def end(self) -> None:
        """Send no more, and say so, which has the peer close; what it sent before that is received as ever."""
        if self.is_over:
            return
        self._ended = True
        self._tls.close()
        self._flush()

    def abort(self) -> None:
        """Close at once; what was not sent is lost, what was read can still be received."""
        self._lose(ConnectionClosedError("the connection was closed"))
        self._end_handshake()
        if self._transport is not None and not self._is_closed:  # Python 3.11.2 fails on a closed one
            self._transport.abort()

    async def close(self) -> None:
        """Send what is queued, close, and wait for it, 2 s at most."""
        if self._transport is None or self._is_closed:
            return
        self.end()
        self._lose(ConnectionClosedError("the connection was closed"))
        self._transport.close()
        if self._finished is None:
            self._finished = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait([self._finished], timeout=_SHUTDOWN_TIMEOUT)
        finally:
            self.abort()


def _resolve(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)


async def accept(
    connection: BlockConnection,
    credentials: Credentials,
    *,
    versions: Versions | None = None,
    timeout: float = HANDSHAKE_TIMEOUT,
    services: ServiceIds | None = None,
    clock: Callable[[], float] = time.time,
) -> Session:
    """A server's side of the handshake; the time counts from the TCP connection.

    `services`: gives the id of a service that showed itself (see `ServerHandshake`); None refuses all.
    `clock`: Unix seconds, by which its certificates are valid.
    Raises TimeoutError, HandshakeError, ConnectionClosedError.
    """
    async with asyncio.timeout_at(connection.started_at + timeout):
        handshake = ServerHandshake(
            connection.scheme,
            connection.session_id,
            credentials.chain_der,
            credentials.key,
            X25519PrivateKey.generate(),
            alpn=connection.alpn is not None,
            now=datetime.datetime.fromtimestamp(clock(), datetime.UTC),
            versions=versions,
            peer_chain=connection.peer_chain,
            services=services,
        )
        connection.send(handshake.hello)
        content = await connection.receive()
        try:
            session = handshake.receive(content)
        finally:
            if handshake.answer is not None:
                connection.send(handshake.answer)
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
    tls: TlsFactory | None = None,
) -> asyncio.Server:
    """Listen for TLS connections; `on_connected` is called for each whose TLS handshake is done in time.

    `tls`: another implementation, with the credentials in it. Raises OSError (port in use, address unknown),
    ssl.SSLError.
    """
    if tls is None:
        context = server_context(scheme, credentials)
        tls = lambda: SslTls(context, server_side=True)  # noqa: E731
    scratch = Scratch()
    return await asyncio.get_running_loop().create_server(
        lambda: BlockConnection(scheme, tls(), on_connected, handshake_timeout, scratch),
        host,
        port,
        backlog=1024,
        reuse_address=True,
    )
