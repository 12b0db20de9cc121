"""Runs the simulator on copies of the code with a fault in each, until it finds the fault."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sim.mutant import Mutant
from sim.mutants import MUTANTS

ROOT: Final = Path(__file__).resolve().parents[2]
_PACKAGES: Final = ("smp_bridge", "ntf_server")
_FOUND: Final = 3  # exit code of a hunt that found something


class MisfitError(Exception):
    """A mutant that does not fit the code any more."""


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """The text of its file with the fault in it. Raises MisfitError."""
    text = (root / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise MisfitError(f"{mutant.name}: {mutant.file} has its text {text.count(mutant.old)} times, not once")
    changed = text.replace(mutant.old, mutant.new)
    if mutant.file.endswith(".py"):
        compile(changed, mutant.file, "exec")
    return changed


@dataclass(frozen=True)
class Hunt:
    """What a hunt came to. `seeds`: how many it took; 0: it was not found."""

    mutant: Mutant
    seeds: int
    violation: str


def run(limit: int, jobs: int, only: str) -> int:
    """0: all are found."""
    chosen = [m for m in MUTANTS if only in m.name]
    for mutant in chosen:
        mutated(mutant)
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as pool:
        hunts = []
        for hunt in pool.map(lambda m: _hunt(m, limit, Path(directory)), chosen):
            hunts.append(hunt)
            print(
                f"{f'seed {hunt.seeds}' if hunt.seeds else 'NOT FOUND':>9}  {hunt.mutant.name}: {hunt.violation}",
                flush=True,
            )
    found = sum(h.seeds > 0 for h in hunts)
    print(f"{found} of {len(hunts)} mutants found")
    return 0 if found == len(hunts) else 1


def _hunt(mutant: Mutant, limit: int, directory: Path) -> Hunt:
    copy = directory / str(MUTANTS.index(mutant))
    for package in _PACKAGES:  # with their bytecode, which is good but for one file
        shutil.copytree(ROOT / package, copy / package)
    shutil.copytree(ROOT / "tests" / "sim", copy / "tests" / "sim")
    (copy / mutant.file).write_text(mutated(mutant))
    command = [sys.executable, "-m", "sim.mutate", str(limit), mutant.store]
    path = os.pathsep.join([str(copy), str(copy / "tests")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, cwd=copy, capture_output=True, text=True, check=False
    )
    if done.returncode not in {0, _FOUND}:
        raise RuntimeError(f"{mutant.name}: the hunt failed: {done.stderr[-2000:]}")
    seeds, _, violation = done.stdout.strip().partition(" ")
    return Hunt(mutant, int(seeds), violation)


def hunt(arguments: Sequence[str]) -> int:
    """In the process that has the mutant's code: prints how many seeds it took, and what was violated."""
    import logging

    import ntf_server
    from sim import scenario

    assert Path(ntf_server.__file__).is_relative_to(Path.cwd())
    logging.disable()
    limit, store = arguments
    for seed in range(int(limit)):
        violations = scenario.run(seed, store=scenario.Store(store)).violations
        if violations:
            print(seed + 1, violations[0])
            return _FOUND
    print(0)
    return 0


if __name__ == "__main__":
    sys.exit(hunt(sys.argv[1:]))
