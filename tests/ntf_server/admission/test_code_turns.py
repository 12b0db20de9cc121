"""Turns of codes at one device; what nodes keep of it. More of the turns themselves: test_verifications.py."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.admission.code_turns import HOUR, MAX_WAITING, SPACING, DeviceTurns, Place, Turn, own_turn

NOW = 1_800_000_000.0
texts = st.binary(min_size=8, max_size=8)
times = st.floats(0, 4e9)
refs = st.none() | st.binary(max_size=24)
places = st.lists(st.builds(Place, texts, texts, texts, times, times, refs), max_size=5)


def ask(turns: DeviceTurns, source: bytes, ref: Any = None, now: float = NOW, turn_id: bytes = b"") -> Turn:
    turn = turns.ask(turn_id or source, source, source, ref, now)
    assert turn is not None
    return turn


def busy(*waiting: bytes) -> DeviceTurns:
    """A device that had a turn now; these wait, as sources and as registrations."""
    turns = DeviceTurns()
    ask(turns, b"first")
    for name in waiting:
        turns.made(ask(turns, name), name)
    assert turns.untold() == {}
    return turns


# --- the codec


def same(a: DeviceTurns, b: DeviceTurns) -> bool:
    return msgspec.to_builtins(a) == msgspec.to_builtins(b)


@given(places, places, st.lists(st.binary(max_size=24), max_size=3))
def test_what_is_packed_is_unpacked(given: list[Place], waiting: list[Place], lost: list[bytes]) -> None:
    turns = DeviceTurns(given, waiting, lost)
    assert same(DeviceTurns.unpack(turns.pack()), turns)


@given(st.binary(max_size=60))
def test_what_cannot_be_read_is_a_device_that_nothing_is_known_of(rubbish: bytes) -> None:
    turns = DeviceTurns.unpack(rubbish)
    assert isinstance(ask(turns, b"a"), Turn)
    assert same(DeviceTurns.unpack(None), DeviceTurns())


def test_a_device_that_many_wait_at_is_small() -> None:
    turns = DeviceTurns()
    for n in range(MAX_WAITING + 1):
        turns.made(ask(turns, n.to_bytes(8, "big")), bytes(24))
    assert len(turns.waiting) == MAX_WAITING
    assert len(turns.pack()) < 25_000


steps = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), st.integers(0, 3)), max_size=60)


@given(steps)
def test_who_packs_between_all_steps_gives_the_same_turns(steps: Sequence[tuple[int, int, int]]) -> None:
    kept, packed, now = DeviceTurns(), DeviceTurns().pack(), NOW
    turn: Turn | None = None
    for number, (pause, source, what) in enumerate(steps):
        now += pause
        ref, found = b"%d" % source, []
        for turns in (kept, DeviceTurns.unpack(packed)):
            step: Any = None
            if what == 0:
                step = turns.ask(b"%d" % number, b"%d" % source, b"%d" % (source // 2), None, now)
            elif what == 1:
                step = turns.ask(b"%d" % number, b"%d" % source, b"%d" % (source // 2), ref, now)
            elif what == 2 and turn is not None:
                turns.made(turn, ref)
                step = turns.untold()
                turns.tell(step)
            else:
                turns.forget(ref)
            found.append((step, turns.untold(), turns.keep(now)))
            packed = turns.pack()
        assert found[0] == found[1]
        assert same(kept, DeviceTurns.unpack(packed))
        turn = found[0][0] if isinstance(found[0][0], Turn) else turn


# --- what the store is told


def test_what_was_told_while_it_changed_is_told_again() -> None:
    """Another node moved it meanwhile: whoever is last tells what is so."""
    turns = busy(b"a", b"b")
    ask(turns, b"new", turn_id=b"1")
    turns.given.append(turns.given[0])  # as if there had been one more turn
    turns.ask(b"2", b"newer", b"newer", None, NOW)
    one = turns.untold()
    ask(turns, b"newest", turn_id=b"3")
    turns.tell(one)
    again = turns.untold()
    assert again.keys() <= one.keys()
    turns.tell(again)
    assert turns.untold() == {}


def test_it_is_told_until_somebody_says_that_it_was() -> None:
    """Who was to tell it may have died."""
    turns = busy(b"a")
    turns.given.append(turns.given[0])
    ask(turns, b"a", turn_id=b"another of its source")
    assert turns.untold() == {b"a": None}
    assert DeviceTurns.unpack(turns.pack()).untold() == {b"a": None}
    turns.tell({b"b": None, b"a": 5.0})
    assert turns.untold() == {b"a": None}
    turns.tell({b"a": None})
    assert turns.untold() == {}


def test_who_lost_its_turn_and_asks_again_is_not_deleted() -> None:
    turns = busy(b"a")
    ask(turns, b"a", turn_id=b"another of its source")
    assert ask(turns, b"elsewhere", b"a").is_known
    assert b"a" not in turns.untold()


def test_who_lost_its_turn_and_has_another_device_is_not_deleted() -> None:
    turns = busy(b"a")
    ask(turns, b"a", turn_id=b"another of its source")
    turns.forget(b"a")
    assert turns.untold() == {}


def test_who_was_moved_before_the_store_had_it_is_told() -> None:
    """A registration that is known may be moved, by another command, before its own command has told the store."""
    turns = busy()
    turn = ask(turns, b"a", b"a")
    [place] = turns.waiting
    place.at += 60
    turns.tell(turns.untold())  # the store had nothing to put off yet
    turns.made(turn, b"a")
    assert turns.untold() == {b"a": turn.at + 60}


def test_those_that_lost_are_so_many_at_most() -> None:
    turns = busy()
    for n in range(2 * MAX_WAITING):
        turns.made(ask(turns, b"flood", turn_id=b"%d" % n), b"%d" % n)
    assert len(turns.lost) == MAX_WAITING
    assert turns.lost[-1] == b"%d" % (2 * MAX_WAITING - 2)


# --- how long it is kept


def test_it_is_kept_until_it_says_nothing_any_more() -> None:
    assert DeviceTurns().keep(NOW) == 0.0
    turns = busy()
    assert turns.keep(NOW) == HOUR
    assert turns.keep(NOW + 10) == HOUR - 10
    ask(turns, b"a")
    assert turns.keep(NOW) == SPACING + HOUR
    turns.made(Turn(b"gone", NOW, is_known=False), b"lost")
    assert DeviceTurns(lost=turns.lost).keep(NOW) == HOUR


def test_of_its_own_a_registration_has_one_a_minute() -> None:
    assert own_turn(0.0, NOW) == (NOW, NOW + SPACING)
    assert own_turn(NOW + SPACING, NOW + 1) == (NOW + SPACING, NOW + SPACING)  # however often it asks
    assert own_turn(NOW + SPACING, NOW + SPACING) == (NOW + SPACING, NOW + 2 * SPACING)


def test_a_turn_that_was_given_is_nobodys_loss() -> None:
    turns = DeviceTurns()
    turn = ask(turns, b"a")
    turns.made(turn, b"a")
    assert turns.untold() == {}
    with pytest.raises(StopIteration):
        next(iter(turns.refs))
