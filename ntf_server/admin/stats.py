"""What happened since when: `ntf-server stats`."""

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final, Protocol

from ntf_server.admin.socket import AdminError, asked_of_the_store
from ntf_server.store.contract import Store
from ntf_server.store.statistics import by_day

STATS: Final = "stats"  # the admin socket's command
_MOST: Final = 50  # days in an answer


class Running(Protocol):
    """What a relay counts."""

    @property
    def started(self) -> float:
        """Unix seconds."""
        ...

    def since_start(self) -> dict[str, int]:
        """By names of `Total`."""
        ...

    async def keep(self) -> None:
        """Have the store know all of it. Raises StoreError."""
        ...


async def stats(store: Store, running: Running | None, after: str = "") -> dict[str, Any]:
    """`days`: what is kept of each day behind one, of all nodes together; `next`: `after` of the next call, None: there
    are no more. `started`, `since_start`: of this node, None if it does not run. Raises StoreError.
    """
    if running is not None:
        await running.keep()
    days = by_day(await store.statistics.rows())
    some = dict(islice(((day, counts) for day, counts in days.items() if day > after), _MOST))
    last = next(reversed(some), None)
    return {
        "started": None if running is None else running.started,
        "since_start": None if running is None else running.since_start(),
        "days": some,
        "next": last if last is not None and last < max(days) else None,
    }


async def on_stats(store: Store, running: Running, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"command": "stats", "after": …}`: see `stats`. Raises AdminError."""
    after = request.get("after", "")
    if not isinstance(after, str):
        raise AdminError("after: must be a day")
    with asked_of_the_store():
        return await stats(store, running, after)
