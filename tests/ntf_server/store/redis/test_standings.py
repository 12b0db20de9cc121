"""What SMP servers have proved, when calls are done twice and by two nodes."""

import pytest
from redis_stores import How, Nodes, fault

from ntf_server.store.redis.engine import RedisStore
from ntf_server.testing.store_suite.medium import OTHER_SMP, SMP, acquire, activate, found, subscribe
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.places import ANYWHERE


async def test_of_prefixes_the_last_four_are_kept_the_newest_first(store: RedisStore) -> None:
    await subscribe(store, await activate(store), b"a")
    session = await acquire(store)
    with fault(store, How.TWICE, "prove"):
        for n in (1, 2, 3, 2, 4, 5, 1):
            await store.prove(session, f"192.0.{n}.0/24")
    standing = await store.standing(SMP)
    assert standing is not None
    assert standing.prefixes == tuple(f"192.0.{n}.0/24" for n in (1, 5, 4, 3))


async def test_any_prefix_gives_way_to_a_real_one(store: RedisStore) -> None:
    await subscribe(store, await activate(store), b"a")
    session = await acquire(store)
    await store.prove(session, ANYWHERE)
    await store.prove(session, "192.0.2.0/24")
    standing = await store.standing(SMP)
    assert standing is not None and standing.prefixes == ("192.0.2.0/24",)


async def test_what_was_disproved_is_tried_anew(nodes: Nodes) -> None:
    """Whichever node it was that proved it."""
    first, second = await nodes.open("one"), await nodes.open("two")
    await subscribe(first, await activate(first), b"a")
    await first.prove(await acquire(first), "192.0.2.0/24")
    await nodes.pass_(100, first, second)
    with fault(second, How.TWICE, "disprove"):
        await second.disprove(SMP)
    standing = await first.standing(SMP)
    assert standing is not None and standing.prefixes == () and standing.tried_for == pytest.approx(0, abs=1.1)
    await nodes.pass_(50, first, second)
    await second.disprove(SMP)  # again: it has nothing to lose, and does not begin anew
    standing = await second.standing(SMP)
    assert standing is not None and standing.tried_for == pytest.approx(50, abs=1.1)


async def test_claims_are_of_the_first_and_last_tokens(store: RedisStore) -> None:
    tokens = [await activate(store, n) for n in range(12)]
    for n, token in enumerate(tokens):
        await subscribe(store, token, b"%d" % n)
    standing = await store.standing(SMP)
    assert standing is not None
    assert set(standing.claims) == {t.token_id for t in (*tokens[:4], *tokens[-4:])}
    assert await store.standing(OTHER_SMP) is None


async def test_what_is_given_up_is_given_up_once(store: RedisStore) -> None:
    token = await activate(store)
    ids = await subscribe(store, token, *(b"%d" % n for n in range(7)))
    session = await acquire(store)
    counts = [await store.give_up(session, "it does not answer", 3) for _ in range(4)]
    assert counts == [3, 3, 1, 0]
    for subscription_id in ids:
        s = await found(store, subscription_id)
        assert (s.status, s.error, s.associated) == (SubscriptionStatus.ERR, "it does not answer", False)
    assert await store.standing(SMP) is None
