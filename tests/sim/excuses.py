"""Why a push may be late: times in which something that it needs was not well, and a while after."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

_FOREVER: Final = float("inf")


class Excuses:
    """Intervals of virtual time, by what they excuse."""

    def __init__(self) -> None:
        self._intervals: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self._open: dict[str, float] = {}

    def add(self, what: str, begin: float, end: float) -> None:
        """From then to then."""
        self._intervals[what].append((begin, end))

    def begin(self, what: str, now: float) -> None:
        """From now on, until `end`; nothing if that is so already."""
        self._open.setdefault(what, now)

    def end(self, what: str, now: float) -> None:
        """Up to now, which may be a time to come; nothing if it was not begun."""
        begin = self._open.pop(what, None)
        if begin is not None:
            self.add(what, begin, now)

    def over(self, what: str) -> float:
        """When the last one ends that has an end; 0: there was none."""
        return max((end for _, end in self._intervals[what]), default=0.0)

    def without(self, what: Iterable[str], begin: float, end: float) -> float:
        """Seconds between the two that none of these excuses."""
        found = []
        for name in what:
            found += self._intervals.get(name, [])
            if name in self._open:
                found.append((self._open[name], _FOREVER))
        left, at = 0.0, begin
        for start, stop in sorted(found):
            if stop <= at:
                continue
            if start >= end:
                break
            left += max(0.0, start - at)
            at = max(at, stop)
        return left + max(0.0, end - at)
