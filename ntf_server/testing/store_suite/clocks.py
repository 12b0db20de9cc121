"""The wall clock is set: nothing is lost by it, and nothing waits for it to come round again."""

from ntf_server.testing.store_suite.medium import (
    DAY,
    ROOM,
    Bench,
    Times,
    acquire,
    activate,
    again,
    delivered,
    drain,
    names,
    new_token,
    notify,
    record,
    register,
    subscribe,
    take,
    take_one,
)
from smp_bridge.ntf import Provider

_STEPS = (-30 * DAY, -3600.0, 3600.0, 30 * DAY)


async def a_step_expires_nothing(bench: Bench) -> None:
    """A day ahead at once is no day that a message waited; and what is due stays due."""
    for n, step in enumerate(_STEPS):
        store = await bench.open()
        token = await activate(store, n)
        queue = b"queue %d" % n
        await subscribe(store, token, queue)
        await notify(store, await acquire(store), queue)
        await register(store, new_token(100 + n))
        bench.clock.step(step)
        bench.clock.pass_(1)
        claims = await take(store)
        assert len(claims) == 2, step
        await record(store, *map(delivered, claims))
        assert await drain(bench, store) == []
        bench.nodes.remove(store)
        await store.close()


async def a_step_shifts_no_retry(bench: Bench) -> None:
    """It is due so many seconds later, whatever the wall clock says."""
    for n, step in enumerate(_STEPS):
        store = await bench.open()
        await register(store, new_token(n))
        await record(store, again(await take_one(store), 30))
        bench.clock.step(step)
        bench.clock.pass_(1)
        assert await take(store) == [], step
        next_in = (await store.take(Provider.APNS, ROOM)).next_in
        assert next_in is not None
        assert 28 <= next_in <= 30.1, step
        bench.clock.pass_(31)
        await record(store, delivered(await take_one(store)))
        bench.nodes.remove(store)
        await store.close()


async def a_step_while_it_is_closed(bench: Bench) -> None:
    """Nobody saw it: a retry in the far future is tried soon, and what was stored in the future is pushed."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    await notify(store, await acquire(store), b"queue")
    await register(store, new_token(2))
    await record(store, *(again(c, 30) for c in await take(store)))
    bench.nodes.remove(store)
    await store.close()
    bench.clock.step(-30 * DAY)
    store = await bench.open()
    bench.clock.pass_(500)
    assert len(await drain(bench, store)) == 2


async def a_step_makes_no_queue_old(bench: Bench) -> None:
    """What arrives after a step back is newer than what came before it."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue", b"other")
    session = await acquire(store)
    await notify(store, session, b"queue", meta=b"before")
    bench.clock.step(-DAY)
    await notify(store, session, b"queue", meta=b"after")
    await notify(store, session, b"other")
    claim = await take_one(store)
    assert names(claim) == [b"queue", b"other"]
    assert claim.entries[0].meta == b"after"


async def a_period_in_the_future_is_over(bench: Bench) -> None:
    """After a step back a check comes no later than usual, after a step ahead at once or then."""
    for n, step in enumerate(_STEPS):
        for closed in (False, True):
            store = await bench.open()
            token = await activate(store, 10 * n + closed)
            await store.set_period(token.ref, 20)
            if closed:
                bench.nodes.remove(store)
                await store.close()
            bench.clock.step(step)
            if closed:
                store = await bench.open()
            bench.clock.pass_(22 * 60 + 5)
            assert await store.mark_checks(10) <= 1
            claims = await drain(bench, store)
            assert len(claims) == 1, step
            await store.set_period(claims[0].token, 0)
            bench.nodes.remove(store)
            await store.close()


async def a_rest_is_not_longer_than_it_is(bench: Bench) -> None:
    """Between two pushes of a token, after a step back."""
    store = await bench.open(Times(spacing=0.5))
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    session = await acquire(store)
    await notify(store, session, b"queue")
    await record(store, delivered(await take_one(store)))
    bench.clock.step(-DAY)
    await notify(store, session, b"queue")
    bench.clock.pass_(0.6)
    assert len(await take(store)) == 1


async def nothing_is_silent_by_a_step(bench: Bench) -> None:
    """The audit of a day's silence does not ask for all of them."""
    store = await bench.open()
    await subscribe(store, await activate(store, 1), b"queue")
    bench.clock.step(-DAY)
    bench.clock.pass_(10)
    [found], _ = await store.to_audit(None, 10, 3600)
    assert not found.silent
