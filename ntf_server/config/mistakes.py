"""Mistakes of an operator: each is one line that names the file, the key and the cure, and all are told at once."""

from collections.abc import Callable, Iterable
from typing import Final, TypeVar, cast

T = TypeVar("T")

_LONGEST: Final = 40  # characters of what the operator wrote that are told


class ConfigError(Exception):
    """Lines: where, which key, and what to do. `mistakes`: one by one."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("; and ".join(mistakes))
        self.mistakes = mistakes


class NotNowError(ConfigError):
    """It may pass by itself: what the master key comes from cannot be asked now."""


class Mistakes:
    """Those that were found so far. `end`: whoever wants to go on has to have none."""

    def __init__(self) -> None:
        self._found: dict[str, bool] = {}  # whether it may pass
        self._spoiled: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, error: ConfigError, section: str = "") -> None:
        """`section`: of which nothing more is to be said, as it would come of this mistake."""
        for line in error.mistakes:
            self._found.setdefault(line, isinstance(error, NotNowError))
        if section:
            self._spoiled.add(section)

    def find(self, make: Callable[[], T], section: str = "") -> T:
        """What `make` gives; None in its place if it raises ConfigError, or if its section has a mistake already."""
        if section not in self._spoiled:
            try:
                return make()
            except ConfigError as e:
                self.add(e)
        return cast("T", None)

    @property
    def error(self) -> ConfigError:
        """All of them; NotNowError if each may pass."""
        return (NotNowError if all(self._found.values()) else ConfigError)(*self._found)

    def end(self) -> None:
        """Raises ConfigError if there are any."""
        if self:
            raise self.error


def nearest(word: str, known: Iterable[str]) -> str | None:
    """What was meant, perhaps."""
    from difflib import get_close_matches  # noqa: PLC0415  nobody who makes no mistake needs it

    return next(iter(get_close_matches(word.lower(), list(known), 1)), None)


def shown(text: object, longest: int = _LONGEST) -> str:
    """What an operator wrote, on one line and not too long."""
    line = str(text)
    line = line if line.isprintable() else ascii(line)[1:-1]
    return line if len(line) <= longest else f"{line[:longest]}…"
