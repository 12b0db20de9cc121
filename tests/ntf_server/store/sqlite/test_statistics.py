"""Statistics of days in the SQLite store; the rest: `store_suite.statistics`."""

from ntf_server.store.sqlite.engine import SqliteStore


async def test_a_row_that_cannot_be_read_is_in_nobodys_way(store: SqliteStore) -> None:
    for row in ("2027-01-15:", "2027-01-16:"):
        await store.statistics.keep(row, {"one": 1})
    await store._database.run(
        lambda c: c.execute("UPDATE statistics SET counts = '{' WHERE row < '2027-01-16'") and None
    )
    assert await store.statistics.rows() == {"2027-01-15:": {}, "2027-01-16:": {"one": 1}}
    assert await store.statistics.kept("2027-01-15:") == {}
    await store.statistics.keep("2027-01-15:", {"one": 3})
    assert await store.statistics.kept("2027-01-15:") == {"one": 3}


async def test_the_one_node_has_no_name(store: SqliteStore) -> None:
    assert store.statistics.node == ""
