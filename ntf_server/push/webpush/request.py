"""Web Push (RFC 8030), its encryption (RFC 8291, aes128gcm of RFC 8188) and VAPID (RFC 8292).

UnifiedPush distributors and browsers. Endpoints are chosen by strangers: see `Endpoint.public_only`.
"""

import json
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ntf_server.push import jose
from ntf_server.push.http import Endpoint, HttpEngine, HttpFailure, HttpRequest, HttpResult
from ntf_server.push.payload import notification_data
from ntf_server.push.provider import Accepted, Dead, OnResult, Permanent, Result, Retry
from ntf_server.store.records import Push, PushKind, StoredNotification
from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError, Reader
from smp_bridge.ntf import InvalidReason

LIMIT: Final = 4096  # bytes of an encrypted body that every push service takes (RFC 8291, section 4)
_RECORD_SIZE: Final = 4096
_VAPID_LIFETIME: Final = 12 * 3600  # seconds; RFC 8292 allows 24 h
_MAX_ORIGINS: Final = 1000
_MAX_TTL: Final = 28 * 24 * 3600  # seconds; push services shorten more, or refuse it
# What else an address may hold would lead an URL to another host than the one that was checked: ? and %2e, say.
_HOST: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_PATH: Final = frozenset(b"!$%&'()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~")


@dataclass(frozen=True, slots=True)
class WebPushSubscription:
    """Where to push and how to encrypt: `key` is the user agent's P-256 key (65 bytes), `auth` its secret (16)."""

    origin: str
    host: str
    path: str = field(repr=False)
    auth: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @classmethod
    def parse(cls, token: bytes) -> "WebPushSubscription":
        """From a device token of provider WP (wire.md, section 8). Raises ParseError."""
        r = Reader(token)
        host_bytes, port_bytes, path, auth, key = (r.short() for _ in range(5))
        r.end()
        try:
            host, port = parse_host(host_bytes.decode("ascii")).lower(), port_bytes.decode("ascii") or "443"
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
        except ValueError as e:  # ParseError and UnicodeDecodeError are ValueErrors
            raise ParseError("bad Web Push subscription") from e
        if not (port.isdigit() and 0 < int(port) < 65536) or len(auth) != 16:
            raise ParseError("bad Web Push subscription")
        if not (":" in host or _HOST.fullmatch(host)) or not set(path) <= _PATH:
            raise ParseError("bad Web Push subscription")
        authority = f"[{host}]" if ":" in host else host
        origin = f"https://{authority}" + ("" if int(port) == 443 else f":{int(port)}")
        return cls(origin, host, "/" + path.decode("ascii").removeprefix("/"), auth, key)


def encrypt(
    plain: bytes,
    subscription: WebPushSubscription,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    salt: bytes | None = None,
) -> bytes:
    """One aes128gcm record (RFC 8291, section 3.4); `key` and `salt` are fresh unless a test vector gives them."""
    private = key or ec.generate_private_key(ec.SECP256R1())
    salt = salt or os.urandom(16)
    public = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), subscription.key)
    shared = private.exchange(ec.ECDH(), peer)
    info = b"WebPush: info\0" + subscription.key + public
    ikm = _hkdf(subscription.auth, shared, info, 32)
    content_key = _hkdf(salt, ikm, b"Content-Encoding: aes128gcm\0", 16)
    nonce = _hkdf(salt, ikm, b"Content-Encoding: nonce\0", 12)
    header = salt + _RECORD_SIZE.to_bytes(4, "big") + bytes([len(public)]) + public
    return header + AESGCM(content_key).encrypt(nonce, plain + b"\2", None)


def _hkdf(salt: bytes, ikm: bytes, info: bytes, size: int) -> bytes:
    return HKDF(hashes.SHA256(), size, salt, info).derive(ikm)


class Vapid:
    """The server's identity towards push services; `contact` is a mailto: or https: URL."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, contact: str, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._contact = contact
        self._clock = clock
        self._tokens: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def __repr__(self) -> str:
        return "Vapid()"

    @property
    def public_key(self) -> str:
        """The application server key that apps subscribe with: base64url of the uncompressed point."""
        return jose.b64(self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))

    def authorization(self, origin: str) -> str:
        """Value of the header `authorization` (RFC 8292, section 3)."""
        now = self._clock()
        expires, token = self._tokens.get(origin, (0.0, ""))
        if not _VAPID_LIFETIME / 2 <= expires - now <= _VAPID_LIFETIME:  # or the clock was set back
            expires = now + _VAPID_LIFETIME
            token = jose.sign(self._key, {"typ": "JWT"}, {"aud": origin, "exp": int(expires), "sub": self._contact})
            self._tokens[origin] = expires, token
            if len(self._tokens) > _MAX_ORIGINS:
                self._tokens.popitem(last=False)
        return f"vapid t={token}, k={self.public_key}"


class WebPush:
    """All Web Push services. Implements `PushProvider`."""

    def __init__(
        self,
        engine: HttpEngine,
        endpoint: Callable[[str], Endpoint],
        vapid: Vapid,
        *,
        ttl: Mapping[PushKind, int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._vapid = vapid
        self._ttl = ttl
        self._clock = clock

    def send(self, pushes: Sequence[Push], on_result: OnResult) -> None:
        """See `PushProvider`."""
        requests = []
        for push in pushes:
            try:
                request, held = self._request(push)
            except ParseError:
                on_result(push, Dead(InvalidReason.BAD))
                continue
            except ValueError as e:
                on_result(push, Permanent(str(e)))
                continue
            requests.append((request, partial(self._done, push, held, on_result)))
        self._engine.send(requests)

    def _request(self, push: Push) -> tuple[HttpRequest, tuple[StoredNotification, ...]]:
        subscription = WebPushSubscription.parse(push.device.token)
        data, held = notification_data(push)
        left = min(max(0, push.since + self._ttl[push.kind] - int(self._clock())), _MAX_TTL)
        headers = [
            f"authorization: {self._vapid.authorization(subscription.origin)}",
            "content-encoding: aes128gcm",
            "content-type: application/octet-stream",
            f"ttl: {left}",
            f"urgency: {'low' if push.kind is PushKind.CHECK else 'high'}",
        ]
        if push.kind is not PushKind.MESSAGES:  # a topic replaces what waits under it: never messages
            headers.append(f"topic: {push.kind.name.lower()}")
        body = encrypt(json.dumps(data).encode(), subscription)
        request = HttpRequest(self._endpoint(subscription.origin), subscription.path, tuple(headers), body)
        return request, held

    def _done(self, push: Push, held: tuple[StoredNotification, ...], on_result: OnResult, answer: HttpResult) -> None:
        result = judge(answer)
        on_result(push, Accepted(held) if isinstance(result, Accepted) else result)


def judge(answer: HttpResult) -> Result:
    """What an answer of a push service means (RFC 8030, sections 5 and 8.4). Redirects are not followed."""
    if isinstance(answer, HttpFailure):
        return Retry(str(answer))  # another endpoint is another service: never the whole provider's fault
    what = str(answer.status)
    if answer.status in {200, 201, 202, 204}:
        return Accepted()
    if answer.status in {404, 410}:
        return Dead(InvalidReason.UNREGISTERED)
    if answer.status == 429 or answer.status >= 500:
        return Retry(what, after=answer.retry_after)
    return Permanent(what)
