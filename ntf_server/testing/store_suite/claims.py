"""Claims: one of a token at a time, refused when it is over, lost with its holder."""

import asyncio
import contextlib

from msgspec.structs import replace

from ntf_server.store.records import Claim, Ended, Outcome, PushKind, Replacement
from ntf_server.testing.store_suite.medium import (
    ROOM,
    Bench,
    Times,
    acquire,
    activate,
    again,
    dead,
    delivered,
    device,
    drain,
    known,
    names,
    new_token,
    notify,
    record,
    register,
    stamp,
    status,
    subscribe,
    take,
    take_cool,
    take_nothing,
    take_one,
)
from smp_bridge.ntf import InvalidReason, Provider, TokenStatus


async def a_claimed_token_is_not_handed_out(bench: Bench) -> None:
    """Whatever becomes due for it meanwhile; that is due when the claim has ended, and a moment after a push."""
    store = await bench.open(Times(spacing=0.5))
    token = await activate(store, 1)
    await subscribe(store, token, b"1", b"2")
    session = await acquire(store)
    await notify(store, session, b"1", meta=b"old")
    claim = await take_one(store)
    await notify(store, session, b"1", meta=b"new")
    assert (await notify(store, session, b"2", places={Provider.APNS: ROOM})).claims == []
    bench.clock.pass_(60)
    taken = await store.take(Provider.APNS, ROOM)
    assert taken.claims == []
    assert (await store.backlog(Provider.APNS)).tokens == 0
    await record(store, delivered(claim))
    assert await take(store) == []
    assert (await store.backlog(Provider.APNS)).tokens == 1
    next_in = (await store.take(Provider.APNS, ROOM)).next_in
    assert next_in is not None
    assert 0 < next_in <= 0.5
    bench.clock.pass_(0.6)
    second = await take_one(store)
    assert [(e.notifier_id, e.meta) for e in second.entries if not e.sent] == [(b"1", b"new"), (b"2", b"meta")]


async def what_comes_together_goes_out_together(bench: Bench) -> None:
    """After a push a token rests for a moment; a claim is not handed out at once then."""
    store = await bench.open(Times(spacing=0.5))
    token = await activate(store, 1)
    await subscribe(store, token, b"1", b"2", b"3")
    session = await acquire(store)
    await take_nothing(store)
    places = {Provider.APNS: ROOM}
    [claim] = (await notify(store, session, b"1", places=places)).claims
    await record(store, delivered(claim))
    for queue in (b"2", b"3"):
        assert (await notify(store, session, queue, places=places)).claims == []
    bench.clock.pass_(0.6)
    assert [e.notifier_id for e in (await take_one(store)).entries if not e.sent] == [b"2", b"3"]


async def a_quiet_token_is_pushed_at_once(bench: Bench) -> None:
    """The rest after a push is over."""
    store = await bench.open(Times(spacing=0.5))
    token = await activate(store, 1)
    await subscribe(store, token, b"1")
    session = await acquire(store)
    await take_nothing(store)
    for _ in range(3):
        [claim] = (await notify(store, session, b"1", places={Provider.APNS: ROOM})).claims
        await record(store, delivered(claim))
        bench.clock.pass_(0.6)


async def notify_hands_out_where_there_is_room(bench: Bench) -> None:
    """No more than that; the rest is due. What it hands out is claimed."""
    store = await bench.open()
    for n in range(5):
        await subscribe(store, await activate(store, n), b"%d" % n)
    session = await acquire(store)
    await take_nothing(store)
    queues = [b"%d" % n for n in range(5)]
    notified = await notify(store, session, *queues, places={Provider.APNS: ROOM._replace(total=2)})
    assert len(notified.claims) == 2
    assert (await store.backlog(Provider.APNS)).tokens == 3
    rest = await take(store)
    assert {q for c in notified.claims + rest for q in names(c)} == set(queues)
    assert len(rest) == 3
    assert (await notify(store, session, *queues, places={Provider.FCM: ROOM})).claims == []


async def notify_hands_out_what_it_stored(bench: Bench) -> None:
    """With all that the token's push holds, of earlier ones too; each token once."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"1", b"2", b"3")
    session = await acquire(store)
    await notify(store, session, b"1")
    block = stamp(store, session, b"2", b"3", b"2")
    notified = await store.notify(session, block, {Provider.APNS: ROOM})
    claims = notified.claims + await take(store)
    assert [names(c) for c in claims] == [[b"1", b"3", b"2"]]
    assert claims[0].entries[2].seq == block[2].seq


async def notify_passes_nobody_who_waits(bench: Bench) -> None:
    """Places go to who has waited for longer, if not by this call then by the next."""
    store = await bench.open()
    waiting, late = await activate(store, 1), await activate(store, 2)
    await subscribe(store, waiting, b"1")
    await subscribe(store, late, b"2")
    session = await acquire(store)
    await notify(store, session, b"1")
    bench.clock.pass_(5)
    one = ROOM._replace(total=1)
    claims = (await notify(store, session, b"2", places={Provider.APNS: one})).claims
    claims += await take(store, places=one)
    assert claims[0].token == waiting.ref


async def a_newer_notification_stays_due(bench: Bench) -> None:
    """What was pushed is the older one."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    session = await acquire(store)
    await notify(store, session, b"queue", meta=b"old")
    claim = await take_one(store)
    await notify(store, session, b"queue", meta=b"new")
    await record(store, delivered(claim))
    [second] = await take_cool(bench, store)
    assert [(e.meta, e.sent) for e in second.entries] == [(b"new", False)]


async def a_claim_ends_once(bench: Bench) -> None:
    """What is not claimed any more is refused, counted, and nothing of it recorded."""
    store = await bench.open()
    tokens = [await register(store, new_token(n)) for n in range(2)]
    claim, other = await take(store)
    await record(store, again(claim))
    assert await store.record([dead(claim), delivered(other)]) == 1
    first, second = tokens if claim.token == tokens[0].ref else tokens[::-1]
    assert (await known(store, first)).status is TokenStatus.REGISTERED
    assert (await known(store, second)).status is TokenStatus.CONFIRMED
    assert await store.record([]) == 0
    bench.clock.pass_(1)
    anew = await take_one(store)
    assert await store.record([dead(claim)]) == 1  # the claim of now is another
    await record(store, delivered(anew))
    assert (await known(store, first)).status is TokenStatus.CONFIRMED


async def a_kill_gives_claims_back(bench: Bench) -> None:
    """What was taken and not recorded is due again, and the old claim is worth nothing."""
    store = await bench.open()
    token, quiet = await activate(store, 1), await register(store, new_token(2))
    await subscribe(store, token, b"queue")
    await notify(store, await acquire(store), b"queue")
    claims = await take(store)
    assert len(claims) == 2
    store = await bench.reopen(store, kill=True)
    bench.clock.pass_(60)  # a shared engine gives up on the dead node after a while
    assert await store.record([dead(c) for c in claims]) == 2
    assert {(c.token, c.kind) for c in await take(store)} == {
        (token.ref, PushKind.MESSAGES),
        (quiet.ref, PushKind.VERIFICATION),
    }
    assert await status(store, token) == (TokenStatus.ACTIVE, None)


async def a_code_that_came_meanwhile_is_pushed(bench: Bench) -> None:
    """TRPL while the code before it is under way: that push says nothing of the new device token."""
    store = await bench.open()
    token = await register(store, new_token(1))
    old = await take_one(store)
    assert await store.replace(token.ref, Replacement(device(2), b"c" * 32))
    await store.record([delivered(old)])
    assert (await known(store, token)).status is TokenStatus.REGISTERED
    claims = await take(store) or await take_cool(bench, store)
    assert [(c.device, c.code, c.delivered_before) for c in claims] == [(device(2), b"c" * 32, False)]
    assert claims[0].registration != old.registration


async def a_dead_device_token_is_not_the_next_ones_end(bench: Bench) -> None:
    """DEAD of the device token before TRPL, or before TNEW."""
    store = await bench.open()
    token = await register(store, new_token(1))
    old = await take_one(store)
    assert await store.replace(token.ref, Replacement(device(2), b"c" * 32))
    await store.record([dead(old)])
    assert await status(store, token) == (TokenStatus.REGISTERED, None)
    [claim] = await take(store) or await take_cool(bench, store)
    await register(store, replace(new_token(1), device=device(2)))
    await store.record([dead(claim)])
    assert await status(store, token) == (TokenStatus.REGISTERED, None)
    assert len(await take(store) or await take_cool(bench, store)) == 1


async def messages_of_an_old_registration_count(bench: Bench) -> None:
    """TNEW while a push of messages was under way: if that is taken or not, nothing is lost."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    await notify(store, await acquire(store), b"queue")
    claim = await take_one(store)
    await register(store, new_token(1))
    await store.record([delivered(claim)])
    kinds = [c.kind for c in await drain(bench, store)]
    assert kinds[0] is PushKind.VERIFICATION
    assert set(kinds[1:]) <= {PushKind.MESSAGES}


async def nothing_comes_of_a_deleted_token(bench: Bench) -> None:
    """TDEL while its push was under way: no error, whatever the outcome."""
    store = await bench.open()
    outcomes = []
    for n, end in enumerate(Ended):
        token = await register(store, new_token(n))
        claim = await take_one(store)
        await store.delete_token(token.ref)
        reason = InvalidReason.BAD if end is Ended.DEAD else None
        outcomes.append(Outcome(claim, end, "reason", dead=reason, after=1))
    await store.record(outcomes)
    bench.clock.pass_(10)
    assert await take(store) == []


async def nothing_comes_of_a_deleted_queue(bench: Bench) -> None:
    """SDEL while its notification was under way; the push's others are recorded."""
    store = await bench.open()
    token = await activate(store, 1)
    ids = await subscribe(store, token, b"1", b"2")
    await notify(store, await acquire(store), b"1", b"2")
    claim = await take_one(store)
    pair = await store.find_subscription(ids[0])
    assert pair is not None
    await store.unsubscribe(pair[1].ref)
    await record(store, delivered(claim))
    assert await drain(bench, store) == []


async def verifying_while_the_code_is_pushed(bench: Bench) -> None:
    """TVFY may overtake what came of its push: ACTIVE stays so."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    claim = await take_one(store)
    assert await store.verify(token.ref, new.code)
    await store.record([delivered(claim)])
    assert await status(store, token) == (TokenStatus.ACTIVE, None)
    assert await drain(bench, store) == []


async def a_dead_token_keeps_its_messages(bench: Bench) -> None:
    """Until it is registered and verified again."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    assert await store.verify(token.ref, new.code)
    await subscribe(store, token, b"1", b"2")
    session = await acquire(store)
    await notify(store, session, b"1")
    await record(store, dead(await take_one(store), InvalidReason.EXPIRED))
    assert await status(store, token) == (TokenStatus.INVALID, InvalidReason.EXPIRED)
    await notify(store, session, b"2")
    assert await drain(bench, store) == []
    assert (await store.backlog(Provider.APNS)).tokens == 0
    await register(store, new)
    assert await store.verify(token.ref, new.code)
    assert [names(c) for c in await drain(bench, store)] == [[b"1", b"2"]]


async def what_was_not_tried_is_due(bench: Bench) -> None:
    """A claim that is given back counts as no attempt."""
    store = await bench.open()
    await register(store, new_token(1))
    claim = await take_one(store)
    await record(store, Outcome(claim, Ended.UNTRIED))
    assert (await store.backlog(Provider.APNS)).tokens == 1
    bench.clock.pass_(0.01)
    anew = await take_one(store)
    assert (anew.attempts, anew.since) == (0, claim.since)
    await record(store, Outcome(anew, Ended.UNTRIED, after=5))
    assert await take(store) == []
    bench.clock.pass_(6)
    assert (await take_one(store)).attempts == 0


async def a_cancelled_take_strands_nothing(bench: Bench) -> None:
    """Nobody has the claims that it would have given: they are due again, soon."""
    store = await bench.open()
    wanted = {(await register(store, new_token(n))).ref for n in range(5)}
    for turns in range(8):
        task = asyncio.ensure_future(store.take(Provider.APNS, ROOM))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await store.record([Outcome(c, Ended.UNTRIED) for c in (await task).claims])
        claims: list[Claim] = []
        async with asyncio.timeout(5):
            while len(claims) < len(wanted):
                bench.clock.pass_(1)
                claims += await take(store)
                await asyncio.sleep(0.002)
        assert {c.token for c in claims} == wanted
        await record(store, *(Outcome(c, Ended.UNTRIED) for c in claims))
        bench.clock.pass_(1)


async def a_cancelled_notify_strands_nothing(bench: Bench) -> None:
    """It may be stored or not, but is not claimed by nobody."""
    store = await bench.open()
    await subscribe(store, await activate(store, 1), b"queue")
    session = await acquire(store)
    for turns in range(8):
        block = stamp(store, session, b"queue")
        task = asyncio.ensure_future(store.notify(session, block, {Provider.APNS: ROOM}))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        claims: list[Claim] = []
        with contextlib.suppress(asyncio.CancelledError):
            claims = (await task).claims
        if not claims:
            await store.notify(session, block, {})
            async with asyncio.timeout(5):
                while not (claims := await take_cool(bench, store)):
                    await asyncio.sleep(0.005)
        assert [e.seq for c in claims for e in c.entries] == [block[0].seq]
        await record(store, *map(delivered, claims))
        bench.clock.pass_(60)
