import asyncio
import base64
import contextlib
import json
import logging
import os
import re
import urllib.parse
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import jwt
import pycurl
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from ntf_server.push.apns.request import Apns, KeyFileError, ProviderToken, generate_key, judge, load_key
from ntf_server.push.http import Endpoint, HttpEngine, HttpFailure, HttpResponse
from ntf_server.push.provider import Accepted, Dead, Permanent, Result, Retry, Scope
from ntf_server.store.records import Notification, Push, PushKind, StoredNotification
from ntf_server.testing import Answer, MockApns, RstStream
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider

NOW = 1_800_000_000
KEY = generate_key()
TOPIC = "chat.example.app"
DEVICE = b"ab" * 32
SECRET = bytes(range(32))
SERVER = ServerAddress("smp", ("smp.example.org",), "", bytes(32))
NOTIFICATION = StoredNotification(1, 1, False, SERVER, Notification(b"q" * 24, NOW, b"n" * 24, b"m" * 144))
TOO_LARGE = replace(NOTIFICATION, server=ServerAddress("smp", ("h" * 255,) * 12, "", bytes(32)))
VERIFICATION, MESSAGES, CHECK = PushKind


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def push(kind: PushKind = VERIFICATION, device: bytes = DEVICE, ref: int = 1, **fields: Any) -> Push:
    fields = {"code": b"c" * 32, "notifications": (NOTIFICATION,) * (kind is MESSAGES), **fields}
    return Push(ref, 0, DeviceToken(Provider.APNS, device), crypto.box_key(SECRET), kind, NOW, **fields)


class Sender:
    """The provider, and a way to await its results."""

    def __init__(self, apns: Apns) -> None:
        self._apns = apns

    async def send(self, *pushes: Push) -> list[Result]:
        results: dict[int, asyncio.Future[Result]] = {p.token: asyncio.Future() for p in pushes}
        self._apns.send(pushes, lambda push, result: results[push.token].set_result(result))
        return await asyncio.wait_for(asyncio.gather(*results.values()), 10)

    async def one(self, push: Push) -> Result:
        [result] = await self.send(push)
        return result


@contextlib.asynccontextmanager
async def providing(clock: Clock | None = None) -> AsyncIterator[tuple[MockApns, Sender]]:
    clock = clock or Clock()
    checks = {"public_key": KEY.public_key(), "key_id": "KEYKEYKEY1", "team_id": "TEAMTEAM01", "topics": [TOPIC]}
    async with MockApns(**checks, clock=clock) as mock:
        engine = HttpEngine()
        endpoint = Endpoint(mock.url, str(mock.ca_file), timeout=5.0)
        try:
            yield mock, Sender(Apns(engine, endpoint, ProviderToken(KEY, "KEYKEYKEY1", "TEAMTEAM01", clock), TOPIC))
        finally:
            await engine.close()


# --- the key file


def pem(key: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))


def test_a_key_as_apple_gives_it_out() -> None:
    assert load_key(pem(KEY)).private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"SECRET not PEM",
        b"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n",
        pem(KEY)[:-60],
        pem(KEY, BestAvailableEncryption(b"password")),
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(ed25519.Ed25519PrivateKey.generate()),
        pem(rsa.generate_private_key(65537, 2048)),
        KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    ],
)
def test_another_key_is_refused(content: bytes) -> None:
    with pytest.raises(KeyFileError) as caught:
        load_key(content)
    assert "SECRET" not in str(caught.value)


# --- the provider token


def unb64(part: str) -> bytes:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", part)  # RFC 7515: no padding
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_the_jwt_verifies() -> None:
    for _ in range(200):  # r and s with leading zeros come once in 128
        header, claims, signature = ProviderToken(KEY, "KEYKEYKEY1", "TEAMTEAM01", Clock()).get().split(".")
        assert json.loads(unb64(header)) == {"alg": "ES256", "kid": "KEYKEYKEY1"}
        assert json.loads(unb64(claims)) == {"iss": "TEAMTEAM01", "iat": NOW}
        raw = unb64(signature)
        assert len(raw) == 64  # JOSE: r and s, not DER
        der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
        KEY.public_key().verify(der, f"{header}.{claims}".encode(), ec.ECDSA(SHA256()))


def test_a_jwt_is_renewed_between_20_and_60_minutes() -> None:
    clock = Clock()
    token = ProviderToken(KEY, "k", "t", clock)
    first = token.get()
    renewed = []
    for second in range(0, 2 * 3600, 10):
        clock.now = NOW + second + 0.5
        if token.get() != first:
            first = token.get()
            renewed.append(second)
            assert json.loads(unb64(first.split(".")[1]))["iat"] == NOW + second
    gaps = [b - a for a, b in zip([0, *renewed], renewed, strict=False)]
    assert len(gaps) >= 2
    assert all(20 * 60 <= gap < 60 * 60 - 60 for gap in gaps)


def test_a_clock_that_is_set_back_renews_the_jwt() -> None:
    clock = Clock()
    token = ProviderToken(KEY, "k", "t", clock)
    ahead = token.get()
    clock.now -= 3600
    assert token.get() != ahead
    assert json.loads(unb64(token.get().split(".")[1]))["iat"] == NOW - 3600


def test_an_expired_jwt_is_replaced_once() -> None:
    token = ProviderToken(KEY, "k", "t", Clock())
    first = token.get()
    token.expire(first)
    second = token.get()
    assert second != first
    token.expire(first)  # answers to other pushes with the old one come later
    assert token.get() == second


async def test_the_jwt_is_shared_and_renewed_by_the_clock() -> None:
    clock = Clock()
    async with providing(clock) as (mock, sender):
        for _ in range(5):
            assert await sender.send(*(push(ref=i) for i in range(3))) == [Accepted()] * 3
            clock.now += 15 * 60
        authorizations = [p.headers["authorization"] for p in mock.pushes]
        assert mock.rejected == []
        assert len(set(authorizations)) == 2


async def test_an_expired_jwt_is_renewed_at_once() -> None:
    async with providing() as (mock, sender):
        assert await sender.one(push()) == Accepted()
        mock.script(Answer(403, "ExpiredProviderToken"))
        assert await sender.one(push()) == Retry("403 ExpiredProviderToken", Scope.TOKEN)
        assert await sender.send(push(ref=1), push(ref=2)) == [Accepted()] * 2
        old, new, same = (p.headers["authorization"] for p in mock.pushes)
        assert old != new == same


# --- requests


@pytest.mark.parametrize(
    ("kind", "push_type", "priority"),
    [(VERIFICATION, "background", 5), (MESSAGES, "alert", 10), (CHECK, "background", 5)],
)
async def test_the_request_for_each_kind(kind: PushKind, push_type: str, priority: int) -> None:
    async with providing() as (mock, sender):
        held = (NOTIFICATION,) * (kind is MESSAGES)
        assert await sender.one(push(kind)) == Accepted(held)
        [accepted] = mock.pushes
        assert (accepted.token, accepted.topic) == (DEVICE.decode(), TOPIC)
        assert (accepted.headers["apns-push-type"], accepted.headers["apns-priority"]) == (push_type, str(priority))
        assert accepted.headers["content-type"] == "application/json"
        assert uuid.UUID(accepted.headers["apns-id"])
        assert accepted.size <= 4096


async def test_the_device_can_open_what_was_sent() -> None:
    async with providing() as (mock, sender):
        await sender.one(push(VERIFICATION))
        data = mock.pushes[0].body["notificationData"]
        nonce, sealed = (base64.urlsafe_b64decode(data[name]) for name in ("nonce", "verification"))
        assert crypto.unpad(crypto.unbox(SECRET, nonce, sealed)) == b"c" * 32


async def test_many_at_once_each_get_their_own_result() -> None:
    async with providing() as (mock, sender):
        devices = [b"%064x" % i for i in range(60)]
        for i in range(0, 60, 3):
            mock.unregister(devices[i].decode())
        results = await sender.send(*(push(device=d, ref=i) for i, d in enumerate(devices)))
        dead = Dead(InvalidReason.UNREGISTERED)
        assert results == [dead if i % 3 == 0 else Accepted() for i in range(60)]
        assert len({p.headers["apns-id"] for p in mock.pushes}) == 40


@pytest.mark.parametrize(
    "device",
    [
        b"a/../b",
        b"../x",
        b"a?b=c",
        b"a#b",
        b"a b",
        b"a\r\nx-evil: 1",
        b"\0",
        bytes(range(256))[:255],
        b"%2e%2e",
        b"...",
    ],
)
async def test_a_device_token_is_one_segment_of_the_path_whatever_it_holds(device: bytes) -> None:
    async with providing() as (mock, sender):
        assert await sender.one(push(device=device)) == Accepted()
        [accepted] = mock.pushes
        assert "/" not in accepted.token
        assert urllib.parse.unquote_to_bytes(accepted.token) == device
        assert "x-evil" not in accepted.headers


@pytest.mark.parametrize("device", [b"", b".", b".."])
async def test_a_device_token_that_is_no_segment_is_bad_and_nothing_is_sent(device: bytes) -> None:
    async with providing() as (mock, sender):
        results = await sender.send(push(device=device), push(ref=2))
        assert results == [Dead(InvalidReason.BAD), Accepted()]
        assert mock.counters.requests == 1


async def test_a_push_that_cannot_be_made_does_not_stop_the_others() -> None:
    async with providing() as (_, sender):
        results = await sender.send(push(ref=1), push(MESSAGES, ref=2, notifications=(TOO_LARGE,)), push(ref=3))
        assert isinstance(results[1], Permanent)
        assert results[::2] == [Accepted()] * 2


@pytest.mark.parametrize(("kind", "ttl"), [(VERIFICATION, 600), (MESSAGES, 24 * 3600), (CHECK, 3600)])
async def test_apple_keeps_a_push_as_long_as_we_would_and_replaces_no_messages(kind: PushKind, ttl: int) -> None:
    clock = Clock()
    async with providing(clock) as (mock, sender):
        for _ in range(2):
            await sender.one(push(kind))
            clock.now += 100  # it counts from when the push became due
        for accepted in mock.pushes:
            assert int(accepted.headers["apns-expiration"]) == NOW + ttl
            collapse_id = accepted.headers.get("apns-collapse-id")
            assert collapse_id == (None if kind is MESSAGES else kind.name.lower())
        ids = {p.apns_id for p in mock.pushes}
        assert len(ids) == 2


async def test_a_time_to_live_of_the_operator() -> None:
    async with MockApns() as mock:
        engine = HttpEngine()
        try:
            ttl = {VERIFICATION: 11, MESSAGES: 22, CHECK: 33}
            endpoint = Endpoint(mock.url, str(mock.ca_file), timeout=5.0)
            sender = Sender(Apns(engine, endpoint, ProviderToken(KEY, "k", "t"), TOPIC, ttl))
            await sender.send(*(push(kind, ref=i) for i, kind in enumerate(PushKind)))
            assert sorted(int(p.headers["apns-expiration"]) - NOW for p in mock.pushes) == [11, 22, 33]
        finally:
            await engine.close()


# --- authentication


async def test_another_key_signs_from_now_on() -> None:
    other, token = generate_key(), ProviderToken(KEY, "k", "t", Clock())
    first = token.get()
    token.use(other)
    second = token.get()
    assert second != first
    jwt.decode(second, other.public_key(), ["ES256"], options={"verify_iat": False})
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(second, KEY.public_key(), ["ES256"], options={"verify_iat": False})
    token.expire(first)
    assert token.get() == second


async def test_with_a_certificate_there_is_no_provider_token() -> None:
    async with MockApns() as mock:
        engine = HttpEngine()
        try:
            endpoint = Endpoint(mock.url, str(mock.ca_file), timeout=5.0)
            result = await Sender(Apns(engine, endpoint, None, TOPIC)).one(push())
            assert result == Permanent("403 MissingProviderToken")  # the mock knows tokens only
            assert mock.counters.requests == 1
        finally:
            await engine.close()


@pytest.mark.parametrize("reason", ["ExpiredProviderToken", "MissingProviderToken"])
async def test_with_a_certificate_no_answer_renews_anything(reason: str) -> None:
    async with MockApns() as mock:
        engine = HttpEngine()
        try:
            mock.script(Answer(403, reason))
            endpoint = Endpoint(mock.url, str(mock.ca_file), timeout=5.0)
            assert not isinstance(await Sender(Apns(engine, endpoint, None, TOPIC)).one(push()), Accepted)
        finally:
            await engine.close()


# --- answers


@pytest.mark.parametrize("reason", [InvalidReason.UNREGISTERED, InvalidReason.EXPIRED])
@pytest.mark.parametrize(
    ("registered_at", "dead"),
    [(0, True), (NOW - 1, True), (NOW, True), (NOW + 1, False), (NOW + 3600, False)],
)
async def test_a_token_that_was_registered_after_apple_gave_it_up_is_alive(
    registered_at: int, dead: bool, reason: InvalidReason
) -> None:
    name = {InvalidReason.UNREGISTERED: "Unregistered", InvalidReason.EXPIRED: "ExpiredToken"}[reason]
    async with providing() as (mock, sender):
        mock.script(Answer(410, name, timestamp=NOW * 1000))
        result = await sender.one(push(registered_at=registered_at))
        assert result == (Dead(reason) if dead else Retry(f"410 {name}"))


@pytest.mark.parametrize(
    "timestamp", ["true", "null", '"1"', "[]", "-1", "1e400", "1" + "0" * 400, "NaN", "Infinity", "-Infinity"]
)
def test_a_410_with_a_timestamp_that_apple_would_not_send(timestamp: str) -> None:
    body = b'{"reason":"Unregistered","timestamp":%s}' % timestamp.encode()
    assert isinstance(judge(answer(410, body), NOW), Dead | Retry)


@pytest.mark.parametrize(
    ("reject", "reason"),
    [
        (lambda mock: mock.unregister(DEVICE.decode()), InvalidReason.UNREGISTERED),
        (lambda mock: mock.reject_token(DEVICE.decode()), InvalidReason.BAD),
        (lambda mock: mock.bind_token(DEVICE.decode(), "other.app"), InvalidReason.TOPIC),
        (lambda mock: mock.script(Answer(410, "ExpiredToken")), InvalidReason.EXPIRED),
    ],
)
async def test_a_dead_device_token(reject: Any, reason: InvalidReason) -> None:
    async with providing() as (mock, sender):
        reject(mock)
        assert await sender.one(push()) == Dead(reason)


async def test_troubles_of_the_network_are_retried() -> None:
    async with providing() as (mock, sender):
        mock.script(RstStream(), Answer(503, "Shutdown", headers=(("retry-after", "9"),)), Answer(500))
        assert await sender.one(push()) == Retry("HTTP/2 stream reset", Scope.TOKEN)
        assert await sender.one(push()) == Retry("503 Shutdown", Scope.TOKEN, 9.0)
        assert await sender.one(push()) == Retry("500", Scope.TOKEN)
        await mock.stop()
        outage = await sender.one(push())
        assert isinstance(outage, Retry)
        await mock.start()
        assert await sender.one(push()) == Accepted()


def answer(status: int, body: bytes, retry_after: float | None = None) -> HttpResponse:
    return HttpResponse(status, body, retry_after)


def reason(text: str) -> bytes:
    return json.dumps({"reason": text}).encode()


@pytest.mark.parametrize(
    ("response", "result"),
    [
        (answer(200, b""), Accepted()),
        (answer(200, b"whatever"), Accepted()),
        (answer(400, reason("BadDeviceToken")), Dead(InvalidReason.BAD)),
        (answer(400, reason("DeviceTokenNotForTopic")), Dead(InvalidReason.TOPIC)),
        (answer(410, reason("ExpiredToken")), Dead(InvalidReason.EXPIRED)),
        (answer(410, b'{"reason":"Unregistered","timestamp":1}'), Dead(InvalidReason.UNREGISTERED)),
        (answer(403, reason("BadDeviceToken")), Permanent("403 BadDeviceToken")),
        (answer(410, b""), Retry("410")),
        (answer(410, reason("Other")), Retry("410 Other")),
        (answer(400, reason("BadTopic")), Permanent("400 BadTopic")),
        (answer(400, b""), Permanent("400")),
        (answer(403, reason("InvalidProviderToken")), Permanent("403 InvalidProviderToken")),
        (answer(403, reason("ExpiredProviderToken")), Retry("403 ExpiredProviderToken")),
        (answer(404, reason("BadPath")), Permanent("404 BadPath")),
        (answer(405, reason("MethodNotAllowed")), Permanent("405 MethodNotAllowed")),
        (answer(413, reason("PayloadTooLarge")), Permanent("413 PayloadTooLarge")),
        (answer(429, reason("TooManyRequests"), 30.0), Retry("429 TooManyRequests", after=30.0)),
        (answer(429, reason("TooManyProviderTokenUpdates")), Retry("429 TooManyProviderTokenUpdates", Scope.PROVIDER)),
        (answer(500, reason("InternalServerError")), Retry("500 InternalServerError")),
        (answer(502, b"<html>"), Retry("502")),
        (answer(503, reason("ServiceUnavailable")), Retry("503 ServiceUnavailable")),
        (answer(301, b""), Permanent("301")),
        (HttpFailure(pycurl.E_COULDNT_CONNECT, timeout=False), Retry("connection refused", Scope.PROVIDER)),
        (HttpFailure(pycurl.E_COULDNT_RESOLVE_HOST, timeout=False), Retry("host name not resolved", Scope.PROVIDER)),
        (HttpFailure(pycurl.E_PEER_FAILED_VERIFICATION, False), Retry("certificate not trusted", Scope.PROVIDER)),
        (HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True), Retry("timed out", Scope.TOKEN)),
        (HttpFailure(99, timeout=False), Retry("libcurl error 99", Scope.TOKEN)),
    ],
)
def test_what_an_answer_means(response: HttpResponse | HttpFailure, result: Result) -> None:
    assert judge(response) == result


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"[]",
        b"null",
        b'"reason"',
        b'{"reason":null}',
        b'{"reason":["BadDeviceToken"]}',
        b'{"reason":' + b"9" * 10_000 + b"}",
        b"[" * 60_000,
        b'{"reason":' * 10_000,
        reason("a\nforged log line"),
        reason("x" * 64),
    ],
)
def test_a_body_that_apple_would_not_send(body: bytes) -> None:
    assert judge(answer(500, body)) == Retry("500")
    assert judge(answer(400, body)) == Permanent("400")


async def test_strange_answers_do_not_stop_the_others() -> None:
    async with providing() as (mock, sender):
        mock.script(Answer(400, body=b"[" * 60_000), Answer(503, headers=(("retry-after", "\xb2"),)))
        results = await sender.send(*(push(ref=i) for i in range(10)))
        assert results.count(Accepted()) == 8


# --- secrets


async def test_secrets_are_in_no_repr_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("ntf_server", "asyncio"):  # not hpack, which is the mock's
        caplog.set_level(logging.DEBUG, name)
    device = os.urandom(16).hex()
    async with providing() as (mock, sender):
        mock.script(Answer(403, "InvalidProviderToken"), Answer(500), RstStream())
        results = [await sender.one(push(MESSAGES, device.encode())) for _ in range(4)]
        bearer = mock.pushes[0].headers["authorization"].removeprefix("bearer ")
        token = ProviderToken(KEY, "k", "t", Clock())
        shown = repr((results, sender._apns, token, push(device=device.encode()))) + caplog.text
    assert isinstance(results[-1], Accepted)
    for secret in (device, bearer, bearer.split(".")[2], token.get(), repr(SECRET), repr(b"c" * 32)):
        assert secret not in shown
