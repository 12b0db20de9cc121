"""What the connections of a mock push service share: options, counters, and what it answers."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol, Self, TypedDict, Unpack

from h2.events import RequestReceived

from ntf_server.testing.faults import Answer, Fault, GoAway

DEFAULT_WINDOW = 65_535  # RFC 9113 section 6.9.2


@dataclass(frozen=True, slots=True)
class Request:
    """A request: header names in lower case without pseudo-headers, repeated ones kept."""

    method: str
    path: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    connection: int
    stream_id: int
    body: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, event: RequestReceived, connection: int) -> Self:
        """Make a request of a header block; h2 has checked that no pseudo-header is repeated."""
        pairs = [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in event.headers]
        pseudo = dict(pair for pair in pairs if pair[0].startswith(":"))
        return cls(
            method=pseudo.get(":method", ""),
            path=pseudo.get(":path", ""),
            headers=tuple(pair for pair in pairs if not pair[0].startswith(":")),
            connection=connection,
            stream_id=event.stream_id,
        )

    def fields(self) -> dict[str, str]:
        """Return the headers by name, repeated ones joined with a comma (RFC 9110 section 5.3)."""
        joined: dict[str, str] = {}
        for name, value in self.headers:
            joined[name] = f"{joined[name]}, {value}" if name in joined else value
        return joined


@dataclass(slots=True)
class Counters:
    """What a server has seen, as numbers of connections and streams; `max_` is the most at one time."""

    opened: int = 0
    open: int = 0
    requests: int = 0
    streams: int = 0
    max_streams: int = 0
    max_streams_per_connection: int = 0
    refused: int = 0


class Options(TypedDict, total=False):
    """Options of a server.

    host, port: where to listen: 127.0.0.1, and 0 for a port that the system chooses.
    alpn: negotiate ALPN `h2`; if not, speak HTTP/2 with prior knowledge. Default True.
    require_alpn: with `alpn`, drop connections that did not negotiate it. Default True.
    http1: with `alpn`, offer HTTP/1.1 too, and speak it to peers that negotiate nothing. Default False for APNs.
    streams: SETTINGS_MAX_CONCURRENT_STREAMS, 1000; first_streams: its value until the first answer.
    window, connection_window: receive windows in bytes, 65,535 each (the latter cannot be less).
    latency: seconds before each answer, 0; goaway_after: requests per connection until GOAWAY, no limit.
    max_body: bytes of a body beyond which it is answered without waiting for its end, 65,536.
    handshake_timeout: seconds for TLS, 30.
    linger: seconds after GOAWAY and the last answer that the peer has to close the connection first, 1.
    """

    host: str
    port: int
    alpn: bool
    require_alpn: bool
    http1: bool
    streams: int
    first_streams: int | None
    window: int
    connection_window: int
    latency: float
    goaway_after: int | None
    max_body: int
    handshake_timeout: float
    linger: float


class Connection(Protocol):
    """What a server does to its connections."""

    def cut(self) -> None:
        """Abort it, without a TLS close."""

    def hold(self, on: bool) -> None:
        """Read nothing more and answer nothing, or go on."""

    def go_away(self, fault: GoAway) -> None:
        """Announce its end."""


class Endpoint(ABC):
    """What the connections of a server share: its options, its counters, and what it answers.

    `latency` and `goaway_after` may be changed at any time, the other options before the first connection.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        self.host = options.get("host", "127.0.0.1")
        self.port = options.get("port", 0)
        self.alpn = options.get("alpn", True)
        self.http1 = self.alpn and options.get("http1", False)
        self.require_alpn = self.alpn and options.get("require_alpn", True)
        self.streams = options.get("streams", 1000)
        self.first_streams = options.get("first_streams") or self.streams
        self.window = options.get("window", DEFAULT_WINDOW)
        self.connection_window = options.get("connection_window", DEFAULT_WINDOW)
        self.latency = options.get("latency", 0.0)
        self.goaway_after = options.get("goaway_after")
        self.max_body = options.get("max_body", 65_536)
        self.handshake_timeout = options.get("handshake_timeout", 30.0)
        self.linger = options.get("linger", 1.0)
        self.held = False
        self.counters = Counters()
        self.connections: set[Connection] = set()
        self.idle = asyncio.Event()
        self.idle.set()

    @abstractmethod
    def draw(self, request: Request) -> Fault | None:
        """Return the fault for a request whose headers have come, but not its body; None for none."""

    def draw_whole(self, request: Request) -> Fault | None:
        """Return the fault for a request that `draw` had none for, now that its body has come too."""
        return None

    @abstractmethod
    def respond(self, request: Request, scripted: Answer | None) -> Answer:
        """Let a whole request take effect and return its answer; `scripted` is the drawn one, if any."""
