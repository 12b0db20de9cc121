"""The database's file: locked, checked and brought up to date before anything is done with it."""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ntf_server.permissions import may, unwritable, user_name
from ntf_server.store.contract import StoreConflictError, StoreCorruptError, StoreError, StoreUnavailableError
from ntf_server.store.portable import being_filled
from ntf_server.store.records import Space
from ntf_server.store.sealing import ANOTHER_KEY, SealingError, WrongMasterKeyError
from ntf_server.store.sqlite.database import Operation, corrupt_error, is_corrupt, primary_code, translate
from ntf_server.store.sqlite.migrations import APPLICATION_ID, Migration, migrate

MARK: Final = "filling"  # the table that a database has while another store is moved into it
FILLING: Final = "SELECT 1 FROM sqlite_master WHERE type = ? AND name = ?"
_CHECK_BELOW: Final = 64 * 2**20  # bytes of a file that is checked whole at start
WAL_LIMIT: Final = 64 * 2**20  # bytes that the -wal keeps when it is empty
_OPERATORS: Final = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)  # no retry mends these
_OPENING: Final = 5000  # milliseconds that another process's lock may hold up the start
_SMALL_TEMPORARIES: Final = "PRAGMA temp_store = MEMORY"  # what undoes one statement is a file each time else


class DatabaseFile:
    """An open file that is ours alone; `connection` is the writer's. `release` it when all connections are closed."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: Any) -> None:
        self.path: Final = path
        self.connection: Final = connection
        self._lock = lock
        self._inode = path.stat().st_ino

    @classmethod
    def open(
        cls,
        path: Path,
        migrations: tuple[Migration, ...],
        prepare: Operation[None] = lambda _: None,
        *,
        filling: bool = False,
    ) -> "DatabaseFile":
        """Open or create the file and bring its schema up to date. `prepare` then runs, outside a transaction.

        `filling`: also one that another store is moved into, and not yet all of it. Raises StoreCorruptError (also for
        another program's file), StoreUnavailableError (in use, no room), StoreError (no permission, newer schema, wrong
        master key, being filled).
        """
        path = path.resolve()  # so that a link to the file has the same lock
        lock = lock_file(path)
        try:
            return cls(path, _open(path, migrations, prepare, filling=filling), lock)
        except BaseException:
            lock.close()
            raise

    def connect(self) -> sqlite3.Connection:
        """One more connection."""
        return _connect(self.path)

    def is_there(self) -> bool:
        """Whether what is open is still what the path names."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def wal_size(self) -> int:
        """Bytes of the -wal."""
        return _size(self.path.with_name(self.path.name + "-wal"))

    def space(self) -> Space:
        """What it takes of its disk, and may still take. Blocks."""
        wal = self.wal_size()
        with contextlib.suppress(OSError):
            disk = os.statvfs(self.path.parent)
            return Space(_size(self.path) + wal, wal, disk.f_bavail * disk.f_frsize)
        return Space(_size(self.path) + wal, wal, None)

    def release(self) -> None:
        """Let others have it."""
        self._lock.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def lock_file(path: Path) -> Any:
    """One process a file: two relays on it would push everything twice.

    Raises StoreUnavailableError (in use), StoreError; close it to let go.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        file = os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w")
        lock.chmod(0o600)  # whoever may open it may hold it: older relays made it for all
    except OSError as e:
        why = f"give it to user {user_name()}, or delete it" if lock.exists() else "choose a folder that can be written"
        barred = unwritable(path.parent, "[store] url") or f"{lock.name}: {e.strerror}; {why}"
        raise StoreError(f"{path}: {barred}") from e
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        file.close()
        raise StoreUnavailableError(f"{path}: another ntf-server uses this database; stop that one first") from e
    return file


def is_locked(path: Path) -> bool:
    """Whether a process uses the database. Raises OSError if that cannot be told."""
    try:
        with path.with_name(path.name + ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=128)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute(_SMALL_TEMPORARIES)
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def opening_errors(path: Path) -> Any:
    """What goes wrong while a file is opened, in the store's terms."""
    try:
        yield
    except WrongMasterKeyError as e:
        raise StoreError(
            f"{path}: the master key is not the one that this database was sealed with ({e}); {ANOTHER_KEY}"
        ) from e
    except SealingError as e:  # of the key of all values
        raise corrupt_error(path, e) from e
    except (OSError, sqlite3.Error) as e:
        if is_corrupt(e):
            raise corrupt_error(path, e) from e
        told = translate(path, e)
        passes = isinstance(told, StoreUnavailableError) and primary_code(e) not in _OPERATORS
        kind = type(told) if passes else StoreError
        raise kind(f"{path}: cannot open the database: {e}") from e


def _open(
    path: Path, migrations: tuple[Migration, ...], prepare: Operation[None], *, filling: bool
) -> sqlite3.Connection:
    with opening_errors(path):
        if not path.exists():
            path.touch(mode=0o600)
        _check_rights(path)
        _check(path, len(migrations), filling=filling)
        connection = _connect(path)
        try:
            connection.execute(f"PRAGMA busy_timeout = {_OPENING}")
            connection.execute("PRAGMA temp_store = FILE")  # a VACUUM, or a new index, has a copy of all
            migrate(connection, migrations, path)
            prepare(connection)
            connection.execute("PRAGMA busy_timeout = 0")
            connection.execute(_SMALL_TEMPORARIES)
        except BaseException:
            connection.close()
            raise
    return connection


def _uri(path: Path) -> str:
    """The last writable connection to close moves the -wal into the file: not into a damaged one, nor another's."""
    mode = "ro" if path.with_name(path.name + "-wal").exists() else "rw"
    return f"{path.as_uri()}?mode={mode}"


def _check(path: Path, newest: int, *, filling: bool) -> None:
    """Refuse what is not ours, is damaged, or is newer than this program, and leave it as it is."""
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size and not path.stat().st_size:
        raise corrupt_error(path, "it is empty, its -wal is not")  # SQLite would begin anew, and delete the -wal
    with contextlib.closing(sqlite3.connect(_uri(path), uri=True)) as connection:
        [tables] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        [application] = connection.execute("PRAGMA application_id").fetchone()
        if tables and application != APPLICATION_ID:
            raise StoreCorruptError(f"{path}: this is the database of another program; set [store] url to a new file")
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version > newest:
            raise StoreConflictError(
                f"{path}: the database is of a newer ntf-server (schema {version}); upgrade ntf-relay"
            )
        if not filling and connection.execute(FILLING, ("table", MARK)).fetchone():
            raise being_filled(str(path))
        if path.stat().st_size < _CHECK_BELOW:
            [result] = connection.execute("PRAGMA quick_check(1)").fetchone()
            if result != "ok":
                raise corrupt_error(path, result.splitlines()[-1])


def _check_rights(path: Path) -> None:
    if not may(path, os.R_OK | os.W_OK):  # SQLite would open it, and fail later
        user = user_name()
        raise StoreError(f"{path}: user {user} may not write to it; give it the file: `chown {user} {path}`")


def inspect(path: Path, newest: int, look: Operation[None], *, in_use: bool) -> int:
    """What opening it would meet, but for migrations: the number of its schema, 0 if nothing is there yet. Nothing is
    made or changed.

    `look`: as `prepare`, but for one that only reads; `in_use`: it is known that a relay uses it. Raises as
    `DatabaseFile.open` does.
    """
    path = path.resolve()
    if (barred := unwritable(path.parent, "[store] url")) is not None:
        raise StoreError(f"{path}: {barred}")
    if not path.exists():
        return 0
    with opening_errors(path):
        _check_rights(path)
        if not in_use and path.with_name(path.name + ".lock").exists():
            lock_file(path).close()  # for an instant: a start in it is tried again by the unit
        _check(path, newest, filling=False)
        with contextlib.closing(sqlite3.connect(_uri(path), uri=True)) as connection:
            look(connection)
            [version] = connection.execute("PRAGMA user_version").fetchone()
            return int(version)


async def opened(opening: Callable[[], DatabaseFile]) -> DatabaseFile:
    """What `opening` gives, called in a thread.

    Nobody can end that: who is cancelled meanwhile waits, and lets go of the file.
    """

    def let_go(task: "asyncio.Task[DatabaseFile]") -> None:
        if not task.cancelled() and not task.exception():
            file = task.result()
            file.connection.close()
            file.release()

    task = asyncio.create_task(asyncio.to_thread(opening), name="open the database")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(let_go)
        await asyncio.wait([task])
        raise
