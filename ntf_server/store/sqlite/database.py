"""A database with one thread that writes, many callers sharing a commit (group commit), and one that reads.

A read waits for nobody's write, ours or another process's. What may pass (another process's lock, a full disk) is tried
again for RETRY seconds, by us: SQLite's own wait would hold up those behind it for as long again, each.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from ntf_server.store.contract import (
    StoreConflictError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]
After = Callable[[], None]

LINGER: Final = 0.005  # seconds that what nobody waits for at once may wait for others
LONG_LINGER: Final = 0.05  # seconds, of what nobody waits for at all
RETRY: Final = 0.8  # seconds, since it was asked for
CLOSE: Final = 1.0  # seconds that a medium in trouble may hold up a stop
_LAST_WRITES: Final = 4.0  # seconds beyond that for a slow one
_PAUSES: Final = (0.005, 0.05)  # seconds between two tries: at first, and at most
_ENOUGH: Final = 32  # operations that do not wait for others any more
_MAX_GROUP: Final = 512
_CORRUPT: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING: Final = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
)


def corrupt_error(path: object, what: object) -> StoreCorruptError:
    """What an operator is told."""
    return StoreCorruptError(
        f"{path}: the database is corrupt ({what}): stop the server, move the file and its -wal away, restore a"
        " backup (or `sqlite3 FILE .recover`), then start again"
    )


def primary_code(e: BaseException) -> int:
    """SQLite's error code without what extends it; 0: it has none."""
    return int(getattr(e, "sqlite_errorcode", 0)) & 0xFF


def is_corrupt(e: BaseException) -> bool:
    """Whether SQLite says so; a sealed value that cannot be opened is that record's trouble only."""
    return primary_code(e) in _CORRUPT


def translate(path: object, e: Exception) -> Exception:
    """What the caller is told of an error of SQLite; others are theirs as they are."""
    if not isinstance(e, sqlite3.Error):
        return e
    code = primary_code(e)
    if code in _CORRUPT:
        return corrupt_error(path, e)
    if code == sqlite3.SQLITE_FULL:
        return StoreFullError(f"{path}: {e}")
    if code in _PASSING:
        return StoreUnavailableError(f"{path}: {e}")
    return StoreConflictError(f"{path}: {e}")


class Turns(Protocol):
    """What goes on beside the database, transaction by transaction, in the writer's thread."""

    def begin(self, c: sqlite3.Connection) -> None:
        """In the transaction, before anything else."""
        ...

    def commit(self) -> After | None:
        """It is durable; gives what the loop is to do now, before those who asked have their answers."""
        ...

    def rollback(self) -> None:
        """Nothing of it happened."""
        ...


class NoTurns:
    """Nothing does."""

    def begin(self, c: sqlite3.Connection) -> None:
        """See `Turns`."""

    def commit(self) -> After | None:
        """See `Turns`."""
        return None

    def rollback(self) -> None:
        """See `Turns`."""


class _Item(NamedTuple):
    operation: Operation[Any]
    future: "asyncio.Future[Any]"
    lost: Callable[[Any], None] | None
    asked: float


class _Result(NamedTuple):
    item: _Item
    value: Any
    error: Exception | None


class Database:
    """`run` and `read` operations from any asyncio task of one loop; `close` at the end.

    `connect` gives the connection once more, should that ever be needed; None: in memory, where operations are done at
    once in the loop's own thread (`inline`). `on_error` hears, in the loop, of every operation that failed, `on_commit`
    how many seconds each commit took, with all that it made durable.
    """

    def __init__(
        self,
        path: Path | str,
        connection: sqlite3.Connection,
        *,
        connect: Callable[[], sqlite3.Connection] | None,
        turns: Turns | None = None,
        on_error: Callable[[Exception], None] = lambda _: None,
        on_commit: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._connection = connection
        self._connect = connect
        self._turns = turns or NoTurns()
        self._on_error = on_error
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[list[_Item] | None] = queue.SimpleQueue()
        self._urgent: list[_Item] = []  # asked for, and not given to the thread yet
        self._patient: list[_Item] = []
        self._to_read: list[_Item] = []
        self._timer: asyncio.TimerHandle | None = None
        self._given_at = 0.0
        self._closed = False
        self._give_up_at = float("inf")
        self._broken = False  # the connection is to be replaced
        self._done: list[asyncio.Future[None]] = []
        self._threads: list[threading.Thread] = []
        self.inline: Final = connect is None
        if connect is not None:
            self._reads: queue.SimpleQueue[list[_Item] | None] = queue.SimpleQueue()
            self._reads_end = threading.Event()
            reading = connect()
            reading.execute("PRAGMA query_only = ON")
            reading.execute(f"PRAGMA busy_timeout = {int(RETRY * 1000)}")
            self._start("store", self._work)
            self._start("store reads", lambda: self._read_all(reading))

    def _start(self, name: str, work: Callable[[], None]) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        self._done.append(done)

        def body() -> None:
            try:
                work()
            finally:
                self._tell(lambda: None if done.done() else done.set_result(None))

        thread = threading.Thread(target=body, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # --- asking

    async def run(self, operation: Operation[T], *, linger: float = 0.0, lost: Callable[[T], None] | None = None) -> T:
        """Do it in a transaction; what it wrote is durable when this returns.

        `linger`: under load it waits up to so many seconds for others that do, to share their commit. Operations keep
        their order, those that linger among themselves. `lost` has what it gave, should the caller be gone by then.
        Raises StoreError, StoreCorruptError.
        """
        item = self._item(operation, lost)
        if self.inline:
            self._resolve(*self._commit([item]))
        elif linger:
            self._patient.append(item)
            self._schedule(linger)
        else:
            self._urgent.append(item)
            if len(self._urgent) == 1:  # with what this turn of the loop still asks for
                self._loop.call_soon(self._give_urgent)
        answer: T = await self._answer(item)
        return answer

    async def read(self, operation: Operation[T]) -> T:
        """Do it beside what is written, seeing all that was durable before. Raises StoreError, StoreCorruptError."""
        item = self._item(operation, None)
        if self.inline:
            self._resolve([self._read(self._connection, item)], [])
        else:
            self._to_read.append(item)
            if len(self._to_read) == 1:
                self._loop.call_soon(self._give_reads)
        answer: T = await self._answer(item)
        return answer

    def _item(self, operation: Operation[T], lost: Callable[[T], None] | None) -> _Item:
        if self._closed:
            raise StoreConflictError("the store is closed")
        return _Item(operation, self._loop.create_future(), lost, time.monotonic())

    @staticmethod
    async def _answer(item: _Item) -> Any:
        try:
            return await item.future
        except asyncio.CancelledError:
            future = item.future
            if item.lost and future.done() and not future.cancelled() and not future.exception():
                item.lost(future.result())
            raise

    def _schedule(self, linger: float) -> None:
        now = self._loop.time()
        at = now if len(self._patient) >= _ENOUGH else max(now, self._given_at + linger)
        if self._timer is not None and at < self._timer.when():
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(at, self._give_patient)

    def _give_urgent(self) -> None:
        if self._urgent:
            asked, self._urgent = self._urgent, []
            self._queue.put(asked)

    def _give_reads(self) -> None:
        if self._to_read:
            asked, self._to_read = self._to_read, []
            self._reads.put(asked)

    def _give_patient(self) -> None:
        self._timer = None
        self._given_at = self._loop.time()
        asked, self._patient = self._patient, []
        self._queue.put(asked)

    async def close(self) -> None:
        """Finish what was asked, within CLOSE seconds if the medium is in trouble, and close the connections."""
        if self._closed:
            return
        self._closed = True
        if self.inline:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._give_patient()
        self._give_urgent()
        self._give_reads()
        self._give_up_at = time.monotonic() + CLOSE
        self._reads.put(None)
        self._queue.put(None)
        _, late = await asyncio.wait(self._done, timeout=CLOSE + _LAST_WRITES)
        if late:  # in a call of the system: nobody can end that
            log.error("%s: the disk does not answer; what was not written is lost", self._path)
            return
        for thread in self._threads:  # which have nothing left to do
            thread.join()

    # --- the writer

    def _work(self) -> None:
        more, waiting = True, list[_Item]()
        while more or waiting:
            while more and (not waiting or not self._queue.empty()):
                asked = self._queue.get()
                more = asked is not None
                waiting += asked or []
            group, waiting = waiting[:_MAX_GROUP], waiting[_MAX_GROUP:]
            if group:
                results, after = self._commit(group)
                self._tell(lambda results=results, after=after: self._resolve(results, after))  # type: ignore[misc]
        self._reads_end.wait(CLOSE)  # the last connection that closes moves the -wal into the file
        self._connection.close()

    def _tell(self, what: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:  # the loop has ended before us
            log.debug("an answer of the store has nobody to go to")

    def _commit(self, items: Sequence[_Item]) -> tuple[list[_Result], list[After]]:
        results: list[_Result] = []
        pause, longest = _PAUSES
        while True:
            began = time.monotonic()
            try:
                values, after = self._transaction([item.operation for item in items])
            except Exception as e:
                error = e
            else:
                done = [_Result(item, value, None) for item, value in zip(items, values, strict=True)]
                took = partial(self._on_commit, time.monotonic() - began)
                return results + done, [took, after] if after else [took]
            told = translate(self._path, error)
            if not isinstance(told, StoreUnavailableError):
                break
            now = time.monotonic()
            limit = now if now >= self._give_up_at else now - RETRY
            results += [_Result(item, None, told) for item in items if item.asked <= limit]
            items = [item for item in items if item.asked > limit]
            if not items:
                return results, []
            time.sleep(pause)
            pause = min(2 * pause, longest)
        if len(items) == 1 or isinstance(told, StoreCorruptError):
            return [*results, *(_Result(item, None, told) for item in items)], []
        afters: list[After] = []
        for item in items:  # one of them failed: each alone, so that the others do not suffer
            mine, after_mine = self._commit([item])
            results += mine
            afters += after_mine
        return results, afters

    def _transaction(self, operations: Sequence[Operation[Any]]) -> tuple[list[Any], After | None]:
        if self._broken and self._connect is not None:
            self._connection = self._connect()
            self._broken = False
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._turns.begin(connection)
            values = [operation(connection) for operation in operations]
            connection.execute("COMMIT")
        except BaseException:
            self._turns.rollback()
            self._roll_back()
            raise
        return values, self._turns.commit()

    def _roll_back(self) -> None:
        """What cannot be rolled back is left behind with its connection, lest every later transaction fail."""
        if not self._connection.in_transaction:
            return
        try:
            self._connection.execute("ROLLBACK")
        except sqlite3.Error as e:
            if self._connect is None:
                raise
            log.error("%s: a transaction could not be rolled back (%s): the database is opened anew", self._path, e)
            self._broken = True
            self._connection.close()

    # --- the reader

    def _read_all(self, connection: sqlite3.Connection) -> None:
        while (asked := self._reads.get()) is not None:
            results = [self._read(connection, item) for item in asked]
            self._tell(lambda results=results: self._resolve(results, []))  # type: ignore[misc]
        connection.close()
        self._reads_end.set()

    def _read(self, connection: sqlite3.Connection, item: _Item) -> _Result:
        try:
            return _Result(item, item.operation(connection), None)
        except Exception as e:
            return _Result(item, None, translate(self._path, e))

    # --- answering, in the loop

    def _resolve(self, results: Sequence[_Result], after: Sequence[After]) -> None:
        for do in after:
            try:
                do()
            except Exception:  # whoever asked must have an answer nevertheless
                log.exception("what the store tells of could not be told")
        for item, value, error in results:
            future = item.future
            if error is None:
                if not future.cancelled():
                    future.set_result(value)
                elif item.lost is not None:
                    item.lost(value)
                continue
            if isinstance(error, StoreError | StoreCorruptError):
                self._on_error(error)
            if not future.cancelled():
                future.set_exception(error)
