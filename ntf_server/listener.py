"""Sessions of NTF clients: handshake, blocks in, blocks out (wire.md, sections 3 to 5)."""

import asyncio
import contextlib
import errno
import itertools
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from ntf_server.admission.addresses import Network
from ntf_server.admission.gate import Admission, is_counted_together
from ntf_server.admission.sessions import Peer
from ntf_server.commands import Commands, company, parse
from ntf_server.door import Door
from ntf_server.event_loop import descriptor, put_apart, put_back
from ntf_server.store.contract import StoreConflictError, StoreCorruptError, StoreError
from smp_bridge import transport
from smp_bridge.handshake import HandshakeError
from smp_bridge.identity import Credentials
from smp_bridge.tls import SslTls, server_context
from smp_bridge.transmission import (
    ERR_BLOCK,
    ERR_INTERNAL,
    Err,
    Invalid,
    Message,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
)
from smp_bridge.transport import BadBlockError, BlockConnection, ConnectionClosedError, Scratch

log = logging.getLogger(__name__)

ERR_STORE: Final = Err("STORE", "database")  # agents try again after this one, and after no other (wire.md, section 5)
_BACKLOG: Final = 4096
_ACCEPTED_AT_ONCE: Final = 4  # connections: what else is in that turn of the loop has to wait for them
_ACCEPTED_EACH: Final = 0.002  # seconds: so that at most 2,000 a second are accepted, and perhaps closed at once
_MAX_BLOCKS: Final = 16  # that are answered together
# asyncio tells an address that is not there without a number, if it is the only one.
_PASSING: Final = (None, errno.EADDRINUSE, errno.EADDRNOTAVAIL, socket.EAI_AGAIN)
_GIVE: Final = "give an IP address of this machine, or none to listen on all"


class ListenError(Exception):
    """The port cannot be listened on. `may_pass`: perhaps later, as when it is in use, or the address not there yet."""

    def __init__(self, text: str, *, may_pass: bool = False) -> None:
        super().__init__(text)
        self.may_pass = may_pass


@contextlib.contextmanager
def listen_errors(host: str | None, port: int) -> Iterator[None]:
    """Why a port cannot be listened on, as ListenError; ssl.SSLError passes."""
    try:
        yield
    except ssl.SSLError:
        raise
    except OSError as e:
        raise ListenError(f"{host or '*'}:{port}: {_why(e, port)}", may_pass=e.errno in _PASSING) from e
    except UnicodeError as e:  # an empty or too long label
        raise ListenError(f"{host}:{port}: is not a host name; {_GIVE}") from e


@contextlib.contextmanager
def of_settings(where: str) -> Iterator[None]:
    """Says which settings a ListenError is about."""
    try:
        yield
    except ListenError as e:
        raise ListenError(f"{where}: {e}", may_pass=e.may_pass) from e


def _why(error: OSError, port: int) -> str:
    """The reason, and the cure."""
    if error.errno == errno.EADDRINUSE:
        return f"is in use; stop what uses it, which `ss -ltnp sport = :{port}` shows, or choose another one"
    if error.errno in (None, errno.EADDRNOTAVAIL):
        return "this machine has no such address now; give one that `ip address` shows, or none to listen on all"
    if error.errno == errno.EACCES:
        cure = "start the server by its unit, which gives it CAP_NET_BIND_SERVICE, or choose one from 1024 on"
        return f"the system keeps this port for the privileged; {cure}"
    return f"{error.strerror or error}; {_GIVE}"


class ListenerConfig(msgspec.Struct, frozen=True):
    """`host` None: all interfaces; `inactive_ttl` in seconds, 0: idle clients may stay.

    `proxies`: networks of balancers, which say whose connection it is.
    """

    host: str | None
    port: int
    handshake_timeout: float = transport.HANDSHAKE_TIMEOUT
    inactive_ttl: float = 12 * 3600.0
    proxies: tuple[Network, ...] = ()


class _Connection(BlockConnection):
    """Its end is told to the budgets, whatever state it was in."""

    __slots__ = ("_on_lost",)

    def __init__(self, on_lost: Callable[[], None], *args: Any) -> None:
        super().__init__(*args)
        self._on_lost = on_lost

    def connection_lost(self, exc: Exception | None) -> None:
        """As the base's."""
        assert self._transport is not None
        put_back(descriptor(self._transport))
        self._on_lost()
        super().connection_lost(exc)


def _queue(fd: int) -> None:
    """Let more wait to be accepted than asyncio accepts at once, for which it has the same number."""
    sock = socket.socket(fileno=fd)
    try:
        sock.listen(_BACKLOG)
    finally:
        sock.detach()


_Asked: TypeAlias = list[tuple[Transmission | Invalid, Message]]


class Listener:
    """The server's socket and the sessions on it. `start` it in a running loop; `close` it.

    `admission`: budgets of clients; None: they have none.
    """

    def __init__(
        self,
        config: ListenerConfig,
        credentials: Credentials,
        commands: Commands,
        admission: Admission | None = None,
    ) -> None:
        self._config = config
        self._credentials = credentials
        self._context: ssl.SSLContext | None = None
        self._scratch = Scratch()
        self._commands = commands
        self._admission = admission or Admission()
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self) -> None:
        """Accept connections. Raises ListenError (port in use, no such address), ssl.SSLError."""
        host, port = self._config.host, self._config.port
        self._context = server_context("ntf", self._credentials)
        with listen_errors(host, port):
            self._server = await asyncio.get_running_loop().create_server(
                *(self._door, host, port),
                backlog=_ACCEPTED_AT_ONCE,
                reuse_address=True,
                start_serving=False,
            )
            for sock in self._server.sockets:
                put_apart(sock.fileno(), _ACCEPTED_EACH)
            await self._server.start_serving()
            for sock in self._server.sockets:
                _queue(sock.fileno())

    def prepare(self, credentials: Credentials) -> Callable[[], None]:
        """What has this certificate shown from then on; sessions that are there stay. Raises ssl.SSLError."""
        context = server_context("ntf", credentials)

        def commit() -> None:
            self._context, self._credentials = context, credentials

        return commit

    def _door(self) -> Door:
        """For one connection."""
        timeout, proxies = self._config.handshake_timeout, self._config.proxies
        return Door(self._admission, proxies, timeout, self._scratch.received, self._let_in)

    def _let_in(self, transport: asyncio.Transport, peer: Peer, received: bytes) -> None:
        """A client's connection whose handshake may begin; this came of it."""
        assert self._context is not None
        credentials = self._credentials  # TLS and the handshake in it show the same, also if another one comes between
        connection = _Connection(
            partial(self._admission.closed, peer),
            *("ntf", SslTls(self._context, server_side=True), partial(self._on_connected, credentials, peer)),
            *(self._config.handshake_timeout, self._scratch),
        )
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.get_buffer(len(received))[: len(received)] = received
        connection.buffer_updated(len(received))

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def sessions(self) -> int:
        """Connected clients."""
        return len(self._sessions)

    async def close(self, grace: float = 0.0) -> None:
        """Stop accepting, let commands in progress finish for up to `grace` seconds, disconnect all.

        May be called again.
        """
        self._closing = True
        if self._server is not None:
            listening = [sock.fileno() for sock in self._server.sockets]
            self._server.close()
            for fd in listening:
                put_back(fd)
        if self._busy and grace:
            await asyncio.wait(list(self._busy), timeout=grace)
        self._admission.end_half_open()
        for task in self._sessions:
            task.cancel()
        if self._sessions:
            await asyncio.wait(list(self._sessions))

    def _on_connected(self, credentials: Credentials, peer: Peer, connection: BlockConnection) -> None:
        if self._closing:
            connection.abort()
            return
        task = asyncio.create_task(self._run(credentials, peer, connection), name="ntf session")
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)

    async def _run(self, credentials: Credentials, peer: Peer, connection: BlockConnection) -> None:
        try:
            session = await transport.accept(connection, credentials, timeout=self._config.handshake_timeout)
            self._admission.established(peer)
            await self._serve(connection, session, peer)
        except (TimeoutError, HandshakeError, ConnectionClosedError) as e:
            log.debug("a client was disconnected: %s", e or type(e).__name__)
        except Exception:
            log.exception("a client's session failed")
        finally:
            await connection.close()

    async def _serve(self, connection: BlockConnection, session: Session, peer: Peer) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while not self._closing or connection.has_blocks():
                asked = await self._next(connection, session, peer)
                self._busy.add(task)
                answers = await self._answers(session, asked, peer)
                for block in encode_blocks(session, answers):
                    connection.send(block)
                self._busy.discard(task)  # a client that does not read must not hold up a shutdown
                async with asyncio.timeout(self._config.inactive_ttl or None):
                    await connection.drain()
        finally:
            self._busy.discard(task)

    async def _next(self, connection: BlockConnection, session: Session, peer: Peer) -> _Asked:
        """The next block, and those that came with it; over a budget no more is read, and it waits for its turn."""
        async with asyncio.timeout(self._config.inactive_ttl or None):
            asked = await _receive(connection, session)
        wait = await self._charge(peer, asked)
        for _ in range(_MAX_BLOCKS - 1):
            if wait or not connection.has_blocks():
                break
            more = await _receive(connection, session)
            wait = await self._charge(peer, more)
            asked += more
        if wait:
            await asyncio.sleep(wait)
        return asked

    async def _charge(self, peer: Peer, asked: _Asked) -> float:
        """How long these have to wait. What nodes count together, and cannot now, becomes the answer that says so."""
        commands = [command for _, command in asked]
        wait = self._admission.delay(peer, commands)
        try:
            return max(wait, await self._admission.shared_delay(peer, commands))
        except StoreError as e:
            answer = _store_error(e)
        asked[:] = [(t, answer if is_counted_together(command) else command) for t, command in asked]
        return wait

    async def _answers(self, session: Session, asked: _Asked, peer: Peer) -> list[bytes]:
        """In order. What may be done together is, so that a store that is busy is waited for once."""
        answers: list[bytes] = []
        for _, group in itertools.groupby(asked, lambda c: company(c[1])):
            answers += await asyncio.gather(*(self._answer(session, t, command, peer) for t, command in group))
        return answers

    async def _answer(self, session: Session, t: Transmission | Invalid, command: Message, peer: Peer) -> bytes:
        if isinstance(t, Invalid):
            self._commands.answered(command, command)
            return _encode(session, t.corr_id, b"", command)
        try:
            answer = await self._commands.handle(session, t, command, peer)
        except (StoreError, StoreCorruptError) as e:
            answer = _store_error(e)
        self._commands.answered(command, answer)
        return _encode(session, t.corr_id, t.entity_id, answer)


def _store_error(error: StoreError | StoreCorruptError) -> Err:
    """The answer to a command that it kept from being done."""
    if isinstance(error, StoreConflictError):
        log.error("a command failed: %s", error)
        return ERR_INTERNAL
    log.debug("a command failed: %s", error)  # which the store says itself
    return ERR_STORE


async def _receive(connection: BlockConnection, session: Session) -> _Asked:
    """A block's commands, parsed, or the errors that are their answers."""
    try:
        block = parse_block(session, await connection.receive())
    except BadBlockError:
        block = [Invalid(ERR_BLOCK)]
    return [(t, t.error if isinstance(t, Invalid) else parse(session, t)) for t in block]


def _encode(session: Session, corr_id: bytes, entity_id: bytes, answer: Message) -> bytes:
    encoded = encode_transmission(session, corr_id, entity_id, answer.encode(session.version))
    try:
        encode_blocks(session, [encoded])
    except ValueError:  # ids so long that they cannot be echoed with an answer
        return encode_transmission(session, b"", b"", ERR_BLOCK.encode(session.version))
    return encoded
