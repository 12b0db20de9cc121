import pytest
from comparison import Compared, Figure, Spread, compare, number, sequence, table
from hypothesis import given
from hypothesis import strategies as st

SPEED = Figure("speed", "/s", 1.0, at_least=True)
COST = Figure("cost", "ms", 0.6)


def test_the_ratio_is_of_the_medians_and_its_spread_of_the_pairs() -> None:
    compared = Compared.of(SPEED, [100, 200, 400], [300, 200, 100])
    assert (compared.old.median, compared.new.median, compared.ratio) == (200, 200, 1.0)
    assert compared.ratios == Spread(1.0, 0.25, 3.0)
    assert (compared.old.least, compared.old.most) == (100, 400)


@given(st.lists(st.floats(1, 1e6), min_size=1))
def test_the_median_is_within_the_spread(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.median in spread
    assert spread.least - 1 not in spread


@pytest.mark.parametrize(
    ("figure", "old", "new", "verdict"),
    [
        (SPEED, [100, 100, 100], [101, 101, 101], "holds"),
        (SPEED, [100, 100, 100], [99, 99, 101], "holds, 1.0 is in the spread"),
        (SPEED, [100, 100, 100], [98, 99, 99], "MISSED"),
        (COST, [100, 100, 100], [60, 60, 60], "holds"),
        (COST, [100, 100, 100], [50, 65, 65], "MISSED"),  # 0.6 is in the spread, but is no parity
        (Figure("least", goal=0.7, at_least=True, of="new"), [0.1], [0.71], "holds"),
        (Figure("least", goal=0.7, at_least=True, of="new"), [0.9], [0.69], "MISSED"),
        (Figure("most", goal=1.0, of="new"), [1.0, 1.0], [0.8, 1.3], "MISSED"),  # parity is of ratios
        (Figure("most", goal=4.5, of="new"), [0.0], [4.0], "holds"),
        (SPEED, [0.0, 1.0], [1.0, 1.0], "no ratio"),
        (Figure("told only"), [1.0], [9.0], ""),
    ],
)
def test_verdicts(figure: Figure, old: list[float], new: list[float], verdict: str) -> None:
    compared = Compared.of(figure, old, new)
    assert compared.verdict == verdict
    assert compared.held == (not verdict or verdict.startswith("holds"))


def test_runs_are_compared_figure_by_figure() -> None:
    old, new = [{"speed": 10.0, "cost": 2.0}], [{"cost": 1.0, "speed": 20.0}]
    assert [c.ratio for c in compare([SPEED, COST], old, new)] == [2.0, 0.5]


def test_a_run_that_lacks_a_figure_is_no_run() -> None:
    with pytest.raises(KeyError, match="cost"):
        compare([SPEED, COST], [{"speed": 1.0, "cost": 1.0}], [{"speed": 1.0}])


def test_the_table_tells_both_revisions_the_ratio_the_goal_and_the_verdict() -> None:
    text = table("bench", ("abc", "HEAD def"), compare([SPEED], [{"speed": 1500.0}], [{"speed": 3000.0}]))
    head, row = text.splitlines()
    assert head.split("  ")[0] == "bench"
    assert head.index("HEAD def") == row.index("3,000 (3,000 to 3,000)")
    for part in ("speed, /s", "1,500 (1,500 to 1,500)", "2.00 (2.00 to 2.00)", ">= 1x", "holds"):
        assert part in row


@pytest.mark.parametrize(("value", "text"), [(0.12345, "0.1235"), (12.0, "12"), (999.94, "999.9"), (12345.6, "12,346")])
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_the_order_is_swapped_each_time() -> None:
    assert sequence(3) == [(0, 1), (1, 0), (0, 1)]
