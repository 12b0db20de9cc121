"""A subscriber with a real store that can be made to fail, as one node of the relay, for tests of the subscriber."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ntf_server.observe.metrics import KindCounter, Metrics
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.records import Added, Due, NewSubscription, NewToken, StoreError, Subscription
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge import crypto, ntf, smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.handshake import ServiceCredentials
from smp_bridge.identity import Credentials, load_certificates
from smp_bridge.network import Network
from smp_bridge.ntf import DeviceToken, Provider
from smp_bridge.queue_session import AgentConfig
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue
from smp_bridge.tls import client_context
from smp_bridge.transmission import Message

NOW = 1_700_000_000
FAST = AgentConfig(
    min_backoff=0.01, max_backoff=0.05, request_timeout=0.3, ended_backoff=0.5, network=Network(allow_private=True)
)


class FaultyStore:
    """A store that counts calls, and whose named methods fail while they are in `failing`."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.failing: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def arrival(self, count: int) -> int:
        return self.store.arrival(count)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        async def call(*args: Any) -> Any:
            self.calls[name] += 1
            if self.failing[name] > 0:
                self.failing[name] -= 1
                raise StoreError("disk full")
            return await method(*args)

        return call


class Node:
    """A subscriber, its store, and one active token."""

    def __init__(self, store: FaultyStore, token: int, config: AgentConfig, **options: Any) -> None:
        self.store = store
        self.token = token
        self.metrics = Metrics(["localhost"])
        self.due: asyncio.Queue[Due] = asyncio.Queue()
        self.subscriber = Subscriber(
            store,
            self._on_due,
            config,
            **{"metrics": self.metrics, "recount_delay": 0.1, "clock": lambda: NOW, **options},
        )

    def _on_due(self, due: Iterable[Due]) -> None:
        for item in due:
            self.due.put_nowait(item)

    async def add(self, server: ServerAddress, notifier_id: bytes, key: crypto.AuthPrivateKey) -> bytes:
        """What SNEW does; the subscription id."""
        der = crypto.encode_private(key)
        new = NewSubscription(os.urandom(24), server, notifier_id, der)
        added = await self.store.store.add_subscription(self.token, new, NOW)
        assert isinstance(added, Added)
        self.subscriber.subscribe(server, added.ref)
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
        await self.store.store.delete_subscription((await self.find(subscription_id)).ref)

    async def audit(self, server: SmpServer, *subscription_ids: bytes) -> None:
        self.subscriber.audit(server.address, [(await self.find(i)).ref for i in subscription_ids])

    async def status(self, subscription_id: bytes) -> ntf.Sub:
        return self.subscriber.status(await self.find(subscription_id))

    async def until(self, subscription_id: bytes, *expected: Any) -> None:
        async with asyncio.timeout(10):
            while await self.status(subscription_id) != ntf.Sub(*expected):
                await asyncio.sleep(0.005)

    async def all_active(self, subscription_ids: Iterable[bytes]) -> None:
        for subscription_id in subscription_ids:
            await self.until(subscription_id, ntf.SubscriptionStatus.ACTIVE)

    async def notifications(self) -> list[Any]:
        """What a push would hold."""
        pushes = await self.store.store.load_pushes([self.token], NOW)
        return [n.notification for push in pushes for n in push.notifications]

    def counts(self, *names: KindCounter) -> dict[str, int]:
        """The kinds that were counted at all."""
        return {kind: n for name in names for kind in name.kinds if (n := self.metrics.value(name, kind))}

    def gauge(self, name: str) -> float:
        """An own server's, 0 if it is not rendered."""
        lines = self.metrics.render().splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(f'{name}{{server="localhost"}} ')), 0)


@contextlib.asynccontextmanager
async def open_node(
    file: Path, failing: dict[str, int] | None = None, *, agent: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Node]:
    """A node on this file; `agent` are settings of the SMP agent, `options` those of the subscriber."""
    store = await SqliteStore.open(file, master_key=MasterKey(bytes(32)))
    try:
        device = DeviceToken(Provider.APNS_NULL, b"token")
        new = NewToken(os.urandom(24), device, b"verify key", b"dh", b"dh", bytes(32), bytes(32))
        token = await store.register_token(new, NOW)
        assert token is not None
        await store.verify_token(token.ref, token.code)
        faulty = FaultyStore(store)
        faulty.failing.update(failing or {})
        node = Node(faulty, token.ref, replace(FAST, **(agent or {})), **options)
        try:
            await node.subscriber.start()
            yield node
        finally:
            await node.subscriber.close()
    finally:
        await store.close()


async def service_credentials(store: SqliteStore, server: ServerAddress) -> Credentials:
    """The certificate that a store keeps for a server, as another relay with a copy of the database has it."""
    kept = await store.service_certificate(server)
    assert kept is not None
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
        while not (s := node.subscriber._sessions.get(server.address)) or not s.complete or s.missing:
            await asyncio.sleep(0.005)


async def notified(node: Node, server: SmpServer, queue: Queue) -> None:
    """A message leads to exactly one notification, in the store."""
    while not node.due.empty():
        node.due.get_nowait()
    before = node.store.calls["notify"]
    async with await Client.connect(server.address) as sender:
        await queue.send("hello", client=sender)
    await asyncio.wait_for(node.due.get(), 10)
    assert queue.notifier_id in {n.notifier_id for n in await node.notifications()}
    assert node.store.calls["notify"] == before + 1


async def take_over(rival: Client) -> Message:
    """The service's subscriptions; the answer."""
    service = rival.session.service
    assert service is not None
    assert isinstance(service.key, Ed25519PrivateKey)
    return await rival.request(smp.NSubs(), service.service_id, service.key)
