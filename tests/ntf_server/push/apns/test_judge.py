import json
from typing import Any

import pycurl
import pytest
from claims import NOW, Took, comparable

from ntf_server.push.apns.judge import judge
from ntf_server.push.exchange import HttpFailure, HttpResponse
from ntf_server.push.verdict import Again, DeadToken, Ours, Scope
from smp_bridge.ntf import InvalidReason


def answer(status: int, body: bytes, retry_after: float | None = None) -> HttpResponse:
    return HttpResponse(status, body, retry_after)


def reason(text: str) -> bytes:
    return json.dumps({"reason": text}).encode()


@pytest.mark.parametrize(
    "timestamp", ["true", "null", '"1"', "[]", "-1", "1e400", "1" + "0" * 400, "NaN", "Infinity", "-Infinity"]
)
def test_a_410_with_a_timestamp_that_apple_would_not_send(timestamp: str) -> None:
    body = b'{"reason":"Unregistered","timestamp":%s}' % timestamp.encode()
    assert isinstance(judge(answer(410, body), NOW), DeadToken | Again)


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (answer(200, b""), Took()),
        (answer(200, b"whatever"), Took()),
        (answer(400, reason("BadDeviceToken")), DeadToken(InvalidReason.BAD)),
        (answer(400, reason("DeviceTokenNotForTopic")), DeadToken(InvalidReason.TOPIC)),
        (answer(410, reason("ExpiredToken")), DeadToken(InvalidReason.EXPIRED)),
        (answer(410, b'{"reason":"Unregistered","timestamp":1}'), DeadToken(InvalidReason.UNREGISTERED)),
        (answer(403, reason("BadDeviceToken")), Ours("403 BadDeviceToken", Scope.PROVIDER)),
        (answer(410, b""), Again("410")),
        (answer(410, reason("Other")), Again("410 Other")),
        (answer(400, reason("BadTopic")), Ours("400 BadTopic", Scope.PROVIDER)),
        (answer(400, b""), Ours("400", Scope.TOKEN)),
        (answer(403, reason("InvalidProviderToken")), Ours("403 InvalidProviderToken", Scope.PROVIDER)),
        (answer(403, reason("ExpiredProviderToken")), Again("403 ExpiredProviderToken")),
        (answer(404, reason("BadPath")), Ours("404 BadPath", Scope.TOKEN)),
        (answer(404, b"<html>"), Ours("404", Scope.PROVIDER)),
        (answer(405, reason("MethodNotAllowed")), Ours("405 MethodNotAllowed", Scope.TOKEN)),
        (answer(413, reason("PayloadTooLarge")), Ours("413 PayloadTooLarge", Scope.TOKEN)),
        (answer(429, reason("TooManyRequests"), 30.0), Again("429 TooManyRequests", Scope.TOKEN, 30.0)),
        (
            answer(429, reason("TooManyProviderTokenUpdates"), 9.0),
            Again("429 TooManyProviderTokenUpdates", Scope.PROVIDER, 9.0),
        ),
        (answer(500, reason("InternalServerError")), Again("500 InternalServerError")),
        (answer(502, b"<html>"), Again("502")),
        (answer(503, reason("ServiceUnavailable")), Again("503 ServiceUnavailable")),
        (answer(301, b""), Ours("301", Scope.PROVIDER)),
        (HttpFailure(pycurl.E_COULDNT_CONNECT, timeout=False), Again("connection refused", Scope.PROVIDER)),
        (HttpFailure(pycurl.E_COULDNT_RESOLVE_HOST, timeout=False), Again("host name not resolved", Scope.PROVIDER)),
        (HttpFailure(pycurl.E_PEER_FAILED_VERIFICATION, False), Again("certificate not trusted", Scope.PROVIDER)),
        (HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True), Again("timed out", Scope.TOKEN)),
        (HttpFailure(99, timeout=False), Again("libcurl error 99", Scope.TOKEN)),
    ],
)
def test_what_an_answer_means(response: HttpResponse | HttpFailure, verdict: Any) -> None:
    assert comparable(judge(response)) == verdict


@pytest.mark.parametrize(
    ("skew", "words"),
    [
        (None, "is this machine's clock right?"),
        (5.0, "this machine's clock agrees with Apple's"),
        (7200.0, "this machine's clock is 7200 s behind Apple's"),
        (-90.4, "this machine's clock is 90 s ahead of Apple's"),
    ],
)
def test_a_new_provider_token_that_is_expired_is_a_matter_of_the_clock(skew: float | None, words: str) -> None:
    verdict = judge(answer(403, reason("ExpiredProviderToken")), renewable=False, skew=skew)
    assert verdict == Ours(f"403 ExpiredProviderToken: {words}", Scope.PROVIDER)


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
    assert judge(answer(500, body)) == Again("500")
    assert judge(answer(400, body)) == Ours("400", Scope.TOKEN)
