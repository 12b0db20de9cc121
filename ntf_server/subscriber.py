"""SMP events -> store -> dispatcher; which subscriptions this node holds.

ACTIVE is never stored as a fact about the network: a subscription is active if it was confirmed in the server's
current session, so a disconnect costs nothing in the store.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from ntf_server.store.base import WANTED, Confirmed, Due, Notification, Store, StoreError
from ntf_server.store.base import Subscription as StoredSubscription
from smp_bridge import agent, smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Event
from smp_bridge.crypto import parse_auth_private
from smp_bridge.ntf import Sub, SubscriptionStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAGE: Final = 1000
_WRITES: Final = 16  # blocks of events that may wait for the store, over all servers
_STORE_BACKOFF: Final = 1.0
_CLOSE_TIMEOUT: Final = 10.0  # seconds that a failing store may hold up a stop
_MAX_ERROR: Final = 128  # bytes kept of a server's error text: SCHK's answer has to fit a block


class Subscriber:
    """Owner of the SMP agent. `start` it in a running loop; `close` it."""

    def __init__(
        self,
        store: Store,
        on_due: Callable[[Iterable[Due]], None],
        config: agent.AgentConfig | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._on_due = on_due
        self._clock = clock
        self._agent = agent.Agent(self, config)
        self._sessions: dict[ServerAddress, int] = {}
        self._writes = asyncio.Semaphore(_WRITES)
        self._writing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect to all servers that have subscriptions."""
        servers = await self._store.servers()
        log.info("subscribing on %d SMP servers", len(servers))
        for server in servers:
            self._agent.start(server)

    async def close(self) -> None:
        """Disconnect; events that were read are stored first."""
        await self._agent.close()
        if self._writing:
            _, late = await asyncio.wait(self._writing, timeout=_CLOSE_TIMEOUT)
            for task in late:
                task.cancel()
            if late:
                log.error("%d blocks of events could not be stored before the stop", len(late))
                await asyncio.wait(late)

    def subscribe(self, server: ServerAddress, ref: int, notifier_id: bytes, notifier_key: bytes) -> None:
        """A subscription was added to the store."""
        self._agent.subscribe(server, agent.Subscription(ref, notifier_id, parse_auth_private(notifier_key)))

    def status(self, s: StoredSubscription) -> Sub:
        """What SCHK answers: the stored status, seen against the server's current session."""
        if s.status not in WANTED:
            return Sub(s.status, s.error)
        session = self._sessions.get(s.server)
        if s.session and s.session == session:
            return Sub(SubscriptionStatus.ACTIVE)
        if s.session:
            return Sub(SubscriptionStatus.INACTIVE)
        return Sub(SubscriptionStatus.PENDING)

    # --- agent.Subscriptions

    async def wanted(self, server: ServerAddress) -> bool:
        """See `agent.Subscriptions`."""
        return await _insist(lambda: self._store.is_wanted(server))

    async def pages(self, server: ServerAddress) -> AsyncIterator[Sequence[agent.Subscription]]:
        """See `agent.Subscriptions`."""
        session = self._sessions[server]
        after = 0
        while True:
            rows = await _insist(lambda: self._store.unconfirmed(server, session, after, _PAGE))  # noqa: B023
            if not rows:
                return
            after = rows[-1][0]
            yield [agent.Subscription(ref, nid, parse_auth_private(key)) for ref, nid, key in rows]

    async def connected(self, server: ServerAddress) -> None:
        """See `agent.Subscriptions`."""
        self._sessions[server] = await _insist(lambda: self._store.new_session(server))
        log.info("connected to SMP server %s", server.hosts[0])

    async def disconnected(self, server: ServerAddress) -> None:
        """See `agent.Subscriptions`."""
        self._sessions.pop(server, None)
        log.info("disconnected from SMP server %s", server.hosts[0])

    async def results(self, server: ServerAddress, results: Sequence[agent.Result]) -> None:
        """See `agent.Subscriptions`."""
        session = self._sessions[server]
        confirmed = [_confirmed(r) for r in results]
        refused = sum(c.status is not SubscriptionStatus.ACTIVE for c in confirmed)
        if refused:
            log.info("SMP server %s refused %d of %d subscriptions", server.hosts[0], refused, len(confirmed))
        await _insist(lambda: self._store.confirm(server, session, confirmed))

    async def events(self, server: ServerAddress, events: Sequence[Event]) -> None:
        """Store the events of a block; waits only when many blocks wait for the store already."""
        await self._writes.acquire()
        task = asyncio.create_task(self._store_events(server, events, int(self._clock())))
        self._writing.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: "asyncio.Task[None]") -> None:
        self._writing.discard(task)
        self._writes.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("events could not be stored: %s", task.exception())

    async def _store_events(self, server: ServerAddress, events: Sequence[Event], now: int) -> None:
        notifications = [
            Notification(e.entity_id, now, e.message.nonce, e.message.meta)
            for e in events
            if isinstance(e.message, smp.NMsg)
        ]
        if notifications:
            # Numbered before the first try: a block that is tried again must not replace what came after it.
            first = self._store.arrival(len(notifications))
            self._on_due(await _insist(lambda: self._store.notify(server, notifications, first)))
        for kind, status in ((smp.End, SubscriptionStatus.END), (smp.Deld, SubscriptionStatus.DELETED)):
            ended = [e.entity_id for e in events if isinstance(e.message, kind)]
            if ended:
                await self._ended(server, ended, status)

    async def _ended(self, server: ServerAddress, ended: Sequence[bytes], status: SubscriptionStatus) -> None:
        await _insist(lambda: self._store.end_subscriptions(server, ended, status))


def _confirmed(result: agent.Result) -> Confirmed:
    ref = result.subscription.ref
    if result.error is None:
        return Confirmed(ref, SubscriptionStatus.ACTIVE)
    if result.auth:
        return Confirmed(ref, SubscriptionStatus.AUTH)
    error = result.error.encode()[:_MAX_ERROR].decode(errors="ignore")
    return Confirmed(ref, SubscriptionStatus.ERR, error)


async def _insist(operation: Callable[[], Awaitable[T]]) -> T:
    """Do it until the store can: nothing that was received is dropped, reading waits instead."""
    while True:
        try:
            return await operation()
        except StoreError as e:
            log.error("the store fails, trying again: %s", e)
            await asyncio.sleep(_STORE_BACKOFF)
