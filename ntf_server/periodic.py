"""What goes on by the clock: periodic check-messages pushes (TCRN; wire.md, section 6), the store's upkeep, and a look
at what is due.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from ntf_server.observe.metrics import Gauge, Metrics
from ntf_server.store.contract import Store, StoreUnavailableError
from smp_bridge.ntf import Provider

log = logging.getLogger(__name__)

INTERVAL: Final = 30.0  # seconds between two looks; periods are whole minutes
LOOK: Final = 15.0  # seconds between two looks at how many tokens are due
_SLICE: Final = 500  # tokens marked at once
_ERROR_PAUSE: Final = 5.0
_MIN_PAUSE: Final = 0.01


async def check(store: Store, *, interval: float = INTERVAL) -> None:
    """Make checks due for tokens whose period is over, until cancelled."""
    while True:
        pause = interval
        try:
            if await store.mark_checks(_SLICE) == _SLICE:
                pause = _MIN_PAUSE
        except StoreUnavailableError as e:
            log.error("periodic pushes are late: %s", e)
        await asyncio.sleep(pause)


async def tend(store: Store) -> None:
    """Look after the store, until cancelled."""
    while True:
        try:
            pause = await store.tend()
        except StoreUnavailableError as e:
            log.error("the store's upkeep is late: %s", e)
            pause = _ERROR_PAUSE
        await asyncio.sleep(max(_MIN_PAUSE, pause))


class Backlog:
    """How many tokens are due, as a gauge: the store counts them now and then. Its `run` never ends."""

    def __init__(
        self, store: Store, providers: Collection[Provider], metrics: Metrics, *, interval: float = LOOK
    ) -> None:
        self._store = store
        self._providers = providers
        self._interval = interval
        self._due = 0
        metrics.gauge(Gauge.TOKENS_DUE, lambda: self._due)

    async def run(self) -> None:
        """Count, until cancelled. While the store cannot, the last number stands."""
        while True:
            try:
                self._due = sum([await self._store.due_count(provider) for provider in self._providers])
            except StoreUnavailableError as e:
                log.debug("the tokens that are due were not counted: %s", e)
            await asyncio.sleep(self._interval)
