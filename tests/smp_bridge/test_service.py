import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import smp
from smp_bridge.failure import Remedy
from smp_bridge.service import Associations, ServiceLife, Todo, after_count, ids_hash, xor


def life() -> ServiceLife:
    return ServiceLife(without_service=100.0, ended_backoff=10.0)


def session(life: ServiceLife, remedy: Remedy = Remedy.NOTHING, *, taken_over: bool = False) -> float | None:
    """One session; the delay before what was taken over is taken back."""
    life.begin_session()
    delay = life.taken_over() if taken_over else None
    life.end_session(remedy)
    return delay


def test_at_first_it_is_one() -> None:
    assert life().may_be_one(0.0)


def test_given_up_it_is_none_for_a_while() -> None:
    it = life()
    it.give_up(1000.0)
    assert [it.may_be_one(t) for t in (1000.0, 1099.9, 1100.0)] == [False, False, True]


def test_what_is_taken_over_is_taken_back_later_each_time_up_to_a_bound() -> None:
    it = life()
    assert [session(it, taken_over=True) for _ in range(7)] == [10.0, 20.0, 40.0, 80.0, 160.0, 160.0, 160.0]


def test_a_session_in_which_nothing_was_taken_over_forgives() -> None:
    it = life()
    session(it, taken_over=True)
    session(it, taken_over=True)
    session(it)
    assert session(it, taken_over=True) == 10.0


def test_taken_over_once_in_a_session() -> None:
    it = life()
    it.begin_session()
    assert it.taken_over() == 10.0
    assert it.taken_over() is None
    it.begin_session()
    assert it.taken_over() == 10.0  # the session before did not end: it is not counted


def test_a_session_that_calls_for_no_service_gets_it() -> None:
    assert life().end_session(Remedy.WITHOUT_SERVICE) is Remedy.WITHOUT_SERVICE


def test_lost_once_is_mended_by_another_session_and_twice_in_a_row_given_up() -> None:
    it = life()
    assert it.end_session(Remedy.RECONNECT) is Remedy.RECONNECT
    assert it.end_session(Remedy.RECONNECT) is Remedy.WITHOUT_SERVICE


def test_lost_much_later_is_not_the_second_in_a_row() -> None:
    it = life()
    it.end_session(Remedy.RECONNECT)
    assert it.end_session(Remedy.NOTHING) is Remedy.NOTHING
    assert it.end_session(Remedy.RECONNECT) is Remedy.RECONNECT


# --- what a count calls for

IDS = [b"%d" % n for n in range(400)]


def ours(wanted: int, released: int = 0) -> Associations:
    everything = IDS[: wanted + released]
    return Associations(len(everything), released, ids_hash(everything), ids_hash(everything[wanted:]))


@pytest.mark.parametrize(
    ("kept", "said", "todo"),
    [
        (ours(0), smp.SOks(0), Todo.NOTHING),
        (ours(5), smp.SOks(5), Todo.NOTHING),
        (ours(5), smp.SOks(9), Todo.NOTHING),  # there is no hash below SMP 19
        (ours(5, 2), smp.SOks(5), Todo.NOTHING),
        (ours(5), smp.SOks(4), Todo.AUDIT),
        (ours(400), smp.SOks(380), Todo.AUDIT),
        (ours(400), smp.SOks(379), Todo.PAGES),
        (ours(5), smp.SOks(0), Todo.PAGES),
        (ours(5), smp.SOks(-3), Todo.PAGES),
        (ours(5), smp.SOks(5, ids_hash(IDS[:5])), Todo.NOTHING),
        (ours(5, 2), smp.SOks(7, ids_hash(IDS[:7])), Todo.NOTHING),
        (ours(5, 2), smp.SOks(5, ids_hash(IDS[:5])), Todo.NOTHING),  # the released ones are gone there too
        (ours(5, 2), smp.SOks(6, ids_hash(IDS[:6])), Todo.AUDIT),  # one of them, or one of ours
        (ours(5, 2), smp.SOks(5, ids_hash(IDS[2:7])), Todo.AUDIT),
        (ours(5), smp.SOks(5, ids_hash(IDS[1:6])), Todo.AUDIT),  # as many, but others
        (ours(5), smp.SOks(6, ids_hash(IDS[:6])), Todo.AUDIT),
        (ours(0), smp.SOks(3, ids_hash(IDS[:3])), Todo.NOTHING),  # none of ours can be missing
        (ours(400), smp.SOks(300, ids_hash(IDS[:300])), Todo.PAGES),
    ],
)
def test_what_a_count_calls_for(kept: Associations, said: smp.SOks, todo: Todo) -> None:
    assert after_count(kept, said) is todo


@given(st.sets(st.binary(min_size=1, max_size=24)), st.sets(st.binary(min_size=1, max_size=24)))
def test_hashes_of_sets_add_up(some: set[bytes], others: set[bytes]) -> None:
    assert xor(ids_hash(some), ids_hash(others)) == ids_hash(some ^ others)
    assert ids_hash([]) == bytes(16)
