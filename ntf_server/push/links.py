"""Connections to push hosts, and requests under way on them: which goes over which, and when one is left for another.

libcurl keeps its connections to itself. So each link has a name of its own that only `CURLOPT_RESOLVE` knows, and
requests go to that name by `CURLOPT_CONNECT_TO`: libcurl then uses one connection for all that goes over the link (two
for a moment, when one ends), and never another link's. TLS and HTTP see the true host. A link that is *left* gets no
more requests: what is under way on it runs out. A proxy must see the true host, so that there a link goes with the
multi handle that it is on.
"""

import contextlib
import email.utils
import itertools
import selectors
import socket
import time
from collections import deque
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import pycurl

from ntf_server.push.exchange import (
    OK,
    REFUSED_BY_PROXY,
    Done,
    Endpoint,
    HttpFailure,
    HttpRequest,
    HttpResponse,
    HttpResult,
)

_ERRORS: Final = 3  # in a row, after which a link is left
_LEAVE_AGAIN: Final = 5.0  # seconds before another is left for its errors: they may be the peer's, not the connection's
_COLD_AFTER: Final = 5.0  # seconds without a request after which the peer may have closed the connection
_MAX_BODY: Final = 16 * 1024  # bytes of an answer; what follows is not awaited
_MAX_HEAD: Final = 16 * 1024  # bytes of headers: libcurl takes 300 KiB, and keeps them until a handle is used again
_READ: Final = 4096  # bytes of an answer taken at once
_SUPPRESS_CONNECT_HEADERS: Final = 265  # CURLOPT_SUPPRESS_CONNECT_HEADERS, which pycurl does not name
_KEPT: Final = 256  # connections that are kept open: libcurl would keep fewer, of what hundreds of origins have
_USER_TIMEOUT: Final = 10_000  # ms that the peer's kernel may leave data unacknowledged (TCP_USER_TIMEOUT)
_USER_AGENT: Final = "ntf-relay"  # of its parts it tells strangers nothing
_SETTLE: Final = 0.02  # seconds after something was read

_names = itertools.count(1)


class Link:
    """One connection. `opened`: one was made; `proven`: it gave an answer, so that the peer's limit of streams is
    known; `replaced`: another one had to be made.
    """

    __slots__ = (
        "connect_to",
        "errors",
        "idle",
        "left",
        "multi",
        "name",
        "opened",
        "proven",
        "replaced",
        "resolve",
        "running",
        "used_at",
    )

    def __init__(self, multi: "Multi", *, direct: bool) -> None:
        self.multi = multi
        self.name = f"{next(_names)}.invalid" if direct else ""  # RFC 6761: no such name is ever resolved
        self.connect_to: list[str] = []
        self.resolve: list[str] = []
        self.running = 0
        self.errors = 0
        self.opened = False
        self.proven = False
        self.replaced = False
        self.left = False
        self.used_at = 0.0
        self.idle: list[Transfer] = []

    def forget(self) -> None:
        """libcurl need not know its name any more, once it is left and nothing is under way on it."""
        if self.resolve and self.left and not self.running:
            self.multi.stale.append(self.connect_to[0].replace("::", "-", 1))

    def is_open(self, now: float) -> bool:
        """Whether what goes over it is likely to need no new connection."""
        return bool(self.running) or (self.opened and not self.replaced and now - self.used_at <= _COLD_AFTER)

    def opens(self) -> None:
        """A connection is being made: what comes next is new to the peer."""
        self.replaced = self.opened
        self.opened = True
        self.proven = False


class Held(NamedTuple):
    """A request that waits for a link. `deadline`: monotonic seconds; `lost`: so often, with its connection."""

    deadline: float
    request: HttpRequest
    done: Done
    lost: int = 0


class Origin:
    """Where requests go: its links, and what waits for one of them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.links: list[Link] = []
        self.held: deque[Held] = deque()
        self.left_at = float("-inf")
        self.addresses: tuple[str, ...] = ()
        parts = urlsplit(endpoint.url)
        self._port = parts.port or 443

    @property
    def quiet(self) -> bool:
        """Nothing is under way."""
        return not self.held and not any(link.running for link in self.links)

    def lead_to(self, addresses: tuple[str, ...]) -> None:
        """Connections from now on are made to these; empty: a proxy makes them."""
        if addresses == self.addresses:
            return
        self.addresses = addresses
        for link in self.links:
            self._name(link)

    def _name(self, link: Link) -> None:
        if link.name:
            addresses = ",".join(f"[{a}]" if ":" in a else a for a in self.addresses)
            link.connect_to = [f"::{link.name}:{self._port}"]
            link.resolve = [f"{link.name}:{self._port}:{addresses}"]  # for good: nobody else could resolve it

    def add(self, link: Link) -> Link:
        """A new link, which is to be used from now on."""
        self._name(link)
        self.links.append(link)
        return link

    def pick(self, now: float) -> Link | None:
        """The link for the next request; None: there is none with room, see `wants_more`.

        Over a link that is not proven goes one request at a time: peers may allow a single stream until they know who
        asks, as Apple's do, and would refuse the others.
        """
        best, cold = None, False
        for link in self.links:
            if link.running:
                if not link.proven:
                    cold = True
                    continue
            elif now - link.used_at > _COLD_AFTER:
                link.proven = False
            if best is None or link.running < best.running:
                best = link
        if best is None or (best.running >= self.endpoint.streams and (cold or self._may_add)):
            return None
        return best

    def room(self, link: Link) -> int:
        """Requests that may go over a link that was picked, without another look."""
        return max(1, self.endpoint.streams - link.running) if link.proven else 1

    @property
    def _may_add(self) -> bool:
        return len(self.links) < (1 if self.endpoint.proxy else self.endpoint.connections)

    def wants_more(self) -> bool:
        """Whether another link should be made."""
        cold = sum(not link.proven for link in self.links)
        return self._may_add and len(self.held) >= cold * self.endpoint.streams

    def answered(self, link: Link, result: HttpResult, now: float) -> bool:
        """Learn of a link from what came over it. Whether the link is to be left."""
        if result is OK:  # as almost all are
            link.proven, link.errors = True, 0
            return False
        if isinstance(result, HttpFailure):
            link.proven = False
            return result.timeout  # silence may be a dead connection: libcurl would go on using it
        link.proven = True
        if not self._is_error(result):
            link.errors = 0
            return False
        link.errors += _ERRORS if self._ends(result) else 1
        if link.errors < _ERRORS or now - self.left_at <= _LEAVE_AGAIN:
            return False
        self.left_at = now
        return True

    def _is_error(self, answer: HttpResponse) -> bool:
        return answer.status >= 500 or (answer.status >= 400 and self._ends(answer))

    def _ends(self, answer: HttpResponse) -> bool:
        return any(words in answer.body for words in self.endpoint.ends)

    def leave(self, link: Link) -> None:
        """Use it no more."""
        link.left = True
        self.links.remove(link)


def _notice_soon(fd: int) -> None:
    """Notice within seconds that nobody is there any more, also while nothing but keep-alives is sent."""
    s = socket.socket(fileno=fd)
    try:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT)
    except OSError:  # it is none of TCP
        pass
    finally:
        s.detach()


class Transfer:
    """A reusable easy handle and what it collects."""

    def __init__(self) -> None:
        self.curl = pycurl.Curl()
        self.request: HttpRequest | None = None
        self.done: Done | None = None
        self.warm = False  # it went over a connection that had given answers
        self.lost = 0  # so often, with its connection
        self.deadline = 0.0
        self.origin: Origin | None = None
        self.link: Link | None = None
        self.spent = False  # of no use for other requests
        self._body = bytearray()
        self._date: float | None = None
        self._endpoint: Endpoint | None = None
        self._resolve: list[str] | None = None

    def prepare(self, request: HttpRequest, done: Done, link: Link) -> None:
        """Set what differs from the last request."""
        self.request = request
        self.done = done
        if self._body:
            self._body = bytearray()
        c = self.curl
        if request.endpoint is not self._endpoint and request.endpoint != self._endpoint:
            self._aim(request.endpoint)
        if link.resolve is not self._resolve and link.name:
            self._resolve = link.resolve
            c.setopt(pycurl.CONNECT_TO, link.connect_to)
            c.setopt(pycurl.RESOLVE, [*link.multi.stale, *link.resolve])
            link.multi.stale.clear()
        if request.dated:
            self.spent = True
            c.setopt(pycurl.HEADERFUNCTION, self._on_header)
        c.setopt(pycurl.URL, request.endpoint.url + request.path)
        if request.headers:
            c.setopt(pycurl.HTTPHEADER, request.headers)
        else:  # an empty list would leave those of the last request
            c.unsetopt(pycurl.HTTPHEADER)
        c.setopt(pycurl.POSTFIELDS, request.body)

    def _aim(self, e: Endpoint) -> None:
        self._endpoint = e
        self._resolve = None
        c = self.curl
        c.reset()
        c.setopt(pycurl.POST, 1)
        c.setopt(pycurl.NOSIGNAL, 1)
        c.setopt(pycurl.PIPEWAIT, 1)
        c.setopt(pycurl.NOPROGRESS, 1)
        c.setopt(pycurl.NOPROXY, "")
        c.setopt(pycurl.USERAGENT, _USER_AGENT)
        c.setopt(pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2)
        c.setopt(pycurl.TCP_KEEPALIVE, 1)
        c.setopt(pycurl.SOCKOPTFUNCTION, self._on_socket)
        c.setopt(pycurl.WRITEFUNCTION, self._on_body)
        version = pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE if e.http2_only else pycurl.CURL_HTTP_VERSION_2TLS
        c.setopt(pycurl.HTTP_VERSION, version)
        c.setopt(pycurl.CAINFO, e.ca_file)
        c.setopt(pycurl.PROXY_CAINFO, e.ca_file)
        c.setopt(pycurl.CONNECTTIMEOUT_MS, round(e.connect_timeout * 1000))
        c.setopt(pycurl.TIMEOUT_MS, round(e.timeout * 1000))
        c.setopt(pycurl.PROXY, e.proxy)  # also the empty one: not what the environment happens to say
        c.setopt(_SUPPRESS_CONNECT_HEADERS, 1)  # they are not the peer's
        if e.public_only:  # who answers there is a stranger
            c.setopt(pycurl.BUFFERSIZE, _READ)
        if e.client_cert:
            c.setopt(pycurl.SSLCERT_BLOB, e.client_cert)
            c.setopt(pycurl.SSLKEY_BLOB, e.client_key)
            c.setopt(pycurl.KEYPASSWD, "")  # or OpenSSL would ask on the terminal

    def _on_socket(self, fd: int, _purpose: int) -> int:
        _notice_soon(fd)
        if self.link is not None:
            if self.link.opened:
                self.link.multi.renewed[self.link] = self
            self.link.opens()
        return pycurl.SOCKOPT_OK

    def _on_body(self, data: bytes) -> int | None:
        self._body += data[: _MAX_BODY - len(self._body)]
        return None if len(self._body) < _MAX_BODY else -1

    def _on_header(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name.lower() == b"date":
            with contextlib.suppress(ValueError, OverflowError):
                self._date = email.utils.parsedate_to_datetime(value.decode("latin-1").strip()).timestamp()

    def close(self) -> None:
        """Free the handle: it calls back here, and so, in a cycle, would wait for the garbage collector."""
        self.curl.close()

    def is_too_large(self) -> bool:
        """Whether its headers, so far, are more than any honest peer's."""
        return bool(self.curl.getinfo(pycurl.HEADER_SIZE) > _MAX_HEAD)

    def result(self, code: int) -> HttpResult:
        """What came of it; an error after a whole status line and body counts as the answer that it is."""
        c = self.curl
        if code == pycurl.E_WRITE_ERROR and len(self._body) == _MAX_BODY:  # that is enough of it
            self.spent, code = True, 0
        if code or self.is_too_large():
            self.spent = True
        if code and c.getinfo(pycurl.HTTP_CONNECTCODE) // 100 not in {0, 2}:  # libcurl has several for it
            code = REFUSED_BY_PROXY
        if code:
            timeout = code == pycurl.E_OPERATION_TIMEDOUT
            connecting = timeout and c.getinfo(pycurl.NUM_CONNECTS) > 0 and c.getinfo(pycurl.APPCONNECT_TIME) == 0
            return HttpFailure(code, timeout, connected=not connecting)
        status = c.getinfo(pycurl.RESPONSE_CODE)
        if status == OK.status and not self._body:
            return OK
        return HttpResponse(status, bytes(self._body), float(c.getinfo(pycurl.RETRY_AFTER)) or None, self._date)


class Multi:
    """A multi handle with its connections.

    libcurl reads answers of several requests at once, and goes on with the others when it is called the next time. It
    should say so by its timer, and up to 8.23 does not always: an answer that it has would wait for the next traffic,
    or for its deadline. So when nothing came for a moment (`settle_at`), it is made to look.
    """

    def __init__(self, selector: selectors.BaseSelector, connections: int, streams: int) -> None:
        self.running = 0
        self.links = 0  # that are not left
        self.deadline: float | None = None
        self.settle_at: float | None = None
        self.stale: list[str] = []  # names of links, to be forgotten with the next that is told
        self.renewed: dict[Link, Transfer] = {}  # links that another connection is being made for, and by whom
        self._selector = selector
        self.curl = pycurl.CurlMulti()
        m = self.curl
        m.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        m.setopt(pycurl.M_MAX_HOST_CONNECTIONS, connections)
        m.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, streams)
        m.setopt(pycurl.M_MAXCONNECTS, _KEPT)
        m.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        m.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)

    def _on_socket(self, what: int, fd: int, _multi: Any, _data: Any) -> None:
        known = fd in self._selector.get_map()
        if what == pycurl.POLL_REMOVE:
            if known:
                self._selector.unregister(fd)
            return
        events = 0
        if what in {pycurl.POLL_IN, pycurl.POLL_INOUT}:
            events |= selectors.EVENT_READ
        if what in {pycurl.POLL_OUT, pycurl.POLL_INOUT}:
            events |= selectors.EVENT_WRITE
        if known:
            self._selector.modify(fd, events, self)
        else:
            self._selector.register(fd, events, self)

    def _on_timer(self, milliseconds: int) -> None:
        self.deadline = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def act(self, fd: int, mask: int) -> None:
        """Let libcurl do what a socket or its timer asks for."""
        flags = 0
        if mask & selectors.EVENT_READ:
            flags |= pycurl.CSELECT_IN
        if mask & selectors.EVENT_WRITE:
            flags |= pycurl.CSELECT_OUT
        self.curl.socket_action(fd, flags)
        self._settle_later()

    def _settle_later(self) -> None:
        self.settle_at = time.monotonic() + _SETTLE

    def expire(self, now: float) -> None:
        """Run the timer if its time has come; make it look for what it has read."""
        is_quiet = self.settle_at is not None and now >= self.settle_at
        is_due = self.deadline is not None and now >= self.deadline
        if is_quiet:
            self.settle_at = None
            self.curl.fdset()  # for which it looks at what each transfer has
        if is_due:
            self.deadline = None
        if is_quiet or is_due:
            self.curl.socket_action(pycurl.SOCKET_TIMEOUT, 0)

    def finished(self) -> list[tuple[Any, int]]:
        """(easy handle, error code) of transfers that are over."""
        out: list[tuple[Any, int]] = []
        more = 1
        while more:
            more, good, bad = self.curl.info_read()
            out += [(curl, 0) for curl in good]
            out += [(curl, code) for curl, code, _ in bad]
        if out:
            self._settle_later()
        return out
