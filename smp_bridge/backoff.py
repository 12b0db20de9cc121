"""Delays between tries. No I/O."""

import random
from collections.abc import Callable

Rng = Callable[[], float]  # a number from 0 to below 1


class Backoff:
    """Jittered exponential delays between two bounds, in seconds."""

    def __init__(self, low: float, high: float, rng: Rng = random.random) -> None:
        self._low, self._high, self._rng = low, high, rng
        self._next = low

    def reset(self) -> None:
        """Begin again at the lower bound."""
        self._next = self._low

    def delay(self) -> float:
        """Seconds to wait now: a bound that grows by half each time, and up to half of it more."""
        bound = self._next
        self._next = max(self._low, min(bound * 1.5, self._high / 1.5))
        return min(bound * (1 + 0.5 * self._rng()), self._high)
