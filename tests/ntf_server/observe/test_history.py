"""Rates and quantiles, as time goes by."""

import pytest

from ntf_server.observe.history import LONG_POINTS, LONG_STEP, POINTS, STEP, History, Lately, Now, quantiles
from ntf_server.observe.metrics import Distribution, Metrics
from ntf_server.observe.names import Histogram, PairCounter, ServerCounter
from smp_bridge.address import ServerAddress

OWN, OTHER = (ServerAddress("smp", (host,), "", bytes(32)) for host in ("smp.example.org", "b.example.net"))
T = 1_800_000_000.0


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["example.org"])


def test_rates_are_of_what_came_since_the_last_point(metrics: Metrics) -> None:
    metrics.count_server(ServerCounter.RECEIVED, OWN, 1000)
    history = History(metrics, T)
    metrics.count_server(ServerCounter.RECEIVED, OWN, 30)
    metrics.count_server(ServerCounter.RECEIVED, OTHER, 10)
    metrics.count_server(ServerCounter.DELIVERED, OTHER, 8)
    metrics.count_pair(PairCounter.PUSHES_DELIVERED, "AP", "messages", 4)
    metrics.count_pair(PairCounter.PUSHES_DELIVERED, "FC", "check", 2)
    for seconds in (0.02, 9.0, 30.0, 30.0):
        metrics.observe(Histogram.NOTIFICATION_DELIVERED, seconds)
    point = history.take(T + STEP, Now(7, 3.5, 12))
    assert point is not None
    assert (point.at, point.received, point.delivered, point.pushes, point.late) == (T + STEP, 20.0, 4.0, 3.0, 1.0)
    assert (point.due, point.oldest, point.clients, point.troubled) == (7, 3.5, 12, 0.0)
    assert point.way[0] == 10.0
    again = history.take(T + 2 * STEP, Now(well=False))
    assert again is not None
    assert (again.received, again.delivered, again.late, again.way) == (0.0, 0.0, 0.0, (None, None, None))
    assert (again.due, again.troubled) == (0, 1.0)
    assert history.points == [point, again]


def test_a_point_of_the_day(metrics: Metrics) -> None:
    history = History(metrics, T)
    assert (history.long, history.begun) == ([], None)
    at, looks = T, int(LONG_STEP / STEP)
    for n in range(looks):
        at += STEP
        metrics.count_server(ServerCounter.RECEIVED, OWN, 6)
        history.take(at, Now(due=n, well=n >= looks / 4))
        assert (history.begun is None) is (n == looks - 1)
    [point] = history.long
    assert (point.at, point.received, point.due) == (at, 3.0, looks - 1)
    assert point.troubled == pytest.approx(0.25, abs=0.01)
    history.take(at + STEP, Now())
    assert history.begun is not None and history.begun.received == 0.0


def test_what_is_kept_has_a_bound(metrics: Metrics) -> None:
    history, at = History(metrics, T), T
    for _ in range(6 * (LONG_POINTS + 20)):
        at += LONG_STEP / 6
        history.take(at, Now())
    assert len(history.long) == LONG_POINTS
    assert len(history.points) == POINTS


@pytest.mark.parametrize("step", [-3600.0, 0.0, 7200.0])
def test_a_clock_that_is_set_makes_no_rate(metrics: Metrics, step: float) -> None:
    history = History(metrics, T)
    history.take(T + STEP, Now())
    metrics.count_server(ServerCounter.RECEIVED, OWN, 1000)
    assert history.take(T + STEP + step, Now()) is None
    point = history.take(T + STEP + step + STEP, Now())
    assert point is not None and point.received == 0.0


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([0, 0, 0, 0], (None, None, None)),
        ([100, 0, 0, 0], (0.5, 0.95, 0.99)),
        ([50, 0, 50, 0], (1.0, 9.2, 9.84)),
        ([0, 0, 0, 1], (10.0, 10.0, 10.0)),  # beyond the last bound: that much at least
    ],
)
def test_quantiles(counts: list[int], expected: tuple[float | None, ...]) -> None:
    assert quantiles((1.0, 2.0, 10.0), counts) == pytest.approx(expected)


def test_what_was_observed_lately(metrics: Metrics) -> None:
    distribution = Distribution((1.0, 2.0))
    distribution.counts[1] = 1000
    lately = Lately(distribution)
    assert lately.quantiles == (None, None, None)
    distribution.counts[0] += 10
    lately.look()
    assert lately.quantiles[0] == 0.5
    for _ in range(30):
        lately.look()
    assert lately.quantiles == (None, None, None)
