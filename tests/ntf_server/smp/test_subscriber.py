"""The subscriber with a real store, the SMP agent and SMP servers: statuses, events, and a store that fails."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import node as node_module
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from node import NOW, Node, settled

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter
from ntf_server.smp import inbox as module
from ntf_server.smp.subscriber import ServerSession
from ntf_server.store.contract import FencedError, Store, StoreCorruptError
from ntf_server.store.records import ChangeKind, PushKind, Removed, Session
from smp_bridge import ntf, smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.failure import ConnectFailure
from smp_bridge.ntf import Provider, SubscriptionStatus
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient
from smp_bridge.transmission import ERR_AUTH, ERR_INTERNAL, Err

pytestmark = pytest.mark.usefixtures("quiet")

S = SubscriptionStatus
ACTIVE = "ntf_subscriptions_active"
Open = Callable[..., AbstractAsyncContextManager[Node]]


@pytest.fixture
def open_node(tmp_path: Path) -> Open:
    """Opens nodes, one after another on the same file: `open_node(page=3)` fails the first three calls of `page`."""
    return lambda options=None, **failing: node_module.open_node(tmp_path / "ntf.db", failing, **(options or {}))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STORE_BACKOFF", 0.02)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def associated(node: Node, server: SmpServer) -> int:
    """Subscriptions that our service on the server has."""
    store: Store = node.store.store
    return (await store.service_state(node.subscriber._sessions[server.address].stored)).associated


# --- statuses


@pytest.mark.parametrize("key_type", [Ed25519PrivateKey, X25519PrivateKey])
async def test_a_subscription_becomes_active(
    node: Node, smp_server: SmpServer, recipient: Recipient, key_type: Any
) -> None:
    queue = await recipient.queue(notifier_key=key_type.generate())
    await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    assert smp_server.subscribed(queue.notifier_id)
    assert smp_server.connections == 2


async def test_while_the_server_is_silent_it_is_pending(
    node: Node, smp_server: SmpServer, recipient: Recipient
) -> None:
    queue = await recipient.queue()
    smp_server.silent = True
    subscription = await node.add_queue(smp_server, queue)
    assert await node.status(subscription) == ntf.Sub(S.PENDING)
    smp_server.silent = False
    await node.until(subscription, S.ACTIVE)


async def test_a_lost_connection_costs_no_write_a_subscription(
    node: Node, smp_server: SmpServer, recipient: Recipient
) -> None:
    queues = [await recipient.queue() for _ in range(50)]
    subscriptions = [await node.add_queue(smp_server, q) for q in queues]
    for subscription in subscriptions:
        await node.until(subscription, S.ACTIVE)
    node.store.calls.clear()
    await smp_server.stop()
    for subscription in subscriptions:
        await node.until(subscription, S.INACTIVE)
    assert not set(node.store.calls) - {"standing"}
    await smp_server.start()
    for subscription in subscriptions:
        await node.until(subscription, S.ACTIVE)
    assert (node.store.calls["begin"], node.store.calls["page"], node.store.calls["confirm"]) == (1, 1, 0)


async def test_a_page_is_active_as_far_as_it_was_answered(
    node: Node, smp_server: SmpServer, queues: list[Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smp_bridge.queue_session.PAGE", 2)
    ids = await node.add_active(smp_server, *queues)
    for i in (1, 2, 4):
        smp_server.script_nsub(queues[i].notifier_id, None, None, None)
    smp_server.drop_all()
    async with asyncio.timeout(10):
        while [(await node.status(i)).status is S.ACTIVE for i in ids] != [True, False, False, True, False]:
            await asyncio.sleep(0)
    await node.all_active(ids)
    assert [smp_server.nsubs(q.notifier_id) for q in queues] == [2, 5, 5, 2, 5]
    assert node.gauge("ntf_subscriptions_active") == 5


async def test_what_was_not_paged_yet_is_not_active(
    node: Node, smp_server: SmpServer, queues: list[Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smp_bridge.queue_session.PAGE", 2)
    ids = await node.add_active(smp_server, *queues)
    page, gate = node.store.store.page, asyncio.Event()

    async def second_waits(*args: Any) -> Any:
        if args[1] is not None:
            await gate.wait()
        return await page(*args)

    node.store.page = second_waits  # type: ignore[attr-defined]
    smp_server.drop_all()
    await node.until(ids[4], S.INACTIVE)
    await node.all_active(ids[:2])
    assert {(await node.status(i)).status for i in ids[2:]} == {S.INACTIVE}
    gate.set()
    await node.all_active(ids)


@pytest.mark.parametrize("read", ["page", "load"])
async def test_a_node_that_stood_still_subscribes_nothing_that_it_had_read(
    node: Node, smp_server: SmpServer, recipient: Recipient, read: str
) -> None:
    """Another one may speak for the server by now: it would take that for somebody else's, and an end of it."""
    queue = await recipient.queue()
    [kept] = await node.add_active(smp_server, await recipient.queue())
    shares, answered, gate = node.subscriber._shares, getattr(node.store, read), asyncio.Event()

    async def late(*args: Any) -> Any:
        answer = await answered(*args)
        await gate.wait()
        return answer

    setattr(node.store, read, late)
    if read == "page":
        smp_server.drop_all()
        await node.until(kept, S.INACTIVE)
    calls = node.store.calls[read]
    added = await node.add_queue(smp_server, queue)
    await until(lambda: node.store.calls[read] > calls or read == "page")
    sessions = node.store.calls["begin"]
    node.store.lease, shares._renewed_at = 6.0, asyncio.get_running_loop().time() - 6
    gate.set()
    await until(lambda: node.store.calls["begin"] > sessions + 1)
    assert not smp_server.nsubs(queue.notifier_id)
    shares._renewed_at = asyncio.get_running_loop().time()
    await node.all_active([kept, added])


@pytest.mark.parametrize("read", ["page", "load"])
async def test_what_another_node_speaks_for_by_now_is_no_fault(
    node: Node, smp_server: SmpServer, recipient: Recipient, logged: list[Any], read: str
) -> None:
    """The session ends without a traceback, and begins again where the server is this node's."""
    queue = await recipient.queue()
    [kept] = await node.add_active(smp_server, await recipient.queue())
    answer, refused = getattr(node.store, read), list[str]()

    async def once(*args: Any) -> Any:
        if not refused:
            refused.append(read)
            raise FencedError("another node's session counts")
        return await answer(*args)

    setattr(node.store, read, once)
    if read == "page":
        smp_server.drop_all()
        await node.until(kept, S.INACTIVE)
    added = await node.add_queue(smp_server, queue)
    await until(lambda: bool(refused))
    await node.all_active([kept, added])
    said = [r.getMessage() for r in logged]
    assert f"SMP server {smp_server.address.hosts[0]}: another node speaks for this server by now" in said
    assert not [r for r in logged if r.levelno >= logging.WARNING]


async def test_a_server_that_comes_back_with_another_identity_stays_inactive_and_is_an_alarm(
    open_node: Open, smp_server: SmpServer, recipient: Recipient, logged: list[Any]
) -> None:
    queue = await recipient.queue()
    metrics = Metrics()  # which know no own servers
    async with open_node({"metrics": metrics}) as node:
        subscription = await node.add_queue(smp_server, queue)
        await node.until(subscription, S.ACTIVE)
        port = smp_server.address.port_number
        await smp_server.stop()
        async with SmpServer(port=port), asyncio.timeout(10):
            while metrics.value(KindCounter.SMP_CONNECT_FAILED, "identity") < 3:
                await asyncio.sleep(0.01)
        assert await node.status(subscription) == ntf.Sub(S.INACTIVE)
    assert [r.levelname for r in logged if "impersonating" in r.getMessage()] == ["ERROR"]  # once


@pytest.mark.parametrize("own", [False, True])
async def test_a_wrong_address_is_no_alarm_but_of_an_own_server(
    *, open_node: Open, smp_server: SmpServer, logged: list[Any], own: bool
) -> None:
    """Devices choose addresses: anybody may give one with another identity."""
    wrong = replace(smp_server.address, key_hash=bytes(32))
    kind = "identity" if own else "wrong_address"
    metrics = Metrics(["localhost"] if own else [])
    async with open_node({"metrics": metrics}) as node, asyncio.timeout(10):
        await node.add(wrong, b"n" * 24, Ed25519PrivateKey.generate())
        while metrics.value(KindCounter.SMP_CONNECT_FAILED, kind) < 3:
            await asyncio.sleep(0.01)
        assert node.subscriber._impersonated == ({"localhost"} if own else set())
    loud = [r.getMessage() for r in logged if r.levelno >= logging.WARNING and "SMP server" in r.getMessage()]
    assert ["impersonating" in line for line in loud] == [True] * own
    assert [r.levelname for r in logged if "cannot connect (identity)" in r.getMessage()].count("INFO") == 1


async def test_who_was_impersonated_is_told_of_anew_after_it_was_back(
    node: Node, smp_server: SmpServer, recipient: Recipient, logged: list[Any]
) -> None:
    subscription = await node.add_queue(smp_server, await recipient.queue())
    await node.until(subscription, S.ACTIVE)
    for times in (1, 2):
        node.subscriber.connect_failed(smp_server.address, ConnectFailure.IDENTITY)
        async with asyncio.timeout(10):
            while sum("impersonating" in r.getMessage() for r in logged) < times:
                await asyncio.sleep(0.01)
        smp_server.drop_all()
        await node.until(subscription, S.INACTIVE)
        await node.until(subscription, S.ACTIVE)


async def test_another_subscriber_ends_it_for_good(node: Node, smp_server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    subscription = await node.add_queue(smp_server, queue)
    await node.until(subscription, S.ACTIVE)
    async with await Client.connect(smp_server.address) as other:
        await other.request(smp.NSub(), queue.notifier_id, queue.notifier_key)
        await node.until(subscription, S.END)
        second = await node.add_queue(smp_server, await recipient.queue())
        await node.until(second, S.ACTIVE)
        nsubs = smp_server.nsubs(queue.notifier_id)
        smp_server.drop_all()
        await node.until(second, S.INACTIVE)
        await node.until(second, S.ACTIVE)
        assert await node.status(subscription) == ntf.Sub(S.END)
        assert smp_server.nsubs(queue.notifier_id) == nsubs


async def test_a_queue_is_deleted(node: Node, smp_server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    subscription = await node.add_queue(smp_server, queue)
    await node.until(subscription, S.ACTIVE)
    await queue.delete()
    await node.until(subscription, S.DELETED)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ERR_AUTH, (S.AUTH,)),
        (Err("SERVICE"), (S.SERVICE,)),
        (Err("CMD", "PROHIBITED"), (S.ERR, "CMD PROHIBITED")),
        (Err("BLOCKED", "reason=spam"), (S.ERR, "BLOCKED reason=spam")),
    ],
)
async def test_a_final_refusal(
    *, node: Node, smp_server: SmpServer, recipient: Recipient, error: Err, expected: tuple[Any, ...]
) -> None:
    queue = await recipient.queue()
    smp_server.script_nsub(queue.notifier_id, error)
    subscription = await node.add_queue(smp_server, queue)
    await node.until(subscription, *expected)
    smp_server.drop_all()
    other = await node.add(smp_server.address, os.urandom(24), queue.notifier_key)
    await node.until(other, S.AUTH)
    assert await node.status(subscription) == ntf.Sub(*expected)
    assert smp_server.nsubs(queue.notifier_id) == 1


@pytest.mark.parametrize("text", ["x" * 16000, "\N{SNOWMAN}" * 4000, "\N{PILE OF POO}" * 3000])
async def test_a_long_refusal_fits_the_answer_to_schk(
    *, node: Node, smp_server: SmpServer, recipient: Recipient, text: str
) -> None:
    queue = await recipient.queue()
    smp_server.script_nsub(queue.notifier_id, Err("BLOCKED", text))
    subscription = await node.add_queue(smp_server, queue)
    async with asyncio.timeout(10):
        while (answer := await node.status(subscription)).status is not S.ERR:
            await asyncio.sleep(0.005)
    assert answer.error.startswith("BLOCKED " + text[:20])
    assert len(answer.encode(3)) <= 200


@pytest.mark.parametrize("answer", [ERR_INTERNAL, Err("QUOTA"), Err("STORE", "db"), None])
async def test_a_passing_refusal_is_tried_again(
    node: Node, smp_server: SmpServer, recipient: Recipient, answer: Err | None
) -> None:
    queue = await recipient.queue()
    smp_server.script_nsub(queue.notifier_id, answer, answer)
    await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    assert smp_server.nsubs(queue.notifier_id) == 3


async def test_a_server_that_is_too_old_for_the_key(node: Node) -> None:
    async with SmpServer(versions=(6, 6)) as old, await Recipient.connect(old.address) as recipient:
        good = await node.add_queue(old, await recipient.queue())
        bad = await node.add(old.address, os.urandom(24), X25519PrivateKey.generate())
        await node.until(good, S.ACTIVE)
        await node.until(bad, S.ERR, "the server is too old for this key")


async def test_a_server_that_is_down_at_first(node: Node, smp_server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    await smp_server.stop()
    subscription = await node.add_queue(smp_server, queue)
    assert await node.status(subscription) == ntf.Sub(S.PENDING)
    await smp_server.start()
    await node.until(subscription, S.ACTIVE)


async def test_a_dead_server_holds_no_other_up(node: Node, smp_server: SmpServer, recipient: Recipient) -> None:
    async with SmpServer() as silent:
        silent.silent = True
        dead = await node.add(silent.address, os.urandom(24), Ed25519PrivateKey.generate())
        await node.until(await node.add_queue(smp_server, await recipient.queue()), S.ACTIVE)
        assert await node.status(dead) == ntf.Sub(S.PENDING)


async def test_a_restart_subscribes_again(open_node: Open, smp_server: SmpServer, recipient: Recipient) -> None:
    queues = [await recipient.queue() for _ in range(200)]
    async with open_node() as first:
        subscriptions = [await first.add_queue(smp_server, q) for q in queues]
        gone = await first.add(smp_server.address, os.urandom(24), queues[0].notifier_key)
        for subscription in subscriptions:
            await first.until(subscription, S.ACTIVE)
        await first.until(gone, S.AUTH)
    await smp_server.until(lambda: not any(smp_server.subscribed(q.notifier_id) for q in queues))
    await smp_server.stop()
    async with open_node() as second:
        assert await second.status(subscriptions[0]) == ntf.Sub(S.INACTIVE)
        await smp_server.start()
        for subscription in subscriptions:
            await second.until(subscription, S.ACTIVE)
        assert await second.status(gone) == ntf.Sub(S.AUTH)


async def test_more_than_a_page(
    node: Node, smp_server: SmpServer, recipient: Recipient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smp_bridge.queue_session.PAGE", 7)
    queues = [await recipient.queue() for _ in range(30)]
    await smp_server.stop()
    subscriptions = [await node.add_queue(smp_server, q) for q in queues]
    await smp_server.start()
    for subscription in subscriptions:
        await node.until(subscription, S.ACTIVE)
    assert smp_server.nsubs() == len(queues)


# --- servers that nobody needs


async def test_a_session_ends_some_time_after_its_last_subscription_is_gone(
    open_node: Open, smp_server: SmpServer, recipient: Recipient
) -> None:
    async with open_node({"release_after": 0.3}) as node:
        deleted, ended, gone_there = [await recipient.queue() for _ in range(3)]
        ids = await node.add_active(smp_server, deleted, ended, gone_there)
        await node.delete(ids[0])
        await gone_there.delete()
        await node.until(ids[2], S.DELETED)
        await asyncio.sleep(0.5)
        assert smp_server.connections == 2  # one is left
        async with await Client.connect(smp_server.address) as other:
            await other.request(smp.NSub(), ended.notifier_id, ended.notifier_key)
            await node.until(ids[1], S.END)
        await smp_server.until(lambda: smp_server.connections == 1)
        accepted = smp_server.accepted
        await asyncio.sleep(0.3)
        assert smp_server.accepted == accepted  # and it does not come back
        await node.until(await node.add_queue(smp_server, await recipient.queue()), S.ACTIVE)


async def test_a_session_ends_when_its_token_is_deleted(
    open_node: Open, smp_server: SmpServer, recipient: Recipient
) -> None:
    async with open_node({"release_after": 0.05}) as node:
        await node.add_active(smp_server, *[await recipient.queue() for _ in range(3)])
        await node.store.store.delete_token(node.token)
        await smp_server.until(lambda: smp_server.connections == 1)


async def test_a_session_ends_when_all_was_refused(open_node: Open, smp_server: SmpServer) -> None:
    async with open_node({"release_after": 0.05}) as node:
        await node.until(await node.add(smp_server.address, os.urandom(24), Ed25519PrivateKey.generate()), S.AUTH)
        await smp_server.until(lambda: smp_server.accepted == 1 and not smp_server.connections)


async def test_a_session_stays_for_who_subscribes_another_queue_soon(
    open_node: Open, smp_server: SmpServer, recipient: Recipient
) -> None:
    async with open_node({"release_after": 0.3}) as node:
        [first] = await node.add_active(smp_server, await recipient.queue())
        accepted = smp_server.accepted
        await node.delete(first)
        second = await node.add_queue(smp_server, await recipient.queue())
        await asyncio.sleep(0.6)
        await node.until(second, S.ACTIVE)
        assert smp_server.accepted == accepted


def spellings(address: ServerAddress) -> list[ServerAddress]:
    """24 of one server."""
    hosts: list[tuple[str, ...]] = []
    for turn in range(6):
        name = "".join(c.upper() if turn >> n % 3 & 1 else c for n, c in enumerate(address.hosts[0]))
        hosts += [(name,), (name + ".",), (name, name), (address.hosts[0], name + ".", name)]
    return [ServerAddress("smp", h, address.port, address.key_hash) for h in hosts]


async def test_whoever_comes_and_goes_in_24_spellings_leaves_one_session_and_then_none(
    open_node: Open, smp_server: SmpServer, recipient: Recipient
) -> None:
    async with open_node({"release_after": 0.5}) as node:
        queue = await recipient.queue()
        for number, server in enumerate(spellings(smp_server.address)):
            ours = number % 3 == 0
            added = await node.add(server, queue.notifier_id if ours else os.urandom(24), queue.notifier_key)
            if number % 2:
                await node.until(added, S.ACTIVE if ours else S.AUTH)
            await node.delete(added)
            assert len(node.subscriber._sessions) <= 1
            assert smp_server.connections <= 2  # one is the recipient's
            assert node.subscriber._agent.servers <= 1
        await smp_server.until(lambda: smp_server.connections == 1)
        assert smp_server.accepted == 2
        await until(lambda: node.subscriber._agent.servers == 0)
        store: Any = node.store.store
        assert await store._database.read(lambda c: c.execute("SELECT count(*) FROM servers").fetchone()) == (1,)


async def test_one_queue_in_all_spellings_is_subscribed_once(
    node: Node, smp_server: SmpServer, recipient: Recipient
) -> None:
    queue = await recipient.queue()
    ids = {await node.add(s, queue.notifier_id, queue.notifier_key) for s in spellings(smp_server.address)}
    [added] = ids
    await node.until(added, S.ACTIVE)
    await settled(node, smp_server)
    assert smp_server.nsubs(queue.notifier_id) == 1
    assert smp_server.accepted == 2


async def test_a_server_that_nobody_needs_is_let_go_of_also_between_two_sessions(
    open_node: Open, smp_server: SmpServer, recipient: Recipient
) -> None:
    async with open_node({"release_after": 60.0}) as node:
        ids = await node.add_active(smp_server, await recipient.queue())
        store: Any = node.store.store
        assert smp_server.address in store._state.fences
        await node.delete(ids[0])
        smp_server.drop_all()
        await until(lambda: node.subscriber._agent.servers == 0)
        assert smp_server.address not in store._state.fences
        assert node.subscriber._shares.held == {}


# --- how many are active


async def test_what_is_deleted_is_active_no_more(node: Node, smp_server: SmpServer, recipient: Recipient) -> None:
    queues = [await recipient.queue() for _ in range(5)]
    ids = await node.add_active(smp_server, *queues)
    await settled(node, smp_server)
    assert node.gauge(ACTIVE) == 5
    await node.delete(ids[0])
    await until(lambda: node.gauge(ACTIVE) == 4)
    await node.add_active(smp_server, queues[0])
    assert node.gauge(ACTIVE) == 5
    await queues[1].delete()
    await node.until(ids[1], S.DELETED)
    await node.delete(ids[1])  # that it ended was counted already
    await until(lambda: node.store.handled[ChangeKind.ADDED] >= 5)
    assert node.gauge(ACTIVE) == 4
    await node.store.store.delete_token(node.token)
    await until(lambda: node.gauge(ACTIVE) == 0)


async def test_what_is_deleted_while_its_answer_is_under_way_never_counts(
    node: Node, smp_server: SmpServer, recipient: Recipient
) -> None:
    first, second, refused = [await recipient.queue() for _ in range(3)]
    await node.add_active(smp_server, first)
    await settled(node, smp_server)
    node.store.failing["confirm"] = 10**9  # what the server answered waits for the store
    smp_server.script_nsub(refused.notifier_id, ERR_AUTH)
    added = [await node.add_queue(smp_server, queue) for queue in (second, refused)]
    await until(lambda: node.store.calls["confirm"] > 1)
    before = node.store.handled[ChangeKind.REMOVED]
    for subscription_id in added:
        await node.delete(subscription_id)
    await until(lambda: node.store.handled[ChangeKind.REMOVED] > before)
    await until(lambda: not node.subscriber._sessions[smp_server.address].missing)
    node.store.failing.clear()
    session = node.subscriber._sessions[smp_server.address]
    await until(lambda: not session.removed)
    assert node.gauge(ACTIVE) == 1


async def test_what_is_deleted_while_pages_are_read_never_counts(
    open_node: Open, smp_server: SmpServer, recipient: Recipient
) -> None:
    queues = [await recipient.queue() for _ in range(4)]
    async with open_node() as first:
        ids = await first.add_active(smp_server, *queues)
    async with open_node(page=10**9) as second:
        await until(lambda: second.store.calls["page"] > 0)
        for subscription_id in ids[:2]:
            await second.delete(subscription_id)
        session = second.subscriber._sessions[smp_server.address]
        await until(lambda: len(session.removed) == 2)
        second.store.failing.clear()
        await second.all_active(ids[2:])
        await until(lambda: second.gauge(ACTIVE) == 2)
        await second.delete(ids[2])
        await until(lambda: second.gauge(ACTIVE) == 1)


def test_what_is_remembered_of_deletions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ntf_server.smp.server_session._MAX_REMOVED", 3)
    session = ServerSession(Session(ServerAddress("smp", ("a.org",), "", bytes(32)), 1), service=False)
    for ref in range(10):
        session.remove(Removed(ref, active=True, associated=False, cursor=(0, ref)))
        assert len(session.removed) <= 3


# --- events


async def test_a_notification_is_stored(node: Node, smp_server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    await queue.send("hello")
    claim = await asyncio.wait_for(node.pushed.claims.get(), 10)
    assert (claim.token, claim.kind, claim.device.provider) == (node.token, PushKind.MESSAGES, Provider.APNS_NULL)
    [entry] = claim.entries
    assert (entry.notifier_id, entry.server) == (queue.notifier_id, smp_server.address)
    assert NOW <= entry.received_at < NOW + 3600
    meta = queue.open_notification(entry.nonce, entry.meta)
    assert meta.message_id == (await queue.receive()).message_id


async def test_the_newest_notification_of_each_queue_is_kept(
    node: Node, smp_server: SmpServer, recipient: Recipient
) -> None:
    queues = [await recipient.queue() for _ in range(3)]
    for queue in queues:
        await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    for i in range(30):
        await queues[i % 3].send(f"message {i}")
    newest = {q.notifier_id: [await q.receive() for _ in range(10)][-1].message_id for q in queues}
    async with asyncio.timeout(10):
        while newest != {
            n.notifier_id: q.open_notification(n.nonce, n.meta).message_id
            for n in node.pushed.newest.values()
            for q in queues
            if q.notifier_id == n.notifier_id
        }:
            await asyncio.sleep(0.005)


async def test_what_waited_on_the_server_comes_with_the_subscription(
    node: Node, smp_server: SmpServer, recipient: Recipient
) -> None:
    queue = await recipient.queue()
    await queue.send("early")
    await node.add_queue(smp_server, queue)
    await asyncio.wait_for(node.pushed.claims.get(), 10)
    assert list(node.pushed.newest) == [queue.notifier_id]


async def test_a_notification_of_a_deleted_subscription(
    node: Node, smp_server: SmpServer, recipient: Recipient
) -> None:
    kept, gone = await recipient.queue(), await recipient.queue()
    for queue in (gone, kept):
        subscription = await node.add_queue(smp_server, queue)
        await node.until(subscription, S.ACTIVE)
        if queue is gone:
            await node.delete(subscription)
    await gone.send("nobody wants it")
    await kept.send("hello")
    await asyncio.wait_for(node.pushed.claims.get(), 10)
    assert list(node.pushed.newest) == [kept.notifier_id]


# --- a store that fails for a while


@pytest.mark.parametrize("method", ["standing", "acquire", "begin", "page", "load", "confirm"])
async def test_subscribing_survives_a_failing_store(
    open_node: Open, smp_server: SmpServer, recipient: Recipient, method: str
) -> None:
    async with open_node(**{method: 3}) as node:
        for _ in range(2):  # before there is a session, and in it
            await node.until(await node.add_queue(smp_server, await recipient.queue()), S.ACTIVE)
        assert node.store.failing[method] == 0


@pytest.mark.parametrize(
    "method",
    [
        "standing",
        "service_certificate",
        "acquire",
        "begin",
        "page",
        "load",
        "confirm",
        "service_state",
    ],
)
async def test_becoming_a_service_survives_a_failing_store(
    open_node: Open, smp_server: SmpServer, queues: list[Queue], method: str
) -> None:
    async with open_node({"services": True}, **{method: 3}) as node:
        for queue in queues[:2]:  # before there is a session, and in it
            await node.add_active(smp_server, queue)
        await settled(node, smp_server)
        assert node.store.failing[method] == 0
        assert smp_server.accepted == 2
        assert await associated(node, smp_server) == 2


@pytest.mark.parametrize("method", ["service_state", "reassociate", "set_released", "begin", "confirm"])
async def test_a_fallback_survives_a_failing_store(
    open_node: Open, smp_server: SmpServer, queues: list[Queue], method: str
) -> None:
    async with open_node({"services": True}) as first:
        ids = await first.add_active(smp_server, *queues)
        await settled(first, smp_server)
        await first.delete(ids.pop())
    await smp_server.until(lambda: smp_server.connections == 1)
    smp_server.dissociate()
    smp_server.service_count_offset = -1 if method != "set_released" else 0
    async with open_node({"services": True}, **{method: 2}) as node:
        await node.all_active(ids)
        async with asyncio.timeout(10):
            while node.store.failing[method]:
                await asyncio.sleep(0.005)
        assert all(smp_server.associated(q.notifier_id) for q in queues[:4])
        assert node.counts(KindCounter.SERVICE_FALLBACK) == {"mismatch": 1}


async def test_notifications_survive_a_failing_store(node: Node, smp_server: SmpServer, recipient: Recipient) -> None:
    queues = [await recipient.queue() for _ in range(5)]
    for queue in queues:
        await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    node.store.failing["notify"] = 20
    for queue in queues:
        await queue.send("hello")
    async with asyncio.timeout(10):
        while len(node.pushed.newest) < 5:
            await asyncio.sleep(0.005)
    assert set(node.pushed.newest) == {q.notifier_id for q in queues}


async def test_a_block_that_is_tried_again_does_not_replace_a_later_one(
    node: Node, smp_server: SmpServer, recipient: Recipient
) -> None:
    queue = await recipient.queue()
    await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    node.store.failing["notify"] = 1
    ids = []
    for text in ("first", "second"):
        await queue.send(text)
        ids.append((await queue.receive()).message_id)
    async with asyncio.timeout(10):
        while node.store.calls["notify"] < 3 or node.subscriber._inbox.waiting or not node.pushed.newest:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.1)  # what a second push would bring
    [newest] = node.pushed.newest.values()
    assert queue.open_notification(newest.nonce, newest.meta).message_id == ids[1]


@pytest.mark.parametrize("event", ["END", "DELD"])
async def test_ends_survive_a_failing_store(
    node: Node, smp_server: SmpServer, recipient: Recipient, event: str
) -> None:
    queue = await recipient.queue()
    subscription = await node.add_queue(smp_server, queue)
    await node.until(subscription, S.ACTIVE)
    node.store.failing["end"] = 5
    async with await Client.connect(smp_server.address) as other:
        if event == "END":
            await other.request(smp.NSub(), queue.notifier_id, queue.notifier_key)
        else:
            await queue.delete()
        await node.until(subscription, S.END if event == "END" else S.DELETED)


async def test_reading_stops_while_the_store_fails(
    node: Node, smp_server: SmpServer, recipient: Recipient, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = await recipient.queue()
    await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    monkeypatch.setattr(module, "_PER_SESSION", 10)
    node.store.failing["notify"] = 10**9
    for _ in range(100):
        smp_server.notify(queue.notifier_id)
        await asyncio.sleep(0)
    await asyncio.sleep(0.2)
    assert node.subscriber._inbox.waiting <= 10
    node.store.failing.clear()
    await asyncio.wait_for(node.pushed.claims.get(), 10)


async def test_what_comes_while_the_store_is_busy_is_stored_together(
    node: Node, smp_server: SmpServer, recipient: Recipient
) -> None:
    queues = [await recipient.queue() for _ in range(5)]
    for queue in queues:
        await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    node.store.failing["notify"] = 1
    for queue in queues:
        smp_server.notify(queue.notifier_id)  # a block each
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while len(node.pushed.newest) < 5:
            await asyncio.sleep(0.005)
    assert node.store.calls["notify"] <= 4
    assert node.subscriber._inbox.waiting == 0


async def test_a_failing_store_does_not_hold_up_a_stop_for_ever(
    node: Node, smp_server: SmpServer, recipient: Recipient, logged: list[Any]
) -> None:
    queue = await recipient.queue()
    await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    node.store.failing["notify"] = 10**9
    await queue.send("hello")
    async with asyncio.timeout(10):
        while not node.subscriber._inbox.waiting:
            await asyncio.sleep(0.005)
        await node.subscriber.close(0.1)
    assert "1 events of SMP servers could not be stored before the stop" in [r.getMessage() for r in logged]


@pytest.mark.parametrize("method", ["notify", "standing"])
async def test_a_store_that_is_corrupt_does_not_hold_up_the_stop_that_it_brings(
    node: Node, smp_server: SmpServer, recipient: Recipient, logged: list[Any], method: str
) -> None:
    """Whatever waited for it: a session, or one that is to come."""
    queue = await recipient.queue()
    await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    node.store.failing[method], node.store.error = 10**9, StoreCorruptError("it is another one")
    await queue.send("hello")
    if method == "standing":
        smp_server.drop_all()
    async with asyncio.timeout(10):
        while not node.subscriber._inbox.is_over:
            await asyncio.sleep(0.005)
        await node.subscriber.close(0.0)
    assert not node.subscriber.sessions
    assert [r for r in logged if r.exc_info] == []
    assert node.store.calls[method] <= 3


async def test_a_stop_stores_what_was_read(node: Node, smp_server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    await node.until(await node.add_queue(smp_server, queue), S.ACTIVE)
    node.store.failing["notify"] = 5
    await queue.send("hello")
    async with asyncio.timeout(10):
        while not node.subscriber._inbox.waiting:
            await asyncio.sleep(0.005)
        await node.subscriber.close(10)
        while list(node.pushed.newest) != [queue.notifier_id]:
            await asyncio.sleep(0.005)


async def test_many_servers(node: Node) -> None:
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(SmpServer()) for _ in range(12)]
        subscriptions = []
        for server in servers:
            recipient = await stack.enter_async_context(await Recipient.connect(server.address))
            subscriptions.append(await node.add_queue(server, await recipient.queue()))
        for subscription in subscriptions:
            await node.until(subscription, S.ACTIVE)
        servers[0].drop_all()
        await node.until(subscriptions[0], S.INACTIVE)
        statuses = [(await node.status(s)).status for s in subscriptions[1:]]
        assert statuses == [S.ACTIVE] * 11
