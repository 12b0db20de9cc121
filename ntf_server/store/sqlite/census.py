"""What tokens there are, in the SQLite store."""

import sqlite3
from typing import Final

from ntf_server.store.memory import State
from ntf_server.store.records import ACTIVE_SPANS, Census, Cursor
from ntf_server.store.sqlite.rows import one_row

_SPANS: Final = "".join(f", count(*) FILTER (WHERE :now - d.delivered_at < {s})" for s in ACTIVE_SPANS.values())
_COUNT: Final = (
    "SELECT json_group_array(json(kind)) FROM (SELECT json_array(provider, iif(t.damaged IS NULL, status, 'damaged'),"
    f" hex(vapid_key), max(t.ref), count(*){_SPANS}) kind"
    " FROM (SELECT ref, provider, status, damaged, vapid_key FROM tokens WHERE ref > :after ORDER BY ref LIMIT :limit)"
    " t LEFT JOIN deliveries d ON d.token = t.ref"
    " GROUP BY provider, iif(t.damaged IS NULL, status, 'damaged'), vapid_key)"
)


def census(c: sqlite3.Connection, s: State, after: Cursor | None, limit: int) -> tuple[Census, Cursor | None]:
    """See `Store.census`. Also from the reader's thread."""
    counted, looked_at, last = Census(), 0, 0
    parameters = {"after": after or 0, "limit": limit, "now": int(s.clock.wall())}
    for provider, status, vapid_key, newest, count, *active in one_row(c, _COUNT, parameters):
        counted.count(provider, status, bytes.fromhex(vapid_key), count)
        counted.active.update(dict(zip(ACTIVE_SPANS, active, strict=True)))
        looked_at, last = looked_at + count, max(last, newest)
    return counted, last if looked_at == limit else None
