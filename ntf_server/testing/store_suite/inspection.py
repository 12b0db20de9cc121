"""What operators look at."""

from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from ntf_server.store.contract import DamagedRecordError, Store
from ntf_server.store.inspection import DAMAGED, Registered
from ntf_server.store.records import Confirmed
from ntf_server.testing.store_suite.medium import (
    OTHER_SMP,
    SMP,
    Bench,
    acquire,
    activate,
    dead,
    delivered,
    device,
    drain,
    new_token,
    notify,
    pages,
    record,
    register,
    subscribe,
    take_cool,
    take_one,
)
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import InvalidReason, Provider, SubscriptionStatus, TokenStatus

T = TypeVar("T")

_MOST = 1000  # slices: some may be empty


async def _slices(ask: Callable[[str | None], Awaitable[tuple[T, str | None]]]) -> AsyncIterator[T]:
    after = None
    for _ in range(_MOST):
        some, after = await ask(after)
        yield some
        if after is None:
            return
    raise AssertionError("slices do not end")


async def _all(store: Store, limit: int, fingerprint: str = "") -> list[Registered]:
    found: list[Registered] = []
    async for some in _slices(lambda after: store.inspection.tokens(after, limit, fingerprint=fingerprint)):
        assert len(some) <= limit
        found += some
    return found


async def _counted(store: Store, limit: int) -> dict[ServerAddress, tuple[Tally[str], int]]:
    found: dict[ServerAddress, tuple[Tally[str], int]] = {}
    async for some in _slices(lambda after: store.inspection.subscriptions(after, limit)):
        for one in some:
            statuses, associated = found.setdefault(one.server, (Tally(), 0))
            statuses.update(one.statuses)
            found[one.server] = statuses, associated + one.associated
    return {server: counts for server, counts in found.items() if counts[0]}


async def registrations_are_listed_each_once(bench: Bench) -> None:
    """In slices of any size; with what came of their last push, and without those that are deleted."""
    store = await bench.open()
    assert await _all(store, 3) == []
    invalid = await register(store, new_token(1))
    await record(store, dead(await take_one(store)))
    active = await activate(store, 2, Provider.FCM)
    await subscribe(store, active, b"one", b"two")
    for n in range(3, 7):
        await register(store, new_token(n, Provider.FCM))
    gone = await activate(store, 7, Provider.FCM)
    await store.delete_token(gone.ref)
    for limit in (1, 2, 5, 6, 100):
        found = {r.token_id: r for r in await _all(store, limit)}
        assert len(found) == len(await _all(store, limit)) == 6, limit
    one = found[invalid.token_id]
    assert (one.provider, one.status, one.reason) == (Provider.APNS, TokenStatus.INVALID, InvalidReason.UNREGISTERED)
    assert one.last_push == await store.last_push(invalid.ref) and one.last_push is not None
    other = found[active.token_id]
    assert (other.ref, other.status, other.reason, other.subscriptions) == (active.ref, TokenStatus.ACTIVE, None, 2)
    assert (other.active_at, other.registered_at, other.period) == (int(bench.clock.wall()),) * 2 + (0,)
    assert other.last_push is None
    assert other.fingerprint == store.fingerprint(device(2, Provider.FCM))


async def a_device_is_found_by_its_fingerprint(bench: Bench) -> None:
    """With all its registrations, in slices of any size."""
    store = await bench.open()
    wanted = {(await register(store, new_token(1, key=key * 44))).token_id for key in (b"a", b"b")}
    for n in range(2, 7):
        await register(store, new_token(n))
    fingerprint = store.fingerprint(device(1))
    for limit in (1, 2, 100):
        assert {r.token_id for r in await _all(store, limit, fingerprint)} == wanted
    assert await _all(store, 2, "0" * 12) == []


async def times_are_told_by_the_clock_as_it_is(bench: Bench) -> None:
    """Also after it was set, as far as that is known of them."""
    store = await bench.open()
    token = await register(store, new_token(1))
    await record(store, delivered(await take_one(store)))
    bench.clock.pass_(3600)
    [found] = await _all(store, 5)
    now = int(bench.clock.wall())
    assert (now - found.registered_at, now - found.active_at) == (3600, 3600)
    assert found.last_push == await store.last_push(token.ref)


async def subscriptions_are_counted_by_status(bench: Bench) -> None:
    """Of a registration; and of each server, in slices of any size, with those that our service has."""
    store = await bench.open()
    token, other = await activate(store, 1), await activate(store, 2)
    await subscribe(store, token, *(b"queue %d" % n for n in range(7)))
    await subscribe(store, other, b"other queue")
    await subscribe(store, token, b"elsewhere", server=OTHER_SMP)
    session = await acquire(store)
    await store.begin(session, b"a service's id")
    wanted = await pages(store, session)
    active, refused = SubscriptionStatus.ACTIVE, SubscriptionStatus.AUTH
    answers = [Confirmed(w.ref, active, associated=w.notifier_id < b"queue 3") for w in wanted]
    await store.confirm(session, answers)
    by_name = {w.notifier_id: w.ref for w in wanted}
    await store.confirm(session, [Confirmed(by_name[b"queue 6"], refused, "AUTH")])
    await store.end(session, [b"queue 5"], SubscriptionStatus.END)
    assert await store.inspection.statuses(token.ref) == {"ACTIVE": 5, "AUTH": 1, "END": 1, "NEW": 1}
    assert await store.inspection.statuses(other.ref) == {"ACTIVE": 1}
    for limit in (1, 2, 4, 100):
        assert await _counted(store, limit) == {
            SMP: (Tally(ACTIVE=6, AUTH=1, END=1), 4),
            OTHER_SMP: (Tally(NEW=1), 0),
        }, limit


async def queues_are_counted_by_their_newest_notification(bench: Bench) -> None:
    """Whether it was pushed or not, in slices of any size; by the clock as it is."""
    store = await bench.open()

    async def heard(limit: int) -> list[int]:
        counts = [0, 0]
        async for some in _slices(lambda after: store.inspection.heard(after, limit, (60, 3600))):
            counts = [a + b for a, b in zip(counts, some, strict=True)]
        return counts

    assert await heard(5) == [0, 0]
    token, other = await activate(store, 1), await activate(store, 2)
    await subscribe(store, token, *(b"queue %d" % n for n in range(5)))
    await subscribe(store, other, b"other")
    session = await acquire(store)
    await notify(store, session, b"queue 0", b"queue 1", b"other")
    await drain(bench, store)
    bench.clock.pass_(100)
    await notify(store, session, b"queue 1", b"queue 2")
    for limit in (1, 2, 5, 100):
        assert await heard(limit) == [2, 4], limit
    bench.clock.pass_(3500)
    assert await heard(2) == [0, 2]
    await store.delete_token(token.ref)
    assert await heard(5) == [0, 0]
    await notify(store, session, b"other")
    assert await heard(5) == [1, 1]


async def what_cannot_be_read_is_told_apart(bench: Bench) -> None:
    """Once it was seen to be so, and set aside."""
    store = await bench.open()
    token, other = await register(store, new_token(1)), await activate(store, 2)
    [subscription] = await subscribe(store, other, b"one")
    await bench.medium.damage_token(store, token.token_id)
    await bench.medium.damage_subscription(store, subscription)
    assert await take_cool(bench, store) == []
    assert await pages(store, await acquire(store)) == []
    with suppress(DamagedRecordError):
        await store.find_token(token.token_id)
    assert {r.status for r in await _all(store, 5) if r.token_id == token.token_id} == {DAMAGED}
    assert await store.inspection.statuses(other.ref) == {DAMAGED: 1}
    assert await _counted(store, 5) == {SMP: (Tally(damaged=1), 0)}
