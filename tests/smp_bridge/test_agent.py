import asyncio
import contextlib
import gc
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.agent import BATCH, Agent, AgentConfig, Backoff, Result, Subscription
from smp_bridge.client import Event
from smp_bridge.testing import Queue, Recipient, SmpServer
from smp_bridge.transmission import ERR_AUTH, ERR_INTERNAL, ERR_PROHIBITED, ERR_QUOTA, Err, Message

FAST = AgentConfig(min_backoff=0.02, max_backoff=0.1, request_timeout=0.3, allow_private=True)


class Owner:
    """Keeps subscriptions in memory, and what the agent said of them."""

    def __init__(self, page: int = 70) -> None:
        self._page = page
        self.kept: defaultdict[ServerAddress, dict[int, Subscription]] = defaultdict(dict)
        self.active: defaultdict[ServerAddress, set[int]] = defaultdict(set)
        self.ended: dict[int, Result] = {}
        self.sessions: list[tuple[str, ServerAddress]] = []
        self.blocks: list[Sequence[Event]] = []
        self.asked = 0
        self.failing: set[str] = set()  # methods that raise, once each
        self._changed = asyncio.Event()

    def add(self, server: ServerAddress, *queues: Queue) -> list[Subscription]:
        kept = self.kept[server]
        added = [Subscription(len(kept) + i, q.notifier_id, q.notifier_key) for i, q in enumerate(queues)]
        kept.update({s.ref: s for s in added})
        return added

    async def until(self, condition: Callable[[], bool], timeout: float = 5.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def all_active(self, server: ServerAddress) -> None:
        await self.until(lambda: self.active[server] == set(self.kept[server]))

    def _enter(self, method: str) -> None:
        self._changed.set()
        if method in self.failing:
            self.failing.discard(method)
            raise RuntimeError(f"{method} failed")

    # --- agent.Subscriptions

    async def wanted(self, server: ServerAddress) -> bool:
        self.asked += 1
        self._enter("wanted")
        return bool(self.kept[server])

    async def pages(self, server: ServerAddress) -> AsyncIterator[Sequence[Subscription]]:
        self._enter("pages")
        todo = [s for ref, s in self.kept[server].items() if ref not in self.active[server]]
        for i in range(0, len(todo), self._page):
            yield todo[i : i + self._page]

    async def connected(self, server: ServerAddress) -> None:
        self._enter("connected")
        self.sessions.append(("connected", server))

    async def disconnected(self, server: ServerAddress) -> None:
        self.active[server].clear()
        self.sessions.append(("disconnected", server))
        self._enter("disconnected")

    async def results(self, server: ServerAddress, results: Sequence[Result]) -> None:
        self._enter("results")
        for result in results:
            ref = result.subscription.ref
            if result.error is None:
                self.active[server].add(ref)
            else:
                self.ended[ref] = result
                del self.kept[server][ref]

    async def events(self, server: ServerAddress, events: Sequence[Event]) -> None:
        self._enter("events")
        self.blocks.append(events)


@pytest.fixture
def owner() -> Owner:
    return Owner()


@contextlib.asynccontextmanager
async def running(owner: Owner, config: AgentConfig = FAST) -> AsyncIterator[Agent]:
    agent = Agent(owner, config)
    try:
        yield agent
    finally:
        await agent.close()


@pytest.fixture
async def agent(owner: Owner) -> AsyncIterator[Agent]:
    async with running(owner) as agent:
        yield agent


@pytest.fixture
async def server() -> AsyncIterator[SmpServer]:
    async with SmpServer() as server:
        yield server


async def make_queues(server: SmpServer, count: int) -> list[Queue]:
    async with await Recipient.connect(server.address) as recipient:
        queues = await asyncio.gather(*(recipient.queue(credentials="NEW", secure=None) for _ in range(count)))
    await server.until(lambda: server.connections == 0)
    return list(queues)


async def ended(agent: Agent) -> None:
    """Wait until the workers are at their end."""
    await asyncio.wait([worker.task for worker in agent._servers.values()], timeout=5)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged at ERROR, futures that nobody looked at included."""
    gc.collect()
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


# --- subscribing


async def test_many_subscriptions_on_one_connection(server: SmpServer, owner: Owner, agent: Agent) -> None:
    queues = await make_queues(server, 2 * BATCH + 5)
    owner.add(server.address, *queues)
    before = server.accepted
    for _ in range(3):
        agent.start(server.address)
    await owner.all_active(server.address)
    agent.start(server.address)
    assert all(server.subscribed(q.notifier_id) for q in queues)
    assert server.nsubs() == len(queues)
    assert server.accepted == before + 1
    assert owner.sessions == [("connected", server.address)]
    assert agent.is_connected(server.address)
    assert agent.servers == 1


async def test_pages_larger_than_the_window(server: SmpServer) -> None:
    owner = Owner(page=100)
    owner.add(server.address, *await make_queues(server, 25))
    async with running(owner, replace(FAST, window=7)) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        assert server.nsubs() == 25


async def test_every_kind_of_key(server: SmpServer, owner: Owner, agent: Agent) -> None:
    async with await Recipient.connect(server.address) as recipient:
        for make in (Ed25519PrivateKey.generate, Ed448PrivateKey.generate, X25519PrivateKey.generate):
            owner.add(server.address, await recipient.queue(notifier_key=make()))
    agent.start(server.address)
    await owner.all_active(server.address)
    assert not owner.ended


async def test_several_servers(owner: Owner, agent: Agent) -> None:
    async with SmpServer() as one, SmpServer() as two:
        for server in (one, two):
            owner.add(server.address, *await make_queues(server, 2))
            agent.start(server.address)
        for server in (one, two):
            await owner.all_active(server.address)
            assert server.connections == 1
        assert agent.servers == 2
        await one.stop()
        await owner.until(lambda: ("disconnected", one.address) in owner.sessions)
        assert agent.is_connected(two.address)
        assert owner.active[two.address]


async def test_added_while_connected(server: SmpServer, owner: Owner, agent: Agent) -> None:
    first, second = await make_queues(server, 2)
    owner.add(server.address, first)
    agent.start(server.address)
    await owner.all_active(server.address)
    accepted = server.accepted
    [subscription] = owner.add(server.address, second)
    agent.subscribe(server.address, subscription)
    await owner.all_active(server.address)
    assert server.accepted == accepted
    assert (server.nsubs(first.notifier_id), server.nsubs(second.notifier_id)) == (1, 1)


async def test_added_while_not_connected(server: SmpServer, owner: Owner, agent: Agent) -> None:
    for queue in await make_queues(server, 3):
        [subscription] = owner.add(server.address, queue)
        agent.subscribe(server.address, subscription)
    await owner.all_active(server.address)
    assert owner.sessions == [("connected", server.address)]


async def test_a_server_with_nothing_to_subscribe_is_left_alone(server: SmpServer, owner: Owner, agent: Agent) -> None:
    agent.start(server.address)
    await owner.until(lambda: owner.asked == 1)
    await ended(agent)
    assert agent.servers == 0
    assert server.accepted == 0
    [subscription] = owner.add(server.address, *await make_queues(server, 1))
    agent.subscribe(server.address, subscription)
    await owner.all_active(server.address)
    assert agent.servers == 1


async def test_added_while_the_agent_learns_that_nothing_was_wanted(server: SmpServer) -> None:
    class Slow(Owner):
        async def wanted(self, server: ServerAddress) -> bool:
            wanted = await super().wanted(server)
            await go_on.wait()
            return wanted

    go_on = asyncio.Event()
    owner = Slow()
    for add in (Agent.start, lambda agent, server: agent.subscribe(server, *owner.kept[server].values())):
        go_on.clear()
        owner.kept.clear()
        queues = await make_queues(server, 1)
        async with running(owner) as agent:
            agent.start(server.address)
            asked = owner.asked
            await owner.until(lambda asked=asked: owner.asked > asked)  # type: ignore[misc]
            owner.add(server.address, *queues)
            add(agent, server.address)
            go_on.set()
            await owner.all_active(server.address)


async def test_the_worker_ends_when_nothing_is_wanted_any_more(server: SmpServer, owner: Owner, agent: Agent) -> None:
    owner.add(server.address, *await make_queues(server, 1))
    agent.start(server.address)
    await owner.all_active(server.address)
    accepted, asked = server.accepted, owner.asked
    owner.kept.clear()
    server.drop_all()
    await owner.until(lambda: owner.asked > asked)
    await ended(agent)
    assert agent.servers == 0
    assert not agent.is_connected(server.address)
    assert server.accepted == accepted


# --- events


async def test_events(server: SmpServer, owner: Owner, agent: Agent) -> None:
    queues = await make_queues(server, 3)
    owner.add(server.address, *queues)
    agent.start(server.address)
    await owner.all_active(server.address)
    server.notify(*(q.notifier_id for q in queues))
    await owner.until(lambda: len(owner.blocks) == 1)
    for queue, event in zip(queues, owner.blocks[0], strict=True):
        assert isinstance(event.message, smp.NMsg)
        assert queue.open_notification(event.message.nonce, event.message.meta).timestamp > 0
    async with await Recipient.connect(server.address) as other:
        queue = replace(queues[0], recipient=other)
        await other.client.request(smp.NSub(), queue.notifier_id, queue.notifier_key)
        await queue.delete()
        await replace(queues[1], recipient=other).delete()
    await owner.until(lambda: len(owner.blocks) == 3)
    assert owner.blocks[1:] == [
        [Event(queues[0].notifier_id, smp.End())],
        [Event(queues[1].notifier_id, smp.Deld())],
    ]


async def test_what_waited_for_the_subscription_comes(server: SmpServer, owner: Owner, agent: Agent) -> None:
    [queue] = await make_queues(server, 1)
    server.notify(queue.notifier_id)
    owner.add(server.address, queue)
    agent.start(server.address)
    await owner.until(lambda: len(owner.blocks) == 1)
    assert owner.blocks[0][0].entity_id == queue.notifier_id


# --- errors


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (ERR_AUTH, "AUTH"),
        (ERR_PROHIBITED, "CMD PROHIBITED"),
        (Err("BLOCKED", "reason=spam"), "BLOCKED reason=spam"),
        (smp.Pong(), "unexpected answer Pong"),
        (Err("WHAT"), "the answer does not parse: unknown error code"),
    ],
)
async def test_final_errors(server: SmpServer, owner: Owner, agent: Agent, answer: Message, text: str) -> None:
    refused, good = await make_queues(server, 2)
    server.script_nsub(refused.notifier_id, answer)
    [subscription, _] = owner.add(server.address, refused, good)
    agent.start(server.address)
    await owner.until(lambda: bool(owner.ended) and bool(owner.active[server.address]))
    assert owner.ended == {0: Result(subscription, text, auth=text == "AUTH")}
    assert owner.active[server.address] == {1}
    server.drop_all()
    await owner.until(lambda: len(owner.sessions) == 3)
    await owner.all_active(server.address)
    assert (server.nsubs(refused.notifier_id), server.nsubs(good.notifier_id)) == (1, 2)


@pytest.mark.parametrize("answer", [ERR_INTERNAL, ERR_QUOTA, Err("STORE", "text"), Err("EXPIRED"), None])
async def test_temporary_errors_and_silence_are_tried_again(
    server: SmpServer, owner: Owner, agent: Agent, answer: Err | None
) -> None:
    later, good = await make_queues(server, 2)
    server.script_nsub(later.notifier_id, answer, answer)
    owner.add(server.address, later, good)
    agent.start(server.address)
    await owner.all_active(server.address)
    assert not owner.ended
    assert (server.nsubs(later.notifier_id), server.nsubs(good.notifier_id)) == (3, 1)
    assert owner.sessions == [("connected", server.address)]


async def test_an_added_subscription_is_tried_again_too(server: SmpServer, owner: Owner, agent: Agent) -> None:
    first, second = await make_queues(server, 2)
    owner.add(server.address, first)
    agent.start(server.address)
    await owner.all_active(server.address)
    server.script_nsub(second.notifier_id, ERR_INTERNAL)
    agent.subscribe(server.address, *owner.add(server.address, second))
    await owner.all_active(server.address)
    assert server.nsubs(second.notifier_id) == 2


async def test_a_server_too_old_for_the_key(owner: Owner, agent: Agent) -> None:
    async with SmpServer(versions=(6, 6)) as server, await Recipient.connect(server.address) as recipient:
        queue = await recipient.queue()
        owner.add(server.address, replace(queue, notifier_key=X25519PrivateKey.generate()), queue)
        agent.start(server.address)
        await owner.until(lambda: bool(owner.ended) and bool(owner.active[server.address]))
        assert owner.ended[0].error == "the server is too old for this key"
        assert owner.active[server.address] == {1}


# --- reconnecting


async def test_resubscribes_after_a_disconnect(server: SmpServer, owner: Owner, agent: Agent) -> None:
    queues = await make_queues(server, 5)
    owner.add(server.address, *queues)
    agent.start(server.address)
    for n in range(1, 4):
        await owner.all_active(server.address)
        assert [server.nsubs(q.notifier_id) for q in queues] == [n] * 5
        server.drop_all()
        await owner.until(lambda n=n: len(owner.sessions) == 2 * n + 1)  # type: ignore[misc]
    kinds = [kind for kind, _ in owner.sessions]
    assert kinds == ["connected", "disconnected", "connected", "disconnected", "connected", "disconnected", "connected"]


async def test_resubscribes_after_an_outage(
    server: SmpServer, owner: Owner, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    [queue] = await make_queues(server, 1)
    owner.add(server.address, queue)
    agent.start(server.address)
    await owner.all_active(server.address)
    asked = owner.asked
    await server.stop()
    await owner.until(lambda: owner.asked >= asked + 4)  # some attempts
    assert not agent.is_connected(server.address)
    assert [kind for kind, _ in owner.sessions] == ["connected", "disconnected"]
    await server.start()
    await owner.all_active(server.address)
    assert server.subscribed(queue.notifier_id)
    assert any("cannot connect" in r.getMessage() for r in caplog.records)
    assert errors(caplog) == []


async def test_a_server_that_comes_later(owner: Owner, agent: Agent) -> None:
    async with SmpServer() as server:
        queues = await make_queues(server, 1)
        await server.stop()
        owner.add(server.address, *queues)
        agent.start(server.address)
        await owner.until(lambda: owner.asked >= 3)
        assert owner.sessions == []
        await server.start()
        await owner.all_active(server.address)


async def test_disconnects_in_the_midst_of_subscribing_are_no_errors(
    server: SmpServer, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    queues = await make_queues(server, BATCH + 10)
    owner.add(server.address, *queues)
    last = queues[-1].notifier_id
    async with running(owner, replace(FAST, request_timeout=5.0)) as agent:
        for n in range(1, 6):
            server.script_nsub(last, None)
            agent.start(server.address)
            await server.until(lambda n=n: server.nsubs(last) == n)  # type: ignore[misc]
            server.drop_all()
            await owner.until(lambda n=n: len(owner.sessions) >= 2 * n)  # type: ignore[misc]
        await owner.all_active(server.address)
    assert errors(caplog) == []


async def test_a_connection_that_closes_while_nsubs_are_sent(
    server: SmpServer, owner: Owner, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    [queue] = await make_queues(server, 1)
    owner.add(server.address, queue)
    agent.start(server.address)
    await owner.all_active(server.address)
    client = agent._servers[server.address].client
    assert client is not None
    client._connection.abort()  # closing, but nobody knows yet
    agent.subscribe(server.address, *owner.kept[server.address].values())
    await owner.until(lambda: len(owner.sessions) == 3)
    await owner.all_active(server.address)
    assert errors(caplog) == []


async def test_an_owner_that_fails_is_asked_again(
    server: SmpServer, owner: Owner, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    owner.failing = {"wanted", "connected", "pages", "results", "disconnected"}
    owner.add(server.address, *await make_queues(server, 1))
    agent.start(server.address)
    await owner.until(lambda: not owner.failing)
    await owner.all_active(server.address)
    server.drop_all()
    await owner.until(lambda: owner.sessions[-1][0] == "disconnected")
    await owner.all_active(server.address)
    assert set(errors(caplog)) == {"a session with an SMP server failed"}


async def test_close(server: SmpServer, owner: Owner, caplog: pytest.LogCaptureFixture) -> None:
    owner.add(server.address, *await make_queues(server, 3))
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
    assert owner.sessions[-1] == ("disconnected", server.address)
    await server.until(lambda: server.connections == 0)
    assert agent.servers == 0
    assert errors(caplog) == []


async def test_close_while_an_answer_is_awaited(
    server: SmpServer, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    queues = await make_queues(server, 2)
    server.script_nsub(queues[0].notifier_id, None)
    owner.add(server.address, *queues)
    async with running(owner, replace(FAST, request_timeout=5.0)) as agent:
        agent.start(server.address)
        await server.until(lambda: server.subscribed(queues[1].notifier_id))
    assert owner.sessions[-1] == ("disconnected", server.address)
    assert errors(caplog) == []


# --- whom it does not connect to


async def test_an_impostor(server: SmpServer, owner: Owner, agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    [queue] = await make_queues(server, 1)
    accepted = server.accepted
    wrong = replace(server.address, key_hash=bytes(32))
    owner.add(wrong, queue)
    agent.start(wrong)
    await owner.until(lambda: owner.asked >= 3)
    assert owner.sessions == []
    assert server.accepted == accepted
    assert "impersonating" in errors(caplog)[0]


async def test_private_hosts_are_never_connected_to(owner: Owner, caplog: pytest.LogCaptureFixture) -> None:
    touched: list[object] = []

    async def touch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        touched.append(writer)
        writer.close()

    listener = await asyncio.start_server(touch, "127.0.0.1", 0)
    port = str(listener.sockets[0].getsockname()[1])
    async with SmpServer() as server:
        queues = await make_queues(server, 1)
        accepted = server.accepted
        addresses = [
            replace(server.address, hosts=hosts, port=p)
            for hosts in (("localhost",), ("127.0.0.1",), ("::ffff:127.0.0.1",))
            for p in (port, server.address.port)
        ]
        async with running(owner, replace(FAST, allow_private=False)) as agent:
            for address in addresses:
                owner.add(address, *queues)
                agent.start(address)
            await owner.until(lambda: owner.asked >= 3 * len(addresses))
        assert owner.sessions == []
        assert server.accepted == accepted
    assert touched == []
    assert "not on the public internet" in caplog.text
    listener.close()
    await listener.wait_closed()


async def test_a_host_that_is_no_name(owner: Owner, agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    async with SmpServer() as server:
        queues = await make_queues(server, 1)
        for host in ("a" * 64, ".", "a..b"):
            owner.add(replace(server.address, hosts=(host,)), *queues)
            agent.start(replace(server.address, hosts=(host,)))
        await owner.until(lambda: owner.asked >= 9)
    assert owner.sessions == []
    assert errors(caplog) == []


# --- delays


async def test_delays_grow_until_there_is_a_session(
    server: SmpServer, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorded(Backoff):
        def delay(self) -> float:
            taken.append("delay")
            super().delay()
            return 0.0

        def reset(self) -> None:
            taken.append("reset")

    taken: list[str] = []
    monkeypatch.setattr("smp_bridge.agent.Backoff", Recorded)
    owner.add(server.address, *await make_queues(server, 1))
    await server.stop()
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.until(lambda: len(taken) >= 3)
        assert set(taken) == {"delay"}
        await server.start()
        await owner.all_active(server.address)
        failed = len(taken)
        server.drop_all()
        await owner.until(lambda: owner.sessions[1:2] != [])
        await owner.until(lambda: len(owner.sessions) == 3)
    assert taken[failed:][:2] == ["reset", "delay"]


def test_backoff_grows_to_its_bound_and_begins_again() -> None:
    slowest = Backoff(1.0, 10.0, lambda: 1.0)
    delays = [slowest.delay() for _ in range(10)]
    assert delays[:4] == [1.5, 2.25, 3.375, 5.0625]
    assert delays[-1] == 10.0
    slowest.reset()
    assert slowest.delay() == 1.5


def test_backoff_is_jittered_within_its_bounds_from_the_first_delay_on() -> None:
    fastest = Backoff(1.0, 10.0, lambda: 0.0)
    delays = [fastest.delay() for _ in range(10)]
    assert delays[0] == 1.0
    assert delays[-1] == pytest.approx(10.0 / 1.5)
    real = [Backoff(1.0, 10.0) for _ in range(200)]
    assert len({round(b.delay(), 6) for b in real}) > 100
    assert all(1.0 <= b.delay() <= 10.0 for b in real for _ in range(10))


def test_secrets_are_not_in_reprs() -> None:
    subscription = Subscription(1, b"secret-id", Ed25519PrivateKey.generate())
    assert repr(subscription) == "Subscription(ref=1)"
    assert "secret" not in repr(Result(subscription))
