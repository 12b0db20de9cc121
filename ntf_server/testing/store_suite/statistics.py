"""What was counted on which day."""

from ntf_server.store.statistics import own_row, shared_row
from ntf_server.testing.store_suite.medium import Bench


async def rows_are_kept_over_restarts(bench: Bench) -> None:
    """As they were written last, also after a kill."""
    store = await bench.open()
    assert await store.statistics.rows() == {}
    assert await store.statistics.kept("2027-01-15:a") is None
    for number in (1, 2):
        await store.statistics.keep("2027-01-15:a", {"one": number, "other": 2**40})
    await store.statistics.keep(shared_row("2027-01-15"), {"level": 7})
    for kill in (False, True):
        store = await bench.reopen(store, kill=kill)
        assert await store.statistics.kept("2027-01-15:a") == {"one": 2, "other": 2**40}
        rows = {"2027-01-15": {"level": 7}, "2027-01-15:a": {"one": 2, "other": 2**40}}
        assert await store.statistics.rows() == rows


async def old_days_are_forgotten(bench: Bench) -> None:
    """Those before a day, whoever's rows they are."""
    store = await bench.open()
    days = ["2025-12-31", "2026-01-01", "2026-01-02"]
    for day in days:
        await store.statistics.keep(shared_row(day), {"level": 1})
        await store.statistics.keep(own_row(day, store.statistics.node), {"one": 1})
        await store.statistics.keep(own_row(day, "another"), {"one": 1})
    await store.statistics.forget("2026-01-02")
    assert {row[:10] for row in await store.statistics.rows()} == {"2026-01-02"}
    assert len(await store.statistics.rows()) == 3
    await store.statistics.forget("2026-01-02")
    assert len(await store.statistics.rows()) == 3
