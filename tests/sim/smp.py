"""SMP servers in virtual time, and connections to them that are neither TCP nor TLS: blocks that arrive, or do not.

Servers behave as real ones do (wire.md, section 7): they keep every undelivered notification and send all of them,
oldest first, in batches every 1.5 s or so; END and DELD may come late; who subscribes last has the subscription.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sim.loop import Life, VirtualLoop, current_life
from sim.trace import Trace
from smp_bridge import crypto, smp
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import NONCE_SIZE
from smp_bridge.handshake import ServiceCredentials
from smp_bridge.transmission import (
    ERR_AUTH,
    Invalid,
    Message,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
    verify_transmission,
)
from smp_bridge.transport import ConnectionClosedError

_VERSION: Final = 15  # the last one without services
_META_SIZE: Final = 144
_BLOCKS: Final = 3  # that a connection holds before it reads no more: few, so that it matters
_LATENCY: Final = (0.01, 0.08)
_BATCH: Final = (0.05, 1.5)  # seconds that events wait for others


@dataclass(eq=False)
class SimQueue:
    """A queue and its notifier. `pending`: numbers of notifications that no subscriber was sent yet."""

    number: int
    server: "SimServer"
    notifier_id: bytes
    key: Ed25519PrivateKey
    subscriber: "SimSession | str | None" = None  # a word: somebody else
    sent: int = 0  # the number of the newest notification
    pending: list[int] = field(default_factory=list)
    deleted: bool = False
    ends_to: "list[SimSession]" = field(default_factory=list)  # sessions that were told of an end
    # What the simulator knows of the relay:
    subscription_id: bytes = b""
    wanted: bool = False  # the device's SNEW was answered
    stored: int = 0  # the newest one that the relay's store took
    stored_at: float = 0.0
    seen: int = 0  # the newest one that the device has seen
    spelled: set[str] = field(default_factory=set)  # how the device's SNEWs named the server

    def __str__(self) -> str:
        return f"queue{self.number}"

    def spell(self) -> ServerAddress:
        """How the device names the server now: in its own way, and in another one each time."""
        turn = self.number + 3 * len(self.spelled)
        known = self.server.address
        host = "".join(c.upper() if turn >> i % 3 & 1 else c for i, c in enumerate(known.hosts[0]))
        address = ServerAddress("smp", (host + "." * (turn % 2),), ("", "5223")[turn // 2 % 2], known.key_hash)
        self.spelled.add(str(address))
        return address


class SimConnection:
    """The relay's end: what `BlockConnection` is to a `Client`."""

    def __init__(self, session: "SimSession", loop: VirtualLoop) -> None:
        self.session = session
        self.received = 0
        self.timed_out = False
        self._loop = loop
        self._blocks: list[bytes] = []
        self._kernel: list[tuple[bytes, Callable[[], None]]] = []  # arrived, but not read
        self._waiter: asyncio.Future[None] | None = None
        self._lost = False
        self._ended = False
        self._eof = False

    def send(self, content: bytes) -> None:
        """See `BlockConnection`."""
        if self._lost or self._ended or self._eof:
            raise ConnectionClosedError("the connection was closed")
        self.session.on_block(content)

    async def drain(self) -> None:
        """See `BlockConnection`."""

    async def receive(self) -> bytes:
        """See `BlockConnection`."""
        while not self._blocks:
            if self._lost or (self._eof and not self._kernel):
                raise ConnectionClosedError("the connection was closed")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        block = self._blocks.pop(0)
        self._read()
        return block

    @property
    def blocks(self) -> int:
        """See `BlockConnection`."""
        return len(self._blocks)

    @property
    def reading_paused(self) -> bool:
        """See `BlockConnection`."""
        return bool(self._kernel) and not self._lost

    @property
    def is_closed(self) -> bool:
        """Whether the relay has let it go."""
        return self._lost

    def end(self) -> None:
        """See `BlockConnection`."""
        if not (self._ended or self._lost or self._eof):
            self._ended = True
            self.session.on_end()

    def abort(self) -> None:
        """See `BlockConnection`."""
        if not self._lost:
            self._lost = True
            self._kernel.clear()
            self.session.on_abort()
            self._wake()

    async def close(self) -> None:
        """See `BlockConnection`."""
        self.abort()

    # --- from the other end

    def arrive(self, content: bytes, on_read: Callable[[], None]) -> None:
        """A block comes in; `on_read` is called when it is the relay's."""
        if not self._lost:
            self._kernel.append((content, on_read))
            self._read()

    def arrive_eof(self) -> None:
        """The server is gone, after what it sent."""
        self._eof = True
        self._wake()

    def _read(self) -> None:
        while self._kernel and len(self._blocks) < _BLOCKS:
            content, on_read = self._kernel.pop(0)
            self._blocks.append(content)
            self.received += len(content)
            on_read()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class SimSession:
    """The server's end of a connection."""

    def __init__(self, server: "SimServer", number: int, life: Life | None, session: Session) -> None:
        self.server = server
        self.number = number
        self.life = life
        self.session = session
        self.open = True
        self.began = server.loop.time()
        self.connection = SimConnection(self, server.loop)
        self._events: list[tuple[bytes, Message, SimQueue | None, int]] = []
        self._flushing = False
        self._last_at = 0.0

    def __str__(self) -> str:
        return f"session{self.number}"

    def is_open_to(self, life: Life) -> bool:
        """Whether this life has not closed it."""
        return self.life is life and not self.connection.is_closed

    # --- from the relay

    def on_block(self, content: bytes) -> None:
        """It sent a block."""
        self.server.later(lambda: self._take(content))

    def on_end(self) -> None:
        """It says that it sends no more."""
        self.server.later(self.drop)

    def on_abort(self) -> None:
        """It is gone."""
        self.server.later(self.drop)

    # --- what the server does

    def vanish(self) -> None:
        """The way to it is dead, and nobody says so."""
        if self.open:
            self.open = False
            self.server.forget(self)

    def drop(self) -> None:
        """Close the connection. What was sent arrives before that."""
        if self.open:
            self.open = False
            self.server.forget(self)
            self._in_order(self.connection.arrive_eof)

    def _take(self, content: bytes) -> None:
        if not self.open or self.server.silent:
            return
        answers = []
        for t in parse_block(self.session, content):
            if isinstance(t, Invalid):
                raise AssertionError("the relay sent what does not parse")
            answer = self.server.do(self, t)
            if answer is not None:
                answers.append(
                    encode_transmission(self.session, t.corr_id, t.entity_id, answer.encode(self.session.version))
                )
        self._send(answers, [])

    def push(self, queue: SimQueue, event: Message, number: int = 0) -> None:
        """An event, some time soon."""
        self._say((queue.notifier_id, event, queue, number))

    def tell(self, entity_id: bytes, event: Message) -> None:
        """One of no queue."""
        self._say((entity_id, event, None, 0))

    def _say(self, event: tuple[bytes, Message, SimQueue | None, int]) -> None:
        self._events.append(event)
        if not self._flushing:
            self._flushing = True
            self.server.loop.in_world(self.server.rng.uniform(*_BATCH), self._flush)

    def _flush(self) -> None:
        self._flushing = False
        events, self._events = self._events, []
        if not self.open or not events:
            return
        encoded = [
            encode_transmission(self.session, b"", nid, e.encode(self.session.version)) for nid, e, _, _ in events
        ]
        self._send(encoded, [(q, n) for _, e, q, n in events if isinstance(e, smp.NMsg) and q is not None])

    def _send(self, transmissions: Sequence[bytes], numbers: Sequence[tuple[SimQueue, int]]) -> None:
        """`numbers`: what is told when the last of the blocks was read."""
        blocks = encode_blocks(self.session, transmissions)
        for block in blocks:
            told = list(numbers) if block is blocks[-1] else []
            self._in_order(lambda block=block, told=told: self._arrive(block, told))

    def _arrive(self, block: bytes, numbers: Sequence[tuple[SimQueue, int]]) -> None:
        if self.life is None or self.life.alive:
            self.connection.arrive(block, lambda: self.server.on_read(self, numbers))

    def _in_order(self, callback: Callable[[], None]) -> None:
        loop = self.server.loop
        self._last_at = max(self._last_at + 1e-5, loop.time() + self.server.rng.uniform(*_LATENCY))
        loop.in_world(self._last_at - loop.time(), self._alive, callback)

    def _alive(self, callback: Callable[[], None]) -> None:
        if self.life is None:
            callback()
        elif self.life.alive:
            self.life.context.run(self.life.step, callback)


class SimServer:
    """An SMP server. `on_read` is told which notifications a life of the relay has read from a socket."""

    version = _VERSION

    def __init__(self, number: int, loop: VirtualLoop, rng: Random, trace: Trace) -> None:
        self.number = number
        self.address = ServerAddress("smp", (f"smp{number}.example.org",), "", rng.randbytes(32))
        self.loop = loop
        self.rng = rng
        self.queues: dict[bytes, SimQueue] = {}
        self.sessions: list[SimSession] = []
        self.up = True
        self.silent = False
        self.hangs = False  # takes connections, and says nothing
        self.well_since = loop.time()
        self.on_read: Callable[[SimSession, Sequence[tuple[SimQueue, int]]], None] = lambda _session, _numbers: None
        self._trace = trace
        self._count = 0

    def __str__(self) -> str:
        return f"smp{self.number}"

    def later(self, callback: Callable[[], None]) -> None:
        """After the latency of the network."""
        self.loop.in_world(self.rng.uniform(*_LATENCY), callback)

    def queue(self, number: int) -> SimQueue:
        """A new one."""
        key = Ed25519PrivateKey.from_private_bytes(self.rng.randbytes(32))
        queue = SimQueue(number, self, self.rng.randbytes(24), key)
        self.queues[queue.notifier_id] = queue
        return queue

    def agree(self, _service: ServiceCredentials | None) -> Session:
        """What both handshakes come to: it knows no services."""
        return Session("smp", self.version, self.rng.randbytes(32))

    async def connect(self, service: ServiceCredentials | None = None) -> tuple[SimConnection, Session]:
        """What `smp_bridge.connecting.connect` gives. Raises OSError, TimeoutError, HandshakeError."""
        await asyncio.sleep(self.rng.uniform(*_LATENCY) * 3)
        if self.hangs:
            self._trace.fault("smp:hangs", self)
            await asyncio.sleep(45)
            raise TimeoutError
        if not self.up:
            self._trace.fault("smp:refused", self)
            raise ConnectionRefusedError("connection refused")
        agreed = self.agree(service)
        self._count += 1
        session = SimSession(self, self._count, current_life(), agreed)
        self.sessions.append(session)
        self._trace.note(self, "takes", session)
        return session.connection, agreed

    def do(self, session: SimSession, t: Transmission) -> Message | None:
        """A command of the relay's."""
        command = smp.parse_command(t.command, self.version)
        match command:
            case smp.Ping():
                return smp.Pong()
            case smp.NSub():
                return self._subscribe(session, t)
        raise AssertionError(f"the relay sent {type(command).__name__}")

    def _subscribe(self, session: SimSession, t: Transmission) -> Message:
        queue = self.queues.get(t.entity_id)
        key = queue.key.public_key() if queue else None
        if queue is None or queue.deleted or not verify_transmission(session.session, t, key):
            self._trace.fault("smp:auth")
            return ERR_AUTH
        self.give(queue, session)
        return smp.Ok()

    def give(self, queue: SimQueue, session: SimSession) -> None:
        """It is subscribed now, and gets what nobody had; who was before is told."""
        before, queue.subscriber = queue.subscriber, session
        if isinstance(before, SimSession) and before is not session:
            self._end(queue, before, smp.End())
        pending, queue.pending = queue.pending, []
        for number in pending:
            session.push(queue, self._nmsg(number), number)

    def _nmsg(self, number: int) -> smp.NMsg:
        meta = number.to_bytes(8, "big") + bytes(_META_SIZE - 8)
        return smp.NMsg(self.rng.randbytes(NONCE_SIZE), meta)

    def _end(self, queue: SimQueue, session: SimSession, event: Message) -> None:
        queue.ends_to.append(session)
        if self.rng.random() < 0.5:
            self._trace.fault("smp:late_end", queue)
            self.loop.in_world(self.rng.uniform(1, 15), session.push, queue, event)
        else:
            session.push(queue, event)

    def forget(self, session: SimSession) -> None:
        """A session is over."""
        if session in self.sessions:
            self.sessions.remove(session)
        for queue in self.queues.values():
            if queue.subscriber is session:
                queue.subscriber = None
        self._trace.note(self, "has lost", session)

    # --- what others do

    def notify(self, queue: SimQueue) -> None:
        """A message came for a queue."""
        if queue.deleted:
            return
        queue.sent += 1
        self._trace.note(queue, "has", queue.sent)
        if isinstance(queue.subscriber, SimSession):
            queue.subscriber.push(queue, self._nmsg(queue.sent), queue.sent)
        elif queue.subscriber is None:
            queue.pending.append(queue.sent)

    def delete(self, queue: SimQueue) -> None:
        """The recipient deletes a queue."""
        queue.deleted = True
        if isinstance(queue.subscriber, SimSession):
            self._end(queue, queue.subscriber, smp.Deld())
        queue.subscriber = None

    def take_over(self, queue: SimQueue) -> None:
        """Somebody else subscribes a queue, with the same key."""
        if isinstance(queue.subscriber, SimSession):
            self._end(queue, queue.subscriber, smp.End())
        queue.subscriber = "another"

    def drop_all(self) -> None:
        """All connections break."""
        for session in list(self.sessions):
            session.drop()

    def vanish_all(self) -> None:
        """The network forgets all connections."""
        for session in list(self.sessions):
            session.vanish()

    def private_key(self, queue: SimQueue) -> bytes:
        """What SNEW carries."""
        return crypto.encode_private(queue.key)
