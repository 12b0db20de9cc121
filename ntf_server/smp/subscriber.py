"""SMP events -> store -> dispatcher; which subscriptions this node holds.

ACTIVE is never stored as a fact about the network: a subscription is active if it was confirmed in the server's
current session. What is kept of a session is how far its pages went, and what of them was not answered yet.
"""

import asyncio
import datetime
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from ntf_server.config.server_list import ANY_SERVER, ServerList
from ntf_server.observe.metrics import Counter, KindCounter, Metrics, ServerCounter, ServerGauge
from ntf_server.store.records import (
    ALL_ASSOCIATIONS,
    START,
    WANTED,
    Confirmed,
    Due,
    Notification,
    Position,
    ServiceCertificate,
    ServiceState,
    Store,
    StoreError,
    Wanted,
)
from ntf_server.store.records import Subscription as StoredSubscription
from smp_bridge import agent, crypto, smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Event
from smp_bridge.identity import Credentials, load_certificates
from smp_bridge.ntf import Sub, SubscriptionStatus
from smp_bridge.queue_session import AgentConfig
from smp_bridge.subscriptions import ConnectFailure, Outcome, Result, Subscription

log = logging.getLogger(__name__)

T = TypeVar("T")

_EVENTS: Final = 1024  # that may wait for the store, over all servers, before no more are read
_STORE_BACKOFF: Final = 1.0
_CLOSE_TIMEOUT: Final = 10.0  # seconds that a failing store may hold up a stop
_MAX_ERROR: Final = 128  # bytes kept of a server's error text: SCHK's answer has to fit a block

_STATUS: Final = {
    Outcome.SUBSCRIBED: SubscriptionStatus.ACTIVE,
    Outcome.ASSOCIATED: SubscriptionStatus.ACTIVE,
    Outcome.AUTH: SubscriptionStatus.AUTH,
    Outcome.SERVICE: SubscriptionStatus.SERVICE,
    Outcome.ERROR: SubscriptionStatus.ERR,
}
_TO_WRITE: Final = 1  # tag of subscriptions whose confirmation the store does not have yet


@dataclass(slots=True)
class _Session:
    """A session with a server: `position` says how far its pages went, `missing` what of them is not confirmed."""

    service: bool
    generation: int
    position: Position = START
    complete: bool = False
    missing: set[int] = field(default_factory=set)
    service_active: bool = True
    ended: bool = False  # another session took the service's subscriptions over
    recounted: bool = False
    confirmed: int = 0
    audited: set[int] = field(default_factory=set)

    @property
    def below(self) -> int:
        """Which associations the pages give."""
        return self.generation if self.service else ALL_ASSOCIATIONS

    def active(self, ref: int, association: int) -> bool:
        """Whether a subscription that should be active was confirmed."""
        if ref in self.missing:
            return False
        if self.service and association == self.generation:
            return self.service_active
        return self.complete or (association, ref) <= self.position

    def begin_again(self, generation: int) -> None:
        """No association holds any more."""
        self.generation, self.position, self.complete, self.confirmed = generation, START, False, 0
        self.service_active = True


class _Inbox:
    """Events of a server that are not with the store yet, and the task that takes them there."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.clear()

    def clear(self) -> None:
        """Begin anew; what was in it is another's."""
        self.count = 0
        self.notifications: list[Notification] = []
        self.ended: list[Event] = []

    def take(self, events: Sequence[Event], now: int) -> None:
        """Put them in."""
        self.count += len(events)
        for e in events:
            message = e.message
            if isinstance(message, smp.NMsg):
                self.notifications.append(Notification(e.entity_id, now, message.nonce, message.meta))
            else:
                self.ended.append(e)


class Subscriber:
    """Owner of the SMP agent. `start` it in a running loop; `close` it."""

    def __init__(
        self,
        store: Store,
        on_due: Callable[[Iterable[Due]], None],
        config: AgentConfig | None = None,
        *,
        servers: ServerList = ANY_SERVER,
        services: bool = False,
        recount_delay: float = 1.0,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`services`: be a service on SMP servers that take it; `servers`: those that may be connected to."""
        self._store = store
        self._on_due = on_due
        self._permitted = servers
        self._services = services
        self._recount_delay = recount_delay
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._agent = agent.Agent(self, config)
        self._sessions: dict[ServerAddress, _Session] = {}
        self._inboxes: dict[ServerAddress, _Inbox] = {}
        self._waiting = 0  # events in them
        self._room = asyncio.Event()
        self._metrics.server_gauge(ServerGauge.SESSIONS, self._count_sessions)
        self._metrics.server_gauge(ServerGauge.SUBSCRIPTIONS, self._count_subscriptions)

    async def start(self) -> None:
        """Connect to all servers that have subscriptions."""
        servers = await self._store.servers()
        log.info("subscribing on %d SMP servers", len(servers))
        for server in servers:
            self._agent.start(server)

    async def close(self) -> None:
        """Disconnect; events that were read are stored first."""
        await self._agent.close()
        writing = [inbox.task for inbox in self._inboxes.values() if inbox.task]
        if writing:
            _, late = await asyncio.wait(writing, timeout=_CLOSE_TIMEOUT)
            if late:
                log.error("%d events could not be stored before the stop", self._waiting)
                for task in late:
                    task.cancel()
                await asyncio.wait(late)

    def subscribe(self, server: ServerAddress, ref: int) -> None:
        """A subscription was added to the store."""
        session = self._sessions.get(server)
        if session is None:
            self._agent.start(server)
        else:
            session.missing.add(ref)
            self._agent.subscribe(server, ref)

    def audit(self, server: ServerAddress, refs: Iterable[int]) -> None:
        """Subscribe these again, if they are active, and count where the server disagrees."""
        session = self._sessions.get(server)
        if session is None or not session.complete or session.ended:
            return
        chosen = [ref for ref in refs if ref not in session.missing]
        session.audited.update(chosen)
        self._metrics.count(Counter.AUDITED, len(chosen))
        self._agent.subscribe(server, *chosen)

    def status(self, s: StoredSubscription) -> Sub:
        """What SCHK answers: the stored status, seen against the server's current session."""
        if s.status not in WANTED:
            return Sub(s.status, s.error)
        session = self._sessions.get(s.server)
        if session is not None and session.active(s.ref, s.association):
            return Sub(SubscriptionStatus.ACTIVE)
        once = s.status is SubscriptionStatus.ACTIVE
        return Sub(SubscriptionStatus.INACTIVE if once else SubscriptionStatus.PENDING)

    def _count_sessions(self) -> Iterator[tuple[ServerAddress, float]]:
        return ((server, 1) for server in self._sessions)

    def _count_subscriptions(self) -> Iterator[tuple[ServerAddress, float]]:
        return ((server, session.confirmed) for server, session in self._sessions.items())

    # --- agent's Subscriptions

    async def wanted(self, server: ServerAddress) -> bool:
        """See `Subscriptions`."""
        return self._permitted.permits(server) and await _insist(lambda: self._store.is_wanted(server))

    async def service(self, server: ServerAddress) -> Credentials | None:
        """See `Subscriptions`. Each server gets a certificate of its own, so that they cannot tell we are one."""
        if not self._services:
            return None
        kept = await _insist(lambda: self._store.service_certificate(server))
        if kept is None:
            kept = new_service_certificate(self._clock())
            certificate = kept
            await _insist(lambda: self._store.set_service_certificate(server, certificate))
        key = crypto.parse_private(kept.key)
        assert isinstance(key, crypto.SignPrivateKey)
        return Credentials(tuple(load_certificates(kept.chain)), key)

    async def connected(self, server: ServerAddress, service_id: bytes | None) -> bool:
        """See `Subscriptions`."""
        state = await _insist(lambda: self._store.begin_service(server, service_id))
        if state.changed and service_id is not None:
            self._metrics.count_kind(KindCounter.SERVICE_FALLBACK, "changed")
            log.warning("SMP server %s knows our service by another id than before", server.hosts[0])
        session = _Session(service_id is not None, state.generation)
        associated = session.service and state.associated > 0
        session.service_active = not associated
        self._sessions[server] = session
        log.info("connected to SMP server %s%s", server.hosts[0], " as a service" if session.service else "")
        return associated

    async def service_subscribed(self, server: ServerAddress, count: int | None) -> bool:
        """See `Subscriptions`."""
        session = self._sessions[server]
        state = await _insist(lambda: self._store.service_state(server))
        if count is not None and count < state.associated:
            await asyncio.sleep(self._recount_delay)  # a DELD or an END may be under way to us
            state = await _insist(lambda: self._store.service_state(server))
        if session.ended:
            return False  # the count says no more than that; the next session takes them back
        if count is not None and (count >= state.associated or session.recounted):
            await self._counted(server, session, state, count)
            return False
        log.warning(
            "SMP server %s has %s of our service's %d subscriptions; subscribing them one by one",
            server.hosts[0],
            "none" if count is None else count,
            state.associated,
        )
        self._metrics.count_kind(KindCounter.SERVICE_FALLBACK, "lost" if count is None else "mismatch")
        session.recounted = True
        session.begin_again((await _insist(lambda: self._store.reassociate(server))).generation)
        return True

    async def _counted(self, server: ServerAddress, session: _Session, state: ServiceState, count: int) -> None:
        session.service_active = True
        session.confirmed = max(session.confirmed, state.associated)
        others = max(0, count - state.associated)
        if count < state.associated or others > state.released:
            self._metrics.count_kind(KindCounter.AUDIT_DRIFT, "service_count")
        # Those that we deleted while they were associated; after all pages the difference is nothing else.
        if others > state.released or (session.complete and others != state.released):
            await _insist(lambda: self._store.set_released(server, others))

    async def page(self, server: ServerAddress, limit: int) -> Sequence[Subscription]:
        """See `Subscriptions`."""
        session = self._sessions[server]
        while not session.complete:
            position, below = session.position, session.below
            rows = await _insist(lambda: self._store.page(server, position, below, limit))  # noqa: B023
            if not rows:
                session.complete = True
                break
            new = [w for w in rows if w.ref not in session.missing]
            session.missing.update(w.ref for w in new)
            session.position = (rows[-1].association, rows[-1].ref)
            if new:
                return [_subscription(w, session) for w in new]
        return []

    async def load(self, server: ServerAddress, refs: Sequence[int]) -> Sequence[Subscription]:
        """See `Subscriptions`."""
        session = self._sessions[server]
        rows = await _insist(lambda: self._store.load_wanted(refs))
        gone = set(refs).difference(w.ref for w in rows)
        session.missing -= gone
        session.audited -= gone
        return [_subscription(w, session) for w in rows]

    async def results(self, server: ServerAddress, results: Sequence[Result]) -> None:
        """See `Subscriptions`."""
        session = self._sessions[server]
        confirmed = [_confirmed(r, session.generation) for r in results if r.tag or r.outcome not in _SUBSCRIBED]
        if confirmed:
            await _insist(lambda: self._store.confirm(confirmed))
        refused = 0
        for r in results:
            good = r.outcome in _SUBSCRIBED
            if r.ref in session.missing:
                session.missing.discard(r.ref)
                session.confirmed += good
            elif not good:
                session.confirmed = max(0, session.confirmed - 1)
            if not good:
                refused += 1
                self._metrics.count_kind(KindCounter.SUBSCRIPTIONS_REFUSED, r.outcome)
            if r.ref in session.audited:
                session.audited.discard(r.ref)
                if not good or (r.outcome is Outcome.ASSOCIATED and r.tag):
                    self._metrics.count_kind(KindCounter.AUDIT_DRIFT, "reassociated" if good else "refused")
        if refused:
            log.info("SMP server %s refused %d of %d subscriptions", server.hosts[0], refused, len(results))

    async def disconnected(self, server: ServerAddress) -> None:
        """See `Subscriptions`."""
        self._sessions.pop(server, None)
        log.info("disconnected from SMP server %s", server.hosts[0])

    def connect_failed(self, server: ServerAddress, failure: ConnectFailure) -> None:
        """See `Subscriptions`."""
        self._metrics.count_kind(KindCounter.SMP_CONNECT_FAILED, failure)

    def service_refused(self, server: ServerAddress) -> None:
        """See `Subscriptions`."""
        self._metrics.count_kind(KindCounter.SERVICE_FALLBACK, "refused")

    async def events(self, server: ServerAddress, events: Sequence[Event]) -> None:
        """Store the events of a block, with those that come before the store is ready; waits when many wait already."""
        session = self._sessions.get(server)
        ends = [e.message for e in events if isinstance(e.message, smp.Ends)]
        if session is not None and ends:
            session.service_active, session.ended = False, True
            session.confirmed = max(0, session.confirmed - sum(e.count for e in ends))
            self._metrics.count_kind(KindCounter.SERVICE_FALLBACK, "ended")
        while self._waiting >= _EVENTS:
            self._room.clear()
            await self._room.wait()
        inbox = self._inboxes.setdefault(server, _Inbox())
        inbox.take(events, int(self._clock()))
        self._waiting += len(events)
        if inbox.task is None:
            inbox.task = asyncio.create_task(self._write(server, inbox), name="smp events")

    async def _write(self, server: ServerAddress, inbox: "_Inbox") -> None:
        """Store what is in a server's inbox, until it is empty."""
        try:
            while inbox.count:
                count, notifications, ended = inbox.count, inbox.notifications, inbox.ended
                inbox.clear()
                try:
                    await self._store_events(server, notifications, ended)
                except Exception as e:
                    log.error("events could not be stored: %s", e)
                self._waiting -= count
                self._room.set()
        finally:
            del self._inboxes[server]

    async def _store_events(
        self, server: ServerAddress, notifications: Sequence[Notification], ended: Sequence[Event]
    ) -> None:
        if notifications:
            # Numbered before the first try: what is tried again must not replace what came after it.
            first = self._store.arrival(len(notifications))
            notified = await _insist(lambda: self._store.notify(server, notifications, first))
            self._on_due(notified.due)
            self._metrics.count_server(ServerCounter.RECEIVED, server, len(notifications))
            if notified.unknown:
                self._metrics.count_server(ServerCounter.RECEIVED_UNKNOWN, server, notified.unknown)
        for kind, status in ((smp.End, SubscriptionStatus.END), (smp.Deld, SubscriptionStatus.DELETED)):
            ids = [e.entity_id for e in ended if isinstance(e.message, kind)]
            if ids:
                await self._ended(server, ids, status)

    async def _ended(self, server: ServerAddress, ended: Sequence[bytes], status: SubscriptionStatus) -> None:
        known = await _insist(lambda: self._store.end_subscriptions(server, ended, status))
        session = self._sessions.get(server)
        if session is not None:
            session.confirmed = max(0, session.confirmed - known)
        self._metrics.count_kind(KindCounter.SUBSCRIPTIONS_ENDED, status.value.lower(), known)


_SUBSCRIBED: Final = frozenset([Outcome.SUBSCRIBED, Outcome.ASSOCIATED])


def _subscription(w: Wanted, session: _Session) -> Subscription:
    written = not w.fresh and (not session.service or w.association == session.generation)
    return Subscription(w.ref, w.notifier_id, w.notifier_key, 0 if written else _TO_WRITE)


def _confirmed(r: Result, generation: int) -> Confirmed:
    error = r.error.encode()[:_MAX_ERROR].decode(errors="ignore")
    return Confirmed(r.ref, _STATUS[r.outcome], error, generation if r.outcome is Outcome.ASSOCIATED else None)


def new_service_certificate(now: float) -> ServiceCertificate:
    """A new identity and its leaf. They say nothing that those for other servers say too, but for the day."""
    day = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    credentials, _ = Credentials.generate("ED25519", "ntf", day)
    return ServiceCertificate(credentials.chain_pem, crypto.encode_private(credentials.key))


async def _insist(operation: Callable[[], Awaitable[T]]) -> T:
    """Do it until the store can: nothing that was received is dropped, reading waits instead."""
    while True:
        try:
            return await operation()
        except StoreError as e:
            log.error("the store fails, trying again: %s", e)
            await asyncio.sleep(_STORE_BACKOFF)
