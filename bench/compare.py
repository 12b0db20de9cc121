"""Compare HEAD with an earlier revision, over the public wire: the same load for both, taking turns.

See README.md for what is printed. Exit codes: 0 all that is wanted holds, 1 something does not, 2 there is no telling.
"""

import argparse
import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import revisions
from comparison import compare, sequence, table
from control import ChildError
from report import say
from revisions import RevisionError
from scene import Stage
from wire_benches import BENCHES, Bench
from wire_relay import RelayError, Side

from smp_bridge.transport import ConnectionClosedError

HOLDS: Final = 0
MISSED: Final = 1
NO_TELLING: Final = 2


async def run(
    name: str,
    bench: Bench,
    sides: tuple[Side, Side],
    alternations: int,
    *,
    quick: bool = False,
    budgets: bool = False,
) -> bool:
    """Measure both sides in turns and print the table; whether all that is wanted holds.

    `sides`: the old one first. Raises what benches raise: RelayError, ChildError, RuntimeError, TimeoutError.
    """
    runs: tuple[list[Mapping[str, float]], list[Mapping[str, float]]] = ([], [])
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ntf-bench-")))
        say(f"{name}: preparing both sides")
        measure = await bench.open(Stage(stack, folder, sides, quick, budgets))
        for number, order in enumerate(sequence(alternations), 1):
            say(f"{name}: alternation {number} of {alternations}")
            for side in order:
                runs[side].append(await measure(sides[side]))
    rows = compare(bench.figures, *runs)
    print(f"\n{table(f'{name}: {bench.about}', (sides[0].name, sides[1].name), rows)}", flush=True)
    return all(row.held for row in rows)


async def run_all(
    benches: Mapping[str, Bench],
    sides: tuple[Side, Side],
    alternations: int,
    *,
    quick: bool = False,
    budgets: bool = False,
) -> int:
    """The exit code. One that cannot be measured is told, and the others go on."""
    missed, unknown = [], []
    for name, bench in benches.items():
        try:
            if not await run(name, bench, sides, alternations, quick=quick, budgets=budgets):
                missed.append(name)
        except (RelayError, ChildError, ConnectionClosedError, RuntimeError, TimeoutError) as e:
            say(f"{name}: could not be measured: {e or type(e).__name__}")
            unknown.append(name)
    print(f"\n{len(benches) - len(missed) - len(unknown)} of {len(benches)} benches hold", end="")
    print("".join(f"; {what}: {', '.join(of)}" for what, of in (("missed", missed), ("not measured", unknown)) if of))
    return MISSED if missed else NO_TELLING if unknown else HOLDS


def metrics() -> str:
    """A section of TOML: on, at a port that is free. Of both sides one runs at a time."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"[metrics]\nport = {free.getsockname()[1]}\n"


def main(arguments: argparse.Namespace) -> int:
    """One comparison; the exit code."""
    try:
        commits = [revisions.resolve(revision) for revision in (arguments.revision, "HEAD")]
        with tempfile.TemporaryDirectory(prefix="ntf-compare-") as temporary:
            folder = arguments.environments or Path(temporary)
            if revisions.is_modified():
                say("changes that are not committed are not measured: the new revision is HEAD")
            sides = revisions.side("", commits[0], folder), revisions.side("HEAD", commits[1], folder)
            if arguments.metrics:
                old, new = (replace(side, sections=(*side.sections, metrics())) for side in sides)
                sides = old, new
            say(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
            chosen = {name: BENCHES[name] for name in arguments.benches}
            code = asyncio.run(
                run_all(chosen, sides, arguments.alternations, quick=arguments.quick, budgets=arguments.budgets)
            )
            say(f"load average {os.getloadavg()[0]:.2f} at the end")
            return code
    except RevisionError as e:
        print(f"bench/compare: {e}", file=sys.stderr)
        return NO_TELLING


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(prog="bench/compare", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("revision", metavar="REV", help="what HEAD is compared with")
    add("benches", nargs="*", metavar="BENCH", help=f"all, or some of: {', '.join(BENCHES)}")
    add("--alternations", type=_positive, default=5, metavar="N", help="runs of each side (%(default)s)")
    add("--quick", action="store_true", help="tiny loads, to see that it works: the figures mean nothing")
    add("--budgets", action="store_true", help="budgets of clients are on, but delay nothing, where there are any")
    add("--metrics", action="store_true", help="[metrics] is on, at both sides")
    add("--environments", type=Path, metavar="DIR", help="keep clones and environments here, and use those that are")
    out = parser.parse_intermixed_args(argv)
    if unknown := set(out.benches) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    out.benches = out.benches or list(BENCHES)
    if out.environments:
        out.environments = out.environments.resolve()
    return out


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(parse()))
