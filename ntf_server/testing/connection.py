"""One HTTP/2 connection of a mock push service: gathers requests, applies faults, answers (RFC 9113)."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from ntf_server.testing.endpoint import DEFAULT_WINDOW, Endpoint, Request
from ntf_server.testing.faults import Answer, CutTls, Delay, Fault, GoAway, RstStream, Silence
from ntf_server.testing.link import Link

_CLEANUP_INTERVAL = 256  # streams


class _H2(H2Connection):
    """h2 without its own stream limit.

    It would end the connection over a peer that has not seen the limit yet, where RFC 9113 section 5.1.2 has
    the stream refused; and it would count all open streams for each new one.
    """

    _opened = 0

    @property
    def open_inbound_streams(self) -> int:
        self._opened += 1
        if self._opened % _CLEANUP_INTERVAL == 0:
            _ = super().open_inbound_streams  # has h2 forget closed streams
        return 0


@dataclass(slots=True, eq=False)
class _Exchange:
    """A request under way and what is left to send of its answer."""

    request: Request
    fault: Fault | None = None
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False  # taken for answering
    ended: bool = False  # by the peer
    held: bool = False  # until a GOAWAY is out
    timer: asyncio.TimerHandle | None = None
    unsent: bytes | memoryview = b""


class Connection(Link):
    """An HTTP/2 connection."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._h2 = _H2(
            H2Configuration(
                client_side=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._exchanges: dict[int, _Exchange] = {}
        self._unsent: dict[int, _Exchange] = {}  # those whose answer's body waits for the peer's window
        self._due: deque[tuple[_Exchange, Fault | None]] = deque()
        self._limit = endpoint.first_streams
        self._highest = 0
        self._goaway: GoAway | None = None
        self._goaway_wait = 0
        self._announced = False
        self._last = 2**31 - 1

    # --- asyncio.Protocol ---

    def data_received(self, data: bytes) -> None:
        """Take frames in; a violation of the protocol ends the connection with GOAWAY."""
        if not self._live:
            return
        try:
            events = self._h2.receive_data(data)
        except ProtocolError:
            self._flush()
            self._close()
            return
        for event in events:
            if self._live:
                self._dispatch(event)
        self._settle()

    # --- for the server ---

    def go_away(self, fault: GoAway) -> None:
        """Send GOAWAY now, counting from the newest stream."""
        if self._live:
            self._start_goaway(replace(fault, after=0), self._highest)
            self._settle()

    # --- receiving: h2 is ahead of these events, so that nothing is sent on a stream before they all are in ---

    def _dispatch(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._open(event)
            case DataReceived():
                self._take_body(event)
            case StreamEnded():
                exchange = self._exchanges.get(event.stream_id)
                if exchange is not None:
                    exchange.ended = True
                    self._complete(exchange)
            case StreamReset():
                self._forget(event.stream_id)
            case ConnectionTerminated():
                self._close()  # h2 could not answer the streams in flight either

    def _open(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        self._highest = stream_id
        self._goaway_wait -= 1
        self._announce_when_due()
        if stream_id > self._last:
            return
        if len(self._exchanges) >= self._limit:
            self._endpoint.counters.refused += 1
            with suppress(ProtocolError):  # the peer has reset it itself
                self._h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        exchange = _Exchange(Request.of(event, self._number))
        self._exchanges[stream_id] = exchange
        self._count_stream(len(self._exchanges))
        exchange.fault = self._endpoint.draw(exchange.request)
        self._cut_if_due(exchange)

    def _take_body(self, event: DataReceived) -> None:
        self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        exchange = self._exchanges.get(event.stream_id)
        if exchange is None or exchange.whole:
            return
        exchange.body += event.data
        self._cut_if_due(exchange)
        if self._live and len(exchange.body) > self._endpoint.max_body:
            self._complete(exchange)

    def _cut_if_due(self, exchange: _Exchange) -> None:
        fault = exchange.fault
        if isinstance(fault, CutTls) and fault.during == "request" and len(exchange.body) >= fault.after_bytes:
            self.cut()

    def _complete(self, exchange: _Exchange) -> None:
        if exchange.whole:
            return
        exchange.whole = True
        exchange.request = replace(exchange.request, body=bytes(exchange.body))
        exchange.body.clear()
        if exchange.fault is None:
            exchange.fault = self._endpoint.draw_whole(exchange.request)
        if self._count_request():
            self._start_goaway(GoAway(), exchange.request.stream_id)
        if self._endpoint.latency > 0:
            self._later(self._endpoint.latency, exchange, exchange.fault)
        else:
            self._due.append((exchange, exchange.fault))

    # --- acting ---

    def _settle(self) -> None:
        """Act on what is due, send what the peer's windows allow, and write it all."""
        while self._due:
            exchange, fault = self._due.popleft()
            if self._exchanges.get(exchange.request.stream_id) is exchange:
                self._act(exchange, fault)
        for exchange in tuple(self._unsent.values()):
            self._send_body(exchange)
        self._flush()

    def _later(self, seconds: float, exchange: _Exchange, fault: Fault | None) -> None:
        def wake() -> None:
            self._due.append((exchange, fault))
            self._settle()

        exchange.timer = asyncio.get_running_loop().call_later(seconds, wake)

    def _act(self, exchange: _Exchange, fault: Fault | None) -> None:
        request = exchange.request
        match fault:
            case None | Answer():
                self._answer(exchange, self._endpoint.respond(request, fault))
            case Delay():
                self._later(fault.seconds, exchange, fault.then)
            case RstStream():
                if fault.processed:
                    self._endpoint.respond(request, None)
                self._h2.reset_stream(request.stream_id, fault.code)
                self._forget(request.stream_id)
            case Silence():
                if fault.processed:
                    self._endpoint.respond(request, None)
            case GoAway():
                self._start_goaway(fault, request.stream_id)
                exchange.held = True
                self._release_held()
            case CutTls():
                if fault.during == "response":
                    self._cut_response(exchange, fault.after_bytes)
                self.cut()

    def _answer(self, exchange: _Exchange, answer: Answer) -> None:
        body = answer.payload()
        headers = [(":status", str(answer.status)), *answer.headers]
        if body:
            headers.append(("content-length", str(len(body))))
        stream_id = exchange.request.stream_id
        self._h2.send_headers(stream_id, headers, end_stream=not body)
        if body:
            exchange.unsent = memoryview(body)
            self._unsent[stream_id] = exchange
        else:
            self._finish(exchange)

    def _send_body(self, exchange: _Exchange) -> None:
        stream_id = exchange.request.stream_id
        while exchange.unsent:
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                return
            chunk, exchange.unsent = exchange.unsent[:room], exchange.unsent[room:]
            self._h2.send_data(stream_id, chunk, end_stream=not exchange.unsent)
            if not exchange.unsent:
                self._finish(exchange)

    def _finish(self, exchange: _Exchange) -> None:
        stream_id = exchange.request.stream_id
        if not exchange.ended:  # RFC 9113 section 8.1: the answer is whole, the rest of the body is unwanted
            self._h2.reset_stream(stream_id, ErrorCodes.NO_ERROR)
        if self._limit != self._endpoint.streams:
            self._limit = self._endpoint.streams
            self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: self._limit})
        self._forget(stream_id)

    def _forget(self, stream_id: int) -> None:
        self._unsent.pop(stream_id, None)
        exchange = self._exchanges.pop(stream_id, None)
        if exchange is None:
            return
        self._endpoint.counters.streams -= 1
        if exchange.timer is not None:
            exchange.timer.cancel()
        self._linger_if_done()

    def _die(self) -> None:
        super()._die()
        for stream_id in tuple(self._exchanges):
            self._forget(stream_id)

    def _cut_response(self, exchange: _Exchange, after_bytes: int) -> None:
        self._flush()
        self._answer(exchange, self._endpoint.respond(exchange.request, None))
        self._send_body(exchange)
        self._collect()
        del self._out[after_bytes:]
        self._flush()

    # --- GOAWAY ---

    def _start_goaway(self, fault: GoAway, stream_id: int) -> None:
        if self._goaway is not None:
            return
        self._goaway = fault
        self._goaway_wait = fault.after - (self._highest - stream_id) // 2
        last = stream_id if fault.processed else max(stream_id - 2, 0)
        self._last = last if fault.last_stream_id is None else fault.last_stream_id
        for later in [each for each in self._exchanges if each > self._last]:
            self._forget(later)
        self._announce_when_due()

    def _announce_when_due(self) -> None:
        fault = self._goaway
        if fault is None or self._announced or self._goaway_wait > 0:
            return
        self._announced = True
        debug = json.dumps({"reason": fault.reason}).encode() if fault.reason is not None else b""
        frame = GoAwayFrame(stream_id=0, last_stream_id=self._last, error_code=fault.code, additional_data=debug)
        self._collect()
        self._out += frame.serialize()  # not by h2, which would send nothing after it
        self._release_held()
        self._linger_if_done()

    def _release_held(self) -> None:
        if not self._announced:
            return
        for exchange in self._exchanges.values():
            if exchange.held:
                exchange.held = False
                self._due.append((exchange, None))

    def _linger_if_done(self) -> None:
        if self._announced and not self._exchanges:
            self._close_later()

    # --- sending ---

    def _greet(self, transport: asyncio.Transport) -> None:
        endpoint = self._endpoint
        if endpoint.require_alpn and transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            self.cut()
            return
        initial = {
            SettingCodes.MAX_CONCURRENT_STREAMS: endpoint.first_streams,
            SettingCodes.INITIAL_WINDOW_SIZE: max(endpoint.window, DEFAULT_WINDOW),
        }
        self._h2.local_settings = Settings(client=False, initial_values=initial)
        self._h2.initiate_connection()
        if endpoint.window < DEFAULT_WINDOW:  # a smaller window binds the peer only once it knows of it
            self._h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: endpoint.window})
        if endpoint.connection_window > DEFAULT_WINDOW:
            self._h2.increment_flow_control_window(endpoint.connection_window - DEFAULT_WINDOW)

    def _collect(self) -> None:
        self._out += self._h2.data_to_send()
