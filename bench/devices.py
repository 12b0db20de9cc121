"""Devices that register, verify and subscribe by the protocol, all at once, with the mock APNs of `apns_load`."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from control import Child
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from ntf_load import Command, Connection, Run, run
from smp_load import notifier_id

from ntf_client.push import VerificationCode, open_push
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress

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
    """A device; `token_id`, `secret` and `code` as soon as they are known."""

    token: bytes = field(repr=False)
    key: crypto.AuthPrivateKey = field(repr=False)
    dh_key: X25519PrivateKey = field(repr=False)
    token_id: bytes = field(default=b"", repr=False)
    secret: bytes = field(default=b"", repr=False)
    code: bytes = field(default=b"", repr=False)


def new_devices(count: int, kind: KeyKind) -> list[Device]:
    """Devices that nobody knows, with tokens as long as Apple's."""
    generate = _GENERATE[kind]
    return [Device(os.urandom(32).hex().encode(), generate(), X25519PrivateKey.generate()) for _ in range(count)]


async def register(
    connections: Sequence[Connection], devices: Sequence[Device], mock: Child, *, window: int, timeout: float = 60.0
) -> tuple[Run, float]:
    """TNEW for all; the run, and the seconds until the code of the last device was pushed too. Raises TimeoutError."""
    version = connections[0][1].version
    await mock.call("reset")
    await mock.call("keep", on=True)
    tokens = [ntf.DeviceToken(ntf.Provider.APNS_TEST, d.token) for d in devices]
    commands = [
        Command(ntf.TNew(token, d.key.public_key(), d.dh_key.public_key()).encode(version), b"", d.key)
        for token, d in zip(tokens, devices, strict=True)
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
        by_path[PATH + d.token.decode()] = d
    await mock.call("keep", on=False)
    while bodies := await mock.call("bodies", limit=_PAGE):
        for path, body in bodies:
            if (device := by_path.get(path)) is not None:
                content = open_push(body, device.secret)
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
    server: ServerAddress,
    queues: Sequence[int],
    *,
    window: int,
) -> tuple[Run, list[bytes]]:
    """SNEW of these queues of `smp_load`, queue i for device i modulo their number; the subscriptions' ids too."""
    version = connections[0][1].version
    commands = []
    for i in queues:
        d = devices[i % len(devices)]
        new = ntf.SNew(d.token_id, server, notifier_id(i), Ed25519PrivateKey.generate())
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
