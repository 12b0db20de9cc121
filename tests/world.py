"""A whole relay in this process, the mocks of its providers, and devices that are alike whatever their provider."""

import asyncio
import base64
import os
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ntf_server.app import Relay
from ntf_server.config import files as config
from ntf_server.config import identity_files
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.store.sealing import generate_key_text
from ntf_server.testing import Answer, MockApns, MockFcm, MockWebPush, Subscription, fcm_error
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.encoding import short
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient

NOWHERE = "nowhere.invalid"  # RFC 6761: never resolves


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Poll a condition until it holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Clock:
    """The clocks of the system, moved ahead by so many seconds: they pass, the clock is not set."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Side(ABC):
    """A provider: its mock, how a relay is told of it, and what its devices see."""

    name: str
    provider: ntf.Provider
    mock: MockApns | MockFcm | MockWebPush

    @abstractmethod
    def settings(self, directory: Path) -> dict[str, Any]:
        """What a configuration says of it."""

    @abstractmethod
    def new_token(self) -> bytes:
        """A device's token."""

    @abstractmethod
    def seen(self, token: bytes) -> list[Mapping[str, str]]:
        """`notificationData` of all pushes that the mock took for a device, in order."""

    @abstractmethod
    def error(self, status: int, retry_after: int | None = None) -> Answer:
        """An answer of status 429 or 503, as this provider makes it."""

    @abstractmethod
    def kill(self, token: bytes) -> None:
        """The token is dead from now on."""

    @abstractmethod
    def revive(self, token: bytes) -> None:
        """It lives again."""

    def wrong_ca(self, files: Path) -> dict[str, Any]:
        """Settings under which the mock's certificate is not trusted."""
        return {next(key for key in self.settings(files.parent) if key.endswith("ca_file")): files}


def _retry_after(seconds: int | None) -> tuple[tuple[str, str], ...]:
    return () if seconds is None else (("retry-after", str(seconds)),)


class ApnsSide(Side):
    name, provider = "APNs", ntf.Provider.APNS_TEST

    def __init__(self, clock: Clock, _key: RSAPrivateKey, **options: Any) -> None:
        self.mock: MockApns = MockApns(clock=clock, **options)

    def settings(self, directory: Path) -> dict[str, Any]:
        return {
            "apns__test__host": "localhost",
            "apns__test__port": self.mock.port,
            "apns__test__ca_file": self.mock.ca_file,
        }

    def new_token(self) -> bytes:
        return os.urandom(32).hex().encode()

    def seen(self, token: bytes) -> list[Mapping[str, str]]:
        return [p.body["notificationData"] for p in self.mock.pushes if p.token == token.decode()]

    def error(self, status: int, retry_after: int | None = None) -> Answer:
        reason = {429: "TooManyRequests", 503: "ServiceUnavailable"}[status]
        return Answer(status, reason, _retry_after(retry_after))

    def kill(self, token: bytes) -> None:
        self.mock.unregister(token.decode())

    def revive(self, token: bytes) -> None:
        self.mock.reregister(token.decode())


class FcmSide(Side):
    name, provider = "FCM", ntf.Provider.FCM

    def __init__(self, clock: Clock, key: RSAPrivateKey, **options: Any) -> None:
        self.mock: MockFcm = MockFcm(clock=clock, private_key=key, **options)

    def settings(self, directory: Path) -> dict[str, Any]:
        return {
            "fcm__host": "127.0.0.1",
            "fcm__port": self.mock.port,
            "fcm__ca_file": self.mock.ca_file,
            "fcm__service_account_file": self.mock.service_account(directory / "account.json"),
        }

    def new_token(self) -> bytes:
        return b"fcm:" + base64.urlsafe_b64encode(os.urandom(60))

    def seen(self, token: bytes) -> list[Mapping[str, str]]:
        return [m.data for m in self.mock.pushes if m.token == token.decode()]

    def error(self, status: int, retry_after: int | None = None) -> Answer:
        return fcm_error({429: "QUOTA_EXCEEDED", 503: "UNAVAILABLE"}[status], retry_after=retry_after)

    def kill(self, token: bytes) -> None:
        self.mock.unregister(token.decode())

    def revive(self, token: bytes) -> None:
        self.mock.reregister(token.decode())


class WebPushSide(Side):
    name, provider = "Web Push", ntf.Provider.WEB_PUSH

    def __init__(self, clock: Clock, _key: RSAPrivateKey, **options: Any) -> None:
        self.mock: MockWebPush = MockWebPush(clock=clock, **options)
        self.subscriptions: dict[bytes, Subscription] = {}

    def settings(self, directory: Path) -> dict[str, Any]:
        (directory / "vapid.key").write_bytes(key_pem(generate_key()))
        return {
            "web_push__key_file": "vapid.key",
            "web_push__contact": "mailto:push@relay.example",
            "web_push__ca_file": self.mock.ca_file,
            "web_push__allow_hosts": "localhost",
        }

    def new_token(self, host: str = "localhost") -> bytes:
        s = self.mock.subscribe()
        fields = (host.encode(), str(self.mock.port).encode(), s.path.encode(), s.auth, s.p256dh)
        token = b"".join(map(short, fields))
        self.subscriptions[token] = s
        return token

    def seen(self, token: bytes) -> list[Mapping[str, str]]:
        mine = [m.data for m in self.mock.pushes if m.subscription is self.subscriptions[token]]
        return [msgspec.json.decode(data) for data in mine if data]

    def error(self, status: int, retry_after: int | None = None) -> Answer:
        return Answer(status, None, _retry_after(retry_after))

    def kill(self, token: bytes) -> None:
        self.mock.unsubscribe(self.subscriptions[token])

    def revive(self, token: bytes) -> None:
        self.mock.resubscribe(self.subscriptions[token])


@dataclass(eq=False)
class Device:
    """A device of one provider, with its queues."""

    side: Side
    token: bytes = b""
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    dh_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    token_id: bytes = b""
    secret: bytes = b""
    queues: list[Queue] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token = self.token or self.side.new_token()

    @property
    def device(self) -> ntf.DeviceToken:
        return ntf.DeviceToken(self.side.provider, self.token)

    def opened(self, name: str) -> list[bytes]:
        """What pushes of one kind hold, in order."""
        out = []
        for data in self.side.seen(self.token):
            if name in data:
                nonce, sealed = (base64.urlsafe_b64decode(data[key]) for key in ("nonce", name))
                out.append(crypto.unpad(crypto.unbox(self.secret, nonce, sealed)))
        return out

    def messages(self) -> list[tuple[bytes, bytes]]:
        """(notifier id, message id) of all entries that came, once for each push that holds them."""
        by_id = {q.notifier_id: q for q in self.queues}
        entries = [ntf.Entry.parse(e) for plain in self.opened("message") for e in plain.split(b";")]
        return [(e.notifier_id, by_id[e.notifier_id].open_notification(e.nonce, e.meta).message_id) for e in entries]

    async def register(self, client: Client) -> None:
        new = ntf.TNew(self.device, self.key.public_key(), self.dh_key.public_key())
        answer = await client.request(new, key=self.key)
        assert isinstance(answer, ntf.IdTkn)
        self.token_id, self.secret = answer.token_id, crypto.dh(self.dh_key, answer.dh_key)

    async def replace(self, client: Client, token: bytes) -> None:
        self.token = token
        assert await client.request(ntf.TRpl(self.device), self.token_id, self.key) == ntf.Ok()

    async def verify(self, client: Client, before: int = 0) -> None:
        """With the newest code; `before`: how many came for earlier registrations."""
        await until(lambda: len(self.opened("verification")) > before)
        code = self.opened("verification")[-1]
        assert await client.request(ntf.TVfy(code), self.token_id, self.key) == ntf.Ok()

    async def status(self, client: Client) -> ntf.Tkn:
        answer = await client.request(ntf.TChk(), self.token_id, self.key)
        assert isinstance(answer, ntf.Tkn)
        return answer


class World:
    """The relay, which may be restarted with other settings, and all that is around it."""

    def __init__(
        self, directory: Path, clock: Clock, smp_server: SmpServer, recipient: Recipient, sides: Sequence[Side]
    ) -> None:
        self.directory, self.clock, self.smp, self.recipient = directory, clock, smp_server, recipient
        self.sides = sides
        self.settings: dict[str, Any] = {}
        self.devices: list[Device] = []
        self.relay: Relay
        self.client: Client

    async def start(self, **settings: Any) -> None:
        self.settings |= settings
        loaded = config.load(self.directory, {f"NTF_SERVER__{k.upper()}": str(v) for k, v in self.settings.items()})
        self.relay = await Relay(loaded, clock=self.clock, steady=self.clock).__aenter__()
        address = ServerAddress("ntf", ("localhost",), str(self.relay.port), loaded.credentials.key_hash)
        self.client = await Client.connect(address)

    async def stop(self) -> None:
        await self.client.close()
        await self.relay.__aexit__(None, None, None)

    async def restart(self, **settings: Any) -> None:
        """The settings stay, but for these; all subscriptions are back when it returns."""
        await self.stop()
        wanted = self.smp.nsubs() + sum(len(d.queues) for d in self.devices)
        await self.start(**settings)
        await self.smp.until(lambda: self.smp.nsubs() >= wanted, 20)

    async def device(self, side: Side, queues: int = 1) -> Device:
        """One that is registered, verified and subscribed."""
        device = Device(side)
        self.devices.append(device)
        await device.register(self.client)
        await device.verify(self.client)
        for _ in range(queues):
            queue = await self.recipient.queue()
            new = ntf.SNew(device.token_id, self.smp.address, queue.notifier_id, queue.notifier_key)
            assert isinstance(await self.client.request(new, key=device.key), ntf.IdSub)
            device.queues.append(queue)
        await self.smp.until(lambda: all(self.smp.subscribed(q.notifier_id) for q in device.queues), 20)
        return device

    async def send(self, queue: Queue) -> bytes:
        """A message; its id as its recipient sees it."""
        await queue.send("wake up")
        return (await queue.receive()).message_id

    def unsent(self) -> dict[bytes, bool]:
        """By notifier id, of those that have a notification: whether it is still to be pushed."""
        sql = "SELECT s.notifier_id, n.sent FROM notifications n JOIN subscriptions s ON s.ref = n.subscription"
        connection = sqlite3.connect(self.directory / "ntf-server.db")
        try:
            return {notifier_id: not sent for notifier_id, sent in connection.execute(sql)}
        finally:
            connection.close()

    async def stored(self, *queues: Queue) -> None:
        """Until these queues' notifications are in the store."""
        await until(lambda: {q.notifier_id for q in queues} <= self.unsent().keys())

    async def delivered(self, device: Device, queue: Queue, message_id: bytes) -> None:
        """Until the device has it, and the relay knows that."""
        item = queue.notifier_id, message_id
        await until(lambda: self.unsent().get(queue.notifier_id) is False and item in device.messages())


SIDES: tuple[type[ApnsSide] | type[FcmSide] | type[WebPushSide], ...] = (ApnsSide, FcmSide, WebPushSide)


def _write_files(directory: Path) -> None:
    directory.mkdir()
    identity_files.create_identity(directory, "ED25519", "localhost")
    identity_files.write_file(directory / identity_files.MASTER_KEY, generate_key_text().encode())
    (directory / config.CONFIG_FILE).touch()


@asynccontextmanager
async def open_world(
    directory: Path,
    key: RSAPrivateKey,
    sides: Sequence[Any] = SIDES,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> AsyncIterator[World]:
    """`options` are the mocks', `more` the relay's settings."""
    _write_files(directory)
    clock = Clock()
    async with SmpServer() as smp_server, await Recipient.connect(smp_server.address) as recipient:
        made = [side(clock, key, **(options or {})) for side in sides]
        world = World(directory, clock, smp_server, recipient, made)
        try:
            for side in made:
                await side.mock.__aenter__()
                world.settings |= side.settings(directory)
            await world.start(
                transport__bind="localhost",
                transport__port=0,
                subscriber__allow_private_hosts="true",
                limits__enabled="false",
                **{"delivery__min_backoff": 0.02, "delivery__max_backoff": 0.1, **more},
            )
            try:
                yield world
            finally:
                await world.stop()
        finally:
            for side in made:
                await side.mock.__aexit__(None, None, None)
