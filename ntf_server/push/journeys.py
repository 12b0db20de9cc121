"""How long notifications are on their way, from the NMSG that was read to the provider that took them.

A notification's own time has whole seconds, as the wire has it. So what arrived at this node of late is remembered by
the number that it got; of what came long before, or to another node, the age is known to the second.
"""

from collections.abc import Callable, Iterable, Set
from typing import Final

from ntf_server.observe.metrics import Distribution, Metrics
from ntf_server.observe.names import Histogram
from ntf_server.store.records import Entry, Notification
from smp_bridge.ntf import Provider

_REMEMBERED: Final = 8192  # the last ones; up to twice as many


class NoJourneys:
    """Where nobody reads how long they take: the shape of `Journeys`, and no more."""

    def arrived(self, first: int, count: int) -> None:
        """See `Journeys`."""

    def stored(self, notifications: Iterable[Notification], but: Iterable[Notification] = ()) -> None:
        """See `Journeys`."""

    def ended(self, provider: Provider, since: float, now: float, held: Iterable[Entry]) -> None:
        """See `Journeys`."""


class Journeys(NoJourneys):
    """Told of notifications as they go. `clock`: monotonic; `wall`: Unix seconds."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._stored = metrics.distribution(Histogram.NOTIFICATION_STORED)
        self._delivered = metrics.distribution(Histogram.NOTIFICATION_DELIVERED)
        self._answered = {kind: metrics.distribution(Histogram.PUSH_ANSWERED, kind) for kind in Provider}
        self._clock = clock
        self._wall = wall
        self._late: dict[int, float] = {}  # when they arrived, by `seq`
        self._early: dict[int, float] = {}  # of those before

    def arrived(self, first: int, count: int) -> None:
        """Now, with these numbers (`Arrival`)."""
        if len(self._late) >= _REMEMBERED:
            self._early, self._late = self._late, {}
        self._late.update(dict.fromkeys(range(first, first + count), self._clock()))

    def stored(self, notifications: Iterable[Notification], but: Iterable[Notification] = ()) -> None:
        """They are, but for some."""
        left: Set[Notification] = set(but)
        self._add(self._stored, [n for n in notifications if n not in left] if left else notifications, self._clock())

    def ended(self, provider: Provider, since: float, now: float, held: Iterable[Entry]) -> None:
        """A push that was sent at `since` has its answer, or will have none; the provider took it with `held`.

        Of these, what was in an earlier push is told of already.
        """
        self._answered[provider].add(now - since)
        self._add(self._delivered, [entry for entry in held if not entry.sent], now)

    def _add(self, to: Distribution, what: Iterable[Notification | Entry], now: float) -> None:
        late, early = self._late, self._early
        for n in what:
            at = late.get(n.seq) or early.get(n.seq)
            to.add(now - at if at is not None else max(0.0, self._wall() - n.received_at - 0.5))  # which was cut off
