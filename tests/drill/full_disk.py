"""Runs `PYTHON -m ntf_server ARGUMENT...`, whose database has no room while FILE is there: `python full_disk.py FILE ...`.

By SQLite's own `max_page_count`, which a connection has for itself: it is set anew before each transaction.
"""

import os
import sqlite3
import sys
from typing import Any

from ntf_server.cli import main as cli

_PLENTY = 2**30  # pages


class _Connection(sqlite3.Connection):
    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.startswith("BEGIN"):
            pages = 1 if os.path.exists(_full) else _PLENTY  # fewer than there are: no more than there are
            super().execute(f"PRAGMA max_page_count = {pages}").fetchone()
        return super().execute(sql, *parameters)


_full = sys.argv[1]
_connect = sqlite3.connect
sqlite3.connect = lambda *a, **options: _connect(*a, **options, factory=_Connection)  # type: ignore[assignment]
cli.main(sys.argv[5:])
