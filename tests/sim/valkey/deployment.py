"""A Redis as operators run it: alone with a disk, or with replicas and Sentinels; and what becomes of it.

There is one set of data that counts, and a copy that is behind: the disk's, or the most advanced replica's. Whoever
takes over has the copy; what was not there yet is lost.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from ntf_server.store.redis.script import Script
from ntf_server.store.redis.url import Endpoint, Kind, RedisUrl
from sim.clock import WallClock
from sim.loop import VirtualLoop
from sim.trace import Trace
from sim.valkey.data import Data
from sim.valkey.lua import Lua
from sim.valkey.network import Link, Network, Session
from sim.valkey.server import Server
from sim.valkey.wire import Commands, packed

_SERVICE: Final = "relay"
_BEFORE: Final = 1e-6  # seconds: what is written at one moment is lost, or none of it
_KEPT: Final = 10.0  # seconds of effects that a copy may be behind
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379


class Deployment:
    """`url`: where the relay finds it. `clock`: the servers'. `on_lost` is told of times from which writes are lost."""

    def __init__(self, kind: Kind, loop: VirtualLoop, rng: Random, trace: Trace, clock: WallClock) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.clock = clock
        self.network = Network(loop, rng, trace)
        self.kind = kind
        self._lua = Lua()
        self._histories = itertools.count(1)
        count = 3 if kind is Kind.SENTINEL else 1
        self.servers = [Server(f"redis{i}", loop, rng, self._data()) for i in range(count)]
        self.primary = self.servers[0]
        self._copy = self._data()
        self._behind: deque[tuple[float, list[Sequence[bytes]]]] = deque()
        self._stalled_at: float | None = None  # since when nothing goes to replicas
        self.on_lost: Callable[[float, float], None] = lambda _begin, _end: None
        for server in self.servers:
            server.data.read_only = True
            self.network.hosts[server.name, _PORT] = server
        self._promote(self.primary)
        self._sentinels = [_Sentinel(f"sentinel{i}", self.primary.name) for i in range(3 if count > 1 else 0)]
        for sentinel in self._sentinels:
            self.network.hosts[sentinel.name, _SENTINEL_PORT] = sentinel
        sentinels = tuple(Endpoint(sentinel.name, _SENTINEL_PORT) for sentinel in self._sentinels)
        hosts = sentinels or (Endpoint(self.primary.name, _PORT),)
        self.url = RedisUrl(kind, hosts, service=_SERVICE if sentinels else "", prefix="ntf", name="redis")

    @property
    def micros(self) -> int:
        """The servers' time."""
        return int(self.clock.wall() * 1_000_000)

    def _data(self) -> Data:
        return Data(self._lua, lambda: self.micros)

    # --- the copy

    def _promote(self, server: Server) -> None:
        self.primary = server
        server.data.read_only = False
        server.data.history = next(self._histories)
        server.data.replicas = len(self.servers) - 1
        server.data.on_effects = lambda effects: self._written(server, effects)
        server.sync = lambda: self._sync(server)

    def _written(self, server: Server, effects: list[Sequence[bytes]]) -> None:
        if server is self.primary:  # another one that believes it is writes for nobody
            now = self.loop.time()
            self._behind.append((now, effects))
            self._catch_up(now - _KEPT)
        if any(words[0] == b"XADD" for words in effects):
            self.loop.in_world(0, server.wake)

    def _catch_up(self, until: float) -> None:
        until = until if self._stalled_at is None else min(until, self._stalled_at)
        while self._behind and self._behind[0][0] <= until:
            self._copy.apply(self._behind.popleft()[1])

    def _sync(self, server: Server) -> int:
        if server is not self.primary or len(self.servers) == 1 or self._stalled_at is not None:
            return 0
        self._catch_up(self.loop.time())
        return len(self.servers) - 1

    def _take_copy(self, begin: float) -> Data:
        """What is there of before that time; and a new copy, of that."""
        self._catch_up(begin)
        if self._behind:
            self.trace.fault("redis:lost_writes", len(self._behind))
        self._behind.clear()
        self._stalled_at = None
        taken, self._copy = self._copy, self._data()
        self._copy.keys.copy(taken.keys)
        return taken

    # --- what happens

    @property
    def is_whole(self) -> bool:
        """All servers run."""
        return all(server.listening and not server.frozen for server in self.servers)

    def when_run(self, script: str, then: Callable[[Link], None], skip: int = 0) -> None:
        """Once the script of that name was run so often, and not yet answered; for whom. One such wish at a time."""
        text, left = Script.load(script).text, itertools.count(skip, -1)

        def ran(what: str, link: Link) -> None:
            if what == text and next(left) == 0:
                self.when_run_no_more()
                then(link)

        for server in self.servers:
            server.on_script = ran

    def when_run_no_more(self) -> None:
        """Nobody waits for that any more."""
        for server in self.servers:
            server.on_script = None

    def lose(self, script: str, then: float, away: float, skip: int = 0) -> None:
        """What this script writes next, and all after it, `then` seconds later; that was answered."""
        begin = [0.0]

        def crash() -> None:
            self.crash(self.loop.time() - begin[0], away)

        def ran(_: Link) -> None:
            begin[0] = self.loop.time() - _BEFORE
            self.loop.in_world(then, crash)

        self.when_run(script, ran, skip)

    def stall(self, seconds: float, away: float) -> None:
        """Replicas get nothing for so long; then one of them takes over."""
        if self.kind is Kind.SENTINEL and self.is_whole and self._stalled_at is None:
            self._stalled_at = began = self.loop.time()
            self.trace.fault("redis:replicas_stall")
            self.loop.in_world(seconds, self._end_stall, began, away)

    def _end_stall(self, began: float, away: float) -> None:
        if self._stalled_at == began:
            self.crash(self.loop.time() - began, away)

    def crash(self, lag: float, away: float) -> None:
        """The primary's process ends; alone it starts again after so many seconds, else another one takes over.
        What it wrote in the last `lag` seconds is lost, unless it had to wait for a replica.
        """
        old, now = self.primary, self.loop.time()
        if not self.is_whole:
            return
        old.listening = False
        self._drop(old)
        if self.kind is Kind.ALONE:
            self.trace.fault("redis:restart")
            self.loop.in_world(away, self._restart, old, now - lag)
            return
        self.trace.fault("redis:failover")
        decided = self.rng.choice([1.5, 3.0, 7.0]) * self.rng.uniform(0.8, 1.2)
        self.loop.in_world(decided, self._fail_over, old, now - lag)
        self.loop.in_world(away + decided, self._come_back, old)

    def freeze(self, lag: float, away: float) -> None:
        """The primary stands still for so long that another one takes over; then it goes on as if nothing was."""
        old, now = self.primary, self.loop.time()
        if not self.is_whole:
            return
        old.freeze()
        self.trace.fault("redis:frozen")
        if self.kind is Kind.SENTINEL:
            self.loop.in_world(self.rng.uniform(1.5, 4.0), self._fail_over, old, now - lag)
            self.loop.in_world(away + 4.0, self._thaw, old)
        else:
            self.loop.in_world(away, old.thaw)

    def empty(self) -> None:
        """Somebody flushes it."""
        self.trace.fault("redis:emptied")
        self.primary.data.keys.values.clear()
        self._copy.keys.values.clear()
        self._behind.clear()

    def _drop(self, server: Server) -> None:
        self.network.drop(lambda link: link.listener is server)

    def _restart(self, server: Server, begin: float) -> None:
        lost = bool(self._behind) and self._behind[-1][0] > begin
        server.data = self._take_copy(begin)
        self._promote(server)
        server.listening = True
        server.trouble = "loading"
        self.loop.in_world(self.rng.uniform(0.0, 1.5), self._loaded, server)
        if lost:
            self.on_lost(begin, self.loop.time())

    @staticmethod
    def _loaded(server: Server) -> None:
        if server.trouble == "loading":
            server.trouble = ""

    def _fail_over(self, old: Server, begin: float) -> None:
        if self.primary is not old:
            return
        new = self.rng.choice([server for server in self.servers if server is not old and server.listening])
        lost = bool(self._behind) and self._behind[-1][0] > begin
        new.data = self._take_copy(begin)
        self._promote(new)
        self.trace.note("failover", old, "to", new)
        for sentinel in self._sentinels:
            self.loop.in_world(self.rng.uniform(0.0, 1.0), setattr, sentinel, "primary", new.name)
        if lost:
            self.on_lost(begin, self.loop.time())

    def _come_back(self, server: Server) -> None:
        server.listening = True
        self._demote(server)

    def _thaw(self, server: Server) -> None:
        """For a moment there are two primaries."""
        began = self.loop.time()
        server.thaw()
        self.trace.fault("redis:two_primaries")
        self.loop.in_world(self.rng.uniform(0.05, 1.0), self._end_split, server, began)

    def _end_split(self, server: Server, began: float) -> None:
        self._demote(server)
        self.on_lost(began - 1.0, self.loop.time())

    def _demote(self, server: Server) -> None:
        """By Sentinels, which close its connections."""
        server.unblock()
        self._drop(server)
        server.data = self._data()
        server.data.read_only = True

    def heal(self) -> None:
        """From now on all is well."""
        self.network.flaky = self.network.slowness = 0.0
        for server in self.servers:
            if server.trouble != "loading":
                server.trouble = ""
            server.data.full = False


class _Sentinel:
    """Tells who is primary, as far as it knows."""

    def __init__(self, name: str, primary: str) -> None:
        self.name = name
        self.primary = primary
        self.listening = True

    def accept(self, link: Link) -> Session:
        """See `Listener`."""
        return _Asked(self, link)


class _Asked:
    """A Sentinel's end of a connection."""

    def __init__(self, sentinel: _Sentinel, link: Link) -> None:
        self._sentinel = sentinel
        self._link = link
        self._commands = Commands()

    def receive(self, data: bytes) -> None:
        """See `Session`."""
        for words in self._commands.feed(data):
            assert words[:2] == [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME"], words[:2]
            answer: Any = [self._sentinel.primary.encode(), b"%d" % _PORT]
            self._link.deliver(packed(answer))

    def over(self) -> None:
        """See `Session`."""
