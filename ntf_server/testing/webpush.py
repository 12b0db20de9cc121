"""A mock web push service, and the browsers that subscribe to it.

Sources: RFC 8030 (delivery), RFC 8291 (encryption), RFC 8292 (VAPID), W3C Push API (subscriptions).
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, Unpack
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.testing.apns import Rejection
from ntf_server.testing.ece import decrypt, public_point
from ntf_server.testing.endpoint import Options, Request
from ntf_server.testing.faults import Answer, Fault, Script
from ntf_server.testing.http2 import Http2Server
from ntf_server.testing.inbox import Inbox
from ntf_server.testing.jwt import InvalidJwtError, encode_base64url
from ntf_server.testing.vapid import VapidTokens

Urgency: TypeAlias = Literal["very-low", "low", "normal", "high"]

_URGENCIES: Mapping[str, Urgency] = {"very-low": "very-low", "low": "low", "normal": "normal", "high": "high"}
_SUCCESS = frozenset({200, 201, 202})
_PREFIX = "/push/"
_TTL = re.compile(r"[0-9]{1,18}")
_TOPIC = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MAX_BODY = 4096  # bytes, which every push service takes (RFC 8030 section 7.2)
_MAX_TTL = 2_419_200  # seconds


@dataclass(frozen=True, slots=True, eq=False)
class Subscription:
    """A browser's subscription: `p256dh` is a public key (65 bytes), `auth` a secret of 16 bytes.

    application_server_key: the only key (65 bytes) that may push to it; None for any. Endpoint, secret and
    private key are in no repr.
    """

    endpoint: str = field(repr=False)
    p256dh: bytes
    auth: bytes = field(repr=False)
    application_server_key: bytes | None
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def path(self) -> str:
        """The endpoint's path."""
        return urlsplit(self.endpoint).path

    def to_json(self) -> dict[str, str | dict[str, str]]:
        """Return what a browser's `PushSubscription.toJSON` gives to its application server."""
        keys = {"p256dh": encode_base64url(self.p256dh), "auth": encode_base64url(self.auth)}
        return {"endpoint": self.endpoint, "keys": keys}


@dataclass(frozen=True, slots=True)
class WebPushMessage:
    """An accepted message; `body` is encrypted, `size` its bytes, `ttl` seconds, `received_at` unix seconds.

    `urgency` is normal where the request has none, `vapid_key` the sender's public key. Subscription, headers,
    body and location are in no repr.
    """

    subscription: Subscription = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    size: int
    ttl: int
    urgency: Urgency
    topic: str | None
    vapid_key: bytes | None = field(repr=False)
    location: str = field(repr=False)
    received_at: float
    connection: int

    @property
    def data(self) -> bytes | None:
        """What the browser decrypts, None for a message without a body; raises DecryptionError if it cannot."""
        if not self.body:
            return None
        return decrypt(self.body, self.subscription.private_key, self.subscription.auth)


class _Refused(Exception):  # noqa: N818  (an answer, not a failure)
    """The request is answered with an error."""

    def __init__(self, status: int, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(status, reason)
        self.answer = Answer(status, reason, headers)


class MockWebPush(Http2Server):
    """A mock push service for `async with`, at `origin`, to be trusted by `ca_file`; HTTP/2 and HTTP/1.1.

    require_vapid: refuse messages without VAPID to any subscription, not only to restricted ones.
    max_ttl: seconds that a message is kept at most; answers say so in `ttl`. clock: unix seconds.
    on_push: called with each accepted message. record: keep messages and rejections. Other options: see
    `Options`. Errors have a JSON body `{"reason": ...}`, as Apple's service has; RFC 8030 leaves it open.
    """

    def __init__(
        self,
        *,
        require_vapid: bool = True,
        max_ttl: int = _MAX_TTL,
        clock: Callable[[], float] = time.time,
        on_push: Callable[[WebPushMessage], None] | None = None,
        record: bool = True,
        **options: Unpack[Options],
    ) -> None:
        options.setdefault("http1", True)
        super().__init__(**options)
        self.rejected: list[Rejection] = []
        self._require_vapid = require_vapid
        self._max_ttl = max_ttl
        self._clock = clock
        self._on_push = on_push
        self._record = record
        self._vapid = VapidTokens(clock)
        self._script = Script()
        self._subscriptions: dict[str, Subscription] = {}  # by path
        self._gone: dict[str, int] = {}  # path to status
        self._inbox: Inbox[WebPushMessage] = Inbox()

    # --- for tests ---

    @property
    def pushes(self) -> list[WebPushMessage]:
        """The accepted messages."""
        return self._inbox.items

    @property
    def origin(self) -> str:
        """The origin of all endpoints, the audience of VAPID tokens: on 127.0.0.1 by the name localhost."""
        return f"https://localhost:{self.port}" if self.host == "127.0.0.1" else self.url

    def subscribe(self, application_server_key: bytes | None = None) -> Subscription:
        """Subscribe as a browser does, with keys of its own; inside `async with` only.

        application_server_key: 65 bytes, restricts the subscription to messages signed with that key.
        """
        if self.port == 0:
            raise RuntimeError("the server was not entered")
        private_key = ec.generate_private_key(ec.SECP256R1())
        subscription = Subscription(
            endpoint=self.origin + _PREFIX + secrets.token_urlsafe(32),
            p256dh=public_point(private_key.public_key()),
            auth=secrets.token_bytes(16),
            application_server_key=application_server_key,
            private_key=private_key,
        )
        self._subscriptions[subscription.path] = subscription
        return subscription

    def unsubscribe(self, subscription: Subscription, status: Literal[404, 410] = 410) -> None:
        """Answer with that status for a subscription from now on: 404 as if expired, 410 as if cancelled."""
        self._gone[subscription.path] = status

    def resubscribe(self, subscription: Subscription) -> None:
        """Undo `unsubscribe`."""
        self._gone.pop(subscription.path, None)

    def script(self, *faults: Fault, subscription: Subscription | None = None) -> None:
        """Queue faults, one per request, for a subscription or for any; the subscription's come first."""
        self._script.add(*faults, key=None if subscription is None else subscription.path)

    def clear(self) -> None:
        """Forget scripts, messages and rejections, but not subscriptions and counters."""
        self._script.clear()
        self._inbox.clear()
        self.rejected.clear()

    async def next(self, subscription: Subscription | None = None, timeout: float = 10) -> WebPushMessage:
        """Take the oldest accepted message, to a subscription if given, that was not taken before.

        Raises TimeoutError after `timeout` seconds without one.
        """
        return await self._inbox.next(lambda message: subscription in (None, message.subscription), timeout)

    # --- for Http2Server ---

    def draw(self, request: Request) -> Fault | None:
        """Take the next scripted fault for the request's subscription."""
        return self._script.take(request.path)

    def respond(self, request: Request, scripted: Answer | None) -> Answer:
        """Check a request, record it and answer it; a scripted error is answered without checks."""
        answer = Answer(201) if scripted is None else scripted
        if answer.status in _SUCCESS:
            try:
                message = self._check(request)
                self._take_in(message)
                with_location = (("location", message.location), ("ttl", str(message.ttl)), *answer.headers)
                answer = replace(answer, headers=with_location)
            except _Refused as refused:
                answer = refused.answer
        if answer.status not in _SUCCESS and self._record:
            token = request.path.removeprefix(_PREFIX)
            self.rejected.append(Rejection(answer.status, answer.reason, token, request.connection))
        return answer

    def _take_in(self, message: WebPushMessage) -> None:
        if self._record:
            self._inbox.put(message)
        if self._on_push is not None:
            self._on_push(message)

    # --- the checks of the RFCs ---

    def _check(self, request: Request) -> WebPushMessage:
        subscription = self._check_target(request)
        headers = request.fields()
        vapid_key = self._check_vapid(headers.get("authorization"), subscription)
        ttl, urgency, topic = _check_delivery(headers)
        _check_body(request.body, headers.get("content-encoding"))
        return WebPushMessage(
            subscription=subscription,
            headers=headers,
            body=request.body,
            size=len(request.body),
            ttl=min(ttl, self._max_ttl),
            urgency=urgency,
            topic=topic,
            vapid_key=vapid_key,
            location=f"{self.origin}/message/{secrets.token_urlsafe(24)}",
            received_at=self._clock(),
            connection=request.connection,
        )

    def _check_target(self, request: Request) -> Subscription:
        subscription = self._subscriptions.get(request.path)
        if subscription is None:
            raise _Refused(404, "NotFound")
        if request.method != "POST":
            raise _Refused(405, "MethodNotAllowed", ("allow", "POST"))
        if (status := self._gone.get(request.path)) is not None:
            raise _Refused(status, "Unregistered")
        return subscription

    def _check_vapid(self, authorization: str | None, subscription: Subscription) -> bytes | None:
        """401 without authentication, 403 with an invalid one (RFC 8292 section 4.2)."""
        if authorization is None:
            if self._require_vapid or subscription.application_server_key is not None:
                raise _Refused(401, "MissingAuthorization", ("www-authenticate", "vapid"))
            return None
        try:
            key = self._vapid.key(authorization, self.origin)
        except InvalidJwtError:
            raise _Refused(403, "BadJwtToken") from None
        if subscription.application_server_key not in (None, key):
            raise _Refused(403, "VapidPkHashMismatch")
        return key


def _check_delivery(headers: Mapping[str, str]) -> tuple[int, Urgency, str | None]:
    """Return TTL, urgency and topic (RFC 8030 sections 5.2 to 5.4)."""
    if not _TTL.fullmatch(headers.get("ttl", "")):
        raise _Refused(400, "BadTtl")
    urgency = _URGENCIES.get(headers.get("urgency", "normal"))
    if urgency is None:
        raise _Refused(400, "BadUrgency")
    topic = headers.get("topic")
    if topic is not None and not _TOPIC.fullmatch(topic):
        raise _Refused(400, "BadTopic")
    return int(headers["ttl"]), urgency, topic


def _check_body(body: bytes, encoding: str | None) -> None:
    if len(body) > _MAX_BODY:
        raise _Refused(413, "PayloadTooLarge")
    if body and encoding != "aes128gcm":
        raise _Refused(400, "BadContentEncoding")
