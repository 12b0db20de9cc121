"""What an answer of APNs means (Apple, "Handling notification responses from APNs")."""

from typing import Final

import msgspec

from ntf_server.push.exchange import HttpFailure, HttpResponse, HttpResult
from ntf_server.push.verdict import Again, DeadToken, Delivered, Ours, Scope, Verdict
from ntf_server.push.words import clock_words, is_code
from smp_bridge.ntf import InvalidReason

EXPIRED: Final = "ExpiredProviderToken"

_DEAD: Final = {
    (400, "BadDeviceToken"): InvalidReason.BAD,
    (400, "DeviceTokenNotForTopic"): InvalidReason.TOPIC,
    (410, "ExpiredToken"): InvalidReason.EXPIRED,
    (410, "Unregistered"): InvalidReason.UNREGISTERED,
}
_AGAIN: Final = {"IdleTimeout": Scope.TOKEN, "TooManyProviderTokenUpdates": Scope.PROVIDER}
_OURS: Final = dict.fromkeys(
    [  # key, certificate, topic: nothing that goes this way can do better
        "BadCertificate",
        "BadCertificateEnvironment",
        "BadEnvironmentKeyIdInToken",
        "BadTopic",
        "Forbidden",
        "InvalidProviderToken",
        "MissingProviderToken",
        "MissingTopic",
        "TopicDisallowed",
        "UnrelatedKeyIdInToken",
    ],
    Scope.PROVIDER,
) | dict.fromkeys(
    [  # this push
        "BadCollapseId",
        "BadExpirationDate",
        "BadMessageId",
        "BadPath",
        "BadPriority",
        "DuplicateHeaders",
        "InvalidPushType",
        "MethodNotAllowed",
        "MissingDeviceToken",
        "PayloadEmpty",
        "PayloadTooLarge",
    ],
    Scope.TOKEN,
)
_THIS_PUSH: Final = frozenset([400, 413])  # statuses, where the reason is none that we know


class _Error(msgspec.Struct):
    reason: object = None
    timestamp: object = None


def error(response: HttpResponse) -> tuple[str, float | None]:
    """(Apple's reason, or empty; of a 410, since when the token is invalid, Unix seconds)."""
    try:
        body = msgspec.json.decode(response.body, type=_Error)
    except (ValueError, RecursionError):
        return "", None
    since = body.timestamp
    dated = isinstance(since, int | float) and not isinstance(since, bool) and 0 <= since < 2**63
    reason = body.reason if isinstance(body.reason, str) and is_code(body.reason) else ""
    return reason, since / 1000 if dated and isinstance(since, int | float) else None


def judge(
    answer: HttpResult, registered_at: float = 0.0, *, renewable: bool = True, skew: float | None = None
) -> Verdict:
    """`registered_at`: when the device registered the token; one that Apple gave up before that is alive again.

    `renewable`: the next request will have another provider token, if Apple takes this one for expired; if not, the
    clock is to blame: `skew`, seconds that Apple's is ahead of ours, None if not known.
    """
    if isinstance(answer, HttpFailure):
        return Again(str(answer), Scope.PROVIDER if answer.unreachable else Scope.TOKEN)
    status = answer.status
    if status == 200:
        return Delivered()
    reason, since = error(answer)
    what = f"{status} {reason}".rstrip()
    dead = _DEAD.get((status, reason))
    if dead is not None and (since is None or since >= registered_at):
        return DeadToken(dead)
    if reason == EXPIRED:
        return Again(what) if renewable else Ours(f"{what}: {clock_words(skew, 'Apple')}")
    if reason in _AGAIN or status in {410, 429} or status >= 500:
        return Again(what, _AGAIN.get(reason, Scope.TOKEN), answer.retry_after)
    return Ours(what, _OURS.get(reason, Scope.TOKEN if status in _THIS_PUSH else Scope.PROVIDER))
