"""The store in a Redis as a whole, for `ntf-server migrate`: whose it is, and whether a node uses it.

Run while no node lives.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Self

import msgspec

from ntf_server.store.contract import StoreConflictError, StoreError, StoreUnavailableError
from ntf_server.store.portable import (
    TOLERANCE,
    Mark,
    Moved,
    MovedServer,
    Servers,
    Slice,
    being_filled,
    read_mark,
)
from ntf_server.store.redis import statistics
from ntf_server.store.redis.call import Call, Word
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.names import SHARDS, Names
from ntf_server.store.redis.reading import Reading
from ntf_server.store.redis.schema import MARK, Identity, fresh, look, usual_buckets
from ntf_server.store.redis.script import Script
from ntf_server.store.redis.writing import Writing
from ntf_server.store.sealing import MasterKey, Sealer
from ntf_server.store.statistics import Counts

_FILL: Final = Script.load("fill")
_FILL_OWN: Final = Script.load("fill_own")
_FILL_ON: Final = Script.load("fill_on")
_FILLED: Final = Script.load("filled")
LIVES: Final = 3.0  # seconds that who fills it counts as living after it was heard of
_SAYS_SO: Final = 0.5  # seconds between two times that it is heard of


class PortableRedis:
    """Implements `portable.Portable`."""

    def __init__(self, database: Database, names: Names, master: MasterKey) -> None:
        self.name: Final = str(database.url)
        self.identity = ""  # it is made when it is begun with
        self._ahead = 0
        self._database = database
        self._names = names
        self._master = master
        self._key = b""
        self._filler: Final = os.urandom(8).hex()  # who fills it, if this process does
        self._living: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        database: Database,
        master: MasterKey,
        *,
        shards: int | None = None,
        buckets: int | None = None,
        make: bool,
    ) -> Self:
        """`make`: it need not be there yet, and has so many shards and buckets then.

        Raises StoreError, SealingError (another master key).
        """
        names = Names(database.prefix, shards or SHARDS, buckets or usual_buckets(database))
        found = await look(database, names, master)
        if found is None and not make:
            raise StoreError(f"{database.url}: there is no store under the prefix {database.prefix}")
        if found is not None and not make and found.mark is not None:
            raise being_filled(str(database.url))
        if found is not None and shards not in {None, found.shards}:
            raise StoreConflictError(f"{database.url}: the store has {found.shards} shards, which never changes")
        if found is not None and buckets not in {None, found.buckets}:
            raise StoreConflictError(f"{database.url}: the store has {found.buckets} buckets, which never changes")
        self = cls(database, names, master)
        began = time.time()
        skew = await self._time() - (began + time.time()) / 2
        self._ahead = round(await self._offset() / 1000) + (round(skew) if abs(skew) > TOLERANCE else 0)
        self._know(found)
        return self

    def _know(self, found: Identity | None) -> None:
        if found is not None:
            self._names, self._key = Names(self._database.prefix, found.shards, found.buckets), found.key
            self.identity = Sealer(found.key).lookup("identity", b"").hex()[:16]
        self._join()

    def _join(self) -> None:
        parts = self._database, self._names, Sealer(self._key), self._ahead
        self._reading, self._writing = Reading(*parts), Writing(*parts)

    @property
    def ahead(self) -> int:
        """See `Portable`."""
        return self._ahead

    @ahead.setter
    def ahead(self, seconds: int) -> None:
        self._ahead = seconds
        self._join()

    async def close(self) -> None:
        """See `Portable`."""
        if self._living is not None:
            self._living.cancel()
            await asyncio.wait([self._living])
            with suppress(StoreError):
                await self._own(0.0)
        await self._database.close()

    async def _read(self, *words: Word, key: bytes) -> Any:
        return await self._database.command(*words, key=key, writes=False)

    # --- whose it is

    async def tokens(self) -> int:
        """See `Portable`."""
        counts = await asyncio.gather(*(self._read(b"ZCARD", s + b":all", key=s) for s in self._names.shards))
        return sum(counts)

    async def is_empty(self) -> bool:
        """See `Portable`."""
        return not await self._read(b"HLEN", self._names.servers, key=self._names.servers) and not await self.tokens()

    async def check_idle(self) -> None:
        """See `Portable`."""
        names = self._names
        now = int(await self._time() * 1000) + await self._offset()
        live = await self._read(b"ZCOUNT", names.nodes, now, b"+inf", key=names.nodes)
        leases = await asyncio.gather(*(self._read(b"HMGET", s, b"node", b"until", key=s) for s in names.shards))
        if live or any(node and int(until or 0) > now for node, until in leases):
            raise self._used()

    async def _time(self) -> float:
        """The server's, in seconds."""
        seconds, micros = await self._read(b"TIME", key=self._names.clock)
        return int(seconds) + int(micros) / 1e6

    async def _offset(self) -> int:
        return int(await self._read(b"HGET", self._names.clock, b"offset", key=self._names.clock) or 0)

    def _used(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self.name}: a relay uses this store: stop all its nodes, then try again (one that was killed counts for"
            " six seconds)"
        )

    async def mark(self) -> Mark | None:
        """See `Portable`."""
        found = await look(self._database, self._names, self._master)
        return None if found is None or found.mark is None else read_mark(self.name, found.mark)

    async def begin(self, mark: Mark) -> None:
        """See `Portable`."""
        names = self._names
        full = f"{self.name}: there are registrations or servers already, a whole store; give another prefix"
        await self.check_idle()
        if not await self.is_empty():
            raise StoreConflictError(full)
        keys = [names.store, names.nodes, names.servers, names.clock]
        new = fresh(self._master, len(names.shards), names.buckets)
        args = (MARK, msgspec.msgpack.encode(mark), self._filler, round(LIVES * 1000), *new)
        match await self._database.run(Call(_FILL, keys, args)):
            case b"used":
                raise self._used()
            case b"full":
                raise StoreConflictError(full)
            case b"filled":
                raise self._anothers()
        self._say_so()
        self._know(await look(self._database, names, self._master))

    async def take_over(self) -> None:
        """See `Portable`. Who was killed is waited for."""
        first = lives = await self._own(LIVES)
        while lives:
            if lives != first:  # it was heard of meanwhile
                raise self._anothers()
            await asyncio.sleep(_SAYS_SO / 4)
            lives = await self._own(LIVES)
        self._say_so()

    async def _own(self, seconds: float) -> bytes:
        """This process fills it for so long; or until when another one does, by that."""
        args = (MARK, self._filler, round(seconds * 1000))
        lives: bytes = await self._database.run(Call(_FILL_OWN, [self._names.store], args))
        return lives

    def _say_so(self) -> None:
        if self._living is None:
            self._living = asyncio.create_task(self._live(), name="filling")

    async def _live(self) -> None:
        while True:
            await asyncio.sleep(_SAYS_SO)
            with suppress(StoreError):  # whatever is to be written next raises it too
                await self._own(LIVES)

    def _anothers(self) -> StoreConflictError:
        return StoreConflictError(
            f"{self.name}: another `ntf-server migrate` is filling this store: let it end; if it was killed, run this"
            " again"
        )

    async def end(self, newest: int) -> None:
        """See `Portable`."""
        keys = [self._names.store, self._names.clock]
        last = (newest + self._ahead) * 1000 if newest else 0
        if not await self._database.run(Call(_FILLED, keys, (await self._offset(), MARK, last, self._filler))):
            raise self._anothers()

    # --- what is in it

    def servers(self) -> AsyncIterator[Servers]:
        """See `Portable`."""
        return self._reading.servers()

    async def read(self, after: bytes, limit: int) -> Slice:
        """See `Portable`."""
        return await self._reading.tokens(after, limit)

    async def statistics(self) -> Mapping[str, Counts]:
        """See `Portable`."""
        return await statistics.every(self._database, self._names)

    async def write_statistics(self, rows: Mapping[str, Counts]) -> None:
        """See `Portable`."""
        for row, counts in rows.items():
            await statistics.put(self._database, self._names, row, counts)

    async def write_servers(self, servers: Sequence[MovedServer]) -> None:
        """See `Portable`."""
        await self._writing.servers(servers)

    async def write(self, moved: Sequence[Moved], mark: Mark) -> None:
        """See `Portable`."""
        await self._writing.tokens(moved)
        args = (MARK, msgspec.msgpack.encode(mark), self._filler)
        if not await self._database.run(Call(_FILL_ON, [self._names.store], args)):
            raise StoreConflictError(f"{self.name}: another `ntf-server migrate` fills it by now, or did, and ended")
