"""An event loop in virtual time: nobody sleeps, there are no sockets and no threads; and lives, which can be cut short.

Time stands still while callbacks run and jumps to the next timer when none is left. Callbacks run in the order in which
they were asked for, so that a run is the same each time. What would go to a thread is done at once.
"""

import asyncio
import contextlib
import contextvars
import itertools
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from typing import Any, Final, TypeVar

T = TypeVar("T")

START: Final = 1000.0  # virtual seconds at which a run begins: 0 would hide mistakes
_TICK: Final = 1e-6  # more than a float of a year of seconds is apart from the next
_MAX_STEPS: Final = 20_000_000  # callbacks of a run, before it is taken for an endless loop
_MAX_AT_ONCE: Final = 200_000  # of these without any time passing


class DeadlockError(Exception):
    """Nothing can ever happen any more, but the run is not over."""


class EndlessError(Exception):
    """Callbacks run and run, and the end does not come nearer."""


class Life:
    """What a process does from its start to its end. A life that is over does nothing: no callback, no `finally`.

    `steps`: callbacks that it ran; it dies before number `dies_at`, which calls `on_death`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.steps = 0
        self.dies_at: int | None = None
        self.on_death: Callable[[], None] = lambda: None
        self.context = contextvars.Context()
        self.context.run(_LIFE.set, self)
        self.stands_still = False
        self._held: list[tuple[contextvars.Context, Callable[..., object], tuple[object, ...]]] = []
        self.tasks: list[asyncio.Task[Any]] = []  # kept: a coroutine that is forgotten would run its `finally`

    def step(self, callback: Callable[..., object], *args: object) -> None:
        """Run a callback, if the life still lasts."""
        if not self.alive:
            return
        if self.stands_still:
            self._held.append((contextvars.copy_context(), callback, args))
            return
        self.steps += 1
        if self.dies_at is not None and self.steps >= self.dies_at:
            self.die()
            return
        callback(*args)

    def die(self) -> None:
        """Kill -9."""
        if self.alive:
            self.alive = False
            self.on_death()

    def stand_still(self) -> None:
        """SIGSTOP: nothing is done, while time goes by."""
        self.stands_still = True

    def go_on(self, loop: "VirtualLoop") -> None:
        """SIGCONT: all that should have been done meanwhile is done now, in its order."""
        self.stands_still = False
        held, self._held = self._held, []
        for context, callback, args in held:
            loop.call_soon(callback, *args, context=context)

    def bury(self) -> None:
        """After the run: let its coroutines go, whatever their `finally` says."""
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False
                with contextlib.suppress(BaseException), warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # what it was about to await is forgotten too
                    task.get_coro().close()
        self.tasks.clear()


_LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


def current_life() -> Life | None:
    """Whose code this is; None: the world's."""
    return _LIFE.get()


class _Future(asyncio.Future):
    """Its hash is a number, not where it lies in memory: sets of futures give the same order in each run."""

    def __init__(self, *, loop: "VirtualLoop") -> None:
        super().__init__(loop=loop)
        self._number = loop.number()

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task):
    """See `_Future`."""

    def __init__(self, coro: Any, *, loop: "VirtualLoop", **options: Any) -> None:
        self._number = loop.number()  # first: asyncio keeps a set of all tasks
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


class _Selector:
    """What the loop waits with: time."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """Let time pass."""
        self._loop.pass_time(timeout)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """`time()` is virtual. Use `run_world`."""

    def __init__(self) -> None:
        super().__init__()
        self._now = START
        self._selector = _Selector(self)
        self._clock_resolution = _TICK
        self.world = contextvars.Context()
        self._at_once = 0
        self._numbers = itertools.count()
        self.steps = 0
        self.lives: list[Life] = []
        self.connect_to: Callable[..., Coroutine[Any, Any, tuple[Any, Any]]] = _connect_nowhere
        self.errors: list[str] = []  # what asyncio's exception handler was told
        self.set_exception_handler(self._on_error)
        self.set_task_factory(self._new_task)

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def number(self) -> int:
        """The next one."""
        return next(self._numbers)

    def pass_time(self, timeout: float | None) -> None:
        """Called when no callback can run before `timeout` is over; None: nothing is waited for."""
        if timeout == 0:
            self._at_once += 1
            if self._at_once > _MAX_AT_ONCE:
                raise EndlessError(f"no time passes any more at {self._now:.3f}: {self._next_callbacks()}")
            return
        self._at_once = 0
        scheduled: list[asyncio.TimerHandle] = self._scheduled
        if not scheduled:
            waiting = [t.get_name() for t in asyncio.all_tasks(self) if not t.done()]
            raise DeadlockError(f"nothing can happen any more; tasks that wait: {waiting}")
        self._now = max(self._now, scheduled[0].when())

    def _next_callbacks(self) -> list[str]:
        names = []
        for handle in list(self._ready)[:5]:
            args = [handle._callback, *(handle._args or ())]
            tasks = [t for a in args if isinstance(t := getattr(a, "__self__", None), asyncio.Task)]
            names.append(f"{tasks[0].get_name()} {tasks[0].get_coro()!r}" if tasks else str(args[0]))
        return names

    # --- lives

    def begin(self, life: Life, coro: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run a coroutine as a part of a life; what it starts is of that life too."""
        if life not in self.lives:
            self.lives.append(life)
        return life.context.run(lambda: self.create_task(coro))

    def in_world(self, delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Call it after a while, whoever lives or dies meanwhile."""
        return self.call_later(delay, callback, *args, context=self.world)

    def call_soon(
        self, callback: Callable[..., object], *args: object, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """See asyncio; callbacks of a life end with it."""
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise EndlessError("the run does not end")
        life = _LIFE.get() if context is None else context.get(_LIFE)
        if life is None:
            return super().call_soon(callback, *args, context=context)
        return super().call_soon(life.step, callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: object, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio; what waits for however short a time sees time pass."""
        return self.call_at(self._now + max(delay, _TICK if delay > 0 else 0.0), callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio; callbacks of a life end with it."""
        life = _LIFE.get() if context is None else context.get(_LIFE)
        if life is None:
            return super().call_at(when, callback, *args, context=context)
        return super().call_at(when, life.step, callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: object, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """There are no threads."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        """At once, in the loop."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as e:
            future.set_exception(e)
        return future

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: str, port: int, **_: object
    ) -> tuple[Any, Any]:
        """See asyncio: to whatever there is in the world."""
        return await self.connect_to(protocol_factory, host, port)

    def create_future(self) -> "asyncio.Future[Any]":
        """See asyncio; in sets they stand in the order of their numbers."""
        return _Future(loop=self)

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, coro: Any, context: contextvars.Context | None = None, **options: Any
    ) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = _Task(coro, loop=loop, context=context, **options)
        life = _LIFE.get() if context is None else context.get(_LIFE)
        if life is not None:
            life.tasks.append(task)
            if len(life.tasks) % 1000 == 0:
                life.tasks = [t for t in life.tasks if not t.done()]
        return task

    def _on_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exception = context.get("exception")
        self.errors.append(f"{context.get('message')}: {exception!r}")

    # --- the end

    def left(self, of: Life) -> list[str]:
        """Tasks and timers of a life that have not ended by themselves, by name: there must be none when it is over."""
        out = [f"task {t.get_name()}" for t in of.tasks if not t.done()]
        for handle in self._scheduled:
            if not handle.cancelled() and handle._context.get(_LIFE) is of:
                out.append(f"timer {handle._args[0] if handle._args else handle._callback!r}")
        return out

    # --- what the base class wants of a loop

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""


async def _connect_nowhere(_protocol: Callable[[], Any], host: str, _port: int) -> tuple[Any, Any]:
    raise ConnectionRefusedError(f"there is no {host}")


@contextlib.contextmanager
def virtual_loop() -> Iterator[VirtualLoop]:
    """A loop for one run; everything of it is let go at the end."""
    loop = VirtualLoop()
    try:
        yield loop
    finally:
        for life in loop.lives:
            life.alive = False
            life.bury()
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False
        loop.close()
