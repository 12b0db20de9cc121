"""What SMP servers have proved."""

import contextlib

from ntf_server.store.contract import FencedError, Store
from ntf_server.store.records import Confirmed
from ntf_server.testing.store_suite.medium import (
    DAY,
    OTHER_SMP,
    SMP,
    Bench,
    acquire,
    activate,
    found,
    subscribe,
    tend,
)
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.places import Standing


async def a_server_is_proven_where_it_confirmed_subscriptions(bench: Bench) -> None:
    """The newest prefix first, a few of them; over a restart, until it is disproved."""
    store = await bench.open()
    assert await store.standing(SMP) is None
    token = await activate(store, 1)
    [subscription_id] = await subscribe(store, token, b"1")
    await subscribe(store, token, b"2", server=OTHER_SMP)
    assert (await _standing(store)).prefixes == ()
    session = await acquire(store)
    for prefix in ("192.0.2.0/24", "2001:db8::/48", "192.0.2.0/24"):
        await store.prove(session, prefix)
    assert (await _standing(store)).prefixes == ("2001:db8::/48", "192.0.2.0/24")
    store = await bench.reopen(store)
    assert (await _standing(store)).prefixes == ("2001:db8::/48", "192.0.2.0/24")
    session = await acquire(store)
    for number in range(5):
        await store.prove(session, f"198.51.{number}.0/24")
    assert (await _standing(store)).prefixes == tuple(f"198.51.{number}.0/24" for number in (4, 3, 2, 1))
    await store.disprove(SMP)
    assert (await _standing(store)).prefixes == ()
    await store.unsubscribe((await found(store, subscription_id)).ref)
    assert await store.standing(SMP) is None
    other = await store.standing(OTHER_SMP)
    assert other is not None
    assert other.prefixes == ()


async def how_long_a_server_is_tried_counts_from_its_first_subscription(bench: Bench) -> None:
    """Or from when what it had proved was lost; a step of the clock is no time."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"1")
    bench.clock.pass_(10 * DAY)
    assert (await _standing(store)).tried_for >= 10 * DAY
    session = await acquire(store)
    await store.prove(session, "192.0.2.0/24")
    bench.clock.pass_(DAY)
    await store.disprove(SMP)
    assert (await _standing(store)).tried_for < 2
    bench.clock.pass_(3600)
    await tend(bench, store)
    bench.clock.step(100 * DAY)
    await tend(bench, store)
    assert 3600 <= (await _standing(store)).tried_for < 3700
    bench.clock.step(-200 * DAY)
    assert (await _standing(store)).tried_for >= 0


async def of_those_that_want_a_server_some_are_told(bench: Bench) -> None:
    """The first ones among them: whoever comes later cannot take their place."""
    store = await bench.open()
    tokens = [await activate(store, number) for number in range(12)]
    for number, token in enumerate(tokens):
        await subscribe(store, token, b"%d" % number)
    claims = (await _standing(store)).claims
    assert set(claims) < {token.ref for token in tokens}
    assert claims[0] == tokens[0].ref
    assert 4 <= len(claims) == len(set(claims)) <= 8


async def a_server_that_is_given_up_is_wanted_no_more(bench: Bench) -> None:
    """Its subscriptions are ERR, in slices; one that is subscribed anew is wanted anew."""
    store = await bench.open()
    token = await activate(store, 1)
    ids = await subscribe(store, token, *(b"%d" % number for number in range(5)))
    [elsewhere] = await subscribe(store, token, b"1", server=OTHER_SMP)
    session = await acquire(store)
    await store.confirm(session, [Confirmed((await found(store, ids[0])).ref, SubscriptionStatus.ACTIVE)])
    assert [await store.give_up(session, "nobody there", 3) for _ in range(3)] == [3, 2, 0]
    for subscription_id in ids:
        given_up = await found(store, subscription_id)
        assert (given_up.status, given_up.error) == (SubscriptionStatus.ERR, "nobody there")
    assert await store.standing(SMP) is None
    assert (await found(store, elsewhere)).status is SubscriptionStatus.NEW
    await subscribe(store, token, b"9")
    assert await store.standing(SMP) is not None


async def only_the_session_that_counts_proves_or_gives_up(bench: Bench) -> None:
    """An older one is fenced."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"1")
    old = await acquire(store)
    await acquire(store)
    for late in (store.prove(old, "192.0.2.0/24"), store.give_up(old, "", 10)):
        with contextlib.suppress(FencedError):
            await late
            raise AssertionError("it was not fenced")
    assert (await _standing(store)).prefixes == ()


async def _standing(store: Store) -> Standing:
    standing = await store.standing(SMP)
    assert standing is not None
    return standing
