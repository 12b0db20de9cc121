"""What a database's file can tell while no relay uses it, without its key, and without a trace."""

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Final

from ntf_server.store.contract import StoreError
from ntf_server.store.records import Glance
from ntf_server.store.sqlite.database import corrupt_error
from ntf_server.store.sqlite.file import opening_errors
from ntf_server.store.sqlite.migrations import APPLICATION_ID

_WITH_LANES: Final = 5  # the first schema that says what is due
# By a row, or by what the server had in memory when it was killed (`due.recover`).
_DUE: Final = """
    WITH waiting (lane, since) AS (
        SELECT d.lane, coalesce(d.due_at, 1000 * coalesce(t.verification_due, t.check_due,
            (SELECT min(received_at) FROM notifications n WHERE n.token = t.ref AND n.sent = 0)))
        FROM deliveries d JOIN tokens t ON t.ref = d.token
        WHERE t.damaged IS NULL AND (d.due_at IS NOT NULL OR t.verification_due IS NOT NULL OR (
            t.status = 'ACTIVE' AND (t.check_due IS NOT NULL
            OR EXISTS (SELECT 1 FROM notifications n WHERE n.token = t.ref AND n.sent = 0))))
    ) SELECT CAST(substr(lane, 1, 2) AS TEXT), count(*), min(since) FROM waiting GROUP BY 1 ORDER BY 1
    """


def glance(path: Path) -> Glance:
    """Blocks. Raises StoreError (it is not there, may not be read, is another program's), StoreCorruptError."""
    if not path.exists():
        raise StoreError(f"{path}: there is no database; the first start makes one")
    if not path.stat().st_size:
        raise corrupt_error(path, "it is empty")
    wal = path.with_name(path.name + "-wal")
    # Without a -wal nothing is beside the file, nor is to be: another user's files would be in the relay's way.
    alone = not wal.exists() or not wal.stat().st_size
    uri = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
    with opening_errors(path), contextlib.closing(sqlite3.connect(uri, uri=True)) as c:
        [application] = c.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise StoreError(f"{path}: this is the database of another program")
        [version] = c.execute("PRAGMA user_version").fetchone()
        registrations = dict(c.execute("SELECT status, count(*) FROM tokens GROUP BY status ORDER BY status"))
        [subscriptions] = c.execute("SELECT count(*) FROM subscriptions").fetchone()
        if version < _WITH_LANES:
            return Glance(registrations, subscriptions)
        now = time.time()
        due = c.execute(_DUE).fetchall()
        oldest = min((at for _, _, at in due), default=None)
        return Glance(
            registrations,
            subscriptions,
            {provider: count for provider, count, _ in due},
            None if oldest is None or oldest / 1000 > now else now - oldest / 1000,
        )
