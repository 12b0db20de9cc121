"""A relay of several ends in order, by a signal or drained: the others have at once what it had; nothing is lost."""

import asyncio
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis
from harness import Phone
from redis_servers import Server
from relay_nodes import Nodes, kept
from test_kill import Tally, _send
from test_nodes import all_delivered

from ntf_server.store.redis.names import Names, server_id
from ntf_server.testing import MockApns
from smp_bridge.client import Client
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

SERVERS, PHONES = 12, 4  # so that in one run of two thousand one node has all, as hashes are
AT_ONCE = 2.0  # seconds: a lease, and whatever waits for one to end, take longer


@pytest.fixture
def store(tmp_path: Path) -> AsyncIterator[Server]:
    with Server(tmp_path / "redis") as server:
        yield server


def holders(store: Server, servers: list[SmpServer]) -> list[str]:
    with redis.Redis.from_url(store.url) as client:
        found = [client.hget(Names("ntf").server(server_id(server.address)), "node") for server in servers]
    return [bytes(node or b"").decode() for node in found]


async def drained(nodes: Nodes, number: int) -> int:
    """By the command, which ends with the server."""
    node = nodes.nodes[number]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ntf_server", "drain", "--path", str(node.directory)), stdout=-1, stderr=-2
    )
    began = time.monotonic()
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    assert time.monotonic() - began < 15, f"{out.decode()}\n{nodes.log()}"  # nothing waits for a time to be over
    assert (process.returncode, out.decode().splitlines()[-1]) == (0, "Drained, and stopped."), out
    assert node.process is not None
    return await asyncio.wait_for(node.process.wait(), 5)


async def stopped(nodes: Nodes, number: int) -> int:
    return await nodes.nodes[number].stop(signal.SIGTERM)


@pytest.mark.parametrize("end", [stopped, drained])
async def test_the_others_have_all_at_once(
    nodes: Nodes, store: Server, mock_apns: MockApns, phone: Callable[[], Phone], end: Callable[[Nodes, int], int]
) -> None:
    """Messages flow all the time, and each of the SMP servers has a node again within a moment."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(SmpServer()) for _ in range(SERVERS)]
        phones = [phone() for _ in range(PHONES)]
        queues: dict[SmpServer, list[bytes]] = {}
        async with await Client.connect(nodes.nodes[0].address) as client:
            for device in phones:
                await device.register(client)
                await device.verify(client)
            for server in servers:
                recipient = await stack.enter_async_context(await Recipient.connect(server.address))
                made = [await recipient.queue() for _ in phones]
                for device, queue in zip(phones, made, strict=True):
                    await device.subscribe(client, server.address, queue)
                queues[server] = [queue.notifier_id for queue in made]
        async with asyncio.timeout(20):
            while set(holders(store, servers)) != {"node0", "node1"}:
                await asyncio.sleep(0.05)
        for server in servers:
            await server.until(lambda server=server: all(map(server.subscribed, queues[server])), 10)
        tally = Tally(mock_apns, phones)
        rng = random.Random(1)
        sending = [asyncio.create_task(_send(server, queues[server], rng)) for server in servers]
        await asyncio.sleep(0.5)
        ending = asyncio.create_task(end(nodes, 1))
        began = time.monotonic()
        async with asyncio.timeout(10):
            while set(holders(store, servers)) != {"node0"}:
                await asyncio.sleep(0.02)
        if end is stopped:
            assert time.monotonic() - began < AT_ONCE
        for server in servers:
            await server.until(lambda server=server: all(map(server.subscribed, queues[server])), AT_ONCE)
        assert await ending == 0, nodes.log()
        await asyncio.sleep(0.2)
        for task in sending:
            task.cancel()
        tally.add(kept(store))
        await all_delivered(tally)
        assert tally.duplicates == 0
        assert "Traceback" not in nodes.log()
