from smp_bridge.failure import Remedy
from smp_bridge.service import ServiceLife


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
