"""Key rotation: `ntf-server rekey`. Values are sealed anew while no server runs; the master key changes any time."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ntf_server.store.contract import StoreError
from ntf_server.store.sealing import KEY_SIZE, MasterKey, Sealer, SealingError
from ntf_server.store.sqlite.file import DatabaseFile, opening_errors
from ntf_server.store.sqlite.keys import load_key, prepare, replace_key, seal_rows
from ntf_server.store.sqlite.schema import migrations
from ntf_server.store.sqlite.sessions import reseal_certificates

_PATIENCE: Final = 5.0  # seconds for another's lock


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """How many tokens and subscriptions were sealed anew; none without `reseal`."""

    tokens: int
    subscriptions: int


async def rekey(path: Path, old: MasterKey, new: MasterKey, *, reseal: bool) -> Rekeyed:
    """Wrap the database key by `new` instead of `old`; `reseal`: make a new one and seal every value with it.

    One transaction: after a crash the file is all old or all new. The values that were replaced are then removed from
    its unused parts, at the next start if not here. Raises StoreError (a server runs, wrong master key, no such file),
    StoreCorruptError.
    """
    return await asyncio.to_thread(_rekey, path, old, new, reseal)


def rewrap(path: Path, old: MasterKey, new: MasterKey) -> None:
    """Wrap the database key by `new` instead of `old` while a server uses the file: it has the key in memory, and goes
    on. What was wrapped by `old` leaves the file's unused parts at the next start. Raises as `rekey`.
    """
    with opening_errors(path), contextlib.closing(sqlite3.connect(path, _PATIENCE, isolation_level=None)) as c:
        c.execute("PRAGMA synchronous = FULL")
        c.execute("BEGIN IMMEDIATE")
        replace_key(c, load_key(c, old), new)
        c.execute("COMMIT")


def opens(path: Path, master: MasterKey) -> bool:
    """Whether it is the master key of a database that a server uses. Raises as `rekey`."""
    with opening_errors(path), contextlib.closing(sqlite3.connect(path, _PATIENCE, isolation_level=None)) as c:
        try:
            load_key(c, master)
        except SealingError:
            return False
        return True


def _rekey(path: Path, old: MasterKey, new: MasterKey, reseal: bool) -> Rekeyed:
    def operation(c: sqlite3.Connection) -> Rekeyed:
        key = load_key(c, old)
        if not reseal:
            replace_key(c, key, new)
            return Rekeyed(0, 0)
        fresh = os.urandom(KEY_SIZE)
        replace_key(c, fresh, new)
        reseal_certificates(c, Sealer(key), Sealer(fresh))
        return Rekeyed(*seal_rows(c, Sealer(key), Sealer(fresh)))

    rekeyed = _with_file(path, old, operation)
    try:
        _with_file(path, new, lambda _: rekeyed)  # scrubs, and proves that the new key opens it
    except StoreError as e:
        raise StoreError(f"{e}: the new master key is in force, but what it replaced is not removed yet") from e
    return rekeyed


def _with_file(path: Path, master: MasterKey, operation: Callable[[sqlite3.Connection], Rekeyed]) -> Rekeyed:
    if not path.exists():
        raise StoreError(f"{path}: there is no database; give the path of an existing one")
    file = DatabaseFile.open(path, migrations(master), prepare(master))
    try:
        with opening_errors(path):
            file.connection.execute("BEGIN IMMEDIATE")
            rekeyed = operation(file.connection)
            file.connection.execute("COMMIT")
        return rekeyed
    finally:
        file.connection.close()
        file.release()
