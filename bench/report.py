"""What a bench prints."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """A figure; `goal`: the most that it should be, or the least if `at_least`."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the goal, if there is any, is met."""
        if self.goal is None:
            return True
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def cells(self) -> tuple[str, str, str, str]:
        """Name, figure, goal, verdict."""
        if self.goal is None:
            return self.name, _text(self.value, self.unit), "", ""
        goal = f"{'>=' if self.at_least else '<='} {_text(self.goal, self.unit)}"
        return self.name, _text(self.value, self.unit), goal, "ok" if self.met else "MISSED"


def _text(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:,.3g}"
    return f"{number} {unit}".rstrip()


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table."""
    cells = [row.cells() for row in rows]
    names, figures, goals = (max(len(c[i]) for c in cells) for i in range(3))
    print(f"\n{title}\n")
    for name, figure, goal, verdict in cells:
        print(f"  {name:<{names}}  {figure:>{figures}}  {goal:<{goals}}  {verdict}".rstrip())


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"==> {text}", file=sys.stderr, flush=True)
