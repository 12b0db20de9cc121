"""Delays between tries. No I/O."""

import random
from collections.abc import Callable
from dataclasses import dataclass

Rng = Callable[[], float]  # a number from 0 to below 1


class Backoff:
    """Jittered exponential delays between two bounds, in seconds."""

    def __init__(self, low: float, high: float, rng: Rng = random.random) -> None:
        self._low, self._high, self._rng = low, high, rng
        self._next = low

    def reset(self) -> None:
        """Begin again at the lower bound."""
        self._next = self._low

    def delay(self, high: float | None = None) -> float:
        """Seconds to wait now: a bound that grows by half each time, and up to half of it more.

        `high`: another upper bound, this time.
        """
        high = self._high if high is None else high
        bound = self._next
        self._next = max(self._low, min(bound * 1.5, high / 1.5))
        return min(bound * (1 + 0.5 * self._rng()), high)


@dataclass(frozen=True, slots=True)
class PatienceConfig:
    """Seconds. `low`, `high`: between two tries of a server that is proven; `high_new`: of one that is not, while it
    was tried for a day at most; `high_old`: later; `high_identity`: if somebody else is there, from `low_identity` on.

    What it proved is lost after `lost_after` failures in a row; it is given up when it is not proven, was tried for
    `give_up_after` and failed `give_up_tries` times in a row. After a session of `steady` the delays begin anew.
    """

    low: float = 1.0
    high: float = 10.0
    high_new: float = 600.0
    high_old: float = 4 * 3600.0
    low_identity: float = 10.0
    high_identity: float = 3600.0
    lost_after: int = 12
    give_up_after: float = 7 * 24 * 3600.0
    give_up_tries: int = 8
    steady: float = 10.0
    day: float = 24 * 3600.0


class Patience:
    """With one server: after how long it is tried again, and what follows if that is in vain."""

    def __init__(self, config: PatienceConfig, rng: Rng = random.random) -> None:
        self._config = config
        self._usual = Backoff(config.low, config.high, rng)
        self._identity = Backoff(config.low_identity, config.high_identity, rng)
        self._failures = 0  # in a row, that say something of the server

    def lasted(self, seconds: float) -> None:
        """There was a session of so many seconds. To one that takes us and hangs up at once we do not hurry back."""
        self._failures = 0
        self._identity.reset()
        if seconds >= self._config.steady:
            self._usual.reset()

    def failed(self, *, counts: bool) -> None:
        """It could not be connected to. `counts`: that it is the server's fault, as far as one can tell."""
        self._failures += counts

    def delay(self, *, proven: bool, tried_for: float, impostor: bool = False) -> float:
        """Seconds until the next try."""
        config = self._config
        if impostor:
            return self._identity.delay()
        if proven:
            return self._usual.delay()
        return self._usual.delay(config.high_new if tried_for < config.day else config.high_old)

    def is_lost(self, *, proven: bool) -> bool:
        """Whether what it proved holds no more."""
        return proven and self._failures >= self._config.lost_after

    def gives_up(self, *, proven: bool, tried_for: float) -> bool:
        """Whether it is not worth another try."""
        config = self._config
        return not proven and tried_for >= config.give_up_after and self._failures >= config.give_up_tries
