"""Notification subscriptions on many SMP servers: one connection each, resubscription after a disconnect.

The agent keeps no list of subscriptions: it asks its `Subscriptions` for them, a block at a time, whenever it has
connected (see `queue_session`). Where a server takes services, one NSUBS subscribes all that are associated already.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Iterator, Sequence
from functools import partial
from heapq import nsmallest
from operator import itemgetter
from typing import Final, Generic, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.backoff import Patience
from smp_bridge.client import Client, Event
from smp_bridge.connecting import Connect, connect
from smp_bridge.failure import TABLE, ConnectFailure, Happened, Remedy, Ruling, Wait, connecting
from smp_bridge.handshake import HandshakeError, ServiceCredentials
from smp_bridge.places import Standing
from smp_bridge.queue_session import AgentConfig, QueueSession, Share
from smp_bridge.service import ServiceLife
from smp_bridge.subscriptions import NotWantedError, Ref, S, Subscriptions
from smp_bridge.tls import client_context
from smp_bridge.transmission import Session
from smp_bridge.transport import BlockConnection, Scratch
from smp_bridge.turns import ServerTurn, Turns

log = logging.getLogger(__name__)

CLOSE_GRACE: Final = 5.0
_MAX_REASON: Final = 200  # characters that are remembered of it
_NOT_FOR_LONG: Final = 60.0  # seconds after which a server is tried once more if a subscription on it was added
_NOT_THEIRS: Final = frozenset([ConnectFailure.PROXY, ConnectFailure.CROWDED, ConnectFailure.NOT_ALLOWED])


class Way(NamedTuple):
    """How it is with a server: `is_connected`, or not, for so many `seconds`.

    `failure`: of the last connect that failed, ever, None: none did; `reason`: in words; `failed_ago`: seconds.
    `retry_in`: seconds until the next try, None: it is under way, waits for its turn, or there is a session.
    """

    server: ServerAddress
    is_proven: bool
    is_connected: bool
    seconds: float
    failure: ConnectFailure | None
    reason: str
    failed_ago: float | None
    retry_in: float | None


class Agent(Generic[S]):
    """Subscribes on many servers; must be closed. `S`: the owner's handles of sessions.

    `by`: how servers are connected to; a simulator's are not by sockets (see `testing.link`).
    """

    def __init__(self, owner: Subscriptions[S], config: AgentConfig | None = None, *, by: Connect = connect) -> None:
        self._shared = _Shared(owner, config or AgentConfig(), by)
        self._servers: dict[ServerAddress, _Server[S]] = {}

    def start(self, server: ServerAddress) -> None:
        """Connect to a server, unless that is done or under way, and subscribe what its pages give."""
        worker = self._servers.get(server)
        if worker is not None and not worker.task.done():
            worker.ask()
            return
        worker = _Server(self._shared, server)
        self._servers[server] = worker
        worker.task.add_done_callback(partial(self._forget, worker))

    def _forget(self, worker: "_Server[S]", _: "asyncio.Task[None]") -> None:
        if self._servers.get(worker.address) is worker:
            del self._servers[worker.address]

    def subscribe(self, server: ServerAddress, *refs: Ref) -> None:
        """Subscribe these in the current session, even if they are already; without a session the pages give them."""
        self.start(server)
        self._servers[server].add(refs)

    def release(self, server: ServerAddress) -> None:
        """Nothing is wanted on this server any more: end its session as `close` does, but without haste.

        The owner is asked once more whether anything is `wanted`; if so, the server is connected to again.
        """
        worker = self._servers.get(server)
        if worker is not None:
            worker.release()

    def is_connected(self, server: ServerAddress) -> bool:
        """Whether there is a session with the server."""
        worker = self._servers.get(server)
        return worker is not None and worker.session is not None

    def knows(self, server: ServerAddress) -> bool:
        """Whether the server is connected or being connected to."""
        return server in self._servers

    def connecting(self, *, proven: bool) -> int:
        """How many connects to servers that are proven, or not, are under way or wait for their turn."""
        return self._shared.turns.waiting(proven=proven)

    @property
    def servers(self) -> int:
        """How many servers are connected or being connected to."""
        return len(self._servers)

    def away(self) -> Iterator[tuple[ServerAddress, bool, float]]:
        """Servers without a session: whether each is proven, and for how many seconds it has been so."""
        now = asyncio.get_running_loop().time()
        return ((w.address, w.is_proven, now - w.since) for w in self._servers.values() if w.session is None)

    def ways(self, limit: int, after: str = "") -> list[Way]:
        """How it is with `limit` servers, in the order of their addresses as text, behind one of these."""
        now = asyncio.get_running_loop().time()
        behind = ((text, worker) for worker in self._servers.values() if (text := str(worker.address)) > after)
        return [worker.way(now) for _, worker in nsmallest(limit, behind, key=itemgetter(0))]

    async def close(self, grace: float = CLOSE_GRACE) -> int:
        """End all sessions: nothing more is sent, what was received reaches the owner, then connections are closed.

        `grace`: seconds that the owner may take for that; after them its methods are cancelled, but `disconnected`.
        How many blocks it had not taken by then; they are lost.
        """
        workers = list(self._servers.values())
        for worker in workers:
            worker.end()
        if workers:
            _, late = await asyncio.wait([w.task for w in workers], timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        self._shared.turns.close()
        untaken = sum(w.untaken for w in workers)
        if untaken:
            log.error("%d blocks that SMP servers had sent were not taken before the end", untaken)
        return untaken


class _Shared(Generic[S]):
    """What all servers share."""

    def __init__(self, owner: Subscriptions[S], config: AgentConfig, by: Connect) -> None:
        self.connect = by
        self.owner = owner
        self.config = config
        self.turns = Turns(config.turns, owner.connect_wait, config.name_servers)
        self.sessions = Share(config)
        self.scratch = Scratch()
        self.context = client_context("smp")
        self.making = asyncio.Lock()  # a context takes a millisecond: of hundreds that begin together each has its turn


class _Server(Generic[S]):
    """One server: a task that connects, subscribes and waits for the end, again and again."""

    def __init__(self, shared: _Shared[S], address: ServerAddress) -> None:
        self._shared = shared
        self._owner = shared.owner
        self._config = shared.config
        self.address = address
        self.asked = False
        self.session: QueueSession[S] | None = None
        self.since = asyncio.get_running_loop().time()  # with a session, or without one
        self._last_failure: tuple[ConnectFailure, str, float] | None = None  # which, in words, when
        self._retry_at: float | None = None
        self.untaken = 0  # blocks that were read and not taken when the agent was closed
        self._in_session = False  # from `connected` to the end of `disconnected`
        self._ending = False
        self._released = False
        self._service = ServiceLife(self._config.without_service, self._config.ended_backoff)
        self._standing = Standing()
        self._patience = Patience(self._config.patience, self._config.rng)
        self._failing: Ruling | None = None  # what the last connect came to
        self._woken = asyncio.Event()
        self._taking_back: asyncio.TimerHandle | None = None  # until this session ends, as another one took it over
        self._shown: tuple[tuple[bytes, ...], ssl.SSLContext] | None = None  # TLS with this chain of the service
        self.task = asyncio.create_task(self._run(), name="smp agent")

    @property
    def is_proven(self) -> bool:
        """Whether it confirmed subscriptions before, as far as is known."""
        return self._standing.is_proven

    def way(self, now: float) -> Way:
        """How it is with it. `now`: the loop's time."""
        failure, reason, failed_at = self._last_failure or (None, "", None)
        failed_ago = None if failed_at is None else now - failed_at
        retry_in = None if self._retry_at is None else max(0.0, self._retry_at - now)
        connected = self.session is not None
        return Way(self.address, self.is_proven, connected, now - self.since, failure, reason, failed_ago, retry_in)

    def ask(self) -> None:
        """Something more is wanted."""
        self.asked = True  # it may be learning just now that nothing was wanted
        self._woken.set()

    def add(self, refs: Sequence[Ref]) -> None:
        """Subscribe in the current session, if there is one."""
        if self.session is not None:
            self.session.add(refs)

    def end(self) -> None:
        """End the session in an orderly way, and then the task; without a session at once."""
        self._ending = True
        if self.session is not None:
            self.session.end()
        elif not self._in_session:
            self.task.cancel()

    def release(self) -> None:
        """End the session in an orderly way, and then the task if nothing is wanted."""
        if self.session is not None:
            self._released = True
            self.session.end()

    async def _run(self) -> None:
        while True:
            try:
                if not await self._is_wanted():
                    return
                if not await self._connect_and_stay():
                    self._released = await self._judge()
                if self._ending or (self._released and not await self._is_wanted()):
                    return
            except NotWantedError as e:
                log.info("SMP server %s: %s", self.address.hosts[0], e)
                if self._ending:
                    return
            except Exception:
                log.log(TABLE[Happened.OWNER_FAILED].level, "a session with an SMP server failed", exc_info=True)
                if self._ending:
                    return
            await self._pause()

    async def _is_wanted(self) -> bool:
        self.asked = self._released = False
        self._woken.clear()
        standing = await self._owner.standing(self.address)
        self._standing = standing or Standing()
        return standing is not None or self.asked

    async def _judge(self) -> bool:
        """What follows if it failed too often; whether it is given up."""
        proven, tried_for = self._standing.is_proven, self._standing.tried_for
        if self._patience.is_lost(proven=proven):
            log.info("SMP server %s cannot be connected to any more; it is tried less often", self.address.hosts[0])
            await self._owner.standing_lost(self.address)
        elif self._patience.gives_up(proven=proven, tried_for=tried_for):
            log.info("SMP server %s could not be connected to for days; it is given up", self.address.hosts[0])
            await self._owner.given_up(self.address)
            return True
        return False

    async def _pause(self) -> None:
        """Until the next try; not for long if something more is wanted."""
        loop = asyncio.get_running_loop()
        began, standing = loop.time(), self._standing
        impostor = self._failing is not None and self._failing.wait is Wait.IDENTITY
        delay = self._patience.delay(proven=standing.is_proven, tried_for=standing.tried_for, impostor=impostor)
        self._retry_at = began + delay
        try:
            if delay > _NOT_FOR_LONG:
                await asyncio.sleep(_NOT_FOR_LONG)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(began + delay):
                        await self._woken.wait()
            else:
                await asyncio.sleep(delay)
        finally:
            self._retry_at = None

    async def _connect_and_stay(self) -> bool:
        """One session, to its end; False if there was none."""
        connected = await self._connect()
        if connected is None:
            return False
        connection, agreed, prefix = connected
        self._failing = None
        loop = asyncio.get_running_loop()
        began = loop.time()
        with self._shared.turns.session(prefix):
            await self._session(connection, agreed, prefix)
        self._patience.lasted(loop.time() - began)
        return True

    async def _session(self, connection: BlockConnection, agreed: Session, prefix: str) -> None:
        service_id = agreed.service.service_id if agreed.service else None
        try:
            handle = await self._owner.connected(self.address, service_id, prefix)
        except BaseException:
            connection.abort()
            raise
        # Only now: what it receives has a session to belong to.
        on_events = partial(self._on_events, handle)
        config = self._config
        client = Client(
            connection, agreed, on_events, ping_interval=config.ping_interval, ping_timeout=config.ping_timeout
        )
        self._service.begin_session()
        self.since = asyncio.get_running_loop().time()
        self.session = QueueSession(self._owner, self._shared.sessions, self.address, handle, client)
        remedy = await self._stay(self.session, handle, client)
        if self._service.end_session(remedy) is Remedy.WITHOUT_SERVICE:
            self._without_service("its subscriptions", TABLE[Happened.NSUBS_REFUSED])

    async def _stay(self, session: QueueSession[S], handle: S, client: Client) -> Remedy:
        """Subscribe; when that is over, in whatever way, hand over what was received; then it is the session's end."""
        self._in_session = True
        try:
            try:
                await session.run()
            except Exception:
                await client.finish()
                raise
            await client.finish()
        finally:
            self.session, self.since = None, asyncio.get_running_loop().time()
            try:
                untaken = await client.stop()
                self.untaken = untaken if self._ending else 0  # else the owner failed, which was logged
                if client.way_is_dead:
                    self._owner.way_was_dead(handle)
                await self._owner.disconnected(handle)  # first: closing may take seconds
            finally:
                if self._taking_back is not None:
                    self._taking_back.cancel()
                    self._taking_back = None
                self._in_session = False
                await client.close()
        return session.remedy

    async def _connect(self) -> tuple[BlockConnection, Session, str] | None:
        """And where it leads; None if it failed, which was told."""
        while True:
            turn = ServerTurn(self._shared.turns, self.address, self._standing)
            try:
                service, context = await self._credentials()
                connection, agreed = await self._shared.connect(
                    self.address,
                    context=context,
                    service=service,
                    network=self._config.network,
                    scratch=self._shared.scratch,
                    clock=self._config.clock,
                    turn=turn,
                )
                return connection, agreed, turn.prefix
            except (OSError, HandshakeError) as e:
                ruling = TABLE[connecting(e)]
                if ruling.remedy is not Remedy.WITHOUT_SERVICE:
                    self._failed(e, ruling)
                    return None
                self._without_service("the handshake", ruling)  # and at once again

    async def _credentials(self) -> tuple[ServiceCredentials | None, ssl.SSLContext]:
        if not self._service.may_be_one(asyncio.get_running_loop().time()):
            return None, self._shared.context
        credentials = await self._owner.service(self.address)
        if credentials is None:
            return None, self._shared.context
        key = Ed25519PrivateKey.generate()
        service = ServiceCredentials(tuple(credentials.chain_der), credentials.key, key)
        if self._shown is None or self._shown[0] != service.chain:
            async with self._shared.making:
                self._shown = service.chain, client_context("smp", credentials)
                await asyncio.sleep(0)
        return service, self._shown[1]

    def _without_service(self, what: str, ruling: Ruling) -> None:
        log.log(ruling.level, "SMP server %s refuses %s as a service; going on without", self.address.hosts[0], what)
        self._service.give_up(asyncio.get_running_loop().time())
        self._owner.service_refused(self.address)

    def _failed(self, e: Exception, ruling: Ruling) -> None:
        failure = ruling.failure
        assert failure is not None
        level = logging.DEBUG if ruling == self._failing else ruling.level  # strangers choose servers: once is enough
        self._failing = ruling
        # Without a single session it is rather our own network.
        counts = failure not in _NOT_THEIRS and self._shared.turns.sessions > 0
        self._patience.failed(counts=counts)
        host, text = self.address.hosts[0], str(e) or type(e).__name__
        self._last_failure = failure, text[:_MAX_REASON], asyncio.get_running_loop().time()
        log.log(level, "SMP server %s: cannot connect (%s): %s", host, failure, text)
        self._owner.connect_failed(self.address, failure)

    async def _on_events(self, handle: S, events: Sequence[Event]) -> None:
        await self._owner.events(handle, events)
        if not any(isinstance(e.message, smp.Ends) for e in events):
            return
        delay = self._service.taken_over()
        if delay is not None:
            level = TABLE[Happened.TAKEN_OVER].level
            log.log(
                level, "SMP server %s: another session took the service's subscriptions over", self.address.hosts[0]
            )
            if self.session is not None:
                # In this session NSUBS would not take them back.
                self._taking_back = asyncio.get_running_loop().call_later(delay, self.session.end)
