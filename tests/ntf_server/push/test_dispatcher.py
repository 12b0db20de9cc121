"""The dispatcher over a real store: what is due is pushed, once at a time for each token, and recorded."""

import asyncio
import contextlib
import logging
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from claims import claim as make_claim
from prometheus_client.samples import Sample
from scrape import sample, samples

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Histogram, KindGauge, PairCounter, ServerCounter
from ntf_server.push.dispatcher import Dispatcher, DispatcherConfig
from ntf_server.push.schedule import ScheduleConfig
from ntf_server.push.verdict import Again, DeadToken, Delivered, OnVerdict, Ours, Scope, Verdict
from ntf_server.store.contract import PartlyUnavailableError, Store, StoreConflictError, StoreFullError
from ntf_server.store.memory import Times
from ntf_server.store.open import open_store
from ntf_server.store.records import (
    Claim,
    Ended,
    Entry,
    NewSubscription,
    NewToken,
    Notification,
    Outcome,
    PushKind,
    Replacement,
    Token,
)
from ntf_server.store.sealing import MasterKey
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, TokenStatus

SMP = ServerAddress("smp", ("smp.example.org",), "", bytes(32))
FAST = ScheduleConfig(min_backoff=0.01, max_backoff=0.02, ours_backoff=0.02)
SLOW = replace(FAST, min_backoff=1000.0, max_backoff=1000.0, ours_backoff=1000.0)
SPACING = 0.02


class FakeProvider:
    """Pushes wait here until the test answers them; more than one of a token at once is an error."""

    at_once = 16

    def __init__(self) -> None:
        self.sent: list[Claim] = []
        self.waiting: dict[bytes, tuple[Claim, OnVerdict]] = {}
        self.answer: Callable[[Claim], Verdict] | None = None
        self.fails = 0
        self.codes: set[bytes] = set()  # device tokens whose code is of no interest
        self.most = 0
        self.batches: list[int] = []
        self._changed = asyncio.Event()

    def send(self, claims: Sequence[Claim], on_verdict: OnVerdict) -> None:
        self.batches.append(len(claims))
        if self.fails:
            self.fails -= 1
            raise RuntimeError("a fault of ours")
        for claim in claims:
            if claim.kind is PushKind.VERIFICATION and claim.device.token in self.codes:
                on_verdict(claim, Delivered())
                continue
            assert claim.device.token not in self.waiting
            self.sent.append(claim)
            if self.answer is not None:
                on_verdict(claim, self.answer(claim))
            else:
                self.waiting[claim.device.token] = claim, on_verdict
        self.most = max(self.most, len(self.waiting))
        self._changed.set()

    async def has(self, count: int) -> list[Claim]:
        """Wait until so many pushes are in flight."""
        async with asyncio.timeout(10):
            while len(self.waiting) < count:
                self._changed.clear()
                await self._changed.wait()
        return [claim for claim, _ in self.waiting.values()]

    async def next(self) -> Claim:
        [claim] = await self.has(1)
        return claim

    def finish(self, claim: Claim, verdict: Verdict | None = None) -> None:
        _, on_verdict = self.waiting.pop(claim.device.token)
        on_verdict(claim, verdict or Delivered(claim.entries))


class FaultyStore:
    """A store whose named methods fail while they are in `failing`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.failing: Counter[str] = Counter()
        self.error: Exception = StoreFullError("the disk is full")
        self.calls: Counter[str] = Counter()
        self.watch = store.watch
        self.arrive = store.arrive

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        async def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            if self.failing[name] > 0:
                self.failing[name] -= 1
                raise self.error
            return await method(*arguments)

        return call


class World:
    """A store with tokens, and a dispatcher over it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.apns = FakeProvider()
        self.sandbox = FakeProvider()
        self.web_push = FakeProvider()
        self.metrics = Metrics()
        self.ended: list[Outcome] = []
        self.keys: dict[int, bytes] = {}

    async def open(self) -> None:
        store = await open_store(
            f"sqlite:///{self.path.name}",
            directory=self.path.parent,
            master_key=MasterKey(bytes(32)),
            times=Times(spacing=SPACING),
        )
        self.store = FaultyStore(store)

    @contextlib.asynccontextmanager
    async def running(self, schedule: ScheduleConfig = FAST) -> AsyncIterator[Dispatcher]:
        providers = {
            Provider.APNS: self.apns,
            Provider.APNS_SANDBOX: self.sandbox,
            Provider.WEB_PUSH: self.web_push,
        }
        schedules = {Provider.WEB_PUSH: replace(schedule, by_origin=True)}
        dispatcher = self.dispatcher = Dispatcher(
            self.store,  # type: ignore[arg-type]
            providers,
            DispatcherConfig(schedule, schedules, store_backoff=0.001),
            on_ended=self.ended.append,
            metrics=self.metrics,
            rng=lambda: 1.0,
        )
        tasks = [asyncio.create_task(run(), name=name) for name, run in dispatcher.parts()]  # type: ignore[arg-type]
        try:
            yield dispatcher
        finally:
            await dispatcher.close(0.05)
            for task in tasks:
                task.cancel()
            done, _ = await asyncio.wait(tasks)
            assert not [t.exception() for t in done if not t.cancelled() and t.exception()]

    async def token(
        self, name: bytes | None = None, provider: Provider = Provider.APNS, *, active: bool = True
    ) -> Token:
        name = name or os.urandom(8)
        code = os.urandom(32)
        if active:
            (self.apns if provider is Provider.APNS else self.sandbox).codes.add(name)
        new = NewToken(
            os.urandom(24), DeviceToken(provider, name), os.urandom(44), bytes(32), bytes(32), bytes(32), code
        )
        token = await self.store.register(new)
        assert token is not None
        if active:
            assert await self.store.verify(token.ref, code)
        return token

    async def queue(self, token: Token) -> bytes:
        notifier_id = os.urandom(24)
        assert await self.store.subscribe(token.ref, NewSubscription(os.urandom(24), SMP, notifier_id, b"key"))
        return notifier_id

    async def notify(self, *notifier_ids: bytes, at_once: bool = True) -> None:
        """What the inbox does with a block."""
        session = await self.store.acquire(SMP)
        first, now = self.store.arrive(session, len(notifier_ids))
        items = [Notification(n, first + i, now, bytes(24), os.urandom(144)) for i, n in enumerate(notifier_ids)]
        offer = self.dispatcher.offer(len(items)) if at_once else {}
        notified = await self.store.notify(session, items, offer)
        self.dispatcher.accept(offer, notified.claims)

    async def status(self, token: Token) -> TokenStatus:
        found = await self.store.find_token(token.token_id)
        return found.status

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "ntf.db")
    await world.open()
    yield world
    await world.store.store.close()


def ids(claim: Claim) -> list[bytes]:
    return [e.notifier_id for e in claim.entries]


async def test_a_code_is_pushed_and_the_token_confirmed(world: World) -> None:
    async with world.running():
        token = await world.token(active=False, name=b"phone")
        claim = await world.apns.next()
        assert (claim.kind, claim.device) == (PushKind.VERIFICATION, DeviceToken(Provider.APNS, b"phone"))
        world.apns.finish(claim)
        async with asyncio.timeout(10):
            while await world.status(token) is not TokenStatus.CONFIRMED:
                await asyncio.sleep(0.002)


async def test_what_arrives_is_handed_out_at_once_where_there_is_room(world: World) -> None:
    async with world.running():
        queue = await world.queue(await world.token())
        await asyncio.sleep(0.05)
        world.store.calls.clear()
        await world.notify(queue)
        assert ids(await world.apns.next()) == [queue]
        assert not world.store.calls["take"]


async def test_what_is_not_handed_out_at_once_is_taken(world: World) -> None:
    async with world.running():
        queue = await world.queue(await world.token())
        await world.notify(queue, at_once=False)
        assert ids(await world.apns.next()) == [queue]


async def test_one_push_in_flight_for_a_token_and_what_comes_meanwhile_goes_together(world: World) -> None:
    async with world.running():
        token = await world.token()
        queues = [await world.queue(token) for _ in range(4)]
        await world.notify(queues[0])
        first = await world.apns.next()
        for queue in queues[1:]:
            await world.notify(queue)
        await asyncio.sleep(0.05)
        assert world.apns.sent == [first]
        world.apns.finish(first)
        second = await world.apns.next()
        assert ids(second) == queues  # the first rides along, as it was sent before


async def test_a_tokens_next_push_waits_for_what_comes_within_the_spacing(world: World) -> None:
    async with world.running():
        token = await world.token()
        queues = [await world.queue(token) for _ in range(5)]
        world.apns.answer = lambda claim: Delivered(claim.entries)
        for queue in queues:
            await world.notify(queue)
        await world.until(lambda: {i for c in world.apns.sent for i in ids(c)} == set(queues))
        assert len(world.apns.sent) <= 3


async def test_more_than_fits_into_a_push_takes_several(world: World) -> None:
    async with world.running():
        token = await world.token()
        queues = [await world.queue(token) for _ in range(20)]
        world.apns.answer = lambda claim: Delivered(claim.entries)
        await world.notify(*queues)
        await world.until(lambda: {i for c in world.apns.sent for i in ids(c)} == set(queues))
        assert len(world.apns.sent) == 4


async def test_what_a_provider_left_out_goes_next(world: World) -> None:
    async with world.running():
        token = await world.token()
        queues = [await world.queue(token) for _ in range(3)]
        await world.notify(*queues)
        claim = await world.apns.next()
        world.apns.finish(claim, Delivered(claim.entries[:1]))
        again = await world.apns.next()
        assert [e.notifier_id for e in again.entries if not e.sent] == queues[1:]


async def test_of_many_pushes_others_have_their_turns_between(world: World) -> None:
    """To make one takes up to 0.1 ms. All their places are taken at once."""
    async with world.running() as dispatcher:
        begun: list[int] = []

        def look() -> None:
            begun.append(len(world.apns.sent))
            if begun[-1] < 60:
                asyncio.get_running_loop().call_soon(look)

        dispatcher.accept(dispatcher.offer(60), [make_claim(Provider.APNS, b"%d" % i, ref=i) for i in range(60)])
        assert dispatcher.offer(10_000)[Provider.APNS].total == FAST.places - 60
        look()
        assert [c.token for c in await world.apns.has(60)] == list(range(60))
        assert world.apns.batches == [16, 16, 16, 12]
        assert begun == [16, 32, 48, 60]


async def test_what_is_begun_when_the_relay_closes_is_sent(world: World) -> None:
    async with world.running() as dispatcher:
        world.apns.answer = lambda claim: Delivered(claim.entries)
        dispatcher.accept(dispatcher.offer(40), [make_claim(Provider.APNS, b"%d" % i, ref=i) for i in range(40)])
        assert len(world.apns.sent) < 40
        await dispatcher.close(10)
        assert len(world.apns.sent) == 40


async def test_places_are_limited_for_each_provider(world: World) -> None:
    async with world.running(replace(FAST, places=3)):
        for provider in (Provider.APNS, Provider.APNS_SANDBOX):
            for _ in range(10):
                await world.token(provider=provider, active=False)
        assert len(await world.apns.has(3)) == len(await world.sandbox.has(3)) == 3
        await asyncio.sleep(0.05)
        assert world.apns.most == world.sandbox.most == 3
        for provider in (world.apns, world.sandbox):
            for _ in range(10):
                provider.finish((await provider.has(1))[0])
        assert world.apns.most == world.sandbox.most == 3


async def test_the_oldest_are_pushed_first(world: World) -> None:
    names = [b"%d" % n for n in range(30)]
    async with world.running(replace(FAST, places=1)):
        await world.token(b"blocker", active=False)
        claim = await world.apns.next()
        for name in names:
            await world.token(name, active=False)
            await asyncio.sleep(0.002)
        world.apns.answer = lambda _: Delivered()
        world.apns.finish(claim)
        await world.until(lambda: len(world.apns.sent) == 31)
        assert [c.device.token for c in world.apns.sent] == [b"blocker", *names]


async def test_a_dead_token_becomes_invalid_and_is_left_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with world.running():
        token = await world.token(b"very secret")
        queue = await world.queue(token)
        await world.notify(queue)
        world.apns.finish(await world.apns.next(), DeadToken(InvalidReason.UNREGISTERED))
        async with asyncio.timeout(10):
            while await world.status(token) is not TokenStatus.INVALID:
                await asyncio.sleep(0.002)
        await world.notify(queue)
        await asyncio.sleep(0.05)
        assert len(world.apns.sent) == 1
    assert "very secret" not in caplog.text and b"very secret".hex() not in caplog.text


async def test_a_token_that_waits_for_its_retry_keeps_nobody_out(world: World) -> None:
    async with world.running(replace(SLOW, places=2)):
        world.apns.answer = lambda claim: Again("500") if claim.device.token.startswith(b"bad") else Delivered()
        for n in range(20):
            await world.token(b"bad %d" % n, active=False)
        await world.until(lambda: len(world.apns.sent) == 20)
        for n in range(5):
            await world.token(b"good %d" % n, active=False)
        await world.until(lambda: len(world.apns.sent) == 25)
        assert all(c.device.token.startswith(b"good") for c in world.apns.sent[20:])


async def test_a_code_does_not_wait_for_the_backoff_of_messages(world: World) -> None:
    async with world.running(SLOW):
        token = await world.token()
        await world.notify(await world.queue(token))
        world.apns.finish(await world.apns.next(), Again("500"))
        await asyncio.sleep(0.05)
        await world.store.replace(token.ref, Replacement(DeviceToken(Provider.APNS_SANDBOX, b"new"), b"c" * 32))
        claim = await world.sandbox.next()
        assert (claim.kind, claim.device.token) == (PushKind.VERIFICATION, b"new")


@pytest.mark.parametrize("verdict", [None, Again("500"), DeadToken(InvalidReason.BAD), Ours("403")])
async def test_replacing_during_a_push_pushes_the_new_code_and_ignores_the_old_verdict(
    world: World, verdict: Verdict | None
) -> None:
    async with world.running(SLOW):
        token = await world.token(active=False)
        old = await world.apns.next()
        assert await world.store.replace(token.ref, Replacement(DeviceToken(Provider.APNS_SANDBOX, b"new"), b"d" * 32))
        await asyncio.sleep(0.05)
        assert not world.sandbox.sent  # one push of a token at a time
        world.apns.finish(old, verdict)
        assert (await world.sandbox.next()).code == b"d" * 32
        assert await world.status(token) is TokenStatus.REGISTERED


async def test_the_push_id_stays_over_retries(world: World) -> None:
    async with world.running():
        verdicts: list[Verdict] = [Again("500"), Again("503"), Delivered()]
        world.apns.answer = lambda _: verdicts.pop(0)
        await world.token(active=False)
        await world.until(lambda: not verdicts)
        assert len({c.push_id for c in world.apns.sent}) == 1
        assert [c.attempts for c in world.apns.sent] == [0, 1, 2]


async def test_a_provider_in_trouble_waits_alone_and_is_probed_with_one_push(world: World) -> None:
    async with world.running(replace(FAST, places=20)):
        for n in range(10):
            await world.token(b"first %d" % n, active=False)
        for claim in await world.apns.has(10):
            world.apns.finish(claim, Again("connection refused", Scope.PROVIDER))
        for n in range(10):
            await world.token(b"later %d" % n, active=False)
            await world.token(b"other %d" % n, Provider.APNS_SANDBOX, active=False)
        await world.sandbox.has(10)
        assert not world.apns.waiting
        probe = await world.apns.next()  # after about a second
        await asyncio.sleep(0.05)
        assert len(world.apns.waiting) == 1
        world.apns.finish(probe)
        await world.apns.has(19)


async def test_what_was_passed_over_while_its_place_became_free_is_taken(world: World) -> None:
    taken, answered = asyncio.Event(), asyncio.Event()
    take = world.store.store.take

    async def late(*arguments: Any) -> Any:
        out = await take(*arguments)
        if not out.claims and arguments[1].passed_over:
            taken.set()
            await answered.wait()
        return out

    world.store.take = late  # type: ignore[attr-defined]
    async with world.running():
        for name in (b"first", b"second"):
            keys = os.urandom(44), bytes(32), bytes(32), bytes(32), bytes(32)
            device = DeviceToken(Provider.WEB_PUSH, name)
            await world.store.register(NewToken(os.urandom(24), device, *keys, "https://push.example"))
        first = await world.web_push.next()  # an origin that took nothing yet has one place
        await asyncio.wait_for(taken.wait(), 10)
        world.web_push.finish(first)
        await asyncio.sleep(0.05)
        answered.set()
        second = await world.web_push.next()
        assert first.lane == second.lane
        assert first.token != second.token


async def test_a_fault_of_ours_is_loud_and_tried_at_once_when_it_is_mended(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.running() as dispatcher:
        for _ in range(5):
            await world.token(active=False)
        for claim in await world.apns.has(5):
            world.apns.finish(claim, Ours("403 InvalidProviderToken"))
        assert [r.levelname for r in caplog.records if "InvalidProviderToken" in r.getMessage()] == ["ERROR"]
        assert len(world.apns.sent) == 5
        world.apns.answer = lambda _: Delivered()
        dispatcher.mended()
        async with asyncio.timeout(0.9):  # before the pause is over
            while len(world.apns.sent) < 10:
                await asyncio.sleep(0.002)


async def test_nothing_is_lost_by_a_provider_that_fails(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async with world.running():
        queue = await world.queue(await world.token())
        await asyncio.sleep(0.05)
        world.apns.fails = 1
        world.apns.answer = lambda claim: Delivered(claim.entries)
        await world.notify(queue)
        await world.until(lambda: world.apns.sent)
        assert "a fault of ours" in caplog.text


@pytest.mark.parametrize("method", ["take", "record"])
async def test_a_store_that_fails_for_a_while_loses_nothing(
    world: World, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.running():
        world.store.failing[method] = 5
        world.apns.answer = lambda claim: Delivered(claim.entries)
        tokens = [await world.token(active=False) for _ in range(3)]
        await world.until(lambda: len(world.apns.sent) >= 3 and not world.store.failing[method])
        async with asyncio.timeout(10):
            while any([await world.status(t) is not TokenStatus.CONFIRMED for t in tokens]):
                await asyncio.sleep(0.002)
        assert len(world.apns.sent) == 3
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []  # the store says it itself


async def test_an_outcome_that_cannot_be_recorded_holds_no_other_up(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.running():
        tokens = [await world.token(active=False) for _ in range(3)]
        claims = await world.apns.has(3)
        world.store.error = StoreConflictError("cannot be")
        world.store.failing["record"] = 2  # all together, then the first alone
        for claim in claims:
            world.apns.finish(claim)
        async with asyncio.timeout(10):
            while [await world.status(t) for t in tokens].count(TokenStatus.CONFIRMED) != 2:
                await asyncio.sleep(0.002)
    assert "cannot be recorded" in caplog.text


async def test_outcomes_that_a_part_of_the_store_does_not_take_hold_no_other_up(world: World) -> None:
    """They are tried again, and a stop waits for them."""
    async with world.running() as dispatcher:
        record, left = world.store.store.record, set[bytes]()

        async def record_some(outcomes: Sequence[Outcome]) -> int:
            there = [o for o in outcomes if o.claim.device.token not in left]
            result = await record(there)
            if len(there) < len(outcomes):
                raise PartlyUnavailableError("away", result, [o for o in outcomes if o not in there])
            return result

        world.store.record = record_some
        tokens = [await world.token(active=False) for _ in range(3)]
        claims = await world.apns.has(3)
        left.add(claims[0].device.token)
        for claim in claims:
            world.apns.finish(claim)
        async with asyncio.timeout(10):
            while [await world.status(t) for t in tokens].count(TokenStatus.CONFIRMED) != 2:
                await asyncio.sleep(0.002)
        token = await world.token(active=False)  # what comes then is no later for it
        world.apns.finish(await world.apns.next())
        async with asyncio.timeout(10):
            while await world.status(token) is not TokenStatus.CONFIRMED:
                await asyncio.sleep(0.002)
        closing = asyncio.create_task(dispatcher.close(10))
        await asyncio.sleep(0.05)
        assert not closing.done()
        left.clear()
        await asyncio.wait_for(closing, 5)
        assert await world.status(tokens[0]) is TokenStatus.CONFIRMED
        assert world.metrics.value(PairCounter.PUSHES_DELIVERED, Provider.APNS) == 4


async def test_a_restart_takes_up_what_was_not_delivered(world: World) -> None:
    async with world.running(SLOW):
        token = await world.token()
        queue = await world.queue(token)
        await world.notify(queue)
        await world.apns.next()
    await world.store.store.close()
    await world.open()
    world.apns = FakeProvider()
    async with world.running():
        assert ids(await world.apns.next()) == [queue]


async def test_close_waits_for_what_is_in_flight_and_records_it(world: World) -> None:
    async with world.running() as dispatcher:
        token = await world.token(active=False)
        claim = await world.apns.next()
        closing = asyncio.create_task(dispatcher.close(10))
        await asyncio.sleep(0.02)
        assert not closing.done()
        world.apns.finish(claim)
        await closing
        assert await world.status(token) is TokenStatus.CONFIRMED
        await world.token(active=False)
        await asyncio.sleep(0.05)
        assert len(world.apns.sent) == 1


async def test_what_is_handed_out_while_it_closes_is_given_back(world: World) -> None:
    """Or a node that is drained would wait for it until its time is over, and so would the token."""
    async with world.running() as dispatcher:
        token = await world.token()
        queue = await world.queue(token)
        await asyncio.sleep(5 * SPACING)  # its code was pushed, and it rests no more
        offer = dispatcher.offer(1)
        session = await world.store.acquire(SMP)
        first, now = world.store.arrive(session, 1)
        items = [Notification(queue, first, now, bytes(24), os.urandom(144))]
        [claim] = (await world.store.notify(session, items, offer)).claims
        closing = asyncio.create_task(dispatcher.close(10))
        await asyncio.sleep(0)
        dispatcher.accept(offer, [claim])
        await asyncio.wait_for(closing, 5)
        await world.until(lambda: not dispatcher.under_way)
        sent = [c for c in world.apns.sent if c.kind is not PushKind.VERIFICATION]
        assert not sent
        async with asyncio.timeout(5):
            while (await world.store.backlog(Provider.APNS)).tokens != 1:
                await asyncio.sleep(0.01)


async def test_close_waits_no_longer_than_its_grace(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async with world.running() as dispatcher:
        await world.token(active=False)
        await world.apns.next()
        await dispatcher.close(0.02)
    assert "1 pushes were still in flight: they will be sent again" in caplog.text


async def test_what_waits_for_a_provider_that_is_not_configured_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.token(provider=Provider.FCM, active=False)
    async with world.running() as dispatcher:
        await dispatcher.warn_of_unserved()
    assert "pushes wait for providers that are not configured: FC" in caplog.text


async def test_every_verdict_is_counted_for_its_provider(world: World) -> None:
    verdicts = {
        PairCounter.PUSHES_DELIVERED: Delivered(),
        PairCounter.PUSHES_FAILED: DeadToken(InvalidReason.BAD),
        PairCounter.PUSHES_RETRIED: Again("429"),
        PairCounter.PUSHES_REFUSED: Ours("413", Scope.TOKEN),
    }
    async with world.running(SLOW):
        for verdict in verdicts.values():
            await world.token(active=False)
            world.apns.finish(await world.apns.next(), verdict)
        assert [world.metrics.value(name, "AP") for name in verdicts] == [1, 1, 1, 1]
        assert [world.metrics.value(name, "AD") for name in verdicts] == [0, 0, 0, 0]


async def test_verifications_messages_and_checks_are_counted_apart(world: World) -> None:
    async with world.running():
        token = await world.token()  # its code is pushed
        await world.notify(await world.queue(token))
        world.apns.finish(await world.apns.next())
        await world.until(lambda: world.metrics.value(PairCounter.PUSHES_DELIVERED, "AP") == 2)
    delivered = {s.labels["kind"]: s.value for s in samples(world.metrics) if _is(s, PairCounter.PUSHES_DELIVERED)}
    assert delivered == {"verification": 1, "messages": 1, "check": 0}
    assert sample(world.metrics, f"{Histogram.NOTIFICATION_DELIVERED}_count") == 1


def _is(s: Sample, name: str) -> bool:
    return s.name == name and s.labels["provider"] == "AP"


async def test_gauges_show_how_each_provider_is(world: World) -> None:
    def gauge(name: KindGauge) -> float:
        return sample(world.metrics, name, provider="AP")

    async with world.running(SLOW) as dispatcher:
        await world.token(active=False)
        claim = await world.apns.next()
        assert (gauge(KindGauge.PUSHES_IN_FLIGHT), gauge(KindGauge.PUSHES_HELD)) == (1, 0)
        with pytest.raises(KeyError):
            gauge(KindGauge.LAST_DELIVERED)
        await asyncio.sleep(0.03)
        world.apns.finish(claim)
        assert abs(gauge(KindGauge.LAST_DELIVERED) - time.time()) < 5
        assert gauge(KindGauge.PUSHES_IN_FLIGHT) == gauge(KindGauge.PROVIDER_PAUSED) == 0
        assert sample(world.metrics, f"{Histogram.PUSH_ANSWERED}_count", provider="AP") == 1
        assert 0.03 <= sample(world.metrics, f"{Histogram.PUSH_ANSWERED}_sum", provider="AP") < 5
        await world.token(active=False)
        world.apns.finish(await world.apns.next(), Ours("403 InvalidProviderToken"))
        assert (gauge(KindGauge.PROVIDER_PAUSED), gauge(KindGauge.PROVIDER_PROBED)) == (1, 0)
        dispatcher.mended()
        assert (gauge(KindGauge.PROVIDER_PAUSED), gauge(KindGauge.PROVIDER_PROBED)) == (0, 1)
        assert sample(world.metrics, KindGauge.ORIGINS, state="open") == 0


async def test_a_token_that_is_only_suspected_is_not_said_to_be_invalid(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with world.running(SLOW) as dispatcher:
        token = await world.token()
        queue = await world.queue(token)
        await world.notify(queue)
        world.apns.finish(await world.apns.next())
        await world.until(lambda: world.metrics.value(PairCounter.PUSHES_DELIVERED, "AP") > 1)  # its code too
        dispatcher.mended()  # from now on nothing has gone through
        await asyncio.sleep(0.1)
        await world.notify(queue)
        world.apns.finish(await world.apns.next(), DeadToken(InvalidReason.TOPIC))
        assert world.metrics.value(PairCounter.PUSHES_FAILED, "AP") == 0
        assert world.metrics.value(PairCounter.PUSHES_RETRIED, "AP") == 1
        assert await world.status(token) is TokenStatus.ACTIVE
    assert "invalid" not in caplog.text


async def test_notifications_are_counted_when_they_are_delivered_first(world: World) -> None:
    async with world.running():
        token = await world.token()
        queues = [await world.queue(token) for _ in range(2)]
        for count, queue in enumerate(queues, 1):
            await world.notify(queue)
            claim = await world.apns.next()
            world.apns.finish(claim)
            assert len(claim.entries) == count  # the first rides along with the second
            await world.until(lambda count=count: world.metrics.value(ServerCounter.DELIVERED) == count)  # type: ignore[misc]


def newest(entries: Sequence[Entry]) -> list[int]:
    return [e.seq for e in entries]


@pytest.mark.parametrize("seed", range(6))
async def test_everything_is_delivered_in_the_end(world: World, seed: int) -> None:
    rng = random.Random(seed)
    got: dict[bytes, bytes] = {}

    def answer(claim: Claim) -> Verdict:
        lot = rng.random()
        if lot < 0.2:
            return Again("500")
        if lot < 0.25:
            return Ours("413", Scope.TOKEN)
        assert newest(claim.entries) == sorted(newest(claim.entries))
        got.update((e.notifier_id, e.meta) for e in claim.entries)
        return Delivered(claim.entries)

    async with world.running(replace(FAST, places=rng.choice([1, 3, 100]))):
        tokens = [await world.token() for _ in range(5)]
        queues = [await world.queue(rng.choice(tokens)) for _ in range(20)]
        world.apns.answer = answer
        sent = set()
        for _ in range(40):
            some = rng.sample(queues, rng.randrange(1, 5))
            sent.update(some)
            await world.notify(*some, at_once=rng.random() < 0.5)
            await asyncio.sleep(rng.random() * 0.005)
        await world.until(lambda: set(got) == sent)
        async with asyncio.timeout(10):
            while (await world.store.backlog(Provider.APNS)).tokens or world.dispatcher._in_flight():
                await asyncio.sleep(0.01)


async def test_each_try_is_told(world: World) -> None:
    verdicts = iter([Again("503 Shutdown"), Delivered()])
    world.apns.answer = lambda _: next(verdicts)
    async with world.running():
        await world.token(active=False)
        await world.until(lambda: len(world.ended) == 2)
    assert [(o.ended, o.reason) for o in world.ended] == [(Ended.AGAIN, "503 Shutdown"), (Ended.DELIVERED, "")]
