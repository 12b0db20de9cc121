import asyncio
import contextlib
import logging
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ntf_server.observe.metrics import Gauge, KindCounter, Metrics, ServerCounter
from ntf_server.push.dispatcher import Dispatcher, DispatcherConfig
from ntf_server.push.provider import Accepted, Dead, OnResult, Permanent, Result, Retry, Scope
from ntf_server.store.records import (
    Due,
    NewSubscription,
    NewToken,
    Notification,
    Outcome,
    Push,
    PushKind,
    StoreError,
    Token,
)
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, TokenStatus

NOW = 1_800_000_000
SMP = ServerAddress("smp", ("smp.example.org",), "", bytes(32))
CODE = b"c" * 32
VERIFICATION, MESSAGES, CHECK = PushKind
FAST = DispatcherConfig(min_backoff=0.001, max_backoff=0.004, permanent_backoff=0.002, store_backoff=0.001)
NEVER = DispatcherConfig(min_backoff=1e6, max_backoff=1e6, permanent_backoff=1e6)
FAILS = StoreError("the disk is full")


class FakeProvider:
    """Pushes wait here until the test answers them; more than one of a token at once is an error."""

    def __init__(self) -> None:
        self.sent: list[Push] = []
        self.waiting: dict[int, tuple[Push, OnResult]] = {}
        self.answer: Callable[[Push], Result] | None = None
        self.most = 0
        self._changed = asyncio.Event()

    def send(self, pushes: Sequence[Push], on_result: OnResult) -> None:
        for push in pushes:
            assert push.token not in self.waiting
            self.sent.append(push)
            if self.answer is not None:
                on_result(push, self.answer(push))
            else:
                self.waiting[push.token] = push, on_result
        self.most = max(self.most, len(self.waiting))
        self._changed.set()

    async def has(self, count: int) -> list[Push]:
        """Wait until so many pushes are in flight."""
        async with asyncio.timeout(10):
            while len(self.waiting) < count:
                self._changed.clear()
                await self._changed.wait()
        return [push for push, _ in self.waiting.values()]

    async def next(self) -> Push:
        [push] = await self.has(1)
        return push

    def finish(self, push: Push, result: Result | None = None) -> None:
        _, on_result = self.waiting.pop(push.token)
        on_result(push, result or Accepted(push.notifications))


class FailingStore:
    """A store that can be made to fail, or to wait, per method."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.failures: Counter[str] = Counter()
        self.held: dict[str, asyncio.Event] = {}
        self.entered = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*arguments: Any) -> Any:
            self.entered.set()
            if name in self.held:
                await self.held[name].wait()
            if self.failures[name] > 0:
                self.failures[name] -= 1
                raise FAILS
            return await method(*arguments)

        return call

    async def record(self, outcomes: Sequence[Outcome]) -> None:
        await self.__getattr__("record")(outcomes)


class World:
    """A store with tokens, and dispatchers over it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.apns = FakeProvider()
        self.sandbox = FakeProvider()
        self.now = float(NOW)
        self.metrics = Metrics()

    async def open(self) -> None:
        self.sqlite = await SqliteStore.open(self.path, master_key=MasterKey(bytes(32)))
        self.store = FailingStore(self.sqlite)

    def dispatcher(self, config: DispatcherConfig = FAST, rng: Callable[[], float] = lambda: 1.0) -> Dispatcher:
        providers = {Provider.APNS: self.apns, Provider.APNS_SANDBOX: self.sandbox}
        return Dispatcher(
            self.store,
            providers,
            config,
            metrics=self.metrics,
            clock=lambda: self.now,
            rng=rng,
        )

    @contextlib.asynccontextmanager
    async def running(
        self, config: DispatcherConfig = FAST, rng: Callable[[], float] = lambda: 1.0
    ) -> AsyncIterator[Dispatcher]:
        dispatcher = self.dispatcher(config, rng)
        await dispatcher.start()
        try:
            yield dispatcher
        finally:
            await dispatcher.close()

    async def register(self, name: bytes = b"phone", provider: Provider = Provider.APNS) -> Token:
        device = DeviceToken(provider, name)
        secret = os.urandom(32)
        new = NewToken(os.urandom(24), device, b"key" + name, b"dh", b"server dh", secret, CODE)
        token = await self.sqlite.register_token(new, NOW)
        assert token is not None
        return token

    async def active(self, name: bytes = b"phone", queues: int = 1, provider: Provider = Provider.APNS) -> Token:
        token = await self.register(name, provider)
        assert await self.sqlite.verify_token(token.ref, CODE) is not None
        for i in range(queues):
            new = NewSubscription(os.urandom(24), SMP, name + b"%d" % i, b"key")
            assert await self.sqlite.add_subscription(token.ref, new, NOW)
        return token

    async def notify(self, *queues: bytes, meta: bytes = b"meta") -> list[Due]:
        return (await self.sqlite.notify(SMP, [Notification(q, NOW, bytes(24), meta) for q in queues])).due

    async def status(self, token: Token) -> TokenStatus:
        found = await self.sqlite.find_token(token.token_id)
        assert found is not None
        return found.status

    async def nothing_due(self) -> None:
        await self.until(lambda due: not due)

    async def until(self, condition: Callable[[list[Due]], bool]) -> None:
        """Ask the store until what is due satisfies the condition."""
        async with asyncio.timeout(10):
            while not condition(await self.sqlite.all_due()):
                await asyncio.sleep(0.001)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "relay.db")
    await world.open()
    yield world
    await world.sqlite.close()


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The delays that are asked of the loop's clock; none of them is waited for."""
    seen: list[float] = []

    def call_later(loop: asyncio.AbstractEventLoop, delay: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
        seen.append(delay)
        return loop.call_at(loop.time(), callback, *args)

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "call_later", call_later)
    yield seen


def metas(push: Push, *, sent: bool = False) -> list[bytes]:
    return [n.notification.meta for n in push.notifications if n.sent == sent]


async def settled(dispatcher: Dispatcher) -> None:
    """Wait until nothing is in flight any more and all results are recorded."""
    async with asyncio.timeout(10):
        while dispatcher._in_flight():
            await asyncio.sleep(0.001)


# --- the way of a push


async def test_what_is_marked_is_pushed_and_recorded(world: World) -> None:
    token = await world.register()
    async with world.running() as dispatcher:
        push = await world.apns.next()
        assert (push.token, push.kind, push.code, push.device) == (token.ref, VERIFICATION, CODE, token.device)
        world.apns.finish(push)
        await world.nothing_due()
        assert await world.status(token) is TokenStatus.CONFIRMED
        dispatcher.mark([Due(token.ref, Provider.APNS, MESSAGES)])  # nothing is due: nothing is sent
    assert len(world.apns.sent) == 1
    assert world.sandbox.sent == []


async def test_providers_are_those_that_were_given(world: World) -> None:
    assert world.dispatcher().providers == {Provider.APNS, Provider.APNS_SANDBOX}


async def test_one_push_in_flight_for_a_token_and_what_comes_meanwhile_goes_next(world: World) -> None:
    await world.active(queues=3)
    async with world.running() as dispatcher:
        dispatcher.mark(await world.notify(b"phone0", meta=b"1"))
        first = await world.apns.next()
        for i in range(5):
            dispatcher.mark(await world.notify(b"phone0", b"phone1", meta=b"%d" % (2 + i)))
        await world.until(bool)
        assert len(world.apns.sent) == 1
        world.apns.finish(first)
        second = await world.apns.next()
        assert metas(second) == [b"6", b"6"]
        world.apns.finish(second)
        await world.nothing_due()
    assert [metas(push) for push in world.apns.sent] == [[b"1"], [b"6", b"6"]]


async def test_many_tokens_are_pushed_to_at_once(world: World) -> None:
    for i in range(250):
        await world.register(b"%d" % i)
    async with world.running():
        pushes = await world.apns.has(250)
        assert len({p.token for p in pushes}) == 250
        for push in reversed(pushes):
            world.apns.finish(push)
        await world.nothing_due()


async def test_more_than_fits_into_a_push_takes_several(world: World) -> None:
    await world.active(queues=20)
    async with world.running() as dispatcher:
        world.apns.answer = lambda push: Accepted(push.notifications)
        dispatcher.mark(await world.notify(*(b"phone%d" % i for i in range(20))))
        await world.nothing_due()
    assert [len(metas(push)) for push in world.apns.sent] == [6, 6, 6, 2]


async def test_what_a_provider_left_out_goes_next(world: World) -> None:
    await world.active(queues=4)
    async with world.running() as dispatcher:
        world.apns.answer = lambda push: Accepted(tuple(n for n in push.notifications if not n.sent)[:1])
        dispatcher.mark(await world.notify(*(b"phone%d" % i for i in range(4))))
        await world.nothing_due()
    assert [len(metas(push)) for push in world.apns.sent] == [4, 3, 2, 1]


async def test_in_flight_is_limited_for_each_provider(world: World) -> None:
    for i in range(12):
        await world.register(b"%d" % i, Provider.APNS if i % 2 else Provider.APNS_SANDBOX)
    async with world.running(replace(FAST, in_flight=3)):
        for provider in (world.sandbox, world.apns):
            for _ in range(2):
                for push in await provider.has(3):
                    provider.finish(push)
        await world.nothing_due()
    assert (world.apns.most, world.sandbox.most) == (3, 3)


async def test_a_dead_token_becomes_invalid_and_is_left_alone(world: World) -> None:
    token = await world.active()
    async with world.running() as dispatcher:
        dispatcher.mark(await world.notify(b"phone0"))
        world.apns.finish(await world.apns.next(), Dead(InvalidReason.UNREGISTERED))
        await world.nothing_due()
        assert await world.status(token) is TokenStatus.INVALID
        dispatcher.mark(await world.notify(b"phone0"))
        revived = await world.register()
        dispatcher.mark([Due(revived.ref, Provider.APNS, VERIFICATION)])
        push = await world.apns.next()
        assert (push.token, push.kind) == (token.ref, VERIFICATION)
        world.apns.finish(push)
        await world.nothing_due()
        dispatcher.mark(await world.sqlite.verify_token(token.ref, CODE) or [])
        assert metas(await world.apns.next()) == [b"meta"]


async def test_a_deleted_token_is_forgotten(world: World) -> None:
    token = await world.active()
    async with world.running() as dispatcher:
        dispatcher.mark(await world.notify(b"phone0"))
        push = await world.apns.next()
        await world.sqlite.delete_token(token.ref)
        dispatcher.mark([Due(token.ref, Provider.APNS, MESSAGES)])
        world.apns.finish(push)
        other = await world.active(b"tablet")
        dispatcher.mark(await world.notify(b"tablet0"))
        assert (await world.apns.next()).token == other.ref
    assert len(world.apns.sent) == 2


# --- verifications


async def test_verifications_overtake(world: World) -> None:
    for i in range(5):
        await world.active(b"a%d" % i)
        await world.notify(b"a%d0" % i)
    fresh = await world.register(b"fresh")
    async with world.running(replace(FAST, in_flight=1)):
        for _ in range(6):
            world.apns.finish(await world.apns.next())
        await world.nothing_due()
    assert world.apns.sent[0].token == fresh.ref


async def test_a_verification_does_not_wait_for_the_backoff_of_messages(world: World) -> None:
    token = await world.active()
    async with world.running(NEVER) as dispatcher:
        dispatcher.mark(await world.notify(b"phone0"))
        world.apns.finish(await world.apns.next(), Retry("busy"))
        await world.register()
        dispatcher.mark([Due(token.ref, Provider.APNS, VERIFICATION)])
        push = await world.apns.next()
        assert push.kind is VERIFICATION
        dispatcher.mark(await world.notify(b"phone0", meta=b"later"))
        world.apns.finish(push)
        assert metas(await world.apns.next()) == [b"later"]  # a push went through: nothing is left to wait for


async def test_a_retry_that_a_verification_overtook_does_not_come_as_well(world: World) -> None:
    token = await world.active()
    async with world.running(NEVER) as dispatcher:
        dispatcher.mark(await world.notify(b"phone0"))
        world.apns.finish(await world.apns.next(), Retry("busy"))
        await settled(dispatcher)
        timer = dispatcher._due[token.ref].timer
        await world.register()
        dispatcher.mark([Due(token.ref, Provider.APNS, VERIFICATION)])
        assert timer is not None
        assert timer.cancelled()


async def test_a_token_that_became_urgent_while_it_was_queued_is_taken_once(world: World) -> None:
    names = [b"first", b"second", b"urgent", b"last"]
    tokens = dict(zip(names, [await world.active(name) for name in names], strict=True))
    async with world.running(replace(FAST, in_flight=2)) as dispatcher:
        for name in names:
            dispatcher.mark(await world.notify(name + b"0"))
        before = await world.apns.has(2)
        urgent = await world.register(b"urgent")
        dispatcher.mark([Due(urgent.ref, Provider.APNS, VERIFICATION)])
        for push in before:
            world.apns.finish(push)
        after = await world.apns.has(2)
        assert [(p.token, p.kind) for p in after] == [
            (urgent.ref, VERIFICATION),
            (tokens[b"last"].ref, MESSAGES),
        ]


@pytest.mark.parametrize("result", [Retry("busy"), Retry("busy", after=1e6), Permanent("fault"), None])
async def test_registering_again_during_a_push_pushes_at_once(world: World, result: Result | None) -> None:
    token = await world.register()
    async with world.running(NEVER) as dispatcher:
        first = await world.apns.next()
        await world.register()
        dispatcher.mark([Due(token.ref, Provider.APNS, VERIFICATION)])
        world.apns.finish(first, result)
        second = await world.apns.next()
        assert (second.kind, second.registration) == (VERIFICATION, first.registration + 1)


async def test_many_registrations_of_a_waiting_token_take_no_room(world: World) -> None:
    token = await world.register()
    dispatcher = world.dispatcher()
    for _ in range(1000):
        dispatcher.mark([Due(token.ref, Provider.APNS, VERIFICATION), Due(token.ref, Provider.APNS, MESSAGES)])
    [lane] = [lane for lane in dispatcher._lanes.values() if lane.urgent]
    assert len(lane.urgent) + len(lane.normal) == 1


# --- another provider


async def test_a_token_that_is_replaced_moves_to_its_new_provider(world: World) -> None:
    token = await world.active()
    async with world.running() as dispatcher:
        dispatcher.mark(await world.notify(b"phone0"))
        old = await world.apns.next()
        device = DeviceToken(Provider.APNS_SANDBOX, b"new phone")
        assert await world.sqlite.replace_token(token.ref, device, b"new code", NOW)
        dispatcher.mark([Due(token.ref, Provider.APNS_SANDBOX, VERIFICATION)])
        world.apns.finish(old, Retry("busy"))
        push = await world.sandbox.next()
        assert (push.kind, push.code, push.device) == (VERIFICATION, b"new code", device)
        world.sandbox.finish(push)
        await world.nothing_due()
        dispatcher.mark(await world.sqlite.verify_token(token.ref, b"new code") or [])
        push = await world.sandbox.next()
        assert metas(push) == [b"meta"]
        world.sandbox.finish(push)
        await world.nothing_due()
    assert len(world.apns.sent) == 1


async def test_a_replaced_token_that_waits_for_a_retry_moves_at_once(world: World) -> None:
    token = await world.active()
    async with world.running(NEVER) as dispatcher:
        dispatcher.mark(await world.notify(b"phone0"))
        world.apns.finish(await world.apns.next(), Retry("unreachable", Scope.PROVIDER))
        await world.sqlite.replace_token(token.ref, DeviceToken(Provider.APNS_SANDBOX, b"x"), b"new", NOW)
        dispatcher.mark([Due(token.ref, Provider.APNS_SANDBOX, VERIFICATION)])
        assert (await world.sandbox.next()).code == b"new"


async def test_a_replaced_token_that_is_queued_leaves_its_old_provider(world: World) -> None:
    await world.register(b"blocks sandbox", Provider.APNS_SANDBOX)
    await world.register(b"blocks production")
    moved, last = await world.active(b"moved"), await world.active(b"last")
    async with world.running(replace(FAST, in_flight=1)) as dispatcher:
        blocks, blocks_sandbox = await world.apns.next(), await world.sandbox.next()
        dispatcher.mark(await world.notify(b"moved0", b"last0"))
        await world.sqlite.replace_token(moved.ref, DeviceToken(Provider.APNS_SANDBOX, b"new"), b"new", NOW)
        dispatcher.mark([Due(moved.ref, Provider.APNS_SANDBOX, VERIFICATION)])
        world.apns.finish(blocks)
        assert (await world.apns.next()).token == last.ref
        world.sandbox.finish(blocks_sandbox)
        assert (await world.sandbox.next()).token == moved.ref


async def test_what_waits_for_a_provider_that_is_not_configured_is_said_and_kept(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    token = await world.register(provider=Provider.APNS_TEST)
    async with world.running() as dispatcher:
        dispatcher.mark([Due(token.ref, Provider.APNS_TEST, VERIFICATION)])
    assert "not configured: AT" in caplog.text
    assert await world.sqlite.all_due() == [Due(token.ref, Provider.APNS_TEST, VERIFICATION)]


# --- retries


@pytest.mark.parametrize(("rng", "share"), [(0.0, 0.5), (1.0, 1.0), (0.5, 0.75)])
async def test_the_backoff_grows_to_its_bound(world: World, delays: list[float], rng: float, share: float) -> None:
    await world.register()
    config = DispatcherConfig(min_backoff=2.0, max_backoff=50.0)
    async with world.running(config, lambda: rng):
        for _ in range(8):
            world.apns.finish(await world.apns.next(), Retry("busy"))
        world.apns.finish(await world.apns.next())
        await world.nothing_due()
    assert delays[:8] == [share * bound for bound in (2, 4, 8, 16, 32, 50, 50, 50)]


async def test_the_backoff_begins_anew_after_a_delivery_also_when_more_came_meanwhile(
    world: World, delays: list[float]
) -> None:
    await world.active()
    async with world.running(DispatcherConfig(min_backoff=2.0)) as dispatcher:
        dispatcher.mark(await world.notify(b"phone0"))
        for _ in range(3):
            world.apns.finish(await world.apns.next(), Retry("busy"))
        push = await world.apns.next()
        dispatcher.mark(await world.notify(b"phone0"))
        world.apns.finish(push)
        world.apns.finish(await world.apns.next(), Retry("busy"))
        await world.apns.next()
    assert [d for d in delays if d >= 2.0][:4] == [2.0, 4.0, 8.0, 2.0]


async def test_the_backoff_begins_anew_after_a_delivery(world: World, delays: list[float]) -> None:
    await world.active()
    async with world.running(DispatcherConfig(min_backoff=2.0)) as dispatcher:
        for _ in range(2):
            dispatcher.mark(await world.notify(b"phone0"))
            for _ in range(2):
                world.apns.finish(await world.apns.next(), Retry("busy"))
            world.apns.finish(await world.apns.next())
            await world.nothing_due()
    assert [d for d in delays if d >= 2.0] == [2.0, 4.0] * 2


@pytest.mark.parametrize("after", [0.0, 7.0, 1234.5])
async def test_what_the_provider_asks_for_is_honoured(world: World, delays: list[float], after: float) -> None:
    await world.register()
    async with world.running(NEVER):
        world.apns.finish(await world.apns.next(), Retry("busy", after=after))
        await world.apns.next()
    assert delays[0] == after


async def test_a_fault_of_ours_is_loud_and_retried_slowly(
    world: World, delays: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(3):
        await world.register(b"%d" % i)
    async with world.running(DispatcherConfig(permanent_backoff=600.0)):
        for push in await world.apns.has(3):
            world.apns.finish(push, Permanent("403 InvalidProviderToken"))
        for push in await world.apns.has(3):
            world.apns.finish(push)
        await world.nothing_due()
    assert delays[:3] == [600.0] * 3
    loud = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [r.getMessage() for r in loud] == ["AP refuses pushes for a fault of this server: 403 InvalidProviderToken"]


async def test_what_comes_during_a_retry_goes_along_with_it(world: World) -> None:
    await world.active(queues=2)
    async with world.running(replace(NEVER, min_backoff=0.05, max_backoff=0.05)) as dispatcher:
        dispatcher.mark(await world.notify(b"phone0", meta=b"old"))
        world.apns.finish(await world.apns.next(), Retry("busy"))
        dispatcher.mark(await world.notify(b"phone1", b"phone0", meta=b"new"))
        assert metas(await world.apns.next()) == [b"new", b"new"]
    assert len(world.apns.sent) == 2


async def test_a_push_is_given_up_after_its_time_to_live(world: World) -> None:
    await world.register()
    async with world.running() as dispatcher:
        world.apns.finish(await world.apns.next(), Retry("busy"))
        push = await world.apns.next()
        world.now += 600
        world.apns.finish(push, Retry("busy"))
        await world.nothing_due()
        await dispatcher.close()
    assert len(world.apns.sent) == 2


async def test_a_provider_in_trouble_pauses_alone(world: World) -> None:
    first = await world.register(b"first")
    async with world.running(NEVER) as dispatcher:
        world.apns.finish(await world.apns.next(), Retry("connection refused", Scope.PROVIDER))
        await settled(dispatcher)
        for provider in (Provider.APNS, Provider.APNS_SANDBOX):
            other = await world.register(b"other", provider)
            dispatcher.mark([Due(other.ref, provider, VERIFICATION)])
        dispatcher.mark([Due(first.ref, Provider.APNS, VERIFICATION)])
        for _ in range(3):  # the other lane goes on
            push = await world.sandbox.next()
            world.sandbox.finish(push)
            await world.until(lambda due: all(d.provider is Provider.APNS for d in due))
            again = await world.register(b"other", Provider.APNS_SANDBOX)
            dispatcher.mark([Due(again.ref, Provider.APNS_SANDBOX, VERIFICATION)])
        assert len(world.apns.sent) == 1


async def test_a_paused_provider_is_tried_again_and_less_and_less_often(
    world: World, delays: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    await world.register()
    async with world.running(DispatcherConfig(min_backoff=4.0)) as dispatcher:
        for _ in range(5):
            world.apns.finish(await world.apns.next(), Retry("connection refused", Scope.PROVIDER))
        world.apns.finish(await world.apns.next())
        await world.nothing_due()
        pauses, retries = delays[0:10:2], delays[1:10:2]
        assert pauses == [4.0, 8.0, 16.0, 30.0, 30.0]
        assert retries == [4.0, 8.0, 16.0, 32.0, 64.0]
        await settled(dispatcher)
        delays.clear()
        token = await world.register()
        dispatcher.mark([Due(token.ref, Provider.APNS, VERIFICATION)])
        world.apns.finish(await world.apns.next(), Retry("connection refused", Scope.PROVIDER))
        await world.apns.next()
        assert [d for d in delays if d >= 1] == [4.0, 4.0]  # the outage is over: a new one begins anew
    assert caplog.text.count("AP cannot be reached: connection refused") == 1


async def test_a_pause_ends_with_one_push_that_shows_whether_the_provider_is_back(world: World) -> None:
    for i in range(20):
        await world.register(b"%d" % i)
    async with world.running():
        for push in await world.apns.has(20):
            world.apns.finish(push, Retry("connection refused", Scope.PROVIDER))
        for sent in (21, 22):
            [probe] = await world.apns.has(1)
            assert len(world.apns.sent) == sent
            world.apns.finish(probe, Retry("connection refused", Scope.PROVIDER))
        [probe] = await world.apns.has(1)
        world.apns.finish(probe)
        for push in await world.apns.has(19):
            world.apns.finish(push)
        await world.nothing_due()
    assert len(world.apns.sent) == 42


async def test_what_does_not_fit_in_memory_waits_in_the_store(world: World) -> None:
    for i in range(60):
        await world.register(b"%d" % i)
    world.apns.answer = lambda push: Accepted()
    config = replace(FAST, max_due=5, in_flight=2)
    most = 0
    async with world.running(config) as dispatcher:
        while await world.sqlite.all_due():
            most = max(most, *(lane.known for lane in dispatcher._lanes.values()))
            await asyncio.sleep(0)
        await world.nothing_due()
    assert len(world.apns.sent) == 60
    assert most <= 5


async def test_a_provider_may_have_its_own_limit(world: World) -> None:
    for i in range(10):
        await world.register(b"%d" % i)
    async with world.running(replace(FAST, in_flight_of={Provider.APNS: 3})):
        for left in range(10, 0, -1):
            pushes = await world.apns.has(min(3, left))
            world.apns.finish(pushes[0])
        await world.nothing_due()
    assert world.apns.most == 3


# --- the store


@pytest.mark.parametrize("method", ["load_pushes", "record"])
async def test_a_store_that_fails_for_a_while_loses_nothing(
    world: World, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(10):
        await world.active(b"%d-" % i)
        await world.notify(b"%d-0" % i)
    world.store.failures[method] = 5
    world.apns.answer = lambda push: Accepted(push.notifications)
    async with world.running():
        await world.nothing_due()
    assert Counter(p.token for p in world.apns.sent) == Counter({p.token: 1 for p in world.apns.sent})
    assert len(world.apns.sent) == 10
    assert caplog.text.count("the disk is full") == 1
    assert world.store.failures[method] == 0


async def test_a_start_with_a_failing_store(world: World) -> None:
    world.store.failures["all_due"] = 1
    dispatcher = world.dispatcher()
    with pytest.raises(StoreError):
        await dispatcher.start()
    await dispatcher.close()


async def test_what_is_marked_while_it_is_read_from_the_store_is_not_lost(world: World) -> None:
    await world.active()
    async with world.running() as dispatcher:
        world.apns.answer = lambda push: Accepted(push.notifications)
        world.store.held["load_pushes"] = release = asyncio.Event()
        world.store.entered.clear()
        dispatcher.mark(await world.notify(b"phone0", meta=b"1"))
        await asyncio.wait_for(world.store.entered.wait(), 10)
        dispatcher.mark(await world.notify(b"phone0", meta=b"2"))
        release.set()
        await world.nothing_due()
    assert metas(world.apns.sent[0]) == [b"2"]


async def test_what_is_marked_while_a_result_is_recorded_is_not_lost(world: World) -> None:
    await world.active()
    async with world.running() as dispatcher:
        dispatcher.mark(await world.notify(b"phone0", meta=b"1"))
        push = await world.apns.next()
        world.store.held["record"] = release = asyncio.Event()
        world.store.entered.clear()
        world.apns.finish(push)
        await asyncio.wait_for(world.store.entered.wait(), 10)
        dispatcher.mark(await world.notify(b"phone0", meta=b"2"))
        release.set()
        assert metas(await world.apns.next()) == [b"2"]


# --- stop and start


async def test_a_restart_resumes_what_was_not_delivered(world: World) -> None:
    fresh, active, done = await world.register(b"fresh"), await world.active(b"active"), await world.active(b"done")
    async with world.running() as dispatcher:
        dispatcher.mark(await world.notify(b"active0", b"done0"))
        for push in await world.apns.has(3):
            if push.token == done.ref:
                world.apns.finish(push)
        await world.until(lambda due: len(due) == 2)
    world.apns.waiting.clear()
    world.apns.sent.clear()
    await world.sqlite.close()
    await world.open()
    async with world.running():
        assert {(p.token, p.kind) for p in await world.apns.has(2)} == {
            (fresh.ref, VERIFICATION),
            (active.ref, MESSAGES),
        }


async def test_close_waits_for_what_is_in_flight_and_records_it(world: World) -> None:
    for i in range(3):
        await world.register(b"%d" % i)
    dispatcher = world.dispatcher(replace(FAST, in_flight=2))
    await dispatcher.start()
    pushes = await world.apns.has(2)
    closing = asyncio.create_task(dispatcher.close(grace=10))
    await asyncio.sleep(0)
    world.apns.finish(pushes[0])
    await world.until(lambda due: len(due) == 2)
    assert not closing.done()
    world.apns.finish(pushes[1], Retry("busy"))
    await asyncio.wait_for(closing, 5)
    assert len(await world.sqlite.all_due()) == 2
    assert len(world.apns.sent) == 2  # nothing new was begun


async def test_close_waits_no_longer_than_its_grace(world: World, caplog: pytest.LogCaptureFixture) -> None:
    token = await world.register()
    dispatcher = world.dispatcher()
    await dispatcher.start()
    await world.apns.next()
    await asyncio.wait_for(dispatcher.close(grace=0.01), 5)
    assert "1 pushes were still in flight" in caplog.text
    assert await world.sqlite.all_due() == [Due(token.ref, Provider.APNS, VERIFICATION)]


async def test_close_does_not_wait_for_what_was_only_read(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.register()
    world.store.held["load_pushes"] = asyncio.Event()
    dispatcher = world.dispatcher()
    await dispatcher.start()
    world.store.entered.clear()
    await asyncio.wait_for(world.store.entered.wait(), 5)
    await asyncio.wait_for(dispatcher.close(grace=1e6), 5)
    assert "in flight" not in caplog.text


async def test_close_before_start_and_twice(world: World) -> None:
    dispatcher = world.dispatcher()
    await dispatcher.close()
    await dispatcher.start()
    await dispatcher.close(grace=10)
    await dispatcher.close(grace=10)


# --- anything may happen


class Chaos:
    """Answers at random, late and in any order; remembers what the devices got."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.rng = rng
        self.calm = False
        self.in_flight: set[int] = set()
        self.got: dict[bytes, int] = {}
        self.pushes = 0

    def send(self, pushes: Sequence[Push], on_result: OnResult) -> None:
        for push in pushes:
            assert push.token not in self.in_flight, "two pushes in flight for a token"
            self.in_flight.add(push.token)
            delay = self.rng.choice([0, 0, 0.001, 0.003])
            asyncio.get_running_loop().call_later(delay, self._finish, push, on_result)

    def _finish(self, push: Push, on_result: OnResult) -> None:
        self.in_flight.remove(push.token)
        self.pushes += 1
        choice = 0.0 if self.calm else self.rng.random()
        if choice < 0.6:
            held = push.notifications if choice < 0.4 else push.notifications[-3:]
            for n in held:
                self._take(n.notification.notifier_id, int(n.notification.meta))
            on_result(push, Accepted(held))
        elif choice < 0.8:
            on_result(push, Retry("busy", after=self.rng.choice([None, 0.0, 0.002])))
        elif choice < 0.9:
            on_result(push, Retry("outage", Scope.PROVIDER))
        else:
            on_result(push, Permanent("fault"))

    def _take(self, queue: bytes, number: int) -> None:
        assert number >= self.got.get(queue, -1), "an older notification after a newer one"
        self.got[queue] = number


async def stress(path: Path, seed: int, rounds: int, tokens: int) -> None:
    rng = random.Random(seed)
    world = World(path)
    await world.open()
    chaos = Chaos(world, rng)
    world.apns = world.sandbox = chaos  # type: ignore[assignment]
    names = [b"%d-" % i for i in range(tokens)]
    owners = [await world.active(name, queues=8) for name in names]
    newest: dict[bytes, int] = {}
    config = replace(FAST, in_flight=rng.choice([1, 3, 100]))
    dispatcher = world.dispatcher(config, rng.random)
    await dispatcher.start()
    for number in range(rounds):
        queues = [rng.choice(names) + b"%d" % rng.randrange(8) for _ in range(rng.randrange(1, 10))]
        newest |= dict.fromkeys(queues, number)
        dispatcher.mark(await world.notify(*queues, meta=b"%d" % number))
        what = rng.random()
        if what < 0.1:
            owner = rng.choice(owners)
            provider = rng.choice([Provider.APNS, Provider.APNS_SANDBOX])
            await world.sqlite.replace_token(owner.ref, DeviceToken(provider, os.urandom(8)), CODE, NOW)
            dispatcher.mark([Due(owner.ref, provider, VERIFICATION)])
            await asyncio.sleep(rng.choice([0, 0.002]))
            dispatcher.mark(await world.sqlite.verify_token(owner.ref, CODE) or [])
        elif what < 0.2:
            world.store.failures[rng.choice(["load_pushes", "record"])] += 1
        elif what < 0.25:
            await dispatcher.close(grace=rng.choice([0.0, 5.0]))
            while chaos.in_flight:  # their answers come too late
                await asyncio.sleep(0.001)
            dispatcher = world.dispatcher(config, rng.random)
            await dispatcher.start()
        else:
            await asyncio.sleep(rng.choice([0, 0, 0.001]))
    chaos.calm = True
    await world.nothing_due()
    await dispatcher.close(grace=5)
    await world.sqlite.close()
    assert chaos.got == newest


@pytest.mark.parametrize("seed", range(6))
async def test_everything_is_delivered_in_the_end(tmp_path: Path, seed: int) -> None:
    await stress(tmp_path / "relay.db", seed, rounds=120, tokens=6)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 130))
async def test_everything_is_delivered_in_the_end_many_times(tmp_path: Path, seed: int) -> None:
    await stress(tmp_path / "relay.db", seed, rounds=600, tokens=20)


# --- metrics


def counted(metrics: Metrics, provider: Provider) -> list[int]:
    """Pushes delivered, failed, retried, refused."""
    kinds = KindCounter
    names = (kinds.PUSHES_DELIVERED, kinds.PUSHES_FAILED, kinds.PUSHES_RETRIED, kinds.PUSHES_REFUSED)
    return [metrics.value(name, provider) for name in names]


async def test_every_outcome_is_counted_for_its_provider(world: World) -> None:
    await world.active()
    answers = iter([Retry("busy"), Permanent("fault"), Retry("down", Scope.PROVIDER), Accepted(), None])
    world.apns.answer = lambda push: next(answers) or Accepted(push.notifications)
    async with world.running() as dispatcher:
        dispatcher.mark(await world.notify(b"phone0"))
        await world.nothing_due()
        await settled(dispatcher)
    assert counted(world.metrics, Provider.APNS) == [2, 0, 2, 1]
    assert counted(world.metrics, Provider.APNS_SANDBOX) == [0, 0, 0, 0]
    assert world.metrics.value(ServerCounter.DELIVERED) == 1
    assert world.metrics.value(ServerCounter.FAILED) == 0


async def test_notifications_are_counted_when_they_are_delivered_first(world: World) -> None:
    world.metrics = Metrics([SMP.hosts[0]])
    await world.active(queues=8)
    world.apns.answer = lambda push: Accepted(push.notifications)
    async with world.running() as dispatcher:
        dispatcher.mark(await world.notify(*(b"phone%d" % i for i in range(8))))
        await world.nothing_due()
        await settled(dispatcher)
        assert [len(metas(push)) for push in world.apns.sent] == [6, 2]
        assert len(world.apns.sent[1].notifications) == 6  # filled up with what was sent before
        assert world.metrics.value(ServerCounter.DELIVERED, SMP.hosts[0]) == 8
        dispatcher.mark(await world.notify(b"phone0", meta=b"newer"))
        await world.nothing_due()
        await settled(dispatcher)
    assert world.metrics.value(ServerCounter.DELIVERED, SMP.hosts[0]) == 9
    assert world.metrics.value(ServerCounter.DELIVERED) == 0
    assert counted(world.metrics, Provider.APNS) == [3, 0, 0, 0]


async def test_notifications_of_a_dead_token_are_counted_as_failed(world: World) -> None:
    await world.active(queues=3)
    async with world.running() as dispatcher:
        dispatcher.mark(await world.notify(b"phone0"))
        world.apns.finish(await world.apns.next())
        await world.nothing_due()
        dispatcher.mark(await world.notify(b"phone1", b"phone2"))
        push = await world.apns.next()
        assert [n.sent for n in push.notifications].count(True) == 1
        world.apns.finish(push, Dead(InvalidReason.UNREGISTERED))
        await settled(dispatcher)
    assert world.metrics.value(ServerCounter.FAILED) == 2
    assert world.metrics.value(ServerCounter.DELIVERED) == 1
    assert counted(world.metrics, Provider.APNS) == [1, 1, 0, 0]


async def test_what_is_in_flight_and_due_can_be_read(world: World) -> None:
    def gauges() -> list[str]:
        lines = dict(line.split(" ") for line in world.metrics.render().splitlines() if not line.startswith("#"))
        return [lines[Gauge.PUSHES_IN_FLIGHT], lines[Gauge.TOKENS_DUE]]

    for i in range(3):
        await world.register(b"%d" % i)
    async with world.running(replace(FAST, in_flight=2)) as dispatcher:
        pushes = await world.apns.has(2)
        assert gauges() == ["2", "3"]
        for push in pushes:
            world.apns.finish(push)
        world.apns.finish(await world.apns.next())
        await world.nothing_due()
        await settled(dispatcher)
        assert gauges() == ["0", "0"]
