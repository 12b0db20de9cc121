"""Registrations: TNEW, TVFY, TRPL, TDEL, TCRN, and the last push."""

import re

from msgspec.structs import replace

from ntf_server.store.contract import DamagedRecordError
from ntf_server.store.records import Added, Ended, Outcome, PushKind, Replacement
from ntf_server.testing.store_suite.medium import (
    MANY,
    SMP,
    Bench,
    acquire,
    activate,
    again,
    as_found,
    dead,
    delivered,
    device,
    known,
    new_queue,
    new_token,
    notify,
    pages,
    record,
    register,
    stamp,
    status,
    subscribe,
    take,
    take_cool,
    take_one,
    tend,
)
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, TokenStatus

# --- TNEW


async def a_new_token_is_registered_and_its_code_due(bench: Bench) -> None:
    """What TNEW gave is what the push is made of."""
    store = await bench.open()
    new = replace(new_token(1), app="chat.simplex.app")
    token = await register(store, new)
    assert (token.token_id, token.verify_key) == (new.token_id, new.verify_key)
    assert (token.server_dh, token.status, token.reason, token.period) == (
        *(new.server_dh, TokenStatus.REGISTERED, None, 0),
    )
    assert await known(store, token) == as_found(token)
    claim = await take_one(store)
    assert (claim.token, claim.device, claim.secret, claim.code) == (token.ref, new.device, new.secret, new.code)
    assert (claim.kind, claim.entries, claim.attempts) == (PushKind.VERIFICATION, (), 0)
    assert (claim.app, claim.vapid_key, claim.delivered_before) == ("chat.simplex.app", b"vapid", False)
    assert claim.registered_at == claim.since == int(bench.clock.wall())
    assert len(claim.push_id) == 16


async def a_token_survives_reopening(bench: Bench) -> None:
    """With all that is asked of it later."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    store = await bench.reopen(store)
    assert replace(await known(store, token), ref=token.ref) == as_found(token)
    claim = await take_one(store)
    assert (claim.device, claim.secret, claim.code) == (new.device, new.secret, new.code)


async def the_same_registration_is_found_again(bench: Bench) -> None:
    """With its first id, key and code, which is pushed once more."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    await record(store, delivered(await take_one(store)))
    assert await status(store, token) == (TokenStatus.CONFIRMED, None)
    assert await take_cool(bench, store) == []
    repeated = await register(store, replace(new_token(1), server_dh=b"s" * 32))
    assert (repeated.token_id, repeated.server_dh) == (token.token_id, token.server_dh)
    assert repeated.status is TokenStatus.CONFIRMED
    claim = await take_one(store)
    assert (claim.kind, claim.code) == (PushKind.VERIFICATION, new.code)
    assert await store.verify(token.ref, new.code)


async def tokens_of_apns_have_no_case(bench: Bench) -> None:
    """They are hex (wire.md, section 6): one token however it is spelled. Those of others have."""
    store = await bench.open()
    new = new_token(1)
    upper = replace(new_token(1), device=DeviceToken(Provider.APNS, new.device.token.upper()))
    token = await register(store, new)
    assert (await register(store, upper)).token_id == token.token_id
    ids = set()
    for text in (b"abcdef", b"ABCDEF"):
        fcm = replace(new_token(2), token_id=text * 4, device=DeviceToken(Provider.FCM, text))
        ids.add((await register(store, fcm)).token_id)
    assert len(ids) == 2


async def another_client_key_is_refused(bench: Bench) -> None:
    """None, and nothing has changed."""
    store = await bench.open()
    token = await activate(store, 1)
    assert await store.register(replace(new_token(1), client_dh=b"x" * 32)) is None
    assert await status(store, token) == (TokenStatus.ACTIVE, None)
    assert (await store.backlog(Provider.APNS)).tokens == 0


async def another_verify_key_is_another_registration(bench: Bench) -> None:
    """Of the same device token: both live until one is verified."""
    store = await bench.open()
    first = await register(store, new_token(1))
    second = await register(store, new_token(1, key=b"another key"))
    assert first.token_id != second.token_id
    assert {c.token for c in await take(store)} == {first.ref, second.ref}


async def a_dead_token_is_revived(bench: Bench) -> None:
    """By TNEW, REGISTERED; an ACTIVE one stays ACTIVE."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    await record(store, dead(await take_one(store)))
    assert await status(store, token) == (TokenStatus.INVALID, InvalidReason.UNREGISTERED)
    assert not await store.verify(token.ref, new.code)
    revived = await register(store, new_token(1))
    assert (revived.token_id, revived.status, revived.reason) == (token.token_id, TokenStatus.REGISTERED, None)
    assert await store.verify(token.ref, new.code)
    assert (await register(store, new_token(1))).status is TokenStatus.ACTIVE


async def unknown_ids_find_nothing(bench: Bench) -> None:
    """None."""
    store = await bench.open()
    assert await store.find_token(bytes(24)) is None
    assert await store.find_subscription(bytes(24)) is None


async def a_damaged_token_is_set_aside(bench: Bench) -> None:
    """It cannot be found or pushed to; everybody else is pushed to, and what is done with it again and again works."""
    store = await bench.open()
    tokens = [await register(store, new_token(n)) for n in range(5)]
    await bench.medium.damage_token(store, tokens[1].token_id)
    taken = await take(store)
    for _ in range(5):  # it may take several turns to set it aside
        taken += await take(store)
    assert {c.token for c in taken} == {t.ref for t in tokens if t is not tokens[1]}
    assert await store.record([delivered(c) for c in taken]) == 0
    try:
        await store.find_token(tokens[1].token_id)
    except DamagedRecordError as e:
        assert tokens[1].token_id.hex() not in str(e)
    else:
        raise AssertionError("a damaged token was found")
    assert await take_cool(bench, store) == []


async def a_damaged_queue_is_set_aside(bench: Bench) -> None:
    """The pages of its server do not have it, nor end with it."""
    store = await bench.open()
    token = await activate(store, 1)
    ids = await subscribe(store, token, *(b"queue %d" % n for n in range(7)))
    await bench.medium.damage_subscription(store, ids[3])
    session = await acquire(store)
    wanted = {w.notifier_id for w in await pages(store, session)}
    assert wanted == {b"queue %d" % n for n in range(7) if n != 3}
    await notify(store, session, b"queue 4")
    assert len(await take(store)) == 1


# --- TVFY


async def a_code_verifies(bench: Bench) -> None:
    """ACTIVE, and it is not pushed any more; twice as well as once."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    assert not await store.verify(token.ref, b"x" * 32)
    assert not await store.verify(token.ref, new.code[:-1])
    assert await status(store, token) == (TokenStatus.REGISTERED, None)
    assert await store.verify(token.ref, new.code)
    assert await status(store, token) == (TokenStatus.ACTIVE, None)
    assert await take(store) == []
    assert await store.verify(token.ref, new.code)


async def verifying_deletes_other_registrations(bench: Bench) -> None:
    """Those of the device token, with their subscriptions; nobody else's."""
    store = await bench.open()
    loser, winner, other = new_token(1), new_token(1, key=b"another key"), await activate(store, 2)
    first = await register(store, loser)
    assert await store.verify(first.ref, loser.code)
    [subscription] = await subscribe(store, first, b"queue")
    second = await register(store, winner)
    assert await status(store, first) == (TokenStatus.ACTIVE, None)
    assert await store.verify(second.ref, winner.code)
    assert await store.find_token(first.token_id) is None
    assert await store.find_subscription(subscription) is None
    assert not await store.verify(first.ref, loser.code)
    assert await status(store, other) == (TokenStatus.ACTIVE, None)
    await subscribe(store, second, b"queue")


async def messages_wait_for_verification(bench: Bench) -> None:
    """They are due when the token is ACTIVE."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    assert await store.verify(token.ref, new.code)
    await subscribe(store, token, b"queue")
    assert await store.replace(token.ref, Replacement(device(2), b"c" * 32))
    await record(store, delivered(await take_one(store)))
    session = await acquire(store)
    await notify(store, session, b"queue")
    assert await take_cool(bench, store) == []
    assert (await store.backlog(Provider.APNS)).tokens == 0
    assert await store.verify(token.ref, b"c" * 32)
    assert (await take_one(store)).kind is PushKind.MESSAGES


# --- TRPL


async def replacing_takes_the_new_device_token(bench: Bench) -> None:
    """With a new code, REGISTERED; id, keys and subscriptions stay."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    assert await store.verify(token.ref, new.code)
    [subscription] = await subscribe(store, token, b"queue")
    origin = "https://push.example.org"
    replacement = Replacement(device(2, Provider.WEB_PUSH), b"c" * 32, origin, vapid_key=b"k")
    assert await store.replace(token.ref, replacement)
    found = await known(store, token)
    assert found == replace(as_found(token), status=TokenStatus.REGISTERED, proven=True)
    assert await take(store) == []
    claim = await take_one(store, Provider.WEB_PUSH)
    assert (claim.device, claim.code, claim.vapid_key) == (replacement.device, b"c" * 32, b"k")
    assert claim.lane.provider is Provider.WEB_PUSH
    assert len(claim.lane.origin) == 16
    assert claim.secret == new.secret
    assert not await store.verify(token.ref, new.code)
    assert await store.verify(token.ref, b"c" * 32)
    assert await store.find_subscription(subscription) is not None


async def replacing_by_another_registration_is_refused(bench: Bench) -> None:
    """The pair of device token and verify key is one registration; its own may be repeated."""
    store = await bench.open()
    first = await activate(store, 1)
    other = await register(store, new_token(2, key=first.verify_key))
    for spelled in (device(2).token, device(2).token.upper()):
        assert not await store.replace(first.ref, Replacement(DeviceToken(Provider.APNS, spelled), b"c" * 32))
    assert await status(store, first) == (TokenStatus.ACTIVE, None)
    assert (await register(store, new_token(1))).token_id == first.token_id  # it has its device token still
    assert await status(store, other) == (TokenStatus.REGISTERED, None)
    await register(store, new_token(3))
    assert await store.replace(first.ref, Replacement(device(3), b"c" * 32))  # with another key
    assert await store.replace(first.ref, Replacement(device(3), b"d" * 32))  # itself


async def a_replaced_pair_is_free(bench: Bench) -> None:
    """TNEW with the old device token makes a new registration."""
    store = await bench.open()
    token = await activate(store, 1)
    assert await store.replace(token.ref, Replacement(device(2), b"c" * 32))
    assert (await register(store, new_token(1))).token_id != token.token_id


async def replacing_what_is_gone_is_refused(bench: Bench) -> None:
    """False."""
    store = await bench.open()
    token = await activate(store, 1)
    await store.delete_token(token.ref)
    assert not await store.replace(token.ref, Replacement(device(2), b"c" * 32))
    assert (await store.backlog(Provider.APNS)).tokens == 0


# --- an operator's


async def tokens_of_a_status_are_made_invalid(bench: Bench) -> None:
    """In slices, and no others; what waits for them goes out once they were registered again and verified."""
    store = await bench.open()
    new = new_token(1)
    first = await register(store, new)
    assert await store.verify(first.ref, new.code)
    active = [first, *[await activate(store, number) for number in range(2, 8)]]
    other = await register(store, new_token(8))
    await subscribe(store, first, b"queue")
    await notify(store, await acquire(store), b"queue")
    total, after, slices = 0, None, 0
    while after is not None or not slices:
        count, after = await store.invalidate(TokenStatus.ACTIVE, InvalidReason.BAD, after, 3)
        total, slices = total + count, slices + 1
        assert count <= 3
    assert total == len(active)
    assert {await status(store, t) for t in active} == {(TokenStatus.INVALID, InvalidReason.BAD)}
    assert await status(store, other) == (TokenStatus.REGISTERED, None)
    assert [(c.token, c.kind) for c in await take_cool(bench, store)] == [(other.ref, PushKind.VERIFICATION)]
    assert (await register(store, new_token(1))).token_id == first.token_id
    assert await status(store, first) == (TokenStatus.REGISTERED, None)
    assert await store.verify(first.ref, new.code)
    assert [c.kind for c in await take_cool(bench, store)] == [PushKind.MESSAGES]


async def a_claim_of_one_made_invalid_may_end(bench: Bench) -> None:
    """In whatever way; it is pushed to no more."""
    store = await bench.open()
    tokens = [await register(store, new_token(number)) for number in range(3)]
    claims = {c.token: c for c in await take(store)}
    await store.invalidate(TokenStatus.REGISTERED, InvalidReason.TOPIC, None, 10)
    held = [claims[t.ref] for t in tokens]
    await record(store, delivered(held[0]), again(held[1]), dead(held[2], InvalidReason.BAD))
    reasons = {await status(store, t) for t in tokens}
    assert reasons == {(TokenStatus.INVALID, InvalidReason.TOPIC), (TokenStatus.INVALID, InvalidReason.BAD)}
    assert await take_cool(bench, store) == []


# --- TDEL


async def a_deleted_token_is_gone_at_once(bench: Bench) -> None:
    """Nobody finds it or its subscriptions, and upkeep clears what they take up."""
    store = await bench.open()
    token, other = await activate(store, 1), await activate(store, 2)
    queues = [b"queue %d" % n for n in range(MANY)]
    ids = await subscribe(store, token, *queues)
    await subscribe(store, other, b"other")
    session = await acquire(store)
    await notify(store, session, *queues[::50])
    await store.delete_token(token.ref)
    await store.delete_token(token.ref)  # again
    for _ in range(2):
        assert await store.find_token(token.token_id) is None
        assert [await store.find_subscription(i) for i in ids[::50]] == [None] * len(ids[::50])
        assert await store.subscription_count() == 1
        assert await take(store) == []
        assert (await store.backlog(Provider.APNS)).tokens == 0
        assert [w.notifier_id for w in await pages(store, session)] == [b"other"]
        late = stamp(store, session, queues[0], queues[-1])
        assert (await store.notify(session, late, {})).unknown == 2
        assert len((await store.to_audit(None, MANY, 0))[0]) == 1
        await tend(bench, store)
    await store.delete_token(other.ref)
    assert not await store.is_wanted(SMP)
    assert await store.servers() == []


async def queues_of_a_deleted_token_are_free(bench: Bench) -> None:
    """Before anything of it was cleared: a device that was reset subscribes the same queues again."""
    store = await bench.open()
    token = await activate(store, 1)
    queues = [b"queue %d" % n for n in range(MANY)]
    await subscribe(store, token, *queues)
    session = await acquire(store)
    await notify(store, session, *queues[::50])
    await store.delete_token(token.ref)
    second = await activate(store, 1)
    assert second.token_id != token.token_id
    ids = await subscribe(store, second, *queues[::2])
    await tend(bench, store)
    assert {w.notifier_id for w in await pages(store, session, 100)} == set(queues[::2])
    assert all([await store.find_subscription(i) for i in ids[::50]])
    assert await store.subscription_count() == len(ids)
    assert await take(store) == []  # what came before was not for it
    await notify(store, session, queues[8])
    assert len((await take_one(store)).entries) == 1


async def a_deleted_token_subscribes_nothing(bench: Bench) -> None:
    """The command was under way."""
    store = await bench.open()
    token = await activate(store, 1)
    await store.delete_token(token.ref)
    assert not isinstance(await store.subscribe(token.ref, new_queue(b"queue")), Added)
    assert await store.servers() == []


# --- TCRN


async def the_last_push_is_kept(bench: Bench) -> None:
    """Which one, when, and what came of it, over a restart."""
    store = await bench.open()
    token = await register(store, new_token(1))
    assert await store.last_push(token.ref) is None
    claim = await take_one(store)
    bench.clock.pass_(7)
    await record(store, again(claim, 30, "TooManyRequests"))
    last = await store.last_push(token.ref)
    assert last is not None
    assert (last.push_id, last.outcome, last.reason) == (claim.push_id, Ended.AGAIN, "TooManyRequests")
    assert last.at == int(bench.clock.wall())
    bench.clock.pass_(31)
    claim = await take_one(store)
    await record(store, delivered(claim))
    store = await bench.reopen(store)
    last = await store.last_push((await known(store, token)).ref)
    assert last is not None
    assert (last.push_id, last.outcome, last.at) == (claim.push_id, Ended.DELIVERED, int(bench.clock.wall()))


async def a_device_is_known_by_its_fingerprint(bench: Bench) -> None:
    """The same after a restart, and whatever becomes of its registration; another one after TRPL."""
    store = await bench.open()
    token = await register(store, new_token(1))
    found = await store.device_of(token.ref)
    assert found is not None and found.provider is device(1).provider
    assert re.fullmatch(r"[0-9a-f]{12}", found.fingerprint)
    assert found.fingerprint == store.fingerprint(device(1)) != store.fingerprint(device(2))
    store = await bench.reopen(store)
    ref = (await known(store, token)).ref
    assert await store.device_of(ref) == found
    assert await store.replace(ref, Replacement(device(2), b"c" * 32))
    replaced = await store.device_of(ref)
    assert replaced is not None and replaced.fingerprint == store.fingerprint(device(2))
    await store.delete_token(ref)
    assert await store.device_of(ref) is None


async def what_was_not_tried_is_no_last_push(bench: Bench) -> None:
    """A claim that was given back was not sent."""
    store = await bench.open()
    token = await register(store, new_token(1))
    await record(store, Outcome(await take_one(store), Ended.UNTRIED))
    assert await store.last_push(token.ref) is None
