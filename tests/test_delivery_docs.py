"""docs/reference/delivery.md says of every answer of a provider what the code makes of it."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pycurl
import pytest

from ntf_server.push import exchange
from ntf_server.push.apns.judge import judge as judge_apns
from ntf_server.push.exchange import HttpFailure, HttpResponse, HttpResult
from ntf_server.push.fcm.judge import judge as judge_fcm
from ntf_server.push.fcm.oauth import judge as judge_oauth
from ntf_server.push.verdict import Again, DeadToken, Delivered, Ours, Scope, Verdict
from ntf_server.push.webpush.judge import judge as judge_web_push

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
WEB_PUSH = "200 201 202 204 301 307 400 401 403 404 406 408 410 413 421 425 429 500 502 503"


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


def judge(row: Row, answer: HttpResult) -> Verdict:
    match row.provider:
        case "APNs":
            return judge_apns(answer, REGISTERED_AT, renewable=row.condition != "for a new provider token")
        case "FCM":
            return judge_fcm(answer, renewed=row.condition == "for a new access token")
        case "Web Push":
            return judge_web_push(answer)
    assert row.provider == "OAuth"
    return judge_oauth(answer, REGISTERED_AT) or Delivered()


def failures(row: Row) -> list[HttpResult]:
    """Of libcurl, by the name that the row gives them."""
    codes = [code for code, name in exchange._NAMES.items() if name == row.condition]
    return [HttpFailure(code, timeout=code == pycurl.E_OPERATION_TIMEDOUT) for code in codes or [OTHER_FAILURE]]


def answer_of(row: Row, retry_after: float | None) -> HttpResult:
    """The answer that a row speaks of."""
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
        message = "Device message rate exceeded." if row.condition == "of the device" else ""
        body = {"error": {"status": row.code, "message": message, "details": details}}
    elif row.provider == "OAuth":
        body = {"error": "invalid_grant"} if row.status != "200" else {"access_token": "t", "expires_in": 3600}
        if row.condition == "without a usable token":
            body = {}
    elif row.condition == "for another VAPID key":
        body = {"reason": "VapidPkHashMismatch"}
    return HttpResponse(int(row.status), json.dumps(body).encode(), retry_after)


SCOPES = {Scope.TOKEN: "", Scope.ORIGIN: " origin", Scope.PROVIDER: " all"}


def words(verdict: Verdict) -> str:
    """An outcome as the table says it."""
    match verdict:
        case Delivered():
            return "delivered"
        case DeadToken(reason):
            return f"INVALID, {reason}"
        case Again(_, scope, _):
            return "retry" + SCOPES[scope]
        case Ours(_, scope):
            return "refused" if scope is Scope.ORIGIN else "ours" + SCOPES[scope]


def wait_words(row: Row) -> str:
    """What becomes of a Retry-After, as the table says it."""
    with_header, without = (judge(row, answer_of(row, seconds)) for seconds in (7.0, None))
    if not isinstance(with_header, Again) or not isinstance(without, Again) or with_header.after is None:
        return ""
    assert with_header.after == 7
    other = "" if without.after is None else f", else {without.after:.0f} s"
    scope = "" if with_header.scope is without.scope else f", then {words(with_header)}"
    return f"yes{other}{scope}"


@pytest.mark.parametrize("row", ROWS, ids=lambda r: " ".join(filter(None, r[:4])))
def test_the_table_says_what_the_code_does(row: Row) -> None:
    if row.status == "libcurl":
        assert {words(judge(row, failure)) for failure in failures(row)} == {row.outcome}
        assert row.retry_after == ""
        return
    assert words(judge(row, answer_of(row, None))) == row.outcome
    assert wait_words(row) == row.retry_after


def test_every_documented_answer_is_in_the_table() -> None:
    def listed(provider: str) -> set[tuple[str, str]]:
        return {(r.status, r.code) for r in ROWS if r.provider == provider and r.status != "libcurl"}

    assert listed("APNs") == {("200", ""), *((s, reason) for s, reasons in APPLE.items() for reason in reasons.split())}
    assert listed("FCM") == {("200", ""), *((c.split()[0], c.split()[1]) for c in GOOGLE.split(", "))}
    assert listed("Web Push") == {(status, "") for status in WEB_PUSH.split()}


@pytest.mark.parametrize("provider", ["APNs", "FCM", "Web Push", "OAuth"])
def test_every_failure_is_in_the_table(provider: str) -> None:
    assert {r.condition for r in ROWS if r.provider == provider and r.status == "libcurl"} == {
        *exchange._NAMES.values(),
        "any other",
    }


def test_no_answer_is_in_the_table_twice() -> None:
    keys = [row[:4] for row in ROWS]
    assert len(keys) == len(set(keys))
