"""Whose code is pushed to a device next."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.admission.budgets import Rate
from ntf_server.admission.code_turns import HOUR, MAX_OF_NETWORK, MAX_WAITING, PER_HOUR, SPACING, Turn
from ntf_server.admission.verifications import MAX_DEVICES, Verifications
from ntf_server.config.settings import Limits

DEVICE = "a device"


def named(who: object) -> bytes:
    return repr(who).encode()


class World:
    """Registrations are numbered; the store is what it was told."""

    def __init__(self, size: int = 1000) -> None:
        self.turns = Verifications(size)
        self.now = 10_000.0
        self.made = 0
        self.due: dict[int, float] = {}  # when the store may have each pushed
        self.deleted: set[int] = set()

    def ask(
        self, source: object, ref: int | None = None, device: object = DEVICE, network: object = None
    ) -> int | None:
        """A registration of a source, by default in a network of its own: its number, None if it was refused."""
        turn = self.turns.ask(device, named(source), named(network or source), ref, self.now)
        if turn is None:
            return None
        if ref is None:
            self.made += 1
            ref = self.made
        self.due[ref] = turn.at
        self.tell(device, turn, ref)
        return ref

    def tell(self, device: object, turn: Turn, ref: int) -> None:
        self.turns.made(device, turn, ref)
        for moved, wait in self.turns.moved(device, self.now).items():
            assert isinstance(moved, int)
            if wait is None:
                self.deleted.add(moved)
                del self.due[moved]
            else:
                self.due[moved] = self.now + wait

    def waits(self) -> dict[int, float]:
        return {ref: at - self.now for ref, at in self.due.items() if at > self.now}


def test_one_a_minute_and_three_an_hour() -> None:
    world = World()
    for source in "abcde":
        world.ask(source)
    assert sorted(world.due.values()) == [
        world.now,
        world.now + SPACING,
        world.now + 2 * SPACING,
        world.now + HOUR,
        world.now + HOUR + SPACING,
    ]
    assert world.ask("a", device="another device") == 6
    assert world.due[6] == world.now


def test_who_had_no_turn_goes_before_who_had_one() -> None:
    """The owner registers while somebody floods his device."""
    world = World()
    flood = [world.ask("stranger") for _ in range(50)]
    owner = world.ask("owner")
    assert world.due == {flood[0]: world.now, owner: world.now + SPACING, flood[-1]: world.now + 2 * SPACING}
    assert world.deleted == set(flood[1:-1])  # his own, and nobody else's


def test_who_waits_is_not_put_behind_those_who_had_turns() -> None:
    world = World()
    world.ask("a")
    world.now += 90
    world.ask("b")
    a, b, c = world.ask("a"), world.ask("b"), world.ask("c")
    assert [world.due[ref] for ref in (c, a, b) if ref] == [
        world.now + SPACING,
        world.now - 90 + HOUR,
        world.now + HOUR,
    ]


def test_the_same_registration_keeps_its_turn() -> None:
    world = World()
    world.ask("x")
    ref = world.ask("a")
    before = dict(world.due)
    assert world.ask("a", ref) == ref
    assert world.ask("another address of it", ref) == ref
    assert world.due == before


def test_of_a_network_with_many_addresses_one_turn_comes_before_the_owner() -> None:
    """Those who flood have as many as they like; and their next ones come after his next one."""
    world = World()
    flood = [world.ask(n, network="flood") for n in range(MAX_OF_NETWORK)]
    owner, again = world.ask("owner"), world.ask("another address of his", network="owner")
    assert owner is not None
    assert again is not None
    assert world.due[owner] == world.now + SPACING
    assert world.due[again] == world.now + HOUR
    world.now += 2 * HOUR
    world.due.clear()
    late, mine = world.ask("late", network="flood"), world.ask("new", network="owner")
    assert late is not None
    assert mine is not None
    assert world.due[mine] < world.due[late]
    assert None not in flood


def test_of_a_network_so_many_wait_and_of_all_so_many_more() -> None:
    world = World()
    asked = [world.ask(n, network="one") is not None for n in range(MAX_OF_NETWORK + 3)]
    assert asked == [True] * (MAX_OF_NETWORK + 1) + [False] * 2
    others = [world.ask(str(n)) is not None for n in range(MAX_WAITING)]
    assert others == [True] * (MAX_WAITING - MAX_OF_NETWORK) + [False] * MAX_OF_NETWORK
    assert not world.deleted


def test_who_moves_to_another_device_waits_there_only() -> None:
    world = World()
    world.ask("x")
    ref = world.ask("a")
    assert world.ask("a", ref, device="another device") == ref
    assert ref is not None
    assert world.due[ref] == world.now
    world.ask("y")
    assert world.due[ref] == world.now  # the first device has nothing to say of it any more


def test_who_was_verified_waits_no_longer() -> None:
    world = World()
    world.ask("x")
    a, b = world.ask("a"), world.ask("b")
    assert a is not None
    world.turns.forget(a)
    c = world.ask("c")
    assert world.waits() == {a: SPACING, b: SPACING, c: 2 * SPACING}  # what the store has of it is over


def test_who_is_not_made_yet_is_moved_when_it_is() -> None:
    """Two commands for one device at once."""
    world = World()
    world.ask("a")
    slow = world.turns.ask(DEVICE, named("a"), named("a"), None, world.now)
    assert slow is not None
    world.due[99] = slow.at
    world.ask("b")
    world.tell(DEVICE, slow, 99)
    assert world.due[99] == world.now + 2 * SPACING
    lost = world.turns.ask(DEVICE, named("c"), named("c"), None, world.now)
    assert lost is not None
    world.ask("c")
    world.due[100] = lost.at
    world.tell(DEVICE, lost, 100)
    assert 100 in world.deleted


def test_memory_is_bounded() -> None:
    world = World(size=10)
    for n in range(100):
        for source in "ab":
            world.ask(source, device=n)
    assert len(world.turns) == 10
    assert len(world.turns._where) <= 10
    for n in range(200):
        world.ask(n, device="one")
    assert len(world.turns) == 1
    assert len(world.turns._where) <= MAX_WAITING


def test_to_have_a_device_forgotten_takes_half_an_hour_of_all_registrations() -> None:
    slowest = Rate.parse(Limits().registrations).paces[-1]
    groups = 2  # those who ask for little, and the others
    assert (MAX_DEVICES - groups * slowest.at_once) / (groups * slowest.per_second) > HOUR / 2


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), st.booleans()), max_size=80))
@pytest.mark.parametrize("flood", [1, 5])
def test_no_device_is_pushed_to_more_than_its_share(flood: int, steps: Sequence[tuple[int, int, bool]]) -> None:
    world = World()
    known: dict[int, int] = {}
    pushed: list[float] = []
    for pause, source, again in steps:
        due, until = world.due, world.now + pause
        pushed += [at for at in due.values() if at <= until]
        world.due = {ref: at for ref, at in due.items() if at > until}
        world.now = until
        for _ in range(flood):
            ref = world.ask(source, known.get(source) if again and known.get(source) in world.due else None)
            if ref is not None:
                known[source] = ref
        waiting = {ref for ref, at in world.due.items() if at > world.now}
        assert len(waiting) <= MAX_WAITING
    pushed = sorted([*pushed, *world.due.values()])
    assert all(b - a >= SPACING - 1e-6 for a, b in itertools.pairwise(pushed))
    assert all(b - a >= HOUR - 1e-6 for a, b in zip(pushed, pushed[PER_HOUR:], strict=False))
