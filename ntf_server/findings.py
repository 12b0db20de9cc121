"""What was found by a look at a set-up: each thing well or not, in words, with its cure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Standing(StrEnum):
    """LEFT_OUT: it was not looked at."""

    WELL = "well"
    WARNING = "warning"
    WRONG = "wrong"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class Finding:
    """`name`: what was looked at, one or two words; `text`: what is so; `cure`: what to do about it."""

    name: str
    standing: Standing
    text: str
    cure: str = ""

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"{self.standing:<{_STANDING}} {self.name:<{_NAME}} {self.text}"
        if self.cure:
            yield f"{'':<{_STANDING}} {'':<{_NAME}} cure: {self.cure}"

    def fields(self) -> Mapping[str, Any]:
        """For JSON."""
        return {"name": self.name, "standing": self.standing.value, "text": self.text, "cure": self.cure}


_STANDING: Final = 8  # characters
_NAME: Final = 13


def well(name: str, text: str) -> Finding:
    """As it should be."""
    return Finding(name, Standing.WELL, text)


def warning(name: str, text: str, cure: str = "") -> Finding:
    """It works, or may, and not as it should."""
    return Finding(name, Standing.WARNING, text, cure)


def wrong(name: str, text: str, cure: str) -> Finding:
    """It does not work."""
    return Finding(name, Standing.WRONG, text, cure)


def left_out(name: str, why: str) -> Finding:
    """Not looked at."""
    return Finding(name, Standing.LEFT_OUT, why)


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if anything is wrong."""
    return int(any(finding.standing is Standing.WRONG for finding in findings))
