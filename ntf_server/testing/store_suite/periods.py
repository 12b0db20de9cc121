"""TCRN: when a token has a check pushed."""

from ntf_server.store.records import PushKind, Replacement
from ntf_server.testing.store_suite.medium import (
    Bench,
    acquire,
    activate,
    delivered,
    device,
    drain,
    known,
    notify,
    record,
    subscribe,
    take,
    take_one,
)

# --- TNEW


async def a_period_leads_to_checks(bench: Bench) -> None:
    """One when it is over, and the next a period after that was pushed."""
    store = await bench.open()
    token = await activate(store, 1)
    await store.set_period(token.ref, 20)
    assert (await known(store, token)).period == 20
    assert await store.mark_checks(100) == 0
    bench.clock.pass_(20 * 60 - 5)
    assert await store.mark_checks(100) == 0
    bench.clock.pass_(10 + 2 * 60)
    assert await store.mark_checks(100) == 1
    assert await store.mark_checks(100) == 0
    claim = await take_one(store)
    assert (claim.kind, claim.entries, claim.since) == (PushKind.CHECK, (), int(bench.clock.wall()))
    bench.clock.pass_(60)
    await record(store, delivered(claim))
    bench.clock.pass_(20 * 60 - 5)
    assert await store.mark_checks(100) == 0
    bench.clock.pass_(10 + 2 * 60)
    assert await store.mark_checks(100) == 1


async def a_push_within_its_period_is_as_good_as_a_check(bench: Bench) -> None:
    """None is owed then; the next period began with that push (wire.md, section 6)."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    await store.set_period(token.ref, 20)
    bench.clock.pass_(15 * 60)
    await notify(store, await acquire(store), b"queue")
    await record(store, delivered(await take_one(store)))
    bench.clock.pass_(8 * 60)
    await store.mark_checks(10)
    assert await take(store) == []
    bench.clock.pass_(11 * 60)
    await store.mark_checks(10)
    assert await take(store) == []
    bench.clock.pass_(4 * 60)
    await store.mark_checks(10)
    assert (await take_one(store)).kind is PushKind.CHECK


async def not_only_quiet_tokens_may_be_checked(bench: Bench) -> None:
    """Where that is asked for, a period goes on whatever is pushed meanwhile."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    await store.set_period(token.ref, 20)
    bench.clock.pass_(15 * 60)
    await notify(store, await acquire(store), b"queue")
    await record(store, delivered(await take_one(store)))
    bench.clock.pass_(8 * 60)
    assert await store.mark_checks(10, quiet_only=False) == 1
    assert (await take_one(store)).kind is PushKind.CHECK


async def checks_do_not_go_in_step(bench: Bench) -> None:
    """Of periods that began together some are checked soon, some later, all within a tenth more."""
    store = await bench.open()
    for n in range(60):
        await store.set_period((await activate(store, n)).ref, 20)
    began = bench.clock.wall()
    counts = []
    for part in range(1, 6):  # each a fifth of the tenth; to activate them took no time
        bench.clock.pass_(began + 20 * 60 + part * 24 - bench.clock.wall())
        counts.append(await store.mark_checks(100))
    assert sum(counts) == 60
    assert max(counts) <= 30, counts


async def the_same_period_goes_on(bench: Bench) -> None:
    """TCRN of the same length begins no new period, of another length does; 0 ends them."""
    store = await bench.open()
    token = await activate(store, 1)
    await store.set_period(token.ref, 20)
    bench.clock.pass_(15 * 60)
    await store.set_period(token.ref, 20)
    bench.clock.pass_(7 * 60 + 1)
    assert await store.mark_checks(100) == 1
    await store.set_period(token.ref, 0)
    assert await take(store) == []
    bench.clock.pass_(3600)
    assert await store.mark_checks(100) == 0
    await store.set_period(token.ref, 30)
    bench.clock.pass_(29 * 60)
    await store.set_period(token.ref, 31)
    bench.clock.pass_(5 * 60)
    assert await store.mark_checks(100) == 0


async def checks_are_for_active_tokens(bench: Bench) -> None:
    """The others have to be verified first."""
    store = await bench.open()
    token = await activate(store, 1)
    await store.set_period(token.ref, 20)
    assert await store.replace(token.ref, Replacement(device(2), b"c" * 32))
    await drain(bench, store)
    bench.clock.pass_(3600)
    assert await store.mark_checks(100) == 0
    assert await store.verify(token.ref, b"c" * 32)
    assert await store.mark_checks(100) == 1


async def checks_come_a_few_at_a_time(bench: Bench) -> None:
    """No more than was asked for, and each once."""
    store = await bench.open()
    tokens = [await activate(store, n) for n in range(7)]
    for token in tokens:
        await store.set_period(token.ref, 20)
    bench.clock.pass_(3600)
    assert [await store.mark_checks(3) for _ in range(4)] == [3, 3, 1, 0]
    assert {c.token for c in await take(store)} == {t.ref for t in tokens}


# --- the last push
