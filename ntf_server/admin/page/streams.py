"""Server-sent events (HTML, section 9.2) for so many browsers, each with so much that waits for it."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

MOST: Final = 16  # browsers
EVENTS: Final = 100  # that wait for a browser; older ones are left out
_END: Final = b"event: end\ndata: {}\n\n"


def message(name: str, data: bytes) -> bytes:
    """`data`: on one line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


class Viewer:
    """A browser. What it did not take of the state is replaced by what is newer: it gets the last, never a queue."""

    def __init__(self) -> None:
        self._state = b""
        self._events: deque[bytes] = deque(maxlen=EVENTS)
        self._wake = asyncio.Event()
        self._over = self._ended = False

    def put(self, state: bytes, events: Sequence[bytes]) -> None:
        """New ones."""
        self._state = state
        self._events += events
        self._wake.set()

    def end(self) -> None:
        """After what waits."""
        self._over = True
        self._wake.set()

    async def next(self) -> bytes | None:
        """What there is, as it goes over the wire; None: that was all."""
        if self._ended:
            return None
        await self._wake.wait()
        self._wake.clear()
        self._ended = self._over
        parts = [*self._events, self._state, _END if self._over else b""]
        self._state = b""
        self._events.clear()
        return b"".join(parts)


class Streams:
    """All of them."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._viewers: set[Viewer] = set()
        self._over = False

    def __len__(self) -> int:
        return len(self._viewers)

    def join(self) -> Viewer | None:
        """One more; None: there are enough, or it is over. `leave` when it has gone."""
        if self._over or len(self._viewers) >= self._most:
            return None
        viewer = Viewer()
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """It has gone."""
        self._viewers.discard(viewer)

    def publish(self, state: bytes, events: Sequence[bytes] = ()) -> None:
        """To all that look."""
        for viewer in self._viewers:
            viewer.put(state, events)

    def close(self) -> None:
        """Each is told that it is over."""
        self._over = True
        for viewer in self._viewers:
            viewer.end()
