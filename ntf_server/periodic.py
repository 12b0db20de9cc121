"""Periodic check-messages pushes (TCRN; wire.md, section 6)."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from ntf_server.push.dispatcher import Dispatcher
from ntf_server.store.records import Store, StoreError

log = logging.getLogger(__name__)

INTERVAL: Final = 30.0  # seconds between two looks; periods are whole minutes


async def run(
    store: Store,
    dispatcher: Dispatcher,
    *,
    interval: float = INTERVAL,
    clock: Callable[[], float] = time.time,
) -> None:
    """Mark tokens whose period is over, until cancelled."""
    while True:
        try:
            dispatcher.mark(await store.due_checks(int(clock())))
        except StoreError as e:
            log.error("periodic pushes are late: %s", e)
        await asyncio.sleep(interval)
