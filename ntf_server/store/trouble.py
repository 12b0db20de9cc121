"""Whether a store does what it is asked for: that it fails is told once, then counted, and its end is told."""

from collections.abc import Callable
from typing import Final

from ntf_server.observe.events import Event, EventLog
from ntf_server.store.contract import StoreUnavailableError

_AGAIN: Final = 60.0  # seconds between two events that say that it fails
_QUIET: Final = 5.0  # seconds without a failure, after which it is over: some of what is asked for may work meanwhile


class Trouble:
    """Of one store: everybody who uses it fails with it. `clock`: a monotonic one."""

    def __init__(self, module: str, clock: Callable[[], float]) -> None:
        self._log = EventLog(module)
        self._clock = clock
        self._since: float | None = None
        self._failed_at = 0.0
        self._said_at = float("-inf")
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """Something was not done. Only what passes is the store's trouble."""
        if not isinstance(error, StoreUnavailableError):
            return
        now = self._failed_at = self._clock()
        self._failures += 1
        if self._since is None:
            self._since = now
        if now - self._said_at >= _AGAIN:
            self._said_at = now
            text = "the store fails; what it is asked for is tried again: %s"
            self._log.tell(Event.STORE_TROUBLE, text, error, reason=str(error))

    def worked(self) -> None:
        """Something was done."""
        if self._since is None or self._clock() - self._failed_at < _QUIET:
            return
        seconds, failures = round(self._failed_at - self._since), self._failures
        self._since, self._failures, self._said_at = None, 0, float("-inf")
        text = "the store does what it is asked for again, after %d s"
        self._log.tell(Event.STORE_WELL, text, seconds, seconds=seconds, failures=failures)
