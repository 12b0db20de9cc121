"""A Redis as operators run it: alone with a disk, with replicas and Sentinels, or as a cluster; what becomes of it."""

import itertools
from collections.abc import Callable
from random import Random
from typing import Final

from ntf_server.store.redis.script import Script
from ntf_server.store.redis.url import Endpoint, Kind, RedisUrl
from sim.clock import WallClock
from sim.loop import VirtualLoop
from sim.trace import Trace
from sim.valkey.cluster import Cluster, Node
from sim.valkey.data import Data
from sim.valkey.group import BEFORE, PORT, Group, Surroundings
from sim.valkey.lua import Lua
from sim.valkey.network import Link, Network
from sim.valkey.sentinel import SERVICE, Sentinels
from sim.valkey.server import Server

_GROUPS: Final = 3  # of a cluster
_REPLICAS: Final = {Kind.ALONE: 0, Kind.SENTINEL: 2, Kind.CLUSTER: 1}

OnLost = Callable[[Group, float, float], None]


class Deployment:
    """`url`: where the relay finds it. `clock`: the servers'."""

    def __init__(self, kind: Kind, loop: VirtualLoop, rng: Random, trace: Trace, clock: WallClock) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.clock = clock
        self.network = Network(loop, rng, trace)
        self.kind = kind
        self._lua = Lua()
        at = Surroundings(loop, rng, trace, self.network, self._data)
        make = Node if kind is Kind.CLUSTER else Server
        names = (f"redis{i}" for i in itertools.count())
        self.groups = [
            Group(at, [make(next(names), loop, rng, self._data()) for _ in range(1 + _REPLICAS[kind])], number)
            for number in range(_GROUPS if kind is Kind.CLUSTER else 1)
        ]
        self.cluster = Cluster(loop, rng, trace, self.groups) if kind is Kind.CLUSTER else None
        self.servers = [server for group in self.groups for server in group.servers]
        hosts = [Endpoint(group.primary.name, PORT) for group in self.groups]
        if kind is Kind.SENTINEL:
            sentinels = Sentinels(loop, rng, self.network, self.groups[0].primary.name)
            self.groups[0].watch = sentinels
            hosts = list(sentinels.endpoints)
        service = SERVICE if kind is Kind.SENTINEL else ""
        self.url = RedisUrl(kind, tuple(hosts), service=service, prefix="ntf", name="redis")

    @property
    def micros(self) -> int:
        """The servers' time."""
        return int(self.clock.wall() * 1_000_000)

    def _data(self) -> Data:
        data = Data(self._lua, lambda: self.micros)
        data.in_cluster = self.kind is Kind.CLUSTER
        return data

    def on_lost(self, told: OnLost) -> None:
        """It is told of times from which writes of a group are lost."""
        for group in self.groups:
            group.on_lost = told

    # --- what happens

    @property
    def is_whole(self) -> bool:
        """All servers run, and no slot moves."""
        return all(group.is_whole for group in self.groups)

    def a_group(self) -> Group:
        """One of them."""
        return self.rng.choice(self.groups)

    def group_of(self, server: object) -> Group:
        """Whose it is."""
        return next(group for group in self.groups if server in group.servers)

    def data_of(self, link: Link) -> Data:
        """Of the server to which it leads."""
        return next(server.data for server in self.servers if server is link.listener)

    def has(self, group: Group, slot: int) -> bool:
        """Whether what is in this slot of a cluster is in a group."""
        return self.cluster is None or self.cluster.owner(slot) in {group, None}

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

        def ran(link: Link) -> None:
            begin, group = self.loop.time() - BEFORE, self.group_of(link.listener)
            self.loop.in_world(then, lambda: group.crash(self.loop.time() - begin, away))

        self.when_run(script, ran, skip)

    def heal(self) -> None:
        """From now on all is well."""
        self.network.flaky = self.network.slowness = 0.0
        for server in self.servers:
            if server.trouble != "loading":
                server.trouble = ""
            server.data.full = False
