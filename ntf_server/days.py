"""What happens on which day (UTC): counted here, and kept in the store over restarts, for `ntf-server stats`."""

import asyncio
import logging
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.moments import day_of
from ntf_server.observe.totals import Active, totals
from ntf_server.periodic import count_all
from ntf_server.store.contract import Store, StoreCorruptError, StoreError, StoreUnavailableError
from ntf_server.store.records import ACTIVE_SPANS
from ntf_server.store.statistics import KEPT, own_row, shared_row

log = logging.getLogger(__name__)

_LOOK: Final = 60.0  # seconds after which what was counted is kept
_LAST: Final = 2.0  # seconds for that at a stop
_CENSUS: Final = 6 * 3600.0  # seconds between two times that active device tokens are counted
_FIRST: Final = 300.0  # the same, from the start on
_SLICE: Final = 500  # subscriptions at once
_PAUSE: Final = 0.05  # seconds between two slices
_REMEMBERED: Final = 8  # days whose counts stay in memory, for a clock that is set back
_DAY: Final = 24 * 3600
_TOKENS: Final = dict(zip((Active.DAY, Active.WEEK, Active.MONTH), ACTIVE_SPANS, strict=True))
_SUBSCRIPTIONS: Final = Active.SUBSCRIPTIONS_DAY, Active.SUBSCRIPTIONS_WEEK, Active.SUBSCRIPTIONS_MONTH


class Days:
    """Its `run` never ends. What was counted since it was looked at last belongs to the day of that look.

    `clock` gives Unix seconds; `first`, `again`: seconds until active device tokens are counted, and between two times.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        first: float = _FIRST,
        again: float = _CENSUS,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._again = again
        self._steady = asyncio.get_running_loop().time
        self._count_at = self._steady() + first
        self._lock = asyncio.Lock()
        self._seen: Tally[str] = Tally()  # totals, as they were at the last look
        self._day = day_of(clock())  # of that look
        self._days: dict[str, Tally[str]] = {}  # what this node kept of a day, or is to keep
        self._unwritten: set[str] = set()
        self.started: Final = clock()

    async def run(self) -> None:
        """Look each minute, and when a day begins, until cancelled."""
        while True:
            day = self._day
            await asyncio.sleep(min(_LOOK, _DAY - self._clock() % _DAY) + 0.001)
            try:
                await self.keep()
                if self._steady() >= self._count_at or self._day != day:
                    await self._keep_active(day)
                    self._count_at = self._steady() + self._again
            except StoreUnavailableError as e:  # the store itself says why
                log.debug("the day's statistics are late: %s", e)

    async def keep(self) -> None:
        """All that was counted until now is in the store. Raises StoreError."""
        async with self._lock:
            day, today = self._day, day_of(self._clock())
            await self._begin(day)
            found = Tally(totals(self._metrics))
            if grown := found - self._seen:
                self._days[day].update(grown)
                self._unwritten.add(day)
            self._seen, self._day = found, today
            if today != day:
                await self._begin(today)
                await self._store.statistics.forget(before(today))
            for written in sorted(self._unwritten):
                await self._store.statistics.keep(self._row(written), self._days[written])
                self._unwritten.discard(written)
            for old in list(self._days)[:-_REMEMBERED]:
                del self._days[old]

    async def close(self) -> None:
        """Keep what was counted until now, if the store takes it soon: it is the end."""
        try:
            async with asyncio.timeout(_LAST):
                await self.keep()
        except (StoreError, StoreCorruptError, TimeoutError) as e:
            log.debug("what was counted last is not kept: %s", e)

    def since_start(self) -> dict[str, int]:
        """Of this node."""
        return totals(self._metrics)

    async def _begin(self, day: str) -> None:
        """It goes on from what is kept. A day has a row although nothing happens."""
        if day in self._days:
            return
        kept = await self._store.statistics.kept(self._row(day))
        if kept is None:
            self._unwritten.add(day)
        self._days[day] = Tally(dict.fromkeys(totals(self._metrics), 0) | dict(kept or {}))

    def _row(self, day: str) -> str:
        return own_row(day, self._store.statistics.node)

    async def _keep_active(self, day: str) -> None:
        counted = await count_all(self._store, _PAUSE, everywhere=True)
        active = {name.value: counted.active[span] for name, span in _TOKENS.items()}
        heard = await count_heard(self._store, list(ACTIVE_SPANS.values()))
        active |= {name.value: count for name, count in zip(_SUBSCRIPTIONS, heard, strict=True)}
        await self._store.statistics.keep(shared_row(day), active)


async def count_heard(store: Store, spans: Sequence[int], pause: float = _PAUSE) -> list[int]:
    """How many subscriptions had a notification within each of these seconds. Raises StoreError."""
    found, cursor = await store.inspection.heard(None, _SLICE, spans)
    while cursor is not None:
        await asyncio.sleep(pause)
        more, cursor = await store.inspection.heard(cursor, _SLICE, spans)
        found = [a + b for a, b in zip(found, more, strict=True)]
    return found


def before(day: str) -> str:
    """The first day of which something is kept."""
    return (datetime.fromisoformat(day) - timedelta(days=KEPT)).date().isoformat()
