"""Pushes: device tokens, what push services answer, what reaches a device, and what it keeps."""

import contextlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec

from fuzz import samples
from fuzz.target import Target, add
from ntf_client import push as client_push
from ntf_client import state
from ntf_client import webpush as client_webpush
from ntf_server.push.apns import judge as apns
from ntf_server.push.exchange import HttpResponse
from ntf_server.push.fcm import judge as fcm
from ntf_server.push.fcm import oauth
from ntf_server.push.links import Transfer
from ntf_server.push.verdict import Again, DeadToken, Delivered, Ours
from ntf_server.push.webpush import judge as webpush
from ntf_server.push.webpush.encryption import encrypt
from ntf_server.push.webpush.subscription import WebPushSubscription
from ntf_server.push.words import one_line
from smp_bridge import crypto, ntf
from smp_bridge.encoding import ParseError, Reader, b64url

# --- device tokens


def _device_token(data: bytes) -> ntf.DeviceToken:
    r = Reader(data)
    out = ntf.DeviceToken.parse(r)
    r.end()
    return out


def _check_device_token(token: ntf.DeviceToken) -> None:
    assert _device_token(token.encode()) == token
    if token.provider is ntf.Provider.WEB_PUSH:
        try:
            text = client_webpush.subscription_text(token)
        except ParseError:
            return
        assert text.startswith("webpush https://")


add(
    Target(
        "device token",
        _device_token,
        lambda: [t.encode() for t in samples.device_tokens()],
        ["smp_bridge.ntf.DeviceToken.parse", "ntf_client.webpush.subscription_text"],
        (ParseError,),
        _check_device_token,
        words=[p.encode() for p in ntf.Provider],
    )
)


def _check_subscription(s: WebPushSubscription) -> None:
    assert s.origin.startswith("https://")
    assert s.host == s.host.lower()
    assert s.path.startswith("/")
    assert (s.origin + s.path).isascii()
    assert (s.origin + s.path).isprintable()
    # Where it leads is where the host that was checked is.
    url = urlsplit(s.origin + s.path)
    assert (url.scheme, url.hostname, url.username) == ("https", s.host, None)
    assert s.origin + s.path == f"https://{url.netloc}{url.path}" + (f"?{url.query}" if "?" in s.path else "")
    assert 0 < (url.port or 443) < 65536
    assert len(s.auth) == 16
    assert len(encrypt(b"plain", s, key=samples.P256, salt=bytes(16))) == 5 + 16 + 1 + 86


add(
    Target(
        "web push subscription",
        WebPushSubscription.parse,
        lambda: [
            samples.web_push(),
            samples.web_push(b"2001:db8::1", b"8443", b"/"),
            samples.web_push(b"PUSH.example.org.", b"443", b""),
            samples.web_push(b"127.1", b"00080", b"x"),
        ],
        ["ntf_server.push.webpush.subscription.WebPushSubscription.parse"],
        (ParseError,),
        _check_subscription,
        share=0.5,
    )
)


def _subscription_text(data: bytes) -> ntf.DeviceToken:
    return client_webpush.subscription_token(data)


def _check_subscription_text(token: ntf.DeviceToken) -> None:
    """It is the same again from its text form; the relay takes what the client takes, unless the key is no point."""
    text = client_webpush.subscription_text(token)
    assert client_webpush.subscription_token(text) == token
    assert _device_token(token.encode()) == token
    key = Reader(token.token)
    *_, point = (key.short() for _ in range(5))
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:  # the client leaves that to the relay
        return
    subscription = WebPushSubscription.parse(token.token)
    endpoint = text.split()[1]
    assert subscription.path == "/" or endpoint.endswith(subscription.path)


def _endpoint_seeds() -> list[bytes]:
    endpoints = [
        "https://push.example.org/send/abc?d=1",
        "https://[2001:db8::1]:8443/",
        "https://b\u00fccher.example/\u00fc?\u4e2d",
        "https://push.example.org:443",
        "https://xn--bcher-kva.example/%41",
        "https://fa\u00df.example/",
        "HTTPS://PUSH.EXAMPLE.ORG./a",
    ]
    keys = {"p256dh": b64url(samples.POINT), "auth": b64url(b"s" * 16)}
    out = [json.dumps({"endpoint": e, "keys": keys}, ensure_ascii=False).encode() for e in endpoints]
    out += [f"webpush {e} {keys['auth']} {keys['p256dh']}".encode() for e in endpoints]
    return [*out, b"[]", b'{"endpoint":1,"keys":{}}', b"webpush a b"]


add(
    Target(
        "web push text",
        _subscription_text,
        _endpoint_seeds,
        ["ntf_client.webpush.subscription_token"],
        (ParseError,),
        _check_subscription_text,
        max_size=700,
        words=[b'"endpoint":"https://', b'"keys":{', b"webpush https://", b"xn--", b"%2e"],
    )
)


# --- what push services answer

_BODIES = [
    b'{"reason":"BadDeviceToken"}',
    b'{"reason":"Unregistered","timestamp":1800000000000}',
    b'{"reason":"ExpiredProviderToken"}',
    b'{"error":{"status":"NOT_FOUND","message":"m","details":[{"@type":"x","errorCode":"UNREGISTERED"}]}}',
    b'{"error":{"status":"INVALID_ARGUMENT","details":[{"fieldViolations":[{"field":"message.token"}]}]}}',
    b'{"error":{"status":"RESOURCE_EXHAUSTED","message":"device"}}',
    b'{"access_token":"ya29.x","expires_in":3599,"token_type":"Bearer"}',
    b'{"access_token":"ya29.x","expires_in":1e999}',
    b'{"error":"invalid_grant","error_description":"Invalid JWT: check your iat"}',
    b'{"errno":109,"code":401}',
    b"VapidPkHashMismatch",
    b"<html></html>",
    b"",
]
_STATUSES = (200, 201, 301, 400, 401, 403, 404, 410, 413, 421, 429, 500, 503, 999)


def _answer(data: bytes) -> HttpResponse:
    """The first byte says its status, the second what else there is of headers."""
    status, more = (*data[:2], 0, 0)[:2]
    retry_after = (None, 0.5, 1e9)[more % 3]
    return HttpResponse(_STATUSES[status % len(_STATUSES)], data[2:], retry_after, (None, 1.8e9, -1.0)[more // 3 % 3])


def _seed_answers() -> list[bytes]:
    return [bytes([status, 0]) + body for body in _BODIES for status in (0, 3, 4, 7, 10)]


def _check_verdict(verdict: Any) -> None:
    """A reason is one short line: it goes to the log, to metrics and to the operator."""
    assert isinstance(verdict, Delivered | DeadToken | Again | Ours)
    if isinstance(verdict, Again | Ours):
        assert verdict.reason == one_line(verdict.reason, 400), verdict.reason
    if isinstance(verdict, Again):
        assert verdict.after is None or verdict.after > 0


_WORDS = [
    b'"reason":"', b'"timestamp":', b'"error":{', b'"details":[{', b'"errorCode":"UNREGISTERED"', b'"message":"',
    b'"fieldViolations":[{"field":"message.token"}]', b'"access_token":"', b'"expires_in":', b'"errno":', b"1e400",
]  # fmt: skip


def _judge(name: str, judge: Any, of: list[str]) -> None:
    add(Target(name, lambda data: judge(_answer(data)), _seed_answers, of, (), _check_verdict, words=_WORDS))


_judge(
    "answer of apns",
    lambda a: apns.judge(a, 1.7e9, renewable=len(a.body) % 2 == 0, skew=a.date),
    ["ntf_server.push.apns.judge.judge", "ntf_server.push.apns.judge.error"],
)
_judge(
    "answer of fcm",
    lambda a: (fcm.refuses_access_token(a) and None) or fcm.judge(a, renewed=len(a.body) % 2 == 0),
    ["ntf_server.push.fcm.judge.judge", "ntf_server.push.fcm.judge.refuses_access_token"],
)
_judge(
    "answer of web push",
    webpush.judge,
    ["ntf_server.push.webpush.judge.judge", "ntf_server.push.webpush.judge.is_for_another_key"],
)
_judge(
    "answer of oauth",
    lambda a: oauth.judge(a, 1.8e9) or Delivered(),
    ["ntf_server.push.fcm.oauth.judge"],
)


def _date(data: bytes) -> float | None:
    """Of an answer's header, as libcurl gives it."""
    transfer = Transfer()
    transfer._on_header(data)
    return transfer._date


add(
    Target(
        "header of an answer",
        _date,
        lambda: [
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
            b"date:Sunday, 06-Nov-94 08:49:37 GMT",
            b"DATE: Sun Nov  6 08:49:37 1994 -0900",
            b"HTTP/2 200\r\n",
            b"\r\n",
        ],
        ["ntf_server.push.links.Transfer"],
        max_size=80,
        words=[b"Date: ", b"Sun, ", b" Nov ", b" GMT", b" +0000"],
    )
)


# --- what reaches a device

_SECRET = crypto.dh(samples.X25519, samples.DH)


def _push(data: bytes) -> client_push.PushContent:
    """An even first byte: the whole body. An odd one: what is in the box."""
    if not data or data[0] % 2 == 0:
        return client_push.open_push(data[1:], _SECRET)
    kind = ("verification", "message")[data[0] // 2 % 2]
    sealed = crypto.box(_SECRET, b"n" * 24, data[1:])
    return client_push.open_push({"nonce": b64url(b"n" * 24), kind: b64url(sealed)}, _SECRET)


def _check_push(content: client_push.PushContent) -> None:
    if isinstance(content, client_push.Notifications):
        assert content.infos
        for info in content.infos:
            assert info.key_hash is None or len(info.key_hash) == 32
            with contextlib.suppress(client_push.PushError):
                info.open(_SECRET)


def _seed_pushes() -> list[bytes]:
    entry = ntf.Entry(str(samples.ADDRESSES[0]), samples.ID, 1_800_000_000, b"n" * 24, b"m" * 144).encode()
    nonce, secret = b64url(b"n" * 24), _SECRET
    code = b64url(crypto.box(secret, b"n" * 24, crypto.pad(b"c" * 32, 64)))
    plain = [crypto.pad(entry, 400), crypto.pad(entry + b";" + entry, 800), crypto.pad(b"c" * 32, 64)]
    bodies: list[Any] = [
        {"aps": {}, "notificationData": {"checkMessages": True}},
        {"checkMessages": "true"},
        {"notificationData": json.dumps({"nonce": nonce, "verification": code})},
        {"nonce": nonce, "verification": code},
        {"nonce": nonce, "message": code},
        [],
        {"notificationData": 1},
    ]
    return [b"\0" + json.dumps(b).encode() for b in bodies] + [bytes([f]) + p for p in plain for f in (1, 3)]


add(
    Target(
        "push",
        _push,
        _seed_pushes,
        ["ntf_client.push.open_push", "ntf_client.push.NotificationInfo.open"],
        (client_push.PushError,),
        _check_push,
        max_size=900,
        words=[b'"notificationData":', b'"verification":"', b'"message":"', b'"nonce":"', b'"checkMessages":true'],
    )
)


# --- what a device keeps


@cache
def _file() -> Path:
    """In memory."""
    return Path(f"/proc/self/fd/{os.memfd_create('state')}")


def _state(data: bytes) -> state.DeviceState:
    _file().write_bytes(data)
    return state.load(_file())


def _check_state(s: state.DeviceState) -> None:
    """It is the same when it was written and read again."""
    encoded = state.encode(s)
    again = _state(encoded)
    assert state.encode(again) == encoded
    assert (again.server, again.token, again.token_id, again.secret) == (s.server, s.token, s.token_id, s.secret)
    assert again.subscriptions == s.subscriptions
    s.token.encode()


def _seed_states() -> list[bytes]:
    out = []
    for token in samples.device_tokens():
        new = state.DeviceState(samples.ADDRESSES[3], token, samples.ED25519, samples.X25519)
        out.append(state.encode(new))
    subscriptions = tuple(
        state.Subscription(samples.ID, a, samples.ID, secret)
        for a in samples.ADDRESSES[:3]
        for secret in (None, _SECRET)
    )
    long = ntf.DeviceToken(ntf.Provider.APNS, bytes(255))
    out.append(state.encode(state.DeviceState(samples.ADDRESSES[3], long, samples.ED25519, samples.X25519)))
    device = samples.device_tokens()[0]
    out.append(
        state.encode(
            state.DeviceState(
                samples.ADDRESSES[4], device, samples.ED25519, samples.X25519, samples.ID, _SECRET, subscriptions
            )
        )
    )
    return [*out, b'{"format":"ntf-client device","version":2}', b"{}", b"[]"]


add(
    Target(
        "device state",
        _state,
        _seed_states,
        ["ntf_client.state.load", "ntf_client.state.parse_id", "ntf_client.state.parse_secret"],
        (state.StateError,),
        _check_state,
        max_size=2200,
        share=0.25,
        words=[b'"format":"ntf-client device"', b'"version":1', b'"subscriptions":[', b'"token_id":"'],
    )
)
