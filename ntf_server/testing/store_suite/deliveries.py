"""What is pushed: the newest notification of each queue, in which order, and how long it is worth it."""

from msgspec.structs import replace

from ntf_server.store.contract import Store
from ntf_server.store.records import MAX_ENTRIES, Ended, Outcome, PushKind
from ntf_server.testing.store_suite.medium import (
    DAY,
    OTHER_SMP,
    ROOM,
    SMP,
    Bench,
    Times,
    acquire,
    activate,
    again,
    delivered,
    drain,
    known,
    names,
    new_token,
    notify,
    record,
    register,
    stamp,
    subscribe,
    take,
    take_cool,
    take_one,
    tend,
)
from smp_bridge.ntf import Provider, TokenStatus


async def nothing_is_due_at_first(bench: Bench) -> None:
    """Of any provider; a subscribed queue alone is nothing to push."""
    store = await bench.open()
    await subscribe(store, await activate(store, 1), b"queue")
    for provider in Provider:
        taken = await store.take(provider, ROOM)
        assert (taken.claims, taken.next_in) == ([], None)
        assert (await store.backlog(provider)).tokens == 0


async def _oldest(store: Store, provider: Provider) -> float | None:
    found = await store.backlog(provider)
    return found.oldest if found.due else None


async def how_long_the_oldest_is_due(bench: Bench) -> None:
    """Of what is due now, whether the medium or memory says so; not of what waits, nor of other providers."""
    store = await bench.open()
    session = await acquire(store)
    for number, name in enumerate((b"one", b"two")):
        await subscribe(store, await activate(store, number), name)
        assert await _oldest(store, Provider.APNS) == (None if not number else 2.0)
        await notify(store, session, name)
        bench.clock.pass_(2)
    assert await _oldest(store, Provider.APNS) == 4.0
    assert await _oldest(store, Provider.FCM) is None
    claims = await take(store)
    assert len(claims) == 2
    assert await _oldest(store, Provider.APNS) is None
    await record(store, again(claims[0], 60.0), delivered(claims[1]))
    assert await _oldest(store, Provider.APNS) is None
    bench.clock.pass_(61)
    assert round(await _oldest(store, Provider.APNS) or 0.0, 1) == 1.0


async def what_works_is_well(bench: Bench) -> None:
    """And says so."""
    store = await bench.open()
    await activate(store, 1)
    assert store.pulse.failing is None


async def a_notification_is_pushed(bench: Bench) -> None:
    """As it arrived."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    assert await store.verify(token.ref, new.code)
    await subscribe(store, token, b"queue")
    session = await acquire(store)
    [nmsg] = stamp(store, session, b"queue", meta=b"\0sealed\xff")
    assert nmsg.received_at == int(bench.clock.wall())
    bench.clock.pass_(3)
    assert (await store.notify(session, [nmsg], {})).claims == []
    assert (await store.backlog(Provider.APNS)).tokens == 1
    claim = await take_one(store)
    assert (claim.kind, claim.device, claim.secret, claim.code) == (PushKind.MESSAGES, new.device, new.secret, b"")
    assert claim.since == nmsg.received_at
    [entry] = claim.entries
    assert (entry.server, entry.notifier_id, entry.seq, entry.sent) == (SMP, b"queue", nmsg.seq, False)
    assert (entry.received_at, entry.nonce, entry.meta) == (nmsg.received_at, nmsg.nonce, b"\0sealed\xff")
    assert (await store.backlog(Provider.APNS)).tokens == 0
    await record(store, delivered(claim))
    assert await drain(bench, store) == []


async def notifications_of_any_size_are_kept(bench: Bench) -> None:
    """One block may hold ids, nonces and metadata of different lengths, or none."""
    store = await bench.open()
    token = await activate(store, 1)
    queues = [b"a", b"b" * 24, b"c" * 255, b"\0'\"\xff"]
    await subscribe(store, token, *queues)
    session = await acquire(store)
    block = stamp(store, session, *queues)
    given = zip((b"", b"m" * 144, b"\0\0", b"'\""), (b"", b"n", b"\0" * 24, b"x"), strict=True)
    block = [replace(n, meta=meta, nonce=nonce) for n, (meta, nonce) in zip(block, given, strict=True)]
    assert (await store.notify(session, block, {})).unknown == 0
    entries = (await take_one(store)).entries
    assert [(e.notifier_id, e.nonce, e.meta) for e in entries] == [(n.notifier_id, n.nonce, n.meta) for n in block]


async def unknown_queues_are_counted(bench: Bench) -> None:
    """Those of another server, too."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    await subscribe(store, token, b"elsewhere", server=OTHER_SMP)
    session = await acquire(store)
    notified = await store.notify(session, stamp(store, session, b"queue", b"nobody's", b"elsewhere"), {})
    assert notified.unknown == 2
    assert names(await take_one(store)) == [b"queue"]
    assert (await store.notify(session, [], {})).unknown == 0


async def the_newest_of_a_queue_counts(bench: Bench) -> None:
    """The one with the highest number, in whatever order they are stored."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    session = await acquire(store)
    first, second, third = (stamp(store, session, b"queue", meta=m) for m in (b"1", b"2", b"3"))
    assert first[0].seq < second[0].seq < third[0].seq
    for block in (second, first, third):
        await store.notify(session, block, {})
    claim = await take_one(store)
    assert [e.meta for e in claim.entries] == [b"3"]
    await record(store, delivered(claim))
    await store.notify(session, second, {})  # repeated, as after an error
    await store.notify(session, third, {})
    assert await drain(bench, store) == []
    one, two = stamp(store, session, b"queue", b"queue")
    await store.notify(session, [replace(one, meta=b"one"), replace(two, meta=b"two")], {})
    assert [e.meta for e in (await take_cool(bench, store))[0].entries] == [b"two"]


async def numbers_grow_over_restarts(bench: Bench) -> None:
    """Or a notification after it would be taken for an older one."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    session = await acquire(store)
    for _ in range(10):
        await notify(store, session, b"queue", meta=b"before")
    await drain(bench, store)
    store = await bench.reopen(store, kill=True)
    session = await acquire(store)
    await notify(store, session, b"queue", meta=b"after")
    assert [e.meta for e in (await take_one(store)).entries] == [b"after"]


async def a_push_holds_the_oldest_first(bench: Bench) -> None:
    """Up to MAX_ENTRIES of them; then the rest, and the newest that were sent already ride along."""
    store = await bench.open()
    token = await activate(store, 1)
    queues = [b"queue %d" % n for n in range(MAX_ENTRIES + 2)]
    await subscribe(store, token, *queues)
    session = await acquire(store)
    for queue in queues:
        await notify(store, session, queue)
        bench.clock.pass_(1)
    first = await take_one(store)
    assert names(first) == queues[:MAX_ENTRIES]
    await record(store, delivered(first))
    [second] = await take_cool(bench, store)
    assert names(second) == queues[2:]
    assert [e.sent for e in second.entries] == [True] * 4 + [False] * 2
    assert second.since == second.entries[4].received_at
    await record(store, delivered(second))
    assert await take_cool(bench, store) == []


async def what_a_push_did_not_hold_stays_due(bench: Bench) -> None:
    """A body may have room for fewer."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"1", b"2", b"3")
    session = await acquire(store)
    await notify(store, session, b"1", b"2", b"3")
    claim = await take_one(store)
    await record(store, Outcome(claim, Ended.DELIVERED, held=claim.entries[:2]))
    [rest] = await take_cool(bench, store)
    assert [e.notifier_id for e in rest.entries if not e.sent] == [b"3"]


async def a_token_gets_verification_then_messages_then_check(bench: Bench) -> None:
    """One push each."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    await store.set_period(token.ref, 20)
    bench.clock.pass_(23 * 60)
    assert await store.mark_checks(10) == 1
    await notify(store, await acquire(store), b"queue")
    await register(store, new_token(1))
    kinds = [claim.kind for claim in await drain(bench, store)]
    assert kinds == [PushKind.VERIFICATION, PushKind.MESSAGES, PushKind.CHECK]


async def the_token_that_waits_longest_goes_first(bench: Bench) -> None:
    """Over all kinds of pushes."""
    store = await bench.open()
    tokens = [await activate(store, n) for n in range(6)]
    for n, token in enumerate(tokens):
        await subscribe(store, token, b"%d" % n)
    session = await acquire(store)
    order = [3, 1, 5, 0, 4, 2]
    for n in order:
        if n == 5:
            await register(store, new_token(5))
        else:
            await notify(store, session, b"%d" % n)
        bench.clock.pass_(0.5)
    taken = []
    for _ in order:
        taken += await take(store, places=ROOM._replace(total=1))
    assert [c.token for c in taken] == [tokens[n].ref for n in order]
    assert [c.since for c in taken] == sorted(c.since for c in taken)


async def no_more_are_taken_than_there_is_room_for(bench: Bench) -> None:
    """And what is left is said to be due."""
    store = await bench.open()
    for n in range(5):
        await register(store, new_token(n))
    assert await take(store, places=ROOM._replace(total=0)) == []
    taken = await store.take(Provider.APNS, ROOM._replace(total=3))
    assert len(taken.claims) == 3
    assert taken.next_in == 0
    assert (await store.backlog(Provider.APNS)).tokens == 2
    assert len((await store.take(Provider.APNS, ROOM)).claims) == 2


async def what_is_due_is_told_from_what_waits(bench: Bench) -> None:
    """And for how long it has been due; what is claimed counts nowhere."""
    store = await bench.open()
    assert await store.backlog(Provider.APNS) == (0, 0, 0)
    for n in range(2):
        await register(store, new_token(n))
        bench.clock.pass_(7)
    backlog = await store.backlog(Provider.APNS)
    assert backlog[:2] == (2, 0) and 13 < backlog.oldest <= 15
    [claim] = await take(store, places=ROOM._replace(total=1))
    backlog = await store.backlog(Provider.APNS)
    assert backlog[:2] == (1, 0) and 6 < backlog.oldest <= 8
    await record(store, again(claim, 30))
    assert (await store.backlog(Provider.APNS))[:2] == (1, 1)
    assert len(await take(store)) == 1
    assert await store.backlog(Provider.APNS) == (0, 1, 0)
    bench.clock.pass_(32)
    backlog = await store.backlog(Provider.APNS)
    assert backlog[:2] == (1, 0) and 1 < backlog.oldest <= 3
    assert await store.backlog(Provider.FCM) == (0, 0, 0)


async def providers_are_apart(bench: Bench) -> None:
    """What is due for one is not handed out for another."""
    store = await bench.open()
    wanted = {}
    for number, provider in enumerate(Provider):
        wanted[provider] = (await register(store, new_token(number, provider))).ref
    for provider, ref in wanted.items():
        assert (await store.backlog(provider)).tokens == 1
        assert [c.token for c in await take(store, provider)] == [ref]


async def due_state_survives_reopening(bench: Bench) -> None:
    """Codes, checks and messages, and nothing that was pushed."""
    store = await bench.open()
    tokens = [await activate(store, n) for n in range(3)]
    for n in (0, 1):
        await subscribe(store, tokens[n], b"%d" % n)
    await store.set_period(tokens[2].ref, 20)
    bench.clock.pass_(23 * 60)
    assert await store.mark_checks(10) == 1
    await notify(store, await acquire(store), b"0", b"1")
    await register(store, new_token(3))
    claims = await take(store, places=ROOM._replace(total=1))
    await record(store, *map(delivered, claims))
    for kill in (True, False):
        store = await bench.reopen(store, kill=kill)
        assert (await store.backlog(Provider.APNS)).tokens == 3
    assert len({c.token for c in claims + await drain(bench, store)}) == 4


# --- what came of it


async def an_accepted_code_confirms(bench: Bench) -> None:
    """REGISTERED becomes CONFIRMED, ACTIVE stays."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    await record(store, delivered(await take_one(store)))
    assert (await known(store, token)).status is TokenStatus.CONFIRMED
    await register(store, new)
    assert await store.verify(token.ref, new.code)
    await register(store, new)
    await record(store, *map(delivered, await take_cool(bench, store)))
    assert (await known(store, token)).status is TokenStatus.ACTIVE


async def a_claim_knows_of_earlier_deliveries(bench: Bench) -> None:
    """To this device token, over restarts; not to the one before it."""
    store = await bench.open()
    token = await register(store, new_token(1))
    claim = await take_one(store)
    await record(store, again(claim))
    [claim] = await take_cool(bench, store)
    assert not claim.delivered_before
    await record(store, delivered(claim))
    await register(store, new_token(1))
    [claim] = await take_cool(bench, store)
    assert claim.delivered_before
    store = await bench.reopen(store)
    assert (await take_one(store)).delivered_before
    assert (await known(store, token)).status is TokenStatus.CONFIRMED


# --- time to live


async def a_late_message_is_not_handed_out(bench: Bench) -> None:
    """When its time to live is over; one that came later is."""
    store = await bench.open(Times(message_ttl=100))
    tokens = [await activate(store, n) for n in range(2)]
    await subscribe(store, tokens[0], b"old", b"new")
    await subscribe(store, tokens[1], b"older")
    session = await acquire(store)
    await notify(store, session, b"old", b"older")
    bench.clock.pass_(60)
    await notify(store, session, b"new")
    bench.clock.pass_(60)
    claim = await take_one(store)
    assert [e.notifier_id for e in claim.entries if not e.sent] == [b"new"]
    await record(store, delivered(claim))
    assert await drain(bench, store) == []
    assert (await store.backlog(Provider.APNS)).tokens == 0
    await tend(bench, store)
    assert await bench.medium.expired(store) == 2


async def a_late_code_is_not_handed_out(bench: Bench) -> None:
    """It can still be used, and be asked for again."""
    store = await bench.open(Times(verification_ttl=600))
    new = new_token(1)
    token = await register(store, new)
    bench.clock.pass_(601)
    taken = await store.take(Provider.APNS, ROOM)
    assert (taken.claims, taken.next_in) == ([], None)
    assert (await store.backlog(Provider.APNS)).tokens == 0
    await tend(bench, store)
    assert await bench.medium.expired(store) == 1
    await register(store, new)
    assert (await take_one(store)).code == new.code
    assert await store.verify(token.ref, new.code)


async def messages_wait_behind_a_late_code(bench: Bench) -> None:
    """They are not given up with it."""
    store = await bench.open(Times(verification_ttl=600))
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    await register(store, new_token(1))
    await notify(store, await acquire(store), b"queue")
    bench.clock.pass_(601)
    claims = await take(store) + await drain(bench, store)
    assert [c.kind for c in claims] == [PushKind.MESSAGES]


async def what_nobody_takes_expires_too(bench: Bench) -> None:
    """By upkeep, while its provider is paused for longer than it is worth; each is counted once."""
    store = await bench.open(Times(message_ttl=1000, verification_ttl=600))
    for n in range(3):
        await subscribe(store, await activate(store, n), b"%d.1" % n, b"%d.2" % n)
    await register(store, new_token(9))
    session = await acquire(store)
    await notify(store, session, *(b"%d.%d" % (n, i) for n in range(3) for i in (1, 2)))
    [claim] = await take(store, places=ROOM._replace(total=1))
    bench.clock.pass_(1001)
    await tend(bench, store)
    await record(store, Outcome(claim, Ended.EXPIRED))
    assert await take_cool(bench, store) == []
    await tend(bench, store)
    assert await bench.medium.expired(store) == 7
    assert (await store.backlog(Provider.APNS)).tokens == 0
    store = await bench.reopen(store)
    assert await take(store) == []


async def an_expired_push_is_the_end_of_it(bench: Bench) -> None:
    """Whoever pushes may find that its time is over."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    session = await acquire(store)
    await notify(store, session, b"queue")
    claim = await take_one(store)
    bench.clock.pass_(DAY + 1)
    await record(store, Outcome(claim, Ended.EXPIRED))
    assert await drain(bench, store) == []
    await notify(store, session, b"queue")
    assert len(await take(store)) == 1
