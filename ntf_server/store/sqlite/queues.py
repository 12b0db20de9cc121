"""Subscriptions in the SQLite store. Run inside a transaction."""

import hmac
import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from ntf_server.store.memory import State
from ntf_server.store.records import (
    WANTED,
    Added,
    Change,
    ChangeKind,
    LimitReached,
    Limits,
    NewSubscription,
    Removed,
    Subscription,
    Token,
)
from ntf_server.store.sealing import NOTIFIER_KEY, Sealer, SealingError
from ntf_server.store.sqlite.rows import (
    SUBSCRIPTION_COLUMNS,
    TOKEN_COLUMNS,
    TOKEN_WIDTH,
    server_address,
    subscription_record,
    token_record,
)
from smp_bridge.address import ServerAddress
from smp_bridge.service import ids_hash, xor

WANTED_SQL: Final = "status IN ('NEW', 'PENDING', 'ACTIVE')"  # to the letter of the index subscriptions_server


def find_server(c: sqlite3.Connection, server: ServerAddress) -> int | None:
    """The server's row, however it is spelled."""
    row = c.execute("SELECT ref FROM servers WHERE canonical = ?", (server.identity,)).fetchone()
    return None if row is None else int(row[0])


def make_server(c: sqlite3.Connection, s: State, server: ServerAddress) -> int:
    """The server's row, made if there is none."""
    ref = find_server(c, server)
    if ref is None:
        row = c.execute(
            "INSERT INTO servers (address, canonical, unused_since, tried_since) VALUES (?, ?, ?, ?) RETURNING ref",
            (server.plain.encode(), server.identity, s.now, s.now),
        ).fetchone()
        ref = int(row[0])
    return ref


# In one statement, since each is some turns at Python's lock.
_ASKED: Final = (
    "SELECT t.subscriptions, v.ref, v.address, v.subscriptions, s.ref, s.token, s.subscription_id, s.notifier_key,"
    " s.status, s.damaged, s.spelling, o.ref IS NULL FROM tokens t LEFT JOIN servers v ON v.canonical = :server"
    " LEFT JOIN subscriptions s ON s.server = v.ref AND s.notifier_id = :id LEFT JOIN tokens o ON o.ref = s.token"
    " WHERE t.ref = :token"
)


def subscribe(
    c: sqlite3.Connection, s: State, token: int, new: NewSubscription, limits: Limits
) -> Added | LimitReached | None:
    """See `Store.subscribe`."""
    row = c.execute(_ASKED, {"token": token, "server": new.server.identity, "id": new.notifier_id}).fetchone()
    if row is None:
        return None  # deleted since the command was authorized
    owned, server, address, on_server, ref, owner, subscription_id, sealed, status, damaged, spelling, orphan = row
    address = address or new.server.plain.encode()
    encoded = new.server.encode()
    spelled = None if encoded == address else encoded
    if ref is not None:
        if not orphan:
            if owner != token or not _is_same_key(s.sealer, sealed, subscription_id, new.notifier_key):
                return None
            if spelled != spelling:  # it looks for this one in its pushes from now on
                c.execute("UPDATE subscriptions SET spelling = ? WHERE ref = ?", (spelled, ref))
            if status not in WANTED or damaged is not None:
                _want_again(c, s, ref, subscription_id, new.notifier_key)
                s.effects.changes.append(Change(ChangeKind.ADDED, server_address(address), (ref,)))
            return Added(subscription_id, created=False)
        remove(c, s, [ref])  # its token is gone, and it only was not cleared yet
        on_server -= 1
        c.execute("UPDATE gone SET subscriptions = subscriptions - 1 WHERE token = ?", (owner,))
    if limits.per_token and owned >= limits.per_token:
        return LimitReached.TOKEN
    if server is None:  # not made before: what is refused must not fill the table of servers
        server, on_server = make_server(c, s, new.server), 0
    if limits.per_server and on_server >= limits.per_server:
        return LimitReached.SERVER
    sealed = s.sealer.seal(new.notifier_key, NOTIFIER_KEY + new.subscription_id)
    cursor = c.execute(
        "INSERT INTO subscriptions (subscription_id, token, server, notifier_id, notifier_key, status,"
        " created_at, spelling) VALUES (?, ?, ?, ?, ?, 'NEW', ?, ?)",
        (new.subscription_id, token, server, new.notifier_id, sealed, s.now, spelled),
    )
    assert cursor.lastrowid is not None
    s.effects.changes.append(Change(ChangeKind.ADDED, server_address(address), (cursor.lastrowid,)))
    return Added(new.subscription_id, created=True)


def _is_same_key(sealer: Sealer, sealed: bytes, subscription_id: bytes, given: bytes) -> bool:
    """What cannot be read is no reason to refuse: the key that is given takes its place."""
    try:
        kept = sealer.open(sealed, NOTIFIER_KEY + subscription_id)
    except SealingError:
        return True
    return hmac.compare_digest(kept, given[: len(kept)])  # an older relay kept the key without its public half


def _want_again(c: sqlite3.Connection, s: State, ref: int, subscription_id: bytes, notifier_key: bytes) -> None:
    c.execute(
        "UPDATE subscriptions SET status = 'NEW', error = '', damaged = NULL, notifier_key = ? WHERE ref = ?",
        (s.sealer.seal(notifier_key, NOTIFIER_KEY + subscription_id), ref),
    )


def find(c: sqlite3.Connection, subscription_id: bytes) -> tuple[Token, Subscription] | None:
    """See `Store.find_subscription`."""
    row = c.execute(
        f"SELECT {TOKEN_COLUMNS}, {SUBSCRIPTION_COLUMNS} FROM subscriptions s JOIN tokens t ON t.ref = s.token"
        " JOIN servers v ON v.ref = s.server WHERE s.subscription_id = ?",
        (subscription_id,),
    ).fetchone()
    return (token_record(row[:TOKEN_WIDTH]), subscription_record(row[TOKEN_WIDTH:])) if row else None


def count(c: sqlite3.Connection) -> int:
    """See `Store.subscription_count`."""
    [total] = c.execute(
        "SELECT (SELECT coalesce(sum(subscriptions), 0) FROM servers)"
        " - (SELECT coalesce(sum(subscriptions), 0) FROM gone)"
    ).fetchone()
    return int(total)


_OF_SERVERS: Final = (
    f"SELECT s.server, v.address, s.notifier_id, s.{WANTED_SQL}, s.association > 0 AND s.association = v.generation,"
    " s.ref, s.association, s.status = 'ACTIVE'"
    " FROM json_each(?) j CROSS JOIN subscriptions s ON s.ref = j.value CROSS JOIN servers v ON v.ref = s.server"
)


def remove(c: sqlite3.Connection, s: State, refs: Sequence[int]) -> None:
    """Delete subscriptions with their notifications. What a service had of them the SMP server goes on counting."""
    given = json.dumps(refs)
    rows: list[tuple[Any, ...]] = c.execute(_OF_SERVERS, (given,)).fetchall()
    released: defaultdict[int, list[bytes]] = defaultdict(list)
    servers: dict[int, bytes] = {}
    removed: defaultdict[int, list[Removed]] = defaultdict(list)
    for server, address, notifier_id, wanted, associated, ref, association, active in rows:
        servers[server] = address
        if wanted:
            removed[server].append(Removed(ref, bool(active), bool(associated), (association, ref)))
            if associated:
                released[server].append(notifier_id)
    for server, ids in released.items():
        [before] = c.execute("SELECT released_xor FROM servers WHERE ref = ?", (server,)).fetchone()
        c.execute(
            "UPDATE servers SET released = released + ?, released_xor = ? WHERE ref = ?",
            (len(ids), xor(before, ids_hash(ids)), server),
        )
    c.execute("DELETE FROM notifications WHERE subscription IN (SELECT value FROM json_each(?))", (given,))
    c.execute("DELETE FROM subscriptions WHERE ref IN (SELECT value FROM json_each(?))", (given,))
    for server, address in servers.items():
        c.execute("UPDATE servers SET unused_since = ? WHERE ref = ? AND subscriptions = 0", (s.now, server))
        if server in removed:
            change = Change(ChangeKind.REMOVED, server_address(address), removed=tuple(removed[server]))
            s.effects.changes.append(change)


def clear_slice(c: sqlite3.Connection, s: State, token: int, limit: int) -> int:
    """Delete some of what a token left behind: how many."""
    rows = c.execute("SELECT ref FROM subscriptions WHERE token = ? LIMIT ?", (token, limit)).fetchall()
    if rows:
        remove(c, s, [ref for (ref,) in rows])
    if len(rows) < limit:
        c.execute("DELETE FROM gone WHERE token = ?", (token,))
    else:
        c.execute("UPDATE gone SET subscriptions = subscriptions - ? WHERE token = ?", (len(rows), token))
    return len(rows)
