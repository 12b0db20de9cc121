"""Devices that register, verify and subscribe by the protocol, all at once, with the mock APNs of `apns_load`."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from control import Child
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from ntf_load import Command, Connection, Run, run
from smp_load import notifier_id

from ntf_client.push import PushContent, VerificationCode, open_push
from ntf_client.webpush import subscription_token
from ntf_server.testing.ece import decrypt, public_point
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import b64url

KeyKind = Literal["ed25519", "ed448", "x25519"]

PATH: Final = "/3/device/"
_GENERATE: Final[dict[KeyKind, Callable[[], crypto.AuthPrivateKey]]] = {
    "ed25519": Ed25519PrivateKey.generate,
    "ed448": Ed448PrivateKey.generate,
    "x25519": X25519PrivateKey.generate,
}
_PAGE: Final = 1000
_POLL: Final = 0.02


@dataclass(slots=True)
class Device:
    """A device, and the `:path` of its pushes; `token_id`, `secret` and `code` as soon as they are known.

    `browser`: how what comes by Web Push is opened first: a key and the secret of 16 bytes.
    """

    token: ntf.DeviceToken = field(repr=False)
    path: str = field(repr=False)
    key: crypto.AuthPrivateKey = field(repr=False)
    dh_key: X25519PrivateKey = field(repr=False)
    token_id: bytes = field(default=b"", repr=False)
    secret: bytes = field(default=b"", repr=False)
    code: bytes = field(default=b"", repr=False)
    browser: tuple[ec.EllipticCurvePrivateKey, bytes] | None = field(default=None, repr=False)

    def content(self, body: str) -> PushContent:
        """Of a push whose body the mock kept (a byte is a character)."""
        data = body.encode("latin-1")
        return open_push(decrypt(data, *self.browser) if self.browser else data, self.secret)


def new_devices(count: int, kind: KeyKind) -> list[Device]:
    """Devices that nobody knows, with tokens as long as Apple's."""
    generate = _GENERATE[kind]

    def new() -> Device:
        token = os.urandom(32).hex()
        device = ntf.DeviceToken(ntf.Provider.APNS_TEST, token.encode())
        return Device(device, PATH + token, generate(), X25519PrivateKey.generate())

    return [new() for _ in range(count)]


def new_browsers(count: int, origin: str) -> list[Device]:
    """Devices with subscriptions of one push service, `https://host:port`."""

    def new() -> Device:
        key, auth, path = ec.generate_private_key(ec.SECP256R1()), os.urandom(16), f"/push/{os.urandom(32).hex()}"
        keys = {"p256dh": b64url(public_point(key.public_key())), "auth": b64url(auth)}
        device = subscription_token({"endpoint": origin + path, "keys": keys})
        return Device(device, path, Ed25519PrivateKey.generate(), X25519PrivateKey.generate(), browser=(key, auth))

    return [new() for _ in range(count)]


async def register(
    connections: Sequence[Connection], devices: Sequence[Device], mock: Child, *, window: int, timeout: float = 60.0
) -> tuple[Run, float]:
    """TNEW for all; the run, and the seconds until the code of the last device was pushed too. Raises TimeoutError."""
    version = connections[0][1].version
    await mock.call("reset")
    await mock.call("keep", on=True)
    commands = [
        Command(ntf.TNew(d.token, d.key.public_key(), d.dh_key.public_key()).encode(version), b"", d.key)
        for d in devices
    ]
    out = await run(connections, commands, window=window)
    out.check(b"IDTKN")
    stats = await until_accepted(mock, len(devices), timeout)
    await _open(mock, devices, out.answers, version)
    return out, max(out.ended, stats["last_at"] / 1e9) - out.started


async def until_accepted(mock: Child, count: int, timeout: float) -> dict[str, Any]:
    """The mock's figures as soon as it has taken so many pushes. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    while True:
        stats: dict[str, Any] = await mock.call("stats")
        if stats["accepted"] >= count:
            return stats
        if time.monotonic() > deadline:
            raise TimeoutError(f"{stats['accepted']} of {count} pushes came")
        await asyncio.sleep(_POLL)


async def until_subscribed(load: Child, count: int, timeout: float) -> None:
    """Wait until so many queues of `smp_load` are subscribed. Raises TimeoutError."""
    async with asyncio.timeout(timeout):
        while True:
            if (await load.call("stats"))["subscribed"] >= count:
                return
            await asyncio.sleep(_POLL)


async def _open(mock: Child, devices: Iterable[Device], answers: Sequence[bytes], version: int) -> None:
    """Take ids and secrets from the answers, and codes from the pushes."""
    by_path: dict[str, Device] = {}
    for d, answer in zip(devices, answers, strict=True):
        registered = ntf.parse_answer(answer, version)
        assert isinstance(registered, ntf.IdTkn)
        d.token_id, d.secret = registered.token_id, crypto.dh(d.dh_key, registered.dh_key)
        by_path[d.path] = d
    await mock.call("keep", on=False)
    while bodies := await mock.call("bodies", limit=_PAGE):
        for path, body in bodies:
            if (device := by_path.get(path)) is not None:
                content = device.content(body)
                assert isinstance(content, VerificationCode)
                device.code = content.code


async def verify(connections: Sequence[Connection], devices: Sequence[Device], *, window: int) -> Run:
    """TVFY for all."""
    version = connections[0][1].version
    commands = [Command(ntf.TVfy(d.code).encode(version), d.token_id, d.key) for d in devices]
    out = await run(connections, commands, window=window)
    out.check(b"OK")
    return out


async def subscribe(
    connections: Sequence[Connection],
    devices: Sequence[Device],
    servers: Sequence[ServerAddress],
    queues: Sequence[int],
    *,
    window: int,
) -> tuple[Run, list[bytes]]:
    """SNEW of these queues of `smp_load`; the subscriptions' ids too.

    Queue i is of device i modulo their number, and on server i modulo theirs.
    """
    version = connections[0][1].version
    commands = []
    for i in queues:
        d = devices[i % len(devices)]
        new = ntf.SNew(d.token_id, servers[i % len(servers)], notifier_id(i), Ed25519PrivateKey.generate())
        commands.append(Command(new.encode(version), b"", d.key))
    out = await run(connections, commands, window=window)
    out.check(b"IDSUB")
    ids = []
    for answer in out.answers:
        subscribed = ntf.parse_answer(answer, version)
        assert isinstance(subscribed, ntf.IdSub)
        ids.append(subscribed.subscription_id)
    return out, ids


async def check(
    connections: Sequence[Connection], devices: Sequence[Device], ids: Sequence[bytes], *, window: int
) -> Run:
    """SCHK of these subscriptions, which `subscribe` made."""
    version = connections[0][1].version
    schk = ntf.SChk().encode(version)
    commands = [Command(schk, id_, devices[i % len(devices)].key) for i, id_ in enumerate(ids)]
    out = await run(connections, commands, window=window)
    out.check(b"SUB")
    return out


async def ping(connections: Sequence[Connection], count: int, *, window: int, filled: bool) -> Run:
    """PINGs."""
    command = Command(ntf.Ping().encode(connections[0][1].version))
    out = await run(connections, [command] * count, window=window, filled=filled)
    out.check(b"PONG")
    return out
