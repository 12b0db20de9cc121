"""The store's clock: wall time that is watched for steps, with a clock beside it that has none.

A step is what NTP, an operator or a resumed machine does to the wall clock at once; that it runs a little fast or slow
is none.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

TOLERANCE: Final = 2.0  # seconds that the two may drift apart between two looks


def since_boot() -> float:
    """Seconds that nobody sets, counted on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Reading(NamedTuple):
    """Unix seconds now, and by how many the wall clock was set since the last look that was settled; 0: it was not."""

    now: float
    step: float


class Clock:
    """`read` it, do what its step asks for, then `settle` it: until then the same step is told again."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot) -> None:
        self.wall: Final = wall
        self.steady: Final = steady
        self._offset = wall() - steady()
        self._read = self._offset

    def read(self) -> Reading:
        """The time, and the step."""
        now = self.wall()
        self._read = now - self.steady()
        step = self._read - self._offset
        if abs(step) > TOLERANCE:
            return Reading(now, step)
        self._offset = self._read
        return Reading(now, 0.0)

    def settle(self) -> None:
        """What the last reading told was done."""
        self._offset = self._read
