"""The thread of the HTTP engine: which request goes when and over which link, and what came of it."""

import contextlib
import itertools
import logging
import math
import os
import queue
import select
import selectors
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import pycurl

from ntf_server.push.exchange import LOST, TOO_LARGE, Done, Endpoint, HttpFailure, HttpRequest, HttpResult
from ntf_server.push.links import Held, Link, Multi, Origin, Transfer

log = logging.getLogger(__name__)

_GATHER: Final = 10  # milliseconds that answers wait for each other
_STARTS: Final = 128  # requests begun before answers are looked at again: their handles are warm, and used at once
_CONNECTS: Final = 500  # a second, to where strangers want them to lead: a TLS handshake takes up to 1 ms
_AT_ONCE: Final = 8  # of these, after a pause
_HOLD: Final = 1.5  # seconds that requests wait for a first answer; the peer has told its limit of streams by then
_TRIES: Final = 3  # of a request that was lost with a warm connection, and is lost with the next ones too
_LOOK: Final = 0.005  # seconds, at least, between two looks at how long answers to strangers' pushes have become
_LOOKING: Final = 0.02  # of the thread's time, at most
_MAX_ORIGINS: Final = 4096  # whose links are kept
_HOST_CONNECTIONS: Final = 2  # of a link: one that ends, and its successor
_PROXIED_CONNECTIONS: Final = 4  # of an origin behind a proxy

Results: TypeAlias = list[tuple[Done, HttpResult]]


class Batch(NamedTuple):
    """Requests to one endpoint, and the addresses to connect to (none: a proxy connects)."""

    endpoint: Endpoint
    addresses: tuple[str, ...]
    requests: Sequence[tuple[HttpRequest, Done]]


class Worker:
    """What the thread runs: `run`, until `stop`. `deliver` is called in the thread with what came of requests."""

    def __init__(self, deliver: Callable[[Results], None], streams: int) -> None:
        self._deliver = deliver
        self._streams = streams  # also how many handles are kept
        self._queue: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self._waiting: deque[tuple[Origin, deque[tuple[HttpRequest, Done]]]] = deque()
        self._released: dict[Origin, None] = {}  # what they hold may go on
        self._holding: dict[Origin, float] = {}  # until when they hold it, monotonic; in the order of these times
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, None)
        self._wake = select.poll()
        self._wake.register(self._wake_fd, select.POLLIN)
        self._closing = False
        self._busy: dict[Any, Transfer] = {}
        self._strangers: dict[Any, Transfer] = {}  # of these, what goes where strangers want it to go
        self._paced: dict[Origin, None] = {}  # of these, who have requests and need a connection
        self._connect_at = 0.0  # when the next connection to one of these may be begun, monotonic
        self._ahead: set[Origin] = set()  # whose turn it is
        self._look_at = 0.0
        self._is_look_due = False
        self._idle = 0
        self._origins: OrderedDict[tuple[object, ...], Origin] = OrderedDict()
        self._multis: list[Multi] = []
        self._current: dict[str, Multi] = {}  # by proxy
        self._results: Results = []
        self._now = 0.0

    # --- for other threads

    def put(self, batches: Sequence[Batch]) -> None:
        """Start these."""
        for batch in batches:
            self._queue.put(batch)
        os.eventfd_write(self._wake_fd, 1)

    def stop(self) -> None:
        """End the thread; what is under way is given up."""
        self._closing = True
        os.eventfd_write(self._wake_fd, 1)

    def discard(self) -> None:
        """When the thread has ended: not before, or its descriptor may be another's when it is woken."""
        self._selector.close()
        os.close(self._wake_fd)

    # --- the thread

    def run(self) -> None:
        """Until `stop`. What fails inside is logged, and everything begins anew."""
        try:
            while not self._closing:
                try:
                    self._turn()
                except Exception:
                    log.exception("the push engine failed, and begins anew")
                    self._begin_anew()
                finally:
                    results, self._results = self._results, []
                    if results:
                        self._deliver(results)
        finally:
            self._drop_all()

    def _begin_anew(self) -> None:
        """Everything under way fails, and will be tried again."""
        failure = HttpFailure(pycurl.E_FAILED_INIT, timeout=False)
        self._results += [(t.done, failure) for t in self._busy.values() if t.done]
        for origin in self._origins.values():
            self._results += [(held.done, failure) for held in origin.held]
        waiting = [(origin.endpoint, origin.addresses, requests) for origin, requests in self._waiting]
        self._drop_all()
        self._waiting = deque((self._origin(e, addresses), requests) for e, addresses, requests in waiting)

    def _drop_all(self) -> None:
        for curl, transfer in self._busy.items():
            with contextlib.suppress(pycurl.error):
                if transfer.link is not None:
                    transfer.link.multi.curl.remove_handle(curl)
        for multi in self._multis:
            with contextlib.suppress(pycurl.error):
                multi.curl.close()
        self._busy.clear()
        self._strangers.clear()
        self._origins.clear()
        self._released.clear()
        self._holding.clear()
        self._paced.clear()
        self._ahead.clear()
        self._multis.clear()
        self._current.clear()
        self._idle = 0

    def _select(self) -> list[tuple[selectors.SelectorKey, int]]:
        """What is to be done next. Answers alone wait a little for others, since a turn costs as much as some pushes.

        Nobody waits for them: what they free is used at the next turn. Not so on a new connection, whose handshake is
        awaited, nor if something is to be sent.
        """
        events = self._selector.select(self._wait())
        reads = all(mask == selectors.EVENT_READ and key.data is not None for key, mask in events)
        if events and reads and not (self._holding or self._waiting or self._released) and len(self._busy) > 1:
            due = min(self._deadlines(), default=math.inf)
            if due > time.monotonic() + _GATHER / 1000:  # else libcurl has something to send
                self._wake.poll(_GATHER)
                events = self._selector.select(0)
        return events

    def _turn(self) -> None:
        for key, mask in self._select():
            if key.data is None:
                os.eventfd_read(self._wake_fd)
            else:
                key.data.act(key.fd, mask)
                self._is_look_due = True
        self._now = time.monotonic()
        if self._is_look_due and self._now >= self._look_at:
            self._cut()
        self._take_queued()
        self._hold_no_longer()
        self._pace()
        self._start_some()
        for multi in list(self._multis):
            multi.expire(self._now)
            if multi.renewed:
                self._call_back(multi)
            for curl, code in multi.finished():
                self._finish(self._busy[curl], code)
            if not multi.running and not multi.links:
                self._forget(multi)

    def _wait(self) -> float | None:
        if self._waiting or self._released:
            return 0.0
        deadlines = self._deadlines()
        deadlines += [m.settle_at for m in self._multis if m.settle_at is not None and m.running]
        deadlines += list(itertools.islice(self._holding.values(), 1))
        if self._paced:
            deadlines.append(self._connect_at)
        if self._is_look_due and self._strangers:
            deadlines.append(self._look_at)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _deadlines(self) -> list[float]:
        """When libcurl wants to be called, monotonic."""
        return [m.deadline for m in self._multis if m.deadline is not None]

    # --- starting

    def _take_queued(self) -> None:
        while not self._queue.empty():
            endpoint, addresses, requests = self._queue.get()
            self._waiting.append((self._origin(endpoint, addresses), deque(requests)))

    def _origin(self, e: Endpoint, addresses: tuple[str, ...]) -> Origin:
        key = e.url, e.proxy, e.ca_file, e.client_cert, e.client_key, e.http2_only
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = Origin(e)
            if len(self._origins) > _MAX_ORIGINS:
                self._evict()
        else:
            self._origins.move_to_end(key)
        origin.lead_to(addresses)
        return origin

    def _evict(self) -> None:
        """Forget the origin that was not used for longest, if it is one where nothing is under way."""
        key, origin = next(iter(self._origins.items()))
        if not origin.quiet or any(origin is o for o, _ in self._waiting):
            self._origins.move_to_end(key)
            return
        del self._origins[key]
        for link in list(origin.links):
            self._leave(origin, link)

    def _call_back(self, multi: Multi) -> None:
        """Where another connection takes a link's place, as after GOAWAY, what did not go out yet waits for the first
        answer over it: all but who opened it.
        """
        renewed, multi.renewed = multi.renewed, {}
        for curl, transfer in list(self._busy.items()):
            link = transfer.link
            if link not in renewed or transfer is renewed[link] or curl.getinfo(pycurl.PRETRANSFER_TIME) > 0:
                continue
            origin, request, done = transfer.origin, transfer.request, transfer.done
            if link is None or origin is None or request is None or done is None:
                continue  # which it is not while it is busy
            held = Held(transfer.deadline, request, done, transfer.lost)
            self._take_off(link, transfer)
            self._hold(origin, held)

    def _hold_no_longer(self) -> None:
        for origin, until in list(itertools.islice(self._holding.items(), _STARTS)):
            if until > self._now:
                return
            del self._holding[origin]
            if origin in self._paced:  # nobody has asked yet
                self._holding[origin] = self._now + _HOLD
                continue
            for link in origin.links:
                link.proven = True
            if origin.held:
                self._released[origin] = None

    def _pace(self) -> None:
        """Connections to strangers one after another: of hundreds at once the handshakes would hold up all others."""
        self._connect_at = max(self._connect_at, self._now - _AT_ONCE / _CONNECTS)
        while self._paced and self._connect_at <= self._now:
            self._connect_at += 1 / _CONNECTS
            origin = next(iter(self._paced))
            del self._paced[origin]
            self._ahead.add(origin)
            self._released[origin] = None

    def _hold(self, origin: Origin, held: Held) -> None:
        origin.held.append(held)
        self._holding.setdefault(origin, self._now + _HOLD)
        if origin.wants_more():
            self._released[origin] = None

    def _start_some(self) -> None:
        room = _STARTS
        for origin in list(self._released):
            while room and origin.held and (link := self._link(origin)) is not None:
                deadline, request, done, lost = origin.held.popleft()
                if deadline < self._now:
                    self._results.append((done, HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True)))
                    continue
                self._start(origin, link, request, done, deadline, lost=lost)
                room -= 1
            if room:
                del self._released[origin]
            if not origin.held:
                self._holding.pop(origin, None)
        while room and self._waiting:
            origin, requests = self._waiting[0]
            deadline = self._now + requests[0][0].endpoint.timeout
            while room and requests:
                link = None if origin.held else self._link(origin)
                if link is None:
                    self._hold(origin, Held(deadline, *requests.popleft()))
                    continue
                count = min(room, len(requests), origin.room(link))
                for _ in range(count):
                    self._start(origin, link, *requests.popleft(), deadline)
                room -= count
            if not requests:
                self._waiting.popleft()

    def _link(self, origin: Origin) -> Link | None:
        """Where the next request goes; None: it waits."""
        link = origin.pick(self._now)
        is_new = origin.wants_more() if link is None else not link.is_open(self._now)
        if is_new and origin.endpoint.public_only:
            if origin not in self._ahead:
                self._paced[origin] = None
                return None
            self._ahead.discard(origin)
        if link is None and origin.wants_more():
            multi = self._multi(origin.endpoint.proxy)
            multi.links += 1
            link = origin.add(Link(multi, direct=not origin.endpoint.proxy))
        return link

    def _multi(self, proxy: str) -> Multi:
        multi = self._current.get(proxy)
        if multi is None:
            connections = _PROXIED_CONNECTIONS if proxy else _HOST_CONNECTIONS
            multi = self._current[proxy] = Multi(self._selector, connections, self._streams)
            self._multis.append(multi)
        return multi

    def _start(
        self, origin: Origin, link: Link, request: HttpRequest, done: Done, deadline: float, *, lost: int = 0
    ) -> None:
        if link.idle:
            transfer = link.idle.pop()
            self._idle -= 1
        else:
            transfer = Transfer()
        try:
            transfer.prepare(request, done, link)
            link.multi.curl.add_handle(transfer.curl)
        except (pycurl.error, ValueError) as e:  # ValueError: not ASCII, or a null byte
            code = int(e.args[0]) if isinstance(e, pycurl.error) else pycurl.E_URL_MALFORMAT
            self._results.append((done, HttpFailure(code, timeout=False)))
            transfer.close()
            return
        transfer.origin = origin
        transfer.link = link
        transfer.warm, transfer.lost, transfer.deadline = link.proven, lost, deadline
        self._busy[transfer.curl] = transfer
        if request.endpoint.public_only:
            self._strangers[transfer.curl] = transfer
        link.running += 1
        link.multi.running += 1

    # --- what came of it

    def _cut(self) -> None:
        """End what gets headers without end. libcurl would call for each line, and wait for Python's lock each time."""
        too_large = [t for t in self._strangers.values() if t.is_too_large()]
        for transfer in too_large:
            self._finish(transfer, TOO_LARGE)
        now = time.monotonic()
        self._look_at, self._is_look_due = now + max(_LOOK, (now - self._now) / _LOOKING), False

    def _finish(self, transfer: Transfer, code: int) -> None:
        origin, link, done = transfer.origin, transfer.link, transfer.done
        assert origin is not None
        assert link is not None
        assert done is not None
        result = transfer.result(code)
        gone = code in LOST and (transfer.warm or transfer.lost > 0)
        if gone and transfer.lost < _TRIES and transfer.request is not None:
            self._hold(origin, Held(transfer.deadline, transfer.request, done, transfer.lost + 1))
        else:
            self._results.append((done, result))
        self._take_off(link, transfer)
        if not link.left and (origin.answered(link, result, self._now) or gone):
            self._leave(origin, link)
        if origin.held:
            self._go_on(origin, link, result)

    def _take_off(self, link: Link, transfer: Transfer) -> None:
        """A transfer that is over, or did not begin."""
        del self._busy[transfer.curl]
        self._strangers.pop(transfer.curl, None)
        link.multi.curl.remove_handle(transfer.curl)
        link.multi.running -= 1
        link.running -= 1
        link.used_at = self._now
        transfer.request = transfer.done = transfer.origin = transfer.link = None
        if link.left:
            link.forget()
        if link.left or transfer.spent or self._idle >= self._streams:
            transfer.close()
        else:
            link.idle.append(transfer)
            self._idle += 1

    def _leave(self, origin: Origin, link: Link) -> None:
        origin.leave(link)
        link.forget()
        link.multi.links -= 1
        self._idle -= len(link.idle)
        for transfer in link.idle:
            transfer.close()
        link.idle.clear()
        proxy = origin.endpoint.proxy
        if proxy and self._current.get(proxy) is link.multi:  # its connections are known by their true host
            del self._current[proxy]

    def _go_on(self, origin: Origin, link: Link, result: HttpResult) -> None:
        """What waited for a first answer goes out, or shares the fate of who went ahead."""
        lost = isinstance(result, HttpFailure) and (result.unreachable or result.timeout)
        if lost and not any(other.running or other.proven for other in origin.links):
            self._results += [(held.done, result) for held in origin.held]
            origin.held.clear()
            self._released.pop(origin, None)
            self._holding.pop(origin, None)
        elif link.proven or not link.running:
            self._released[origin] = None

    def _forget(self, multi: Multi) -> None:
        """Nothing goes over it any more."""
        self._multis.remove(multi)
        for proxy, current in list(self._current.items()):
            if current is multi:
                del self._current[proxy]
        multi.curl.close()
