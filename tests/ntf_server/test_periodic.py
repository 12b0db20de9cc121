"""Check-messages pushes every so many minutes (TCRN), through a relay whose clock is the test's."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import pytest
from harness import Phone

from ntf_server import periodic
from ntf_server.app import Relay
from ntf_server.config.files import Config
from ntf_server.store.records import Due, PushKind, StoreError
from ntf_server.testing import Answer, MockApns
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, ServerError
from smp_bridge.ntf import Provider, TokenStatus
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

pytestmark = pytest.mark.usefixtures("quiet")

INTERVAL = 0.01
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def pass_(self, minutes: float) -> None:
        self.now += minutes * 60


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
    monkeypatch.setattr(periodic, "run", partial(periodic.run, interval=INTERVAL))
    async with Relay(make_config(), clock=clock) as running:
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
        clock.pass_(0.2)
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
    clock.pass_(1.1)
    await check(device)


async def test_another_period_begins_when_it_is_asked_for(device: Phone, clock: Clock, every: Any) -> None:
    await every(device, 60)
    clock.pass_(30)
    await every(device, 20)
    await no_check(device)
    clock.pass_(20.1)
    await check(device)


async def test_a_token_that_is_not_active_gets_none(device: Phone, client: Client, clock: Clock, every: Any) -> None:
    await every(device, 20)
    device.token = "replacement"
    assert await client.request(ntf.TRpl(device.device), device.token_id, device.key) == ntf.Ok()
    clock.pass_(25)
    await looked()
    code = device.open(await device.apns.next(device.token), "verification")
    await no_check(device)
    assert await client.request(ntf.TVfy(code), device.token_id, device.key) == ntf.Ok()
    await check(device)


async def test_a_dead_token_gets_no_more(
    *, device: Phone, client: Client, clock: Clock, every: Any, mock_apns: MockApns, until: Until
) -> None:
    await every(device, 20)
    mock_apns.unregister(device.token)
    clock.pass_(21)

    async def is_dead() -> bool:
        return (await device.status(client)).status is TokenStatus.INVALID

    await until(is_dead)
    clock.pass_(21)
    await no_check(device)
    assert len(mock_apns.rejected) == 1


async def test_a_deleted_token_gets_none(device: Phone, client: Client, clock: Clock, every: Any) -> None:
    await every(device, 20)
    assert await client.request(ntf.TDel(), device.token_id, device.key) == ntf.Ok()
    clock.pass_(21)
    await no_check(device)
    with pytest.raises(ServerError, match="AUTH"):
        await every(device, 20)


async def test_a_push_that_failed_is_tried_again(device: Phone, clock: Clock, every: Any, mock_apns: MockApns) -> None:
    await every(device, 20)
    mock_apns.script(Answer(503, "ServiceUnavailable"), Answer(500, "InternalServerError"))
    clock.pass_(21)
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
        clock.pass_(21)
        await looked()
        await queue.send("hello")
        await looked()
        await mock_apns.start()
        assert "alert" in (await mock_apns.next(device.token)).body["aps"]
        await check(device)
        await no_check(device)
        clock.pass_(21)
        await check(device)


async def test_a_restart_keeps_the_period(
    *,
    make_config: Callable[..., Config],
    phone: Callable[[], Phone],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    address_of: Callable[..., ServerAddress],
) -> None:
    monkeypatch.setattr(periodic, "run", partial(periodic.run, interval=INTERVAL))
    device = phone()
    async with Relay(make_config(), clock=clock) as relay, await Client.connect(address_of(relay)) as client:
        await device.register(client)
        await device.verify(client)
        await client.request(ntf.TCrn(20), device.token_id, device.key)
    clock.pass_(10)
    async with Relay(make_config(), clock=clock):
        await no_check(device)
        clock.pass_(10.1)
        await check(device)


async def test_a_failing_store_makes_them_late_only() -> None:
    due = Due(1, Provider.APNS_NULL, PushKind.CHECK)
    answers: list[Any] = [StoreError("disk full"), [due], StoreError("busy"), [due]]
    asked: list[int] = []
    marked: list[Due] = []
    all_asked = asyncio.Event()

    class Parts:
        async def due_checks(self, now: int) -> list[Due]:
            asked.append(now)
            if not answers:
                all_asked.set()
                return []
            answer = answers.pop(0)
            if isinstance(answer, StoreError):
                raise answer
            return answer

        def mark(self, found: Iterable[Due]) -> None:
            marked.extend(found)

    parts: Any = Parts()
    task = asyncio.create_task(periodic.run(parts, parts, interval=0, clock=lambda: 1234.9))
    await asyncio.wait_for(all_asked.wait(), 10)
    task.cancel()
    await asyncio.wait([task])
    assert marked == [due, due]
    assert set(asked) == {1234}
