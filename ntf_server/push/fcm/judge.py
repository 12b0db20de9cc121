"""What an answer of FCM means (Firebase, "ErrorCode"; google.rpc.Code where there is none)."""

from typing import Any, Final

import msgspec

from ntf_server.push.exchange import HttpFailure, HttpResponse, HttpResult
from ntf_server.push.verdict import Again, DeadToken, Delivered, Ours, Scope, Verdict
from ntf_server.push.words import is_code
from smp_bridge.ntf import InvalidReason

_QUOTA_WAIT: Final = 60.0  # seconds; what Google asks for where it says no number
_QUOTA: Final = frozenset(["QUOTA_EXCEEDED", "RESOURCE_EXHAUSTED"])
_AGAIN: Final = frozenset(["UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED"])
_DEAD: Final = {
    "UNREGISTERED": InvalidReason.UNREGISTERED,
    "SENDER_ID_MISMATCH": InvalidReason.TOPIC,  # a token of another project
}
_NOT_A_TOKEN: Final = "not a valid FCM registration token"  # noqa: S105
_THIS_PUSH: Final = frozenset([400, 413])


class _Details(msgspec.Struct):
    status: object = ""
    message: object = ""
    details: object = ()


class _Error(msgspec.Struct):
    error: _Details


def error(response: HttpResponse) -> tuple[str, str, bool]:
    """(FCM's errorCode, else the google.rpc.Code; the message; whether the registration token is what is invalid)."""
    try:
        told = msgspec.json.decode(response.body, type=_Error).error
    except (ValueError, RecursionError):
        return "", "", False
    details = _objects(told.details)
    codes = [d["errorCode"] for d in details if isinstance(d.get("errorCode"), str)]
    fields = [v.get("field") for d in details for v in _objects(d.get("fieldViolations"))]
    code = codes[0] if codes else told.status
    message = told.message if isinstance(told.message, str) else ""
    invalid = "message.token" in fields or _NOT_A_TOKEN in message
    return (code if isinstance(code, str) and is_code(code) else ""), message, invalid


def _objects(value: object) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def refuses_access_token(answer: HttpResult) -> bool:
    """Whether it is the access token that FCM does not take (any more)."""
    return isinstance(answer, HttpResponse) and _is_unauthenticated(answer.status, error(answer)[0])


def _is_unauthenticated(status: int, code: str) -> bool:
    return status == 401 and code != "THIRD_PARTY_AUTH_ERROR"


def judge(answer: HttpResult, *, renewed: bool = False) -> Verdict:
    """`renewed`: the access token was granted anew since one was refused, so that another would do no better."""
    if isinstance(answer, HttpFailure):
        return Again(str(answer), Scope.PROVIDER if answer.unreachable else Scope.TOKEN)
    status = answer.status
    if status == 200:
        return Delivered()
    code, message, invalid = error(answer)
    what = f"{status} {code}".rstrip()
    if code in _DEAD:  # a 404 that is not UNREGISTERED is a wrong project: no reason to give up all tokens
        return DeadToken(_DEAD[code])
    if code == "INVALID_ARGUMENT" and invalid:
        return DeadToken(InvalidReason.BAD)
    if _is_unauthenticated(status, code):
        return Ours(what) if renewed else Again(what, Scope.PROVIDER)
    if code in _QUOTA or status == 429:
        scope = Scope.TOKEN if "device" in message.lower() or code.startswith("DEVICE_") else Scope.PROVIDER
        return Again(what, scope, answer.retry_after or _QUOTA_WAIT)
    if code in _AGAIN or status >= 500:
        return Again(what, Scope.TOKEN, answer.retry_after)
    return Ours(what, Scope.TOKEN if status in _THIS_PUSH else Scope.PROVIDER)
