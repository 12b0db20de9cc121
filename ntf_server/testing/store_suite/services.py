"""Our service on an SMP server: what it has, what was released, and its certificate."""

import asyncio

from ntf_server.store.contract import Store
from ntf_server.store.records import Confirmed, Cursor, ServiceCertificate, ServiceState, Session, Token
from ntf_server.testing.store_suite.medium import (
    MANY,
    OTHER_SMP,
    SMP,
    Bench,
    acquire,
    activate,
    found,
    ids_hash,
    new_queue,
    pages,
    subscribe,
    tend,
)
from smp_bridge.ntf import SubscriptionStatus

_ACTIVE = SubscriptionStatus.ACTIVE


async def _associate(store: Store, session: Session, *ids: bytes) -> None:
    refs = [(await found(store, i)).ref for i in ids]
    await store.confirm(session, [Confirmed(ref, _ACTIVE, associated=True) for ref in refs])


async def _serving(bench: Bench, *names: bytes) -> tuple[Store, Token, Session, list[bytes]]:
    """A store, a token, a session with our service, and what the token has subscribed; the service has all of it."""
    store = await bench.open()
    token = await activate(store, 1)
    ids = await subscribe(store, token, *names)
    session = await acquire(store)
    await store.begin(session, b"service")
    await _associate(store, session, *ids)
    return store, token, session, ids


def _numbers(state: ServiceState) -> tuple[int, int, bytes]:
    return state.associated, state.released, state.ids_hash


async def associations_are_counted(bench: Bench) -> None:
    """How many, and the XOR of the MD5 of their notifier ids; they are no more in pages."""
    store = await bench.open()
    token = await activate(store, 1)
    ids = await subscribe(store, token, b"1", b"2", b"3")
    session = await acquire(store)
    state = await store.begin(session, b"service")
    assert (*_numbers(state), state.changed) == (0, 0, bytes(16), False)
    await _associate(store, session, ids[0], ids[1])
    await _associate(store, session, ids[0])  # again
    assert _numbers(await store.service_state(session)) == (2, 0, ids_hash([b"1", b"2"]))
    assert [w.notifier_id for w in await pages(store, session)] == [b"3"]
    assert (await found(store, ids[0])).associated
    assert not (await found(store, ids[2])).associated
    ref = (await found(store, ids[1])).ref
    await store.confirm(session, [Confirmed(ref, _ACTIVE)])  # that did not change
    assert (await store.service_state(session)).associated == 2
    await store.confirm(session, [Confirmed(ref, _ACTIVE, associated=False)])
    assert _numbers(await store.service_state(session)) == (1, 0, ids_hash([b"1"]))
    [loaded] = await store.load(session, [(await found(store, ids[0])).ref])
    assert loaded.associated


async def associations_outlive_sessions(bench: Bench) -> None:
    """Of the same service, over restarts; another service, or none, has none of them."""
    store, _, session, ids = await _serving(bench, b"1", b"2")
    store = await bench.reopen(store)
    session = await acquire(store)
    state = await store.begin(session, b"service")
    assert (*_numbers(state), state.changed) == (2, 0, ids_hash([b"1", b"2"]), False)
    assert await pages(store, session) == []
    session = await acquire(store)
    state = await store.begin(session, b"another service")
    assert (*_numbers(state), state.changed) == (0, 0, bytes(16), True)
    assert len(await pages(store, session)) == 2
    assert not (await found(store, ids[0])).associated
    await _associate(store, session, ids[0])
    session = await acquire(store)
    state = await store.begin(session, None)
    assert state.associated == 0
    assert len(await pages(store, session)) == 2


async def reassociating_begins_anew(bench: Bench) -> None:
    """All are in the pages again."""
    store, _, session, ids = await _serving(bench, b"1", b"2", b"3")
    state = await store.reassociate(session)
    assert state.associated == 0
    assert {w.notifier_id for w in await pages(store, session)} == {b"1", b"2", b"3"}
    await _associate(store, session, ids[1])
    assert (await store.service_state(session)).associated == 1


async def deleted_ones_are_released(bench: Bench) -> None:
    """The server counts them still: count and hash over both stay, however they were deleted."""
    store = await bench.open()
    one, two = await activate(store, 1), await activate(store, 2)
    ids = await subscribe(store, one, b"1", b"2", b"3")
    others = await subscribe(store, two, *(b"other %d" % n for n in range(MANY)))
    await subscribe(store, two, b"fresh")
    session = await acquire(store)
    await store.begin(session, b"service")
    await _associate(store, session, *ids, *others)
    before = await store.service_state(session)
    assert before.associated == MANY + 3
    await store.unsubscribe((await found(store, ids[0])).ref)
    state = await store.service_state(session)
    assert _numbers(state) == (MANY + 2, 1, before.ids_hash)
    await store.delete_token(two.ref)
    for _ in range(10):
        state = await store.service_state(session)
        assert (state.associated + state.released, state.ids_hash) == (MANY + 3, before.ids_hash)
        bench.clock.pass_(1)
        await store.tend()
    await tend(bench, store)
    assert _numbers(await store.service_state(session)) == (2, MANY + 1, before.ids_hash)


async def ended_ones_are_not_released(bench: Bench) -> None:
    """The server counts them no more; that goes for those that were deleted here before."""
    store, _, session, ids = await _serving(bench, b"1", b"2", b"3")
    await store.end(session, [b"1"], SubscriptionStatus.END)
    assert _numbers(await store.service_state(session)) == (2, 0, ids_hash([b"2", b"3"]))
    await store.unsubscribe((await found(store, ids[1])).ref)
    await store.end(session, [b"2"], SubscriptionStatus.DELETED)
    assert _numbers(await store.service_state(session)) == (1, 0, ids_hash([b"3"]))
    await store.unsubscribe((await found(store, ids[0])).ref)  # it ended before
    assert _numbers(await store.service_state(session)) == (1, 0, ids_hash([b"3"]))


async def an_ended_one_is_associated_anew(bench: Bench) -> None:
    """SNEW makes it wanted, an NSUB of the session makes it the service's."""
    store, token, session, [subscription_id] = await _serving(bench, b"1")
    await store.end(session, [b"1"], SubscriptionStatus.END)
    await store.subscribe(token.ref, new_queue(b"1"))
    assert not (await found(store, subscription_id)).associated
    assert len(await pages(store, session)) == 1
    await _associate(store, session, subscription_id)
    assert _numbers(await store.service_state(session)) == (1, 0, ids_hash([b"1"]))


async def refused_ones_are_not_associated(bench: Bench) -> None:
    """AUTH for one that the service had."""
    store, _, session, ids = await _serving(bench, b"1", b"2")
    ref = (await found(store, ids[0])).ref
    await store.confirm(session, [Confirmed(ref, SubscriptionStatus.AUTH, associated=False)])
    assert _numbers(await store.service_state(session)) == (1, 0, ids_hash([b"2"]))


async def released_ones_may_be_counted_anew(bench: Bench) -> None:
    """By who knows what the server has; a service that is another has released nothing."""
    store, _, session, ids = await _serving(bench, b"1", b"2", b"3")
    for n in (0, 1):
        await store.unsubscribe((await found(store, ids[n])).ref)
    assert (await store.service_state(session)).released == 2
    await store.set_released(session, 0)
    assert _numbers(await store.service_state(session)) == (1, 0, ids_hash([b"3"]))
    await store.unsubscribe((await found(store, ids[2])).ref)
    session = await acquire(store)
    assert (await store.begin(session, b"another")).released == 0


async def released_ones_are_known_by_their_hash(bench: Bench) -> None:
    """What is ours is not touched by what somebody says of them."""
    store, _, session, ids = await _serving(bench, b"1", b"2", b"3")
    await store.unsubscribe((await found(store, ids[0])).ref)
    assert (await store.service_state(session)).released_hash == ids_hash([b"1"])
    await store.set_released(session, 2, ids_hash([b"8", b"9"]))
    assert await store.service_state(session) == ServiceState(
        2, 2, ids_hash=ids_hash([b"2", b"3", b"8", b"9"]), released_hash=ids_hash([b"8", b"9"])
    )
    await store.end(session, [b"9"], SubscriptionStatus.DELETED)
    assert (await store.service_state(session)).released_hash == ids_hash([b"8"])


async def associated_ones_are_paged_apart(bench: Bench) -> None:
    """Those of the session's service, and no others."""
    store, token, session, ids = await _serving(bench, b"1", b"2", b"3")
    await subscribe(store, token, b"4")
    await store.unsubscribe((await found(store, ids[1])).ref)
    seen: list[bytes] = []
    cursor: Cursor | None = None
    while True:
        page = await store.page(session, cursor, 1, associated=True)
        seen += [w.notifier_id for w in page.wanted]
        for w in page.wanted:
            assert w.associated
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(seen) == [b"1", b"3"]
    assert [w.notifier_id for w in await pages(store, session)] == [b"4"]
    await store.reassociate(session)
    assert not (await store.page(session, None, 9, associated=True)).wanted


async def services_of_two_servers_are_apart(bench: Bench) -> None:
    """A queue of the same name on another server is another."""
    store = await bench.open()
    token = await activate(store, 1)
    ids = await subscribe(store, token, b"1")
    await subscribe(store, token, b"1", server=OTHER_SMP)
    session, other = await acquire(store), await acquire(store, OTHER_SMP)
    await store.begin(session, b"service")
    await store.begin(other, b"service")
    await _associate(store, session, *ids)
    assert _numbers(await store.service_state(other)) == (0, 0, bytes(16))
    assert len(await pages(store, other)) == 1


async def the_first_certificate_stays(bench: Bench) -> None:
    """One of each server, over restarts; however many ask for it together."""
    store = await bench.open()
    made: list[ServiceCertificate] = []

    def make() -> ServiceCertificate:
        made.append(ServiceCertificate(b"chain %d" % len(made), b"key %d" % len(made)))
        return made[-1]

    kept = await asyncio.gather(*(store.service_certificate(SMP, make) for _ in range(5)))
    assert set(kept) == {kept[0]}
    assert kept[0] in made
    other = await store.service_certificate(OTHER_SMP, make)
    assert other != kept[0]
    store = await bench.reopen(store)
    before = len(made)
    assert await store.service_certificate(SMP, make) == kept[0]
    assert await store.service_certificate(OTHER_SMP, make) == other
    assert len(made) == before
