"""How long notifications are on their way, from the NMSG that was read to the provider that took them.

A notification's own time has whole seconds, as the wire has it. So what arrived at this node of late is remembered by
the number that it got; of what came long before, or to another node, the age is known to the second.
"""

from collections.abc import Callable, Iterable, Set
from typing import Final

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Histogram
from ntf_server.store.records import Entry, Notification
from smp_bridge.ntf import Provider

_STORED: Final = Histogram.NOTIFICATION_STORED  # to look up a member of an enum takes as long as to observe it
_ANSWERED: Final = Histogram.PUSH_ANSWERED
_DELIVERED: Final = Histogram.NOTIFICATION_DELIVERED
_REMEMBERED: Final = 8192  # the last ones; up to twice as many


class NoJourneys:
    """Where nobody reads how long they take: the shape of `Journeys`, and no more."""

    def arrived(self, first: int, count: int) -> None:
        """See `Journeys`."""

    def stored(self, notifications: Iterable[Notification], but: Iterable[Notification] = ()) -> None:
        """See `Journeys`."""

    def answered(self, provider: Provider, seconds: float) -> None:
        """See `Journeys`."""

    def delivered(self, held: Iterable[Entry]) -> None:
        """See `Journeys`."""


class Journeys(NoJourneys):
    """Told of notifications as they go. `clock`: monotonic; `wall`: Unix seconds."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._metrics = metrics
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
        now = self._clock()
        for n in notifications:
            if n not in left:
                self._metrics.observe(_STORED, self._age(n, now))

    def answered(self, provider: Provider, seconds: float) -> None:
        """A provider answered a push after so long, or never will."""
        self._metrics.observe(_ANSWERED, seconds, provider)

    def delivered(self, held: Iterable[Entry]) -> None:
        """A provider took a push with these; those that were in an earlier one are told of already."""
        now = self._clock()
        for entry in held:
            if not entry.sent:
                self._metrics.observe(_DELIVERED, self._age(entry, now))

    def _age(self, n: Notification | Entry, now: float) -> float:
        at = self._late.get(n.seq) or self._early.get(n.seq)
        if at is not None:
            return now - at
        return max(0.0, self._wall() - n.received_at - 0.5)  # that was cut off
