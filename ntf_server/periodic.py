"""What goes on by the clock: periodic check-messages pushes (TCRN; wire.md, section 6), the store's upkeep, and a look
at what is due.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Final, Literal, TypeAlias

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, Histogram, KindGauge, PairGauge
from ntf_server.store.contract import Store, StoreUnavailableError
from ntf_server.store.records import ACTIVE_SPANS, Backlog, Census, Space
from smp_bridge.ntf import Provider

log = logging.getLogger(__name__)

INTERVAL: Final = 5.0  # seconds between two looks: what is due in one goes out together
LOOK: Final = 15.0  # seconds between two looks at how many tokens are due
LIVE_LOOK: Final = 5.0  # the same, where a page shows it from second to second
_CENSUS: Final = 600.0  # seconds between two rounds of counting tokens
_CENSUS_PAUSE: Final = 0.05  # seconds between two slices of it
_LAG_PAUSE: Final = 0.5
_SLICE: Final = 500  # tokens marked at once
_SLICE_PAUSE: Final = 0.5  # seconds: after an outage all are due, and are not to be pushed to in one second
_ERROR_PAUSE: Final = 5.0
_MIN_PAUSE: Final = 0.01


Mode: TypeAlias = Literal["quiet", "always", "off"]  # of `[delivery] checks`


class Checks:
    """Checks of tokens whose period is over become due. Its `run` never ends.

    `mode`: "quiet": of those that were pushed nothing within their period; "always": of all; "off": none become due.
    """

    def __init__(self, store: Store, mode: Mode = "quiet", *, interval: float = INTERVAL) -> None:
        self._store = store
        self._mode: Mode = mode
        self._interval = interval

    def use(self, mode: Mode) -> None:
        """From the next look on."""
        self._mode = mode

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            pause = self._interval
            try:
                if self._mode != "off" and await self._mark() == _SLICE:
                    pause = min(pause, _SLICE_PAUSE)
            except StoreUnavailableError as e:
                log.debug("periodic pushes are late: %s", e)  # the store itself says why
            await asyncio.sleep(pause)

    async def _mark(self) -> int:
        return await self._store.mark_checks(_SLICE, quiet_only=self._mode == "quiet")


async def tend(store: Store) -> None:
    """Look after the store, until cancelled."""
    while True:
        try:
            pause = await store.tend()
        except StoreUnavailableError as e:
            log.debug("the store's upkeep is late: %s", e)
            pause = _ERROR_PAUSE
        await asyncio.sleep(max(_MIN_PAUSE, pause))


class StoreGauges:
    """What is due of each provider, and what space the store takes: it is asked now and then. Its `run` never ends."""

    def __init__(
        self, store: Store, providers: Collection[Provider], metrics: Metrics, *, interval: float = LOOK
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._interval = interval
        self._found = dict.fromkeys(providers, Backlog(0, 0, 0.0))
        self._clock = asyncio.get_running_loop().time
        self._found_at = self._clock()
        metrics.kind_gauge(KindGauge.TOKENS_DUE, lambda: {p: found.due for p, found in self._found.items()})
        metrics.kind_gauge(KindGauge.TOKENS_WAITING, lambda: {p: found.waiting for p, found in self._found.items()})
        metrics.kind_gauge(KindGauge.OLDEST_DUE, lambda: {p: found.oldest for p, found in self._found.items()})

    def due(self, provider: Provider) -> tuple[int, float | None]:
        """How many tokens, also those that wait for a retry; for how many seconds the oldest that is due now is so."""
        found = self._found[provider]
        return found.tokens, found.oldest + self._clock() - self._found_at if found.due else None

    async def run(self) -> None:
        """Ask, until cancelled. While the store cannot say, the last numbers stand."""
        while True:
            for provider in self._found:
                with _late("the tokens that are due were not counted"):
                    self._found[provider] = await self._store.backlog(provider)
                    self._found_at = self._clock()
            with _late("the space that the store takes was not looked at"):
                self._show(await self._store.space())
            await asyncio.sleep(self._interval)

    def _show(self, space: Space) -> None:
        for name, value in zip((Gauge.STORE_BYTES, Gauge.STORE_LOG, Gauge.STORE_ROOM), space, strict=True):
            if value is not None:
                self._metrics.gauge(name, partial(float, value))


class CensusGauges:
    """What tokens and subscriptions there are: counted in slices, a round now and then. Its `run` never ends.

    `wanted`: whether anybody reads that; `on_counted` hears of each round.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        *,
        wanted: Callable[[], bool] = lambda: True,
        on_counted: Callable[[Census], None] = lambda _: None,
        interval: float = _CENSUS,
        pause: float = _CENSUS_PAUSE,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._wanted = wanted
        self._on_counted = on_counted
        self._asked = asyncio.Event()
        self._interval = interval
        self._pause = pause

    async def run(self) -> None:
        """Count, until cancelled. While the store cannot, the last numbers stand."""
        while True:
            self._asked.clear()
            if self._wanted():
                with _late("tokens were not counted"):
                    self._show(await count_all(self._store, self._pause), await self._store.subscription_count())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._asked.wait()

    def again(self) -> None:
        """At once, if it is wanted."""
        self._asked.set()

    def _show(self, counted: Census, subscriptions: int) -> None:
        self._metrics.pair_gauge(PairGauge.TOKENS, lambda: counted.tokens)
        self._metrics.kind_gauge(KindGauge.TOKENS_ACTIVE, lambda: {span: counted.active[span] for span in ACTIVE_SPANS})
        self._metrics.gauge(Gauge.SUBSCRIPTIONS_STORED, lambda: subscriptions)
        self._on_counted(counted)


async def count_all(store: Store, pause: float = _CENSUS_PAUSE, *, everywhere: bool = False) -> Census:
    """What tokens there are, in slices; `everywhere`: of all nodes, not of this one. Raises StoreError."""
    counted, cursor = await store.census(None, _SLICE, everywhere=everywhere)
    while cursor is not None:
        await asyncio.sleep(pause)
        more, cursor = await store.census(cursor, _SLICE, everywhere=everywhere)
        counted.add(more)
    return counted


@contextlib.contextmanager
def _late(what: str) -> Iterator[None]:
    try:
        yield
    except StoreUnavailableError as e:  # the store itself says why
        log.debug("%s: %s", what, e)


async def watch_loop(metrics: Metrics) -> None:
    """See by how much the event loop is late, until cancelled."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + _LAG_PAUSE
        await asyncio.sleep(_LAG_PAUSE)
        metrics.observe(Histogram.LOOP_LAG, max(0.0, clock() - due))
