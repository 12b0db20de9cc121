"""What is kept beside the database, and undone with a transaction."""

import pytest
from store_world import NOW, FakeClock

from ntf_server.store import memory as module
from ntf_server.store.memory import (
    CROWD,
    CROWDED,
    Cooling,
    Effects,
    Held,
    Journal,
    Kept,
    Ready,
    Round,
    Seen,
    State,
    Times,
    provider_of,
)
from ntf_server.store.records import Backlog, Claim, Lane, PushKind
from ntf_server.store.sealing import Sealer
from smp_bridge.ntf import DeviceToken, Provider

LANE = b"AP"


@pytest.fixture
def state(clock: FakeClock) -> State:
    state = State(Sealer(bytes(32)), Times(), clock.clock)
    state.now, state.now_ms, state.steady = int(clock.now), int(clock.now) * 1000, clock.steady
    return state


def held() -> Held:
    device = DeviceToken(Provider.APNS, b"phone")
    return Held(Claim(1, 0, Lane(Provider.APNS), device, b"", PushKind.CHECK, 0, b""), LANE, more=False)


def test_what_a_transaction_did_to_memory_is_undone_with_it() -> None:
    journal = Journal()
    kept = Kept[str, int](journal)
    kept.put("a", 1)
    kept.put("b", 2)
    journal.forget()
    kept.put("a", 10)
    kept.put("a", 11)
    kept.drop("b")
    kept.put("c", 3)
    kept.drop("c")
    assert kept.drop("absent") is None
    assert kept == {"a": 11}
    journal.undo()
    assert kept == {"a": 1, "b": 2}
    journal.undo()
    assert kept == {"a": 1, "b": 2}


def test_something_new_for_a_token_is_remembered_where_memory_has_it(state: State) -> None:
    assert not state.touch(1)
    state.claims.put(1, held())
    assert state.touch(1)
    assert state.claims[1].again
    state.cool(2, Cooling(state.steady - 0.01, LANE, again=False))
    assert state.touch(2)
    assert state.cooling[2].again
    assert state.effects.wake == {Provider.APNS: pytest.approx(0.01)}
    assert state.next_ripe(Provider.APNS) == pytest.approx(0.01)
    assert state.next_ripe(Provider.FCM) is None
    state.ready.put(3, Ready(LANE, 0))
    assert state.touch(3)
    assert all(state.is_taken(token) for token in (1, 2, 3))


def test_what_has_cooled_is_ready_only_if_it_has_more(state: State) -> None:
    state.cool(1, Cooling(state.steady - 0.03, LANE, again=True))
    state.cool(2, Cooling(state.steady - 0.02, LANE, again=False))
    state.cool(3, Cooling(state.steady - 0.01, LANE, again=True))
    state.ripen()
    assert list(state.ready) == [1]
    assert list(state.cooling) == list(state.eager) == [3]


def test_while_it_is_crowded_a_tokens_next_push_waits_for_what_else_comes(state: State) -> None:
    state.arrived = CROWD - 1
    state.crowd()
    assert state.crowded_until == 0
    state.arrived = CROWD
    state.crowd()
    assert state.crowded_until == state.steady + CROWDED
    state.cool(1, Cooling(state.steady, LANE, again=True))
    assert state.next_ripe(Provider.APNS) == pytest.approx(CROWDED)  # then it may be over
    state.steady += CROWDED - 0.01
    state.ripen()
    assert not state.ready
    state.steady += 0.02
    state.ripen()
    assert list(state.ready) == [1]


def test_however_crowded_it_is_nobody_waits_for_ever(state: State) -> None:
    state.cool(1, Cooling(state.steady, LANE, again=True))
    state.crowded_until = state.steady + 100
    state.steady += state.times.crowded_spacing - 0.01
    state.ripen()
    assert not state.ready
    assert state.next_ripe(Provider.APNS) == pytest.approx(0.01)
    state.steady += 0.02
    state.ripen()
    assert list(state.ready) == [1]
    assert not state.eager


def test_a_token_that_is_another_now_waits_for_nothing(state: State) -> None:
    state.claims.put(1, held())
    state.cool(1, Cooling(state.steady, LANE, again=True))
    state.anew(1)
    assert state.claims[1].stale
    assert not state.cooling
    assert not state.eager
    state.forget(1)
    assert not state.is_taken(1)


def test_the_number_of_lanes_that_are_remembered_is_bounded(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    from ntf_server.store import memory

    monkeypatch.setattr(memory, "MAX_LANES", 3)
    for i in range(10):
        state.owe(b"WP%d" % i)
    assert len(state.backlog) == 3
    assert state.owes(b"WP9")  # who knows


def test_of_several_wake_ups_the_first_one_counts() -> None:
    effects = Effects()
    assert not effects
    for seconds in (5.0, 2.0, 9.0):
        effects.due(Provider.APNS, seconds)
    assert effects.wake == {Provider.APNS: 2.0}
    assert effects


def test_a_round_that_is_not_over_is_gone_on_with() -> None:
    round_ = Round(b"W", b"W")
    round_.cursor = b"WPm"
    round_.see(7)
    assert round_.stop(100, whole=False, found=False) == 100
    assert round_.began == b"W"
    round_.see(5)
    assert round_.stop(100, whole=True, found=False) == 5
    assert (round_.began, round_.next_at) == (b"WPm", None)


@pytest.mark.parametrize("step", [-400 * 86400, -10, 10, 25 * 3600, 400 * 86400])
@pytest.mark.parametrize("age", [0, 1, 4])
def test_a_stamp_from_before_a_step_of_the_clock_is_moved_with_it(state: State, step: int, age: int) -> None:
    assert state.moved(state.now - age) == state.now - age
    state.stepped(step)
    assert state.moved(state.now - age - step) == state.now - age
    assert state.moved(state.now - age) == state.now - age
    state.stepped(-2 * step)
    assert state.moved(state.now - age + step) == state.now - age


def test_a_stamp_from_the_future_is_one_of_now(state: State) -> None:
    assert state.moved(state.now + 1000) == state.now


def test_a_lane_says_its_provider() -> None:
    for provider in Provider:
        assert provider_of(provider.encode() + bytes(16)) is provider


def test_those_that_are_seen_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SEEN", 5)
    monkeypatch.setattr(module, "_SEEN_AT_ONCE", 3)
    seen = Seen[int]()
    for n in range(10):
        seen.add(n, NOW, NOW + 24 * 3600)
    seen.add(10, NOW, NOW + 24 * 3600 - 1)
    assert [seen.take() for _ in range(3)] == [[0, 1, 2], [3, 4], []]


def test_the_backlog_of_a_provider_has_what_only_memory_knows(state: State) -> None:
    written, now = Backlog(2, 3, 1.5), state.now_ms
    assert state.with_ready(LANE, now, written) == written
    state.ready.put(1, Ready(LANE, now - 4000))
    state.ready.put(2, Ready(b"FC", now - 9000))
    state.cool(3, Cooling(state.steady, LANE, again=True))
    state.cool(4, Cooling(state.steady, b"FC", again=True))
    assert state.with_ready(LANE, now, written) == (3, 4, 4.0)
    assert state.with_ready(b"WP", now, Backlog(0, 1, -5.0)) == (0, 1, 0)  # what is first is due later
