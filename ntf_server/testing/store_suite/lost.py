"""What SMP servers sent on a dead way: the checks that tokens are owed for it."""

from ntf_server.store.records import Lost, PushKind, Replacement
from ntf_server.testing.store_suite.medium import (
    FOREVER,
    OTHER_SMP,
    Bench,
    acquire,
    activate,
    delivered,
    device,
    drain,
    notify,
    record,
    subscribe,
    take,
    take_cool,
    take_one,
)
from smp_bridge.ntf import SubscriptionStatus


async def what_may_be_lost_is_checked_for_once(bench: Bench) -> None:
    """One check for each ACTIVE token with queues there, in slices; the other servers' are left alone."""
    store = await bench.open()
    tokens = [await activate(store, n) for n in range(5)]
    for n, token in enumerate(tokens):
        await subscribe(store, token, b"%d" % n, b"other %d" % n)
    elsewhere, unverified = await activate(store, 8), await activate(store, 9)
    await subscribe(store, elsewhere, b"elsewhere", server=OTHER_SMP)
    await subscribe(store, unverified, b"unverified")
    await store.replace(unverified.ref, Replacement(device(10), b"c" * 32))
    await drain(bench, store)
    session = await acquire(store)
    counts, after = [], None
    for _ in range(FOREVER):
        count, after, _ = await store.mark_lost(session, after, 4, 0.0)
        counts.append(count)
        if after is None:
            break
    assert sum(counts) == 5
    assert max(counts) <= 4
    claims = await take(store)
    assert {(c.kind, c.token) for c in claims} == {(PushKind.CHECK, t.ref) for t in tokens}
    await record(store, *map(delivered, claims))
    assert await store.mark_lost(session, None, 100, 1.0) == Lost(0, None)


async def a_check_for_what_may_be_lost_comes_once_an_hour(bench: Bench) -> None:
    """However often the way is lost; what was lost since the last one is to be asked for when the hour is over."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"1")
    await subscribe(store, token, b"2", server=OTHER_SMP)
    sessions = [await acquire(store), await acquire(store, OTHER_SMP)]
    await store.mark_lost(sessions[0], None, 100, 0.0)
    await record(store, delivered(await take_one(store)))
    bench.clock.pass_(3590)
    assert [await store.mark_lost(s, None, 100, 5000.0) for s in sessions] == [Lost(0, None)] * 2
    found = [await store.mark_lost(s, None, 100, 60.0) for s in sessions]
    assert [lost[:2] for lost in found] == [(0, None)] * 2
    assert [round(lost.later) for lost in found] == [10, 10]
    bench.clock.pass_(20)
    assert [await store.mark_lost(s, None, 100, 80.0) for s in sessions] == [Lost(1, None), Lost(0, None)]
    assert (await take_one(store)).kind is PushKind.CHECK


async def no_check_for_what_may_be_lost_beside_messages(bench: Bench) -> None:
    """Neither if they are due, nor if they were pushed since the way was lost."""
    store = await bench.open()
    waiting, woken, quiet = [await activate(store, n) for n in range(3)]
    for name, token in ((b"waiting", waiting), (b"woken", woken), (b"quiet", quiet)):
        await subscribe(store, token, name)
    session = await acquire(store)
    await notify(store, session, b"quiet", b"woken")
    await drain(bench, store)
    bench.clock.pass_(100)
    await notify(store, session, b"woken")
    await drain(bench, store)
    bench.clock.pass_(10)
    await notify(store, session, b"waiting")
    assert await store.mark_lost(session, None, 100, 50.0) == Lost(1, None)
    claims = {c.token: c.kind for c in await take_cool(bench, store)}
    assert claims == {waiting.ref: PushKind.MESSAGES, quiet.ref: PushKind.CHECK}


async def a_push_just_after_the_way_was_lost_counts(bench: Bench) -> None:
    """To the second, whatever an engine keeps of it."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"1")
    session = await acquire(store)
    for _ in range(4):
        await notify(store, session, b"1")
        await drain(bench, store)
        bench.clock.pass_(0.25)
        assert await store.mark_lost(session, None, 100, 0.5) == Lost(0, None)


async def only_queues_that_should_be_active_may_have_lost_something(bench: Bench) -> None:
    """Those that ended, or were deleted with their token, get nothing of the server."""
    store = await bench.open()
    ended, deleted = await activate(store, 1), await activate(store, 2)
    await subscribe(store, ended, b"ended")
    await subscribe(store, deleted, b"deleted")
    session = await acquire(store)
    await store.end(session, [b"ended"], SubscriptionStatus.END)
    await store.delete_token(deleted.ref)
    assert await store.mark_lost(session, None, 100, 0.0) == Lost(0, None)
