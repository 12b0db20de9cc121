"""One primary: what is asked of it meanwhile goes out together, in a few pipelines at a time.

A command alone takes some 100 µs of our processor, one of many in a pipeline 9 (with redis-py's clients 150 and 22). So
each connection belongs to a task of its own, which takes what waits (all that was asked for in this turn of the loop,
or while the others were busy), sends it, and reads as many answers. Whoever asked holds a future only: if he goes, his
answer is read nevertheless, and nobody else gets it. Nothing is MULTI: each call ends for itself.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from redis.exceptions import ReadOnlyError

from ntf_server.store.redis.call import ASKING, Pending
from ntf_server.store.redis.connection import TROUBLE, Connection
from ntf_server.store.redis.durability import Durability
from ntf_server.store.redis.url import Endpoint

log = logging.getLogger(__name__)

MAX_CALLS: Final = 128  # in a pipeline
MAX_BYTES: Final = 1 << 20  # in a pipeline of more than one call
_EACH: Final = 0.01  # seconds that a script may take, at most, so that those behind it are not late

Dial = Callable[[Endpoint], Awaitable[Connection]]


class Owner(Protocol):
    """Who hears of how calls end, and of connections that are made; `on_commit`: how many seconds a pipeline took that
    wrote something.
    """

    on_commit: Callable[[float], None]

    def answered(self, pending: Pending, answer: Any) -> None:
        """It is done."""
        ...

    def failed(self, pending: Pending, at: Endpoint, error: Exception) -> None:
        """It may or may not be done."""
        ...

    def connected(self, at: Endpoint, history: str) -> None:
        """See `Connection`. Nothing was asked over it yet."""
        ...


class Primary:
    """`put` calls; `retire` when it is primary no more, `close` at the end.

    `pipelines` may be under way at once, each over a connection of its own, made when it is needed. A server that says
    nothing for `patience` seconds, and some for each call, has lost its connection.
    """

    def __init__(
        self, endpoint: Endpoint, dial: Dial, owner: Owner, *, pipelines: int, patience: float, durability: Durability
    ) -> None:
        self.endpoint: Final = endpoint
        self.pipelines = 0  # sent until now
        self.heard_at = float("-inf")  # when it answered a pipeline last, by the loop's time
        self.busy_until = float("-inf")  # it may be, with what was sent: the answers to a pipeline come together
        self._given_up_at = float("-inf")  # since it said nothing
        self._dial = dial
        self._owner = owner
        self._most = pipelines
        self._patience = patience
        self._durability = durability
        self._barrier = durability.commands()
        self._waiting: deque[Pending] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []  # the last one first: those that are seldom needed stay asleep
        self._called = False  # a worker is on its way to what waits
        self._connected = 0
        self._retired = False
        self._now = asyncio.get_running_loop().time

    def is_silent(self, since: float, seconds: float) -> bool:
        """Whether it answered nothing since then, though it can have done what it was sent so many seconds ago."""
        return self.heard_at < since and self.busy_until < self._now() - seconds

    def give_up(self) -> None:
        """It said nothing for long enough: until it says something nobody else waits for that long."""
        self._given_up_at = self._now()

    @property
    def is_given_up(self) -> bool:
        """It has said nothing since then."""
        return self.heard_at < self._given_up_at

    def put(self, pending: Pending) -> None:
        """It goes out with what else is asked for in this turn of the loop, or later."""
        self._waiting.append(pending)
        if not self._called:
            self._call_worker()

    def _call_worker(self) -> None:
        while self._idle:
            wake = self._idle.pop()
            if not wake.done():
                wake.set_result(None)
                self._called = True
                return
        if len(self._workers) < self._most:
            worker = asyncio.create_task(self._work(), name=f"redis {self.endpoint}")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
            self._called = True

    def give_back(self, *, asking: bool = True) -> list[Pending]:
        """What was not sent yet; without `asking`: but for what is to be done nowhere else."""
        out = [pending for pending in self._waiting if asking or not pending.asking]
        self._waiting = deque(() if asking else (pending for pending in self._waiting if pending.asking))
        return out

    def retire(self) -> list[Pending]:
        """It has no slots any more: what was not sent comes back, what is under way ends."""
        self._retired = True
        for wake in self._idle:
            if not wake.done():
                wake.set_result(None)
        return self.give_back(asking=False)

    @property
    def is_over(self) -> bool:
        """Retired, and nothing is under way."""
        return self._retired and not self._workers

    async def close(self) -> None:
        """At once; those who asked are not told."""
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    # --- a worker

    async def _work(self) -> None:
        connection: Connection | None = None
        try:
            while batch := await self._next():
                connection = await self._send(connection, batch)
        finally:
            if connection is not None:
                self._connected -= 1
                await connection.close(wait=True)

    async def _next(self) -> list[Pending]:
        """The next pipeline; nothing: there will be none."""
        while True:
            batch = self._take()
            if batch or self._retired:
                return batch
            wake = asyncio.get_running_loop().create_future()
            self._idle.append(wake)
            await wake

    def _take(self) -> list[Pending]:
        self._called = False
        batch: list[Pending] = []
        size = 0
        while self._waiting and len(batch) < MAX_CALLS and size < MAX_BYTES:
            pending = self._waiting.popleft()
            if pending.future.done():  # nobody waits for it any more
                self._owner.answered(pending, None)
                continue
            batch.append(pending)
            size += len(pending.packed)
        if self._waiting:
            self._call_worker()
        return batch

    async def _send(self, connection: Connection | None, batch: Sequence[Pending]) -> Connection | None:
        """Gives the connection, if it is still of use."""
        commands, places = self._packed(batch)
        barrier = self._barrier if any(pending.writes for pending in batch) else []
        count = len(commands) + len(barrier)
        longest = _EACH * len(batch) + (self._durability.timeout if barrier else 0.0)
        answers: list[Any] = []
        error: Exception | None = None
        try:
            if connection is not None and not await connection.is_idle():
                await self._hang_up(connection)
                connection = None
            if connection is None:
                connection = await self._connect()
            self.pipelines += 1
            sent_at = self._now()
            self.busy_until = max(self.busy_until, sent_at + longest)
            await connection.exchange([*commands, *barrier], answers, count, self._patience + longest)
            self.heard_at = self._now()
            if any(pending.writes for pending in batch):
                self._owner.on_commit(self.heard_at - sent_at)
        except TROUBLE as e:
            error = e
        except Exception as e:
            log.exception("a pipeline could not be sent")  # a fault of ours, which must not be the end of the worker
            error = e
        if error is not None or any(isinstance(answer, ReadOnlyError) for answer in answers):
            await self._hang_up(connection)
            connection = None
        self._tell(batch, places, answers, error, len(barrier))
        return connection

    @staticmethod
    def _packed(batch: Sequence[Pending]) -> tuple[list[bytes], list[int]]:
        """Commands, and where among them each call is."""
        commands: list[bytes] = []
        places: list[int] = []
        in_full: set[str] = set()
        for pending in batch:
            if pending.asking:
                commands.append(ASKING)
            places.append(len(commands))
            commands.append(pending.wire(in_full))
        return commands, places

    async def _connect(self) -> Connection:
        try:
            connection = await self._dial(self.endpoint)
        except TROUBLE as e:
            if not self._connected:  # what waits would learn the same, one pipeline after another
                for pending in self.give_back():
                    self._owner.failed(pending, self.endpoint, e)
            raise
        self._connected += 1
        self._owner.connected(self.endpoint, connection.history)
        return connection

    async def _hang_up(self, connection: Connection | None) -> None:
        if connection is not None:
            self._connected -= 1
            await connection.close()

    def _tell(
        self,
        batch: Sequence[Pending],
        places: Sequence[int],
        answers: Sequence[Any],
        error: Exception | None,
        behind: int,
    ) -> None:
        shortfall = error
        if behind and error is None:
            shortfall = self._durability.shortfall(answers[-behind:], self.endpoint)
        for pending, place in zip(batch, places, strict=True):
            answer = answers[place] if place < len(answers) else error
            if isinstance(answer, Exception):
                self._owner.failed(pending, self.endpoint, answer)
            elif behind and pending.writes and shortfall is not None:
                self._owner.failed(pending, self.endpoint, shortfall)
            else:
                self._owner.answered(pending, answer)
