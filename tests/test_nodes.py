"""Several relays on one Redis: whatever happens to one of them, what was received is pushed."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import Phone
from redis.crc import key_slot
from redis_servers import Cluster, Replicated, Server
from relay_nodes import Nodes, kept, running
from test_kill import Tally, _send, _set_up

from ntf_server.store.redis.node import LEASE
from ntf_server.testing import MockApns
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient

PHONES = 8
TAKEN_OVER = LEASE + 5.0  # seconds after which a queue has a node again

Queues = dict[bytes, tuple[Phone, Queue]]


@pytest.fixture
def store(tmp_path: Path) -> AsyncIterator[Server]:
    with Server(tmp_path / "redis", {"appendonly": "yes", "appendfsync": "always"}) as server:
        yield server


async def last_ones_arrive(nodes: Nodes, servers: Sequence[Server], queues: Queues) -> None:
    """One more message to each queue, until all of them were pushed."""
    for _, queue in queues.values():
        await queue.send("last")
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + 20
    while True:
        there = kept(*servers)
        unsent = [n for n in queues if n not in there or not there[n][1]]
        if not unsent:
            return
        assert loop.time() < ends_at, ({n: n in there for n in unsent}, nodes.log())
        await asyncio.sleep(0.05)


async def all_delivered(tally: Tally) -> None:
    async with asyncio.timeout(30):
        while tally.received != tally.delivered:
            await asyncio.sleep(0.05)


async def subscribed(smp_server: SmpServer, queues: Queues) -> float:
    """Until all are: the seconds that took."""
    began = time.monotonic()
    await smp_server.until(lambda: all(map(smp_server.subscribed, queues)), TAKEN_OVER)
    return time.monotonic() - began


async def test_a_node_is_killed_and_the_others_go_on(
    nodes: Nodes, store: Server, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """Each in turn, while messages flow; it then comes back, and takes its share again."""
    mock_apns.latency = 0.02
    rng = random.Random(1)
    phones = [phone() for _ in range(PHONES)]
    tally = Tally(mock_apns, phones)
    async with await Recipient.connect(smp_server.address) as recipient:
        queues = await _set_up(nodes.nodes[0], smp_server, recipient, phones)
        for node in (nodes.nodes[0], nodes.nodes[1]):
            sending = asyncio.create_task(_send(smp_server, list(queues), rng))
            await asyncio.sleep(rng.uniform(0.1, 0.4))
            await node.stop(signal.SIGKILL)
            await asyncio.sleep(0.2)
            sending.cancel()
            tally.add(kept(store))
            await subscribed(smp_server, queues)
            await all_delivered(tally)
            await node.start()
        await last_ones_arrive(nodes, [store], queues)
    for node in nodes.nodes:
        assert await node.stop() == 0, nodes.log()
    tally.add(kept(store))
    await all_delivered(tally)
    assert tally.duplicates <= 3 * PHONES


@pytest.mark.long
async def test_a_node_that_stands_still_longer_than_its_leases_writes_nothing(
    nodes: Nodes, store: Server, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """The other one has its servers by then; its own session ends, and its pushes count no more."""
    phones = [phone() for _ in range(PHONES)]
    tally = Tally(mock_apns, phones)
    async with await Recipient.connect(smp_server.address) as recipient:
        queues = await _set_up(nodes.nodes[0], smp_server, recipient, phones)
        for node in nodes.nodes:
            assert node.process is not None
            node.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(LEASE + 1)
            await subscribed(smp_server, queues)
            for _, queue in queues.values():
                await queue.send("meanwhile")
            await asyncio.sleep(0.5)
            node.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(LEASE / 2)
            tally.add(kept(store))
            await all_delivered(tally)
            await subscribed(smp_server, queues)
    assert tally.duplicates <= 2 * PHONES


# --- what happens to Redis


@dataclass
class Store:
    """Where it is, its servers, what the relays are told of it, and what a fault is done to."""

    url: str
    servers: Sequence[Server]
    settings: dict[str, str]
    whole: Any


@contextlib.contextmanager
def one_server(folder: Path) -> Iterator[Store]:
    with Server(folder, {"appendonly": "yes", "appendfsync": "always"}) as server:
        yield Store(server.url, [server], {}, server)


@contextlib.contextmanager
def with_sentinels(folder: Path) -> Iterator[Store]:
    with Replicated(folder) as replicated:
        yield Store(replicated.url, replicated.servers, {"wait_replicas": "1"}, replicated)


@contextlib.contextmanager
def a_cluster(folder: Path) -> Iterator[Store]:
    with Cluster(folder) as cluster:
        yield Store(cluster.url, cluster.nodes, {"wait_replicas": "1"}, cluster)


async def killed_and_started(store: Store) -> None:
    store.whole.kill()
    await asyncio.sleep(1.0)
    await asyncio.to_thread(store.whole.start)


async def cut_in_its_last_record(store: Store) -> None:
    """Its append-only file, as by a loss of power: what it was about to write then is lost."""
    store.whole.kill()
    [file] = (store.whole.folder / "appendonlydir").glob("*.incr.aof")
    os.truncate(file, file.stat().st_size - 5)
    await asyncio.to_thread(store.whole.start)
    assert "Truncating the AOF" in (store.whole.folder / "log").read_text()


async def full_for_a_while(store: Store) -> None:
    store.whole.ask("CONFIG", "SET", "maxmemory", 1)
    await asyncio.sleep(2.0)
    store.whole.ask("CONFIG", "SET", "maxmemory", 0)


async def out_of_reach_for_a_while(store: Store) -> None:
    store.whole.freeze()
    await asyncio.sleep(LEASE + 2)
    store.whole.thaw()


async def emptied_scripts(store: Store) -> None:
    for _ in range(10):
        store.whole.ask("SCRIPT", "FLUSH")
        await asyncio.sleep(0.05)


async def primary_killed(store: Store) -> None:
    await asyncio.to_thread(store.whole.primary.kill)


async def one_of_its_primaries_killed(store: Store) -> None:
    primary = store.whole.owner(key_slot(b"t0"))
    await asyncio.to_thread(primary.kill)
    await asyncio.sleep(4.0)
    await asyncio.to_thread(primary.start)  # a replica is waited for


async def slots_moved(store: Store) -> None:
    """Of some shards, and of buckets of the SMP server's queues, each to the next primary."""
    cluster = store.whole
    buckets = [key for primary in cluster.primaries for key in primary.ask("KEYS", "ntf:{s*.*}:q")]
    assert len(buckets) > 1
    for key in (*(b"t%d" % number for number in range(6)), *sorted(buckets)[:6]):
        slot = key_slot(key)
        source = cluster.owner(slot)
        to = cluster.primaries[(cluster.primaries.index(source) + 1) % len(cluster.primaries)]
        await asyncio.to_thread(cluster.move, slot, source, to)


FAULTS = [
    (one_server, killed_and_started, ()),
    (one_server, cut_in_its_last_record, ()),
    (one_server, full_for_a_while, pytest.mark.long),
    (one_server, out_of_reach_for_a_while, pytest.mark.long),
    (one_server, emptied_scripts, pytest.mark.long),
    (with_sentinels, primary_killed, ()),
    (a_cluster, one_of_its_primaries_killed, pytest.mark.long),
    (a_cluster, slots_moved, pytest.mark.long),
]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [pytest.param(k, f, marks=marks, id=f"{f.__name__} of {k.__name__}") for k, f, marks in FAULTS],
)
async def test_nothing_is_lost_whatever_happens_to_redis(
    *, kind: Any, fault: Any, tmp_path: Path, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """What was received before and while it happens is pushed, and every queue is subscribed in the end."""
    mock_apns.latency = 0.02
    rng = random.Random(1)
    phones = [phone() for _ in range(PHONES)]
    tally = Tally(mock_apns, phones)
    with kind(tmp_path / "redis") as store:
        async with running(tmp_path, store.url, mock_apns, **store.settings) as nodes:
            async with await Recipient.connect(smp_server.address) as recipient:
                queues = await _set_up(nodes.nodes[0], smp_server, recipient, phones)
                sending = asyncio.create_task(_send(smp_server, list(queues), rng))
                await asyncio.sleep(0.3)
                tally.add(kept(*store.servers))
                await fault(store)
                await asyncio.sleep(0.5)
                sending.cancel()
                await smp_server.until(lambda: all(map(smp_server.subscribed, queues)), 30)
                await last_ones_arrive(nodes, store.servers, queues)
                tally.add(kept(*store.servers))
                await all_delivered(tally)
            for node in nodes.nodes:
                assert await node.stop() == 0, nodes.log()
            assert "Traceback" not in nodes.log(), nodes.log()
    assert tally.duplicates <= 3 * PHONES
