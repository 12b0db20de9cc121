"""Runs `PYTHON -m ntf_server ARGUMENT...` so that its database has no room while FILE is there:
`python full_disk.py FILE PYTHON -m ntf_server ARGUMENT...`.

By SQLite's own `max_page_count`, which a connection has for itself: it is set anew before each transaction.
"""

import sqlite3
import sys
from pathlib import Path
from typing import Any

from ntf_server.cli import main as cli

_PLENTY = 2**30  # pages


class _Connection(sqlite3.Connection):
    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.startswith("BEGIN"):
            pages = 1 if _full.exists() else _PLENTY  # fewer than there are: no more than there are
            super().execute(f"PRAGMA max_page_count = {pages}").fetchone()
        return super().execute(sql, *parameters)


_full = Path(sys.argv[1])
_connect = sqlite3.connect
sqlite3.connect = lambda *a, **options: _connect(*a, **options, factory=_Connection)  # type: ignore[assignment]
cli.main(sys.argv[5:])
