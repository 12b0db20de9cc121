"""Whose turn it is to connect: few at once, and those that prove slow make room for others. No I/O of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Places:
    """Places for those that connect.

    `connecting`: how many are quick at once; who takes longer than `slow_connect` seconds goes on among the slow, of
    whom there may be `slow`.
    """

    def __init__(self, connecting: int, slow_connect: float, slow: int) -> None:
        self._quick = asyncio.Semaphore(connecting)
        self._slow_connect = slow_connect
        self._max_slow = slow
        self._slow = 0

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """While one connects; waits for its turn. Raises TimeoutError if there are too many slow ones."""
        loop = asyncio.get_running_loop()
        await self._quick.acquire()
        slow = False

        def be_slow() -> None:
            nonlocal slow
            slow = True
            self._slow += 1
            self._quick.release()
            if self._slow > self._max_slow:
                limit.reschedule(loop.time())

        timer = loop.call_later(self._slow_connect, be_slow)
        try:
            async with asyncio.timeout(None) as limit:
                yield
        finally:
            timer.cancel()
            if slow:
                self._slow -= 1
            else:
                self._quick.release()
