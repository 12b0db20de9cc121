"""One connection to an SMP or NTF server: pipelined requests matched by correlation id, events, pings."""

import asyncio
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Self

from smp_bridge import ntf, smp
from smp_bridge.address import Scheme, ServerAddress
from smp_bridge.connecting import Connect, connect
from smp_bridge.encoding import ParseError
from smp_bridge.handshake import ServiceCredentials, Versions
from smp_bridge.network import Network
from smp_bridge.notifications import parse_notifications
from smp_bridge.transmission import (
    CORR_ID_SIZE,
    AuthKey,
    Block,
    Err,
    Invalid,
    Message,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
)
from smp_bridge.transport import BlockConnection, ConnectionClosedError, Scratch

log = logging.getLogger(__name__)

REQUEST_TIMEOUT: Final = 30.0
PING_INTERVAL: Final = 30.0
PING_TIMEOUT: Final = 15.0
_MAX_SILENCE: Final = 900.0  # seconds that a command may be at work before a silent server counts as hung
_PINGS: Final = (smp.Ping, ntf.Ping)
_PONGS: Final = (smp.Pong, ntf.Pong)
_PREFIX_SIZE: Final = CORR_ID_SIZE - 2
_SOON: Final = 0.001
_SIGNED_AT_ONCE: Final = 32

# How `Client.finish` reads on. A server that is told of the end closes a round trip later.
_QUIET: Final = 2.0  # seconds without a byte: nothing comes any more (a way through Tor takes one)
_READ_ON: Final = 5.0  # seconds in all, those in which `on_events` holds up the reading not counted
_READ_ON_BYTES: Final = 2**24  # more than a socket's buffers hold

_PARSE: Final[dict[Scheme, Callable[[bytes, int], Message]]] = {"smp": smp.parse_answer, "ntf": ntf.parse_answer}


class ServerError(Exception):
    """The server answered with an error."""

    def __init__(self, error: Err) -> None:
        super().__init__(str(error))
        self.error = error


class UnexpectedAnswerError(Exception):
    """The server answered what the protocol does not allow."""


@dataclass(frozen=True, slots=True)
class Request:
    """A command, the entity that it is for, and the key that authorizes it."""

    command: Message
    entity_id: bytes = field(default=b"", repr=False)
    key: AuthKey | None = field(default=None, repr=False)
    as_service: bool = False


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that would take three times as long
class Event:
    """What the server sent unasked."""

    entity_id: bytes = field(repr=False)
    message: Message


class Batch:
    """Requests that were sent together; lighter than a future for each.

    `answers`: the answer to each request, UnexpectedAnswerError for one that makes no sense, None while there is none.
    """

    __slots__ = ("_done", "_missing", "answers", "prefix")

    def __init__(self, prefix: bytes, size: int) -> None:
        self.prefix = prefix  # of the correlation ids; the place in the batch follows
        self.answers: list[Message | UnexpectedAnswerError | None] = [None] * size
        self._missing = size
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, index: int, answer: Message | UnexpectedAnswerError) -> None:
        """The answer to one request; the first counts."""
        if index < len(self.answers) and self.answers[index] is None:
            self.answers[index] = answer
            self._missing -= 1
            if not self._missing:
                self.close()

    def close(self) -> None:
        """No more answers will come."""
        if not self._done.done():
            self._done.set_result(None)

    async def wait(self, timeout: float) -> None:
        """Until all answers are there, none will come any more, or `timeout` seconds are over."""
        await asyncio.wait([self._done], timeout=timeout)


EventHandler = Callable[[Sequence[Event]], Awaitable[None]]


async def _ignore(events: Sequence[Event]) -> None:
    """For clients that expect no events."""


class Client:
    """A connection after its handshake. Make it with `Client.connect`; it must be closed.

    `on_events` is awaited with the events of each block before the next block is read: it is the backpressure. When
    the connection is lost it still gets the events of all blocks that were read before; `closed` is done after that.

    A PING is sent after `ping_interval` seconds of silence, and when it is not answered within `ping_timeout` the
    connection is closed: the way is dead (`way_is_dead`). Servers answer PING behind the commands that came before,
    which may take minutes (wire.md, section 7): while any of these is unanswered only TCP judges, by what is
    acknowledged, for 15 minutes.
    """

    def __init__(
        self,
        connection: BlockConnection,
        session: Session,
        on_events: EventHandler = _ignore,
        *,
        ping_interval: float = PING_INTERVAL,
        ping_timeout: float = PING_TIMEOUT,
    ) -> None:
        self.session = session
        self._connection = connection
        self._on_events = on_events
        self._requests: dict[bytes, asyncio.Future[Message]] = {}
        self._batches: dict[bytes, Batch] = {}
        self._received_at = asyncio.get_running_loop().time()
        self._taking = False  # a block was received, and `on_events` is not done with it
        self._failed = 0  # blocks
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._sent = self._answered = 0  # commands, but PINGs
        self._silent = False
        self.closed: asyncio.Task[None] = asyncio.create_task(self._run(), name=f"{session.scheme} client")

    @classmethod
    async def connect(
        cls,
        address: ServerAddress,
        on_events: EventHandler = _ignore,
        *,
        context: ssl.SSLContext | None = None,
        versions: Versions | None = None,
        service: ServiceCredentials | None = None,
        network: Network | None = None,
        scratch: Scratch | None = None,
        ping_interval: float = PING_INTERVAL,
        ping_timeout: float = PING_TIMEOUT,
        by: Connect = connect,
    ) -> Self:
        """Connect and shake hands. Raises what `connecting.connect` raises."""
        connection, session = await by(
            address, context=context, versions=versions, service=service, network=network, scratch=scratch
        )
        return cls(connection, session, on_events, ping_interval=ping_interval, ping_timeout=ping_timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def request(
        self,
        command: Message,
        entity_id: bytes = b"",
        key: AuthKey | None = None,
        *,
        timeout: float = REQUEST_TIMEOUT,
    ) -> Message:
        """Send one command and wait for its answer.

        Raises ServerError (the server said no), UnexpectedAnswerError, ConnectionClosedError, TimeoutError.
        """
        async with asyncio.timeout(timeout):
            [answer] = self.send([Request(command, entity_id, key)])
            return await answer

    def send(self, requests: Sequence[Request]) -> list[asyncio.Future[Message]]:
        """Send commands in as few blocks as hold them, without waiting; the futures get what `request` gives.

        A future that is cancelled gives up its answer. Raises ConnectionClosedError, CryptoError, ValueError.
        """
        loop = asyncio.get_running_loop()
        corr_ids = [os.urandom(CORR_ID_SIZE) for _ in requests]
        encoded = [self._encode(corr_id, r) for corr_id, r in zip(corr_ids, requests, strict=True)]
        for block in encode_blocks(self.session, encoded):
            self._connection.send(block)
        self._sent += sum(not isinstance(r.command, _PINGS) for r in requests)
        futures: list[asyncio.Future[Message]] = []
        for corr_id in corr_ids:
            future: asyncio.Future[Message] = loop.create_future()
            self._requests[corr_id] = future
            future.add_done_callback(partial(self._forget, corr_id))
            futures.append(future)
        return futures

    async def send_block(self, requests: Sequence[Request]) -> Batch:
        """Send one block of the first requests, as many as fit; `forget` it when its answers are of no more interest.

        Raises ConnectionClosedError, CryptoError, ParseError (bad key), ValueError.
        """
        prefix, block = os.urandom(_PREFIX_SIZE), Block(self.session)
        for i, r in enumerate(requests):
            if not block.add(self._encode(prefix + i.to_bytes(2, "big"), r)):
                break
            if i % _SIGNED_AT_ONCE == _SIGNED_AT_ONCE - 1:
                await asyncio.sleep(0)  # a whole block takes some milliseconds: let others have the loop
        self._connection.send(block.content)
        self._sent += len(block)
        batch = self._batches[prefix] = Batch(prefix, len(block))
        return batch

    def forget(self, batch: Batch) -> None:
        """Take no more answers for a batch."""
        self._batches.pop(batch.prefix, None)
        batch.close()

    def _encode(self, corr_id: bytes, r: Request) -> bytes:
        command = r.command.encode(self.session.version)
        return encode_transmission(self.session, corr_id, r.entity_id, command, r.key, as_service=r.as_service)

    def _forget(self, corr_id: bytes, _: "asyncio.Future[Message]") -> None:
        self._requests.pop(corr_id, None)

    async def drain(self) -> None:
        """Wait until the server has taken enough of what was sent."""
        await self._connection.drain()

    @property
    def untaken(self) -> int:
        """How many blocks were read from the socket that `on_events` did not take, or not yet."""
        return self._connection.blocks + self._taking + self._failed

    @property
    def way_is_dead(self) -> bool:
        """Whether the connection ended since nothing came of what was sent: what the peer sent of late is lost too."""
        return self._silent or self._connection.timed_out

    async def finish(self) -> None:
        """Send no more, and hand to `on_events` what was received and what is about to come; `close` after it.

        The server is told (close_notify), which has it close. Until it does, reading goes on for as long as anything
        comes without a pause of 2 s, at most 5 s and 16 MiB, and however long `on_events` takes.
        """
        connection, loop = self._connection, asyncio.get_running_loop()
        connection.end()
        begin, time_left = connection.received, _READ_ON
        while not self.closed.done() and time_left > 0 and connection.received - begin < _READ_ON_BYTES:
            before, started = connection.received, loop.time()
            await asyncio.wait([self.closed], timeout=_QUIET)
            if connection.reading_paused:
                continue
            if connection.received == before:
                break
            time_left -= loop.time() - started
        connection.abort()
        await asyncio.wait([self.closed])

    async def stop(self) -> int:
        """Hand over nothing more: `on_events` is cancelled. How many blocks it did not take."""
        self.closed.cancel()
        await asyncio.wait([self.closed])
        return self.untaken

    async def close(self) -> None:
        """Close the connection now; what waits for an answer gets ConnectionClosedError.

        What was read and not handed to `on_events` is lost: see `untaken`, and `finish`.
        """
        try:
            await self.stop()
            self._give_up()  # a task that is cancelled before its first step never runs
            await self._connection.close()
        finally:
            self._connection.abort()

    def _give_up(self) -> None:
        for future in list(self._requests.values()):
            if not future.done():
                future.set_exception(ConnectionClosedError("the connection was closed"))
        for batch in self._batches.values():
            batch.close()
        self._batches.clear()

    async def _run(self) -> None:
        """Lives as long as the connection; ends without an exception when it is lost."""
        pinging = asyncio.create_task(self._ping())
        try:
            while True:
                content = await self._connection.receive()
                try:
                    await self._take(content)
                except Exception:
                    self._fail()
        except ConnectionClosedError:
            self._connection.abort()
        finally:
            pinging.cancel()
            self._give_up()

    def _fail(self) -> None:
        """A block could not be taken: the connection is closed, but what else was read is handed over."""
        if not self._failed:
            log.exception("handling events failed; the connection is closed")
        self._failed += 1
        self._taking = False
        self._connection.abort()

    async def _take(self, content: bytes) -> None:
        self._received_at = asyncio.get_running_loop().time()
        events = self._events(content)
        if events:
            self._taking = True
            await self._on_events(events)
            self._taking = False
            self._received_at = asyncio.get_running_loop().time()  # meanwhile nothing was read

    def _events(self, content: bytes) -> list[Event]:
        """The events of a block; its answers go to who waits for them."""
        if self.session.scheme == "smp" and (notifications := parse_notifications(self.session, content)):
            return [Event(*n) for n in notifications]
        answered = (self._answer(t) for t in parse_block(self.session, content))
        return [event for event in answered if event is not None]

    def _answer(self, t: Transmission | Invalid) -> Event | None:
        if isinstance(t, Invalid):
            return None
        batch = self._batches.get(t.corr_id[:_PREFIX_SIZE])
        index = int.from_bytes(t.corr_id[_PREFIX_SIZE:], "big")
        future = self._requests.get(t.corr_id) if t.corr_id else None
        try:
            message = _PARSE[self.session.scheme](t.command, self.session.version)
        except ParseError as e:
            self._answered += bool(t.corr_id)
            if batch is not None:
                batch.take(index, UnexpectedAnswerError(f"the answer does not parse: {e}"))
            if future is not None and not future.done():
                future.set_exception(UnexpectedAnswerError(f"the answer does not parse: {e}"))
            return None
        if t.corr_id and not isinstance(message, _PONGS):
            self._answered += 1
        if batch is not None:
            batch.take(index, message)
            return None
        if future is None:
            return None if t.corr_id else Event(t.entity_id, message)
        if future.done():
            return None
        if isinstance(message, Err):
            future.set_exception(ServerError(message))
        else:
            future.set_result(message)
        return None

    async def _ping(self) -> None:
        """Ping while nothing arrives; see the class for what an unanswered ping means."""
        loop = asyncio.get_running_loop()
        pinged_at = 0.0
        while True:
            left = max(self._received_at, pinged_at) + self._ping_interval - loop.time()
            if left > _SOON:  # less is as good as none: it may be too little for the clock to move by
                await asyncio.sleep(left)
                continue
            pinged_at = loop.time()
            try:
                alive = await self._is_alive()
            except ConnectionClosedError:
                return
            if not alive:
                self._silent = True
                self._connection.abort()
                return

    async def _is_alive(self) -> bool:
        """Send a PING: whether anything came of it. Raises ConnectionClosedError."""
        loop, connection = asyncio.get_running_loop(), self._connection
        started_at, before, sent = loop.time(), connection.received, self._sent
        [answer] = self.send([Request(smp.Ping() if self.session.scheme == "smp" else ntf.Ping())])
        try:
            while True:
                at_work = self._answered < sent
                await asyncio.wait([answer], timeout=self._ping_timeout)
                if answer.done():  # so is all that came before it, or it never will be
                    self._answered = max(self._answered, sent)
                    return True
                # While events are being taken nothing is read: that is not the server's silence.
                if connection.received > before or self._taking:
                    return True
                if not at_work or loop.time() - started_at >= _MAX_SILENCE:
                    return False
        finally:
            answer.cancel()
            if not answer.cancelled():
                answer.exception()  # nobody else looks
