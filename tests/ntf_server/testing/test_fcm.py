from __future__ import annotations

import asyncio
import base64
import datetime
import io
import json
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import google.auth.transport.requests
import jwt
import pycurl
import pyfcm.errors
import pytest
import requests
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google.auth.exceptions import RefreshError
from google.oauth2.service_account import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st
from pyfcm import FCMNotification

from ntf_server.testing import (
    Answer,
    CutTls,
    Delay,
    Fault,
    GoAway,
    MockFcm,
    Rejection,
    RstStream,
    Silence,
    fcm_error,
    grant_error,
)
from ntf_server.testing.fcm_message import FcmMessage, Refused, parse_send

pytest_plugins = ("ntf_server.testing.pytest_plugin",)

NOW = 1_800_000_000
TOKEN = "registration-token"
SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
H1, H2 = pycurl.CURL_HTTP_VERSION_1_1, pycurl.CURL_HTTP_VERSION_2_0
MESSAGE = {"token": TOKEN, "data": {"nonce": "n", "message": "secret"}, "android": {"priority": "HIGH"}}


class Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = json.loads(body) if body.startswith(b"{") else {}

    @property
    def outcome(self) -> tuple[int, str | None, str | None]:
        """HTTP status, google.rpc.Code and FCM's ErrorCode."""
        error = self.body.get("error", {})
        assert error.get("code", self.status) == self.status
        return self.status, error.get("status"), self.detail("FcmError").get("errorCode")

    def detail(self, kind: str) -> dict[str, Any]:
        details = self.body["error"].get("details", []) if "error" in self.body else []
        found = [each for each in details if each["@type"].endswith(f".{kind}")]
        assert len(found) <= 1
        return found[0] if found else {}


def perform(
    fcm: MockFcm, path: str, headers: list[str], body: bytes, *, version: int, method: str, timeout: float = 5
) -> Response:
    received, output = {}, io.BytesIO()

    def take_header(line: bytes) -> None:
        name, found, value = line.decode().partition(":")
        if found:
            received[name.lower()] = value.strip()

    curl = pycurl.Curl()
    try:
        curl.setopt(pycurl.URL, fcm.url + path)
        curl.setopt(pycurl.HTTP_VERSION, version)
        curl.setopt(pycurl.CAINFO, str(fcm.ca_file))
        curl.setopt(pycurl.TIMEOUT_MS, int(timeout * 1000))
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.POSTFIELDS, body)
        curl.setopt(pycurl.CUSTOMREQUEST, method)
        curl.setopt(pycurl.HTTPHEADER, headers)
        curl.setopt(pycurl.HEADERFUNCTION, take_header)
        curl.setopt(pycurl.WRITEDATA, output)
        curl.perform()
        spoken = curl.getinfo(pycurl.INFO_HTTP_VERSION)
        assert spoken == (H1 if version == H1 else H2)
        return Response(curl.getinfo(pycurl.RESPONSE_CODE), received, output.getvalue())
    finally:
        curl.close()


async def send(
    fcm: MockFcm,
    message: object = MESSAGE,
    *,
    access_token: str | None = None,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    path: str | None = None,
    method: str = "POST",
    version: int = H2,
    timeout: float = 5,
) -> Response:
    """Send with libcurl; headers are on top of the usual ones."""
    usual = {
        "authorization": f"Bearer {access_token or fcm.access_token()}",
        "content-type": "application/json",
    }
    lines = [f"{name}: {value}" for name, value in (usual | (headers or {})).items()]
    content = json.dumps({"message": message}).encode() if body is None else body
    return await asyncio.to_thread(
        perform, fcm, path or fcm.send_path, lines, content, version=version, method=method, timeout=timeout
    )


async def ask(fcm: MockFcm, form: dict[str, str] | bytes, *, version: int = H2, method: str = "POST") -> Response:
    body = form if isinstance(form, bytes) else urlencode(form).encode()
    lines = ["content-type: application/x-www-form-urlencoded"]
    return await asyncio.to_thread(perform, fcm, "/token", lines, body, version=version, method=method)


def assertion(fcm: MockFcm, key: Any = KEY, *, algorithm: str = "RS256", kid: str | None = None, **changes: Any) -> str:
    """Sign with PyJWT; a change to None removes a claim."""
    claims = {
        "iss": f"mock@{fcm.project_id}.iam.gserviceaccount.com",
        "aud": fcm.token_url,
        "scope": SCOPE,
        "iat": NOW,
        "exp": NOW + 3600,
    } | changes
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm, headers)


def form(token: str) -> dict[str, str]:
    return {"grant_type": GRANT_TYPE, "assertion": token}


def mock(**options: Any) -> MockFcm:
    return MockFcm(**{"private_key": KEY, "clock": lambda: NOW, **options})


# --- what is accepted ---


@pytest.mark.parametrize("version", [H1, H2, pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE])
async def test_grants_accepts_and_records(version: int) -> None:
    async with mock() as fcm:
        granted = await ask(fcm, form(assertion(fcm)), version=version)
        assert (granted.status, granted.body["token_type"], granted.body["expires_in"]) == (200, "Bearer", 3599)
        access_token = granted.body["access_token"]
        android = {"priority": "HIGH", "ttl": "3600s", "collapse_key": "c"}
        response = await send(fcm, MESSAGE | {"android": android}, access_token=access_token, version=version)
        assert response.status == 200
        assert response.headers["content-type"] == "application/json; charset=UTF-8"
        (message,) = fcm.pushes
        assert response.body == {"name": message.name}
        assert re.fullmatch(r"projects/mock-project/messages/0:\d+%[0-9a-f]{16}", message.name)
        assert (message.token, message.data) == (TOKEN, {"nonce": "n", "message": "secret"})
        assert message.android == {"priority": "HIGH", "ttl": "3600s", "collapseKey": "c"}
        assert (message.priority, message.ttl, message.size) == ("HIGH", 3600, len("noncenmessagesecret"))
        assert (message.received_at, message.connection) == (NOW, 2)
        assert (fcm.grants, fcm.refused_grants, fcm.rejected) == (1, 0, [])
        for secret in (TOKEN, access_token, "secret"):
            assert secret not in repr(message)


@pytest.mark.parametrize(
    ("message", "priority", "ttl", "data"),
    [
        ({"token": TOKEN}, "NORMAL", 2_419_200, {}),
        ({"token": TOKEN, "android": {"priority": "NORMAL", "ttl": "0s"}}, "NORMAL", 0, {}),
        ({"token": TOKEN, "android": {"priority": "high", "ttl": "2419200s"}}, "HIGH", 2_419_200, {}),
        ({"token": TOKEN, "android": {"ttl": "3.5s", "collapseKey": "k"}}, "NORMAL", 3.5, {}),
        ({"token": TOKEN, "data": {"a": "1"}, "android": {"data": {"b": "2"}}}, "NORMAL", 2_419_200, {"b": "2"}),
        ({"token": TOKEN, "data": None, "notification": {"title": "t"}}, "NORMAL", 2_419_200, {}),
        ({"token": TOKEN, "data": {"k": "é" * 2047 + "x"}}, "NORMAL", 2_419_200, {"k": "é" * 2047 + "x"}),
        ({"token": TOKEN, "data": {"collapse_key": "x"}}, "NORMAL", 2_419_200, {"collapse_key": "x"}),
    ],
)
async def test_accepts(message: object, priority: str, ttl: float, data: dict[str, str]) -> None:
    async with mock() as fcm:
        assert (await send(fcm, message)).status == 200
        accepted = fcm.pushes[0]
        assert (accepted.priority, accepted.ttl, accepted.data) == (priority, ttl, data)


@pytest.mark.parametrize("name", ["validate_only", "validateOnly"])
async def test_validates_only(name: str) -> None:
    async with mock() as fcm:
        response = await send(fcm, body=json.dumps({"message": MESSAGE, name: True}).encode())
        assert response.body == {"name": "projects/mock-project/messages/fake_message_id"}
        assert fcm.pushes == []


# --- what is refused ---

INVALID = "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("message", "code", "where"),
    [
        ({"data": {}}, INVALID, "message"),
        ({"token": ""}, INVALID, "message"),
        ({"token": 1}, None, "message.token"),
        ({"topic": "all"}, None, "message"),
        ({"token": TOKEN, "topic": "all"}, None, "message"),
        ({"token": TOKEN, "to": "x"}, None, "message"),
        ({"token": TOKEN, "data": []}, None, "message.data"),
        ({"token": TOKEN, "data": {"a": "1", "b": 2}}, None, "message.data[1].value"),
        ({"token": TOKEN, "data": {"a": None}}, None, "message.data[0].value"),
        ({"token": TOKEN, "data": {"a": {"b": "c"}}}, None, "message.data[0].value"),
        ({"token": TOKEN, "android": {"data": {"a": 1}}}, None, "message.android.data[0].value"),
        ({"token": TOKEN, "data": {"from": "x"}}, INVALID, "message.data"),
        ({"token": TOKEN, "data": {"google.x": "x"}}, INVALID, "message.data"),
        ({"token": TOKEN, "data": {"k": "x" * 4096}}, INVALID, None),
        ({"token": TOKEN, "data": {"k": "é" * 2048}}, INVALID, None),
        ({"token": TOKEN, "android": "x"}, None, "message.android"),
        ({"token": TOKEN, "android": {"priorty": "HIGH"}}, None, "message.android"),
        ({"token": TOKEN, "android": {"collapse_key": "a", "collapseKey": "b"}}, None, "message.android"),
        ({"token": TOKEN, "android": {"collapse_key": 1}}, None, "message.android.collapse_key"),
        ({"token": TOKEN, "android": {"direct_boot_ok": "x"}}, None, "message.android.direct_boot_ok"),
        ({"token": TOKEN, "android": {"priority": "10"}}, None, "message.android.priority"),
        ({"token": TOKEN, "android": {"priority": 10}}, None, "message.android.priority"),
        ({"token": TOKEN, "android": {"ttl": "3600"}}, None, "message.android.ttl"),
        ({"token": TOKEN, "android": {"ttl": 3600}}, None, "message.android.ttl"),
        ({"token": TOKEN, "android": {"ttl": "-1s"}}, None, "message.android.ttl"),
        ({"token": TOKEN, "android": {"ttl": "2419201s"}}, INVALID, "message.android.ttl"),
        ([], None, "message"),
    ],
)
async def test_refuses_message(message: object, code: str | None, where: str | None) -> None:
    async with mock() as fcm:
        response = await send(fcm, message)
        assert response.outcome == (400, INVALID, code)
        violations = response.detail("BadRequest").get("fieldViolations", [])
        assert [each["field"] for each in violations] == ([] if where is None else [where])
        assert fcm.pushes == []
        assert [each.status for each in fcm.rejected] == [400]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"message":{"token":"\xff"}}', b"[" * 5000, b'{"massage":{}}', b'{"validate_only":1}', b"{}"],
)
async def test_refuses_body(body: bytes) -> None:
    async with mock() as fcm:
        assert (await send(fcm, body=body)).outcome[:2] == (400, INVALID)


@pytest.mark.parametrize(
    ("headers", "outcome", "reason"),
    [
        ({"authorization": ""}, (401, "UNAUTHENTICATED", None), "CREDENTIALS_MISSING"),
        ({"authorization": "Basic eA=="}, (401, "UNAUTHENTICATED", None), "CREDENTIALS_MISSING"),
        ({"authorization": "Bearer x"}, (401, "UNAUTHENTICATED", None), "ACCESS_TOKEN_TYPE_UNSUPPORTED"),
        ({"content-type": "text/plain"}, (400, INVALID, None), None),
    ],
)
async def test_refuses_headers(headers: dict[str, str], outcome: tuple[int, str, None], reason: str | None) -> None:
    async with mock() as fcm:
        response = await send(fcm, headers=headers)
        assert response.outcome == outcome
        assert response.detail("ErrorInfo").get("reason") == reason


async def test_access_tokens_expire_and_are_revoked() -> None:
    clock = [float(NOW)]
    async with mock(clock=lambda: clock[0], expires_in=100) as fcm:
        old = fcm.access_token()
        fcm.expires_in = fcm.expires_in + 100
        new = (await ask(fcm, form(assertion(fcm)))).body["access_token"]
        clock[0] = NOW + 99.9
        assert (await send(fcm, access_token=old)).status == 200
        clock[0] = NOW + 100
        response = await send(fcm, access_token=old)
        assert response.outcome == (401, "UNAUTHENTICATED", None)
        assert response.detail("ErrorInfo")["reason"] == "ACCESS_TOKEN_EXPIRED"
        assert (await send(fcm, access_token=new)).status == 200
        fcm.revoke_access_tokens()
        assert (await send(fcm, access_token=new)).status == 401
        assert (await send(fcm)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "outcome"),
    [
        ("POST", "/v1/projects/other/messages:send", (403, "PERMISSION_DENIED", None)),
        ("GET", None, (404, "NOT_FOUND", None)),
        ("POST", "/v1/projects/mock-project/messages", (404, "NOT_FOUND", None)),
        ("POST", "/fcm/send", (404, "NOT_FOUND", None)),
    ],
)
async def test_refuses_target(method: str, path: str | None, outcome: tuple[int, str, None]) -> None:
    async with mock() as fcm:
        assert (await send(fcm, method=method, path=path)).outcome == outcome  # no FcmError: no token is to blame


# --- grants ---


async def test_grants_for_googles_audience_and_with_a_key_id(tmp_path: Path) -> None:
    async with mock() as fcm:
        kid = json.loads(fcm.service_account(tmp_path / "a.json").read_text())["private_key_id"]
        changes = {"aud": "https://oauth2.googleapis.com/token", "scope": f"openid {SCOPE}"}
        assert (await ask(fcm, form(assertion(fcm, kid=kid, **changes)))).status == 200


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"key": OTHER_KEY}, "invalid_grant"),
        ({"key": "a secret of at least thirty-two bytes", "algorithm": "HS256"}, "invalid_grant"),
        ({"algorithm": "PS256"}, "invalid_grant"),
        ({"kid": "other"}, "invalid_grant"),
        ({"iss": "mock@other.iam.gserviceaccount.com"}, "invalid_grant"),
        ({"aud": "https://example.org/token"}, "invalid_grant"),
        ({"aud": None}, "invalid_grant"),
        ({"iat": None}, "invalid_grant"),
        ({"exp": None}, "invalid_grant"),
        ({"exp": str(NOW + 60)}, "invalid_grant"),
        ({"exp": NOW + 3601}, "invalid_grant"),
        ({"iat": NOW - 4000, "exp": NOW - 400}, "invalid_grant"),
        ({"iat": NOW + 120, "exp": NOW + 240}, "invalid_grant"),
        ({"iat": NOW + 10, "exp": NOW + 10}, "invalid_grant"),
        ({"scope": "https://www.googleapis.com/auth/gmail.send"}, "invalid_scope"),
        ({"scope": None}, "invalid_scope"),
    ],
)
async def test_refuses_assertion(changes: dict[str, Any], error: str) -> None:
    async with mock() as fcm:
        response = await ask(fcm, form(assertion(fcm, **changes)))
        assert (response.status, response.body["error"]) == (400, error)
        assert (fcm.grants, fcm.refused_grants) == (0, 1)


async def test_refuses_assertion_that_names_another_algorithm() -> None:
    async with mock() as fcm:
        claims = assertion(fcm).split(".")[1]
        for algorithm, status in (("RS256", 200), ("RS512", 400), ("none", 400)):
            header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm}).encode()).rstrip(b"=").decode()
            signature = KEY.sign(f"{header}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())
            signed = f"{header}.{claims}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
            assert (await ask(fcm, form(signed))).status == status


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "unsupported_grant_type"),
        (b"assertion", 400, "invalid_request"),
        (b"\xff", 400, "invalid_request"),
        (b"assertion=x", 400, "unsupported_grant_type"),
        ({"grant_type": "client_credentials"}, 400, "unsupported_grant_type"),
        ({"grant_type": GRANT_TYPE}, 400, "invalid_request"),
        (form("x"), 400, "invalid_grant"),
        (form("e30.e30."), 400, "invalid_grant"),
        (form("W10.W10.eA"), 400, "invalid_grant"),
        (form("é.é.é"), 400, "invalid_grant"),
    ],
)
async def test_refuses_grant_request(body: dict[str, str] | bytes, status: int, error: str) -> None:
    async with mock() as fcm:
        response = await ask(fcm, body)
        assert (response.status, response.body["error"]) == (status, error)


async def test_refuses_grant_by_get_and_as_json() -> None:
    async with mock() as fcm:
        assert (await ask(fcm, form(assertion(fcm)), method="GET")).status == 405
        assert (await send(fcm, path="/token")).body["error"] == "invalid_request"


async def test_scripted_grants() -> None:
    async with mock() as fcm:
        fcm.script(fcm_error("INTERNAL"))  # concerns no grant
        fcm.script_grants(grant_error("invalid_grant", "Invalid JWT Signature."), Answer(503), RstStream(), Delay(0.01))
        response = await ask(fcm, form(assertion(fcm)))
        assert response.body == {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
        assert (await ask(fcm, form(assertion(fcm)))).status == 503
        with pytest.raises(pycurl.error):
            await ask(fcm, form(assertion(fcm)))
        assert (await ask(fcm, form(assertion(fcm)))).status == 200
        assert (fcm.grants, fcm.refused_grants, fcm.rejected) == (1, 2, [])
        assert (await send(fcm)).status == 500
        fcm.script_grants(Answer(200, body=b"not JSON"), Answer(200))
        assert (await ask(fcm, form(assertion(fcm)))).body == {}
        assert (await ask(fcm, b"")).status == 400  # a scripted 200 excuses nothing


async def test_service_account_file(tmp_path: Path) -> None:
    async with mock(project_id="p") as fcm:
        path = tmp_path / "account.json"
        path.write_text("old " * 10_000)
        path.chmod(0o644)
        assert fcm.service_account(path) == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        content = json.loads(path.read_text())
        assert (content["type"], content["project_id"]) == ("service_account", "p")
        assert content["token_uri"] == fcm.token_url == f"https://127.0.0.1:{fcm.port}/token"
        first = fcm.service_account(tmp_path / "again.json").read_text()
        assert json.loads(first)["private_key"] == content["private_key"]


# --- registration tokens ---


async def test_registration_tokens() -> None:
    async with mock() as fcm:
        fcm.unregister(TOKEN)
        assert (await send(fcm)).outcome == (404, "NOT_FOUND", "UNREGISTERED")
        fcm.reject_token(TOKEN)
        response = await send(fcm)
        assert response.outcome == (400, INVALID, INVALID)
        assert response.detail("BadRequest")["fieldViolations"] == [
            {"field": "message.token", "description": "Invalid registration token"}
        ]
        fcm.mismatch_sender(TOKEN)
        assert (await send(fcm)).outcome == (403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH")
        assert (await send(fcm, {"token": "other"})).status == 200
        assert fcm.rejected[0] == Rejection(404, "UNREGISTERED", TOKEN, 1)
        assert TOKEN not in repr(fcm.rejected)
        fcm.reregister(TOKEN)
        assert (await send(fcm)).status == 200


# --- scripts ---


@pytest.mark.parametrize(
    ("code", "status", "rpc"),
    [
        ("UNSPECIFIED_ERROR", 500, "UNKNOWN"),
        ("INVALID_ARGUMENT", 400, "INVALID_ARGUMENT"),
        ("UNREGISTERED", 404, "NOT_FOUND"),
        ("SENDER_ID_MISMATCH", 403, "PERMISSION_DENIED"),
        ("QUOTA_EXCEEDED", 429, "RESOURCE_EXHAUSTED"),
        ("UNAVAILABLE", 503, "UNAVAILABLE"),
        ("INTERNAL", 500, "INTERNAL"),
        ("THIRD_PARTY_AUTH_ERROR", 401, "UNAUTHENTICATED"),
    ],
)
async def test_scripted_errors(code: str, status: int, rpc: str) -> None:
    async with mock() as fcm:
        fcm.script(fcm_error(code, retry_after=30))
        response = await send(fcm)
        assert response.outcome == (status, rpc, code)
        assert response.headers["retry-after"] == "30"
        assert fcm.rejected == [Rejection(status, code, TOKEN, 1)]


async def test_scripted_for_a_token_and_for_any() -> None:
    async with mock() as fcm:
        fcm.script(fcm_error("INTERNAL"), Answer(502, body=b"<html>", headers=(("content-type", "text/html"),)))
        fcm.script(fcm_error("UNAVAILABLE"), token="other")
        assert (await send(fcm, {"token": "other"})).status == 503  # the token's come first
        assert (await send(fcm, {"token": "other"})).status == 500
        response = await send(fcm)
        assert (response.status, response.headers["content-type"]) == (502, "text/html")
        assert (await send(fcm)).status == 200
        fcm.script(Answer(200), Answer(200, body=b"x"), Answer(200, body=b"not JSON"))
        for _ in range(2):
            assert (await send(fcm, {})).status == 400  # a scripted 200 excuses nothing
        assert (await send(fcm)).body == {}
        assert [each.status for each in fcm.rejected] == [503, 500, 502, 400, 400]
        assert len(fcm.pushes) == 2


async def test_unknown_error_code() -> None:
    with pytest.raises(KeyError):
        fcm_error("TOO_BAD")


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("version", [H1, H2])
@pytest.mark.parametrize(
    ("fault", "effect"),
    [
        (RstStream(), 0),
        (RstStream(processed=True), 1),
        (CutTls(10), 0),
        (CutTls(5, during="response"), 1),
        (Silence(), 0),
        (Silence(processed=True), 1),
        (Delay(0.01, RstStream()), 0),
    ],
)
async def test_faults_reach_libcurl(fault: Fault, effect: int, version: int, token: str | None) -> None:
    async with mock() as fcm:
        fcm.script(fault, token=token)
        with pytest.raises(pycurl.error) as caught:
            await send(fcm, version=version, timeout=0.2 if isinstance(fault, Silence) else 5)
        assert (caught.value.args[0] == pycurl.E_OPERATION_TIMEDOUT) == isinstance(fault, Silence)
        assert len(fcm.pushes) == effect
        assert (await send(fcm, version=version)).status == 200


@pytest.mark.parametrize("version", [H1, H2])
async def test_goaway(version: int) -> None:
    async with mock() as fcm:
        fcm.script(GoAway())
        assert (await send(fcm, version=version)).status == 200
        assert len(fcm.pushes) == 1
    async with mock(goaway_after=1, latency=0.01) as fcm:
        for _ in range(2):
            assert (await send(fcm, version=version)).status == 200
        assert fcm.counters.opened == 2


async def test_libcurl_retries_a_stream_that_goaway_left_unprocessed() -> None:
    async with mock() as fcm:
        fcm.script(GoAway(processed=False))
        assert (await send(fcm)).status == 200
        assert (len(fcm.pushes), fcm.counters.requests, fcm.counters.opened) == (1, 2, 2)


@pytest.mark.parametrize("version", [H1, H2])
async def test_outages(version: int) -> None:
    async with mock() as fcm:
        await fcm.stop()
        with pytest.raises(pycurl.error) as caught:
            await send(fcm, version=version)
        assert caught.value.args[0] == pycurl.E_COULDNT_CONNECT
        await fcm.start()
        fcm.blackhole()
        with pytest.raises(pycurl.error) as caught:
            await send(fcm, version=version, timeout=0.1)
        assert caught.value.args[0] == pycurl.E_OPERATION_TIMEDOUT
        fcm.blackhole(False)
        assert (await send(fcm, version=version)).status == 200


# --- taking messages ---


async def test_next_takes_each_message_once_by_token() -> None:
    async with mock() as fcm:
        waiting = asyncio.create_task(fcm.next("t2"))
        for number, token in enumerate(("t1", "t2", "t1")):
            await send(fcm, {"token": token, "data": {"n": str(number)}})
        assert (await waiting).data == {"n": "1"}
        assert (await fcm.next()).data == {"n": "0"}
        assert (await fcm.next("t1")).data == {"n": "2"}
        with pytest.raises(TimeoutError):
            await fcm.next(timeout=0.01)
        assert len(fcm.pushes) == 3
        await send(fcm)
        fcm.script(Answer(500))
        fcm.script_grants(Answer(500))
        fcm.clear()
        with pytest.raises(TimeoutError):
            await fcm.next(timeout=0.01)
        assert fcm.pushes == []
        assert (await send(fcm)).status == 200
        assert (await ask(fcm, form(assertion(fcm)))).status == 200


async def test_on_push_without_a_record() -> None:
    seen: list[int] = []
    async with mock(record=False, on_push=lambda message: seen.append(message.size)) as fcm:
        await send(fcm)
        await send(fcm, {})
        assert seen == [19]
        assert (fcm.pushes, fcm.rejected, fcm.counters.requests) == ([], [], 2)


# --- pyfcm and google-auth as the clients ---

Connect = Callable[[MockFcm], FCMNotification]


def trust(monkeypatch: pytest.MonkeyPatch, ca_file: Path) -> None:
    """Have requests trust the CA, and go to no proxy that the environment may name."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca_file))
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Connect]:
    clients: list[FCMNotification] = []

    def make(fcm: MockFcm) -> FCMNotification:
        trust(monkeypatch, fcm.ca_file)
        monkeypatch.setattr(FCMNotification, "FCM_END_POINT_BASE", f"{fcm.url}/v1/projects")
        account = fcm.service_account(tmp_path / "account.json")
        clients.append(FCMNotification(service_account_file=str(account), project_id=fcm.project_id))
        return clients[-1]

    yield make
    for client in clients:
        session = getattr(client.thread_local, "requests_session", None)
        if session is not None:
            session.close()


async def notify(client: FCMNotification, token: str = TOKEN, **options: Any) -> Any:
    def call() -> Any:
        try:
            return client.notify(fcm_token=token, data_payload={"k": "v"}, **options)
        finally:
            client.thread_local.requests_session.close()  # it belongs to this thread

    return await asyncio.to_thread(call)


async def test_pyfcm_is_satisfied(connect: Connect) -> None:
    async with MockFcm(private_key=KEY) as fcm:
        client = connect(fcm)
        result = await notify(client, android_config={"priority": "high", "ttl": "60s"})
        message = await fcm.next(TOKEN)
        assert result == {"name": message.name}
        assert (message.data, message.priority, message.ttl) == ({"k": "v"}, "HIGH", 60)
        assert fcm.grants == 1
        result = await notify(client, dry_run=True)
        assert (result["name"].rpartition("/")[2], len(fcm.pushes)) == ("fake_message_id", 1)


async def test_pyfcm_reads_refusals(connect: Connect) -> None:
    async with MockFcm(private_key=KEY) as fcm:
        client = connect(fcm)
        refusals: list[tuple[Callable[[str], None], type[Exception]]] = [
            (fcm.unregister, pyfcm.errors.FCMNotRegisteredError),
            (fcm.mismatch_sender, pyfcm.errors.FCMSenderIdMismatchError),
            (fcm.reject_token, pyfcm.errors.InvalidDataError),
        ]
        for refuse, error in refusals:
            refuse(TOKEN)
            with pytest.raises(error):
                await notify(client)
        fcm.script(fcm_error("INTERNAL"), fcm_error("THIRD_PARTY_AUTH_ERROR"), token="other")
        with pytest.raises(pyfcm.errors.FCMServerError):
            await notify(client, "other")
        with pytest.raises(pyfcm.errors.AuthenticationError):
            await notify(client, "other")


async def test_pyfcm_recovers(connect: Connect) -> None:
    clock = [0.0]
    async with MockFcm(private_key=KEY, clock=lambda: time.time() + clock[0]) as fcm:
        client = connect(fcm)

        def call() -> None:  # in one thread, with one session
            client.notify(fcm_token=TOKEN)
            fcm.script(fcm_error("UNAVAILABLE"))
            client.notify(fcm_token=TOKEN)
            clock[0] = 4000  # ACCESS_TOKEN_EXPIRED, whereupon pyfcm asks for another, in vain
            fcm.script_grants(grant_error("invalid_grant"))
            with pytest.raises(pyfcm.errors.InvalidDataError, match="invalid_grant"):
                client.notify(fcm_token=TOKEN)
            clock[0] = 0
            client.notify(fcm_token=TOKEN)
            client.thread_local.requests_session.close()

        await asyncio.to_thread(call)
        assert [each.reason for each in fcm.rejected] == ["UNAVAILABLE", "UNAUTHENTICATED"]
        assert (len(fcm.pushes), fcm.grants, fcm.refused_grants) == (3, 2, 1)


async def test_google_auth_is_satisfied(tmp_path: Path) -> None:
    async with MockFcm(private_key=KEY, expires_in=1800) as fcm:
        path = fcm.service_account(tmp_path / "account.json")

        def refresh(scope: str) -> Any:
            credentials = Credentials.from_service_account_file(str(path), scopes=[scope])
            with requests.Session() as session:
                session.trust_env = False
                session.verify = str(fcm.ca_file)
                credentials.refresh(google.auth.transport.requests.Request(session))
            return credentials

        credentials = await asyncio.to_thread(refresh, SCOPE)
        expires_at = credentials.expiry.replace(tzinfo=datetime.UTC).timestamp()
        assert abs(expires_at - time.time() - 1800) < 60
        assert (await send(fcm, access_token=credentials.token)).status == 200
        with pytest.raises(RefreshError, match="invalid_scope"):
            await asyncio.to_thread(refresh, "https://www.googleapis.com/auth/drive")


# --- no body raises anything but a refusal ---

names = st.sampled_from(["token", "data", "android", "priority", "ttl", "collapse_key", "topic", "x", "a_b"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["1s", "HIGH"])
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(names, values).map(lambda each: json.dumps({"message": each}).encode()) | st.binary())
def test_any_body_is_parsed_or_refused(body: bytes) -> None:
    try:
        message, _ = parse_send(body)
    except Refused as refused:
        assert json.loads(refused.answer.payload())["error"]["code"] == 400
    else:
        assert isinstance(message, FcmMessage)
        assert message.size <= 4096


# --- the plugin and the command ---


async def test_fixture_listens(mock_fcm: MockFcm) -> None:
    assert (await send(mock_fcm)).status == 200


async def read_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 10)).decode().strip()


async def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca_file, account = tmp_path / "ca.pem", tmp_path / "account.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "ntf_server.testing", "--kind", "fcm", "--project", "demo"),
        *("--ca-file", str(ca_file), "--service-account", str(account)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    matched = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", await read_line(process))
    assert matched is not None
    trust(monkeypatch, ca_file)
    monkeypatch.setattr(FCMNotification, "FCM_END_POINT_BASE", f"https://127.0.0.1:{matched[1]}/v1/projects")
    result = await notify(FCMNotification(service_account_file=str(account), project_id="demo"))
    assert result["name"].startswith("projects/demo/messages/")
    assert await read_line(process) == "push size=2 priority=NORMAL ttl=2.4192e+06"
    process.send_signal(signal.SIGTERM)
    output, errors = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, output, errors) == (0, b"", b"")
