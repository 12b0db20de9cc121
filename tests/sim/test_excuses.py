import pytest

from sim.excuses import Excuses


@pytest.mark.parametrize(
    ("names", "begin", "end", "left"),
    [
        (["a"], 0, 10, 0 + 2 + 5),
        (["a", "b"], 0, 10, 2 + 3),
        (["a", "b", "c"], 0, 10, 2),
        (["none"], 0, 10, 10),
        (["a"], 3, 4, 0),
        (["c"], 6, 8, 1),
        (["c"], 8, 80, 0),
    ],
)
def test_what_is_left(names: list[str], begin: float, end: float, left: float) -> None:
    excuses = Excuses()
    excuses.add("a", 2, 4)
    excuses.add("a", 3, 5)
    excuses.add("b", 4, 7)
    excuses.begin("c", 7)
    excuses.begin("c", 9)  # it was begun before
    assert excuses.without(names, begin, end) == left


def test_what_was_begun_ends() -> None:
    excuses = Excuses()
    excuses.begin("a", 1)
    excuses.end("a", 3)
    excuses.end("a", 8)
    assert excuses.without(["a"], 0, 10) == 8


def test_when_it_is_over() -> None:
    excuses = Excuses()
    assert excuses.over("a") == 0
    excuses.add("a", 2, 9)
    excuses.add("a", 3, 5)
    excuses.begin("a", 20)  # and has no end
    assert excuses.over("a") == 9
