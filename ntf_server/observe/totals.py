"""What happens in a day, as operators keep account of it: sums of metrics under names of their own, and the columns of
the reference's statistics file that they are.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Self

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter, PairCounter, ServerCounter

Counts = Mapping[str, int]  # by names of `Total` or `Active`


class _Named(StrEnum):
    """A name with what it counts, in words."""

    text: str

    def __new__(cls, name: str, text: str) -> Self:
        """As the tables below give them."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.text = text
        return member


class Total(_Named):
    """What adds up, over days and nodes. Of pushes: `delivered` were taken, `dead` found the device token dead;
    `failed` are attempts that are repeated, or were refused.
    """

    TOKENS_CREATED = "tokens_created", "registrations made anew"
    TOKENS_VERIFIED = "tokens_verified", "registrations verified"
    TOKENS_REPLACED = "tokens_replaced", "registrations given another device token"
    TOKENS_DELETED = "tokens_deleted", "registrations deleted by their apps"
    SUBSCRIPTIONS_CREATED = "subscriptions_created", "subscriptions made anew"
    SUBSCRIPTIONS_DELETED = "subscriptions_deleted", "subscriptions deleted by their apps"
    NOTIFICATIONS_RECEIVED = "notifications_received", "notifications received"
    NOTIFICATIONS_UNKNOWN = "notifications_unknown", "notifications for no subscription"
    NOTIFICATIONS_EXPIRED = "notifications_expired", "notifications that no provider took in time"
    MESSAGES_DELIVERED = "messages_delivered", "pushes of messages delivered"
    MESSAGES_DEAD = "messages_dead", "pushes of messages to dead device tokens"
    MESSAGES_FAILED = "messages_failed", "failed attempts to push messages"
    CHECKS_DELIVERED = "checks_delivered", "checks delivered"
    CHECKS_DEAD = "checks_dead", "checks to dead device tokens"
    CHECKS_FAILED = "checks_failed", "failed attempts to push checks"
    VERIFICATIONS_ASKED = "verifications_asked", "verifications asked for"
    VERIFICATIONS_DELIVERED = "verifications_delivered", "verifications delivered"
    VERIFICATIONS_DEAD = "verifications_dead", "verifications to dead device tokens"
    VERIFICATIONS_FAILED = "verifications_failed", "failed attempts to push verifications"


class Active(_Named):
    """What is counted anew each time: of all nodes together, and the last number of a day is the day's."""

    DAY = "tokens_active_day", "device tokens that took a push within 24 hours"
    WEEK = "tokens_active_week", "device tokens that took a push within 7 days"
    MONTH = "tokens_active_month", "device tokens that took a push within 30 days"
    SUBSCRIPTIONS_DAY = "subscriptions_active_day", "subscriptions with a notification within 24 hours"
    SUBSCRIPTIONS_WEEK = "subscriptions_active_week", "subscriptions with a notification within 7 days"
    SUBSCRIPTIONS_MONTH = "subscriptions_active_month", "subscriptions with a notification within 30 days"


_EVENTS: Final = {
    Total.TOKENS_CREATED: (KindCounter.TOKEN_EVENTS, "created"),
    Total.TOKENS_VERIFIED: (KindCounter.TOKEN_EVENTS, "verified"),
    Total.TOKENS_REPLACED: (KindCounter.TOKEN_EVENTS, "replaced"),
    Total.TOKENS_DELETED: (KindCounter.TOKEN_EVENTS, "deleted"),
    Total.SUBSCRIPTIONS_CREATED: (KindCounter.SUBSCRIPTION_EVENTS, "created"),
    Total.SUBSCRIPTIONS_DELETED: (KindCounter.SUBSCRIPTION_EVENTS, "deleted"),
    Total.NOTIFICATIONS_EXPIRED: (KindCounter.EXPIRED, "notification"),
}
_PUSHES: Final = {
    "messages": (Total.MESSAGES_DELIVERED, Total.MESSAGES_DEAD, Total.MESSAGES_FAILED),
    "check": (Total.CHECKS_DELIVERED, Total.CHECKS_DEAD, Total.CHECKS_FAILED),
    "verification": (Total.VERIFICATIONS_DELIVERED, Total.VERIFICATIONS_DEAD, Total.VERIFICATIONS_FAILED),
}


def totals(metrics: Metrics) -> dict[str, int]:
    """Since the start of this process."""
    unknown = metrics.total(ServerCounter.RECEIVED_UNKNOWN)
    found = {total: metrics.value(name, kind) for total, (name, kind) in _EVENTS.items()}
    found[Total.NOTIFICATIONS_RECEIVED] = metrics.total(ServerCounter.RECEIVED) - unknown
    found[Total.NOTIFICATIONS_UNKNOWN] = unknown
    asking = (metrics.value(PairCounter.COMMANDS, tag, "OK") for tag in ("TNEW", "TRPL"))
    found[Total.VERIFICATIONS_ASKED] = sum(asking)
    for kind, (delivered, dead, failed) in _PUSHES.items():
        found[delivered] = metrics.total(PairCounter.PUSHES_DELIVERED, kind)
        found[dead] = metrics.total(PairCounter.PUSHES_FAILED, kind)
        repeated = metrics.total(PairCounter.PUSHES_RETRIED, kind)
        found[failed] = repeated + metrics.total(PairCounter.PUSHES_REFUSED, kind)
    return {total.value: found[total] for total in Total}


# The columns of the reference's statistics file (simplexmq, `logServerStats`), in its order, by the names that it has
# for them, and what they are here.
REFERENCE_DAY: Final = "fromTime"
REFERENCE: Final[Mapping[str, tuple[str, ...]]] = {
    "tknCreated": (Total.TOKENS_CREATED,),
    "tknVerified": (Total.TOKENS_VERIFIED,),
    "tknDeleted": (Total.TOKENS_DELETED,),
    "subCreated": (Total.SUBSCRIPTIONS_CREATED,),
    "subDeleted": (Total.SUBSCRIPTIONS_DELETED,),
    "ntfReceived": (Total.NOTIFICATIONS_RECEIVED,),
    "ntfDelivered": (Total.MESSAGES_DELIVERED,),
    "tknDayCount": (Active.DAY,),
    "tknWeekCount": (Active.WEEK,),
    "tknMonthCount": (Active.MONTH,),
    "subDayCount": (Active.SUBSCRIPTIONS_DAY,),
    "subWeekCount": (Active.SUBSCRIPTIONS_WEEK,),
    "subMonthCount": (Active.SUBSCRIPTIONS_MONTH,),
    "tknReplaced": (Total.TOKENS_REPLACED,),
    "ntfFailed": (Total.MESSAGES_DEAD, Total.MESSAGES_FAILED),
    "ntfCronDelivered": (Total.CHECKS_DELIVERED,),
    "ntfCronFailed": (Total.CHECKS_DEAD, Total.CHECKS_FAILED),
    "ntfVrfQueued": (Total.VERIFICATIONS_ASKED,),
    "ntfVrfDelivered": (Total.VERIFICATIONS_DELIVERED,),
    "ntfVrfFailed": (Total.VERIFICATIONS_DEAD, Total.VERIFICATIONS_FAILED),
    "ntfVrfInvalidTkn": (Total.VERIFICATIONS_DEAD,),
}


def reference_row(day: str, counts: Counts) -> list[str]:
    """A day as the reference writes it; empty where nothing is known."""
    return [day, *(_sum(counts, names) for names in REFERENCE.values())]


def _sum(counts: Counts, names: tuple[str, ...]) -> str:
    known = [counts[name] for name in names if name in counts]
    return str(sum(known)) if known else ""
