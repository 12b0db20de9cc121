"""One life and one end: who owns every task of the relay, starts again what failed, and stops all in order."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, TypeVar

from ntf_server.observe.events import Event, EventLog

T = TypeVar("T")

log = logging.getLogger(__name__)
events = EventLog(__name__)

STOP_DEADLINE: Final = 20.0  # seconds for a whole stop; TimeoutStopSec of the unit is more
MIN_BACKOFF: Final = 1.0  # seconds
MAX_BACKOFF: Final = 60.0
LONG_ENOUGH: Final = 60.0  # seconds that a part ran after which its backoff begins anew
SHOUT_EVERY: Final = 60.0  # seconds between two tracebacks of one name
LEAST: Final = 0.5  # seconds that each stage gets, also when the deadline has passed: the store has to be closed

Run = Callable[[], Awaitable[None]]
Close = Callable[[float], Awaitable[None]]


class Stage(IntEnum):
    """What a stop ends, in this order: what was read from sockets is stored, and the store closes last."""

    ACCEPT = 1  # taking in: the listener and its sessions, periodic work, the operator's side
    DRAIN = 2  # SMP sessions: nothing is sent any more, what was read is stored
    PUSH = 3  # pushes in flight, and their outcomes
    CLOSE = 4  # the store


@dataclass(slots=True)
class _Owned:
    """What a stage ends: its tasks first, then what was registered to be closed, the newest first."""

    tasks: set["asyncio.Task[Any]"] = field(default_factory=set)
    closings: list[tuple[str, Close]] = field(default_factory=list)


class Supervisor:
    """Owner of all tasks of a relay. Made in a running loop; `stop` it.

    `count` is called with a name each time that something of that name fails. `failed` gets the exception of a critical
    part: whoever runs the relay waits for it. Time is the loop's; `rng` gives numbers from 0 to 1.
    """

    def __init__(
        self, count: Callable[[str], None] = lambda _: None, *, rng: Callable[[], float] = random.random
    ) -> None:
        self._count = count
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._owned = {stage: _Owned() for stage in Stage}
        self._ended: set[Stage] = set()
        self._waiting: set[str] = set()
        self._shouted: dict[str, float] = {}
        self.failed: asyncio.Future[None] = self._loop.create_future()

    @property
    def waiting(self) -> frozenset[str]:
        """Parts that failed, and wait to be started again."""
        return frozenset(self._waiting)

    def part(self, name: str, run: Run, *, critical: bool = False, stage: Stage = Stage.ACCEPT) -> None:
        """Run it from now to its stage of a stop, where it is cancelled.

        If it fails it is started again, after 1 s at first and 60 s at most; a critical one fails the relay instead.
        One that returns is done. Raises RuntimeError if the stage is over.
        """
        self._check_running(name, stage)
        self._create(self._look_after(name, run, stage, critical=critical), name, stage)

    def spawn(
        self, coro: Coroutine[Any, Any, T], name: str, *, stage: Stage = Stage.ACCEPT
    ) -> "asyncio.Task[T | None]":
        """A task that ends by itself. If it fails, that is logged and counted, and its result is None.

        Raises RuntimeError if the stage is over.
        """
        try:
            self._check_running(name, stage)
        except RuntimeError:
            coro.close()  # or asyncio complains that it was never awaited
            raise
        return self._create(self._see_to(coro, name), name, stage)

    def on_stop(self, stage: Stage, name: str, close: Close) -> None:
        """Have `close` called with the seconds that are left, at that stage of a stop."""
        self._owned[stage].closings.append((name, close))

    def fail(self, error: BaseException) -> None:
        """End the relay with this error, unless it already ends with another."""
        if not self.failed.done():
            self.failed.set_exception(error)

    def failed_with(self, kind: type[BaseException]) -> bool:
        """Whether the relay ends with such an error."""
        return self.failed.done() and not self.failed.cancelled() and isinstance(self.failed.exception(), kind)

    async def stop(self, deadline: float = STOP_DEADLINE) -> None:
        """End everything, stage by stage, within so many seconds (and LEAST a stage, if others took them all).

        Never raises what a part raises: that is logged and counted. What does not end although it is cancelled is
        named in the log and left.
        """
        ends_at = self._loop.time() + deadline
        try:
            for stage in Stage:
                self._ended.add(stage)
                until = max(ends_at, self._loop.time() + LEAST)
                await self._cancel(self._owned[stage].tasks, until)
                closings = self._owned[stage].closings
                while closings:
                    name, close = closings.pop()
                    await self._close(name, close, max(ends_at, self._loop.time() + LEAST))
        finally:
            if self.failed.done() and not self.failed.cancelled():
                self.failed.exception()  # or asyncio complains that nobody looked
            self.failed.cancel()

    def _check_running(self, name: str, stage: Stage) -> None:
        if stage in self._ended:
            raise RuntimeError(f"{name}: the relay has stopped")

    def _create(self, coro: Coroutine[Any, Any, T], name: str, stage: Stage) -> "asyncio.Task[T]":
        task = self._loop.create_task(coro, name=name)
        self._owned[stage].tasks.add(task)
        task.add_done_callback(self._owned[stage].tasks.discard)
        return task

    async def _look_after(self, name: str, run: Run, stage: Stage, *, critical: bool) -> None:
        failures = 0
        while True:
            started = self._loop.time()
            error = await self._failure_of(run)
            if error is None:
                return
            self._tell(name, error)
            if stage in self._ended:
                return
            if critical:
                self.fail(error)
                return
            failures = 0 if self._loop.time() - started >= LONG_ENOUGH else failures
            self._waiting.add(name)
            try:
                await asyncio.sleep(backoff(failures, self._rng()))
            finally:
                self._waiting.discard(name)
            failures += 1

    @staticmethod
    async def _failure_of(run: Run) -> BaseException | None:
        """How it failed, None if it is done. Raises CancelledError when it is us who are cancelled."""
        task = asyncio.current_task()
        assert task is not None
        try:
            await run()
        except asyncio.CancelledError as e:
            if task.cancelling():
                raise
            return e  # from inside: nobody asked this part to end
        except Exception as e:
            return e
        return None

    async def _see_to(self, coro: Coroutine[Any, Any, T], name: str) -> T | None:
        try:
            return await coro
        except Exception as e:
            self._tell(name, e)
            return None

    def _tell(self, name: str, error: BaseException) -> None:
        """Count it, and log it with its traceback, once a minute at most. What ends the relay is told by others."""
        self._count(name)
        if self._ends_with(error):
            return
        now = self._loop.time()
        if now - self._shouted.get(name, float("-inf")) >= SHOUT_EVERY:
            self._shouted[name] = now
            why = str(error) or type(error).__name__
            events.tell(Event.PART_FAILED, "%s failed: %s", name, why, exc_info=error, part=name, reason=why)

    def _ends_with(self, error: BaseException) -> bool:
        return self.failed_with(type(error)) and self.failed.exception() is error

    async def _cancel(self, owned: set["asyncio.Task[Any]"], until: float) -> None:
        """Cancel tasks, each second again those that swallow it, and wait for them."""
        while tasks := set(owned):
            for task in tasks:
                task.cancel()
            left = until - self._loop.time()
            if left <= 0:
                log.error("did not end: %s", ", ".join(sorted(task.get_name() for task in tasks)))
                owned.clear()
                return
            await asyncio.wait(tasks, timeout=min(left, 1.0))
            owned -= {task for task in tasks if task.done()}

    async def _close(self, name: str, close: Close, until: float) -> None:
        left = until - self._loop.time()
        task = self._loop.create_task(self._see_to(self._closed(close, left), name), name=f"close {name}")
        done, _ = await asyncio.wait([task], timeout=left)
        if not done:
            log.error("%s did not close within %.1f s", name, left)
            await self._cancel({task}, self._loop.time() + LEAST)

    @staticmethod
    async def _closed(close: Close, left: float) -> None:
        await close(left)


def backoff(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row before this one; `chance` from 0 to 1 spreads them."""
    return float(min(MAX_BACKOFF, MIN_BACKOFF * 2 ** min(failures, 10) * (1 + chance)))
