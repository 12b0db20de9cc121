import json
from typing import Any

import pycurl
import pytest
from claims import Took, comparable

from ntf_server.push.exchange import HttpFailure, HttpResponse
from ntf_server.push.fcm.judge import judge, refuses_access_token
from ntf_server.push.verdict import Again, DeadToken, Ours, Scope
from ntf_server.testing import Answer, fcm_error
from ntf_server.testing.fcm_message import field_violation
from ntf_server.testing.google import api_error
from smp_bridge.ntf import InvalidReason


def answer(of: Answer) -> HttpResponse:
    seconds = dict(of.headers).get("retry-after")
    return HttpResponse(of.status, of.payload(), float(seconds) if seconds else None)


INVALID = field_violation("message.token", "Invalid registration token")
BAD_TOKEN = "The registration token is not a valid FCM registration token"


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (answer(Answer(200, body=b"{}")), Took()),
        (answer(fcm_error("UNREGISTERED")), DeadToken(InvalidReason.UNREGISTERED)),
        (answer(fcm_error("SENDER_ID_MISMATCH")), DeadToken(InvalidReason.TOPIC)),
        (answer(fcm_error("INVALID_ARGUMENT", BAD_TOKEN)), DeadToken(InvalidReason.BAD)),
        (answer(fcm_error("INVALID_ARGUMENT", None, INVALID)), DeadToken(InvalidReason.BAD)),
        (answer(fcm_error("INVALID_ARGUMENT", "Too big")), Ours("400 INVALID_ARGUMENT", Scope.TOKEN)),
        (
            answer(fcm_error("INVALID_ARGUMENT", None, field_violation("message.android.ttl", "x"))),
            Ours("400 INVALID_ARGUMENT", Scope.TOKEN),
        ),
        (answer(api_error(404, "NOT_FOUND", "")), Ours("404 NOT_FOUND", Scope.PROVIDER)),
        (answer(Answer(404)), Ours("404", Scope.PROVIDER)),
        (answer(fcm_error("QUOTA_EXCEEDED")), Again("429 QUOTA_EXCEEDED", Scope.PROVIDER, 60.0)),
        (answer(fcm_error("QUOTA_EXCEEDED", retry_after=9)), Again("429 QUOTA_EXCEEDED", Scope.PROVIDER, 9.0)),
        (
            answer(fcm_error("QUOTA_EXCEEDED", "Device message rate exceeded.")),
            Again("429 QUOTA_EXCEEDED", Scope.TOKEN, 60.0),
        ),
        (answer(Answer(429)), Again("429", Scope.PROVIDER, 60.0)),
        (answer(fcm_error("UNAVAILABLE", retry_after=60)), Again("503 UNAVAILABLE", after=60.0)),
        (answer(fcm_error("INTERNAL")), Again("500 INTERNAL")),
        (answer(fcm_error("UNSPECIFIED_ERROR")), Again("500 UNSPECIFIED_ERROR")),
        (answer(Answer(502, body=b"<html>")), Again("502")),
        (answer(fcm_error("THIRD_PARTY_AUTH_ERROR")), Ours("401 THIRD_PARTY_AUTH_ERROR", Scope.PROVIDER)),
        (answer(api_error(401, "UNAUTHENTICATED", "")), Again("401 UNAUTHENTICATED", Scope.PROVIDER)),
        (answer(api_error(403, "PERMISSION_DENIED", "")), Ours("403 PERMISSION_DENIED", Scope.PROVIDER)),
        (answer(Answer(403)), Ours("403", Scope.PROVIDER)),
        (answer(Answer(413)), Ours("413", Scope.TOKEN)),
        (answer(Answer(301, headers=(("location", "https://elsewhere"),))), Ours("301", Scope.PROVIDER)),
        (HttpFailure(pycurl.E_COULDNT_CONNECT, timeout=False), Again("connection refused", Scope.PROVIDER)),
        (HttpFailure(97, timeout=False), Again("refused by the proxy", Scope.PROVIDER)),
        (HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True), Again("timed out", Scope.TOKEN)),
    ],
)
def test_what_an_answer_means(response: HttpResponse | HttpFailure, verdict: Any) -> None:
    assert comparable(judge(response)) == verdict


def test_a_new_access_token_that_is_refused_is_ours() -> None:
    refused = answer(api_error(401, "UNAUTHENTICATED", ""))
    assert judge(refused, renewed=True) == Ours("401 UNAUTHENTICATED", Scope.PROVIDER)
    assert refuses_access_token(refused)
    assert not refuses_access_token(answer(fcm_error("THIRD_PARTY_AUTH_ERROR")))
    assert not refuses_access_token(HttpFailure(7, timeout=False))


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
    assert judge(HttpResponse(500, body)) == Again("500")
    assert judge(HttpResponse(404, body)) == Ours("404", Scope.PROVIDER)
