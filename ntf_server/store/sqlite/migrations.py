"""How migrations are run: a copy is kept before, and what they do is told every few seconds."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

APPLICATION_ID: Final = 0x4E544652  # "NTFR"
_TELL: Final = 3.0  # seconds between two lines


class Progress:
    """Tells how far a migration is."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def __call__(self, what: str, done: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if now - self._told_at >= _TELL:
            self._told_at = now
            log.info("the database is being migrated: %s: %d", what, done)


# A script, or what runs in a transaction that is begun for it.
Migration = str | Callable[[sqlite3.Connection, Progress], None]


def copy_name(path: Path, schema: int) -> Path:
    """Where the copy from before a migration is."""
    return path.with_name(f"{path.name}.schema{schema}")


def copy_into(connection: sqlite3.Connection, target: Path) -> None:
    """A copy of the database in a new file, mode 0600. Raises FileExistsError, OSError, sqlite3.Error.

    One read transaction: it ends however much is written meanwhile.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        connection.execute("VACUUM INTO ?", (str(target),))  # takes an empty file that is there
        with target.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _keep_copy(connection: sqlite3.Connection, path: Path, version: int) -> None:
    copy = copy_name(path, version)
    part = copy.with_name(copy.name + ".part")
    part.unlink(missing_ok=True)
    log.info("%s: the database is copied to %s first", path, copy.name)
    copy_into(connection, part)
    part.replace(copy)


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration], path: Path | None) -> None:
    """Bring the schema up to date; `path` None: in memory."""
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if version == len(migrations):
        return
    began = time.monotonic()
    if version and path is not None:
        _keep_copy(connection, path, version)
    progress = Progress()
    for number, migration in enumerate(migrations[version:], version + 1):
        marks = f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {number}"
        if isinstance(migration, str):
            connection.executescript(f"BEGIN;\n{migration}\n{'; '.join(marks)};\nCOMMIT;")
            continue
        connection.execute("BEGIN IMMEDIATE")
        migration(connection, progress)  # if it fails, closing the connection undoes it
        for mark in marks:
            connection.execute(mark)
        connection.execute("COMMIT")
    if version and path is not None:
        log.warning(
            "%s: migrated from schema %d to %d in %.0f s. To go back: stop the server, remove %s-wal and %s-shm,"
            " move %s to %s, install the older ntf-relay. Delete the copy once you will not",
            path,
            version,
            len(migrations),
            time.monotonic() - began,
            path.name,
            path.name,
            copy_name(path, version).name,
            path.name,
        )
