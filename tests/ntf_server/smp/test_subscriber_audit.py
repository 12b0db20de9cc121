"""The audit seen from the subscriber, servers that are denied, and what is counted."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import node as node_module
import pytest
from node import Node, connect_service, notified, service_credentials, settled, take_over
from scrape import sample

from ntf_server.config.server_list import ServerList
from ntf_server.observe.names import WRONG_ADDRESS, Counter, KindCounter, ServerCounter, ServerGauge
from smp_bridge import ntf, smp
from smp_bridge.address import ServerAddress
from smp_bridge.failure import ConnectFailure
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.testing import Queue, Recipient, SmpServer
from smp_bridge.transmission import ERR_AUTH, ERR_INTERNAL, Err

pytestmark = pytest.mark.usefixtures("quiet")

S = SubscriptionStatus
FALLBACK, DRIFT = KindCounter.SERVICE_FALLBACK, KindCounter.AUDIT_DRIFT
REFUSED, ENDED = KindCounter.SUBSCRIPTIONS_REFUSED, KindCounter.SUBSCRIPTIONS_ENDED
ACTIVE = "ntf_subscriptions_active"
Open = Callable[..., AbstractAsyncContextManager[Node]]


@pytest.fixture
def open_node(tmp_path: Path) -> Open:
    """Opens nodes, one after another on the same file."""
    return lambda **options: node_module.open_node(tmp_path / "ntf.db", **options)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def lose(server: SmpServer, queue: Queue) -> None:
    """The server forgets the notifier and tells nobody."""
    del server._queues._notifiers[queue.notifier_id]


# --- the audit


@pytest.mark.parametrize("services", [False, True])
async def test_it_finds_what_the_server_lost(
    *, open_node: Open, smp_server: SmpServer, queues: list[Queue], services: bool
) -> None:
    async with open_node(services=services) as node:
        ids = await node.add_active(smp_server, *queues)
        await settled(node, smp_server)
        lose(smp_server, queues[0])
        smp_server.dissociate(queues[1].notifier_id)
        nsubs = smp_server.nsubs()
        await node.audit(smp_server, *ids)
        await node.until(ids[0], S.AUTH)
        await node.all_active(ids[1:])
        assert smp_server.nsubs() == nsubs + 5
        assert smp_server.associated(queues[1].notifier_id) is services
        await notified(node, smp_server, queues[1])
        assert node.counts(DRIFT, FALLBACK) == {"refused": 1}
        assert node.metrics.value(Counter.AUDITED) == 5
        assert node.gauge("ntf_subscriptions_active") == 4


async def test_it_does_not_take_back_what_was_taken_over(
    open_node: Open, smp_server: SmpServer, queues: list[Queue]
) -> None:
    async with open_node(services=True, agent={"ended_backoff": 1.0}) as node:
        ids = await node.add_active(smp_server, *queues)
        await settled(node, smp_server)
        nsubs = smp_server.nsubs()
        credentials = await service_credentials(node.store.store, smp_server.address)
        async with await connect_service(smp_server.address, credentials) as rival:
            await take_over(rival)
            await node.until(ids[0], S.INACTIVE)
            await node.audit(smp_server, *ids)
            assert node.metrics.value(Counter.AUDITED) == 0
            await node.all_active(ids)
        assert smp_server.nsubs() == nsubs


async def test_a_refusal_that_the_audit_did_not_ask_for_is_no_drift(
    node: Node, smp_server: SmpServer, queues: list[Queue]
) -> None:
    lose(smp_server, queues[0])
    await node.until(await node.add_queue(smp_server, queues[0]), S.AUTH)
    ids = await node.add_active(smp_server, *queues[1:3])
    await settled(node, smp_server)
    await node.audit(smp_server, ids[0])
    await smp_server.until(lambda: smp_server.nsubs(queues[1].notifier_id) == 2)
    lose(smp_server, queues[1])
    smp_server.drop_all()
    await node.until(ids[0], S.AUTH)
    await node.all_active(ids[1:])
    assert node.counts(DRIFT) == {}
    assert node.counts(REFUSED) == {"auth": 2}


@pytest.mark.parametrize("answers", [(ERR_INTERNAL, None), (Err("QUOTA"),)])
async def test_a_passing_error_leaves_it_as_it_was(
    node: Node, smp_server: SmpServer, queues: list[Queue], answers: tuple[Any, ...]
) -> None:
    [subscription] = await node.add_active(smp_server, queues[0])
    await settled(node, smp_server)
    smp_server.script_nsub(queues[0].notifier_id, *answers)
    await node.audit(smp_server, subscription)
    await smp_server.until(lambda: smp_server.nsubs(queues[0].notifier_id) == 2 + len(answers))
    assert await node.status(subscription) == ntf.Sub(S.ACTIVE)
    await until(lambda: not node.subscriber._sessions[smp_server.address].audited)
    assert node.counts(DRIFT, REFUSED) == {}
    assert node.metrics.value(Counter.AUDITED) == 1


async def test_what_is_not_confirmed_yet_is_not_audited(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    ids = await node.add_active(smp_server, queues[0])
    await settled(node, smp_server)
    smp_server.script_nsub(queues[1].notifier_id, *[None] * 3)
    ids.append(await node.add_queue(smp_server, queues[1]))
    await node.audit(smp_server, *ids)
    assert node.metrics.value(Counter.AUDITED) == 1
    await node.all_active(ids)
    assert [smp_server.nsubs(q.notifier_id) for q in queues[:2]] == [2, 4]


async def test_nothing_is_audited_before_all_was_subscribed_or_without_a_session(
    node: Node, smp_server: SmpServer, queues: list[Queue]
) -> None:
    ids = await node.add_active(smp_server, *queues)
    await smp_server.stop()
    await node.until(ids[0], S.INACTIVE)
    await node.audit(smp_server, *ids)
    smp_server.silent = True
    node.store.failing["page"] = 10**9
    await smp_server.start()
    await until(lambda: node.gauge("ntf_smp_sessions") == 1)
    await node.audit(smp_server, *ids)
    assert node.metrics.value(Counter.AUDITED) == 0
    node.store.failing.clear()
    smp_server.silent = False
    await node.all_active(ids)


async def test_what_was_deleted_meanwhile_is_forgotten(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    ids = await node.add_active(smp_server, *queues[:2])
    await settled(node, smp_server)
    node.store.failing["load"] = 10**9
    await node.audit(smp_server, *ids)
    await node.delete(ids[0])
    node.store.failing.clear()
    session = node.subscriber._sessions[smp_server.address]
    await until(lambda: not session.audited)
    await smp_server.until(lambda: smp_server.nsubs(queues[1].notifier_id) == 2)
    assert smp_server.nsubs(queues[0].notifier_id) == 1
    assert node.counts(DRIFT) == {}


async def test_what_was_deleted_before_it_was_confirmed_is_forgotten(
    node: Node, smp_server: SmpServer, queues: list[Queue]
) -> None:
    await node.add_active(smp_server, queues[0])
    smp_server.script_nsub(queues[1].notifier_id, *[None] * 9)
    await node.delete(await node.add_queue(smp_server, queues[1]))
    await until(lambda: not node.subscriber._sessions[smp_server.address].missing)


# --- which servers


async def test_a_server_that_is_denied_is_not_connected_to(
    open_node: Open, smp_server: SmpServer, queues: list[Queue]
) -> None:
    async with open_node() as first:
        ids = await first.add_active(smp_server, queues[0])
    await smp_server.until(lambda: smp_server.connections == 1)
    accepted = smp_server.accepted
    async with SmpServer(host="127.0.0.1") as other, await Recipient.connect(other.address) as recipient:
        permitted = ServerAddress("smp", ("127.0.0.1",), other.address.port, other.address.key_hash)
        async with open_node(servers=ServerList(deny=("localhost",))) as second:
            queue = await recipient.queue()
            allowed = await second.add(permitted, queue.notifier_id, queue.notifier_key)
            await second.until(allowed, S.ACTIVE)
            assert smp_server.accepted == accepted
            assert await second.status(ids[0]) == ntf.Sub(S.INACTIVE)
            await second.audit(smp_server, *ids)
            assert smp_server.address not in second.subscriber._agent._servers
    async with open_node() as third:
        await third.all_active(ids)


# --- what is counted


async def test_refusals_are_counted_by_kind_once(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    errors = (ERR_AUTH, Err("SERVICE"), Err("BLOCKED", "reason=spam"), Err("CMD", "PROHIBITED"))
    for queue, error in zip(queues, errors, strict=False):
        smp_server.script_nsub(queue.notifier_id, ERR_INTERNAL, error)
        await node.add_queue(smp_server, queue)
    await node.add_active(smp_server, queues[4])
    await until(lambda: node.counts(REFUSED) == {"auth": 1, "service": 1, "error": 2})
    assert node.gauge(ACTIVE) == 1
    assert node.gauge("ntf_smp_sessions") == 1


async def test_ends_are_counted_by_kind_once(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    ids = await node.add_active(smp_server, *queues)
    await node.delete(ids[4])
    async with await Recipient.connect(smp_server.address) as other:
        for queue in queues[:2]:
            await other.client.request(smp.NSub(), queue.notifier_id, queue.notifier_key)
    for queue in queues[2:]:
        await queue.delete()
    await until(lambda: node.counts(ENDED) == {"end": 2, "deleted": 2})
    await until(lambda: node.gauge(ACTIVE) == 0)  # the fifth was deleted here
    assert node.counts(REFUSED, DRIFT) == {}


async def test_notifications_are_counted(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    ids = await node.add_active(smp_server, *queues[:2])
    await notified(node, smp_server, queues[0])
    await node.delete(ids[1])
    await queues[1].send("nobody wants it")
    await until(lambda: node.metrics.value(ServerCounter.RECEIVED_UNKNOWN, "localhost") == 1)
    assert node.metrics.value(ServerCounter.RECEIVED, "localhost") == 2


async def test_own_servers_are_counted_apart(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    await node.add_active(smp_server, *queues)
    strange = ServerAddress("smp", ("127.0.0.1",), smp_server.address.port, smp_server.address.key_hash)
    queue = await queues[0].recipient.queue()
    await node.until(await node.add(strange, queue.notifier_id, queue.notifier_key), S.ACTIVE)
    for gauge, own, other in ((ServerGauge.SUBSCRIPTIONS, 5, 1), (ServerGauge.SESSIONS, 1, 1)):
        assert sample(node.metrics, gauge, server="localhost") == own
        assert sample(node.metrics, gauge.other) == other
        assert sample(node.metrics, gauge.other_servers) == 1


async def test_failures_to_connect_are_counted(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    await smp_server.stop()
    await node.add_queue(smp_server, queues[0])
    await until(lambda: node.counts(KindCounter.SMP_CONNECT_FAILED).keys() == {"tcp"})


def test_all_failures_to_connect_have_a_kind() -> None:
    assert {*(f.value for f in ConnectFailure), WRONG_ADDRESS} == set(KindCounter.SMP_CONNECT_FAILED.kinds)
