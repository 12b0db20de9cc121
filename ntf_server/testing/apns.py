"""A mock of Apple's push service, which checks what Apple checks and records what it accepts.

Sources: Apple, "Sending notification requests to APNs" and "Handling notification responses from APNs".
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Unpack

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.testing.endpoint import Options, Request
from ntf_server.testing.faults import Answer, Fault, Script
from ntf_server.testing.http2 import Http2Server
from ntf_server.testing.provider_token import RENEWED_AFTER, ProviderTokens

_PREFIX = "/3/device/"
_PUSH_TYPES = frozenset(
    {
        "alert",
        "background",
        "complication",
        "controls",
        "fileprovider",
        "liveactivity",
        "location",
        "mdm",
        "pushtotalk",
        "voip",
        "widgets",
    }
)
_PRIORITIES = {"1": 1, "5": 5, "10": 10}
_DEFAULT_PRIORITY = 10
_BACKGROUND_PRIORITY = 5
_VISIBLE = frozenset({"alert", "badge", "sound"})
_MAX_PAYLOAD = 4096
_MAX_VOIP_PAYLOAD = 5120
_MAX_COLLAPSE_ID = 64
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_DEVICE_TOKEN = re.compile(r"([0-9A-Fa-f]{2}){32,100}")  # "variable length", says Apple: 32 bytes, or more
_EXPIRATION = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Push:
    """An accepted push; `size` is its payload's bytes, `received_at` unix seconds.

    `push_type` and `priority` are alert and 10 where the request has none. The token is in no repr.
    """

    token: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)
    size: int
    apns_id: str
    push_type: str
    priority: int
    topic: str
    received_at: float
    connection: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that was answered with an error, by the script or by a check."""

    status: int
    reason: str | None
    token: str = field(default="", repr=False)
    connection: int = 0


class _Refused(Exception):  # noqa: N818  (an answer, not a failure)
    """The request is answered with an error."""

    def __init__(self, status: int, reason: str, timestamp: int | None = None) -> None:
        super().__init__(status, reason)
        self.answer = Answer(status, reason, timestamp=timestamp)


class MockApns(Http2Server):
    """A mock APNs for `async with`, at `host` and `port`, to be trusted by `ca_file`.

    public_key, key_id, team_id: what provider tokens must be signed with and say; None checks the form only.
    topics: the allowed topics, None for any. clock: unix seconds, also of the `date` of errors.
    any_device_token: take those that are none of Apple's too, as the test APNs of the reference does: its clients
    register short ones. renewed_after: seconds that a provider token must be used before another may take its place.
    on_push: called with each accepted push.
    record: keep pushes and rejections; switch it off for long runs. Other options: see `Options`.
    """

    def __init__(
        self,
        *,
        public_key: ec.EllipticCurvePublicKey | None = None,
        key_id: str | None = None,
        team_id: str | None = None,
        topics: Collection[str] | None = None,
        any_device_token: bool = False,
        renewed_after: float = RENEWED_AFTER,
        clock: Callable[[], float] = time.time,
        on_push: Callable[[Push], None] | None = None,
        record: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.pushes: list[Push] = []
        self.rejected: list[Rejection] = []
        self._provider_tokens = ProviderTokens(public_key, key_id, team_id, clock, renewed_after)
        self._any_device_token = any_device_token
        self._topics = None if topics is None else frozenset(topics)
        self._clock = clock
        self._on_push = on_push
        self._record = record
        self._script = Script()
        self._token_refusals: dict[str, Answer] = {}
        self._token_topics: dict[str, str] = {}
        self._untaken: deque[Push] = deque()
        self._arrived = asyncio.Event()

    # --- for tests ---

    def script(self, *faults: Fault, token: str | None = None) -> None:
        """Queue faults, one per request, for a device token or for any; the token's come first."""
        self._script.add(*faults, key=token)

    def unregister(self, token: str, timestamp: int | None = None) -> None:
        """Answer 410 Unregistered for a token from now on; timestamp in unix ms, by default now."""
        since = int(self._clock() * 1000) if timestamp is None else timestamp
        self._token_refusals[token] = Answer(410, "Unregistered", timestamp=since)

    def reject_token(self, token: str) -> None:
        """Answer 400 BadDeviceToken for a token from now on."""
        self._token_refusals[token] = Answer(400, "BadDeviceToken")

    def bind_token(self, token: str, topic: str) -> None:
        """Answer 400 DeviceTokenNotForTopic for a token with another topic."""
        self._token_topics[token] = topic

    def reregister(self, token: str) -> None:
        """Undo `unregister`, `reject_token` and `bind_token`."""
        self._token_refusals.pop(token, None)
        self._token_topics.pop(token, None)

    def clear(self) -> None:
        """Forget scripts, pushes and rejections, but not tokens and counters."""
        self._script.clear()
        self.pushes.clear()
        self.rejected.clear()
        self._untaken.clear()

    async def next(self, token: str | None = None, timeout: float = 10) -> Push:
        """Take the oldest accepted push, of a device token if given, that was not taken before.

        Raises TimeoutError after `timeout` seconds without one.
        """
        async with asyncio.timeout(timeout):
            while (push := self._take(token)) is None:
                await self._arrived.wait()
        return push

    def _take(self, token: str | None) -> Push | None:
        for index, push in enumerate(self._untaken):
            if token is None or push.token == token:
                del self._untaken[index]
                return push
        return None

    # --- for Http2Server ---

    def draw(self, request: Request) -> Fault | None:
        """Take the next scripted fault for the request's device token."""
        return self._script.take(_token_of(request.path))

    def respond(self, request: Request, scripted: Answer | None) -> Answer:
        """Check a request, record it and answer it; a scripted error is answered without checks."""
        headers = dict(request.headers)
        apns_id = headers.get("apns-id", "")
        if not _UUID.fullmatch(apns_id):
            apns_id = str(uuid.uuid4())
        answer = Answer() if scripted is None else scripted
        if answer.status == 200:
            try:
                self._take_in(self._check(request, headers, apns_id))
            except _Refused as refused:
                answer = refused.answer
        if answer.status != 200 and self._record:
            token = _token_of(request.path) or ""
            self.rejected.append(Rejection(answer.status, answer.reason, token, request.connection))
        with_id = (("apns-id", apns_id), *answer.headers)
        if answer.status != 200 and not any(name == "date" for name, _ in with_id):
            with_id = (*with_id, ("date", formatdate(self._clock(), usegmt=True)))
        return Answer(answer.status, answer.reason, with_id, answer.timestamp, answer.body)

    def _take_in(self, push: Push) -> None:
        if self._record:
            self.pushes.append(push)
            self._untaken.append(push)
            self._arrived.set()
            self._arrived.clear()
        if self._on_push is not None:
            self._on_push(push)

    # --- Apple's checks ---

    def _check(self, request: Request, headers: dict[str, str], apns_id: str) -> Push:
        token = _check_target(request)
        if len(headers) != len(request.headers):
            raise _Refused(400, "DuplicateHeaders")
        refusal = self._provider_tokens.refusal(headers.get("authorization"), request.connection)
        if refusal is not None:
            raise _Refused(*refusal)
        _check_delivery(headers)
        topic = self._check_topic(headers.get("apns-topic", ""))
        push_type = headers.get("apns-push-type", "alert")
        if push_type not in _PUSH_TYPES:
            raise _Refused(400, "InvalidPushType")
        priority = _check_priority(headers, push_type)
        body = _check_payload(request.body, push_type)
        self._check_token(token, topic)
        return Push(
            token=token,
            headers=headers,
            body=body,
            size=len(request.body),
            apns_id=apns_id,
            push_type=push_type,
            priority=priority,
            topic=topic,
            received_at=self._clock(),
            connection=request.connection,
        )

    def _check_topic(self, topic: str) -> str:
        if not topic:
            raise _Refused(400, "MissingTopic")
        if self._topics is not None and topic not in self._topics:
            raise _Refused(400, "TopicDisallowed")
        return topic

    def _check_token(self, token: str, topic: str) -> None:
        if not self._any_device_token and not _DEVICE_TOKEN.fullmatch(token):
            raise _Refused(400, "BadDeviceToken")
        if (refusal := self._token_refusals.get(token)) is not None:
            raise _Refused(refusal.status, refusal.reason or "", refusal.timestamp)
        if self._token_topics.get(token, topic) != topic:
            raise _Refused(400, "DeviceTokenNotForTopic")


def _token_of(path: str) -> str | None:
    token = path.removeprefix(_PREFIX)
    return None if token == path or not token or "/" in token else token


def _check_target(request: Request) -> str:
    """Check method and path, return the device token."""
    if request.method != "POST":
        raise _Refused(405, "MethodNotAllowed")
    token = _token_of(request.path)
    if token is not None:
        return token
    if request.path in (_PREFIX, _PREFIX.rstrip("/")):
        raise _Refused(400, "MissingDeviceToken")
    raise _Refused(404, "BadPath")


def _check_delivery(headers: Mapping[str, str]) -> None:
    """Check the headers that say how to deliver, each of them optional."""
    if not _UUID.fullmatch(headers.get("apns-id", str(uuid.NAMESPACE_URL))):
        raise _Refused(400, "BadMessageId")
    if not _EXPIRATION.fullmatch(headers.get("apns-expiration", "0")):
        raise _Refused(400, "BadExpirationDate")
    if len(headers.get("apns-collapse-id", "")) > _MAX_COLLAPSE_ID:  # latin-1, so characters are bytes
        raise _Refused(400, "BadCollapseId")


def _check_priority(headers: Mapping[str, str], push_type: str) -> int:
    text = headers.get("apns-priority")
    priority = _DEFAULT_PRIORITY if text is None else _PRIORITIES.get(text)
    if priority is None or (push_type == "background" and priority != _BACKGROUND_PRIORITY):
        raise _Refused(400, "BadPriority")
    return priority


def _check_payload(payload: bytes, push_type: str) -> dict[str, Any]:
    """Check size and form; `BadMessage` is ours, Apple documents no reason for a malformed payload."""
    if not payload:
        raise _Refused(400, "PayloadEmpty")
    if len(payload) > (_MAX_VOIP_PAYLOAD if push_type == "voip" else _MAX_PAYLOAD):
        raise _Refused(413, "PayloadTooLarge")
    try:
        body = msgspec.json.decode(payload)
    except (ValueError, RecursionError):  # malformed, invalid UTF-8, or nested too deep
        raise _Refused(400, "BadMessage") from None
    if not isinstance(body, dict):
        raise _Refused(400, "BadMessage")
    aps = body.get("aps", {} if push_type == "mdm" else None)
    if not isinstance(aps, dict):
        raise _Refused(400, "BadMessage")
    if push_type == "background" and (aps.get("content-available") != 1 or not _VISIBLE.isdisjoint(aps)):
        raise _Refused(400, "InvalidPushType")
    return body
