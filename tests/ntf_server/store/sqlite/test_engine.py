import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ntf_server.store.records import (
    ALIVE,
    MAX_ENTRIES,
    Added,
    DeadToken,
    Delivered,
    Due,
    NewSubscription,
    NewToken,
    Notification,
    Notified,
    Push,
    PushKind,
    StoreError,
    Token,
)
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import MESSAGE_TTL, VERIFICATION_TTL, SqliteStore
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

MASTER = MasterKey(b"a master key of thirty-two bytes")
NOW = 1_800_000_000
SMP = ServerAddress("smp", ("smp.example.org", "abc.onion"), "", b"h" * 32)
OTHER_SMP = ServerAddress("smp", ("2001:db8::1",), "5224", b"i" * 32)
PHONE = DeviceToken(Provider.APNS, b"phone")
TABLET = DeviceToken(Provider.APNS_SANDBOX, b"tablet")
KEY, OTHER_KEY = b"verify key", b"other verify key"
CODE = b"c" * 32
VERIFICATION, MESSAGES, CHECK = PushKind


def new_token(device: DeviceToken = PHONE, key: bytes = KEY, dh: bytes = b"client dh", code: bytes = CODE) -> NewToken:
    return NewToken(os.urandom(24), device, key, dh, b"server dh", os.urandom(32), code)


def new_subscription(queue: bytes, server: ServerAddress = SMP, key: bytes = b"notifier key") -> NewSubscription:
    return NewSubscription(os.urandom(24), server, queue, key)


def nmsg(queue: bytes, meta: bytes = b"meta", at: int = NOW) -> Notification:
    return Notification(queue, at, os.urandom(24), meta)


async def register(store: SqliteStore, device: DeviceToken = PHONE, key: bytes = KEY, now: int = NOW) -> Token:
    token = await store.register_token(new_token(device, key), now)
    assert token is not None
    return token


async def activate(store: SqliteStore, device: DeviceToken = PHONE, key: bytes = KEY) -> Token:
    token = await register(store, device, key)
    assert await store.verify_token(token.ref, token.code) is not None
    return await look(store, token)


async def look(store: SqliteStore, token: Token) -> Token:
    found = await store.find_token(token.token_id)
    assert found is not None
    return found


async def subscribe(store: SqliteStore, token: Token, *queues: bytes, server: ServerAddress = SMP) -> list[Added]:
    added = [await store.add_subscription(token.ref, new_subscription(q, server), NOW) for q in queues]
    made = [a for a in added if isinstance(a, Added)]
    assert made == added
    return made


async def load(store: SqliteStore, token: Token, now: int = NOW) -> Push:
    [push] = await store.load_pushes([token.ref], now)
    return push


async def nothing(store: SqliteStore, token: Token, now: int = NOW) -> bool:
    return not await store.load_pushes([token.ref], now)


def delivered(push: Push, at: int = NOW) -> Delivered:
    return Delivered(push, at, push.notifications)


async def deliver(store: SqliteStore, token: Token, now: int = NOW) -> Push:
    push = await load(store, token, now)
    await store.record([delivered(push, now)])
    return push


async def kill(store: SqliteStore, token: Token, reason: InvalidReason = InvalidReason.BAD) -> None:
    """The provider says that the token is dead, in answer to a push of its code."""
    await store.register_token(replace(new_token(token.device, token.verify_key), client_dh=token.client_dh), NOW)
    await store.record([DeadToken(await load(store, token), reason)])


async def status(store: SqliteStore, subscription: Added) -> SubscriptionStatus:
    found = await store.find_subscription(subscription.subscription_id)
    assert found is not None
    return found[1].status


def queues(push: Push) -> list[bytes]:
    return [n.notification.notifier_id for n in push.notifications]


# --- TNEW


async def test_a_new_token_is_registered_and_its_verification_is_due(store: SqliteStore) -> None:
    new = new_token()
    token = await store.register_token(new, NOW)
    assert token is not None
    given = new.token_id, PHONE, KEY, b"client dh", b"server dh", new.secret, CODE
    assert token == Token(token.ref, *given, TokenStatus.REGISTERED, None, 0)
    assert await store.find_token(new.token_id) == token
    push = await load(store, token)
    assert (push.kind, push.code, push.since, push.device, push.secret) == (VERIFICATION, CODE, NOW, PHONE, new.secret)
    assert await store.all_due() == [Due(token.ref, Provider.APNS, VERIFICATION)]


async def test_an_unknown_token_is_not_found(store: SqliteStore) -> None:
    assert await store.find_token(b"unknown") is None


async def test_registering_again_gives_the_same_token_and_pushes_the_same_code(store: SqliteStore) -> None:
    first = await register(store)
    await deliver(store, first)
    assert await nothing(store, first)
    again = await store.register_token(new_token(code=b"another code"), NOW + 5)
    assert again == replace(first, status=TokenStatus.CONFIRMED)
    push = await load(store, first, NOW + 5)
    assert (push.kind, push.code, push.since) == (VERIFICATION, CODE, NOW + 5)


async def test_registering_again_with_another_dh_key_is_refused(store: SqliteStore) -> None:
    first = await register(store)
    await deliver(store, first)
    assert await store.register_token(new_token(dh=b"other dh"), NOW) is None
    assert await nothing(store, first)
    assert await look(store, first) == replace(first, status=TokenStatus.CONFIRMED)


@pytest.mark.parametrize("device", [replace(PHONE, provider=Provider.APNS_TEST), replace(PHONE, token=b"x")])
async def test_another_provider_or_device_token_is_another_token(store: SqliteStore, device: DeviceToken) -> None:
    first, second = await register(store), await register(store, device)
    assert first.ref != second.ref
    assert first.token_id != second.token_id


@pytest.mark.parametrize("reason", InvalidReason)
async def test_registering_again_revives_a_dead_token(store: SqliteStore, reason: InvalidReason) -> None:
    token = await activate(store)
    await kill(store, token, reason)
    dead = await look(store, token)
    assert (dead.status, dead.reason) == (TokenStatus.INVALID, reason)
    assert await nothing(store, token)
    revived = await register(store)
    assert (revived.ref, revived.status, revived.reason) == (token.ref, TokenStatus.REGISTERED, None)
    assert (await load(store, token)).kind is VERIFICATION


async def test_registering_again_leaves_an_active_token_active(store: SqliteStore) -> None:
    token = await activate(store)
    assert (await register(store)).status is TokenStatus.ACTIVE
    await deliver(store, token)
    assert (await look(store, token)).status is TokenStatus.ACTIVE


async def test_a_push_says_when_its_device_token_was_last_registered(store: SqliteStore) -> None:
    token = await register(store, now=NOW)
    assert (await load(store, token)).registered_at == NOW
    await register(store, now=NOW + 5)
    await store.verify_token(token.ref, CODE)
    await subscribe(store, token, b"q")
    await store.notify(SMP, [nmsg(b"q", at=NOW + 7)])
    push = await load(store, token, NOW + 8)
    assert (push.kind, push.registered_at) == (MESSAGES, NOW + 5)
    await store.record([delivered(push)])
    await store.set_period(token.ref, 20, NOW)
    await store.due_checks(NOW + 1200)
    push = await load(store, token, NOW + 1200)
    assert (push.kind, push.registered_at) == (CHECK, NOW + 5)
    await store.replace_token(token.ref, TABLET, b"new", NOW + 9)
    assert (await load(store, token, NOW + 9)).registered_at == NOW + 9


# --- TVFY


@pytest.mark.parametrize("before", sorted(ALIVE))
async def test_the_right_code_makes_a_living_token_active(store: SqliteStore, before: TokenStatus) -> None:
    token = await register(store)
    if before is not TokenStatus.REGISTERED:
        await deliver(store, token)
    if before is TokenStatus.ACTIVE:
        await store.verify_token(token.ref, CODE)
    assert (await look(store, token)).status is before
    assert await store.verify_token(token.ref, CODE) == []
    assert (await look(store, token)).status is TokenStatus.ACTIVE
    assert await nothing(store, token)  # the code need not be pushed any more


@pytest.mark.parametrize("code", [b"", CODE[:-1], CODE + b"c", b"d" * 32])
async def test_a_wrong_code_changes_nothing(store: SqliteStore, code: bytes) -> None:
    token = await register(store)
    assert await store.verify_token(token.ref, code) is None
    assert await look(store, token) == token
    assert (await load(store, token)).kind is VERIFICATION


async def test_a_dead_or_absent_token_cannot_be_verified(store: SqliteStore) -> None:
    token = await activate(store)
    await kill(store, token)
    assert await store.verify_token(token.ref, CODE) is None
    assert (await look(store, token)).status is TokenStatus.INVALID
    assert await store.verify_token(token.ref + 1, CODE) is None


async def test_verification_deletes_other_registrations_of_the_device_token(store: SqliteStore) -> None:
    mine, elsewhere = await activate(store), await activate(store, TABLET)
    [my_queue] = await subscribe(store, mine, b"mine")
    [elsewhere_queue] = await subscribe(store, elsewhere, b"elsewhere")
    await store.notify(SMP, [nmsg(b"mine")])
    thief = await register(store, PHONE, OTHER_KEY)
    late = await register(store, PHONE, b"a third key")
    assert await look(store, mine) == mine  # not yet
    assert await store.verify_token(thief.ref, CODE) == []
    assert await store.find_token(mine.token_id) is None
    assert await store.find_token(late.token_id) is None
    assert await store.find_subscription(my_queue.subscription_id) is None
    assert await nothing(store, mine)
    assert await store.notify(SMP, [nmsg(b"mine")]) == Notified([], 1)
    assert await look(store, elsewhere) == elsewhere
    assert await store.find_subscription(elsewhere_queue.subscription_id) is not None
    assert await subscribe(store, thief, b"mine")  # the queue is free again


# --- TRPL, TDEL


async def test_a_replaced_token_keeps_its_identity_and_must_be_verified_anew(store: SqliteStore) -> None:
    token = await activate(store)
    [queue] = await subscribe(store, token, b"q")
    assert await store.replace_token(token.ref, TABLET, b"new code", NOW + 9)
    replaced = await look(store, token)
    assert replaced == replace(token, device=TABLET, code=b"new code", status=TokenStatus.REGISTERED)
    assert await store.find_subscription(queue.subscription_id)
    push = await load(store, token, NOW + 9)
    assert (push.device, push.kind, push.code, push.since) == (TABLET, VERIFICATION, b"new code", NOW + 9)
    assert await store.all_due() == [Due(token.ref, Provider.APNS_SANDBOX, VERIFICATION)]
    assert await store.verify_token(token.ref, CODE) is None
    assert await store.verify_token(token.ref, b"new code") == []


async def test_a_replaced_token_is_known_by_its_new_device_token_only(store: SqliteStore) -> None:
    token = await activate(store)
    await store.replace_token(token.ref, TABLET, CODE, NOW)
    assert (await register(store, TABLET)).ref == token.ref
    assert (await register(store, PHONE)).ref != token.ref
    thief = await register(store, TABLET, OTHER_KEY)
    await store.verify_token(thief.ref, CODE)
    assert await store.find_token(token.token_id) is None


async def test_replacing_revives_a_dead_token(store: SqliteStore) -> None:
    token = await activate(store)
    await kill(store, token)
    assert await store.replace_token(token.ref, TABLET, b"new", NOW)
    revived = await look(store, token)
    assert (revived.status, revived.reason) == (TokenStatus.REGISTERED, None)


async def test_replacing_an_absent_token(store: SqliteStore) -> None:
    assert not await store.replace_token(1, TABLET, b"new", NOW)


async def test_a_deleted_token_takes_everything_along(store: SqliteStore) -> None:
    token = await activate(store)
    [queue] = await subscribe(store, token, b"q")
    await store.notify(SMP, [nmsg(b"q")])
    await store.delete_token(token.ref)
    assert await store.find_token(token.token_id) is None
    assert await store.find_subscription(queue.subscription_id) is None
    assert await store.all_due() == []
    assert await store.servers() == []
    assert not await store.is_wanted(SMP)
    assert await store.add_subscription(token.ref, new_subscription(b"q"), NOW) is None


@pytest.mark.parametrize("dead", [False, True])
async def test_what_came_of_a_deleted_tokens_push_does_not_touch_the_next_token(store: SqliteStore, dead: bool) -> None:
    gone = await register(store)
    push = await load(store, gone)
    await store.delete_token(gone.ref)
    next_token = await register(store, TABLET)
    await store.record([DeadToken(push, InvalidReason.BAD) if dead else delivered(push)])
    assert (await look(store, next_token)).status is TokenStatus.REGISTERED
    assert (await load(store, next_token)).kind is VERIFICATION


# --- TCRN


async def test_a_check_is_due_every_period_after_the_last_delivered_one(store: SqliteStore) -> None:
    token = await activate(store)
    await store.set_period(token.ref, 20, NOW)
    assert (await look(store, token)).period == 20
    assert await store.due_checks(NOW + 1199) == []
    assert await nothing(store, token, NOW + 1199)
    assert await store.due_checks(NOW + 1200) == [Due(token.ref, Provider.APNS, CHECK)]
    assert await store.due_checks(NOW + 5000) == []  # marked already
    push = await load(store, token, NOW + 1200)
    assert (push.kind, push.since, push.notifications) == (CHECK, NOW + 1200, ())
    await store.record([Delivered(push, NOW + 1500)])
    assert await nothing(store, token, NOW + 1500)
    assert await store.due_checks(NOW + 2699) == []
    assert await store.due_checks(NOW + 2700) == [Due(token.ref, Provider.APNS, CHECK)]


async def test_setting_the_same_period_again_does_not_put_the_push_off(store: SqliteStore) -> None:
    token = await activate(store)
    await store.set_period(token.ref, 20, NOW)
    await store.set_period(token.ref, 20, NOW + 1000)
    assert len(await store.due_checks(NOW + 1200)) == 1


async def test_another_period_begins_when_it_is_set(store: SqliteStore) -> None:
    token = await activate(store)
    await store.set_period(token.ref, 20, NOW)
    await store.set_period(token.ref, 30, NOW + 1000)
    assert await store.due_checks(NOW + 2799) == []
    assert len(await store.due_checks(NOW + 2800)) == 1


async def test_period_zero_ends_the_checks_also_one_that_is_due(store: SqliteStore) -> None:
    token = await activate(store)
    await store.set_period(token.ref, 20, NOW)
    await store.due_checks(NOW + 1200)
    await store.set_period(token.ref, 0, NOW + 1200)
    assert await nothing(store, token)
    assert await store.due_checks(NOW + 100_000) == []


async def test_only_active_tokens_get_checks(store: SqliteStore) -> None:
    tokens = [await register(store), await activate(store, TABLET)]
    for token in tokens:
        await store.set_period(token.ref, 20, NOW)
    await kill(store, tokens[1])
    assert await store.due_checks(NOW + 1200) == []
    await store.verify_token(tokens[0].ref, CODE)
    assert await store.due_checks(NOW + 1200) == [Due(tokens[0].ref, Provider.APNS, CHECK)]


async def test_a_due_check_survives_reopening(store: SqliteStore, path: Path) -> None:
    token = await activate(store)
    await store.set_period(token.ref, 20, NOW)
    await store.due_checks(NOW + 1200)
    async with reopened(store, path) as again:
        assert await again.all_due() == [Due(token.ref, Provider.APNS, CHECK)]
        assert (await load(again, token)).kind is CHECK


# --- SNEW, SCHK, SDEL


async def test_a_subscription_is_kept_as_given(store: SqliteStore) -> None:
    token = await activate(store)
    new = new_subscription(b"q", OTHER_SMP)
    added = await store.add_subscription(token.ref, new, NOW)
    assert isinstance(added, Added)
    assert (added.subscription_id, added.created) == (new.subscription_id, True)
    found = await store.find_subscription(new.subscription_id)
    assert found is not None
    owner, kept = found
    assert owner == token
    assert (kept.ref, kept.server, kept.notifier_id, kept.notifier_key) == (added.ref, OTHER_SMP, b"q", b"notifier key")
    assert (kept.status, kept.error, kept.association) == (SubscriptionStatus.NEW, "", 0)


async def test_subscribing_again_with_the_same_key_gives_the_same_subscription(store: SqliteStore) -> None:
    token = await activate(store)
    [first] = await subscribe(store, token, b"q")
    assert await subscribe(store, token, b"q") == [replace(first, created=False)]


async def test_a_queue_can_be_subscribed_once_with_one_key(store: SqliteStore) -> None:
    mine, other = await activate(store), await activate(store, TABLET)
    [first] = await subscribe(store, mine, b"q")
    assert await store.add_subscription(mine.ref, new_subscription(b"q", key=b"another"), NOW) is None
    assert await store.add_subscription(other.ref, new_subscription(b"q"), NOW) is None
    assert await subscribe(store, other, b"q", server=OTHER_SMP)  # another server's queue is another queue
    found = await store.find_subscription(first.subscription_id)
    assert found is not None
    assert found[0] == mine


async def test_a_deleted_subscription_is_gone_with_its_notification(store: SqliteStore) -> None:
    token = await activate(store)
    [gone, kept] = await subscribe(store, token, b"gone", b"kept")
    await store.notify(SMP, [nmsg(b"gone")])
    await store.delete_subscription(gone.ref)
    assert await store.find_subscription(gone.subscription_id) is None
    assert await nothing(store, token)
    assert await status(store, kept) is SubscriptionStatus.NEW
    assert await store.notify(SMP, [nmsg(b"gone")]) == Notified([], 1)


# --- notifications


async def test_the_newest_notification_of_a_queue_is_pushed(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"q", b"r")
    notified = await store.notify(SMP, [nmsg(b"q", b"old"), nmsg(b"r", b"only"), nmsg(b"q", b"new", NOW + 1)])
    assert notified == Notified([Due(token.ref, Provider.APNS, MESSAGES)], 0)
    push = await load(store, token, NOW + 1)
    assert (push.kind, push.more, push.since) == (MESSAGES, False, NOW)
    assert [(n.notification.meta, n.sent, n.server) for n in push.notifications] == [
        (b"only", False, SMP),
        (b"new", False, SMP),
    ]


async def test_a_notification_is_kept_to_the_byte(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"q", server=OTHER_SMP)
    notification = nmsg(b"q", os.urandom(144))
    await store.notify(OTHER_SMP, [notification])
    [kept] = (await load(store, token)).notifications
    assert (kept.notification, kept.server) == (notification, OTHER_SMP)


async def test_unknown_queues_are_counted_and_ignored(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"q")
    assert await store.notify(SMP, [nmsg(b"unknown"), nmsg(b"another"), nmsg(b"unknown")]) == Notified([], 3)
    assert await store.notify(OTHER_SMP, [nmsg(b"q")]) == Notified([], 1)
    assert await store.notify(SMP, []) == Notified([], 0)
    assert await nothing(store, token)
    notified = await store.notify(SMP, [nmsg(b"unknown"), nmsg(b"q")])
    assert notified == Notified([Due(token.ref, Provider.APNS, MESSAGES)], 1)


async def test_a_block_for_many_tokens_gives_each_once(store: SqliteStore) -> None:
    tokens = [await activate(store, DeviceToken(Provider.APNS, bytes([i]))) for i in range(3)]
    for token in tokens:
        await subscribe(store, token, *(b"%d %d" % (token.ref, i) for i in range(3)))
    names = [b"%d %d" % (t.ref, i) for i in range(3) for t in tokens]
    notified = await store.notify(SMP, [nmsg(n) for n in names])
    assert notified == Notified([Due(t.ref, Provider.APNS, MESSAGES) for t in tokens], 0)
    pushes = await store.load_pushes([t.ref for t in reversed(tokens)], NOW)
    assert [p.token for p in pushes] == [t.ref for t in reversed(tokens)]


async def test_what_comes_for_a_token_that_is_not_active_waits_for_its_verification(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"q")
    await kill(store, token)
    assert await store.notify(SMP, [nmsg(b"q")]) == Notified([], 0)
    assert await nothing(store, token)
    assert await store.all_due() == []
    await register(store)
    assert (await deliver(store, token)).kind is VERIFICATION
    assert await store.verify_token(token.ref, CODE) == [Due(token.ref, Provider.APNS, MESSAGES)]
    assert queues(await load(store, token)) == [b"q"]


async def test_a_verification_goes_before_messages_and_these_before_a_check(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"q")
    await store.set_period(token.ref, 20, NOW - 1200)
    await store.due_checks(NOW)
    await store.notify(SMP, [nmsg(b"q")])
    await register(store)
    assert set(await store.all_due()) == {
        Due(token.ref, Provider.APNS, VERIFICATION),
        Due(token.ref, Provider.APNS, MESSAGES),
    }
    assert [(await deliver(store, token)).kind for _ in range(3)] == [VERIFICATION, MESSAGES, CHECK]
    assert await nothing(store, token)


# --- times to live


async def test_a_verification_is_given_up_after_its_time(store: SqliteStore) -> None:
    token = await register(store)
    assert await load(store, token, NOW + VERIFICATION_TTL - 1)
    assert await nothing(store, token, NOW + VERIFICATION_TTL)
    assert await nothing(store, token, NOW)  # for good
    assert await store.verify_token(token.ref, CODE) == []  # though it was not pushed


async def test_messages_are_given_up_after_their_time(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"old", b"young")
    await store.notify(SMP, [nmsg(b"old"), nmsg(b"young", at=NOW + 1)])
    push = await load(store, token, NOW + MESSAGE_TTL - 1)
    assert [n.sent for n in push.notifications] == [False, False]
    push = await load(store, token, NOW + MESSAGE_TTL)
    assert [n.notification.notifier_id for n in push.notifications if not n.sent] == [b"young"]
    assert push.since == NOW + 1
    assert await nothing(store, token, NOW + MESSAGE_TTL + 1)
    assert await store.all_due() == []


async def test_times_to_live_can_be_set(path: Path) -> None:
    store = await SqliteStore.open(path, master_key=MASTER, message_ttl=10, verification_ttl=5)
    token = await register(store)
    assert await load(store, token, NOW + 4)
    assert await nothing(store, token, NOW + 5)
    await store.verify_token(token.ref, CODE)
    await subscribe(store, token, b"q")
    await store.notify(SMP, [nmsg(b"q")])
    assert await load(store, token, NOW + 9)
    assert await nothing(store, token, NOW + 10)
    await store.close()


# --- what goes into one push


@pytest.mark.parametrize("count", [1, 5, 6, 7, 13, 20])
async def test_up_to_six_queues_the_oldest_first(store: SqliteStore, count: int) -> None:
    token = await activate(store)
    names = [bytes([i]) for i in range(count)]
    await subscribe(store, token, *reversed(names))
    await store.notify(SMP, [nmsg(n) for n in names])
    sent: list[bytes] = []
    while len(sent) < count:
        push = await deliver(store, token)
        assert len(push.notifications) == min(MAX_ENTRIES, count)
        fresh = [n.notification.notifier_id for n in push.notifications if not n.sent]
        assert queues(push) == (sent + fresh)[-MAX_ENTRIES:]
        sent += fresh
        assert push.more == (len(sent) < count)
    assert sent == names
    assert await nothing(store, token)


async def test_what_was_sent_rides_along_in_the_order_of_arrival(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b", b"c")
    for queue in (b"a", b"b", b"a", b"c"):
        await store.notify(SMP, [nmsg(queue)])
        push = await deliver(store, token)
    assert queues(push) == [b"b", b"a", b"c"]
    assert [n.sent for n in push.notifications] == [True, True, False]
    assert await nothing(store, token)  # what was sent is no reason for a push


# --- what came of a push


async def test_what_arrives_while_its_queue_is_in_flight_stays_due(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    await store.notify(SMP, [nmsg(b"a", b"first"), nmsg(b"b")])
    push = await load(store, token)
    await store.notify(SMP, [nmsg(b"a", b"second")])
    await store.record([delivered(push)])
    following = await load(store, token)
    assert [(n.notification.meta, n.sent) for n in following.notifications] == [(b"meta", True), (b"second", False)]


async def test_what_a_push_did_not_hold_stays_due(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b", b"c")
    await store.notify(SMP, [nmsg(q) for q in (b"a", b"b", b"c")])
    push = await load(store, token)
    await store.record([Delivered(push, NOW, push.notifications[:1])])
    assert [n.sent for n in (await load(store, token)).notifications] == [True, False, False]


async def test_registering_again_while_the_code_is_in_flight_stays_due(store: SqliteStore) -> None:
    token = await register(store)
    push = await load(store, token)
    await register(store, now=NOW + 1)
    await store.record([delivered(push)])
    assert (await look(store, token)).status is TokenStatus.REGISTERED
    assert (await deliver(store, token)).kind is VERIFICATION
    assert (await look(store, token)).status is TokenStatus.CONFIRMED


@pytest.mark.parametrize("dead", [False, True])
async def test_what_came_of_a_push_to_a_replaced_device_does_not_count(store: SqliteStore, dead: bool) -> None:
    token = await register(store)
    push = await load(store, token)
    await store.replace_token(token.ref, TABLET, b"new code", NOW)
    await store.record([DeadToken(push, InvalidReason.UNREGISTERED) if dead else delivered(push)])
    replaced = await look(store, token)
    assert (replaced.status, replaced.reason) == (TokenStatus.REGISTERED, None)
    assert (await load(store, token)).code == b"new code"


async def test_a_dead_answer_to_messages_ends_everything_until_the_token_is_verified(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"q")
    await store.set_period(token.ref, 20, NOW)
    await store.due_checks(NOW + 1200)
    await store.notify(SMP, [nmsg(b"q")])
    await store.record([DeadToken(await load(store, token), InvalidReason.TOPIC)])
    dead = await look(store, token)
    assert (dead.status, dead.reason) == (TokenStatus.INVALID, InvalidReason.TOPIC)
    assert await store.all_due() == []
    await register(store)
    await store.verify_token(token.ref, CODE)
    assert queues(await load(store, token)) == [b"q"]


async def test_a_delivered_code_confirms_only_a_registered_token(store: SqliteStore) -> None:
    token = await register(store)
    push = await load(store, token)
    await store.verify_token(token.ref, CODE)
    await store.record([delivered(push)])
    assert (await look(store, token)).status is TokenStatus.ACTIVE


async def test_outcomes_for_deleted_tokens_and_subscriptions_are_ignored(store: SqliteStore) -> None:
    token, other = await activate(store), await activate(store, TABLET)
    [queue, _] = await subscribe(store, token, b"q", b"r")
    await store.notify(SMP, [nmsg(b"q"), nmsg(b"r")])
    push = await load(store, token)
    await store.delete_subscription(queue.ref)
    await store.record([delivered(push)])
    assert await nothing(store, token)
    await store.delete_token(token.ref)
    await store.record([delivered(push), DeadToken(push, InvalidReason.BAD)])
    assert await look(store, other) == other


# --- reopening


@contextlib.asynccontextmanager
async def reopened(store: SqliteStore, path: Path) -> AsyncIterator[SqliteStore]:
    await store.close()
    again = await SqliteStore.open(path, master_key=MASTER)
    yield again
    await again.close()


async def test_everything_that_was_not_delivered_is_due_after_reopening(store: SqliteStore, path: Path) -> None:
    fresh = await register(store)
    active = await activate(store, TABLET)
    done = await activate(store, replace(TABLET, token=b"done"))
    dead = await activate(store, replace(TABLET, token=b"dead"))
    for token, queue in ((active, b"a"), (done, b"d"), (dead, b"x")):
        await subscribe(store, token, queue)
        await store.notify(SMP, [nmsg(queue)])
    await deliver(store, done)
    await load(store, active)  # in flight when it ends
    await store.record([DeadToken(await load(store, dead), InvalidReason.BAD)])
    async with reopened(store, path) as again:
        assert set(await again.all_due()) == {
            Due(fresh.ref, Provider.APNS, VERIFICATION),
            Due(active.ref, Provider.APNS_SANDBOX, MESSAGES),
        }
        assert [await look(again, t) for t in (fresh, active, done)] == [fresh, active, done]
        await again.notify(SMP, [nmsg(b"d", b"new")])
        [newest] = (await load(again, done)).notifications
        assert newest.notification.meta == b"new"


async def test_arrivals_keep_their_order_over_reopening(store: SqliteStore, path: Path) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b")
    await store.notify(SMP, [nmsg(b"b")])
    async with reopened(store, path) as again:
        await again.notify(SMP, [nmsg(b"a")])
        push = await load(again, token)
        assert queues(push) == [b"b", b"a"]


async def test_after_close_nothing_is_done(store: SqliteStore) -> None:
    await store.close()
    with pytest.raises(StoreError):
        await store.all_due()


async def test_records_show_no_secrets(store: SqliteStore) -> None:
    token = await activate(store, replace(PHONE, token=b"SECRET-device"), b"SECRET-key")
    await store.add_subscription(token.ref, new_subscription(b"SECRET-queue", key=b"SECRET-notifier"), NOW)
    await store.notify(SMP, [nmsg(b"SECRET-queue", b"SECRET-meta")])
    push = await load(store, token)
    shown = repr((token, push, delivered(push), new_token(replace(PHONE, token=b"SECRET"), b"SECRET")))
    assert "SECRET" not in shown
    assert repr(token.secret) not in shown
    assert repr(token.code) not in shown


# --- anything in any order: nothing that was received is lost, nothing is delivered twice


class Relay(RuleBasedStateMachine):
    """Notifications of a token's queues, its pushes, and a process that may stop at any time.

    The model: the newest notification of each queue, and whether it was delivered.
    """

    in_flight = Bundle("in_flight")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.folder = Path(tempfile.mkdtemp())
        self.numbers = itertools.count()
        self.newest: dict[bytes, bytes] = {}
        self.waiting: list[bytes] = []  # queues whose newest was not delivered, the oldest first
        self.store = self.run(SqliteStore.open(self.folder / "relay.db", master_key=MASTER))
        self.token = self.run(activate(self.store))
        self.run(subscribe(self.store, self.token, *(bytes([q]) for q in range(9))))

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    @rule(arrived=st.lists(st.integers(0, 8), min_size=1, max_size=12))
    def notify(self, arrived: list[int]) -> None:
        block = [nmsg(bytes([q]), b"%d" % next(self.numbers)) for q in arrived]
        for n in block:
            self.newest[n.notifier_id] = n.meta
            self.waiting = [*(q for q in self.waiting if q != n.notifier_id), n.notifier_id]
        notified = self.run(self.store.notify(SMP, block))
        assert notified == Notified([Due(self.token.ref, Provider.APNS, MESSAGES)], 0)

    @rule(target=in_flight)
    def load(self) -> Push | None:
        pushes = self.run(self.store.load_pushes([self.token.ref], NOW))
        if not self.waiting:
            assert pushes == []
            return None
        [push] = pushes
        fresh = [n.notification.notifier_id for n in push.notifications if not n.sent]
        assert fresh == self.waiting[:MAX_ENTRIES]
        assert push.more == (len(self.waiting) > MAX_ENTRIES)
        assert len(push.notifications) == min(MAX_ENTRIES, len(self.newest))
        for n in push.notifications:
            assert n.notification.meta == self.newest[n.notification.notifier_id]
        return push

    @rule(push=consumes(in_flight), held=st.integers(1, MAX_ENTRIES))
    def deliver(self, push: Push | None, held: int) -> None:
        """Outcomes may be late: what is newer than the push stays due."""
        if push is None:
            return
        notifications = push.notifications[:held]
        self.run(self.store.record([Delivered(push, NOW, notifications)]))
        for n in notifications:
            queue = n.notification.notifier_id
            if self.newest[queue] == n.notification.meta and queue in self.waiting:
                self.waiting.remove(queue)

    @rule()
    def verify_anew(self) -> None:
        self.run(register(self.store))
        assert (self.run(deliver(self.store, self.token))).kind is VERIFICATION

    @rule(dead=st.booleans())
    def replace_device(self, dead: bool) -> None:
        """The old device's outcome does not count, and messages wait for the verification."""
        self.run(register(self.store))
        old = self.run(load(self.store, self.token))
        device = replace(PHONE, token=os.urandom(4))
        assert self.run(self.store.replace_token(self.token.ref, device, CODE, NOW))
        self.run(self.store.record([DeadToken(old, InvalidReason.BAD) if dead else delivered(old)]))
        assert self.run(load(self.store, self.token)).kind is VERIFICATION
        expected = [Due(self.token.ref, Provider.APNS, MESSAGES)] if self.waiting else []
        assert self.run(self.store.verify_token(self.token.ref, CODE)) == expected
        assert self.run(self.store.replace_token(self.token.ref, PHONE, CODE, NOW))
        self.run(self.store.verify_token(self.token.ref, CODE))

    @rule(crash=st.booleans())
    def reopen(self, crash: bool) -> None:
        if crash:  # the files as they are, with what is not yet moved into the database
            folder = Path(tempfile.mkdtemp())
            for suffix in ("", "-wal"):
                shutil.copy(self.folder / f"relay.db{suffix}", folder)
            self.run(self.store.close())
            shutil.rmtree(self.folder)
            self.folder = folder
        else:
            self.run(self.store.close())
        self.store = self.run(SqliteStore.open(self.folder / "relay.db", master_key=MASTER))

    @invariant()
    def due_is_what_waits(self) -> None:
        expected = [Due(self.token.ref, Provider.APNS, MESSAGES)] if self.waiting else []
        assert self.run(self.store.all_due()) == expected


TestRelay = Relay.TestCase
TestRelay.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
