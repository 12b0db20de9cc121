"""What a target is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Parse = Callable[[bytes], Any]
Check = Callable[[Any], None]

TARGETS: Final[dict[str, "Target"]] = {}


def _nothing(_: Any) -> None:
    """There is nothing to say of what was parsed."""


@dataclass(frozen=True)
class Target:
    """Something that is given the bytes of a stranger.

    `parse` may raise what is in `refuses`, which is what its documentation says, and nothing else; what it gives then
    holds to what `check` asserts, which may raise nothing. `of`: what of the project is tried, by name, in whose module
    it is defined. `share`: how much of the inputs it gets, where others get 1. `words`: what inputs are likely to hold.
    """

    name: str
    parse: Parse
    seeds: Callable[[], Sequence[bytes]]
    of: Sequence[str]
    refuses: tuple[type[Exception], ...] = ()
    check: Check = _nothing
    max_size: int = 512
    share: float = 1.0
    words: Sequence[bytes] = field(default=())

    def run(self, data: bytes) -> bool:
        """Whether it was taken. Raises for a fault."""
        try:
            value = self.parse(data)
        except self.refuses:
            return False
        self.check(value)
        return True


def add(target: Target) -> None:
    """Make it known."""
    assert target.name not in TARGETS
    TARGETS[target.name] = target


def versioned(data: bytes, first: int, last: int) -> tuple[int, bytes]:
    """(a version that the first byte says, the rest)."""
    return first + (data[0] if data else 0) % (last - first + 1), data[1:]
