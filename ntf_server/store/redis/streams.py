"""Streams, read as they grow: XREAD BLOCK, over a connection of its own, as it holds up what comes behind it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from redis.exceptions import ResponseError

from ntf_server.store.contract import StoreConflictError, StoreError
from ntf_server.store.redis.call import ASKING, Word, packed
from ntf_server.store.redis.connection import TROUBLE, Connection
from ntf_server.store.redis.remedy import Again, Elsewhere, remedy, unavailable
from ntf_server.store.redis.url import Endpoint

COUNT: Final = 1000  # entries of a stream, at a time
_PAUSE: Final = 0.05  # seconds between two tries


class Source(Protocol):
    """Who knows who is primary: a `Database`."""

    def primary_of(self, key: bytes) -> Endpoint | None:
        """None: nobody is known."""
        ...

    def look(self) -> None:
        """Have it found out."""
        ...

    async def dial(self, endpoint: Endpoint) -> Connection:
        """Raises one of TROUBLE."""
        ...


class Entry(NamedTuple):
    """Of a stream: its id (`MILLISECONDS-NUMBER`), its fields."""

    id: bytes
    fields: Mapping[bytes, bytes]


class StreamReader:
    """`read` again and again, by one task; `close` at the end. Made by `Database.stream_reader`."""

    def __init__(self, source: Source, *, limit: float, patience: float, clock: Callable[[], float]) -> None:
        self._source = source
        self._limit = limit
        self._patience = patience
        self._clock = clock
        self._connection: Connection | None = None
        self._at: Endpoint | None = None  # whom it leads to

    async def read(self, after: Mapping[bytes, bytes], *, block: float, count: int = COUNT) -> dict[bytes, list[Entry]]:
        """What streams have behind an id each, `count` of each at most, at once or within `block` seconds; streams
        without any are left out. In a cluster the streams are of one slot.

        What passes is tried again, as with calls: raises StoreUnavailableError after so many seconds of that, and
        StoreError.
        """
        now = self._clock()
        until, give_up_at = now + block, now + block + self._limit
        reason = ""
        while (now := self._clock()) < give_up_at:
            try:
                told = await self._read(after, max(until - now, 0.0), count)
            except _TryAgainError as e:
                reason = str(e)
            else:
                if told or self._clock() >= until:
                    return told
            await asyncio.sleep(_PAUSE)
        raise unavailable(reason, self._limit)

    async def _read(self, after: Mapping[bytes, bytes], block: float, count: int) -> dict[bytes, list[Entry]]:
        endpoint = self._source.primary_of(next(iter(after)))
        if endpoint is None:
            self._source.look()
            raise _TryAgainError("no server has the slot")
        try:
            answer = await self._exchange(endpoint, after, block, count)
        except TROUBLE as e:
            answer = e
        if not isinstance(answer, Exception):
            return _entries(answer)
        match remedy(answer, endpoint, "XREAD"):
            case Elsewhere(_, to, True):  # it cannot wait there, as ASKING is for one command
                return await self._ask(to, after, count)
            case Elsewhere():
                self._source.look()
                raise _TryAgainError(f"{endpoint}: the slot has moved")
            case Again(reason, look):
                if look:
                    self._source.look()
                    await self.close()
                raise _TryAgainError(reason)
            case StoreError() as final:
                raise final
            case _:
                raise StoreConflictError(f"{endpoint}: XREAD: {answer}")

    async def _exchange(self, endpoint: Endpoint, after: Mapping[bytes, bytes], block: float, count: int) -> Any:
        if self._at != endpoint or self._connection is None or not await self._connection.is_idle():
            await self.close()
            self._connection = await self._source.dial(endpoint)
            self._at = endpoint
        answers: list[Any] = []
        try:
            command = packed(_xread(after, block, count))
            await self._connection.exchange([command], answers, 1, block + self._patience)
        except BaseException:
            await self.close()
            raise
        return answers[0]

    async def _ask(self, endpoint: Endpoint, after: Mapping[bytes, bytes], count: int) -> dict[bytes, list[Entry]]:
        answers: list[Any] = []
        try:
            async with await self._source.dial(endpoint) as connection:
                await connection.exchange([ASKING, packed(_xread(after, 0.0, count))], answers, 2, self._patience)
        except TROUBLE as e:
            raise _TryAgainError(f"{endpoint}: {e}") from None
        if isinstance(answers[1], ResponseError):
            raise _TryAgainError(f"{endpoint}: {answers[1]}")
        return _entries(answers[1])

    async def close(self) -> None:
        """At once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class _TryAgainError(Exception):
    """What the text says passes."""


def _xread(after: Mapping[bytes, bytes], block: float, count: int) -> tuple[Word, ...]:
    milliseconds = round(block * 1000)
    waits: tuple[Word, ...] = (b"BLOCK", milliseconds) if milliseconds else ()  # BLOCK 0 is for ever
    return b"XREAD", b"COUNT", count, *waits, b"STREAMS", *after.keys(), *after.values()


def _entries(told: Any) -> dict[bytes, list[Entry]]:
    """An answer to XREAD: None, or of each stream its key and `[id, [field, value, …]]` of each entry."""
    return {
        key: [Entry(id_, dict(zip(fields[::2], fields[1::2], strict=True))) for id_, fields in entries]
        for key, entries in told or ()
    }
