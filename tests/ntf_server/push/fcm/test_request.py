import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pycurl
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from proxies import Proxy

from ntf_server.push.fcm.oauth import AccessToken, ServiceAccount
from ntf_server.push.fcm.request import Fcm, judge
from ntf_server.push.http import Endpoint, HttpEngine, HttpFailure, HttpResponse
from ntf_server.push.provider import Accepted, Dead, Permanent, Result, Retry, Scope
from ntf_server.store.records import Notification, Push, PushKind, StoredNotification
from ntf_server.testing import Answer, MockFcm, RstStream, Silence, fcm_error, grant_error
from ntf_server.testing.fcm_message import field_violation
from ntf_server.testing.google import api_error
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Entry, InvalidReason, Provider

NOW = 1_800_000_000
KEY = rsa.generate_private_key(65537, 2048)
DEVICE = b"cAbCdEf:APA91b-_registration"
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


def push(kind: PushKind = VERIFICATION, device: bytes = DEVICE, ref: int = 1, **fields: Any) -> Push:
    fields = {"code": b"c" * 32, "notifications": (NOTIFICATION,) * (kind is MESSAGES), **fields}
    return Push(ref, 0, DeviceToken(Provider.FCM, device), crypto.box_key(SECRET), kind, NOW, **fields)


class Sender:
    """The provider, and a way to await its results."""

    def __init__(self, fcm: Fcm) -> None:
        self.fcm = fcm

    async def send(self, *pushes: Push) -> list[Result]:
        results: dict[int, asyncio.Future[Result]] = {p.token: asyncio.Future() for p in pushes}
        self.fcm.send(pushes, lambda push, result: results[push.token].set_result(result))
        return await asyncio.wait_for(asyncio.gather(*results.values()), 10)

    async def one(self, push: Push) -> Result:
        [result] = await self.send(push)
        return result


@contextlib.asynccontextmanager
async def providing(
    tmp_path: Path, *, proxy: str = "", ttl: Any = TTL, **options: Any
) -> AsyncIterator[tuple[MockFcm, Sender, Clock]]:
    clock = Clock()
    async with MockFcm(private_key=KEY, clock=clock, **options) as mock:
        account = ServiceAccount.parse(mock.service_account(tmp_path / "account.json").read_bytes())
        engine = HttpEngine()
        try:
            endpoint = Endpoint(mock.url, str(mock.ca_file), timeout=5.0, http2_only=False, proxy=proxy)
            token = AccessToken(engine, replace(endpoint, url=mock.token_url), account, clock)
            yield mock, Sender(Fcm(engine, endpoint, token, account.project_id, ttl=ttl, clock=clock)), clock
        finally:
            await engine.close()


# --- messages


@pytest.mark.parametrize(
    ("kind", "priority", "ttl", "collapse_key"),
    [(VERIFICATION, "HIGH", 600, "verification"), (MESSAGES, "HIGH", 86_400, None), (CHECK, "NORMAL", 3600, "check")],
)
async def test_the_message_for_each_kind(
    tmp_path: Path, kind: PushKind, priority: str, ttl: int, collapse_key: str | None
) -> None:
    async with providing(tmp_path) as (mock, sender, clock):
        assert await sender.one(push(kind)) == Accepted((NOTIFICATION,) * (kind is MESSAGES))
        [message] = mock.pushes
        assert (message.token, message.priority, message.ttl) == (DEVICE.decode(), priority, ttl)
        assert message.android.get("collapseKey") == collapse_key  # messages never replace one another
        assert all(isinstance(v, str) for v in message.data.values())
        assert message.size <= 4096
        clock.now += 100
        await sender.one(push(kind))
        assert mock.pushes[1].ttl == ttl - 100  # it counts from when it became due
        clock.now += 365 * 24 * 3600
        await sender.one(push(kind))
        assert mock.pushes[2].ttl == 0


async def test_a_time_to_live_beyond_what_fcm_takes(tmp_path: Path) -> None:
    async with providing(tmp_path, ttl=dict.fromkeys(PushKind, 31_536_000)) as (mock, sender, _):
        assert await sender.send(*(push(kind, ref=i) for i, kind in enumerate(PushKind))) == [
            Accepted(),
            Accepted((NOTIFICATION,)),
            Accepted(),
        ]
        assert {m.ttl for m in mock.pushes} == {2_419_200}


async def test_the_device_can_open_what_was_sent(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        for kind in PushKind:
            await sender.one(push(kind))
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
        for held in ([NOTIFICATION], [NOTIFICATION] * 6, [LONG], [LONG] * 6):
            await sender.one(push(MESSAGES, notifications=tuple(held)))
        for code in (b"", b"c" * 32):
            await sender.one(push(code=code))
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
        results = await sender.send(push(kind, device=device), push(ref=2))
        assert results == [Dead(InvalidReason.BAD), Accepted()]
        assert (len(mock.pushes), mock.rejected) == (1, [])


@pytest.mark.parametrize("device", [b'","x":"', b"a b", b"a\r\nb", b"\0", b"\\"])
async def test_a_registration_token_is_one_string_whatever_it_holds(tmp_path: Path, device: bytes) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        await sender.one(push(device=device))
        assert mock.pushes[0].token == device.decode()


async def test_a_push_that_cannot_be_made_does_not_stop_the_others(tmp_path: Path) -> None:
    async with providing(tmp_path) as (_, sender, _):
        results = await sender.send(push(ref=1), push(MESSAGES, ref=2, notifications=(TOO_LARGE,)), push(ref=3))
        assert isinstance(results[1], Permanent)
        assert results[::2] == [Accepted()] * 2


async def test_many_at_once_each_get_their_own_result_with_one_grant(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        devices = [f"device-{i}" for i in range(60)]
        for i in range(0, 60, 3):
            mock.unregister(devices[i])
        half = [push(device=d.encode(), ref=i) for i, d in enumerate(devices)]
        results = [*await asyncio.gather(sender.send(*half[:30]), sender.send(*half[30:]))]
        dead = Dead(InvalidReason.UNREGISTERED)
        assert results[0] + results[1] == [dead if i % 3 == 0 else Accepted() for i in range(60)]
        assert (mock.grants, mock.counters.opened <= 2) == (1, True)


# --- the access token


@pytest.mark.parametrize("how", ["expired", "revoked"])
async def test_an_access_token_that_fcm_does_not_take_any_more(tmp_path: Path, how: str) -> None:
    async with providing(tmp_path, expires_in=3599) as (mock, sender, clock):
        assert await sender.one(push()) == Accepted()
        if how == "revoked":
            mock.revoke_access_tokens()
        else:  # by FCM's clock, not by ours
            mock._clock = lambda: clock.now + 3600
            mock._account._clock = mock._clock
        refused = await sender.send(push(ref=1), push(ref=2))
        assert refused == [Retry("401 UNAUTHENTICATED", Scope.PROVIDER)] * 2
        assert await sender.send(push(ref=1), push(ref=2)) == [Accepted()] * 2
        assert mock.grants == 2


async def test_an_error_behind_fcm_does_not_cost_the_access_token(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        mock.script(fcm_error("THIRD_PARTY_AUTH_ERROR"))
        assert await sender.one(push()) == Permanent("401 THIRD_PARTY_AUTH_ERROR")
        assert await sender.one(push()) == Accepted()
        assert mock.grants == 1


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        (grant_error("invalid_grant"), Permanent("OAuth: 400: the service account is refused")),
        (Answer(503), Retry("OAuth: 503", Scope.PROVIDER)),
    ],
)
async def test_without_an_access_token_nothing_is_sent_and_everything_kept(
    tmp_path: Path, fault: Any, result: Result
) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        mock.script_grants(fault)
        assert await sender.send(push(ref=1), push(MESSAGES, ref=2)) == [result] * 2
        assert (mock.pushes, mock.rejected) == ([], [])
        assert await sender.one(push()) == Accepted()


async def test_an_access_token_that_is_being_granted_does_not_block(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        mock.script_grants(Silence())
        results: list[Result] = []
        sender.fcm.send([push()], lambda _, result: results.append(result))
        assert results == []  # and send has returned


async def test_grants_and_pushes_go_through_the_proxy(tmp_path: Path) -> None:
    async with Proxy("http") as proxy, providing(tmp_path, proxy=proxy.url()) as (mock, sender, _):
        assert await sender.one(push()) == Accepted()
        assert mock.grants == 1
        assert len(proxy.targets) == mock.counters.opened > 0
    async with providing(tmp_path, proxy=proxy.url()) as (mock, sender, _):
        assert await sender.one(push()) == Retry("OAuth: connection refused", Scope.PROVIDER)


# --- answers


async def test_dead_registration_tokens(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        mock.unregister(DEVICE.decode())
        assert await sender.one(push()) == Dead(InvalidReason.UNREGISTERED)
        mock.reregister(DEVICE.decode())
        mock.reject_token(DEVICE.decode())
        assert await sender.one(push()) == Dead(InvalidReason.BAD)
        mock.reregister(DEVICE.decode())
        mock.mismatch_sender(DEVICE.decode())
        assert await sender.one(push()) == Permanent("403 SENDER_ID_MISMATCH")
        mock.reregister(DEVICE.decode())
        assert await sender.one(push()) == Accepted()


@pytest.mark.parametrize(
    ("path", "result"),
    [
        ("/v1/projects/other/messages:send", Permanent("403 PERMISSION_DENIED")),
        ("/v2/elsewhere", Permanent("404 NOT_FOUND")),
    ],
)
async def test_a_wrong_project_kills_no_token(tmp_path: Path, path: str, result: Result) -> None:
    async with providing(tmp_path) as (_, sender, _):
        sender.fcm._path = path
        assert await sender.one(push()) == result


async def test_troubles_of_the_network_are_retried(tmp_path: Path) -> None:
    async with providing(tmp_path) as (mock, sender, _):
        await sender.one(push())
        mock.script(RstStream(), fcm_error("UNAVAILABLE", retry_after=9))
        assert await sender.one(push()) == Retry("HTTP/2 stream reset", Scope.TOKEN)
        assert await sender.one(push()) == Retry("503 UNAVAILABLE", Scope.TOKEN, 9.0)
        await mock.stop()
        await sender.one(push())  # on the connection that was lost
        assert await sender.one(push()) == Retry("connection refused", Scope.PROVIDER)
        await mock.start()
        assert await sender.one(push()) == Accepted()


def answer(of: Answer) -> HttpResponse:
    seconds = dict(of.headers).get("retry-after")
    return HttpResponse(of.status, of.payload(), float(seconds) if seconds else None)


INVALID = field_violation("message.token", "Invalid registration token")
BAD_TOKEN = "The registration token is not a valid FCM registration token"


@pytest.mark.parametrize(
    ("response", "result"),
    [
        (answer(Answer(200, body=b"{}")), Accepted()),
        (answer(fcm_error("UNREGISTERED")), Dead(InvalidReason.UNREGISTERED)),
        (answer(fcm_error("INVALID_ARGUMENT", BAD_TOKEN)), Dead(InvalidReason.BAD)),
        (answer(fcm_error("INVALID_ARGUMENT", None, INVALID)), Dead(InvalidReason.BAD)),
        (answer(fcm_error("INVALID_ARGUMENT", "Android message is too big")), Permanent("400 INVALID_ARGUMENT")),
        (
            answer(fcm_error("INVALID_ARGUMENT", None, field_violation("message.android.ttl", "x"))),
            Permanent("400 INVALID_ARGUMENT"),
        ),
        (answer(api_error(404, "NOT_FOUND", "")), Permanent("404 NOT_FOUND")),
        (answer(Answer(404)), Permanent("404")),
        (answer(fcm_error("QUOTA_EXCEEDED")), Retry("429 QUOTA_EXCEEDED")),
        (answer(fcm_error("QUOTA_EXCEEDED", retry_after=60)), Retry("429 QUOTA_EXCEEDED", after=60.0)),
        (answer(fcm_error("UNAVAILABLE", retry_after=60)), Retry("503 UNAVAILABLE", after=60.0)),
        (answer(fcm_error("INTERNAL")), Retry("500 INTERNAL")),
        (answer(fcm_error("UNSPECIFIED_ERROR")), Retry("500 UNSPECIFIED_ERROR")),
        (answer(Answer(502, body=b"<html>")), Retry("502")),
        (answer(Answer(429)), Retry("429")),
        (answer(fcm_error("SENDER_ID_MISMATCH")), Permanent("403 SENDER_ID_MISMATCH")),
        (answer(fcm_error("THIRD_PARTY_AUTH_ERROR")), Permanent("401 THIRD_PARTY_AUTH_ERROR")),
        (answer(api_error(401, "UNAUTHENTICATED", "")), Retry("401 UNAUTHENTICATED", Scope.PROVIDER)),
        (answer(api_error(403, "PERMISSION_DENIED", "")), Permanent("403 PERMISSION_DENIED")),
        (answer(Answer(403)), Permanent("403")),
        (answer(Answer(301, headers=(("location", "https://elsewhere"),))), Permanent("301")),
        (HttpFailure(pycurl.E_COULDNT_CONNECT, timeout=False), Retry("connection refused", Scope.PROVIDER)),
        (HttpFailure(97, timeout=False), Retry("refused by the proxy", Scope.PROVIDER)),
        (HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True), Retry("timed out", Scope.TOKEN)),
    ],
)
def test_what_an_answer_means(response: HttpResponse | HttpFailure, result: Result) -> None:
    assert judge(response) == result


def error(**fields: Any) -> bytes:
    return json.dumps({"error": fields}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"[]",
        b"null",
        b'{"error":"invalid"}',
        b'{"error":null}',
        b"[" * 60_000,
        b'{"error":' * 7000,
        error(status=None),
        error(status=["UNREGISTERED"]),
        error(status="", details=None),
        error(status="", details=[None]),
        error(status="", details=[{"errorCode": ["UNREGISTERED"]}]),
        error(status="", details=[{"fieldViolations": 7}]),
        error(status="a\nforged log line"),
        error(status="X" * 64),
    ],
)
def test_a_body_that_google_would_not_send(body: bytes) -> None:
    assert judge(HttpResponse(500, body)) == Retry("500")
    assert judge(HttpResponse(404, body)) == Permanent("404")


# --- secrets


async def test_secrets_are_in_no_repr_and_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("ntf_server", "asyncio"):  # not hpack, which is the mock's
        caplog.set_level(logging.DEBUG, name)
    async with providing(tmp_path) as (mock, sender, _):
        mock.script(fcm_error("SENDER_ID_MISMATCH"), fcm_error("INTERNAL"), RstStream())
        results = [await sender.one(push(MESSAGES)) for _ in range(4)]
        shown = repr((results, sender.fcm, sender.fcm._access_token, sender.fcm._endpoint, push())) + caplog.text
        token = sender.fcm._access_token._token
    assert isinstance(results[-1], Accepted)
    assert token
    for secret in (DEVICE.decode(), token, repr(SECRET), repr(b"c" * 32), "BEGIN"):
        assert secret not in shown
