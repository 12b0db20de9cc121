"""What calls hand out of shards while memory does not have it yet, or never will. Pure."""

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager


class Handing:
    """`calls`: that hand something out; their numbers mark what each has handed out, as each may be done twice."""

    def __init__(self) -> None:
        self.calls = 0
        self._under_way: dict[object, int] = {}  # operations that do so: how many calls there were before each
        self._stranded: dict[int, int] = {}  # shards: of what calls up to this one handed out, memory may not have all

    def next_call(self) -> int:
        """Its number."""
        self.calls += 1
        return self.calls

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """While something is handed out: what the store has handed out, and memory has not yet, is not lost."""
        operation = object()
        self._under_way[operation] = self.calls
        try:
            yield
        finally:
            del self._under_way[operation]

    @property
    def is_idle(self) -> bool:
        """Nothing is handed out just now."""
        return not self._under_way

    @property
    def settled(self) -> int:
        """Memory has, or lost, all that was handed out by calls up to this one."""
        return min(self._under_way.values(), default=self.calls)

    def strand(self, shards: Iterable[int]) -> None:
        """The store may have handed out of these what memory has not: that is due again when those under way have
        ended.
        """
        self._stranded.update(dict.fromkeys(shards, self.calls))

    @property
    def stranded(self) -> Set[int]:
        """Shards of which that is so by now."""
        settled = self.settled if self._stranded else 0
        return {shard for shard, calls in self._stranded.items() if calls <= settled}

    def recovered(self, shard: int, settled: int) -> None:
        """It is due again, if calls up to this one had handed it out."""
        if self._stranded.get(shard, settled + 1) <= settled:
            del self._stranded[shard]
