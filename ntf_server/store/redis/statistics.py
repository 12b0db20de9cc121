"""Statistics of days in the Redis store: a field of one hash for each row."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ntf_server.store.redis.database import Database
from ntf_server.store.redis.names import Names
from ntf_server.store.statistics import Counts, packed, unpacked

Do = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


class RedisStatistics:
    """Implements `Statistics`. `do`: the store's way to the node."""

    def __init__(self, database: Database, names: Names, node: str, do: Do) -> None:
        self.node = node
        self._database = database
        self._names = names
        self._do = do

    async def kept(self, row: str) -> Counts | None:
        """See `Statistics`."""
        found = await self._do(lambda: self._command(b"HGET", row.encode(), writes=False))
        return None if found is None else unpacked(found)

    async def keep(self, row: str, counts: Counts) -> None:
        """See `Statistics`."""
        await self._do(lambda: put(self._database, self._names, row, counts))

    async def rows(self) -> Mapping[str, Counts]:
        """See `Statistics`."""
        found: Mapping[str, Counts] = await self._do(lambda: every(self._database, self._names))
        return found

    async def forget(self, before: str) -> None:
        """See `Statistics`."""
        old = [row.encode() for row in await self.rows() if row < before]
        if old:
            await self._do(lambda: self._command(b"HDEL", *old))

    async def _command(self, name: bytes, *words: bytes, writes: bool = True) -> Any:
        key = self._names.statistics
        return await self._database.command(name, key, *words, key=key, writes=writes)


async def put(database: Database, names: Names, row: str, counts: Counts) -> None:
    """A row, in the place of what it was."""
    key = names.statistics
    await database.command(b"HSET", key, row.encode(), packed(counts), key=key)


async def every(database: Database, names: Names) -> dict[str, Counts]:
    """All rows."""
    key = names.statistics
    found = await database.command(b"HGETALL", key, key=key, writes=False)
    return {row.decode(): unpacked(value) for row, value in zip(found[::2], found[1::2], strict=True)}
