"""Phones: what they are registered with, what reached them, and what they make of it."""

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import pybase64
from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.testing import ece
from sim.smp import SimQueue
from smp_bridge import crypto
from smp_bridge.encoding import short
from smp_bridge.ntf import DeviceToken, Entry, Provider

SILENT: Final = "https://silent.example"  # a push service that a stranger made up: it takes connections, no more


@functools.cache
def web_key(number: int) -> ec.EllipticCurvePrivateKey:
    """A device's key for Web Push."""
    return ec.derive_private_key(1000 + number, ec.SECP256R1())


@dataclass(eq=False)
class Address:
    """Where a push service finds a device: its token there. A device gets a new one now and then (TRPL)."""

    device: "Device"
    provider: Provider
    name: bytes  # what is in the request: a hex token, an FCM token, the path of an endpoint
    token: DeviceToken
    origin: str = ""
    registered_at: float = 0.0
    gone_at: float | None = None  # the app was removed
    failing_until: float = 0.0  # the service answers 500 for this one alone
    replaced: bool = False  # TRPL was answered: nothing is to go there any more
    delivered: bool = False


@dataclass(eq=False)
class Device:
    """A phone with one registration; `known` are its queues, by notifier id."""

    number: int
    secret: bytes  # DH secret of its registration: 32 bytes
    web_key: ec.EllipticCurvePrivateKey
    web_auth: bytes
    address: Address = field(init=False)
    addresses: list[Address] = field(default_factory=list)
    token_id: bytes = b""
    ref: Any = None  # of its registration, in the store
    code: bytes = b""
    verified: bool = False
    deleted: bool = False
    damaged: bool = False
    period: int = 0
    replaced_at: float = 0.0  # when its last TRPL was answered
    pushed_at: float = 0.0  # when it was last pushed to
    checked_at: float = -math.inf  # the same of pushes that have it look for messages
    queues: dict[bytes, SimQueue] = field(default_factory=dict)
    on_code: Callable[[bytes], None] = lambda _: None
    on_entry: Callable[[SimQueue, int], None] = lambda _queue, _number: None

    def __str__(self) -> str:
        return f"device{self.number}"

    def take_sealed(self, body: bytes) -> str:
        """An encrypted Web Push body."""
        return self.take(json.loads(ece.decrypt(body, self.web_key, self.web_auth)))

    def take(self, data: Mapping[str, Any]) -> str:
        """`notificationData` of a push: what kind it was. Raises ValueError for what no app could read."""
        if data.get("checkMessages") in {True, "true"}:
            return "check"
        nonce = pybase64.urlsafe_b64decode(data["nonce"])
        for kind in ("verification", "message"):
            if kind in data:
                plain = crypto.unpad(crypto.unbox(self.secret, nonce, pybase64.urlsafe_b64decode(data[kind])))
                return self._verification(plain) if kind == "verification" else self._messages(plain)
        raise ValueError("a push that says nothing")

    def _verification(self, code: bytes) -> str:
        self.on_code(code)
        return "verification"

    def _messages(self, plain: bytes) -> str:
        entries = [Entry.parse(e) for e in plain.split(b";")]
        for e in entries:
            queue = self.queues.get(e.notifier_id)
            if queue is None:
                raise ValueError("a notification of a queue that this device never had")
            if e.server not in queue.spelled:
                raise ValueError("a queue that no app finds, by a server in another spelling than its own")
            self.on_entry(queue, int.from_bytes(e.meta[:8], "big"))
        return f"{len(entries)} messages"


def new_address(device: Device, provider: Provider, origin: str, rng: Random) -> Address:
    """A new device token."""
    if provider is Provider.WEB_PUSH:
        path = f"push/{rng.randbytes(12).hex()}".encode()
        host, _, port = origin.removeprefix("https://").partition(":")
        point = ece.public_point(device.web_key.public_key())
        raw = b"".join(short(part) for part in (host.encode(), port.encode(), path, device.web_auth, point))
        return Address(device, provider, b"/" + path, DeviceToken(provider, raw), origin)
    name = (b"fcm:" if provider is Provider.FCM else b"") + rng.randbytes(32).hex().encode()
    return Address(device, provider, name, DeviceToken(provider, name))
