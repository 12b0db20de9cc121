"""Whether we are a service on one SMP server: what its sessions came to decides. No I/O; the clock is handed in."""

from typing import Final

from smp_bridge.failure import TABLE, Happened, Remedy

_MAX_DOUBLINGS: Final = 4  # of `ended_backoff`


class ServiceLife:
    """A service's life on one server. Times are of one monotonic clock, in seconds.

    `without_service`: how long a server that refuses the service is not asked again; `ended_backoff`: before
    subscriptions that another session took over are taken back, twice as long each time in a row.
    """

    def __init__(self, without_service: float, ended_backoff: float) -> None:
        self._without_service = without_service
        self._ended_backoff = ended_backoff
        self._not_before = 0.0
        self._ends = 0  # sessions in a row that were taken over
        self._taken_over = False  # this session
        self._lost = False  # by the session before

    def may_be_one(self, now: float) -> bool:
        """Whether the next session may be a service's."""
        return now >= self._not_before

    def give_up(self, now: float) -> None:
        """The server does not take the service; not before `without_service` has passed."""
        self._not_before = now + self._without_service

    def begin_session(self) -> None:
        """A session begins."""
        self._taken_over = False

    def taken_over(self) -> float | None:
        """ENDS came. After so many seconds the session should end, for the next to take back; None: known already."""
        if self._taken_over:
            return None
        self._taken_over = True
        return self._ended_backoff * float(2 ** min(self._ends, _MAX_DOUBLINGS))

    def end_session(self, remedy: Remedy) -> Remedy:
        """A session ended, with what NSUB and NSUBS called for in it. What that is in the row of sessions."""
        again = remedy is Remedy.RECONNECT and self._lost
        self._lost = remedy is Remedy.RECONNECT  # another handshake should mend it, once
        self._ends = self._ends + 1 if self._taken_over else 0
        return TABLE[Happened.NSUBS_AUTH_AGAIN].remedy if again else remedy
