"""What SMP servers have proved, in the SQLite store. Run inside a transaction."""

import sqlite3
from typing import Final

from ntf_server.store.memory import State
from ntf_server.store.records import Session
from ntf_server.store.sqlite.queues import find_server
from ntf_server.store.sqlite.sessions import LIVE, check
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.places import ANYWHERE, Standing

_MAX_PREFIXES: Final = 4  # of a server: it may be reached by IPv4 and by IPv6, and move
_CLAIMS: Final = 4  # tokens that want a server: of the first ones, and of the last


def standing(c: sqlite3.Connection, server: ServerAddress, now: float) -> Standing | None:
    """See `Store.standing`."""
    row = c.execute("SELECT ref, prefixes, tried_since FROM servers WHERE canonical = ?", (server.identity,)).fetchone()
    if row is None:
        return None
    ref, prefixes, tried_since = row
    query = f"SELECT token FROM subscriptions WHERE server = ? AND {LIVE} ORDER BY association"
    # Both ends of the index: whoever comes late can choose neither the first ones nor all of the last.
    first = c.execute(f"{query}, ref LIMIT ?", (ref, _CLAIMS)).fetchall()
    last = c.execute(f"{query} DESC, ref DESC LIMIT ?", (ref, _CLAIMS)).fetchall()
    claims = tuple(dict.fromkeys(token for (token,) in (*first, *last)))
    return Standing(tuple(prefixes.split()), max(0.0, now - tried_since), claims) if claims else None


def prove(c: sqlite3.Connection, s: State, session: Session, prefix: str) -> None:
    """See `Store.prove`."""
    check(s, session)
    row = c.execute("SELECT ref, prefixes FROM servers WHERE canonical = ?", (session.server.identity,)).fetchone()
    if row is None:
        return
    ref, kept = row
    if prefix in kept.split():
        return
    prefixes = [prefix, *(p for p in kept.split() if p != ANYWHERE)][:_MAX_PREFIXES]
    query = "UPDATE servers SET prefixes = ?, proven = iif(proven > 0, proven, ?) WHERE ref = ?"
    c.execute(query, (" ".join(prefixes), s.now, ref))


def disprove(c: sqlite3.Connection, s: State, server: ServerAddress) -> None:
    """See `Store.disprove`."""
    query = "UPDATE servers SET prefixes = '', proven = 0, tried_since = ? WHERE ref = ? AND proven > 0"
    c.execute(query, (s.now, find_server(c, server)))


def give_up(c: sqlite3.Connection, s: State, session: Session, *, error: str, limit: int) -> int:
    """See `Store.give_up`. Nothing is associated with a service there that nobody reaches."""
    check(s, session)
    done = c.execute(
        "UPDATE subscriptions SET status = ?, error = ?, association = 0 WHERE ref IN"
        f" (SELECT ref FROM subscriptions WHERE server = ? AND {LIVE} LIMIT ?)",
        (SubscriptionStatus.ERR, error, find_server(c, session.server), limit),
    )
    return done.rowcount
