"""Sentinels: they tell who is primary, each as far as it knows."""

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from ntf_server.store.redis.url import Endpoint
from sim.loop import VirtualLoop
from sim.valkey.group import PORT, Group
from sim.valkey.network import Link, Network, Session
from sim.valkey.server import Server
from sim.valkey.wire import Commands, packed

SERVICE: Final = "relay"
_PORT: Final = 26379
_COUNT: Final = 3


class Sentinels:
    """Those that watch one group (see `group.Watch`)."""

    def __init__(self, loop: VirtualLoop, rng: Random, network: Network, primary: str) -> None:
        self._loop = loop
        self._rng = rng
        self._network = network
        self._each = [_Sentinel(f"sentinel{i}", primary) for i in range(_COUNT)]
        for sentinel in self._each:
            network.hosts[sentinel.name, _PORT] = sentinel

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Where they are."""
        return [Endpoint(sentinel.name, _PORT) for sentinel in self._each]

    def failing(self, group: Group) -> None:
        """See `Watch`."""

    def elected(self, group: Group) -> None:
        """See `Watch`: they learn of it one after another."""
        for sentinel in self._each:
            self._loop.in_world(self._rng.uniform(0.0, 1.0), setattr, sentinel, "primary", group.primary.name)

    def back(self, group: Group, server: Server) -> None:
        """See `Watch`: it is made a replica, and its connections are closed."""
        server.unblock()
        self._network.drop(lambda link: link.listener is server)
        group.follow(server)

    def restarted(self, group: Group) -> None:
        """See `Watch`."""


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
            answer: Any = [self._sentinel.primary.encode(), b"%d" % PORT]
            self._link.deliver(packed(answer))

    def over(self) -> None:
        """See `Session`."""
