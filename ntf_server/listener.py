"""Sessions of NTF clients: handshake, blocks in, blocks out (wire.md, sections 3 to 5)."""

import asyncio
import contextlib
import errno
import itertools
import logging
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from ntf_server.commands import Commands, company, parse
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
_BACKLOG: Final = 1024
_MAX_BLOCKS: Final = 16  # that are answered together
_REPEAT_LOG: Final = 60.0  # seconds


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
        # asyncio tells an address that is not there without a number, if it is the only one.
        passing = e.errno in (None, errno.EADDRINUSE, errno.EADDRNOTAVAIL, socket.EAI_AGAIN)
        raise ListenError(f"{host or '*'}:{port}: {e.strerror or e}", may_pass=passing) from e
    except UnicodeError as e:  # an empty or too long label
        raise ListenError(f"{host}:{port}: is not a host name") from e


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """`host` None: all interfaces; `inactive_ttl` in seconds, 0: idle clients may stay."""

    host: str | None
    port: int
    handshake_timeout: float = transport.HANDSHAKE_TIMEOUT
    inactive_ttl: float = 12 * 3600.0


class Listener:
    """The server's socket and the sessions on it. `start` it in a running loop; `close` it."""

    def __init__(self, config: ListenerConfig, credentials: Credentials, commands: Commands) -> None:
        self._config = config
        self._credentials = credentials
        self._context: ssl.SSLContext | None = None
        self._scratch = Scratch()
        self._commands = commands
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self._closing = False
        self._said_at: float | None = None

    async def start(self) -> None:
        """Accept connections. Raises ListenError (port in use, no such address), ssl.SSLError."""
        host, port = self._config.host, self._config.port
        self._context = server_context("ntf", self._credentials)
        with listen_errors(host, port):
            self._server = await asyncio.get_running_loop().create_server(
                self._connection, host, port, backlog=_BACKLOG, reuse_address=True
            )

    def use(self, credentials: Credentials) -> None:
        """Show this certificate from now on; sessions that are there stay. Raises ssl.SSLError, changing nothing."""
        self._context = server_context("ntf", credentials)
        self._credentials = credentials

    def _connection(self) -> BlockConnection:
        """TLS and the handshake in it show the same certificate, also when another one comes between the two."""
        assert self._context is not None
        tls = SslTls(self._context, server_side=True)
        credentials = self._credentials
        on_connected = partial(self._on_connected, credentials)
        return BlockConnection("ntf", tls, on_connected, self._config.handshake_timeout, self._scratch)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self, grace: float = 0.0) -> None:
        """Stop accepting, let commands in progress finish for up to `grace` seconds, disconnect all."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        if self._busy and grace:
            await asyncio.wait(list(self._busy), timeout=grace)
        for task in self._sessions:
            task.cancel()
        if self._sessions:
            await asyncio.wait(list(self._sessions))

    def _on_connected(self, credentials: Credentials, connection: BlockConnection) -> None:
        if self._closing:
            connection.abort()
            return
        task = asyncio.create_task(self._run(credentials, connection), name="ntf session")
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)

    async def _run(self, credentials: Credentials, connection: BlockConnection) -> None:
        try:
            session = await transport.accept(connection, credentials, timeout=self._config.handshake_timeout)
            await self._serve(connection, session)
        except (TimeoutError, HandshakeError, ConnectionClosedError) as e:
            log.debug("a client was disconnected: %s", e or type(e).__name__)
        except Exception:
            log.exception("a client's session failed")
        finally:
            await connection.close()

    async def _serve(self, connection: BlockConnection, session: Session) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while not self._closing or connection.has_blocks():
                answers = await self._next_answers(connection, session, task)
                for block in encode_blocks(session, answers):
                    connection.send(block)
                self._busy.discard(task)  # a client that does not read must not hold up a shutdown
                async with asyncio.timeout(self._config.inactive_ttl or None):
                    await connection.drain()
        finally:
            self._busy.discard(task)

    async def _next_answers(
        self, connection: BlockConnection, session: Session, task: "asyncio.Task[None]"
    ) -> list[bytes]:
        """Answers to the next block, and to those that came with it."""
        async with asyncio.timeout(self._config.inactive_ttl or None):
            asked = await _receive(connection, session)
        self._busy.add(task)
        for _ in range(_MAX_BLOCKS - 1):
            if connection.has_blocks():
                asked += await _receive(connection, session)
        return await self._answers(session, asked)

    async def _answers(self, session: Session, asked: Sequence[Transmission | Invalid]) -> list[bytes]:
        """In order. What may be done together is, so that a store that is busy is waited for once."""
        commands = [(t, t.error if isinstance(t, Invalid) else parse(session, t)) for t in asked]
        answers: list[bytes] = []
        for _, group in itertools.groupby(commands, lambda c: company(c[1])):
            answers += await asyncio.gather(*(self._answer(session, t, command) for t, command in group))
        return answers

    async def _answer(self, session: Session, t: Transmission | Invalid, command: Message) -> bytes:
        if isinstance(t, Invalid):
            return _encode(session, t.corr_id, t.entity_id, command)
        try:
            answer = await self._commands.handle(session, t, command)
        except StoreConflictError as e:
            log.error("a command failed: %s", e)
            answer = ERR_INTERNAL
        except (StoreError, StoreCorruptError) as e:
            self._say(e)
            answer = ERR_STORE
        return _encode(session, t.corr_id, t.entity_id, answer)

    def _say(self, error: Exception) -> None:
        """Once a minute: while a store fails, every command does."""
        now = asyncio.get_running_loop().time()
        if self._said_at is None or now - self._said_at >= _REPEAT_LOG:
            self._said_at = now
            log.error("commands fail: %s", error)


async def _receive(connection: BlockConnection, session: Session) -> list[Transmission | Invalid]:
    try:
        return parse_block(session, await connection.receive())
    except BadBlockError:
        return [Invalid(ERR_BLOCK)]


def _encode(session: Session, corr_id: bytes, entity_id: bytes, answer: Message) -> bytes:
    encoded = encode_transmission(session, corr_id, entity_id, answer.encode(session.version))
    try:
        encode_blocks(session, [encoded])
    except ValueError:  # ids so long that they cannot be echoed with an answer
        return encode_transmission(session, b"", b"", ERR_BLOCK.encode(session.version))
    return encoded
