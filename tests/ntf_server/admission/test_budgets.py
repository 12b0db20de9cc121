"""So many at once, and then so many a second."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.admission.budgets import MAX_DELAY, Buckets, Rate

TEN = Rate(10, 2.0)


def test_a_rate_is_written_as_text() -> None:
    assert Rate.parse("300 + 5/s") == Rate(300, 5.0)
    assert Rate.parse("1 + 0.01/s") == Rate(1, 0.01)


@pytest.mark.parametrize(
    "bad", ["", "300", "5/s", "300+5/s", "0 + 1/s", "1 + 0/s", "1 + 0.0/s", "1 + 1/s\n", "-1 + 1/s"]
)
def test_what_is_no_rate(bad: str) -> None:
    with pytest.raises(ValueError, match=r"should be|nobody"):
        Rate.parse(bad)


def test_at_once_and_then_in_turn() -> None:
    buckets = Buckets()
    waits = [buckets.spend("a", 1, TEN, now=100.0) for _ in range(14)]
    assert waits[:10] == [0.0] * 10
    assert waits[10:] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert buckets.spend("b", 10, TEN, now=100.0) == 0.0  # nobody else waits
    assert buckets.spend("a", 1, TEN, now=107.0) == 0.0  # all of it was paid for
    waits = [buckets.spend("site", 1, TEN, now=100.0, share=4) for _ in range(42)]
    assert waits == pytest.approx([0.0] * 40 + [0.125, 0.25])


def test_a_debt_is_never_larger_than_the_longest_delay() -> None:
    buckets = Buckets()
    assert buckets.spend("a", 100_000, TEN, now=0.0) == MAX_DELAY
    assert buckets.spend("a", 1, TEN, now=0.0) == MAX_DELAY
    assert buckets.spend("a", 1, TEN, now=MAX_DELAY) == pytest.approx(0.5)
    assert buckets.spend("a", 10, TEN, now=MAX_DELAY + 5.5) == 0.0


def test_what_is_not_there_is_not_spent() -> None:
    buckets = Buckets()
    assert [buckets.spend_if_there("a", TEN, 0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert [buckets.spend_if_there("a", TEN, 0.5) for _ in range(2)] == [True, False]


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 4)), max_size=60))
def test_who_waits_as_told_never_has_more_than_his_budget(steps: Sequence[tuple[float, int]]) -> None:
    buckets, now, used = Buckets(), 0.0, list[tuple[float, int]]()
    for pause, n in steps:
        now += pause
        now += buckets.spend("a", n, TEN, now)
        used.append((now, n))
    for i, (began, _) in enumerate(used):
        total = 0
        for at, n in used[i:]:
            total += n
            assert total <= TEN.at_once + TEN.per_second * (at - began) + n + 1e-6


def test_memory_is_bounded_and_the_oldest_are_forgotten() -> None:
    buckets = Buckets(size=3)
    for key in "abc":
        buckets.spend(key, 10, TEN, 0.0)
    buckets.spend("a", 1, TEN, 0.0)
    buckets.spend("d", 1, TEN, 0.0)
    assert len(buckets) == 3
    assert buckets.spend("b", 10, TEN, 0.0) == 0.0  # forgotten
    assert buckets.spend("a", 1, TEN, 0.0) > 0.0


def test_to_be_forgotten_costs_more_than_it_wins() -> None:
    """Whoever pushes his address out of memory has spent, elsewhere, what he could have used there."""
    buckets, spent_elsewhere, won = Buckets(size=50), 0, 0
    buckets.spend("mine", 10, TEN, 0.0)
    for other in range(50):
        buckets.spend(other, 1, TEN, 0.0)
        spent_elsewhere += 1
    while buckets.spend("mine", 1, TEN, 0.0) == 0.0:
        won += 1
    assert won == TEN.at_once <= spent_elsewhere
