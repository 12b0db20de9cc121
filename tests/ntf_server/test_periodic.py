"""Check-messages pushes every so many minutes (TCRN), through a relay whose clock is the test's."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from harness import Phone
from scrape import sample

from ntf_server import periodic
from ntf_server.app import Relay
from ntf_server.config.files import CONFIG_FILE, Config
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, Histogram, KindGauge, PairGauge
from ntf_server.store.contract import StoreConflictError, StoreFullError, StoreUnavailableError
from ntf_server.store.records import ACTIVE_SPANS, Backlog, Census, Space
from ntf_server.testing import Answer, MockApns
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, ServerError
from smp_bridge.ntf import Provider, TokenStatus
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

pytestmark = pytest.mark.usefixtures("quiet")

INTERVAL = 0.01
LATEST = 2.2  # minutes that a check may come after a period of 20
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class Clock:
    """Goes as others do, and ahead when the test says so: as both clocks of the relay it is no step."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def pass_(self, minutes: float) -> None:
        self.ahead += minutes * 60


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def mock_apns(clock: Clock) -> AsyncIterator[MockApns]:
    """One that has the same idea of the time, since it checks how old provider tokens are."""
    async with MockApns(clock=clock) as apns:
        yield apns


@pytest.fixture
async def relay(
    make_config: Callable[..., Config], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Relay]:
    monkeypatch.setattr(periodic, "Checks", partial(periodic.Checks, interval=INTERVAL))
    async with Relay(make_config(), clock=clock, steady=clock) as running:
        yield running


@pytest.fixture
async def device(phone: Callable[[], Phone], client: Client) -> Phone:
    made = phone()
    await made.register(client)
    await made.verify(client)
    return made


@pytest.fixture
def every(client: Client) -> Callable[[Phone, int], Awaitable[None]]:
    """Asks for pushes every so many minutes."""

    async def ask(phone: Phone, minutes: int) -> None:
        assert await client.request(ntf.TCrn(minutes), phone.token_id, phone.key) == ntf.Ok()

    return ask


async def looked(times: int = 5) -> None:
    """Time for some looks at what is due."""
    await asyncio.sleep(times * INTERVAL)


async def check(phone: Phone) -> None:
    push = await phone.apns.next(phone.token)
    assert push.body == {"aps": {"content-available": 1}, "notificationData": {"checkMessages": True}}
    assert (push.push_type, push.priority) == ("background", 5)


async def no_check(phone: Phone) -> None:
    await looked()
    with pytest.raises(TimeoutError):
        await phone.apns.next(phone.token, timeout=0.01)


async def test_every_twenty_minutes_until_it_is_off(device: Phone, clock: Clock, every: Any) -> None:
    await every(device, 20)
    await no_check(device)
    for _ in range(3):
        clock.pass_(19.9)
        await no_check(device)
        clock.pass_(LATEST)
        await check(device)
        await no_check(device)
    await every(device, 0)
    clock.pass_(1000)
    await no_check(device)


async def test_a_long_pause_makes_one_push(device: Phone, clock: Clock, every: Any) -> None:
    await every(device, 20)
    clock.pass_(24 * 60)
    await check(device)
    await no_check(device)


async def test_asking_for_the_same_again_does_not_begin_the_period_anew(
    device: Phone, clock: Clock, every: Any
) -> None:
    await every(device, 20)
    clock.pass_(19)
    await every(device, 20)
    clock.pass_(1 + LATEST)
    await check(device)


async def test_another_period_begins_when_it_is_asked_for(device: Phone, clock: Clock, every: Any) -> None:
    await every(device, 60)
    clock.pass_(30)
    await every(device, 20)
    await no_check(device)
    clock.pass_(20 + LATEST)
    await check(device)


async def confirmed(device: Phone, client: Client, until: Until) -> None:
    """Until it is recorded that the code was pushed."""

    async def is_confirmed() -> bool:
        return (await device.status(client)).status is TokenStatus.CONFIRMED

    await until(is_confirmed)


async def test_a_token_that_is_not_active_gets_none(
    device: Phone, client: Client, clock: Clock, every: Any, until: Until
) -> None:
    await every(device, 20)
    device.token = "12" * 32
    assert await client.request(ntf.TRpl(device.device), device.token_id, device.key) == ntf.Ok()
    code = device.open(await device.apns.next(device.token), "verification")
    await confirmed(device, client, until)
    clock.pass_(25)
    await looked()
    await no_check(device)
    assert await client.request(ntf.TVfy(code), device.token_id, device.key) == ntf.Ok()
    await check(device)


async def test_who_was_woken_by_a_code_within_the_period_gets_none(
    device: Phone, client: Client, clock: Clock, every: Any, until: Until
) -> None:
    await every(device, 20)
    clock.pass_(15)
    assert await client.request(ntf.TRpl(device.device), device.token_id, device.key) == ntf.Ok()
    code = device.open(await device.apns.next(device.token), "verification")
    await confirmed(device, client, until)
    assert await client.request(ntf.TVfy(code), device.token_id, device.key) == ntf.Ok()
    clock.pass_(10)
    await looked()
    await no_check(device)
    clock.pass_(10 + LATEST)
    await check(device)


async def test_a_dead_token_gets_no_more(
    *, device: Phone, client: Client, clock: Clock, every: Any, mock_apns: MockApns, until: Until
) -> None:
    await every(device, 20)
    mock_apns.unregister(device.token)
    clock.pass_(20 + LATEST)

    async def is_dead() -> bool:
        return (await device.status(client)).status is TokenStatus.INVALID

    await until(is_dead)
    clock.pass_(20 + LATEST)
    await no_check(device)
    assert len(mock_apns.rejected) == 1


async def test_a_deleted_token_gets_none(device: Phone, client: Client, clock: Clock, every: Any) -> None:
    await every(device, 20)
    assert await client.request(ntf.TDel(), device.token_id, device.key) == ntf.Ok()
    clock.pass_(20 + LATEST)
    await no_check(device)
    with pytest.raises(ServerError, match="AUTH"):
        await every(device, 20)


async def test_a_push_that_failed_is_tried_again(device: Phone, clock: Clock, every: Any, mock_apns: MockApns) -> None:
    await every(device, 20)
    mock_apns.script(Answer(503, "ServiceUnavailable"), Answer(500, "InternalServerError"))
    clock.pass_(20 + LATEST)
    await check(device)
    await no_check(device)


async def test_a_check_behind_a_message_is_not_forgotten(
    *, device: Phone, client: Client, clock: Clock, every: Any, mock_apns: MockApns, smp_server: SmpServer
) -> None:
    await every(device, 20)
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        await device.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        await mock_apns.stop()
        clock.pass_(20 + LATEST)
        await looked()
        await queue.send("hello")
        await looked()
        await mock_apns.start()
        assert "alert" in (await mock_apns.next(device.token)).body["aps"]
        await check(device)
        await no_check(device)
        clock.pass_(20 + LATEST)
        await check(device)


async def test_checks_are_off_until_a_reload_has_them_always(
    *, relay: Relay, device: Phone, client: Client, clock: Clock, every: Any, smp_server: SmpServer
) -> None:
    file = relay._config.directory / CONFIG_FILE
    text = file.read_text()
    file.write_text(f'{text}\n[delivery]\nchecks = "off"\n')
    assert (await relay.reload()).swapped == ("[delivery] checks",)
    await every(device, 20)
    clock.pass_(20 + LATEST)
    await no_check(device)
    file.write_text(f'{text}\n[delivery]\nchecks = "always"\n')
    assert (await relay.reload()).swapped == ("[delivery] checks",)
    await check(device)
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        await device.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        clock.pass_(15)
        await queue.send("hello")
        assert "alert" in (await device.apns.next(device.token)).body["aps"]
        clock.pass_(5 + LATEST)
        await check(device)


async def test_a_restart_keeps_the_period(
    *,
    make_config: Callable[..., Config],
    phone: Callable[[], Phone],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    address_of: Callable[..., ServerAddress],
) -> None:
    monkeypatch.setattr(periodic, "Checks", partial(periodic.Checks, interval=INTERVAL))
    device = phone()
    async with (
        Relay(make_config(), clock=clock, steady=clock) as relay,
        await Client.connect(address_of(relay)) as client,
    ):
        await device.register(client)
        await device.verify(client)
        await client.request(ntf.TCrn(20), device.token_id, device.key)
    clock.pass_(10)
    async with Relay(make_config(), clock=clock, steady=clock):
        await no_check(device)
        clock.pass_(10 + LATEST)
        await check(device)


class FailingStore:
    """Answers what it is told, then 0 and at a distance of an hour; says when all was asked for."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.all_asked = asyncio.Event()

    async def mark_checks(self, limit: int, *, quiet_only: bool = True) -> int:
        self.asked.append(limit)
        self.quiet_only = quiet_only
        if not self.answers:
            self.all_asked.set()
            return 0
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    async def tend(self) -> float:
        return float(await self.mark_checks(0)) if self.answers else await self.at_rest()

    async def at_rest(self) -> float:
        self.all_asked.set()
        return 3600.0


async def run_until_asked(store: FailingStore, run: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.create_task(run())  # type: ignore[arg-type, var-annotated]
    waiting = asyncio.create_task(store.all_asked.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=10)
    assert store.all_asked.is_set()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_failing_store_makes_them_late_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ntf_server")
    store: Any = FailingStore(StoreFullError("disk full"), 1, StoreUnavailableError("busy"), 1)
    await run_until_asked(store, periodic.Checks(store, interval=0).run)
    assert len(store.asked) >= 5
    late = [m for m in caplog.messages if m.startswith("periodic pushes are late: ")]
    assert late == ["periodic pushes are late: disk full", "periodic pushes are late: busy"]


async def test_a_full_slice_is_followed_by_the_next_soon_but_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "_SLICE_PAUSE", 0.05)
    store: Any = FailingStore(500, 500, 499)
    began = asyncio.get_running_loop().time()
    task = asyncio.create_task(periodic.Checks(store, interval=3600).run())
    async with asyncio.timeout(10):
        while store.answers:
            await asyncio.sleep(0.005)
    assert asyncio.get_running_loop().time() - began >= 2 * 0.05
    await asyncio.sleep(0.2)
    assert store.asked == [500] * 3
    task.cancel()
    await asyncio.wait([task])


async def test_the_mode_can_be_changed() -> None:
    store: Any = FailingStore()
    checks = periodic.Checks(store, "off", interval=0.001)
    task = asyncio.create_task(checks.run())
    await asyncio.sleep(0.05)
    assert store.asked == []
    modes: tuple[tuple[periodic.Mode, bool], ...] = (("always", False), ("quiet", True))
    async with asyncio.timeout(10):
        for mode, quiet_only in modes:
            checks.use(mode)
            store.asked.clear()
            while not store.asked:
                await asyncio.sleep(0.001)
            assert store.quiet_only is quiet_only
    task.cancel()
    await asyncio.wait([task])


async def test_upkeep_goes_on_after_a_failing_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ntf_server")
    monkeypatch.setattr(periodic, "_ERROR_PAUSE", 0.01)
    store: Any = FailingStore(StoreFullError("disk full"), 0, StoreUnavailableError("busy"), 0)
    await run_until_asked(store, lambda: periodic.tend(store))
    late = [m for m in caplog.messages if m.startswith("the store's upkeep is late: ")]
    assert late == ["the store's upkeep is late: disk full", "the store's upkeep is late: busy"]


async def test_tokens_that_are_due_are_counted_while_the_store_can() -> None:
    three, four, none = Backlog(3, 1, 5.5), Backlog(4, 0, 0.5), Backlog(0, 2, 0.0)
    answers: list[Any] = [three, four, StoreUnavailableError("busy"), none, none, none]
    metrics, asked = Metrics(), list[Provider]()

    class Counted:
        async def backlog(self, provider: Provider) -> Backlog:
            asked.append(provider)
            answer = answers.pop(0) if answers else Backlog(9, 0, 0.0)
            if isinstance(answer, Exception):
                raise answer
            assert isinstance(answer, Backlog)
            return answer

        async def space(self) -> Space:
            if len(asked) == 3:
                raise StoreUnavailableError("busy")
            return Space(700, None, 300)

    def shown() -> list[Backlog]:
        gauges = KindGauge.TOKENS_DUE, KindGauge.TOKENS_WAITING, KindGauge.OLDEST_DUE
        values = [[sample(metrics, gauge, provider=p) for gauge in gauges] for p in providers]
        return [Backlog(int(due), int(waiting), oldest) for due, waiting, oldest in values]

    store: Any = Counted()
    providers = [Provider.APNS, Provider.FCM]
    gauges = periodic.StoreGauges(store, providers, metrics, interval=0.05)
    assert gauges.due(Provider.APNS) == (0, None)
    task = asyncio.create_task(gauges.run())
    assert shown() == [Backlog(0, 0, 0.0)] * 2
    expected = [[three, four], [three, none], [none, none], [Backlog(9, 0, 0.0)] * 2]
    async with asyncio.timeout(10):
        while expected:
            if shown() == expected[0]:
                del expected[0]
            await asyncio.sleep(0.001)
    assert asked[:6] == providers * 3
    assert (sample(metrics, Gauge.STORE_BYTES), sample(metrics, Gauge.STORE_ROOM)) == (700, 300)
    with pytest.raises(KeyError):
        sample(metrics, Gauge.STORE_LOG)
    count, oldest = gauges.due(Provider.FCM)
    assert count == 9 and oldest is not None and 0.0 < oldest < 10.0  # it grows while nobody looks
    task.cancel()
    await asyncio.wait([task])


async def test_tokens_are_counted_in_slices_and_shown_when_all_are() -> None:
    def counted(n: int) -> Census:
        census = Census()
        census.tokens["AP", "ACTIVE"] = n
        census.active["week"] = n
        return census

    metrics, asked = Metrics(), list[Any]()
    failing = True

    class Counted:
        async def census(self, after: Any, limit: int, *, everywhere: bool = False) -> tuple[Census, Any]:
            asked.append(after)
            if failing and after == 2:
                raise StoreUnavailableError("busy")
            after = (after or 0) + 1
            return counted(after), after if after < 4 else None

        async def subscription_count(self) -> int:
            return 99

    def shown(name: str, **labels: str) -> float:
        try:
            return sample(metrics, name, **labels)
        except KeyError:
            return -1

    store: Any = Counted()
    task = asyncio.create_task(periodic.CensusGauges(store, metrics, interval=0.01, pause=0.001).run())
    async with asyncio.timeout(10):
        while asked.count(None) < 2:
            await asyncio.sleep(0.001)
        assert shown(PairGauge.TOKENS, provider="AP", status="ACTIVE") == -1
        failing = False
        while shown(PairGauge.TOKENS, provider="AP", status="ACTIVE") != 1 + 2 + 3 + 4:
            await asyncio.sleep(0.001)
    assert [shown(KindGauge.TOKENS_ACTIVE, within=span) for span in ACTIVE_SPANS] == [0, 10, 0]
    assert shown(Gauge.SUBSCRIPTIONS_STORED) == 99
    task.cancel()
    await asyncio.wait([task])


async def test_nothing_is_counted_that_nobody_wants() -> None:
    rounds, wanted = list[Census](), False

    class Counted:
        async def census(self, after: Any, limit: int, *, everywhere: bool = False) -> tuple[Census, Any]:
            assert wanted
            return Census(), None

        async def subscription_count(self) -> int:
            return 0

    store: Any = Counted()
    counting = periodic.CensusGauges(store, Metrics(), wanted=lambda: wanted, on_counted=rounds.append)
    task = asyncio.create_task(counting.run())
    for _ in range(5):
        await asyncio.sleep(0.001)
    assert not rounds and not task.done()
    wanted = True
    counting.again()
    async with asyncio.timeout(10):
        for n in (1, 2):
            while len(rounds) < n:
                await asyncio.sleep(0.001)
            counting.again()
    task.cancel()
    await asyncio.wait([task])


async def test_how_late_the_loop_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "_LAG_PAUSE", 0.01)
    metrics = Metrics()
    task = asyncio.create_task(periodic.watch_loop(metrics))

    def lag(name: str) -> float:
        return sample(metrics, f"{Histogram.LOOP_LAG}_{name}")

    async with asyncio.timeout(10):
        while lag("count") < 3:
            await asyncio.sleep(0.005)
    before = lag("sum")
    time.sleep(0.2)  # noqa: ASYNC251  that is what it is about
    async with asyncio.timeout(10):
        while lag("sum") < before + 0.15:
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.wait([task])


async def test_what_no_other_try_mends_ends_the_part() -> None:
    for run in (lambda s: periodic.Checks(s).run(), periodic.tend):
        store: Any = FailingStore(StoreConflictError("a fault of ours"))
        with pytest.raises(StoreConflictError):
            await asyncio.wait_for(run(store), 10)
