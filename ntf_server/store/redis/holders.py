"""Which SMP servers a node looks at, to find those that have lost their node. Pure.

To look at all of them every two seconds costs too much where there are thousands. Who lives is known: a server that was
seen to be the one of a node that lives is looked at in its turn only. As soon as one of them is found to be without it,
or the nodes are others, all that may be so too are looked at.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

NOBODY: Final = b""  # instead of a node: nothing is wanted of the server, so nobody needs to have it
LEAST: Final = 256  # servers in their turn, at once
_TURNS: Final = 15  # after so many all have had theirs


class Holders:
    """What was seen last, of servers that may be looked at later."""

    def __init__(self) -> None:
        self._nodes: frozenset[bytes] = frozenset()  # that live, and may have servers
        self._held: dict[bytes, bytes] = {}  # by which of them each is; who was looked at last is last

    def live(self, nodes: Collection[bytes]) -> None:
        """Who does. After a change nothing is known of anything."""
        if self._nodes != frozenset(nodes):
            self._nodes = frozenset(nodes)
            self._held.clear()

    def to_look_at(self, servers: Iterable[bytes]) -> list[bytes]:
        """Of these: those of which nothing is known, and some in their turn."""
        there = dict.fromkeys(servers)
        for gone in [server for server in self._held if server not in there]:
            del self._held[gone]
        turn = islice(self._held, max(LEAST, len(self._held) // _TURNS))
        return [*(server for server in there if server not in self._held), *turn]

    def saw(self, asked: Sequence[bytes], holders: Mapping[bytes, bytes]) -> list[bytes]:
        """Which node has each of these; those without one, or of which that is not known, are left out. Gives what is
        to be looked at as well: all else that the nodes had which were thought to have those.
        """
        before = {server: self._held.pop(server, NOBODY) for server in asked}
        self._held.update((server, node) for server, node in holders.items() if node in self._nodes or not node)
        lost = {node for server, node in before.items() if node and holders.get(server) != node}
        return [server for server, node in self._held.items() if node in lost and server not in before] if lost else []
