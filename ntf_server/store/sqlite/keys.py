"""Keys and sealed columns in the SQLite store."""

import os
import sqlite3
from collections.abc import Callable
from typing import Any, Final

from ntf_server.store.sealing import (
    CLIENT_DH,
    CODE,
    DEVICE_TOKEN,
    KEY_SIZE,
    NOTIFIER_KEY,
    SECRET,
    SERVER_DH,
    SERVER_PRIVATE,
    MasterKey,
    Sealer,
    SealingError,
)
from ntf_server.store.sqlite.migrations import Progress
from smp_bridge.crypto import box_key

_BATCH: Final = 1000  # rows in memory


def add_keys(c: sqlite3.Connection, master: MasterKey, progress: Progress) -> None:
    """Make a database key and seal what is there in the clear. Run inside a transaction."""
    key = os.urandom(KEY_SIZE)
    # Deleted rows leave their bytes in the file as well: only one that never had any is clean.
    [used] = c.execute("SELECT count(*) FROM sqlite_sequence").fetchone()
    c.execute("INSERT INTO keys (ref, wrapped, to_scrub) VALUES (1, ?, ?)", (master.wrap(key), used > 0))
    _seal_in_slices(c, None, Sealer(key), progress, _TOKENS_1)


def load_key(c: sqlite3.Connection, master: MasterKey) -> bytes:
    """The database key. Raises WrongMasterKeyError, SealingError."""
    row = c.execute("SELECT wrapped FROM keys").fetchone()
    if row is None:
        raise SealingError("its wrapped database key is missing")
    return master.unwrap(row[0])


def look_at_key(c: sqlite3.Connection, master: MasterKey) -> None:
    """Whether it opens the database, if that is sealed. Raises as `load_key`."""
    [version] = c.execute("PRAGMA user_version").fetchone()
    if version > 1:
        load_key(c, master)


def replace_key(c: sqlite3.Connection, key: bytes, master: MasterKey) -> None:
    """Keep `key`, wrapped by `master`; the old one is scrubbed at the next opening. Run inside a transaction."""
    c.execute("UPDATE keys SET wrapped = ?, to_scrub = 1", (master.wrap(key),))


def add_box_keys(master: MasterKey, c: sqlite3.Connection, progress: Progress) -> None:
    """Replace DH secrets by what pushes are boxed with. Run inside a transaction."""
    sealer, after, done = Sealer(load_key(c, master)), 0, 0
    while rows := c.execute(
        "SELECT ref, token_id, secret FROM tokens WHERE ref > ? ORDER BY ref LIMIT ?", (after, _BATCH)
    ).fetchall():
        contexts = [(SECRET + token_id, secret, ref) for ref, token_id, secret in rows]
        c.executemany(
            "UPDATE tokens SET secret = ? WHERE ref = ?",
            [(_box_key(sealer, secret, context), ref) for context, secret, ref in contexts],
        )
        after, done = rows[-1][0], done + len(rows)
        progress("tokens", done)


def _box_key(sealer: Sealer, secret: bytes, context: bytes) -> bytes:
    try:
        return sealer.seal(box_key(sealer.open(secret, context)), context)
    except SealingError:  # damaged: it stays so, and is set aside when it is asked for
        return secret


def prepare(master: MasterKey) -> Callable[[sqlite3.Connection], None]:
    """What is to be done when the file is opened: check the master key, then scrub if that is due."""

    def operation(c: sqlite3.Connection) -> None:
        load_key(c, master)
        _scrub(c)

    return operation


def _scrub(c: sqlite3.Connection) -> None:
    """Remove what a migration or `rekey` replaced from the unused parts of the file. Run outside a transaction."""
    [to_scrub] = c.execute("SELECT to_scrub FROM keys").fetchone()
    if not to_scrub:
        return
    c.execute("VACUUM")
    [busy, *_] = c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if not busy:  # else another program reads the file: at the next start then
        c.execute("UPDATE keys SET to_scrub = 0")


# What is sealed: of schema 2, when there was no more, and today.
_TOKENS_1: Final = (
    ("device_token", DEVICE_TOKEN),
    ("client_dh", CLIENT_DH),
    ("server_dh", SERVER_DH),
    ("secret", SECRET),
    ("code", CODE),
)
_TOKENS: Final = (*_TOKENS_1, ("server_private", SERVER_PRIVATE))
_Columns = tuple[tuple[str, bytes], ...]


def seal_rows(c: sqlite3.Connection, old: Sealer, new: Sealer) -> tuple[int, int]:
    """Seal all sealed columns of tokens and subscriptions anew: how many rows of each. Run inside a transaction.

    A value that cannot be opened stays as it is, and so cannot be opened later either.
    """
    return _seal_in_slices(c, old, new, Progress(), _TOKENS)


def _seal_in_slices(
    c: sqlite3.Connection, old: Sealer | None, new: Sealer, progress: Progress, columns: _Columns
) -> tuple[int, int]:
    """`old` None: the values are in the clear."""

    def reseal(value: bytes | None, context: bytes) -> bytes | None:
        if value is None:
            return None
        try:
            return new.seal(old.open(value, context) if old else value, context)
        except SealingError:
            return value

    def token(row: tuple[Any, ...]) -> tuple[Any, ...]:
        ref, token_id, provider, *values = row
        resealed = [reseal(value, context + token_id) for value, (_, context) in zip(values, columns, strict=True)]
        try:
            lookup = new.lookup(provider, old.open(values[0], DEVICE_TOKEN + token_id) if old else values[0])
        except SealingError:
            lookup = b"damaged:" + token_id  # nobody finds it by its device token
        return (lookup, *resealed, ref)

    names = [name for name, _ in columns]
    read = f"SELECT ref, token_id, provider, {', '.join(names)} FROM tokens WHERE ref > ? ORDER BY ref LIMIT ?"
    write = f"UPDATE tokens SET device_lookup = ?, {', '.join(f'{name} = ?' for name in names)} WHERE ref = ?"
    tokens, after = 0, 0
    while rows := c.execute(read, (after, _BATCH)).fetchall():
        c.executemany(write, map(token, rows))
        tokens, after = tokens + len(rows), rows[-1][0]
        progress("tokens", tokens)
    subscriptions, after = 0, 0
    while rows := c.execute(
        "SELECT ref, subscription_id, notifier_key FROM subscriptions WHERE ref > ? ORDER BY ref LIMIT ?",
        (after, _BATCH),
    ).fetchall():
        c.executemany(
            "UPDATE subscriptions SET notifier_key = ? WHERE ref = ?",
            [(reseal(key, NOTIFIER_KEY + subscription_id), ref) for ref, subscription_id, key in rows],
        )
        subscriptions, after = subscriptions + len(rows), rows[-1][0]
        progress("subscriptions", subscriptions)
    return tokens, subscriptions
