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
from claims import Sender, Took, claim
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from proxies import Proxy

from ntf_server.app import Relay, run
from ntf_server.config.files import Config, load
from ntf_server.observe.events import FIELD, FIELDS, Event
from ntf_server.providers import Providers, apns_settings, fcm_settings, in_flight
from ntf_server.push.front import Refusal
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.push.webpush import open as web_push
from ntf_server.push.webpush.vapid import key_id
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


def web_push_device(mock: MockWebPush, key: ec.EllipticCurvePrivateKey = VAPID) -> Device:
    subscription = mock.subscribe(point(key))

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
                "web_push__allow_hosts": "localhost",
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


# --- the providers without a relay


@contextlib.asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Providers]:
    providers = Providers(config)
    try:
        yield providers
    finally:
        await providers.close()


async def test_what_is_configured_is_there_and_has_a_front(all_config: Callable[..., Config]) -> None:
    async with opened(all_config()) as providers:
        on = {Provider.APNS_NULL, Provider.APNS_TEST, Provider.FCM, Provider.WEB_PUSH}
        assert set(providers.table) == set(providers.fronts) == set(providers.in_flight) == on
        assert not any(engine.done() for engine in providers.failed)
        assert {p: front.key_id for p, front in providers.fronts.items() if front.key_id} == {
            Provider.WEB_PUSH: key_id(VAPID)
        }
        front = providers.fronts[Provider.WEB_PUSH]
        assert front.refusal(DeviceToken(Provider.WEB_PUSH, b"")) is Refusal.SYNTAX
        assert front.origin(web_push_token("push.example.org", 8443)) == "https://push.example.org:8443"
        for provider in on - {Provider.WEB_PUSH}:
            device = DeviceToken(provider, b"")
            assert (providers.fronts[provider].refusal(device), providers.fronts[provider].origin(device)) == (None, "")
        claimed = claim(Provider.WEB_PUSH, web_push_token("push.example.org").token)
        assert providers.service(claimed) == "https://push.example.org"
        assert providers.service(claim(Provider.APNS_TEST, b"ab")) == ""


@pytest.mark.parametrize(
    ("settings", "apns", "fcm", "connections"),
    [
        ({}, 4000, 4000, (4, 32)),
        ({"delivery__in_flight": 100}, 100, 100, (2, 2)),
        ({"apns__in_flight": 9001, "fcm__in_flight": 1000}, 9001, 1000, (10, 10)),
    ],
)
async def test_connections_are_as_many_as_pushes_under_way_need(
    all_config: Callable[..., Config], settings: Mapping[str, Any], apns: int, fcm: int, connections: tuple[int, int]
) -> None:
    config = all_config(**settings)
    assert (in_flight(config.settings, Provider.APNS), in_flight(config.settings, Provider.FCM)) == (apns, fcm)
    of_apns, of_fcm = apns_settings(config, APNS), fcm_settings(config)
    assert of_apns is not None
    assert of_fcm is not None
    assert (of_apns.hosts[Provider.APNS_TEST].connections, of_fcm.push_to.connections) == connections
    async with opened(config) as providers:
        assert providers._engines[0]._worker._streams == max(apns, fcm)


async def test_providers_take_up_a_new_configuration(
    all_config: Callable[..., Config], tmp_path: Path, mock_web_push: MockWebPush, mock_fcm: MockFcm
) -> None:
    async with opened(all_config()) as providers:
        fcm, push = Sender(providers.table[Provider.FCM]), Sender(providers.table[Provider.WEB_PUSH])
        assert await fcm.one(claim(Provider.FCM, REGISTRATION.encode())) == Took()
        other = generate_key()
        (tmp_path / "relay" / "vapid.key").write_bytes(key_pem(other))
        providers.use(all_config())
        assert providers.fronts[Provider.WEB_PUSH].key_id == key_id(other)
        subscription = mock_web_push.subscribe(point(other))
        device = web_push_token(
            "localhost", mock_web_push.port, subscription.path, subscription.auth, subscription.p256dh
        )
        assert await push.one(claim(Provider.WEB_PUSH, device.token)) == Took()
        assert await fcm.one(claim(Provider.FCM, REGISTRATION.encode())) == Took()
        assert mock_fcm.grants == 1  # of FCM nothing has changed


# --- endpoints of strangers


@pytest.fixture
async def strict(all_config: Callable[..., Config], running: Running) -> AsyncIterator[Client]:
    """Of a relay that pushes to public hosts only; and to those through a proxy that does not listen."""
    async with Proxy() as proxy:
        pass
    config = all_config(web_push__allow_hosts="", web_push__proxy=proxy.url())
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
    monkeypatch.setattr(web_push, "is_public_host", lambda _: True)  # as of a name that is somebody's
    async with running(all_config(web_push__allow_hosts="")) as (_, client):
        await devices["WP"].register(client)

        async def refused() -> bool:
            ended = [getattr(r, FIELDS) for r in logged if getattr(r, FIELD, None) is Event.PUSH_ENDED]
            return any((e["outcome"], e["reason"]) == ("again", "connection refused") for e in ended)

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
    mock_apns._provider_tokens._renewed_after = 0  # it knows keys by their ids, and here that stays
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
        await relay.reload()
        await push()
        assert signed_by(mock_apns, other)
        for content in (b"SECRET", b""):
            (tmp_path / "relay" / "apns.p8").write_bytes(content)
            await relay.reload()
        (tmp_path / "relay" / "apns.p8").unlink()
        await relay.reload()
        await push()
        assert signed_by(mock_apns, other)
    errors = [r.getMessage() for r in logged if r.levelno >= logging.ERROR]
    assert len(errors) == 3
    assert all("reload: not changed: " in e and "[apns] key_file: " in e and "SECRET" not in e for e in errors)


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
        await relay.reload()
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
    monkeypatch.setattr(mock_apns._provider_tokens, "refusal", lambda shown, _: authorizations.append(shown))
    host = {"host": "localhost", "port": mock_apns.port, "ca_file": mock_apns.ca_file}
    sandbox = {f"apns__sandbox__{name}": value for name, value in host.items()}
    config = make_config(apns__certificate_file=cert, apns__certificate_key_file=key, **sandbox)
    async with running(config) as (relay, client):
        device = apns_device(mock_apns, Provider.APNS_SANDBOX)
        await device.register(client)
        await device.verify(client)
        await relay.reload()
    assert authorizations == [None]


# --- swapped while it runs


async def test_a_service_account_that_was_mended_is_used_at_once(
    *,
    all_config: Callable[..., Config],
    running: Running,
    devices: Mapping[str, Device],
    mock_fcm: MockFcm,
    tmp_path: Path,
    until: Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]],
) -> None:
    config = all_config()
    file = tmp_path / "relay" / "account.json"
    right = file.read_text()
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    wrong = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    file.write_text(json.dumps(json.loads(right) | {"private_key": wrong}))
    config = load(config.directory, config.environ)

    async def refused() -> bool:
        return mock_fcm.refused_grants > 0

    async with running(config) as (relay, client):
        await devices["FC"].register(client)
        await until(refused)
        file.write_text(right)
        assert (await relay.reload()).swapped == ("[fcm] service_account_file",)
        await asyncio.wait_for(devices["FC"].verify(client), 10)
    assert mock_fcm.grants == 1


async def test_a_vapid_key_and_contact_that_were_replaced(
    all_config: Callable[..., Config], running: Running, mock_web_push: MockWebPush, tmp_path: Path
) -> None:
    config, other = all_config(), generate_key()
    async with running(config) as (relay, client):
        before = web_push_device(mock_web_push)
        await before.register(client)
        await before.verify(client)
        (tmp_path / "relay" / "vapid.key").write_bytes(key_pem(other))
        assert (await relay.reload()).swapped == ("[web_push] key_file",)
        after = web_push_device(mock_web_push, other)
        await after.register(client)
        await after.verify(client)
        assert mock_web_push.rejected == []


async def test_a_subscription_of_an_older_vapid_key_is_pushed_to_while_that_key_is_kept(
    *,
    all_config: Callable[..., Config],
    running: Running,
    smp_server: SmpServer,
    mock_web_push: MockWebPush,
    until: Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]],
) -> None:
    config, new_key = all_config(), generate_key()
    folder, kept = config.directory, '[web_push]\nold_key_files = ["vapid-2025.key"]\n'
    async with running(config) as (relay, client), await Recipient.connect(smp_server.address) as recipient:
        old = web_push_device(mock_web_push)
        await old.register(client)
        await old.verify(client)
        queue = await recipient.queue()
        subscribe = ntf.SNew(old.token_id, smp_server.address, queue.notifier_id, queue.notifier_key)
        await client.request(subscribe, key=old.key)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))

        (folder / "vapid.key").rename(folder / "vapid-2025.key")
        (folder / "vapid.key").write_bytes(key_pem(new_key))
        (folder / "ntf-server.toml").write_text(kept)
        assert set((await relay.reload()).swapped) == {"[web_push] key_file", "[web_push] old_key_files"}
        await queue.send("kept")
        assert await old.open("message")
        assert [mock_web_push.pushes[-1].vapid_key, mock_web_push.rejected] == [point(VAPID), []]

        (folder / "ntf-server.toml").write_text("")
        assert (await relay.reload()).swapped == ("[web_push] old_key_files",)
        new = web_push_device(mock_web_push, new_key)
        await new.register(client)
        await new.verify(client)  # so it is not we who are wrong
        await queue.send("not kept")

        async def ended() -> bool:
            return await old.status(client) == ntf.Tkn(TokenStatus.INVALID, InvalidReason.TOPIC)

        await until(ended)
        assert [r.reason for r in mock_web_push.rejected] == ["VapidPkHashMismatch"]

        (folder / "ntf-server.toml").write_text(kept)
        assert (await relay.reload()).swapped == ("[web_push] old_key_files",)
        await old.register(client)
        await old.verify(client)
        assert await old.open("message")  # what waited meanwhile
        assert len(mock_web_push.rejected) == 1

        old_app = web_push_device(mock_web_push)  # one that does not know the new key yet
        for refused in (2, 2):  # once: from then on it is known which key it is for
            await old_app.register(client)
            await old_app.verify(client)
            assert len(mock_web_push.rejected) == refused

        await relay.reload()  # has them counted

        async def counted() -> bool:
            found = relay.condition().vapid
            return found is not None and (found.in_force, found.old, found.unknown) == (1, 2, 0)

        await until(counted)


async def test_a_client_certificate_that_was_renewed(
    make_config: Callable[..., Config],
    running: Running,
    mock_apns: MockApns,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cert, key = client_certificate(tmp_path)
    assert mock_apns._context is not None
    mock_apns._context.verify_mode = ssl.CERT_REQUIRED
    mock_apns._provider_tokens.refusal = lambda *_: None  # type: ignore[method-assign]
    host = {"host": "localhost", "port": mock_apns.port, "ca_file": mock_apns.ca_file}
    sandbox = {f"apns__sandbox__{name}": value for name, value in host.items()}

    def trusted() -> int:
        assert mock_apns._context is not None
        mock_apns._context.load_verify_locations(cert)
        return x509.load_pem_x509_certificate(Path(cert).read_bytes()).serial_number

    async def shown() -> set[int]:
        device = apns_device(mock_apns, Provider.APNS_SANDBOX)
        await device.register(client)
        await device.verify(client)
        links = [link._transport for link in mock_apns.connections if link._transport is not None]
        return {int(link.get_extra_info("peercert")["serialNumber"], 16) for link in links}

    first = trusted()
    config = make_config(apns__certificate_file=cert, apns__certificate_key_file=key, **sandbox)
    async with running(config) as (relay, client):
        assert await shown() == {first}
        [warning] = relay.condition().warnings
        assert warning.startswith("the client certificate for APNs ends on ")
        client_certificate(tmp_path, name="renewed", days=400)
        second = trusted()
        assert await shown() == {first}  # nobody said so yet
        assert (await relay.reload()).swapped == ("[apns] certificate_file",)
        assert second in await shown()
        assert relay.condition().warnings == ()
    told = [getattr(record, FIELD, "") for record in caplog.records]
    assert [event for event in told if event.startswith("certificate.")] == ["certificate.ending", "certificate.well"]
