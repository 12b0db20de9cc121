import pytest

from smp_bridge.backoff import Backoff


def test_backoff_grows_to_its_bound_and_begins_again() -> None:
    slowest = Backoff(1.0, 10.0, lambda: 1.0)
    delays = [slowest.delay() for _ in range(10)]
    assert delays[:4] == [1.5, 2.25, 3.375, 5.0625]
    assert delays[-1] == 10.0
    slowest.reset()
    assert slowest.delay() == 1.5


def test_backoff_is_jittered_within_its_bounds_from_the_first_delay_on() -> None:
    fastest = Backoff(1.0, 10.0, lambda: 0.0)
    delays = [fastest.delay() for _ in range(10)]
    assert delays[0] == 1.0
    assert delays[-1] == pytest.approx(10.0 / 1.5)
    real = [Backoff(1.0, 10.0) for _ in range(200)]
    assert len({round(b.delay(), 6) for b in real}) > 100
    assert all(1.0 <= b.delay() <= 10.0 for b in real for _ in range(10))
