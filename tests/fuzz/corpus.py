"""Inputs that are worth to be kept: those in the repository, and what runs found beside them."""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from fuzz.target import Target

KEPT: Final = Path(__file__).parent / "corpus"
MAX_KEPT: Final = 12_000  # bytes of a target
_MAX_FILES: Final = 100
_ROOT: Final = KEPT.parents[2]
_OURS: Final = tuple(f"{_ROOT}/{name}/" for name in ("smp_bridge", "ntf_server", "ntf_client"))

_Edges = set[tuple[int, int, int]]


def folder_name(target: Target) -> str:
    """Of its files."""
    return target.name.replace(" ", "-")


def name(data: bytes) -> str:
    """Of an input's file."""
    return hashlib.sha256(data).hexdigest()[:16]


def kept(target: Target) -> list[bytes]:
    """What is in the repository."""
    return list(_files(KEPT / folder_name(target)))


def _files(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.glob("*")):
        yield path.read_bytes()


def write(folder: Path, inputs: Iterable[bytes]) -> None:
    """As files."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / name(data)).write_bytes(data)


def found(folder: Path) -> list[bytes]:
    """What runs found."""
    return list(_files(folder))


def keep(target: Target, candidates: Iterable[bytes]) -> list[bytes]:
    """Few and small inputs that come to all places in our code that these come to, as far as they have room."""
    seen: _Edges = set()
    chosen: list[bytes] = []
    room = MAX_KEPT
    for data in sorted(set(candidates), key=lambda d: (len(d), d)):
        edges = _edges(target, data)
        if edges <= seen or len(data) > room or len(chosen) >= _MAX_FILES:
            continue
        seen |= edges
        room -= len(data)
        chosen.append(data)
    return chosen


def _edges(target: Target, data: bytes) -> _Edges:
    """Which line of our code came after which; and whether it was taken, which libraries may decide."""
    out: _Edges = {(0, 0, target.run(data))}

    def on_line(before: list[int]) -> Any:
        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if event == "line":
                out.add((id(frame.f_code), before[0], frame.f_lineno))
                before[0] = frame.f_lineno
            return trace

        return trace

    def on_call(frame: FrameType, _event: str, _: Any) -> Any:
        return on_line([0]) if frame.f_code.co_filename.startswith(_OURS) else None

    # It ran once before: what is made at the first time is of no interest.
    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        target.run(data)
    finally:
        sys.settrace(before)
    return out
