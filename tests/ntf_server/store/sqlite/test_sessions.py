"""SMP servers and what is subscribed on them."""

import asyncio
import hashlib
from collections.abc import Sequence
from functools import reduce

import pytest
from store_world import (
    OTHER_SMP,
    SMP,
    FakeClock,
    acquire,
    activate,
    arrived,
    new_subscription,
    notify,
    plan,
    status,
    subscribe,
)

from ntf_server.store.contract import FencedError
from ntf_server.store.records import (
    NO_LIMITS,
    WANTED,
    Change,
    ChangeKind,
    Confirmed,
    ServiceCertificate,
    ServiceState,
    Session,
    Wanted,
)
from ntf_server.store.sqlite import sessions as module
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.ntf import SubscriptionStatus

ACTIVE, END, AUTH = SubscriptionStatus.ACTIVE, SubscriptionStatus.END, SubscriptionStatus.AUTH


async def queues(store: SqliteStore, count: int) -> list[bytes]:
    token = await activate(store)
    names = [b"%02d" % i for i in range(count)]
    await subscribe(store, token, *names)
    return names


async def all_pages(store: SqliteStore, session: Session, limit: int = 3) -> list[Wanted]:
    out: list[Wanted] = []
    cursor = None
    while True:
        page = await store.page(session, cursor, limit)
        out += page.wanted
        cursor = page.cursor
        if cursor is None:
            return out


async def associate(store: SqliteStore, session: Session) -> None:
    wanted = await all_pages(store, session)
    await store.confirm(session, [Confirmed(w.ref, ACTIVE, associated=True) for w in wanted])


def ids_hash(names: Sequence[bytes]) -> bytes:
    digests = [int.from_bytes(hashlib.md5(name, usedforsecurity=False).digest()) for name in names]
    return reduce(lambda a, b: a ^ b, digests, 0).to_bytes(16)


# --- fences


async def test_of_two_sessions_the_later_one_counts(store: SqliteStore) -> None:
    names = await queues(store, 2)
    old = await acquire(store)
    late = arrived(store, old, names)
    new = await acquire(store)
    assert new.fence > old.fence
    assert await store.renew([old, new]) == [old]
    for refused in (
        store.page(old, None, 10),
        store.load(old, [1]),
        store.begin(old, None),
        store.service_state(old),
        store.reassociate(old),
        store.mark_lost(old, None, 10, 0.0),
        store.set_released(old, 1),
        store.confirm(old, []),
        store.end(old, names, END),
    ):
        with pytest.raises(FencedError):
            await refused
    assert len((await store.page(new, None, 10)).wanted) == 2
    assert (await store.notify(old, late, {})).unknown == 0  # what was read of the old one is stored


async def test_after_release_nobody_speaks_for_it(store: SqliteStore) -> None:
    session = await acquire(store)
    await store.release(session)
    await store.release(session)
    assert await store.renew([session]) == [session]
    with pytest.raises(FencedError):
        await store.end(session, [b"x"], END)
    assert (await acquire(store)).fence > session.fence


async def test_a_release_of_the_old_session_leaves_the_new_one(store: SqliteStore) -> None:
    old, new = await acquire(store), await acquire(store)
    await store.release(old)
    assert await store.renew([new]) == []


# --- what is wanted


async def test_servers_are_those_with_living_subscriptions(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a")
    await subscribe(store, token, b"b", server=OTHER_SMP)
    assert set(await store.servers()) == {SMP, OTHER_SMP}
    session = await acquire(store)
    await store.end(session, [b"a"], END)
    assert await store.servers() == [OTHER_SMP]
    assert not await store.is_wanted(SMP)
    assert await store.is_wanted(OTHER_SMP)


@pytest.mark.parametrize("state", SubscriptionStatus)
async def test_only_new_pending_and_active_ones_are_wanted(store: SqliteStore, state: SubscriptionStatus) -> None:
    await queues(store, 1)
    session = await acquire(store)
    [wanted] = await all_pages(store, session)
    await store.confirm(session, [Confirmed(wanted.ref, state)])
    assert len(await all_pages(store, session)) == (state in WANTED)
    assert len(await store.load(session, [wanted.ref])) == (state in WANTED)
    assert await store.is_wanted(SMP) == (state in WANTED)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
async def test_pages_go_through_all_that_is_wanted(store: SqliteStore, limit: int) -> None:
    names = await queues(store, 7)
    session = await acquire(store)
    pages = await all_pages(store, session, limit)
    assert [w.notifier_id for w in pages] == names
    assert {(w.notifier_key, w.fresh, w.associated) for w in pages} == {(b"notifier key", True, False)}


async def test_without_a_service_pages_hold_what_an_earlier_one_had(store: SqliteStore) -> None:
    names = await queues(store, 4)
    session = await acquire(store)
    await store.begin(session, b"service")
    await associate(store, session)
    assert await all_pages(store, session) == []
    session = await acquire(store)
    assert [w.notifier_id for w in await all_pages(store, session)] == names
    assert (await store.begin(session, b"service")).associated == 4
    assert await all_pages(store, session) == []


async def test_what_is_associated_while_pages_are_read_is_not_read_again(store: SqliteStore) -> None:
    names = await queues(store, 9)
    session = await acquire(store)
    await store.begin(session, b"service")
    seen: list[bytes] = []
    cursor = None
    while True:
        page = await store.page(session, cursor, 2)
        seen += [w.notifier_id for w in page.wanted]
        await store.confirm(session, [Confirmed(w.ref, ACTIVE, associated=True) for w in page.wanted])
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == names


async def test_cursors_tell_whether_a_page_is_past_a_subscription(store: SqliteStore) -> None:
    token = await activate(store)
    added = await subscribe(store, token, *(b"%d" % i for i in range(5)))
    session = await acquire(store)
    cursors = []
    for each in added:
        found = await store.find_subscription(each.subscription_id)
        assert found is not None
        cursors.append(found[1].cursor)
    page = await store.page(session, None, 3)
    assert [cursor <= page.cursor for cursor in cursors] == [True] * 3 + [False] * 2


async def test_the_wanted_are_loaded_in_the_order_asked_for(store: SqliteStore) -> None:
    await queues(store, 4)
    session = await acquire(store)
    refs = [w.ref for w in await all_pages(store, session)]
    other = await acquire(store, OTHER_SMP)
    assert [w.ref for w in await store.load(session, [refs[2], 10**6, refs[0]])] == [refs[2], refs[0]]
    assert await store.load(other, refs) == []  # another server's


async def test_pages_are_found_by_the_servers_index(store: SqliteStore) -> None:
    query = f"SELECT {module._COLUMNS} FROM subscriptions WHERE server = 1 AND {module.LIVE}"
    for tail in ("AND association = 0 AND ref > 5 ORDER BY ref", "AND association > 0 ORDER BY association, ref"):
        details = await plan(store, f"{query} {tail} LIMIT 9")
        assert "INDEX subscriptions_server" in details[0], details
        assert not any("TEMP B-TREE" in d for d in details), details


# --- answers


async def test_a_confirmation_sets_what_it_says(store: SqliteStore) -> None:
    token = await activate(store)
    first, second = await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    a, b = await all_pages(store, session)
    await store.confirm(session, [Confirmed(a.ref, ACTIVE), Confirmed(b.ref, AUTH, "AUTH")])
    assert await status(store, first) is ACTIVE
    found = await store.find_subscription(second.subscription_id)
    assert found is not None
    assert (found[1].status, found[1].error) == (AUTH, "AUTH")
    [wanted] = await all_pages(store, session)
    assert not wanted.fresh


async def test_ends_tell_how_many_were_known(store: SqliteStore) -> None:
    await queues(store, 3)
    session, other = await acquire(store), await acquire(store, OTHER_SMP)
    assert await store.end(session, [b"00", b"02", b"unknown"], END) == 2
    assert await store.end(other, [b"01"], END) == 0
    assert [w.notifier_id for w in await all_pages(store, session)] == [b"01"]


# --- services


async def test_a_service_counts_what_it_has_and_hashes_it(store: SqliteStore) -> None:
    names = await queues(store, 6)
    session = await acquire(store)
    assert await store.service_state(session) == ServiceState(0, 0)
    assert await store.begin(session, b"service") == ServiceState(0, 0)
    await associate(store, session)
    assert await store.service_state(session) == ServiceState(6, 0, ids_hash=ids_hash(names))
    await associate(store, session)  # once more changes nothing
    refs = [w.ref for w in await store.load(session, range(1, 20))]
    await store.confirm(session, [Confirmed(ref, ACTIVE) for ref in refs])
    await store.confirm(session, [Confirmed(ref, ACTIVE, associated=True) for ref in refs])
    assert await store.service_state(session) == ServiceState(6, 0, ids_hash=ids_hash(names))
    assert await store.end(session, names[:1], END) == 1
    await store.confirm(session, [Confirmed(refs[1], AUTH), Confirmed(refs[2], ACTIVE, associated=False)])
    assert await store.service_state(session) == ServiceState(3, 0, ids_hash=ids_hash(names[3:]))


async def test_what_is_deleted_is_released_until_the_server_ends_it(store: SqliteStore) -> None:
    names = await queues(store, 4)
    session = await acquire(store)
    await store.begin(session, b"service")
    await associate(store, session)
    refs = [w.ref for w in await store.load(session, range(1, 20))]
    await store.unsubscribe(refs[0])
    assert await store.service_state(session) == ServiceState(3, 1, False, ids_hash(names), ids_hash(names[:1]))
    assert await store.end(session, [names[0]], END) == 0
    assert await store.service_state(session) == ServiceState(3, 0, ids_hash=ids_hash(names[1:]))
    assert await store.end(session, [names[0]], END) == 0  # nothing is left to be released
    assert await store.service_state(session) == ServiceState(3, 0, ids_hash=ids_hash(names[1:]))


async def test_a_deleted_token_releases_all_that_was_its(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    await store.begin(session, b"service")
    await associate(store, session)
    await store.delete_token(token.ref)
    assert await store.service_state(session) == ServiceState(0, 2, False, *[ids_hash([b"a", b"b"])] * 2)


async def test_another_service_has_nothing(store: SqliteStore) -> None:
    names = await queues(store, 2)
    session = await acquire(store)
    assert not (await store.begin(session, b"one")).changed
    await associate(store, session)
    session = await acquire(store)
    assert await store.begin(session, b"other") == ServiceState(0, 0, changed=True)
    assert [w.notifier_id for w in await all_pages(store, session)] == names
    session = await acquire(store)
    assert (await store.begin(session, None)).changed


async def test_after_reassociation_no_association_holds_but_the_released_are_counted(store: SqliteStore) -> None:
    names = await queues(store, 3)
    session = await acquire(store)
    await store.begin(session, b"service")
    await associate(store, session)
    await store.unsubscribe((await store.load(session, range(1, 20)))[0].ref)
    assert await store.reassociate(session) == ServiceState(0, 1, False, *[ids_hash(names[:1])] * 2)
    assert [w.notifier_id for w in await all_pages(store, session)] == names[1:]
    await associate(store, session)
    assert await store.service_state(session) == ServiceState(2, 1, False, ids_hash(names), ids_hash(names[:1]))


async def test_released_is_what_was_set(store: SqliteStore) -> None:
    await queues(store, 2)
    session = await acquire(store)
    await store.begin(session, b"service")
    await associate(store, session)
    await store.set_released(session, 5)
    state = await store.service_state(session)
    assert (state.associated, state.released) == (2, 5)
    await store.set_released(session, 0)
    state = await store.service_state(session)
    assert (state.associated, state.released) == (2, 0)


async def test_without_a_service_nothing_is_associated(store: SqliteStore) -> None:
    await queues(store, 1)
    session = await acquire(store)
    await associate(store, session)
    assert await store.service_state(session) == ServiceState(0, 0)
    assert len(await all_pages(store, session)) == 1


async def test_a_service_shows_the_first_certificate_for_ever(store: SqliteStore) -> None:
    made: list[int] = []

    def make() -> ServiceCertificate:
        made.append(1)
        return ServiceCertificate(b"chain %d" % len(made), b"key %d" % len(made))

    results = await asyncio.gather(*(store.service_certificate(SMP, make) for _ in range(5)))
    assert len(set(results)) == 1
    assert await store.service_certificate(SMP, make) == results[0]
    assert (await store.service_certificate(OTHER_SMP, make)) != results[0]


async def test_a_damaged_certificate_is_made_anew(store: SqliteStore) -> None:
    await store.service_certificate(SMP, lambda: ServiceCertificate(b"chain", b"key"))
    await store._database.run(lambda c: c.execute("UPDATE servers SET certificate_key = x'00'") and None)
    new = ServiceCertificate(b"new chain", b"new key")
    assert await store.service_certificate(SMP, lambda: new) == new
    assert await store.service_certificate(SMP, lambda: ServiceCertificate(b"", b"")) == new


# --- the audit and changes


async def test_silent_are_those_of_which_nothing_was_heard(store: SqliteStore, clock: FakeClock) -> None:
    await queues(store, 2)
    session = await acquire(store)
    clock.pass_(3600)
    await notify(store, session, b"01")
    clock.pass_(60)
    found, cursor = await store.to_audit(None, 10, 1800)
    assert [(a.server, a.silent) for a in found] == [(SMP, True), (SMP, False)]
    assert cursor is None


@pytest.mark.parametrize("limit", [1, 2, 5, 6])
async def test_the_audit_goes_through_what_is_wanted(store: SqliteStore, limit: int) -> None:
    await queues(store, 5)
    cursor, seen = None, list[object]()
    while True:
        found, cursor = await store.to_audit(cursor, limit, 10)
        seen += [a.ref for a in found]
        if cursor is None:
            break
    assert seen == [1, 2, 3, 4, 5]
    await store.request_audit(found)


async def test_changes_are_told_once_for_each_server_and_kind(store: SqliteStore) -> None:
    token = await activate(store)
    for i in range(3):
        await store.subscribe(token.ref, new_subscription(b"%d" % i), NO_LIMITS)
    await subscribe(store, token, b"x", server=OTHER_SMP)
    stream = store.changes()
    assert [await anext(stream) for _ in range(2)] == [
        Change(ChangeKind.ADDED, SMP, (1, 2, 3)),
        Change(ChangeKind.ADDED, OTHER_SMP, (4,)),
    ]
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    found, _ = await store.to_audit(None, 2, 10)
    await store.request_audit(found)
    assert await waiting == Change(ChangeKind.AUDIT, SMP, (1, 2))
