"""What honest phones, servers and push services notice of strangers who attack the relay. See README.md."""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Final

from attacks import ATTACKS
from besieged import World, besieged, world
from control import run
from lines import Line, did, lines, show
from report import say
from siege import Figures, Size, besiege

_WORDS: Final = 3
_QUICK: Final = Size(2.0, 0.02)


async def attack(around: World, name: str, size: Size, rounds: int) -> list[Line]:
    """Without and with it, on a relay of its own in each round; medians."""
    kind = ATTACKS[name]
    found: list[tuple[Figures, Figures]] = []
    for _ in range(rounds):
        async with besieged(around, kind.tokens + 1) as relay:
            without = await besiege(relay, name, size, sink=True)
            found.append((without, await besiege(relay, name, size, sink=False)))
    each = [lines(kind, *pair) for pair in found]
    out = [min(same, key=lambda line: abs(line.row.value - _median(same))) for same in zip(*each, strict=True)]
    words = [word for _, figures in found for word in figures.words]
    without, with_ = found[-1]
    show(f"{name}: {kind.about}", out, [did("the sink", without), did("the relay", with_), *words[:_WORDS]])
    return out


def _median(same: Sequence[Line]) -> float:
    return statistics.median_low(line.row.value for line in same)


async def main(arguments: argparse.Namespace) -> None:
    """One run."""
    say(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    size = _QUICK if arguments.quick else Size(arguments.seconds, arguments.part)
    missed = []
    async with world() as around:
        for name in arguments.attack or ATTACKS:
            say(f"{name}: {ATTACKS[name].about}")
            found = await attack(around, name, size, arguments.rounds)
            missed += [f"{name}: {line.row.name}" for line in found if not line.row.met]
    print(f"\n{len(missed)} lines are missed" + "".join(f"\n  {text}" for text in missed))
    if missed and not arguments.quick:
        sys.exit(1)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--attack", nargs="+", choices=list(ATTACKS), metavar="NAME", help="only these; default: all")
    add("--list", action="store_true", help="say which attacks there are")
    add("--seconds", type=float, default=10.0, metavar="S", help="of steady load in each attack (%(default)s)")
    add(
        "--rounds",
        type=int,
        default=1,
        metavar="N",
        help="of each attack, with new relays; medians (%(default)s)",
    )
    add("--part", type=float, default=1.0, metavar="P", help="of the attacks' full numbers (%(default)s)")
    add(
        "--quick",
        action="store_true",
        help="small loads, which show that the bench works, and nothing else: nothing is missed by them",
    )
    out = parser.parse_args()
    if out.list:
        print("\n".join(f"{name:<16}{kind.about}" for name, kind in ATTACKS.items()))
        sys.exit()
    return out


if __name__ == "__main__":
    run(main(parse()))
