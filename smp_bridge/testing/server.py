"""A small in-memory SMP server over real TLS, with faults on demand."""

import asyncio
import contextlib
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Self

from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.handshake import HandshakeError, Versions
from smp_bridge.identity import Credentials
from smp_bridge.testing import commands
from smp_bridge.testing.queues import ID_SIZE, Queues
from smp_bridge.transmission import (
    Err,
    Invalid,
    Message,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
)
from smp_bridge.transport import HANDSHAKE_TIMEOUT, BlockConnection, ConnectionClosedError, accept, serve

QUOTA = 128


class _Connection:
    """A session: its subscriptions, and the events that wait to go out in one block."""

    def __init__(self, connection: BlockConnection, session: Session, event_delay: float) -> None:
        self.connection = connection
        self.session = session
        self.state = commands.SessionState(session, self)
        self._event_delay = event_delay
        self._events: list[bytes] = []

    def push(self, entity_id: bytes, event: Message) -> None:
        """Queue an event; those of the same moment share blocks."""
        if isinstance(event, smp.Deld) and self.session.version < smp.DELETED_EVENT:
            event = smp.End()
        if not self._events:
            asyncio.get_running_loop().call_later(self._event_delay, self._send_events)
        self._events.append(encode_transmission(self.session, b"", entity_id, event.encode(self.session.version)))

    def _send_events(self) -> None:
        events, self._events = self._events, []
        with contextlib.suppress(ConnectionClosedError):
            self.send(events)

    def send(self, transmissions: list[bytes]) -> None:
        """Send in as few blocks as hold them. Raises ConnectionClosedError."""
        for block in encode_blocks(self.session, transmissions):
            self.connection.send(block)


class SmpServer:
    """An SMP server for tests, demonstrations and load: `async with SmpServer() as server: server.address`.

    Versions 6 to 18 with everything that recipients, senders and notifiers need of them. What it is not: nothing
    is persisted and nothing expires, there are no services (NSUBS is prohibited, a client that shows a service
    certificate is refused), no short links, no proxying, no files, no queue passwords (any is taken), no quota
    messages. While a notifier is not subscribed the newest notification of its queue is kept, and only that.

    `port` 0 picks one; `quota`: messages that wait in a queue; `event_delay`: seconds that events wait for others
    to share their block. `silent` is a fault: while it is set, commands are taken, but neither done nor answered.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: Credentials | None = None,
        versions: Versions = smp.VERSIONS,
        quota: int = QUOTA,
        event_delay: float = 0.0,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        self.credentials = credentials or Credentials.generate("ED25519", "localhost")[0]
        self.silent = False
        self._host, self._port = host, port
        self._versions = versions
        self._event_delay = event_delay
        self._handshake_timeout = handshake_timeout
        self._queues = Queues(quota)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[_Connection] = set()
        self._waiters: set[asyncio.Event] = set()
        self._nsubs: Counter[bytes] = Counter()
        self._scripts: defaultdict[bytes, deque[Message | None]] = defaultdict(deque)
        self._accepted = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # --- running

    async def start(self) -> None:
        """Listen; after `stop` on the same port as before, with the same queues. Raises OSError, ssl.SSLError."""
        if self._server is None:
            self._server = await serve("smp", self.credentials, self._on_connected, self._host, self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more, and abort every connection; queues are kept, subscriptions are not."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def drop_all(self) -> None:
        """A fault: abort every connection."""
        for c in self._open:
            c.connection.abort()

    @property
    def address(self) -> ServerAddress:
        """Where it listens, as `localhost`, and who it is."""
        return ServerAddress("smp", ("localhost",), str(self._port), self.credentials.key_hash)

    # --- what tests look at and do

    @property
    def connections(self) -> int:
        """How many sessions there are, after their handshakes."""
        return len(self._open)

    @property
    def accepted(self) -> int:
        """How many sessions there have been."""
        return self._accepted

    @property
    def queues(self) -> int:
        """How many queues there are."""
        return len(self._queues)

    def subscribed(self, notifier_id: bytes) -> bool:
        """Whether a session is subscribed to this queue's notifications."""
        notifier = self._queues.notifier(notifier_id)
        return notifier is not None and notifier.subscriber is not None

    def nsubs(self, notifier_id: bytes | None = None) -> int:
        """How many NSUBs came, well-formed, for this queue or for all; those of scripted faults count too."""
        return self._nsubs.total() if notifier_id is None else self._nsubs[notifier_id]

    def script_nsub(self, notifier_id: bytes, *answers: Message | None) -> None:
        """A fault: the next NSUBs for this queue get these answers, such as `ERR_AUTH`, or none for None, and do
        nothing else; those after them are done again."""
        self._scripts[notifier_id].extend(answers)

    def notify(self, *notifier_ids: bytes) -> None:
        """Notify as if a message had come, but without one. Raises KeyError for an unknown id."""
        for notifier_id in notifier_ids:
            notifier = self._queues.notifier(notifier_id)
            if notifier is None:
                raise KeyError("no such notifier")
            self._queues.notify(notifier, os.urandom(ID_SIZE))

    async def until(self, condition: Callable[[], bool], timeout: float = 5.0) -> None:
        """Wait for a condition on this server, looked at after each change of it. Raises TimeoutError."""
        changed = asyncio.Event()
        self._waiters.add(changed)
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    changed.clear()
                    await changed.wait()
        finally:
            self._waiters.discard(changed)

    # --- sessions

    def _changed(self) -> None:
        for waiter in self._waiters:
            waiter.set()

    def _on_connected(self, connection: BlockConnection) -> None:
        task = asyncio.create_task(self._run(connection), name="smp server session")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, connection: BlockConnection) -> None:
        try:
            session = await accept(
                connection, self.credentials, versions=self._versions, timeout=self._handshake_timeout
            )
            await self._session(_Connection(connection, session, self._event_delay))
        except (HandshakeError, ConnectionClosedError, TimeoutError):
            pass  # the client's fault, or it left
        finally:
            connection.abort()

    async def _session(self, c: _Connection) -> None:
        self._open.add(c)
        self._accepted += 1
        self._changed()
        try:
            while True:
                content = await c.connection.receive()
                if not self.silent:
                    answers = [self._answer(c, t) for t in parse_block(c.session, content)]
                    c.send([a for a in answers if a is not None])
                self._changed()
                await c.connection.drain()
        finally:
            self._open.discard(c)
            c.state.unsubscribe_all()
            self._changed()

    def _answer(self, c: _Connection, t: Transmission | Invalid) -> bytes | None:
        answer = t.error if isinstance(t, Invalid) else self._do(c, t)
        if answer is None:
            return None
        return encode_transmission(c.session, t.corr_id, t.entity_id, answer.encode(c.session.version))

    def _do(self, c: _Connection, t: Transmission) -> Message | None:
        command = commands.parse(c.session, t)
        if isinstance(command, Err):
            return command
        if isinstance(command, smp.NSub):
            self._nsubs[t.entity_id] += 1
            if script := self._scripts.get(t.entity_id):
                return script.popleft()
        return commands.execute(self._queues, c.state, t, command)
