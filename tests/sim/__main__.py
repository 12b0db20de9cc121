"""`scripts/simulate`: many runs, each from a seed, on all cores; one run with its trace; or mutants of the code."""

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from sim import scenario
from sim.known import faults_of

_CHUNK: Final = 5  # seeds of a worker at a time


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no violation, every fault fired, every mutant was found."""
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", type=int, metavar="N", help="run seeds 0 to N-1, or N from --first on")
    what.add_argument("--seed", type=int, metavar="S", help="run one")
    what.add_argument("--mutants", action="store_true", help="is each fault that is put into the code found?")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first seed of --seeds")
    parser.add_argument("--trace", action="store_true", help="with --seed: print what happened")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="with --mutants: seeds for each")
    parser.add_argument("--keep", action="store_true", help="with --mutants: which seed found each is tried first then")
    parser.add_argument("--only", default="", metavar="NAME", help="with --mutants: those with this in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument(
        "--store", type=scenario.Store, choices=list(scenario.Store), default=scenario.Store.ANY,
        help="on which store the relay is: one in three seeds is on Redis, with several nodes",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.mutants:
        from sim import mutate

        return mutate.run(options.limit, options.jobs, options.only, keep=options.keep)
    if options.seed is not None:
        return _one(options.seed, options.store, trace=options.trace)
    return _many(range(options.first, options.first + options.seeds), options.store, options.jobs)


def _one(seed: int, store: scenario.Store, *, trace: bool) -> int:
    logging.disable()
    run = scenario.run(seed, store=store, keep=trace)
    for line in run.lines:
        print(line)
    print(f"seed {seed}: {run.pushes} pushes, {len(run.violations)} violations, trace {run.digest}")
    for violation in run.violations:
        print(f"  {violation}")
    return 1 if run.violations else 0


def simulate(seeds: Sequence[int], store: scenario.Store, jobs: int) -> Iterator[scenario.Run]:
    """Runs, as they are done."""
    # A fresh process now and then: what is left of dead lives is not worth the trouble of clearing it away.
    with multiprocessing.get_context("fork").Pool(jobs, _quietly, maxtasksperchild=10) as pool:
        yield from pool.imap_unordered(partial(scenario.run, store=store), seeds, chunksize=_CHUNK)


def _quietly() -> None:
    logging.disable()


def _many(seeds: Sequence[int], store: scenario.Store, jobs: int) -> int:
    expected = faults_of(store)
    began, faults, pushes, violations = time.monotonic(), Counter(dict.fromkeys(expected, 0)), 0, 0
    bad: list[scenario.Run] = []
    few: list[scenario.Run] = []
    for run in simulate(seeds, store, jobs):
        faults.update(run.faults)
        pushes += run.pushes
        violations += len(run.violations)
        if run.violations:
            bad.append(run)
        if run.pushes < scenario.MIN_PUSHES:
            few.append(run)
    print(f"{len(seeds)} seeds, {pushes} pushes, {violations} violations ({time.monotonic() - began:.0f} s)")
    never = sorted(name for name in expected if not faults[name])
    print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(faults.items())))
    if never:
        print("never fired: " + ", ".join(never))
    for run in sorted(few, key=lambda r: r.seed):
        print(f"seed {run.seed}: only {run.pushes} pushes")
    for run in sorted(bad, key=lambda r: r.seed):
        print(f"seed {run.seed}: scripts/simulate --store {store.of(run.seed)} --seed {run.seed} --trace")
        for violation in run.violations[:5]:
            print(f"  {violation}")
    return 1 if bad or few or never else 0


if __name__ == "__main__":
    sys.exit(main())
