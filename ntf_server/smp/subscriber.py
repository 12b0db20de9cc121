"""SMP sessions and the store: which subscriptions this node holds, and what SCHK answers.

ACTIVE is never stored as a fact about the network: a subscription is active if it was confirmed in the server's
current session. What is kept of a session is how far its pages went, and what of them was not answered yet.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

from ntf_server.config.server_list import ANY_SERVER, ServerList
from ntf_server.observe.condition import AwayFacts, ServersFacts
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import WRONG_ADDRESS, Counter, KindCounter
from ntf_server.push.dispatcher import Dispatcher
from ntf_server.smp import gauges, told
from ntf_server.smp.certificates import new_service_certificate
from ntf_server.smp.inbox import Inbox, Spawn
from ntf_server.smp.looks import ServerLook, looks
from ntf_server.smp.lost import LostConfig, LostWays
from ntf_server.smp.server_session import ServerSession, confirmed
from ntf_server.smp.shares import Shares
from ntf_server.store.contract import FencedError, Store
from ntf_server.store.records import (
    WANTED,
    Change,
    ChangeKind,
    Ref,
    ServiceState,
    Session,
    Subscription,
)
from smp_bridge import crypto, smp
from smp_bridge.address import ServerAddress
from smp_bridge.agent import Agent
from smp_bridge.client import Event
from smp_bridge.connecting import Connect, connect
from smp_bridge.failure import ConnectFailure, NsubAnswer
from smp_bridge.identity import Credentials, load_certificates
from smp_bridge.ntf import Sub, SubscriptionStatus
from smp_bridge.places import Standing
from smp_bridge.queue_session import AgentConfig
from smp_bridge.service import Associations, Todo, after_count, xor
from smp_bridge.subscriptions import NotWantedError, NsubRequest, NsubResult
from smp_bridge.turns import Admit

T = TypeVar("T")

RELEASE_AFTER: Final = 60.0  # seconds that a session stays when nothing is wanted of its server any more
_SUBSCRIBED: Final = frozenset([NsubAnswer.SUBSCRIBED, NsubAnswer.ASSOCIATED])
_MAX_ALARMS: Final = 1000  # hosts that are said to be impersonated
_GIVEN_UP: Final = 500  # subscriptions at once
UNREACHABLE: Final = "the server could not be connected to for days"
_AUDIT_PAUSE: Final = 1.0  # seconds between two pages of what a service has
_AUDIT_TIME: Final = 3600.0  # seconds for all of them


def no_wait(_server: ServerAddress, _destinations: Sequence[str], _proven: bool, /) -> float:
    """Budgets of connects that are switched off."""
    return 0.0


class Subscriber:
    """Owner of the SMP agent: run its `parts` in a running loop, `start` it, and `close` it."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        spawn: Spawn,
        config: AgentConfig | None = None,
        *,
        servers: ServerList = ANY_SERVER,
        services: bool = False,
        recount_delay: float = 1.0,
        release_after: float = RELEASE_AFTER,
        lost: LostConfig | None = LostConfig(),  # noqa: B008  it is frozen
        admit: Admit = no_wait,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
        by: Connect = connect,
    ) -> None:
        """`services`: be a service on SMP servers that take it; `servers`: those that may be connected to.

        `lost`: how devices are sent checks after a way was dead, None: they are not; `spawn`: runs a task to its end;
        `admit`: see `Subscriptions.connect_wait`;
        `clock`: for the dates of certificates.
        """
        self._store = store
        self._permitted = servers
        self._services = services
        self._recount_delay = recount_delay
        self._release_after = release_after
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._spawn = spawn
        self._admit = admit
        self._agent = Agent(self, config, by=by)
        self._inbox = Inbox(store, dispatcher, spawn, self._lost, self._metrics)
        self._lost_ways = LostWays(store, spawn, self._inbox.insist, lost) if lost else None
        self._sessions: dict[ServerAddress, ServerSession] = {}
        self._shares = Shares(store, self._agent.start, self._agent.release, self._let_go)
        self._impersonated: set[str] = set()  # hosts, perhaps: that was told, and they were not connected to since
        self._unwanted: set[ServerAddress] = set()  # perhaps: to be looked at
        gauges.show(self._metrics, self._agent, self._sessions)

    def parts(self) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        """What is to be run as long as the relay lives, by name."""
        yield "subscription changes", self._follow
        if self._shares.is_shared:
            yield "shares of SMP servers", self._shares.run

    async def start(self) -> None:
        """Connect to all servers that have subscriptions."""
        servers = (await self._store.share([])).take
        told.subscribing(len(servers))
        for server in servers:
            self._agent.start(server)

    def use(self, servers: ServerList) -> None:
        """Connect to none but these from now on; sessions that are there stay."""
        self._permitted = servers

    async def close(self, grace: float) -> None:
        """Send nothing more, store what was read, disconnect; other nodes may have each server as soon as that is so.

        May be called again.
        """
        ends_at = asyncio.get_running_loop().time() + grace
        self._shares.is_over = True
        if self._lost_ways:
            self._lost_ways.close()
        await self._agent.close(grace)
        await self._inbox.close(max(0.0, ends_at - asyncio.get_running_loop().time()))
        await self._shares.give_all()  # those that were not connected

    @property
    def sessions(self) -> int:
        """SMP servers that are connected."""
        return len(self._sessions)

    def facts(self) -> ServersFacts:
        """How the SMP servers of this node are."""
        away = list(self._agent.away())
        known = [
            AwayFacts(seconds, server.hosts[0] if self._metrics.is_own(server) else "")
            for server, proven, seconds in away
            if proven
        ]
        return ServersFacts(self._agent.servers, len(self._sessions), tuple(known), len(away) - len(known))

    def looks(self, limit: int, after: str = "") -> list[ServerLook]:
        """How `limit` SMP servers of this node are, in the order of their addresses as text, behind one of these."""
        return looks(self._agent.ways(limit, after), self._sessions, self._metrics.is_own)

    def status(self, s: Subscription) -> Sub:
        """What SCHK answers: the stored status, seen against the server's current session."""
        if s.status not in WANTED:
            return Sub(s.status, s.error)
        if s.status is not SubscriptionStatus.ACTIVE:
            return Sub(SubscriptionStatus.PENDING)
        session = self._sessions.get(s.server)
        active = s.elsewhere if session is None else session.active(s)
        return Sub(SubscriptionStatus.ACTIVE if active else SubscriptionStatus.INACTIVE)

    def knows(self, server: ServerAddress) -> bool:
        """Whether the server is connected or being connected to."""
        return self._agent.knows(server)

    # --- changes

    async def _follow(self) -> None:
        async for change in self._store.changes():
            self._take_change(change)

    def _take_change(self, change: Change) -> None:
        server, session = change.server, self._sessions.get(change.server)
        match change.kind:
            case ChangeKind.ADDED | ChangeKind.FREE if session is None:
                self._agent.start(server)
            case ChangeKind.ADDED if session is not None:
                session.add(change.refs)
                self._agent.subscribe(server, *change.refs)
            case ChangeKind.LOST:
                if self._lost_ways:
                    self._lost_ways.doubt(server, held=session is not None)
                if session is not None:
                    self._agent.release(server)
            case ChangeKind.AUDIT if session is not None:
                self._audit(session, change.refs)
            case ChangeKind.REMOVED if session is not None:
                for removed in change.removed:
                    session.remove(removed)
                self._perhaps_unwanted(server)

    def _audit(self, session: ServerSession, refs: Iterable[Ref]) -> None:
        """Subscribe these again, if they are active, and count where the server disagrees."""
        if not session.complete or session.ended:
            return
        chosen = [ref for ref in refs if ref not in session.missing]
        session.audited.update(chosen)
        self._metrics.count(Counter.AUDITED, len(chosen))
        self._agent.subscribe(session.server, *chosen)

    def _perhaps_unwanted(self, server: ServerAddress) -> None:
        """Something that was wanted of this server is no more."""
        if server not in self._unwanted:
            self._unwanted.add(server)
            self._spawn(self._release_if_unwanted(server), "unwanted SMP server")

    async def _release_if_unwanted(self, server: ServerAddress) -> None:
        """After a pause, since whoever replaces a queue subscribes the new one soon."""
        try:
            await asyncio.sleep(self._release_after)
        finally:
            self._unwanted.discard(server)
        if not await self._insist(lambda: self._store.is_wanted(server)):
            self._agent.release(server)
            if self._lost_ways:
                self._lost_ways.forget(server)

    # --- agent's Subscriptions

    async def standing(self, server: ServerAddress) -> Standing | None:
        """See `Subscriptions`."""
        if self._permitted.permits(server):
            acquire = partial(self._insist, partial(self._store.acquire, server))
            standing = await self._insist(partial(self._store.standing, server))
            if standing is not None and await self._shares.speaks_for(server, acquire):
                return standing
        await self._shares.give(server)
        return None

    async def _let_go(self, last: Session) -> None:
        await self._inbox.empty(last.server)
        await self._insist(lambda: self._store.release(last))  # or the store could not forget the server

    def connect_wait(self, server: ServerAddress, destinations: Sequence[str], proven: bool, /) -> float:
        """See `Subscriptions`."""
        return self._admit(server, destinations, proven)

    async def standing_lost(self, server: ServerAddress) -> None:
        """See `Subscriptions`."""
        self._metrics.count(Counter.SERVERS_DISPROVED)
        await self._insist(lambda: self._store.disprove(server))

    async def given_up(self, server: ServerAddress) -> None:
        """See `Subscriptions`."""
        if (stored := await self._insist(lambda: self._store.acquire(server))) is None:
            return  # another node may know better
        count = _GIVEN_UP
        while count == _GIVEN_UP:
            count = await self._insist(lambda: self._store.give_up(stored, UNREACHABLE, _GIVEN_UP))
            self._metrics.count_kind(KindCounter.SUBSCRIPTIONS_ENDED, "given_up", count)
        await self._insist(lambda: self._store.release(stored))

    async def service(self, server: ServerAddress) -> Credentials | None:
        """See `Subscriptions`. Each server gets a certificate of its own, so that they cannot tell we are one."""
        if not self._services:
            return None
        make = partial(new_service_certificate, self._clock())
        kept = await self._insist(lambda: self._store.service_certificate(server, make))
        key = crypto.parse_private(kept.key)
        assert isinstance(key, crypto.SignPrivateKey)
        return Credentials(tuple(load_certificates(kept.chain)), key)

    async def connected(self, server: ServerAddress, service_id: bytes | None, prefix: str) -> ServerSession:
        """See `Subscriptions`."""
        stored = await self._insist(lambda: self._store.acquire(server))
        if stored is None:
            raise NotWantedError("another node speaks for this server")
        state = await self._insist(lambda: self._store.begin(stored, service_id))
        if state.changed and service_id is not None:
            self._metrics.count_kind(KindCounter.SERVICE_FALLBACK, "changed")
            told.service_changed(server)
        session = ServerSession(stored, service_id is not None, prefix)
        session.associated = session.service and state.associated > 0
        session.service_active = not session.associated
        self._sessions[server] = session
        self._shares.held[server] = stored
        self._impersonated.discard(server.hosts[0].lower())
        if self._lost_ways:
            self._lost_ways.reconnected(stored)
        told.connected(server, service=session.service)
        return session

    async def associations(self, session: ServerSession) -> Associations:
        """See `Subscriptions`."""
        session.asked = await self._insist(lambda: self._store.service_state(session.stored))
        self._shares.check(session.stored)
        return _associations(session.asked)

    async def service_subscribed(self, session: ServerSession, said: smp.SOks | None) -> Todo:
        """See `Subscriptions`."""
        todo = await self._what_is_to_be_done(session, said)
        await self._announce(session)
        return todo

    async def _what_is_to_be_done(self, session: ServerSession, said: smp.SOks | None) -> Todo:
        stored = session.stored
        state = await self._insist(lambda: self._store.service_state(stored))
        if said is not None and (session.missing or state != session.asked):
            said = smp.SOks(said.count)  # of some it is not clear whether the hash holds them
        todo = after_count(_associations(state), said) if said else Todo.PAGES
        if said is not None and todo is not Todo.NOTHING:
            await asyncio.sleep(self._recount_delay)  # a DELD or an END may be under way to us
            state = await self._insist(lambda: self._store.service_state(stored))
            todo = after_count(_associations(state), said)
        if session.ended:
            return Todo.NOTHING  # the count says no more than that; the next session takes them back
        if said is not None and (todo is Todo.NOTHING or session.recounted):
            await self._counted(session, state, said)
            return Todo.NOTHING
        if todo is Todo.AUDIT:
            return todo  # unless the pages are to come first, and what they give explains it
        session.recounted = True
        told.service_lost(stored.server, None if said is None else said.count, state.associated)
        self._metrics.count_kind(KindCounter.SERVICE_FALLBACK, "lost" if said is None else "mismatch")
        await self._insist(lambda: self._store.reassociate(stored))
        session.begin_again()
        return Todo.PAGES

    async def _counted(self, session: ServerSession, state: ServiceState, said: smp.SOks) -> None:
        session.count_service(state.associated)
        if state.associated:
            await self._prove(session)
        others = max(0, said.count - state.associated)
        if said.count < state.associated or others > state.released:
            self._metrics.count_kind(KindCounter.AUDIT_DRIFT, "service_count")
        if state != session.asked:
            return  # it changed meanwhile: the next session will tell
        own_hash = xor(state.ids_hash, state.released_hash)
        ids_hash = xor(said.ids_hash, own_hash) if said.ids_hash is not None else None
        known = ids_hash is None or ids_hash == state.released_hash
        # Those that we deleted while they were associated; after all pages the difference is nothing else.
        if others > state.released or ((session.complete or not known) and (others != state.released or not known)):
            await self._insist(lambda: self._store.set_released(session.stored, others, ids_hash))

    async def audit_page(self, session: ServerSession, limit: int) -> Sequence[Ref]:
        """See `Subscriptions`. A page a second, and all within an hour."""
        if not session.auditing and not session.recounted:
            state = await self._insist(lambda: self._store.service_state(session.stored))
            told.service_audited(session.server)
            self._metrics.count_kind(KindCounter.SERVICE_FALLBACK, "audited")
            session.begin_audit(state.associated)
            await self._announce(session)
        while session.auditing and not session.audit_complete:
            cursor = session.audit_cursor
            if cursor is not None:
                pages = max(1, session.audit_size // limit)
                await asyncio.sleep(min(_AUDIT_PAUSE, _AUDIT_TIME / pages))
            read = partial(self._store.page, session.stored, cursor, limit, associated=True)
            page = await self._insist(read)
            if refs := session.take_audit_page([w.ref for w in page.wanted], page.cursor):
                self._metrics.count(Counter.AUDITED, len(refs))
                return refs
        return []

    async def page(self, session: ServerSession, limit: int) -> Sequence[NsubRequest]:
        """See `Subscriptions`."""
        while not session.complete:
            cursor = session.cursor
            page = await self._insist(lambda: self._store.page(session.stored, cursor, limit))  # noqa: B023
            new = [w for w in page.wanted if w.ref not in session.missing and w.ref not in session.removed]
            session.missing.update(w.ref for w in new)
            session.cursor, session.complete = page.cursor, page.cursor is None
            if new:
                self._shares.check(session.stored)
                return [session.request(w) for w in new]
        await self._announce(session)
        return []

    async def load(self, session: ServerSession, refs: Sequence[Ref]) -> Sequence[NsubRequest]:
        """See `Subscriptions`."""
        rows = await self._insist(lambda: self._store.load(session.stored, refs))
        gone = set(refs).difference(w.ref for w in rows)
        session.missing -= gone
        session.audited -= gone
        session.removed -= gone
        self._shares.check(session.stored)
        return [session.request(w) for w in rows]

    async def results(self, session: ServerSession, results: Sequence[NsubResult]) -> None:
        """See `Subscriptions`."""
        answers = [confirmed(r) for r in results if r.tag or r.answer not in _SUBSCRIBED]
        if answers:
            await self._insist(lambda: self._store.confirm(session.stored, answers))
        if any(r.answer in _SUBSCRIBED for r in results):
            await self._prove(session)
        refused = 0
        for r in results:
            good = r.answer in _SUBSCRIBED
            if r.ref in session.removed:
                session.removed.discard(r.ref)
                continue
            if r.ref in session.missing:
                session.missing.discard(r.ref)
                session.confirmed += good
            elif not good:
                session.confirmed = max(0, session.confirmed - 1)
            if not good:
                refused += 1
                self._metrics.count_kind(KindCounter.SUBSCRIPTIONS_REFUSED, r.answer)
            if r.ref in session.audited:
                session.audited.discard(r.ref)
                if not good or (r.answer is NsubAnswer.ASSOCIATED and r.tag):
                    self._metrics.count_kind(KindCounter.AUDIT_DRIFT, "reassociated" if good else "refused")
        await self._announce(session)
        if refused:
            self._perhaps_unwanted(session.server)
            told.refused(session.server, refused, len(results))

    async def _announce(self, session: ServerSession) -> None:
        """To other nodes, which answer SCHK too, what changed. Queues that came since are not ACTIVE in the store."""
        whole = session.confirms_all and (session.announced or not session.missing)
        if self._shares.is_shared and whole != session.announced:
            session.announced = whole
            await self._insist(lambda: self._store.announce(session.stored, whole=whole))

    async def _prove(self, session: ServerSession) -> None:
        if not session.proved:
            session.proved = True
            await self._insist(lambda: self._store.prove(session.stored, session.prefix))

    def way_was_dead(self, session: ServerSession) -> None:
        """See `Subscriptions`."""
        told.way_dead(session.server)
        if self._lost_ways:
            self._lost_ways.notice(session.server)

    async def disconnected(self, session: ServerSession) -> None:
        """See `Subscriptions`. What was read of it may still be on its way to the store."""
        if self._sessions.get(session.server) is session:
            del self._sessions[session.server]
        if not self._inbox.is_over:
            if session.announced:
                with contextlib.suppress(NotWantedError):  # another node's session counts by now
                    await self._insist(lambda: self._store.announce(session.stored, whole=False))
            if self._shares.is_over:
                await self._shares.give(session.server)
        told.disconnected(session.server)

    def connect_failed(self, server: ServerAddress, failure: ConnectFailure) -> None:
        """See `Subscriptions`."""
        if failure is ConnectFailure.IDENTITY:
            self._spawn(self._another_identity(server), "identity of an SMP server")
        else:
            self._metrics.count_kind(KindCounter.SMP_CONNECT_FAILED, failure)

    async def _another_identity(self, server: ServerAddress) -> None:
        """Devices may give addresses with any identity: impersonated is who was what its address says, or is ours."""
        standing = await self._insist(lambda: self._store.standing(server))
        known = self._metrics.is_own(server) or (standing is not None and standing.is_proven)
        self._metrics.count_kind(KindCounter.SMP_CONNECT_FAILED, ConnectFailure.IDENTITY if known else WRONG_ADDRESS)
        host = server.hosts[0].lower()
        if known and host not in self._impersonated and len(self._impersonated) < _MAX_ALARMS:
            self._impersonated.add(host)
            told.impersonated(server)

    def service_refused(self, server: ServerAddress) -> None:
        """See `Subscriptions`."""
        self._metrics.count_kind(KindCounter.SERVICE_FALLBACK, "refused")

    async def events(self, session: ServerSession, events: Sequence[Event]) -> None:
        """See `Subscriptions`."""
        ends = [e.message for e in events if isinstance(e.message, smp.Ends)]
        if ends:
            session.end_service(sum(e.count for e in ends))
            self._metrics.count_kind(KindCounter.SERVICE_FALLBACK, "ended")
            await self._announce(session)
        await self._inbox.take(session.stored, events)

    def _lost(self, stored: Session, count: int) -> None:
        session = self._sessions.get(stored.server)
        if session is not None and session.stored == stored:
            session.confirmed = max(0, session.confirmed - count)
            self._perhaps_unwanted(stored.server)

    async def _insist(self, operation: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._inbox.insist(operation)
        except FencedError as e:
            raise NotWantedError("another node speaks for this server by now") from e


def _associations(state: ServiceState) -> Associations:
    return Associations(state.associated + state.released, state.released, state.ids_hash, state.released_hash)
