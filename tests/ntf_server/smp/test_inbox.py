"""The inbox over a real store that can be made to fail: bounds, order, ends of old sessions, and the stop."""

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from node import FaultyStore, Pushed
from scrape import sample

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Histogram, KindCounter, ServerCounter
from ntf_server.push.dispatcher import Dispatcher, DispatcherConfig
from ntf_server.push.schedule import ScheduleConfig
from ntf_server.smp import inbox as module
from ntf_server.smp.inbox import Inbox
from ntf_server.store.contract import StoreConflictError, StoreCorruptError, StoreUnavailableError
from ntf_server.store.open import open_store
from ntf_server.store.records import NewSubscription, NewToken, Notification, Notified, Session, Token
from ntf_server.store.sealing import MasterKey
from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Event
from smp_bridge.ntf import DeviceToken, Provider, SubscriptionStatus

pytestmark = pytest.mark.usefixtures("quiet")

SERVERS = [ServerAddress("smp", (f"smp{i}.example.org",), "", bytes([i]) * 32) for i in range(3)]
FAILS = 10**9
ENDED = KindCounter.SUBSCRIPTIONS_ENDED


class World:
    """An inbox, its store, a dispatcher whose provider takes all, and one token with queues."""

    def __init__(self, store: FaultyStore, token: Token) -> None:
        self.store, self.token = store, token
        self.pushed = Pushed()
        self.metrics = Metrics([s.hosts[0] for s in SERVERS])
        self.ended: list[tuple[Session, int]] = []
        self.tasks: list[asyncio.Task[None]] = []
        quick = DispatcherConfig(ScheduleConfig(min_backoff=0.01), store_backoff=0.01)
        self.dispatcher = Dispatcher(store, {Provider.APNS_NULL: self.pushed}, quick, metrics=self.metrics)
        self.inbox = Inbox(
            store,
            self.dispatcher,
            self.spawn,
            lambda session, count: self.ended.append((session, count)),
            self.metrics,
        )

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        self.tasks.append(asyncio.create_task(coro, name=name))
        return self.tasks[-1]

    async def queue(self, server: ServerAddress = SERVERS[0]) -> bytes:
        """Subscribed; its notifier id, which is the subscription's too."""
        notifier_id = os.urandom(24)
        await self.store.store.subscribe(self.token.ref, NewSubscription(notifier_id, server, notifier_id, b"key"))
        return notifier_id

    async def session(self, server: ServerAddress = SERVERS[0]) -> Session:
        session = await self.store.store.acquire(server)
        assert session is not None
        return session

    async def status(self, queue: bytes) -> SubscriptionStatus:
        found = await self.store.store.find_subscription(queue)
        assert found is not None
        return found[1].status

    async def empty(self) -> None:
        async with asyncio.timeout(10):
            while self.inbox.waiting:
                await asyncio.sleep(0.002)

    async def newest(self, expected: dict[bytes, bytes]) -> None:
        """Until these are what was pushed last of each queue, by their metadata, and nothing follows."""
        async with asyncio.timeout(10):
            while {q: e.meta for q, e in self.pushed.newest.items()} != expected:
                await asyncio.sleep(0.002)
        await asyncio.sleep(0.05)
        assert {q: e.meta for q, e in self.pushed.newest.items()} == expected


def nmsg(queue: bytes, meta: bytes = b"meta") -> Event:
    return Event(queue, smp.NMsg(bytes(24), meta))


async def is_held_up(take: "asyncio.Task[None]") -> bool:
    """Whether it still waits when all that can run has run."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not take.done()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STORE_BACKOFF", 0.02)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = await open_store("sqlite:///ntf.db", directory=tmp_path, master_key=MasterKey(bytes(32)))
    code = bytes(32)
    device = DeviceToken(Provider.APNS_NULL, b"token")
    token = await store.register(NewToken(os.urandom(24), device, b"key", b"dh", b"dh", bytes(32), code))
    assert token is not None
    assert await store.verify(token.ref, code)
    made = World(FaultyStore(store), token)
    parts = [asyncio.create_task(run()) for _, run in made.dispatcher.parts()]  # type: ignore[arg-type, var-annotated]
    yield made
    made.store.failing.clear()
    await made.inbox.close(10)
    await made.dispatcher.close(1.0)
    for part in parts:
        part.cancel()
    await asyncio.wait(parts)
    await store.close()


# --- what is stored


async def test_events_go_to_the_store_and_are_counted(world: World) -> None:
    kept, ended, deleted = [await world.queue() for _ in range(3)]
    session = await world.session()
    events = [nmsg(kept), nmsg(os.urandom(24)), Event(ended, smp.End()), Event(deleted, smp.Deld())]
    await world.inbox.take(session, events)
    await world.empty()
    await world.newest({kept: b"meta"})
    statuses = [await world.status(q) for q in (kept, ended, deleted)]
    assert statuses == [SubscriptionStatus.NEW, SubscriptionStatus.END, SubscriptionStatus.DELETED]
    assert world.ended == [(session, 1), (session, 1)]
    assert world.metrics.value(ServerCounter.RECEIVED, SERVERS[0].hosts[0]) == 2
    assert world.metrics.value(ServerCounter.RECEIVED_UNKNOWN, SERVERS[0].hosts[0]) == 1
    assert sample(world.metrics, f"{Histogram.NOTIFICATION_STORED}_count") == 2
    assert sample(world.metrics, f"{Histogram.NOTIFICATION_STORED}_sum") < 5
    assert (world.metrics.value(ENDED, "end"), world.metrics.value(ENDED, "deleted")) == (1, 1)


async def test_of_a_queue_the_last_that_arrived_counts(world: World) -> None:
    queue, session = await world.queue(), await world.session()
    world.store.failing["notify"] = 3
    await world.inbox.take(session, [nmsg(queue, b"1"), nmsg(queue, b"2")])
    await world.inbox.take(session, [nmsg(queue, b"3")])
    await world.empty()
    await world.newest({queue: b"3"})


async def test_what_waited_in_an_old_session_does_not_replace_what_came_in_the_new_one(world: World) -> None:
    queue, old = await world.queue(), await world.session()
    world.store.failing["notify"] = 1
    await world.inbox.take(old, [nmsg(queue, b"old")])
    async with asyncio.timeout(10):
        while world.store.failing["notify"]:
            await asyncio.sleep(0)
    new = await world.session()
    await world.inbox.take(new, [nmsg(queue, b"new")])
    await world.empty()
    assert world.store.calls["notify"] == 3
    await world.newest({queue: b"new"})


# --- sessions that are over


async def test_an_end_of_an_old_session_ends_nothing(world: World) -> None:
    queue, old = await world.queue(), await world.session()
    new = await world.session()
    for message in (smp.End(), smp.Deld()):
        await world.inbox.take(old, [Event(queue, message)])
        await world.empty()
    assert await world.status(queue) is SubscriptionStatus.NEW
    assert world.ended == []
    assert (world.metrics.value(ENDED, "end"), world.metrics.value(ENDED, "deleted")) == (0, 0)
    await world.inbox.take(new, [Event(queue, smp.End())])
    await world.empty()
    assert await world.status(queue) is SubscriptionStatus.END


async def test_an_end_that_waited_for_the_store_until_its_session_was_over_ends_nothing(world: World) -> None:
    queue, old = await world.queue(), await world.session()
    world.store.failing["end"] = FAILS
    await world.inbox.take(old, [Event(queue, smp.End())])
    async with asyncio.timeout(10):
        while not world.store.calls["end"]:
            await asyncio.sleep(0)
    await world.session()
    world.store.failing.clear()
    await world.empty()
    assert await world.status(queue) is SubscriptionStatus.NEW


async def test_an_end_is_tried_again_as_the_one_that_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that did it, and could not say so, does nothing the next time; another END is another one."""
    store, queue, session = world.store.store, await world.queue(), await world.session()
    end, numbers = store.end, list[int | None]()

    async def done_but_not_said(*args: Any) -> int:
        numbers.append(args[3])
        known = await end(*args)
        if len(numbers) == 1:
            raise StoreUnavailableError("the answer did not come")
        return known

    monkeypatch.setattr(store, "end", done_but_not_said)
    for _ in range(2):
        await world.inbox.take(session, [Event(queue, smp.End())])
        await world.empty()
    first, again, second = numbers
    assert first == again and None is not first != second


async def test_a_notification_of_an_old_session_is_stored(world: World) -> None:
    queue, old = await world.queue(), await world.session()
    await world.session()
    await world.inbox.take(old, [nmsg(queue)])
    await world.empty()
    await world.newest({queue: b"meta"})


# --- bounds


async def test_much_of_a_session_waits_and_others_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PER_SESSION", 10)
    queues = [await world.queue(server) for server in SERVERS[:2]]
    slow, other = [await world.session(server) for server in SERVERS[:2]]
    world.store.failing["notify"] = FAILS
    for _ in range(2):
        await asyncio.wait_for(world.inbox.take(slow, [nmsg(queues[0])] * 5), 1)
    held = asyncio.create_task(world.inbox.take(slow, [nmsg(queues[0], b"last")]))
    assert await is_held_up(held)
    await asyncio.wait_for(world.inbox.take(other, [nmsg(queues[1])]), 1)
    assert world.inbox.waiting == 11
    world.store.failing.clear()
    await asyncio.wait_for(held, 10)
    await world.empty()
    await world.newest({queues[0]: b"last", queues[1]: b"meta"})


async def test_all_sessions_together_have_a_bound_but_each_may_put_a_block_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IN_ALL", 15)
    queues = [await world.queue(server) for server in SERVERS]
    first, second, third = [await world.session(server) for server in SERVERS]
    world.store.failing["notify"] = FAILS
    await asyncio.wait_for(world.inbox.take(first, [nmsg(queues[0])] * 14), 1)
    await asyncio.wait_for(world.inbox.take(first, [nmsg(queues[0])]), 1)
    held = [asyncio.create_task(world.inbox.take(first, [nmsg(queues[0], b"last")]))]
    await asyncio.wait_for(world.inbox.take(second, [nmsg(queues[1])]), 1)
    held.append(asyncio.create_task(world.inbox.take(second, [nmsg(queues[1], b"last")])))
    assert [await is_held_up(task) for task in held] == [True, True]
    await asyncio.wait_for(world.inbox.take(third, [nmsg(queues[2])]), 1)
    assert world.inbox.waiting == 17
    world.store.failing.clear()
    await asyncio.wait_for(asyncio.gather(*held), 10)
    await world.empty()
    await world.newest({queues[0]: b"last", queues[1]: b"last", queues[2]: b"meta"})


# --- a store that fails


async def test_a_failing_store_is_tried_again_and_keeps_no_places(world: World) -> None:
    queues, session = [await world.queue() for _ in range(5)], await world.session()
    world.store.failing["notify"] = 20
    await world.inbox.take(session, [nmsg(q) for q in queues])
    await world.empty()
    assert world.store.calls["notify"] == 21
    await world.newest(dict.fromkeys(queues, b"meta"))
    assert world.dispatcher._lanes[Provider.APNS_NULL].schedule.reserved == 0


async def test_what_no_other_try_mends_holds_up_nothing_behind_it(world: World, logged: list[Any]) -> None:
    queue, session = await world.queue(), await world.session()
    store, gate = world.store.store, asyncio.Event()
    calls: list[int] = []

    async def notify(*arguments: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 1:
            await gate.wait()
            raise StoreConflictError("a fault of ours")
        return await store.notify(*arguments)

    world.store.notify = notify  # type: ignore[attr-defined]
    await world.inbox.take(session, [nmsg(queue, b"1"), nmsg(queue, b"2")])
    async with asyncio.timeout(10):
        while not calls:
            await asyncio.sleep(0)
    await world.inbox.take(session, [nmsg(queue, b"3")])
    gate.set()
    await world.empty()
    await world.newest({queue: b"3"})
    assert calls == [2, 1]
    assert [r.getMessage() for r in logged if r.name == module.__name__] == [
        "2 events of SMP servers cannot be stored: a fault of ours"
    ]


async def test_a_store_that_is_corrupt_is_asked_no_more_and_nobody_hears_of_it_here(
    world: World, logged: list[Any]
) -> None:
    queue, session = await world.queue(), await world.session()
    world.store.failing["notify"], world.store.error = FAILS, StoreCorruptError("it is another one")
    await world.inbox.take(session, [nmsg(queue)])
    async with asyncio.timeout(10):
        while not world.inbox.is_over:
            await asyncio.sleep(0)
    writer = world.tasks[-1]
    await asyncio.sleep(0.1)
    assert not writer.done()  # the relay ends, and with it this
    assert world.store.calls["notify"] == 1
    writer.cancel()
    await asyncio.wait([writer])
    assert [r for r in logged if r.name == module.__name__] == []


# --- a store of which a part does not answer


class Partly:
    """Notifications of `away` queues cannot be stored: in the place of the store's `notify`."""

    def __init__(self, world: World, *away: bytes) -> None:
        self.away = set(away)
        self.calls: list[list[Notification]] = []
        self._notify = world.store.store.notify
        world.store.notify = self.notify  # type: ignore[attr-defined]

    async def notify(self, session: Session, notifications: Sequence[Notification], places: Any) -> Notified:
        self.calls.append(list(notifications))
        there = [n for n in notifications if n.notifier_id not in self.away]
        notified = await self._notify(session, there, places)
        return Notified(notified.claims, notified.unknown, [n for n in notifications if n not in there])


async def test_what_can_be_stored_is_and_the_rest_is_tried_again(world: World) -> None:
    """Of each queue the last one alone; all of them were received."""
    queues, session = [await world.queue() for _ in range(3)], await world.session()
    store = Partly(world, *queues[:2])
    for meta in (b"1", b"2", b"3"):
        await world.inbox.take(session, [nmsg(queue, meta) for queue in queues])
        await world.newest({queues[2]: meta})
    assert world.inbox.waiting == 2
    store.away.discard(queues[0])
    await world.newest({queues[0]: b"3", queues[2]: b"3"})
    assert world.inbox.waiting == 1
    store.away.clear()
    await world.empty()
    await world.newest(dict.fromkeys(queues, b"3"))
    assert world.metrics.value(ServerCounter.RECEIVED, session.server.hosts[0]) == 9
    assert len(store.calls[-1]) == 1
    await asyncio.sleep(0)
    assert all(task.done() for task in world.tasks)


async def test_what_comes_while_it_is_tried_again_counts(world: World) -> None:
    """An older one, which is stored late, replaces no newer one."""
    queue, session = await world.queue(), await world.session()
    store = Partly(world, queue)
    await world.inbox.take(session, [nmsg(queue, b"1")])
    async with asyncio.timeout(10):
        while len(store.calls) < 2:
            await asyncio.sleep(0)
    await world.inbox.take(session, [nmsg(queue, b"2")])
    store.away.clear()
    await world.empty()
    await world.newest({queue: b"2"})


async def test_each_is_counted_once_also_if_a_later_one_comes_while_it_is_tried_again(world: World) -> None:
    queue, session, gate = await world.queue(), await world.session(), asyncio.Event()
    store = Partly(world, queue)

    async def held(*arguments: Any) -> Notified:
        is_second = len(store.calls) == 1
        notified = await store.notify(*arguments)
        if is_second:
            await gate.wait()
        return notified

    world.store.notify = held  # type: ignore[attr-defined]
    await world.inbox.take(session, [nmsg(queue, b"1")])
    for meta, calls in ((b"2", 2), (b"3", 3)):
        async with asyncio.timeout(10):
            while len(store.calls) < calls:
                await asyncio.sleep(0)
        await world.inbox.take(session, [nmsg(queue, meta)])
    async with asyncio.timeout(10):
        while len(store.calls) < 4:
            await asyncio.sleep(0)
    store.away.clear()
    gate.set()
    await world.empty()
    await world.newest({queue: b"3"})
    assert world.metrics.value(ServerCounter.RECEIVED, session.server.hosts[0]) == 3


async def test_ends_that_cannot_be_stored_hold_up_no_notifications(world: World) -> None:
    """Nor does the session wait."""
    queue, ended, deleted, session = *[await world.queue() for _ in range(3)], await world.session()
    world.store.failing["end"] = FAILS
    await world.inbox.take(session, [Event(ended, smp.End()), nmsg(queue, b"1")])
    async with asyncio.timeout(10):
        while not world.store.calls["end"]:
            await asyncio.sleep(0)
    await world.inbox.take(session, [nmsg(queue, b"2"), Event(deleted, smp.Deld())])
    await world.newest({queue: b"2"})
    assert world.inbox.waiting == 2
    world.store.failing.clear()
    await world.empty()
    assert [await world.status(q) for q in (ended, deleted)] == [SubscriptionStatus.END, SubscriptionStatus.DELETED]
    await asyncio.sleep(0)
    assert all(task.done() for task in world.tasks)
    assert world.inbox._sessions == {}


async def test_as_much_as_there_is_room_for_waits_and_then_the_session_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LATE_PER_SESSION", 3)
    queues = [await world.queue(server) for server in (*[SERVERS[0]] * 4, SERVERS[1])]
    slow, other = [await world.session(server) for server in SERVERS[:2]]
    store = Partly(world, *queues[:3])
    await world.inbox.take(slow, [nmsg(queue) for queue in queues[:3]])
    async with asyncio.timeout(10):
        while len(store.calls) < 2:
            await asyncio.sleep(0)
    held = asyncio.create_task(world.inbox.take(slow, [nmsg(queues[3])]))
    assert await is_held_up(held)
    await asyncio.wait_for(world.inbox.take(other, [nmsg(queues[4])]), 1)
    await world.newest({queues[4]: b"meta"})
    store.away.clear()
    await asyncio.wait_for(held, 10)
    await world.empty()
    await world.newest(dict.fromkeys(queues, b"meta"))


async def test_a_server_is_not_let_go_with_what_could_not_be_stored(world: World, logged: list[Any]) -> None:
    queue, session = await world.queue(), await world.session()
    store = Partly(world, queue)
    await world.inbox.take(session, [nmsg(queue)])
    emptied = asyncio.create_task(world.inbox.empty(session.server))
    assert await is_held_up(emptied)
    assert await asyncio.wait_for(world.inbox.close(0.1), 1) == 1
    assert "1 events of SMP servers could not be stored before the stop" in [r.getMessage() for r in logged]
    store.away.clear()
    await asyncio.wait_for(emptied, 10)


# --- the stop


async def test_a_stop_waits_until_all_is_stored(world: World) -> None:
    queues = [await world.queue(server) for server in SERVERS]
    world.store.failing["notify"] = 30
    for queue, server in zip(queues, SERVERS, strict=True):
        await world.inbox.take(await world.session(server), [nmsg(queue)])
    assert await asyncio.wait_for(world.inbox.close(10), 5) == 0
    await world.newest(dict.fromkeys(queues, b"meta"))


async def test_a_stop_takes_no_longer_than_its_grace(world: World, logged: list[Any]) -> None:
    queue, session = await world.queue(), await world.session()
    world.store.failing["notify"] = FAILS
    await world.inbox.take(session, [nmsg(queue)] * 3)
    assert await asyncio.wait_for(world.inbox.close(0.1), 1) == 3
    assert "3 events of SMP servers could not be stored before the stop" in [r.getMessage() for r in logged]


async def test_a_stop_with_nothing_to_store_is_immediate(world: World) -> None:
    assert await asyncio.wait_for(world.inbox.close(0.0), 1) == 0


async def test_writers_end_when_all_is_stored(world: World) -> None:
    queue, session = await world.queue(), await world.session()
    for _ in range(3):
        await world.inbox.take(session, [nmsg(queue)])
        await world.empty()
    await asyncio.sleep(0)
    assert all(task.done() for task in world.tasks)
    assert world.inbox._sessions == {}
