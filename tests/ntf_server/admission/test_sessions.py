"""Which connection goes when there are too many."""

import heapq
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.admission.addresses import SITE_SHARE, keys
from ntf_server.admission.budgets import Budgets
from ntf_server.admission.sessions import HANDSHAKE, MANY, SILENT, Closed, Connections, Peer
from ntf_server.config.limits import parse_limits
from ntf_server.config.settings import Limits


class World:
    """Connections, and what became of them."""

    def __init__(self, **limits: Any) -> None:
        budgets = parse_limits(msgspec.structs.replace(Limits(), **limits))
        assert budgets is not None
        self.budgets: Budgets | None = budgets
        self.told: list[Closed] = []
        self.ended: list[Peer] = []
        self.connections = Connections(self.told.append)
        self.now = 1000.0

    def open(self, host: str) -> Peer | None:
        peer = self.connections.open(keys(host), lambda: self.ended.append(peer), self.now, self.budgets)
        return peer

    def session(self, host: str) -> Peer:
        peer = self.open(host)
        assert peer is not None
        self.connections.established(peer, self.now, self.budgets)
        return peer

    @property
    def left(self) -> tuple[int, int]:
        return self.connections.half_open, self.connections.sessions


def test_half_open_connections_of_an_address_are_bounded() -> None:
    world = World(half_open_per_address=3)
    peers = [world.open("192.0.2.1") for _ in range(5)]
    assert [p is not None for p in peers] == [True, True, True, False, False]
    assert world.open("192.0.2.2") is not None
    assert world.told == [Closed.HALF_OPEN_PER_ADDRESS] * 2
    assert world.left == (4, 0)


def test_what_is_silent_makes_room_soon() -> None:
    world = World(half_open_per_address=3)
    silent = [world.open("192.0.2.1") for _ in range(3)]
    world.now += SILENT
    assert world.open("192.0.2.1") is not None
    assert world.ended == silent[:1]
    assert world.left == (3, 0)


def test_what_shakes_hands_for_long_makes_room() -> None:
    world = World(half_open_per_address=3)
    slow = [world.open("192.0.2.1") for _ in range(3)]
    for peer in slow:
        assert peer is not None
        world.connections.shaking(peer, world.now)
    world.now += SILENT
    assert world.open("192.0.2.1") is None
    world.now += HANDSHAKE - SILENT
    assert world.open("192.0.2.1") is not None
    assert world.ended == slow[:1]
    assert world.left == (3, 0)


def test_half_open_connections_are_bounded_in_all() -> None:
    world = World(half_open=3)
    peers = [world.open(f"192.0.2.{n}") for n in range(5)]
    assert world.ended == peers[:2]  # however young
    assert world.told == [Closed.HALF_OPEN] * 2
    assert world.left == (3, 0)


def test_who_has_not_begun_makes_room_before_who_waits_for_his_turn() -> None:
    world = World(half_open=3)
    begun, silent = world.open("192.0.2.1"), world.open("192.0.2.2")
    assert begun is not None
    world.connections.shaking(begun, world.now)
    for n in range(3, 9):
        assert world.open(f"192.0.2.{n}") is not None
    assert silent in world.ended
    assert begun not in world.ended
    world = World(half_open=2)
    peers = [world.open(f"192.0.2.{n}") for n in range(2)]
    for peer in peers:
        assert peer is not None
        world.connections.shaking(peer, world.now)
    assert world.open("192.0.2.9") is not None
    assert world.ended == peers[:1]


def test_of_an_address_too_who_has_not_begun_goes_first_and_who_waits_for_his_turn_not_at_all() -> None:
    world = World(half_open_per_address=2)
    waiting, silent = world.open("192.0.2.1"), world.open("192.0.2.1")
    assert waiting is not None
    world.connections.shaking(waiting, world.now + 10)
    world.now += HANDSHAKE
    assert world.open("192.0.2.1") is not None
    assert world.ended == [silent]
    assert world.open("192.0.2.1") is None


def test_a_site_has_more_than_its_networks() -> None:
    world = World(half_open_per_address=2)
    let_in = [world.open(f"2001:db8:0:{n:x}::1") is not None for n in range(3 * SITE_SHARE) for _ in range(3)]
    assert sum(let_in) == 2 * SITE_SHARE
    assert world.open("2001:db8:1::1") is not None


def test_the_session_that_was_silent_longest_makes_room_for_a_new_one_of_its_address() -> None:
    world = World(sessions_per_address=3)
    sessions = []
    for _ in range(3):
        sessions.append(world.session("192.0.2.1"))
        world.now += 1
    other = world.session("192.0.2.2")
    world.connections.asked(sessions[0], world.now)
    world.session("192.0.2.1")
    assert world.ended == [sessions[1]]
    assert world.told == [Closed.SESSIONS_PER_ADDRESS]
    assert other not in world.ended
    assert world.left == (0, 4)


def test_sessions_are_bounded_in_all() -> None:
    world = World(sessions=3)
    sessions = [world.session(f"192.0.2.{n}") for n in range(4)]
    assert world.ended == sessions[:1]
    assert world.told == [Closed.SESSIONS]


def test_what_is_switched_off_refuses_nobody() -> None:
    world = World()
    world.budgets = None
    for _ in range(10_000):
        world.session("192.0.2.1")
    assert world.left == (0, 10_000)
    assert world.told == []


def test_a_connection_that_was_lost_meanwhile_becomes_no_session() -> None:
    world = World()
    peer = world.open("192.0.2.1")
    assert peer is not None
    world.connections.closed(peer)
    world.connections.established(peer, world.now, world.budgets)
    world.connections.asked(peer, world.now)
    assert world.left == (0, 0)


def test_an_address_that_holds_most_sessions_is_named() -> None:
    world = World()
    for n in range(MANY):
        world.session(f"198.51.100.{n}")
    for _ in range(MANY):
        last = world.session("192.0.2.1")
    assert world.connections.majority(last) is None
    assert world.connections.majority(world.session("192.0.2.1")) == ("192.0.2.1", MANY + 1)
    assert world.connections.majority(world.session("192.0.2.2")) is None
    world = World()
    few = [world.session("2001:db8::1") for _ in range(MANY - 1)]
    assert world.connections.majority(few[0]) is None
    assert world.connections.majority(world.session("2001:db8::2")) == ("2001:db8::/64", MANY)


STEPS = st.lists(
    st.tuples(st.sampled_from(["open", "hello", "done", "ask", "close", "wait"]), st.integers(0, 5)), max_size=120
)


@given(STEPS)
def test_counts_are_exact_whatever_happens(steps: list[tuple[str, int]]) -> None:
    world = World(sessions=5, sessions_per_address=3, half_open=5, half_open_per_address=3)
    alive: list[Peer] = []
    for what, n in steps:
        if what == "open":
            if (peer := world.open(f"192.0.2.{n % 3}")) is not None:
                alive.append(peer)
        elif what == "wait":
            world.now += n
        elif alive:
            peer = alive[n % len(alive)]
            if what == "hello" and not (peer.is_shaking or peer.is_session):
                world.connections.shaking(peer, world.now)
            elif what == "done" and not peer.is_session:
                world.connections.established(peer, world.now, world.budgets)
            elif what == "ask":
                world.connections.asked(peer, world.now)
            elif what == "close":
                world.connections.closed(peer)
                alive.remove(peer)
        alive = [p for p in alive if p not in world.ended]
        sessions = [p for p in alive if p.is_session]
        assert world.left == (len(alive) - len(sessions), len(sessions))
        assert max(world.left) <= 5
        for key in {k for p in alive for k in p.keys}:
            assert sum(key in p.keys for p in sessions) <= 3
    for peer in alive:
        world.connections.closed(peer)
    assert world.left == (0, 0)
    assert not world.connections._sessions.by_key
    assert not world.connections._silent.by_key
    assert not world.connections._shaking.by_key


def test_strangers_from_ten_thousand_addresses_leave_room_to_others() -> None:
    """They hold half-open what they can, and come again at once: an honest client has its 100 ms."""
    world = World()
    for attempt in range(20):
        honest = world.open("192.0.2.1")
        assert honest is not None
        for n in range(1000):
            world.now += 0.0001
            world.open(f"10.{attempt}.{n // 250}.{n % 250}")
        world.connections.established(honest, world.now, world.budgets)
        assert honest.is_session
        world.connections.closed(honest)


# --- what the defaults were derived from (docs/reference/limits.md)


def test_5000_phones_behind_one_address_after_a_restart() -> None:
    """Within 30 s, each with a handshake of a second; it asks for five: none is refused, or closed while it asks."""
    world, phones, number = World(), 5000, itertools.count()
    due: list[tuple[float, int, Callable[[], None]]] = []
    asking: set[Peer] = set()

    def then(seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(due, (world.now + seconds, next(number), what))

    def connect() -> None:
        peer = world.open("198.51.100.1")
        assert peer is not None
        then(1.0, partial(establish, peer))

    def establish(peer: Peer) -> None:
        world.connections.established(peer, world.now, world.budgets)
        asking.add(peer)
        then(2.5, lambda: world.connections.asked(peer, world.now))
        then(5.0, lambda: asking.discard(peer))

    for n in range(phones):
        then(30.0 * n / phones, connect)
    while due:
        world.now, _, what = heapq.heappop(due)
        what()
        assert not asking.intersection(world.ended[-10:])
    assert next(number) == 4 * phones
    assert set(world.told) == {Closed.SESSIONS_PER_ADDRESS}  # of those that have asked
