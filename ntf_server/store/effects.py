"""What operations of a store bring with them beside what was asked, told to metrics and to who watches; and stamps."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ntf_server.observe.events import Event, EventLog
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Counter, KindCounter
from ntf_server.store.contract import StoreConflictError, StoreCorruptError, StoreUnavailableError
from ntf_server.store.memory import Effects
from ntf_server.store.records import Arrival, Claim, Ended, Outcome, Session
from smp_bridge.ntf import Provider

events = EventLog(__name__)

_RETRY: Final = 1.0  # seconds
_MAX_SESSIONS: Final = 10_000  # whose arrivals are counted


def tell(effects: Effects, metrics: Metrics, on_due: Callable[[Provider, float], None]) -> None:
    """Count it, say that the clock was set, and what becomes due when."""
    for kind, count in effects.expired.items():
        if count:
            metrics.count_kind(KindCounter.EXPIRED, kind, count)
    for kind, count in effects.quarantined.items():
        metrics.count_kind(KindCounter.QUARANTINED, kind, count)
    for kind, count in effects.forgotten.items():
        metrics.count_kind(KindCounter.TOKENS_EXPIRED, kind, count)
    metrics.count(Counter.SERVERS_FORGOTTEN, effects.servers_forgotten)
    if effects.stepped:
        metrics.count(Counter.CLOCK_STEPS)
        by = round(effects.stepped)
        text = "the clock was set by %+d s: what is kept is worth as long as before"
        events.tell(Event.CLOCK_SET, text, by, seconds=by)
    for provider, seconds in effects.wake.items():
        on_due(provider, seconds)


async def give_back(record: Callable[[Sequence[Outcome]], Awaitable[object]], claims: Sequence[Claim]) -> None:
    """By a store's `record`: they were handed to somebody who is gone. Of one that is closed whoever opens it next
    recovers them.
    """
    outcomes = [Outcome(claim, Ended.UNTRIED) for claim in claims]
    with contextlib.suppress(StoreConflictError, StoreCorruptError):
        while True:
            try:
                await record(outcomes)
                return
            except StoreUnavailableError:
                await asyncio.sleep(_RETRY)


class Arrivals:
    """Stamps of what arrives in sessions: `Store.arrive`."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # in the session of a fence

    def stamp(self, session: Session, count: int, now: float) -> Arrival:
        """Numbers that grow, also over sessions, and the time (Unix seconds)."""
        before = self._counts.pop(session.fence, 0)
        if len(self._counts) >= _MAX_SESSIONS:
            del self._counts[next(iter(self._counts))]  # of a session that was heard of last before all others
        self._counts[session.fence] = before + count
        return Arrival((session.fence << 32) + before + 1, int(now))
