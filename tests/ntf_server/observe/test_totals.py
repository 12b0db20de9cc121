"""What a day's account is made of."""

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter, PairCounter, ServerCounter
from ntf_server.observe.totals import REFERENCE, REFERENCE_DAY, Active, Total, reference_row, totals
from smp_bridge.address import ServerAddress

OWN, OTHER = (ServerAddress("smp", (host,), "", bytes(32)) for host in ("smp.example.org", "other.example"))


def counted() -> Metrics:
    """So that no two sums are the same, and each is of several counts."""
    metrics = Metrics(["example.org"])
    for n, kind in enumerate(("created", "verified", "replaced", "deleted"), 1):
        metrics.count_kind(KindCounter.TOKEN_EVENTS, kind, n)
    for n, kind in enumerate(("created", "deleted"), 5):
        metrics.count_kind(KindCounter.SUBSCRIPTION_EVENTS, kind, n)
    for server, received, unknown in ((OWN, 100, 7), (OTHER, 200, 8)):
        metrics.count_server(ServerCounter.RECEIVED, server, received)
        metrics.count_server(ServerCounter.RECEIVED_UNKNOWN, server, unknown)
    metrics.count_kind(KindCounter.EXPIRED, "notification", 9)
    metrics.count_kind(KindCounter.EXPIRED, "check", 1)
    for command, answer, n in (("TNEW", "OK", 20), ("TRPL", "OK", 3), ("TNEW", "AUTH", 50), ("TVFY", "OK", 60)):
        metrics.count_pair(PairCounter.COMMANDS, command, answer, n)
    pushes = (
        PairCounter.PUSHES_DELIVERED, PairCounter.PUSHES_FAILED, PairCounter.PUSHES_RETRIED, PairCounter.PUSHES_REFUSED
    )  # fmt: skip
    for name, each in zip(pushes, (1000, 100, 10, 1), strict=True):
        for kind, times in (("messages", 1), ("check", 2), ("verification", 3)):
            for provider in ("AP", "FC"):
                metrics.count_pair(name, provider, kind, each * times)
    return metrics


FOUND = {
    Total.TOKENS_CREATED: 1, Total.TOKENS_VERIFIED: 2, Total.TOKENS_REPLACED: 3, Total.TOKENS_DELETED: 4,
    Total.SUBSCRIPTIONS_CREATED: 5, Total.SUBSCRIPTIONS_DELETED: 6,
    Total.NOTIFICATIONS_RECEIVED: 285, Total.NOTIFICATIONS_UNKNOWN: 15, Total.NOTIFICATIONS_EXPIRED: 9,
    Total.MESSAGES_DELIVERED: 2000, Total.MESSAGES_DEAD: 200, Total.MESSAGES_FAILED: 22,
    Total.CHECKS_DELIVERED: 4000, Total.CHECKS_DEAD: 400, Total.CHECKS_FAILED: 44,
    Total.VERIFICATIONS_ASKED: 23,
    Total.VERIFICATIONS_DELIVERED: 6000, Total.VERIFICATIONS_DEAD: 600, Total.VERIFICATIONS_FAILED: 66,
}  # fmt: skip


def test_sums_of_metrics() -> None:
    assert set(totals(Metrics()).values()) == {0}
    assert totals(counted()) == {name.value: count for name, count in FOUND.items()}
    assert set(FOUND) == set(Total)


def test_the_columns_of_the_reference() -> None:
    """Its 22, in its order; by what simplexmq's `logServerStats` writes."""
    names = (
        "fromTime,tknCreated,tknVerified,tknDeleted,subCreated,subDeleted,ntfReceived,ntfDelivered,tknDayCount,"
        "tknWeekCount,tknMonthCount,subDayCount,subWeekCount,subMonthCount,tknReplaced,ntfFailed,ntfCronDelivered,"
        "ntfCronFailed,ntfVrfQueued,ntfVrfDelivered,ntfVrfFailed,ntfVrfInvalidTkn"
    )
    assert ",".join([REFERENCE_DAY, *REFERENCE]) == names
    counts = totals(counted()) | dict(zip(Active, (10, 20, 30, 40, 50, 60), strict=True))
    row = "2027-01-15,1,2,4,5,6,285,2000,10,20,30,40,50,60,3,222,4000,444,23,6000,666,600"
    assert ",".join(reference_row("2027-01-15", counts)) == row


def test_what_is_not_known_of_a_day_is_empty() -> None:
    assert reference_row("2027-01-15", {Active.DAY: 0}) == ["2027-01-15", *[""] * 7, "0", *[""] * 13]
