"""What an answer of a push service means (RFC 8030, sections 5 and 8.4). Redirects are not followed.

Push services are strangers': what one of them says of a push is not the operator's alarm yet. A refusal that says
nothing of the subscription is given as `Ours` of the origin: `health` counts them, and only an origin that refuses
everything is paused.
"""

from typing import Final

import msgspec

from ntf_server.push.exchange import HttpFailure, HttpResponse, HttpResult
from ntf_server.push.verdict import Again, DeadToken, Delivered, Ours, Scope, Verdict
from ntf_server.push.words import is_code
from smp_bridge.ntf import InvalidReason

_DELIVERED: Final = frozenset([200, 201, 202, 204])
_GONE: Final = frozenset([404, 410])
_AGAIN: Final = frozenset([406, 408, 421, 425, 429])  # 406 is Microsoft's 429
_BUSY: Final = frozenset([429, 503])  # with Retry-After: the service speaks of itself
# How they say that a subscription is for another VAPID key: Apple; Google; Google, older; Mozilla (errno 109).
_ANOTHER_KEY: Final = (
    b"VapidPkHashMismatch",
    b"do not correspond to the credentials used to create the subscription",
    b"does not correspond to the sender",
    b"VAPID public key mismatch",
)
_ANOTHER_KEY_STATUS: Final = frozenset([400, 401, 403])
_MAX_CODE: Final = 40  # characters of a service's own word: none of them is an endpoint


class _Error(msgspec.Struct):
    reason: object = None
    errno: object = None


def judge(answer: HttpResult) -> Verdict:
    """See above."""
    if isinstance(answer, HttpFailure):
        lost = answer.unreachable or answer.timeout
        return Again(str(answer), Scope.ORIGIN if lost else Scope.TOKEN)
    status = answer.status
    if status in _DELIVERED:
        return Delivered()
    if status in _GONE:
        return DeadToken(InvalidReason.UNREGISTERED)
    if is_for_another_key(answer):
        return DeadToken(InvalidReason.TOPIC)
    what = f"{status} {code(answer)}".rstrip()
    if status == 413:
        return Ours(what, Scope.TOKEN)
    if status in _AGAIN or status >= 500:
        whole = status in _BUSY and answer.retry_after is not None
        return Again(what, Scope.ORIGIN if whole else Scope.TOKEN, answer.retry_after)
    return Ours(what, Scope.ORIGIN)


def is_for_another_key(answer: HttpResult) -> bool:
    """Whether the subscription takes pushes that another VAPID key signed, and no others."""
    if not isinstance(answer, HttpResponse) or answer.status not in _ANOTHER_KEY_STATUS:
        return False
    return any(words in answer.body for words in _ANOTHER_KEY)


def code(answer: HttpResponse) -> str:
    """Apple's word, or Mozilla's number."""
    try:
        error = msgspec.json.decode(answer.body, type=_Error)
    except (ValueError, RecursionError):
        return ""
    if isinstance(error.reason, str) and is_code(error.reason) and len(error.reason) <= _MAX_CODE:
        return error.reason
    known = type(error.errno) is int and 0 < error.errno < 1000  # not a bool
    return f"errno {error.errno}" if known else ""
