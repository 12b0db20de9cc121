"""What a device token of Web Push is: a push service's endpoint and the keys to encrypt for it (wire.md, section 8)."""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError, Reader, short, un_b64url

# What else an address may hold would lead an URL to another host than the one that was checked: ? and %2e, say.
_HOST: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_PATH: Final = frozenset(b"!$%&'()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~")


@dataclass(frozen=True, slots=True)
class WebPushSubscription:
    """Where to push and how to encrypt.

    `key`: the user agent's P-256 key (65 bytes); `point`: the same, parsed; `auth`: its secret (16 bytes).
    """

    origin: str
    host: str
    path: str = field(repr=False)
    auth: bytes = field(repr=False)
    key: bytes = field(repr=False)
    point: ec.EllipticCurvePublicKey = field(repr=False)

    @classmethod
    def parse(cls, token: bytes) -> "WebPushSubscription":
        """From a device token of provider WP (wire.md, section 8). Raises ParseError."""
        r = Reader(token)
        host_bytes, port_bytes, path, auth, key = (r.short() for _ in range(5))
        r.end()
        try:
            host, port = parse_host(host_bytes.decode("ascii")).lower(), port_bytes.decode("ascii") or "443"
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
        except ValueError as e:  # ParseError and UnicodeDecodeError are ValueErrors
            raise ParseError("bad Web Push subscription") from e
        if not (port.isdigit() and 0 < int(port) < 65536) or len(auth) != 16:
            raise ParseError("bad Web Push subscription")
        if not (":" in host or _HOST.fullmatch(host)) or not set(path) <= _PATH:
            raise ParseError("bad Web Push subscription")
        authority = f"[{host}]" if ":" in host else host
        origin = f"https://{authority}" + ("" if int(port) == 443 else f":{int(port)}")
        return cls(origin, host, "/" + path.decode("ascii").removeprefix("/"), auth, key, point)


def subscription_token(text: str) -> bytes:
    """A device token of what `PushSubscription.toJSON()` gives, or of `webpush ENDPOINT AUTH P256DH`, both keys in
    base64url. Raises ParseError, which shows no part of it.
    """
    words = text.split()
    try:
        if words[:1] == ["webpush"]:
            _, location, auth, key = words
        else:
            given = msgspec.json.decode(text, type=_Subscription)
            location, auth, key = given.endpoint, given.keys.auth, given.keys.p256dh
        parts, secret, point = urlsplit(location), un_b64url(auth), un_b64url(key)
        port = parts.port
    except (ValueError, RecursionError):
        raise ParseError(
            "neither the JSON of a push subscription (endpoint, keys.p256dh, keys.auth)"
            " nor its text form, webpush ENDPOINT AUTH P256DH"
        ) from None
    if parts.scheme != "https" or parts.username is not None or not parts.hostname or not location.isascii():
        raise ParseError("the endpoint of a push subscription is an https URL in ASCII")
    if parts.fragment:
        raise ParseError("the endpoint of a push subscription has no fragment")
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    fields = (parts.hostname.encode(), str(port if port and port != 443 else "").encode(), path.encode(), secret, point)
    try:
        token = b"".join(map(short, fields))
    except ValueError:
        raise ParseError("the endpoint of a push subscription has 255 bytes at most") from None
    WebPushSubscription.parse(token)
    return token


class _Keys(msgspec.Struct):
    p256dh: str
    auth: str


class _Subscription(msgspec.Struct):
    endpoint: str
    keys: _Keys
