"""Budgets that nodes count together: as one process counts them, once or twice, and for no longer than they count."""

import asyncio
import itertools
import os
import re
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot
from redis_servers import Cluster, Server
from redis_stores import How, Nodes, ask, fault, keys

from ntf_server.admission.budgets import MAX_DELAY, Buckets, Rate
from ntf_server.store.contract import StoreError, StoreUnavailableError
from ntf_server.store.ledger import Change, Charge, Delays, Revision
from ntf_server.store.redis import ledger
from ntf_server.store.redis.engine import RedisStore

_numbers = itertools.count()
KEY = bytes(range(16))
ONE = b"\xc0\x00\x02\x01"
TEN = Rate.parse("10 + 10/s")
THREE = Rate.parse("3 + 1/s")


def charge(
    n: int = 1,
    *addresses: tuple[bytes, int],
    each: Rate = TEN,
    modest: Rate = TEN,
    total: Rate = TEN,
    kind: str = "registrations",
) -> Charge:
    return Charge(kind, n, addresses, each.plain, modest.plain, total.plain)


async def spend(store: RedisStore, *charges: Charge) -> list[Delays]:
    return await store.ledger.spend(charges, MAX_DELAY)


# --- spending

rates = st.sampled_from(["1 + 1/s", "3 + 2/s", "10 + 10/s and 30 + 5/s", "2 + 0.1/s", "7 + 0.3/s and 2 + 3/s"])
steps = st.lists(
    st.tuples(st.integers(0, 30_000), st.integers(1, 12), st.sampled_from([(), (0,), (1,), (0, 2), (1, 2)])),
    min_size=1,
    max_size=25,
)


class _Here:
    """As one process counts it (`Admission._spend`)."""

    def __init__(self, each: Rate, modest: Rate, total: Rate) -> None:
        self.rates = each, modest, total
        self.own, self.modest, self.total = Buckets(), Buckets(), Buckets()

    def spend(self, addresses: Sequence[tuple[bytes, int]], n: int, now: float) -> Delays:
        each, modest, total = self.rates
        own = max((self.own.spend(key, n, each, now, share) for key, share in addresses), default=0.0)
        if own > 0:
            return Delays(own, 0.0)
        group = self.modest.spend_if_there(addresses[-1][0], n, modest, now) if addresses else None
        return Delays(0.0, max(0.0, self.total.spend(group, n, total, now)))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rates, rates, rates, steps)
async def test_nodes_together_count_as_one_process_does(
    nodes: Nodes, each: str, modest: str, total: str, steps: Sequence[tuple[int, int, tuple[int, ...]]]
) -> None:
    two = nodes._open or [await nodes.open("one"), await nodes.open("two")]
    kind = f"{next(_numbers)}"
    here = _Here(*map(Rate.parse, (each, modest, total)))
    e, m, t = here.rates
    for number, (pause, n, who) in enumerate(steps):
        nodes.clock.pass_(pause / 1000)
        addresses = tuple((bytes([a]) * (4 + a), 1 + 3 * (a == 2)) for a in who)
        [found] = await spend(two[number % 2], charge(n, *addresses, each=e, modest=m, total=t, kind=kind))
        assert found == pytest.approx(here.spend(addresses, n, round(nodes.clock.wall() * 1000) / 1000), abs=0.002)


async def test_several_kinds_are_spent_at_once_and_apart(store: RedisStore) -> None:
    both = charge(3, (ONE, 1), each=THREE), charge(4, (ONE, 1), each=THREE, kind="replacements")
    assert await spend(store, *both) == [Delays(0.0, 0.0), Delays(1.0, 0.0)]


async def test_a_debt_is_bounded(nodes: Nodes, store: RedisStore) -> None:
    assert await spend(store, charge(10_000, (ONE, 1))) == [Delays(MAX_DELAY, 0.0)]
    assert await spend(store, charge(10_000, (ONE, 1))) == [Delays(MAX_DELAY, 0.0)]
    nodes.clock.pass_(MAX_DELAY)
    assert await spend(store, charge(1, (ONE, 1))) == [Delays(0.1, 0.0)]


async def test_what_is_spent_twice_delays_by_as_much_and_by_no_more(store: RedisStore) -> None:
    with fault(store, How.TWICE, "spend") as happened:
        assert await spend(store, charge(2, (ONE, 1), each=THREE)) == [Delays(1.0, 0.0)]
        for _ in range(20):
            await spend(store, charge(2, (ONE, 1), each=THREE))
    assert set(happened) == {"spend"}
    assert await spend(store, charge(1, (ONE, 1), each=THREE)) == [Delays(MAX_DELAY, 0.0)]


async def test_what_cannot_be_asked_is_an_error_of_the_store(store: RedisStore) -> None:
    with fault(store, How.UNDONE, "spend", "recall"):
        with pytest.raises(StoreUnavailableError):
            await spend(store, charge(1))
        with pytest.raises(StoreUnavailableError):
            await store.ledger.revise(KEY, lambda value, _: Revision(b"x", 1.0, value))


# --- memos


def counting(keep: float = 60.0) -> Change[int]:
    def change(value: bytes | None, _: float) -> Revision[int]:
        count = int(value or b"0") + 1
        return Revision(b"%d" % count, keep, count)

    return change


async def value(store: RedisStore) -> bytes | None:
    return await store.ledger.revise(KEY, lambda value, _: Revision(value, 0.0, value))


async def test_a_memo_is_changed_by_one_after_the_other(nodes: Nodes) -> None:
    """However many nodes and callers there are."""
    three = [await nodes.open(name) for name in ("one", "two", "three")]
    found = await asyncio.gather(*(three[n % 3].ledger.revise(KEY, counting()) for n in range(90)))
    assert sorted(found) == list(range(1, 91))
    assert not three[0].ledger._locks


async def test_a_change_has_the_stores_time(nodes: Nodes, store: RedisStore) -> None:
    nodes.clock.pass_(5)
    now = await store.ledger.revise(KEY, lambda value, now: Revision(value, 0.0, now))
    assert now == pytest.approx(nodes.clock.wall(), abs=0.001)
    assert await keys(store) == await keys(store) - {store._node.names.memo(KEY)}  # what is as it was is not written


@pytest.mark.parametrize("value_", [b"", b"x", None])
async def test_a_change_that_is_done_twice_is_done_once(store: RedisStore, value_: bytes | None) -> None:
    await store.ledger.revise(KEY, counting())
    with fault(store, How.TWICE, "recall", "revise") as happened:
        assert await store.ledger.revise(KEY, counting()) == 2
        await store.ledger.revise(KEY, lambda _v, _now: Revision(value_, 60.0, None))
    assert happened == ["recall", "revise"] * 2
    assert await value(store) == value_


async def test_an_answer_that_was_lost_is_a_change_that_may_be_done(store: RedisStore) -> None:
    with fault(store, How.LOST, "revise"), pytest.raises(StoreUnavailableError):
        await store.ledger.revise(KEY, counting())
    assert await store.ledger.revise(KEY, counting()) == 2


async def test_an_equal_change_of_another_node_is_not_taken_for_its_own(nodes: Nodes) -> None:
    """Two nodes write the same at once."""
    one, two = await nodes.open("one"), await nodes.open("two")
    run = one._node.run
    others = [two.ledger.revise(KEY, counting())]

    async def run_after_the_other(name: str, *args: object) -> object:
        if name == "revise" and others:
            await others.pop()
        return await run(name, *args)  # type: ignore[arg-type]

    one._node.run = run_after_the_other  # type: ignore[method-assign, assignment]
    assert await one.ledger.revise(KEY, counting()) == 2


async def test_who_never_gets_his_turn_at_a_memo_gives_up(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_LONGEST", 0.2)
    run = store._node.run

    async def somebody_is_faster(name: str, *args: object) -> object:
        if name == "revise":
            await ask(store, b"SET", store._node.names.memo(KEY), os.urandom(8) + b"1")
            await asyncio.sleep(0.01)
        return await run(name, *args)  # type: ignore[arg-type]

    store._node.run = somebody_is_faster  # type: ignore[method-assign, assignment]
    others = [asyncio.create_task(store.ledger.revise(KEY, counting())) for _ in range(3)]
    for one in others:  # who waits for them does not wait longer
        with pytest.raises(StoreUnavailableError, match="by others all the time"):
            await one


# --- what is left of it


async def expiries(store: RedisStore) -> dict[bytes, int]:
    """Milliseconds that each of its keys is kept."""
    prefix = store._node.database.prefix.encode() + b":"
    found = [key for key in await keys(store) if key.startswith(b"{b")]
    return {key: await ask(store, b"PTTL", prefix + key) for key in found}


async def test_all_of_it_expires(store: RedisStore) -> None:
    await store.ledger.revise(KEY, counting(keep=90.0))
    await spend(store, charge(2, (ONE, 1), each=THREE, modest=THREE, total=THREE))
    found = await expiries(store)
    assert found.keys() == {b"{b}:registrations", b"{b00}:" + KEY}
    assert 85_000 < found[b"{b00}:" + KEY] <= 90_000
    assert 1_000 < found[b"{b}:registrations"] <= 2_000
    await spend(store, charge(100, (ONE, 1), each=THREE))
    assert 20_000 < (await expiries(store))[b"{b}:registrations"] <= 23_000  # the longest delay, and then full again
    await spend(store, charge(1))
    assert 18_000 < (await expiries(store))[b"{b}:registrations"] <= 23_000


async def test_who_spent_long_ago_is_forgotten(nodes: Nodes, store: RedisStore) -> None:
    """Of thousands that came one after the other, only those remain whose budget is not full again."""
    for n in range(2000):
        nodes.clock.pass_(0.05)
        await spend(store, charge(1, (n.to_bytes(4, "big"), 1)))
    key = store._node.names.spent("registrations")
    assert await ask(store, b"HLEN", key) < 60


async def test_addresses_cannot_be_read(nodes: Nodes, server: Server) -> None:
    store = await nodes.open()
    other = Nodes(server.url, "another")
    theirs = await other.open()
    try:
        assert store.ledger.mask(ONE) == (await nodes.open("two")).ledger.mask(ONE)
        assert store.ledger.mask(ONE) != theirs.ledger.mask(ONE)
        assert len(store.ledger.mask(ONE)) == 16
        await spend(store, charge(1, (ONE * 4, 1)))
        found = await ask(store, b"HGETALL", store._node.names.spent("registrations"))
        assert len(found) == 6
        assert not any(re.search(re.escape(ONE), word) for word in found)
    finally:
        await other.close()


async def test_it_is_counted_in_a_cluster_too(cluster: Cluster) -> None:
    nodes = Nodes(cluster.url)
    try:
        two = [await nodes.open("one"), await nodes.open("two")]
        delays = [await spend(two[n % 2], charge(2, (ONE, 1), each=THREE)) for n in range(3)]
        assert delays == [[Delays(0.0, 0.0)], [Delays(1.0, 0.0)], [Delays(3.0, 0.0)]]
        counts = [await two[n % 2].ledger.revise(KEY, counting()) for n in range(4)]
        assert counts == [1, 2, 3, 4]
    finally:
        await nodes.close()


async def test_while_their_slots_move_nobody_waits(own_cluster: Cluster) -> None:
    nodes = Nodes(own_cluster.url)
    try:
        store = await nodes.open()
        names = store._node.names
        for key, kind in ((names.spent("registrations"), "spent"), (names.memo(KEY), "memo")):
            counts: list[object] = []

            async def count(kind: str = kind, counts: list[object] = counts) -> None:
                if kind == "memo":
                    counts.append(await store.ledger.revise(KEY, counting()))
                else:
                    counts.append((await spend(store, charge(1, (ONE, 1), each=THREE)))[0].own)

            slot = key_slot(key)
            source = own_cluster.owner(slot)
            to = next(node for node in own_cluster.primaries if node is not source)
            own_cluster.begin_move(slot, source, to)
            await count()  # it is there not yet, here not any more
            await count()
            own_cluster.move_keys(slot, source, to, 100)
            await count()
            own_cluster.end_move(slot, source, to)
            await count()
            assert counts == ([1, 2, 3, 4] if kind == "memo" else [0.0, 0.0, 0.0, 1.0])
    finally:
        await nodes.close()


async def test_a_fault_of_ours_is_told(store: RedisStore) -> None:
    await ask(store, b"SET", store._node.names.spent("registrations"), b"no hash")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await spend(store, charge(1))
