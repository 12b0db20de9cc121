import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from claims import CHECK, ENTRY, LONG, MESSAGES, NOW, SECRET, SERVER, TOO_LARGE, TTL, VERIFICATION, Clock, Sender, Took
from claims import claim as make_claim
from cryptography.hazmat.primitives.asymmetric import rsa
from proxies import Proxy

from ntf_server.config.service_account import parse_service_account
from ntf_server.push.exchange import Endpoint
from ntf_server.push.fcm.open import OpenFcm
from ntf_server.push.fcm.settings import FcmSettings
from ntf_server.push.http import HttpEngine
from ntf_server.push.verdict import Again, DeadToken, Ours, Scope
from ntf_server.store.records import Claim, PushKind
from ntf_server.testing import Answer, MockFcm, RstStream, Silence, fcm_error, grant_error
from ntf_server.testing.google import api_error
from smp_bridge import crypto
from smp_bridge.ntf import DeviceToken, Entry, InvalidReason, Provider

KEY = rsa.generate_private_key(65537, 2048)
DEVICE = b"cAbCdEf:APA91b-_registration"


def claim(kind: PushKind = VERIFICATION, device: bytes = DEVICE, ref: int = 1, **fields: Any) -> Claim:
    return make_claim(Provider.FCM, device, kind, ref, **fields)


@contextlib.asynccontextmanager
async def providing(
    tmp_path: Path, *, proxy: str = "", ttl: Any = TTL, **options: Any
) -> AsyncIterator[tuple[MockFcm, Sender, Clock]]:
    clock = Clock()
    async with MockFcm(private_key=KEY, clock=clock, **options) as mock:
        account = parse_service_account(mock.service_account(tmp_path / "account.json").read_bytes())
        engine = HttpEngine()
        try:
            endpoint = Endpoint(mock.url, str(mock.ca_file), timeout=5.0, http2_only=False, proxy=proxy)
            settings = FcmSettings(account, endpoint, replace(endpoint, url=mock.token_url), ttl)
            opened = OpenFcm(settings, engine, clock)
            sender = Sender(opened.providers[Provider.FCM])
            sender.opened, sender.settings = opened, settings
            yield mock, sender, clock
        finally:
            await engine.close()


# --- messages


@pytest.mark.parametrize(
    ("kind", "priority", "ttl", "collapse_key"),
    [
        (VERIFICATION, "HIGH", 600, "verification"),
        (MESSAGES, "HIGH", 28 * 86_400, None),
        (CHECK, "NORMAL", 3600, "check"),
    ],
)
async def test_the_message_for_each_kind(
    tmp_path: Path, kind: PushKind, priority: str, ttl: int, collapse_key: str | None
) -> None:
    async with providing(tmp_path) as (mock, sender, clock):
        assert await sender.one(claim(kind)) == Took((ENTRY,) * (kind is MESSAGES))
        [message] = mock.pushes
        assert (message.token, message.priority, message.ttl) == (DEVICE.decode(), priority, ttl)
        assert message.android.get("collapseKey") == collapse_key  # messages never replace one another
        assert all(isinstance(v, str) for v in message.data.values())
        assert message.size <= 4096
        clock.now += 100
        await sender.one(claim(kind))
        assert mock.pushes[1].ttl == ttl - 100  # it counts from when it became due
        clock.now += 365 * 24 * 3600
        await sender.one(claim(kind))
        assert mock.pushes[2].ttl == 0


async def test_a_time_to_live_beyond_what_fcm_takes(tmp_path: Path) -> None:
    async with providing(tmp_path, ttl=dict.fromkeys(PushKind, 31_536_000)) as (mock, sender, _):
        assert await sender.send(*(claim(kind, ref=i) for i, kind in enumerate(PushKind))) == [
            Took(),
            Took((ENTRY,)),
            Took(),
        ]
        assert {m.ttl for m in mock.pushes} == {2_419_200}


async def test_the_device_can_open_what_was_sent(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        for kind in PushKind:
            await sender.one(claim(kind))
        verification, messages, check = (m.data for m in mock.pushes)

        def opened(data: Any, name: str) -> bytes:
            assert data.keys() == {"nonce", name}
            nonce, sealed = (base64.urlsafe_b64decode(data[key]) for key in ("nonce", name))
            return crypto.unpad(crypto.unbox(SECRET, nonce, sealed))

        assert opened(verification, "verification") == b"c" * 32
        entry = Entry.parse(opened(messages, "message"))
        assert (entry.server, entry.notifier_id, entry.timestamp) == (str(SERVER), b"q" * 24, NOW)
        assert check == {"checkMessages": "true"}


async def test_messages_are_of_one_size(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        for held in ([ENTRY], [ENTRY] * 6, [LONG], [LONG] * 6):
            await sender.one(claim(MESSAGES, entries=tuple(held)))
        for code in (b"", b"c" * 32):
            await sender.one(claim(code=code))
        sizes = [m.size for m in mock.pushes]
        assert len(set(sizes[:4])) == 1
        assert len(set(sizes[4:])) == 1
        assert 3000 < max(sizes) <= 4096


@pytest.mark.parametrize("device", [b"", b"\xff", "ü".encode(), bytes(range(256))[:255]])
@pytest.mark.parametrize("kind", PushKind)
async def test_a_registration_token_that_is_none_is_bad_and_not_sent(
    tmp_path: Path, device: bytes, kind: PushKind
) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        results = await sender.send(claim(kind, device=device), claim(ref=2))
        assert results == [DeadToken(InvalidReason.BAD), Took()]
        assert (len(mock.pushes), mock.rejected) == (1, [])


@pytest.mark.parametrize("device", [b'","x":"', b"a b", b"a\r\nb", b"\0", b"\\"])
async def test_a_registration_token_is_one_string_whatever_it_holds(tmp_path: Path, device: bytes) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        await sender.one(claim(device=device))
        assert mock.pushes[0].token == device.decode()


async def test_a_push_that_cannot_be_made_does_not_stop_the_others(tmp_path: Path) -> None:
    async with providing(tmp_path) as (_, sender, _):
        results = await sender.send(claim(ref=1), claim(MESSAGES, ref=2, entries=(TOO_LARGE,)), claim(ref=3))
        assert results[1].scope is Scope.TOKEN
        assert results[::2] == [Took()] * 2


async def test_many_at_once_each_get_their_own_result_with_one_grant(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        devices = [f"device-{i}" for i in range(60)]
        for i in range(0, 60, 3):
            mock.unregister(devices[i])
        half = [claim(device=d.encode(), ref=i) for i, d in enumerate(devices)]
        results = [*await asyncio.gather(sender.send(*half[:30]), sender.send(*half[30:]))]
        dead = DeadToken(InvalidReason.UNREGISTERED)
        assert results[0] + results[1] == [dead if i % 3 == 0 else Took() for i in range(60)]
        assert (mock.grants, mock.counters.opened <= 2) == (1, True)


# --- the access token


@pytest.mark.parametrize("how", ["expired", "revoked"])
async def test_an_access_token_that_fcm_does_not_take_any_more(tmp_path: Path, how: str) -> None:
    async with providing(tmp_path, expires_in=3599) as (mock, sender, clock):
        assert await sender.one(claim()) == Took()
        if how == "revoked":
            mock.revoke_access_tokens()
        else:  # by FCM's clock, not by ours
            mock._clock = lambda: clock.now + 3599
            mock._account._clock = mock._clock
        refused = await sender.send(claim(ref=1), claim(ref=2))
        assert refused == [Again("401 UNAUTHENTICATED", Scope.PROVIDER)] * 2
        assert await sender.send(claim(ref=1), claim(ref=2)) == [Took()] * 2
        assert mock.grants == 2


async def test_a_new_access_token_that_is_refused_too_is_the_operators_to_know(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        await sender.one(claim())
        mock.script(*[api_error(401, "UNAUTHENTICATED", "")] * 3)
        assert await sender.one(claim()) == Again("401 UNAUTHENTICATED", Scope.PROVIDER)
        for _ in range(2):
            assert await sender.one(claim()) == Ours("401 UNAUTHENTICATED", Scope.PROVIDER)
        assert await sender.one(claim()) == Took()
        mock.script(api_error(401, "UNAUTHENTICATED", ""))
        assert await sender.one(claim()) == Again("401 UNAUTHENTICATED", Scope.PROVIDER)


async def test_answers_to_the_old_access_token_that_come_late_are_no_second_refusal(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        await sender.one(claim())
        mock.revoke_access_tokens()
        refused = await sender.send(*(claim(ref=i) for i in range(30)))
        assert refused == [Again("401 UNAUTHENTICATED", Scope.PROVIDER)] * 30


async def test_another_service_account_is_used_at_once(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        await sender.one(claim())
        sender.opened.use(sender.settings)  # the same one
        await sender.one(claim())
        assert mock.grants == 1
        account = replace(sender.settings.account, key_id="another")
        sender.opened.use(replace(sender.settings, account=account))
        assert (await sender.one(claim())).scope is Scope.PROVIDER  # the mock does not know it
        assert (mock.grants, mock.refused_grants) == (1, 1)


async def test_an_error_behind_fcm_does_not_cost_the_access_token(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        mock.script(fcm_error("THIRD_PARTY_AUTH_ERROR"))
        assert await sender.one(claim()) == Ours("401 THIRD_PARTY_AUTH_ERROR", Scope.PROVIDER)
        assert await sender.one(claim()) == Took()
        assert mock.grants == 1


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (grant_error("invalid_grant", "No."), Ours("OAuth: 400 invalid_grant: No.", Scope.PROVIDER)),
        (Answer(503), Again("OAuth: 503", Scope.PROVIDER)),
    ],
)
async def test_without_an_access_token_nothing_is_sent_and_everything_kept(
    tmp_path: Path, fault: Any, verdict: Any
) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        mock.script_grants(fault)
        assert await sender.send(claim(ref=1), claim(MESSAGES, ref=2)) == [verdict] * 2
        assert (mock.pushes, mock.rejected) == ([], [])
        assert await sender.one(claim()) == Took()


async def test_an_access_token_that_is_being_granted_does_not_block(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        mock.script_grants(Silence())
        verdicts: list[Any] = []
        sender.provider.send([claim()], lambda _, verdict: verdicts.append(verdict))
        assert verdicts == []  # and send has returned


async def test_grants_and_pushes_go_through_the_proxy(tmp_path: Path) -> None:
    async with Proxy("http") as proxy, providing(tmp_path, proxy=proxy.url()) as (mock, sender, _):
        assert await sender.one(claim()) == Took()
        assert mock.grants == 1
        assert len(proxy.targets) == mock.counters.opened > 0
    async with providing(tmp_path, proxy=proxy.url()) as (mock, sender, _):
        assert await sender.one(claim()) == Again("OAuth: connection refused", Scope.PROVIDER)


# --- answers


async def test_dead_registration_tokens(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        mock.unregister(DEVICE.decode())
        assert await sender.one(claim()) == DeadToken(InvalidReason.UNREGISTERED)
        mock.reregister(DEVICE.decode())
        mock.reject_token(DEVICE.decode())
        assert await sender.one(claim()) == DeadToken(InvalidReason.BAD)
        mock.reregister(DEVICE.decode())
        mock.mismatch_sender(DEVICE.decode())
        assert await sender.one(claim()) == DeadToken(InvalidReason.TOPIC)
        mock.reregister(DEVICE.decode())
        assert await sender.one(claim()) == Took()


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("/v1/projects/other/messages:send", Ours("403 PERMISSION_DENIED", Scope.PROVIDER)),
        ("/v2/elsewhere", Ours("404 NOT_FOUND", Scope.PROVIDER)),
    ],
)
async def test_a_wrong_project_kills_no_token(tmp_path: Path, path: str, verdict: Any) -> None:
    async with providing(tmp_path) as (_, sender, _):
        sender.provider._path = path
        assert await sender.one(claim()) == verdict


async def test_troubles_of_the_network_are_retried(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        await sender.one(claim())
        mock.script(RstStream(), fcm_error("UNAVAILABLE", retry_after=9))
        assert await sender.one(claim()) == Again("HTTP/2 stream reset", Scope.TOKEN)
        assert await sender.one(claim()) == Again("503 UNAVAILABLE", Scope.TOKEN, 9.0)
        await mock.stop()
        await sender.one(claim())  # on the connection that was lost
        assert await sender.one(claim()) == Again("connection refused", Scope.PROVIDER)
        await mock.start()
        assert await sender.one(claim()) == Took()


async def test_any_device_token_is_taken_before_it_is_pushed_to(tmp_path: Path) -> None:
    async with providing(tmp_path) as (_, sender, _):
        front = sender.opened.front
        assert front.refusal(DeviceToken(Provider.FCM, DEVICE)) is None
        assert (front.origin(DeviceToken(Provider.FCM, DEVICE)), front.key_id) == ("", b"")


# --- secrets


async def test_secrets_are_in_no_repr_and_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("ntf_server", "asyncio"):  # not hpack, which is the mock's
        caplog.set_level(logging.DEBUG, name)
    async with providing(tmp_path) as (mock, sender, _):
        mock.script(fcm_error("SENDER_ID_MISMATCH"), fcm_error("INTERNAL"), RstStream())
        results = [await sender.one(claim(MESSAGES)) for _ in range(4)]
        shown = repr((results, sender.provider, sender.provider._access_token, sender.settings, claim())) + caplog.text
        token = sender.provider._access_token._token
    assert isinstance(results[-1], Took)
    assert token
    for secret in (DEVICE.decode(), token, repr(SECRET), repr(b"c" * 32), "BEGIN"):
        assert secret not in shown
