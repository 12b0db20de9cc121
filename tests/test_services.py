"""A whole relay as a service on SMP servers, over restarts; its audit; servers that its configuration denies."""

import asyncio
import shutil
import socket
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from node import connect_service, service_credentials, take_over
from world import ApnsSide, Device, World, open_world, until

from ntf_server.config import files as config
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge import ntf, smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Event, ServerError
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.testing import Queue, Recipient, SmpServer

S = SubscriptionStatus
DAY = 24 * 3600


class Relay:
    """The world of a relay, and its devices' subscriptions."""

    def __init__(self, world: World) -> None:
        self.world, self.smp = world, world.smp
        self.ids: dict[Queue, bytes] = {}
        self.sent = 0

    async def device(self, queues: int) -> Device:
        """One with queues that are active."""
        device = await self.world.device(self.world.sides[0], 0)
        for _ in range(queues):
            await self.subscribe(device)
        for queue in device.queues:
            await self.becomes(device, queue, S.ACTIVE)
        return device

    async def subscribe(self, device: Device, server: ServerAddress | None = None, queue: Queue | None = None) -> Queue:
        queue = queue or await self.world.recipient.queue()
        new = ntf.SNew(device.token_id, server or self.smp.address, queue.notifier_id, queue.notifier_key)
        answer = await self.world.client.request(new, key=device.key)
        assert isinstance(answer, ntf.IdSub)
        self.ids[queue] = answer.subscription_id
        device.queues.append(queue)
        return queue

    async def status(self, device: Device, queue: Queue) -> SubscriptionStatus:
        """What SCHK says."""
        answer = await self.world.client.request(ntf.SChk(), self.ids[queue], device.key)
        assert isinstance(answer, ntf.Sub)
        return answer.status

    async def becomes(self, device: Device, queue: Queue, expected: SubscriptionStatus) -> None:
        async with asyncio.timeout(20):
            while await self.status(device, queue) is not expected:
                await asyncio.sleep(0.02)

    async def all_active(self, device: Device) -> None:
        for queue in device.queues:
            await self.becomes(device, queue, S.ACTIVE)

    async def stop(self) -> None:
        await self.world.stop()
        await self.smp.until(lambda: self.smp.connections == 1)  # the recipient's

    async def restart(self, **settings: object) -> None:
        await self.stop()
        await self.world.start(**settings)

    async def send(self, queue: Queue) -> bytes:
        self.sent += 1
        return await self.world.send(queue)

    async def wakes(self, device: Device, *queues: Queue) -> None:
        """A message to each queue is pushed, and no message of this relay was pushed twice."""
        for queue in queues:
            await self.world.delivered(device, queue, await self.send(queue))
        assert len(device.opened("message")) == self.sent

    def generation(self) -> int:
        """It grows whenever associations are given up."""
        connection = sqlite3.connect(self.world.directory / "ntf-server.db")
        try:
            return int(connection.execute("SELECT generation FROM servers").fetchone()[0])
        finally:
            connection.close()


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    """A relay that is a service on SMP servers."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    async with open_world(tmp_path / "relay", key, [ApnsSide], subscriber__use_service_credentials="true") as world:
        yield Relay(world)


async def test_a_restart_takes_nsubs_and_no_nsub(relay: Relay) -> None:
    device = await relay.device(8)
    assert all(relay.smp.associated(q.notifier_id) for q in device.queues)
    await relay.wakes(device, *device.queues[:2])
    await relay.stop()
    nsubs, commands = relay.smp.nsubs(), relay.smp.nsubs_commands
    waiting = await relay.send(device.queues[2])
    await relay.world.start()
    await relay.world.delivered(device, device.queues[2], waiting)
    await relay.all_active(device)
    await relay.wakes(device, *device.queues)
    assert relay.smp.nsubs() == nsubs
    assert relay.smp.nsubs_commands - commands == 1


async def test_what_was_deleted_causes_no_fallback(relay: Relay) -> None:
    """SDEL and TDEL: the server goes on counting those queues, until their recipients delete them."""
    device, other = await relay.device(4), await relay.device(3)
    generation = relay.generation()
    gone, *queues = device.queues
    assert await relay.world.client.request(ntf.SDel(), relay.ids[gone], device.key) == ntf.Ok()
    assert await relay.world.client.request(ntf.TDel(), other.token_id, other.key) == ntf.Ok()
    device.queues = queues
    nsubs = relay.smp.nsubs()
    await other.queues[0].delete()  # while connected
    await relay.restart()
    await relay.all_active(device)
    await relay.stop()
    await other.queues[1].delete()  # while away
    await relay.world.start()
    await relay.all_active(device)
    await relay.restart()
    await relay.all_active(device)
    await relay.wakes(device, *queues)
    # Was it one of ours that was deleted meanwhile? An audit tells, and the next one if that had no time to end.
    assert relay.smp.nsubs() - nsubs in {3, 6}
    assert relay.generation() == generation


async def test_a_queue_deleted_while_the_relay_was_down(relay: Relay) -> None:
    device = await relay.device(4)
    await relay.stop()
    gone = device.queues.pop(0)
    await gone.delete()
    await relay.world.start()
    await relay.becomes(device, gone, S.AUTH)
    await relay.all_active(device)
    await relay.wakes(device, *device.queues)
    nsubs = relay.smp.nsubs()
    await relay.restart()
    await relay.all_active(device)
    assert await relay.status(device, gone) is S.AUTH
    assert relay.smp.nsubs() == nsubs


@pytest.mark.parametrize("fault", ["forget_services", "change_service_ids", "dissociate"])
async def test_a_server_that_lost_the_service(relay: Relay, fault: str) -> None:
    device = await relay.device(4)
    await relay.stop()
    getattr(relay.smp, fault)()
    nsubs = relay.smp.nsubs()
    await relay.world.start()
    await relay.all_active(device)
    await relay.wakes(device, *device.queues)
    assert relay.smp.nsubs() == nsubs + 4
    assert all(relay.smp.associated(q.notifier_id) for q in device.queues)


async def test_switched_off_and_on(relay: Relay) -> None:
    device = await relay.device(4)
    for number, services in enumerate(("false", "true", "true", "false", "true")):
        await relay.stop()
        queue = device.queues[number % 4]
        waiting = await relay.send(queue)
        await relay.world.start(subscriber__use_service_credentials=services)
        await relay.world.delivered(device, queue, waiting)
        await relay.all_active(device)
        assert {relay.smp.associated(q.notifier_id) for q in device.queues} == {services == "true"}
        await relay.wakes(device, *device.queues)


async def test_taken_over_by_a_relay_with_a_copy_of_the_database(relay: Relay, tmp_path: Path) -> None:
    device = await relay.device(3)
    await relay.stop()
    copy = shutil.copytree(relay.world.directory, tmp_path / "copy")
    nsubs = relay.smp.nsubs()
    await relay.world.start()
    await relay.all_active(device)
    events: asyncio.Queue[Sequence[Event]] = asyncio.Queue()
    store = await SqliteStore.open(copy / "ntf-server.db", master_key=config.load(copy, {}).master_key)
    try:
        credentials = await service_credentials(store, relay.smp.address)
    finally:
        await store.close()
    async with await connect_service(relay.smp.address, credentials, events.put) as rival:
        assert await take_over(rival) == 3
        for queue in device.queues:
            await relay.becomes(device, queue, S.INACTIVE)
        await relay.send(device.queues[0])
        taken = await asyncio.wait_for(events.get(), 5)
        assert [type(e.message) for e in taken] == [smp.NMsg]
    missed = await relay.send(device.queues[1])
    await relay.restart()
    await relay.all_active(device)
    await relay.world.delivered(device, device.queues[1], missed)
    relay.sent -= 1  # the rival's
    await relay.wakes(device, *device.queues)
    assert relay.smp.nsubs() == nsubs


async def test_denied_after_the_subscription(relay: Relay) -> None:
    device = await relay.device(2)
    async with SmpServer() as permitted, await Recipient.connect(permitted.address) as recipient:
        address = ServerAddress("smp", ("127.0.0.1",), permitted.address.port, permitted.address.key_hash)
        other = await relay.subscribe(device, address, await recipient.queue())
        await relay.all_active(device)
        await relay.stop()
        accepted = relay.smp.accepted
        await relay.world.start(subscriber__deny_servers="localhost")
        with pytest.raises(ServerError, match="AUTH"):
            await relay.subscribe(device)
        await relay.becomes(device, other, S.ACTIVE)
        assert {await relay.status(device, q) for q in device.queues[:2]} == {S.INACTIVE}
        assert relay.smp.accepted == accepted
        await relay.restart(subscriber__deny_servers="")
        await relay.all_active(device)


async def metrics(port: int) -> list[str]:
    """The lines of GET /metrics."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    text = (await asyncio.wait_for(reader.read(), 10)).decode()
    writer.close()
    await writer.wait_closed()
    return text.splitlines()


@pytest.mark.parametrize("services", ["true", "false"])
async def test_the_audit_finds_what_the_server_lost(relay: Relay, services: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    device = await relay.device(3)
    relay.world.clock.ahead += 4 * DAY  # all are silent
    await relay.restart(
        subscriber__use_service_credentials=services,
        subscriber__audit_period="0.0005",
        subscriber__own_server_domains="localhost",
        metrics__port=port,
    )
    await relay.all_active(device)
    lost = device.queues.pop()
    del relay.smp._queues._notifiers[lost.notifier_id]
    await relay.becomes(device, lost, S.AUTH)
    lines = await metrics(port)
    for line in (
        'ntf_audit_drift_total{kind="refused"} 1.0',
        'ntf_audit_drift_total{kind="service_count"} 0.0',
        'ntf_subscriptions_refused_total{kind="auth"} 1.0',
        'ntf_subscriptions_active{server="localhost"} 2.0',
        "ntf_subscriptions_active_other 0.0",
    ):
        assert line in lines
    await relay.all_active(device)
    await relay.wakes(device, *device.queues)
    await until(lambda: relay.smp.connections == 2)
