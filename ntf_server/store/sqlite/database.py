"""An SQLite file with one thread that owns it: operations of many callers share a commit (group commit)."""

import asyncio
import contextlib
import fcntl
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from ntf_server.store.records import StoreCorruptError, StoreError
from ntf_server.store.sealing import SealingError, WrongMasterKeyError

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]
_Item = tuple[Operation[Any], "asyncio.Future[Any]"]
Migration = str | Callable[[sqlite3.Connection], None]  # a script, or what runs in a transaction that is begun for it

APPLICATION_ID: Final = 0x4E544652  # "NTFR"
LINGER: Final = 0.005  # seconds
_ENOUGH: Final = 32  # operations that do not wait for others any more
_MAX_GROUP: Final = 512
_CHECK_BELOW: Final = 64 * 2**20  # bytes of a file that is checked whole at start
_CORRUPT: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _corrupt(path: Path, what: object) -> StoreCorruptError:
    return StoreCorruptError(
        f"{path}: the database is corrupt ({what}): stop the server, move the file and its -wal away, restore a"
        " backup (or `sqlite3 FILE .recover`), then start again"
    )


def _is_corrupt(e: Exception) -> bool:
    return isinstance(e, SealingError) or getattr(e, "sqlite_errorcode", 0) & 0xFF in _CORRUPT


class Database:
    """Open with `Database.open`; `run` operations from any asyncio task of one loop; `close` at the end."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, lock: Any, on_corrupt: Callable[[StoreCorruptError], None]
    ) -> None:
        self._path = path
        self._on_corrupt = on_corrupt
        self._connection = connection
        self._lock = lock
        self._queue: queue.SimpleQueue[list[_Item] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._urgent: list[_Item] = []  # asked for, and not given to the thread yet
        self._patient: list[_Item] = []
        self._timer: asyncio.TimerHandle | None = None
        self._given_at = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        path: Path,
        migrations: Sequence[Migration],
        on_corrupt: Callable[[StoreCorruptError], None],
        prepare: Operation[None] = lambda _: None,
    ) -> "Database":
        """Open or create the file and bring its schema up to date; `on_corrupt` is called in the loop, later.

        `prepare` then runs, outside a transaction, before anything else does.
        Raises StoreCorruptError (also for another program's file), StoreError (in use, no permission, newer schema,
        wrong master key).
        """
        path = path.resolve()  # so that a link to the file has the same lock
        lock = lock_file(path)
        try:
            return cls(path, _connect(path, migrations, prepare), lock, on_corrupt)
        except BaseException:
            lock.close()
            raise

    async def run(self, operation: Operation[T], *, patient: bool = False) -> T:
        """Do it in a transaction; what it wrote is durable when this returns.

        `patient`: under load it waits up to LINGER seconds for others that are, to share their commit. Operations keep
        their order, the patient ones among themselves. Raises StoreError, StoreCorruptError.
        """
        if self._closed:
            raise StoreError("the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        if patient:
            self._patient.append((operation, future))
            self._schedule()
        else:
            self._urgent.append((operation, future))
            if len(self._urgent) == 1:  # with what this turn of the loop still asks for
                self._loop.call_soon(self._give_urgent)
        return await future

    def _schedule(self) -> None:
        wait = 0.0 if len(self._patient) >= _ENOUGH else self._given_at + LINGER - self._loop.time()
        if self._timer is not None and wait <= 0:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_later(max(0.0, wait), self._give_patient)

    def _give_urgent(self) -> None:
        if self._urgent:
            asked, self._urgent = self._urgent, []
            self._queue.put(asked)

    def _give_patient(self) -> None:
        self._timer = None
        self._given_at = self._loop.time()
        asked, self._patient = self._patient, []
        self._queue.put(asked)

    async def close(self) -> None:
        """Finish what was asked and close the file."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._give_patient()
        self._give_urgent()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._connection.close()
        self._lock.close()

    def _work(self) -> None:
        more, waiting = True, list[_Item]()
        while more or waiting:
            while more and (not waiting or not self._queue.empty()):
                asked = self._queue.get()
                more = asked is not None
                waiting += asked or []
            group, waiting = waiting[:_MAX_GROUP], waiting[_MAX_GROUP:]
            results = self._commit(group)
            self._loop.call_soon_threadsafe(_resolve, results)

    def _commit(self, items: Sequence[_Item]) -> list[tuple[asyncio.Future[Any], Any, Exception | None]]:
        try:
            values = self._transaction([operation for operation, _ in items])
            return [(future, value, None) for (_, future), value in zip(items, values, strict=True)]
        except Exception as e:
            if len(items) == 1:
                return [(items[0][1], None, self._translate(e))]
        # One of them failed: each alone, so that the others do not suffer.
        return [result for item in items for result in self._commit([item])]

    def _transaction(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        connection = self._connection
        connection.execute("BEGIN")
        try:
            values = [operation(connection) for operation in operations]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return values

    def _translate(self, e: Exception) -> Exception:
        if not isinstance(e, sqlite3.Error | SealingError):
            return e
        if not _is_corrupt(e):
            return StoreError(f"{self._path}: {e}")
        corrupt = _corrupt(self._path, e)
        self._loop.call_soon_threadsafe(self._on_corrupt, corrupt)
        return corrupt


def _resolve(results: Sequence[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    for future, value, error in results:
        if future.cancelled():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)


def lock_file(path: Path) -> Any:
    """One process a file: two relays on it would push everything twice. Raises StoreError; close it to let go."""
    try:
        file = path.with_name(path.name + ".lock").open("w")
    except OSError as e:
        raise StoreError(f"{path}: cannot create the database there: {e.strerror}") from e
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        file.close()
        raise StoreError(f"{path}: another ntf-server uses this database") from e
    return file


def _connect(path: Path, migrations: Sequence[Migration], prepare: Operation[None]) -> sqlite3.Connection:
    try:
        path.touch(mode=0o600)
        _check(path, len(migrations))
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=128)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA busy_timeout = 5000")
            _migrate(connection, migrations)
            connection.execute("PRAGMA foreign_keys = ON")  # not before: a migration may drop and remake a table
            prepare(connection)
        except BaseException:
            connection.close()
            raise
    except WrongMasterKeyError as e:
        raise StoreError(
            f"{path}: the master key is not the one that this database was sealed with ({e}); give the right one"
        ) from e
    except (OSError, sqlite3.Error, SealingError) as e:
        if _is_corrupt(e):
            raise _corrupt(path, e) from e
        raise StoreError(f"{path}: cannot open the database: {e}") from e
    return connection


def _check(path: Path, newest: int) -> None:
    """Refuse what is not ours, is damaged, or is newer than this program, and leave it as it is."""
    # The last writable connection to close moves the -wal into the file: not into a damaged one, nor another's.
    wal = path.with_name(path.name + "-wal")
    mode = "ro" if wal.exists() else "rw"
    if mode == "ro" and wal.stat().st_size and not path.stat().st_size:
        raise _corrupt(path, "it is empty, its -wal is not")  # SQLite would begin anew, and delete the -wal
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True)) as connection:
        [tables] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        [application] = connection.execute("PRAGMA application_id").fetchone()
        if tables and application != APPLICATION_ID:
            raise StoreCorruptError(f"{path}: this is the database of another program; set [store] url to a new file")
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version > newest:
            raise StoreError(f"{path}: the database is of a newer ntf-server (schema {version}); upgrade ntf-relay")
        if path.stat().st_size < _CHECK_BELOW:
            [result] = connection.execute("PRAGMA quick_check(1)").fetchone()
            if result != "ok":
                raise _corrupt(path, result.splitlines()[-1])


def _migrate(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    [version] = connection.execute("PRAGMA user_version").fetchone()
    for number, migration in enumerate(migrations[version:], version + 1):
        marks = f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {number}"
        if isinstance(migration, str):
            connection.executescript(f"BEGIN;\n{migration}\n{'; '.join(marks)};\nCOMMIT;")
            continue
        connection.execute("BEGIN")
        migration(connection)  # if it fails, closing the connection undoes it
        for mark in marks:
            connection.execute(mark)
        connection.execute("COMMIT")
