"""The model of a cluster is held to a real one: while slots move, are nobody's, or have lost their primary."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import hiredis
import pytest
from redis_media import RedisMedium
from redis_servers import HOST, Cluster, wait_until

from ntf_server.store.redis.url import Kind
from ntf_server.testing.store_suite import Check, checks, name, run
from sim.both import Both, dump
from sim.clock import WallClock
from sim.loop import VirtualLoop, virtual_loop
from sim.trace import Trace
from sim.valkey import cluster as model
from sim.valkey.cluster import move_key
from sim.valkey.deployment import Deployment
from sim.valkey.keyspace import ReplyError
from sim.valkey.slots import slot_of

_QUICK = ("a_cancelled", "a_newer", "notify_hands", "what_was_not_tried")  # checks that are tried each time
_MET = ("MOVED", "ASK", "ERR Attempted to access a non local key")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), replicas=0) as cluster:
        yield cluster


# --- the suite, while slots move


class Operator:
    """Moves one slot after another from node to node, key by key, of both."""

    def __init__(self, both: Both, cluster: Cluster) -> None:
        self._both = both
        self._cluster = cluster
        self._rng = Random(1)
        self._over = False

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._work())
        try:
            yield
        finally:
            self._over = True
            await task

    async def _work(self) -> None:
        while not self._over:
            await self._move()
            await asyncio.sleep(self._rng.choice([0.0, 0.1, 0.3]))

    async def _move(self) -> None:
        nodes: Any = self._both.models
        at = {key: i for i, node in enumerate(nodes) for key in node.data.keys.values}
        if not at:
            return
        slot = slot_of(self._rng.choice(sorted(at)))
        source = self._both.view.owner(slot)
        assert source is not None
        to = self._rng.choice([i for i in range(len(nodes)) if i != source])
        old, new, real = nodes[source], nodes[to], self._both.servers
        async with self._both.turn:
            self._cluster.begin_move(slot, real[source], real[to])
            old.migrating[slot], new.importing[slot] = new.name, old.name
        keys = [key for key in old.data.keys.values if slot_of(key) == slot]
        self._rng.shuffle(keys)
        for key in keys:
            await asyncio.sleep(self._rng.choice([0.0, 0.002, 0.02]))
            async with self._both.turn:
                if key in old.data.keys.values:  # else it was deleted meanwhile
                    real[source].ask("MIGRATE", HOST, real[to].port, key, 0, 5000)
                    move_key(key, old.data, new.data)
        async with self._both.turn:
            self._cluster.end_move(slot, real[source], real[to])
            self._both.view.elsewhere[slot] = to
            for node in nodes:
                node.learn(self._both.view)


async def try_both(cluster: Cluster, check: Check) -> Both:
    for node in cluster.primaries:
        node.ask("FLUSHALL")
        node.ask("SCRIPT", "FLUSH")
    both = Both(cluster.primaries)
    for first, last, at, *_ in cluster.primaries[0].ask("CLUSTER", "SLOTS"):
        group = [node.port for node in cluster.primaries].index(at[1])
        both.view.elsewhere |= {s: group for s in range(first, last + 1) if both.view.owner(s) != group}
    for node in both.models:
        node.learn(both.view)
    async with both.serve() as url, Operator(both, cluster).at_work():
        await run(check, RedisMedium(url))
    assert both.differences == []
    assert both.modelled() == [dump(node) for node in cluster.primaries]
    return both


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_nodes_answer_as_real_ones_do_while_slots_move(cluster: Cluster, every: bool) -> None:
    refused: set[str] = set()
    for check in checks(shared=True):
        if every or name(check).partition("-")[2].startswith(_QUICK):
            refused |= (await try_both(cluster, check)).refused
    for words in _MET:
        assert any(text.startswith(words) for text in refused), refused


# --- what each node says


class Pair:
    """A real cluster, and a model in virtual time: nodes 0 to 2 are primaries at first, 3 to 5 their replicas."""

    def __init__(self, cluster: Cluster, loop: VirtualLoop) -> None:
        self.cluster = cluster
        self._loop = loop
        self.model = Deployment(Kind.CLUSTER, loop, Random(1), Trace(loop.time), WallClock(loop))
        of: Any = self.model.cluster
        self.bus: model.Cluster = of
        self.bus.whole = True
        firsts, seconds = zip(*(group.servers for group in self.model.groups), strict=True)
        self.nodes: list[Any] = [*firsts, *seconds]
        for node in self.nodes:
            node.words = "Attempted"
        both = zip(cluster.nodes, self.nodes, strict=True)
        self._names = {server.address: f"{node.name}:6379" for server, node in both}
        self._conversations: dict[int, tuple[socket.socket, hiredis.Reader]] = {}

    def pass_(self, seconds: float) -> None:
        """In the model."""
        self._loop.run_until_complete(asyncio.sleep(seconds))

    def close(self) -> None:
        for at, _ in self._conversations.values():
            at.close()

    def real(self, number: int, *words: bytes | str, asking: bool = False) -> Any:
        if asking:
            assert self._ask(number, "ASKING") == b"OK"
        return self._told(self._ask(number, *words))

    def modelled(self, number: int, *words: bytes | str, asking: bool = False) -> Any:
        packed = [word.encode() if isinstance(word, str) else word for word in words]
        node = self.nodes[number]
        return self._told(node.answer(packed, asking=asking) if node.listening else ReplyError("GONE"))

    def same(self, number: int, *words: bytes | str, asking: bool = False) -> Any:
        """What both say."""
        told = self.real(number, *words, asking=asking)
        assert told == self.modelled(number, *words, asking=asking), words
        return told

    def _told(self, answer: Any) -> Any:
        if not isinstance(answer, hiredis.ReplyError | ReplyError):
            return answer.encode() if isinstance(answer, str) else answer
        text = str(answer).partition(" script: ")[0]
        for address, node in self._names.items():
            text = re.sub(rf"{re.escape(address)}\b", node, text)
        return text

    def _ask(self, number: int, *words: bytes | str) -> Any:
        if number not in self._conversations:
            at = socket.create_connection((HOST, self.cluster.nodes[number].port), timeout=5)
            self._conversations[number] = at, hiredis.Reader()
        at, reader = self._conversations[number]
        try:
            at.sendall(hiredis.pack_command(words))
            while (answer := reader.gets()) is False:
                data = at.recv(1 << 16)
                if not data:
                    raise ConnectionResetError
                reader.feed(data)
        except OSError:
            at.close()
            del self._conversations[number]
            return ReplyError("GONE")
        return answer

    def in_its_time(self, number: int, *words: bytes | str, until: str) -> tuple[list[Any], list[Any]]:
        """What the real one says until it says that at last, and what the model does; each once."""

        def heard(ask: Callable[..., Any], wait: Callable[[], None]) -> list[Any]:
            said: list[Any] = []
            for _ in range(4000):
                if (told := ask(number, *words)) not in said[-1:]:
                    said.append(told)
                if str(told).startswith(until):
                    return said
                wait()
            raise AssertionError(said)

        return heard(self.real, wait_a_little), heard(self.modelled, lambda: self.pass_(0.005))


def wait_a_little() -> None:
    time.sleep(0.005)


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Cluster(tmp_path_factory.mktemp("pair")) as cluster, virtual_loop() as loop:
        pair = Pair(cluster, loop)
        yield pair
        pair.close()


_HALF = "redis.call('SADD', KEYS[1], 'x') return redis.call('EXISTS', KEYS[1] .. '9')"
_BOTH = "return redis.call('EXISTS', KEYS[1], KEYS[1] .. '9')"


def test_nodes_say_what_real_ones_say(pair: Pair) -> None:
    cluster = pair.cluster
    first, second, third = cluster.primaries
    key, of_second = next(cluster.keys_of(first)), next(cluster.keys_of(second))
    slot = slot_of(key)
    one, two, three = (key + b"%d" % i for i in (1, 2, 3))

    # Who has it, and who has not: also a replica has not.
    assert pair.same(0, "SADD", one, "a") == 1
    assert pair.same(1, "SADD", one, "a").startswith("MOVED")
    assert pair.same(3, "EXISTS", one).startswith("MOVED")
    assert pair.same(1, "EVALSHA", "0" * 40, "1", one).startswith("MOVED")
    assert pair.same(0, "EXISTS", key, of_second).startswith("CROSSSLOT")
    for other in (of_second, next(k for k in cluster.keys_of(first) if k != key)):
        assert pair.same(0, "EVAL", "#!lua\nreturn redis.call('EXISTS', ARGV[1])", "1", key, other).startswith("ERR")
    pair.same(0, "SADD", two, "b")

    # Half of it is elsewhere.
    cluster.begin_move(slot, first, second)
    pair.nodes[0].migrating[slot], pair.nodes[1].importing[slot] = pair.nodes[1].name, pair.nodes[0].name
    for asked in (("EXISTS", one), ("SADD", three, "c"), ("EXISTS", one, two), ("EXISTS", one, three)):
        pair.same(0, *asked)
        pair.same(1, *asked)
        pair.same(2, *asked)
    for text in (_HALF, _BOTH):
        for keys in ((one,), (three,), (one, two), (one, three)):
            pair.same(0, "EVAL", text, str(len(keys)), *keys)
    assert pair.same(1, "EXISTS", three, asking=True) == 0
    assert pair.same(1, "EXISTS", three).startswith("MOVED")
    assert pair.same(1, "SADD", three, "c", asking=True) == 1
    for asked in (("EXISTS", one, three), ("EXISTS", three, three), ("EXISTS", key + b"7", key + b"8")):
        pair.same(1, *asked, asking=True)
    for text in (_HALF, _BOTH):
        pair.same(1, "EVAL", text, "1", three, asking=True)
    for name_ in (one, two):
        first.ask("MIGRATE", HOST, second.port, name_, 0, 5000)
        move_key(name_, pair.nodes[0].data, pair.nodes[1].data)
    assert pair.same(0, "EXISTS", one).startswith("ASK")
    cluster.end_move(slot, first, second)
    pair.bus.end_move(slot, pair.model.groups[0], pair.model.groups[1])
    pair.pass_(1.0)
    for number in range(6):
        pair.same(number, "EXISTS", one)

    # Nobody has it, so that nobody serves anything.
    with cluster.unserved(slot := slot_of(of_second)):
        pair.bus.unserve(slot, 5.0)
        pair.pass_(1.0)
        wait_until(lambda: b"cluster_state:fail" in third.ask("CLUSTER", "INFO"), "the cluster is down")
        for number in range(3):
            pair.same(number, "EXISTS", of_second)
            pair.same(number, "EXISTS", next(cluster.keys_of(third)))
    pair.pass_(10.0)
    pair.same(1, "EXISTS", of_second)


def test_nodes_say_what_real_ones_say_when_a_primary_dies(pair: Pair) -> None:
    first, second, _ = pair.cluster.primaries
    key, of_second = next(pair.cluster.keys_of(first)), next(pair.cluster.keys_of(second))
    pair.same(0, "SADD", key, "a")
    first.ask("WAIT", 1, 1000)
    pair.pass_(1.0)
    first.kill()
    pair.model.groups[0].crash(0.0, 20.0)
    real, modelled = pair.in_its_time(1, "EXISTS", key, until=f"MOVED {slot_of(key)} {pair.nodes[3].name}:")
    old, down, new = modelled
    assert (old, down) == (f"MOVED {slot_of(key)} {pair.nodes[0].name}:6379", "CLUSTERDOWN The cluster is down")
    assert real in (modelled, [old, new])  # it may be down for a moment only
    pair.pass_(1.0)
    for node in pair.cluster.nodes[1:]:
        wait_until(lambda node=node: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"), "the cluster is well")
    for number in (1, 2, 3, 4, 5):
        assert pair.same(number, "EXISTS", key) == (1 if number == 3 else new)
    pair.same(1, "EXISTS", of_second)
    first.start()
    pair.pass_(60.0)
    assert pair.in_its_time(0, "EXISTS", key, until="MOVED")[0][-1] == pair.modelled(0, "EXISTS", key) == new
