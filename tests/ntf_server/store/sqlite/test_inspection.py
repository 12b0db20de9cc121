"""What operators look at in the SQLite store; the rest: `store_suite.inspection`."""

from store_world import activate, plan, subscribe

from ntf_server.store.sqlite import inspection
from ntf_server.store.sqlite.engine import SqliteStore


async def test_slices_need_no_look_at_all_rows(store: SqliteStore) -> None:
    """Also of a large database: each is a range of an index."""
    values = {"after": 0, "limit": 5, "first": b"a", "behind": b"b"}
    asked = [(inspection._SLICE, values), (inspection._COUNT, (0, 5)), (inspection._STATUSES, (1,))]
    for query, given in (*asked, (inspection._HEARD, (0, 5))):
        steps = await plan(store, query, given)
        assert not [s for s in steps if s.startswith("SCAN") and s not in {"SCAN s", "SCAN (subquery-1)"}]
    assert any("tokens_device" in step for step in await plan(store, inspection._OF_DEVICE, values))


async def test_those_that_are_to_be_cleared_are_counted_until_they_are(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"one", b"two")
    await store.delete_token(token.ref)
    assert await store.inspection.tokens(None, 5) == ([], None)
    assert await store.inspection.subscriptions(None, 5) == ([], None)
