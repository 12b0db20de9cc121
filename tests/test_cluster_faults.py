"""Relays on a cluster of which one primary is away: all that the others have goes on."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import Phone
from redis_servers import Cluster
from redis_servers import Node as Primary
from relay_nodes import Nodes, kept, running
from test_kill import Tally, _send, _set_up
from test_nodes import Queues, all_delivered, last_ones_arrive

from ntf_server.store.redis.names import Names, server_id
from ntf_server.store.redis.node import LEASE
from ntf_server.testing import MockApns
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient

NAMES = Names("ntf")
PHONES = 12
SOON = 3.0  # seconds between two pushes of a device for which messages come all the time: less than the store's limit


@dataclass
class Work:
    """`dies`: a primary that has some devices' shards; neither the SMP server's slot, nor what is everybody's."""

    cluster: Cluster
    nodes: Nodes
    smp_server: SmpServer
    phones: list[Phone]
    queues: Queues
    tally: Tally
    dies: Primary

    @property
    def others(self) -> list[Phone]:
        """Devices whose shards other primaries have."""
        return [p for p in self.phones if self.cluster.owner_of(NAMES.shard(p.token_id)) is not self.dies]

    def longest(self, phones: Collection[Phone], since: int) -> float:
        """Seconds that one of these devices went without a push, of those since so many."""
        apns, longest = self.tally._apns, 0.0
        for phone in phones:
            times = [push.received_at for push in apns.pushes[since:] if push.token == phone.token]
            assert len(times) > 2, (phone.token, len(times), self.nodes.log())
            longest = max(longest, *(b - a for a, b in itertools.pairwise(times)))
        return longest

    async def ends_well(self, duplicates: int) -> None:
        """What was received is delivered, and what comes now is."""
        await last_ones_arrive(self.nodes, self.cluster.nodes, self.queues)
        self.tally.add(kept(*self.cluster.nodes))
        await all_delivered(self.tally)
        assert self.tally.duplicates <= duplicates, self.tally
        for node in self.nodes.nodes:
            assert await node.stop() == 0, self.nodes.log()
        assert "Traceback" not in self.nodes.log(), self.nodes.log()


def primaries(cluster: Cluster, smp_server: SmpServer) -> tuple[Primary, Primary, Primary]:
    """Who has what is everybody's, who has the SMP server's slot, and another one."""
    everybodys, servers = (cluster.owner_of(key) for key in (NAMES.store, NAMES.server(server_id(smp_server.address))))
    return everybodys, servers, next(p for p in cluster.primaries if p not in (everybodys, servers))


def bucket(smp_server: SmpServer, notifier_id: bytes) -> bytes:
    """Of a queue."""
    return NAMES.bucket(server_id(smp_server.address), NAMES.bucket_number(notifier_id))


@dataclass
class Picky:
    """A recipient whose queues are in buckets of those who live: a session with their server may begin."""

    recipient: Recipient
    takes: Callable[[bytes], bool]

    async def queue(self) -> Queue:
        """A new one."""
        while not self.takes((queue := await self.recipient.queue()).notifier_id):
            pass
        return queue


@asynccontextmanager
async def at_work(
    cluster: Cluster,
    folder: Path,
    apns: MockApns,
    phone: Callable[[], Phone],
    *,
    everybodys: bool = False,
    **settings: str,
) -> AsyncIterator[Work]:
    """`everybodys`: who dies has what is everybody's."""
    apns.latency = 0.02
    phones = [phone() for _ in range(PHONES)]
    async with AsyncExitStack() as stack:
        while True:
            smp_server = await stack.enter_async_context(SmpServer())
            first, servers, another = primaries(cluster, smp_server)
            if first is not servers:
                break
        nodes = await stack.enter_async_context(running(folder, cluster.url, apns, **settings))
        recipient = await stack.enter_async_context(await Recipient.connect(smp_server.address))
        dies = first if everybodys else another
        picky: Any = Picky(recipient, lambda i: cluster.owner_of(bucket(smp_server, i)) is not dies)
        queues = await _set_up(nodes.nodes[0], smp_server, picky, phones)
        while len({cluster.owner_of(NAMES.shard(p.token_id)) is dies for p in phones}) < 2:
            phones.append(phone())
            queues |= await _set_up(nodes.nodes[0], smp_server, picky, phones[-1:])
        work = Work(cluster, nodes, smp_server, phones, queues, Tally(apns, phones), dies)
        yield work


@asynccontextmanager
async def messages(work: Work) -> AsyncIterator[int]:
    """Flow meanwhile; how many pushes there were before."""
    sending = asyncio.create_task(_send(work.smp_server, list(work.queues), random.Random(1)))
    try:
        await asyncio.sleep(1.0)
        work.tally.add(kept(*work.cluster.nodes))
        yield len(work.tally._apns.pushes)
    finally:
        sending.cancel()


def go_on(work: Work, since: int) -> None:
    longest = work.longest(work.others, since)
    assert longest < SOON, (longest, work.nodes.log())


@pytest.mark.long
@pytest.mark.parametrize("everybodys", [False, True], ids=["of some shards", "of what is everybody's too"])
async def test_pushes_of_other_shards_go_on_while_a_primary_is_dead(
    *, everybodys: bool, tmp_path: Path, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """Nobody takes its place for longer than all leases. When it is back, what is owed goes out."""
    with Cluster(tmp_path / "redis", replicas=0, options=Cluster.PARTIAL) as cluster:
        async with at_work(cluster, tmp_path, mock_apns, phone, everybodys=everybodys) as work:
            async with messages(work) as before:
                await asyncio.to_thread(work.dies.kill)
                await asyncio.sleep(2 * LEASE)
                go_on(work, before)
                await asyncio.to_thread(work.dies.start)
                await asyncio.sleep(1.0)
            await work.ends_well(duplicates=PHONES)


@pytest.mark.long
async def test_pushes_of_other_shards_go_on_until_a_replica_is_elected(
    tmp_path: Path, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    with Cluster(tmp_path / "redis", options=Cluster.PARTIAL) as cluster:
        async with at_work(cluster, tmp_path, mock_apns, phone, wait_replicas="1") as work:
            async with messages(work) as before:
                await asyncio.to_thread(work.dies.kill)
                await asyncio.sleep(LEASE)
                go_on(work, before)
                await asyncio.to_thread(work.dies.start)  # a replica is waited for
                await asyncio.sleep(1.0)
            await work.ends_well(duplicates=PHONES)


@pytest.mark.long
async def test_a_relay_starts_while_a_primary_is_dead(
    tmp_path: Path, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """It serves the other shards; the rest goes out when that one is back."""
    with Cluster(tmp_path / "redis", replicas=0, options=Cluster.PARTIAL) as cluster:
        async with at_work(cluster, tmp_path, mock_apns, phone) as work:
            for node in work.nodes.nodes:
                assert await node.stop() == 0, work.nodes.log()
            await asyncio.to_thread(work.dies.kill)
            for node in work.nodes.nodes:
                await node.start()
            await work.smp_server.until(lambda: all(map(work.smp_server.subscribed, work.queues)), 30)
            await asyncio.sleep(LEASE)  # each gets its share
            async with messages(work) as before:
                await asyncio.sleep(LEASE)
                go_on(work, before)
                await asyncio.to_thread(work.dies.start)
                await asyncio.sleep(1.0)
            await work.ends_well(duplicates=PHONES)
