"""What the migration to schema 5 does row by row, in slices. Run inside its transaction."""

import hashlib
import sqlite3
from typing import Final

from ntf_server.store.sealing import MasterKey, Sealer, SealingError
from ntf_server.store.sqlite.keys import DEVICE_TOKEN, load_key
from ntf_server.store.sqlite.migrations import Progress
from ntf_server.store.sqlite.rows import NO_IDS, xor
from smp_bridge.encoding import ParseError, Reader
from smp_bridge.ntf import Provider

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
        origin = sealer.origin(_origin(token)) if provider == Provider.WEB_PUSH else b""
        return sealer.lookup(provider, token), provider.encode() + origin, ref

    while rows := c.execute(
        "SELECT ref, token_id, provider, device_lookup, device_token FROM tokens WHERE ref > ? ORDER BY ref LIMIT ?",
        (after, _BATCH),
    ).fetchall():
        c.executemany("UPDATE tokens SET device_lookup = ?, lane = ? WHERE ref = ?", map(of_token, rows))
        after, done = rows[-1][0], done + len(rows)
        progress("tokens", done)
    c.execute("INSERT INTO deliveries (token, lane) SELECT ref, lane FROM tokens")


def _origin(token: bytes) -> str:
    """Of the push service in a device token of Web Push (wire.md, section 8), as its provider writes it."""
    try:
        r = Reader(token)
        host, port = r.short().decode("ascii").lower(), r.short().decode("ascii") or "443"
    except (ParseError, UnicodeDecodeError):
        return ""
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"https://{host}" + ("" if port.lstrip("0") == "443" else f":{port.lstrip('0')}")


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
                digest = hashlib.md5(notifier_id, usedforsecurity=False).digest()
                hashes[server] = xor(hashes.get(server, NO_IDS), digest)
        after, done = rows[-1][0], done + len(rows)
        progress("subscriptions", done)
    c.executemany(
        "UPDATE servers SET assoc_count = assoc_count + ?, assoc_xor = ? WHERE ref = ?",
        [(count, hashes[server], server) for server, count in counts.items()],
    )
