"""A cluster: nodes that tell whose a slot is, each as far as it knows; slots that move, and that are nobody's."""

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from sim.loop import VirtualLoop
from sim.trace import Trace
from sim.valkey.data import Data
from sim.valkey.group import PORT, Group
from sim.valkey.keyspace import ReplyError
from sim.valkey.server import Server
from sim.valkey.slots import View, keys_of, slot_of, told

_GOSSIP: Final = (0.0, 0.3)  # seconds until a node knows what another one does
_REJOIN: Final = 2.0  # seconds that a primary which was started again does not serve
_STEP: Final = (0.0001, 0.002)  # seconds between an operator's commands to several nodes

_CROSS: Final = "CROSSSLOT Keys in request don't hash to the same slot"
_TRY_AGAIN: Final = "TRYAGAIN Multiple keys request during rehashing of slot"
_UNSERVED: Final = "CLUSTERDOWN Hash slot not served"
_DOWN: Final = "CLUSTERDOWN The cluster is down"
_DOWN_IN_SCRIPT: Final = "ERR Can not execute a command '{}' while the cluster is down script: on @user_script:1."
_CROSS_IN_SCRIPT: Final = (
    "ERR Script attempted to access keys that do not hash to the same slot script: on @user_script:1."
)
_AWAY_IN_SCRIPT: Final = "ERR {} to access a non local key in a cluster node script: on @user_script:1."


class Node(Server):
    """Of a group. `migrating`, `importing`: slots that are half its own, and the names of the others; `ready_at`: from
    when on it serves; `words`: how it begins to say that a script asked for what is not here, as Redis or Valkey do.
    """

    def __init__(self, name: str, loop: VirtualLoop, rng: Random, data: Data) -> None:
        super().__init__(name, loop, rng, data)
        self.id = hashlib.sha1(name.encode()).hexdigest().encode()
        self.view = View([])
        self.group = 0
        self.migrating: dict[int, str] = {}
        self.importing: dict[int, str] = {}
        self.ready_at = 0.0
        self.words = "Attempted"
        self.slots: Callable[[View], list[Any]] = lambda _: []

    def answer(self, words: Sequence[bytes], *, asking: bool = False) -> Any:
        """See `Server`."""
        refused = self._refused(words, asking)
        if refused:
            return ReplyError(refused)
        if words[:2] == [b"CLUSTER", b"SLOTS"]:
            return self.slots(self.view)
        keys = keys_of(words)
        slot = slot_of(keys[0]) if keys else -1
        self.data.guard = lambda inner: self._guard(inner, slot, asking)
        return super().answer(words)

    def learn(self, view: View) -> None:
        """All that is known; who waits for a key of a slot that is not here any more is told."""
        self.view.learn(view)
        for slot in [slot for slot in self.migrating if not self._has(slot)]:
            del self.migrating[slot]
        for slot in [slot for slot in self.importing if self._has(slot)]:
            del self.importing[slot]
        self.wake()

    def _has(self, slot: int) -> bool:
        return self.view.owner(slot) == self.group and self.view.primaries[self.group] == self.name

    def _refused(self, words: Sequence[bytes], asking: bool) -> str:
        """Why these words are not for this node; empty: they are."""
        keys = keys_of(words)
        if not keys:
            return ""
        slots = {slot_of(key) for key in keys}
        slot = slot_of(keys[0])
        owner = self.view.owner(slot)
        if owner is None:
            return _UNSERVED
        if len(slots) > 1:
            return _CROSS
        if self.view.down or self.loop.time() < self.ready_at:
            return _DOWN
        there = [key in self.data.keys.values for key in keys]
        if self._has(slot):
            if slot not in self.migrating or all(there):
                return ""
            return _TRY_AGAIN if any(there) else f"ASK {slot} {self.migrating[slot]}:{PORT}"
        if asking and slot in self.importing:
            return _TRY_AGAIN if len(set(keys)) > 1 and not all(there) else ""
        return f"MOVED {slot} {self.view.primaries[owner]}:{PORT}"

    def _guard(self, words: Sequence[bytes], slot: int, asking: bool) -> None:
        """Of a script with keys of that slot. Raises ReplyError."""
        for key in keys_of(words):
            if slot_of(key) != slot:
                raise ReplyError(_CROSS_IN_SCRIPT if self._has(slot_of(key)) else _AWAY_IN_SCRIPT.format(self.words))
        if slot not in self.migrating and slot not in self.importing:
            return
        refused = self._refused(words, asking)
        if refused.startswith("CLUSTERDOWN"):
            raise ReplyError(_DOWN_IN_SCRIPT.format(words[0].decode().lower()))
        if refused:
            raise ReplyError(_AWAY_IN_SCRIPT.format(self.words))


class Cluster:
    """The nodes together (see `group.Watch`). `whole`: it serves nothing while somebody's slots are nobody's."""

    def __init__(self, loop: VirtualLoop, rng: Random, trace: Trace, groups: Sequence[Group]) -> None:
        self._loop = loop
        self._rng = rng
        self._trace = trace
        self._groups = groups
        self._nodes = [node for group in groups for node in group.servers if isinstance(node, Node)]
        self._failing: set[int] = set()
        self._moving: set[int] = set()  # slots
        self.whole = rng.random() < 0.7
        self._truth = View([group.primary.name for group in groups])
        words = rng.choice(["Attempted", "Script attempted"])
        for group in groups:
            group.watch = self
            for node in group.servers:
                assert isinstance(node, Node)
                node.group, node.slots, node.words = group.number, self._slots, words
                node.learn(self._truth)

    def owner(self, slot: int) -> Group | None:
        """Who has it."""
        number = self._truth.owner(slot)
        return None if number is None else self._groups[number]

    def _slots(self, view: View) -> list[Any]:
        replicas = [
            [s.name for s in group.servers if s.name != view.primaries[group.number] and s.listening]
            for group in self._groups
        ]
        return told(view, PORT, replicas, {node.name: node.id for node in self._nodes})

    def _tell(self, *first: Server) -> None:
        """These at once, the others soon."""
        unserved = None in self._truth.elsewhere.values()
        self._truth.down = self.whole and (unserved or bool(self._failing))
        for node in self._nodes:
            if node in first:
                node.learn(self._truth)
            else:
                self._loop.in_world(self._rng.uniform(*_GOSSIP), self._learn, node)

    def _learn(self, node: Node) -> None:
        if node.listening and not node.frozen:
            node.learn(self._truth)

    # --- what groups tell

    def failing(self, group: Group) -> None:
        """See `Watch`."""
        self._failing.add(group.number)
        if self.whole:
            self._trace.fault("redis:cluster_down")
        self._tell()

    def elected(self, group: Group) -> None:
        """See `Watch`."""
        self._failing.discard(group.number)
        self._truth.primaries[group.number] = group.primary.name
        self._tell(group.primary)

    def back(self, group: Group, server: Server) -> None:
        """See `Watch`: it hears of whom they have elected."""
        assert isinstance(server, Node)
        group.follow(server)
        server.learn(self._truth)

    def restarted(self, group: Group) -> None:
        """See `Watch`."""
        node = group.primary
        assert isinstance(node, Node)
        node.ready_at = self._loop.time() + _REJOIN
        node.learn(self._truth)

    # --- what an operator does

    def move(self, slot: int, to: Group, seconds: float, then: Callable[[], None] = lambda: None) -> bool:
        """To another group, key by key, in about so many seconds; whether it begins. `then`: it is there."""
        source = self.owner(slot)
        if source is None or source is to or slot in self._moving or not (source.is_settled and to.is_settled):
            return False
        self._moving.add(slot)
        _Move(self, slot, source, to, seconds, then).begin()
        return True

    def unserve(self, slot: int, seconds: float) -> None:
        """It is nobody's for so long, with what is in it."""
        owner = self.owner(slot)
        if owner is None or not owner.is_settled:
            return
        self._trace.fault("redis:slot_of_nobody", slot)
        owner.moving += 1
        self._set(slot, None)
        self._loop.in_world(seconds, self._serve, slot, owner)

    def _serve(self, slot: int, owner: Group) -> None:
        owner.moving -= 1
        self._set(slot, owner, owner.primary)

    def _set(self, slot: int, owner: Group | None, *first: Server) -> None:
        self._truth.elsewhere[slot] = None if owner is None else owner.number
        self._tell(*first)

    def end_move(self, slot: int, source: Group, to: Group) -> None:
        """The new one first, then the old one: there is no moment in which nobody has it."""
        self._moving.discard(slot)
        self._set(slot, to, to.primary)
        old = source.primary
        assert isinstance(old, Node)
        self._loop.in_world(self._rng.uniform(*_STEP), old.learn, self._truth)


class _Move:
    """Of a slot."""

    def __init__(  # noqa: PLR0917
        self, of: Cluster, slot: int, source: Group, to: Group, seconds: float, then: Callable[[], None]
    ) -> None:
        self._cluster = of
        self._slot = slot
        self._source = source
        self._to = to
        self._seconds = seconds
        self._then = then
        self._in_world = of._loop.in_world
        self._rng = of._rng
        self._trace = of._trace
        assert isinstance(source.primary, Node) and isinstance(to.primary, Node)
        self._old, self._new = source.primary, to.primary

    def begin(self) -> None:
        """The new one first."""
        self._trace.fault("redis:slot_moves", self._slot, self._old, "to", self._new)
        self._source.moving += 1
        self._to.moving += 1
        self._new.importing[self._slot] = self._old.name
        self._in_world(self._rng.uniform(*_STEP), self._migrate)

    def _migrate(self) -> None:
        self._old.migrating[self._slot] = self._new.name
        keys = [key for key in self._old.data.keys.values if slot_of(key) == self._slot]
        self._rng.shuffle(keys)
        pause = self._seconds / (len(keys) + 1)
        for i, key in enumerate(keys):
            self._in_world(pause * (i + self._rng.random()), self._move_key, key)
        self._in_world(self._seconds, self._end)

    def _move_key(self, key: bytes) -> None:
        if key not in self._old.data.keys.values:  # it was deleted meanwhile
            return
        try:
            move_key(key, self._old.data, self._new.data)
        except ReplyError as e:
            self._trace.violated("a slot cannot be moved:", e, key)

    def _end(self) -> None:
        for key in [key for key in self._old.data.keys.values if slot_of(key) == self._slot]:
            self._move_key(key)
        for group in (self._source, self._to):
            group.moving -= 1
            group.settle()
        self._cluster.end_move(self._slot, self._source, self._to)
        self._then()


def move_key(key: bytes, source: Data, to: Data) -> None:
    """MIGRATE. Raises ReplyError."""
    to.put(key, source.answer([b"DUMP", key]))
    source.answer([b"DEL", key])
