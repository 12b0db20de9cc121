"""The clock that all nodes have: the server's, evened."""

import itertools
import time
from collections.abc import Iterator

import pytest
from redis_stores import SHARDS, Nodes, ask, keep, patched

from ntf_server.store.clock import Clock
from ntf_server.store.memory import State, Times
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.node import LEASE, RENEW, Node
from ntf_server.testing.store_suite.medium import DAY, acquire, activate, known, notify, subscribe, take

ALL = set(range(SHARDS))


def held(store: RedisStore) -> set[int]:
    return set(store._node.held)


def set_back(store: RedisStore, seconds: float) -> None:
    """What this node heard last of the server's clock was so much later than what it will hear, or earlier."""
    node = store._node
    assert node.time._server is not None
    server, steady = node.time._server
    node.time._server = server + seconds, steady
    node._kept_at = float("-inf")


@pytest.mark.parametrize("step", [-30 * DAY, -3600.0, 3600.0, 30 * DAY])
async def test_nodes_that_see_the_same_step_count_it_once(nodes: Nodes, step: float) -> None:
    first, second = await nodes.open("one"), await nodes.open("two")
    await nodes.pass_(LEASE, first, second)
    had, now = (held(first), held(second)), first._node.now()
    nodes.clock.step(step)
    await nodes.pass_(RENEW, first, second)
    for store in (first, second):
        assert store._node.time._offset == round(-step * 1000)
        assert store._node.now() == pytest.approx(now + RENEW)
        assert store._node.wall() == nodes.clock.wall()
    assert (held(first), held(second)) == had


async def store_at(store: RedisStore, seconds: float) -> None:
    """What the store holds was written by a server's clock that was so many seconds ahead."""
    names_, ms = store._node.names, round(seconds * 1000)
    for shard in names_.shards:
        await ask(store, b"HINCRBY", shard, b"until", ms)
    await ask(store, b"HINCRBY", names_.clock, b"last", ms)
    for node in await ask(store, b"ZRANGE", names_.nodes, 0, -1):
        await ask(store, b"ZINCRBY", names_.nodes, ms, node)


@pytest.mark.parametrize("step", [-DAY, -10.0, 10.0, DAY])
async def test_the_servers_clock_is_set(nodes: Nodes, step: float) -> None:
    """The store's goes on as if it had not been, and no lease ends by that; what people see is the server's."""
    first, second = await nodes.open("one", manual=False), await nodes.open("two", manual=False)
    for store in (first, second, first, second):
        store._node._kept_at = float("-inf")
        await keep(store)
    had = held(first), held(second)
    assert had[0] | had[1] == ALL
    wall = first._node.wall()
    await store_at(first, -step)
    for store in (first, second):
        set_back(store, -step)
        before_ = store._node.now()
        await keep(store)
        assert store._node.now() == pytest.approx(before_, abs=1)
        assert store._node.wall() == pytest.approx(wall, abs=1)
        assert store._node.shift == pytest.approx(-step, abs=1)
    assert first._node.time._offset == second._node.time._offset
    assert (held(first), held(second)) == had


async def test_what_comes_before_a_step_is_seen_does_not_wait_for_as_long_as_that(nodes: Nodes) -> None:
    """A clock that was set back by an hour, and right again, held up for that hour what came in the two seconds before
    nodes saw it (the simulator's seed 8).
    """
    store = await nodes.open(manual=False)
    queue = b"queue"
    await subscribe(store, await activate(store), queue)
    session = await acquire(store)
    set_back(store, -3600.0)
    store._node._kept_at = store._node.clock.steady()  # it does not look yet
    await notify(store, session, queue, places={})
    store._node._kept_at = float("-inf")
    await keep(store)
    assert store._node.shift == -3600
    assert len(await take(store)) == 1


async def test_a_little_is_no_step(nodes: Nodes) -> None:
    store = await nodes.open(manual=False)
    for seconds in (-1.5, 1.5):
        set_back(store, seconds)
        await keep(store)
        assert store._node.shift == 0


async def test_an_answer_that_is_late_is_no_step(nodes: Nodes) -> None:
    """The node slept, or the way to the server was slow: the time that it holds is of a while ago."""
    store = await nodes.open(manual=False)
    node = store._node
    late = 0.0
    steady, command = node.clock.steady, node.database.command

    async def slow(*words: bytes, key: bytes, writes: bool = True) -> object:
        nonlocal late
        answer = await command(*words, key=key, writes=writes)
        late = 4.0
        return answer

    node._kept_at = float("-inf")
    with patched(node.clock, steady=lambda: steady() + late), patched(node.database, command=slow):
        await keep(store)
    assert late and node.shift == 0


async def test_the_time_of_a_store_does_not_go_back_while_no_node_runs(nodes: Nodes) -> None:
    store = await nodes.open()
    await nodes.pass_(60, store)
    now = store._node.now()
    await nodes.kill(store)
    nodes.clock.step(-DAY)
    store = await nodes.open()
    assert store._node.now() == now
    assert store._node.wall() == nodes.clock.wall()


async def test_nobody_counts_as_silent_for_an_outage(nodes: Nodes) -> None:
    store = await nodes.open()
    token = await activate(store)
    await nodes.kill(store)
    nodes.clock.pass_(3 * DAY)
    store = await nodes.open()
    silent = nodes.clock.wall() - (await known(store, token)).active_at
    assert silent == pytest.approx(0, abs=2)


@pytest.mark.parametrize("killed", [False, True])
async def test_that_a_node_starts_is_no_outage_if_another_ran(nodes: Nodes, killed: bool) -> None:
    store = await nodes.open("one")
    token = await activate(store)
    active_at = token.active_at
    nodes.clock.pass_(3 * DAY)
    await keep(store)
    if killed:
        await nodes.kill(store)
    second = await nodes.open("two")
    assert (await known(second, token)).active_at == active_at


async def test_seconds_of_a_step_are_told(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    store = await nodes.open()
    nodes.clock.step(3600)
    await keep(store)
    assert "the clock was set by +3600 s" in caplog.text


async def test_a_node_whose_clock_is_off_goes_by_the_server_from_the_first_answer_on_though_it_is_late(
    nodes: Nodes,
) -> None:
    store = await nodes.open(manual=False)
    now: Iterator[float] = itertools.count(0.0, 1.5)  # seconds, which every answer takes
    state = State(store._state.sealer, Times(), Clock(lambda: time.time() - 3600, lambda: next(now)))
    node = Node(store._node.database, store._node.names, state, b"off", store._node._store_id, manual=False)
    assert node.wall() < time.time() - 3500
    await node.time.look_at_server()
    assert abs(node.wall() - time.time()) < 10
    now = itertools.repeat(next(now) + 60.0)
    await node.time.look_at_server()
    assert not state.effects.stepped  # it only is known better
    assert abs(node.wall() - time.time()) < 1
