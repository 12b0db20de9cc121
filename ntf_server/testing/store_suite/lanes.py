"""Web Push has a lane for each push service: they are served in turn, and one that is paused is passed over."""

from collections import Counter

from ntf_server.store.contract import Store
from ntf_server.store.records import Claim, Ended, Outcome, Replacement
from ntf_server.testing.store_suite.medium import (
    FOREVER,
    ROOM,
    Bench,
    Room,
    acquire,
    activate,
    again,
    delivered,
    device,
    new_token,
    notify,
    record,
    register,
    subscribe,
    take,
)
from smp_bridge.ntf import DeviceToken, Provider

_WP = Provider.WEB_PUSH


async def _fill(store: Store, origins: int, tokens: int) -> dict[bytes, list[Claim]]:
    """Registrations whose codes are due, first all of one origin, then all of the next; claims of each origin."""
    refs = {}
    for origin in range(origins):
        for number in range(tokens):
            new = new_token(origin * 10_000 + number, _WP, origin=_origin(origin))
            refs[(await register(store, new)).ref] = origin
    claims = await _take_all(store)
    assert len(claims) == origins * tokens
    lanes: dict[bytes, list[Claim]] = {}
    for claim in claims:
        lanes.setdefault(claim.lane.origin, []).append(claim)
    assert [len({refs[c.token] for c in lane}) for lane in lanes.values()] == [1] * origins
    assert await store.record([Outcome(c, Ended.UNTRIED) for c in claims]) == 0
    return lanes


def _origin(number: int) -> str:
    return f"https://push{number}.example.org"


async def _take_all(store: Store, places: Room = ROOM) -> list[Claim]:
    out: list[Claim] = []
    for _ in range(FOREVER):
        taken = await store.take(_WP, places)
        out += taken.claims
        if taken.next_in != 0:
            return out
    raise AssertionError("there is always more")


def _count(claims: list[Claim]) -> Counter[bytes]:
    return Counter(claim.lane.origin for claim in claims)


async def a_lane_is_an_origin(bench: Bench) -> None:
    """Hashed, with a key: 16 bytes; other providers have one lane."""
    store = await bench.open()
    for number, origin in enumerate([_origin(1), _origin(1), _origin(2)]):
        await register(store, new_token(number, _WP, origin=origin))
    await register(store, new_token(3))
    lanes = [c.lane for c in sorted(await _take_all(store), key=lambda c: c.device.token)]
    assert {lane.provider for lane in lanes} == {_WP}
    assert lanes[0] == lanes[1] != lanes[2]
    assert {len(lane.origin) for lane in lanes} == {16}
    [claim] = await take(store)
    assert (claim.lane.provider, claim.lane.origin) == (Provider.APNS, b"")


async def a_lane_is_the_same_after_reopening(bench: Bench) -> None:
    """Or a pause of one would be forgotten by the next take."""
    store = await bench.open()
    lanes = await _fill(store, 2, 1)
    store = await bench.reopen(store)
    assert set(_count(await _take_all(store))) == set(lanes)


async def origins_are_served_in_turn(bench: Bench) -> None:
    """However many wait before: the few of one origin do not wait for the many of another."""
    store = await bench.open()
    lanes = await _fill(store, 3, 40)
    seen: Counter[bytes] = Counter()
    for _ in range(6):  # twelve places; alone in the order of their age all would be of the first
        bench.clock.pass_(0.05)
        seen += _count(await take(store, _WP, ROOM._replace(total=2)))
    assert set(seen) == set(lanes)
    assert max(seen.values()) <= 2 * min(seen.values()) + 2


async def one_origin_alone_has_all_places(bench: Bench) -> None:
    """Places are not kept for lanes that have nothing."""
    store = await bench.open()
    await _fill(store, 1, 50)
    bench.clock.pass_(0.05)
    assert len(await _take_all(store, ROOM._replace(total=50))) == 50


async def a_lane_without_room_is_passed_over(bench: Bench) -> None:
    """Its tokens stay due, as old as they are; it may have room for a few."""
    store = await bench.open()
    lanes = await _fill(store, 3, 20)
    paused, slow, healthy = lanes
    bench.clock.pass_(0.05)
    claims = await _take_all(store, Room(1000, 1000, {paused: 0, slow: 5}))
    counted = _count(claims)
    assert counted[paused] == 0
    assert counted[slow] >= 5
    assert counted[healthy] == 20
    left = 60 - len(claims)
    assert (await store.backlog(_WP)).tokens == left
    rest = _count(await _take_all(store))
    assert rest[paused] == 20
    since = {c.since for c in lanes[paused]}
    assert {c.since for c in claims if c.lane.origin == paused} <= since


async def one_take_gives_a_lane_no_more_than_its_room(bench: Bench) -> None:
    """Which is asked for anew with each take."""
    store = await bench.open()
    lanes = await _fill(store, 2, 20)
    first, _ = lanes
    bench.clock.pass_(0.05)
    for _ in range(3):
        assert _count(await take(store, _WP, Room(100, 100, {first: 3})))[first] == 3


async def all_paused_is_nothing_to_take(bench: Bench) -> None:
    """It is not said to be due at once again and again, and is handed out when there is room."""
    store = await bench.open()
    lanes = await _fill(store, 3, 5)
    bench.clock.pass_(0.05)
    places = Room(100, 0)
    for _ in range(20):
        taken = await store.take(_WP, places)
        assert taken.claims == []
        if taken.next_in != 0:
            break
    else:
        raise AssertionError("what is paused is said to be due")
    assert set(_count(await _take_all(store))) == set(lanes)


async def many_paused_origins_hide_none(bench: Bench) -> None:
    """A stranger may invent any number of them."""
    store = await bench.open()
    for number in range(300):
        await register(store, new_token(number, _WP, origin=_origin(number)))
    paused = {c.lane.origin: 0 for c in await _take_all(store)}
    store = await bench.reopen(store, kill=True)
    bench.clock.pass_(60)
    honest = await register(store, new_token(1000, _WP, origin=_origin(1000)))
    claims = await _take_all(store, Room(10, 10, paused))
    assert [c.token for c in claims] == [honest.ref]


async def a_hanging_origin_delays_no_other(bench: Bench) -> None:
    """With few places, and retries of one origin that are always due, each of another gets its push soon."""
    store = await bench.open()
    lanes = await _fill(store, 2, 30)
    bad = next(iter(lanes))
    reached: Counter[bytes] = Counter()
    for _ in range(40):
        bench.clock.pass_(1)
        claims = await take(store, _WP, ROOM._replace(total=4))
        for claim in claims:
            bad_one = claim.lane.origin == bad
            reached[claim.lane.origin] += 1
            await record(store, again(claim, 0.1) if bad_one else delivered(claim))
    assert reached.total() - reached[bad] == 30


async def notify_keeps_to_the_room_of_a_lane(bench: Bench) -> None:
    """What has no room is due."""
    store = await bench.open()
    lanes = {}
    for n in range(2):
        token = await activate(store, n, _WP, origin=_origin(n))
        await subscribe(store, token, b"%d" % n)
        await register(store, new_token(n, _WP, origin=_origin(n)))
        [claim] = await take(store, _WP)
        lanes[n] = claim.lane.origin
        await record(store, delivered(claim))
    bench.clock.pass_(1)
    session = await acquire(store)
    notified = await notify(store, session, b"0", b"1", places={_WP: Room(10, 10, {lanes[0]: 0})})
    claims = notified.claims + await take(store, _WP, Room(10, 10, {lanes[0]: 0}))
    assert [c.lane.origin for c in claims] == [lanes[1]]
    assert (await store.backlog(_WP)).tokens == 1


async def a_token_moves_to_another_lane(bench: Bench) -> None:
    """By TRPL."""
    store = await bench.open()
    token = await register(store, new_token(1, _WP, origin=_origin(1)))
    replacement = Replacement(DeviceToken(_WP, device(2, _WP).token), b"c" * 32, _origin(2))
    assert await store.replace(token.ref, replacement)
    [claim] = await _take_all(store)
    await register(store, new_token(3, _WP, origin=_origin(2)))
    [other] = await _take_all(store)
    assert claim.lane == other.lane
