"""A device that is registered with the reference, and does not notice that a relay of ours took its place."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from harness import RelayProcess, environment
from postgres_server import WANTED, Postgres
from redis_servers import Server
from reference_world import TODAY, V6_5, V7_0, Queue, Registration, Service, fill, last_log, store_log

from ntf_client import Device
from ntf_client.device import Queue as DeviceQueue
from ntf_client.push import NotificationInfo, Notifications, VerificationCode
from ntf_client.state import DeviceState, Subscription
from ntf_server.config.identity_files import create_identity
from ntf_server.testing import MockApns
from smp_bridge import smp
from smp_bridge.client import Client, Request, ServerError
from smp_bridge.handshake import ServiceCredentials
from smp_bridge.identity import Credentials
from smp_bridge.ntf import DeviceToken, Provider, SubscriptionStatus, TokenStatus
from smp_bridge.testing import Recipient, SmpServer
from smp_bridge.testing.recipient import Queue as SmpQueue
from smp_bridge.tls import client_context


class Place:
    """A relay in an empty folder, an SMP server, Apple, and a device with two queues that the reference knows.

    The second was notified of, and that was pushed.
    """

    def __init__(self, directory: Path, apns: MockApns, smp: SmpServer, queues: list[SmpQueue]) -> None:
        self.apns, self.smp, self.queues = apns, smp, queues
        self.relay = RelayProcess(directory, environment(apns), log=directory.with_name("relay.log"))
        kept = [Queue(smp.address, q.notifier_id, q.notifier_key) for q in queues]
        kept[1].last = (TODAY, b"n" * 24, b"older metadata")
        self.registration = Registration(queues=kept, period=20)
        self.others = [Registration(status="REGISTERED"), Registration(queues=[Queue(smp.address, status="AUTH")])]

    @property
    def all(self) -> list[Registration]:
        return [self.registration, *self.others]

    @property
    def device(self) -> Device:
        """With what it was given by the reference."""
        r = self.registration
        token = DeviceToken(Provider.APNS_TEST, r.device_token.encode())
        subscriptions = tuple(
            Subscription(kept.subscription_id, kept.server, kept.notifier_id, queue.notifier_secret)
            for kept, queue in zip(r.queues, self.queues, strict=True)
        )
        return Device(DeviceState(self.relay.address, token, r.key, r.client, r.token_id, r.secret, subscriptions))

    async def adopt(self, folder: Path) -> None:
        """The identity of the reference, from its folder."""
        folder.mkdir()
        self.relay.key_hash = create_identity(folder, "ED25519", "localhost")
        (folder / "ntf-server.ini").write_text("[TRANSPORT]\nhost = localhost\nport = 443\n")
        done = await asyncio.to_thread(run, "init", "--adopt", folder, "--path", self.relay.directory)
        assert done.returncode == 0, done.stderr

    async def come_over(self, *arguments: Any, **environ: str) -> None:
        done = await asyncio.to_thread(run, "import", "--path", self.relay.directory, *arguments, **environ)
        assert done.returncode == 0, done.stderr
        self.relay.environment |= environ
        await self.relay.start()

    async def known_as(self, service: Service) -> None:
        """By the SMP server, which has the queues for it: as the reference made it."""
        credentials = Credentials((service.certificate,), service.key)
        proof = ServiceCredentials(tuple(credentials.chain_der), service.key, Ed25519PrivateKey.generate())
        context = client_context("smp", credentials)
        async with await Client.connect(self.smp.address, context=context, service=proof) as client:
            assert client.session.service is not None
            service.service_id = client.session.service.service_id
            for kept in self.registration.queues:
                [answer] = client.send([Request(smp.NSub(), kept.notifier_id, kept.key, as_service=True)])
                assert isinstance(await answer, smp.SOk)
                kept.associated = True


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with MockApns() as apns, SmpServer() as server, await Recipient.connect(server.address) as recipient:
        place = Place(tmp_path / "relay", apns, server, [await recipient.queue() for _ in range(2)])
        await place.adopt(tmp_path / "reference")
        try:
            yield place
        finally:
            await place.relay.stop()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


async def woken(place: Place) -> list[NotificationInfo]:
    """The next push to the device that tells of messages."""
    device = place.device
    while True:
        push = await place.apns.next(place.registration.device_token)
        content = device.open_push(push.body)
        if isinstance(content, Notifications):
            return content.infos


async def notices_nothing(place: Place) -> None:
    """All that an app does."""
    device = place.device
    async with device.connect() as client:
        checked = await device.check(client)
        assert checked.status is TokenStatus.ACTIVE
        async with asyncio.timeout(20):
            for subscription in device.subscriptions:
                while (await device.check_subscription(client, subscription)).status is not SubscriptionStatus.ACTIVE:
                    await asyncio.sleep(0.05)
        await place.queues[0].send("hello")
        first, second = await woken(place)
        assert (first.nonce, first.sealed, first.received_at) == (b"n" * 24, b"older metadata", TODAY)
        meta = device.open_notification(second)
        assert meta is not None and second.server == str(place.smp.address)
        queue = DeviceQueue(place.smp.address, place.queues[0].notifier_id, place.queues[0].notifier_key)
        assert (await device.subscribe(client, queue)).subscription_id == device.subscriptions[-1].subscription_id
        await device.register(client)  # the same keys: the same registration, and its code once more
        assert device.token_id == place.registration.token_id
        assert device.subscriptions
        code = place.device.open_push((await place.apns.next(place.registration.device_token)).body)
        assert code == VerificationCode(place.registration.code)
        await device.verify(client, place.registration.code)
        assert (await device.check(client)).status is TokenStatus.ACTIVE
        stranger = Device(DeviceState.new(place.relay.address, device.token))
        await stranger.register(client)
        assert stranger.token_id != device.token_id
        await device.delete(client)
        with pytest.raises(ServerError):
            await place.device.check(client)


async def from_a_store_log(place: Place, folder: Path, **environ: str) -> None:
    log, last = folder / "ntf-server-store.log", folder / "ntf-server-last-notifications.log"
    log.write_bytes(store_log(place.all))
    last.write_bytes(last_log(place.all))
    await place.come_over("--from-store-log", log, last, **environ)
    await notices_nothing(place)


async def test_from_a_store_log(place: Place, tmp_path: Path) -> None:
    await from_a_store_log(place, tmp_path)


@pytest.mark.long
async def test_from_a_store_log_into_a_redis(place: Place, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with Server(tmp_path / "server") as server:
        await from_a_store_log(place, tmp_path, NTF_SERVER__STORE__URL=server.url)
        await place.relay.stop()


class TestPostgres:
    pytestmark = WANTED

    async def test_from_6_5(self, place: Place, postgres: Postgres) -> None:
        with postgres.connect() as connection:
            fill(connection, "six", place.all, V6_5)
        await place.come_over("--from", postgres.url, "--schema", "six")
        await notices_nothing(place)

    async def test_from_7_0_as_the_same_service(self, place: Place, postgres: Postgres) -> None:
        """The SMP server counts the queues of that service: none is subscribed by itself."""
        service = Service()
        await place.known_as(service)
        before = place.smp.nsubs()
        with postgres.connect() as connection:
            fill(connection, "seven", place.all, V7_0, service)
        await place.come_over(
            "--from", postgres.url, "--schema", "seven", NTF_SERVER__SUBSCRIBER__USE_SERVICE_CREDENTIALS="true"
        )
        await notices_nothing(place)
        assert place.smp.nsubs() == before
        assert place.relay.log is not None
        log = place.relay.log.read_text()
        assert "connected to SMP server localhost as a service" in log
        assert "by another id" not in log
