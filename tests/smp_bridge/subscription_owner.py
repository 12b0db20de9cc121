"""A model owner of the SMP agent, for tests: it keeps subscriptions in memory, and what the agent said of them."""

import asyncio
import contextlib
import gc
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import pytest

from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.agent import Agent
from smp_bridge.backoff import PatienceConfig
from smp_bridge.client import Event
from smp_bridge.failure import ConnectFailure, NsubAnswer
from smp_bridge.identity import Credentials
from smp_bridge.network import Network
from smp_bridge.places import ANYWHERE, Standing
from smp_bridge.queue_session import AgentConfig
from smp_bridge.service import Associations, Todo, ids_hash
from smp_bridge.subscriptions import NsubRequest, NsubResult
from smp_bridge.testing import Queue, Recipient, SmpServer
from smp_bridge.transmission import AuthKey

SLOW = PatienceConfig(low=1000.0, high=1000.0)
FAST = AgentConfig(
    min_backoff=0.02,
    max_backoff=0.1,
    patience=PatienceConfig(low=0.02, high=0.1, high_new=0.1, low_identity=0.02, high_identity=0.1, steady=0.0),
    request_timeout=0.3,
    service_timeout=0.3,
    network=Network(allow_private=True),
)


@dataclass(slots=True, eq=False)
class Handle:
    """A session of the owner's: `over` once it is disconnected."""

    server: ServerAddress
    associated: bool
    over: bool = False


class Owner:
    """`page`: the largest page that it gives; `recounts`: how often in a session a count is not believed."""

    def __init__(self, page: int = 70, recounts: int = 1) -> None:
        self._page = page
        self._recounts = recounts
        self._left: defaultdict[ServerAddress, int] = defaultdict(int)  # recounts
        self.kept: defaultdict[ServerAddress, dict[int, NsubRequest]] = defaultdict(dict)
        self.given: defaultdict[ServerAddress, set[int]] = defaultdict(set)  # in this session
        self.active: defaultdict[ServerAddress, set[int]] = defaultdict(set)
        self.associated: defaultdict[ServerAddress, set[int]] = defaultdict(set)
        self.ended: dict[int, NsubResult] = {}
        self.sessions: list[tuple[str, ServerAddress]] = []
        self.blocks: list[Sequence[Event]] = []
        self.failures: list[ConnectFailure] = []
        self.standings: dict[ServerAddress, Standing] = {}  # of others that they are proven
        self.prefixes: list[str] = []  # where sessions led
        self.waits: list[float] = []  # what connects have to wait for, one after the other
        self.admitted: list[tuple[tuple[str, ...], bool]] = []
        self.lost: list[ServerAddress] = []  # standings
        self.given_up_on: list[ServerAddress] = []
        self.credentials: Credentials | None = None
        self.service_ids: defaultdict[ServerAddress, list[bytes | None]] = defaultdict(list)
        self.counts: list[int | None] = []
        self.audits = 0  # how many counts call for one
        self._audited: defaultdict[ServerAddress, list[int]] = defaultdict(list)  # what is left of it
        self.tags: list[int] = []
        self.loaded: list[list[int]] = []
        self.answered: defaultdict[ServerAddress, int] = defaultdict(int)  # blocks
        self.refused = 0
        self.dead: list[ServerAddress] = []  # ways
        self.asked = 0
        self.pages = 0
        self.failing: set[str] = set()  # methods that raise, once each
        self.handles: dict[ServerAddress, Handle] = {}
        self._changed = asyncio.Event()

    def add(self, server: ServerAddress, *queues: Queue) -> list[int]:
        return [self.keep(server, q.notifier_id, q.notifier_key) for q in queues]

    def keep(self, server: ServerAddress, notifier_id: bytes, key: AuthKey, tag: int = 0) -> int:
        ref = len(self.kept[server])
        self.kept[server][ref] = NsubRequest(ref, notifier_id, key, tag)
        return ref

    async def until(self, condition: Callable[[], bool], timeout: float = 5.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def all_active(self, server: ServerAddress, timeout: float = 5.0) -> None:
        await self.until(lambda: self.active[server] == set(self.kept[server]), timeout)

    def has_session(self, server: ServerAddress) -> bool:
        return [kind for kind, s in self.sessions if s == server][-1:] == ["connected"]

    def _enter(self, method: str, session: Handle | None = None) -> None:
        self._changed.set()
        if session is not None:
            assert not session.over, f"{method} after the end of its session"
            assert session is self.handles[session.server], f"{method} of a session that is not the current one"
        if method in self.failing:
            self.failing.discard(method)
            raise RuntimeError(f"{method} failed")

    # --- Subscriptions

    async def standing(self, server: ServerAddress) -> Standing | None:
        self.asked += 1
        self._enter("standing")
        return self.standings.get(server, Standing((ANYWHERE,))) if self.kept[server] else None

    def connect_wait(self, server: ServerAddress, destinations: Sequence[str], proven: bool, /) -> float:
        self.admitted.append((tuple(destinations), proven))
        return self.waits.pop(0) if self.waits else 0.0

    async def standing_lost(self, server: ServerAddress) -> None:
        self.lost.append(server)
        self.standings[server] = Standing()
        self._enter("standing_lost")

    async def given_up(self, server: ServerAddress) -> None:
        self.given_up_on.append(server)
        self.kept[server].clear()
        self._enter("given_up")

    async def service(self, server: ServerAddress) -> Credentials | None:
        self._enter("service")
        return self.credentials

    async def connected(self, server: ServerAddress, service_id: bytes | None, prefix: str) -> Handle:
        self._enter("connected")
        self.prefixes.append(prefix)
        assert not self.has_session(server)
        self.sessions.append(("connected", server))
        if self.service_ids[server][-1:] != [service_id]:
            self.associated[server].clear()
        self.service_ids[server].append(service_id)
        self.given[server].clear()
        self._left[server] = self._recounts
        handle = self.handles[server] = Handle(server, bool(self.associated[server]))
        return handle

    async def associations(self, session: Handle) -> Associations:
        self._enter("associations", session)
        ids = [self.kept[session.server][ref].notifier_id for ref in self.associated[session.server]]
        return Associations(len(ids), 0, ids_hash(ids), bytes(16))

    async def service_subscribed(self, session: Handle, said: smp.SOks | None) -> Todo:
        self._enter("service_subscribed", session)
        server = session.server
        assert self.has_session(server)
        count = said.count if said else None
        self.counts.append(count)
        if self.audits:
            self.audits -= 1
            self._audited[server] = sorted(self.associated[server])
            return Todo.AUDIT
        if count is not None and (count == len(self.associated[server]) or not self._left[server]):
            self.active[server] |= self.associated[server]
            return Todo.NOTHING
        self._left[server] -= 1
        self.associated[server].clear()
        self.given[server].clear()
        return Todo.PAGES

    async def audit_page(self, session: Handle, limit: int) -> Sequence[int]:
        self._enter("audit_page", session)
        refs = self._audited[session.server][:limit]
        self._audited[session.server] = self._audited[session.server][limit:]
        return refs

    async def page(self, session: Handle, limit: int) -> Sequence[NsubRequest]:
        self._enter("page", session)
        server = session.server
        assert self.has_session(server)
        self.pages += 1
        given, without = self.given[server], self.associated[server]
        page = [s for ref, s in self.kept[server].items() if ref not in given and ref not in without]
        page = page[: min(limit, self._page)]
        given.update(s.ref for s in page)
        return page

    async def load(self, session: Handle, refs: Sequence[int]) -> Sequence[NsubRequest]:
        self._enter("load", session)
        server = session.server
        assert self.has_session(server)
        self.loaded.append(list(refs))
        return [self.kept[server][ref] for ref in refs if ref in self.kept[server]]

    async def results(self, session: Handle, results: Sequence[NsubResult]) -> None:
        self._enter("results", session)
        server = session.server
        assert self.has_session(server)
        self.answered[server] += 1
        for result in results:
            self.tags.append(result.tag)
            if result.answer in (NsubAnswer.SUBSCRIBED, NsubAnswer.ASSOCIATED):
                self.active[server].add(result.ref)
            else:
                self.ended[result.ref] = result
                self.kept[server].pop(result.ref, None)
            if result.answer is NsubAnswer.ASSOCIATED:
                self.associated[server].add(result.ref)

    def way_was_dead(self, session: Handle) -> None:
        self._enter("way_was_dead", session)
        self.dead.append(session.server)

    async def disconnected(self, session: Handle) -> None:
        server = session.server
        self.active[server].clear()
        self.sessions.append(("disconnected", server))
        try:
            self._enter("disconnected", session)
        finally:
            session.over = True

    async def events(self, session: Handle, events: Sequence[Event]) -> None:
        self._enter("events", session)
        server = session.server
        self.blocks.append(events)
        if any(isinstance(e.message, smp.Ends) for e in events):
            self.active[server] -= self.associated[server]

    def connect_failed(self, server: ServerAddress, failure: ConnectFailure) -> None:
        self.failures.append(failure)
        self._changed.set()

    def service_refused(self, server: ServerAddress) -> None:
        self.refused += 1
        self._changed.set()


@contextlib.asynccontextmanager
async def running(owner: Owner, config: AgentConfig = FAST) -> AsyncIterator[Agent[Handle]]:
    agent = Agent(owner, config)
    try:
        yield agent
    finally:
        await agent.close()


async def make_queues(server: SmpServer, count: int) -> list[Queue]:
    async with await Recipient.connect(server.address) as recipient:
        queues = await asyncio.gather(*(recipient.queue(credentials="NEW", secure=None) for _ in range(count)))
    await server.until(lambda: server.connections == 0)
    return list(queues)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged at ERROR, futures that nobody looked at included."""
    gc.collect()
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
