"""Registrations."""

import asyncio

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec.structs import replace
from store_world import (
    CHECK,
    CODE,
    KEY,
    MESSAGES,
    NOW,
    OTHER_KEY,
    PHONE,
    TABLET,
    VERIFICATION,
    FakeClock,
    acquire,
    activate,
    again,
    dead,
    deliver,
    delivered,
    kill,
    look,
    new_subscription,
    new_token,
    notify,
    plan,
    register,
    said,
    subscribe,
    take,
    take_one,
)

from ntf_server.store.contract import DamagedRecordError
from ntf_server.store.records import Registered, Replacement
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing.store_suite.medium import as_found
from smp_bridge import crypto
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, TokenStatus

HEX = b"c0ffee" * 10


async def sql(store: SqliteStore, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    return await store._database.run(lambda c: c.execute(statement, parameters).fetchall())


async def test_a_new_token_is_registered_and_its_verification_is_due(store: SqliteStore) -> None:
    woken: list[tuple[Provider, float]] = []
    store.watch(lambda provider, seconds: woken.append((provider, seconds)))
    new = new_token()
    token = await store.register(new)
    assert token is not None
    made = Registered(token.ref, new.token_id, KEY, TokenStatus.REGISTERED, None, 0, NOW, False, b"server dh")
    assert token == made
    assert await store.find_token(new.token_id) == as_found(token)
    assert woken == [(Provider.APNS, 0.0)]
    claim = await take_one(store)
    assert (claim.kind, claim.code, claim.since, claim.device) == (VERIFICATION, CODE, NOW, PHONE)
    assert (claim.secret, claim.registered_at, claim.attempts) == (new.secret, NOW, 0)
    assert not claim.delivered_before


async def test_an_unknown_token_is_not_found(store: SqliteStore) -> None:
    assert await store.find_token(b"unknown") is None


async def test_registering_again_gives_the_same_token_and_pushes_the_same_code(store: SqliteStore) -> None:
    first = await register(store)
    await deliver(store)
    second = await store.register(new_token(code=b"another code"))
    assert second == replace(first, status=TokenStatus.CONFIRMED)
    claim = await take_one(store)
    assert (claim.kind, claim.code) == (VERIFICATION, CODE)


async def test_registering_again_with_another_dh_key_is_refused(store: SqliteStore) -> None:
    await register(store)
    assert await store.register(new_token(dh=b"other client dh")) is None


@pytest.mark.parametrize(
    "device", [TABLET, DeviceToken(Provider.APNS, b"phone 2"), DeviceToken(Provider.FCM, b"phone")]
)
async def test_another_provider_or_device_token_is_another_token(store: SqliteStore, device: DeviceToken) -> None:
    assert (await register(store)).ref != (await register(store, device)).ref


@pytest.mark.parametrize("provider", [Provider.APNS, Provider.APNS_SANDBOX, Provider.APNS_TEST])
async def test_upper_or_lower_case_an_apns_token_is_one(store: SqliteStore, provider: Provider) -> None:
    first = await activate(store, DeviceToken(provider, HEX))
    again_ = await register(store, DeviceToken(provider, HEX.upper()))
    assert again_.ref == first.ref
    assert (await take_one(store, provider)).device.token == HEX  # and is sent as it came first
    other = await activate(store, DeviceToken(provider, HEX.upper()), OTHER_KEY)
    assert await store.find_token(first.token_id) is None  # one phone, one registration that counts
    assert (await register(store, DeviceToken(provider, HEX.upper()), OTHER_KEY)).ref == other.ref
    assert (await take_one(store, provider)).device.token == HEX.upper()


async def test_what_is_not_hex_is_taken_by_the_letter(store: SqliteStore) -> None:
    first = await register(store, DeviceToken(Provider.FCM, b"abc"))
    assert (await register(store, DeviceToken(Provider.FCM, b"ABC"))).ref != first.ref


@pytest.mark.parametrize("reason", InvalidReason)
async def test_registering_again_revives_a_dead_token(store: SqliteStore, reason: InvalidReason) -> None:
    token = await register(store)
    await kill(store, token, reason)
    assert (await look(store, token)).status is TokenStatus.INVALID
    assert (await look(store, token)).reason is reason
    assert not await take(store)
    await register(store)
    found = await look(store, token)
    assert (found.status, found.reason) == (TokenStatus.REGISTERED, None)


async def test_registering_again_waits_for_no_retry(store: SqliteStore) -> None:
    await register(store)
    await store.record([again(await take_one(store), 1000)])
    assert not await take(store)
    await register(store)
    assert (await take_one(store)).attempts == 0


async def test_a_registration_that_keeps_no_client_key_is_known_by_its_dh_secret(store: SqliteStore) -> None:
    """As they come from the reference: with the server's private key."""
    client, other = (X25519PrivateKey.generate().public_key() for _ in range(2))
    private = X25519PrivateKey.generate().private_bytes_raw()
    secret = crypto.dh_box_key(private, client)
    token = await store.register(replace(new_token(dh=b""), secret=secret))
    assert token is not None
    sealed = store._state.sealer.seal(private, b"tokens.server_private:" + token.token_id)
    await sql(store, "UPDATE tokens SET server_private = ?", sealed)
    assert (await store.register(new_token(dh=client.public_bytes_raw()))) == token
    assert await store.register(new_token(dh=other.public_bytes_raw())) is None
    assert await store.register(new_token(dh=bytes(32))) is None
    assert await store.register(new_token(dh=b"short")) is None


# --- TVFY


async def test_the_right_code_makes_a_living_token_active(store: SqliteStore) -> None:
    token = await register(store)
    assert not await store.verify(token.ref, b"wrong")
    assert (await look(store, token)).status is TokenStatus.REGISTERED
    assert await store.verify(token.ref, CODE)
    assert (await look(store, token)).status is TokenStatus.ACTIVE
    assert not await take(store)  # the code is pushed no more
    assert (await store.backlog(Provider.APNS)).tokens == 0


async def test_a_dead_or_absent_token_cannot_be_verified(store: SqliteStore) -> None:
    token = await register(store)
    await kill(store, token)
    assert not await store.verify(token.ref, CODE)
    assert not await store.verify(10**6, CODE)


async def test_verification_deletes_other_registrations_of_the_device_token(store: SqliteStore) -> None:
    old = await activate(store)
    [added] = await subscribe(store, old, b"queue")
    new = await register(store, key=OTHER_KEY)
    bystander = await register(store, TABLET)
    assert await store.verify(new.ref, CODE)
    assert await store.find_token(old.token_id) is None
    assert await store.find_subscription(added.subscription_id) is None
    assert await store.subscription_count() == 0
    assert await look(store, bystander) == as_found(bystander)


async def test_what_came_before_the_verification_is_due_with_it(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"queue")
    await store.replace(token.ref, Replacement(TABLET, CODE))
    session = await acquire(store)
    await notify(store, session, b"queue")
    await store.record([again(await take_one(store, Provider.APNS_SANDBOX), 1000)])
    assert await store.verify(token.ref, CODE)
    claim = await take_one(store, Provider.APNS_SANDBOX)  # it waits for no retry of the code
    assert (claim.kind, said(claim), claim.attempts) == (MESSAGES, [b"queue"], 0)


# --- TRPL


async def test_a_replaced_token_keeps_its_identity_and_must_be_verified_anew(store: SqliteStore) -> None:
    token = await activate(store)
    assert await store.replace(token.ref, Replacement(TABLET, b"new code", app="app", vapid_key=b"key"))
    assert await look(store, token) == replace(token, status=TokenStatus.REGISTERED)
    assert not await take(store)
    claim = await take_one(store, Provider.APNS_SANDBOX)
    assert (claim.kind, claim.code, claim.device) == (VERIFICATION, b"new code", TABLET)
    assert (claim.app, claim.vapid_key, claim.delivered_before) == ("app", b"key", False)


async def test_a_device_token_that_another_registration_has_with_this_key_cannot_be_taken(store: SqliteStore) -> None:
    token, other = await activate(store), await register(store, TABLET)
    assert not await store.replace(token.ref, Replacement(TABLET, CODE))
    assert await look(store, token) == token
    assert await look(store, other) == as_found(other)
    assert await store.replace(token.ref, Replacement(PHONE, CODE))  # its own it may
    assert await register(store, TABLET, OTHER_KEY)
    third = await register(store, TABLET, b"third key")
    assert await store.replace(third.ref, Replacement(PHONE, CODE))


async def test_replacing_an_absent_token(store: SqliteStore) -> None:
    assert not await store.replace(10**6, Replacement(PHONE, CODE))


async def test_what_came_of_a_push_to_a_replaced_device_does_not_count(store: SqliteStore) -> None:
    token = await register(store)
    claim = await take_one(store)
    await store.replace(token.ref, Replacement(TABLET, b"new code"))
    assert not await take(store, Provider.APNS_SANDBOX)  # one push of a token at a time
    assert await store.record([dead(claim)]) == 1
    assert (await look(store, token)).status is TokenStatus.REGISTERED
    assert (await take_one(store, Provider.APNS_SANDBOX)).code == b"new code"


# --- TDEL


async def test_a_deleted_token_takes_everything_along(store: SqliteStore) -> None:
    token = await activate(store)
    [added] = await subscribe(store, token, b"queue")
    session = await acquire(store)
    await notify(store, session, b"queue")
    await store.delete_token(token.ref)
    assert await store.find_token(token.token_id) is None
    assert await store.find_subscription(added.subscription_id) is None
    assert not await take(store)
    assert await sql(store, "SELECT * FROM notifications") == []
    assert await sql(store, "SELECT * FROM deliveries") == []
    other = await register(store)
    assert other.ref != token.ref  # answers to the old one may be under way


async def test_what_came_of_a_deleted_tokens_push_does_not_touch_the_next_token(store: SqliteStore) -> None:
    token = await register(store)
    claim = await take_one(store)
    await store.delete_token(token.ref)
    other = await register(store)
    assert await store.record([dead(claim)]) == 1
    assert await look(store, other) == as_found(other)


# --- TCRN


async def test_a_check_is_due_every_period_after_the_last_delivered_one(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await store.set_period(token.ref, 20)
    for _ in range(3):
        assert await store.mark_checks(10) == 0
        clock.pass_(20 * 60 - 1)
        assert await store.mark_checks(10) == 0
        clock.pass_(1 + 2 * 60)
        assert await store.mark_checks(10) == 1
        assert await store.mark_checks(10) == 0
        assert (await deliver(store)).kind is CHECK


async def test_checks_are_marked_so_many_at_once(store: SqliteStore, clock: FakeClock) -> None:
    for i in range(5):
        token = await activate(store, DeviceToken(Provider.APNS, b"%d" % i))
        await store.set_period(token.ref, 1)
    clock.pass_(66)
    assert [await store.mark_checks(2) for _ in range(4)] == [2, 2, 1, 0]
    assert len(await take(store)) == 5


async def test_setting_the_same_period_again_does_not_put_the_push_off(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await store.set_period(token.ref, 20)
    clock.pass_(600)
    await store.set_period(token.ref, 20)
    clock.pass_(720)
    assert await store.mark_checks(10) == 1


async def test_another_period_begins_when_it_is_set(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await store.set_period(token.ref, 20)
    clock.pass_(600)
    await store.set_period(token.ref, 10)
    assert await store.mark_checks(10) == 0
    clock.pass_(660)
    assert await store.mark_checks(10) == 1


async def test_period_zero_ends_the_checks_also_one_that_is_due(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store)
    await store.set_period(token.ref, 20)
    clock.pass_(1320)
    assert await store.mark_checks(10) == 1
    await store.set_period(token.ref, 0)
    assert not await take(store)
    clock.pass_(12000)
    assert await store.mark_checks(10) == 0


async def test_only_active_tokens_get_checks(store: SqliteStore, clock: FakeClock) -> None:
    token = await register(store)
    await store.set_period(token.ref, 1)
    clock.pass_(3600)
    assert await store.mark_checks(10) == 0


async def test_a_period_that_a_wrong_clock_began_in_the_future_is_over(store: SqliteStore) -> None:
    token = await activate(store)
    await store.set_period(token.ref, 20)
    await sql(store, "UPDATE tokens SET period_at = ?", NOW + 365 * 86400)
    assert await store.mark_checks(10) == 1
    assert (await deliver(store)).kind is CHECK
    assert await store.mark_checks(10) == 0  # the next one is 20 minutes away
    await sql(store, "UPDATE tokens SET period_at = ?", NOW + 365 * 86400)
    await store.set_period(token.ref, 20)
    assert await sql(store, "SELECT period_at FROM tokens") == [(NOW,)]


async def test_the_checks_that_are_due_are_found_by_an_index(store: SqliteStore) -> None:
    from ntf_server.store.sqlite import tokens

    for query in (tokens._TO_CHECK, tokens._FROM_THE_FUTURE):
        details = await plan(store, query, {"now": NOW, "limit": 9})
        assert any("USING INDEX tokens_" in d or "COVERING INDEX tokens_" in d for d in details), details
        assert not any("TEMP B-TREE" in d for d in details), details


# --- damage


@pytest.mark.parametrize("column", ["device_token", "secret", "code"])
async def test_a_damaged_token_is_set_aside_and_the_rest_goes_on(store: SqliteStore, column: str) -> None:
    token, other = await register(store), await register(store, TABLET)
    await sql(store, f"UPDATE tokens SET {column} = x'00' WHERE ref = ?", token.ref)
    assert not await take(store)
    assert [c.token for c in await take(store, TABLET.provider)] == [other.ref]
    for _ in range(2):
        with pytest.raises(DamagedRecordError):
            await store.find_token(token.token_id)
    assert await look(store, other) == as_found(other)
    assert (await store.backlog(Provider.APNS)).tokens == 0


@pytest.mark.parametrize("column", ["device_token", "server_dh", "client_dh"])
async def test_a_damaged_token_is_made_anew_by_its_device(store: SqliteStore, column: str) -> None:
    token = await activate(store)
    await sql(store, f"UPDATE tokens SET {column} = x'00'")
    new = await register(store)
    assert new.token_id != token.token_id
    assert await store.find_token(token.token_id) is None
    assert await store.verify(new.ref, CODE)


async def test_a_damaged_code_is_told_and_changes_nothing_for_others(store: SqliteStore) -> None:
    token, other = await register(store), await register(store, TABLET)
    await sql(store, "UPDATE tokens SET code = x'00' WHERE ref = ?", token.ref)
    results = await asyncio.gather(store.verify(token.ref, CODE), store.verify(other.ref, CODE), return_exceptions=True)
    assert isinstance(results[0], DamagedRecordError)
    assert results[1] is True


async def test_the_secrets_of_a_token_are_not_shown(store: SqliteStore) -> None:
    token = await register(store)
    claim = await take_one(store)
    for record in (token, claim, new_token(), new_subscription(b"secret queue")):
        for secret in (b"phone", KEY, CODE, b"server dh", b"secret queue", b"notifier key"):
            assert repr(secret)[2:-1] not in repr(record)


async def test_what_came_of_the_last_push_is_kept(store: SqliteStore, clock: FakeClock) -> None:
    token = await register(store)
    assert await store.last_push(token.ref) is None
    claim = await take_one(store)
    await store.record([again(claim)])
    last = await store.last_push(token.ref)
    assert last is not None
    assert (last.push_id, last.at, last.outcome, last.reason) == (claim.push_id, NOW, "again", "busy")
    clock.pass_(10)
    retry = await take_one(store)
    assert (retry.push_id, retry.attempts) == (claim.push_id, 1)
    await store.record([delivered(retry)])
    last = await store.last_push(token.ref)
    assert last is not None
    assert (last.at, last.outcome, last.reason) == (NOW + 10, "delivered", "")
    await register(store)
    assert (await take_one(store)).push_id != claim.push_id


async def test_who_was_pushed_to_within_the_period_is_owed_no_check(store: SqliteStore, clock: FakeClock) -> None:
    """Apple allows an app a few background pushes an hour, and agents ask for checks whatever their mode."""
    woken, quiet = await activate(store), await activate(store, TABLET)
    for token in (woken, quiet):
        await store.set_period(token.ref, 20)
    await subscribe(store, woken, b"a")
    clock.pass_(15 * 60)
    await notify(store, await acquire(store), b"a")
    assert (await deliver(store)).kind is MESSAGES
    clock.pass_(7 * 60)
    assert await store.mark_checks(10) == 2
    assert not await take(store)
    claim = await deliver(store, TABLET.provider)
    assert (claim.token, claim.kind) == (quiet.ref, CHECK)
    clock.pass_(15 * 60)
    assert await store.mark_checks(10) == 1
    claim = await deliver(store)
    assert (claim.token, claim.kind) == (woken.ref, CHECK)
