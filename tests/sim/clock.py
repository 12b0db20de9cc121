"""The relay's wall clock: the truth, and by how much it is off."""

from typing import Final

from sim.loop import START, VirtualLoop

EPOCH: Final = 1_800_000_000.0  # Unix seconds at which a run begins


class WallClock:
    """`truth` is what the rest of the world has; `wall` what the relay's machine believes; `steady` nobody sets."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.offset = 0.0
        self.set_at = 0.0  # seconds of the loop

    def truth(self) -> float:
        """Unix seconds."""
        return EPOCH + self._loop.time() - START

    def wall(self) -> float:
        """Unix seconds, as the relay sees them."""
        return self.truth() + self.offset

    def steady(self) -> float:
        """Seconds since the machine was started."""
        return self._loop.time()

    def step(self, seconds: float) -> None:
        """The relay's wall clock is set."""
        self.offset += seconds
        self.set_at = self._loop.time()
