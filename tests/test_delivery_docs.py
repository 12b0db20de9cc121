"""docs/reference/delivery.md says of every answer of a provider what the code makes of it."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pycurl
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from ntf_server.push import http
from ntf_server.push.apns import request as apns
from ntf_server.push.fcm import request as fcm
from ntf_server.push.fcm.oauth import AccessToken, ServiceAccount
from ntf_server.push.http import Endpoint, HttpFailure, HttpResponse, HttpResult
from ntf_server.push.provider import Accepted, Dead, Permanent, Result, Retry, Scope
from ntf_server.push.webpush import request as webpush

PAGE = Path(__file__).parents[1] / "docs/reference/delivery.md"
REGISTERED_AT = 1_700_000_000
OTHER_FAILURE = pycurl.E_FAILED_INIT

# Apple, "Handling notification responses from APNs"
APPLE = {
    "400": "BadCollapseId BadDeviceToken BadExpirationDate BadMessageId BadPriority BadTopic DeviceTokenNotForTopic"
    " DuplicateHeaders IdleTimeout InvalidPushType MissingDeviceToken MissingTopic PayloadEmpty TopicDisallowed",
    "403": "BadCertificate BadCertificateEnvironment BadEnvironmentKeyIdInToken ExpiredProviderToken Forbidden"
    " InvalidProviderToken MissingProviderToken UnrelatedKeyIdInToken",
    "404": "BadPath",
    "405": "MethodNotAllowed",
    "410": "ExpiredToken Unregistered",
    "413": "PayloadTooLarge",
    "429": "TooManyProviderTokenUpdates TooManyRequests",
    "500": "InternalServerError",
    "503": "ServiceUnavailable Shutdown",
}
# Firebase, "ErrorCode", and google.rpc.Code where there is none
GOOGLE = (
    "400 INVALID_ARGUMENT, 401 THIRD_PARTY_AUTH_ERROR, 401 UNAUTHENTICATED, 403 PERMISSION_DENIED,"
    " 403 SENDER_ID_MISMATCH, 404 NOT_FOUND, 404 UNREGISTERED, 429 QUOTA_EXCEEDED, 429 RESOURCE_EXHAUSTED,"
    " 500 INTERNAL, 503 UNAVAILABLE, 504 DEADLINE_EXCEEDED"
)
WEB_PUSH = "200 201 202 204 301 307 400 401 403 404 410 413 429 500 502 503"


class Row(NamedTuple):
    provider: str
    status: str
    code: str
    condition: str
    outcome: str
    retry_after: str


def read_rows() -> list[Row]:
    """One for each provider that a row of the table names."""
    out = []
    for line in re.findall(r"^\|(.+)\|$", PAGE.read_text(), re.MULTILINE):
        cells = [cell.strip() for cell in line.split("|")]
        found = re.fullmatch(r"`(\d+|libcurl)(?: (\w+))?`(?:, (.+))?", cells[1])
        if found:
            providers, _, outcome, retry_after, _ = cells
            parts = (found[1], found[2] or "", found[3] or "")
            out += [Row(p, *parts, outcome, retry_after) for p in providers.split(", ")]
    return out


ROWS = read_rows()


class Engine:
    """Keeps what was to be sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, Callable[[HttpResult], None]]] = []

    def send(self, requests: list[tuple[object, Callable[[HttpResult], None]]]) -> None:
        self.sent += requests


@functools.cache
def account() -> ServiceAccount:
    return ServiceAccount("p", "e", "k", "https://localhost/", rsa.generate_private_key(65537, 2048))


def oauth_judge(answer: HttpResult) -> Result:
    """What becomes of the pushes that wait for an access token; `Accepted`: they go on."""
    engine, results = Engine(), []
    token = AccessToken(engine, Endpoint("https://localhost", ""), account())  # type: ignore[arg-type]
    token.get(lambda text, failure: results.append(failure or Accepted()))
    [(_, done)] = engine.sent
    done(answer)
    return results[0]


def judge(provider: str, answer: HttpResult) -> Result:
    match provider:
        case "APNs":
            return apns.judge(answer, REGISTERED_AT)
        case "FCM":
            return fcm.judge(answer)
        case "Web Push":
            return webpush.judge(answer)
    assert provider == "OAuth"
    return oauth_judge(answer)


def failures(row: Row) -> list[HttpResult]:
    """Of libcurl, by the name that the row gives them."""
    codes = [code for code, name in http._NAMES.items() if name == row.condition]
    return [HttpFailure(code, timeout=False) for code in codes or [OTHER_FAILURE]]


def answer_of(row: Row) -> HttpResult:
    """The answer that a row speaks of, with a Retry-After of 7 seconds."""
    body: dict[str, object] = {}
    if row.provider == "APNs":
        body = {"reason": row.code} | ({"timestamp": (REGISTERED_AT + 1) * 1000} if row.status == "410" else {})
        if row.condition == "since before the registration":
            body["timestamp"] = (REGISTERED_AT - 1) * 1000
    elif row.provider == "FCM":
        kind = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
        details: list[object] = [{"@type": kind, "errorCode": row.code}]
        if row.condition == "for the token":
            details.append({"fieldViolations": [{"field": "message.token"}]})
        body = {"error": {"status": row.code, "details": details}}
    elif row.provider == "OAuth" and row.condition != "without a usable token":
        body = {"access_token": "t", "expires_in": 3600}
    return HttpResponse(int(row.status), json.dumps(body).encode(), 7.0)


def words(result: Result) -> str:
    """An outcome as the table says it."""
    match result:
        case Accepted():
            return "delivered"
        case Dead(reason):
            return f"INVALID, {reason}"
        case Retry(_, scope, _):
            return "retry all" if scope is Scope.PROVIDER else "retry"
        case Permanent():
            return "ours"


@pytest.mark.parametrize("row", ROWS, ids=lambda r: " ".join(filter(None, r[:4])))
def test_the_table_says_what_the_code_does(row: Row) -> None:
    for answer in failures(row) if row.status == "libcurl" else [answer_of(row)]:
        result = judge(row.provider, answer)
        assert words(result) == row.outcome
        assert row.retry_after == ("yes" if isinstance(result, Retry) and result.after == 7 else "")


def test_every_documented_answer_is_in_the_table() -> None:
    def listed(provider: str) -> set[tuple[str, str]]:
        return {(r.status, r.code) for r in ROWS if r.provider == provider and r.status != "libcurl"}

    assert listed("APNs") == {("200", ""), *((s, reason) for s, reasons in APPLE.items() for reason in reasons.split())}
    assert listed("FCM") == {("200", ""), *((c.split()[0], c.split()[1]) for c in GOOGLE.split(", "))}
    assert listed("Web Push") == {(status, "") for status in WEB_PUSH.split()}


@pytest.mark.parametrize("provider", ["APNs", "FCM", "Web Push", "OAuth"])
def test_every_failure_is_in_the_table(provider: str) -> None:
    assert {r.condition for r in ROWS if r.provider == provider and r.status == "libcurl"} == {
        *http._NAMES.values(),
        "any other",
    }


def test_no_answer_is_in_the_table_twice() -> None:
    keys = [row[:4] for row in ROWS]
    assert len(keys) == len(set(keys))
