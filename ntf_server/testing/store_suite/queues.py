"""Subscriptions: SNEW, SDEL, and their limits."""

import asyncio

from ntf_server.store.records import Added, Confirmed, LimitReached, Limits, NewSubscription, ServiceCertificate
from ntf_server.testing.store_suite.medium import (
    ENDED,
    OTHER_SMP,
    SMP,
    Bench,
    acquire,
    activate,
    drain,
    found,
    known,
    new_queue,
    notify,
    pages,
    subscribe,
    take,
    tend,
)
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider, SubscriptionStatus

_REFUSED = (SubscriptionStatus.AUTH, SubscriptionStatus.ERR, SubscriptionStatus.SERVICE, SubscriptionStatus.INACTIVE)


async def a_queue_is_subscribed(bench: Bench) -> None:
    """NEW, not associated, its token's; over a restart."""
    store = await bench.open()
    token = await activate(store, 1)
    [subscription_id] = await subscribe(store, token, b"queue")
    for _ in range(2):
        pair = await store.find_subscription(subscription_id)
        assert pair is not None
        assert pair[0].token_id == token.token_id
        new = pair[1]
        assert (new.subscription_id, new.server, new.notifier_id) == (subscription_id, SMP, b"queue")
        assert (new.status, new.error, new.associated) == (SubscriptionStatus.NEW, "", False)
        store = await bench.reopen(store)


async def the_same_queue_is_found_again(bench: Bench) -> None:
    """With its first id, if token and key are the same."""
    store = await bench.open()
    token, stranger = await activate(store, 1), await activate(store, 2)
    [first] = await subscribe(store, token, b"queue")
    assert await store.subscribe(token.ref, new_queue(b"queue")) == Added(first, created=False)
    quick = new_queue(b"queue").notifier_key + b", and its public half"
    longer = NewSubscription(bytes(24), SMP, b"queue", quick)
    assert await store.subscribe(token.ref, longer) == Added(first, created=False)
    other_key = NewSubscription(bytes(24), SMP, b"queue", b"another key, of the same owner")
    assert await store.subscribe(token.ref, other_key) is None
    assert await store.subscribe(stranger.ref, new_queue(b"queue")) is None
    await subscribe(store, stranger, b"queue", server=OTHER_SMP)
    assert await store.subscription_count() == 2


def _spellings(key_hash: bytes) -> list[ServerAddress]:
    """Of one server."""
    host, other = "smp.example.org", "b.example.org"
    hosts = [(host, other), (other, host), ("SMP.Example.ORG", other), (host + ".", other), (host, other, host)]
    return [ServerAddress("smp", h, port, key_hash) for h in hosts for port in ("", "5223", "05223")]


async def all_spellings_of_a_server_are_one(bench: Bench) -> None:
    """One queue, whoever asks for it, one server and one session."""
    store = await bench.open()
    token, stranger = await activate(store, 1), await activate(store, 2)
    first, *others = _spellings(b"k" * 32)
    [subscription_id] = await subscribe(store, token, b"queue", server=first)
    for server in others:
        assert await store.subscribe(token.ref, new_queue(b"queue", server)) == Added(subscription_id, created=False)
        assert await store.subscribe(stranger.ref, new_queue(b"queue", server)) is None
        assert await store.is_wanted(server)
        await subscribe(store, token, str(server).encode(), server=server)
    assert len(await store.servers()) == 1
    assert await store.subscription_count() == len(others) + 1
    session = await acquire(store, others[0])
    assert len(await pages(store, session)) == len(others) + 1
    newer = await acquire(store, others[1])
    assert await store.renew([session, newer]) == [session]
    certificates = [
        await store.service_certificate(server, lambda n=n: ServiceCertificate(b"%d" % n, b"key"))  # type: ignore[misc]
        for n, server in enumerate((first, *others))
    ]
    assert {c.chain for c in certificates} == {b"0"}


async def what_makes_another_server_makes_another_queue(bench: Bench) -> None:
    """Key hash, port, and the set of hosts."""
    store = await bench.open()
    token = await activate(store, 1)
    servers = [
        ServerAddress("smp", ("a.example.org",), "", b"k" * 32),
        ServerAddress("smp", ("a.example.org",), "", b"l" * 32),
        ServerAddress("smp", ("a.example.org",), "5224", b"k" * 32),
        ServerAddress("smp", ("a.example.org", "b.example.org"), "", b"k" * 32),
        ServerAddress("smp", ("b.example.org",), "", b"k" * 32),
    ]
    for server in servers:
        await subscribe(store, token, b"queue", server=server)
    assert set(await store.servers()) == set(servers)


async def a_preset_server_is_one_with_and_without_its_onion_host(bench: Bench) -> None:
    """Apps name it either way (wire.md, section 6)."""
    store = await bench.open()
    token = await activate(store, 1)
    host, onion = "smp8.simplex.im", "beccx4yfxxbvyhqypaavemqurytl6hozr47wfc7uuecacjqdvwpw2xid.onion"
    [subscription_id] = await subscribe(store, token, b"queue", server=ServerAddress("smp", (host,), "", b"k" * 32))
    for hosts in ((host, onion), (onion, host), (onion,)):
        new = new_queue(b"queue", ServerAddress("smp", hosts, "", b"k" * 32))
        assert await store.subscribe(token.ref, new) == Added(subscription_id, created=False)
    assert set((await store.servers())[0].reachable) == {host, onion}


async def a_push_names_the_server_as_the_device_did(bench: Bench) -> None:
    """Apps look for the queue by that text; the newest SNEW of it counts."""
    store = await bench.open()
    spellings = _spellings(b"k" * 32)
    tokens = [await activate(store, n) for n in range(len(spellings))]
    for token, server in zip(tokens, spellings, strict=True):
        await subscribe(store, token, str(server).encode(), server=server)
    session = await acquire(store, spellings[0])
    for turn in range(2):
        await notify(store, session, *(str(server).encode() for server in spellings))
        named = {e.notifier_id: str(e.server) for c in await drain(bench, store) for e in c.entries}
        assert named == {str(s).encode(): str(spellings[i - turn]) for i, s in enumerate(spellings)}
        for i, token in enumerate(tokens):
            again = new_queue(str(spellings[i]).encode(), spellings[i - 1])
            assert isinstance(await store.subscribe(token.ref, again), Added)
        store = await bench.reopen(store)
        tokens = [await known(store, token) for token in tokens]
        session = await acquire(store, spellings[1])


async def an_ended_subscription_is_wanted_again(bench: Bench) -> None:
    """After any of the statuses that end one."""
    store = await bench.open()
    token = await activate(store, 1)
    session = await acquire(store)
    for status in (*ENDED, *_REFUSED):
        name = status.value.encode()
        [subscription_id] = await subscribe(store, token, name)
        if status in ENDED:
            assert await store.end(session, [name], status) == 1
        else:
            await store.confirm(session, [Confirmed((await found(store, subscription_id)).ref, status, "refused")])
        assert (await found(store, subscription_id)).status is status
        assert name not in {w.notifier_id for w in await pages(store, session)}
        assert await store.subscribe(token.ref, new_queue(name)) == Added(subscription_id, created=False)
        revived = await found(store, subscription_id)
        assert (revived.status, revived.error, revived.associated) == (SubscriptionStatus.NEW, "", False)
        assert name in {w.notifier_id for w in await pages(store, session)}


async def an_active_subscription_stays_so(bench: Bench) -> None:
    """SNEW of it changes nothing."""
    store = await bench.open()
    token = await activate(store, 1)
    [subscription_id] = await subscribe(store, token, b"queue")
    session = await acquire(store)
    before = await found(store, subscription_id)
    await store.confirm(session, [Confirmed(before.ref, SubscriptionStatus.ACTIVE)])
    assert await store.subscribe(token.ref, new_queue(b"queue")) == Added(subscription_id, created=False)
    assert (await found(store, subscription_id)).status is SubscriptionStatus.ACTIVE


async def a_deleted_subscription_is_gone(bench: Bench) -> None:
    """With its notification; its queue is free."""
    store = await bench.open()
    token, other = await activate(store, 1), await activate(store, 2)
    [subscription_id] = await subscribe(store, token, b"queue")
    session = await acquire(store)
    await notify(store, session, b"queue")
    ref = (await found(store, subscription_id)).ref
    await store.unsubscribe(ref)
    await store.unsubscribe(ref)  # again
    assert await store.find_subscription(subscription_id) is None
    assert await take(store) == []
    assert (await store.backlog(Provider.APNS)).tokens == 0
    assert not await store.is_wanted(SMP)
    assert await store.subscription_count() == 0
    await subscribe(store, other, b"queue")
    assert await take(store) == []


async def refs_are_never_used_again(bench: Bench) -> None:
    """An answer to something deleted may still be under way."""
    store = await bench.open()
    token = await activate(store, 1)
    [first] = await subscribe(store, token, b"first")
    ref = (await found(store, first)).ref
    await store.unsubscribe(ref)
    await tend(bench, store)
    store = await bench.reopen(store)
    token = await activate(store, 2)
    [second] = await subscribe(store, token, b"second")
    assert (await found(store, second)).ref != ref


async def limits_hold(bench: Bench) -> None:
    """Of a token and of a server; what is known already is no new one, what is deleted makes room."""
    store = await bench.open()
    token, other = await activate(store, 1), await activate(store, 2)
    limits = Limits(per_token=2, per_server=3)
    first = await store.subscribe(token.ref, new_queue(b"1"), limits)
    assert isinstance(first, Added)
    assert isinstance(await store.subscribe(token.ref, new_queue(b"2"), limits), Added)
    assert await store.subscribe(token.ref, new_queue(b"3"), limits) is LimitReached.TOKEN
    assert await store.subscribe(token.ref, new_queue(b"1"), limits) == Added(first.subscription_id, created=False)
    assert isinstance(await store.subscribe(other.ref, new_queue(b"4"), limits), Added)
    assert await store.subscribe(other.ref, new_queue(b"5"), limits) is LimitReached.SERVER
    assert isinstance(await store.subscribe(other.ref, new_queue(b"5", OTHER_SMP), limits), Added)
    await store.unsubscribe((await found(store, first.subscription_id)).ref)
    assert isinstance(await store.subscribe(token.ref, new_queue(b"3"), limits), Added)
    assert await store.subscribe(token.ref, new_queue(b"6"), limits) is LimitReached.TOKEN


async def deleting_a_token_makes_room(bench: Bench) -> None:
    """On its servers, at the latest when upkeep has cleared it."""
    store = await bench.open()
    token, other = await activate(store, 1), await activate(store, 2)
    await subscribe(store, token, *(b"%d" % n for n in range(10)))
    await store.delete_token(token.ref)
    await tend(bench, store)
    assert isinstance(await store.subscribe(other.ref, new_queue(b"x"), Limits(per_server=1)), Added)
    assert await store.subscribe(other.ref, new_queue(b"y"), Limits(per_server=1)) is LimitReached.SERVER


async def limits_hold_for_those_that_come_together(bench: Bench) -> None:
    """No more than the limit, and no more than those under way less."""
    store = await bench.open()
    token = await activate(store, 1)
    limits = Limits(per_token=5)
    results = await asyncio.gather(*(store.subscribe(token.ref, new_queue(b"%d" % n), limits) for n in range(20)))
    added = sum(isinstance(r, Added) for r in results)
    assert added >= 1
    assert added == await store.subscription_count()
    assert all(isinstance(r, Added) or r is LimitReached.TOKEN for r in results)
    if not bench.medium.shared:
        assert added == 5


async def what_is_refused_leaves_nothing(bench: Bench) -> None:
    """A server that nothing was subscribed on is not kept as one that is wanted."""
    store = await bench.open()
    token = await activate(store, 1)
    assert await store.subscribe(token.ref, new_queue(b"1"), Limits(per_token=1)) is not None
    assert await store.subscribe(token.ref, new_queue(b"2", OTHER_SMP), Limits(per_token=1)) is LimitReached.TOKEN
    assert await store.servers() == [SMP]
    assert not await store.is_wanted(OTHER_SMP)
