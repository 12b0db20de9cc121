"""What tokens there are."""

from msgspec import structs

from ntf_server.store.contract import Store
from ntf_server.store.records import ACTIVE_SPANS, Census
from ntf_server.testing.store_suite.medium import (
    Bench,
    activate,
    dead,
    delivered,
    new_token,
    record,
    register,
    take_cool,
    take_one,
)
from smp_bridge.ntf import Provider

_DAY = 24 * 3600
_MOST = 1000  # slices: some may be empty


async def _count(store: Store, limit: int) -> Census:
    counted, cursor = await store.census(None, limit)
    slices = 1
    while cursor is not None:
        assert sum(counted.tokens.values()) <= slices * limit
        assert slices <= _MOST
        more, cursor = await store.census(cursor, limit)
        counted.add(more)
        slices += 1
    return counted


async def tokens_are_counted_by_provider_and_status(bench: Bench) -> None:
    """In slices of any size, each once; those that are deleted no more."""
    store = await bench.open()
    assert not (await _count(store, 3)).tokens
    for n in range(5):
        await register(store, new_token(n))
    for n in range(5, 8):
        await activate(store, n, Provider.FCM)
    gone = await activate(store, 8, Provider.FCM)
    await register(store, new_token(9, Provider.WEB_PUSH, origin="https://push.example"))
    claim = (await take_cool(bench, store))[0]
    await record(store, dead(claim))
    await store.delete_token(gone.ref)
    wanted = {("AP", "REGISTERED"): 4, ("AP", "INVALID"): 1, ("FC", "ACTIVE"): 3, ("WP", "REGISTERED"): 1}
    for limit in (1, 2, 3, 9, 100):
        assert (await _count(store, limit)).tokens == wanted, limit


async def those_that_took_a_push_of_late_are_active(bench: Bench) -> None:
    """Within a day, a week, a month."""
    store = await bench.open()
    await register(store, new_token(1))
    assert not any((await _count(store, 5)).active.values())
    await record(store, delivered(await take_one(store)))
    for passed, active in ((0, 3), (_DAY - 9, 3), (18, 2), (6 * _DAY, 1), (22 * _DAY, 1), (_DAY, 0)):
        bench.clock.pass_(passed)
        assert (await _count(store, 5)).active == dict(
            zip(ACTIVE_SPANS, [int(active > 2), int(active > 1), int(active > 0)], strict=True)
        ), passed


async def tokens_of_web_push_are_counted_by_vapid_key(bench: Bench) -> None:
    """Those that are pushed to, and no others'; what a push service showed counts from then on."""
    store, old, new = await bench.open(), b"o" * 16, b"n" * 16
    made = []
    for n, key in enumerate((b"", old, old, new)):
        new_one = new_token(n, Provider.WEB_PUSH, origin="https://push.example")
        made.append(await register(store, structs.replace(new_one, vapid_key=key)))
    await register(store, new_token(9))
    for limit in (1, 2, 100):
        assert (await _count(store, limit)).vapid_keys == {b"": 1, old: 2, new: 1}, limit
    for token in made[:2]:
        await store.set_vapid_key(token.ref, new)
    assert (await _count(store, 3)).vapid_keys == {old: 1, new: 3}
    claims = await take_cool(bench, store, Provider.WEB_PUSH)
    assert sorted(claim.vapid_key for claim in claims) == [new, new, new, old]
    await record(store, *(dead(claim) for claim in claims if claim.vapid_key == old))
    await store.delete_token(made[0].ref)
    await store.set_vapid_key(made[0].ref, old)  # it is gone
    found = await _count(store, 100)
    assert found.vapid_keys == {new: 2}
    assert found.tokens == {("AP", "REGISTERED"): 1, ("WP", "REGISTERED"): 2, ("WP", "INVALID"): 1}
