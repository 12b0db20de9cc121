"""Two nodes on one SQLite database in memory, with the leases that an engine has whose medium is shared.

So the suite's checks of two nodes are tried before there is such an engine.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from msgspec import structs
from store_media import open_store

from ntf_server.store.contract import FencedError, Places, Store
from ntf_server.store.records import Claim, Ended, Notification, Notified, Outcome, Session, Share, Taken
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing.store_suite import ManualClock, Times
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider

LEASE: Final = 15.0  # seconds


class _Lease(NamedTuple):
    node: object
    session: Session
    until: float


class Node:
    """What a node does otherwise than one that is alone; the rest is the store's."""

    def __init__(self, medium: "SharedMedium", store: SqliteStore) -> None:
        self.medium = medium
        self.store = store
        self.claims: dict[Any, Claim] = {}
        self.has_left = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def is_anothers(self, server: ServerAddress) -> bool:
        lease = self.medium.leases.get(server)
        return lease is not None and lease.node is not self and lease.until > self.medium.now

    async def acquire(self, server: ServerAddress) -> Session | None:
        if self.is_anothers(server):
            return None
        session = await self.store.acquire(server)
        self.medium.leases[server] = _Lease(self, session, self.medium.now + LEASE)
        return session

    async def renew(self, sessions: Sequence[Session]) -> list[Session]:
        lost = []
        for session in sessions:
            lease = self.medium.leases.get(session.server)
            if lease is not None and lease.session == session:
                self.medium.leases[session.server] = lease._replace(until=self.medium.now + LEASE)
            else:
                lost.append(session)
        return lost

    async def release(self, session: Session) -> None:
        lease = self.medium.leases.get(session.server)
        if lease is not None and lease.session == session:
            del self.medium.leases[session.server]
        await self.store.release(session)

    async def leave(self) -> int:
        self.has_left = True
        return len(self.claims)

    async def share(self, sessions: Sequence[Session]) -> Share:
        if self.has_left:
            return Share([], list(sessions))
        taken = await self.store.share(sessions)
        return Share([server for server in taken.take if not self.is_anothers(server)], [])

    async def announce(self, session: Session, *, whole: bool) -> None:
        (self.medium.whole.add if whole else self.medium.whole.discard)(session.fence)

    async def find_subscription(self, subscription_id: bytes) -> Any:
        found = await self.store.find_subscription(subscription_id)
        if found is None or not self.is_anothers(found[1].server):
            return found
        fence = self.medium.leases[found[1].server].session.fence
        return found[0], structs.replace(found[1], elsewhere=fence in self.medium.whole)

    def watch(self, on_due: Callable[[Provider, float], None]) -> None:
        self.medium.watchers[self] = on_due

    def _keep(self, claims: Sequence[Claim]) -> None:
        self.claims.update((claim.token, claim) for claim in claims)

    async def notify(
        self, session: Session, notifications: Sequence[Notification], places: Mapping[Provider, Places]
    ) -> Notified:
        if self.is_anothers(session.server):
            raise FencedError("another node speaks for it")
        notified = await self.store.notify(session, notifications, places)
        self._keep(notified.claims)
        return notified

    async def take(self, provider: Provider, places: Places) -> Taken:
        await self.medium.give_back()
        if self.has_left:
            return Taken([], None)
        taken = await self.store.take(provider, places)
        self._keep(taken.claims)
        return taken

    async def record(self, outcomes: Sequence[Outcome]) -> int:
        for outcome in outcomes:
            self.claims.pop(outcome.claim.token, None)
        return await self.store.record(outcomes)

    async def close(self) -> None:
        self.medium.watchers.pop(self, None)


class SharedMedium:
    """One database; `kind` of its nodes."""

    shared = True

    def __init__(self, kind: type[Node] = Node) -> None:
        self._kind = kind
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._store: SqliteStore | None = None
        self._clock = ManualClock()
        self.leases: dict[ServerAddress, _Lease] = {}
        self.watchers: dict[Node, Callable[[Provider, float], None]] = {}
        self.whole: set[int] = set()  # fences of sessions in which all is confirmed
        self.dead: list[tuple[Node, float]] = []

    @property
    def now(self) -> float:
        return self._clock.steady()

    async def open(self, manual: ManualClock, times: Times) -> Store:
        if self._store is None:
            self._clock = manual
            self._store = await open_store(self._connection, manual, times)
            self._store.watch(self._on_due)
        return cast("Store", self._kind(self, self._store))

    def _on_due(self, provider: Provider, seconds: float) -> None:
        for on_due in self.watchers.values():
            on_due(provider, seconds)

    async def kill(self, store: Store) -> None:
        node = cast("Node", store)
        await node.close()
        self.dead.append((node, self.now))

    async def give_back(self) -> None:
        """What nodes had that are dead for long is due again."""
        for node, at in self.dead:
            if self.now - at > LEASE:
                await node.store.record([Outcome(claim, Ended.UNTRIED) for claim in node.claims.values()])
                node.claims.clear()

    async def damage_token(self, store: Store, token_id: bytes) -> None:
        raise NotImplementedError  # no check of two nodes asks for it

    async def damage_subscription(self, store: Store, subscription_id: bytes) -> None:
        raise NotImplementedError

    async def expired(self, store: Store) -> int:
        raise NotImplementedError

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()
        self._connection.close()
