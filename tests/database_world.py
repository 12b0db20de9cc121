"""A small database of its own, for tests of the file and of its threads."""

import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from ntf_server.store.contract import StoreCorruptError
from ntf_server.store.sqlite.database import Database, Operation, Turns
from ntf_server.store.sqlite.file import DatabaseFile
from ntf_server.store.sqlite.migrations import Migration

FIRST = "CREATE TABLE item (n INTEGER PRIMARY KEY, value BLOB NOT NULL UNIQUE) STRICT;"
SECOND = "ALTER TABLE item ADD COLUMN size INTEGER NOT NULL DEFAULT 0; UPDATE item SET size = length(value);"


def unexpected(error: Exception) -> None:
    if isinstance(error, StoreCorruptError):
        raise AssertionError from error


def open_file(path: Path, *migrations: Migration, prepare: Operation[None] = lambda _: None) -> DatabaseFile:
    return DatabaseFile.open(path, migrations or (FIRST,), prepare)


@contextlib.asynccontextmanager
async def opened(
    path: Path,
    *migrations: Migration,
    prepare: Operation[None] = lambda _: None,
    on_error: Callable[[Exception], None] = unexpected,
    turns: Turns | None = None,
    on_commit: Callable[[float], None] = lambda _: None,
) -> AsyncIterator[Database]:
    file = open_file(path, *migrations, prepare=prepare)
    database = Database(
        file.path, file.connection, connect=file.connect, on_error=on_error, turns=turns, on_commit=on_commit
    )
    try:
        yield database
    finally:
        await database.close()
        file.release()


def insert(value: bytes) -> Callable[[sqlite3.Connection], int]:
    def operation(c: sqlite3.Connection) -> int:
        c.execute("INSERT INTO item (value) VALUES (?)", (value,))
        return len(value)

    return operation


def values(c: sqlite3.Connection) -> list[bytes]:
    return [value for (value,) in c.execute("SELECT value FROM item ORDER BY n")]


def ask(sql: str) -> Callable[[sqlite3.Connection], object]:
    return lambda c: c.execute(sql).fetchone()[0]


def crash_image(path: Path, to: Path) -> Path:
    """The files as a power failure would leave them: the -wal not yet moved into the database."""
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{to}{suffix}")
    return to
