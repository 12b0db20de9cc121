"""Faults of several relays and of their Redis, each while messages flow: what was received is pushed in the end."""

import asyncio
import contextlib
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Phone, RelayProcess
from proxies import Way
from redis_servers import Replicated, Server
from relay_nodes import Nodes, kept, running
from test_kill import Tally, _all_arrived, _pushed, _send, _send_one_each, _set_up
from test_nodes import PHONES, Queues, Store, all_delivered, last_ones_arrive, one_server, subscribed
from wall_clocks import WallClock

from ntf_server.store.redis.names import Names, server_id
from ntf_server.store.redis.node import LEASE
from ntf_server.store.redis.rows import HEAD, STAMP, pushed, split
from ntf_server.testing import MockApns
from smp_bridge import ntf
from smp_bridge.client import Client, Request, ServerError
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient
from smp_bridge.transmission import ERR_AUTH

_STORE_IS_GONE = "the store was emptied or replaced while the relay uses it"


@dataclass
class Work:
    """Devices, their queues, and what they got of what flows."""

    nodes: Nodes
    servers: Sequence[Server]
    smp_server: SmpServer
    phones: list[Phone]
    queues: Queues
    tally: Tally

    @contextlib.asynccontextmanager
    async def messages(self, seed: int = 1) -> AsyncIterator[None]:
        """Flow meanwhile."""
        sending = asyncio.create_task(_send(self.smp_server, list(self.queues), random.Random(seed)))
        try:
            yield
        finally:
            sending.cancel()

    async def all_is_well(self) -> None:
        """All queues are subscribed, or will be within a lease; what was received is delivered."""
        await subscribed(self.smp_server, self.queues)
        self.tally.add(kept(*self.servers))
        async with asyncio.timeout(30):
            while self.tally.received - self.tally.delivered:  # more is delivered meanwhile
                await asyncio.sleep(0.05)

    async def ends_well(self, duplicates: int) -> None:
        """Also what comes now reaches every device; the nodes stop as they should, and none said what is a bug."""
        await self.all_is_well()
        await last_ones_arrive(self.nodes, self.servers, self.queues)
        self.tally.add(kept(*self.servers))
        await all_delivered(self.tally)
        assert self.tally.duplicates <= duplicates, self.tally
        for node in self.nodes.nodes:
            assert await node.stop() == 0, self.nodes.log()
        assert "Traceback" not in self.nodes.log(), self.nodes.log()


@contextlib.asynccontextmanager
async def at_work(
    nodes: Nodes, servers: Sequence[Server], smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> AsyncIterator[Work]:
    """All is set up, and idle."""
    mock_apns.latency = 0.02
    phones = [phone() for _ in range(PHONES)]
    async with await Recipient.connect(smp_server.address) as recipient:
        queues = await _set_up(nodes.nodes[0], smp_server, recipient, phones)
        yield Work(nodes, servers, smp_server, phones, queues, Tally(mock_apns, phones))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with one_server(tmp_path / "redis") as store:
        yield store


@pytest.fixture
async def work(
    nodes: Nodes, store: Store, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> AsyncIterator[Work]:
    async with at_work(nodes, store.servers, smp_server, mock_apns, phone) as work:
        yield work


async def ended(node: RelayProcess) -> int:
    """By itself: its exit code."""
    assert node.process is not None
    code = await asyncio.wait_for(node.process.wait(), 30)  # a busy machine takes its time
    node.process = None
    return code


async def test_relays_do_not_serve_a_redis_that_was_emptied_under_them(work: Work, store: Store, nodes: Nodes) -> None:
    """They say so in one line, and end as after what no retry mends; nothing is written there any more."""
    async with work.messages():
        await asyncio.sleep(0.5)
        store.whole.ask("FLUSHALL")
        assert [await ended(node) for node in nodes.nodes] == [2, 2], nodes.log()
        for node in nodes.nodes:
            assert node.log is not None
            assert node.log.read_text().count(_STORE_IS_GONE) == 1, nodes.log()
        assert "Traceback" not in nodes.log(), nodes.log()
        # But for leases, of a renewal that was under way.
        assert [key for key in store.whole.ask("KEYS", "*") if not re.fullmatch(rb"ntf:\{t\d+\}", key)] == []


async def test_no_message_is_lost_when_a_node_hands_over(
    work: Work, nodes: Nodes, smp_server: SmpServer, mock_apns: MockApns
) -> None:
    """SMP does not send a notification again: all that a server sent to the one that leaves reaches the devices."""
    rng = random.Random(1)
    for node in nodes.nodes:
        sending = asyncio.create_task(_send_one_each(work.queues))
        await asyncio.sleep(rng.uniform(0.0, 0.2))
        assert await node.stop() == 0, nodes.log()
        last = await sending
        async with asyncio.timeout(20):
            while not _all_arrived(_pushed(mock_apns, work.phones), last, work.queues):
                await asyncio.sleep(0.05)
        await node.start()
        await subscribed(smp_server, work.queues)


@pytest.mark.long
async def test_all_nodes_are_restarted_one_after_another(work: Work, nodes: Nodes, smp_server: SmpServer) -> None:
    async with work.messages():
        for node in (*nodes.nodes, *nodes.nodes):
            assert await node.stop() == 0, nodes.log()
            await node.start()
            await subscribed(smp_server, work.queues)
            await asyncio.sleep(0.5)
    await work.ends_well(duplicates=0)


@pytest.mark.long
async def test_all_nodes_are_started_at_once_after_all_were_killed(work: Work, nodes: Nodes) -> None:
    async with work.messages():
        await asyncio.sleep(0.3)
        await asyncio.gather(*(node.stop(signal.SIGKILL) for node in nodes.nodes))
        work.tally.add(kept(*work.servers))
        await asyncio.gather(*(node.start() for node in nodes.nodes))
        await work.all_is_well()
    await work.ends_well(duplicates=PHONES)


def shares(store: Server, nodes: Nodes, shards: Sequence[bytes]) -> list[int]:
    """How many of these each node has."""
    holders = [store.ask("HGET", shard, "node") for shard in shards]
    return [holders.count(node.directory.name.encode()) for node in nodes.nodes]


@pytest.mark.long
async def test_what_a_node_had_claimed_when_it_died_goes_out_once_from_another(
    work: Work, store: Store, nodes: Nodes, mock_apns: MockApns
) -> None:
    """The provider takes seconds to answer, in which the node is killed: between claim and record."""
    mock_apns.latency = 2.0
    found = shares(store.whole, nodes, [Names("ntf").shard(phone.token_id) for phone in work.phones])
    dies = nodes.nodes[found.index(max(found))]
    asked = mock_apns.counters.requests
    one_each = {phone.token: queue for phone, queue in work.queues.values()}
    for queue in one_each.values():
        await queue.send("claimed")
    async with asyncio.timeout(5):
        while mock_apns.counters.requests < asked + PHONES:
            await asyncio.sleep(0.01)
    before = len(mock_apns.pushes)
    await dies.stop(signal.SIGKILL)
    unsent = kept(store.whole)
    assert not any(sent for _, sent in unsent.values())
    await work.all_is_well()
    assert len(mock_apns.pushes) > before
    await dies.start()
    mock_apns.latency = 0.02
    await work.ends_well(duplicates=0)


async def registering(node: RelayProcess, phone: Callable[[], Phone], answered: list[Phone]) -> None:
    """Until cancelled, devices that are new: those that were answered."""
    async with await Client.connect(node.address) as client:
        while True:
            new = phone()
            with contextlib.suppress(ServerError):
                await new.register(client)
                answered.append(new)
            await asyncio.sleep(0.02)


@pytest.mark.long
async def test_what_was_answered_outlives_a_primary_that_stood_still_and_goes_on(
    tmp_path: Path, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """Sentinels have chosen another meanwhile: for a moment there are two."""
    with Replicated(tmp_path / "redis") as store:
        for server in store.servers:
            server.ask("CONFIG", "SET", "min-replicas-to-write", 1)
            server.ask("CONFIG", "SET", "min-replicas-max-lag", 2)
        async with (
            running(tmp_path, store.url, mock_apns, wait_replicas="1") as nodes,
            at_work(nodes, store.servers, smp_server, mock_apns, phone) as work,
        ):
            answered: list[Phone] = []
            async with work.messages():
                tasks = [asyncio.create_task(registering(node, phone, answered)) for node in nodes.nodes]
                await asyncio.sleep(0.5)
                first = store.primary
                first.freeze()
                async with asyncio.timeout(20):
                    while await asyncio.to_thread(lambda: store.primary) is first:
                        await asyncio.sleep(0.05)
                before = len(answered)
                first.thaw()
                async with asyncio.timeout(20):
                    while first.info("role") != "slave":
                        await asyncio.sleep(0.02)
                    while len(answered) < before + 20:
                        await asyncio.sleep(0.02)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            async with await Client.connect(nodes.nodes[0].address) as client:
                for registered in answered:
                    assert (await registered.status(client)).status is not ntf.TokenStatus.INVALID
            await work.ends_well(duplicates=3 * PHONES)


@pytest.mark.long
async def test_the_others_go_on_while_one_nodes_way_to_redis_is_slow_and_then_lets_nothing_through(
    work: Work, store: Store, nodes: Nodes, smp_server: SmpServer
) -> None:
    async with Way(store.whole.port) as way:
        far = nodes.nodes[1]
        assert await far.stop() == 0
        far.environment["NTF_SERVER__STORE__URL"] = f"redis://127.0.0.1:{way.port}"
        way.delay = 0.1
        await far.start()
        async with work.messages():
            await asyncio.sleep(LEASE)
            await subscribed(smp_server, work.queues)
            way.swallow = True
            await asyncio.sleep(LEASE + 1)
            await work.all_is_well()
            way.swallow = False
            way.delay = 0.0
            await asyncio.sleep(LEASE)
        assert min(shares(store.whole, nodes, Names("ntf").shards)) > 0
        await work.ends_well(duplicates=2 * PHONES)


# --- a wall clock that is off


NAMES = Names("ntf")
HOUR = 3600
OFF_BY = 55 * 60  # from an hour on Apple takes no provider token, which is told: no matter of nodes
OFF = HOUR / 2  # seconds: what is further away was told by the clock that is off

Leases = dict[bytes, list[bytes]]


def leases(store: Server, smp_server: bytes) -> Leases:
    """Of shards and an SMP server: who has each, by which fence."""
    return {key: store.ask("HMGET", key, "node", "fence") for key in (*NAMES.shards, smp_server)}


async def settled_leases(store: Server, nodes: Nodes, smp_server: bytes) -> Leases:
    """Once each node has its share, and nothing has changed hands for as long as that takes."""
    async with asyncio.timeout(30):
        found: Leases = {}
        while found != (found := leases(store, smp_server)) or not all(shares(store, nodes, NAMES.shards)):
            await asyncio.sleep(LEASE)
    return found


def kept_times(store: Server, smp_server: bytes) -> dict[str, list[float]]:
    """All that is kept, in Unix seconds, by what it is of."""

    def keys(pattern: str) -> list[bytes]:
        return list(store.ask("KEYS", pattern))

    def fields(keys: Sequence[bytes], *names: str) -> list[float]:
        return [float(at) for key in keys for at in store.ask("HMGET", key, *names) if at]

    def milliseconds(values: Sequence[bytes | float]) -> list[float]:
        return [float(at) / 1000 for at in values]

    def whole(key: bytes) -> dict[bytes, bytes]:
        words = store.ask("HGETALL", key)
        return dict(zip(words[::2], words[1::2], strict=True))

    tokens = [whole(key) for key in keys("ntf:{t*}:t:*")]
    out = {
        "registrations": fields(keys("ntf:{t*}:t:*"), "ra", "aa", "v", "k", "d"),
        "notifications": [STAMP.unpack_from(v)[2] for token in tokens for v in split(token)[1].values()],
        "last pushes": [pushed(token[b"i"]).at for token in tokens if b"i" in token],
        "subscriptions": [HEAD.unpack_from(v)[4] for key in keys("ntf:{s*}:q") for v in store.ask("HVALS", key)],
        "leases": milliseconds(fields([*NAMES.shards, smp_server], "until")),
        "nodes": milliseconds(store.ask("ZRANGE", NAMES.nodes, 0, -1, "WITHSCORES")[1::2]),
        "clock": milliseconds(fields([NAMES.clock], "last")),
    }
    assert all(out.values()), out
    return out


def told_times(apns: MockApns, phones: Sequence[Phone]) -> list[float]:
    """By how much each push's expiration, and what it says of messages, differ from when it came."""
    by_token = {phone.token: phone for phone in phones}
    out = []
    for push in apns.pushes:
        if "message" in push.body["notificationData"]:
            out.append(int(push.headers["apns-expiration"]) - push.received_at - 28 * 24 * HOUR)
            out += (entry.timestamp - push.received_at for entry in by_token[push.token].entries(push))
    return out


@contextlib.asynccontextmanager
async def always_subscribed(smp_server: SmpServer, queues: Queues) -> AsyncIterator[None]:
    """Meanwhile no queue has nobody."""

    async def watching() -> None:
        while all(map(smp_server.subscribed, queues)):
            await asyncio.sleep(0.02)

    watch = asyncio.create_task(watching())
    try:
        yield
        assert not watch.done(), "a session ended"
    finally:
        watch.cancel()


@pytest.mark.long
@pytest.mark.parametrize("sign", [1, -1], ids=["ahead", "behind"])
async def test_a_node_whose_clock_is_off_works_as_the_others_do(
    *,
    sign: int,
    work: Work,
    store: Store,
    nodes: Nodes,
    smp_server: SmpServer,
    mock_apns: MockApns,
    phone: Callable[[], Phone],
    tmp_path: Path,
) -> None:
    """When it starts, and when somebody sets the clock while it runs, from one side to the other. It has the session
    with the SMP server, and devices talk to it.
    """
    clock = WallClock(tmp_path / "clock", sign * OFF_BY)
    session = NAMES.server(server_id(smp_server.address))
    holder, _ = (await settled_leases(store.whole, nodes, session))[session]
    off = next(node for node in nodes.nodes if node.directory.name.encode() == holder)
    assert await off.stop() == 0
    off.environment |= clock.environment
    await off.start()
    before = await settled_leases(store.whole, nodes, session)
    await subscribed(smp_server, work.queues)
    assert before[session][0] == holder

    async with (
        work.messages(),
        always_subscribed(smp_server, work.queues),
        await Client.connect(off.address) as client,
        await Recipient.connect(smp_server.address) as recipient,
    ):
        for ahead in (sign * OFF_BY, -sign * OFF_BY):
            clock.ahead = ahead
            await asyncio.sleep(LEASE)
            assert abs(await clock.seen() - time.time() - ahead) < OFF
            new = phone()
            await new.register(client)
            await new.verify(client)
            await new.subscribe(client, smp_server.address, await recipient.queue())
            assert leases(store.whole, session) == before
            for kind, times in kept_times(store.whole, session).items():
                assert [at for at in times if abs(at - time.time()) > OFF] == [], kind
    assert [by for by in told_times(mock_apns, work.phones) if abs(by) > OFF] == []
    await work.ends_well(duplicates=0)
    assert store.whole.ask("HGET", NAMES.clock, "offset") == b"0"


# --- clients that do not wait for an answer


CUT_OFF = 100  # devices


async def cut_off(nodes: Nodes, requests: Sequence[Request], rng: random.Random) -> None:
    """Each is sent over a connection of its own, which ends at once, or a moment later."""

    async def one(number: int, request: Request) -> None:
        async with some, await Client.connect(nodes.nodes[number % len(nodes.nodes)].address) as client:
            [answer] = client.send([request])
            answer.cancel()
            await client.drain()
            await asyncio.sleep(rng.choice([0.0, rng.uniform(0.0, 0.02)]))

    some = asyncio.Semaphore(10)
    await asyncio.gather(*(one(number, request) for number, request in enumerate(requests)))


def count(store: Server, pattern: str) -> int:
    return len(store.ask("KEYS", pattern))


async def is_known(client: Client, subscription: bytes, phone: Phone) -> bool:
    try:
        await client.request(ntf.SChk(), subscription, phone.key)
    except ServerError as e:
        assert e.error == ERR_AUTH
        return False
    return True


async def test_commands_of_clients_that_are_gone_at_once_leave_nothing_half_done(
    *, store: Store, nodes: Nodes, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """Asked again, all is as if it had been asked once."""
    rng = random.Random(1)
    phones = [phone() for _ in range(CUT_OFF)]
    async with (
        await Recipient.connect(smp_server.address) as recipient,
        await Client.connect(nodes.nodes[1].address) as client,
    ):
        new = [ntf.TNew(p.device, p.key.public_key(), p.dh_key.public_key()) for p in phones]
        await cut_off(nodes, [Request(n, key=p.key) for n, p in zip(new, phones, strict=True)], rng)
        for p in phones:
            await p.register(client)
        assert count(store.whole, "ntf:{t*}:t:*") == CUT_OFF
        for p in phones:
            await p.verify(client)
        queues = [await recipient.queue() for _ in phones]
        subscribing = [
            ntf.SNew(p.token_id, smp_server.address, q.notifier_id, q.notifier_key)
            for p, q in zip(phones, queues, strict=True)
        ]
        await cut_off(nodes, [Request(s, key=p.key) for s, p in zip(subscribing, phones, strict=True)], rng)
        ids = [await p.subscribe(client, smp_server.address, q) for p, q in zip(phones, queues, strict=True)]
        await subscribed(smp_server, {q.notifier_id: (p, q) for p, q in zip(phones, queues, strict=True)})
        gone, left = range(0, CUT_OFF, 2), range(1, CUT_OFF, 2)
        await cut_off(nodes, [Request(ntf.SDel(), ids[n], phones[n].key) for n in gone], rng)
        for n in gone:
            with contextlib.suppress(ServerError):  # it is gone already
                await client.request(ntf.SDel(), ids[n], phones[n].key)
        assert [await is_known(client, ids[n], phones[n]) for n in gone] == [False] * len(gone)
        assert [await is_known(client, ids[n], phones[n]) for n in left] == [True] * len(left)
        await until_pushed(mock_apns, {n: (phones[n], queues[n]) for n in left})
        [records] = store.whole.ask("KEYS", "ntf:{s*}:q")
        assert store.whole.ask("HLEN", records) == len(left)
        for node in nodes.nodes:
            assert await node.stop() == 0, nodes.log()
        assert "Traceback" not in nodes.log(), nodes.log()


async def until_pushed(apns: MockApns, queues: dict[int, tuple[Phone, Queue]]) -> None:
    """A message to each of the queues reaches its device."""
    for _, queue in queues.values():
        await queue.send("here")
    async with asyncio.timeout(20):
        for phone, queue in queues.values():
            while True:
                push = await apns.next(phone.token)
                if "message" in push.body["notificationData"]:
                    assert queue.notifier_id in [entry.notifier_id for entry in phone.entries(push)]
                    break
