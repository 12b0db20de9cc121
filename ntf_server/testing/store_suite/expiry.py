"""What is forgotten: registrations that nobody verified, or that are silent for long, and servers without queues."""

from ntf_server.store.contract import Store
from ntf_server.store.records import Confirmed, Replacement, ServiceCertificate, Token
from ntf_server.testing.store_suite.medium import (
    DAY,
    OTHER_SMP,
    SMP,
    Bench,
    Times,
    acquire,
    activate,
    as_found,
    dead,
    delivered,
    device,
    found,
    known,
    new_token,
    record,
    register,
    subscribe,
    take,
    take_one,
    tend,
)
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider, SubscriptionStatus

_MONTH = Times(silent_ttl=30 * 86_400)


async def _later(bench: Bench, store: Store, seconds: float) -> None:
    bench.clock.pass_(seconds)
    await tend(bench, store)


async def _has(store: Store, token: Token) -> bool:
    return await store.find_token(token.token_id) is not None


async def what_nobody_verified_goes_after_a_day(bench: Bench) -> None:
    """A day after the last TNEW or TRPL, whether or not the code was pushed; TNEW then makes another one."""
    store = await bench.open()
    first, pushed, renewed, replaced, refused = [await register(store, new_token(n)) for n in range(5)]
    claims = {claim.token: claim for claim in await take(store)}
    await record(store, delivered(claims[pushed.ref]), dead(claims[refused.ref]))
    await _later(bench, store, DAY - 60)
    assert (await register(store, new_token(2))).token_id == renewed.token_id
    assert await store.replace(replaced.ref, Replacement(device(30), b"c" * 32))
    assert await _has(store, first)
    await _later(bench, store, 120)
    kept = [await _has(store, t) for t in (first, pushed, renewed, replaced, refused)]
    assert kept == [False, False, True, True, False]
    assert (await register(store, new_token(0))).token_id != first.token_id
    await _later(bench, store, DAY)
    assert not await _has(store, renewed)
    assert not await _has(store, replaced)
    assert await take(store) == []


async def what_was_verified_once_stays(bench: Bench) -> None:
    """Also while its new device token is not."""
    store = await bench.open()
    active, replaced, revived = [await activate(store, n) for n in range(3)]
    await subscribe(store, replaced, b"queue")
    assert await store.replace(replaced.ref, Replacement(device(30), b"c" * 32))
    assert (await register(store, new_token(2))).token_id == revived.token_id
    await record(store, *[dead(c) for c in await take(store) if c.token == revived.ref])
    await register(store, new_token(2))
    store = await bench.reopen(store)
    await _later(bench, store, 3 * DAY)
    assert [await _has(store, t) for t in (active, replaced, revived)] == [True] * 3
    assert await store.subscription_count() == 1


async def who_is_silent_for_long_is_forgotten(bench: Bench) -> None:
    """ACTIVE, INVALID, or waiting for a code: with its subscriptions. One command in that time keeps it."""
    store = await bench.open(_MONTH)
    heard, silent, invalid, waiting = [await activate(store, n) for n in range(4)]
    for n, token in enumerate((heard, silent, invalid, waiting)):
        await subscribe(store, token, b"queue %d" % n)
    assert await store.replace(waiting.ref, Replacement(device(30), b"c" * 32))
    await record(store, delivered(await take_one(store)))
    await register(store, new_token(2))
    await record(store, dead(await take_one(store)))
    await _later(bench, store, 20 * DAY)
    store.seen(await known(store, heard))
    await tend(bench, store)
    await _later(bench, store, 9 * DAY)
    assert all([await _has(store, t) for t in (heard, silent, invalid, waiting)])
    await _later(bench, store, 2 * DAY)
    assert [await _has(store, t) for t in (heard, silent, invalid, waiting)] == [True, False, False, False]
    assert await store.subscription_count() == 1
    await _later(bench, store, 18 * DAY)
    assert await _has(store, heard)
    await _later(bench, store, 2 * DAY)
    assert not await _has(store, heard)


async def each_way_to_be_heard_counts(bench: Bench) -> None:
    """TNEW, TVFY and TRPL by themselves; `seen` for all others, however often it is called."""
    store = await bench.open(_MONTH)
    revived, verified, replaced, seen = [await activate(store, n) for n in range(4)]
    new = new_token(1)
    for day in range(40):
        if day % 20 == 10:
            await register(store, new_token(0))
            again = await register(store, new)
            claims = await take(store)
            [code] = [claim.code for claim in claims if claim.token == again.ref]
            await record(store, *map(delivered, claims))
            assert await store.verify(verified.ref, code)
            assert await store.replace(replaced.ref, Replacement(device(100 + day), b"c" * 32))
        for _ in range(3):
            store.seen(await known(store, seen))
        await _later(bench, store, DAY)
    assert [await _has(store, t) for t in (revived, verified, replaced, seen)] == [True] * 4
    store.seen(as_found(again))  # as it was long ago
    await store.delete_token(seen.ref)
    store.seen(seen)  # the command was under way
    await tend(bench, store)


async def it_is_heard_over_a_restart(bench: Bench) -> None:
    """When each sent its last command is kept."""
    store = await bench.open(_MONTH)
    heard, silent = await activate(store, 1), await activate(store, 2)
    await _later(bench, store, 20 * DAY)
    store.seen(await known(store, heard))
    await tend(bench, store)
    store = await bench.reopen(store)
    await _later(bench, store, 11 * DAY)
    assert await _has(store, heard)
    assert not await _has(store, silent)


async def many_are_forgotten_in_slices(bench: Bench) -> None:
    """All of them, with all that is theirs."""
    store = await bench.open(_MONTH)
    tokens = [await activate(store, n) for n in range(30)]
    for n, token in enumerate(tokens):
        await subscribe(store, token, *(b"%d %d" % (n, i) for i in range(40)))
    unverified = [await register(store, new_token(100 + n)) for n in range(1100)]
    await _later(bench, store, DAY + 60)
    assert not any([await _has(store, t) for t in unverified])
    await _later(bench, store, 30 * DAY)
    assert not any([await _has(store, t) for t in tokens])
    assert await store.subscription_count() == 0
    assert (await store.backlog(Provider.APNS)).tokens == 0


async def a_clock_that_is_years_ahead_forgets_nobody(bench: Bench) -> None:
    """Whether it is set while the relay runs, or while it does not."""
    for closed in (False, True):
        store = await bench.open()
        token = await activate(store, closed)
        if closed:
            bench.nodes.remove(store)
            await store.close()
        bench.clock.step(2 * 365 * DAY)
        if closed:
            store = await bench.open()
        await _later(bench, store, DAY)
        assert await _has(store, token)
        bench.nodes.remove(store)
        await store.close()


# --- servers


async def _make(store: Store, token: Token, server: ServerAddress, *, confirmed: bool) -> None:
    """A server that knows our service, and has no subscriptions any more."""
    assert await store.service_certificate(server, lambda: ServiceCertificate(b"first", b"key"))
    [subscription_id] = await subscribe(store, token, b"queue", server=server)
    session = await acquire(store, server)
    ref = (await found(store, subscription_id)).ref
    status = SubscriptionStatus.ACTIVE if confirmed else SubscriptionStatus.AUTH
    await store.confirm(session, [Confirmed(ref, status)])
    if confirmed:
        await store.prove(session, "192.0.2.0/24")
    await store.release(session)
    await store.unsubscribe(ref)


async def _kept(store: Store, server: ServerAddress) -> bool:
    """Whether it is known still; by the look it is, again."""
    certificate = await store.service_certificate(server, lambda: ServiceCertificate(b"another", b"key"))
    return certificate.chain == b"first"


async def a_server_that_never_confirmed_is_forgotten_at_once(bench: Bench) -> None:
    """When its last subscription is gone, and its session."""
    store = await bench.open()
    token = await activate(store, 1)
    await _make(store, token, SMP, confirmed=False)
    await _later(bench, store, 120)
    assert not await _kept(store, SMP)


async def a_proven_server_is_kept_for_a_week(bench: Bench) -> None:
    """Over a restart; a new subscription keeps it."""
    store = await bench.open()
    token = await activate(store, 1)
    for server in (SMP, OTHER_SMP):
        await _make(store, token, server, confirmed=True)
    await _later(bench, store, 6 * DAY)
    store = await bench.reopen(store)
    await subscribe(store, await known(store, token), b"another", server=OTHER_SMP)
    await _later(bench, store, 1.5 * DAY)
    assert not await _kept(store, SMP)
    assert await _kept(store, OTHER_SMP)


async def a_server_with_a_session_is_not_forgotten(bench: Bench) -> None:
    """The session may bring something yet."""
    store = await bench.open()
    token = await activate(store, 1)
    await _make(store, token, SMP, confirmed=False)
    session = await acquire(store, SMP)
    await _later(bench, store, 120)
    assert await _kept(store, SMP)
    await store.release(session)
    await _later(bench, store, 120)
    assert not await _kept(store, SMP)
