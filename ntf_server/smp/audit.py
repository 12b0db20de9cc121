"""The audit: what should be active is subscribed again from time to time, so that a lost subscription is found.

A subscription that the server forgot, and one whose loss nobody told us of, look like a silent queue. So all that were
silent for long are subscribed again, and a sample of the others, spread thinly over a round of hours.
"""

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.records import Store, StoreError
from smp_bridge.address import ServerAddress

log = logging.getLogger(__name__)

_MIN_PAUSE: Final = 0.05
_ERROR_PAUSE: Final = 60.0


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """Seconds: `period` of a whole round, `silent` after which a subscription is in every round.

    `sample`: the fraction of the others; `page`: subscriptions looked at in one step.
    """

    period: float = 24 * 3600.0
    silent: float = 3 * 24 * 3600.0
    sample: float = 1 / 16
    page: int = 100


async def run(
    store: Store,
    subscriber: Subscriber,
    config: AuditConfig | None = None,
    *,
    clock: Callable[[], float] = time.time,
    rng: Callable[[], float] = random.random,
) -> None:
    """Go round, until cancelled."""
    config = config or AuditConfig()
    after, left = 0, config.period
    while True:
        try:
            after, pause = await _step(store, subscriber, config, after, now=clock(), rng=rng)
        except StoreError as e:
            log.error("the audit of subscriptions is late: %s", e)
            pause = _ERROR_PAUSE
        else:
            if after == 0:  # the next round begins when this one's period is over
                pause, left = left, config.period
            else:
                left -= pause
        await asyncio.sleep(max(_MIN_PAUSE, pause))


async def _step(
    store: Store, subscriber: Subscriber, config: AuditConfig, after: int, *, now: float, rng: Callable[[], float]
) -> tuple[int, float]:
    """Audit one page behind `after`: where it ends, 0 if it was the last, and its share of the period in seconds."""
    count = await store.subscription_count()
    page = await store.to_audit(after, config.page, int(now - config.silent))
    chosen: defaultdict[ServerAddress, list[int]] = defaultdict(list)
    for s in page:
        if s.silent or rng() < config.sample:
            chosen[s.server].append(s.ref)
    for server, refs in chosen.items():
        subscriber.audit(server, refs)
    share = config.period * len(page) / max(1, count)
    return (page[-1].ref if len(page) == config.page else 0), share
