"""What happened in a run, in its order: short lines, and one hash over them; and how often which fault fired."""

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Final

_SIZE: Final = 16  # characters of the hash


class Trace:
    """`note` what happens; `fault` when a fault fires; `violated` when a promise is broken."""

    def __init__(self, clock: Callable[[], float], *, keep: bool = False) -> None:
        self._clock = clock
        self._keep = keep
        self._hash = hashlib.sha256()
        self.lines: list[str] = []
        self.faults: Counter[str] = Counter()
        self.violations: list[str] = []

    def note(self, *what: object) -> None:
        """One line; nothing in it may differ from run to run."""
        line = f"{self._clock():.4f} " + " ".join(map(str, what))
        self._hash.update(line.encode() + b"\n")
        if self._keep:
            self.lines.append(line)

    def fault(self, name: str, *what: object) -> None:
        """A fault fired."""
        self.faults[name] += 1
        self.note("fault", name, *what)

    def violated(self, *what: object) -> None:
        """An invariant does not hold."""
        self.note("VIOLATION", *what)
        self.violations.append(f"{self._clock():.3f} " + " ".join(map(str, what)))

    def digest(self) -> str:
        """The same for the same run."""
        return self._hash.hexdigest()[:_SIZE]
