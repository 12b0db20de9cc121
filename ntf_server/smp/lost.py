"""What SMP servers sent on a way that was dead is lost: SMP has no acknowledgement of NMSG (wire.md, section 7).

So once such a server is back, each ACTIVE token with queues there is sent one check, which has its app look for
messages: within an hour after the last such one it has to wait for the rest of that.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import msgspec

from ntf_server.smp import told
from ntf_server.smp.inbox import Spawn
from ntf_server.store.contract import FencedError, Store
from ntf_server.store.records import Cursor, Lost, Session
from smp_bridge.address import ServerAddress

Insist = Callable[[Callable[[], Awaitable[Lost]]], Awaitable[Lost]]

_SLICE: Final = 200
_MORE: Final = 1.0  # seconds
_UNDER_WAY: Final = 2.0  # seconds in which a push may be recorded that went out before what is lost was stored


class LostConfig(msgspec.Struct, frozen=True):
    """Seconds: `delay` after the reconnect, in which the server sends what it kept; `pause` between two slices.

    `taken`: in which a server that is lost by another node becomes this one's. `slice`: subscriptions that are looked
    at at once.
    """

    delay: float = 5.0
    pause: float = 1.0
    taken: float = 60.0
    slice: int = _SLICE


class _Noticed(NamedTuple):
    """Since when a push is as good as a check, and until when a session has to begin, by the loop's clock."""

    at: float
    until: float


class LostWays:
    """Servers that were lost so, until their tokens have their check. `insist`: see `Inbox.insist`."""

    def __init__(self, store: Store, spawn: Spawn, insist: Insist, config: LostConfig | None = None) -> None:
        self._store = store
        self._spawn = spawn
        self._insist = insist
        self._config = config or LostConfig()
        self._noticed: dict[ServerAddress, _Noticed] = {}
        self._waiting: dict[ServerAddress, asyncio.TimerHandle] = {}  # for what is left of an hour
        self._cleared_at = -math.inf
        self._is_over = False

    def notice(self, server: ServerAddress) -> None:
        """The way to this server was dead."""
        self._noticed[server] = _Noticed(asyncio.get_running_loop().time(), math.inf)

    def doubt(self, server: ServerAddress, *, held: bool) -> None:
        """What was stored of it last may be lost. Not `held`: it is another node's, or nobody's, and is this one's to
        look at if a session begins soon.
        """
        now = asyncio.get_running_loop().time()
        self._noticed[server] = _Noticed(now + _UNDER_WAY, math.inf if held else now + self._config.taken)
        if now - self._cleared_at >= self._config.taken:
            self._cleared_at = now
            for other in [other for other, noticed in self._noticed.items() if noticed.until < now]:
                del self._noticed[other]

    def forget(self, server: ServerAddress) -> None:
        """Nothing is wanted of it any more."""
        self._noticed.pop(server, None)
        self._wait_no_more(server)

    def close(self) -> None:
        """Nothing waits any more, or will."""
        self._is_over = True
        for server in list(self._waiting):
            self._wait_no_more(server)

    def _wait_no_more(self, server: ServerAddress) -> None:
        if (waiting := self._waiting.pop(server, None)) is not None:
            waiting.cancel()

    def reconnected(self, session: Session) -> None:
        """A session begins."""
        noticed = self._noticed.get(session.server)
        if noticed is not None and noticed.until < asyncio.get_running_loop().time():
            del self._noticed[session.server]
        elif noticed is not None:
            self._wait_no_more(session.server)
            self._noticed[session.server] = noticed._replace(until=math.inf)
            self._begin(session, self._config.delay)

    def _begin(self, session: Session, delay: float) -> None:
        with contextlib.suppress(RuntimeError):  # the relay stops
            self._spawn(self._check(session, delay), "lost smp events")

    async def _check(self, session: Session, delay: float) -> None:
        server, loop = session.server, asyncio.get_running_loop()
        noticed = self._noticed.get(server)
        await asyncio.sleep(delay)
        if noticed is None or self._noticed.get(server) != noticed:  # the next session begins anew
            return
        after: Cursor | None = None
        count, later = 0, 0.0
        while True:
            try:
                within = max(0.0, loop.time() - noticed.at)
                lost = await self._insist(
                    lambda: self._store.mark_lost(session, after, self._config.slice, within)  # noqa: B023
                )
            except FencedError:  # it was lost again: the next session begins anew
                return
            count, later, after = count + lost.marked, max(later, lost.later), lost.cursor
            if after is None:
                break
            await asyncio.sleep(self._config.pause)
        if self._noticed.get(server) == noticed:
            if later and not self._is_over:
                self._waiting[server] = loop.call_later(later + _MORE, self._begin, session, 0.0)
            elif not later:
                del self._noticed[server]
        told.lost(server, count)
