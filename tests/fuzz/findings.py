"""What is wrong: kept as an input in a file, with what is to be said of it beside it."""

import hashlib
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuzz.target import Target

STALL: Final = 1.0  # seconds of the processor's time for one input: the slowest good one takes a fiftieth of it
_MAX: Final = 20  # different ones of a run that are kept
_ROOT: Final = Path(__file__).parents[2]


def signature(error: BaseException) -> str:
    """Equal for what is the same fault: where it was raised, and where in our own code that was."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(str(_ROOT)) and ".venv" not in f.filename]
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in [*ours[-2:], *frames[-1:]]]
    return " ".join([type(error).__name__, *dict.fromkeys(places)])


@dataclass(frozen=True)
class Finding:
    """`kind`: crash, stall, leak or death; `path`: the input."""

    kind: str
    what: str
    path: Path

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


class Findings:
    """Those of a run, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Finding] = {}

    def crash(self, target: Target, data: bytes, error: BaseException) -> None:
        """An exception that is none of those that are documented."""
        text = "".join(traceback.format_exception(error))
        self.add("crash", target.name, data, signature(error), text)

    def add(self, kind: str, target: str, data: bytes, what: str, text: str = "") -> None:
        """Keep it, if it is new."""
        if what in self._known or len(self._known) >= _MAX:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        command = f"scripts/fuzz '{target}' --input {path}"
        path.with_suffix(".txt").write_text(f"{kind}: {what}\n{command}\n\n{text}")
        self._known[what] = Finding(kind, what, path)


def read(folder: Path) -> list[Finding]:
    """All that were found for a target."""
    out = []
    for note in sorted(folder.glob("*.txt")):
        kind, _, what = note.read_text().partition("\n")[0].partition(": ")
        out.append(Finding(kind, what, note.with_suffix("")))
    return out
