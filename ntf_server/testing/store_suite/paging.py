"""Pages of a server's subscriptions: complete and without repetition, whatever changes while they are read."""

import random

from ntf_server.store.records import Confirmed, Cursor
from ntf_server.testing.store_suite.medium import (
    FOREVER,
    OTHER_SMP,
    Bench,
    acquire,
    activate,
    found,
    new_queue,
    pages,
    subscribe,
)
from smp_bridge.ntf import SubscriptionStatus

_ACTIVE = SubscriptionStatus.ACTIVE


async def pages_are_complete(bench: Bench) -> None:
    """For any limit: all that should be active, each once, with key; none of another server."""
    store = await bench.open()
    queues = [b"%d" % n for n in range(12)]
    tokens = [await activate(store, n) for n in range(3)]
    for n, queue in enumerate(queues):
        await subscribe(store, tokens[n % 3], queue)
    await subscribe(store, await activate(store, 9), b"elsewhere", server=OTHER_SMP)
    session = await acquire(store)
    await store.end(session, [queues.pop()], SubscriptionStatus.END)
    for limit in (1, 2, 3, 11, 12, 100):
        wanted = await pages(store, session, limit)
        assert sorted(w.notifier_id for w in wanted) == sorted(queues)
        assert {w.notifier_key for w in wanted} == {new_queue(q).notifier_key for q in queues}
        assert all(w.fresh and not w.associated for w in wanted)


async def pages_come_in_the_order_of_cursors(bench: Bench) -> None:
    """A subscription's cursor says whether a page has had it."""
    store = await bench.open()
    token = await activate(store, 1)
    by_name = {}
    for n in range(9):
        [by_name[b"%d" % n]] = await subscribe(store, token, b"%d" % n)
    session = await acquire(store)
    after: Cursor | None = None
    passed: list[Cursor] = []
    for _ in range(FOREVER):
        page = await store.page(session, after, 2)
        cursors = [(await found(store, by_name[w.notifier_id])).cursor for w in page.wanted]
        assert cursors == sorted(cursors)
        assert all(c > p for c in cursors for p in passed)
        passed += cursors
        after = page.cursor
        if after is None:
            break
        assert all(c <= after for c in cursors)
        later = [(await found(store, i)).cursor for i in by_name.values()]
        assert sum(c <= after for c in later) == len(passed)
    assert len(passed) == 9


async def an_empty_server_has_one_page(bench: Bench) -> None:
    """Without anything, and without a next one."""
    store = await bench.open()
    session = await acquire(store)
    page = await store.page(session, None, 10)
    assert (page.wanted, page.cursor) == ([], None)


async def pages_pass_those_of_the_service(bench: Bench) -> None:
    """Answers that come while pages are read move nothing behind the cursor back before it."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, *(b"%02d" % n for n in range(30)))
    session = await acquire(store)
    await store.begin(session, b"service")
    after: Cursor | None = None
    seen = []
    for _ in range(FOREVER):
        page = await store.page(session, after, 4)
        seen += [w.notifier_id for w in page.wanted]
        await store.confirm(session, [Confirmed(w.ref, _ACTIVE, associated=True) for w in page.wanted])
        after = page.cursor
        if after is None:
            break
    assert sorted(seen) == [b"%02d" % n for n in range(30)]
    assert (await store.service_state(session)).associated == 30
    assert await pages(store, session) == []


async def pages_under_change_skip_nothing(bench: Bench) -> None:
    """While rows are added, deleted, ended, associated or released: what stays wanted comes, and nothing twice."""
    for seed in range(12):
        await _walk(bench, random.Random(seed), seed)


async def _walk(bench: Bench, rng: random.Random, seed: int) -> None:
    store = await bench.open()
    tokens = [await activate(store, 10 * seed + n) for n in range(3)]
    names = [b"%d.%d" % (seed, n) for n in range(40)]
    ids = {}
    for name in names:
        [ids[name]] = await subscribe(store, rng.choice(tokens), name)
    session = await acquire(store)
    await store.begin(session, b"service" if seed % 2 else None)
    if seed % 3 == 0:  # some are associated from before, and are so no more
        refs = [(await found(store, ids[n])).ref for n in rng.sample(names, 15)]
        await store.confirm(session, [Confirmed(r, _ACTIVE, associated=True) for r in refs])
        await store.reassociate(session)
    steady, seen = set(names), []
    after: Cursor | None = None
    for _ in range(FOREVER):
        page = await store.page(session, after, rng.randint(1, 7))
        seen += [w.notifier_id for w in page.wanted if w.notifier_id.startswith(b"%d." % seed)]
        after = page.cursor
        if after is None:
            break
        for _ in range(rng.randint(0, 3)):
            name = rng.choice(names)
            what = rng.randrange(5)
            if what == 0:
                added = b"%d.new %d" % (seed, len(ids))
                [ids[added]] = await subscribe(store, rng.choice(tokens), added)
            elif name in steady and name not in seen:
                steady.discard(name)
                ref = (await found(store, ids[name])).ref
                if what == 1:
                    await store.unsubscribe(ref)
                elif what == 2:
                    await store.end(session, [name], SubscriptionStatus.END)
                else:
                    await store.confirm(session, [Confirmed(ref, _ACTIVE, associated=what == 3 and bool(seed % 2))])
            elif name in seen and await store.find_subscription(ids[name]):
                ref = (await found(store, ids[name])).ref
                await store.confirm(session, [Confirmed(ref, _ACTIVE, associated=bool(seed % 2))])
    assert len(seen) == len(set(seen)), seed
    assert steady <= set(seen), seed
    bench.nodes.remove(store)
    await store.close()
