"""What a mock push service has accepted, in order, and what of it tests have taken."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """`items` are all that came, also those that `next` has taken."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._untaken: deque[T] = deque()
        self._arrived = asyncio.Event()

    def put(self, item: T) -> None:
        """Append an item and wake those who wait for it."""
        self.items.append(item)
        self._untaken.append(item)
        self._arrived.set()
        self._arrived.clear()

    async def next(self, wanted: Callable[[T], bool], timeout: float) -> T:
        """Take the oldest wanted item that was not taken before; TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while True:
                for index, item in enumerate(self._untaken):
                    if wanted(item):
                        del self._untaken[index]
                        return item
                await self._arrived.wait()

    def clear(self) -> None:
        """Forget every item."""
        self.items.clear()
        self._untaken.clear()
