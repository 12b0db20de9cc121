"""Runs the simulator on copies of the code with a fault in each, until it finds the fault.

The seed that found a mutant last is tried first: `found.json` has them, `--keep` writes them there.
"""

import json
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
_SEEDS: Final = Path(__file__).with_name("found.json")


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
    """What a hunt came to. `seed`: which found it; None: none did."""

    mutant: Mutant
    seed: int | None
    violation: str


def run(limit: int, jobs: int, only: str, *, keep: bool = False) -> int:
    """0: all are found."""
    chosen = [m for m in MUTANTS if only in m.name]
    seeds: dict[str, int] = json.loads(_SEEDS.read_text())
    for mutant in chosen:
        mutated(mutant)
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as pool:
        hunts = []
        for hunt in pool.map(lambda m: _hunt(m, seeds.get(m.name, 0), limit, Path(directory)), chosen):
            hunts.append(hunt)
            how = "NOT FOUND" if hunt.seed is None else f"seed {hunt.seed}"
            print(f"{how:>9}  {hunt.mutant.name}: {hunt.violation}", flush=True)
    found = sum(h.seed is not None for h in hunts)
    if keep:
        seeds |= {h.mutant.name: h.seed for h in hunts if h.seed is not None}
        names = [m.name for m in MUTANTS if m.name in seeds]
        _SEEDS.write_text(json.dumps({name: seeds[name] for name in names}, indent=1) + "\n")
    print(f"{found} of {len(hunts)} mutants found")
    return 0 if found == len(hunts) else 1


def _hunt(mutant: Mutant, first: int, limit: int, directory: Path) -> Hunt:
    copy = directory / str(MUTANTS.index(mutant))
    for package in _PACKAGES:  # with their bytecode, which is good but for one file
        shutil.copytree(ROOT / package, copy / package)
    shutil.copytree(ROOT / "tests" / "sim", copy / "tests" / "sim")
    (copy / mutant.file).write_text(mutated(mutant))
    command = [sys.executable, "-m", "sim.mutate", str(first), str(limit), mutant.store]
    path = os.pathsep.join([str(copy), str(copy / "tests")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, cwd=copy, capture_output=True, text=True, check=False
    )
    if done.returncode not in {0, _FOUND}:
        raise RuntimeError(f"{mutant.name}: the hunt failed: {done.stderr[-2000:]}")
    if done.returncode == 0:
        return Hunt(mutant, None, "")
    seed, _, violation = done.stdout.strip().partition(" ")
    return Hunt(mutant, int(seed), violation)


def hunt(arguments: Sequence[str]) -> int:
    """In the process that has the mutant's code: prints the seed that found it, and what was violated."""
    import logging

    import ntf_server
    from sim import scenario

    assert Path(ntf_server.__file__).is_relative_to(Path.cwd())
    logging.disable()
    first, limit, store = arguments
    for seed in dict.fromkeys((int(first), *range(int(limit)))):
        violations = scenario.run(seed, store=scenario.Store(store)).violations
        if violations:
            print(seed, violations[0])
            return _FOUND
    return 0


if __name__ == "__main__":
    sys.exit(hunt(sys.argv[1:]))
