"""A mock APNs that is not to be what is measured: HTTP/2 (RFC 9113) over TLS, as far as one sender of pushes needs it.

Every request that ends is answered with 200, or with an error by rate, after a settable latency. Nothing is checked.
Of the header block only `:path` is looked for, and kept as it was sent (RFC 7541: maybe Huffman-coded) until somebody
asks. `ntf_server.testing.apns` is the mock that checks what the real one checks.

Controlled as `control` says:

    set latency=0.05 error_rate=0.01 status=503     what holds for requests from now on; seconds
    first_streams count=1                           streams that new connections have until their first answer; 0: all
    drop                                            close all connections (GOAWAY); how many
    keep on=true                                    keep bodies from now on
    reset                                           forget what was counted and kept
    stats                                           see `Mock.stats`
    arrivals                                        {path: [when each of its requests had come, time.monotonic_ns]}
    bodies limit=1000                               the oldest that were kept, which are forgotten: [[path, body], ...]
    pushes limit=1000                               the same, with when each had come: [[path, body, at], ...]
"""

import argparse
import asyncio
import json
import random
import ssl
import struct
import time
from array import array
from typing import Any, Final

from control import Command, obey
from hpack.huffman_table import decode_huffman

HOST: Final = "127.0.0.1"
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME: Final = struct.Struct(">HBBBL")  # length in 16 and 8 bits, type, flags, stream
_FRAME_HEADER: Final = 9
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 0x20
_MAX_CONCURRENT_STREAMS: Final = 3
_REFUSED_STREAM: Final = struct.pack(">L", 7)
_STATUS_200: Final = b"\x88"  # the static table has it
_PATH_NAMES: Final = (4, 5)  # of the static table
_MAX_WINDOW: Final = 2**31 - 1
_WINDOW_STEP: Final = 2**30
_BUFFER: Final = 2**19
_REASONS: Final = {400: "BadDeviceToken", 410: "Unregistered", 429: "TooManyRequests", 503: "ServiceUnavailable"}


class ProtocolError(Exception):
    """The peer does not speak HTTP/2 as this mock understands it."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame (RFC 9113, section 4.1)."""
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def _integer(block: bytes, pos: int, bits: int) -> tuple[int, int]:
    """(value, what follows it) (RFC 7541, section 5.1)."""
    mask = (1 << bits) - 1
    value = block[pos] & mask
    pos += 1
    if value < mask:
        return value, pos
    shift = 0
    while True:
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, pos


def raw_path(block: bytes) -> bytes:
    """`:path` of a header block, its Huffman bit and length in front; empty if it is not there as a literal.

    Senders leave paths out of the dynamic table, so that table need not be followed.
    """
    pos, end = 0, len(block)
    while pos < end:
        first = block[pos]
        if first >= 0x80:
            _, pos = _integer(block, pos, 7)
        elif first & 0xE0 == 0x20:  # a new size of the table
            _, pos = _integer(block, pos, 5)
        else:
            name, pos = _integer(block, pos, 6 if first >= 0x40 else 4)
            if not name:
                size, pos = _integer(block, pos, 7)
                pos += size
            start = pos
            size, pos = _integer(block, pos, 7)
            pos += size
            if name in _PATH_NAMES:
                return block[start:pos]
    return b""


def path_text(raw: bytes) -> str:
    """What `raw_path` gave, decoded."""
    if not raw:
        return ""
    _, pos = _integer(raw, 0, 7)
    return (decode_huffman(raw[pos:]) if raw[0] & 0x80 else raw[pos:]).decode("latin-1")


class Mock:
    """What all connections share: how to answer, and what came."""

    def __init__(self, streams: int, seed: int) -> None:
        self.streams = streams
        self.streams_at_first = 0
        self.open: set[Connection] = set()
        self.latency = 0.0
        self.keeping = False
        self.connections = 0
        self._random = random.Random(seed)
        self._error_rate = 0.0
        self._error = b"", b""
        self._clear()

    def _clear(self) -> None:
        self.accepted = self._refused = self.received = self.refused_streams = 0
        self._first_at = self._last_at = 0
        self._times: dict[bytes, array[int]] = {}
        self._bodies: list[tuple[bytes, bytes, int]] = []

    # --- commands

    def set(self, latency: float = 0.0, error_rate: float = 0.0, status: int = 503) -> None:
        """See the module's docstring."""
        self.latency, self._error_rate = latency, error_rate
        # `:status` as a literal without indexing
        self._error = b"\x08\x03" + str(status).encode(), json.dumps({"reason": _REASONS.get(status, "")}).encode()

    def first_streams(self, count: int) -> None:
        """See the module's docstring. APNs does so with 1; what is sent above that is refused (REFUSED_STREAM)."""
        self.streams_at_first = count

    def drop(self) -> int:
        """See the module's docstring."""
        connections = list(self.open)
        for connection in connections:
            connection.leave()
        return len(connections)

    def keep(self, on: bool) -> None:
        """See the module's docstring."""
        self.keeping = on

    def reset(self) -> None:
        """See the module's docstring."""
        self._clear()

    def stats(self) -> dict[str, Any]:
        """Requests answered with 200 and with an error; when the first and the last came; CPU seconds of this process.

        `pushes`: requests that came; `received`: bytes of bodies; `connections`: made since the start;
        `refused_streams`: requests above what a connection was allowed at first.
        """
        return {
            "pushes": sum(map(len, self._times.values())),
            "accepted": self.accepted,
            "refused": self._refused,
            "refused_streams": self.refused_streams,
            "received": self.received,
            "connections": self.connections,
            "first_at": self._first_at,
            "last_at": self._last_at,
            "cpu": time.process_time(),
        }

    def arrivals(self) -> dict[str, list[int]]:
        """See the module's docstring."""
        return {path_text(raw): list(times) for raw, times in self._times.items()}

    def bodies(self, limit: int) -> list[tuple[str, str]]:
        """See the module's docstring."""
        return [(path, body) for path, body, _ in self.pushes(limit)]

    def pushes(self, limit: int) -> list[tuple[str, str, int]]:
        """See the module's docstring."""
        out, self._bodies = self._bodies[:limit], self._bodies[limit:]
        return [(path_text(raw), body.decode("latin-1"), at) for raw, body, at in out]

    # --- what connections tell

    def arrived(self, at: int, raw: bytes, body: bytearray | None) -> None:
        """A whole request came."""
        self._first_at = self._first_at or at
        self._last_at = at
        times = self._times.get(raw)
        if times is None:
            times = self._times[raw] = array("q")
        times.append(at)
        if body is not None:
            self._bodies.append((raw, bytes(body), at))

    def answer(self, stream: int) -> bytes:
        """The frames of an answer."""
        if self._error_rate and self._random.random() < self._error_rate:
            self._refused += 1
            status, body = self._error
            return frame(_HEADERS, _END_HEADERS, stream, status) + frame(_DATA, _END_STREAM, stream, body)
        self.accepted += 1
        return _FRAME.pack(0, 1, _HEADERS, _END_HEADERS | _END_STREAM, stream) + _STATUS_200


class Connection(asyncio.BufferedProtocol):
    """One client. What came at once is answered at once."""

    def __init__(self, mock: Mock) -> None:
        self._mock = mock
        self._buffer = bytearray(_BUFFER)
        self._filled = 0
        self._preface = False
        self._paths: dict[int, bytes] = {}  # of requests whose body is under way
        self._bodies: dict[int, bytearray] = {}
        self._consumed = 0
        self._left: int | None = None  # streams until the first answer
        self._last = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up: our settings, and a window that is no limit."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._mock.connections += 1
        self._mock.open.add(self)
        self._left = self._mock.streams_at_first or None
        window = struct.pack(">L", _MAX_WINDOW - 65535)
        transport.write(_streams(self._left or self._mock.streams) + frame(_WINDOW_UPDATE, 0, 0, window))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        self._transport = None
        self._mock.open.discard(self)

    def leave(self) -> None:
        """Say GOAWAY (RFC 9113, section 6.8) and close."""
        self._mock.open.discard(self)
        if self._transport is not None:
            self._transport.write(frame(_GOAWAY, 0, 0, struct.pack(">LL", self._last, 0)))
            self._transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room for what comes."""
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Some bytes came."""
        self._filled += nbytes
        try:
            self._take(time.monotonic_ns())
        except (ProtocolError, IndexError):
            assert self._transport is not None
            self._transport.abort()

    def _take(self, at: int) -> None:
        """All whole frames of the buffer."""
        buffer, end, pos = self._buffer, self._filled, 0
        if not self._preface:
            if end < len(_PREFACE):
                return
            if not buffer.startswith(_PREFACE):
                raise ProtocolError("no preface")
            self._preface, pos = True, len(_PREFACE)
        out: list[bytes] = []
        ended: list[int] = []
        while end - pos >= _FRAME_HEADER:
            high, low, kind, flags, stream = _FRAME.unpack_from(buffer, pos)
            start = pos + _FRAME_HEADER
            stop = start + (high << 8 | low)
            if stop > end:
                break
            pos = stop
            if kind == _DATA:
                self._consumed += stop - start
                self._mock.received += stop - start
                if self._mock.keeping:
                    self._bodies.setdefault(stream, bytearray()).extend(buffer[start:stop])
            elif kind == _HEADERS:
                self._last = max(self._last, stream)
                if self._left is not None:
                    if not self._left:
                        self._mock.refused_streams += 1
                        out.append(frame(_RST_STREAM, 0, stream, _REFUSED_STREAM))
                        continue
                    self._left -= 1
                self._paths[stream] = raw_path(_unpadded(bytes(buffer[start:stop]), flags))
            else:
                out.append(self._other(kind, flags, stream, bytes(buffer[start:stop])))
                continue
            if flags & _END_STREAM and stream in self._paths:
                self._mock.arrived(at, self._paths.pop(stream), self._bodies.pop(stream, None))
                ended.append(stream)
        self._buffer[: end - pos] = self._buffer[pos:end]
        self._filled = end - pos
        if self._consumed >= _WINDOW_STEP:
            out.append(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">L", self._consumed)))
            self._consumed = 0
        self._answer(out, ended)

    def _answer(self, out: list[bytes], ended: list[int]) -> None:
        if ended and self._mock.latency:
            asyncio.get_running_loop().call_later(self._mock.latency, self._answer_now, ended)
        else:
            out += self._answers(ended)
        if out:
            self._write(b"".join(out))

    def _answer_now(self, ended: list[int]) -> None:
        self._write(b"".join(self._answers(ended)))

    def _answers(self, ended: list[int]) -> list[bytes]:
        out = list(map(self._mock.answer, ended))
        if ended and self._left is not None:
            self._left = None
            out.append(_streams(self._mock.streams))
        return out

    def _write(self, data: bytes) -> None:
        if self._transport is not None and data:
            self._transport.write(data)

    def _other(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        """What a frame that carries no request is answered with."""
        if kind == _RST_STREAM:
            self._paths.pop(stream, None)
            self._bodies.pop(stream, None)
        elif kind in {_SETTINGS, _PING} and not flags & _ACK:
            return frame(kind, _ACK, 0, payload if kind == _PING else b"")
        return b""


def _streams(count: int) -> bytes:
    """SETTINGS: how many streams the client may have at once."""
    return frame(_SETTINGS, 0, 0, struct.pack(">HL", _MAX_CONCURRENT_STREAMS, count))


def _unpadded(payload: bytes, flags: int) -> bytes:
    """The header block of a HEADERS frame (RFC 9113, section 6.2). Raises ProtocolError."""
    if not flags & _END_HEADERS:
        raise ProtocolError("a header block in more than one frame")
    start, end = 0, len(payload)
    if flags & _PADDED:
        start, end = 1, end - payload[0]
    if flags & _PRIORITY:
        start += 5
    return payload[start:end]


async def _main(arguments: argparse.Namespace) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.cert, arguments.key)
    context.set_alpn_protocols(["h2"])
    mock = Mock(arguments.streams, arguments.seed)
    mock.set(arguments.latency)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(mock), HOST, arguments.port, ssl=context, backlog=256
    )
    commands: dict[str, Command] = {
        "set": mock.set,
        "first_streams": mock.first_streams,
        "drop": mock.drop,
        "keep": mock.keep,
        "reset": mock.reset,
        "stats": mock.stats,
        "arrivals": mock.arrivals,
        "bodies": mock.bodies,
        "pushes": mock.pushes,
    }
    await obey(commands, {"port": server.sockets[0].getsockname()[1]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fast mock APNs.")
    parser.add_argument("--cert", required=True, help="PEM chain")
    parser.add_argument("--key", required=True, help="PEM key")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--streams", type=int, default=1000, help="that a connection may have at once (%(default)s)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of which requests get errors")
    asyncio.run(_main(parser.parse_args()))
