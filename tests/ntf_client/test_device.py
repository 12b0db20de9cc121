"""`Device`: its life with a real relay, over restarts, lost answers and dead tokens."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ntf_client import Device, NotificationInfo, Notifications, NotRegisteredError, PushError, Queue, VerificationCode
from ntf_client.state import StateError
from ntf_server.testing import MockApns
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import ServerError
from smp_bridge.encoding import b64url, short
from smp_bridge.testing import Recipient, SmpServer
from smp_bridge.testing.recipient import Queue as RecipientQueue
from smp_bridge.transmission import ERR_AUTH, ERR_INTERNAL
from smp_bridge.transport import ConnectionClosedError

TOKEN = "00ff" * 16
Registered = Callable[..., Awaitable[Device]]
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


def device_token(token: str = TOKEN) -> ntf.DeviceToken:
    return ntf.DeviceToken(ntf.Provider.APNS_TEST, token.encode())


def for_device(queue: RecipientQueue, server: ServerAddress, secret: bytes | None = None) -> Queue:
    return Queue(server, queue.notifier_id, queue.notifier_key, secret)


async def take_code(device: Device, apns: MockApns) -> bytes:
    content = device.open_push((await apns.next(device.token.token.decode())).body)
    assert isinstance(content, VerificationCode)
    return content.code


async def status(device: Device) -> ntf.TokenStatus:
    async with device.connect() as client:
        return (await device.check(client)).status


async def test_a_message_wakes_a_device_that_was_restarted(
    registered: Registered, smp_server: SmpServer, recipient: Recipient, mock_apns: MockApns, tmp_path: Path
) -> None:
    queue = await recipient.queue()
    device = await registered()
    async with device.connect() as client:
        subscription = await device.subscribe(client, for_device(queue, smp_server.address, queue.notifier_secret))
    await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
    await queue.send("hello")
    push = await mock_apns.next(TOKEN)

    device = Device.load(tmp_path / "device.json")
    assert device.subscriptions == (subscription,)
    content = device.open_push(push.body)
    assert isinstance(content, Notifications)
    [info] = content.infos
    received = await queue.receive()
    meta = device.open_notification(info)
    assert meta is not None
    assert (meta.message_id, meta.timestamp) == (received.message_id, received.timestamp)
    assert abs(info.received_at - received.timestamp) < 10
    assert info.server == str(smp_server.address)
    assert info.open(queue.notifier_secret) == meta


async def test_the_life_of_a_registration(
    registered: Registered, smp_server: SmpServer, recipient: Recipient, mock_apns: MockApns, tmp_path: Path
) -> None:
    queue, other = await recipient.queue(), await recipient.queue()
    device, path = await registered(), tmp_path / "device.json"
    assert await status(device) is ntf.TokenStatus.ACTIVE
    async with device.connect() as client:
        first = await device.subscribe(client, for_device(queue, smp_server.address, queue.notifier_secret))
        second = await device.subscribe(client, for_device(other, smp_server.address))
        assert await device.subscribe(client, for_device(queue, smp_server.address)) == first  # keeps the secret
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        await device.set_period(client, 30)
        await device.set_period(client, 0)

        await device.replace(client, device_token("aa" * 32))
        assert Device.load(path).token == device_token("aa" * 32)
        assert (await device.check(client)).status is not ntf.TokenStatus.ACTIVE
        await device.verify(client, await take_code(device, mock_apns))
        assert (await device.check(client)).status is ntf.TokenStatus.ACTIVE
        assert set(Device.load(path).subscriptions) == {first, second}
        assert (await device.check_subscription(client, first)).error == ""

        await device.unsubscribe(client, second)
        assert Device.load(path).subscriptions == device.subscriptions == (first,)
        with pytest.raises(ServerError, match="AUTH"):
            await device.check_subscription(client, second)

        await device.delete(client)
        assert not path.exists()
        assert device.token_id is None
        assert not device.subscriptions
        with pytest.raises(NotRegisteredError):
            await device.check(client)


async def test_a_lost_answer_to_register_is_repaired_by_the_same_command(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    answer = ntf.IdTkn(bytes(24), X25519PrivateKey.generate().public_key())
    server = await scripted("close", answer, answer)
    path = tmp_path / "device.json"
    device = Device.create(server.address, device_token(), path)
    assert not path.exists()
    with pytest.raises(ConnectionClosedError):
        async with device.connect() as client:
            await device.register(client)
    with pytest.raises(NotRegisteredError, match="again"):
        device.open_push({"checkMessages": True})

    device = Device.load(path)
    async with device.connect() as client:
        await device.register(client)
        await device.register(client)
    assert device.token_id == Device.load(path).token_id == bytes(24)
    first, *others = (c.encode(3) for c in server.received)
    assert others == [first, first]


async def test_a_server_that_has_forgotten_the_device_has_no_subscriptions_of_it(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    keys = [X25519PrivateKey.generate().public_key() for _ in range(2)]
    server = await scripted(
        ntf.IdTkn(b"old", keys[0]), ntf.IdSub(b"sub"), ntf.IdTkn(b"old", keys[0]), ntf.IdTkn(b"new", keys[1])
    )
    smp = ServerAddress("smp", ("localhost",), "", bytes(32))
    device = Device.create(server.address, device_token(), tmp_path / "device.json")
    async with device.connect() as client:
        await device.register(client)
        subscription = await device.subscribe(client, Queue(smp, b"notifier", Ed25519PrivateKey.generate()))
        await device.register(client)
        assert device.subscriptions == (subscription,)
        await device.register(client)
    assert device.token_id == b"new"
    assert not device.subscriptions
    assert not Device.load(tmp_path / "device.json").subscriptions


def long_token(size: int = 226) -> ntf.DeviceToken:
    """A Web Push token with so many bytes of host and path; Mozilla's have about 226."""
    host = b"push.example.org".rjust(63, b"a")
    fields = (host, b"", b"/".ljust(size - len(host), b"a"), bytes(16), bytes(65))
    return ntf.DeviceToken(ntf.Provider.WEB_PUSH, b"".join(map(short, fields)))


async def test_a_token_too_long_for_tnew_is_brought_by_trpl(scripted: Callable[..., Any], tmp_path: Path) -> None:
    key = X25519PrivateKey.generate().public_key()
    new, active = ntf.IdTkn(b"new", key), ntf.Tkn(ntf.TokenStatus.ACTIVE)
    answers = [new, "close", active, ntf.Ok(), ERR_AUTH, ntf.IdTkn(b"newer", key), ntf.Ok(), ERR_INTERNAL]
    server = await scripted(*answers)
    path, token = tmp_path / "device.json", long_token()
    with pytest.raises(ConnectionClosedError):
        async with (device := Device.create(server.address, token, path)).connect() as client:
            await device.register(client)
    for expected in (b"new", b"newer"):  # it was known, then it was forgotten
        device = Device.load(path)
        async with device.connect() as client:
            await device.register(client)
        assert (device.token_id, device.token) == (expected, token)
    async with device.connect() as client:
        with pytest.raises(ServerError, match="INTERNAL"):
            await device.register(client)
    assert Device.load(path).token_id == b"newer"
    tags = [c.tag for c in server.received]
    assert tags == [b"TNEW", b"TRPL", b"TCHK", b"TRPL", b"TCHK", b"TNEW", b"TRPL", b"TCHK"]
    first, again = server.received[0], server.received[5]
    assert first.encode(3) == again.encode(3)
    assert first.token.provider is ntf.Provider.APNS_NULL
    assert server.received[1] == server.received[3] == server.received[6] == ntf.TRpl(token)


async def test_a_token_that_fits_nowhere_is_refused_before_anything_is_sent(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    key = X25519PrivateKey.generate().public_key()
    server = await scripted(ntf.IdTkn(b"id", key), ntf.Ok(), ntf.Ok())
    device = Device.create(server.address, long_token(283), tmp_path / "device.json")
    too_long = Device.create(server.address, long_token(284), tmp_path / "other.json")
    async with device.connect() as client:
        with pytest.raises(ValueError, match="may have 283 bytes together"):
            await too_long.register(client)
        assert not (tmp_path / "other.json").exists()
        assert server.received == []
        await device.register(client)
        with pytest.raises(ValueError, match="may have 283 bytes together"):
            await device.replace(client, long_token(284))
        assert device.token == long_token(283)
        await device.replace(client, long_token(282))
    assert [c.tag for c in server.received] == [b"TNEW", b"TRPL", b"TRPL"]


async def test_a_dead_token_is_revived_with_its_subscriptions(
    registered: Registered, smp_server: SmpServer, recipient: Recipient, mock_apns: MockApns, until: Until
) -> None:
    device, queue = await registered(), await recipient.queue()
    async with device.connect() as client:
        subscription = await device.subscribe(client, for_device(queue, smp_server.address))
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        mock_apns.unregister(TOKEN)
        await queue.send("nobody is there")

        async def dead() -> bool:
            return (await device.check(client)) == (ntf.TokenStatus.INVALID, ntf.InvalidReason.UNREGISTERED)

        await until(dead)
        mock_apns.reregister(TOKEN)
        await device.register(client)
        await device.verify(client, await take_code(device, mock_apns))
        assert (await device.check(client)).status is ntf.TokenStatus.ACTIVE
        assert device.subscriptions == (subscription,)

        async def subscribed() -> bool:
            return (await device.check_subscription(client, subscription)).status is ntf.SubscriptionStatus.ACTIVE

        await until(subscribed)


async def test_nothing_is_saved_without_a_path(relay: ServerAddress, tmp_path: Path) -> None:
    device = Device.create(relay, ntf.DeviceToken(ntf.Provider.APNS_NULL, b"any"))
    with pytest.raises(StateError, match="no file"):
        device.save()
    async with device.connect() as client:
        await device.register(client)
        device.save(tmp_path / "late.json")
        await device.delete(client)
    assert not (tmp_path / "late.json").exists()


async def test_an_unregistered_device_can_do_nothing(scripted: Callable[..., Any]) -> None:
    server = await scripted()
    device = Device.create(server.address, device_token())
    queue = Queue(ServerAddress("smp", ("localhost",), "", bytes(32)), b"id", Ed25519PrivateKey.generate())
    async with device.connect() as client:
        for command in (
            device.verify(client, b"code"),
            device.check(client),
            device.replace(client, device_token()),
            device.set_period(client, 20),
            device.subscribe(client, queue),
            device.delete(client),
        ):
            with pytest.raises(NotRegisteredError):
                await command
    assert server.received == []


async def test_which_notifications_a_device_can_open(
    registered: Registered, smp_server: SmpServer, recipient: Recipient
) -> None:
    device, queue, unknown = await registered(), await recipient.queue(), await recipient.queue()
    wrong = await recipient.queue()
    async with device.connect() as client:
        await device.subscribe(client, for_device(queue, smp_server.address))
        await device.subscribe(client, for_device(wrong, smp_server.address, bytes(32)))
    server = str(smp_server.address)
    elsewhere = str(ServerAddress("smp", ("localhost",), "", bytes(32)))
    for address, notifier_id in (
        (server, queue.notifier_id),
        (server, unknown.notifier_id),
        (elsewhere, wrong.notifier_id),
        ("no address", wrong.notifier_id),
    ):
        assert device.open_notification(NotificationInfo(address, notifier_id, 0, bytes(24), bytes(144))) is None
    with pytest.raises(PushError):
        device.open_notification(NotificationInfo(server, wrong.notifier_id, 0, bytes(24), bytes(144)))


async def test_bad_arguments(registered: Registered, smp_server: SmpServer, recipient: Recipient) -> None:
    with pytest.raises(ValueError, match="notification server"):
        Device.create(smp_server.address, device_token())
    device, queue = await registered(), await recipient.queue()
    async with device.connect() as client:
        with pytest.raises(ValueError, match="32 bytes"):
            await device.subscribe(client, for_device(queue, smp_server.address, bytes(31)))
    assert device.subscriptions == ()


async def test_secrets_are_in_no_repr(
    registered: Registered,
    smp_server: SmpServer,
    recipient: Recipient,
    tmp_path: Path,
    secret_texts: Callable[[Path], list[str]],
) -> None:
    device, queue = await registered(), await recipient.queue()
    given = for_device(queue, smp_server.address, queue.notifier_secret)
    async with device.connect() as client:
        await device.subscribe(client, given)
    shown = repr((device, given, device.subscriptions))
    assert str(device.server.key_hash) in shown
    assert TOKEN not in shown
    assert repr(queue.notifier_secret) not in shown
    assert b64url(queue.notifier_secret) not in shown
    assert not any(text in shown for text in secret_texts(tmp_path / "device.json"))
