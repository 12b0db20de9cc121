"""Who should hold what, of the nodes that live. Pure.

Rendezvous hashing (Thaler and Ravishankar, 1998): of a node that leaves only what it had goes to others. SMP servers
differ in size as much as can be, and a few have most of all queues: these are given out first, the largest first, each
to the node that it ranks highest and that has room (bounded loads: Mirrokni, Thorup, Zadimoghaddam, 2016).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

_SLACK: Final = 1.2  # times its share of the weights, that a node may have
_HEAVY: Final = 100  # part of all queues, above which a server has a weight: so there are no more than this
_LARGE: Final = 1000  # queues that it has at least
_FOUND: Final = 100_000  # names that are remembered
_DRIFT: Final = 1.5  # times that a weight may be wrong: nobody is to move servers by making and deleting queues


class Rendezvous:
    """`nodes` and `weights` may change; where they are the same on two nodes, so is what both say."""

    def __init__(self) -> None:
        self._nodes: tuple[bytes, ...] = ()
        self._weights: dict[bytes, int] = {}
        self._heavy: dict[bytes, bytes] | None = {}  # who should hold these; None: not known yet
        self._found: dict[bytes, bytes] = {}  # who should hold these: to rank nodes takes time

    @property
    def nodes(self) -> Sequence[bytes]:
        """Those that live."""
        return self._nodes

    @nodes.setter
    def nodes(self, nodes: Sequence[bytes]) -> None:
        if set(nodes) != set(self._nodes):
            self._heavy = None
            self._found.clear()
        self._nodes = tuple(nodes)

    @property
    def weights(self) -> Mapping[bytes, int]:
        """Of what is large, by name."""
        return self._weights

    @weights.setter
    def weights(self, weights: Mapping[bytes, int]) -> None:
        if weights != self._weights:
            self._weights, self._heavy = dict(weights), None

    def holder(self, name: bytes) -> bytes | None:
        """The node that should hold it; None: no node lives."""
        if self._heavy is None:
            self._heavy = dict(self._give_out())
        found = self._heavy.get(name) or self._found.get(name)
        if found is None and self._nodes:
            if len(self._found) >= _FOUND:
                self._found.clear()
            found = self._found[name] = self._ranked(name)[0]
        return found

    def _ranked(self, name: bytes) -> list[bytes]:
        return sorted(self._nodes, key=lambda node: hashlib.sha256(node + name).digest(), reverse=True)

    def _give_out(self) -> Iterator[tuple[bytes, bytes]]:
        loads = dict.fromkeys(self._nodes, 0)
        if not loads:
            return
        room = _SLACK * sum(self._weights.values()) / len(loads)
        for name, weight in sorted(self._weights.items(), key=lambda item: (-item[1], item[0])):
            ranked = self._ranked(name)
            least = min(ranked, key=loads.__getitem__)
            node = next((node for node in ranked if loads[node] + weight <= room), least)
            loads[node] += weight
            yield name, node


def reweighed(weights: Mapping[bytes, int], counts: Mapping[bytes, int]) -> dict[bytes, int]:
    """What the weights are to be, by how many queues there are now of each; as they were, if that is about right."""
    total = sum(counts.values())
    new = {}
    for name, count in counts.items():
        before = weights.get(name, 0)
        enough = max(_LARGE, total / _HEAVY)
        if before and before / _DRIFT <= count <= before * _DRIFT and count * _DRIFT >= enough:
            new[name] = before
        elif count > enough:
            new[name] = count
    return new
