import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import http_ece
import pytest
from claims import CHECK, ENTRY, LONG, MESSAGES, NOW, SECRET, SERVER, TOO_LARGE, TTL, VERIFICATION, Clock, Sender, Took
from claims import claim as make_claim
from cryptography.hazmat.primitives.asymmetric import ec
from proxies import Proxy

from ntf_server.push.exchange import Endpoint
from ntf_server.push.front import Refusal
from ntf_server.push.http import HttpEngine
from ntf_server.push.jose import public_point as point
from ntf_server.push.verdict import Again, DeadToken, Ours, Scope
from ntf_server.push.webpush import open as module
from ntf_server.push.webpush.open import OpenWebPush
from ntf_server.push.webpush.settings import WebPushSettings
from ntf_server.push.webpush.subscription import WebPushSubscription
from ntf_server.push.webpush.vapid import key_id
from ntf_server.store.records import Claim, PushKind
from ntf_server.testing import Answer, MockWebPush, RstStream, Silence, Subscription
from smp_bridge import crypto
from smp_bridge.encoding import short
from smp_bridge.ntf import DeviceToken, Entry, InvalidReason, Provider

KEY = ec.generate_private_key(ec.SECP256R1())
OLDER = ec.generate_private_key(ec.SECP256R1())
CONTACT = "mailto:push@example.org"


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


def claim(device: bytes, kind: PushKind = VERIFICATION, ref: int = 1, **fields: Any) -> Claim:
    return make_claim(Provider.WEB_PUSH, device, kind, ref, **fields)


@contextlib.asynccontextmanager
async def providing(
    *, ttl: Any = TTL, keys: Any = (KEY,), timeout: float = 5.0, public_only: bool = False, proxy: str = ""
) -> AsyncIterator[tuple[MockWebPush, Sender, Clock]]:
    clock = Clock()
    async with MockWebPush(clock=clock) as mock:
        engine = HttpEngine()
        endpoint = Endpoint("", str(mock.ca_file), timeout=timeout, http2_only=False, proxy=proxy)
        try:
            allowed = () if public_only else ("localhost", IPv4Network("127.0.0.0/8"))
            settings = WebPushSettings(keys, CONTACT, endpoint, ttl, allowed, "relay.example.org")
            opened = OpenWebPush(settings, engine, clock)
            sender = Sender(opened.providers[Provider.WEB_PUSH])
            sender.opened, sender.settings = opened, settings
            yield mock, sender, clock
        finally:
            await engine.close()


# --- what is asked before a device token is taken


def web_push(token: bytes) -> DeviceToken:
    return DeviceToken(Provider.WEB_PUSH, token)


async def test_the_front() -> None:
    async with providing(public_only=True, keys=(KEY, OLDER)) as (_, sender, _):
        front = sender.opened.front
        assert front.key_id == key_id(KEY)
        assert front.refusal(web_push(token())) is None
        assert front.origin(web_push(token("Push.Example.org", "8443"))) == "https://push.example.org:8443"
        for host in ("localhost", "127.0.0.1", "10.0.0.1", "printer.local", "::1"):
            assert front.refusal(web_push(token(host))) is Refusal.HOST
        for bad in (b"", b"junk", token("a?b.example"), token(key=bytes(65))):
            assert front.refusal(web_push(bad)) is Refusal.SYNTAX
            assert front.origin(web_push(bad)) == ""


@pytest.mark.parametrize(
    ("allowed", "taken", "refused"),
    [
        (("ntfy.local",), ["ntfy.local", "NTFY.Local.", "a.ntfy.local"], ["o.local", "ntfy", "10.0.0.1", "localhost"]),
        ((IPv4Network("10.1.0.0/16"),), ["10.1.2.3"], ["10.2.0.1", "127.0.0.1", "ntfy.local"]),
        (("localhost", IPv6Network("::1")), ["localhost", "::1"], ["127.0.0.1", "::2"]),
        (("relay.example.org",), ["relay.example.org"], ["printer.local"]),
    ],
)
async def test_hosts_that_are_allowed(allowed: Any, taken: list[str], refused: list[str]) -> None:
    """From when the settings are taken up; public ones are taken anyway."""
    async with providing(public_only=True) as (_, sender, _):
        front = sender.opened.front
        assert {front.refusal(web_push(token(host))) for host in (*taken, *refused)} == {Refusal.HOST}
        sender.opened.use(replace(sender.settings, allow_hosts=allowed))
        assert {front.refusal(web_push(token(host))) for host in (*taken, "push.example.org")} == {None}
        assert {front.refusal(web_push(token(host))) for host in refused} == {Refusal.HOST}


@pytest.mark.parametrize("host", ["relay.example.org", "Relay.Example.Org.", "203.0.114.7"])
async def test_our_own_host_is_no_push_service(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_own_ip", lambda ip: ip == "203.0.114.7")
    async with providing() as (_, sender, _):
        assert sender.opened.front.refusal(web_push(token(host))) is Refusal.HOST
        assert sender.opened.front.refusal(web_push(token("203.0.114.8"))) is None


@pytest.mark.parametrize(("allowed", "reached"), [((), 0), (("localhost",), 1), ((IPv4Network("127.0.0.0/8"),), 1)])
async def test_what_is_allowed_is_pushed_to(allowed: Any, reached: int) -> None:
    async with providing(public_only=True) as (mock, sender, _):
        sender.opened.use(replace(sender.settings, allow_hosts=allowed))
        verdict = await sender.one(claim(token_of(mock.subscribe(point(KEY)))))
        assert mock.counters.requests == reached
        assert (verdict == Took()) == bool(reached)


# --- VAPID keys


async def test_a_subscription_of_an_older_key_is_pushed_to_with_it() -> None:
    async with providing(keys=(KEY, OLDER)) as (mock, sender, _):
        device = token_of(mock.subscribe(point(OLDER)))
        assert await sender.one(claim(device, vapid_key=key_id(OLDER))) == Took()
        assert mock.counters.requests == 1
        for registered in (b"", key_id(KEY), b"?" * 16):  # it is not known to be of the older one
            assert await sender.one(claim(device, vapid_key=registered)) == Took()
        assert mock.counters.requests == 7
        assert {m.vapid_key for m in mock.pushes} == {point(OLDER)}


async def test_a_subscription_of_no_key_of_ours_is_the_end_of_the_token() -> None:
    async with providing(keys=(KEY, OLDER)) as (mock, sender, _):
        device = token_of(mock.subscribe(point(ec.generate_private_key(ec.SECP256R1()))))
        assert await sender.one(claim(device)) == DeadToken(InvalidReason.TOPIC)
        assert mock.counters.requests == 2  # each key was tried once


async def test_another_key_counts_from_now_on() -> None:
    async with providing() as (mock, sender, _):
        sender.opened.use(replace(sender.settings, keys=(OLDER, KEY)))
        assert sender.opened.front.key_id == key_id(OLDER)
        assert await sender.one(claim(token_of(mock.subscribe(point(OLDER))))) == Took()
        assert await sender.one(claim(token_of(mock.subscribe(point(KEY))))) == Took()


async def test_which_key_a_subscription_is_for_is_told_when_that_was_not_known() -> None:
    told: list[tuple[Any, bytes]] = []
    async with providing(keys=(KEY, OLDER)) as (mock, sender, _):
        sender.opened._web_push._on_key = lambda c, key: told.append((c.token, key))
        device, news = token_of(mock.subscribe(point(OLDER))), token_of(mock.subscribe(point(KEY)))
        for n, (to, registered) in enumerate([(device, b""), (device, key_id(KEY)), (news, b""), (news, b"?" * 16)]):
            await sender.one(claim(to, ref=n, vapid_key=registered))
        assert told == [(0, key_id(OLDER)), (1, key_id(OLDER)), (2, key_id(KEY)), (3, key_id(KEY))]
        for to, registered in ((device, key_id(OLDER)), (news, key_id(KEY))):
            await sender.one(claim(to, vapid_key=registered))
        await sender.one(claim(token_of(mock.subscribe(point(ec.generate_private_key(ec.SECP256R1()))))))
        assert len(told) == 4  # it was known; and of no key of ours


# --- messages


@pytest.mark.parametrize(
    ("kind", "urgency", "ttl", "topic"),
    [(VERIFICATION, "high", 600, "verification"), (MESSAGES, "high", 2_419_200, None), (CHECK, "low", 3600, "check")],
)
async def test_the_request_for_each_kind(kind: PushKind, urgency: str, ttl: int, topic: str | None) -> None:
    async with providing() as (mock, sender, clock):
        device = token_of(mock.subscribe(point(KEY)))
        assert await sender.one(claim(device, kind)) == Took((ENTRY,) * (kind is MESSAGES))
        [message] = mock.pushes
        assert (message.urgency, message.ttl, message.topic) == (urgency, ttl, topic)
        assert message.vapid_key == point(KEY)
        assert (message.headers["content-encoding"], message.headers["content-type"]) == (
            "aes128gcm",
            "application/octet-stream",
        )
        assert message.size <= 4096
        clock.now += 100
        await sender.one(claim(device, kind))
        assert mock.pushes[1].ttl == ttl - 100  # it counts from when it became due
        clock.now += 365 * 24 * 3600
        await sender.one(claim(device, kind))
        assert mock.pushes[2].ttl == 0


async def test_a_time_to_live_beyond_what_push_services_keep() -> None:
    async with providing(ttl=dict.fromkeys(PushKind, 31_536_000)) as (mock, sender, _):
        await sender.one(claim(token_of(mock.subscribe()), MESSAGES))
        assert mock.pushes[0].headers["ttl"] == "2419200"


async def test_the_device_can_open_what_was_sent() -> None:
    async with providing() as (mock, sender, _):
        subscription = mock.subscribe()
        opened = []
        for kind in PushKind:
            await sender.one(claim(token_of(subscription), kind))
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
        assert check == {"checkMessages": True}


async def test_messages_are_of_one_size() -> None:
    async with providing() as (mock, sender, _):
        device = token_of(mock.subscribe())
        for held in ([ENTRY], [ENTRY] * 6, [LONG], [LONG] * 6):
            await sender.one(claim(device, MESSAGES, entries=tuple(held)))
        for code in (b"", b"c" * 32):
            await sender.one(claim(device, code=code))
        sizes = [m.size for m in mock.pushes]
        assert len(set(sizes[:4])) == 1
        assert len(set(sizes[4:])) == 1
        assert 3000 < max(sizes) <= 4096


async def test_one_bad_push_does_not_stop_the_others() -> None:
    async with providing() as (mock, sender, _):
        device = token_of(mock.subscribe())
        bad, unmakeable = claim(b"junk", ref=1), claim(device, MESSAGES, ref=2, entries=(TOO_LARGE,))
        results = await sender.send(bad, unmakeable, claim(device, ref=3))
        assert results[0] == DeadToken(InvalidReason.BAD)
        assert results[1].scope is Scope.TOKEN
        assert results[2] == Took()


async def test_many_subscriptions_share_connections_and_a_token() -> None:
    async with providing() as (mock, sender, _):
        subscriptions = [mock.subscribe() for _ in range(40)]
        for s in subscriptions[::4]:
            mock.unsubscribe(s)
        results = await sender.send(*(claim(token_of(s), ref=i) for i, s in enumerate(subscriptions)))
        dead = DeadToken(InvalidReason.UNREGISTERED)
        assert results == [dead if i % 4 == 0 else Took() for i in range(40)]
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
        assert await sender.one(claim(token_of(subscription))) == DeadToken(InvalidReason.UNREGISTERED)
        mock.resubscribe(subscription)
        assert await sender.one(claim(token_of(subscription))) == Took()


async def test_troubles_are_this_subscription_s_own() -> None:
    async with providing() as (mock, sender, _):
        device = token_of(mock.subscribe())
        await sender.one(claim(device))
        mock.script(RstStream(), Answer(429, headers=(("retry-after", "9"),)))
        assert await sender.one(claim(device)) == Again("HTTP/2 stream reset")
        assert await sender.one(claim(device)) == Again("429", Scope.ORIGIN, 9.0)
        await mock.stop()
        await sender.one(claim(device))  # on the connection that was lost
        assert await sender.one(claim(device)) == Again("connection refused", Scope.ORIGIN)
        await mock.start()
        assert await sender.one(claim(device)) == Took()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with providing() as (mock, sender, _), MockWebPush() as elsewhere:
        mock.script(Answer(status, headers=(("location", elsewhere.subscribe().endpoint),)))
        assert await sender.one(claim(token_of(mock.subscribe()))) == Ours(str(status), Scope.ORIGIN)
        assert elsewhere.counters.opened == 0
        assert mock.counters.requests == 1


async def test_a_name_that_leads_to_this_machine_is_not_connected_to() -> None:
    async with providing(public_only=True) as (mock, sender, _):
        subscription = mock.subscribe()
        for host in ("localhost", "127.0.0.1", "::1"):
            assert await sender.one(claim(token_of(subscription, host))) == Again("connection refused", Scope.ORIGIN)
        assert mock.counters.opened == 0


@pytest.mark.parametrize(("kind", "scheme"), [("http", "http"), ("socks5", "socks5h")])
async def test_through_a_proxy(kind: Any, scheme: str) -> None:
    async with Proxy(kind) as proxy, providing(proxy=proxy.url(scheme=scheme)) as (mock, sender, _):
        assert await sender.one(claim(token_of(mock.subscribe()))) == Took()
        assert len(proxy.targets) == mock.counters.opened == 1


async def test_silence_is_of_the_whole_origin() -> None:
    async with providing(timeout=0.3) as (mock, sender, _):
        mock.script(Silence())
        assert await sender.one(claim(token_of(mock.subscribe()))) == Again("timed out", Scope.ORIGIN)


# --- secrets


async def test_secrets_are_in_no_repr_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("ntf_server", "asyncio"):  # not hpack, which is the mock's
        caplog.set_level(logging.DEBUG, name)
    async with providing() as (mock, sender, _):
        subscription = mock.subscribe()
        mock.script(Answer(403), Answer(500), RstStream())
        device = token_of(subscription)
        results = [await sender.one(claim(device, MESSAGES)) for _ in range(4)]
        vapid = next(iter(sender.provider._vapids.values()))
        shown = repr((results, sender.provider, vapid, claim(device), WebPushSubscription.parse(device))) + caplog.text
        authorization = vapid.authorization(mock.origin)
    assert isinstance(results[-1], Took)
    for secret in (subscription.path[6:], authorization[8:], repr(subscription.auth)[2:-1], repr(SECRET)):
        assert secret not in shown
