"""Statistics of days in the SQLite store: one node's, which has no name."""

import sqlite3
from collections.abc import Mapping
from typing import Any, Final, Protocol

from ntf_server.store.statistics import Counts, packed, unpacked


class _Do(Protocol):
    async def __call__(self, operation: Any, /) -> Any: ...


class SqliteStatistics:
    """Implements `Statistics`. `read`, `write`: the store's ways to the database."""

    node: Final = ""

    def __init__(self, read: _Do, write: _Do) -> None:
        self._read = read
        self._write = write

    async def kept(self, row: str) -> Counts | None:
        """See `Statistics`."""
        query = "SELECT counts FROM statistics WHERE row = ?"
        found = await self._read(lambda c: c.execute(query, (row,)).fetchone())
        return None if found is None else unpacked(found[0])

    async def keep(self, row: str, counts: Counts) -> None:
        """See `Statistics`."""
        await self._write(lambda c: put(c, row, counts))

    async def rows(self) -> Mapping[str, Counts]:
        """See `Statistics`."""
        return dict(await self._read(every))

    async def forget(self, before: str) -> None:
        """See `Statistics`."""
        query = "DELETE FROM statistics WHERE row < ?"
        await self._write(lambda c: c.execute(query, (before,)) and None)


def put(c: sqlite3.Connection, row: str, counts: Counts) -> None:
    """A row, in the place of what it was."""
    text = packed(counts).decode()
    c.execute("INSERT INTO statistics (row, counts) VALUES (?, ?) ON CONFLICT DO UPDATE SET counts = ?2", (row, text))


def every(c: sqlite3.Connection) -> dict[str, Counts]:
    """All rows."""
    return {row: unpacked(text) for row, text in c.execute("SELECT row, counts FROM statistics ORDER BY row")}
