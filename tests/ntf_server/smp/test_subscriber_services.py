"""The subscriber as a service on SMP servers: associations, counts, what is lost, and certificates."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import node as node_module
import pytest
from node import Node, connect_service, notified, service_credentials, settled, take_over

from ntf_server.observe.names import KindCounter
from ntf_server.smp import inbox as module
from ntf_server.store.records import Change, ChangeKind, ServiceState, Session
from smp_bridge import ntf, smp
from smp_bridge.client import Client, Event
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.service import ids_hash
from smp_bridge.testing import Queue, Recipient, SmpServer
from smp_bridge.testing.faults import lose_every
from smp_bridge.transmission import ERR_AUTH, ERR_INTERNAL, ERR_SERVICE

pytestmark = pytest.mark.usefixtures("quiet")

S = SubscriptionStatus
FALLBACK, DRIFT = KindCounter.SERVICE_FALLBACK, KindCounter.AUDIT_DRIFT
Open = Callable[..., AbstractAsyncContextManager[Node]]


@pytest.fixture
def open_node(tmp_path: Path) -> Open:
    """Opens nodes that are a service unless told otherwise, one after another on the same file."""
    return lambda **options: node_module.open_node(tmp_path / "ntf.db", **{"services": True, **options})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STORE_BACKOFF", 0.02)


class Gate:
    """A method whose calls wait until it is open, but for the first ones."""

    def __init__(self, method: Callable[..., Any], skip: int = 0) -> None:
        self._method = method
        self._skip = skip
        self.open, self.waiting = asyncio.Event(), asyncio.Event()

    async def __call__(self, *args: Any, **options: Any) -> Any:
        self._skip -= 1
        if self._skip < 0:
            self.waiting.set()
            await self.open.wait()
        return await self._method(*args, **options)


async def service_state(node: Node, server: SmpServer) -> ServiceState:
    return await node.store.store.service_state(node.subscriber._sessions[server.address].stored)


async def released(node: Node, server: SmpServer) -> int:
    return (await service_state(node, server)).released


async def until_released(node: Node, server: SmpServer, expected: int) -> None:
    async with asyncio.timeout(10):
        while await released(node, server) != expected:
            await asyncio.sleep(0.005)


# --- associations


async def test_queues_are_associated_and_a_restart_needs_no_nsub(
    open_node: Open, smp_server: SmpServer, queues: list[Queue]
) -> None:
    async with open_node() as first:
        ids = await first.add_active(smp_server, *queues)
        assert all(smp_server.associated(q.notifier_id) for q in queues)
        assert (await service_state(first, smp_server)).associated == 5
        await notified(first, smp_server, queues[0])
    await smp_server.until(lambda: smp_server.connections == 1)
    nsubs, commands = smp_server.nsubs(), smp_server.nsubs_commands
    async with open_node() as second:
        await second.all_active(ids)
        await notified(second, smp_server, queues[0])
        await second.add_active(smp_server, await queues[0].recipient.queue())
        assert smp_server.nsubs() - nsubs == 1
        assert smp_server.nsubs_commands - commands == 1
        assert second.counts(FALLBACK, DRIFT) == {}
        assert second.store.calls["reassociate"] == second.store.calls["set_released"] == 0


async def test_what_is_deleted_is_active_no_more(open_node: Open, smp_server: SmpServer, queues: list[Queue]) -> None:
    async with open_node() as first:
        ids = await first.add_active(smp_server, *queues)
        await first.delete(ids[0])
        async with asyncio.timeout(10):
            while first.gauge("ntf_subscriptions_active") != 4:
                await asyncio.sleep(0.005)
    async with open_node() as second:
        await second.all_active(ids[1:])
        await settled(second, smp_server)
        assert second.gauge("ntf_subscriptions_active") == 4
        await second.delete(ids[1])
        await second.store.store.delete_token(second.token)
        async with asyncio.timeout(10):
            while second.gauge("ntf_subscriptions_active") != 0:
                await asyncio.sleep(0.005)


async def test_it_is_not_active_before_nsubs_is_answered(
    node: Node, smp_server: SmpServer, queues: list[Queue]
) -> None:
    ids = await node.add_active(smp_server, *queues)
    before, nsubs = smp_server.nsubs_commands, smp_server.nsubs()
    smp_server.script_nsubs(None, ERR_INTERNAL)
    smp_server.drop_all()
    await smp_server.until(lambda: smp_server.nsubs_commands >= before + 1)
    assert {(await node.status(i)).status for i in ids} == {S.INACTIVE}
    await smp_server.until(lambda: smp_server.nsubs_commands >= before + 2)
    assert {(await node.status(i)).status for i in ids} == {S.INACTIVE}
    await node.all_active(ids)
    assert smp_server.nsubs() == nsubs
    assert node.counts(FALLBACK, DRIFT) == {}


async def test_what_was_not_paged_yet_is_not_active(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    pages = Gate(node.store.store.page)
    node.store.page = pages  # type: ignore[attr-defined]
    ids = [await node.add_queue(smp_server, q) for q in queues]
    await asyncio.wait_for(pages.waiting.wait(), 10)
    assert {(await node.status(i)).status for i in ids} == {S.PENDING}
    pages.open.set()
    await node.all_active(ids)


async def test_a_page_of_which_all_was_asked_for_already(
    node: Node, smp_server: SmpServer, queues: list[Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smp_bridge.queue_session.PAGE", 2)
    pages = Gate(node.store.store.page)
    node.store.page = pages  # type: ignore[attr-defined]
    await smp_server.stop()
    ids = [await node.add_queue(smp_server, q) for q in queues]
    await smp_server.start()
    await asyncio.wait_for(pages.waiting.wait(), 10)
    for i in ids[:2]:
        ref = (await node.find(i)).ref
        node.subscriber._take_change(Change(ChangeKind.ADDED, smp_server.address, (ref,)))
    pages.open.set()
    await node.all_active(ids)
    assert [smp_server.nsubs(q.notifier_id) for q in queues] == [1] * 5


async def test_pages_go_by_association(
    open_node: Open, smp_server: SmpServer, queues: list[Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_node() as first:
        ids = await first.add_active(smp_server, *queues[:4])
    await smp_server.stop()
    monkeypatch.setattr("smp_bridge.queue_session.PAGE", 1)
    async with open_node(services=False) as node:
        ids.append(await node.add_queue(smp_server, queues[4]))  # never associated: the first page
        pages = Gate(node.store.store.page, skip=1)
        node.store.page = pages  # type: ignore[attr-defined]
        await smp_server.start()
        await asyncio.wait_for(pages.waiting.wait(), 10)
        await node.until(ids[4], S.ACTIVE)
        assert {(await node.status(i)).status for i in ids[:4]} == {S.INACTIVE}
        pages.open.set()
        await node.all_active(ids)


async def test_what_was_associated_in_this_session_does_not_wait_for_the_count(
    node: Node, smp_server: SmpServer, queues: list[Queue]
) -> None:
    smp_server.script_nsubs(*[None] * 30)
    ids = [await node.add_queue(smp_server, q) for q in queues]
    await smp_server.until(lambda: smp_server.nsubs_commands == 1)
    assert {(await node.status(i)).status for i in ids} == {S.ACTIVE}


async def test_lost_answers_leave_what_they_were_for_inactive(
    node: Node, smp_server: SmpServer, queues: list[Queue]
) -> None:
    await smp_server.stop()
    ids = [await node.add_queue(smp_server, q) for q in queues]
    smp_server.script_nsub(queues[2].notifier_id, None, None)
    await smp_server.start()
    await node.all_active([*ids[:2], *ids[3:]])
    assert await node.status(ids[2]) == ntf.Sub(S.PENDING)
    await node.until(ids[2], S.ACTIVE)
    assert [smp_server.nsubs(q.notifier_id) for q in queues] == [1, 1, 3, 1, 1]


async def test_half_of_the_answers_lost(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    smp_server.answers = lose_every(2)
    await node.add_active(smp_server, *queues)
    assert all(map(smp_server.associated, (q.notifier_id for q in queues)))
    assert node.counts(FALLBACK) == {}


async def test_what_is_added_while_connected_is_associated_and_counted(
    node: Node, smp_server: SmpServer, queues: list[Queue]
) -> None:
    await node.add_active(smp_server, *queues[:2])
    ids = await node.add_active(smp_server, *queues[2:])
    assert (await service_state(node, smp_server)).associated == 5
    assert node.gauge("ntf_subscriptions_active") == 5
    nsubs = smp_server.nsubs()
    smp_server.drop_all()
    await node.until(ids[0], S.INACTIVE)
    assert node.gauge("ntf_subscriptions_active") == 0
    await node.all_active(ids)
    assert smp_server.nsubs() == nsubs
    assert node.gauge("ntf_subscriptions_active") == 5


async def test_a_server_below_16_is_subscribed_without(node: Node) -> None:
    async with SmpServer(versions=(6, 15)) as old, await Recipient.connect(old.address) as recipient:
        await node.add_active(old, await recipient.queue())
        assert old.nsubs_commands == 0
        assert node.counts(FALLBACK, DRIFT) == {}


async def test_a_server_that_does_not_associate(open_node: Open, smp_server: SmpServer, queues: list[Queue]) -> None:
    async with open_node() as node:
        smp_server.script_nsub(queues[0].notifier_id, smp.SOk())
        ids = await node.add_active(smp_server, *queues[:2])
        assert (await service_state(node, smp_server)).associated == 1
        smp_server.script_nsub(queues[0].notifier_id, smp.SOk())
        smp_server.drop_all()
        await node.until(ids[0], S.INACTIVE)
        await node.all_active(ids)
        assert [smp_server.nsubs(q.notifier_id) for q in queues[:2]] == [2, 1]
        await settled(node, smp_server)
        smp_server.script_nsub(queues[0].notifier_id, smp.SOk())
        for nsubs in (5, 7):  # only the second time it associates
            await node.audit(smp_server, *ids)
            await smp_server.until(lambda: smp_server.nsubs() == nsubs)  # noqa: B023
            async with asyncio.timeout(10):
                while node.subscriber._sessions[smp_server.address].audited:
                    await asyncio.sleep(0.005)
            assert node.counts(DRIFT) == ({} if nsubs == 5 else {"reassociated": 1})
        assert node.gauge("ntf_subscriptions_active") == 2
        assert (await service_state(node, smp_server)).associated == 2


# --- what was deleted here, or there


@pytest.mark.parametrize("then", ["kept", "deleted while connected", "deleted while away"])
async def test_what_is_deleted_here_causes_no_fallback(
    open_node: Open, smp_server: SmpServer, queues: list[Queue], then: str
) -> None:
    async with open_node() as first:
        ids = await first.add_active(smp_server, *queues)
        await settled(first, smp_server)
        await first.delete(ids.pop(0))
        await first.delete(ids.pop(0))
        assert await released(first, smp_server) == 2
        if then == "deleted while connected":
            await queues[0].delete()
            await until_released(first, smp_server, 1)
    await smp_server.until(lambda: smp_server.connections == 1)
    if then == "deleted while away":
        await queues[0].delete()
    nsubs = smp_server.nsubs()
    async with open_node() as second:
        await second.all_active(ids)
        await settled(second, smp_server)
        await until_released(second, smp_server, 2 if then == "kept" else 1)
        await second.add_active(smp_server, await queues[0].recipient.queue())
        away = then == "deleted while away"  # was it one of ours? An audit tells
        async with asyncio.timeout(10):
            while smp_server.nsubs() != nsubs + (4 if away else 1):
                await asyncio.sleep(0.005)
        assert second.counts(FALLBACK, DRIFT) == ({"audited": 1} if away else {})
    await smp_server.until(lambda: smp_server.connections == 1)
    nsubs = smp_server.nsubs()
    async with open_node() as third:
        await third.all_active(ids)
        await settled(third, smp_server)
        assert third.counts(FALLBACK, DRIFT) == {}
    assert smp_server.nsubs() == nsubs


async def test_a_queue_deleted_there_while_connected_causes_no_fallback(
    node: Node, smp_server: SmpServer, queues: list[Queue]
) -> None:
    ids = await node.add_active(smp_server, *queues)
    await queues[0].delete()
    await node.until(ids[0], S.DELETED)
    await smp_server.until(lambda: not smp_server.associated(queues[0].notifier_id))
    assert node.counts(KindCounter.SUBSCRIPTIONS_ENDED) == {"deleted": 1}
    assert node.gauge("ntf_subscriptions_active") == 4
    nsubs = smp_server.nsubs()
    smp_server.drop_all()
    await node.until(ids[1], S.INACTIVE)
    await node.all_active(ids[1:])
    assert smp_server.nsubs() == nsubs
    assert node.counts(FALLBACK, DRIFT) == {}


async def test_a_count_that_is_too_low_for_a_moment(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    """The DELD that explains it is stored after the answer to NSUBS came."""
    ids = await node.add_active(smp_server, *queues)
    nsubs, store = smp_server.nsubs(), node.store.store
    calls: list[int] = []

    async def then_deleted(session: Session) -> ServiceState:
        state = await store.service_state(session)
        if len(calls) == 1:
            await store.end(session, [queues[0].notifier_id], S.DELETED)
        calls.append(state.associated)
        return state

    node.store.service_state = then_deleted  # type: ignore[attr-defined]
    smp_server.script_nsubs(smp.SOks(4, ids_hash(q.notifier_id for q in queues[1:])))
    smp_server.drop_all()
    await node.until(ids[1], S.INACTIVE)
    await node.all_active(ids[1:])
    assert calls[:3] == [5, 5, 4]  # when it was asked, when it was answered, and a moment later
    assert smp_server.nsubs() == nsubs
    assert node.counts(FALLBACK, DRIFT) == {}


async def test_a_queue_deleted_while_we_were_away(open_node: Open, smp_server: SmpServer, queues: list[Queue]) -> None:
    async with open_node() as first:
        ids = await first.add_active(smp_server, *queues)
    await smp_server.until(lambda: smp_server.connections == 1)
    await queues[0].delete()
    async with open_node() as second:
        await second.until(ids[0], S.AUTH)
        await second.all_active(ids[1:])
        assert [smp_server.nsubs(q.notifier_id) for q in queues] == [2] * 5
        assert second.counts(FALLBACK, DRIFT, KindCounter.SUBSCRIPTIONS_REFUSED) == {
            "audited": 1,
            "auth": 1,
            "refused": 1,
        }
        assert second.gauge("ntf_subscriptions_active") == 4
        await notified(second, smp_server, queues[1])
    await smp_server.until(lambda: smp_server.connections == 1)
    async with open_node() as third:
        await third.all_active(ids[1:])
        assert smp_server.nsubs() == 10
        assert third.counts(FALLBACK, DRIFT) == {}


async def test_taken_over_by_a_client_without_service(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    ids = await node.add_active(smp_server, *queues)
    async with await Client.connect(smp_server.address) as other:
        await other.request(smp.NSub(), queues[0].notifier_id, queues[0].notifier_key)
        await node.until(ids[0], S.END)
    nsubs = smp_server.nsubs()
    smp_server.drop_all()
    await node.until(ids[1], S.INACTIVE)
    await node.all_active(ids[1:])
    assert await node.status(ids[0]) == ntf.Sub(S.END)
    assert smp_server.nsubs() == nsubs
    assert node.counts(FALLBACK, DRIFT, KindCounter.SUBSCRIPTIONS_ENDED) == {"end": 1}


# --- a server that does not have what it should


async def after_restart(open_node: Open, smp_server: SmpServer, queues: list[Queue], do: Callable[[], Any]) -> Any:
    """All is associated, the node is away while `do` happens, then all is back: what was counted, and NSUBs."""
    async with open_node() as first:
        ids = await first.add_active(smp_server, *queues)
    await smp_server.until(lambda: smp_server.connections == 1)
    do()
    nsubs = smp_server.nsubs()
    async with open_node() as second:
        await second.all_active(ids)
        await settled(second, smp_server)
        await second.add_active(smp_server, await queues[0].recipient.queue())  # nothing goes on behind our back
        await notified(second, smp_server, queues[0])
        counts, needed = second.counts(FALLBACK, DRIFT), smp_server.nsubs() - nsubs - 1
    await smp_server.until(lambda: smp_server.connections == 1)
    return counts, needed


async def clean_restart(open_node: Open, smp_server: SmpServer, queues: list[Queue]) -> None:
    """Nothing is left of it."""
    nsubs = smp_server.nsubs()
    async with open_node() as node:
        await smp_server.until(lambda: all(smp_server.subscribed(q.notifier_id) for q in queues))
        await settled(node, smp_server)
        assert smp_server.nsubs() == nsubs
        assert node.counts(FALLBACK, DRIFT) == {}
        assert all(smp_server.associated(q.notifier_id) for q in queues)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda server, queues: server.dissociate(queues[1].notifier_id), {"audited": 1}),
        (lambda server, _: server.dissociate(), {"mismatch": 1}),
        (lambda server, _: server.forget_services(), {"changed": 1}),
        (lambda server, _: server.change_service_ids(), {"changed": 1}),
        (lambda server, _: server.script_nsubs(ERR_SERVICE), {"lost": 1}),
    ],
    ids=["dissociated", "all dissociated", "services forgotten", "other ids", "ERR SERVICE"],
)
async def test_all_is_associated_again(
    *, open_node: Open, smp_server: SmpServer, queues: list[Queue], fault: Any, expected: dict[str, int]
) -> None:
    done = await after_restart(open_node, smp_server, queues, lambda: fault(smp_server, queues))
    assert done == (expected, 5)
    await clean_restart(open_node, smp_server, queues)


async def test_lost_between_nsubs_and_the_count(open_node: Open, smp_server: SmpServer, queues: list[Queue]) -> None:
    async with open_node() as first:
        ids = await first.add_active(smp_server, *queues[:4])
    await smp_server.stop()
    async with open_node() as node:
        pages = Gate(node.store.store.page)
        node.store.page = pages  # type: ignore[attr-defined]
        ids.append(await node.add_queue(smp_server, queues[4]))
        await smp_server.start()
        await asyncio.wait_for(pages.waiting.wait(), 10)
        await node.all_active(ids[:4])
        smp_server.dissociate()
        pages.open.set()
        await smp_server.until(lambda: all(smp_server.associated(q.notifier_id) for q in queues))
        await settled(node, smp_server)
        await node.all_active(ids)
        assert node.counts(FALLBACK, DRIFT) == {"audited": 1}
        assert node.gauge("ntf_subscriptions_active") == 5


async def test_what_is_associated_again_is_active_at_once(
    open_node: Open, smp_server: SmpServer, queues: list[Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smp_bridge.queue_session.PAGE", 2)
    async with open_node() as first:
        ids = await first.add_active(smp_server, *queues)
    await smp_server.stop()
    smp_server.dissociate()
    async with open_node() as node:
        pages = Gate(node.store.store.page, skip=1)
        node.store.page = pages  # type: ignore[attr-defined]
        await smp_server.start()
        await asyncio.wait_for(pages.waiting.wait(), 10)
        await node.all_active(ids[:2])
        assert {(await node.status(i)).status for i in ids[2:]} == {S.INACTIVE}
        pages.open.set()
        await node.all_active(ids)


async def test_services_forgotten_while_connected(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    ids = await node.add_active(smp_server, *queues)
    smp_server.forget_services()
    smp_server.drop_all()
    await node.until(ids[0], S.INACTIVE)
    await node.all_active(ids)
    assert all(smp_server.associated(q.notifier_id) for q in queues)
    assert node.counts(FALLBACK, DRIFT) == {"changed": 1}
    await notified(node, smp_server, queues[0])


async def test_ids_that_change_under_a_released_one(
    open_node: Open, smp_server: SmpServer, queues: list[Queue]
) -> None:
    """Under the new id the server still counts what was deleted here, which is found out."""
    async with open_node() as first:
        ids = await first.add_active(smp_server, *queues)
        await settled(first, smp_server)
        await first.delete(ids.pop())
    await smp_server.until(lambda: smp_server.connections == 1)
    smp_server.change_service_ids()
    async with open_node() as second:
        await second.all_active(ids)
        await until_released(second, smp_server, 1)
    await smp_server.until(lambda: smp_server.connections == 1)
    await clean_restart(open_node, smp_server, queues[:4])


async def test_err_auth_is_mended_by_another_handshake(node: Node, smp_server: SmpServer, queues: list[Queue]) -> None:
    ids = await node.add_active(smp_server, *queues)
    nsubs = smp_server.nsubs()
    smp_server.script_nsubs(ERR_AUTH)
    smp_server.drop_all()
    await node.until(ids[0], S.INACTIVE)
    await node.all_active(ids)
    assert smp_server.nsubs() == nsubs
    assert node.counts(FALLBACK) == {}


async def test_a_server_that_refuses_the_service(open_node: Open, smp_server: SmpServer, queues: list[Queue]) -> None:
    async with open_node(agent={"without_service": 0.3}) as node:
        ids = await node.add_active(smp_server, *queues)
        smp_server.refuse_services = True
        smp_server.drop_all()
        await node.until(ids[0], S.INACTIVE)
        await node.all_active(ids)
        assert not any(smp_server.associated(q.notifier_id) for q in queues)
        assert node.counts(FALLBACK, DRIFT) == {"refused": 1}
        await notified(node, smp_server, queues[0])
        smp_server.refuse_services = False
        async with asyncio.timeout(10):
            while not all(smp_server.associated(q.notifier_id) for q in queues):
                smp_server.drop_all()
                await asyncio.sleep(0.1)
        await node.all_active(ids)
        assert node.counts(FALLBACK, DRIFT) == {"refused": 1}


@pytest.mark.parametrize("offset", [-3, -100])
async def test_a_server_that_counts_too_few_for_ever(
    *, open_node: Open, smp_server: SmpServer, queues: list[Queue], offset: int
) -> None:
    def lie() -> None:
        smp_server.service_count_offset = offset

    expected = {"audited" if offset == -3 else "mismatch": 1, "service_count": 1}
    commands = smp_server.nsubs_commands
    assert await after_restart(open_node, smp_server, queues, lie) == (expected, 5)
    nsubs = smp_server.nsubs()
    async with open_node() as third:
        await smp_server.until(lambda: all(smp_server.subscribed(q.notifier_id) for q in queues))
        await settled(third, smp_server)
        await third.add_active(smp_server, await queues[0].recipient.queue())
        async with asyncio.timeout(10):
            while third.counts(FALLBACK, DRIFT) != expected:
                await asyncio.sleep(0.005)
    assert smp_server.nsubs() == nsubs + 7  # all once, and the new one
    assert smp_server.nsubs_commands - commands <= 7


async def test_a_server_that_counts_too_many_for_ever(
    open_node: Open, smp_server: SmpServer, queues: list[Queue]
) -> None:
    def lie() -> None:
        smp_server.service_count_offset = 3

    assert await after_restart(open_node, smp_server, queues, lie) == ({"audited": 1, "service_count": 1}, 5)
    await clean_restart(open_node, smp_server, queues)
    smp_server.service_count_offset = 0
    await clean_restart(open_node, smp_server, queues)


# --- with and without


async def test_switched_off_and_on(open_node: Open, smp_server: SmpServer, queues: list[Queue]) -> None:
    async with open_node() as node:
        ids = await node.add_active(smp_server, *queues[:4])
    for round_, services in enumerate((False, True, False, False, True, True), 1):
        await smp_server.until(lambda: smp_server.connections == 1)
        await queues[0].send("while away")
        nsubs = smp_server.nsubs()
        async with open_node(services=services) as node:
            await asyncio.wait_for(node.pushed.claims.get(), 10)  # it waited on the server
            await node.all_active(ids)
            await settled(node, smp_server)
            assert {smp_server.associated(q.notifier_id) for q in queues[:4]} == {services}
            await notified(node, smp_server, queues[1])
            assert node.counts(FALLBACK, DRIFT) == {}
            assert smp_server.nsubs() - nsubs == (0 if round_ == 6 else 4)


async def test_ends_by_another_relay(open_node: Open, smp_server: SmpServer, queues: list[Queue]) -> None:
    events: asyncio.Queue[Event] = asyncio.Queue()

    async def on_events(received: Any) -> None:
        for event in received:
            events.put_nowait(event)

    async with open_node() as node:
        ids = await node.add_active(smp_server, *queues)
        await settled(node, smp_server)
        nsubs = smp_server.nsubs()
        credentials = await service_credentials(node.store.store, smp_server.address)
        async with await connect_service(smp_server.address, credentials, on_events) as rival:
            assert await take_over(rival) == 5
            async with asyncio.timeout(10):
                while node.counts(FALLBACK, DRIFT) != {"ended": 1}:
                    await asyncio.sleep(0.005)
            assert {(await node.status(i)).status for i in ids} == {S.INACTIVE}
            assert node.gauge("ntf_subscriptions_active") == 0
            accepted = smp_server.accepted
            await queues[0].send("to the rival")
            taken = await asyncio.wait_for(events.get(), 5)
            assert isinstance(taken.message, smp.NMsg)
            assert node.pushed.claims.empty()
            ended = await asyncio.wait_for(events.get(), 5)
            assert ended.message == smp.Ends(5, ids_hash(q.notifier_id for q in queues))
            assert smp_server.accepted == accepted + 1
            await node.all_active(ids)
            await notified(node, smp_server, queues[0])
    assert smp_server.nsubs() == nsubs
    assert node.counts(FALLBACK, DRIFT) == {"ended": 1}


async def test_other_nodes_are_told_what_holds(
    open_node: Open, smp_server: SmpServer, queues: list[Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before the server has counted the service's queues, and no more when another relay has them."""
    told: list[tuple[bool, bool]] = []

    async def announce(_session: Session, *, whole: bool) -> None:
        told.append((whole, all(smp_server.subscribed(q.notifier_id) for q in queues)))

    async def until_told(expected: list[bool]) -> None:
        async with asyncio.timeout(10):
            while [whole for whole, _ in told] != expected:
                await asyncio.sleep(0.005)
        assert all(subscribed for whole, subscribed in told if whole)

    async with open_node() as node:
        ids = await node.add_active(smp_server, *queues)
        await settled(node, smp_server)
        node.store.lease = 60.0  # as if others had the store too
        monkeypatch.setattr(node.store, "announce", announce, raising=False)
        smp_server.nsubs_delay = 0.1
        smp_server.drop_all()
        await until_told([True])
        smp_server.dissociate()
        smp_server.drop_all()
        await until_told([True, False, True])
        await node.all_active(ids)
        smp_server.nsubs_delay = 0.0
        credentials = await service_credentials(node.store.store, smp_server.address)
        async with await connect_service(smp_server.address, credentials) as rival:
            await take_over(rival)
            await until_told([True, False, True, False])


async def test_ends_while_the_count_is_asked_for(open_node: Open, smp_server: SmpServer, queues: list[Queue]) -> None:
    """The count is 0 then, which must not lead to NSUBs that take the subscriptions back at once."""
    async with open_node(recount_delay=0.5, agent={"ended_backoff": 1.0}) as node:
        ids = await node.add_active(smp_server, *queues)
        await settled(node, smp_server)
        nsubs = smp_server.nsubs()
        smp_server.service_count_offset = -1
        smp_server.drop_all()
        await node.until(ids[0], S.INACTIVE)
        commands = smp_server.nsubs_commands
        await smp_server.until(lambda: smp_server.nsubs_commands > commands)  # and now it waits to look again
        credentials = await service_credentials(node.store.store, smp_server.address)
        async with await connect_service(smp_server.address, credentials) as rival:
            smp_server.service_count_offset = 0
            await take_over(rival)
            async with asyncio.timeout(10):
                while node.counts(FALLBACK) != {"ended": 1}:
                    await asyncio.sleep(0.005)
            await node.all_active(ids)
        assert smp_server.nsubs() == nsubs
        assert node.counts(FALLBACK, DRIFT) == {"ended": 1}
