"""What SMP servers sent on a way that was dead is lost: SMP has no acknowledgement of NMSG (wire.md, section 7).

So once such a server is back, each ACTIVE token with queues there is sent one check, which has its app look for
messages.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from ntf_server.smp.inbox import Spawn
from ntf_server.store.contract import FencedError, Store
from ntf_server.store.records import Cursor, Session
from smp_bridge.address import ServerAddress

log = logging.getLogger(__name__)

Marked = tuple[int, Cursor | None]
Insist = Callable[[Callable[[], Awaitable[Marked]]], Awaitable[Marked]]

_SLICE: Final = 200


class LostConfig(msgspec.Struct, frozen=True):
    """Seconds: `delay` after the reconnect, in which the server sends what it kept; `pause` between two slices.

    `slice`: subscriptions that are looked at at once.
    """

    delay: float = 5.0
    pause: float = 1.0
    slice: int = _SLICE


class LostWays:
    """Servers that were lost so, until their tokens have their check. `insist`: see `Inbox.insist`."""

    def __init__(self, store: Store, spawn: Spawn, insist: Insist, config: LostConfig | None = None) -> None:
        self._store = store
        self._spawn = spawn
        self._insist = insist
        self._config = config or LostConfig()
        self._noticed: dict[ServerAddress, float] = {}  # by the loop's clock

    def notice(self, server: ServerAddress) -> None:
        """The way to this server was dead."""
        self._noticed[server] = asyncio.get_running_loop().time()

    def forget(self, server: ServerAddress) -> None:
        """Nothing is wanted of it any more."""
        self._noticed.pop(server, None)

    def reconnected(self, session: Session) -> None:
        """A session begins."""
        if session.server in self._noticed:
            self._spawn(self._check(session), "lost smp events")

    async def _check(self, session: Session) -> None:
        server, loop = session.server, asyncio.get_running_loop()
        noticed_at = self._noticed[server]
        await asyncio.sleep(self._config.delay)
        after: Cursor | None = None
        count = 0
        while True:
            try:
                marked, after = await self._insist(
                    lambda: self._store.mark_lost(session, after, self._config.slice, loop.time() - noticed_at)  # noqa: B023
                )
            except FencedError:  # it was lost again: the next session begins anew
                return
            count += marked
            if after is None:
                break
            await asyncio.sleep(self._config.pause)
        if self._noticed.get(server) == noticed_at:
            del self._noticed[server]
        log.info("SMP server %s was out of reach: %d devices are to look for messages", server.hosts[0], count)
