from dataclasses import replace
from typing import Any

import pytest

from smp_bridge.backoff import Backoff, Patience, PatienceConfig


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


def test_a_delay_with_another_bound() -> None:
    slowest = Backoff(1.0, 10.0, lambda: 1.0)
    delays = [slowest.delay(100.0) for _ in range(20)]
    assert delays[:4] == [1.5, 2.25, 3.375, 5.0625]
    assert delays[-1] == 100.0
    assert slowest.delay() == 10.0


# --- patience with a server

DAY = 24 * 3600.0


def patience(**changes: Any) -> Patience:
    return Patience(replace(PatienceConfig(), **changes), lambda: 1.0)


def test_a_proven_server_is_tried_often() -> None:
    p = patience()
    assert [p.delay(proven=True, tried_for=99 * DAY) for _ in range(20)][-1] == 10.0


def test_one_that_is_not_proven_is_tried_every_ten_minutes_for_a_day_and_then_every_few_hours() -> None:
    p = patience()
    delays = [p.delay(proven=False, tried_for=3600.0) for _ in range(40)]
    assert delays[0] == 1.5
    assert delays[-1] == 600.0
    assert sum(d < 600.0 for d in delays) < 20
    assert [p.delay(proven=False, tried_for=2 * DAY) for _ in range(20)][-1] == 4 * 3600.0


def test_where_somebody_else_is_it_is_tried_every_hour() -> None:
    p = patience()
    delays = [p.delay(proven=True, tried_for=0.0, impostor=True) for _ in range(20)]
    assert delays[0] == 15.0
    assert delays[-1] == 3600.0
    assert p.delay(proven=True, tried_for=0.0) == 1.5


def test_a_session_that_lasts_lets_delays_begin_anew() -> None:
    p = patience()
    for _ in range(5):
        p.delay(proven=True, tried_for=0.0)
    p.lasted(1.0)
    assert p.delay(proven=True, tried_for=0.0) == 10.0
    p.lasted(10.0)
    assert p.delay(proven=True, tried_for=0.0) == 1.5


def test_what_was_proved_is_lost_after_many_failures_in_a_row_that_count() -> None:
    p = patience(lost_after=3)
    for counts in (True, False, True):
        p.failed(counts=counts)
        assert not p.is_lost(proven=True)
    p.failed(counts=True)
    assert p.is_lost(proven=True)
    assert not p.is_lost(proven=False)
    p.lasted(0.0)
    assert not p.is_lost(proven=True)


def test_a_server_is_given_up_after_a_week_and_many_tries() -> None:
    p = patience(give_up_tries=2)
    assert not p.gives_up(proven=False, tried_for=8 * DAY)
    for _ in range(2):
        p.failed(counts=True)
    assert p.gives_up(proven=False, tried_for=7 * DAY)
    assert not p.gives_up(proven=True, tried_for=8 * DAY)
    assert not p.gives_up(proven=False, tried_for=6.9 * DAY)
