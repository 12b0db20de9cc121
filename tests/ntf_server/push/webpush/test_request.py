import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import http_ece
import jwt
import pycurl
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from proxies import Proxy
from py_vapid import Vapid02

from ntf_server.push.http import Endpoint, HttpEngine, HttpFailure, HttpResponse
from ntf_server.push.provider import Accepted, Dead, Permanent, Result, Retry
from ntf_server.push.webpush import request as webpush
from ntf_server.push.webpush.request import Vapid, WebPush, WebPushSubscription, encrypt, judge
from ntf_server.store.records import Notification, Push, PushKind, StoredNotification
from ntf_server.testing import Answer, MockWebPush, RstStream, Subscription
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import ParseError, short
from smp_bridge.ntf import DeviceToken, Entry, InvalidReason, Provider

NOW = 1_800_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
CONTACT = "mailto:push@example.org"
SECRET = bytes(range(32))
SERVER = ServerAddress("smp", ("smp.example.org",), "", bytes(32))
NOTIFICATION = StoredNotification(1, 1, False, SERVER, Notification(b"q" * 24, NOW, b"n" * 24, b"m" * 144))
LONG = replace(NOTIFICATION, server=ServerAddress("smp", ("h" * 200, "o" * 56 + ".onion"), "12345", bytes(32)))
TOO_LARGE = replace(NOTIFICATION, server=ServerAddress("smp", ("h" * 255,) * 12, "", bytes(32)))
VERIFICATION, MESSAGES, CHECK = PushKind
TTL = {VERIFICATION: 600, MESSAGES: 24 * 3600, CHECK: 3600}


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def token(
    host: str = "push.example.org",
    port: str = "",
    path: str = "/p/1",
    auth: bytes = bytes(16),
    key: bytes = point(KEY),
) -> bytes:
    return b"".join(short(part) for part in (host.encode(), port.encode(), path.encode(), auth, key))


def token_of(subscription: Subscription, host: str = "localhost") -> bytes:
    port = subscription.endpoint.removeprefix("https://").partition("/")[0].rpartition(":")[2]
    return token(host, port, subscription.path, subscription.auth, subscription.p256dh)


def push(device: bytes, kind: PushKind = VERIFICATION, ref: int = 1, **fields: Any) -> Push:
    fields = {"code": b"c" * 32, "notifications": (NOTIFICATION,) * (kind is MESSAGES), **fields}
    return Push(ref, 0, DeviceToken(Provider.WEB_PUSH, device), crypto.box_key(SECRET), kind, NOW, **fields)


class Sender:
    """The provider, and a way to await its results."""

    def __init__(self, web_push: WebPush) -> None:
        self.web_push = web_push

    async def send(self, *pushes: Push) -> list[Result]:
        results: dict[int, asyncio.Future[Result]] = {p.token: asyncio.Future() for p in pushes}
        self.web_push.send(pushes, lambda push, result: results[push.token].set_result(result))
        return await asyncio.wait_for(asyncio.gather(*results.values()), 10)

    async def one(self, push: Push) -> Result:
        [result] = await self.send(push)
        return result


@contextlib.asynccontextmanager
async def providing(ttl: Any = TTL, **fields: Any) -> AsyncIterator[tuple[MockWebPush, Sender, Clock]]:
    clock = Clock()
    async with MockWebPush(clock=clock) as mock:
        engine = HttpEngine()

        def endpoint(origin: str) -> Endpoint:
            return Endpoint(origin, str(mock.ca_file), timeout=5.0, http2_only=False, **fields)

        try:
            yield mock, Sender(WebPush(engine, endpoint, Vapid(KEY, CONTACT, clock), ttl=ttl, clock=clock)), clock
        finally:
            await engine.close()


# --- the subscription


@pytest.mark.parametrize(
    ("host", "port", "path", "url"),
    [
        ("push.example.org", "", "/p/1", "https://push.example.org/p/1"),
        ("push.example.org", "443", "p/1", "https://push.example.org/p/1"),
        ("push.example.org", "00443", "", "https://push.example.org/"),
        ("push.example.org", "8443", "/a?b=c%20d&e=~", "https://push.example.org:8443/a?b=c%20d&e=~"),
        ("Push.Example.ORG", "", "/P", "https://push.example.org/P"),  # RFC 6454, section 4: the origin's host
        ("push.example.org.", "", "/p", "https://push.example.org./p"),
        ("192.0.2.1", "", "/p", "https://192.0.2.1/p"),
        ("2001:DB8::1", "", "/p", "https://[2001:db8::1]/p"),
        ("[2001:db8::1]", "8443", "/p", "https://[2001:db8::1]:8443/p"),
        ("a_b.example", "", "//x", "https://a_b.example//x"),
    ],
)
def test_where_a_subscription_leads(host: str, port: str, path: str, url: str) -> None:
    s = WebPushSubscription.parse(token(host, port, path, b"a" * 16))
    assert s.origin + s.path == url
    assert (s.auth, s.key) == (b"a" * 16, point(KEY))
    assert "path" not in repr(s)
    assert "aaaa" not in repr(s)


@pytest.mark.parametrize(
    "bad",
    [
        token(host=""),
        token(host="a b"),
        token(host="ü.example"),
        token(host="a/b.example"),
        token(host="user@push.example"),
        token(host="a.example#x"),
        token(host="169.254.169.254?x.example"),  # libcurl would connect to what is before the mark
        token(host="127%2e0%2e0%2e1.example"),  # and it decodes names
        token(host="a\\b.example"),
        token(host="a..example"),
        token(host="fe80::1%eth0"),
        token(host="::g"),
        token(port="0"),
        token(port="65536"),
        token(port="-1"),
        token(port="4 4"),
        token(port="²"),
        token(port="9" * 255),
        token(path="/a b"),
        token(path="/a#b"),
        token(path="/a\r\nx-evil: 1"),
        token(path="/\0"),
        token(path="/ü"),
        token(auth=bytes(15)),
        token(auth=bytes(17)),
        token(key=bytes(65)),
        token(key=b"\4" + bytes(64)),
        token(key=point(KEY)[:-1]),
        token(key=b"\2" + point(KEY)[1:]),
        token()[:-1],
        token() + b"x",
        b"",
    ],
)
def test_a_subscription_that_is_none(bad: bytes) -> None:
    with pytest.raises(ParseError) as caught:
        WebPushSubscription.parse(bad)
    assert "example" not in str(caught.value)


@given(st.binary(max_size=300))
def test_other_bytes_are_refused_without_another_error(data: bytes) -> None:
    with contextlib.suppress(ParseError):
        WebPushSubscription.parse(data)


# --- encryption


def test_the_vector_of_rfc_8291_appendix_a() -> None:
    key = ec.derive_private_key(int.from_bytes(unb64("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw")), ec.SECP256R1())
    subscription = WebPushSubscription(
        "",
        "",
        "",
        unb64("BTBZMqHH6r4Tts7J_aSIgg"),
        unb64("BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"),
    )
    plain = b"When I grow up, I want to be a watermelon"
    assert b64(encrypt(plain, subscription, key=key, salt=unb64("DGv6ra1nlYgDCS1FRnbzlw"))) == (
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27ml"
        "mlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT"
        "pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )


@given(st.binary(max_size=4096 - 103))
def test_a_browser_decrypts(plain: bytes) -> None:
    browser = ec.generate_private_key(ec.SECP256R1())
    subscription = WebPushSubscription("", "", "", b"a" * 16, point(browser))
    body = encrypt(plain, subscription)
    assert len(body) == len(plain) + 103
    assert http_ece.decrypt(body, private_key=browser, auth_secret=b"a" * 16) == plain


def test_key_and_salt_are_fresh() -> None:
    subscription = WebPushSubscription.parse(token())
    bodies = [encrypt(b"same", subscription) for _ in range(5)]
    assert len({b[:16] for b in bodies}) == 5
    assert len({b[21:86] for b in bodies}) == 5


# --- VAPID

ORIGIN = "https://push.example.org"


def parts(header: str) -> tuple[str, str]:
    scheme, t, k = header.replace(",", "").split(" ")
    assert (scheme, t[:2], k[:2]) == ("vapid", "t=", "k=")
    return t[2:], k[2:]


def test_vapid_as_others_verify_it() -> None:
    vapid = Vapid(KEY, CONTACT, Clock())
    assert unb64(vapid.public_key) == point(KEY)
    for i in range(200):  # r and s with leading zeros come once in 128
        header = vapid.authorization(f"{ORIGIN}:{i + 1}")
        jws, k = parts(header)
        assert k == vapid.public_key
        assert Vapid02.verify(header.replace(", ", ","))
        claims = jwt.decode(
            jws, KEY.public_key(), ["ES256"], audience=f"{ORIGIN}:{i + 1}", options={"verify_exp": False}
        )
        assert claims == {"aud": f"{ORIGIN}:{i + 1}", "exp": NOW + 12 * 3600, "sub": CONTACT}
        assert jwt.get_unverified_header(jws) == {"typ": "JWT", "alg": "ES256"}


def test_vapid_is_kept_for_hours_and_is_never_about_to_expire() -> None:
    clock = Clock()
    vapid = Vapid(KEY, CONTACT, clock)
    seen = []
    for _ in range(48):
        header = vapid.authorization(ORIGIN)
        expires = jwt.decode(parts(header)[0], options={"verify_signature": False})["exp"]
        assert 6 * 3600 <= expires - clock.now <= 24 * 3600  # RFC 8292, section 2
        seen.append(header)
        clock.now += 1800
    assert 2 <= len(set(seen)) <= 5
    assert vapid.authorization(ORIGIN) != vapid.authorization("https://other.example")


def test_vapid_after_the_clock_was_set_back() -> None:
    clock = Clock()
    vapid = Vapid(KEY, CONTACT, clock)
    vapid.authorization(ORIGIN)
    clock.now -= 48 * 3600
    jws, _ = parts(vapid.authorization(ORIGIN))
    assert jwt.decode(jws, options={"verify_signature": False})["exp"] == clock.now + 12 * 3600


def test_the_tokens_of_many_origins_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webpush, "_MAX_ORIGINS", 10)
    vapid = Vapid(KEY, CONTACT, Clock())
    first = vapid.authorization(ORIGIN)
    for i in range(30):
        vapid.authorization(f"https://{i}.example")
    assert len(vapid._tokens) == 10
    assert vapid.authorization(ORIGIN) != first


# --- messages


@pytest.mark.parametrize(
    ("kind", "urgency", "ttl", "topic"),
    [(VERIFICATION, "high", 600, "verification"), (MESSAGES, "high", 86_400, None), (CHECK, "low", 3600, "check")],
)
async def test_the_request_for_each_kind(kind: PushKind, urgency: str, ttl: int, topic: str | None) -> None:
    async with providing() as (mock, sender, clock):
        device = token_of(mock.subscribe(point(KEY)))
        assert await sender.one(push(device, kind)) == Accepted((NOTIFICATION,) * (kind is MESSAGES))
        [message] = mock.pushes
        assert (message.urgency, message.ttl, message.topic) == (urgency, ttl, topic)
        assert message.vapid_key == point(KEY)
        assert (message.headers["content-encoding"], message.headers["content-type"]) == (
            "aes128gcm",
            "application/octet-stream",
        )
        assert message.size <= 4096
        clock.now += 100
        await sender.one(push(device, kind))
        assert mock.pushes[1].ttl == ttl - 100  # it counts from when it became due
        clock.now += 365 * 24 * 3600
        await sender.one(push(device, kind))
        assert mock.pushes[2].ttl == 0


async def test_a_time_to_live_beyond_what_push_services_keep() -> None:
    async with providing(ttl=dict.fromkeys(PushKind, 31_536_000)) as (mock, sender, _):
        await sender.one(push(token_of(mock.subscribe()), MESSAGES))
        assert mock.pushes[0].headers["ttl"] == "2419200"


async def test_the_device_can_open_what_was_sent() -> None:
    async with providing() as (mock, sender, _):
        subscription = mock.subscribe()
        opened = []
        for kind in PushKind:
            await sender.one(push(token_of(subscription), kind))
            body = mock.pushes[-1].body
            plain = http_ece.decrypt(body, private_key=subscription.private_key, auth_secret=subscription.auth)
            assert plain == mock.pushes[-1].data
            opened.append(json.loads(plain))
        verification, messages, check = opened

        def unbox(data: Any, name: str) -> bytes:
            assert data.keys() == {"nonce", name}
            nonce, sealed = (base64.urlsafe_b64decode(data[key]) for key in ("nonce", name))
            return crypto.unpad(crypto.unbox(SECRET, nonce, sealed))

        assert unbox(verification, "verification") == b"c" * 32
        entry = Entry.parse(unbox(messages, "message"))
        assert (entry.server, entry.notifier_id, entry.timestamp) == (str(SERVER), b"q" * 24, NOW)
        assert check == {"checkMessages": "true"}


async def test_messages_are_of_one_size() -> None:
    async with providing() as (mock, sender, _):
        device = token_of(mock.subscribe())
        for held in ([NOTIFICATION], [NOTIFICATION] * 6, [LONG], [LONG] * 6):
            await sender.one(push(device, MESSAGES, notifications=tuple(held)))
        for code in (b"", b"c" * 32):
            await sender.one(push(device, code=code))
        sizes = [m.size for m in mock.pushes]
        assert len(set(sizes[:4])) == 1
        assert len(set(sizes[4:])) == 1
        assert 3000 < max(sizes) <= 4096


async def test_one_bad_push_does_not_stop_the_others() -> None:
    async with providing() as (mock, sender, _):
        device = token_of(mock.subscribe())
        bad, unmakeable = push(b"junk", ref=1), push(device, MESSAGES, ref=2, notifications=(TOO_LARGE,))
        results = await sender.send(bad, unmakeable, push(device, ref=3))
        assert results[0] == Dead(InvalidReason.BAD)
        assert isinstance(results[1], Permanent)
        assert results[2] == Accepted()


async def test_many_subscriptions_share_connections_and_a_token() -> None:
    async with providing() as (mock, sender, _):
        subscriptions = [mock.subscribe() for _ in range(40)]
        for s in subscriptions[::4]:
            mock.unsubscribe(s)
        results = await sender.send(*(push(token_of(s), ref=i) for i, s in enumerate(subscriptions)))
        dead = Dead(InvalidReason.UNREGISTERED)
        assert results == [dead if i % 4 == 0 else Accepted() for i in range(40)]
        assert len({m.headers["authorization"] for m in mock.pushes}) == 1
        assert mock.counters.opened <= 2
        for s in subscriptions[1::4]:
            [message] = [m for m in mock.pushes if m.subscription is s]
            assert message.data is not None


# --- answers


@pytest.mark.parametrize("status", [404, 410])
async def test_a_subscription_that_is_gone(status: Any) -> None:
    async with providing() as (mock, sender, _):
        subscription = mock.subscribe()
        mock.unsubscribe(subscription, status)
        assert await sender.one(push(token_of(subscription))) == Dead(InvalidReason.UNREGISTERED)
        mock.resubscribe(subscription)
        assert await sender.one(push(token_of(subscription))) == Accepted()


async def test_a_subscription_for_another_server_s_key_is_kept() -> None:
    async with providing() as (mock, sender, _):
        other = mock.subscribe(point(ec.generate_private_key(ec.SECP256R1())))
        assert await sender.one(push(token_of(other))) == Permanent("403")


async def test_troubles_are_this_subscription_s_own() -> None:
    async with providing() as (mock, sender, _):
        device = token_of(mock.subscribe())
        await sender.one(push(device))
        mock.script(RstStream(), Answer(429, headers=(("retry-after", "9"),)))
        assert await sender.one(push(device)) == Retry("HTTP/2 stream reset")
        assert await sender.one(push(device)) == Retry("429", after=9.0)
        await mock.stop()
        await sender.one(push(device))  # on the connection that was lost
        assert await sender.one(push(device)) == Retry("connection refused")
        await mock.start()
        assert await sender.one(push(device)) == Accepted()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with providing() as (mock, sender, _), MockWebPush() as elsewhere:
        mock.script(Answer(status, headers=(("location", elsewhere.subscribe().endpoint),)))
        assert await sender.one(push(token_of(mock.subscribe()))) == Permanent(str(status))
        assert elsewhere.counters.opened == 0
        assert mock.counters.requests == 1


async def test_a_name_that_leads_to_this_machine_is_not_connected_to() -> None:
    async with providing(public_only=True) as (mock, sender, _):
        subscription = mock.subscribe()
        for host in ("localhost", "127.0.0.1", "::1"):
            assert await sender.one(push(token_of(subscription, host))) == Retry("connection refused")
        assert mock.counters.opened == 0


@pytest.mark.parametrize(("kind", "scheme"), [("http", "http"), ("socks5", "socks5h")])
async def test_through_a_proxy(kind: Any, scheme: str) -> None:
    async with Proxy(kind) as proxy, providing(proxy=proxy.url(scheme=scheme)) as (mock, sender, _):
        assert await sender.one(push(token_of(mock.subscribe()))) == Accepted()
        assert len(proxy.targets) == mock.counters.opened == 1


@pytest.mark.parametrize(
    ("response", "result"),
    [
        (HttpResponse(200), Accepted()),
        (HttpResponse(201), Accepted()),
        (HttpResponse(202), Accepted()),
        (HttpResponse(204), Accepted()),
        (HttpResponse(301), Permanent("301")),
        (HttpResponse(400, b"reason"), Permanent("400")),
        (HttpResponse(401), Permanent("401")),
        (HttpResponse(403), Permanent("403")),
        (HttpResponse(404), Dead(InvalidReason.UNREGISTERED)),
        (HttpResponse(410), Dead(InvalidReason.UNREGISTERED)),
        (HttpResponse(413), Permanent("413")),
        (HttpResponse(429), Retry("429")),
        (HttpResponse(429, retry_after=60.0), Retry("429", after=60.0)),
        (HttpResponse(500), Retry("500")),
        (HttpResponse(503, retry_after=60.0), Retry("503", after=60.0)),
        (HttpFailure(pycurl.E_COULDNT_CONNECT, timeout=False), Retry("connection refused")),
        (HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True), Retry("timed out")),
    ],
)
def test_what_an_answer_means(response: HttpResponse | HttpFailure, result: Result) -> None:
    assert judge(response) == result


# --- secrets


async def test_secrets_are_in_no_repr_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("ntf_server", "asyncio"):  # not hpack, which is the mock's
        caplog.set_level(logging.DEBUG, name)
    async with providing() as (mock, sender, _):
        subscription = mock.subscribe()
        mock.script(Answer(403), Answer(500), RstStream())
        device = token_of(subscription)
        results = [await sender.one(push(device, MESSAGES)) for _ in range(4)]
        vapid = sender.web_push._vapid
        shown = repr((results, sender.web_push, vapid, push(device), WebPushSubscription.parse(device))) + caplog.text
        authorization = vapid.authorization(mock.origin)
    assert isinstance(results[-1], Accepted)
    for secret in (subscription.path[6:], parts(authorization)[0], repr(subscription.auth)[2:-1], repr(SECRET)):
        assert secret not in shown
