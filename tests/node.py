"""A subscriber with a real store that can be made to fail, as one node of the relay, for tests of the subscriber."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scrape import sample

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter
from ntf_server.push.dispatcher import Dispatcher, DispatcherConfig
from ntf_server.push.schedule import ScheduleConfig
from ntf_server.push.verdict import Delivered, OnVerdict
from ntf_server.smp.certificates import new_service_certificate
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.clock import Clock, since_boot
from ntf_server.store.contract import Store, StoreFullError
from ntf_server.store.open import open_store
from ntf_server.store.records import (
    Added,
    Change,
    ChangeKind,
    Claim,
    Entry,
    NewSubscription,
    NewToken,
    Ref,
    Subscription,
    ToAudit,
)
from ntf_server.store.sealing import MasterKey
from smp_bridge import crypto, ntf, smp
from smp_bridge.address import ServerAddress
from smp_bridge.backoff import PatienceConfig
from smp_bridge.client import Client
from smp_bridge.handshake import ServiceCredentials
from smp_bridge.identity import Credentials, load_certificates
from smp_bridge.network import Network
from smp_bridge.ntf import DeviceToken, Provider
from smp_bridge.queue_session import AgentConfig
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue
from smp_bridge.tls import client_context

NOW = 1_700_000_000  # when the tests begin
_BEGAN = since_boot()
FAST = AgentConfig(
    min_backoff=0.01,
    max_backoff=0.05,
    patience=PatienceConfig(0.01, 0.05, high_new=0.05, low_identity=0.01, high_identity=0.05, steady=0.0),
    request_timeout=0.3,
    service_timeout=0.3,
    ended_backoff=0.5,
    network=Network(allow_private=True),
)


def _now() -> float:
    return NOW + since_boot() - _BEGAN


class FaultyStore:
    """A store that counts calls, and whose named methods fail while they are in `failing`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.failing: Counter[str] = Counter()
        self.error: Exception = StoreFullError("disk full")
        self.calls: Counter[str] = Counter()
        self.watch = store.watch
        self.arrive = store.arrive
        self.lease = store.lease
        self.handled: Counter[ChangeKind] = Counter()

    async def changes(self) -> AsyncIterator[Change]:
        async for change in self.store.changes():
            yield change
            self.handled[change.kind] += 1

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        async def call(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            if self.failing[name] > 0:
                self.failing[name] -= 1
                raise self.error
            return await method(*args, **options)

        return call


class Pushed:
    """A provider that takes all pushes; what they held, newest of each queue."""

    at_once = 100

    def __init__(self) -> None:
        self.claims: asyncio.Queue[Claim] = asyncio.Queue()
        self.newest: dict[bytes, Entry] = {}

    def send(self, claims: Sequence[Claim], on_verdict: OnVerdict) -> None:
        for claim in claims:
            self.claims.put_nowait(claim)
            self.newest.update((e.notifier_id, e) for e in claim.entries)
            on_verdict(claim, Delivered(claim.entries))


class Node:
    """A subscriber, its store, a dispatcher, and one active token."""

    def __init__(self, store: FaultyStore, token: Ref, config: AgentConfig, **options: Any) -> None:
        self.store = store
        self.token = token
        self.metrics = Metrics(["localhost"])
        self.pushed = Pushed()
        self.tasks: set[asyncio.Task[None]] = set()
        providers = {Provider.APNS_NULL: self.pushed}
        quick = DispatcherConfig(ScheduleConfig(min_backoff=0.01), store_backoff=0.01)
        self.dispatcher = Dispatcher(store, providers, quick)
        self.subscriber = Subscriber(
            store,
            self.dispatcher,
            self._spawn,
            config,
            **{"metrics": self.metrics, "recount_delay": 0.1, "clock": lambda: NOW, **options},
        )

    def _spawn(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coro, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def start(self) -> None:
        for name, run in (*self.dispatcher.parts(), *self.subscriber.parts()):
            self._spawn(run(), name)  # type: ignore[arg-type]
        await self.subscriber.start()

    async def close(self) -> None:
        await self.subscriber.close(1.0)
        await self.dispatcher.close(1.0)
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks))

    async def add(self, server: ServerAddress, notifier_id: bytes, key: crypto.AuthPrivateKey) -> bytes:
        """What SNEW does; the subscription id."""
        der = crypto.encode_private(key)
        added = await self.store.store.subscribe(self.token, NewSubscription(os.urandom(24), server, notifier_id, der))
        assert isinstance(added, Added)
        return added.subscription_id

    async def add_queue(self, server: SmpServer, queue: Queue) -> bytes:
        return await self.add(server.address, queue.notifier_id, queue.notifier_key)

    async def add_active(self, server: SmpServer, *queues: Queue) -> list[bytes]:
        """Add them all and wait until they are active. Each gets one NSUB: none is added while pages are read."""
        ids = [await self.add_queue(server, queues[0])]
        await self.all_active(ids)
        await settled(self, server)
        ids += [await self.add_queue(server, q) for q in queues[1:]]
        await self.all_active(ids)
        return ids

    async def find(self, subscription_id: bytes) -> Subscription:
        found = await self.store.store.find_subscription(subscription_id)
        assert found is not None
        return found[1]

    async def delete(self, subscription_id: bytes) -> None:
        """What SDEL does."""
        await self.store.store.unsubscribe((await self.find(subscription_id)).ref)

    async def audit(self, server: SmpServer, *subscription_ids: bytes) -> None:
        """Returns when the subscriber has heard of it."""
        found = [ToAudit((await self.find(i)).ref, server.address, silent=True) for i in subscription_ids]
        before = self.store.handled[ChangeKind.AUDIT]
        await self.store.store.request_audit(found)
        async with asyncio.timeout(10):
            while self.store.handled[ChangeKind.AUDIT] == before:
                await asyncio.sleep(0)

    async def status(self, subscription_id: bytes) -> ntf.Sub:
        return self.subscriber.status(await self.find(subscription_id))

    async def until(self, subscription_id: bytes, *expected: Any) -> None:
        async with asyncio.timeout(10):
            while await self.status(subscription_id) != ntf.Sub(*expected):
                await asyncio.sleep(0.005)

    async def all_active(self, subscription_ids: Iterable[bytes]) -> None:
        for subscription_id in subscription_ids:
            await self.until(subscription_id, ntf.SubscriptionStatus.ACTIVE)

    def counts(self, *names: KindCounter) -> dict[str, int]:
        """The kinds that were counted at all."""
        return {kind: n for name in names for kind in name.kinds if (n := self.metrics.value(name, kind))}

    def gauge(self, name: str) -> float:
        """An own server's, 0 if it is not rendered."""
        try:
            return sample(self.metrics, name, server="localhost")
        except KeyError:
            return 0


@contextlib.asynccontextmanager
async def open_node(
    file: Path, failing: dict[str, int] | None = None, *, agent: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Node]:
    """A node on this file; `agent` are settings of the SMP agent, `options` those of the subscriber."""
    store = await open_store(
        f"sqlite:///{file.name}",
        directory=file.parent,
        master_key=MasterKey(bytes(32)),
        clock=Clock(_now),
    )
    try:
        device = DeviceToken(Provider.APNS_NULL, b"token")
        code = bytes(32)
        token = await store.register(NewToken(os.urandom(24), device, b"verify key", b"dh", b"dh", bytes(32), code))
        assert token is not None
        await store.verify(token.ref, code)
        faulty = FaultyStore(store)
        faulty.failing.update(failing or {})
        node = Node(faulty, token.ref, replace(FAST, **(agent or {})), **options)
        try:
            await node.start()
            yield node
        finally:
            await node.close()
    finally:
        await store.close()


async def service_credentials(store: Store, server: ServerAddress) -> Credentials:
    """The certificate that a store keeps for a server, as another relay with a copy of the database has it."""
    kept = await store.service_certificate(server, lambda: new_service_certificate(NOW))
    key = crypto.parse_private(kept.key)
    assert isinstance(key, crypto.SignPrivateKey)
    return Credentials(tuple(load_certificates(kept.chain)), key)


async def connect_service(server: ServerAddress, credentials: Credentials, *handler: Any) -> Client:
    """A session of the service that has these."""
    proof = ServiceCredentials(tuple(credentials.chain_der), credentials.key, Ed25519PrivateKey.generate())
    context = client_context("smp", credentials)
    return await Client.connect(server, *handler, context=context, service=proof)


async def settled(node: Node, server: SmpServer) -> None:
    """Until all that the current session began with is over: only then the audit takes effect."""
    async with asyncio.timeout(10):
        while not (s := node.subscriber._sessions.get(server.address)) or not s.complete or s.missing or s.auditing:
            await asyncio.sleep(0.005)


async def notified(node: Node, server: SmpServer, queue: Queue) -> None:
    """A message leads to exactly one notification, which is pushed."""
    while not node.pushed.claims.empty():
        node.pushed.claims.get_nowait()
    before = node.store.calls["notify"]
    async with await Client.connect(server.address) as sender:
        await queue.send("hello", client=sender)
    claim = await asyncio.wait_for(node.pushed.claims.get(), 10)
    assert queue.notifier_id in {e.notifier_id for e in claim.entries if not e.sent}
    assert node.store.calls["notify"] == before + 1


async def take_over(rival: Client) -> int:
    """The service's subscriptions: how many the answer counts."""
    service = rival.session.service
    assert service is not None
    assert isinstance(service.key, Ed25519PrivateKey)
    answer = await rival.request(smp.NSubs(), service.service_id, service.key)
    assert isinstance(answer, smp.SOks)
    return answer.count
