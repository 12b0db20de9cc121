"""`scripts/fuzz`: a table of what was run and what came of it; or one input once more."""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fuzz import corpus, findings
from fuzz.board import Board
from fuzz.target import Target
from fuzz.targets import TARGETS

_ROOT: Final = Path(__file__).parents[2]
_STATE: Final = _ROOT / "build" / "fuzz"
_INPUTS: Final = 1_000_000
_LEAST: Final = 50_000  # inputs that each target gets of 10 million, however slow it is
_HANGS: Final = 60.0  # seconds without a new input
_LEAK: Final = 32 * 2**20  # bytes by which memory may grow: the corpus of a run is in it
_LOOK: Final = 0.5


@dataclass
class Tally:
    """What was run of a target in all."""

    inputs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    growth: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0: nothing was found."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="those of --list; none: all")
    parser.add_argument("--inputs", type=int, metavar="N", help=f"as many in all, shared out ({_INPUTS})")
    parser.add_argument("--up-to", type=int, metavar="N", help="go on until all targets together have N")
    parser.add_argument(
        "--minutes", type=float, default=0.0, metavar="M", help="end each target's turn after M minutes"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="another one gives other inputs")
    parser.add_argument(
        "--state", type=Path, default=_STATE, metavar="DIR", help="counts, inputs and findings are there"
    )
    parser.add_argument("--blind", action="store_true", help="without atheris")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run this one, and no other")
    parser.add_argument(
        "--keep", action="store_true", help="put what runs found into the repository, as little as does"
    )
    parser.add_argument("--list", action="store_true", help="names of targets")
    parser.add_argument("--table", action="store_true", help="what earlier runs came to")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.targets if name not in TARGETS]:
        parser.error(f"there is no target {unknown[0]!r}; see --list")
    chosen = [TARGETS[name] for name in options.targets or TARGETS]
    if options.list:
        print("\n".join(TARGETS))
        return 0
    if options.input:
        return _once(chosen, options.input)
    if options.keep:
        return _keep(chosen, options.state)
    if not options.table:
        if not options.blind and importlib.util.find_spec("atheris") is None:
            print("there is no atheris for this Python: inputs are made blindly", file=sys.stderr)
            options.blind = True
        for target in chosen:
            _run(target, _wanted(target, chosen, options), options)
    return _tell(chosen, options.state)


def _wanted(target: Target, chosen: Sequence[Target], options: argparse.Namespace) -> int:
    total = options.up_to or options.inputs or _INPUTS
    share = target.share / sum(t.share for t in (TARGETS.values() if options.up_to else chosen))
    least = _LEAST * total // 10_000_000
    wanted = max(int(total * share), least, 1)
    return max(0, wanted - _tally(options.state, target).inputs) if options.up_to else wanted


def _folder(state: Path, target: Target) -> Path:
    return state.resolve() / corpus.folder_name(target)


def _tally(state: Path, target: Target) -> Tally:
    path = _folder(state, target) / "tally.json"
    return Tally(**json.loads(path.read_text())) if path.exists() else Tally()


def _run(target: Target, inputs: int, options: argparse.Namespace) -> None:
    """In a process of its own, until it has had its inputs; after a death another one goes on."""
    folder = _folder(options.state, target)
    folder.mkdir(parents=True, exist_ok=True)
    seed, deaths = options.seed + _tally(options.state, target).inputs, 0
    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    while inputs > 0 and deaths < 3 and (end is None or time.monotonic() < end):
        board = Board.create(folder / "board")
        command = [sys.executable, "-m", "fuzz.child", target.name, "--state", str(folder)]
        command += ["--inputs", str(inputs), "--seed", str(seed % 2**31)]
        command += ["--seconds", str(end - time.monotonic())] if end else []
        command += ["--blind"] if options.blind else []
        death = _watch(command, board, folder, options, target)
        if death:
            deaths += 1
            data = board.read()
            findings.Findings(folder / "findings").add("death", target.name, data, f"{target.name}: {death}")
        elif board.inputs == 0 or end:
            break
        inputs -= board.inputs
        seed += 1
        board.close()


def _watch(command: list[str], board: Board, folder: Path, options: argparse.Namespace, target: Target) -> str:
    """Why the process did not end in order; empty if it did."""
    before, began = _tally(options.state, target), time.monotonic()

    def save() -> None:
        board.read()
        growth = max(0, board.memory - board.warm) if board.warm else 0
        now = Tally(
            before.inputs + board.inputs,
            before.seconds + time.monotonic() - began,
            max(before.slowest, board.slowest / 1e6),
            max(before.growth, growth),
        )
        new = folder / "tally.new"
        new.write_text(json.dumps(asdict(now)))
        new.replace(folder / "tally.json")
        if growth > _LEAK:
            notes = findings.Findings(folder / "findings")
            notes.add("leak", target.name, b"", f"{target.name}: memory grew by {growth >> 20} MiB")

    # A process that libFuzzer ends leaves its temporary files behind.
    with (folder / "log").open("wb") as log, tempfile.TemporaryDirectory() as scratch:
        paths = [str(_ROOT / "tests"), str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": scratch}
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        try:
            last, since = 0, began
            while process.poll() is None:
                time.sleep(_LOOK)
                save()
                if board.inputs != last:
                    last, since = board.inputs, time.monotonic()
                elif time.monotonic() - since > _HANGS:
                    return f"one input, or the end, takes more than {_HANGS:.0f} s"
        finally:
            process.kill()
            process.wait()
            save()
    if process.returncode and board.inputs == 0:
        raise SystemExit(f"{target.name} does not start, see {folder / 'log'}")
    return f"exit status {process.returncode}" if process.returncode else ""


def _once(chosen: Sequence[Target], path: Path) -> int:
    if len(chosen) != 1:
        raise SystemExit("--input goes with one target")
    began = time.process_time()
    taken = chosen[0].run(path.read_bytes())
    took = time.process_time() - began
    print(f"{'taken' if taken else 'refused'}, in {1000 * took:.1f} ms")
    return 1 if took > findings.STALL else 0


def _keep(chosen: Sequence[Target], state: Path) -> int:
    for target in chosen:
        inputs = [*target.seeds(), *corpus.kept(target), *corpus.found(_folder(state, target) / "corpus")]
        best = corpus.keep(target, inputs)
        shutil.rmtree(corpus.KEPT / corpus.folder_name(target), ignore_errors=True)
        corpus.write(corpus.KEPT / corpus.folder_name(target), best)
        print(f"{target.name}: {len(best)} of {len(inputs)} inputs, {sum(map(len, best))} bytes")
    return 0


def _tell(chosen: Sequence[Target], state: Path) -> int:
    """The table. 1: something was found."""
    print("| target | inputs | inputs/s | crashes | slowest input | memory grew by |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    all_found = []
    total = 0
    for target in chosen:
        tally = _tally(state, target)
        found = findings.read(_folder(state, target) / "findings")
        all_found += found
        total += tally.inputs
        rate = tally.inputs / tally.seconds if tally.seconds else 0.0
        print(
            f"| {target.name} | {tally.inputs:,} | {rate:,.0f} | {len(found)} | {1000 * tally.slowest:.1f} ms"
            f" | {tally.growth / 2**20:.1f} MiB |"
        )
    print(f"\n{total:,} inputs, {len(all_found)} findings")
    for finding in all_found:
        print(f"{finding}\n  {finding.path}")
    return 1 if all_found else 0


if __name__ == "__main__":
    sys.exit(main())
