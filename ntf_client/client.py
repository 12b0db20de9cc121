"""The commands of a notification server, one coroutine each (wire.md, section 6)."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import REQUEST_TIMEOUT, Client, UnexpectedAnswerError
from smp_bridge.handshake import Versions
from smp_bridge.transmission import CORR_ID_SIZE, Message, encode_blocks, encode_transmission

A = TypeVar("A", bound=Message)


@dataclass(frozen=True, slots=True)
class Registration:
    """What TNEW gives: the token's id (24 bytes), and the DH secret (32 bytes) that opens its pushes."""

    token_id: bytes = field(repr=False)
    secret: bytes = field(repr=False)


class TokenCheck(NamedTuple):
    """What TCHK gives; `reason` only goes with INVALID, from NTF 3."""

    status: ntf.TokenStatus
    reason: ntf.InvalidReason | None


class SubscriptionCheck(NamedTuple):
    """What SCHK gives; `error` is a text that only goes with ERR."""

    status: ntf.SubscriptionStatus
    error: str


class NtfClient:
    """A connection to a notification server: `async with NtfClient.connect(address) as client`.

    `key` is always the token's verify key, the private half. Every command raises ServerError (the server said no),
    UnexpectedAnswerError, ConnectionClosedError or TimeoutError, and ValueError if it is too large for a block.
    """

    def __init__(self, client: Client, *, timeout: float = REQUEST_TIMEOUT) -> None:
        self._client = client
        self._timeout = timeout

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        address: ServerAddress,
        *,
        context: ssl.SSLContext | None = None,
        versions: Versions | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> AsyncIterator[Self]:
        """Connect; `timeout` in seconds holds for connecting, and for each answer.

        Raises OSError (no host answers), TimeoutError, HandshakeError; IdentityMismatchError when the server is not
        the address's; ValueError if the address is not an `ntf://` one.
        """
        if address.scheme != "ntf":
            raise ValueError("not the address of a notification server")
        async with asyncio.timeout(timeout):
            connection = await Client.connect(address, context=context, versions=versions)
        async with connection:
            yield cls(connection, timeout=timeout)

    @property
    def version(self) -> int:
        """The agreed version of the NTF protocol."""
        return self._client.session.version

    async def register(
        self, token: ntf.DeviceToken, key: crypto.AuthPrivateKey, dh_key: X25519PrivateKey
    ) -> Registration:
        """TNEW: register a device token; the server pushes a code to it. Repeated, it gives the same."""
        answer = await self._request(ntf.IdTkn, ntf.TNew(token, key.public_key(), dh_key.public_key()), key=key)
        try:
            return Registration(answer.token_id, crypto.dh(dh_key, answer.dh_key))
        except crypto.CryptoError as e:
            raise UnexpectedAnswerError("the server's key is bad") from e

    async def verify(self, token_id: bytes, key: crypto.AuthPrivateKey, code: bytes) -> None:
        """TVFY: prove that the token is held, by the code that was pushed (1 to 255 bytes)."""
        await self._request(ntf.Ok, ntf.TVfy(code), token_id, key)

    async def check(self, token_id: bytes, key: crypto.AuthPrivateKey) -> TokenCheck:
        """TCHK: the token's status."""
        answer = await self._request(ntf.Tkn, ntf.TChk(), token_id, key)
        return TokenCheck(answer.status, answer.reason)

    async def replace(self, token_id: bytes, key: crypto.AuthPrivateKey, token: ntf.DeviceToken) -> None:
        """TRPL: replace the device token; the server pushes a code to the new one."""
        await self._request(ntf.Ok, ntf.TRpl(token), token_id, key)

    async def delete(self, token_id: bytes, key: crypto.AuthPrivateKey) -> None:
        """TDEL: delete the token with its subscriptions."""
        await self._request(ntf.Ok, ntf.TDel(), token_id, key)

    async def set_period(self, token_id: bytes, key: crypto.AuthPrivateKey, minutes: int) -> None:
        """TCRN: ask for a push every so many minutes, 20 to 65535; 0 turns them off."""
        if not 0 <= minutes <= 65535:
            raise ValueError("a period is 0 to 65535 minutes")
        await self._request(ntf.Ok, ntf.TCrn(minutes), token_id, key)

    async def subscribe(
        self,
        token_id: bytes,
        key: crypto.AuthPrivateKey,
        server: ServerAddress,
        notifier_id: bytes,
        notifier_key: crypto.AuthPrivateKey,
    ) -> bytes:
        """SNEW: subscribe a queue; gives the subscription's id. Repeated, it gives the same."""
        command = ntf.SNew(token_id, server, notifier_id, notifier_key)
        return (await self._request(ntf.IdSub, command, key=key)).subscription_id

    async def check_subscription(self, subscription_id: bytes, key: crypto.AuthPrivateKey) -> SubscriptionCheck:
        """SCHK: the subscription's status."""
        answer = await self._request(ntf.Sub, ntf.SChk(), subscription_id, key)
        return SubscriptionCheck(answer.status, answer.error)

    async def unsubscribe(self, subscription_id: bytes, key: crypto.AuthPrivateKey) -> None:
        """SDEL: delete the subscription."""
        await self._request(ntf.Ok, ntf.SDel(), subscription_id, key)

    async def ping(self) -> None:
        """PING: whether the server is there."""
        await self._request(ntf.Pong, ntf.Ping())

    def fits(self, command: Message, entity_id: bytes = b"", key: crypto.AuthPrivateKey | None = None) -> bool:
        """Whether a command fits a block of this connection. Nothing is sent."""
        session = self._client.session
        encoded = encode_transmission(session, bytes(CORR_ID_SIZE), entity_id, command.encode(session.version), key)
        try:
            encode_blocks(session, [encoded])
        except ValueError:
            return False
        return True

    async def _request(
        self, kind: type[A], command: Message, entity_id: bytes = b"", key: crypto.AuthPrivateKey | None = None
    ) -> A:
        answer = await self._client.request(command, entity_id, key, timeout=self._timeout)
        if not isinstance(answer, kind):
            raise UnexpectedAnswerError(f"{command.tag.decode()} was answered with {answer.tag.decode()}")
        return answer
