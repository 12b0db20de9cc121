"""What is due again after a while waits in the store; and who is told when something becomes due."""

import asyncio
from collections.abc import Callable

from ntf_server.store.contract import Store
from ntf_server.store.records import Ended, Outcome, PushKind, Replacement
from ntf_server.testing.store_suite.medium import (
    ROOM,
    Bench,
    Times,
    acquire,
    activate,
    again,
    delivered,
    device,
    drain,
    new_token,
    notify,
    record,
    register,
    subscribe,
    take,
    take_cool,
    take_nothing,
    take_one,
)
from smp_bridge.ntf import Provider


async def a_retry_waits_in_the_store(bench: Bench) -> None:
    """Until its time, as the same push, over a restart."""
    store = await bench.open()
    await register(store, new_token(1))
    claim = await take_one(store)
    await record(store, again(claim, 30))
    assert (await store.backlog(Provider.APNS)).tokens == 1
    taken = await store.take(Provider.APNS, ROOM)
    assert taken.claims == []
    assert taken.next_in is not None
    assert 29 <= taken.next_in <= 30.1
    bench.clock.pass_(20)
    store = await bench.reopen(store, kill=True)
    assert (await store.backlog(Provider.APNS)).tokens == 1
    assert await take(store) == []
    bench.clock.pass_(10.1)
    assert (await take_one(store)).since == claim.since


async def tries_are_counted(bench: Bench) -> None:
    """And all have one id; a push that was accepted ends them."""
    store = await bench.open()
    await register(store, new_token(1))
    ids = set()
    for attempt in range(5):
        [claim] = await take_cool(bench, store)
        assert claim.attempts == attempt
        ids.add(claim.push_id)
        await record(store, again(claim))
    assert len(ids) == 1
    [claim] = await take_cool(bench, store)
    await record(store, delivered(claim))
    await register(store, new_token(1))
    [fresh] = await take_cool(bench, store)
    assert fresh.attempts == 0
    assert fresh.push_id != claim.push_id


async def a_fault_of_ours_waits_too(bench: Bench) -> None:
    """Until its time."""
    store = await bench.open()
    await register(store, new_token(1))
    await record(store, Outcome(await take_one(store), Ended.OURS, "InvalidProviderToken", after=60))
    bench.clock.pass_(59)
    assert await take(store) == []
    bench.clock.pass_(2)
    assert len(await take(store)) == 1


async def a_notification_hastens_no_retry(bench: Bench) -> None:
    """The provider said when; what came meanwhile goes out then, and delays nothing either."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"1", b"2")
    session = await acquire(store)
    await notify(store, session, b"1")
    await record(store, again(await take_one(store), 30))
    for _ in range(3):
        bench.clock.pass_(9)
        assert (await notify(store, session, b"2", places={Provider.APNS: ROOM})).claims == []
        assert await take(store) == []
    assert (await store.backlog(Provider.APNS)).tokens == 1
    bench.clock.pass_(4)
    claim = await take_one(store)
    assert [e.notifier_id for e in claim.entries] == [b"1", b"2"]


async def what_came_during_the_try_waits_too(bench: Bench) -> None:
    """A notification while the push was under way does not undo its retry."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"1", b"2")
    session = await acquire(store)
    await notify(store, session, b"1")
    claim = await take_one(store)
    await notify(store, session, b"2")
    await record(store, again(claim, 30))
    bench.clock.pass_(20)
    assert await take(store) == []
    bench.clock.pass_(11)
    assert len((await take_one(store)).entries) == 2


async def another_device_token_waits_for_nothing(bench: Bench) -> None:
    """TRPL: the retry was of the one before it."""
    store = await bench.open()
    token = await register(store, new_token(1))
    await record(store, again(await take_one(store), 300))
    assert await store.replace(token.ref, Replacement(device(2), b"c" * 32))
    claim = await take_one(store)
    assert (claim.device, claim.attempts) == (device(2), 0)


async def a_code_asked_for_anew_waits_for_nothing(bench: Bench) -> None:
    """TNEW: somebody waits for it."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"1")
    await notify(store, await acquire(store), b"1")
    await record(store, again(await take_one(store), 300))
    await register(store, new_token(1))
    assert (await take_one(store)).kind is PushKind.VERIFICATION


async def a_retry_is_not_worth_more_than_its_time(bench: Bench) -> None:
    """It expires while it waits."""
    store = await bench.open(Times(message_ttl=100, verification_ttl=100))
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    await notify(store, await acquire(store), b"queue")
    await register(store, new_token(2))
    await record(store, *(again(c, 200) for c in await take(store)))
    bench.clock.pass_(201)
    assert await take(store) == []
    assert (await store.backlog(Provider.APNS)).tokens == 0


async def those_that_wait_keep_nobody_out(bench: Bench) -> None:
    """However many they are: the next one is pushed at once, and next_in is the first of them."""
    store = await bench.open()
    for n in range(200):
        await register(store, new_token(n))
    claims = await take(store)
    await record(store, *(again(c, 100 + n) for n, c in enumerate(claims)))
    late = await register(store, new_token(1000))
    taken = await store.take(Provider.APNS, ROOM)
    assert [c.token for c in taken.claims] == [late.ref]
    taken = await store.take(Provider.APNS, ROOM)
    assert taken.next_in is not None
    assert 99 <= taken.next_in <= 100.1
    assert (await store.backlog(Provider.APNS)).tokens == 200


async def a_place_that_is_free_tries_the_oldest_retry(bench: Bench) -> None:
    """Those whose time has come, by their age, not by when they were tried."""
    store = await bench.open()
    tokens = []
    for n in range(3):
        tokens.append(await register(store, new_token(n)))
        bench.clock.pass_(1)
    claims = await take(store)
    by_token = {c.token: c for c in claims}
    await record(store, *(again(by_token[t.ref], 30 - n) for n, t in enumerate(tokens)))
    bench.clock.pass_(40)
    assert {c.token for c in await take(store)} == {t.ref for t in tokens}


# --- who is told


class _Told:
    """What `watch` told."""

    def __init__(self, store: Store) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: list[tuple[Provider, float]] = []
        store.watch(self._on_due)

    def _on_due(self, provider: Provider, seconds: float) -> None:
        assert asyncio.get_running_loop() is self._loop
        self._calls.append((provider, seconds))

    async def of(self, check: Callable[[float], bool], provider: Provider = Provider.APNS) -> None:
        """Something becomes due in so many seconds."""
        async with asyncio.timeout(5):
            while not any(p is provider and check(seconds) for p, seconds in self._calls):
                await asyncio.sleep(0.001)
        self._calls.clear()

    async def nothing(self) -> None:
        """Nobody was told anything."""
        await asyncio.sleep(0.01)
        assert self._calls == []


def _now(seconds: float) -> bool:
    return seconds <= 0.001


async def whoever_watches_is_told(bench: Bench) -> None:
    """Of codes, notifications, checks, and of what waited for TVFY."""
    store = await bench.open()
    told = _Told(store)
    new = new_token(1)
    token = await register(store, new)
    await told.of(_now)
    await drain(bench, store)
    assert await store.verify(token.ref, new.code)
    await subscribe(store, token, b"queue")
    session = await acquire(store)
    await notify(store, session, b"queue")
    await told.of(_now)
    assert await store.replace(token.ref, Replacement(device(2, Provider.FCM), b"c" * 32))
    await told.of(_now, Provider.FCM)
    await drain(bench, store, Provider.FCM)
    await notify(store, session, b"queue")
    told._calls.clear()
    assert await store.verify(token.ref, b"c" * 32)
    await told.of(_now, Provider.FCM)
    await drain(bench, store, Provider.FCM)
    await store.set_period(token.ref, 20)
    bench.clock.pass_(1400)
    told._calls.clear()
    assert await store.mark_checks(10) == 1
    await told.of(_now, Provider.FCM)


async def what_was_handed_out_is_not_told(bench: Bench) -> None:
    """Nobody has to look for it."""
    store = await bench.open()
    await subscribe(store, await activate(store, 1), b"queue")
    session = await acquire(store)
    await take_nothing(store)
    told = _Told(store)
    [claim] = (await notify(store, session, b"queue", places={Provider.APNS: ROOM})).claims
    await told.nothing()
    await notify(store, session, b"queue")
    await record(store, delivered(claim))
    await told.of(lambda seconds: seconds <= bench.times.spacing)


async def retries_are_told(bench: Bench) -> None:
    """With the seconds until then."""
    store = await bench.open()
    await register(store, new_token(1))
    claim = await take_one(store)
    told = _Told(store)
    await record(store, again(claim, 30))
    await told.of(lambda seconds: 29 <= seconds <= 30.1)
    bench.clock.pass_(31)
    await record(store, Outcome(await take_one(store), Ended.UNTRIED))
    await told.of(_now)


async def what_is_left_after_a_push_is_told(bench: Bench) -> None:
    """More queues than one push holds."""
    store = await bench.open(Times(spacing=0.5))
    token = await activate(store, 1)
    queues = [b"%d" % n for n in range(9)]
    await subscribe(store, token, *queues)
    await notify(store, await acquire(store), *queues)
    claim = await take_one(store)
    told = _Told(store)
    await record(store, delivered(claim))
    await told.of(lambda seconds: 0 < seconds <= 0.5)
