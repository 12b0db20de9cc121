"""The push engine and the way to the hosts, without sockets: what `ntf_server.push.http` is to its callers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pycurl

from ntf_server.push.exchange import OK, Done, HttpFailure, HttpRequest, HttpResponse, HttpResult
from ntf_server.push.links import Link, Origin
from sim.loop import VirtualLoop, current_life
from sim.trace import Trace

_NO_MULTI: Final[Any] = None  # libcurl's, which is not here


@dataclass(frozen=True)
class Request:
    """What arrives at a host. `connection`: the number of its connection; `life`: of which process."""

    path: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    connection: int
    timeout: float
    life: str
    dated: bool


@dataclass(frozen=True)
class Sent:
    """An answer that arrives."""

    status: int
    body: str
    retry_after: float | None = None


@dataclass(frozen=True)
class Lost:
    """The connection breaks before the answer."""


@dataclass(frozen=True)
class TimedOut:
    """No answer while anybody waits."""


@dataclass(frozen=True)
class Unreachable:
    """No connection."""


Answer = Sent | Lost | TimedOut | Unreachable


class Host(Protocol):
    """Who answers."""

    def receive(self, request: Request) -> tuple[float, Answer]:
        """What becomes of a request, and after how many seconds."""
        ...

    def date(self) -> float:
        """Its clock, Unix seconds."""
        ...

    def way(self) -> float:
        """Seconds that a request is on its way."""
        ...


class Internet:
    """All hosts, by origin, and how many connections there have been."""

    def __init__(self, loop: VirtualLoop, trace: Trace) -> None:
        self.loop = loop
        self.trace = trace
        self.hosts: dict[str, Host] = {}
        self.connections = 0
        self.requests = 0
        self.on_start: Callable[[Host, Request], None] = lambda _host, _request: None
        self.on_end: Callable[[Host, Request], None] = lambda _host, _request: None


class SimEngine:
    """In a relay's place for `HttpEngine`: the same `send`, the same rules (`links`) for which request goes over which
    connection, and when one is left for another.
    """

    def __init__(self, internet: Internet) -> None:
        self._internet = internet
        self._life = current_life()
        self._closing = False
        self._origins: dict[tuple[str, str], Origin] = {}
        self._numbers: dict[Link, int] = {}

    def send(self, requests: Sequence[tuple[HttpRequest, Done]]) -> None:
        """See `HttpEngine`."""
        if self._closing:
            return
        for request, done in requests:
            e = request.endpoint
            origin = self._origins.setdefault((e.url, e.ca_file), Origin(e))
            link = None if origin.held else self._link(origin)
            if link is None:
                origin.held.append((self._now() + e.timeout, request, done))
                self._go_on(origin)
            else:
                self._start(origin, link, request, done)

    async def close(self) -> None:
        """See `HttpEngine`."""
        self._closing = True

    def _now(self) -> float:
        return self._internet.loop.time()

    def _link(self, origin: Origin) -> Link | None:
        link = origin.pick(self._now())
        if link is None and origin.wants_more():
            link = origin.add(Link(_NO_MULTI, direct=True))
            self._internet.connections += 1
            self._numbers[link] = self._internet.connections
        return link

    def _start(self, origin: Origin, link: Link, request: HttpRequest, done: Done) -> None:
        net, endpoint = self._internet, request.endpoint
        where, slash, base = endpoint.url.partition("://")[2].partition("/")
        host = net.hosts["https://" + where]
        headers = dict(h.split(": ", 1) for h in request.headers)
        life = self._life.name if self._life else ""
        path = slash + base + request.path
        arriving = Request(path, headers, request.body, self._numbers[link], endpoint.timeout, life, request.dated)
        net.requests += 1
        net.on_start(host, arriving)
        link.running += 1
        # On its way it is the world's: it arrives even if the process dies meanwhile.
        net.loop.in_world(host.way(), self._arrive, host, arriving, origin, link, done)

    def _arrive(self, host: Host, request: Request, origin: Origin, link: Link, done: Done) -> None:
        delay, answer = host.receive(request)
        self._internet.loop.in_world(delay, self._answered, host, request, answer, origin, link, done)

    def _answered(  # noqa: PLR0917
        self, host: Host, request: Request, answer: Answer, origin: Origin, link: Link, done: Done
    ) -> None:
        result = _result(answer, host.date() if request.dated else None)
        self._internet.on_end(host, request)
        if self._life is None or not self._life.alive or self._closing:
            return
        link.running -= 1
        link.used_at = self._now()
        if not link.left and origin.answered(link, result, self._now()):
            origin.leave(link)
        self._life.context.run(self._life.step, done, result)
        lost = isinstance(result, HttpFailure) and (result.unreachable or result.timeout)
        if lost and not any(other.running or other.proven for other in origin.links):
            held = [done for _, _, done in origin.held]
            origin.held.clear()
            for waiting in held:
                self._life.context.run(self._life.step, waiting, result)
        self._go_on(origin)

    def _go_on(self, origin: Origin) -> None:
        while origin.held and (link := self._link(origin)) is not None:
            deadline, request, done = origin.held.popleft()
            if deadline >= self._now():
                self._start(origin, link, request, done)
            elif self._life is not None:
                self._life.context.run(self._life.step, done, HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True))


def _result(answer: Answer, date: float | None) -> HttpResult:
    match answer:
        case Sent(200, ""):
            return OK
        case Sent(status, body, retry_after):
            return HttpResponse(status, body.encode(), retry_after, date)
        case Lost():
            return HttpFailure(pycurl.E_RECV_ERROR, timeout=False)
        case TimedOut():
            return HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True)
    return HttpFailure(pycurl.E_COULDNT_CONNECT, timeout=False)
