"""What reaches the device, opened (wire.md, section 8). No I/O."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import NONCE_SIZE, ParseError, un_b64url
from smp_bridge.messages import MessageMeta

_VERIFICATION: Final = "verification"
_MESSAGE: Final = "message"
_CHECK: Final = "checkMessages"


class PushError(Exception):
    """The payload is not a push of this protocol, is damaged, or was sealed for another registration or queue."""


@dataclass(frozen=True, slots=True)
class VerificationCode:
    """The code that proves, by TVFY, that the device token is held."""

    code: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CheckMessages:
    """The periodic push: look whether there are messages."""


@dataclass(frozen=True, slots=True)
class NotificationInfo:
    """A message arrived in a queue, and what it is only the queue's recipient can tell.

    `server`: text of the SMP server's address; `received_at`: Unix seconds, when the notification server heard of it;
    `nonce` (24 bytes) and `sealed`: the metadata, see `open`.
    """

    server: str
    notifier_id: bytes = field(repr=False)
    received_at: int
    nonce: bytes = field(repr=False)
    sealed: bytes = field(repr=False)

    def open(self, queue_secret: bytes) -> MessageMeta:
        """The message's id and time; `queue_secret`: DH secret of the queue's notification keys, 32 bytes.

        Raises PushError if it is another queue's.
        """
        try:
            return MessageMeta.open(queue_secret, self.nonce, self.sealed)
        except (crypto.CryptoError, ParseError) as e:
            raise PushError("the queue's secret does not open this notification") from e

    @property
    def key_hash(self) -> bytes | None:
        """The SMP server's identity; None if `server` is not an address that this version can read."""
        try:
            return ServerAddress.from_text(self.server).key_hash
        except ParseError:
            return None


@dataclass(frozen=True, slots=True)
class Notifications:
    """Messages arrived: at least one, oldest first, one per queue; earlier ones may have been in other pushes."""

    infos: list[NotificationInfo]


PushContent = VerificationCode | CheckMessages | Notifications


def open_push(payload: bytes | str | Mapping[str, Any], secret: bytes) -> PushContent:
    """Open a push: the body of APNs, its `notificationData` alone, the data of FCM, or what Web Push decrypts to.

    `secret`: the registration's DH secret (32 bytes). Raises PushError, and nothing else.
    """
    data = _notification_data(payload)
    kinds = [kind for kind in (_VERIFICATION, _MESSAGE, _CHECK) if kind in data]
    if len(kinds) != 1:
        raise PushError("the payload is not one of verification, message, checkMessages")
    [kind] = kinds
    if kind == _CHECK:
        if data[kind] is not True and data[kind] != "true":
            raise PushError("checkMessages is not true")
        return CheckMessages()
    try:
        plain = crypto.unpad(crypto.unbox(secret, _decoded(data, "nonce"), _decoded(data, kind)))
        return _verification(plain) if kind == _VERIFICATION else _notifications(plain)
    except crypto.CryptoError as e:
        raise PushError("the push does not open: it is damaged, or sealed for another registration") from e
    except ParseError as e:
        raise PushError(f"the push is malformed: {e}") from e


def _json(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise PushError("the payload is not JSON") from e


def _notification_data(payload: bytes | str | Mapping[str, Any]) -> Mapping[str, Any]:
    body = payload if isinstance(payload, Mapping) else _json(payload)
    data = body.get("notificationData", body) if isinstance(body, Mapping) else None
    if isinstance(data, str):  # FCM carries no nested objects, only text
        data = _json(data)
    if not isinstance(data, Mapping):
        raise PushError("the payload has no notificationData object")
    return data


def _decoded(data: Mapping[str, Any], name: str) -> bytes:
    value = data.get(name)
    if not isinstance(value, str):
        raise PushError(f"{name} is missing, or not a text")
    try:
        return un_b64url(value)
    except ParseError as e:
        raise PushError(f"{name} is not base64url") from e


def _verification(plain: bytes) -> VerificationCode:
    if not 0 < len(plain) <= 255:
        raise ParseError("bad code")
    return VerificationCode(plain)


def _notifications(plain: bytes) -> Notifications:
    entries = [ntf.Entry.parse(entry) for entry in plain.split(b";")]
    if any(len(e.nonce) != NONCE_SIZE for e in entries):
        raise ParseError("bad nonce")
    return Notifications([NotificationInfo(e.server, e.notifier_id, e.timestamp, e.nonce, e.meta) for e in entries])
