"""One target, one process: `python -m fuzz.child`, started by `scripts/fuzz`."""

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzz.board import Board, resident
from fuzz.findings import STALL, Findings

_WARM = 2000  # inputs at least, before memory counts
_MEASURED = 256  # inputs from one look at memory to the next


class Runner:
    """Runs inputs, and looks at what they do."""

    def __init__(self, target: Any, board: Board, findings: Findings, inputs: int, keep_slow: Path) -> None:
        self._target = target
        self._board = board
        self._findings = findings
        self._warm_at = max(_WARM, inputs // 4)
        self._slow = keep_slow
        self.told = 0

    def one(self, data: bytes) -> None:
        """Run it."""
        board = self._board
        board.show(data)
        began = time.perf_counter()
        try:
            self._target.run(data)
        except Exception as e:
            self._findings.crash(self._target, data, e)
        took = time.perf_counter() - began
        if took * 1e6 > board.slowest:
            self._slowest(data, took)
        if board.inputs % _MEASURED == 0:
            self._measure()

    def _slowest(self, data: bytes, took: float) -> None:
        """Others use the machine too: what counts is the second time, by the processor's clock."""
        began = time.process_time()
        with contextlib.suppress(Exception):
            self._target.run(data)
        took = min(took, time.process_time() - began)
        if took * 1e6 <= self._board.slowest:
            return
        self._board.slowest = int(took * 1e6)
        self._slow.write_bytes(data)
        if took > STALL:
            self._findings.add("stall", self._target.name, data, f"{self._target.name} took {took:.1f} s")

    def _measure(self) -> None:
        self._board.memory = resident()
        if self._board.inputs <= self._warm_at:
            self._board.warm = self._board.memory


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--blind", action="store_true")
    options = parser.parse_args(arguments)
    guide = _no_guide if options.blind else _guide()
    logging.disable(logging.NOTSET)
    with guide[0]():
        from fuzz import corpus
        from fuzz.targets import TARGETS
    target = TARGETS[options.target]
    seeds = [*corpus.kept(target), *target.seeds()]
    corpus.write(options.state / "corpus", seeds)
    board = Board(options.state / "board")
    runner = Runner(target, board, Findings(options.state / "findings"), options.inputs, options.state / "slowest")
    guide[1](runner, target, options)


def _blind(runner: Runner, target: Any, options: argparse.Namespace) -> None:
    from fuzz import corpus
    from fuzz.mutate import Mutator

    inputs = corpus.found(options.state / "corpus")
    mutator = Mutator(Random(options.seed), inputs, target.words, target.max_size)
    end = time.monotonic() + options.seconds if options.seconds else None
    for i in range(options.inputs):
        if end and i % 64 == 0 and time.monotonic() > end:
            break
        runner.one(inputs[i] if i < len(inputs) else mutator.next())


_no_guide: tuple[Callable[[], Any], Callable[..., None]] = (contextlib.nullcontext, _blind)


def _guide() -> tuple[Callable[[], Any], Callable[..., None]]:
    """atheris, which counts what is reached in our code."""
    import atheris

    def fuzz(runner: Runner, target: Any, options: argparse.Namespace) -> None:
        words = options.state / "words"
        words.write_text("".join(f'"{_escaped(w)}"\n' for w in target.words))
        flags = [
            f"-runs={options.inputs}",
            f"-seed={options.seed or 1}",
            f"-max_len={target.max_size}",
            *([f"-dict={words}"] if target.words else []),
            f"-artifact_prefix={options.state}/",
            f"-max_total_time={int(options.seconds)}",
            "-timeout=300",  # who watches from outside is quicker
            "-rss_limit_mb=0",
            "-detect_leaks=0",
            "-len_control=0",
            str(options.state / "corpus"),
        ]
        atheris.Setup([sys.argv[0], *flags], runner.one)
        atheris.Fuzz()

    packages = ["smp_bridge", "ntf_server", "ntf_client"]
    return lambda: atheris.instrument_imports(include=packages), fuzz


def _escaped(word: bytes) -> str:
    return "".join(chr(c) if 32 < c < 127 and c not in b'"\\' else f"\\x{c:02x}" for c in word)


if __name__ == "__main__":
    main()
