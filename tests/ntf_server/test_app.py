"""The parts together, in this process: start, work, stop, start again."""

import asyncio
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import Phone
from redis_servers import Server

from ntf_server import periodic, supervisor
from ntf_server.admin.socket import AdminError, ask
from ntf_server.app import Relay, run
from ntf_server.config import settings as sections
from ntf_server.config.files import CONFIG_FILE, Config, assemble, load
from ntf_server.config.identity_files import create_identity
from ntf_server.listener import ListenError
from ntf_server.observe.names import KindCounter
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.store.contract import StoreCorruptError, StoreError
from ntf_server.store.sealing import generate_key_text
from ntf_server.testing import Answer, MockApns
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, ServerError
from smp_bridge.ntf import InvalidReason, TokenStatus
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient
from smp_bridge.transport import ConnectionClosedError


@pytest.fixture
def settings(mock_apns: MockApns) -> sections.Settings:
    return sections.Settings(
        transport=sections.Transport(host="localhost", port=0, bind="localhost"),
        apns=sections.Apns(
            test=sections.ApnsHost(host="localhost", port=mock_apns.port, ca_file=str(mock_apns.ca_file)),
        ),
        subscriber=sections.Subscriber(allow_private_hosts=True),
        limits=sections.Limits(enabled=False),
        delivery=sections.Delivery(min_backoff=0.05, max_backoff=0.2),
    )


@pytest.fixture
def relay_config(tmp_path: Path, settings: sections.Settings) -> Config:
    create_identity(tmp_path, "ED25519", "localhost")
    (tmp_path / "master.key").write_text(generate_key_text())
    return assemble(tmp_path, settings, {})


def changed(config: Config, **settings: Any) -> Config:
    return assemble(config.directory, msgspec.structs.replace(config.settings, **settings), {})


def address(relay: Relay, relay_config: Config) -> ServerAddress:
    return ServerAddress("ntf", ("localhost",), str(relay.port), relay_config.credentials.key_hash)


async def connect(relay: Relay, relay_config: Config) -> Client:
    return await Client.connect(address(relay, relay_config))


async def test_a_message_wakes_the_device(
    relay_config: Config, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    device = phone()
    async with (
        Relay(relay_config) as relay,
        await connect(relay, relay_config) as client,
        await Recipient.connect(smp_server.address) as recipient,
    ):
        await device.register(client)
        await device.verify(client)
        assert await device.status(client) == ntf.Tkn(TokenStatus.ACTIVE)
        queue = await recipient.queue()
        await device.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        await queue.send("hello")
        push = await mock_apns.next(device.token)
        [entry] = device.entries(push)
        assert (entry.server, entry.notifier_id) == (str(smp_server.address), queue.notifier_id)
        meta = queue.open_notification(entry.nonce, entry.meta)
        assert meta.message_id == (await queue.receive()).message_id
        assert push.size <= 4096


async def test_relays_that_share_a_store_count_registrations_and_codes_together(
    relay_config: Config, mock_apns: MockApns, phone: Callable[[], Phone], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Somebody has one device pushed to through both."""
    folder = tmp_path_factory.mktemp("relays")
    with Server(folder / "redis") as server:
        limits = sections.Limits(registrations_per_address="1 + 0.5/s")
        one = changed(relay_config, store=sections.Store(url=server.url, node="one"), limits=limits)
        shutil.copytree(one.directory, folder / "two")
        two = msgspec.structs.replace(one.settings, store=sections.Store(url=server.url, node="two"))
        async with Relay(one) as first, Relay(assemble(folder / "two", two, {})) as second:
            owner, stranger = phone(), phone()
            stranger.token = owner.token
            for device, relay in ((owner, first), (stranger, second)):
                async with await connect(relay, one) as client:
                    await device.register(client)
            for kind in ("registrations_per_address", "verifications"):
                delays = [relay._metrics.value(KindCounter.LIMITS_DELAYED, kind) for relay in (first, second)]
                assert delays == [0, 1], kind
            async with await connect(second, one) as client:
                await owner.verify(client)
                assert await owner.status(client) == ntf.Tkn(TokenStatus.ACTIVE)
            assert [push.token for push in mock_apns.pushes] == [owner.token]


async def test_a_restart_resumes_subscriptions_and_pushes(
    relay_config: Config, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    device = phone()
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        async with Relay(relay_config) as relay, await connect(relay, relay_config) as client:
            await device.register(client)
            await device.verify(client)
            await device.subscribe(client, smp_server.address, queue)
            await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        await smp_server.until(lambda: not smp_server.subscribed(queue.notifier_id))
        await queue.send("while it is down")
        async with Relay(relay_config):
            [entry] = device.entries(await mock_apns.next(device.token))
            meta = queue.open_notification(entry.nonce, entry.meta)
            assert meta.message_id == (await queue.receive()).message_id


async def test_a_code_that_could_not_be_pushed_is_pushed_after_a_restart(
    relay_config: Config, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    device = phone()
    await mock_apns.stop()
    async with Relay(relay_config) as relay, await connect(relay, relay_config) as client:
        await device.register(client)
        assert await device.status(client) == ntf.Tkn(TokenStatus.REGISTERED)
    await mock_apns.start()
    async with Relay(relay_config) as relay, await connect(relay, relay_config) as client:
        await device.verify(client)
        assert await device.status(client) == ntf.Tkn(TokenStatus.ACTIVE)


async def test_a_stop_finishes_pushes_in_flight(
    relay_config: Config, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    device = phone()
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        async with Relay(relay_config) as relay, await connect(relay, relay_config) as client:
            await device.register(client)
            await device.verify(client)
            await device.subscribe(client, smp_server.address, queue)
            await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
            mock_apns.latency = 0.5
            await queue.send("in flight")
            async with asyncio.timeout(10):
                while not mock_apns.counters.streams:
                    await asyncio.sleep(0.01)
        assert len(device.entries(mock_apns.pushes[-1])) == 1
        mock_apns.latency = 0
        count = len(mock_apns.pushes)
        async with Relay(relay_config):  # nothing is pushed twice after a graceful stop
            await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
            await queue.send("next")
            await mock_apns.next(device.token)
            while len(mock_apns.pushes) == count:
                await asyncio.sleep(0.01)
        assert len(mock_apns.pushes) == count + 1


async def test_a_queue_s_newest_notification_goes_out_after_an_outage_with_all_others(
    relay_config: Config, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """Twenty queues and an outage: a push holds six, and none of the queues is forgotten."""
    device = phone()
    async with (
        Relay(relay_config) as relay,
        await connect(relay, relay_config) as client,
        await Recipient.connect(smp_server.address) as recipient,
    ):
        await device.register(client)
        await device.verify(client)
        queues = {q.notifier_id: q for q in [await recipient.queue() for _ in range(20)]}
        for queue in queues.values():
            await device.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: all(map(smp_server.subscribed, queues)))
        await mock_apns.stop()
        ids = {}
        for text, queue in itertools.product(("first", "second"), queues.values()):
            await queue.send(text)
            ids[queue.notifier_id] = (await queue.receive()).message_id
        await mock_apns.start()
        got: dict[bytes, bytes] = {}
        while got != ids:
            push = await mock_apns.next(device.token)
            for e in device.entries(push):
                got[e.notifier_id] = queues[e.notifier_id].open_notification(e.nonce, e.meta).message_id


async def test_a_dead_token_is_told_with_its_reason_and_revived_by_registering_again(
    relay_config: Config, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    device = phone()
    async with Relay(relay_config) as relay, await connect(relay, relay_config) as client:
        mock_apns.script(Answer(410, "Unregistered"), token=device.token)
        await device.register(client)
        async with asyncio.timeout(10):
            while (await device.status(client)).status is not TokenStatus.INVALID:
                await asyncio.sleep(0.01)
        assert await device.status(client) == ntf.Tkn(TokenStatus.INVALID, InvalidReason.UNREGISTERED)
        await device.register(client)
        await device.verify(client)
        assert await device.status(client) == ntf.Tkn(TokenStatus.ACTIVE)


async def test_providers_that_are_not_configured_are_refused(
    relay_config: Config, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    device = phone()
    without = changed(relay_config, apns=sections.Apns())
    async with Relay(without) as relay, await connect(relay, without) as client:
        with pytest.raises(ServerError, match="CMD PROHIBITED"):
            await device.register(client)


async def test_apple_s_hosts_are_on_with_a_key(
    relay_config: Config, mock_apns: MockApns, phone: Callable[[], Phone], tmp_path: Path
) -> None:
    key = generate_key()
    host = sections.ApnsHost(host="localhost", port=mock_apns.port, ca_file=str(mock_apns.ca_file))
    apns = sections.Apns(key_file="k.p8", key_id="KEY1234567", team_id="TEAM123456", production=host, sandbox=host)
    (tmp_path / "k.p8").write_bytes(key_pem(key))
    with_key = changed(relay_config, apns=apns)
    async with Relay(with_key) as relay, await connect(relay, with_key) as client:
        for provider in (ntf.Provider.APNS, ntf.Provider.APNS_SANDBOX):
            device = phone()
            token = ntf.DeviceToken(provider, device.token.encode())
            new = ntf.TNew(token, device.key.public_key(), device.dh_key.public_key())
            assert isinstance(await client.request(new, key=device.key), ntf.IdTkn)
            push = await mock_apns.next(device.token)
            assert push.topic == "chat.simplex.app"


async def test_a_port_in_use_is_told_and_everything_is_closed(relay_config: Config) -> None:
    async with Relay(relay_config) as relay:
        transport = msgspec.structs.replace(relay_config.settings.transport, port=relay.port)
        other = changed(relay_config, transport=transport, store=sections.Store(url="sqlite:///other.db"))
        with pytest.raises(ListenError, match=rf"\[transport\] bind, port: localhost:{relay.port}: "):
            await Relay(other).__aenter__()
        with pytest.raises(StoreError, match="another ntf-server uses this database"):
            await Relay(relay_config).__aenter__()
    async with Relay(other):
        pass


async def test_a_database_that_turns_out_corrupt_stops_the_relay(relay_config: Config) -> None:
    def damaged(relay: Relay) -> None:
        relay.failed.set_exception(StoreCorruptError("the database is corrupt"))

    with pytest.raises(StoreCorruptError):
        await run(relay_config, damaged)
    async with Relay(relay_config):  # it let go of port and database
        pass


# --- one life


async def test_a_part_that_fails_is_started_again_and_counted(
    relay_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = 0

    async def fail(_: periodic.Checks) -> None:
        nonlocal starts
        starts += 1
        raise ZeroDivisionError

    monkeypatch.setattr(periodic.Checks, "run", fail)
    monkeypatch.setattr(supervisor, "MIN_BACKOFF", 0.01)
    async with Relay(relay_config) as relay, await connect(relay, relay_config) as client:
        async with asyncio.timeout(10):
            while starts < 3:
                await asyncio.sleep(0.01)
        assert relay._metrics.value(KindCounter.PART_FAILURES, "periodic_checks") >= 2
        status = await asyncio.to_thread(ask, relay_config.admin_socket, "status")
        assert (status["failing_parts"], status["well"]) == (["periodic checks"], False)
        assert await client.request(ntf.Ping()) == ntf.Pong()  # nobody else suffers


async def test_a_stop_leaves_no_task(relay_config: Config, smp_server: SmpServer, phone: Callable[[], Phone]) -> None:
    before = asyncio.all_tasks()
    async with Relay(relay_config) as relay, await connect(relay, relay_config) as client:
        await phone().register(client)
        client_tasks = asyncio.all_tasks()
        assert client_tasks > before
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_start_that_is_cancelled_lets_go_of_everything(relay_config: Config) -> None:
    for turns in (1, 2, 5, 50):  # before and while the database is opened
        starting = asyncio.create_task(Relay(relay_config).__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    async with Relay(relay_config):
        pass


# --- a new configuration


@pytest.fixture
def from_file(relay_config: Config, mock_apns: MockApns) -> Config:
    """The same, from a file that a reload reads again."""
    (relay_config.directory / CONFIG_FILE).write_text(
        f"""
        [transport]
        port = 0
        bind = "localhost"
        [apns.test]
        host = "localhost"
        port = {mock_apns.port}
        ca_file = "{mock_apns.ca_file}"
        [subscriber]
        allow_private_hosts = true
        """
    )
    return load(relay_config.directory, {})


async def test_lists_and_limits_are_swapped(
    from_file: Config, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    device, file = phone(), from_file.directory / CONFIG_FILE
    text = file.read_text()
    async with (
        Relay(from_file) as relay,
        await connect(relay, from_file) as client,
        await Recipient.connect(smp_server.address) as recipient,
    ):
        await device.register(client)
        await device.verify(client)
        await device.subscribe(client, smp_server.address, await recipient.queue())
        file.write_text(f"{text}\ndeny_servers = ['localhost']\n")
        assert (await relay.reload()).swapped == ("[subscriber] deny_servers",)
        with pytest.raises(ServerError, match="AUTH"):
            await device.subscribe(client, smp_server.address, await recipient.queue())
        file.write_text(f"{text}\nmax_subscriptions_per_token = 2\n")
        answer = await asyncio.to_thread(ask, from_file.admin_socket, "reload")
        assert answer["swapped"] == ["[subscriber] deny_servers", "[subscriber] max_subscriptions_per_token"]
        await device.subscribe(client, smp_server.address, await recipient.queue())
        with pytest.raises(ServerError, match="QUOTA"):
            await device.subscribe(client, smp_server.address, await recipient.queue())
        file.write_text("rubbish")
        with pytest.raises(AdminError, match=r"^not changed: .*cannot be read"):
            await asyncio.to_thread(ask, from_file.admin_socket, "reload")


async def test_budgets_are_swapped(from_file: Config) -> None:
    file = from_file.directory / CONFIG_FILE
    text = file.read_text()
    async with Relay(from_file) as relay, await connect(relay, from_file) as client:
        assert await client.request(ntf.Ping()) == ntf.Pong()
        file.write_text(f"{text}\n[limits]\nsessions_per_address = 1\n")
        assert (await relay.reload()).swapped == ("[limits] sessions_per_address",)
        async with await connect(relay, from_file) as other:
            assert await other.request(ntf.Ping()) == ntf.Pong()
            with pytest.raises(ConnectionClosedError):
                await client.request(ntf.Ping())
        file.write_text(f"{text}\n[limits]\nenabled = false\n")
        assert (await relay.reload()).swapped == ("[limits] enabled", "[limits] sessions_per_address")
        async with await connect(relay, from_file) as first, await connect(relay, from_file) as second:
            for session in (first, second):
                assert await session.request(ntf.Ping()) == ntf.Pong()
