"""Upkeep of the SQLite store, in slices that hold up nobody for long. `run_slice` runs inside a transaction."""

import contextlib
import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ntf_server.store.contract import StoreCorruptError
from ntf_server.store.memory import State
from ntf_server.store.sqlite.content import EXPIRED
from ntf_server.store.sqlite.file import DatabaseFile
from ntf_server.store.sqlite.queues import clear_slice
from ntf_server.store.sqlite.rows import server_address
from ntf_server.store.sqlite.tokens import drop

log = logging.getLogger(__name__)

_SLICE: Final = 500  # subscriptions that are deleted at once
_SWEEP: Final = 2000  # unsent notifications that are looked at at once
_SOON: Final = 0.02  # seconds until the next slice of what is not done
_ROUND: Final = 60.0  # seconds between two sweeps
LOOK: Final = 5.0  # seconds between two looks at whether the file is still there
_DAY: Final = 24 * 3600
_UNVERIFIED: Final = _DAY  # seconds that a registration is kept that never was ACTIVE
_KEEP_SERVER: Final = 7 * _DAY  # seconds that a proven server is kept without subscriptions
_LARGE_WAL: Final = 16 * 2**20


@dataclass(slots=True)
class Sweep:
    """How far the sweep is: behind which token and seq; when the next one begins (steady seconds)."""

    token: int = 0
    seq: int = 0
    next_at: float = 0.0


def run_slice(c: sqlite3.Connection, s: State, sweep: Sweep, seen: Sequence[int] = ()) -> float:
    """Seconds until the next one is due. `seen`: tokens that sent a command."""
    if seen:
        query = "UPDATE tokens SET active_at = ? WHERE ref IN (SELECT value FROM json_each(?))"
        c.execute(query, (s.now, json.dumps(seen)))
    gone = c.execute("SELECT token FROM gone LIMIT 1").fetchone()
    if gone is not None:
        clear_slice(c, s, gone[0], _SLICE)
        return _SOON
    if s.steady < sweep.next_at:
        return max(_SOON, sweep.next_at - s.steady)
    if not sweep.token:
        if _forget_tokens(c, s):
            return _SOON
        _sweep_tokens(c, s)
        if _sweep_servers(c, s):
            return _SOON
    if _sweep_notifications(c, s, sweep):
        sweep.token, sweep.seq, sweep.next_at = 0, 0, s.steady + _ROUND
        return _ROUND
    return _SOON


def _sweep_notifications(c: sqlite3.Connection, s: State, sweep: Sweep) -> bool:
    """Give up those over their time to live, whoever is to be pushed to, and whether or not that lane is paused.

    True: that were all.
    """
    rows = c.execute(
        "SELECT token, seq, subscription, received_at FROM notifications INDEXED BY notifications_unsent"
        " WHERE sent = 0 AND (token, seq) > (?, ?) ORDER BY token, seq LIMIT ?",
        (sweep.token, sweep.seq, _SWEEP),
    ).fetchall()
    oldest = s.now - s.times.message_ttl
    late = [(token, subscription) for token, _, subscription, at in rows if at <= oldest and token not in s.claims]
    if late:
        subscriptions = json.dumps([subscription for _, subscription in late])
        query = f"UPDATE notifications SET sent = {EXPIRED} WHERE subscription IN (SELECT value FROM json_each(?))"
        c.execute(query, (subscriptions,))
        s.effects.expired["notification"] += len(late)
        _undue(c, {token for token, _ in late})
    if len(rows) < _SWEEP:
        return True
    sweep.token, sweep.seq = rows[-1][0], rows[-1][1]
    return False


def _forget_tokens(c: sqlite3.Connection, s: State) -> bool:
    """Delete registrations that were never verified, or are silent for too long. True: there may be more."""
    unproven = c.execute(
        "SELECT ref, 'unverified', subscriptions FROM tokens WHERE proven = 0 AND registered_at <= ? LIMIT ?",
        (s.now - _UNVERIFIED, _SLICE),
    ).fetchall()
    silent = c.execute(
        "SELECT ref, iif(status IN ('INVALID', 'EXPIRED'), 'dead', 'silent'), subscriptions FROM tokens"
        " WHERE proven = 1 AND active_at <= ? LIMIT ?",
        (s.now - s.times.silent_ttl, _SLICE),
    ).fetchall()
    room = _SLICE
    for ref, kind, subscriptions in (*unproven, *silent):
        drop(c, s, ref)
        s.effects.forgotten[kind] += 1
        room -= 1 + min(subscriptions, _SLICE)
        if room <= 0:
            return True
    return False


def _sweep_tokens(c: sqlite3.Connection, s: State) -> None:
    """Codes and checks that are over their time to live, some at once."""
    for what, ttl in (("verification", s.times.verification_ttl), ("check", s.times.message_ttl)):
        rows: list[tuple[Any, ...]] = c.execute(
            "SELECT ref FROM tokens WHERE (verification_due IS NOT NULL OR check_due IS NOT NULL)"
            f" AND {what}_due <= ? LIMIT ?",
            (s.now - ttl, _SWEEP),
        ).fetchall()
        late = {ref for (ref,) in rows if ref not in s.claims}
        if late:
            query = f"UPDATE tokens SET {what}_due = NULL WHERE ref IN (SELECT value FROM json_each(?))"
            c.execute(query, (json.dumps(sorted(late)),))
            s.effects.expired[what] += len(late)
            _undue(c, late)


_UNDUE: Final = (
    "UPDATE deliveries SET due_at = NULL, attempts = 0 WHERE token IN (SELECT value FROM json_each(?))"
    " AND due_at IS NOT NULL"
    " AND NOT EXISTS (SELECT 1 FROM notifications n WHERE n.token = deliveries.token AND n.sent = 0)"
    " AND NOT EXISTS (SELECT 1 FROM tokens t WHERE t.ref = deliveries.token"
    " AND (t.verification_due IS NOT NULL OR t.check_due IS NOT NULL))"
)


def _undue(c: sqlite3.Connection, tokens: set[int]) -> None:
    """Those of these that have nothing left are due no more."""
    c.execute(_UNDUE, (json.dumps(sorted(tokens)),))


def _sweep_servers(c: sqlite3.Connection, s: State) -> bool:
    """Forget servers that nobody needs any more. True: there may be more."""
    rows = c.execute(
        "SELECT ref, address FROM servers WHERE subscriptions = 0 AND (proven = 0 OR unused_since <= ?) LIMIT ?",
        (s.now - _KEEP_SERVER, _SWEEP),
    ).fetchall()
    forgotten = [ref for ref, address in rows if server_address(address) not in s.fences]
    for ref in forgotten:
        c.execute("DELETE FROM servers WHERE ref = ?", (ref,))
        s.addresses.pop(ref, None)
    s.effects.servers_forgotten += len(forgotten)
    return len(rows) == _SWEEP and bool(forgotten)


# --- the file


def file_trouble(file: DatabaseFile) -> StoreCorruptError | None:
    """Whether what is written still is where it will be looked for."""
    if file.is_there():
        return None
    return StoreCorruptError(
        f"{file.path}: the database was moved, deleted or replaced while the relay uses it: what is written now is lost"
        " with this process. Stop whatever does that, put the file back with its -wal (or a backup), then start again"
    )


def shorten_wal(file: DatabaseFile) -> None:
    """Move what a long read kept in the -wal into the database, and give the room back. Blocks; the writer hardly."""
    if file.wal_size() <= _LARGE_WAL:
        return
    with contextlib.suppress(sqlite3.Error), contextlib.closing(file.connect()) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        busy, left, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            log.warning("%s: another program reads the database: its -wal grows (%d pages)", file.path, left)
