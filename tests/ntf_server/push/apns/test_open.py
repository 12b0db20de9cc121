import base64
import contextlib
import logging
import os
import urllib.parse
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from claims import CHECK, ENTRY, MESSAGES, NOW, SECRET, TOO_LARGE, TTL, VERIFICATION, Clock, Sender, Took
from claims import claim as make_claim

from ntf_server.push.apns.open import OpenApns
from ntf_server.push.apns.provider_token import ProviderToken
from ntf_server.push.apns.settings import CONNECTION_ENDS, ApnsSettings, SigningKey
from ntf_server.push.exchange import Endpoint
from ntf_server.push.http import HttpEngine
from ntf_server.push.jose import generate_key
from ntf_server.push.verdict import Again, DeadToken, Ours, Scope
from ntf_server.store.records import Claim, PushKind
from ntf_server.testing import Answer, MockApns, RstStream
from smp_bridge import crypto
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider

KEY = generate_key()
SIGNING = SigningKey(KEY, "KEYKEYKEY1", "TEAMTEAM01")
TOPIC = "chat.example.app"
DEVICE = b"ab" * 32


def claim(kind: PushKind = VERIFICATION, device: bytes = DEVICE, ref: int = 1, **fields: Any) -> Claim:
    return make_claim(Provider.APNS, device, kind, ref, **fields)


@contextlib.asynccontextmanager
async def providing(
    clock: Clock | None = None,
    *,
    apples: Clock | None = None,
    monotonic: Clock | None = None,
    any_device_token: bool = False,
    **changes: Any,
) -> AsyncIterator[tuple[MockApns, Sender]]:
    """`apples`: another clock than ours."""
    clock = clock or Clock()
    checks = {"public_key": KEY.public_key(), "key_id": "KEYKEYKEY1", "team_id": "TEAMTEAM01", "topics": [TOPIC]}
    async with MockApns(**checks, clock=apples or clock, any_device_token=any_device_token) as mock:
        engine = HttpEngine()
        endpoint = Endpoint(mock.url, str(mock.ca_file), timeout=5.0, ends=CONNECTION_ENDS)
        settings = replace(ApnsSettings({Provider.APNS: endpoint}, TOPIC, SIGNING, TTL), **changes)
        try:
            opened = OpenApns(settings, engine, clock, monotonic or clock)
            sender = Sender(opened.providers[Provider.APNS])
            sender.opened = opened
            yield mock, sender
        finally:
            await engine.close()


# --- the provider token


async def test_the_jwt_is_shared_and_renewed_by_the_clock() -> None:
    clock = Clock()
    async with providing(clock) as (mock, sender):
        for _ in range(5):
            assert await sender.send(*(claim(ref=i) for i in range(3))) == [Took()] * 3
            clock.now += 15 * 60
        authorizations = [p.headers["authorization"] for p in mock.pushes]
        assert mock.rejected == []
        assert len(set(authorizations)) == 2


async def test_an_expired_jwt_that_is_old_enough_is_renewed_at_once() -> None:
    clock = Clock()
    async with providing(clock) as (mock, sender):
        assert await sender.one(claim()) == Took()
        clock.now += 20 * 60
        mock.script(Answer(403, "ExpiredProviderToken"))
        assert await sender.one(claim()) == Again("403 ExpiredProviderToken")
        assert await sender.send(claim(ref=1), claim(ref=2)) == [Took()] * 2
        old, new, same = (p.headers["authorization"] for p in mock.pushes)
        assert old != new == same


@pytest.mark.parametrize(
    ("apart", "words"),
    [
        (7200, "this machine's clock is 7200 s behind Apple's"),
        (-7200, "this machine's clock is 7200 s ahead of Apple's"),
    ],
)
async def test_a_clock_that_is_wrong_is_named_and_renews_nothing(apart: int, words: str) -> None:
    apples, seen = Clock(NOW + apart), set()
    async with providing(apples=apples) as (mock, sender):
        draw = mock.draw
        mock.draw = lambda r: (seen.add(r.fields()["authorization"]), draw(r))[1]  # type: ignore[method-assign]
        for _ in range(3):
            verdicts = await sender.send(*(claim(ref=i) for i in range(20)))
            assert verdicts == [Ours(f"403 ExpiredProviderToken: {words}", Scope.PROVIDER)] * 20
        assert len(seen) == 1
        apples.now = NOW
        assert await sender.one(claim()) == Took()  # the mended clock is taken note of at once


async def test_an_answer_without_a_date_leaves_the_clock_in_doubt() -> None:
    async with providing() as (mock, sender):
        mock.script(*[Answer(403, "ExpiredProviderToken", headers=(("date", "no date"),))] * 2)
        verdict = await sender.one(claim())
        assert verdict == Ours("403 ExpiredProviderToken: is this machine's clock right?", Scope.PROVIDER)


async def test_a_push_that_is_taken_when_it_asks_for_the_time_is_delivered() -> None:
    async with providing() as (mock, sender):
        mock.script(*[Answer(403, "ExpiredProviderToken")] * 3)
        verdicts = await sender.send(*(claim(ref=i) for i in range(3)))
        assert sorted(map(str, verdicts)) == sorted(map(str, [Took(), *[Again("403 ExpiredProviderToken")] * 2]))


async def test_pushes_of_one_claim_have_one_id() -> None:
    async with providing() as (mock, sender):
        for ref in (1, 1, 2):
            await sender.one(claim(ref=ref))
        first, again, other = (p.apns_id for p in mock.pushes)
        assert first == again != other
        assert uuid.UUID(first).version == 4


# --- requests


@pytest.mark.parametrize(
    ("kind", "push_type", "priority"),
    [(VERIFICATION, "background", 5), (MESSAGES, "alert", 10), (CHECK, "background", 5)],
)
async def test_the_request_for_each_kind(kind: PushKind, push_type: str, priority: int) -> None:
    async with providing() as (mock, sender):
        held = (ENTRY,) * (kind is MESSAGES)
        assert await sender.one(claim(kind)) == Took(held)
        [accepted] = mock.pushes
        assert (accepted.token, accepted.topic) == (DEVICE.decode(), TOPIC)
        assert (accepted.headers["apns-push-type"], accepted.headers["apns-priority"]) == (push_type, str(priority))
        assert accepted.headers["content-type"] == "application/json"
        assert uuid.UUID(accepted.headers["apns-id"])
        assert accepted.size <= 4096


async def test_the_device_can_open_what_was_sent() -> None:
    async with providing() as (mock, sender):
        await sender.one(claim(VERIFICATION))
        data = mock.pushes[0].body["notificationData"]
        nonce, sealed = (base64.urlsafe_b64decode(data[name]) for name in ("nonce", "verification"))
        assert crypto.unpad(crypto.unbox(SECRET, nonce, sealed)) == b"c" * 32


async def test_many_at_once_each_get_their_own_result() -> None:
    async with providing() as (mock, sender):
        devices = [b"%064x" % i for i in range(60)]
        for i in range(0, 60, 3):
            mock.unregister(devices[i].decode())
        results = await sender.send(*(claim(device=d, ref=i) for i, d in enumerate(devices)))
        dead = DeadToken(InvalidReason.UNREGISTERED)
        assert results == [dead if i % 3 == 0 else Took() for i in range(60)]
        assert len({p.apns_id for p in mock.pushes}) == 40


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
    async with providing(any_device_token=True) as (mock, sender):
        assert await sender.one(claim(device=device)) == Took()
        [accepted] = mock.pushes
        assert "/" not in accepted.token
        assert urllib.parse.unquote_to_bytes(accepted.token) == device
        assert "x-evil" not in accepted.headers


@pytest.mark.parametrize("device", [b"", b".", b".."])
async def test_a_device_token_that_is_no_segment_is_bad_and_nothing_is_sent(device: bytes) -> None:
    async with providing() as (mock, sender):
        results = await sender.send(claim(device=device), claim(ref=2))
        assert results == [DeadToken(InvalidReason.BAD), Took()]
        assert mock.counters.requests == 1


async def test_a_push_that_cannot_be_made_does_not_stop_the_others() -> None:
    async with providing() as (_, sender):
        results = await sender.send(claim(ref=1), claim(MESSAGES, ref=2, entries=(TOO_LARGE,)), claim(ref=3))
        assert results[1].scope is Scope.TOKEN
        assert results[::2] == [Took()] * 2


@pytest.mark.parametrize(("kind", "ttl"), [(VERIFICATION, 600), (MESSAGES, 28 * 24 * 3600), (CHECK, 3600)])
async def test_apple_keeps_a_push_as_long_as_we_would_and_replaces_no_messages(kind: PushKind, ttl: int) -> None:
    clock = Clock()
    async with providing(clock) as (mock, sender):
        for _ in range(2):
            await sender.one(claim(kind))
            clock.now += 100  # it counts from when the push became due
        for accepted in mock.pushes:
            assert int(accepted.headers["apns-expiration"]) == NOW + ttl
            collapse_id = accepted.headers.get("apns-collapse-id")
            assert collapse_id == (None if kind is MESSAGES else kind.name.lower())


async def test_a_time_to_live_of_the_operator() -> None:
    async with providing(ttl={VERIFICATION: 11, MESSAGES: 22, CHECK: 33}) as (mock, sender):
        await sender.send(*(claim(kind, ref=i) for i, kind in enumerate(PushKind)))
        assert sorted(int(p.headers["apns-expiration"]) - NOW for p in mock.pushes) == [11, 22, 33]


# --- authentication


async def test_another_key_signs_at_once_and_the_same_one_changes_nothing() -> None:
    other = generate_key()
    async with providing() as (mock, sender):
        await sender.one(claim())
        for signing in (SIGNING, replace(SIGNING, key=other, key_id="KEYKEYKEY2")):
            mock._provider_tokens._public_key = signing.key.public_key()
            mock._provider_tokens._key_id = signing.key_id
            mock._provider_tokens._verified.clear()
            sender.opened.use(ApnsSettings({}, TOPIC, signing, TTL))
            assert await sender.one(claim()) == Took()
        first, same, changed = (p.headers["authorization"] for p in mock.pushes)
        assert first == same != changed


async def test_another_topic_counts_from_now_on() -> None:
    async with providing() as (mock, sender):
        assert mock._topics is not None
        mock._topics |= {"other.app"}
        sender.opened.use(ApnsSettings({}, "other.app", SIGNING, TTL))
        await sender.one(claim())
        assert mock.pushes[0].topic == "other.app"


async def test_with_a_certificate_there_is_no_provider_token() -> None:
    async with providing(signing=None) as (mock, sender):
        # the mock knows tokens only
        assert await sender.one(claim()) == Ours("403 MissingProviderToken", Scope.PROVIDER)
        assert mock.counters.requests == 1


async def test_with_a_certificate_no_answer_renews_anything() -> None:
    async with providing(signing=None) as (mock, sender):
        mock.script(Answer(403, "ExpiredProviderToken"))
        assert isinstance(await sender.one(claim()), Ours)


async def test_any_device_token_is_taken_before_it_is_pushed_to() -> None:
    async with providing() as (_, sender):
        front = sender.opened.front
        assert front.refusal(DeviceToken(Provider.APNS, DEVICE)) is None
        assert (front.origin(DeviceToken(Provider.APNS, DEVICE)), front.key_id) == ("", b"")


# --- answers


@pytest.mark.parametrize(("status", "reason"), [(400, "IdleTimeout"), (503, "Shutdown")])
async def test_a_connection_that_is_said_to_end_is_left_at_once(status: int, reason: str) -> None:
    async with providing() as (mock, sender):
        await sender.one(claim())
        mock.script(Answer(status, reason))
        assert await sender.one(claim()) == Again(f"{status} {reason}")
        assert await sender.one(claim()) == Took()
        assert mock.pushes[0].connection != mock.pushes[1].connection


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
        result = await sender.one(claim(registered_at=registered_at))
        assert result == (DeadToken(reason) if dead else Again(f"410 {name}"))


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
        assert await sender.one(claim()) == DeadToken(reason)


async def test_troubles_of_the_network_are_retried() -> None:
    async with providing() as (mock, sender):
        mock.script(RstStream(), Answer(503, "Down", headers=(("retry-after", "9"),)), Answer(500))
        assert await sender.one(claim()) == Again("HTTP/2 stream reset", Scope.TOKEN)
        assert await sender.one(claim()) == Again("503 Down", Scope.TOKEN, 9.0)
        assert await sender.one(claim()) == Again("500", Scope.TOKEN)
        await mock.stop()
        outage = await sender.one(claim())
        assert isinstance(outage, Again)
        await mock.start()
        assert await sender.one(claim()) == Took()


async def test_strange_answers_do_not_stop_the_others() -> None:
    async with providing() as (mock, sender):
        mock.script(Answer(400, body=b"[" * 60_000), Answer(503, headers=(("retry-after", "\xb2"),)))
        results = await sender.send(*(claim(ref=i) for i in range(10)))
        assert results.count(Took()) == 8


# --- secrets


async def test_secrets_are_in_no_repr_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("ntf_server", "asyncio"):  # not hpack, which is the mock's
        caplog.set_level(logging.DEBUG, name)
    device = os.urandom(32).hex()
    async with providing() as (mock, sender):
        mock.script(Answer(403, "InvalidProviderToken"), Answer(500), RstStream())
        results = [await sender.one(claim(MESSAGES, device.encode())) for _ in range(4)]
        bearer = mock.pushes[0].headers["authorization"].removeprefix("bearer ")
        token = ProviderToken(SIGNING, Clock())
        shown = repr((results, sender.provider, token, claim(device=device.encode()))) + caplog.text
    assert isinstance(results[-1], Took)
    for secret in (device, bearer, bearer.split(".")[2], token.get(), repr(SECRET), repr(b"c" * 32)):
        assert secret not in shown
