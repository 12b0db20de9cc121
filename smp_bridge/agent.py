"""Notification subscriptions on many SMP servers: one connection each, resubscription after a disconnect.

The agent keeps no list of subscriptions: it asks its `Subscriptions` for them, a block at a time, whenever it has
connected (see `stream`). Where a server takes services, one NSUBS subscribes all that are associated already.
"""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, Event
from smp_bridge.handshake import HandshakeError, IdentityMismatchError, ServiceCredentials, ServiceRefusedError
from smp_bridge.network import HostNotAllowedError, NoHostError, ProxyError, ResolveError
from smp_bridge.queue_session import AgentConfig, Backoff, Share, Stream
from smp_bridge.subscriptions import ConnectFailure, Subscriptions
from smp_bridge.tls import client_context
from smp_bridge.transport import ConnectionClosedError

log = logging.getLogger(__name__)

_MAX_DOUBLINGS: Final = 4  # of ended_backoff

_FAILURES: Final[tuple[tuple[type[Exception], ConnectFailure], ...]] = (
    (IdentityMismatchError, ConnectFailure.IDENTITY),
    (HandshakeError, ConnectFailure.HANDSHAKE),
    (ConnectionClosedError, ConnectFailure.HANDSHAKE),
    (HostNotAllowedError, ConnectFailure.NOT_ALLOWED),
    (NoHostError, ConnectFailure.NOT_ALLOWED),
    (ResolveError, ConnectFailure.RESOLVE),
    (ProxyError, ConnectFailure.PROXY),
    (ssl.SSLError, ConnectFailure.TLS),
    (TimeoutError, ConnectFailure.TIMEOUT),
    (OSError, ConnectFailure.TCP),
)


class Agent:
    """Subscribes on many servers; must be closed."""

    def __init__(self, owner: Subscriptions, config: AgentConfig | None = None) -> None:
        self._owner = owner
        self._config = config or AgentConfig()
        self._share = Share(self._config)
        self._context = client_context("smp")
        self._servers: dict[ServerAddress, _Server] = {}

    def start(self, server: ServerAddress) -> None:
        """Connect to a server, unless that is done or under way, and subscribe what its pages give."""
        worker = self._servers.get(server)
        if worker is not None and not worker.task.done():
            worker.asked = True  # it may be learning just now that nothing was wanted
            return
        worker = _Server(self._owner, self._config, self._share, self._context, server)
        self._servers[server] = worker
        worker.task.add_done_callback(partial(self._forget, worker))

    def _forget(self, worker: "_Server", _: "asyncio.Task[None]") -> None:
        if self._servers.get(worker.address) is worker:
            del self._servers[worker.address]

    def subscribe(self, server: ServerAddress, *refs: int) -> None:
        """Subscribe these in the current session, even if they are already; without a session the pages give them."""
        self.start(server)
        self._servers[server].add(refs)

    def is_connected(self, server: ServerAddress) -> bool:
        """Whether there is a session with the server."""
        worker = self._servers.get(server)
        return worker is not None and worker.stream is not None

    @property
    def servers(self) -> int:
        """How many servers are connected or being connected to."""
        return len(self._servers)

    async def close(self) -> None:
        """Close all connections."""
        tasks = [s.task for s in self._servers.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._servers.clear()


class _Server:
    """One server: a task that connects, subscribes and waits for the end, again and again."""

    def __init__(
        self, owner: Subscriptions, config: AgentConfig, share: Share, context: ssl.SSLContext, address: ServerAddress
    ) -> None:
        self._owner = owner
        self._config = config
        self._share = share
        self._context = context
        self.address = address
        self.asked = False
        self.stream: Stream | None = None
        self._no_service_until = 0.0
        self._ends = 0  # times in a row that another session took the service's subscriptions over
        self._ended = False  # in this session
        self._lost = False  # in the session before
        self.task = asyncio.create_task(self._run(), name="smp agent")

    def add(self, refs: Sequence[int]) -> None:
        """Subscribe in the current session, if there is one."""
        if self.stream is not None:
            self.stream.add(refs)

    async def _run(self) -> None:
        backoff = Backoff(self._config.min_backoff, self._config.max_backoff)
        while True:
            self.asked = False
            try:
                if not await self._owner.wanted(self.address) and not self.asked:
                    return
                if await self._session():
                    backoff.reset()
            except Exception:
                log.exception("a session with an SMP server failed")
            await asyncio.sleep(backoff.delay())

    async def _session(self) -> bool:
        """Connect and stay; False if it could not connect."""
        client = await self._connect()
        if client is None:
            return False
        self._ended = False
        stream = Stream(self._owner, self._config, self._share, self.address, client)
        try:
            service = client.session.service
            associated = await self._owner.connected(self.address, service.service_id if service else None)
            self.stream = stream
            await stream.run(associated=associated)
        finally:
            self.stream = None
            try:
                await self._owner.disconnected(self.address)  # first: closing may take seconds
            finally:
                await client.close()
        if stream.refused or (stream.lost and self._lost):
            self._refused("its subscriptions")
        self._lost = stream.lost  # another handshake should mend it, once
        self._ends = self._ends + 1 if self._ended else 0
        return True

    async def _connect(self) -> Client | None:
        try:
            async with self._share.connecting():
                service, context = await self._service()
                return await Client.connect(
                    self.address,
                    self._on_events,
                    context=context,
                    service=service,
                    network=self._config.network,
                    scratch=self._share.scratch,
                    ping_interval=self._config.ping_interval,
                )
        except ServiceRefusedError:
            self._refused("the handshake")
        except (OSError, HandshakeError) as e:
            self._failed(e)
        return None

    async def _service(self) -> tuple[ServiceCredentials | None, ssl.SSLContext]:
        if asyncio.get_running_loop().time() < self._no_service_until:
            return None, self._context
        credentials = await self._owner.service(self.address)
        if credentials is None:
            return None, self._context
        key = Ed25519PrivateKey.generate()
        service = ServiceCredentials(tuple(credentials.chain_der), credentials.key, key)
        return service, client_context("smp", credentials)

    def _refused(self, what: str) -> None:
        log.warning("SMP server %s refuses %s as a service; going on without", self.address.hosts[0], what)
        self._no_service_until = asyncio.get_running_loop().time() + self._config.without_service
        self._owner.service_refused(self.address)

    def _failed(self, e: Exception) -> None:
        failure = next(kind for cls, kind in _FAILURES if isinstance(e, cls))
        host, text = self.address.hosts[0], str(e) or type(e).__name__
        if failure is ConnectFailure.IDENTITY:
            log.error("SMP server %s is not whom its address names, someone may be impersonating it: %s", host, text)
        elif failure is ConnectFailure.NOT_ALLOWED:
            log.warning("SMP server %s: %s", host, text)
        else:
            log.info("SMP server %s: cannot connect (%s): %s", host, failure, text)
        self._owner.connect_failed(self.address, failure)

    async def _on_events(self, events: Sequence[Event]) -> None:
        await self._owner.events(self.address, events)
        if not self._ended and any(isinstance(e.message, smp.Ends) for e in events):
            self._ended = True
            delay = self._config.ended_backoff * 2 ** min(self._ends, _MAX_DOUBLINGS)
            log.warning("SMP server %s: another session took the service's subscriptions over", self.address.hosts[0])
            if self.stream is not None:
                # In this session NSUBS would not take them back.
                asyncio.get_running_loop().call_later(delay, self.stream.end)
