"""TCP between the relay's nodes and servers, in virtual time: bytes that come late, in part, or not at all.

It is what `asyncio.open_connection` gives, so redis-py's connections and all that is above them are as they are.
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Final, Protocol

from sim.loop import Life, VirtualLoop, current_life
from sim.trace import Trace

_LATENCY: Final = (0.0001, 0.002)  # seconds, one way
KINDS: Final = ("lost_request", "half_request", "lost_answer", "silent", "late")


class Session(Protocol):
    """A server's end of a connection."""

    def receive(self, data: bytes) -> None:
        """Bytes came."""
        ...

    def over(self) -> None:
        """The client's end is closed, and nothing more comes."""
        ...


class Listener(Protocol):
    """Who takes connections. `listening`: whether anybody does; a host that is out of reach answers nothing."""

    listening: bool

    def accept(self, link: "Link") -> Session:
        """A connection came."""
        ...


class Network:
    """`hosts` by name and port. `flaky`: the chance that something happens to what a node sends; `slowness`: seconds
    that all takes more. A node is cut off from all of them, or from one, by `cut`.
    """

    def __init__(self, loop: VirtualLoop, rng: Random, trace: Trace) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.hosts: dict[tuple[str, int], Listener] = {}
        self.flaky = 0.0
        self.slowness = 0.0
        self.links: list[Link] = []
        self._cut: dict[tuple[str, str], float] = {}

    def cut(self, node: str, until: float, host: str = "") -> None:
        """Nothing goes between a node (a life's name up to a dot) and a host, or any, until then; it is sent again."""
        self._cut[node, host] = until

    async def connect(self, make: Callable[[], Any], host: str, port: int) -> tuple[asyncio.Transport, Any]:
        """See `loop.create_connection`. Raises OSError."""
        life = current_life()
        assert life is not None
        while (wait := self.delay(life, host)) > 1.0:
            await asyncio.sleep(wait)
        await asyncio.sleep(2 * wait)
        listener = self.hosts.get((host, port))
        if listener is None or not listener.listening:
            raise ConnectionRefusedError("connection refused")
        protocol = make()
        link = Link(self, life, host, protocol, listener)
        protocol.connection_made(link)
        return link, protocol

    def delay(self, life: Life, host: str) -> float:
        """Seconds from a life to a host, or back."""
        way = self.rng.uniform(*_LATENCY) + self.slowness
        node = life.name.partition(".")[0]
        until = max(self._cut.get((node, to), 0.0) for to in ("", host))
        return max(way, until - self.loop.time() + way)

    def drop(self, of: Callable[["Link"], bool]) -> None:
        """Such connections are lost, as when a process ends: both sides hear of it."""
        for link in [link for link in self.links if of(link)]:
            link.reset()


class Link(asyncio.Transport):
    """The node's end of a connection."""

    def __init__(self, network: Network, life: Life, host: str, protocol: Any, listener: Listener) -> None:
        super().__init__()
        self.network = network
        self.life = life
        self.host = host
        self.listener = listener
        self._protocol = protocol
        self._session = listener.accept(self)
        self._closing = False
        self._broken = False  # nothing goes out any more
        self._deaf = False  # nothing comes in
        self._out_at = self._in_at = 0.0
        network.links.append(self)

    # --- what the node does

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `asyncio.Transport`."""
        if self._closing or self._broken:
            return
        network = self.network
        sent, extra = bytes(data), 0.0
        if network.flaky and network.rng.random() < network.flaky:
            kind = network.rng.choice(KINDS)
            network.trace.fault(f"redis:{kind}")
            if kind == "late":
                extra = network.rng.uniform(0.5, 8.0)
            elif kind == "half_request":
                sent = sent[: network.rng.randrange(len(sent))]
            elif kind == "lost_request":
                sent = b""
            self._deaf = kind != "late"
            if self._deaf and kind != "silent":
                network.loop.in_world(network.rng.uniform(0.01, 0.5), self.reset)
        if sent:
            self._in_order(lambda: self._session.receive(sent), extra)

    def close(self) -> None:
        """See `asyncio.Transport`."""
        if not self._closing:
            self._closing = True
            self._in_order(self._session.over)
            self.network.loop.call_soon(self._lost, None)

    def abort(self) -> None:
        """See `asyncio.Transport`."""
        self.close()

    def is_closing(self) -> bool:
        """See `asyncio.Transport`."""
        return self._closing

    def _in_order(self, callback: Callable[[], None], extra: float = 0.0) -> None:
        loop = self.network.loop
        self._out_at = max(self._out_at + 1e-5, loop.time() + self.network.delay(self.life, self.host) + extra)
        loop.in_world(self._out_at - loop.time(), callback)

    def _lost(self, error: Exception | None) -> None:
        if self in self.network.links:
            self.network.links.remove(self)
            self._protocol.connection_lost(error)

    # --- what the server does

    def deliver(self, data: bytes) -> None:
        """An answer."""
        if not self._deaf:
            self._come(lambda: self._protocol.data_received(data) if not self._closing else None)

    def lose_answers(self) -> None:
        """What is answered from now on is lost, and soon the connection is."""
        self._deaf = True
        self.network.trace.fault("redis:lost_answer")
        self.network.loop.in_world(self.network.rng.uniform(0.01, 0.5), self.reset)

    def reset(self) -> None:
        """It is lost."""
        if not self._broken:
            self._broken = True
            self._session.over()
            self._come(self._reset)

    def _reset(self) -> None:
        if not self._closing:
            self._closing = True
            self._lost(ConnectionResetError("connection reset by peer"))

    def _come(self, callback: Callable[[], None]) -> None:
        loop = self.network.loop
        self._in_at = max(self._in_at + 1e-5, loop.time() + self.network.delay(self.life, self.host))
        loop.in_world(self._in_at - loop.time(), self._arrive, callback)

    def _arrive(self, callback: Callable[[], None]) -> None:
        if self.life.alive:
            self.life.context.run(self.life.step, callback)
