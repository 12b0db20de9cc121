"""What must hold while strangers attack: the lines of the table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from attacks.base import Attack
from report import MIB, Row
from siege import Figures

MEMORY: Final = 64.0  # MiB that an attack from one address may take
LOG_LINES: Final = 300.0  # a minute
NEW_PHONE: Final = 5.0  # seconds until a new phone elsewhere is registered
WAIT: Final = 20.0  # seconds that a command waits at most, if strangers have spent what there is for all
NEIGHBOUR: Final = 30.0  # seconds until one behind the stranger's own address is served
PUSHED: Final = 3.0  # to a device that others register, in a run and in an hour
OWNER: Final = 75.0  # seconds: a turn of a minute, and some
HONEST_DESCRIPTORS: Final = 100.0  # phones that come and go meanwhile


@dataclass(frozen=True, slots=True)
class Line:
    """A figure with the attack beside that without it, None if there is none."""

    row: Row
    without: float | None

    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, without, with, goal, verdict."""
        name, figure, goal, verdict = self.row.cells()
        before = "" if self.without is None else Row("", self.without, self.row.unit).cells()[1]
        return name, before, figure, goal, verdict


def lines(kind: type[Attack], without: Figures, with_: Figures) -> list[Line]:
    """Of one attack."""
    wait = WAIT if kind.spends_all else 0.0
    out = [
        *_compared(
            "all servers dropped: all subscribed again", without.reconnect, with_.reconnect, "s", factor=1.5, more=3.0
        ),
        *_compared("NMSG to push, p99", without.push * 1000, with_.push * 1000, "ms", factor=1.5, more=20.0),
        *_compared("the same by Web Push", without.web_push * 1000, with_.web_push * 1000, "ms", factor=1.5, more=20.0),
        Line(Row("NMSGs without a push", with_.lost, "", 0), without.lost),
        *_compared(
            "TCHK of a phone elsewhere, p99",
            *(without.check * 1000, with_.check * 1000, "ms"),
            factor=2.0,
            more=20.0 + wait * 1000,
        ),
        Line(Row("phones elsewhere that were refused", with_.refused, "", 0), without.refused),
        Line(
            Row("a new phone elsewhere is registered, longest", with_.new_phone, "s", NEW_PHONE + wait),
            without.new_phone,
        ),
        Line(Row("a neighbour is served, longest", with_.neighbour, "s", NEIGHBOUR), without.neighbour),
        Line(
            Row("memory (RssAnon)", with_.memory / MIB, "MiB", MEMORY if kind.addresses == 1 else None),
            without.memory / MIB,
        ),
        Line(
            Row("descriptors", with_.descriptors, "", kind.descriptors + HONEST_DESCRIPTORS), float(without.descriptors)
        ),
        Line(Row("CPU, of one core", with_.cpu * 100, "%"), without.cpu * 100),
        Line(Row("lines of the log in a minute", with_.lines, "", LOG_LINES), without.lines),
    ]
    if kind.has_victim:
        out.append(Line(Row("the owner of the device is ACTIVE", with_.owner, "s", OWNER), None))
        out.append(Line(Row("codes pushed to the device", with_.pushed, "", PUSHED), None))
    return out


def _compared(name: str, without: float, with_: float, unit: str, *, factor: float, more: float) -> list[Line]:
    """At most so many times as much as without the attack, or so much more."""
    return [Line(Row(name, with_, unit, max(factor * without, without + more)), without)]


def show(title: str, found: Sequence[Line], told: Sequence[str]) -> None:
    """Print a table."""
    cells = [("", "without", "with", "goal", ""), *(line.cells() for line in found)]
    widths = [max(len(c[i]) for c in cells) for i in range(4)]
    print(f"\n{title}\n")
    for name, before, figure, goal, verdict in cells:
        figures = f"{before:>{widths[1]}}  {figure:>{widths[2]}}  {goal:<{widths[3]}}"
        print(f"  {name:<{widths[0]}}  {figures}  {verdict}".rstrip())
    for text in told:
        print(f"  {text}")


def did(target: str, figures: Figures) -> str:
    """What the attack did to it, in a line."""
    counts = (f"{name} {count:,.0f}" for name, count in figures.attack.items() if not math.isnan(count))
    return f"the attack on {target}: {', '.join(counts) or 'nothing to be told'}"
