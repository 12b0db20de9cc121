"""What two revisions' figures mean beside each other. No I/O."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

PARITY: Final = 1.0
_WIDTH: Final = 4  # significant digits


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that a bench gives of each run, and what is wanted.

    `of`: `ratio`, the new revision's median divided by the old one's, must be `goal` at most, or at least if
    `at_least`; `new`: the new revision's median itself must. Without a goal it is told only.
    """

    name: str
    unit: str = ""
    goal: float | None = None
    at_least: bool = False
    of: Literal["ratio", "new"] = "ratio"

    def meets(self, value: float) -> bool:
        """Whether a ratio, or a median, is as wanted."""
        if self.goal is None:
            return True
        return value >= self.goal if self.at_least else value <= self.goal


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises StatisticsError if there are none."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.least)} to {number(self.most)})"

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of both revisions over all alternations.

    `ratio`: of the medians; `ratios`: the spread of those of the single alternations, whose runs were neighbours in
    time. None where the old revision's figure was 0.
    """

    figure: Figure
    old: Spread
    new: Spread
    ratio: float | None
    ratios: Spread | None

    @classmethod
    def of(cls, figure: Figure, old: Sequence[float], new: Sequence[float]) -> "Compared":
        """`old` and `new` in the order of the alternations."""
        of_old, of_new = Spread.of(old), Spread.of(new)
        if not all(old):
            return cls(figure, of_old, of_new, None, None)
        ratios = Spread.of([n / o for o, n in zip(old, new, strict=True)])
        return cls(figure, of_old, of_new, of_new.median / of_old.median, ratios)

    @property
    def verdict(self) -> str:
        """`holds`, `holds, 1.0 is in the spread`, `MISSED`, `no ratio`; empty if nothing is wanted.

        Only of parity is it enough to lie in the spread: other goals are no matter of chance.
        """
        if self.figure.goal is None:
            return ""
        value = self.new.median if self.figure.of == "new" else self.ratio
        if value is None:
            return "no ratio"
        if self.figure.meets(value):
            return "holds"
        parity = self.figure.of == "ratio" and self.figure.goal == PARITY
        if parity and self.ratios is not None and PARITY in self.ratios:
            return f"holds, {PARITY} is in the spread"
        return "MISSED"

    @property
    def held(self) -> bool:
        """Whether what is wanted is so."""
        return self.verdict == "" or self.verdict.startswith("holds")

    def cells(self) -> tuple[str, ...]:
        """Name, old, new, ratio, what is wanted, verdict."""
        figure = self.figure
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        if self.ratios is not None:
            ratio += f" ({self.ratios.least:.2f} to {self.ratios.most:.2f})"
        wanted = ""
        if figure.goal is not None:
            mark = "x" if figure.of == "ratio" else f" {figure.unit}".rstrip()
            wanted = f"{'>=' if figure.at_least else '<='} {figure.goal:g}{mark}"
        name = f"{figure.name}, {figure.unit}" if figure.unit else figure.name
        return name, str(self.old), str(self.new), ratio, wanted, self.verdict


def compare(
    figures: Sequence[Figure], old: Sequence[Mapping[str, float]], new: Sequence[Mapping[str, float]]
) -> list[Compared]:
    """Of the runs of both revisions, in the order of the alternations. Raises KeyError if a run lacks a figure."""
    return [Compared.of(f, [run[f.name] for run in old], [run[f.name] for run in new]) for f in figures]


def table(title: str, names: tuple[str, str], rows: Sequence[Compared]) -> str:
    """Lines, the first with the names of the old and the new revision."""
    cells = [(title, *names, "new / old", "wanted", ""), *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def number(value: float) -> str:
    """Four digits that matter, thousands apart."""
    if abs(value) >= 10 ** (_WIDTH - 1):
        return f"{value:,.0f}"
    return f"{value:.{_WIDTH}g}"


def sequence(alternations: int) -> list[tuple[int, int]]:
    """Which side is run first and second each time, 0 the old one: the order changes, so that neither gains by it."""
    return [(0, 1) if i % 2 == 0 else (1, 0) for i in range(alternations)]
