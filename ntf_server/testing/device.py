"""A device for tests: registered by NTF commands, woken through a mock APNs."""

from __future__ import annotations

import base64
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ntf_server.testing.apns import MockApns
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, UnexpectedAnswerError
from smp_bridge.testing.recipient import Queue
from smp_bridge.transmission import Message

A = TypeVar("A", bound=Message)


def _expect(kind: type[A], answer: Message) -> A:
    if not isinstance(answer, kind):
        raise UnexpectedAnswerError(f"unexpected answer {type(answer).__name__}")
    return answer


@dataclass(eq=False)
class Device:
    """A device with provider AT, on a connection to its relay; `token` is its push token, hex.

    Commands raise what `Client.request` raises. Pushes are taken in their order: each comes out once.
    """

    client: Client = field(repr=False)
    apns: MockApns = field(repr=False)
    token: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate, repr=False)
    dh_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    token_id: bytes = field(default=b"", repr=False)
    secret: bytes = field(default=b"", repr=False)

    async def register(self) -> None:
        """TNEW; repeated, the code is pushed again."""
        device = ntf.DeviceToken(ntf.Provider.APNS_TEST, self.token.encode())
        new = ntf.TNew(device, self.key.public_key(), self.dh_key.public_key())
        answer = _expect(ntf.IdTkn, await self.client.request(new, key=self.key))
        self.token_id, self.secret = answer.token_id, crypto.dh(self.dh_key, answer.dh_key)

    async def verify(self, timeout: float = 10) -> None:
        """TVFY, with the code of the next push. Raises TimeoutError after so many seconds without one."""
        code = self.open((await self.apns.next(self.token, timeout)).body, "verification")
        await self.command(ntf.TVfy(code))

    async def status(self) -> ntf.TokenStatus:
        """TCHK."""
        return _expect(ntf.Tkn, await self.client.request(ntf.TChk(), self.token_id, self.key)).status

    async def subscribe(self, server: ServerAddress, queue: Queue) -> bytes:
        """SNEW: be notified of a queue on that SMP server; gives the subscription's id."""
        new = ntf.SNew(self.token_id, server, queue.notifier_id, queue.notifier_key)
        return _expect(ntf.IdSub, await self.client.request(new, key=self.key)).subscription_id

    async def unsubscribe(self, subscription_id: bytes) -> None:
        """SDEL."""
        await self.command(ntf.SDel(), subscription_id)

    async def command(self, command: Message, entity_id: bytes | None = None) -> None:
        """Any command that is answered with OK, for the token unless for another entity."""
        _expect(ntf.Ok, await self.client.request(command, entity_id or self.token_id, self.key))

    async def woken(self, timeout: float = 10) -> list[ntf.Entry]:
        """What the next push says: one entry per queue, the newest last; `Queue.open_notification` opens its metadata.

        Raises TimeoutError after so many seconds without a push, ValueError if the push is not of messages.
        """
        plain = self.open((await self.apns.next(self.token, timeout)).body, "message")
        return [ntf.Entry.parse(entry) for entry in plain.split(b";")]

    def open(self, body: Mapping[str, Any], name: str) -> bytes:
        """The plaintext of `verification` or `message` in a push's body. Raises ValueError, CryptoError."""
        data = body["notificationData"]
        if name not in data:
            raise ValueError(f"the push holds no {name}, but {', '.join(sorted(data))}")
        nonce, sealed = (base64.urlsafe_b64decode(data[key]) for key in ("nonce", name))
        return crypto.unpad(crypto.unbox(self.secret, nonce, sealed))


@asynccontextmanager
async def registered_device(relay: ServerAddress, apns: MockApns) -> AsyncIterator[Device]:
    """A device that is registered and verified."""
    async with await Client.connect(relay) as client:
        device = Device(client, apns)
        await device.register()
        await device.verify()
        yield device
