"""The audit: what should be active is subscribed again from time to time, so that a lost subscription is found.

A subscription that the server forgot, and one whose loss nobody told us of, look like a silent queue. So all that were
silent for long are subscribed again, and a sample of the others, spread thinly over a round of hours.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

import msgspec

from ntf_server.store.contract import Store, StoreError
from ntf_server.store.records import Cursor

log = logging.getLogger(__name__)

_MIN_PAUSE: Final = 0.05
_ERROR_PAUSE: Final = 60.0


class AuditConfig(msgspec.Struct, frozen=True):
    """Seconds: `period` of a whole round, `silent` after which a subscription is in every round.

    `sample`: the fraction of the others; `page`: subscriptions looked at in one step.
    """

    period: float = 24 * 3600.0
    silent: float = 3 * 24 * 3600.0
    sample: float = 1 / 16
    page: int = 100


async def run(store: Store, config: AuditConfig | None = None, *, rng: Callable[[], float] = random.random) -> None:
    """Go round, until cancelled."""
    config = config or AuditConfig()
    after: Cursor | None = None
    left = config.period
    while True:
        try:
            after, pause = await _step(store, config, after, rng)
        except StoreError as e:
            log.error("the audit of subscriptions is late: %s", e)
            pause = _ERROR_PAUSE
        else:
            if after is None:  # the next round begins when this one's period is over
                pause, left = left, config.period
            else:
                left -= pause
        await asyncio.sleep(max(_MIN_PAUSE, pause))


async def _step(
    store: Store, config: AuditConfig, after: Cursor | None, rng: Callable[[], float]
) -> tuple[Cursor | None, float]:
    """Audit one page behind `after`: where the next begins, None if it was the last, and its share of the period."""
    count = await store.subscription_count()
    page, cursor = await store.to_audit(after, config.page, config.silent)
    chosen = [s for s in page if s.silent or rng() < config.sample]
    if chosen:
        await store.request_audit(chosen)
    return cursor, config.period * len(page) / max(1, count)
