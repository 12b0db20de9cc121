import json
from typing import Any

import pycurl
import pytest
from claims import Took, comparable

from ntf_server.push.exchange import HttpFailure, HttpResponse
from ntf_server.push.verdict import Again, DeadToken, Ours, Scope
from ntf_server.push.webpush.judge import is_for_another_key, judge
from smp_bridge.ntf import InvalidReason

GONE = DeadToken(InvalidReason.UNREGISTERED)
APPLE = b'{"reason":"VapidPkHashMismatch"}'
GOOGLE = (
    b"the VAPID credentials in the authorization header do not correspond to the credentials used to create the"
    b" subscriptions.\n"
)
MOZILLA = b'{"code":401,"errno":109,"error":"Unauthorized","message":"VAPID public key mismatch"}'


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        *((HttpResponse(status), Took()) for status in (200, 201, 202, 204)),
        (HttpResponse(404), GONE),
        (HttpResponse(410), GONE),
        *((HttpResponse(status), Ours(str(status), Scope.ORIGIN)) for status in (301, 307, 400, 401, 403, 405, 451)),
        (HttpResponse(403, b'{"reason":"BadJwtToken"}'), Ours("403 BadJwtToken", Scope.ORIGIN)),
        (HttpResponse(401, b'{"code":401,"errno":109}'), Ours("401 errno 109", Scope.ORIGIN)),
        (HttpResponse(413), Ours("413", Scope.TOKEN)),
        *((HttpResponse(status), Again(str(status))) for status in (406, 408, 421, 425, 429, 500, 502, 503)),
        (HttpResponse(406, retry_after=9.0), Again("406", Scope.TOKEN, 9.0)),
        (HttpResponse(429, retry_after=60.0), Again("429", Scope.ORIGIN, 60.0)),
        (HttpResponse(503, retry_after=60.0), Again("503", Scope.ORIGIN, 60.0)),
        (HttpFailure(pycurl.E_COULDNT_CONNECT, timeout=False), Again("connection refused", Scope.ORIGIN)),
        (HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True), Again("timed out", Scope.ORIGIN)),
        (HttpFailure(pycurl.E_RECV_ERROR, timeout=False), Again("connection lost while receiving")),
    ],
)
def test_what_an_answer_means(response: HttpResponse | HttpFailure, verdict: Any) -> None:
    assert comparable(judge(response)) == verdict


@pytest.mark.parametrize(
    ("status", "body"), [(403, APPLE), (400, APPLE), (403, GOOGLE), (401, MOZILLA)], ids=["A", "A", "G", "M"]
)
def test_a_subscription_for_another_vapid_key_is_the_tokens_end(status: int, body: bytes) -> None:
    assert is_for_another_key(HttpResponse(status, body))
    assert judge(HttpResponse(status, body)) == DeadToken(InvalidReason.TOPIC)


def test_these_words_mean_nothing_elsewhere() -> None:
    assert not is_for_another_key(HttpResponse(500, APPLE))
    assert not is_for_another_key(HttpFailure(7, timeout=False))
    assert judge(HttpResponse(500, APPLE)) == Again("500 VapidPkHashMismatch")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[" * 60_000,
        b'{"reason":["x"]}',
        b'{"errno":-1}',
        b'{"errno":true}',
        json.dumps({"reason": "https://push.example/SECRET"}).encode(),
        json.dumps({"reason": "a\nforged log line"}).encode(),
        json.dumps({"reason": "x" * 41}).encode(),
    ],
)
def test_words_that_may_be_anything_are_left_out(body: bytes) -> None:
    assert judge(HttpResponse(400, body)) == Ours("400", Scope.ORIGIN)
