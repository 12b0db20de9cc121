"""The guarded clock."""

import pytest

from ntf_server.store.clock import TOLERANCE, Clock, boot_id, since_boot


class Times:
    def __init__(self) -> None:
        self.wall, self.steady = 1_800_000_000.0, 5.0
        self.clock = Clock(lambda: self.wall, lambda: self.steady)

    def pass_(self, seconds: float, *, set_by: float = 0.0) -> None:
        self.steady += seconds
        self.wall += seconds + set_by


def test_time_that_passes_is_no_step() -> None:
    times = Times()
    for seconds in (0.0, 1.0, 86400.0, 30 * 86400.0):
        times.pass_(seconds)
        assert times.clock.read() == (times.wall, 0.0)


@pytest.mark.parametrize("step", [-400 * 86400.0, -3.0, 3.0, 25 * 3600.0])
def test_a_step_is_told_until_it_is_settled(step: float) -> None:
    times = Times()
    times.pass_(60, set_by=step)
    for _ in range(2):
        assert times.clock.read() == (times.wall, pytest.approx(step))
        times.pass_(1)
    times.clock.read()
    times.clock.settle()
    assert times.clock.read().step == 0


def test_a_second_step_before_the_first_is_settled_is_one_with_it() -> None:
    times = Times()
    times.pass_(1, set_by=100)
    times.clock.read()
    times.pass_(1, set_by=-40)
    assert times.clock.read().step == pytest.approx(60)
    times.clock.settle()
    assert times.clock.read().step == 0


def test_a_clock_that_runs_a_little_fast_takes_no_steps() -> None:
    times = Times()
    for _ in range(1000):
        times.pass_(60, set_by=0.03)
        assert times.clock.read().step == 0
        times.clock.settle()
    times.pass_(60, set_by=TOLERANCE + 0.1)
    assert times.clock.read().step == pytest.approx(TOLERANCE + 0.1)


def test_the_machines_clocks() -> None:
    clock = Clock()
    assert clock.read().step == 0
    assert since_boot() <= since_boot()
    assert Clock().boot == ""
    assert len(boot_id()) == 36  # as Linux writes it


def test_by_how_much_one_is_ahead_of_the_other() -> None:
    times = Times()
    before = times.clock.offset
    times.pass_(10, set_by=60)
    times.clock.read()
    assert times.clock.offset == pytest.approx(before + 60)
