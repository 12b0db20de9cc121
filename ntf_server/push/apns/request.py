"""APNs over HTTP/2 with token authentication (wire.md, section 8; Apple, "Sending notification requests to APNs")."""

import json
import os
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from ntf_server.push import jose
from ntf_server.push.http import OK, Endpoint, HttpEngine, HttpFailure, HttpRequest, HttpResponse, HttpResult
from ntf_server.push.payload import apns_body
from ntf_server.push.provider import Accepted, Dead, OnResult, Permanent, Result, Retry, Scope
from ntf_server.store.records import Push, PushKind, StoredNotification
from smp_bridge.encoding import NONCE_SIZE
from smp_bridge.ntf import InvalidReason

RENEW_AFTER: Final = 40 * 60  # seconds; Apple takes a token's renewal between 20 and 60 minutes

_DEAD: Final = {
    (400, "BadDeviceToken"): InvalidReason.BAD,
    (400, "DeviceTokenNotForTopic"): InvalidReason.TOPIC,
    (410, "ExpiredToken"): InvalidReason.EXPIRED,
    (410, "Unregistered"): InvalidReason.UNREGISTERED,
}
_RENEW: Final = frozenset(["ExpiredProviderToken"])
_RETRIED: Final = frozenset(["IdleTimeout"])
_WHOLE_PROVIDER: Final = frozenset(["TooManyProviderTokenUpdates"])
TTL: Final = {PushKind.VERIFICATION: 600, PushKind.MESSAGES: 24 * 3600, PushKind.CHECK: 3600}
_NO_SEGMENT: Final = frozenset([b"", b".", b".."])  # device tokens that would make another path
_BACKGROUND: Final = ("apns-push-type: background", "apns-priority: 5")
_RANDOM_SIZE: Final = NONCE_SIZE + 16  # of a push: its nonce and its id
_ALERT: Final = ("apns-push-type: alert", "apns-priority: 10")


class KeyFileError(ValueError):
    """The APNs key file is not an unencrypted P-256 private key in PEM."""


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The `.p8` file that Apple gives out. Raises KeyFileError."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as e:
        raise KeyFileError("not an unencrypted PEM private key") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError("not a P-256 key")
    return key


def generate_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8 PEM, not encrypted: what `load_key` reads."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class ProviderToken:
    """The JWT (ES256, RFC 7515 and 7518) that all requests share; renewed when it is 40 minutes old."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, key_id: str, team_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._header = {"kid": key_id}
        self._team_id = team_id
        self._clock = clock
        self._issued_at = 0.0
        self._token = ""

    def __repr__(self) -> str:
        return "ProviderToken()"

    def get(self) -> str:
        """The current token."""
        now = self._clock()
        if not self._token or not 0 <= now - self._issued_at < RENEW_AFTER:
            self._issued_at = now
            self._token = jose.sign(self._key, self._header, {"iss": self._team_id, "iat": int(now)})
        return self._token

    def use(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Sign with another key from now on."""
        self._key = key
        self._token = ""

    def expire(self, token: str) -> None:
        """The provider says that `token` is too old: the next `get` signs a new one."""
        if token == self._token:
            self._token = ""


class Apns:
    """One APNs host. Implements `PushProvider`.

    `token` None: the endpoint's client certificate authenticates. `ttl`: seconds that Apple keeps a push of each kind.
    """

    def __init__(
        self,
        engine: HttpEngine,
        endpoint: Endpoint,
        token: ProviderToken | None,
        topic: str,
        ttl: Mapping[PushKind, int] = TTL,
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._token = token
        self._topic = f"apns-topic: {topic}"
        self._ttl = ttl

    def send(self, pushes: Sequence[Push], on_result: OnResult) -> None:
        """See `PushProvider`."""
        jwt = self._token.get() if self._token else ""
        requests = []
        random = os.urandom(_RANDOM_SIZE * len(pushes))  # at once: each call is a turn at Python's lock
        for i, push in enumerate(pushes):
            if push.device.token in _NO_SEGMENT:
                on_result(push, Dead(InvalidReason.BAD))
                continue
            try:
                request, held = self._request(push, jwt, random[i * _RANDOM_SIZE : (i + 1) * _RANDOM_SIZE])
            except ValueError as e:
                on_result(push, Permanent(str(e)))
                continue
            requests.append((request, partial(self._done, push, held, jwt, on_result)))
        self._engine.send(requests)

    def _request(self, push: Push, jwt: str, random: bytes) -> tuple[HttpRequest, tuple[StoredNotification, ...]]:
        body, held = apns_body(push, random[:NONCE_SIZE])
        token = push.device.token
        device_token = token.decode() if token.isalnum() else urllib.parse.quote(token, safe="")
        headers = [
            self._topic,
            f"apns-id: {_uuid(random[NONCE_SIZE:])}",
            f"apns-expiration: {push.since + self._ttl[push.kind]}",
            "content-type: application/json",
        ]
        if jwt:
            headers.append(f"authorization: bearer {jwt}")
        if push.kind is PushKind.MESSAGES:
            headers += _ALERT
        else:  # what waits on the device's way may be replaced: never messages
            headers += [*_BACKGROUND, f"apns-collapse-id: {push.kind.name.lower()}"]
        return HttpRequest(self._endpoint, f"/3/device/{device_token}", headers, body), held

    def _done(
        self,
        push: Push,
        held: tuple[StoredNotification, ...],
        jwt: str,
        on_result: OnResult,
        answer: HttpResult,
    ) -> None:
        if answer is OK:
            on_result(push, Accepted(held))
            return
        result = judge(answer, push.registered_at)
        if isinstance(result, Accepted):
            result = Accepted(held)
        elif self._token and isinstance(answer, HttpResponse) and _error(answer)[0] in _RENEW:
            self._token.expire(jwt)
        on_result(push, result)


def _uuid(random: bytes) -> str:
    """Version 4 (RFC 9562, section 5.4), of 16 bytes; `uuid` takes four times as long."""
    h = random.hex()
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:]}"


def _error(response: HttpResponse) -> tuple[str, float | None]:
    """(Apple's reason; of a 410, since when the token is invalid, Unix seconds)."""
    try:
        body = json.loads(response.body)
        reason, timestamp = body["reason"], body.get("timestamp")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", None
    known = isinstance(reason, str) and reason.isalnum() and len(reason) < 64
    dated = isinstance(timestamp, int | float) and not isinstance(timestamp, bool) and 0 <= timestamp < 2**63
    return (reason if known else ""), timestamp / 1000 if dated else None


def judge(answer: HttpResult, registered_at: float = 0.0) -> Result:
    """What an answer of APNs means (Apple, "Handling notification responses from APNs").

    `registered_at`: when the device registered the token; one that Apple gave up before that is alive again.
    """
    if isinstance(answer, HttpFailure):
        return Retry(str(answer), Scope.PROVIDER if answer.unreachable else Scope.TOKEN)
    status = answer.status
    if status == 200:
        return Accepted()
    reason, since = _error(answer)
    what = f"{status} {reason}".rstrip()
    dead = _DEAD.get((status, reason))
    if dead is not None and (since is None or since >= registered_at):
        return Dead(dead)
    if reason in _WHOLE_PROVIDER:
        return Retry(what, Scope.PROVIDER, answer.retry_after)
    if reason in _RENEW or reason in _RETRIED or status in {410, 429} or status >= 500:
        return Retry(what, Scope.TOKEN, answer.retry_after)
    return Permanent(what)
