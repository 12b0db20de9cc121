"""Keys and sealed columns in the SQLite store."""

import os
import sqlite3
from collections.abc import Callable
from typing import Any, Final

from ntf_server.store.sealing import KEY_SIZE, MasterKey, Sealer, SealingError
from smp_bridge.crypto import box_key

# Where a sealed value belongs: its column, then the public id of its row.
DEVICE_TOKEN: Final = b"tokens.device_token:"
CLIENT_DH: Final = b"tokens.client_dh:"
SERVER_DH: Final = b"tokens.server_dh:"
SECRET: Final = b"tokens.secret:"
CODE: Final = b"tokens.code:"
NOTIFIER_KEY: Final = b"subscriptions.notifier_key:"
SERVICE_KEY: Final = b"servers.certificate_key:"

_BATCH: Final = 1000  # rows in memory


def add_keys(c: sqlite3.Connection, master: MasterKey) -> None:
    """Make a database key and seal what is there in the clear. Run inside a transaction."""
    key = os.urandom(KEY_SIZE)
    # Deleted rows leave their bytes in the file as well: only one that never had any is clean.
    [used] = c.execute("SELECT count(*) FROM sqlite_sequence").fetchone()
    c.execute("INSERT INTO keys (ref, wrapped, to_scrub) VALUES (1, ?, ?)", (master.wrap(key), used > 0))
    seal_rows(c, None, Sealer(key))


def load_key(c: sqlite3.Connection, master: MasterKey) -> bytes:
    """The database key. Raises WrongMasterKeyError, SealingError."""
    row = c.execute("SELECT wrapped FROM keys").fetchone()
    if row is None:
        raise SealingError("its wrapped database key is missing")
    return master.unwrap(row[0])


def replace_key(c: sqlite3.Connection, key: bytes, master: MasterKey) -> None:
    """Keep `key`, wrapped by `master`; the old one is scrubbed at the next opening. Run inside a transaction."""
    c.execute("UPDATE keys SET wrapped = ?, to_scrub = 1", (master.wrap(key),))


def add_box_keys(c: sqlite3.Connection, master: MasterKey) -> None:
    """Replace DH secrets by what pushes are boxed with. Run inside a transaction."""
    sealer, after = Sealer(load_key(c, master)), 0
    while rows := c.execute(
        "SELECT ref, token_id, secret FROM tokens WHERE ref > ? ORDER BY ref LIMIT ?", (after, _BATCH)
    ).fetchall():
        contexts = [(SECRET + token_id, secret, ref) for ref, token_id, secret in rows]
        c.executemany(
            "UPDATE tokens SET secret = ? WHERE ref = ?",
            [(sealer.seal(box_key(sealer.open(secret, context)), context), ref) for context, secret, ref in contexts],
        )
        after = rows[-1][0]


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


def seal_rows(c: sqlite3.Connection, old: Sealer | None, new: Sealer) -> tuple[int, int]:
    """Seal all sealed columns anew; `old` None: they are in the clear. Counts of tokens and subscriptions.

    Run inside a transaction.
    """

    def reseal(value: bytes, context: bytes) -> bytes:
        return new.seal(old.open(value, context) if old else value, context)

    def token(row: tuple[Any, ...]) -> tuple[Any, ...]:
        ref, token_id, provider, device_token, client_dh, server_dh, secret, code = row
        context = DEVICE_TOKEN + token_id
        plain = old.open(device_token, context) if old else device_token
        return (
            new.lookup(provider, plain),
            new.seal(plain, context),
            reseal(client_dh, CLIENT_DH + token_id),
            reseal(server_dh, SERVER_DH + token_id),
            reseal(secret, SECRET + token_id),
            reseal(code, CODE + token_id),
            ref,
        )

    tokens, after = 0, 0
    while rows := c.execute(
        "SELECT ref, token_id, provider, device_token, client_dh, server_dh, secret, code FROM tokens"
        " WHERE ref > ? ORDER BY ref LIMIT ?",
        (after, _BATCH),
    ).fetchall():
        c.executemany(
            "UPDATE tokens SET device_lookup = ?, device_token = ?, client_dh = ?, server_dh = ?, secret = ?, code = ?"
            " WHERE ref = ?",
            map(token, rows),
        )
        tokens, after = tokens + len(rows), rows[-1][0]
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
    return tokens, subscriptions
