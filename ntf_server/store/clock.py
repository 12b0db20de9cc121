"""The store's clock: wall time that is watched for steps, with a clock beside it that has none.

A step is what NTP, an operator or a resumed machine does to the wall clock at once; that it runs a little fast or slow
is none.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

TOLERANCE: Final = 2.0  # seconds that the two may drift apart between two looks


def since_boot() -> float:
    """Seconds that nobody sets, counted on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """What tells this run of the machine from others; empty: nothing does."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class Reading(NamedTuple):
    """Unix seconds now, and by how many the wall clock was set since the last look that was settled; 0: it was not."""

    now: float
    step: float


class Clock:
    """`read` it, do what its step asks for, then `settle` it: until then the same step is told again."""

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot, boot: str = ""
    ) -> None:
        """`boot`: in which run of the machine `steady` counts, so that a step while nobody looked is known later."""
        self.wall: Final = wall
        self.steady: Final = steady
        self.boot: Final = boot
        self._offset = wall() - steady()
        self._read = self._offset

    @property
    def offset(self) -> float:
        """By how much the wall clock is ahead of the steady one, at the last reading."""
        return self._read

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
