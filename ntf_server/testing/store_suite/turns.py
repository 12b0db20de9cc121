"""Codes that wait for their turn, and what tells tokens apart for that."""

from dataclasses import replace

from ntf_server.store.records import PushKind, Replacement
from ntf_server.testing.store_suite.medium import (
    Bench,
    acquire,
    activate,
    again,
    as_found,
    delivered,
    device,
    known,
    new_token,
    notify,
    record,
    register,
    status,
    subscribe,
    take,
    take_cool,
    take_one,
)
from smp_bridge.ntf import TokenStatus


async def a_code_waits_for_its_turn(bench: Bench) -> None:
    """Nobody is handed it before, also after a restart; its time to live counts from then."""
    store = await bench.open()
    new = new_token(1)
    assert await store.register(new, bench.times.verification_ttl + 100.0) is not None
    for _ in range(2):
        assert await take_cool(bench, store) == []
        bench.clock.pass_(bench.times.verification_ttl // 2)
        store = await bench.reopen(store)
    assert await take_cool(bench, store) == []
    bench.clock.pass_(100 + bench.times.verification_ttl - 5)
    claim = await take_one(store)
    assert (claim.kind, claim.code) == (PushKind.VERIFICATION, new.code)
    assert await bench.medium.expired(store) == 0


async def a_code_is_due_when_it_was_said(bench: Bench) -> None:
    """`take` says so, and a look then finds it."""
    store = await bench.open()
    new = new_token(1)
    assert await store.register(new, 60.0) is not None
    await take(store)
    bench.clock.pass_(58)
    assert await take(store) == []
    bench.clock.pass_(3)
    assert (await take_one(store)).code == new.code


async def a_replacement_waits_too(bench: Bench) -> None:
    """TRPL: the code of the new device token."""
    store = await bench.open()
    token = await activate(store, 1)
    assert await store.replace(token.ref, Replacement(device(2), b"c" * 32), 60.0)
    assert await take_cool(bench, store) == []
    bench.clock.pass_(61)
    assert (await take_one(store)).code == b"c" * 32


async def a_turn_counts_while_a_push_is_under_way(bench: Bench) -> None:
    """The same registration again, before what came of the first push is known."""
    store = await bench.open()
    token = await register(store, new_token(1))
    claim = await take_one(store)
    assert await store.register(new_token(1), 60.0) is not None
    assert await store.record([delivered(claim)]) == 1
    assert await take_cool(bench, store) == []
    bench.clock.pass_(61)
    assert (await take_one(store)).token == token.ref


async def a_code_that_is_not_out_is_not_put_off(bench: Bench) -> None:
    """It waits for a retry, or for an earlier turn; to register again adds no push."""
    store = await bench.open()
    await register(store, new_token(1))
    await record(store, again(await take_one(store), 300))
    assert await store.register(new_token(1), 3000.0) is not None
    assert (await take_one(store)).kind is PushKind.VERIFICATION
    assert await store.register(new_token(2), 60.0) is not None
    assert await store.register(new_token(2), 3000.0) is not None
    assert await take(store) == []
    bench.clock.pass_(61)
    assert (await take_one(store)).device == device(2)


async def messages_do_not_wait_for_a_code(bench: Bench) -> None:
    """Of an ACTIVE token: they go out, and the code in its turn."""
    store = await bench.open()
    token = await activate(store, 1)
    await subscribe(store, token, b"queue")
    assert await store.register(new_token(1), 60.0) is not None
    session = await acquire(store)
    await notify(store, session, b"queue")
    claim = await take_one(store)
    assert claim.kind is PushKind.MESSAGES
    await record(store, again(claim, 1))
    bench.clock.pass_(2)
    claim = await take_one(store)
    assert claim.kind is PushKind.MESSAGES
    await record(store, delivered(claim))
    assert await take_cool(bench, store) == []
    bench.clock.pass_(61)
    assert (await take_one(store)).kind is PushKind.VERIFICATION


async def what_comes_while_a_code_waits_does_not(bench: Bench) -> None:
    """Also if somebody has looked before, and found that the code has to wait."""
    store = await bench.open()
    told, checked = await activate(store, 1), await activate(store, 2)
    await subscribe(store, told, b"queue")
    await store.set_period(checked.ref, 20)
    bench.clock.pass_(25 * 60)
    for number in (1, 2):
        assert await store.register(new_token(number), 3600.0) is not None
    assert await take_cool(bench, store) == []
    session = await acquire(store)
    for _ in range(3):
        await notify(store, session, b"queue")
        claim = await take_one(store)
        assert (claim.token, claim.kind) == (told.ref, PushKind.MESSAGES)
        await record(store, delivered(claim))
        assert await take_cool(bench, store) == []
    assert await store.mark_checks(10) == 1
    claim = await take_one(store)
    assert (claim.token, claim.kind) == (checked.ref, PushKind.CHECK)
    await record(store, delivered(claim))
    assert await take_cool(bench, store) == []
    bench.clock.pass_(3601)
    assert {c.kind for c in await take(store)} == {PushKind.VERIFICATION}


async def turns_are_put_off_and_brought_forward(bench: Bench) -> None:
    """Those that still wait; what is due already stays so."""
    store = await bench.open()
    tokens = [await store.register(new_token(n), 60.0 * n) for n in range(3)]
    refs = [token.ref for token in tokens if token is not None]
    await store.put_off({refs[0]: 600.0, refs[1]: 120.0, refs[2]: 30.0})
    assert {c.token for c in await take(store)} == {refs[0]}
    bench.clock.pass_(31)
    assert {c.token for c in await take(store)} == {refs[2]}
    bench.clock.pass_(60)
    assert await take(store) == []
    bench.clock.pass_(31)
    assert {c.token for c in await take(store)} == {refs[1]}


async def who_loses_its_turn_is_deleted_if_it_never_was_active(bench: Bench) -> None:
    """One that was, and one whose code is out, stay."""
    store = await bench.open()
    waiting = await store.register(new_token(1), 60.0)
    proven, out = await activate(store, 2), await register(store, new_token(3))
    assert waiting is not None
    assert await store.replace(proven.ref, Replacement(device(4), b"c" * 32), 60.0)
    await store.put_off(dict.fromkeys([waiting.ref, proven.ref, out.ref]))
    assert await store.find_token(waiting.token_id) is None
    assert await status(store, proven) == (TokenStatus.REGISTERED, None)
    assert await status(store, out) == (TokenStatus.REGISTERED, None)
    bench.clock.pass_(61)
    assert {c.token for c in await take(store)} == {proven.ref, out.ref}
    await store.put_off({waiting.ref: 5.0})  # it is gone


async def a_token_that_was_active_stays_proven(bench: Bench) -> None:
    """Whatever becomes of it."""
    store = await bench.open()
    new = new_token(1)
    token = await register(store, new)
    assert not token.proven
    assert not await store.verify(token.ref, b"x" * 32)
    assert not (await known(store, token)).proven
    assert await store.verify(token.ref, new.code)
    assert (await known(store, token)).proven
    assert (await register(store, new_token(1))).proven
    assert await store.replace(token.ref, Replacement(device(2), b"c" * 32))
    found = await known(store, token)
    assert (found.status, found.proven) == (TokenStatus.REGISTERED, True)


async def a_registration_is_found_by_what_makes_it_the_same(bench: Bench) -> None:
    """Device token and verify key."""
    store = await bench.open()
    new = new_token(1)
    assert await store.find_registration(new.device, new.verify_key) is None
    token = await register(store, new)
    assert await store.find_registration(new.device, new.verify_key) == as_found(token)
    upper = replace(new.device, token=new.device.token.upper())
    assert await store.find_registration(upper, new.verify_key) == as_found(token)
    assert await store.find_registration(device(2), new.verify_key) is None
    assert await store.find_registration(new.device, b"another key") is None
    await store.delete_token(token.ref)
    assert await store.find_registration(new.device, new.verify_key) is None
