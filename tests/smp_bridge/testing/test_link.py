"""Sessions without sockets, in virtual time: hours of them in a moment."""

import asyncio
import random
import time
from collections.abc import Sequence

import pytest
import virtual_time

from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.agent import Agent
from smp_bridge.client import Client, Event
from smp_bridge.failure import ConnectFailure
from smp_bridge.identity import Credentials
from smp_bridge.network import Network
from smp_bridge.places import ANYWHERE, Standing
from smp_bridge.queue_session import AgentConfig
from smp_bridge.service import Associations, Todo
from smp_bridge.subscriptions import NsubRequest, NsubResult
from smp_bridge.testing import Queue, Recipient, SmpServer
from smp_bridge.testing.link import Links
from smp_bridge.transport import ConnectionClosedError

SERVICE, _ = Credentials.generate("ED25519", "service")


class Owner:
    """It is its own handle, as it has one server."""

    associated = False

    def __init__(self, queues: Sequence[Queue]) -> None:
        self._queues = queues
        self._given = False
        self.active: set[int] = set()
        self.log: list[tuple[float, str]] = []
        self.notified: list[bytes] = []

    def note(self, what: str) -> None:
        self.log.append((round(asyncio.get_running_loop().time(), 6), what))

    async def standing(self, server: ServerAddress) -> Standing | None:
        return Standing((ANYWHERE,))

    def connect_wait(self, server: ServerAddress, destinations: Sequence[str], proven: bool, /) -> float:
        return 0.0

    async def standing_lost(self, server: ServerAddress) -> None:
        raise AssertionError

    async def given_up(self, server: ServerAddress) -> None:
        raise AssertionError

    async def service(self, server: ServerAddress) -> Credentials | None:
        return None

    async def connected(self, server: ServerAddress, service_id: bytes | None, prefix: str) -> "Owner":
        self.note("connected")
        self._given = False
        return self

    async def associations(self, session: "Owner") -> Associations:
        raise AssertionError

    async def service_subscribed(self, session: "Owner", said: smp.SOks | None) -> Todo:
        raise AssertionError

    async def audit_page(self, session: "Owner", limit: int) -> Sequence[int]:
        raise AssertionError

    async def page(self, session: "Owner", limit: int) -> Sequence[NsubRequest]:
        given, self._given = self._given, True
        return [] if given else [NsubRequest(i, q.notifier_id, q.notifier_key) for i, q in enumerate(self._queues)]

    async def load(self, session: "Owner", refs: Sequence[int]) -> Sequence[NsubRequest]:
        return [NsubRequest(i, self._queues[i].notifier_id, self._queues[i].notifier_key) for i in refs]

    async def results(self, session: "Owner", results: Sequence[NsubResult]) -> None:
        self.note(f"{len(results)} results")
        self.active.update(r.ref for r in results)

    async def events(self, session: "Owner", events: Sequence[Event]) -> None:
        await asyncio.sleep(1.0)  # a slow store
        self.notified += [e.entity_id for e in events]

    async def disconnected(self, session: "Owner") -> None:
        self.note("disconnected")
        self.active.clear()

    def connect_failed(self, server: ServerAddress, failure: ConnectFailure) -> None:
        self.note(f"failed: {failure}")

    def service_refused(self, server: ServerAddress) -> None:
        raise AssertionError("there is no service")


async def hours(seed: int) -> tuple[list[tuple[float, str]], int]:
    """Six hours, with an outage and a notification at its beginning; what happened when, and how often it connected."""
    server = SmpServer()
    links = Links(server, latency=0.05)
    async with await Recipient.connect(server.address, by=links.connect) as recipient:
        queues = [await recipient.queue() for _ in range(5)]
    owner = Owner(queues)
    config = AgentConfig(network=Network(allow_private=True), rng=random.Random(seed).random)
    agent = Agent(owner, config, by=links.connect)
    agent.start(server.address)
    await asyncio.sleep(3600)  # and 60 pings
    assert owner.active == set(range(5))
    for queue in queues:
        server.notify(queue.notifier_id)
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.06)
    links.down.add(server.address)
    server.drop_all()
    await asyncio.sleep(600)
    assert sorted(owner.notified) == sorted(q.notifier_id for q in queues)
    assert not owner.active
    links.down.clear()
    await asyncio.sleep(17400)
    assert owner.active == set(range(5))
    assert await agent.close() == 0
    await server.stop()
    return owner.log, server.accepted


def test_hours_of_a_session_pass_in_a_moment_and_the_same_seed_gives_the_same() -> None:
    start = time.monotonic()
    log, accepted = virtual_time.run(hours(1))
    assert time.monotonic() - start < 20
    kinds = [what for _, what in log]
    assert kinds[:3] == ["connected", "5 results", "disconnected"]
    assert kinds[-3:] == ["connected", "5 results", "disconnected"]
    failures = kinds[3:-3]
    assert set(failures) == {"failed: tcp"}
    assert 60 < len(failures) < 120  # ten minutes, 10 s apart at most
    assert accepted == 3  # the recipient, and two sessions
    assert log[2][0] - 3600 > 4  # five blocks, a second each, were taken first
    assert virtual_time.run(hours(1)) == (log, accepted)
    assert virtual_time.run(hours(2))[0] != log


async def test_blocks_come_in_order_and_a_slow_reader_holds_the_writer_back() -> None:
    server = SmpServer()
    links = Links(server, latency=0.001)
    connection, _ = await links.connect(server.address)
    other = next(iter(server._open)).connection if server._open else None
    async with asyncio.timeout(5):
        while other is None:
            await asyncio.sleep(0)
            other = next(iter(server._open)).connection if server._open else None
    sent = 0

    async def send() -> None:
        nonlocal sent
        for i in range(100):
            other.send(i.to_bytes(2, "big"))
            sent += 1
            await other.drain()

    sending = asyncio.create_task(send())
    await asyncio.sleep(0.2)
    assert 16 < sent < 60
    assert [await connection.receive() for _ in range(100)] == [i.to_bytes(2, "big") for i in range(100)]
    await sending
    await connection.close()
    await server.stop()


async def test_the_end_of_either_side_is_that_of_the_other() -> None:
    server = SmpServer()
    links = Links(server)
    async with await Client.connect(server.address, by=links.connect) as client:
        assert await client.request(smp.Ping()) == smp.Pong()
        server.drop_all()
        await asyncio.wait_for(client.closed, 5)
        with pytest.raises(ConnectionClosedError):
            client.send([])
            await client.request(smp.Ping())
    client = await Client.connect(server.address, by=links.connect)
    await client.close()
    await server.until(lambda: server.connections == 0)
    await server.stop()


async def test_a_server_that_is_down_or_unknown_refuses() -> None:
    server = SmpServer()
    links = Links(server)
    links.down.add(server.address)
    with pytest.raises(ConnectionRefusedError):
        await links.connect(server.address)
    with pytest.raises(ConnectionRefusedError):
        await Links().connect(server.address)
