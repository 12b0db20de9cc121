"""A whole relay with every provider: from a registration to a push that the device can open."""

import asyncio
import base64
import contextlib
import json
import logging
import os
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from certificates import client_certificate
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from proxies import Proxy

from ntf_server import commands
from ntf_server.app import Relay, run
from ntf_server.config.files import Config
from ntf_server.push.apns.request import generate_key, key_pem
from ntf_server.testing import MockApns, MockFcm, MockWebPush
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, ServerError
from smp_bridge.encoding import short
from smp_bridge.ntf import DeviceToken, Entry, InvalidReason, Provider, TokenStatus
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

pytest_plugins = ("ntf_server.testing.pytest_plugin",)
pytestmark = pytest.mark.usefixtures("quiet")

VAPID = generate_key()
APNS = generate_key()
BROWSER = ec.generate_private_key(ec.SECP256R1())
REGISTRATION = "fcm-registration-token:APA91b"


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def web_push_token(
    host: str, port: int = 443, path: str = "/p", auth: bytes = bytes(16), key: bytes = point(BROWSER)
) -> DeviceToken:
    fields = (host.encode(), str(port).encode(), path.encode(), auth, key)
    return DeviceToken(Provider.WEB_PUSH, b"".join(map(short, fields)))


@dataclass
class Device:
    """A device of any provider; `take` gives what the next push brings it."""

    token: DeviceToken
    take: Callable[[], Awaitable[Mapping[str, Any]]]
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    dh_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    token_id: bytes = b""
    secret: bytes = b""

    async def register(self, client: Client) -> None:
        new = ntf.TNew(self.token, self.key.public_key(), self.dh_key.public_key())
        answer = await client.request(new, key=self.key)
        assert isinstance(answer, ntf.IdTkn)
        self.token_id, self.secret = answer.token_id, crypto.dh(self.dh_key, answer.dh_key)

    async def open(self, name: str) -> bytes:
        data = await self.take()
        nonce, sealed = (base64.urlsafe_b64decode(data[key]) for key in ("nonce", name))
        return crypto.unpad(crypto.unbox(self.secret, nonce, sealed))

    async def verify(self, client: Client) -> None:
        code = await self.open("verification")
        assert await client.request(ntf.TVfy(code), self.token_id, self.key) == ntf.Ok()
        assert await self.status(client) == ntf.Tkn(TokenStatus.ACTIVE)

    async def status(self, client: Client) -> ntf.Message:
        return await client.request(ntf.TChk(), self.token_id, self.key)


def fcm_device(mock: MockFcm, registration: str = REGISTRATION) -> Device:
    async def take() -> Mapping[str, Any]:
        return (await mock.next(registration)).data

    return Device(DeviceToken(Provider.FCM, registration.encode()), take)


def web_push_device(mock: MockWebPush) -> Device:
    subscription = mock.subscribe(point(VAPID))

    async def take() -> Mapping[str, Any]:
        data: Mapping[str, Any] = json.loads((await mock.next(subscription)).data or b"")
        return data

    token = web_push_token("localhost", mock.port, subscription.path, subscription.auth, subscription.p256dh)
    return Device(token, take)


def apns_device(mock: MockApns, provider: Provider = Provider.APNS_TEST) -> Device:
    token = os.urandom(32).hex()

    async def take() -> Mapping[str, Any]:
        data: Mapping[str, Any] = (await mock.next(token)).body["notificationData"]
        return data

    return Device(DeviceToken(provider, token.encode()), take)


@pytest.fixture
def all_config(
    make_config: Callable[..., Config], tmp_path: Path, mock_fcm: MockFcm, mock_web_push: MockWebPush
) -> Callable[..., Config]:
    """Makes configurations with FCM and Web Push."""
    directory = tmp_path / "relay"
    mock_fcm.service_account(directory / "account.json")
    (directory / "vapid.key").write_bytes(key_pem(VAPID))

    def make(**settings: Any) -> Config:
        return make_config(
            **{
                "fcm__service_account_file": "account.json",
                "fcm__host": "127.0.0.1",
                "fcm__port": mock_fcm.port,
                "fcm__ca_file": mock_fcm.ca_file,
                "web_push__key_file": "vapid.key",
                "web_push__contact": "mailto:push@example.org",
                "web_push__ca_file": mock_web_push.ca_file,
                **settings,
            }
        )

    return make


Running = Callable[[Config], Any]


@pytest.fixture
def running(address_of: Callable[..., ServerAddress]) -> Running:
    """A relay and a client of it."""

    @contextlib.asynccontextmanager
    async def start(config: Config) -> AsyncIterator[tuple[Relay, Client]]:
        async with Relay(config) as relay, await Client.connect(address_of(relay)) as client:
            yield relay, client

    return start


@pytest.fixture
def devices(mock_fcm: MockFcm, mock_web_push: MockWebPush, mock_apns: MockApns) -> Mapping[str, Device]:
    return {"FC": fcm_device(mock_fcm), "WP": web_push_device(mock_web_push), "AT": apns_device(mock_apns)}


@pytest.mark.parametrize("provider", ["FC", "WP"])
async def test_a_message_wakes_the_device(
    provider: str,
    *,
    all_config: Callable[..., Config],
    running: Running,
    devices: Mapping[str, Device],
    smp_server: SmpServer,
    mock_fcm: MockFcm,
    mock_web_push: MockWebPush,
    logged: list[logging.LogRecord],
) -> None:
    device = devices[provider]
    async with running(all_config()) as (_, client), await Recipient.connect(smp_server.address) as recipient:
        await device.register(client)
        await device.verify(client)
        queue = await recipient.queue()
        new = ntf.SNew(device.token_id, smp_server.address, queue.notifier_id, queue.notifier_key)
        await client.request(new, key=device.key)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        for text in ("hello", "again"):
            await queue.send(text)
            entry = Entry.parse((await device.open("message")).split(b";")[-1])
            assert (entry.server, entry.notifier_id) == (str(smp_server.address), queue.notifier_id)
            meta = queue.open_notification(entry.nonce, entry.meta)
            assert meta.message_id == (await queue.receive()).message_id
    assert (mock_fcm.rejected, mock_web_push.rejected) == ([], [])
    assert mock_fcm.grants == (provider == "FC")
    relays = " ".join(r.getMessage() for r in logged if r.name.startswith(("ntf_server.push", "ntf_server.prov")))
    for secret in (REGISTRATION, "/push/", "ya29."):
        assert secret not in relays


async def test_a_token_that_the_provider_gave_up(
    *,
    all_config: Callable[..., Config],
    running: Running,
    devices: Mapping[str, Device],
    mock_fcm: MockFcm,
    mock_web_push: MockWebPush,
    until: Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]],
) -> None:
    mock_fcm.unregister(REGISTRATION)
    [subscription] = mock_web_push._subscriptions.values()
    mock_web_push.unsubscribe(subscription)
    gone = ntf.Tkn(TokenStatus.INVALID, InvalidReason.UNREGISTERED)
    async with running(all_config()) as (_, client):
        for device in (devices["FC"], devices["WP"]):
            await device.register(client)

            async def invalid(device: Device = device) -> bool:
                return await device.status(client) == gone

            await until(invalid)


async def test_providers_that_are_not_configured_are_refused(
    make_config: Callable[..., Config], running: Running, devices: Mapping[str, Device]
) -> None:
    async with running(make_config()) as (_, client):
        for provider in ("FC", "WP"):
            with pytest.raises(ServerError, match="CMD PROHIBITED"):
                await devices[provider].register(client)


# --- endpoints of strangers


@pytest.fixture
async def strict(all_config: Callable[..., Config], running: Running) -> AsyncIterator[Client]:
    """Of a relay that pushes to public hosts only; and to those through a proxy that does not listen."""
    async with Proxy() as proxy:
        pass
    config = all_config(subscriber__allow_private_hosts="false", web_push__proxy=proxy.url())
    async with running(config) as (_, client):
        yield client


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "printer.local",
        "db.internal",
        "LOCALHOST.",
        "x.localhost",
    ],
)
async def test_a_host_that_is_not_public_is_refused(host: str, strict: Client, mock_apns: MockApns) -> None:
    stranger = apns_device(mock_apns)
    await stranger.register(strict)
    token = web_push_token(host)
    with pytest.raises(ServerError, match=r"\bAUTH\b"):
        await strict.request(ntf.TRpl(token), stranger.token_id, stranger.key)
    await stranger.verify(strict)  # it is what it was
    stranger.token = token
    with pytest.raises(ServerError, match=r"\bAUTH\b"):
        await stranger.register(strict)


@pytest.mark.parametrize(
    "token",
    [
        web_push_token("169.254.169.254?x.example"),
        web_push_token("127%2e0%2e0%2e1.example"),
        web_push_token("push.example", port=0),
        web_push_token("push.example", path="/\r\nx: 1"),
        web_push_token("push.example", key=bytes(65)),
    ],
)
async def test_a_subscription_that_is_none_is_refused(token: DeviceToken, strict: Client, mock_apns: MockApns) -> None:
    stranger = apns_device(mock_apns)
    await stranger.register(strict)
    with pytest.raises(ServerError, match="CMD SYNTAX"):
        await strict.request(ntf.TRpl(token), stranger.token_id, stranger.key)
    stranger.token = token
    with pytest.raises(ServerError, match="CMD SYNTAX"):
        await stranger.register(strict)


async def test_a_public_host_is_taken(strict: Client, mock_apns: MockApns) -> None:
    stranger = apns_device(mock_apns)
    stranger.token = web_push_token("push.example.org")
    await stranger.register(strict)
    assert await strict.request(ntf.TRpl(web_push_token("1.1.1.1")), stranger.token_id, stranger.key) == ntf.Ok()


async def test_a_public_name_that_leads_to_this_machine_is_not_connected_to(
    *,
    all_config: Callable[..., Config],
    running: Running,
    devices: Mapping[str, Device],
    mock_web_push: MockWebPush,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[logging.LogRecord],
    until: Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]],
) -> None:
    monkeypatch.setattr(commands, "is_public_host", lambda _: True)  # as of a name that is somebody's
    async with running(all_config(subscriber__allow_private_hosts="false")) as (_, client):
        await devices["WP"].register(client)

        async def refused() -> bool:
            return any("a push through WP is retried: connection refused" in r.getMessage() for r in logged)

        await until(refused)
        assert mock_web_push.counters.opened == 0


# --- proxies


async def test_each_provider_has_its_own_proxy(
    all_config: Callable[..., Config], running: Running, devices: Mapping[str, Device], logged: list[logging.LogRecord]
) -> None:
    async with (
        Proxy("http", ("a", "PASSWORD")) as of_apns,
        Proxy("socks5", ("f", "PASSWORD")) as of_fcm,
        Proxy("http") as of_web_push,
    ):
        config = all_config(
            apns__proxy=of_apns.url("a:PASSWORD"),
            fcm__proxy=of_fcm.url("f:PASSWORD", "socks5h"),
            web_push__proxy=of_web_push.url(),
        )
        proxies = {"AT": of_apns, "FC": of_fcm, "WP": of_web_push}
        async with running(config) as (relay, client):
            for name, device in devices.items():
                await device.register(client)
                await device.verify(client)
                assert proxies.pop(name).targets
                assert not any(p.targets for p in proxies.values())
            shown = repr((config, config.settings, relay._providers)) + " ".join(r.getMessage() for r in logged)
        assert "PASSWORD" not in shown


async def test_a_proxy_that_is_down_stops_its_own_provider_only(
    all_config: Callable[..., Config], running: Running, devices: Mapping[str, Device], mock_fcm: MockFcm
) -> None:
    async with Proxy() as proxy:
        pass
    async with running(all_config(fcm__proxy=proxy.url())) as (_, client):
        for device in devices.values():  # FCM first
            await device.register(client)
        await devices["AT"].verify(client)
        await devices["WP"].verify(client)
        assert mock_fcm.counters.opened == 0
        async with proxy:
            await devices["FC"].verify(client)
        assert mock_fcm.counters.opened > 0


# --- how the relay shows who it is


def signed_by(mock: MockApns, key: ec.EllipticCurvePrivateKey) -> bool:
    token = mock.pushes[-1].headers["authorization"].removeprefix("bearer ")
    try:
        jwt.decode(token, key.public_key(), ["ES256"])
    except jwt.InvalidSignatureError:
        return False
    return True


def with_key(make_config: Callable[..., Config], mock: MockApns, tmp_path: Path) -> Config:
    (tmp_path / "relay" / "apns.p8").write_bytes(key_pem(APNS))
    host = {"host": "localhost", "port": mock.port, "ca_file": mock.ca_file}
    production = {f"apns__production__{name}": value for name, value in host.items()}
    names = {"apns__key_file": "apns.p8", "apns__key_id": "KEY1234567", "apns__team_id": "TEAM123456"}
    return make_config(**names, **production)


async def test_the_key_is_read_again(
    make_config: Callable[..., Config],
    running: Running,
    mock_apns: MockApns,
    tmp_path: Path,
    logged: list[logging.LogRecord],
) -> None:
    config, other = with_key(make_config, mock_apns, tmp_path), generate_key()
    async with running(config) as (relay, client):

        async def push() -> None:
            device = apns_device(mock_apns, Provider.APNS)
            await device.register(client)
            await device.verify(client)

        await push()
        assert signed_by(mock_apns, APNS)
        (tmp_path / "relay" / "apns.p8").write_bytes(key_pem(other))
        await push()
        assert signed_by(mock_apns, APNS)  # nobody said so yet
        relay.reload()
        await push()
        assert signed_by(mock_apns, other)
        for content in (b"SECRET", b""):
            (tmp_path / "relay" / "apns.p8").write_bytes(content)
            relay.reload()
        (tmp_path / "relay" / "apns.p8").unlink()
        relay.reload()
        await push()
        assert signed_by(mock_apns, other)
    errors = [r.getMessage() for r in logged if r.levelno >= logging.ERROR]
    assert len(errors) == 3
    assert all("the APNs key was not replaced" in e and "SECRET" not in e for e in errors)


async def test_sighup_reads_the_key_again(
    make_config: Callable[..., Config],
    mock_apns: MockApns,
    tmp_path: Path,
    address_of: Callable[..., ServerAddress],
) -> None:
    config, other = with_key(make_config, mock_apns, tmp_path), generate_key()
    ready: asyncio.Future[Relay] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(run(config, ready.set_result))
    relay = await asyncio.wait_for(ready, 10)
    try:
        (tmp_path / "relay" / "apns.p8").write_bytes(key_pem(other))
        os.kill(os.getpid(), signal.SIGHUP)
        async with await Client.connect(address_of(relay)) as client:
            device = apns_device(mock_apns, Provider.APNS)
            await device.register(client)
            await device.verify(client)
            assert signed_by(mock_apns, other)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 20)


async def test_sighup_without_a_key_changes_nothing(
    all_config: Callable[..., Config], running: Running, devices: Mapping[str, Device]
) -> None:
    async with running(all_config()) as (relay, client):
        relay.reload()
        await devices["AT"].register(client)
        await devices["AT"].verify(client)


async def test_a_certificate_instead_of_a_key(
    make_config: Callable[..., Config],
    running: Running,
    mock_apns: MockApns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cert, key = client_certificate(tmp_path)
    assert mock_apns._context is not None
    mock_apns._context.load_verify_locations(cert)
    mock_apns._context.verify_mode = ssl.CERT_REQUIRED
    authorizations: list[str | None] = []
    monkeypatch.setattr(mock_apns._provider_tokens, "refusal", authorizations.append)
    host = {"host": "localhost", "port": mock_apns.port, "ca_file": mock_apns.ca_file}
    sandbox = {f"apns__sandbox__{name}": value for name, value in host.items()}
    config = make_config(apns__certificate_file=cert, apns__certificate_key_file=key, **sandbox)
    async with running(config) as (relay, client):
        device = apns_device(mock_apns, Provider.APNS_SANDBOX)
        await device.register(client)
        await device.verify(client)
        relay.reload()
    assert authorizations == [None]
