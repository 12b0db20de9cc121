import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from proxies import Proxy
from subscription_owner import FAST, SLOW, Handle, Owner, errors, make_queues, running

from smp_bridge import agent as agent_module
from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.agent import Agent
from smp_bridge.backoff import Patience
from smp_bridge.client import Client, Event
from smp_bridge.failure import ConnectFailure, NsubAnswer
from smp_bridge.handshake import ServiceHello, ServiceUnreadyError
from smp_bridge.identity import Credentials
from smp_bridge.network import Network
from smp_bridge.places import Standing
from smp_bridge.queue_session import PAGE
from smp_bridge.socks import SocksProxy
from smp_bridge.subscriptions import NotWantedError, NsubResult
from smp_bridge.testing import Queue, Recipient, SmpServer
from smp_bridge.tls import SslTls, server_context
from smp_bridge.transmission import ERR_AUTH, ERR_INTERNAL, ERR_PROHIBITED, ERR_QUOTA, ERR_SERVICE, Err, Message
from smp_bridge.transport import MAX_QUEUED_BLOCKS, serve


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
async def agent(owner: Owner) -> AsyncIterator[Agent[Handle]]:
    async with running(owner) as agent:
        yield agent


@pytest.fixture
async def server() -> AsyncIterator[SmpServer]:
    async with SmpServer() as server:
        yield server


async def ended(agent: Agent[Handle]) -> None:
    """Wait until the workers are at their end."""
    await asyncio.wait([worker.task for worker in agent._servers.values()], timeout=5)


# --- subscribing


async def test_many_subscriptions_on_one_connection(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
    queues = await make_queues(server, 2 * PAGE + 5)
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
    assert (agent.servers, list(agent.away())) == (1, [])


async def test_more_pages_than_the_window_holds(server: SmpServer) -> None:
    owner = Owner(page=10)
    owner.add(server.address, *await make_queues(server, 45))
    async with running(owner, replace(FAST, window=2)) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        assert server.nsubs() == 45


async def test_every_kind_of_key(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
    async with await Recipient.connect(server.address) as recipient:
        for make in (Ed25519PrivateKey.generate, Ed448PrivateKey.generate, X25519PrivateKey.generate):
            owner.add(server.address, await recipient.queue(notifier_key=make()))
    agent.start(server.address)
    await owner.all_active(server.address)
    assert not owner.ended


async def test_several_servers(owner: Owner, agent: Agent[Handle]) -> None:
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


async def test_servers_are_told_of_in_the_order_of_their_addresses(owner: Owner, agent: Agent[Handle]) -> None:
    servers = [ServerAddress("smp", (f"{n}.example",), "", bytes(32)) for n in (3, 1, 2)]
    for server in servers:
        agent.start(server)
    first = agent.ways(2)
    assert [way.server for way in first] == [servers[1], servers[2]]
    assert [way.server for way in agent.ways(2, str(first[-1].server))] == [servers[0]]
    assert agent.ways(2, str(servers[0])) == []


async def test_added_while_connected(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
    first, second = await make_queues(server, 2)
    owner.add(server.address, first)
    agent.start(server.address)
    await owner.all_active(server.address)
    accepted = server.accepted
    agent.subscribe(server.address, *owner.add(server.address, second))
    await owner.all_active(server.address)
    assert server.accepted == accepted
    assert (server.nsubs(first.notifier_id), server.nsubs(second.notifier_id)) == (1, 1)


async def test_added_while_not_connected(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
    for queue in await make_queues(server, 3):
        agent.subscribe(server.address, *owner.add(server.address, queue))
    await owner.all_active(server.address)
    assert owner.sessions == [("connected", server.address)]


async def test_a_server_with_nothing_to_subscribe_is_left_alone(
    server: SmpServer, owner: Owner, agent: Agent[Handle]
) -> None:
    agent.start(server.address)
    await owner.until(lambda: owner.asked == 1)
    await ended(agent)
    assert agent.servers == 0
    assert server.accepted == 0
    agent.subscribe(server.address, *owner.add(server.address, *await make_queues(server, 1)))
    await owner.all_active(server.address)
    assert agent.servers == 1


async def test_added_while_the_agent_learns_that_nothing_was_wanted(server: SmpServer) -> None:
    class Slow(Owner):
        async def standing(self, server: ServerAddress) -> Standing | None:
            standing = await super().standing(server)
            await go_on.wait()
            return standing

    go_on = asyncio.Event()
    owner = Slow()
    for add in (Agent.start, lambda agent, server: agent.subscribe(server, *owner.kept[server])):
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


async def test_the_worker_ends_when_nothing_is_wanted_any_more(
    server: SmpServer, owner: Owner, agent: Agent[Handle]
) -> None:
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


async def test_events(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
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


async def test_what_waited_for_the_subscription_comes(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
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
async def test_final_errors(server: SmpServer, owner: Owner, agent: Agent[Handle], answer: Message, text: str) -> None:
    refused, good = await make_queues(server, 2)
    server.script_nsub(refused.notifier_id, answer)
    owner.add(server.address, refused, good)
    agent.start(server.address)
    await owner.until(lambda: bool(owner.ended) and bool(owner.active[server.address]))
    auth = text == "AUTH"
    assert owner.ended == {0: NsubResult(0, 0, NsubAnswer.AUTH if auth else NsubAnswer.ERROR, "" if auth else text)}
    assert owner.active[server.address] == {1}
    server.drop_all()
    await owner.until(lambda: len(owner.sessions) == 3)
    await owner.all_active(server.address)
    assert (server.nsubs(refused.notifier_id), server.nsubs(good.notifier_id)) == (1, 2)


@pytest.mark.parametrize("answer", [ERR_INTERNAL, ERR_QUOTA, Err("STORE", "text"), Err("EXPIRED"), None])
async def test_temporary_errors_and_silence_are_tried_again(
    server: SmpServer, owner: Owner, agent: Agent[Handle], answer: Err | None
) -> None:
    later, good = await make_queues(server, 2)
    server.script_nsub(later.notifier_id, answer, answer)
    owner.add(server.address, later, good)
    agent.start(server.address)
    await owner.all_active(server.address)
    assert not owner.ended
    assert (server.nsubs(later.notifier_id), server.nsubs(good.notifier_id)) == (3, 1)
    assert owner.sessions == [("connected", server.address)]


async def test_an_added_subscription_is_tried_again_too(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
    first, second = await make_queues(server, 2)
    owner.add(server.address, first)
    agent.start(server.address)
    await owner.all_active(server.address)
    server.script_nsub(second.notifier_id, ERR_INTERNAL)
    agent.subscribe(server.address, *owner.add(server.address, second))
    await owner.all_active(server.address)
    assert server.nsubs(second.notifier_id) == 2


async def test_a_store_of_the_server_that_fails_for_a_while(
    server: SmpServer, owner: Owner, agent: Agent[Handle]
) -> None:
    queues = await make_queues(server, 3)
    owner.add(server.address, *queues)
    server.store_fails = True
    agent.start(server.address)
    await owner.until(lambda: owner.pages > 0)
    await asyncio.sleep(0.2)
    assert (owner.ended, owner.active[server.address]) == ({}, set())
    server.store_fails = False
    await owner.all_active(server.address)


async def test_a_blocked_queue_is_not_tried_again(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
    blocked, good = await make_queues(server, 2)
    server.block(blocked.notifier_id, words="reason=content")
    owner.add(server.address, blocked, good)
    agent.start(server.address)
    await owner.until(lambda: bool(owner.ended) and bool(owner.active[server.address]))
    assert owner.ended == {0: NsubResult(0, 0, NsubAnswer.ERROR, "BLOCKED reason=content")}
    server.drop_all()
    await owner.until(lambda: len(owner.sessions) == 3)
    await owner.all_active(server.address)
    assert server.nsubs(blocked.notifier_id) == 1


async def test_all_that_waited_comes_in_its_order_in_batches(owner: Owner) -> None:
    async with SmpServer(delivery_interval=0.1) as server:
        queues = await make_queues(server, 2)
        for _ in range(200):
            server.notify(*(q.notifier_id for q in queues))
        owner.add(server.address, *queues)
        async with running(owner) as agent:
            agent.start(server.address)
            await owner.until(lambda: sum(map(len, owner.blocks)) == 400)
    assert len(owner.blocks) < 10
    events = [e for block in owner.blocks for e in block]
    assert [sum(e.entity_id == q.notifier_id for e in events) for q in queues] == [200, 200]


async def test_a_late_end_does_not_end_what_comes_after_it() -> None:
    async with SmpServer(end_delay=0.3) as server:
        [queue] = await make_queues(server, 1)
        owner = Owner()
        owner.add(server.address, queue)
        async with running(owner) as agent, await Client.connect(server.address) as rival:
            agent.start(server.address)
            await owner.all_active(server.address)
            await rival.request(smp.NSub(), queue.notifier_id, queue.notifier_key)
            agent.subscribe(server.address, 0)  # taken back before the END of the first loss comes
            await server.until(lambda: server.nsubs(queue.notifier_id) == 3)
            await owner.until(lambda: bool(owner.blocks))
            assert owner.blocks == [[Event(queue.notifier_id, smp.End())]]
            server.notify(queue.notifier_id)
            await owner.until(lambda: len(owner.blocks) == 2)


async def test_a_server_too_old_for_the_key(owner: Owner, agent: Agent[Handle]) -> None:
    async with SmpServer(versions=(6, 6)) as server, await Recipient.connect(server.address) as recipient:
        queue = await recipient.queue()
        owner.add(server.address, replace(queue, notifier_key=X25519PrivateKey.generate()), queue)
        agent.start(server.address)
        await owner.until(lambda: bool(owner.ended) and bool(owner.active[server.address]))
        assert owner.ended[0].error == "the server is too old for this key"
        assert owner.active[server.address] == {1}


# --- reconnecting


async def test_resubscribes_after_a_disconnect(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
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
    server: SmpServer, owner: Owner, agent: Agent[Handle], caplog: pytest.LogCaptureFixture
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
    [(address, _, seconds)] = agent.away()
    assert address == server.address and 0 < seconds < 20
    [way] = agent.ways(5)
    assert (way.server, way.is_connected, way.failure) == (server.address, False, ConnectFailure.TCP)
    assert way.reason and way.failed_ago is not None and 0 <= way.failed_ago <= way.seconds < 20
    await owner.until(lambda: agent.ways(1)[0].retry_in is not None)
    assert 0 <= (agent.ways(1)[0].retry_in or 0) < 20
    assert [kind for kind, _ in owner.sessions] == ["connected", "disconnected"]
    await server.start()
    await owner.all_active(server.address)
    [way] = agent.ways(5)
    assert (way.is_connected, way.failure, way.retry_in) == (True, ConnectFailure.TCP, None)
    assert way.failed_ago is not None and 0 <= way.seconds <= way.failed_ago
    assert server.subscribed(queue.notifier_id)
    assert any("cannot connect" in r.getMessage() for r in caplog.records)
    assert errors(caplog) == []


async def test_a_dead_way_is_noticed_and_left(server: SmpServer, owner: Owner) -> None:
    queues = await make_queues(server, 3)
    owner.add(server.address, *queues)
    async with Proxy("socks5") as proxy:
        network = Network(allow_private=True, socks_proxy=SocksProxy("127.0.0.1", proxy.port), socks_mode="always")
        config = replace(FAST, network=network, ping_interval=0.2, ping_timeout=0.2)
        async with running(owner, config) as agent:
            agent.start(server.address)
            await owner.all_active(server.address)
            server.drop_all()  # that is no dead way
            await owner.until(
                lambda: owner.sessions[-2:] == [(k, server.address) for k in ("disconnected", "connected")]
            )
            await owner.all_active(server.address)
            assert owner.dead == []
            proxy.swallow = True
            await owner.until(lambda: bool(owner.dead))
            assert server.subscribed(queues[0].notifier_id)  # it does not know
            proxy.swallow = False
            await owner.all_active(server.address)
    assert owner.dead == [server.address]


async def test_a_server_that_comes_later(owner: Owner, agent: Agent[Handle]) -> None:
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
    queues = await make_queues(server, PAGE + 10)
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
    server: SmpServer, owner: Owner, agent: Agent[Handle], caplog: pytest.LogCaptureFixture
) -> None:
    [queue] = await make_queues(server, 1)
    owner.add(server.address, queue)
    agent.start(server.address)
    await owner.all_active(server.address)
    session_client(agent, server)._connection.abort()  # closing, but nobody knows yet
    agent.subscribe(server.address, *owner.kept[server.address])
    await owner.until(lambda: len(owner.sessions) == 3)
    await owner.all_active(server.address)
    assert errors(caplog) == []


async def test_an_owner_that_fails_is_asked_again(
    server: SmpServer, owner: Owner, agent: Agent[Handle], caplog: pytest.LogCaptureFixture
) -> None:
    owner.failing = {"standing", "service", "connected", "page", "results", "disconnected"}
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


# --- the end of a session: what was received is the owner's


class Slow(Owner):
    """It takes no events before `go_on`."""

    def __init__(self, page: int = 70) -> None:
        super().__init__(page)
        self.go_on = asyncio.Event()
        self.happened: list[str] = []

    async def events(self, session: Handle, events: Sequence[Event]) -> None:
        await self.go_on.wait()
        self.happened.append("events")
        await super().events(session, events)

    async def connected(self, server: ServerAddress, service_id: bytes | None, prefix: str) -> Handle:
        self.happened.append("connected")
        return await super().connected(server, service_id, prefix)

    async def disconnected(self, session: Handle) -> None:
        self.happened.append("disconnected")
        await super().disconnected(session)

    def notified(self) -> set[bytes]:
        return {e.entity_id for block in self.blocks for e in block if isinstance(e.message, smp.NMsg)}


async def notify_one_by_one(server: SmpServer, queues: Sequence[Queue]) -> None:
    """Each in a block of its own."""
    for queue in queues:
        server.notify(queue.notifier_id)
        await asyncio.sleep(0.002)


def session_client(agent: Agent[Handle], server: SmpServer) -> Client:
    session = agent._servers[server.address].session
    assert session is not None
    return session._client


@pytest.mark.parametrize(
    ("count", "sends"),
    # 16 blocks are read ahead, some more the socket holds; what the server itself still has goes with a reset, which
    # is what the server's system answers to anything that is sent after its end.
    [(10, 0), (10, 1), (10, 3), (22, 0), (22, 1), (22, 3), (40, 0)],
)
async def test_events_reach_an_owner_that_is_slow_though_the_connection_is_lost(
    server: SmpServer, count: int, sends: int
) -> None:
    """Whatever is sent between: here NSUBs of added ones."""
    owner = Slow()
    *queues, added = await make_queues(server, count + 1)
    owner.add(server.address, *queues)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        client = session_client(agent, server)
        await notify_one_by_one(server, queues)
        await server.until(lambda: client.untaken >= min(count, MAX_QUEUED_BLOCKS))
        server.drop_all()
        [ref] = owner.add(server.address, added)
        for _ in range(sends):
            agent.subscribe(server.address, ref)
            await asyncio.sleep(0.05)
        owner.go_on.set()
        await owner.until(lambda: owner.happened.count("connected") == 2)
        assert owner.notified() == {q.notifier_id for q in queues}
        assert owner.happened == ["connected", *["events"] * len(owner.blocks), "disconnected", "connected"]
        await owner.all_active(server.address)


async def test_events_reach_the_owner_though_the_connection_is_lost_while_pages_stream(server: SmpServer) -> None:
    owner = Slow(page=1)
    queues = await make_queues(server, 60)
    owner.add(server.address, *queues)
    server.slow = 0.01
    async with running(owner, replace(FAST, window=1)) as agent:
        agent.start(server.address)
        await server.until(lambda: server.nsubs() >= 20)
        subscribed = [q for q in queues if server.subscribed(q.notifier_id)]
        await notify_one_by_one(server, subscribed)
        await server.until(lambda: agent.is_connected(server.address) and session_client(agent, server).untaken > 0)
        await asyncio.sleep(0.1)
        assert len(owner.given[server.address]) < 60
        server.drop_all()
        await asyncio.sleep(0.05)
        owner.go_on.set()
        await owner.until(lambda: "disconnected" in owner.happened)
        assert owner.notified() == {q.notifier_id for q in subscribed}


async def test_an_owner_that_fails_in_a_session_gets_the_events_of_it(
    server: SmpServer, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Slow()
    *queues, added = await make_queues(server, 11)
    owner.add(server.address, *queues)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        await notify_one_by_one(server, queues)
        owner.failing = {"load"}
        agent.subscribe(server.address, *owner.add(server.address, added))
        await owner.until(lambda: not owner.failing)
        await asyncio.sleep(0.1)
        owner.go_on.set()
        await owner.until(lambda: owner.happened.count("connected") == 2)
        assert owner.notified() == {q.notifier_id for q in queues}
    assert errors(caplog) == ["a session with an SMP server failed"]


@pytest.mark.parametrize("count", [10, 40], ids=["read", "more than is read ahead"])
async def test_close_hands_over_what_servers_sent(
    server: SmpServer, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Slow()
    queues = await make_queues(server, count)
    owner.add(server.address, *queues)
    agent = Agent(owner, FAST)
    agent.start(server.address)
    await owner.all_active(server.address)
    await notify_one_by_one(server, queues)
    closing = asyncio.create_task(agent.close(grace=10.0))
    await asyncio.sleep(0.5)
    assert not closing.done()
    owner.go_on.set()
    assert await closing == 0
    assert owner.notified() == {q.notifier_id for q in queues}
    assert owner.happened[-1] == "disconnected"
    assert agent.servers == 0
    assert errors(caplog) == []


async def test_close_takes_what_comes_until_the_server_knows_of_it(server: SmpServer) -> None:
    owner = Slow()
    owner.go_on.set()
    queues = await make_queues(server, 30)
    owner.add(server.address, *queues)
    agent = Agent(owner, FAST)
    agent.start(server.address)
    await owner.all_active(server.address)
    server.notify(*(q.notifier_id for q in queues))  # under way, not read
    assert await agent.close() == 0
    assert owner.notified() == {q.notifier_id for q in queues}


async def test_close_counts_what_the_owner_did_not_take_in_time(
    server: SmpServer, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Slow()
    queues = await make_queues(server, 5)
    owner.add(server.address, *queues)
    agent = Agent(owner, FAST)
    agent.start(server.address)
    await owner.all_active(server.address)
    client = session_client(agent, server)
    await notify_one_by_one(server, queues)
    await server.until(lambda: client.untaken == 5)
    start = asyncio.get_running_loop().time()
    assert await agent.close(grace=0.4) == 5
    assert asyncio.get_running_loop().time() - start < 2
    assert owner.happened == ["connected", "disconnected"]
    assert errors(caplog) == ["5 blocks that SMP servers had sent were not taken before the end"]
    await server.until(lambda: server.connections == 0)


async def test_close_ends_those_that_connect_or_wait(server: SmpServer, owner: Owner) -> None:
    queues = await make_queues(server, 1)
    async with tcp_server(keep_silent) as port:
        silent, refusing = replace(server.address, port=port), replace(server.address, hosts=("127.0.0.2",))
        agent = Agent(owner, replace(FAST, min_backoff=1000.0, max_backoff=1000.0, patience=SLOW))
        for address in (silent, refusing):
            owner.add(address, *queues)
            agent.start(address)
        await owner.until(lambda: bool(owner.failures))
        start = asyncio.get_running_loop().time()
        assert await agent.close(grace=1000.0) == 0
        assert asyncio.get_running_loop().time() - start < 2
    assert agent.servers == 0


# --- a server on which nothing is wanted any more


async def test_release_ends_the_session_and_the_worker(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
    owner.add(server.address, *await make_queues(server, 2))
    agent.start(server.address)
    await owner.all_active(server.address)
    owner.kept[server.address].clear()
    agent.release(server.address)
    await owner.until(lambda: owner.sessions[-1] == ("disconnected", server.address))
    await ended(agent)
    assert agent.servers == 0
    await server.until(lambda: server.connections == 0)
    agent.release(server.address)  # of no session


async def test_release_hands_over_what_was_received(server: SmpServer) -> None:
    owner = Slow()
    queues = await make_queues(server, 10)
    owner.add(server.address, *queues)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        await notify_one_by_one(server, queues)
        owner.kept[server.address].clear()
        agent.release(server.address)
        await asyncio.sleep(0.1)
        assert agent.is_connected(server.address)
        owner.go_on.set()
        await owner.until(lambda: "disconnected" in owner.happened)
        await ended(agent)
    assert owner.notified() == {q.notifier_id for q in queues}


async def test_what_is_wanted_after_all_gets_a_session(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
    first, second = await make_queues(server, 2)
    owner.add(server.address, first)
    agent.start(server.address)
    await owner.all_active(server.address)
    owner.kept[server.address].clear()
    agent.release(server.address)
    agent.subscribe(server.address, *owner.add(server.address, second))
    await owner.until(lambda: len(owner.sessions) == 3)
    await owner.all_active(server.address)
    assert server.subscribed(second.notifier_id)
    assert not server.subscribed(first.notifier_id)


async def test_released_over_and_over_it_connects_no_faster(server: SmpServer, owner: Owner) -> None:
    owner.add(server.address, *await make_queues(server, 1))
    async with running(owner, replace(FAST, min_backoff=1000.0, max_backoff=1000.0, patience=SLOW)) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        accepted, asked = server.accepted, owner.asked
        for _ in range(3):
            agent.release(server.address)
        await owner.until(lambda: owner.asked == asked + 1)
        for _ in range(3):
            agent.release(server.address)
        await asyncio.sleep(0.1)
        assert server.accepted == accepted
        assert agent.servers == 1


# --- whose session it was


async def test_each_session_has_a_handle_and_an_event_that_of_its_own(server: SmpServer) -> None:
    """An event that its owner took late is not one of the session of now."""

    class Noting(Slow):
        async def events(self, session: Handle, events: Sequence[Event]) -> None:
            await super().events(session, events)
            noted.append((session, events[0].entity_id))

    noted: list[tuple[Handle, bytes]] = []
    owner = Noting()
    queues = await make_queues(server, 3)
    owner.add(server.address, *queues)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        old = owner.handles[server.address]
        await notify_one_by_one(server, queues)
        client = session_client(agent, server)
        await server.until(lambda: client.untaken == 3)
        server.drop_all()
        await asyncio.sleep(0.2)
        assert not old.over  # no new one meanwhile
        assert owner.handles[server.address] is old
        owner.go_on.set()
        await owner.until(lambda: owner.happened.count("connected") == 2)
        await owner.all_active(server.address)
        new = owner.handles[server.address]
        await notify_one_by_one(server, queues)
        await owner.until(lambda: len(noted) == 6)
    assert [session is old for session, _ in noted] == [True] * 3 + [False] * 3
    assert [session is new for session, _ in noted] == [False] * 3 + [True] * 3


async def test_an_owner_that_takes_no_session_gets_nothing_of_it(server: SmpServer, owner: Owner) -> None:
    owner.failing = {"connected"}
    owner.add(server.address, *await make_queues(server, 1))
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        assert owner.sessions == [("connected", server.address)]
        await server.until(lambda: server.connections == 1)


async def test_delays_are_jittered_by_the_numbers_that_are_handed_in(server: SmpServer, owner: Owner) -> None:
    def rng() -> float:
        drawn.append(0.5)
        return 0.5

    drawn: list[float] = []
    owner.add(server.address, *await make_queues(server, 1))
    async with running(owner, replace(FAST, rng=rng)) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        server.drop_all()
        await owner.until(lambda: len(owner.sessions) == 3)
    assert len(drawn) == 1


# --- whom it does not connect to


async def test_an_impostor(
    server: SmpServer, owner: Owner, agent: Agent[Handle], caplog: pytest.LogCaptureFixture
) -> None:
    [queue] = await make_queues(server, 1)
    accepted = server.accepted
    wrong = replace(server.address, key_hash=bytes(32))
    owner.add(wrong, queue)
    agent.start(wrong)
    await owner.until(lambda: owner.asked >= 3)
    assert owner.sessions == []
    assert server.accepted == accepted
    assert errors(caplog) == []  # whether it is one, or the address is wrong, is the owner's to know


async def test_private_hosts_are_never_connected_to(owner: Owner, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "smp_bridge")
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
        async with running(owner, replace(FAST, network=Network())) as agent:
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


async def test_a_host_that_is_no_name(owner: Owner, agent: Agent[Handle], caplog: pytest.LogCaptureFixture) -> None:
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
    class Recorded(Patience):
        def delay(self, **what: Any) -> float:
            taken.append("delay")
            super().delay(**what)
            return 0.0

        def lasted(self, seconds: float) -> None:
            taken.append("reset")

    taken: list[str] = []
    monkeypatch.setattr("smp_bridge.agent.Patience", Recorded)
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


async def test_a_session_that_the_owner_does_not_want_after_all_is_no_failure(
    server: SmpServer, owner: Owner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another node speaks for the server by then."""
    caplog.set_level(logging.INFO)
    owner.add(server.address, *await make_queues(server, 1))
    accept, refusals = owner.connected, iter([NotWantedError("another node speaks for this server")])

    async def connected(*arguments: Any) -> Handle:
        if error := next(refusals, None):
            raise error
        return await accept(*arguments)

    monkeypatch.setattr(owner, "connected", connected)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
    assert "another node speaks for this server" in caplog.text
    assert "Traceback" not in caplog.text and errors(caplog) == []


# --- as a service

SERVICE, _ = Credentials.generate("ED25519", "service")


@pytest.fixture
async def service_owner(server: SmpServer) -> Owner:
    """It is a service, and has 12 queues on the server."""
    owner = Owner()
    owner.credentials = SERVICE
    owner.add(server.address, *await make_queues(server, 12))
    return owner


def associated(server: SmpServer, owner: Owner) -> bool:
    return all(server.associated(s.notifier_id) for s in owner.kept[server.address].values())


async def settled(owner: Owner, server: SmpServer, counts: int) -> None:
    """All active, and so many NSUBS answered."""
    await owner.until(lambda: len(owner.counts) >= counts)
    await owner.all_active(server.address)
    assert all(server.subscribed(s.notifier_id) for s in owner.kept[server.address].values())


async def test_associates_once_and_then_by_one_command(server: SmpServer, service_owner: Owner) -> None:
    owner = service_owner
    async with running(owner) as agent:
        agent.start(server.address)
        await settled(owner, server, 1)
        assert associated(server, owner)
        assert (owner.counts, server.nsubs(), server.nsubs_commands) == ([12], 12, 1)
        for _ in range(2):
            counted = len(owner.counts)
            server.drop_all()
            await settled(owner, server, counted + 1)
        assert server.nsubs() == 12
        assert set(owner.counts) == {12}
        [one] = await make_queues_beside(server, 1)
        agent.subscribe(server.address, *owner.add(server.address, one))
        await owner.all_active(server.address)
        assert associated(server, owner)
        counted = len(owner.counts)
        server.drop_all()
        await settled(owner, server, counted + 1)
    assert (server.nsubs(), server.nsubs_commands) == (13, 4)  # one NSUBS in each session
    assert owner.counts == [12, 12, 12, 13]
    assert len(set(owner.service_ids[server.address])) == 1
    assert owner.refused == 0


async def make_queues_beside(server: SmpServer, count: int) -> list[Queue]:
    """While the agent is connected."""
    async with await Recipient.connect(server.address) as recipient:
        return [await recipient.queue() for _ in range(count)]


async def test_tls_of_the_service_is_made_once(
    server: SmpServer, service_owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And anew when the owner has another certificate."""
    made: list[bool] = []
    make = agent_module.client_context

    def counted(scheme: Any, credentials: Any = None) -> Any:
        made.append(credentials is not None)
        return make(scheme, credentials)

    monkeypatch.setattr(agent_module, "client_context", counted)
    async with running(service_owner) as agent:
        agent.start(server.address)
        for session in range(4):
            await service_owner.until(lambda n=session: len(service_owner.service_ids[server.address]) > n)  # type: ignore[misc]
            if session == 1:
                service_owner.credentials, _ = Credentials.generate("ED25519", "another")
            server.drop_all()
    assert made == [False, True, True]


async def test_of_many_services_that_begin_together_each_has_a_turn_of_the_loop(
    server: SmpServer, service_owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    turn, loop, real = 0, asyncio.get_running_loop(), agent_module.client_context

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(next_turn)

    def make(*arguments: Any) -> ssl.SSLContext:
        turns.append(turn)
        return real(*arguments)

    monkeypatch.setattr(agent_module, "client_context", make)
    loop.call_soon(next_turn)
    async with running(service_owner) as agent:
        turns.clear()
        for n in range(20):
            nowhere = replace(server.address, port=str(20_000 + n))
            service_owner.kept[nowhere] = service_owner.kept[server.address]
            agent.start(nowhere)
        async with asyncio.timeout(10):
            while len(turns) < 20:
                await asyncio.sleep(0.01)
    assert len(set(turns)) == 20


async def test_each_session_has_another_key(server: SmpServer, service_owner: Owner) -> None:
    keys = []
    async with running(service_owner) as agent:
        agent.start(server.address)
        for n in (1, 2):
            await settled(service_owner, server, n)
            service = session_client(agent, server).session.service
            assert service is not None
            keys.append(service.key)
            server.drop_all()
            await service_owner.until(lambda n=n: len(service_owner.sessions) > n)  # type: ignore[misc]
    assert keys[0] is not keys[1]


@pytest.mark.parametrize("offset", [3, -3])
async def test_a_count_that_is_another(server: SmpServer, service_owner: Owner, offset: int) -> None:
    """The owner decides: here each is subscribed once more in a session, then the count is believed."""
    server.service_count_offset = offset
    async with running(service_owner) as agent:
        agent.start(server.address)
        await settled(service_owner, server, 2)
    assert service_owner.counts == [12 + offset] * 2
    assert server.nsubs() == 24


@pytest.mark.parametrize("lose", [SmpServer.forget_services, SmpServer.change_service_ids, SmpServer.dissociate])
async def test_a_server_that_lost_the_service(
    server: SmpServer, service_owner: Owner, lose: Callable[[SmpServer], None]
) -> None:
    async with running(service_owner) as agent:
        agent.start(server.address)
        await settled(service_owner, server, 1)
        lose(server)
        server.drop_all()
        await service_owner.until(lambda: len(service_owner.sessions) == 3)
        await settled(service_owner, server, 2)
    assert associated(server, service_owner)
    assert server.nsubs() == 24
    assert service_owner.refused == 0
    assert not service_owner.ended


async def test_err_service_to_nsubs_has_all_subscribed_one_by_one(server: SmpServer, service_owner: Owner) -> None:
    server.script_nsubs(ERR_SERVICE)
    async with running(service_owner) as agent:
        agent.start(server.address)
        await settled(service_owner, server, 2)
    assert service_owner.counts == [None, 12]
    assert server.nsubs() == 24
    assert service_owner.refused == 0


async def test_err_service_to_nsubs_for_ever(server: SmpServer, service_owner: Owner) -> None:
    """It ends in a session without service, after a bounded number of NSUBs."""
    server.script_nsubs(*[ERR_SERVICE] * 1000)
    async with running(service_owner) as agent:
        agent.start(server.address)
        await service_owner.until(lambda: service_owner.refused == 1)
        await service_owner.until(lambda: service_owner.service_ids[server.address][-1] is None)
        await settled(service_owner, server, 1)
    assert service_owner.counts == [None]
    assert server.nsubs() == 36
    assert not associated(server, service_owner)


async def test_err_auth_to_nsubs_once_is_mended_by_another_session(server: SmpServer, service_owner: Owner) -> None:
    server.script_nsubs(ERR_AUTH)
    async with running(service_owner) as agent:
        agent.start(server.address)
        await service_owner.until(lambda: len(service_owner.sessions) == 3)
        await settled(service_owner, server, 1)
        assert None not in service_owner.service_ids[server.address]
        assert service_owner.refused == 0
        server.script_nsubs(ERR_AUTH)  # much later: it does not count as the second in a row
        server.drop_all()
        await service_owner.until(lambda: len(service_owner.sessions) >= 7)
        await settled(service_owner, server, 2)
    assert service_owner.refused == 0
    assert not service_owner.ended


async def test_a_service_that_the_session_outlives(server: SmpServer, service_owner: Owner) -> None:
    """NSUBs of this session associate with a service that the server has lost; NSUBS says so."""

    def forget(answers: list[bytes]) -> list[bytes]:
        if server.nsubs() == 12:
            server.forget_services()
        return answers

    server.answers = forget
    async with running(service_owner) as agent:
        agent.start(server.address)
        await service_owner.until(lambda: len(service_owner.sessions) == 3)
        server.answers = None
        await settled(service_owner, server, 1)
    assert associated(server, service_owner)
    assert service_owner.refused == 0


@pytest.mark.parametrize(
    "answers",
    [[ERR_AUTH, ERR_AUTH], [ERR_PROHIBITED], [smp.Pong()], [Err("WHAT")], [Err("BLOCKED", "reason=spam")]],
    ids=str,
)
async def test_nsubs_is_refused(server: SmpServer, service_owner: Owner, answers: list[Message]) -> None:
    server.script_nsubs(*answers)
    async with running(service_owner) as agent:
        agent.start(server.address)
        await service_owner.until(lambda: service_owner.service_ids[server.address][-1:] == [None])
        await service_owner.all_active(server.address)
    assert service_owner.refused == 1
    assert service_owner.counts == []
    assert not service_owner.ended
    assert len(service_owner.service_ids[server.address]) == len(answers) + 1


@pytest.mark.parametrize("answer", [ERR_INTERNAL, ERR_QUOTA, Err("STORE", "text"), Err("EXPIRED")])
async def test_nsubs_is_tried_again(server: SmpServer, service_owner: Owner, answer: Message) -> None:
    server.script_nsubs(answer, answer)
    async with running(service_owner) as agent:
        agent.start(server.address)
        await settled(service_owner, server, 1)
    assert (server.nsubs_commands, server.nsubs()) == (3, 12)
    assert service_owner.refused == 0
    assert service_owner.sessions.count(("connected", server.address)) == 1


async def test_pings_wait_behind_a_slow_nsubs(server: SmpServer, service_owner: Owner) -> None:
    queues = await make_queues(server, 2)
    service_owner.add(server.address, *queues)
    config = replace(FAST, ping_interval=0.05, ping_timeout=0.05, service_timeout=5.0)
    async with running(service_owner, config) as agent:
        agent.start(server.address)
        await service_owner.all_active(server.address)
        server.nsubs_delay = 1.0
        server.drop_all()
        await service_owner.until(lambda: len(service_owner.sessions) == 3)
        await service_owner.all_active(server.address)
    assert service_owner.dead == []
    assert [kind for kind, _ in service_owner.sessions].count("connected") == 2


async def test_nothing_is_subscribed_singly_before_nsubs_is_answered(server: SmpServer, service_owner: Owner) -> None:
    async with running(service_owner) as agent:
        agent.start(server.address)
        await settled(service_owner, server, 1)
        server.script_nsubs(None)
        pages = service_owner.pages
        server.drop_all()
        await server.until(lambda: server.nsubs_commands == 2)
        assert service_owner.pages == pages
        await service_owner.until(lambda: len(service_owner.sessions) == 3)
        await settled(service_owner, server, 2)
    assert server.nsubs() == 12


@pytest.mark.parametrize(("answer", "sessions"), [(None, 6), (ERR_INTERNAL, 2)])
async def test_a_server_that_takes_long_to_say_what_the_service_has(
    server: SmpServer, service_owner: Owner, answer: Message | None, sessions: int
) -> None:
    async with running(service_owner) as agent:
        agent.start(server.address)
        await settled(service_owner, server, 1)
        server.script_nsubs(*[answer] * 4)
        server.drop_all()
        await settled(service_owner, server, 2)
        assert associated(server, service_owner)
    assert (server.nsubs_commands, server.nsubs()) == (6, 12)
    assert service_owner.sessions.count(("connected", server.address)) == sessions
    assert service_owner.refused == 0
    assert None not in service_owner.service_ids[server.address]
    assert not service_owner.ended


async def test_a_server_that_cannot_take_the_service_for_now_keeps_its_associations(
    server: SmpServer, service_owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(service_owner) as agent:
        agent.start(server.address)
        await settled(service_owner, server, 1)
        register, times = server._service_id, 3

        def unready(hello: ServiceHello) -> bytes:
            nonlocal times
            times -= 1
            if times >= 0:
                raise ServiceUnreadyError("the store is busy")
            return register(hello)

        monkeypatch.setattr(server, "_service_id", unready)
        server.drop_all()
        await settled(service_owner, server, 2)
        assert associated(server, service_owner)
    assert service_owner.failures == [ConnectFailure.HANDSHAKE] * 3
    assert service_owner.refused == 0
    assert server.nsubs() == 12


async def test_a_service_that_is_refused_is_left_out_at_once(server: SmpServer, service_owner: Owner) -> None:
    server.refuse_services = True
    async with running(service_owner, replace(FAST, min_backoff=1000.0, max_backoff=1000.0, patience=SLOW)) as agent:
        agent.start(server.address)
        await service_owner.all_active(server.address)
    assert service_owner.refused == 1


async def test_err_service_to_an_nsub_in_a_service_session(server: SmpServer, service_owner: Owner) -> None:
    first = service_owner.kept[server.address][0]
    server.script_nsub(first.notifier_id, ERR_SERVICE)
    config = replace(FAST, without_service=0.4)
    async with running(service_owner, config) as agent:
        agent.start(server.address)
        await service_owner.until(lambda: service_owner.refused == 1)
        await service_owner.until(lambda: service_owner.service_ids[server.address][-1] is None)
        await service_owner.all_active(server.address)
        assert not associated(server, service_owner)
        assert not service_owner.ended
        start = asyncio.get_running_loop().time()
        while service_owner.service_ids[server.address][-1] is None:
            sessions = len(service_owner.sessions)
            await server.until(lambda: server.connections == 1)
            server.drop_all()
            await service_owner.until(lambda n=sessions: len(service_owner.sessions) == n + 2)  # type: ignore[misc]
        assert asyncio.get_running_loop().time() - start < 2
        await settled(service_owner, server, 1)
        assert associated(server, service_owner)
    ids = service_owner.service_ids[server.address]
    assert len(ids) >= 3
    assert ids == [ids[0], *[None] * (len(ids) - 2), ids[0]]


async def test_err_service_without_a_service_is_final(server: SmpServer, owner: Owner, agent: Agent[Handle]) -> None:
    [queue] = await make_queues(server, 1)
    server.script_nsub(queue.notifier_id, ERR_SERVICE)
    owner.add(server.address, queue)
    agent.start(server.address)
    await owner.until(lambda: bool(owner.ended))
    assert owner.ended == {0: NsubResult(0, 0, NsubAnswer.SERVICE)}
    assert owner.refused == 0


async def test_a_service_refused_in_the_handshake(server: SmpServer, service_owner: Owner) -> None:
    server.refuse_services = True
    # Whatever else is wrong with its other hosts, the refusal counts.
    address = replace(server.address, hosts=("localhost", "127.0.0.2"))
    service_owner.kept[address] = service_owner.kept[server.address]
    async with running(service_owner) as agent:
        agent.start(address)
        await service_owner.all_active(address)
        sessions = len(service_owner.sessions)
        server.drop_all()
        await service_owner.until(lambda: len(service_owner.sessions) == sessions + 2)
        await service_owner.all_active(address)
    assert service_owner.refused == 1
    assert service_owner.failures == []
    assert set(service_owner.service_ids[address]) == {None}


@pytest.mark.parametrize("versions", [(6, 6), (6, 15)])
async def test_a_server_below_16(versions: tuple[int, int]) -> None:
    owner = Owner()
    owner.credentials = SERVICE
    async with SmpServer(versions=versions) as server:
        owner.add(server.address, *await make_queues_beside(server, 3))
        async with running(owner) as agent:
            agent.start(server.address)
            await owner.all_active(server.address)
        assert (server.nsubs(), server.nsubs_commands) == (3, 0)
    assert owner.service_ids[server.address] == [None]
    assert (owner.refused, owner.counts) == (0, [])


async def test_no_service_any_more(server: SmpServer, service_owner: Owner) -> None:
    """Plain NSUBs dissolve the associations."""
    async with running(service_owner) as agent:
        agent.start(server.address)
        await settled(service_owner, server, 1)
        service_owner.credentials = None
        server.drop_all()
        await service_owner.until(lambda: len(service_owner.sessions) == 3)
        await service_owner.all_active(server.address)
    assert server.nsubs() == 24
    assert not any(server.associated(s.notifier_id) for s in service_owner.kept[server.address].values())


def ends(owner: Owner) -> int:
    return sum(isinstance(e.message, smp.Ends) for events in owner.blocks for e in events)


async def test_what_another_session_took_over_is_taken_back(server: SmpServer, service_owner: Owner) -> None:
    clock = asyncio.get_running_loop().time
    other = Owner()
    other.credentials = SERVICE
    config = replace(FAST, ended_backoff=0.3)
    async with running(service_owner, config) as agent:
        agent.start(server.address)
        await settled(service_owner, server, 1)
        took = []
        for n in range(1, 4):  # each time the delay is twice as long
            other.add(server.address, *await make_queues_beside(server, 1))
            async with running(other) as rival:
                rival.start(server.address)
                await service_owner.until(lambda n=n: ends(service_owner) == n)  # type: ignore[misc]
                start = clock()
                assert not service_owner.active[server.address]
                assert agent.is_connected(server.address)
                await service_owner.until(lambda n=n: len(service_owner.sessions) == 2 * n + 1)  # type: ignore[misc]
                took.append(clock() - start)
                await service_owner.all_active(server.address)
                await rival.close()
        assert took[0] >= 0.29
        assert took[1] >= 0.59
        assert took[2] >= 1.19
        server.drop_all()
        await service_owner.until(lambda: len(service_owner.sessions) == 9)
        await service_owner.all_active(server.address)
        assert agent._servers[server.address]._service.taken_over() == 0.3  # a session without it forgives
    assert not service_owner.ended


async def test_two_with_the_same_service_do_not_fight_fast(server: SmpServer, service_owner: Owner) -> None:
    other = Owner()
    other.credentials = SERVICE
    for s in service_owner.kept[server.address].values():
        other.keep(server.address, s.notifier_id, s.notifier_key)
    config = replace(FAST, ended_backoff=1000.0)
    async with running(service_owner, config) as agent, running(other, config) as rival:
        agent.start(server.address)
        await settled(service_owner, server, 1)
        rival.start(server.address)
        await other.all_active(server.address)
        await service_owner.until(lambda: ends(service_owner) == 1)
        await settled(other, server, 1)
        assert (len(service_owner.sessions), len(other.sessions)) == (1, 1)
        assert server.connections == 2
        assert ends(other) == 0


async def test_sessions_of_the_past_do_not_end_those_of_now(server: SmpServer, service_owner: Owner) -> None:
    async with running(service_owner, replace(FAST, ended_backoff=0.2)) as agent:
        agent.start(server.address)
        await settled(service_owner, server, 1)
        worker = agent._servers[server.address]
        for _ in range(2):
            await worker._on_events(service_owner.handles[server.address], [Event(b"s" * 24, smp.Ends(12))])
        server.drop_all()
        await service_owner.until(lambda: len(service_owner.sessions) == 3)
        await service_owner.all_active(server.address)
        await asyncio.wait([worker.task], timeout=0.4)
        assert len(service_owner.sessions) == 3
        assert worker._service.taken_over() == 0.4


# --- why a server cannot be connected to


@contextlib.asynccontextmanager
async def tcp_server(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Its port."""
    writers: list[asyncio.StreamWriter] = []

    async def on_connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError):
            await handle(reader, writer)

    listening = await asyncio.start_server(on_connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield str(listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        await asyncio.sleep(0.02)  # who was accepted just now gets its writer
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def talk_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example.com ESMTP\r\n" * 10)
    await writer.drain()


async def say_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(16384))
    await writer.drain()
    await reader.read()


async def failure_of(address: ServerAddress, network: Network, caplog: pytest.LogCaptureFixture) -> ConnectFailure:
    caplog.clear()
    caplog.set_level(logging.DEBUG, "smp_bridge")
    owner = Owner()
    owner.keep(address, b"n" * 24, Ed25519PrivateKey.generate())
    async with running(owner, replace(FAST, network=network)) as agent:
        agent.start(address)
        await owner.until(lambda: len(owner.failures) >= 2)  # and again
    assert owner.sessions == []
    assert len(set(owner.failures)) == 1
    said = [r.levelno for r in caplog.records if "cannot connect" in r.getMessage()]
    assert said == [logging.INFO] + [logging.DEBUG] * (len(said) - 1)  # once
    return owner.failures[0]


ANY = Network(allow_private=True)


@pytest.mark.parametrize(
    ("changes", "network", "expected"),
    [
        ({"key_hash": bytes(32)}, ANY, ConnectFailure.IDENTITY),
        ({"hosts": ("no-such-host.invalid",)}, ANY, ConnectFailure.RESOLVE),
        ({"hosts": ("a" * 64,)}, ANY, ConnectFailure.RESOLVE),
        ({}, Network(), ConnectFailure.NOT_ALLOWED),
        ({}, replace(ANY, denied=(IPv4Network("127.0.0.0/8"), IPv6Network("::1"))), ConnectFailure.NOT_ALLOWED),
        ({"hosts": ("a" * 56 + ".onion",)}, ANY, ConnectFailure.NOT_ALLOWED),
        ({"hosts": ("127.0.0.2",)}, ANY, ConnectFailure.TCP),
    ],
)
async def test_connect_failures(
    server: SmpServer,
    changes: dict[str, Any],
    network: Network,
    expected: ConnectFailure,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await failure_of(replace(server.address, **changes), network, caplog) is expected


@pytest.mark.parametrize(
    ("handle", "expected"),
    [
        (hang_up, ConnectFailure.HANDSHAKE),
        (keep_silent, ConnectFailure.TIMEOUT),
        (talk_plainly, ConnectFailure.TLS),
    ],
)
async def test_connect_failures_before_tls(
    server: SmpServer, handle: Any, expected: ConnectFailure, caplog: pytest.LogCaptureFixture
) -> None:
    async with tcp_server(handle) as port:
        network = replace(ANY, connect_timeout=0.3 if expected is ConnectFailure.TIMEOUT else 20.0)
        assert await failure_of(replace(server.address, port=port), network, caplog) is expected


@pytest.mark.parametrize(
    ("handle", "expected"),
    [
        (hang_up, ConnectFailure.HANDSHAKE),
        (keep_silent, ConnectFailure.TIMEOUT),
        (say_nonsense, ConnectFailure.HANDSHAKE),
    ],
)
async def test_connect_failures_after_tls(
    handle: Any, expected: ConnectFailure, caplog: pytest.LogCaptureFixture
) -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    async with tcp_server(handle, server_context("smp", credentials)) as port:
        address = ServerAddress("smp", ("localhost",), port, credentials.key_hash)
        network = replace(ANY, connect_timeout=0.5 if expected is ConnectFailure.TIMEOUT else 20.0)
        assert await failure_of(address, network, caplog) is expected


async def test_connect_failures_of_tls_and_versions(caplog: pytest.LogCaptureFixture) -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    aes = server_context("smp", credentials)
    aes.maximum_version = ssl.TLSVersion.TLSv1_2
    aes.set_ciphers("ECDHE+AESGCM")
    tls = partial(SslTls, aes, server_side=True)
    listening = await serve("smp", credentials, lambda _: None, "127.0.0.1", 0, tls=tls)
    port = str(listening.sockets[0].getsockname()[1])
    address = ServerAddress("smp", ("localhost",), port, credentials.key_hash)
    assert await failure_of(address, ANY, caplog) is ConnectFailure.TLS
    listening.close()
    async with SmpServer(versions=(21, 22)) as server:
        assert await failure_of(server.address, ANY, caplog) is ConnectFailure.HANDSHAKE


async def test_connect_failures_of_the_proxy(server: SmpServer, caplog: pytest.LogCaptureFixture) -> None:
    async with tcp_server(hang_up) as port:
        proxy = SocksProxy("127.0.0.1", int(port))
        network = replace(ANY, socks_proxy=proxy, socks_mode="always")
        assert await failure_of(server.address, network, caplog) is ConnectFailure.PROXY


async def test_an_impostor_is_told_whatever_the_other_hosts_are(
    server: SmpServer, caplog: pytest.LogCaptureFixture
) -> None:
    address = replace(server.address, hosts=("127.0.0.1", "127.0.0.2"), key_hash=bytes(32))
    assert await failure_of(address, ANY, caplog) is ConnectFailure.IDENTITY


# --- servers that prove themselves, or do not


async def test_where_a_session_leads_is_told(server: SmpServer, owner: Owner) -> None:
    owner.add(server.address, *await make_queues(server, 1))
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
    assert owner.prefixes == ["127.0.0.0/24"]
    [(destinations, proven)] = owner.admitted
    assert "127.0.0.1/32" in destinations
    assert proven


async def test_a_connect_waits_as_long_as_its_owner_says(server: SmpServer, owner: Owner) -> None:
    owner.add(server.address, *await make_queues(server, 1))
    owner.waits = [0.3]
    async with running(owner) as agent:
        began = asyncio.get_running_loop().time()
        agent.start(server.address)
        await owner.all_active(server.address)
        assert asyncio.get_running_loop().time() - began >= 0.29


async def test_what_a_server_proved_is_lost_after_many_failures(server: SmpServer, owner: Owner) -> None:
    """While others are well: else it is rather our own network."""
    queues = await make_queues(server, 1)
    dead = replace(server.address, key_hash=bytes(32), port="1")
    owner.add(dead, *queues)
    patience = replace(FAST.patience, lost_after=3)
    async with running(owner, replace(FAST, patience=patience)) as agent:
        agent.start(dead)
        await owner.until(lambda: len(owner.failures) >= 8)
        assert not owner.lost
        owner.add(server.address, *queues)
        agent.start(server.address)
        await owner.until(lambda: bool(owner.lost))
        count = len(owner.failures)
        await owner.until(lambda: len(owner.failures) >= count + 5)
    assert owner.lost == [dead]
    assert not owner.given_up_on


async def test_a_server_that_never_answered_is_given_up(server: SmpServer, owner: Owner) -> None:
    queues = await make_queues(server, 1)
    dead = replace(server.address, key_hash=bytes(32), port="1")
    for address in (server.address, dead):
        owner.add(address, *queues)
    owner.standings[dead] = Standing((), 8 * 24 * 3600.0)
    async with running(owner, replace(FAST, patience=replace(FAST.patience, give_up_tries=3, high_old=0.1))) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        agent.start(dead)
        await owner.until(lambda: owner.given_up_on == [dead])
        async with asyncio.timeout(5):
            while agent.knows(dead):
                await asyncio.sleep(0.01)
        owner.standings[dead] = Standing()
        owner.add(dead, *queues)  # and it may be asked for anew
        failures = len(owner.failures)
        agent.start(dead)
        await owner.until(lambda: len(owner.failures) >= failures + 2)


async def test_what_is_added_is_not_waited_for_for_hours(
    server: SmpServer, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_NOT_FOR_LONG", 0.3)
    owner.add(server.address, *await make_queues(server, 1))
    await server.stop()
    async with running(owner, replace(FAST, patience=SLOW)) as agent:
        agent.start(server.address)
        await owner.until(lambda: len(owner.failures) == 1)
        await server.start()
        began = asyncio.get_running_loop().time()
        agent.start(server.address)
        await owner.all_active(server.address)
        assert asyncio.get_running_loop().time() - began >= 0.2


async def test_an_audit_subscribes_what_is_associated_again_and_asks_once_more(
    server: SmpServer, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smp_bridge.queue_session.PAGE", 3)
    owner.credentials = SERVICE
    queues = await make_queues(server, 7)
    owner.add(server.address, *queues)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        await owner.until(lambda: owner.counts == [7])
        owner.audits, nsubs = 1, server.nsubs()
        server.drop_all()
        await owner.until(lambda: owner.counts == [7, 7, 7])
        assert server.nsubs() == nsubs + 7
        assert agent.is_connected(server.address)
    assert server.accepted == 3  # one made the queues


async def test_an_audit_whose_owner_fails_ends_the_session(server: SmpServer, owner: Owner) -> None:
    owner.credentials = SERVICE
    owner.add(server.address, *await make_queues(server, 2))
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        await owner.until(lambda: owner.counts == [2])
        owner.audits = 1
        owner.failing = {"audit_page"}
        server.drop_all()
        await owner.until(lambda: owner.counts == [2, 2, 2])
        await owner.all_active(server.address)
    assert server.accepted == 4
