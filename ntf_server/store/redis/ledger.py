"""What nodes count together, in Redis: budgets that have to hold over all of them, and turns of codes.

What is kept is kept for as long as it says something, by the server's own clock. When somebody sets that clock forward
budgets are forgotten too early, and begin full.
"""

import asyncio
import math
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.ledger import Change, Charge, Delays, Paces
from ntf_server.store.redis.asking import Word
from ntf_server.store.redis.node import Node

T = TypeVar("T")

_STAMP: Final = 8  # bytes before a memo's value, of each write others
_WHO: Final = 8  # bytes of what stands for an address
_LONGEST: Final = 5.0  # seconds until a memo cannot be changed
_PACE: Final = struct.Struct(">dd")


class RedisLedger:
    """Implements `store.ledger.Ledger`. `do`: runs an operation of the node."""

    def __init__(self, node: Node, do: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]) -> None:
        self._node = node
        self._do = do
        self._locks = WeakValueDictionary[bytes, asyncio.Lock]()  # of memos that are being changed

    def mask(self, text: bytes) -> bytes:
        """See `Ledger`."""
        return self._node.state.sealer.mask(text)

    async def spend(self, charges: Sequence[Charge], longest: float) -> list[Delays]:
        """See `Ledger`."""
        answers = await self._do(lambda: self._spend(charges, round(longest * 1000)))
        return [Delays(own / 1000, total / 1000) for own, total in answers]

    async def revise(self, key: bytes, change: Change[T]) -> T:
        """See `Ledger`. Of one node one at a time changes a memo: nodes compete, not all who ask."""
        result: T = await self._do(lambda: self._revise(key, change))
        return result

    async def _spend(self, charges: Sequence[Charge], longest: int) -> list[Any]:
        node = self._node
        return await node.database.run_all(
            [node.call("spend", [node.names.spent(c.kind)], node.ahead, c.n, longest, *self._words(c)) for c in charges]
        )

    def _words(self, charge: Charge) -> list[Word]:
        words: list[Word] = [_packed(charge.total), _packed(charge.modest)]
        for address, share in charge.addresses:
            words += self.mask(b"address" + address)[:_WHO], _packed(charge.each, share)
        return words

    async def _revise(self, key: bytes, change: Change[T]) -> T:
        try:
            async with asyncio.timeout(_LONGEST), self._alone(key):
                return await self._change(key, change)
        except TimeoutError:
            raise StoreUnavailableError(f"a memo is changed by others all the time (for {_LONGEST:g} s)") from None

    @asynccontextmanager
    async def _alone(self, key: bytes) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            yield

    async def _change(self, key: bytes, change: Change[T]) -> T:
        node, keys = self._node, [self._node.names.memo(key)]
        found = await node.run("recall", keys, node.ahead)
        while True:
            ms, stamped = found
            value = None if stamped is None else stamped[_STAMP:]
            revision = change(value, ms / 1000)
            if revision.value == value:
                return revision.result
            new = b"" if revision.value is None else node.state.random(_STAMP) + revision.value
            kept = max(1, math.ceil(revision.keep * 1000))
            found = await node.run("revise", keys, node.ahead, (stamped or b"")[:_STAMP], new, kept)
            if found is None:
                return revision.result


def _packed(paces: Paces, share: int = 1) -> bytes:
    """At once, and per millisecond, of each."""
    return b"".join(_PACE.pack(at_once * share, per_second * share / 1000) for at_once, per_second in paces)
