"""A copy of the database while the relay writes to it."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from ntf_server.store.contract import StoreError, StoreUnavailableError
from ntf_server.store.sqlite.database import corrupt_error, primary_code
from ntf_server.store.sqlite.file import opening_errors
from ntf_server.store.sqlite.migrations import APPLICATION_ID, copy_into

_NO_ROOM: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)  # the latter is what a limit of a file's size is to it


def backup(path: Path, target: Path) -> int:
    """Copy it to a file that is not there yet (mode 0600): its size in bytes. Blocks, but nobody else.

    One read transaction on a connection of its own: it sees the database as it is when it begins, and ends under any
    load. The copy is sealed by the same master key. Raises StoreError, StoreCorruptError.
    """
    if not path.exists():
        raise StoreError(f"{path}: there is no database; give the path of an existing one")
    if not path.stat().st_size:  # SQLite would begin it anew, and delete a -wal that is all there is left
        raise corrupt_error(path, "it is empty")
    with opening_errors(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        [application] = connection.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise StoreError(f"{path}: this is the database of another program")
        try:
            copy_into(connection, target)
        except FileExistsError as e:
            raise StoreError(f"{target}: is there already; give the name of a new file") from e
        except OSError as e:
            raise StoreError(f"{target}: cannot be written: {e.strerror}") from e
        except sqlite3.Error as e:
            if primary_code(e) not in _NO_ROOM:
                raise
            raise StoreUnavailableError(f"{target}: {e}; make room there, or give another place") from e
        return target.stat().st_size
