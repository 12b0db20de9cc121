"""The SQLite engine in memory and in virtual time, on a disk that has bad days, and watched.

The database is what was committed: it outlives a life of the relay. The engine's two threads are timers of the loop, so
that commits, retries and reads take virtual time; all else of it is as it is.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from ntf_server.observe.metrics import Metrics
from ntf_server.store.clock import Clock
from ntf_server.store.contract import PartlyUnavailableError, StoreCorruptError, StoreUnavailableError
from ntf_server.store.memory import Times
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite import database
from ntf_server.store.sqlite.engine import SqliteStore
from sim.clock import WallClock
from sim.loop import VirtualLoop, current_life
from sim.trace import Trace

MASTER_KEY: Final = MasterKey(bytes(range(32)))
_MAX_GROUP: Final = 512
_READS: Final = frozenset(
    [
        "backlog",
        "device_of",
        "find_registration",
        "find_subscription",
        "find_token",
        "is_wanted",
        "last_push",
        "load",
        "page",
        "servers",
        "service_state",
        "standing",
        "subscription_count",
        "to_audit",
    ]
)
_READ_LIMIT: Final = 1.0  # seconds that a read may take, whatever is wrong
_WRITE_LIMIT: Final = 2.0  # seconds after which a write has failed, when the disk is not merely slow


class Disk:
    """What the database lies on. `trouble`: one of `TROUBLES`, or empty. `slowness`: seconds that a commit takes more.

    Time goes on inside a transaction that waits: `slept` is by how much in the callback that runs.
    """

    TROUBLES: Final = ("busy", "full", "slow")

    def __init__(self, loop: VirtualLoop, rng: Random, trace: Trace) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.trouble = ""
        self.until = 0.0
        self.slept = 0.0
        self.slowness = 0.0
        self._told = False
        self._healthy = 0  # while above 0
        self.connection: sqlite3.Connection | None = None

    def begin(self, trouble: str, seconds: float) -> None:
        """A bad time begins."""
        self.trouble, self.until, self._told = trouble, self.loop.time() + seconds, False
        self.slowness = self.rng.uniform(0.2, 0.9) if trouble == "slow" else 0.0
        self.trace.note("disk begins", trouble, f"{seconds:.1f}s")

    def mend(self) -> None:
        """It is over."""
        self.until = 0.0

    def connect(self) -> sqlite3.Connection:
        """The database, of which there is one."""
        if self.connection is None:
            self.connection = sqlite3.connect(
                ":memory:", isolation_level=None, factory=_Connection, cached_statements=256
            )
            self.connection.disk = self  # type: ignore[attr-defined]
        return self.connection

    def was_in_trouble(self, seconds: float, *troubles: str) -> bool:
        """Lately, in one of these, or in any."""
        return self.loop.time() < self.until + seconds and (not troubles or self.trouble in troubles)

    @contextlib.contextmanager
    def healthy(self) -> Iterator[None]:
        """Nothing is wrong meanwhile."""
        self._healthy += 1
        try:
            yield
        finally:
            self._healthy -= 1

    def monotonic(self) -> float:
        """Seconds, for whoever waits in a transaction."""
        return self.loop.time() + self.slept

    def sleep(self, seconds: float) -> None:
        """Wait in a transaction."""
        self.slept += seconds

    def is_in(self, trouble: str) -> bool:
        """Whether this is wrong now."""
        wrong = self.trouble == trouble and self.monotonic() < self.until and not self._healthy
        if wrong and not self._told:
            self._told = True
            self.trace.fault(f"disk:{trouble}")
        return wrong

    def commit_time(self) -> float:
        """Seconds that a commit takes."""
        return self.rng.uniform(0.0003, 0.004) + (self.slowness if self.is_in("slow") else 0.0)


class _Connection(sqlite3.Connection):
    """Fails as SQLite does."""

    disk: Disk

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:  # type: ignore[override]
        if sql == "BEGIN IMMEDIATE" and self.disk.is_in("busy"):
            raise _error("database is locked", sqlite3.SQLITE_BUSY)
        if sql == "COMMIT" and self.disk.is_in("full"):
            raise _error("database or disk is full", sqlite3.SQLITE_FULL)
        return super().execute(sql, *parameters)


def _error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


class SimDatabase(database.Database):
    """`Database` whose threads are timers."""

    disk: Disk  # of the run: there is one run at a time in a process

    def __init__(self, path: Any, connection: sqlite3.Connection, **options: Any) -> None:
        options["connect"] = lambda: sqlite3.connect(":memory:")
        super().__init__(path, connection, **options)
        self._queue = _Writer(self)  # type: ignore[assignment]
        self._reads = _Reader(self)  # type: ignore[assignment]

    def _start(self, name: str, work: Callable[[], None]) -> None:
        self._done.append(self._loop.create_future())

    def end(self) -> None:
        """A thread is done."""
        for done in self._done:
            if not done.done():
                done.set_result(None)
                return


class _Writer:
    """In the place of the writer's queue, and of the writer."""

    def __init__(self, of: SimDatabase) -> None:
        self._of = of
        self._waiting: list[Any] = []
        self._busy = False
        self._closing = False

    def put(self, asked: Sequence[Any] | None) -> None:
        """More to do; None: nothing any more."""
        if asked is None:
            self._closing = True
        else:
            self._waiting += asked
        self._go_on()

    def _go_on(self) -> None:
        if self._busy:
            return
        if self._waiting:
            self._busy = True
            self._of._loop.call_soon(self._work)
        elif self._closing:
            self._of.end()

    def _work(self) -> None:
        disk = self._of.disk
        group, self._waiting = self._waiting[:_MAX_GROUP], self._waiting[_MAX_GROUP:]
        disk.slept = 0.0
        try:
            results, after = self._of._commit(group)
            delay = disk.slept + disk.commit_time()
        finally:
            disk.slept = 0.0
        self._of._loop.call_later(delay, self._finish, results, after)

    def _finish(self, results: Any, after: Any) -> None:
        self._busy = False
        self._of._resolve(results, after)
        self._go_on()


class _Reader:
    """In the place of the reader's queue, and of the reader."""

    def __init__(self, of: SimDatabase) -> None:
        self._of = of

    def put(self, asked: Sequence[Any] | None) -> None:
        """Read; None: nothing any more."""
        if asked is None:
            self._of.end()
            return
        connection = self._of.disk.connection
        assert connection is not None
        results = [self._of._read(connection, item) for item in asked]
        self._of._loop.call_later(self._of.disk.rng.uniform(0.0001, 0.002), self._of._resolve, results, [])


class WatchedStore:
    """A store, and what the world wants to know of it: what was stored, and how long it kept others waiting."""

    def __init__(self, store: Any, disk: Disk, on_stored: Callable[[Any, Any], None]) -> None:
        self._store = store
        self._disk = disk
        self._on_stored = on_stored

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(value):
            return value
        watched = self._watched(name, value)
        setattr(self, name, watched)
        return watched

    def _watched(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        loop = self._disk.loop

        async def watched(*args: Any, **options: Any) -> Any:
            began, life = loop.time(), current_life()
            try:
                result = await method(*args, **options)
            except PartlyUnavailableError:  # by what is there: the rest is tried again apart
                raise
            except StoreUnavailableError:
                self.failed(name)
                raise
            finally:
                if life is not None and life.alive:  # else it is buried
                    self.took(name, began)
            self.gave(name, args, result)
            return result

        return watched

    def gave(self, name: str, args: Sequence[Any], result: Any) -> None:
        """An operation was done."""
        if name == "notify":
            self._on_stored(args[1], result)

    def failed(self, name: str) -> None:
        """An operation was not, as far as is known."""
        self._disk.trace.note("store:", name, "fails")

    def took(self, name: str, began: float) -> None:
        """An operation has ended."""
        limit = _READ_LIMIT if name in _READS else _WRITE_LIMIT
        disk = self._disk
        took = disk.loop.time() - began
        # A slow disk is waited for by those who write; what is locked or full is told within a second.
        if took > limit and (name in _READS or began > disk.until + 5 or disk.trouble != "slow"):
            disk.trace.violated(f"the store kept {name} waiting for {took:.1f} s", disk.trouble)


@dataclass(frozen=True)
class Engine:
    """How the store of a life is opened, on the disk that outlives it."""

    disk: Disk
    clock: WallClock
    times: Times
    on_stored: Callable[[Any, Any], None]

    async def open(self, metrics: Metrics, on_corrupt: Callable[[StoreCorruptError], None]) -> WatchedStore:
        """Raises StoreUnavailableError."""
        SimDatabase.disk = self.disk
        with self.disk.healthy():
            connection = self.disk.connect()
        store = await SqliteStore.open(
            connection,
            master_key=MASTER_KEY,
            times=self.times,
            metrics=metrics,
            on_corrupt=on_corrupt,
            clock=Clock(self.clock.wall, self.clock.steady, "machine"),
            random=self.disk.rng.randbytes,
        )
        return WatchedStore(store, self.disk, self.on_stored)
