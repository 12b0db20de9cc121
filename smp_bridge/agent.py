"""Notification subscriptions on many SMP servers: one connection each, resubscription after a disconnect.

The agent keeps no list of subscriptions: it asks its `Subscriptions` for them, page by page, each time it connects.
"""

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto, smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, Event, Request, ServerError, UnexpectedAnswerError
from smp_bridge.handshake import HandshakeError, IdentityMismatchError
from smp_bridge.network import HostNotAllowedError
from smp_bridge.transmission import Err, Message
from smp_bridge.transport import ConnectionClosedError, client_context

log = logging.getLogger(__name__)

BATCH: Final = 90  # NSUB transmissions that fit one SMP block, whatever the key
_TEMPORARY: Final = frozenset(["INTERNAL", "STORE", "QUOTA", "EXPIRED"])


@dataclass(frozen=True, slots=True)
class Subscription:
    """One queue to be subscribed: the owner's `ref`, and what NSUB needs."""

    ref: int
    notifier_id: bytes = field(repr=False)
    notifier_key: crypto.AuthPrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an NSUB: `error` is None, or final."""

    subscription: Subscription
    error: str | None = None
    auth: bool = False


class Subscriptions(Protocol):
    """The agent's owner: where subscriptions are kept and what happened to them goes."""

    async def wanted(self, server: ServerAddress) -> bool:
        """Whether the server has any subscription that should be active."""
        ...

    def pages(self, server: ServerAddress) -> AsyncIterator[Sequence[Subscription]]:
        """Subscriptions that should be active and are not yet in the current session, in pages."""
        ...

    async def connected(self, server: ServerAddress) -> None:
        """A new session with the server begins: no subscription is active in it yet."""
        ...

    async def disconnected(self, server: ServerAddress) -> None:
        """The session ended: none of the server's subscriptions is active."""
        ...

    async def results(self, server: ServerAddress, results: Sequence[Result]) -> None:
        """NSUBs were answered in the current session."""
        ...

    async def events(self, server: ServerAddress, events: Sequence[Event]) -> None:
        """NMSG, END, DELD of one block. The next block is not read before this returns."""
        ...


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Times in seconds. `window`: NSUBs without an answer per server; `connecting`: simultaneous connects."""

    min_backoff: float = 1.0
    max_backoff: float = 10.0
    request_timeout: float = 30.0
    ping_interval: float = 60.0
    window: int = 8 * BATCH
    connecting: int = 64
    allow_private: bool = False


class Backoff:
    """Jittered exponential delays between two bounds."""

    def __init__(self, low: float, high: float, rng: Callable[[], float] = random.random) -> None:
        self._low, self._high, self._rng = low, high, rng
        self._next = low

    def reset(self) -> None:
        """Begin again at the lower bound."""
        self._next = self._low

    def delay(self) -> float:
        """Seconds to wait now: a bound that grows by half each time, and up to half of it more."""
        bound = self._next
        self._next = max(self._low, min(bound * 1.5, self._high / 1.5))
        return min(bound * (1 + 0.5 * self._rng()), self._high)


class Agent:
    """Subscribes on many servers; must be closed."""

    def __init__(self, owner: Subscriptions, config: AgentConfig | None = None) -> None:
        self._owner = owner
        self._config = config or AgentConfig()
        self._context = client_context("smp")
        self._connecting = asyncio.Semaphore(self._config.connecting)
        self._servers: dict[ServerAddress, _Server] = {}

    def start(self, server: ServerAddress) -> None:
        """Connect to a server, unless that is done or under way, and subscribe what its pages give."""
        worker = self._servers.get(server)
        if worker is not None and not worker.task.done():
            worker.asked = True  # it may be learning just now that nothing was wanted
            return
        worker = _Server(self._owner, self._config, self._context, self._connecting, server)
        self._servers[server] = worker
        worker.task.add_done_callback(partial(self._forget, worker))

    def _forget(self, worker: "_Server", _: "asyncio.Task[None]") -> None:
        if self._servers.get(worker.address) is worker:
            del self._servers[worker.address]

    def subscribe(self, server: ServerAddress, subscription: Subscription) -> None:
        """A subscription was added, and is already in the pages: subscribe it at once if the server is connected."""
        self.start(server)
        self._servers[server].add(subscription)

    def is_connected(self, server: ServerAddress) -> bool:
        """Whether there is a session with the server."""
        worker = self._servers.get(server)
        return worker is not None and worker.client is not None

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
        self,
        owner: Subscriptions,
        config: AgentConfig,
        context: ssl.SSLContext,
        connecting: asyncio.Semaphore,
        address: ServerAddress,
    ) -> None:
        self._owner = owner
        self._config = config
        self._context = context
        self._connecting = connecting
        self.address = address
        self._added: list[Subscription] = []
        self.asked = False
        self._wake = asyncio.Event()
        self.client: Client | None = None
        self.task = asyncio.create_task(self._run(), name="smp agent")

    def add(self, subscription: Subscription) -> None:
        """Subscribe in the current session; without one the pages will give it."""
        if self.client is not None:
            self._added.append(subscription)
            self._wake.set()

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
        try:
            await self._owner.connected(self.address)
            self.client = client
            await self._subscribe_until_closed(client)
        finally:
            self.client = None
            self._added.clear()
            await client.close()
            await self._owner.disconnected(self.address)
        return True

    async def _connect(self) -> Client | None:
        async def on_events(events: Sequence[Event]) -> None:
            await self._owner.events(self.address, events)

        host = self.address.hosts[0]
        try:
            async with self._connecting:
                return await Client.connect(
                    self.address,
                    on_events,
                    context=self._context,
                    allow_private=self._config.allow_private,
                    ping_interval=self._config.ping_interval,
                )
        except IdentityMismatchError as e:
            log.error("SMP server %s is not whom its address names, someone may be impersonating it: %s", host, e)
        except HostNotAllowedError as e:
            log.warning("SMP server %s: %s", host, e)
        except (OSError, HandshakeError) as e:  # TimeoutError is an OSError
            log.info("SMP server %s: cannot connect: %s", host, e or type(e).__name__)
        return None

    async def _subscribe_until_closed(self, client: Client) -> None:
        streaming = asyncio.create_task(self._stream(client))
        try:
            await asyncio.wait([streaming, client.closed], return_when=asyncio.FIRST_COMPLETED)
            if streaming.done():
                with contextlib.suppress(ConnectionClosedError):
                    streaming.result()
        finally:
            streaming.cancel()
            await asyncio.wait([streaming])

    async def _stream(self, client: Client) -> None:
        """Subscribe everything of the pages, then what is added; again after a while if something has to be."""
        backoff = Backoff(self._config.min_backoff, self._config.max_backoff)
        while not client.closed.done():
            self._added.clear()  # the pages hold them
            again = False
            async for page in self._owner.pages(self.address):
                for i in range(0, len(page), self._config.window):
                    again |= await self._subscribe(client, page[i : i + self._config.window])
            await self._subscribe_added(client, backoff, again=again)

    async def _subscribe_added(self, client: Client, backoff: Backoff, *, again: bool) -> None:
        """Subscribe what is added; returns when a backoff is over, once something has to be tried again."""
        loop = asyncio.get_running_loop()
        until = loop.time() + backoff.delay() if again else None
        while not client.closed.done():
            try:
                async with asyncio.timeout_at(until):
                    await self._wake.wait()
            except TimeoutError:
                return
            self._wake.clear()
            added, self._added = self._added, []
            if added and await self._subscribe(client, added) and until is None:
                until = loop.time() + backoff.delay()

    async def _subscribe(self, client: Client, subscriptions: Sequence[Subscription]) -> bool:
        """Send NSUBs and report their answers; True if some should be tried again."""
        results: list[Result] = []
        sent: list[tuple[Subscription, asyncio.Future[Message]]] = []
        try:
            for i in range(0, len(subscriptions), BATCH):
                batch = subscriptions[i : i + BATCH]
                sent += self._send(client, batch, results)
                await client.drain()
            if sent:
                await asyncio.wait([future for _, future in sent], timeout=self._config.request_timeout)
        except BaseException:
            for _, future in sent:
                _abandon(future)
            raise
        again = False
        for subscription, future in sent:
            result = _result(subscription, future)
            if result is None:
                again = True
            else:
                results.append(result)
        if results:
            await self._owner.results(self.address, results)
        return again

    def _send(
        self, client: Client, batch: Sequence[Subscription], failed: list[Result]
    ) -> list[tuple[Subscription, "asyncio.Future[Message]"]]:
        usable = list(batch)
        if client.session.server_key is None:  # SMP 6 knows signatures only
            usable = [s for s in batch if not isinstance(s.notifier_key, X25519PrivateKey)]
            failed += [Result(s, "the server is too old for this key") for s in batch if s not in usable]
        requests = [Request(smp.NSub(), s.notifier_id, s.notifier_key) for s in usable]
        return list(zip(usable, client.send(requests), strict=True))


def _abandon(future: "asyncio.Future[Message]") -> None:
    """Take no interest in an answer, also not in an error that came already."""
    if not future.cancel() and not future.cancelled():
        future.exception()


def _result(subscription: Subscription, future: "asyncio.Future[Message]") -> Result | None:
    """What the answer means; None if it is to be tried again."""
    if not future.done():
        future.cancel()
        return None
    if future.cancelled():
        return None
    match future.exception():
        case None:
            return _answered(subscription, future.result())
        case ServerError(error=error):
            return _refused(subscription, error)
        case UnexpectedAnswerError() as e:
            return Result(subscription, str(e))
        case ConnectionClosedError():
            return None
        case e:
            raise e


def _answered(subscription: Subscription, answer: Message) -> Result:
    if isinstance(answer, smp.Ok | smp.SOk):
        return Result(subscription)
    return Result(subscription, f"unexpected answer {type(answer).__name__}")


def _refused(subscription: Subscription, error: Err) -> Result | None:
    if error.code in _TEMPORARY:
        return None
    return Result(subscription, str(error), auth=error.code == "AUTH")
