"""SMP servers and what is subscribed on them, in the SQLite store. Run inside a transaction.

One process has the database, so who speaks for a server is in its memory; the fence also stands in the notifications'
numbers, so that those of a later session are newer.
"""

import json
import math
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ntf_server.store.contract import FencedError
from ntf_server.store.memory import State
from ntf_server.store.records import (
    WANTED,
    Confirmed,
    Cursor,
    Lost,
    Page,
    ServiceCertificate,
    ServiceState,
    Session,
    ToAudit,
    Wanted,
)
from ntf_server.store.sealing import NOTIFIER_KEY, SERVICE_KEY, Sealer, SealingError
from ntf_server.store.sqlite.due import due_when_free
from ntf_server.store.sqlite.queues import WANTED_SQL, find_server, make_server
from ntf_server.store.sqlite.rows import NO_IDS, DamagedRowError, one_row, server_address
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.service import ids_hash, xor

_ALL: Final = 2**62  # a generation above all
# Should be active: of a token that is there, and readable.
LIVE: Final = (
    f"{WANTED_SQL} AND damaged IS NULL AND NOT EXISTS (SELECT 1 FROM gone g WHERE g.token = subscriptions.token)"
)
_LOST_EVERY: Final = 3600.0  # seconds between two checks of a token for what servers sent in vain
_MAX_LOST: Final = 100_000  # such checks in that time, of all tokens
_COLUMNS: Final = "ref, association, status, notifier_id, notifier_key, subscription_id"


# --- who speaks for a server


def acquire(c: sqlite3.Connection, s: State, server: ServerAddress) -> Session:
    """See `Store.acquire`: we always get it."""
    make_server(c, s, server)
    s.fence += 1
    s.fences.put(server, s.fence)
    s.generations.drop(server)
    return Session(server, s.fence)


def release(s: State, session: Session) -> None:
    """See `Store.release`."""
    if s.fences.get(session.server) == session.fence:
        s.fences.drop(session.server)
        s.generations.drop(session.server)


def check(s: State, session: Session) -> None:
    """Raises FencedError."""
    if s.fences.get(session.server) != session.fence:
        raise FencedError("another session speaks for this server by now")


def _server(c: sqlite3.Connection, s: State, session: Session) -> int:
    check(s, session)
    return make_server(c, s, session.server)


# --- reading


def wanted_servers(c: sqlite3.Connection) -> list[ServerAddress]:
    """See `Store.servers`."""
    rows = c.execute(
        f"SELECT address FROM servers v WHERE EXISTS (SELECT 1 FROM subscriptions WHERE server = v.ref AND {LIVE})"
    )
    return [server_address(address) for (address,) in rows]


def is_wanted(c: sqlite3.Connection, server: ServerAddress) -> bool:
    """See `Store.is_wanted`."""
    query = f"SELECT 1 FROM subscriptions WHERE server = ? AND {LIVE} LIMIT 1"
    return c.execute(query, (find_server(c, server),)).fetchone() is not None


def page(
    c: sqlite3.Connection, s: State, session: Session, after: Cursor | None, *, limit: int, associated: bool
) -> tuple[Page, list[DamagedRowError]]:
    """See `Store.page`; and what of it cannot be read."""
    check(s, session)
    generation = s.generations.get(session.server, _ALL)
    below = generation + 1 if associated else generation
    after = after or ((generation, 0) if associated else None)
    rows, cursor = _slice(c, _COLUMNS, session.server, after, limit, below=below)
    wanted, damaged = _wanted(s, session, rows)
    return Page(wanted, cursor), damaged


def _slice(
    c: sqlite3.Connection, columns: str, server: ServerAddress, after: Cursor | None, limit: int, *, below: int = _ALL
) -> tuple[list[tuple[Any, ...]], Cursor | None]:
    """Subscriptions of a server behind a cursor, of generations below one, in the order of the index; where to go on.

    `columns` begin with ref, association.
    """
    query = f"SELECT {columns} FROM subscriptions WHERE server = ? AND {LIVE}"
    number, (association, ref) = find_server(c, server), after or (0, 0)
    rows: list[tuple[Any, ...]] = []
    if association < below:
        same = f"{query} AND association = ? AND ref > ? ORDER BY ref LIMIT ?"
        rows += c.execute(same, (number, association, ref, limit))
    if len(rows) < limit:  # a comparison of both columns at once would not use the index for the second
        later = f"{query} AND association > ? AND association < ? ORDER BY association, ref LIMIT ?"
        rows += c.execute(later, (number, association, below, limit - len(rows)))
    return rows, (rows[-1][1], rows[-1][0]) if len(rows) == limit else None


def load(
    c: sqlite3.Connection, s: State, session: Session, refs: Sequence[int]
) -> tuple[list[Wanted], list[DamagedRowError]]:
    """See `Store.load`; and what of it cannot be read."""
    check(s, session)
    query = f"SELECT {_COLUMNS} FROM subscriptions WHERE ref = ? AND server = ? AND {LIVE}"
    server = find_server(c, session.server)
    rows = [c.execute(query, (ref, server)).fetchone() for ref in refs]
    return _wanted(s, session, [row for row in rows if row is not None])


def _wanted(s: State, session: Session, rows: Iterable[tuple[Any, ...]]) -> tuple[list[Wanted], list[DamagedRowError]]:
    generation = s.generations.get(session.server, _ALL)
    wanted: list[Wanted] = []
    damaged: list[DamagedRowError] = []
    for ref, association, status, notifier_id, key, subscription_id in rows:
        try:
            opened = s.sealer.open(key, NOTIFIER_KEY + subscription_id)
        except SealingError:
            damaged.append(DamagedRowError("subscriptions", ref))
            continue
        fresh = status != SubscriptionStatus.ACTIVE
        wanted.append(Wanted(ref, association == generation, fresh, notifier_id, opened))
    return wanted, damaged


def to_audit(
    c: sqlite3.Connection, after: Cursor | None, limit: int, silent_since: float
) -> tuple[list[ToAudit], Cursor | None]:
    """See `Store.to_audit`."""
    rows = c.execute(
        "SELECT subscriptions.ref, v.address, coalesce(n.received_at, created_at) < ? FROM subscriptions"
        " JOIN servers v ON v.ref = subscriptions.server"
        " LEFT JOIN notifications n ON n.subscription = subscriptions.ref"
        f" WHERE subscriptions.ref > ? AND {LIVE} ORDER BY subscriptions.ref LIMIT ?",
        (silent_since, after or 0, limit),
    ).fetchall()
    found = [ToAudit(ref, server_address(address), bool(silent)) for ref, address, silent in rows]
    return found, rows[-1][0] if len(rows) == limit else None


# --- writing


def confirm(c: sqlite3.Connection, s: State, session: Session, answers: Sequence[Confirmed]) -> None:
    """See `Store.confirm`."""
    server = _server(c, s, session)
    generation = s.generations.get(session.server, 0)
    if not generation:
        _confirm_alone(c, server, answers)
        return
    joined: list[bytes] = []
    left: list[bytes] = []
    changes: list[tuple[Any, ...]] = []
    for a in answers:
        row = c.execute(  # an END that came with the answers must not be undone
            f"SELECT association, notifier_id FROM subscriptions WHERE ref = ? AND server = ? AND {WANTED_SQL}",
            (a.ref, server),
        ).fetchone()
        if row is None:
            continue
        association, notifier_id = row
        before = association == generation
        now = (before if a.associated is None else a.associated) and a.status in WANTED
        if now != before:
            (joined if now else left).append(notifier_id)
        if now:
            association = generation
        elif before or a.status not in WANTED:
            association = 0
        changes.append((a.status, a.error, association, a.ref))
    c.executemany("UPDATE subscriptions SET status = ?, error = ?, association = ? WHERE ref = ?", changes)
    _account(c, server, joined, left)


def _confirm_alone(c: sqlite3.Connection, server: int, answers: Sequence[Confirmed]) -> None:
    """In a session without a service, where nothing is associated."""
    c.executemany(
        f"UPDATE subscriptions SET status = ?, error = ? WHERE ref = ? AND server = ? AND {WANTED_SQL}",
        [(a.status, a.error, a.ref, server) for a in answers],
    )


def _account(c: sqlite3.Connection, server: int, joined: Sequence[bytes], left: Sequence[bytes]) -> None:
    """These queues are among those that our service has there, or are no more."""
    if not joined and not left:
        return
    [before] = c.execute("SELECT assoc_xor FROM servers WHERE ref = ?", (server,)).fetchone()
    c.execute(
        "UPDATE servers SET assoc_count = max(0, assoc_count + ?), assoc_xor = ? WHERE ref = ?",
        (len(joined) - len(left), xor(before, ids_hash([*joined, *left])), server),
    )


def end(
    c: sqlite3.Connection, s: State, session: Session, notifier_ids: Sequence[bytes], status: SubscriptionStatus
) -> int:
    """See `Store.end`."""
    server = _server(c, s, session)
    [generation, released, released_xor] = c.execute(
        "SELECT generation, released, released_xor FROM servers WHERE ref = ?", (server,)
    ).fetchone()
    known = 0
    left: list[bytes] = []
    for notifier_id in notifier_ids:
        row = c.execute(
            f"SELECT ref, association > 0 AND association = ? AND {WANTED_SQL} FROM subscriptions"
            " WHERE server = ? AND notifier_id = ?",
            (generation, server, notifier_id),
        ).fetchone()
        if row is not None:
            known += 1
            c.execute("UPDATE subscriptions SET status = ?, association = 0 WHERE ref = ?", (status, row[0]))
            if row[1]:
                left.append(notifier_id)
        elif released:  # the server counts it no more either
            released -= 1
            released_xor = xor(released_xor, ids_hash([notifier_id]))
            c.execute(
                "UPDATE servers SET released = ?, released_xor = ? WHERE ref = ?", (released, released_xor, server)
            )
            left.append(notifier_id)
    _account(c, server, [], left)
    return known


# --- services


def begin(c: sqlite3.Connection, s: State, session: Session, service_id: bytes | None) -> ServiceState:
    """See `Store.begin`."""
    server = _server(c, s, session)
    [before] = c.execute("SELECT service_id FROM servers WHERE ref = ?", (server,)).fetchone()
    if before != service_id:
        c.execute(
            "UPDATE servers SET service_id = :id, generation = generation + 1, released = 0, released_xor = :none,"
            " assoc_count = 0, assoc_xor = :none WHERE ref = :ref",
            {"id": service_id, "none": NO_IDS, "ref": server},
        )
    if service_id is None:
        s.generations.drop(session.server)
    else:
        c.execute("UPDATE servers SET generation = 1 WHERE ref = ? AND generation = 0", (server,))  # 0 stands for none
        _keep_generation(c, s, session, server)
    return _state(c, server, changed=before is not None and before != service_id)


def _keep_generation(c: sqlite3.Connection, s: State, session: Session, server: int) -> None:
    [generation] = c.execute("SELECT generation FROM servers WHERE ref = ?", (server,)).fetchone()
    s.generations.put(session.server, generation)


def service_state(c: sqlite3.Connection, s: State, session: Session) -> ServiceState:
    """See `Store.service_state`."""
    check(s, session)
    server = find_server(c, session.server)
    return _state(c, server) if server is not None else ServiceState(0, 0)


def reassociate(c: sqlite3.Connection, s: State, session: Session) -> ServiceState:
    """See `Store.reassociate`."""
    server = _server(c, s, session)
    c.execute(
        "UPDATE servers SET generation = generation + 1, assoc_count = released, assoc_xor = released_xor"
        " WHERE ref = ?",
        (server,),
    )
    if session.server in s.generations:
        _keep_generation(c, s, session, server)
    return _state(c, server)


def set_released(c: sqlite3.Connection, s: State, session: Session, count: int, ids_hash: bytes | None = None) -> None:
    """See `Store.set_released`. Which ones it is that are left is known if none is."""
    server = _server(c, s, session)
    ids, released = c.execute("SELECT assoc_xor, released_xor FROM servers WHERE ref = ?", (server,)).fetchone()
    new = ids_hash if ids_hash is not None else released if count else NO_IDS
    ids, released = xor(xor(ids, released), new), new
    c.execute(
        "UPDATE servers SET assoc_count = assoc_count - released + :count, released = :count, assoc_xor = :ids,"
        " released_xor = :released WHERE ref = :ref",
        {"count": count, "ids": ids, "released": released, "ref": server},
    )


def _state(c: sqlite3.Connection, server: int, *, changed: bool = False) -> ServiceState:
    count, ids, released, released_ids = c.execute(
        "SELECT assoc_count, assoc_xor, released, released_xor FROM servers WHERE ref = ?", (server,)
    ).fetchone()
    return ServiceState(max(0, count - released), released, changed, ids, released_ids)


def certificate(c: sqlite3.Connection, sealer: Sealer, server: ServerAddress) -> ServiceCertificate | None:
    """What is kept; None also if it cannot be read."""
    query = "SELECT certificate, certificate_key, address FROM servers WHERE canonical = ?"
    row = c.execute(query, (server.identity,)).fetchone()
    if row is None or row[0] is None:
        return None
    try:
        return ServiceCertificate(row[0], sealer.open(row[1], SERVICE_KEY + row[2]))
    except SealingError:
        return None


def keep_certificate(
    c: sqlite3.Connection, s: State, server: ServerAddress, new: ServiceCertificate
) -> ServiceCertificate:
    """Keep it, unless there is one: the one that is kept."""
    kept = certificate(c, s.sealer, server)
    if kept is not None:
        return kept
    ref = make_server(c, s, server)
    [address] = c.execute("SELECT address FROM servers WHERE ref = ?", (ref,)).fetchone()
    sealed = s.sealer.seal(new.key, SERVICE_KEY + address)
    c.execute("UPDATE servers SET certificate = ?, certificate_key = ? WHERE ref = ?", (new.chain, sealed, ref))
    return new


def reseal_certificates(c: sqlite3.Connection, old: Sealer, new: Sealer) -> None:
    """Seal the keys of all services anew. One that cannot be opened is made anew when it is asked for."""
    rows = c.execute("SELECT ref, address, certificate_key FROM servers WHERE certificate_key IS NOT NULL").fetchall()
    for ref, address, key in rows:
        context = SERVICE_KEY + address
        try:
            sealed = new.seal(old.open(key, context), context)
        except SealingError:
            sealed = None
        c.execute(
            "UPDATE servers SET certificate_key = ?, certificate = iif(? IS NULL, NULL, certificate) WHERE ref = ?",
            (sealed, sealed, ref),
        )


# --- what was lost on the way

_TO_CHECK: Final = (
    "SELECT json_group_array(t.ref) FROM json_each(:refs) j CROSS JOIN tokens t ON t.ref = j.value"
    " CROSS JOIN deliveries d ON d.token = t.ref"
    " WHERE t.status = 'ACTIVE' AND t.damaged IS NULL AND t.check_due IS NULL"
    " AND NOT coalesce(d.delivered_at BETWEEN :since AND :now, 0)"
    " AND NOT EXISTS (SELECT 1 FROM notifications n WHERE n.token = t.ref AND n.sent = 0)"
)


def mark_lost(
    c: sqlite3.Connection, s: State, session: Session, after: Cursor | None, *, limit: int, within: float
) -> Lost:
    """See `Store.mark_lost`."""
    check(s, session)
    rows, cursor = _slice(c, "ref, association, token", session.server, after, limit)
    tokens = sorted({token for _, _, token in rows})
    later = s.checked_lately(tokens, within, _LOST_EVERY)
    asked = [token for token in tokens if token not in s.lost]
    times = {"now": s.now, "since": s.now - math.ceil(within)}  # both are whole seconds
    found: list[int] = one_row(c, _TO_CHECK, {"refs": json.dumps(asked), **times})
    refs = found[: max(0, _MAX_LOST - len(s.lost))]
    if refs:
        query = "UPDATE tokens SET check_due = ? WHERE ref IN (SELECT value FROM json_each(?))"
        c.execute(query, (s.now, json.dumps(refs)))
        due_when_free(c, s, refs)
        s.lost.put_all(dict.fromkeys(refs, s.steady))
    return Lost(len(refs), cursor, later if len(refs) == len(found) else _LOST_EVERY)
