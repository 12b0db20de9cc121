"""FCM, HTTP v1 (Firebase, "Send messages with the HTTP v1 API"; errors by google.rpc.Code and FcmError)."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from ntf_server.push.fcm.oauth import AccessToken
from ntf_server.push.http import Endpoint, HttpEngine, HttpFailure, HttpRequest, HttpResponse, HttpResult
from ntf_server.push.payload import notification_data
from ntf_server.push.provider import Accepted, Dead, OnResult, Permanent, Result, Retry, Scope
from ntf_server.store.records import Push, PushKind, StoredNotification
from smp_bridge.ntf import InvalidReason

_RETRIED: Final = frozenset(["QUOTA_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED"])
_MAX_TTL: Final = 28 * 24 * 3600  # seconds; FCM refuses more
_OPERATOR: Final = frozenset(["SENDER_ID_MISMATCH", "THIRD_PARTY_AUTH_ERROR", "PERMISSION_DENIED"])


class Fcm:
    """FCM for one Firebase project. Implements `PushProvider`."""

    def __init__(
        self,
        engine: HttpEngine,
        endpoint: Endpoint,
        access_token: AccessToken,
        project_id: str,
        *,
        ttl: Mapping[PushKind, int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._access_token = access_token
        self._path = f"/v1/projects/{project_id}/messages:send"
        self._ttl = ttl
        self._clock = clock

    def send(self, pushes: Sequence[Push], on_result: OnResult) -> None:
        """See `PushProvider`."""
        self._access_token.get(partial(self._send, list(pushes), on_result))

    def _send(self, pushes: Sequence[Push], on_result: OnResult, token: str | None, failure: Result | None) -> None:
        if token is None:
            for push in pushes:
                on_result(push, failure or Retry("no access token", Scope.PROVIDER))
            return
        requests = []
        for push in pushes:
            if not push.device.token or not push.device.token.isascii():
                on_result(push, Dead(InvalidReason.BAD))
                continue
            try:
                body, held = self._body(push)
            except ValueError as e:
                on_result(push, Permanent(str(e)))
                continue
            headers = (f"authorization: Bearer {token}", "content-type: application/json")
            request = HttpRequest(self._endpoint, self._path, headers, body)
            requests.append((request, partial(self._done, push, held, token, on_result)))
        self._engine.send(requests)

    def _body(self, push: Push) -> tuple[bytes, tuple[StoredNotification, ...]]:
        data, held = notification_data(push)
        left = min(max(0, push.since + self._ttl[push.kind] - int(self._clock())), _MAX_TTL)
        android: dict[str, Any] = {
            "priority": "NORMAL" if push.kind is PushKind.CHECK else "HIGH",
            "ttl": f"{left}s",
        }
        if push.kind is not PushKind.MESSAGES:
            android["collapse_key"] = push.kind.name.lower()
        message = {"token": push.device.token.decode("ascii"), "data": data, "android": android}
        return json.dumps({"message": message}).encode(), held

    def _done(
        self, push: Push, held: tuple[StoredNotification, ...], token: str, on_result: OnResult, answer: HttpResult
    ) -> None:
        result = judge(answer)
        if isinstance(result, Accepted):
            result = Accepted(held)
        elif isinstance(result, Retry) and isinstance(answer, HttpResponse) and answer.status == 401:
            self._access_token.expire(token)
        on_result(push, result)


def _error(response: HttpResponse) -> tuple[str, bool]:
    """(FCM's errorCode, else the google.rpc.Code; whether the token is what is invalid)."""
    try:
        error = json.loads(response.body)["error"]
        details = error.get("details", [])
        codes = [d["errorCode"] for d in details if isinstance(d.get("errorCode"), str)]
        fields = [v.get("field") for d in details for v in d.get("fieldViolations", [])]
        code = codes[0] if codes else error.get("status", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", False
    known = isinstance(code, str) and code.replace("_", "").isalpha() and len(code) < 64
    message = str(error.get("message", ""))
    invalid = "message.token" in fields or "not a valid FCM registration token" in message
    return (code if known else ""), invalid


def judge(answer: HttpResult) -> Result:
    """What an answer of FCM means."""
    if isinstance(answer, HttpFailure):
        return Retry(str(answer), Scope.PROVIDER if answer.unreachable else Scope.TOKEN)
    if answer.status == 200:
        return Accepted()
    code, invalid = _error(answer)
    what = f"{answer.status} {code}".rstrip()
    if code == "UNREGISTERED":  # another 404 is a wrong project: no reason to give up all tokens
        return Dead(InvalidReason.UNREGISTERED)
    if code == "INVALID_ARGUMENT" and invalid:
        return Dead(InvalidReason.BAD)
    if code in _OPERATOR or answer.status == 403:
        return Permanent(what)
    if answer.status == 401:
        return Retry(what, Scope.PROVIDER)
    if code in _RETRIED or answer.status == 429 or answer.status >= 500:
        return Retry(what, Scope.TOKEN, answer.retry_after)
    return Permanent(what)
