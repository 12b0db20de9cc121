"""The audit's rounds over a real store, in a time that passes only when it waits."""

import itertools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ntf_server.smp import audit
from ntf_server.smp.audit import AuditConfig
from ntf_server.store.clock import Clock
from ntf_server.store.contract import Store, StoreFullError
from ntf_server.store.open import open_store
from ntf_server.store.records import (
    Added,
    Confirmed,
    NewSubscription,
    NewToken,
    Notification,
    Ref,
    Session,
    ToAudit,
    Token,
)
from ntf_server.store.sealing import MasterKey
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider, SubscriptionStatus

pytestmark = pytest.mark.usefixtures("quiet")

START = 1_800_000_000
DAY = 24 * 3600.0
SMP, OTHER_SMP = (ServerAddress("smp", (f"smp{i}.example.org",), "", bytes([i]) * 32) for i in range(2))
ALL = AuditConfig(period=1000, silent=DAY, sample=1, page=10)


class OverError(Exception):
    """The test has seen enough."""


class Time:
    """Passes when somebody sleeps, and with it the store's; over after `end` seconds."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.end = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return START + self.passed

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.passed += seconds
        if self.passed > self.end:
            raise OverError


class Recorder:
    """Remembers when, where and what the store was asked to have audited."""

    def __init__(self, clock: Time) -> None:
        self._clock = clock
        self.calls: list[tuple[float, ServerAddress, list[Ref]]] = []

    async def request_audit(self, chosen: Sequence[ToAudit]) -> None:
        for server in dict.fromkeys(s.server for s in chosen):
            self.calls.append((self._clock.passed, server, [s.ref for s in chosen if s.server == server]))

    @property
    def refs(self) -> list[Ref]:
        return [ref for *_, refs in self.calls for ref in refs]

    def times(self, ref: Ref) -> list[float]:
        return [at for at, _, refs in self.calls if ref in refs]


class FaultyStore:
    """Fails as often as it is told; what is to be audited goes to the recorder."""

    def __init__(self, store: Store, recorder: Recorder, **failing: int) -> None:
        self._store = store
        self._failing = failing
        self.request_audit = recorder.request_audit

    def __getattr__(self, name: str) -> Any:
        if self._failing.get(name):
            self._failing[name] -= 1
            raise StoreFullError("disk full")
        return getattr(self._store, name)


class Filled:
    """A store and its one token."""

    def __init__(self, store: Store, token: Token, time: Time) -> None:
        self.store = store
        self.token = token
        self.time = time
        self.ids: dict[Ref, bytes] = {}  # notifier ids

    async def fill(self, count: int, server: ServerAddress = SMP, at: float = 0.0) -> list[Ref]:
        """So many subscriptions, made `at` seconds after the start; their refs."""
        refs: list[Ref] = []
        passed, self.time.passed = self.time.passed, at
        for _ in range(count):
            new = NewSubscription(os.urandom(24), server, os.urandom(24), b"key")
            assert isinstance(await self.store.subscribe(self.token.ref, new), Added)
            found = await self.store.find_subscription(new.subscription_id)
            assert found is not None
            refs.append(found[1].ref)
            self.ids[refs[-1]] = new.notifier_id
        self.time.passed = passed
        return refs

    async def session(self, server: ServerAddress = SMP) -> Session:
        session = await self.store.acquire(server)
        assert session is not None
        return session


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(audit, "asyncio", SimpleNamespace(sleep=made.sleep))
    return made


@pytest.fixture
async def filled(tmp_path: Path, time: Time) -> AsyncIterator[Filled]:
    store = await open_store(
        "sqlite:///relay.db",
        directory=tmp_path,
        master_key=MasterKey(b"m" * 32),
        clock=Clock(time, lambda: time.passed),
    )
    device = DeviceToken(Provider.APNS, b"phone")
    token = await store.register(NewToken(os.urandom(24), device, b"key", b"", b"", os.urandom(32), b"code"))
    assert token is not None
    yield Filled(store, token, time)
    await store.close()


@pytest.fixture
def recorder(time: Time) -> Recorder:
    return Recorder(time)


Go = Callable[..., Any]


@pytest.fixture
def go(filled: Filled, time: Time, recorder: Recorder) -> Go:
    """Audit until so many seconds have passed since the beginning."""

    async def run(
        end: float, config: AuditConfig = ALL, rng: Callable[[], float] = lambda: 0.0, **failing: int
    ) -> None:
        time.end = end
        store = cast("Store", FaultyStore(filled.store, recorder, **failing))
        with pytest.raises(OverError):
            await audit.run(store, config, rng=rng)

    return run


# --- pacing


@pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 25, 99])
async def test_a_whole_round_takes_its_period(filled: Filled, recorder: Recorder, go: Go, count: int) -> None:
    refs = await filled.fill(count)
    await go(2999)
    assert recorder.refs == refs * 3
    for number, ref in enumerate(refs):
        page = number // 10 * 10
        first = 1000 * page / count if count > 10 else 0
        assert recorder.times(ref) == pytest.approx(
            [first, first + 1000, first + 2000], abs=0.2
        )  # a full last page: a pause more


async def test_the_last_page_of_a_round_may_be_empty(filled: Filled, time: Time, recorder: Recorder, go: Go) -> None:
    await filled.fill(20)
    await go(1999)
    assert [at for at, *_ in recorder.calls] == pytest.approx([0, 500, 1000, 1500], abs=0.2)
    assert time.pauses == [500, 500, 0.05, 500, 500]


async def test_what_ended_makes_a_round_no_shorter(filled: Filled, recorder: Recorder, go: Go) -> None:
    refs = await filled.fill(40)
    session = await filled.session()
    await filled.store.confirm(session, [Confirmed(ref, SubscriptionStatus.AUTH) for ref in refs[15:]])
    await go(2999)
    assert recorder.times(refs[0]) == pytest.approx([0, 1000, 2000])
    assert recorder.times(refs[14]) == pytest.approx([250, 1250, 2250])


async def test_it_waits_between_pages_however_short_the_period(filled: Filled, time: Time, go: Go) -> None:
    await filled.fill(25)
    await go(1, AuditConfig(period=0.001, page=10))
    assert time.pauses == [0.05] * len(time.pauses)
    assert len(time.pauses) in (20, 21)


async def test_nothing_to_audit_is_looked_at_once_a_period(time: Time, recorder: Recorder, go: Go) -> None:
    await go(2999)
    assert time.pauses == [1000] * 3
    assert recorder.calls == []


async def test_what_is_added_behind_the_round_is_in_it(
    filled: Filled, recorder: Recorder, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = await filled.fill(20)
    added: list[Ref] = []

    async def to_audit(*arguments: Any) -> Any:
        page = await look(*arguments)
        if not added:
            added.extend(await filled.fill(4))
        return page

    look = filled.store.to_audit
    monkeypatch.setattr(filled.store, "to_audit", to_audit)
    await go(999)
    assert recorder.refs == refs + added


# --- the choice


async def test_the_silent_are_always_chosen_the_others_by_the_sample(
    filled: Filled, recorder: Recorder, go: Go
) -> None:
    silent = await filled.fill(30, at=-DAY - 1)
    heard = await filled.fill(40, at=-DAY)
    config = AuditConfig(period=1000, silent=DAY, sample=0.25, page=100)
    draws = itertools.cycle([0.75, 0.25, 0.5, 0.2499])
    await go(1, config, rng=lambda: next(draws))
    assert recorder.refs == silent + heard[3::4]


@pytest.mark.parametrize(("sample", "chosen"), [(0.0, 0), (1.0, 20)])
async def test_a_sample_of_none_or_all(filled: Filled, recorder: Recorder, go: Go, sample: float, chosen: int) -> None:
    await filled.fill(20)
    draws = itertools.cycle([0.0, 0.9999])
    await go(1, AuditConfig(period=1000, silent=DAY, sample=sample, page=100), rng=lambda: next(draws))
    assert len(recorder.refs) == chosen


async def test_a_queue_becomes_silent_and_speaks_again(filled: Filled, recorder: Recorder, go: Go) -> None:
    [quiet, loud] = await filled.fill(2, at=-1)
    session, store = await filled.session(), filled.store
    filled.time.passed = 1500
    first, now = store.arrive(session, 1)
    await store.notify(session, [Notification(filled.ids[loud], first, now, bytes(24), b"meta")], {})
    filled.time.passed = 0
    await go(4999, AuditConfig(period=1000, silent=2000, sample=0, page=10))
    assert recorder.times(quiet) == pytest.approx([2000, 3000, 4000])
    assert recorder.times(loud) == pytest.approx([4000])


async def test_what_ended_or_was_deleted_is_never_chosen(filled: Filled, recorder: Recorder, go: Go) -> None:
    old = -2 * DAY
    refs = await filled.fill(12, at=old)
    session, store = await filled.session(), filled.store
    ended, deleted = (filled.ids[ref] for ref in refs[:2])
    await store.end(session, [ended], SubscriptionStatus.END)
    await store.end(session, [deleted], SubscriptionStatus.DELETED)
    await store.unsubscribe(refs[2])
    for ref, status in zip(refs[3:], (s for s in SubscriptionStatus if s not in ("END", "DELETED")), strict=False):
        await store.confirm(session, [Confirmed(ref, status)])
    await go(1999)
    assert recorder.refs == [*refs[3:6], *refs[10:]] * 2


async def test_each_server_is_asked_once_a_page(filled: Filled, recorder: Recorder, go: Go) -> None:
    refs = [ref for i in range(15) for ref in await filled.fill(1, (SMP, OTHER_SMP)[i % 3 == 0])]
    await go(999)
    others = refs[::3]
    assert [(server, chosen) for _, server, chosen in recorder.calls] == [
        (OTHER_SMP, others[:4]),
        (SMP, [r for r in refs[:10] if r not in others]),
        (SMP, [r for r in refs[10:] if r not in others]),
        (OTHER_SMP, others[4:]),
    ]


# --- faults


@pytest.mark.parametrize("method", ["subscription_count", "to_audit"])
async def test_a_failing_store_is_tried_again(
    *, filled: Filled, time: Time, recorder: Recorder, go: Go, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    refs = await filled.fill(15)
    await go(999, **{method: 2})
    assert recorder.refs == refs
    assert time.pauses[:2] == [60, 60]
    assert caplog.messages.count("the audit of subscriptions is late: disk full") == 2


async def test_after_a_fault_the_round_goes_on_where_it_was(
    filled: Filled, recorder: Recorder, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = await filled.fill(30)
    look, calls = filled.store.to_audit, itertools.count(1)

    async def to_audit(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise StoreFullError("disk full")
        return await look(*arguments)

    monkeypatch.setattr(filled.store, "to_audit", to_audit)
    await go(1059)
    assert recorder.refs == refs
    assert [at for at, *_ in recorder.calls] == pytest.approx([0, 1000 / 3 + 60, 2000 / 3 + 60])
