"""A primary, alone with a disk or with replicas; and what becomes of what was written.

There is one set of data that counts, and a copy that is behind: the disk's, or the most advanced replica's. Whoever
takes over has the copy; what was not there yet is lost.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol

from sim.loop import VirtualLoop
from sim.trace import Trace
from sim.valkey.data import Data
from sim.valkey.network import Network
from sim.valkey.server import Server

PORT: Final = 6379
BEFORE: Final = 1e-6  # seconds: what is written at one moment is lost, or none of it
_KEPT: Final = 10.0  # seconds of effects that a copy may be behind


@dataclass(frozen=True)
class Surroundings:
    """Of all servers. `histories`: numbers, another one each time that a server becomes primary."""

    loop: VirtualLoop
    rng: Random
    trace: Trace
    network: Network
    new_data: Callable[[], Data]
    histories: Iterator[int] = field(default_factory=lambda: itertools.count(1))


class Watch(Protocol):
    """Who chooses primaries, and tells of them."""

    def failing(self, group: "Group") -> None:
        """Its primary is known to be gone."""
        ...

    def elected(self, group: "Group") -> None:
        """It has another primary."""
        ...

    def back(self, group: "Group", server: Server) -> None:
        """One that was primary runs again, and takes itself for that."""
        ...

    def restarted(self, group: "Group") -> None:
        """Its primary was away, and is primary still."""
        ...


class Nobody:
    """Watches a server that is alone (see `Watch`)."""

    def failing(self, group: "Group") -> None:
        """Nobody hears."""

    def elected(self, group: "Group") -> None:
        """Nobody hears."""

    def back(self, group: "Group", server: Server) -> None:
        """Nobody hears."""

    def restarted(self, group: "Group") -> None:
        """Nobody hears."""


class Group:
    """`servers`: the first one begins as the primary. `on_lost` is told of times from which writes are lost.

    `moving`: of its slots that are on their way; then all servers stay, as an operator would see to.
    """

    def __init__(self, at: Surroundings, servers: Sequence[Server], number: int = 0) -> None:
        self.at = at
        self.number = number
        self.servers = list(servers)
        self.watch: Watch = Nobody()
        self.on_lost: Callable[[Group, float, float], None] = lambda _group, _begin, _end: None
        self.moving = 0
        self._copy = at.new_data()
        self._behind: deque[tuple[float, list[Sequence[bytes]]]] = deque()
        self._stalled_at: float | None = None  # since when nothing goes to replicas
        self._settled_at = 0.0  # what was written until then is not lost any more
        for server in self.servers:
            server.data.read_only = True
            at.network.hosts[server.name, PORT] = server
        self._promote(self.servers[0])

    def __str__(self) -> str:
        return str(self.primary)

    @property
    def _all_run(self) -> bool:
        return all(server.listening and not server.frozen for server in self.servers)

    @property
    def is_whole(self) -> bool:
        """All servers run, and none of its slots moves."""
        return self._all_run and not self.moving

    @property
    def is_settled(self) -> bool:
        """All servers run, and replicas get all."""
        return self._all_run and self._stalled_at is None

    @property
    def replicas(self) -> list[Server]:
        """Those that run."""
        return [s for s in self.servers if s is not self.primary and s.listening and not s.frozen]

    # --- the copy

    def _promote(self, server: Server) -> None:
        self.primary = server
        server.data.read_only = False
        server.data.history = next(self.at.histories)
        server.data.replicas = len(self.servers) - 1
        server.data.on_effects = lambda effects: self._written(server, effects)
        server.sync = lambda: self._sync(server)

    def _written(self, server: Server, effects: list[Sequence[bytes]]) -> None:
        if server is self.primary:  # another one that believes it is writes for nobody
            now = self.at.loop.time()
            self._behind.append((now, effects))
            self._catch_up(now - _KEPT)
        if any(words[0] == b"XADD" for words in effects):
            self.at.loop.in_world(0, server.wake)

    def _catch_up(self, until: float) -> None:
        until = until if self._stalled_at is None else min(until, self._stalled_at)
        while self._behind and self._behind[0][0] <= until:
            self._copy.apply(self._behind.popleft()[1])

    def _sync(self, server: Server) -> int:
        if server is not self.primary or not self.replicas or self._stalled_at is not None:
            return 0
        self._catch_up(self.at.loop.time())
        return len(self.replicas)

    def settle(self) -> None:
        """What was written until now is everywhere."""
        self._settled_at = self.at.loop.time()
        self._catch_up(self._settled_at)

    def _take_copy(self, begin: float) -> tuple[Data, float]:
        """What is there of before that time, or a later one, which it gives too; and a new copy, of that."""
        begin = max(begin, self._settled_at)
        self._catch_up(begin)
        if self._behind:
            self.at.trace.fault("redis:lost_writes", len(self._behind))
        self._behind.clear()
        self._stalled_at = None
        taken, self._copy = self._copy, self.at.new_data()
        self._copy.keys.copy(taken.keys)
        return taken, begin

    # --- what happens

    def stall(self, seconds: float, away: float) -> None:
        """Replicas get nothing for so long; then one of them takes over."""
        if len(self.servers) > 1 and self.is_whole and self._stalled_at is None:
            self._stalled_at = began = self.at.loop.time()
            self.at.trace.fault("redis:replicas_stall", self)
            self.at.loop.in_world(seconds, self._end_stall, began, away)

    def _end_stall(self, began: float, away: float) -> None:
        if self._stalled_at == began:
            self.crash(self.at.loop.time() - began, away)

    def crash(self, lag: float, away: float, *, stays: bool = False) -> None:
        """The primary's process ends; another one takes over, or, where it is alone or `stays` primary, it starts again
        after so many seconds. What it wrote in the last `lag` seconds is lost, unless it had to wait for a replica.
        """
        old, now = self.primary, self.at.loop.time()
        if not self.is_whole:
            return
        old.listening = False
        self.at.network.drop(lambda link: link.listener is old)
        if stays or len(self.servers) == 1:
            self.at.trace.fault("redis:restart", self)
            self.at.loop.in_world(away, self._restart, old, now - lag)
            return
        self.at.trace.fault("redis:failover", self)
        decided = self.at.rng.choice([1.5, 3.0, 7.0]) * self.at.rng.uniform(0.8, 1.2)
        self._plan_failover(decided, old, now - lag)
        self.at.loop.in_world(away + decided, self._come_back, old)

    def freeze(self, lag: float, away: float) -> None:
        """The primary stands still for so long that another one takes over; then it goes on as if nothing was."""
        old, now = self.primary, self.at.loop.time()
        if not self.is_whole:
            return
        old.freeze()
        self.at.trace.fault("redis:frozen", self)
        if len(self.servers) > 1:
            self._plan_failover(self.at.rng.uniform(1.5, 4.0), old, now - lag)
            self.at.loop.in_world(away + 4.0, self._thaw, old)
        else:
            self.at.loop.in_world(away, old.thaw)

    def _plan_failover(self, seconds: float, old: Server, begin: float) -> None:
        known = seconds * self.at.rng.uniform(0.7, 0.95)
        self.at.loop.in_world(known, self._failing, old)
        self.at.loop.in_world(seconds, self._fail_over, old, begin)

    def _failing(self, old: Server) -> None:
        if self.primary is old:
            self.watch.failing(self)

    def _restart(self, server: Server, begin: float) -> None:
        lost = bool(self._behind) and self._behind[-1][0] > begin
        server.data, begin = self._take_copy(begin)
        self._promote(server)
        server.listening = True
        self.watch.restarted(self)
        server.trouble = "loading"
        self.at.loop.in_world(self.at.rng.uniform(0.0, 1.5), self._loaded, server)
        if lost:
            self.on_lost(self, begin, self.at.loop.time())

    @staticmethod
    def _loaded(server: Server) -> None:
        if server.trouble == "loading":
            server.trouble = ""

    def _fail_over(self, old: Server, begin: float) -> None:
        if self.primary is not old:
            return
        new = self.at.rng.choice(self.replicas)
        lost = bool(self._behind) and self._behind[-1][0] > begin
        new.data, begin = self._take_copy(begin)
        self._promote(new)
        self.at.trace.note("failover", old, "to", new)
        self.watch.elected(self)
        if lost:
            self.on_lost(self, begin, self.at.loop.time())

    def _come_back(self, server: Server) -> None:
        server.listening = True
        self.watch.back(self, server)

    def _thaw(self, server: Server) -> None:
        """For a moment there are two primaries."""
        began = self.at.loop.time()
        server.thaw()
        self.at.trace.fault("redis:two_primaries", server)
        self.at.loop.in_world(self.at.rng.uniform(0.05, 1.0), self._end_split, server, began)

    def _end_split(self, server: Server, began: float) -> None:
        self.watch.back(self, server)
        self.on_lost(self, began - 1.0, self.at.loop.time())

    def follow(self, server: Server) -> None:
        """It is a replica from now on."""
        server.data = self.at.new_data()
        server.data.read_only = True
        server.data.history = self.primary.data.history
