"""Whether a store does what it is asked for, as its callers see it, and what of it is this node's. That it fails is
told once, then counted, and its end is told. One failure that passes is not yet its end.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from ntf_server.observe.events import Event, EventLog
from ntf_server.store.records import Record

events = EventLog(__name__)

T = TypeVar("T")

QUIET: Final = 15.0  # seconds without a failure, after which trouble is over
RECENT: Final = 5.0  # seconds since something was done, in which what fails is a part of the store, or may pass
AGAIN: Final = 60.0  # seconds between two events that say that it fails
SILENT: Final = 10.0  # seconds in which nothing of what was asked has an answer
# Kinds of errors (`StoreError.kind`) for which the store is to blame, and not what it was asked for.
_WHOLE: Final = frozenset(["full", "corrupt"])  # what else is done meanwhile says nothing
_KINDS: Final = _WHOLE | {"unavailable"}
_PASSING: Final = frozenset(["unavailable", "full"])  # it is tried again; what is corrupt ends the relay, which says so


class Failing(Record, frozen=True):
    """For how many seconds; `kind`: of the last error, or "silent": nothing is answered; `partly`: something else is
    done.
    """

    seconds: float
    kind: str
    partly: bool


class Holding(Record, frozen=True):
    """Of a store that nodes share: shards of tokens that are this node's, how many there are, how many of these cannot
    be had now, since their server is away; nodes that live.
    """

    shards: int
    all_shards: int
    silent: int
    nodes: int


class Pulse:
    """`watch` what the store is asked for, in one loop. `holding`: None of a store that no other node may have; `clock`
    gives seconds of a monotonic clock.
    """

    def __init__(
        self, holding: Callable[[], Holding | None] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.holding: Final = holding
        self._clock = clock
        self._since: float | None = None  # of the trouble, until it is seen to be over
        self._failed_at = 0.0
        self._kind = ""
        self._failures = 0  # in this trouble
        self._said_at = float("-inf")
        self._done_at = float("-inf")  # the last time that something was
        self._works = True  # what was asked last was done
        self._asked = 0
        self._answered_at = 0.0  # the last of what was asked; or since when something is asked for

    async def watch(self, work: Awaitable[T]) -> T:
        """What it gives."""
        if not self._asked:
            self._answered_at = self._clock()
        self._asked += 1
        try:
            given = await work
        except Exception as e:
            self._answered_at = self._clock()
            if (kind := getattr(e, "kind", "")) in _KINDS:
                self._fail(kind, e)
            raise
        finally:
            self._asked -= 1
        self._done_at = self._answered_at = now = self._clock()
        self._works = True
        if self._since is not None and self._is_over(now):
            self._end(self._since)
        return given

    @property
    def failing(self) -> Failing | None:
        """How the store fails; None: it is well."""
        now = self._clock()
        if self._asked and now - self._answered_at >= SILENT:
            since = self._answered_at if self._since is None else self._since
            return Failing(now - since, "silent", partly=False)
        if self._since is None or self._is_over(now):
            return None
        does_something = self._works or now - self._done_at < RECENT
        return Failing(now - self._since, self._kind, partly=does_something and self._kind not in _WHOLE)

    def _fail(self, kind: str, error: Exception) -> None:
        now = self._clock()
        if self._since is not None and self._is_over(now):  # nothing was asked of it since, or it had been told
            self._end(self._since)
        if self._since is None:
            self._since, self._failures, self._said_at = now, 0, float("-inf")
        self._failed_at, self._kind, self._works = now, kind, False
        self._failures += 1
        if kind in _PASSING and now - self._said_at >= AGAIN:
            self._said_at = now
            text = "the store fails; what it is asked for is tried again: %s"
            events.tell(Event.STORE_TROUBLE, text, error, reason=str(error))

    def _end(self, since: float) -> None:
        seconds, self._since = round(self._failed_at - since), None
        if self._said_at > float("-inf"):
            text = "the store does what it is asked for again, after %d s"
            events.tell(Event.STORE_WELL, text, seconds, seconds=seconds, failures=self._failures)

    def _is_over(self, now: float) -> bool:
        return self._works and now - self._failed_at >= QUIET
