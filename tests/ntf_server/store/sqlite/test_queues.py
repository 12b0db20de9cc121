"""Subscriptions of tokens."""

import asyncio

import pytest
from store_world import (
    OTHER_SMP,
    SMP,
    TABLET,
    FakeClock,
    acquire,
    activate,
    look,
    new_subscription,
    notify,
    status,
    subscribe,
    take,
)

from ntf_server.store.contract import DamagedRecordError
from ntf_server.store.records import Added, Change, ChangeKind, Confirmed, LimitReached, Limits, Removed
from ntf_server.store.sqlite import tokens
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.ntf import SubscriptionStatus

END = SubscriptionStatus.END


async def changes(store: SqliteStore) -> list[Change]:
    """Those that wait to be asked for."""
    out: list[Change] = []
    stream = store.changes()
    while True:
        try:
            async with asyncio.timeout(0.05):
                out.append(await anext(stream))
        except (TimeoutError, StopAsyncIteration):
            return out


async def test_a_subscription_is_kept_as_given(store: SqliteStore) -> None:
    token = await activate(store)
    [added] = await subscribe(store, token, b"queue")
    assert added.created
    found = await store.find_subscription(added.subscription_id)
    assert found is not None
    owner, subscription = found
    assert owner == token
    assert (subscription.server, subscription.notifier_id) == (SMP, b"queue")
    assert (subscription.status, subscription.error, subscription.associated) == (SubscriptionStatus.NEW, "", False)
    assert await changes(store) == [Change(ChangeKind.ADDED, SMP, (subscription.ref,))]
    assert await store.find_subscription(b"unknown") is None


async def test_subscribing_again_with_the_same_key_gives_the_same_subscription(store: SqliteStore) -> None:
    token = await activate(store)
    [first] = await subscribe(store, token, b"queue")
    await changes(store)
    assert await store.subscribe(token.ref, new_subscription(b"queue")) == Added(first.subscription_id, created=False)
    assert await store.subscribe(token.ref, new_subscription(b"queue", key=b"notifier key and more")) is not None
    assert await changes(store) == []


async def test_a_queue_can_be_subscribed_once_with_one_key(store: SqliteStore) -> None:
    token, other = await activate(store), await activate(store, TABLET)
    await subscribe(store, token, b"queue")
    assert await store.subscribe(token.ref, new_subscription(b"queue", key=b"another key!")) is None
    assert await store.subscribe(other.ref, new_subscription(b"queue")) is None
    assert await store.subscribe(other.ref, new_subscription(b"queue"), Limits(0, 1)) is None
    assert await subscribe(store, other, b"queue", server=OTHER_SMP)
    assert await store.subscribe(10**6, new_subscription(b"other")) is None


@pytest.mark.parametrize("ended", [END, SubscriptionStatus.DELETED, SubscriptionStatus.AUTH])
async def test_an_ended_subscription_is_wanted_again_when_it_is_asked_for(
    store: SqliteStore, ended: SubscriptionStatus
) -> None:
    token = await activate(store)
    [added] = await subscribe(store, token, b"queue")
    session = await acquire(store)
    await store.end(session, [b"queue"], ended)
    assert await store.servers() == []
    await changes(store)
    assert await store.subscribe(token.ref, new_subscription(b"queue")) == Added(added.subscription_id, created=False)
    assert await status(store, added) is SubscriptionStatus.NEW
    [change] = await changes(store)
    assert (change.kind, change.server) == (ChangeKind.ADDED, SMP)
    assert [w.ref for w in (await store.page(session, None, 10)).wanted] == list(change.refs)


async def test_a_deleted_subscription_is_gone_with_its_notification(store: SqliteStore) -> None:
    token = await activate(store)
    [added] = await subscribe(store, token, b"queue")
    session = await acquire(store)
    await notify(store, session, b"queue")
    found = await store.find_subscription(added.subscription_id)
    assert found is not None
    await changes(store)
    await store.unsubscribe(found[1].ref)
    assert await store.find_subscription(added.subscription_id) is None
    assert not await take(store)
    ref = found[1].ref
    removed = Removed(ref, active=False, associated=False, cursor=(0, ref))
    assert await changes(store) == [Change(ChangeKind.REMOVED, SMP, removed=(removed,))]
    await store.unsubscribe(found[1].ref)
    assert await store.subscription_count() == 0


# --- limits


async def test_a_token_and_a_server_may_have_so_many(store: SqliteStore) -> None:
    token, other = await activate(store), await activate(store, TABLET)
    limits = Limits(2, 3)
    results = [await store.subscribe(token.ref, new_subscription(b"%d" % i), limits) for i in range(3)]
    assert isinstance(results[1], Added)
    assert results[2] is LimitReached.TOKEN
    assert isinstance(await store.subscribe(other.ref, new_subscription(b"x"), limits), Added)
    assert await store.subscribe(other.ref, new_subscription(b"y"), limits) is LimitReached.SERVER
    assert isinstance(await store.subscribe(other.ref, new_subscription(b"y", OTHER_SMP), limits), Added)
    assert isinstance(await store.subscribe(token.ref, new_subscription(b"0"), limits), Added)  # is there already
    assert await store.subscription_count() == 4


async def test_limits_hold_for_many_at_once(store: SqliteStore) -> None:
    token = await activate(store)
    limits = Limits(5, 0)
    results = await asyncio.gather(
        *(store.subscribe(token.ref, new_subscription(b"%d" % i), limits) for i in range(20))
    )
    assert sum(isinstance(r, Added) for r in results) == 5


async def test_what_is_refused_leaves_no_server_behind(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"queue")
    await store.subscribe(token.ref, new_subscription(b"other", OTHER_SMP), Limits(1, 0))
    rows = await store._database.read(lambda c: c.execute("SELECT count(*) FROM servers").fetchone())
    assert rows == (1,)


# --- deletions in slices


async def test_a_large_deletion_is_seen_at_once_and_done_in_slices(
    store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_AT_ONCE", 3)
    token, other = await activate(store), await activate(store, TABLET)
    queues = [b"%d" % i for i in range(10)]
    added = await subscribe(store, token, *queues)
    session = await acquire(store)
    await store.delete_token(token.ref)
    left = await store._database.read(lambda c: c.execute("SELECT count(*) FROM subscriptions").fetchone())
    assert left == (7,)
    assert await store.subscription_count() == 0
    assert await store.servers() == []
    assert not await store.is_wanted(SMP)
    assert (await store.page(session, None, 100)).wanted == []
    assert await store.load(session, list(range(1, 20))) == []
    assert await store.to_audit(None, 10, 0) == ([], None)
    assert (await notify(store, session, *queues)).unknown == 10
    for each in added:
        assert await store.find_subscription(each.subscription_id) is None
    assert isinstance(await store.subscribe(other.ref, new_subscription(b"9")), Added)  # nobody's queue any more
    assert await store.subscription_count() == 1
    while await store.tend() < 1:
        pass
    assert await store.subscription_count() == 1
    left = await store._database.read(lambda c: c.execute("SELECT count(*) FROM subscriptions").fetchone())
    assert left == (1,)
    counts = (
        "SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM notifications), (SELECT subscriptions FROM servers)"
    )
    assert await store._database.read(lambda c: c.execute(counts).fetchone()) == (0, 0, 1)


# --- damage


async def test_a_damaged_key_of_a_queue_is_set_aside_and_the_page_goes_on(store: SqliteStore) -> None:
    token = await activate(store)
    added = await subscribe(store, token, b"a", b"b", b"c")
    session = await acquire(store)
    await store._database.run(
        lambda c: c.execute("UPDATE subscriptions SET notifier_key = x'00' WHERE notifier_id = x'62'") and None
    )
    page = await store.page(session, None, 2)
    assert [w.notifier_id for w in page.wanted] == [b"a"]
    assert [w.notifier_id for w in (await store.page(session, page.cursor, 2)).wanted] == [b"c"]
    with pytest.raises(DamagedRecordError):
        await store.find_subscription(added[1].subscription_id)
    assert (await look(store, token)) == token
    again = await store.subscribe(token.ref, new_subscription(b"b"))
    assert again == Added(added[1].subscription_id, created=False)
    assert [w.notifier_id for w in (await store.page(session, None, 10)).wanted] == [b"a", b"b", b"c"]
    assert await store.find_subscription(added[1].subscription_id)


async def test_a_confirmation_does_not_undo_an_end(store: SqliteStore) -> None:
    token = await activate(store)
    [added] = await subscribe(store, token, b"queue")
    session = await acquire(store)
    [wanted] = (await store.page(session, None, 10)).wanted
    await store.end(session, [b"queue"], END)
    await store.confirm(session, [Confirmed(wanted.ref, SubscriptionStatus.ACTIVE)])
    assert await status(store, added) is END
