"""How much went through, and how fast, over the last minutes and the last day: rates and quantiles. No I/O, no clock.

Counters and histograms only grow: what a moment brought is what they are now, less what they were before.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from ntf_server.observe.metrics import Distribution, Metrics
from ntf_server.observe.names import Histogram, PairCounter, ServerCounter

STEP: Final = 2.0  # seconds of a point of the last minutes
POINTS: Final = 300
LONG_STEP: Final = 300.0  # seconds of a point of the last day
LONG_POINTS: Final = 288
LATE: Final = 10.0  # seconds after which a notification is late
QUANTILES: Final = (0.5, 0.95, 0.99)

_WAY: Final = Histogram.NOTIFICATION_DELIVERED
_ON_TIME: Final = bisect_right(_WAY.buckets, LATE)  # buckets of what is not late
_LOOKS: Final = 30  # of `Lately`: a minute, of looks every STEP seconds
_GAP: Final = 60.0  # seconds between two looks, after which the clock was set, or the machine slept


class Now(msgspec.Struct, frozen=True):
    """What is not counted: tokens that are due, for how many seconds the oldest is, sessions of clients, whether all
    is well.
    """

    due: int = 0
    oldest: float = 0.0
    clients: int = 0
    well: bool = True


class Point(msgspec.Struct, frozen=True):
    """A moment: when it ended (Unix seconds); notifications `received`, `delivered`, delivered `late` and `pushes`
    taken, each a second; `way`: seconds from the NMSG to the provider, by QUANTILES, None: there was none. Of `Now` the
    largest that was seen; `troubled`: the part of it in which not all was well.
    """

    at: float
    received: float
    delivered: float
    late: float
    pushes: float
    way: tuple[float | None, ...]
    due: int
    oldest: float
    clients: int
    troubled: float


class History:
    """`take` it every STEP seconds. `points`: of the last minutes; `long`: of the last day; oldest first."""

    def __init__(self, metrics: Metrics, now: float) -> None:
        self._metrics = metrics
        read = _read(metrics)
        self._minutes = _Series(now, read, 0.0, POINTS)
        self._day = _Series(now, read, LONG_STEP, LONG_POINTS)

    @property
    def points(self) -> Sequence[Point]:
        """Of the last minutes."""
        return [*self._minutes.points]

    @property
    def long(self) -> Sequence[Point]:
        """Of the last day, but for the one that has begun."""
        return [*self._day.points]

    @property
    def begun(self) -> Point | None:
        """The point of the day that goes on; None: the last one has just ended."""
        return self._day.point(_read(self._metrics))

    def take(self, at: float, now: Now) -> Point | None:
        """It is `at` (Unix seconds). The new point of the last minutes; None where the clock was set meanwhile."""
        read = _read(self._metrics)
        self._day.see(at, now, read)
        return self._minutes.see(at, now, read)


class _Read(NamedTuple):
    """All that there was until now: notifications, pushes, and how long notifications took."""

    received: int
    delivered: int
    pushes: int
    way: Sequence[int]


def _read(metrics: Metrics) -> _Read:
    received, delivered = metrics.total(ServerCounter.RECEIVED), metrics.total(ServerCounter.DELIVERED)
    pushes = metrics.total(PairCounter.PUSHES_DELIVERED)
    return _Read(received, delivered, pushes, tuple(metrics.distribution(_WAY).counts))


class _Series:
    """A point every `step` seconds; `read`: what there was before."""

    def __init__(self, at: float, read: _Read, step: float, points: int) -> None:
        self._step = step
        self.points: deque[Point] = deque(maxlen=points)
        self._begin(at, read)

    def _begin(self, at: float, read: _Read) -> None:
        self._from = self._until = at
        self._before = read
        self._now = Now()
        self._seen = self._troubled = 0

    def see(self, at: float, now: Now, read: _Read) -> Point | None:
        """A new point, when its time is over."""
        if not self._until < at < self._until + _GAP:
            self._begin(at, read)
            return None
        last, self._until = self._now, at
        self._now = Now(max(last.due, now.due), max(last.oldest, now.oldest), max(last.clients, now.clients))
        self._seen += 1
        self._troubled += not now.well
        if at - self._from < self._step or (point := self.point(read)) is None:
            return None
        self.points.append(point)
        self._begin(at, read)
        return point

    def point(self, read: _Read) -> Point | None:
        """From its beginning until now; None: it has just begun."""
        if not self._seen:
            return None
        seconds, before, now = self._until - self._from, self._before, self._now
        way = [count - earlier for count, earlier in zip(read.way, before.way, strict=True)]
        return Point(
            at=self._until,
            received=(read.received - before.received) / seconds,
            delivered=(read.delivered - before.delivered) / seconds,
            late=sum(way[_ON_TIME:]) / seconds,
            pushes=(read.pushes - before.pushes) / seconds,
            way=quantiles(_WAY.buckets, way),
            due=now.due,
            oldest=now.oldest,
            clients=now.clients,
            troubled=self._troubled / self._seen,
        )


def quantiles(bounds: Sequence[float], counts: Sequence[int]) -> tuple[float | None, ...]:
    """Of QUANTILES, in a histogram's `counts` up to each bound and beyond the last: as Prometheus's
    `histogram_quantile` has them, evenly between two bounds. None: there is nothing.
    """
    return tuple(_quantile(bounds, counts, q) for q in QUANTILES)


def _quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    rank = q * sum(counts)
    if not rank:
        return None
    before = 0
    for (low, high), count in zip(_between(bounds), counts, strict=False):
        if before + count >= rank:
            return low + (high - low) * (rank - before) / count
        before += count
    return bounds[-1]


def _between(bounds: Sequence[float]) -> Iterator[tuple[float, float]]:
    return pairwise((0.0, *bounds))


class Lately:
    """The quantiles of what was observed within the last minute or so. `look` every few seconds."""

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self._before: deque[Sequence[int]] = deque([tuple(distribution.counts)], maxlen=_LOOKS)

    def look(self) -> None:
        """Some seconds have passed."""
        self._before.append(tuple(self._distribution.counts))

    @property
    def quantiles(self) -> tuple[float | None, ...]:
        """By QUANTILES; None: nothing was."""
        counts = zip(self._distribution.counts, self._before[0], strict=True)
        return quantiles(self._distribution.bounds, [now - before for now, before in counts])
