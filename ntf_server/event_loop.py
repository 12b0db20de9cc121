"""An event loop in which a crowd of clients holds up nothing else.

asyncio takes all sockets that are ready in one turn. Of 3,000 clients who speak at once each costs 0.1 ms, and a push
would wait for all of them. Sockets that were put apart have an epoll of their own: of these a few are taken in a turn,
one after another, and the others all. How many is found out: so many that a turn takes some milliseconds. A socket that
listens is looked at now and then only: to accept and close a connection costs as much as to serve one.
"""

import asyncio
import os
import select
import selectors
import time
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

FEWEST: Final = 4  # in a turn
_MOST: Final = 64
_TURN: Final = 0.002  # seconds that a turn may take

_File: TypeAlias = Any  # what has a descriptor, or is one
_Ready: TypeAlias = list[tuple[selectors.SelectorKey, int]]


class _Selector(selectors.BaseSelector):
    def __init__(self, later: Callable[[float, Callable[[], None]], object]) -> None:
        self._later = later
        self._first = selectors.EpollSelector()
        self._apart = selectors.EpollSelector()
        self._few = select.epoll.fromfd(os.dup(self._apart.fileno()))  # the same, which may be asked for a few
        self._first.register(self._apart, selectors.EVENT_READ)
        self._marked: set[int] = set()
        self._paces: dict[int, float] = {}
        self._count = FEWEST
        self._taken_at: float | None = None  # when the last were, if it was in the turn before

    def put_apart(self, fd: int, pace: float = 0.0) -> None:
        """See `EventLoop`."""
        self._marked.add(fd)
        if pace:
            self._paces[fd] = pace

    def put_back(self, fd: int) -> None:
        """See `EventLoop`."""
        self._marked.discard(fd)
        self._paces.pop(fd, None)

    def _of(self, file: _File) -> selectors.EpollSelector:
        return self._apart if file in self._marked else self._first

    def register(self, fileobj: _File, events: int, data: Any = None) -> selectors.SelectorKey:
        """As the base's."""
        return self._of(fileobj).register(fileobj, events, data)

    def unregister(self, fileobj: _File) -> selectors.SelectorKey:
        """As the base's."""
        return self._of(fileobj).unregister(fileobj)

    def modify(self, fileobj: _File, events: int, data: Any = None) -> selectors.SelectorKey:
        """As the base's."""
        return self._of(fileobj).modify(fileobj, events, data)

    def get_key(self, fileobj: _File) -> selectors.SelectorKey:
        """As the base's."""
        return self._of(fileobj).get_key(fileobj)

    def get_map(self) -> Mapping[_File, selectors.SelectorKey]:
        """As the base's."""
        maps = cast("list[dict[_File, selectors.SelectorKey]]", [s.get_map() for s in (self._apart, self._first)])
        return ChainMap(*maps)

    def select(self, timeout: float | None = None) -> _Ready:
        """As the base's; of those apart, some."""
        if self._taken_at is not None:
            self._learn(time.monotonic() - self._taken_at)
            self._taken_at = None
        ready = self._first.select(timeout)
        for i, (key, _) in enumerate(ready):
            if key.fileobj is self._apart:
                del ready[i]
                return ready + self._some()
        return ready

    def _learn(self, took: float) -> None:
        """How many may be taken at once."""
        if took > _TURN:
            self._count = max(FEWEST, self._count // 2)
        elif took < _TURN / 2:
            self._count = min(_MOST, self._count * 2)

    def _some(self) -> _Ready:
        """What was taken goes to the end of the kernel's list, if it is still ready."""
        known = self._apart.get_map()
        out = []
        self._taken_at = time.monotonic()
        for fd, event in self._few.poll(0, self._count):
            key, events = known[fd], 0
            if event & ~select.EPOLLIN:
                events |= selectors.EVENT_WRITE
            if event & ~select.EPOLLOUT:
                events |= selectors.EVENT_READ
            out.append((key, events & key.events))
            if pace := self._paces.get(fd):
                self._pause(key, pace)
        return out

    def _pause(self, key: selectors.SelectorKey, seconds: float) -> None:
        """It is not looked at for so long."""
        paused = self._apart.modify(key.fd, 0, key.data)

        def go_on() -> None:
            if self._apart.get_map().get(key.fd) is paused:  # else it was closed
                self._apart.modify(key.fd, key.events, key.data)

        self._later(seconds, go_on)

    def close(self) -> None:
        """As the base's."""
        for closed in (self._few, self._apart, self._first):
            closed.close()


class EventLoop(asyncio.SelectorEventLoop):
    """For `asyncio.Runner`."""

    def __init__(self) -> None:
        self._sockets = _Selector(self.call_later)
        super().__init__(self._sockets)

    def put_apart(self, fd: int, pace: float = 0.0) -> None:
        """To be called before the loop gets a descriptor: of a transport, in `connection_made`.

        `pace`: seconds that it is not looked at after something came.
        """
        self._sockets.put_apart(fd, pace)

    def put_back(self, fd: int) -> None:
        """Its number may be another's: to be called before it is closed, in `connection_lost`."""
        self._sockets.put_back(fd)


def put_apart(fd: int, pace: float = 0.0) -> None:
    """See `EventLoop`; another loop, as a test may have, knows nothing of it."""
    if isinstance(loop := asyncio.get_running_loop(), EventLoop):
        loop.put_apart(fd, pace)


def put_back(fd: int) -> None:
    """See `EventLoop`."""
    if isinstance(loop := asyncio.get_running_loop(), EventLoop):
        loop.put_back(fd)


def descriptor(transport: asyncio.Transport) -> int:
    """Of its socket; -1: it is in memory."""
    sock = transport.get_extra_info("socket")
    return -1 if sock is None else sock.fileno()
