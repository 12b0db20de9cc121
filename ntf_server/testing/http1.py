"""One HTTP/1.1 connection of a mock push service, with the faults of an HTTP/2 one (RFC 9112)."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from http import HTTPStatus

from ntf_server.testing.endpoint import Endpoint, Request
from ntf_server.testing.faults import Answer, CutTls, Delay, Fault, GoAway, RstStream, Silence
from ntf_server.testing.link import Link

_MAX_HEAD = 65_536  # bytes
_REQUEST_LINE = re.compile(r"([A-Z]+) (/[!-~]*) HTTP/1\.1")
_FIELD_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(r"[0-9]{1,15}")


class _Malformed(Exception):  # noqa: N818  (an answer, not a failure)
    """The head cannot be understood: the connection ends with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Http1Connection(Link):
    """An HTTP/1.1 connection: one request at a time, pipelined ones wait. Bodies need a `content-length`."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._in = bytearray()
        self._request: Request | None = None  # from its head to its answer
        self._fault: Fault | None = None
        self._length = 0  # of the request's body
        self._whole = False
        self._last = False  # no more requests are taken
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Take bytes in."""
        if self._live and self._linger is None:
            self._in += data
            self._advance()

    def go_away(self, fault: GoAway) -> None:
        """End the connection after the request under way, or now."""
        if self._request is None:
            self._end()
        else:
            self._last = True

    # --- receiving ---

    def _advance(self) -> None:
        """Take in as much as has come, a request at a time."""
        while self._live and self._linger is None and not self._whole:
            if self._request is None and not self._take_head():
                break
            if self._live and not self._take_body():
                break
        self._flush()

    def _take_head(self) -> bool:
        head, found, rest = self._in.partition(b"\r\n\r\n")
        try:
            if len(head) > _MAX_HEAD:
                raise _Malformed(431)
            if not found:
                return False
            request = _parse_head(head, self._number, self._requests + 1)
            self._length = _body_length(request)
        except _Malformed as malformed:
            self._last = True
            self._send(Answer(malformed.status))
            return False
        self._in = rest
        self._request = request
        self._count_stream(1)
        self._fault = self._endpoint.draw(request)
        fields = request.fields()
        if fields.get("expect", "").lower() == "100-continue":
            self._out += b"HTTP/1.1 100 Continue\r\n\r\n"
        self._last |= fields.get("connection", "").lower() == "close"
        return True

    def _take_body(self) -> bool:
        assert self._request is not None
        received = min(len(self._in), self._length)
        fault = self._fault
        if isinstance(fault, CutTls) and fault.during == "request" and received >= fault.after_bytes:
            self.cut()
            return False
        if received < self._length and received <= self._endpoint.max_body:
            return False
        self._last |= received < self._length  # what is left of the body is not told from a next request
        request = self._request = replace(self._request, body=bytes(self._in[:received]))
        del self._in[:received]
        self._whole = True
        if fault is None:
            fault = self._endpoint.draw_whole(request)
        self._last |= self._count_request()
        if self._endpoint.latency > 0:
            self._later(self._endpoint.latency, fault)
        else:
            self._act(fault)
        return True

    # --- acting ---

    def _later(self, seconds: float, fault: Fault | None) -> None:
        def wake() -> None:
            self._act(fault)
            self._advance()

        self._timer = asyncio.get_running_loop().call_later(seconds, wake)

    def _act(self, fault: Fault | None) -> None:
        assert self._request is not None
        match fault:
            case None | Answer():
                self._send(self._endpoint.respond(self._request, fault))
            case Delay():
                self._later(fault.seconds, fault.then)
            case GoAway(processed=True):
                self._last = True
                self._send(self._endpoint.respond(self._request, None))
            case RstStream() | Silence():
                if fault.processed:
                    self._endpoint.respond(self._request, None)
                if isinstance(fault, RstStream):
                    self._end()
            case GoAway():
                self._end()
            case CutTls():
                if fault.during == "response":
                    self._flush()
                    self._send(self._endpoint.respond(self._request, None))
                    del self._out[fault.after_bytes :]
                    self._flush()
                self.cut()

    def _send(self, answer: Answer) -> None:
        body = answer.payload()
        fields = [*answer.headers, ("content-length", str(len(body)))]
        if self._last:
            fields.append(("connection", "close"))
        lines = [f"HTTP/1.1 {answer.status} {_phrase(answer.status)}", *(f"{name}: {value}" for name, value in fields)]
        self._out += "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        self._forget()
        if self._last:
            self._close_later()

    def _end(self) -> None:
        self._flush()  # answers to earlier requests
        self._close()

    def _forget(self) -> None:
        if self._request is not None:
            self._request = None
            self._whole = False
            self._endpoint.counters.streams -= 1
        if self._timer is not None:
            self._timer.cancel()

    def _die(self) -> None:
        super()._die()
        self._forget()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _parse_head(head: bytes | bytearray, connection: int, number: int) -> Request:
    """Parse a request line and its field lines; `stream_id` is the request's number on the connection."""
    first, *lines = head.decode("latin-1").split("\r\n")
    target = _REQUEST_LINE.fullmatch(first)
    fields = [_FIELD_LINE.fullmatch(line) for line in lines]
    if target is None or None in fields:
        raise _Malformed(400)
    headers = tuple((field[1].lower(), field[2].rstrip(" \t")) for field in fields if field is not None)
    if sum(name == "host" for name, _ in headers) != 1:
        raise _Malformed(400)
    return Request(target[1], target[2], headers, connection, number)


def _body_length(request: Request) -> int:
    """Return the body's length; a chunked body is refused, as RFC 9112 section 6.3 allows."""
    if any(name == "transfer-encoding" for name, _ in request.headers):
        raise _Malformed(411)
    lengths = [value for name, value in request.headers if name == "content-length"]
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(value) for value in lengths):
        raise _Malformed(400)
    return int(lengths[0]) if lengths else 0
