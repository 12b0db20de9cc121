from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntf_server.testing import Answer, CutTls, Delay, Fault, GoAway, MockFcm, RstStream, Script, Silence
from ntf_server.testing.endpoint import Request
from ntf_server.testing.http1 import Http1Connection
from ntf_server.testing.http2 import Http2Server


class Echo(Http2Server):
    """Answers with the request's body; records the paths that took effect."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"http1": True, **options})
        self.faults = Script()
        self.late_faults = Script()
        self.requests: list[Request] = []

    @property
    def seen(self) -> list[str]:
        return [request.path for request in self.requests]

    def draw(self, request: Request) -> Fault | None:
        return self.faults.take(request.path)

    def draw_whole(self, request: Request) -> Fault | None:
        return self.late_faults.take(request.body.decode("latin-1"))

    def respond(self, request: Request, scripted: Answer | None) -> Answer:
        self.requests.append(request)
        return scripted or Answer(200, body=request.body)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def post(self, path: str = "/x", body: bytes = b"body", *fields: str) -> None:
        self.begin(path, len(body), *fields)
        self.writer.write(body)

    def begin(self, path: str, length: int, *fields: str) -> None:
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *fields, "", ""]
        self.writer.write("\r\n".join(lines).encode())

    async def answer(self) -> tuple[int, bytes, dict[str, str]]:
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            version, status, _ = head[0].split(" ", 2)
            assert version == "HTTP/1.1"
            fields = dict(line.split(": ", 1) for line in head[1:-2])
            body = await self.reader.readexactly(int(fields["content-length"])) if status != "100" else b""
            return int(status), body, fields

    async def eof(self) -> bytes:
        """Read what is left until the connection ends."""
        async with asyncio.timeout(5):
            try:
                return await self.reader.read()
            except (ConnectionError, ssl.SSLError):
                return b""

    async def silent(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await self.reader.readexactly(1)


@contextlib.asynccontextmanager
async def connect(server: Http2Server, alpn: tuple[str, ...] = ("http/1.1",)) -> AsyncIterator[Client]:
    context = server.tls.client_context(alpn)
    reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing may reach asyncio's log: tracebacks, tasks never awaited, writes to dead sockets."""
    with caplog.at_level(logging.WARNING, logger="asyncio"):
        yield
    records = [record for when in ("setup", "call") for record in caplog.get_records(when)]
    assert [record.getMessage() for record in records if record.name == "asyncio"] == []


# --- plain service ---


@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("http/1.1", "spdy/1")])
async def test_answers_one_request_after_the_other(alpn: tuple[str, ...]) -> None:
    async with Echo() as server, connect(server, alpn) as client:
        for number in range(3):
            client.post("/x?y", b"body %d" % number, "X-A: 1", "x-a:  2\t")
            assert (await client.answer())[:2] == (200, b"body %d" % number)
        assert server.requests[2].headers == (
            ("host", "localhost"),
            ("content-length", "6"),
            ("x-a", "1"),
            ("x-a", "2"),
        )
        assert server.requests[2].fields()["x-a"] == "1, 2"
        assert (server.requests[2].method, server.requests[2].path, server.requests[2].stream_id) == ("POST", "/x?y", 3)
        counters = server.counters
        assert (counters.opened, counters.open, counters.requests, counters.streams) == (1, 1, 3, 0)
        assert (counters.max_streams, counters.max_streams_per_connection) == (1, 1)
    assert counters.open == 0


async def test_offers_http2_first() -> None:
    async with Echo() as server, connect(server, ("http/1.1", "h2")) as client:
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"


async def test_is_off_by_default_and_without_alpn() -> None:
    for options in ({"http1": False}, {"http1": True, "alpn": False}):
        async with Echo(**options) as server, connect(server) as client:
            assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
            client.post()
            assert b"HTTP/1.1" not in await client.eof()
            assert server.seen == []


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(Delay(0.05), Answer(503, "Busy", (("retry-after", "9"),)))
        for number in range(3):
            client.post(f"/{number}", b"%d" % number)
        assert (await client.answer())[:2] == (200, b"0")
        status, body, fields = await client.answer()
        assert (status, body, fields["retry-after"]) == (503, b'{"reason": "Busy"}', "9")
        assert (await client.answer())[:2] == (200, b"2")


async def test_request_in_small_pieces() -> None:
    async with Echo() as server, connect(server) as client:
        for byte in b"GET /x HTTP/1.1\r\nhost:a\r\ncontent-length: 2\r\n\r\nab":
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer())[:2] == (200, b"ab")


async def test_expect_continue() -> None:
    async with Echo() as server, connect(server) as client:
        client.begin("/x", 4, "Expect: 100-Continue")
        assert (await client.answer())[0] == 100
        client.writer.write(b"body")
        assert (await client.answer())[:2] == (200, b"body")


async def test_connection_close_is_honoured() -> None:
    async with Echo(linger=0.01) as server, connect(server) as client:
        client.post("/x", b"", "Connection: Close")
        client.post("/late")
        assert (await client.answer())[2]["connection"] == "close"
        assert await client.eof() == b""
        assert server.seen == ["/x"]


async def test_status_without_a_phrase() -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(Answer(599))
        client.post()
        assert (await client.answer())[:2] == (599, b"")


# --- what is refused ---


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET x HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nfolded: a\r\n b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbad name: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 70_000, 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ],
)
async def test_refuses_and_ends(request_bytes: bytes, status: int) -> None:
    async with Echo(linger=0.01) as server, connect(server) as client:
        client.writer.write(request_bytes)
        answer = await client.answer()
        assert (answer[0], answer[1], answer[2]["connection"]) == (status, b"", "close")
        assert await client.eof() == b""
        assert (server.seen, server.counters.streams) == ([], 0)


async def test_body_over_the_limit_is_answered_at_once() -> None:
    async with Echo(max_body=10, linger=0.01) as server, connect(server) as client:
        client.begin("/x", 1000)
        client.writer.write(bytes(20))
        status, body, fields = await client.answer()
        assert (status, fields["connection"]) == (200, "close")
        assert 10 < len(body) <= 20
        assert await client.eof() == b""


# --- faults ---


@pytest.mark.parametrize("fault", [RstStream(), RstStream(processed=True), GoAway(processed=False)])
async def test_faults_that_end_the_connection_unanswered(fault: RstStream | GoAway) -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(Answer(200), fault)
        client.post("/first", b"")
        client.post("/second", b"")
        assert (await client.answer())[0] == 200
        assert await client.eof() == b""
        assert server.seen == ["/first", "/second"][: 1 + (isinstance(fault, RstStream) and fault.processed)]


async def test_processed_goaway_ends_the_connection_answered() -> None:
    async with Echo(linger=0.01) as server, connect(server) as client:
        server.faults.add(GoAway())
        client.post()
        status, body, fields = await client.answer()
        assert (status, body, fields["connection"]) == (200, b"body", "close")
        assert await client.eof() == b""


async def test_goaway_after() -> None:
    async with Echo(goaway_after=2, linger=0.01) as server, connect(server) as client:
        client.post()
        assert "connection" not in (await client.answer())[2]
        client.post()
        assert (await client.answer())[2]["connection"] == "close"
        assert await client.eof() == b""


async def test_goaway_all() -> None:
    async with Echo(latency=0.02, linger=0.01) as server, connect(server) as idle, connect(server) as busy:
        idle.post()
        await idle.answer()
        busy.post("/busy")
        while server.counters.streams == 0:
            await asyncio.sleep(0)
        server.goaway_all()
        assert await idle.eof() == b""
        assert (await busy.answer())[2]["connection"] == "close"
        assert await busy.eof() == b""


@pytest.mark.parametrize("processed", [False, True])
async def test_silence(processed: bool) -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(Silence(processed))
        client.post("/silent")
        client.post("/behind")
        await client.silent()
        assert server.seen == ["/silent"] * processed
        assert server.counters.streams == 1


async def test_cut_during_the_request() -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(CutTls(10))
        client.begin("/x", 20)
        client.writer.write(bytes(9))
        await client.silent()
        client.writer.write(bytes(1))
        assert await client.eof() == b""
        assert (server.seen, server.counters.requests) == ([], 0)


async def test_cut_during_the_response() -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(Answer(200), CutTls(17, during="response"))
        client.post("/first", b"")
        client.post("/second")
        assert (await client.answer())[0] == 200
        assert await client.eof() == b"HTTP/1.1 200 OK\r\n"
        assert server.seen == ["/first", "/second"]


@pytest.mark.parametrize("http1", [False, True])
async def test_fcm_cuts_amid_the_request_unless_faults_wait_for_a_token(http1: bool) -> None:
    async with MockFcm() as fcm, connect(fcm) as client:
        fcm.script(CutTls(5))
        if http1:
            fcm.script(Answer(500), token="t")
        client.begin(fcm.send_path, 10)
        client.writer.write(bytes(9))
        if http1:
            await client.silent()
            client.writer.write(bytes(1))
        assert await client.eof() == b""
        assert fcm.counters.requests == http1


async def test_fault_by_body() -> None:
    async with Echo() as server, connect(server) as client:
        server.late_faults.add(Answer(418), key="tea")
        server.faults.add(Answer(500), key="/first")
        for path in ("/first", "/second", "/third"):
            client.post(path, b"tea")
        assert [(await client.answer())[0] for _ in range(3)] == [500, 418, 200]


# --- outages ---


async def test_blackhole_holds_everything_and_lets_go() -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(Delay(0.02), key="/before")
        client.post("/before")
        while server.counters.streams == 0:
            await asyncio.sleep(0)
        server.blackhole()
        client.post("/after")
        await client.silent()
        assert server.seen == ["/before"]
        server.blackhole(False)
        assert (await client.answer())[0] == 200
        assert (await client.answer())[0] == 200
        assert server.seen == ["/before", "/after"]


async def test_blackhole_takes_in_a_handshake_under_way() -> None:
    async with Echo() as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        while not server.handshakes:
            await asyncio.sleep(0)
        server.blackhole()
        await writer.start_tls(server.tls.client_context(["http/1.1"]), server_hostname="localhost")
        client = Client(reader, writer)
        client.post()
        await client.silent()
        assert server.seen == []
        server.blackhole(False)
        assert (await client.answer())[:2] == (200, b"body")
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_stop_ends_connections_in_every_state() -> None:
    async with Echo(latency=60) as server, connect(server) as slow, connect(server) as part:
        slow.post()
        part.begin("/x", 10)
        while server.counters.streams < 2:
            await asyncio.sleep(0)
        port = server.port
        await server.stop()
        assert await slow.eof() == await part.eof() == b""
        assert (server.counters.open, server.counters.streams) == (0, 0)
        server.latency = 0
        await server.start()
        assert server.port == port
        async with connect(server) as client:
            client.post()
            assert (await client.answer())[0] == 200


async def test_peer_that_does_not_read_is_not_read() -> None:
    big = bytes(60_000)
    async with Echo() as server, connect(server) as client:
        for _ in range(400):
            client.post("/x", big)
        seen = -1
        while seen != server.counters.requests:
            seen = server.counters.requests
            await asyncio.sleep(0.1)
        assert seen < 400
        for _ in range(400):
            assert (await client.answer())[:2] == (200, big)


# --- no bytes raise ---


class FakeTransport(asyncio.Transport):
    """Accepts all and sends nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: object) -> None:
        assert not self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"
pieces = st.sampled_from(
    [POST, POST[:-2], POST[:20], b"GET / HTTP/1.1\r\nhost: a\r\n", b"\r\n", b"content-length: 99\r\n", b"expect: x\r\n"]
)
faults = st.sampled_from(
    [Answer(500), RstStream(processed=True), Silence(), GoAway(), GoAway(processed=False), CutTls(2), Delay(0)]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(pieces | st.binary(max_size=30), max_size=6), st.lists(faults, max_size=3))
def test_no_bytes_raise(chunks: list[bytes], scripted: list[Fault]) -> None:
    async def feed() -> None:
        server = Echo(max_body=50, goaway_after=3)
        server.faults.add(*scripted)
        connection = Http1Connection(server)
        connection.connection_made(FakeTransport())
        for chunk in chunks:
            connection.data_received(chunk)
            await asyncio.sleep(0)
        connection.connection_lost(None)
        assert (server.counters.open, server.counters.streams) == (0, 0)

    asyncio.run(feed())
