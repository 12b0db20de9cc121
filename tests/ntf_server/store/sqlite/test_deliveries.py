"""Notifications in, claims out, and what came of them."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import (
    CHECK,
    CODE,
    MASTER,
    MESSAGES,
    NO_PLACES,
    NOW,
    OTHER_SMP,
    SMP,
    TABLET,
    VERIFICATION,
    FakeClock,
    Room,
    acquire,
    activate,
    again,
    anywhere,
    arrived,
    dead,
    deliver,
    delivered,
    look,
    notify,
    plan,
    register,
    said,
    subscribe,
    take,
    take_one,
    untried,
)

from ntf_server.store.memory import CROWD, CROWDED
from ntf_server.store.records import MAX_ENTRIES, Claim, Ended, Notification, Outcome, Token
from ntf_server.store.sqlite import content
from ntf_server.store.sqlite import deliveries as module
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.ntf import DeviceToken, Provider, TokenStatus


async def phones(store: SqliteStore, count: int) -> list[Token]:
    """Active tokens with a queue each: q0, q1, …"""
    tokens = []
    for i in range(count):
        tokens.append(await activate(store, DeviceToken(Provider.APNS, b"phone %d" % i)))
        await subscribe(store, tokens[-1], b"q%d" % i)
    return tokens


async def sql(store: SqliteStore, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    return await store._database.run(lambda c: c.execute(statement, parameters).fetchall())


# --- NMSG


@pytest.mark.parametrize(
    "block",
    [
        [(b"a", b"meta"), (b"b" * 24, b"meta"), (b"c" * 255, b"meta")],
        [(b"a", b""), (b"b" * 24, b"")],
        [(b"a", b"m" * 144), (b"b" * 24, b""), (b"c" * 255, b"m" * 255)],
        [(b"a", b"\0" * 3), (b"b" * 24, b"\xff\0'\"")],
    ],
    ids=["ids", "no metadata", "metadata", "any bytes"],
)
@pytest.mark.parametrize("nonce", [b"", b"x", b"n" * 24])
async def test_a_block_of_any_sizes(store: SqliteStore, block: Sequence[tuple[bytes, bytes]], nonce: bytes) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b" * 24, b"c" * 255)
    session = await acquire(store)
    sent = arrived(store, session, block, nonce)
    notified = await store.notify(session, sent, NO_PLACES)
    assert (notified.claims, notified.unknown) == ([], 0)
    claim = await take_one(store)
    assert [(e.notifier_id, e.meta, e.nonce, e.seq, e.received_at, e.server) for e in claim.entries] == [
        (n.notifier_id, n.meta, n.nonce, n.seq, n.received_at, SMP) for n in sent
    ]


async def test_a_block_for_many_tokens(store: SqliteStore) -> None:
    """Some of which are not active, some unknown, some on another server."""
    tokens = await phones(store, 3)
    waiting = await register(store, TABLET)
    await subscribe(store, waiting, b"q3")
    await subscribe(store, tokens[0], b"elsewhere", server=OTHER_SMP)
    session = await acquire(store)
    notified = await notify(store, session, b"q0", b"q1", b"q3", b"unknown", b"elsewhere", places=anywhere())
    assert notified.unknown == 2
    assert [said(c) for c in notified.claims] == [[b"q0"], [b"q1"]]


async def test_the_last_of_a_queue_in_a_block_is_its_newest(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    await notify(store, session, (b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"a", b"4"), (b"x", b"5"))
    assert [(e.notifier_id, e.meta) for e in (await take_one(store)).entries] == [(b"b", b"2"), (b"a", b"4")]


async def test_a_block_of_strangers_and_an_empty_one(store: SqliteStore) -> None:
    session = await acquire(store)
    assert (await notify(store, session, b"x", b"y" * 24)).unknown == 2
    assert (await notify(store, session)).unknown == 0


async def test_a_block_that_is_late_replaces_nothing(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a")
    old = await acquire(store)
    late = arrived(store, old, [(b"a", b"old")])
    new = await acquire(store)
    await notify(store, new, (b"a", b"new"))
    assert (await store.notify(old, late, NO_PLACES)).unknown == 0
    assert [e.meta for e in (await take_one(store)).entries] == [b"new"]


async def test_one_without_a_number_beside_another_is_stored_too(store: SqliteStore) -> None:
    """Numbers with gaps, as when some of a block were sorted out."""
    await phones(store, 4)
    session = await acquire(store)
    block = arrived(store, session, [b"q0", b"q1", b"q2", b"q3"])
    notified = await store.notify(session, block[::2], anywhere())
    assert [[e.seq for e in c.entries] for c in notified.claims] == [[block[0].seq], [block[2].seq]]


async def test_numbers_grow_over_sessions_and_restarts(store: SqliteStore, path: Path) -> None:
    first, second = await acquire(store), await acquire(store, OTHER_SMP)
    seen = [store.arrive(first, 10).first, store.arrive(first, 1).first, store.arrive(second, 1).first]
    token = await activate(store)
    await subscribe(store, token, b"a", server=OTHER_SMP)
    await notify(store, second, b"a")
    await store.close()
    again_ = await SqliteStore.open(path, master_key=MASTER)
    seen.append(again_.arrive(await acquire(again_, OTHER_SMP), 1).first)
    await again_.close()
    assert seen == sorted(seen)
    assert seen[1] == seen[0] + 10


# --- claims at once


async def test_where_there_is_room_a_token_is_handed_out_at_once(store: SqliteStore) -> None:
    await phones(store, 3)
    session = await acquire(store)
    notified = await notify(store, session, b"q0", b"q1", b"q2", places={Provider.APNS: Room(2)})
    assert [said(c) for c in notified.claims] == [[b"q0"], [b"q1"]]
    assert await sql(store, "SELECT count(*) FROM deliveries WHERE due_at IS NOT NULL") == [(1,)]
    assert said(await take_one(store)) == [b"q2"]


async def test_what_waits_longer_goes_first(store: SqliteStore) -> None:
    await phones(store, 2)
    session = await acquire(store)
    await notify(store, session, b"q0")
    assert not (await notify(store, session, b"q1", places=anywhere())).claims
    assert [said(c) for c in await take(store)] == [[b"q0"], [b"q1"]]
    claims = (await notify(store, session, b"q1", places=anywhere())).claims
    assert not claims  # in flight
    assert (await store.backlog(Provider.APNS)).tokens == 0


async def test_other_providers_rooms_do_not_count(store: SqliteStore) -> None:
    await phones(store, 1)
    session = await acquire(store)
    assert not (await notify(store, session, b"q0", places={Provider.FCM: Room()})).claims


async def test_who_is_pushed_to_gets_what_arrives_meanwhile_in_the_next_push(
    store: SqliteStore, clock: FakeClock
) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    clock.pass_(1)
    [claim] = (await notify(store, session, b"a", places=anywhere())).claims
    woken: list[tuple[Provider, float]] = []
    store.watch(lambda provider, seconds: woken.append((provider, seconds)))
    assert not (await notify(store, session, b"b", (b"a", b"newer"), places=anywhere())).claims
    assert not await take(store)
    assert woken == []
    await store.record([delivered(claim)])
    assert woken == [(Provider.APNS, pytest.approx(0.02))]
    taken = await store.take(Provider.APNS, Room())
    assert not taken.claims
    assert taken.next_in == pytest.approx(0.02)
    clock.pass_(0.02)
    [claim] = await take(store)
    assert [(e.notifier_id, e.meta, e.sent) for e in claim.entries] == [(b"b", b"meta", False), (b"a", b"newer", False)]


async def test_what_arrives_just_after_a_push_waits_a_little(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    [claim] = (await notify(store, session, b"a", places=anywhere())).claims
    await store.record([delivered(claim)])
    woken: list[tuple[Provider, float]] = []
    store.watch(lambda provider, seconds: woken.append((provider, seconds)))
    clock.pass_(0.005)
    assert not (await notify(store, session, b"b", places=anywhere())).claims
    [(provider, seconds)] = woken
    assert (provider, seconds) == (Provider.APNS, pytest.approx(0.015))
    assert (await store.backlog(Provider.APNS)).tokens == 1
    clock.pass_(0.015)
    assert said(await take_one(store)) == [b"a", b"b"]


async def test_in_a_crowd_only_who_has_more_queues_waits_for_what_else_comes(
    store: SqliteStore, clock: FakeClock
) -> None:
    one, several = await activate(store), await activate(store, TABLET)
    await subscribe(store, one, b"a")
    await subscribe(store, several, b"b", b"c")
    session = await acquire(store)
    await notify(store, session, *(b"nobody's %d" % n for n in range(CROWD)))
    [claim] = (await notify(store, session, b"a", b"b", places=anywhere())).claims
    assert said(claim) == [b"a"]
    assert not await take(store, TABLET.provider)
    await notify(store, session, b"c", places=anywhere())
    clock.pass_(CROWDED + 0.02)  # nothing more comes
    assert said(await take_one(store, TABLET.provider)) == [b"b", b"c"]


async def test_who_waits_for_a_retry_goes_on_waiting(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    [claim] = (await notify(store, session, b"a", places=anywhere())).claims
    await store.record([again(claim, 10)])
    assert not (await notify(store, session, b"b", places=anywhere())).claims
    assert not await take(store)
    clock.pass_(10)
    assert said(await take_one(store)) == [b"a", b"b"]


async def test_claims_for_a_caller_who_is_gone_are_given_back(store: SqliteStore) -> None:
    await phones(store, 1)
    session = await acquire(store)
    task = asyncio.create_task(notify(store, session, b"q0", places=anywhere()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        while not (claims := await take(store)):
            await asyncio.sleep(0.01)
    assert said(claims[0]) == [b"q0"]


async def test_a_transaction_that_fails_hands_nothing_out(store: SqliteStore) -> None:
    """Memory is undone with it."""
    await phones(store, 2)
    session = await acquire(store)
    await notify(store, session, b"q0")

    def take_and_fail(c: sqlite3.Connection) -> None:
        from ntf_server.store.sqlite.taking import take as take_in

        assert take_in(c, store._state, Provider.APNS, Room()).claims
        raise LookupError("a fault in the operation")

    with pytest.raises(LookupError):
        await store._database.run(take_and_fail)
    assert said(await take_one(store)) == [b"q0"]


# --- what a push says


@pytest.mark.parametrize("count", [1, 6, 7, 20])
async def test_up_to_six_queues_the_oldest_first(store: SqliteStore, clock: FakeClock, count: int) -> None:
    token = await activate(store)
    queues = [b"%02d" % i for i in range(count)]
    await subscribe(store, token, *queues)
    session = await acquire(store)
    await notify(store, session, *queues)
    seen: list[bytes] = []
    while len(seen) < count:
        claim = await deliver(store)
        assert len(claim.entries) <= MAX_ENTRIES
        seen += [e.notifier_id for e in claim.entries if not e.sent]
        clock.pass_(0.02)
    assert seen == queues
    assert not await take(store)


async def test_what_was_sent_rides_along_in_the_order_of_arrival(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b", b"c")
    session = await acquire(store)
    await notify(store, session, b"a", b"b")
    await deliver(store)
    clock.pass_(1)
    await notify(store, session, b"a", b"c")
    claim = await take_one(store)
    assert [(e.notifier_id, e.sent) for e in claim.entries] == [(b"b", True), (b"a", False), (b"c", False)]
    assert claim.since == NOW + 1
    assert claim.delivered_before


async def test_a_verification_goes_before_messages_and_these_before_a_check(
    store: SqliteStore, clock: FakeClock
) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a")
    await store.set_period(token.ref, 1)
    session = await acquire(store)
    clock.pass_(66)
    await store.mark_checks(10)
    await notify(store, session, b"a")
    await register(store)
    for kind in (VERIFICATION, MESSAGES, CHECK):
        assert (await deliver(store)).kind is kind
        clock.pass_(0.02)
    assert not await take(store)


async def test_what_a_push_could_not_hold_stays_due(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b", b"c")
    session = await acquire(store)
    await notify(store, session, b"a", b"b", b"c")
    claim = await take_one(store)
    await store.record([delivered(claim, claim.entries[:1])])
    clock.pass_(0.02)
    claim = await take_one(store)
    assert [e.notifier_id for e in claim.entries if not e.sent] == [b"b", b"c"]


# --- outcomes


async def test_outcomes_of_all_kinds_at_once(store: SqliteStore, clock: FakeClock) -> None:
    tokens = await phones(store, 6)
    session = await acquire(store)
    claims = (await notify(store, session, *(b"q%d" % i for i in range(6)), places=anywhere())).claims
    outcomes = [
        delivered(claims[0]),
        dead(claims[1]),
        again(claims[2], 5),
        Outcome(claims[3], Ended.OURS, "x" * 1000, after=60),
        untried(claims[4], 2),
        Outcome(claims[5], Ended.EXPIRED),
    ]
    assert await store.record(outcomes) == 0
    assert await store.record(outcomes) == 6  # they are claimed no more
    statuses = [(await look(store, token)).status for token in tokens]
    assert statuses == [TokenStatus.ACTIVE, TokenStatus.INVALID] + [TokenStatus.ACTIVE] * 4
    pushed = [await store.last_push(token.ref) for token in tokens]
    assert [p and p.outcome for p in pushed] == ["delivered", "dead", "again", "ours", None, "expired"]
    assert pushed[3] is not None
    assert len(pushed[3].reason) == 200
    due = []
    for seconds in (0.02, 1.98, 3, 55):
        clock.pass_(seconds)
        due.append([(said(c), c.attempts) for c in await take(store)])
    assert due == [[([b"q5"], 0)], [([b"q4"], 0)], [([b"q2"], 1)], [([b"q3"], 1)]]


async def test_nothing_at_once(store: SqliteStore) -> None:
    assert await store.record([]) == 0


async def test_a_copy_of_a_claim_is_no_claim(store: SqliteStore) -> None:
    await register(store)
    claim = await take_one(store)
    copy = Claim(**{name: getattr(claim, name) for name in Claim.__slots__})
    assert await store.record([delivered(copy)]) == 1
    assert await store.record([delivered(claim)]) == 0


async def test_a_dead_answer_ends_everything_until_the_token_is_verified(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a")
    session = await acquire(store)
    await notify(store, session, b"a")
    await store.record([dead(await take_one(store))])
    clock.pass_(1)
    await notify(store, session, b"a", places=anywhere())
    assert not await take(store)
    await register(store)
    assert (await deliver(store)).kind is VERIFICATION
    assert await store.verify(token.ref, CODE)
    clock.pass_(1)
    assert said(await take_one(store)) == [b"a"]


async def test_a_delivered_code_confirms_only_a_registered_token(store: SqliteStore) -> None:
    token = await activate(store)
    await register(store)
    await deliver(store)
    assert (await look(store, token)).status is TokenStatus.ACTIVE


# --- times to live


async def test_a_code_is_given_up_after_its_time(store: SqliteStore, clock: FakeClock) -> None:
    await register(store)
    clock.pass_(600)
    assert not await take(store)
    assert (await store.backlog(Provider.APNS)).tokens == 0


async def test_messages_are_given_up_after_their_time_and_counted(store: SqliteStore, clock: FakeClock) -> None:
    from ntf_server.observe.names import KindCounter

    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    await notify(store, session, b"a")
    clock.pass_(24 * 3600 - 1)
    await notify(store, session, b"b")
    clock.pass_(1)
    assert said(await take_one(store)) == [b"b"]
    assert store._metrics.value(KindCounter.EXPIRED, "notification") == 1
    assert await sql(store, "SELECT sent FROM notifications ORDER BY seq") == [(content.EXPIRED,), (0,)]


async def test_what_expired_does_not_ride_along(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    await notify(store, session, b"a")
    clock.pass_(24 * 3600)
    assert not await take(store)
    await notify(store, session, b"b")
    assert said(await take_one(store)) == [b"b"]


async def test_an_expired_outcome_gives_up_only_what_is_over(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    session = await acquire(store)
    await notify(store, session, b"a")
    clock.pass_(1)
    await notify(store, session, b"b")
    claim = await take_one(store)
    clock.pass_(24 * 3600 - 1)
    await store.record([Outcome(claim, Ended.EXPIRED)])
    clock.pass_(0.02)
    assert said(await take_one(store)) == [b"b"]


# --- over restarts


async def test_everything_that_was_not_delivered_is_due_after_reopening(path: Path) -> None:
    clock = FakeClock()
    store = await SqliteStore.open(path, master_key=MASTER, clock=clock.clock)
    await phones(store, 5)
    code = await register(store, DeviceToken(Provider.APNS, b"code"), b"another key")
    session = await acquire(store)
    await take(store)
    claims = (await notify(store, session, *(b"q%d" % i for i in range(4)), places=anywhere(3))).claims
    await store.record([delivered(claims[0]), again(claims[1], 3000)])
    await store.close()
    store = await SqliteStore.open(path, master_key=MASTER, clock=clock.clock)
    found = await take(store)
    assert sorted((c.kind, said(c)) for c in found) == [(VERIFICATION, []), (MESSAGES, [b"q2"]), (MESSAGES, [b"q3"])]
    assert code.ref in {c.token for c in found}
    clock.pass_(3000)
    assert said(await take_one(store)) == [b"q1"]
    await store.close()


async def test_a_retry_that_a_wrong_clock_put_far_off_is_due_after_reopening(path: Path) -> None:
    store = await SqliteStore.open(path, master_key=MASTER, clock=FakeClock(NOW + 365 * 86400).clock)
    await register(store)
    await store.record([again(await take_one(store), 10)])
    await store.close()
    store = await SqliteStore.open(path, master_key=MASTER, clock=FakeClock(NOW).clock)
    assert (await take_one(store)).registered_at == NOW
    await store.close()


async def test_what_came_while_the_clock_was_wrong_is_due_after_reopening(path: Path) -> None:
    store = await SqliteStore.open(path, master_key=MASTER, clock=FakeClock(NOW + 3600).clock)
    await phones(store, 1)
    session = await acquire(store)
    assert (await notify(store, session, b"q0", places=anywhere(1))).claims
    await register(store, TABLET)
    assert await take_one(store, Provider.APNS_SANDBOX)
    await store.close()
    store = await SqliteStore.open(path, master_key=MASTER, clock=FakeClock(NOW).clock)
    assert said(await take_one(store)) == [b"q0"]
    assert (await take_one(store, Provider.APNS_SANDBOX)).kind is VERIFICATION
    await store.close()


# --- the clock


@pytest.mark.parametrize("step", [25 * 3600.0, 400 * 86400.0, -400 * 86400.0, 365 * 86400.0])
async def test_a_step_of_the_clock_expires_nothing_and_lets_nothing_wait(
    store: SqliteStore, clock: FakeClock, step: float
) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    await store.set_period(token.ref, 20)
    session = await acquire(store)
    await notify(store, session, b"a")
    await store.record([again(await take_one(store), 30)])
    await register(store, TABLET)
    clock.pass_(10)
    clock.set_by(step)
    assert (await take_one(store, Provider.APNS_SANDBOX)).kind is VERIFICATION
    taken = await store.take(Provider.APNS, Room())
    assert not taken.claims
    assert taken.next_in == pytest.approx(20, abs=1)
    clock.pass_(21)
    claim = await take_one(store)
    assert said(claim) == [b"a"]
    assert claim.since == pytest.approx(clock.now - 31, abs=2)
    await store.record([delivered(claim)])
    assert await store.mark_checks(10) == 0
    clock.pass_(22 * 60)
    assert await store.mark_checks(10) == 1


async def test_what_was_stamped_before_a_step_and_stored_after_it_is_not_late(
    store: SqliteStore, clock: FakeClock
) -> None:
    clock.set_by(-400 * 86400)
    token = await activate(store)
    await subscribe(store, token, b"a")
    session = await acquire(store)
    stamped = arrived(store, session, [b"a"])
    clock.set_by(400 * 86400)
    [claim] = (await store.notify(session, stamped, anywhere())).claims
    assert claim.since == NOW


async def test_a_step_is_counted_and_told(
    store: SqliteStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    from ntf_server.observe.names import Counter

    clock.set_by(-3600)
    await store.tend()
    await store.tend()
    assert store._metrics.value(Counter.CLOCK_STEPS) == 1
    assert "the clock was set by -3600 s" in caplog.text


# --- batches and their plain twins

BLOCKS = st.lists(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c" * 24, b"zz"]), st.binary(max_size=4)), max_size=8), max_size=6
)


@settings(max_examples=40, deadline=None)
@given(blocks=BLOCKS, stamps=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_blocks_are_stored_as_one_by_one(blocks: list[list[tuple[bytes, bytes]]], stamps: list[int]) -> None:
    async def compare() -> None:
        connections = [sqlite3.connect(":memory:", isolation_level=None) for _ in range(2)]
        stores = [await SqliteStore.open(c, master_key=MASTER, clock=FakeClock().clock) for c in connections]
        for store in stores:
            token = await activate(store)
            await subscribe(store, token, b"a", b"b", b"c" * 24)
        sessions = [await acquire(store) for store in stores]
        for block, stamp in zip(blocks, stamps, strict=False):
            rows = [
                Notification(n.notifier_id, n.seq, NOW - stamp - i % 2, n.nonce, n.meta)
                for i, n in enumerate(arrived(stores[0], sessions[0], block))
            ]
            await stores[0].notify(sessions[0], rows, NO_PLACES)
            for n in rows:
                connections[1].execute(
                    "INSERT INTO notifications SELECT ref, token, ?, ?, ?, ?, 0 FROM subscriptions"
                    " WHERE notifier_id = ? ON CONFLICT (subscription) DO UPDATE SET seq = excluded.seq,"
                    " received_at = excluded.received_at, nonce = excluded.nonce, meta = excluded.meta, sent = 0",
                    (n.seq, n.received_at, n.nonce, n.meta, n.notifier_id),
                )
        everything = "SELECT * FROM notifications ORDER BY subscription"
        assert connections[0].execute(everything).fetchall() == connections[1].execute(everything).fetchall()
        for store, connection in zip(stores, connections, strict=True):
            await store.close()
            connection.close()

    asyncio.run(compare())


async def test_what_many_tokens_are_sent_is_what_each_is_sent_alone(store: SqliteStore, clock: FakeClock) -> None:
    """The batch statements of content.py, against one token at a time."""
    tokens = [await activate(store, DeviceToken(Provider.APNS, b"%d" % i)) for i in range(12)]
    session = await acquire(store)
    for i, token in enumerate(tokens):
        await subscribe(store, token, *(b"%d.%d" % (i, j) for j in range(i)))
        await notify(store, session, *(b"%d.%d" % (i, j) for j in range(i)))
    for claim in await take(store):
        await store.record([delivered(claim, claim.entries[: len(claim.entries) // 2])])
    clock.pass_(1)
    together = [(c.token, c.kind, c.since, [(e.seq, e.sent) for e in c.entries]) for c in await take(store)]
    plain = await store._database.run(_plain_content)
    assert [(token, [(seq, sent) for seq, sent in entries]) for token, _, _, entries in together] == plain


def _plain_content(c: sqlite3.Connection) -> list[tuple[int, list[tuple[int, bool]]]]:
    out = []
    for (token,) in c.execute("SELECT ref FROM tokens ORDER BY ref").fetchall():
        unsent = c.execute(
            "SELECT seq FROM notifications WHERE token = ? AND sent = 0 ORDER BY seq LIMIT 6", (token,)
        ).fetchall()
        earlier = c.execute(
            "SELECT seq FROM notifications WHERE token = ? AND sent = 1 ORDER BY seq DESC LIMIT ?",
            (token, 6 - len(unsent)),
        ).fetchall()
        if unsent:
            out.append((token, sorted([(seq, False) for (seq,) in unsent] + [(seq, True) for (seq,) in earlier])))
    return out


@pytest.mark.parametrize(
    "name", ["_NOTIFY", "_OWNERS", "_SENT", "_VERIFIED", "_CHECKED", "_DEAD", "_DELIVERED", "_ENDED", "_UNTRIED"]
)
async def test_no_statement_goes_through_a_whole_table(store: SqliteStore, name: str) -> None:
    query: str = getattr(module, name)
    names = "server at ids id_size count first received_at nonces nonce_size metas meta_size rows now push_ids"
    parameters = {n: "[]" if n == "rows" else 0 for n in names.split()}
    scans = [detail for detail in await plan(store, query, parameters) if detail.startswith("SCAN")]
    assert all(any(virtual in d for virtual in (" o ", " i", " j ", "CONSTANT")) for d in scans), scans
