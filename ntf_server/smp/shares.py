"""Which SMP servers this node speaks for, where several nodes share a store.

Each server is one node's, under a lease. A node that cannot renew its leases lets go of all its servers before they
end, since another node may speak for them then; so it does with one whose lease alone cannot be renewed.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ntf_server.smp import told
from ntf_server.store.contract import PartlyUnavailableError, Store, StoreError
from ntf_server.store.records import Session
from smp_bridge.address import ServerAddress
from smp_bridge.subscriptions import NotWantedError

log = logging.getLogger(__name__)

_OF_LEASE: Final = 1 / 3  # a lease is renewed so often
_LEFT: Final = 1 / 6  # of a lease, in which sessions that cannot be renewed are ended
LAST: Final = 0.5  # seconds
_UNSETTLED: Final = 1 / 12  # of a lease, after which is looked again while servers are about to lose their node


class Shares:
    """`held`: the session that counts, of each server. `start` and `release` are the SMP agent's.

    `let_go`: has what a session sent stored, and the session released.
    """

    def __init__(
        self,
        store: Store,
        start: Callable[[ServerAddress], None],
        release: Callable[[ServerAddress], None],
        let_go: Callable[[Session], Awaitable[None]],
    ) -> None:
        self.held: dict[ServerAddress, Session] = {}
        self._store = store
        self._start = start
        self._release = release
        self._let_go = let_go
        self.is_over = False  # this node is to stop, and takes no server any more
        self._leaving: set[ServerAddress] = set()
        self._renewed_at = math.inf  # unknown until `run`
        self._late: dict[Session, float] = {}  # that could not be renewed then: when they were last

    @property
    def is_shared(self) -> bool:
        """Whether other nodes may have the store open."""
        return self._store.lease < math.inf

    async def speaks_for(self, server: ServerAddress, acquire: Callable[[], Awaitable[Session | None]]) -> bool:
        """Whether this node is to connect to it: it has the server, or takes it now."""
        if self.is_over or server in self._leaving:
            return False
        if self.is_shared and server not in self.held:
            session = await acquire()
            if session is None:
                return False
            self.held[server] = session
        return True

    def check(self, session: Session) -> None:
        """Before what was just read is subscribed: this node may have stood still since, so that another one speaks for
        the server by now, and would lose it. Raises NotWantedError.
        """
        renewed_at = self._late.get(session, self._renewed_at)
        if asyncio.get_running_loop().time() >= renewed_at + self._store.lease * (1 - _LEFT):
            raise NotWantedError("another node may speak for this server by now")

    async def give(self, server: ServerAddress) -> None:
        """This node does not speak for it any more: whoever should have it may take it."""
        if (last := self.held.pop(server, None)) is not None:
            await self._let_go(last)
        self._leaving.discard(server)

    async def give_all(self, patience: float = LAST) -> None:
        """What is left at the end of a stop, as far as that goes in so many seconds: the store gives the others."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                for server in list(self.held):
                    await self.give(server)

    async def run(self) -> None:
        """As long as the relay lives."""
        loop = asyncio.get_running_loop()
        pause, unsettled = self._store.lease * _OF_LEASE, False
        self._renewed_at = next_at = loop.time()
        while True:
            next_at = max(next_at + (self._store.lease * _UNSETTLED if unsettled else pause), loop.time())
            await asyncio.sleep(next_at - loop.time())
            began = loop.time()
            try:
                async with asyncio.timeout_at(self._patience(began)):
                    lost, late = await self._renew(list(self.held.values()))
                self._forget(lost)
                self._late = {session: self._late.get(session, self._renewed_at) for session in late}
                self._renewed_at = began
                self._let_go_in_time(loop.time())
                async with asyncio.timeout(pause):  # the next renewal comes first
                    share = await self._store.share(list(self.held.values()))
            except (StoreError, TimeoutError) as e:
                log.debug("leases cannot be renewed: %s", e)
                self._let_go_in_time(loop.time())
                continue
            unsettled = share.unsettled
            for session in share.give:
                if session.server not in self._leaving:
                    told.another_nodes(session.server)
                self._leaving.add(session.server)
                self._release(session.server)
            for server in share.take:
                self._start(server)

    async def _renew(self, held: Sequence[Session]) -> tuple[Sequence[Session], Sequence[Session]]:
        """Those that are lost, and those of which it is not known since what has them does not answer."""
        try:
            return await self._store.renew(held), ()
        except PartlyUnavailableError as e:
            return e.result, e.left

    def _patience(self, now: float) -> float:
        """Till when a renewal may take: not past the moment at which leases are let go, but a little in any case, for
        a node that slept.
        """
        return max(self._renewed_at + self._store.lease * (1 - _LEFT), now + self._store.lease * _LEFT)

    def _forget(self, lost: Sequence[Session]) -> None:
        for session in lost:
            if self.held.get(session.server) == session:
                told.taken_over(session.server)
                del self.held[session.server]
                self._release(session.server)

    def _let_go_in_time(self, now: float) -> None:
        """The next try may come too late."""
        latest = now - self._store.lease * (1 - _OF_LEASE - _LEFT)
        over = [s.server for s in self.held.values() if self._late.get(s, self._renewed_at) <= latest]
        if over:
            told.let_go(len(over))
        for server in over:
            del self.held[server]
            self._release(server)
