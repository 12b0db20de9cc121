"""What the migrations to schemas 5 and 6 do row by row, in slices. Run inside their transactions."""

import sqlite3
from typing import Final

from ntf_server.store.portable import origin_of
from ntf_server.store.sealing import DEVICE_TOKEN, MasterKey, Sealer, SealingError
from ntf_server.store.sqlite.keys import load_key
from ntf_server.store.sqlite.migrations import Progress
from ntf_server.store.sqlite.rows import NO_IDS, server_address
from smp_bridge.ntf import Provider
from smp_bridge.service import ids_hash, xor

_BATCH: Final = 1000  # rows in memory


def add_lanes(c: sqlite3.Connection, master: MasterKey, progress: Progress) -> None:
    """The lane of each token; tokens of APNs that differ in the case of their digits get one look-up value."""
    sealer, after, done = Sealer(load_key(c, master)), 0, 0

    def of_token(row: tuple[int, bytes, str, bytes, bytes]) -> tuple[bytes, bytes, int]:
        ref, token_id, provider, lookup, sealed = row
        try:
            token = sealer.open(sealed, DEVICE_TOKEN + token_id)
        except SealingError:  # damaged: set aside when it is asked for
            return lookup, provider.encode(), ref
        origin = sealer.origin(origin_of(token)) if provider == Provider.WEB_PUSH else b""
        return sealer.lookup(provider, token), provider.encode() + origin, ref

    while rows := c.execute(
        "SELECT ref, token_id, provider, device_lookup, device_token FROM tokens WHERE ref > ? ORDER BY ref LIMIT ?",
        (after, _BATCH),
    ).fetchall():
        c.executemany("UPDATE tokens SET device_lookup = ?, lane = ? WHERE ref = ?", map(of_token, rows))
        after, done = rows[-1][0], done + len(rows)
        progress("tokens", done)
    c.execute("INSERT INTO deliveries (token, lane) SELECT ref, lane FROM tokens")


def merge_twins(c: sqlite3.Connection, progress: Progress) -> None:
    """Of registrations with one device token and verify key the ACTIVE one stays, or the newest, with all queues."""
    twins = c.execute(
        "SELECT device_lookup, verify_key FROM tokens GROUP BY device_lookup, verify_key HAVING count(*) > 1"
    ).fetchall()
    for done, pair in enumerate(twins, 1):
        [(stays,), *others] = c.execute(
            "SELECT ref FROM tokens WHERE device_lookup = ? AND verify_key = ?"
            " ORDER BY status = 'ACTIVE' DESC, registered_at DESC, ref DESC",
            pair,
        ).fetchall()
        for (ref,) in others:
            c.execute("UPDATE subscriptions SET token = ? WHERE token = ?", (stays, ref))
            c.execute("UPDATE notifications SET token = ? WHERE token = ?", (stays, ref))
            c.execute("DELETE FROM tokens WHERE ref = ?", (ref,))
            c.execute("DELETE FROM deliveries WHERE token = ?", (ref,))
        c.execute(
            "UPDATE tokens SET subscriptions = (SELECT count(*) FROM subscriptions s WHERE s.token = tokens.ref)"
            " WHERE ref = ?",
            (stays,),
        )
        progress("registrations that are one", done)


def count_associations(c: sqlite3.Connection, progress: Progress) -> None:
    """How many queues our services have, and the XOR of their hashes. Those released are known by number only."""
    c.execute("UPDATE servers SET assoc_count = released")
    c.execute(
        "UPDATE subscriptions SET association = 0 WHERE status NOT IN ('NEW', 'PENDING', 'ACTIVE') AND association > 0"
    )
    counts: dict[int, int] = {}
    hashes: dict[int, bytes] = {}
    after, done = 0, 0
    while rows := c.execute(
        "SELECT s.ref, s.server, s.notifier_id, s.association > 0 AND s.association = v.generation"
        " AND s.status IN ('NEW', 'PENDING', 'ACTIVE') FROM subscriptions s JOIN servers v ON v.ref = s.server"
        " WHERE s.ref > ? ORDER BY s.ref LIMIT ?",
        (after, _BATCH),
    ).fetchall():
        for _, server, notifier_id, associated in rows:
            if associated:
                counts[server] = counts.get(server, 0) + 1
                hashes[server] = xor(hashes.get(server, NO_IDS), ids_hash([notifier_id]))
        after, done = rows[-1][0], done + len(rows)
        progress("subscriptions", done)
    c.executemany(
        "UPDATE servers SET assoc_count = assoc_count + ?, assoc_xor = ? WHERE ref = ?",
        [(count, hashes[server], server) for server, count in counts.items()],
    )


# --- schema 6


def merge_servers(c: sqlite3.Connection, progress: Progress) -> None:
    """Rows that are spellings of one server become one, with the subscriptions of all."""
    after = 0
    while rows := c.execute(
        "SELECT ref, address FROM servers WHERE ref > ? ORDER BY ref LIMIT ?", (after, _BATCH)
    ).fetchall():
        named = [(server_address(address).identity, ref) for ref, address in rows]
        c.executemany("UPDATE servers SET canonical = ? WHERE ref = ?", named)
        after = rows[-1][0]
    several = c.execute("SELECT canonical FROM servers GROUP BY canonical HAVING count(*) > 1").fetchall()
    for done, (canonical,) in enumerate(several, 1):
        [(stays, address), *others] = c.execute(  # what has a service has most to lose
            "SELECT ref, address FROM servers WHERE canonical = ?"
            " ORDER BY service_id IS NULL, subscriptions DESC, certificate IS NULL, ref",
            (canonical,),
        ).fetchall()
        for ref, spelling in others:
            _move_queues(c, ref, stays, None if spelling == address else spelling)
            c.execute("DELETE FROM servers WHERE ref = ?", (ref,))
        c.execute(
            "UPDATE servers SET subscriptions = (SELECT count(*) FROM subscriptions s WHERE s.server = servers.ref)"
            " WHERE ref = ?",
            (stays,),
        )
        progress("servers that are one", done)


def _move_queues(c: sqlite3.Connection, server: int, stays: int, spelling: bytes | None) -> None:
    """Of a queue that has subscriptions on both that of an ACTIVE token stays, or the newest."""
    both = c.execute(
        "SELECT a.ref, b.ref FROM subscriptions a JOIN subscriptions b"
        " ON b.server = ? AND b.notifier_id = a.notifier_id WHERE a.server = ?",
        (stays, server),
    ).fetchall()
    for pair in both:
        [_, (loser,)] = c.execute(
            "SELECT s.ref FROM subscriptions s LEFT JOIN tokens t ON t.ref = s.token WHERE s.ref IN (?, ?)"
            " ORDER BY coalesce(t.status = 'ACTIVE', 0) DESC, t.ref IS NULL, s.created_at DESC, s.ref DESC",
            pair,
        ).fetchall()
        _drop_queue(c, loser)
    # Associated with the service of another row, if with any: this one's takes them when they are subscribed again.
    c.execute(
        "UPDATE subscriptions SET server = ?, spelling = ?, association = 0 WHERE server = ?",
        (stays, spelling, server),
    )


def _drop_queue(c: sqlite3.Connection, ref: int) -> None:
    """As `queues.remove` does; what our service had of it the SMP server goes on counting."""
    token, server, notifier_id, associated = c.execute(
        "SELECT s.token, v.ref, s.notifier_id, s.association > 0 AND s.association = v.generation"
        " AND s.status IN ('NEW', 'PENDING', 'ACTIVE')"
        " FROM subscriptions s JOIN servers v ON v.ref = s.server WHERE s.ref = ?",
        (ref,),
    ).fetchone()
    if associated:
        [before] = c.execute("SELECT released_xor FROM servers WHERE ref = ?", (server,)).fetchone()
        query = "UPDATE servers SET released = released + 1, released_xor = ? WHERE ref = ?"
        c.execute(query, (xor(before, ids_hash([notifier_id])), server))
    c.execute("DELETE FROM notifications WHERE subscription = ?", (ref,))
    c.execute("DELETE FROM subscriptions WHERE ref = ?", (ref,))
    c.execute("UPDATE gone SET subscriptions = subscriptions - 1 WHERE token = ?", (token,))


def remember(c: sqlite3.Connection) -> None:
    """Which servers ever confirmed a subscription, and which tokens were ACTIVE; when each was heard of last is now."""
    c.execute(
        "UPDATE servers SET proven = coalesce((SELECT max(1, s.created_at) FROM subscriptions s"
        " WHERE s.server = servers.ref AND s.status IN ('ACTIVE', 'END', 'DELETED') LIMIT 1),"
        " service_id IS NOT NULL) WHERE proven = 0"
    )
    c.execute(
        "UPDATE tokens SET active_at = 0,"
        " proven = status NOT IN ('REGISTERED', 'CONFIRMED') OR subscriptions > 0 OR period > 0"
    )
