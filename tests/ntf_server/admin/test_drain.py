"""A relay takes leave: what is under way is finished, nothing new is taken, and it ends when that is so."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from harness import Phone

from ntf_server.admin.drain import LONGEST, seconds_of, told
from ntf_server.admin.socket import AdminError, ask
from ntf_server.app import Relay
from ntf_server.config.files import Config
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.testing import MockApns
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue
from smp_bridge.transport import ConnectionClosedError

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
async def pushed_to(
    smp_server: SmpServer, mock_apns: MockApns, client: Client, queues: list[Queue], config: Config
) -> Phone:
    """A device; one push to it takes a second and is under way."""
    device = Phone(mock_apns)
    await device.register(client)
    await device.verify(client)
    await device.subscribe(client, smp_server.address, queues[0])
    await smp_server.until(lambda: smp_server.subscribed(queues[0].notifier_id))
    mock_apns.latency = 1.0
    mock_apns.clear()
    await queues[0].send("in flight")
    async with asyncio.timeout(10):
        while not mock_apns.counters.streams:
            await asyncio.sleep(0.01)
    return device


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config()


async def drain(config: Config, seconds: Any = 10) -> dict[str, Any]:
    return await asyncio.to_thread(ask, config.admin_socket, "drain", seconds=seconds)


async def until_over(config: Config, seconds: float = 10) -> list[dict[str, Any]]:
    """Each answer."""
    answers = [await drain(config, seconds)]
    while not answers[-1]["over"]:
        answers.append(await drain(config, seconds))
    return answers


async def test_what_is_under_way_is_finished(
    *, config: Config, relay: Relay, client: Client, smp_server: SmpServer, mock_apns: MockApns, pushed_to: Phone
) -> None:
    assert not relay.drained.is_set()
    answers = await until_over(config)
    first, last = answers[0], answers[-1]
    assert not first["over"] and first["pushes"] == 1
    assert [last[name] for name in ("clients", "servers", "shards", "pushes")] == [0, 0, 0, 0]
    assert len(pushed_to.entries(mock_apns.pushes[-1])) == 1
    await asyncio.wait_for(relay.drained.wait(), 1)
    with pytest.raises(ConnectionClosedError):
        await client.request(ntf.Ping())
    assert smp_server.connections == 1  # the recipient's


async def test_nobody_new_is_let_in(
    config: Config, relay: Relay, pushed_to: Phone, address_of: Callable[..., ServerAddress]
) -> None:
    address = address_of(relay)
    await drain(config)
    with pytest.raises(OSError):
        await Client.connect(address)
    assert (await until_over(config))[-1]["pushes"] == 0


async def test_what_is_not_finished_in_time_is_given_back(
    config: Config, make_config: Callable[..., Config], smp_server: SmpServer, mock_apns: MockApns
) -> None:
    """A stop after that waits for nothing more; who starts next pushes it again."""
    device = Phone(mock_apns)
    began = time.monotonic()
    async with Relay(config) as relay:
        address = ServerAddress("ntf", ("127.0.0.1",), str(relay.port), config.credentials.key_hash)
        mock_apns.latency = 30.0
        async with await Client.connect(address) as client:
            await device.register(client)
            async with asyncio.timeout(10):
                while not mock_apns.counters.streams:
                    await asyncio.sleep(0.01)
            answers = await until_over(config, 0.7)
        assert answers[-1]["pushes"] == 1
    assert time.monotonic() - began < 8
    mock_apns.latency = 0.0
    async with Relay(make_config()):
        assert (await mock_apns.next(device.token)).token == device.token


async def test_the_first_time_counts(config: Config, relay: Relay, mock_apns: MockApns, pushed_to: Phone) -> None:
    """Whoever asks as well is told the same."""
    began = time.monotonic()
    await drain(config, 10)
    one, two = await asyncio.gather(until_over(config, 10), until_over(config, 0))
    assert time.monotonic() - began > 0.5
    assert one[-1]["over"] and two[-1]["over"] and one[-1]["pushes"] == two[-1]["pushes"] == 0


@pytest.mark.parametrize("seconds", [None, "10", True, -1, LONGEST + 1, [], float("nan")])
async def test_what_is_no_time(config: Config, relay: Relay, seconds: Any) -> None:
    with pytest.raises(AdminError, match="is not a number of seconds from 0 to 3600"):
        seconds_of({"seconds": seconds})
    with pytest.raises(AdminError):
        await drain(config, seconds)
    assert not relay.drained.is_set()


@pytest.mark.parametrize("seconds", [0, 100])
async def test_a_store_that_is_away_is_not_waited_for(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    async def leave() -> int:
        await asyncio.sleep(seconds)
        raise StoreUnavailableError("away")

    assert relay._drain is not None
    monkeypatch.setattr(relay._drain._store, "leave", leave)
    began = time.monotonic()
    await relay._drain.leave()
    assert time.monotonic() - began < 2


def test_what_is_held_is_told_in_words() -> None:
    held = {"clients": 0, "servers": 2, "shards": 0, "pushes": 7, "over": False, "pid": 1}
    assert told(held) == "2 SMP servers, 7 pushes under way"
    assert told(dict.fromkeys(held, 0)) == "nothing"
