"""The conformance suite: what every engine must do, whatever it is made of (`ntf_server.store.contract`).

A test of an engine writes a `Medium`, and runs each of `checks(…)` on a `Bench` with a fresh one:

    @pytest.mark.parametrize("check", checks(shared=False), ids=name)
    async def test_engine(check, tmp_path):
        await run(check, MyMedium(tmp_path))

In pytest, `pytest.register_assert_rewrite("ntf_server.testing.store_suite")` before the import shows what failed.
"""

import inspect
from types import ModuleType
from typing import Final

from ntf_server.testing.store_suite import (
    census,
    claims,
    clocks,
    deliveries,
    expiry,
    inspection,
    lanes,
    lost,
    model,
    nodes,
    paging,
    periods,
    queues,
    races,
    retries,
    services,
    sessions,
    standings,
    statistics,
    tokens,
    turns,
)
from ntf_server.testing.store_suite.medium import Bench, Check, ManualClock, Medium, Times

__all__ = ["Bench", "Check", "ManualClock", "Medium", "Times", "checks", "name", "run"]

_ONE_NODE: Final = (
    tokens, periods, turns, queues, deliveries, claims, retries, lanes, clocks, sessions, standings, services, expiry,
    census, inspection, statistics, lost, paging, races, model,
)  # fmt: skip


def checks(*, shared: bool) -> list[Check]:
    """All of them; those that need two nodes if the medium is shared."""
    return [check for module in (*_ONE_NODE, *((nodes,) if shared else ())) for check in _of(module)]


def name(check: Check) -> str:
    """Where it is, and what it says."""
    return f"{check.__module__.rpartition('.')[2]}-{getattr(check, '__name__', check)}"


async def run(check: Check, medium: Medium) -> None:
    """Do it, and close everything."""
    bench = Bench(medium)
    try:
        await check(bench)
    finally:
        await bench.close()


def _of(module: ModuleType) -> list[Check]:
    functions = inspect.getmembers(module, inspect.iscoroutinefunction)
    return [f for name, f in functions if f.__module__ == module.__name__ and not name.startswith("_")]
