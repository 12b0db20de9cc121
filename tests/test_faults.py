"""Every fault of a provider, met by a whole relay: the wake-up arrives, as often as it must (docs: fault-matrix.md)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from fault_matrix import PROVIDERS, Matrix
from world import NOWHERE, SIDES, ApnsSide, Device, FcmSide, Side, WebPushSide, World, open_world, until

from ntf_server import app
from ntf_server.push.fcm import judge
from ntf_server.push.health import HealthConfig
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.push.schedule import ScheduleConfig
from ntf_server.testing import Answer, CutTls, Fault, GoAway, RstStream, Silence, grant_error
from smp_bridge.ntf import TokenStatus

DAY = 24 * 3600


@dataclass(frozen=True)
class Case:
    """Faults that meet the first requests; the push is taken `times` times for each of `devices`."""

    title: str
    faults: Callable[[Side], list[Fault]]
    times: int = 1
    devices: int = 1
    timeout: float = 20.0
    latency: float = 0.0


CASES = (
    Case("RST_STREAM", lambda s: [RstStream()]),
    Case("RST_STREAM, refused", lambda s: [RstStream(7)]),
    Case("RST_STREAM after the push was taken", lambda s: [RstStream(processed=True)], times=2),
    Case("error without a body", lambda s: [Answer(500)]),
    Case("silence", lambda s: [Silence()], timeout=0.8),
    Case("silence after the push was taken", lambda s: [Silence(processed=True)], times=2, timeout=0.8),
    Case("GOAWAY", lambda s: [GoAway(processed=False)]),
    Case("GOAWAY, 8 streams in flight", lambda s: [GoAway()], devices=8, latency=0.2),
    Case("GOAWAY, 8 streams in flight, none taken", lambda s: [GoAway(processed=False)], devices=8, latency=0.2),
    Case("TLS cut amid the request", lambda s: [CutTls(after_bytes=1000)]),
    Case("TLS cut amid the answer", lambda s: [CutTls(5, during="response")], times=2),
    Case("429", lambda s: [s.error(429)]),
    Case("storm of 24 answers 429, 8 devices", lambda s: [s.error(429)] * 24, devices=8),
    Case("storm of 24 answers 503, 8 devices", lambda s: [s.error(503)] * 24, devices=8),
)
RETRY_AFTER = tuple(f"{status} with Retry-After: 1" for status in (429, 503))
LIMITS: dict[str, dict[str, int]] = {
    "stream limit 1, 8 devices": {"streams": 1},
    "stream limit 1 until the first answer, then 1000, 8 devices": {"first_streams": 1, "streams": 1000},
    "window of 64 kB, 40 devices": {"window": 65_535, "connection_window": 65_535},
    "window of 1 kB a stream, 8 devices": {"window": 1024},
}
OTHERS = (
    "certificate not trusted, until a restart",
    "host name does not resolve, until mended",
    "outage of 10 minutes",
    "our key is refused, until mended",
    "outage beyond the time to live (24 h)",
    "token replaced, until verified",
    "token INVALID, until registered anew",
    "token INVALID for longer than the time to live",
)
TITLES = (*(c.title for c in CASES), *RETRY_AFTER, *LIMITS, *OTHERS)

Make = Callable[..., AbstractAsyncContextManager[World]]
each_side = pytest.mark.parametrize("side", SIDES, ids=[s.name for s in SIDES])


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The minute that Google asks for where it says no number, and all pauses of a provider, are over at once."""
    monkeypatch.setattr(judge, "_QUOTA_WAIT", 0.05)
    quick = HealthConfig(longest_silence=0.1)
    monkeypatch.setattr(app, "ScheduleConfig", lambda **more: ScheduleConfig(health=quick, **more))


@pytest.fixture(scope="module")
def matrix() -> Iterator[Matrix]:
    made = Matrix(TITLES)
    yield made
    made.write()


@pytest.fixture
def make(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> Make:
    """Makes the world: `make([ApnsSide], {"streams": 1}, delivery__timeout=1)`."""
    return lambda sides, options=None, **more: open_world(tmp_path / "relay", rsa_key, sides, options, **more)


@pytest.fixture
async def world(make: Make, side: Any) -> AsyncIterator[World]:
    async with make([side]) as made:
        yield made


class Seen:
    """What the devices of a world got, for the matrix."""

    def __init__(self, matrix: Matrix, title: str, world: World) -> None:
        self._matrix, self._title, self._world = matrix, title, world
        self._expected: list[tuple[Device, bytes, bytes]] = []

    async def send(self, *devices: Device) -> None:
        """A message to the first queue of each device, all at once."""
        queues = [d.queues[0] for d in devices]
        ids = await asyncio.gather(*(self._world.send(q) for q in queues))
        self._expected += [(d, q.notifier_id, i) for d, q, i in zip(devices, queues, ids, strict=True)]

    async def settle(self) -> None:
        """Until all have been delivered."""
        for device, _, message_id in self._expected:
            await self._world.delivered(device, device.queues[0], message_id)

    async def check(self, times: int = 1) -> None:
        """All came `times` times and all tokens are ACTIVE: into the matrix with it."""
        counts = {d.messages().count((notifier_id, i)) for d, notifier_id, i in self._expected}
        statuses = {(await d.status(self._world.client)).status for d, *_ in self._expected}
        assert (counts, statuses) == ({times}, {TokenStatus.ACTIVE})
        each = " each" if len(self._expected) > 1 else ""
        what = f"delivered {('never', 'once', 'twice')[times]}{each}"
        self._matrix.record(self._title, self._world.sides[0].name, f"{what}, ACTIVE")


def test_the_page_has_these_rows_and_no_others(matrix: Matrix) -> None:
    assert matrix.on_page == {(title, provider) for title in TITLES for provider in PROVIDERS}


@each_side
@pytest.mark.parametrize("case", CASES, ids=[c.title for c in CASES])
async def test_scripted(*, soon: None, case: Case, side: Any, make: Make, matrix: Matrix) -> None:
    async with make([side], delivery__timeout=case.timeout) as world:
        seen = Seen(matrix, case.title, world)
        devices = [await world.device(world.sides[0]) for _ in range(case.devices)]
        mock = world.sides[0].mock
        faults = case.faults(world.sides[0])
        mock.script(*faults)
        mock.latency = case.latency
        await seen.send(*devices)
        await seen.settle()
        assert mock._script.take(None) is None, "a fault was not met"
        if case.latency:
            assert mock.counters.max_streams_per_connection > 1
        await seen.check(case.times)


@each_side
@pytest.mark.parametrize("title", RETRY_AFTER)
async def test_retry_after(title: str, side: Any, world: World, matrix: Matrix) -> None:
    seen, now = Seen(matrix, title, world), asyncio.get_running_loop().time
    device = await world.device(world.sides[0])
    world.sides[0].mock.script(world.sides[0].error(int(title[:3]), retry_after=1))
    begun = now()
    await seen.send(device)
    await seen.settle()
    assert now() - begun > 0.95
    await seen.check()


@each_side
@pytest.mark.parametrize("title", LIMITS)
async def test_limits(title: str, side: Any, make: Make, matrix: Matrix) -> None:
    async with make([side], LIMITS[title]) as world:
        seen = Seen(matrix, title, world)
        devices = [await world.device(world.sides[0]) for _ in range(40 if "40" in title else 8)]
        await seen.send(*devices)
        await seen.settle()
        if LIMITS[title].get("streams") == 1:
            assert world.sides[0].mock.counters.max_streams_per_connection == 1
        await seen.check()


@each_side
async def test_wrong_certificate(
    side: Any, world: World, matrix: Matrix, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(matrix, "certificate not trusted, until a restart", world)
    caplog.set_level(logging.DEBUG, "ntf_server")
    device = await world.device(world.sides[0])
    right = world.sides[0].settings(world.directory)
    other = tmp_path / "other.pem"
    async with type(world.sides[0].mock)() as stranger:
        other.write_bytes(stranger.ca_file.read_bytes())
    await world.restart(**world.sides[0].wrong_ca(other))
    await seen.send(device)
    await until(lambda: "certificate not trusted" in caplog.text)
    await world.restart(**right)
    await seen.settle()
    await seen.check()


@pytest.mark.parametrize("side", [ApnsSide, FcmSide], ids=["APNs", "FCM"])
async def test_host_that_does_not_resolve(
    side: Any, world: World, matrix: Matrix, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ntf_server")  # it is told aloud when it has lasted for a minute
    seen = Seen(matrix, "host name does not resolve, until mended", world)
    device = await world.device(world.sides[0])
    key = "apns__test__host" if side is ApnsSide else "fcm__host"
    right = world.settings[key]
    await world.restart(**{key: NOWHERE})
    await seen.send(device)
    await until(lambda: "host name not resolved" in caplog.text)
    await world.restart(**{key: right})
    await seen.settle()
    await seen.check()


async def test_web_push_host_that_does_not_resolve(
    make: Make, matrix: Matrix, caplog: pytest.LogCaptureFixture
) -> None:
    """The device says where its push service is, so it is the device that mends it."""
    caplog.set_level(logging.DEBUG, "ntf_server")
    async with make([WebPushSide]) as world:
        seen = Seen(matrix, "host name does not resolve, until mended", world)
        side = world.sides[0]
        assert isinstance(side, WebPushSide)
        device = await world.device(side)
        await device.replace(world.client, side.new_token(NOWHERE))
        await seen.send(device)
        await until(lambda: "host name not resolved" in caplog.text)
        await device.replace(world.client, side.new_token())
        await device.verify(world.client)
        await seen.settle()
        await seen.check()


@each_side
async def test_outage(side: Any, world: World, matrix: Matrix) -> None:
    seen = Seen(matrix, "outage of 10 minutes", world)
    device = await world.device(world.sides[0])
    await world.sides[0].mock.stop()
    await seen.send(device)
    await world.stored(*device.queues)
    world.clock.ahead += 600
    await world.sides[0].mock.start()
    await seen.settle()
    await seen.check()


@each_side
async def test_outage_beyond_the_time_to_live(side: Any, world: World, matrix: Matrix) -> None:
    seen = Seen(matrix, "outage beyond the time to live (24 h)", world)
    device = await world.device(world.sides[0])
    await world.sides[0].mock.stop()
    await seen.send(device)
    await world.stored(*device.queues)
    assert world.unsent() == {device.queues[0].notifier_id: True}
    world.clock.ahead += DAY + 1
    await until(lambda: not any(world.unsent().values()))
    await world.sides[0].mock.start()
    await world.delivered(device, device.queues[0], await world.send(device.queues[0]))  # it is not stuck
    await seen.check(0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed for a fault of ours is tried again soon, not after 10 minutes."""
    monkeypatch.setattr(app, "ScheduleConfig", lambda **more: ScheduleConfig(ours_backoff=0.05, **more))


async def test_apns_key_that_is_refused(make: Make, matrix: Matrix) -> None:
    """A reload is enough: what was refused does not wait for the next of its slow retries."""
    key = generate_key()
    async with make([ApnsSide], {"public_key": key.public_key(), "renewed_after": 0}) as world:
        file, side = world.directory / "key.p8", world.sides[0]
        file.write_bytes(key_pem(key))
        mine = {k.replace("test", which): v for k, v in world.settings.items() for which in ("production", "sandbox")}
        keys = {"apns__key_file": file, "apns__key_id": "K" * 10, "apns__team_id": "T" * 10}
        await world.restart(**mine, **keys)
        device = await world.device(side)
        file.write_bytes(key_pem(generate_key()))
        await world.relay.reload()
        seen = Seen(matrix, "our key is refused, until mended", world)
        await seen.send(device)
        await until(lambda: len(side.mock.rejected) == 1)
        file.write_bytes(key_pem(generate_key()))
        await _reload_until(world, lambda: len(side.mock.rejected) > 1)
        assert {(r.status, r.reason) for r in side.mock.rejected} == {(403, "InvalidProviderToken")}
        file.write_bytes(key_pem(key))
        await _reload_until(world, lambda: device.messages() != [])
        await seen.settle()
        await seen.check()


async def _reload_until(world: World, condition: Callable[[], bool]) -> None:
    """The mock answers before the relay knows: a reload in between changes nothing for the push under way."""
    async with asyncio.timeout(20):
        while not condition():
            await world.relay.reload()
            await asyncio.sleep(0.01)


async def test_fcm_key_that_is_refused(impatient: None, make: Make, matrix: Matrix) -> None:
    async with make([FcmSide]) as world:
        side = world.sides[0]
        assert isinstance(side, FcmSide)
        device = await world.device(side)
        side.mock.revoke_access_tokens()
        side.mock.script_grants(*[grant_error("invalid_grant")] * 3)
        seen = Seen(matrix, "our key is refused, until mended", world)
        await seen.send(device)
        await seen.settle()
        assert (side.mock.refused_grants, [r.status for r in side.mock.rejected]) == (3, [401])
        await seen.check()


async def test_web_push_key_that_is_refused(impatient: None, make: Make, matrix: Matrix) -> None:
    async with make([WebPushSide]) as world:
        device = await world.device(world.sides[0])
        world.sides[0].mock.script(Answer(401), Answer(403, "BadJwtToken"), Answer(403))
        seen = Seen(matrix, "our key is refused, until mended", world)
        await seen.send(device)
        await seen.settle()
        assert len(world.sides[0].mock.rejected) == 3
        await seen.check()


@each_side
async def test_replaced_and_not_verified(side: Any, world: World, matrix: Matrix) -> None:
    seen = Seen(matrix, "token replaced, until verified", world)
    device, other = [await world.device(world.sides[0]) for _ in range(2)]
    await world.sides[0].mock.stop()
    await world.send(device.queues[0])  # due for the old token, and failing
    await world.stored(*device.queues)
    await device.replace(world.client, world.sides[0].new_token())
    await seen.send(device)  # the newest
    await world.sides[0].mock.start()
    await until(lambda: device.opened("verification") != [])
    await world.delivered(other, other.queues[0], await world.send(other.queues[0]))
    assert (device.messages(), world.unsent()[device.queues[0].notifier_id]) == ([], True)
    await device.verify(world.client)
    await seen.settle()
    assert len(device.messages()) == 1
    await seen.check()


async def _invalid(world: World, device: Device) -> None:
    """The provider says that the token is dead, as it learns by a message."""
    device.side.kill(device.token)
    await world.send(device.queues[0])
    async with asyncio.timeout(20):
        while (await device.status(world.client)).status is not TokenStatus.INVALID:
            await asyncio.sleep(0.01)
    device.side.revive(device.token)


@each_side
async def test_invalid(side: Any, world: World, matrix: Matrix) -> None:
    seen = Seen(matrix, "token INVALID, until registered anew", world)
    device = await world.device(world.sides[0])
    await _invalid(world, device)
    await seen.send(device)  # the newest
    await world.stored(*device.queues)
    assert device.messages() == []
    await device.register(world.client)
    await device.verify(world.client, before=1)
    await seen.settle()
    assert len(device.messages()) == 1
    await seen.check()


@each_side
async def test_invalid_beyond_the_time_to_live(side: Any, world: World, matrix: Matrix) -> None:
    seen = Seen(matrix, "token INVALID for longer than the time to live", world)
    device = await world.device(world.sides[0])
    await _invalid(world, device)
    await seen.send(device)
    await world.stored(*device.queues)
    world.clock.ahead += DAY + 1
    await device.register(world.client)
    await device.verify(world.client, before=1)
    await until(lambda: not any(world.unsent().values()))
    await world.delivered(device, device.queues[0], await world.send(device.queues[0]))
    await seen.check(0)


@each_side
@pytest.mark.parametrize("how", ["silent", "refusing"])
async def test_a_dead_provider_delays_no_other(side: Any, how: str, make: Make) -> None:
    async with make(SIDES, delivery__timeout=1) as world:
        devices = {type(s): [await world.device(s) for _ in range(4)] for s in world.sides}
        dead = next(s.mock for s in world.sides if type(s) is side)
        if how == "silent":
            dead.blackhole()
        else:
            await dead.stop()
        waiting = [(d, await world.send(d.queues[0])) for d in devices.pop(side)]
        for device in [d for group in devices.values() for d in group]:
            message_id = await world.send(device.queues[0])
            await world.delivered(device, device.queues[0], message_id)
            assert device.messages() == [(device.queues[0].notifier_id, message_id)]
        await world.stored(*(d.queues[0] for d, _ in waiting))
        assert not any(d.messages() for d, _ in waiting)
        if how == "silent":
            dead.blackhole(False)
        else:
            await dead.start()
        for device, message_id in waiting:
            await world.delivered(device, device.queues[0], message_id)


@each_side
async def test_a_noisy_token_starves_no_other(side: Any, make: Make) -> None:
    """With a single slot, and thousands of notifications of one token before it, another waits for one push or two."""
    async with make([side], delivery__in_flight=1) as world:
        noisy, quiet = await world.device(world.sides[0], queues=60), await world.device(world.sides[0])
        world.sides[0].mock.latency = 0.05
        for _ in range(50):
            world.smp.notify(*(q.notifier_id for q in noisy.queues))
        await until(lambda: len(noisy.opened("message")) > 0)
        message_id = await world.send(quiet.queues[0])
        await world.stored(*quiet.queues)
        before = len(noisy.opened("message"))
        await until(lambda: len(quiet.messages()) > 0)
        assert quiet.messages() == [(quiet.queues[0].notifier_id, message_id)]
        assert len(noisy.opened("message")) - before <= 2
        assert any(world.unsent().values()), "the noisy one was done: the test shows nothing"
        await until(lambda: not any(world.unsent().values()))
        assert {notifier_id for notifier_id, _ in noisy.messages()} == {q.notifier_id for q in noisy.queues}
