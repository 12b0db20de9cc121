"""Who speaks for an SMP server: fences, what a session may do, and the stream of changes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from ntf_server.store.contract import FencedError, Store
from ntf_server.store.records import Change, ChangeKind, Confirmed, Ref, ToAudit
from ntf_server.testing.store_suite.medium import (
    ENDED,
    OTHER_SMP,
    SMP,
    Bench,
    acquire,
    activate,
    found,
    names,
    new_queue,
    new_token,
    pages,
    register,
    stamp,
    subscribe,
    take,
    take_one,
    tend,
)
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import SubscriptionStatus

_ACTIVE = SubscriptionStatus.ACTIVE

# --- which servers


async def servers_with_something_to_keep(bench: Bench) -> None:
    """NEW, PENDING and ACTIVE; not those whose subscriptions all ended."""
    store = await bench.open()
    token = await activate(store, 1)
    assert await store.servers() == []
    [first] = await subscribe(store, token, b"1")
    await subscribe(store, token, b"2", server=OTHER_SMP)
    assert {s.key_hash for s in await store.servers()} == {SMP.key_hash, OTHER_SMP.key_hash}
    assert await store.is_wanted(SMP)
    session = await acquire(store)
    await store.confirm(session, [Confirmed((await found(store, first)).ref, SubscriptionStatus.PENDING)])
    assert await store.is_wanted(SMP)
    await store.end(session, [b"1"], SubscriptionStatus.END)
    assert not await store.is_wanted(SMP)
    assert await store.servers() == [OTHER_SMP]


# --- fences


async def fences_grow(bench: Bench) -> None:
    """Above all before; each server has its own sessions."""
    store = await bench.open()
    first, second = await acquire(store), await acquire(store)
    assert (first.server, second.server) == (SMP, SMP)
    assert first.fence < second.fence
    other = await acquire(store, OTHER_SMP)
    assert await store.renew([second, other]) == []
    await store.release(second)
    third = await acquire(store)
    assert third.fence > second.fence


async def renewing_tells_what_is_lost(bench: Bench) -> None:
    """Those that another session took the place of."""
    store = await bench.open()
    old, other = await acquire(store), await acquire(store, OTHER_SMP)
    new = await acquire(store)
    assert await store.renew([old, other, new]) == [old]
    assert await store.renew([]) == []


async def an_old_session_is_refused(bench: Bench) -> None:
    """In all that it may ask, and nothing of it is done."""
    store = await bench.open()
    token = await activate(store, 1)
    ids = await subscribe(store, token, b"1", b"2")
    old = await acquire(store)
    await store.begin(old, b"service")
    ref = (await found(store, ids[0])).ref
    new = await acquire(store)
    state = await store.begin(new, b"service")
    await store.confirm(new, [Confirmed(ref, _ACTIVE, associated=True)])
    state = await store.service_state(new)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.begin(old, b"another service"),
        lambda: store.service_state(old),
        lambda: store.reassociate(old),
        lambda: store.mark_lost(old, None, 10, 0.0),
        lambda: store.set_released(old, 77),
        lambda: store.page(old, None, 10),
        lambda: store.load(old, [ref]),
        lambda: store.confirm(old, [Confirmed(ref, SubscriptionStatus.AUTH, "refused", associated=False)]),
        lambda: store.end(old, [b"1", b"2"], SubscriptionStatus.END),
    ]
    for call in calls:
        await _fenced(call)
    kept = await found(store, ids[0])
    assert (kept.status, kept.error, kept.associated) == (_ACTIVE, "", True)
    assert (await found(store, ids[1])).status is SubscriptionStatus.NEW
    assert await store.service_state(new) == state
    assert {w.notifier_id for w in await pages(store, new)} == {b"2"}


async def _fenced(call: Callable[[], Awaitable[object]]) -> None:
    try:
        await call()
    except FencedError:
        return
    raise AssertionError("an old session was served")


async def the_end_of_an_old_session_ends_nothing(bench: Bench) -> None:
    """A late END is of a subscription that the new session has made again."""
    store = await bench.open()
    [subscription_id] = await subscribe(store, await activate(store, 1), b"queue")
    old = await acquire(store)
    new = await acquire(store)
    await store.confirm(new, [Confirmed((await found(store, subscription_id)).ref, _ACTIVE)])
    for status in ENDED:
        await _fenced(lambda status=status: store.end(old, [b"queue"], status))  # type: ignore[misc]
    assert (await found(store, subscription_id)).status is _ACTIVE


async def releasing_an_old_session_keeps_the_new_one(bench: Bench) -> None:
    """They overlap while a connection is replaced."""
    store = await bench.open()
    await subscribe(store, await activate(store, 1), b"queue")
    old = await acquire(store)
    new = await acquire(store)
    with contextlib.suppress(FencedError):
        await store.release(old)
    assert await store.renew([new]) == []
    assert len(await pages(store, new)) == 1


async def notifications_of_an_old_session_are_taken(bench: Bench) -> None:
    """Of this node: nobody else has them, and their numbers say which is newer."""
    store = await bench.open()
    await subscribe(store, await activate(store, 1), b"queue", b"other")
    old = await acquire(store)
    late = stamp(store, old, b"queue", b"other", meta=b"late")
    new = await acquire(store)
    newer = stamp(store, new, b"queue", meta=b"newer")
    assert (await store.notify(new, newer, {})).unknown == 0
    assert (await store.notify(old, late, {})).unknown == 0
    claim = await take_one(store)
    assert sorted((e.notifier_id, e.meta) for e in claim.entries) == [(b"other", b"late"), (b"queue", b"newer")]


# --- answers


async def answers_are_kept(bench: Bench) -> None:
    """Status and error; what ended meanwhile stays so, what was deleted is no error."""
    store = await bench.open()
    token = await activate(store, 1)
    ids = await subscribe(store, token, b"1", b"2", b"3", b"4")
    refs = [(await found(store, i)).ref for i in ids]
    session = await acquire(store)
    assert await store.end(session, [b"3"], SubscriptionStatus.DELETED) == 1
    await store.unsubscribe(refs[3])
    answers = [
        Confirmed(refs[0], _ACTIVE),
        Confirmed(refs[1], SubscriptionStatus.ERR, "BLOCKED"),
        Confirmed(refs[2], _ACTIVE, associated=True),
        Confirmed(refs[3], _ACTIVE, associated=True),
    ]
    await store.confirm(session, answers)
    await store.confirm(session, [])
    seen = [await found(store, i) for i in ids[:3]]
    assert [(s.status, s.error) for s in seen] == [
        (_ACTIVE, ""),
        (SubscriptionStatus.ERR, "BLOCKED"),
        (SubscriptionStatus.DELETED, ""),
    ]
    assert await store.find_subscription(ids[3]) is None
    assert (await store.service_state(session)).associated == 0


async def ends_are_counted(bench: Bench) -> None:
    """Those that are here; one that comes twice is here twice, one of another server is not."""
    store = await bench.open()
    token = await activate(store, 1)
    ids = await subscribe(store, token, b"1", b"2")
    [elsewhere] = await subscribe(store, token, b"3", server=OTHER_SMP)
    session = await acquire(store)
    assert await store.end(session, [b"1", b"nobody's", b"3"], SubscriptionStatus.END) == 1
    assert await store.end(session, [], SubscriptionStatus.END) == 0
    assert [(await found(store, i)).status for i in ids] == [SubscriptionStatus.END, SubscriptionStatus.NEW]
    assert (await found(store, elsewhere)).status is SubscriptionStatus.NEW
    assert await store.end(session, [b"1"], SubscriptionStatus.DELETED) == 1


async def an_ended_queue_still_notifies(bench: Bench) -> None:
    """What arrived before its END is pushed."""
    store = await bench.open()
    await subscribe(store, await activate(store, 1), b"queue")
    session = await acquire(store)
    block = stamp(store, session, b"queue")
    await store.end(session, [b"queue"], SubscriptionStatus.END)
    assert (await store.notify(session, block, {})).unknown == 0
    assert names(await take_one(store)) == [b"queue"]


# --- audits


async def silent_ones_are_told(bench: Bench) -> None:
    """Of all servers, page by page, those that should be active; silent: nothing was heard for so long."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, *(b"%d" % n for n in range(5)))
    await subscribe(store, token, *(b"%d" % n for n in range(3)), server=OTHER_SMP)
    session = await acquire(store)
    await store.end(session, [b"4"], SubscriptionStatus.END)
    bench.clock.pass_(7200)
    await store.notify(session, stamp(store, session, b"1"), {})
    seen: list[ToAudit] = []
    after, turns = None, 0
    while True:
        page, after = await store.to_audit(after, 2, 3600)
        assert len(page) <= 2
        seen += page
        turns += 1
        if after is None:
            break
        assert turns < 50
    assert len(seen) == len({a.ref for a in seen}) == 7
    assert [sum(a.silent and a.server == s for a in seen) for s in (SMP, OTHER_SMP)] == [3, 3]


# --- changes


class _Changes:
    """The stream, read all the time; several changes of one kind may come as one."""

    def __init__(self, store: Store) -> None:
        self._told: list[Change] = []
        self._task = asyncio.ensure_future(self._read(store))

    async def _read(self, store: Store) -> None:
        async for change in store.changes():
            self._told.append(change)

    async def of(self, kind: ChangeKind, server: ServerAddress = SMP, *refs: Ref) -> None:
        """Until it was told of these, or of the server; nothing else was."""
        left = set(refs)
        while True:
            change = await self.next()
            assert (change.kind, change.server) == (kind, server)
            assert set(change.refs) <= set(refs)
            left -= set(change.refs)
            if not left:
                return

    async def next(self) -> Change:
        """The next one."""
        async with asyncio.timeout(5):
            while not self._told:
                await asyncio.sleep(0.002)
        return self._told.pop(0)

    async def quiet(self) -> None:
        """What happened before it began is not of interest; some of it may be told."""
        await asyncio.sleep(0.05)
        self._told.clear()

    async def nothing(self) -> None:
        """There was no change."""
        await asyncio.sleep(0.02)
        assert self._told == []

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@contextlib.asynccontextmanager
async def _changes(store: Store) -> AsyncIterator[_Changes]:
    changes = _Changes(store)
    try:
        await changes.quiet()
        yield changes
    finally:
        await changes.close()


async def changes_are_told(bench: Bench) -> None:
    """What was added, removed, and is to be audited, in their order; nothing of what stays as it was."""
    store = await bench.open()
    token = await activate(store, 1)
    session = await acquire(store)
    async with _changes(store) as changes:
        ids = await subscribe(store, token, b"1", b"2")
        refs = [(await found(store, i)).ref for i in ids]
        await changes.of(ChangeKind.ADDED, SMP, *refs)
        await store.confirm(session, [Confirmed(refs[0], _ACTIVE)])
        await store.subscribe(token.ref, new_queue(b"1"))  # is active already
        await changes.nothing()
        await store.end(session, [b"1"], SubscriptionStatus.END)
        await store.subscribe(token.ref, new_queue(b"1"))
        await changes.of(ChangeKind.ADDED, SMP, refs[0])
        await store.request_audit([ToAudit(refs[0], SMP, False), ToAudit(refs[1], SMP, True)])
        await changes.of(ChangeKind.AUDIT, SMP, *refs)
        await store.unsubscribe(refs[0])
        await changes.of(ChangeKind.REMOVED)


async def deleting_a_token_is_a_change_of_its_servers(bench: Bench) -> None:
    """By TDEL, and by TVFY of another registration: whoever holds them has to look."""
    store = await bench.open()
    one, two = await activate(store, 1), await activate(store, 2)
    await subscribe(store, one, b"1")
    await subscribe(store, two, b"2", server=OTHER_SMP)
    rival = new_token(2, key=b"another key")
    other = await register(store, rival)
    async with _changes(store) as changes:
        await store.delete_token(one.ref)
        await tend(bench, store)
        await changes.of(ChangeKind.REMOVED, SMP)
        assert await store.verify(other.ref, rival.code)
        await tend(bench, store)
        await changes.of(ChangeKind.REMOVED, OTHER_SMP)


async def audits_of_several_servers_are_apart(bench: Bench) -> None:
    """A change is of one server."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"1", b"2")
    await subscribe(store, token, b"3", server=OTHER_SMP)
    found_all, _ = await store.to_audit(None, 10, 0)
    assert len(found_all) == 3
    async with _changes(store) as changes:
        for server in (SMP, OTHER_SMP):
            mine = [a for a in found_all if a.server == server]
            await store.request_audit(mine)
            await changes.of(ChangeKind.AUDIT, server, *(a.ref for a in mine))
        await store.request_audit(found_all)
        first, second = await changes.next(), await changes.next()
        assert {first.server, second.server} == {SMP, OTHER_SMP}


async def what_is_loaded_is_wanted(bench: Bench) -> None:
    """Of refs that were told: with key, whether it is fresh; those that ended or are gone are left out."""
    store = await bench.open()
    token = await activate(store, 1)
    ids = await subscribe(store, token, b"1", b"2", b"3", b"4")
    refs = [(await found(store, i)).ref for i in ids]
    session = await acquire(store)
    await store.confirm(session, [Confirmed(refs[1], _ACTIVE)])
    await store.end(session, [b"3"], SubscriptionStatus.END)
    await store.unsubscribe(refs[3])
    loaded = {w.ref: w for w in await store.load(session, refs)}
    assert set(loaded) == set(refs[:2])
    assert [loaded[r].fresh for r in refs[:2]] == [True, False]
    assert loaded[refs[0]].notifier_id == b"1"
    assert loaded[refs[0]].notifier_key == new_queue(b"1").notifier_key
    assert await store.load(session, []) == []
    assert await take(store) == []
