"""So many at once, and then so many a second."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.admission.budgets import MAX_DELAY, Buckets, Pace, Rate

TEN = Rate.parse("10 + 2/s")


def test_a_rate_is_written_as_text() -> None:
    assert Rate.parse("300 + 5/s") == Rate((Pace(300, 5.0),))
    assert Rate.parse("1 + 0.01/s") == Rate((Pace(1, 0.01),))
    assert Rate.parse("30 + 10/s and 300 + 5.5/s") == Rate((Pace(30, 10.0), Pace(300, 5.5)))


def test_a_part_of_a_rate() -> None:
    assert Rate.parse("30 + 10/s and 300 + 5/s").part(50) == Rate.parse("1 + 0.2/s and 6 + 0.1/s")


@pytest.mark.parametrize(
    "bad",
    [
        *("", "300", "5/s", "300+5/s", "0 + 1/s", "1 + 0/s", "1 + 0.0/s", "1 + 1/s\n", "-1 + 1/s"),
        *("1 + 1/s and", "1 + 1/s and 1", "1 + 1/s and 1 + 0/s", "1 + 1/s, 1 + 1/s", "1 + 1/s and 1 + 1/s and 1 + 1/s"),
    ],
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


def test_of_two_paces_both_hold() -> None:
    """What is there at once is not used up at once; and he who used it up waits for the slower one."""
    rate, buckets, now, waits = Rate.parse("2 + 2/s and 6 + 0.5/s"), Buckets(), 0.0, []
    for _ in range(10):
        wait = buckets.spend("a", 1, rate, now)
        now += wait
        waits.append(wait)
    assert waits == pytest.approx([0, 0, *[0.5] * 5, 1.5, 2.0, 2.0])  # 6 and what came meanwhile, and then the other


def test_a_rate_that_was_replaced_counts_on() -> None:
    buckets = Buckets()
    assert buckets.spend("a", 12, TEN, 0.0) == pytest.approx(1.0)
    both = Rate.parse("10 + 2/s and 2 + 1/s")
    assert [buckets.spend("a", 1, both, 0.0) for _ in range(3)] == pytest.approx([1.5, 2.0, 2.5])
    assert buckets.spend("a", 1, TEN, 0.0) == pytest.approx(3.0)


def test_a_debt_is_never_larger_than_the_longest_delay() -> None:
    buckets = Buckets()
    assert buckets.spend("a", 100_000, TEN, now=0.0) == MAX_DELAY
    assert buckets.spend("a", 1, TEN, now=0.0) == MAX_DELAY
    assert buckets.spend("a", 1, TEN, now=MAX_DELAY) == pytest.approx(0.5)
    assert buckets.spend("a", 10, TEN, now=MAX_DELAY + 5.5) == 0.0


def test_what_is_not_there_is_not_spent() -> None:
    buckets = Buckets()
    assert [buckets.spend_if_there("a", 1, TEN, 0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert [buckets.spend_if_there("a", 1, TEN, 0.5) for _ in range(2)] == [True, False]


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 4)), max_size=60),
    st.sampled_from([TEN, Rate.parse("4 + 3/s and 10 + 2/s")]),
)
def test_who_waits_as_told_never_has_more_than_his_budget(steps: Sequence[tuple[float, int]], rate: Rate) -> None:
    buckets, now, used = Buckets(), 0.0, list[tuple[float, int]]()
    for pause, n in steps:
        now += pause
        now += buckets.spend("a", n, rate, now)
        used.append((now, n))
    for i, (began, _) in enumerate(used):
        total = 0
        for at, n in used[i:]:
            total += n
            for pace in rate.paces:
                assert total <= pace.at_once + pace.per_second * (at - began) + n + 1e-6


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
    assert won == TEN.paces[0].at_once <= spent_elsewhere
