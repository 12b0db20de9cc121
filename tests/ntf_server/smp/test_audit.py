"""The audit's rounds over a real store, in a time that passes only when it waits."""

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ntf_server.smp import audit
from ntf_server.smp.audit import AuditConfig
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.records import Added, Confirmed, NewSubscription, NewToken, Notification, StoreError
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
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
    """Passes when somebody sleeps; over after `end` seconds."""

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
    """A subscriber that only remembers: when, where and what it was to audit."""

    def __init__(self, clock: Time) -> None:
        self._clock = clock
        self.calls: list[tuple[float, ServerAddress, list[int]]] = []

    def audit(self, server: ServerAddress, refs: Iterable[int]) -> None:
        self.calls.append((self._clock.passed, server, list(refs)))

    @property
    def refs(self) -> list[int]:
        return [ref for *_, refs in self.calls for ref in refs]

    def times(self, ref: int) -> list[float]:
        return [at for at, _, refs in self.calls if ref in refs]


class FaultyStore:
    """Fails as often as it is told."""

    def __init__(self, store: SqliteStore, **failing: int) -> None:
        self._store = store
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        if self._failing.get(name):
            self._failing[name] -= 1
            raise StoreError("disk full")
        return getattr(self._store, name)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "relay.db", master_key=MasterKey(b"m" * 32))
    new = NewToken(os.urandom(24), DeviceToken(Provider.APNS, b"phone"), b"key", b"", b"", os.urandom(32), b"")
    assert await store.register_token(new, START)
    yield store
    await store.close()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(audit, "asyncio", SimpleNamespace(sleep=made.sleep))
    return made


@pytest.fixture
def recorder(time: Time) -> Recorder:
    return Recorder(time)


Go = Callable[..., Any]


@pytest.fixture
def go(store: SqliteStore, time: Time, recorder: Recorder) -> Go:
    """Audit until so many seconds have passed since the beginning."""

    async def run(
        end: float, config: AuditConfig = ALL, rng: Callable[[], float] = lambda: 0.0, **failing: int
    ) -> None:
        time.end = end
        subscriber, faulty = cast("Subscriber", recorder), cast("SqliteStore", FaultyStore(store, **failing))
        with pytest.raises(OverError):
            await audit.run(faulty, subscriber, config, clock=time, rng=rng)

    return run


async def fill(store: SqliteStore, count: int, server: ServerAddress = SMP, at: int = START) -> list[int]:
    """So many subscriptions; their refs."""
    refs = []
    for _ in range(count):
        added = await store.add_subscription(1, NewSubscription(os.urandom(24), server, os.urandom(24), b"key"), at)
        assert isinstance(added, Added)
        refs.append(added.ref)
    return refs


# --- pacing


@pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 25, 99])
async def test_a_whole_round_takes_its_period(store: SqliteStore, recorder: Recorder, go: Go, count: int) -> None:
    refs = await fill(store, count)
    await go(2999)
    assert recorder.refs == refs * 3
    for number, ref in enumerate(refs):
        page = number // 10 * 10
        first = 1000 * page / count if count > 10 else 0
        assert recorder.times(ref) == pytest.approx(
            [first, first + 1000, first + 2000], abs=0.2
        )  # a full last page: a pause more


async def test_the_last_page_of_a_round_may_be_empty(
    store: SqliteStore, time: Time, recorder: Recorder, go: Go
) -> None:
    await fill(store, 20)
    await go(1999)
    assert [at for at, *_ in recorder.calls] == pytest.approx([0, 500, 1000, 1500], abs=0.2)
    assert time.pauses == [500, 500, 0.05, 500, 500]


async def test_what_ended_makes_a_round_no_shorter(store: SqliteStore, recorder: Recorder, go: Go) -> None:
    refs = await fill(store, 40)
    await store.confirm([Confirmed(ref, SubscriptionStatus.AUTH) for ref in refs[15:]])
    await go(2999)
    assert recorder.times(refs[0]) == pytest.approx([0, 1000, 2000])
    assert recorder.times(refs[14]) == pytest.approx([250, 1250, 2250])


async def test_it_waits_between_pages_however_short_the_period(store: SqliteStore, time: Time, go: Go) -> None:
    await fill(store, 25)
    await go(1, AuditConfig(period=0.001, page=10))
    assert time.pauses == [0.05] * len(time.pauses)
    assert len(time.pauses) in (20, 21)


async def test_nothing_to_audit_is_looked_at_once_a_period(time: Time, recorder: Recorder, go: Go) -> None:
    await go(2999)
    assert time.pauses == [1000] * 3
    assert recorder.calls == []


async def test_what_is_added_behind_the_round_is_in_it(
    store: SqliteStore, recorder: Recorder, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = await fill(store, 20)
    added: list[int] = []

    async def to_audit(*arguments: Any) -> Any:
        page = await look(*arguments)
        if not added:
            added.extend(await fill(store, 4))
        return page

    look = store.to_audit
    monkeypatch.setattr(store, "to_audit", to_audit)
    await go(999)
    assert recorder.refs == refs + added


# --- the choice


async def test_the_silent_are_always_chosen_the_others_by_the_sample(
    store: SqliteStore, recorder: Recorder, go: Go
) -> None:
    silent = await fill(store, 30, at=START - int(DAY) - 1)
    heard = await fill(store, 40, at=START - int(DAY))
    config = AuditConfig(period=1000, silent=DAY, sample=0.25, page=100)
    draws = itertools.cycle([0.75, 0.25, 0.5, 0.2499])
    await go(1, config, rng=lambda: next(draws))
    assert recorder.refs == silent + heard[3::4]


@pytest.mark.parametrize(("sample", "chosen"), [(0.0, 0), (1.0, 20)])
async def test_a_sample_of_none_or_all(
    store: SqliteStore, recorder: Recorder, go: Go, sample: float, chosen: int
) -> None:
    await fill(store, 20)
    draws = itertools.cycle([0.0, 0.9999])
    await go(1, AuditConfig(period=1000, silent=DAY, sample=sample, page=100), rng=lambda: next(draws))
    assert len(recorder.refs) == chosen


async def test_a_queue_becomes_silent_and_speaks_again(store: SqliteStore, recorder: Recorder, go: Go) -> None:
    [quiet, loud] = await fill(store, 2, at=START - 1)
    [spoken] = await store.load_wanted([loud])
    await store.notify(SMP, [Notification(spoken.notifier_id, START + 1500, bytes(24), b"meta")])
    await go(4999, AuditConfig(period=1000, silent=2000, sample=0, page=10))
    assert recorder.times(quiet) == pytest.approx([2000, 3000, 4000])
    assert recorder.times(loud) == pytest.approx([4000])


async def test_what_ended_or_was_deleted_is_never_chosen(store: SqliteStore, recorder: Recorder, go: Go) -> None:
    old = START - int(2 * DAY)
    refs = await fill(store, 12, at=old)
    [ended, deleted] = await store.load_wanted(refs[:2])
    await store.end_subscriptions(SMP, [ended.notifier_id], SubscriptionStatus.END)
    await store.end_subscriptions(SMP, [deleted.notifier_id], SubscriptionStatus.DELETED)
    await store.delete_subscription(refs[2])
    for ref, status in zip(refs[3:], (s for s in SubscriptionStatus if s not in ("END", "DELETED")), strict=False):
        await store.confirm([Confirmed(ref, status)])
    await go(1999)
    assert recorder.refs == [*refs[3:6], *refs[10:]] * 2


async def test_each_server_is_asked_once_a_page(store: SqliteStore, recorder: Recorder, go: Go) -> None:
    refs = [ref for i in range(15) for ref in await fill(store, 1, (SMP, OTHER_SMP)[i % 3 == 0])]
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
    *, store: SqliteStore, time: Time, recorder: Recorder, go: Go, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    refs = await fill(store, 15)
    await go(999, **{method: 2})
    assert recorder.refs == refs
    assert time.pauses[:2] == [60, 60]
    assert caplog.messages.count("the audit of subscriptions is late: disk full") == 2


async def test_after_a_fault_the_round_goes_on_where_it_was(
    store: SqliteStore, recorder: Recorder, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = await fill(store, 30)
    look, calls = store.to_audit, itertools.count(1)

    async def to_audit(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise StoreError("disk full")
        return await look(*arguments)

    monkeypatch.setattr(store, "to_audit", to_audit)
    await go(1059)
    assert recorder.refs == refs
    assert [at for at, *_ in recorder.calls] == pytest.approx([0, 1000 / 3 + 60, 2000 / 3 + 60])
