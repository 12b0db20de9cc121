"""Slots of a cluster: which keys a command has, and whose slots are whose, as one node knows it."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS
_SCRIPTS: Final = frozenset([b"EVAL", b"EVALSHA"])
_ALL: Final = frozenset([b"DEL", b"EXISTS"])  # all words are keys
_NONE: Final = frozenset([b"ASKING", b"CLUSTER", b"CONFIG", b"INFO", b"PING", b"SCRIPT", b"TIME", b"WAIT"])

slot_of: Final = lru_cache(100_000)(key_slot)


def keys_of(words: Sequence[bytes]) -> Sequence[bytes]:
    """Those of a command."""
    name = words[0].upper()
    if name in _NONE:
        return ()
    if name in _SCRIPTS:
        return words[3 : 3 + int(words[2])]
    if name == b"XREAD":
        names = words[[word.upper() for word in words].index(b"STREAMS") + 1 :]
        return names[: len(names) // 2]
    return words[1:] if name in _ALL else words[1:2]


class View:
    """Each group of servers has as many slots as another, but for those that are elsewhere, or nobody's (None).

    `primaries`: of each group, by name; `down`: the cluster does not serve.
    """

    def __init__(self, primaries: Sequence[str]) -> None:
        self.primaries = list(primaries)
        self.elsewhere: dict[int, int | None] = {}
        self.down = False

    def learn(self, other: "View") -> None:
        """All that another one knows."""
        self.primaries = list(other.primaries)
        self.elsewhere = dict(other.elsewhere)
        self.down = other.down

    def owner(self, slot: int) -> int | None:
        """Of which group it is."""
        count = len(self.primaries)
        return self.elsewhere[slot] if slot in self.elsewhere else min(slot // (SLOTS // count), count - 1)

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """First and last slot, and the group: of all that somebody has, in their order."""
        count = len(self.primaries)
        cuts = {i * (SLOTS // count) for i in range(count)} | {s for at in self.elsewhere for s in (at, at + 1)}
        begin, owner = 0, self.owner(0)
        for cut in sorted(cuts - {0, SLOTS}):
            if self.owner(cut) != owner:
                if owner is not None:
                    yield begin, cut - 1, owner
                begin, owner = cut, self.owner(cut)
        if owner is not None:
            yield begin, SLOTS - 1, owner


def told(view: View, port: int, replicas: Sequence[Sequence[str]], ids: dict[str, bytes]) -> list[Any]:
    """An answer to CLUSTER SLOTS."""

    def node(name: str) -> list[Any]:
        return [name.encode(), port, ids[name], []]

    return [
        [first, last, *map(node, [view.primaries[group], *replicas[group]])] for first, last, group in view.ranges()
    ]
