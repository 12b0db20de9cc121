"""Whose turn it is: oldest first, lanes of Web Push in turn."""

import pytest
from store_world import (
    NOW,
    FakeClock,
    Room,
    acquire,
    activate,
    again,
    anywhere,
    delivered,
    notify,
    plan,
    register,
    subscribe,
    take,
    untried,
)

from ntf_server.store.records import Claim, Session
from ntf_server.store.sqlite import taking as module
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.ntf import DeviceToken, Provider

WP = Provider.WEB_PUSH


async def phone(store: SqliteStore, origin: str, number: int) -> None:
    name = f"{origin}/{number}".encode()
    await register(store, DeviceToken(WP, name), name, origin=origin)


async def fill(store: SqliteStore, counts: dict[str, int]) -> dict[str, bytes]:
    """So many codes are due at these origins; gives their hashes."""
    for origin, count in counts.items():
        for number in range(count):
            await phone(store, origin, number)
    return {origin: store._state.sealer.origin(origin) for origin in counts}


def origins(claims: list[Claim]) -> dict[str, int]:
    out: dict[str, int] = {}
    for claim in claims:
        origin = claim.device.token.decode().rpartition("/")[0]
        out[origin] = out.get(origin, 0) + 1
    return out


async def test_the_oldest_go_first(store: SqliteStore, clock: FakeClock) -> None:
    names = [b"%d" % i for i in range(5)]
    for name in names:
        await register(store, DeviceToken(Provider.APNS, name), name)
        clock.pass_(1)
    taken = await store.take(Provider.APNS, Room(2))
    assert [c.device.token for c in taken.claims] == names[:2]
    assert taken.next_in == 0
    await store.record([untried(c) for c in taken.claims])
    assert [c.device.token for c in await take(store)] == [*names[2:], *names[:2]]


async def test_what_is_ready_and_what_is_written_go_by_their_age(store: SqliteStore, clock: FakeClock) -> None:
    one = await activate(store, DeviceToken(Provider.APNS, b"one"))
    await subscribe(store, one, b"a", b"b")
    session = await acquire(store)
    [claim] = (await notify(store, session, b"a", places=anywhere())).claims
    await notify(store, session, b"b")
    await store.record([delivered(claim)])
    clock.pass_(1)
    await store.mark_checks(1)
    await store.take(Provider.APNS, Room(0))  # a look: it is ready from now on
    clock.pass_(1)
    await register(store, DeviceToken(Provider.APNS, b"two"))
    assert [c.device.token for c in await take(store)] == [b"one", b"two"]


async def test_nothing_is_due(store: SqliteStore) -> None:
    for provider in Provider:
        taken = await store.take(provider, Room())
        assert (taken.claims, taken.next_in) == ([], None)
        assert (await store.backlog(provider)).tokens == 0


async def test_next_in_is_when_the_first_retry_is_due(store: SqliteStore, clock: FakeClock) -> None:
    for i, after in enumerate((50, 20, 90)):
        await register(store, DeviceToken(Provider.APNS, b"%d" % i), b"%d" % i)
        [claim] = await take(store)
        await store.record([again(claim, after)])
    assert (await store.take(Provider.APNS, Room())).next_in == 20
    assert (await store.backlog(Provider.APNS)).tokens == 3
    clock.pass_(20)
    taken = await store.take(Provider.APNS, Room())
    assert (len(taken.claims), taken.next_in) == (1, 30)


async def test_origins_have_their_turn(store: SqliteStore) -> None:
    await fill(store, {"https://big": 100, "https://small": 3, "https://other": 20})
    first = await store.take(WP, Room(25))
    assert origins(first.claims)["https://small"] == 3
    assert min(origins(first.claims).values()) == 3
    assert len(first.claims) == 25
    assert first.next_in == 0


async def test_one_origin_alone_may_have_all_places(store: SqliteStore) -> None:
    await fill(store, {"https://big": 100})
    assert len((await store.take(WP, Room(90))).claims) == 90
    taken = await store.take(WP, Room(90))
    assert (len(taken.claims), taken.next_in) == (10, None)


async def test_origins_without_room_are_passed_over_and_keep_their_rows(store: SqliteStore) -> None:
    hashes = await fill(store, {"https://dead": 50, "https://well": 5})
    room = Room(100, {hashes["https://dead"]: 0})
    taken = await store.take(WP, room)
    assert origins(taken.claims) == {"https://well": 5}
    assert set(room.asked) == set(hashes.values())
    assert (await store.take(WP, room)).next_in is None
    assert (await store.backlog(WP)).tokens == 50
    assert origins(await take(store, WP)) == {"https://dead": 50}


async def test_origins_get_no_more_than_their_room(store: SqliteStore) -> None:
    hashes = await fill(store, {"https://a": 30, "https://b": 30})
    taken = await store.take(WP, Room(100, {hashes["https://a"]: 3, hashes["https://b"]: 12}))
    assert origins(taken.claims) == {"https://a": 3, "https://b": 12}


async def test_a_place_at_a_time_reaches_every_origin(store: SqliteStore) -> None:
    names = [f"https://{i}" for i in range(7)]
    await fill(store, dict.fromkeys(names, 3))
    seen: list[str] = []
    for _ in range(7):
        [claim] = (await store.take(WP, Room(1))).claims
        seen += origins([claim])
    assert sorted(seen) == sorted(names)


async def test_only_origins_with_something_due_are_asked_for_room(store: SqliteStore, clock: FakeClock) -> None:
    await fill(store, {"https://waits": 1})
    await store.record([again(c, 100) for c in await take(store, WP)])
    hashes = await fill(store, {"https://now": 1})
    room = Room()
    taken = await store.take(WP, room)
    assert room.asked == [hashes["https://now"]]
    assert taken.next_in == 100


async def test_more_paused_origins_than_one_take_looks_at_hide_nothing_and_cost_no_endless_looks(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LANES", 5)
    hashes = await fill(store, {f"https://{i}": 1 for i in range(23)})
    well = "https://7"
    room = Room(100, {h: 0 for origin, h in hashes.items() if origin != well})
    found, looks = [], 0
    while True:
        looks += 1
        assert looks < 20
        taken = await store.take(WP, room)
        found += taken.claims
        if taken.next_in is None:
            break
    assert origins(found) == {well: 1}
    assert (await _until_none(store, room)) <= 6
    assert (await store.backlog(WP)).tokens == 22


async def _until_none(store: SqliteStore, room: Room) -> int:
    looks = 1
    while (await store.take(WP, room)).next_in is not None:
        looks += 1
    return looks


async def test_what_is_ready_where_there_is_no_room_waits_in_the_store(store: SqliteStore, clock: FakeClock) -> None:
    token = await activate(store, DeviceToken(WP, b"x"), origin="https://a")
    await subscribe(store, token, b"a", b"b")
    session: Session = await acquire(store)
    [claim] = (await notify(store, session, b"a", places=anywhere())).claims
    await notify(store, session, b"b")
    await store.record([delivered(claim)])
    clock.pass_(1)
    assert not (await store.take(WP, Room(10, {claim.lane.origin: 0}))).claims
    assert not store._state.ready
    assert (await store.backlog(WP)).tokens == 1
    assert len(await take(store, WP)) == 1


async def test_a_lane_says_whose_service_it_is(store: SqliteStore) -> None:
    hashes = await fill(store, {"https://a": 1})
    [claim] = await take(store, WP)
    assert claim.lane == (WP, hashes["https://a"])
    assert len(claim.lane.origin) == 16
    await register(store)
    [claim] = await take(store)
    assert claim.lane == (Provider.APNS, b"")
    assert claim.since == NOW


@pytest.mark.parametrize("name", ["_OLDEST", "_NEXT_LANE", "_NEXT_DUE"])
async def test_what_is_next_is_found_by_the_index(store: SqliteStore, name: str) -> None:
    query: str = getattr(module, name)
    values = {"lane": b"AP", "now": 1, "limit": 1}
    details = await plan(store, query, values)
    assert any("INDEX deliveries_due" in d for d in details), details
    assert not any("TEMP B-TREE" in d or d.startswith("SCAN deliveries") for d in details), details
