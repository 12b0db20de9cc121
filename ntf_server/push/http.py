"""One HTTP engine for all push providers: libcurl's multi interface, its loop in a thread of its own.

Requests are multiplexed over few HTTP/2 connections (RFC 9113) with prior knowledge; every request has a deadline.
"""

import asyncio
import contextlib
import logging
import os
import queue
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pycurl

from smp_bridge.network import is_public_ip

log = logging.getLogger(__name__)

_MAX_RESPONSE: Final = 64 * 1024
_STARTS: Final = 128  # requests begun before answers are looked at again: their handles are warm, and used at once
_CA_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/cert.pem",  # macOS, BSD
)


def default_ca_file() -> str | None:
    """The system's CA bundle, which libcurl of the wheel does not know."""
    known = (ssl.get_default_verify_paths().cafile, *_CA_FILES)
    return next((f for f in known if f and Path(f).is_file()), None)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go and how.

    `ca_file`: PEM bundle to check the peer with; times in seconds; `http2_only`: speak HTTP/2 whatever ALPN says, else
    what ALPN says; `proxy`: `http://`, `https://`, `socks5://` or `socks5h://` URL, empty for none; `public_only`:
    refuse to connect to addresses that are not on the public internet, looked at after the resolution (a proxy
    resolves and connects by itself; a connection that the engine has open already is used); `client_cert`,
    `client_key`: PEM files to show to the peer.
    """

    url: str
    ca_file: str
    connect_timeout: float = 10.0
    timeout: float = 30.0
    http2_only: bool = True
    proxy: str = field(default="", repr=False)
    public_only: bool = False
    client_cert: str = ""
    client_key: str = ""


@dataclass(slots=True)  # as quick to make as can be: see store.base
class HttpRequest:
    """A POST; `path` is appended to the endpoint's URL, and is secret, since it may hold a device token."""

    endpoint: Endpoint
    path: str = field(repr=False)
    headers: Sequence[str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer. `retry_after`: seconds that `Retry-After` asks for (RFC 9110, section 10.2.3), None for none or 0.

    There are no other headers: libcurl would call for each, and wait for Python's lock in the middle of its work.
    """

    status: int
    body: bytes = field(default=b"", repr=False)
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class HttpFailure:
    """No answer: libcurl's error number and its name. `timeout`: the deadline passed; `connected`: on a connection."""

    code: int
    timeout: bool
    connected: bool = True

    @property
    def unreachable(self) -> bool:
        """No connection to the peer could be made at all."""
        return self.code in _UNREACHABLE or (self.timeout and not self.connected)

    def __str__(self) -> str:
        return _NAMES.get(self.code, f"libcurl error {self.code}")


_PROXY: Final = 97  # CURLE_PROXY, which pycurl does not name
_SUPPRESS_CONNECT_HEADERS: Final = 265  # CURLOPT_SUPPRESS_CONNECT_HEADERS, likewise

_NAMES: Final = {
    _PROXY: "refused by the proxy",
    pycurl.E_COULDNT_RESOLVE_PROXY: "proxy name not resolved",
    pycurl.E_SSL_CERTPROBLEM: "client certificate not usable",
    pycurl.E_BAD_FUNCTION_ARGUMENT: "client certificate not usable",  # its key is what is bad
    pycurl.E_URL_MALFORMAT: "URL or header not valid",
    pycurl.E_COULDNT_RESOLVE_HOST: "host name not resolved",
    pycurl.E_COULDNT_CONNECT: "connection refused",
    pycurl.E_OPERATION_TIMEDOUT: "timed out",
    pycurl.E_SSL_CONNECT_ERROR: "TLS handshake failed",
    pycurl.E_PEER_FAILED_VERIFICATION: "certificate not trusted",
    pycurl.E_SSL_CACERT_BADFILE: "CA file not readable",
    pycurl.E_HTTP2: "HTTP/2 error",
    92: "HTTP/2 stream reset",  # CURLE_HTTP2_STREAM, which pycurl does not name
    pycurl.E_RECV_ERROR: "connection lost while receiving",
    pycurl.E_SEND_ERROR: "connection lost while sending",
    pycurl.E_GOT_NOTHING: "connection closed without an answer",
    pycurl.E_PARTIAL_FILE: "answer cut short",
}

_UNREACHABLE: Final = frozenset(
    [
        _PROXY,
        pycurl.E_COULDNT_RESOLVE_PROXY,
        pycurl.E_SSL_CERTPROBLEM,
        pycurl.E_BAD_FUNCTION_ARGUMENT,
        pycurl.E_COULDNT_RESOLVE_HOST,
        pycurl.E_COULDNT_CONNECT,
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_PEER_FAILED_VERIFICATION,
        pycurl.E_SSL_CACERT_BADFILE,
    ]
)

HttpResult = HttpResponse | HttpFailure
OK: Final = HttpResponse(200)  # the one answer of this content, so that it is told by `is`
Done = Callable[[HttpResult], None]


class _Socket:
    """What libcurl's callback gives back: pycurl duplicates the descriptor, so this one goes when it is forgotten."""

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        self._fd = socket.socket(family, kind, protocol).detach()

    def fileno(self) -> int:
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)


def _open_public(_purpose: int, address: Any) -> _Socket | int:
    """The last look at where a name leads: nothing is resolved after it."""
    family, kind, protocol, peer = address
    try:
        return _Socket(family, kind, protocol) if is_public_ip(str(peer[0])) else pycurl.SOCKET_BAD
    except OSError:  # files have run out
        return pycurl.SOCKET_BAD


class _Transfer:
    """A reusable easy handle and what it collects."""

    def __init__(self) -> None:
        self.curl = pycurl.Curl()
        self.done: Done | None = None
        self.generation: _Generation | None = None
        self._body = bytearray()
        self._endpoint: Endpoint | None = None

    def prepare(self, request: HttpRequest, done: Done) -> None:
        """Set what differs from the last request."""
        self.done = done
        if self._body:
            self._body = bytearray()
        c = self.curl
        if request.endpoint is not self._endpoint and request.endpoint != self._endpoint:
            self._aim(request.endpoint)
        c.setopt(pycurl.URL, request.endpoint.url + request.path)
        if request.headers:
            c.setopt(pycurl.HTTPHEADER, request.headers)
        else:  # an empty list would leave those of the last request
            c.unsetopt(pycurl.HTTPHEADER)
        c.setopt(pycurl.POSTFIELDS, request.body)

    def _aim(self, e: Endpoint) -> None:
        self._endpoint = e
        c = self.curl
        c.reset()
        c.setopt(pycurl.POST, 1)
        c.setopt(pycurl.NOSIGNAL, 1)
        c.setopt(pycurl.PIPEWAIT, 1)
        c.setopt(pycurl.NOPROGRESS, 1)
        c.setopt(pycurl.NOPROXY, "")
        c.setopt(pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2)
        c.setopt(pycurl.TCP_KEEPALIVE, 1)
        c.setopt(pycurl.WRITEFUNCTION, self._on_body)
        version = pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE if e.http2_only else pycurl.CURL_HTTP_VERSION_2TLS
        c.setopt(pycurl.HTTP_VERSION, version)
        c.setopt(pycurl.CAINFO, e.ca_file)
        c.setopt(pycurl.PROXY_CAINFO, e.ca_file)
        c.setopt(pycurl.CONNECTTIMEOUT_MS, round(e.connect_timeout * 1000))
        c.setopt(pycurl.TIMEOUT_MS, round(e.timeout * 1000))
        c.setopt(pycurl.PROXY, e.proxy)  # also the empty one: not what the environment happens to say
        c.setopt(_SUPPRESS_CONNECT_HEADERS, 1)  # they are not the peer's
        if e.client_cert:
            c.setopt(pycurl.SSLCERT, e.client_cert)
            c.setopt(pycurl.SSLKEY, e.client_key)
            c.setopt(pycurl.KEYPASSWD, "")  # or OpenSSL would ask on the terminal
        if e.public_only and not e.proxy:
            c.setopt(pycurl.OPENSOCKETFUNCTION, _open_public)

    def _on_body(self, data: bytes) -> int | None:
        self._body += data
        return None if len(self._body) <= _MAX_RESPONSE else -1

    def result(self, code: int) -> HttpResult:
        """What came of it; an error after a whole status line and body counts as the answer that it is."""
        if code and self.curl.getinfo(pycurl.HTTP_CONNECTCODE) // 100 not in {0, 2}:  # libcurl has several for it
            code = _PROXY
        if code:
            timeout = code == pycurl.E_OPERATION_TIMEDOUT
            c = self.curl
            connecting = timeout and c.getinfo(pycurl.NUM_CONNECTS) > 0 and c.getinfo(pycurl.APPCONNECT_TIME) == 0
            return HttpFailure(code, timeout, connected=not connecting)
        status = self.curl.getinfo(pycurl.RESPONSE_CODE)
        if status == OK.status and not self._body:
            return OK
        return HttpResponse(status, bytes(self._body), float(self.curl.getinfo(pycurl.RETRY_AFTER)) or None)


class _Generation:
    """A multi handle with its connections. One that went silent is replaced; its transfers run out on it."""

    def __init__(self, selector: selectors.BaseSelector, connections: int, streams: int) -> None:
        self.running = 0
        self.deadline: float | None = None
        self._selector = selector
        self.multi = pycurl.CurlMulti()
        m = self.multi
        m.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        m.setopt(pycurl.M_MAX_HOST_CONNECTIONS, connections)
        m.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, streams)
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
        self.multi.socket_action(fd, flags)

    def expire(self, now: float) -> None:
        """Run the timer if its time has come."""
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)

    def finished(self) -> list[tuple[Any, int]]:
        """(easy handle, error code) of transfers that are over."""
        out: list[tuple[Any, int]] = []
        more = 1
        while more:
            more, good, bad = self.multi.info_read()
            out += [(curl, 0) for curl in good]
            out += [(curl, code) for curl, code, _ in bad]
        return out


class HttpEngine:
    """Sends requests from an asyncio loop. `start` needs a running loop; `close` ends the thread."""

    def __init__(self, *, connections: int = 2, streams: int = 1000) -> None:
        self._limits = connections, streams
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Sequence[tuple[HttpRequest, Done]]] = queue.SimpleQueue()
        self._waiting: deque[tuple[HttpRequest, Done]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, None)
        self._closing = False
        self._idle: list[_Transfer] = []
        self._busy: dict[Any, _Transfer] = {}
        self._generations: list[_Generation] = []
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)
        self._thread.start()

    def send(self, requests: Sequence[tuple[HttpRequest, Done]]) -> None:
        """Start requests; each `done` is called once, in the loop, with an HttpResponse or an HttpFailure.

        After `close` nothing is started, and `done` is not called.
        """
        if self._closing:  # the descriptor may be another's by now
            return
        self._queue.put(requests)
        os.eventfd_write(self._wake_fd, 1)

    async def close(self) -> None:
        """Give up what is in flight (its `done` is not called) and close all connections."""
        if not self._closing:
            self._closing = True
            os.eventfd_write(self._wake_fd, 1)
        await asyncio.to_thread(self._thread.join)

    # --- the thread

    def _run(self) -> None:
        try:
            self._generations.append(_Generation(self._selector, *self._limits))
            while not self._closing:
                try:
                    self._turn()
                except Exception:
                    log.exception("the push engine failed, and begins anew")
                    self._begin_anew()
        finally:
            for curl in list(self._busy):
                self._release(curl)
            for generation in self._generations:
                generation.multi.close()
            self._selector.close()
            os.close(self._wake_fd)

    def _begin_anew(self) -> None:
        """Everything in flight fails, and will be tried again."""
        failed = [(t.done, HttpFailure(pycurl.E_FAILED_INIT, timeout=False)) for t in self._busy.values() if t.done]
        for curl in list(self._busy):
            self._release(curl)
        for generation in self._generations:
            generation.multi.close()
        self._idle.clear()
        self._generations = [_Generation(self._selector, *self._limits)]
        self._deliver(list(failed))

    def _deliver(self, results: Sequence[tuple[Done, HttpResult]]) -> None:
        if results:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(_report, results)

    def _turn(self) -> None:
        for key, mask in self._selector.select(self._wait()):
            if key.data is None:
                os.eventfd_read(self._wake_fd)
            else:
                key.data.act(key.fd, mask)
        results = self._start_queued()
        now = time.monotonic()
        for generation in list(self._generations):
            generation.expire(now)
            results += self._collect(generation)
        self._deliver(results)

    def _wait(self) -> float | None:
        if self._waiting:
            return 0.0
        deadlines = [g.deadline for g in self._generations if g.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _start_queued(self) -> list[tuple[Done, HttpResult]]:
        """Gives those that libcurl refused at once."""
        refused: list[tuple[Done, HttpResult]] = []
        while not self._queue.empty():
            self._waiting += self._queue.get()
        for _ in range(min(_STARTS, len(self._waiting))):
            request, done = self._waiting.popleft()
            failure = self._start(request, done)
            if failure is not None:
                refused.append((done, failure))
        return refused

    def _start(self, request: HttpRequest, done: Done) -> HttpFailure | None:
        generation = self._generations[-1]
        transfer = self._idle.pop() if self._idle else _Transfer()
        try:
            transfer.prepare(request, done)
            generation.multi.add_handle(transfer.curl)
        except pycurl.error as e:
            return HttpFailure(int(e.args[0]), timeout=False)
        except ValueError:  # not ASCII, or a null byte
            return HttpFailure(pycurl.E_URL_MALFORMAT, timeout=False)
        transfer.generation = generation
        self._busy[transfer.curl] = transfer
        generation.running += 1
        return None

    def _collect(self, generation: _Generation) -> list[tuple[Done, HttpResult]]:
        results: list[tuple[Done, HttpResult]] = []
        for curl, code in generation.finished():
            transfer = self._busy[curl]
            assert transfer.done is not None
            result = transfer.result(code)
            results.append((transfer.done, result))
            self._release(curl)
            self._idle.append(transfer)
            if isinstance(result, HttpFailure) and result.timeout and generation is self._generations[-1]:
                # Silence may be a dead connection: libcurl would go on using it.
                self._generations.append(_Generation(self._selector, *self._limits))
        if generation.running == 0 and generation is not self._generations[-1]:
            generation.multi.close()
            self._generations.remove(generation)
        return results

    def _release(self, curl: Any) -> None:
        transfer = self._busy.pop(curl)
        transfer.done = None
        assert transfer.generation is not None
        transfer.generation.running -= 1
        transfer.generation.multi.remove_handle(curl)
        transfer.generation = None


def _report(results: Sequence[tuple[Done, HttpResult]]) -> None:
    for done, result in results:
        try:
            done(result)
        except Exception:
            log.exception("the result of a push was not taken")
