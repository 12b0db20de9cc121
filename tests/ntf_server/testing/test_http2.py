from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import pytest
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from ntf_server.testing import Answer, CutTls, Delay, Fault, GoAway, RstStream, Script, Silence
from ntf_server.testing.connection import Connection
from ntf_server.testing.endpoint import Request
from ntf_server.testing.http2 import Http2Server

E = TypeVar("E", bound=Event)


class Echo(Http2Server):
    """Answers with the request's body; records the paths that took effect."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.faults = Script()
        self.seen: list[str] = []
        self.bodies: list[bytes] = []

    def draw(self, request: Request) -> Fault | None:
        return self.faults.take(request.path)

    def respond(self, request: Request, scripted: Answer | None) -> Answer:
        self.seen.append(request.path)
        self.bodies.append(request.body)
        return scripted or Answer(200, body=request.body)


class Client:
    """A bare client: h2 over asyncio streams, which keeps every event."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.events: list[Event] = []
        self.consume = True
        self.eof = False
        self.unread = b""

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def read(self) -> None:
        try:
            data = await self.reader.read(65536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        self.eof = not data
        self.unread += data
        while len(self.unread) >= 9 and len(self.unread) >= (size := 9 + int.from_bytes(self.unread[:3])):
            frame, self.unread = self.unread[:size], self.unread[size:]
            for event in self.h2.receive_data(frame):
                self.take(event)
        self.flush()

    def take(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, DataReceived) and self.consume:
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if isinstance(event, ConnectionTerminated):  # h2 would take no answers after it
            self.h2.state_machine.state = ConnectionState.CLIENT_OPEN

    def of(self, kind: type[E], stream_id: int | None = None) -> list[E]:
        return [
            event
            for event in self.events
            if isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None))
        ]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                assert not self.eof, f"connection ended after {self.events}"
                await self.read()

    async def until_eof(self) -> None:
        async with asyncio.timeout(5):
            while not self.eof:
                await self.read()

    def begin(self, path: str = "/x", *, end: bool = False) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
        self.h2.send_headers(stream_id, headers, end_stream=end)
        return stream_id

    def post(self, path: str = "/x", body: bytes = b"body") -> int:
        stream_id = self.begin(path)
        self.h2.send_data(stream_id, body, end_stream=True)
        self.flush()
        return stream_id

    async def answer(self, stream_id: int) -> tuple[int, bytes]:
        await self.until(lambda: self.of(StreamEnded, stream_id))
        headers = dict(self.of(ResponseReceived, stream_id)[0].headers)
        return int(headers[b":status"]), b"".join(event.data for event in self.of(DataReceived, stream_id))

    async def settled(self) -> None:
        """Wait for a PING's answer: the server has handled all that was sent before it."""
        seen = len(self.of(PingAckReceived))
        self.h2.ping(b"12345678")
        self.flush()
        await self.until(lambda: len(self.of(PingAckReceived)) > seen)


@contextlib.asynccontextmanager
async def connect(server: Http2Server, alpn: tuple[str, ...] = ("h2",)) -> AsyncIterator[Client]:
    context = server.tls.client_context(alpn)
    reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context)
    client = Client(reader, writer)
    client.h2.initiate_connection()
    client.flush()
    try:
        yield client
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing may reach asyncio's log: tracebacks, tasks never awaited, writes to dead sockets."""
    with caplog.at_level(logging.WARNING, logger="asyncio"):
        yield
    records = [record for when in ("setup", "call") for record in caplog.get_records(when)]
    assert [record.getMessage() for record in records if record.name == "asyncio"] == []


# --- plain service ---


async def test_answers_many_streams_of_one_connection() -> None:
    async with Echo() as server, connect(server) as client:
        streams = {client.post("/x", f"body {number}".encode()): number for number in range(50)}
        for stream_id, number in streams.items():
            assert await client.answer(stream_id) == (200, f"body {number}".encode())
        assert server.counters.requests == 50
        assert (server.counters.opened, server.counters.open, server.counters.streams) == (1, 1, 0)
    assert server.counters.open == 0


async def test_request_shows_headers_but_no_secret() -> None:
    requests: list[Request] = []

    class Keep(Echo):
        def draw(self, request: Request) -> Fault | None:
            requests.append(request)
            return None

    async with Keep() as server, connect(server) as client:
        stream_id = client.h2.get_next_available_stream_id()
        pseudo = [(":method", "PUT"), (":scheme", "https"), (":authority", "a"), (":path", "/secret")]
        client.h2.send_headers(stream_id, [*pseudo, ("x-a", "1"), ("x-a", "2")], end_stream=True)
        client.flush()
        assert await client.answer(stream_id) == (200, b"")
    assert (requests[0].method, requests[0].path) == ("PUT", "/secret")
    assert requests[0].headers == (("x-a", "1"), ("x-a", "2"))
    assert "secret" not in repr(requests[0])


async def test_answer_has_json_reason_and_timestamp() -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(Answer(410, "Gone", timestamp=5), Answer(503, "Busy", (("retry-after", "9"),)))
        status, body = await client.answer(client.post())
        assert (status, json.loads(body)) == (410, {"reason": "Gone", "timestamp": 5})
        second = client.post()
        assert await client.answer(second) == (503, b'{"reason": "Busy"}')
        headers = client.of(ResponseReceived, second)[0].headers
        assert (b"retry-after", b"9") in headers
        assert (b"content-length", b"18") in headers


async def test_alpn_is_required() -> None:
    async with Echo() as server:
        for alpn in ((), ("http/1.1",)):
            async with connect(server, alpn) as client:
                await client.until_eof()
                assert client.events == []
        async with connect(server) as client:
            assert (await client.answer(client.post()))[0] == 200


async def test_alpn_may_be_missing() -> None:
    async with Echo(require_alpn=False) as server, connect(server, ()) as client:
        assert (await client.answer(client.post()))[0] == 200


async def test_prior_knowledge_without_alpn() -> None:
    async with Echo(alpn=False) as server, connect(server) as client:
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
        assert (await client.answer(client.post()))[0] == 200


async def test_url_and_address_in_use() -> None:
    async with Echo() as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        other = Echo(port=server.port)
        with pytest.raises(OSError, match=r"(?i)in use"):
            await other.__aenter__()
        with pytest.raises(RuntimeError):
            _ = other.ca_file


async def test_ipv6() -> None:
    async with Echo(host="::1") as server, connect(server) as client:
        assert server.url == f"https://[::1]:{server.port}"
        assert (await client.answer(client.post()))[0] == 200


# --- limits and windows ---


async def test_stream_limit_rises_after_the_first_answer() -> None:
    async with Echo(streams=1000, first_streams=1) as server, connect(server) as client:
        server.faults.add(Delay(0.05))
        await client.until(lambda: client.of(RemoteSettingsChanged))
        assert client.h2.remote_settings.max_concurrent_streams == 1
        first = client.post()
        await client.answer(first)
        await client.until(lambda: client.h2.remote_settings.max_concurrent_streams == 1000)
        for stream_id in [client.post() for _ in range(20)]:
            await client.answer(stream_id)
        assert server.counters.refused == 0


async def test_streams_over_the_limit_are_refused_and_others_live() -> None:
    async with Echo(streams=2) as server, connect(server) as client:
        server.faults.add(Silence(), Silence())
        streams = [client.post(f"/{number}") for number in range(3)]  # before the SETTINGS were read
        await client.until(lambda: client.of(StreamReset))
        reset = client.of(StreamReset)[0]
        assert (reset.stream_id, reset.error_code) == (streams[2], ErrorCodes.REFUSED_STREAM)
        assert server.seen == []
        assert (server.counters.refused, server.counters.streams) == (1, 2)
        assert (server.counters.max_streams, server.counters.max_streams_per_connection) == (2, 2)
        client.h2.reset_stream(streams[0])
        assert await client.answer(client.post("/again", b"ok")) == (200, b"ok")


async def test_windows_are_announced() -> None:
    async with Echo(window=70_000, connection_window=100_000) as server, connect(server) as client:
        stream_id = client.begin()
        await client.settled()
        assert client.h2.outbound_flow_control_window == 100_000
        assert client.h2.local_flow_control_window(stream_id) == 70_000


async def test_body_passes_through_a_small_window() -> None:
    async with Echo(window=10) as server, connect(server) as client:
        await client.until(lambda: client.h2.remote_settings.initial_window_size == 10)
        stream_id, body = client.begin(), bytes(range(100))
        while body:
            await client.until(lambda: client.h2.local_flow_control_window(stream_id))
            room = client.h2.local_flow_control_window(stream_id)
            assert room <= 10
            client.h2.send_data(stream_id, body[:room])
            body = body[room:]
            client.flush()
        client.h2.end_stream(stream_id)
        client.flush()
        assert await client.answer(stream_id) == (200, bytes(range(100)))


async def test_request_before_a_small_window_is_known_is_accepted() -> None:
    async with Echo(window=10) as server, connect(server) as client:
        assert await client.answer(client.post("/x", b"z" * 4096)) == (200, b"z" * 4096)


async def test_answer_waits_for_the_peers_window() -> None:
    big = bytes(300_000)
    async with Echo() as server, connect(server) as client:
        client.consume = False
        server.faults.add(Answer(200, body=big))
        stream_id = client.post()
        await client.settled()
        await client.until(lambda: sum(len(event.data) for event in client.of(DataReceived)) == 65_535)
        assert server.counters.streams == 1
        assert client.of(StreamEnded) == []
        other = client.post("/other", b"")
        assert await client.answer(other) == (200, b"")  # a blocked body blocks no other stream
        client.consume = True
        client.h2.acknowledge_received_data(65_535, stream_id)
        client.flush()
        assert await client.answer(stream_id) == (200, big)


async def test_answer_respects_a_small_stream_window() -> None:
    async with Echo() as server, connect(server) as client:
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 7})
        stream_id = client.post("/x", b"0123456789" * 10)
        assert await client.answer(stream_id) == (200, b"0123456789" * 10)
        assert max(len(event.data) for event in client.of(DataReceived)) == 7


async def test_peer_that_reads_late_gets_every_answer() -> None:
    async with Echo() as server, connect(server) as client:
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**30})
        client.h2.increment_flow_control_window(2**30)
        server.faults.add(*[Answer(200, body=bytes(8_000_000))] * 2)
        first = client.post()
        await eventually(lambda: len(server.seen) == 1)
        second = client.post()
        await eventually(lambda: len(server.seen) == 2)
        third = client.post()
        assert await client.answer(first) == await client.answer(second) == (200, bytes(8_000_000))
        assert await client.answer(third) == (200, b"body")


async def test_a_long_connection_forgets_its_streams() -> None:
    async with Echo() as server, connect(server) as client:
        for number in range(600):
            stream_id = client.post("/x", b"%d" % number)
            if number % 100 == 99:
                assert await client.answer(stream_id) == (200, b"%d" % number)
        (connection,) = server.connections
        assert len(connection._h2.streams) < 300


async def test_endless_body_is_answered_early() -> None:
    async with Echo(max_body=1000) as server, connect(server) as client:
        server.faults.add(Answer(413, "PayloadTooLarge"))
        stream_id = client.begin()
        client.h2.send_data(stream_id, bytes(2000))
        client.flush()
        assert (await client.answer(stream_id))[0] == 413
        await client.until(lambda: client.of(StreamReset, stream_id))
        assert client.of(StreamReset)[0].error_code == ErrorCodes.NO_ERROR
        assert (await client.answer(client.post()))[0] == 200


# --- faults ---


def test_script_prefers_the_key() -> None:
    script = Script()
    script.add(Answer(500), Answer(501))
    script.add(Answer(400), key="k")
    assert [script.take("k"), script.take("k"), script.take("x"), script.take(None)] == [
        Answer(400),
        Answer(500),
        Answer(501),
        None,
    ]


async def test_delay_then_fault_lets_others_pass() -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(Delay(0.05, Answer(500, "Late")), key="/late")
        late, quick = client.post("/late"), client.post("/quick")
        assert (await client.answer(late))[0] == 500
        order = [event.stream_id for event in client.of(ResponseReceived)]
        assert order == [quick, late]


async def test_latency_delays_the_effect() -> None:
    loop = asyncio.get_running_loop()
    async with Echo(latency=0.05) as server, connect(server) as client:
        started = loop.time()
        stream_id = client.post()
        await client.settled()
        assert server.seen == []
        await client.answer(stream_id)
        assert loop.time() - started >= 0.049
        server.latency = 60
        client.post()
        await client.settled()  # a pending answer must not hinder the end


@pytest.mark.parametrize("processed", [False, True])
async def test_rst_stream(processed: bool) -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(RstStream(ErrorCodes.ENHANCE_YOUR_CALM, processed))
        stream_id = client.post()
        await client.until(lambda: client.of(StreamReset, stream_id))
        assert client.of(StreamReset)[0].error_code == ErrorCodes.ENHANCE_YOUR_CALM
        assert server.seen == ["/x"] * processed
        assert (await client.answer(client.post()))[0] == 200


@pytest.mark.parametrize("processed", [False, True])
async def test_silence_until_the_client_gives_up(processed: bool) -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(Silence(processed))
        silent = client.post("/silent")
        assert (await client.answer(client.post()))[0] == 200
        assert client.of(ResponseReceived, silent) == []
        assert server.counters.streams == 1
        assert server.seen == ["/silent"] * processed + ["/x"]
        client.h2.reset_stream(silent, ErrorCodes.CANCEL)
        await client.settled()
        assert server.counters.streams == 0


async def goaway(client: Client) -> tuple[int, int, bytes | None]:
    await client.until(lambda: client.of(ConnectionTerminated))
    event = client.of(ConnectionTerminated)[0]
    assert event.error_code is not None
    assert event.last_stream_id is not None
    return event.error_code, event.last_stream_id, event.additional_data


def statuses(client: Client) -> dict[int, int]:
    return {event.stream_id: int(dict(event.headers)[b":status"]) for event in client.of(ResponseReceived)}


@pytest.mark.parametrize(
    ("fault", "last", "answered"),
    [
        (GoAway(after=2), 3, [1, 3]),
        (GoAway(after=2, processed=False), 1, [1]),
        (GoAway(after=2, last_stream_id=0), 0, [1]),
        (GoAway(after=2, last_stream_id=5), 5, [1, 3, 5]),
        (GoAway(after=3, last_stream_id=2**31 - 1), 2**31 - 1, [1, 3, 5, 7, 9]),
    ],
)
async def test_goaway_amid_streams(fault: GoAway, last: int, answered: list[int]) -> None:
    async with Echo(linger=0.05) as server, connect(server) as client:
        assert (await client.answer(client.post("/1")))[0] == 200
        server.faults.add(fault, key="/3")
        for number in (3, 5, 7, 9):
            client.post(f"/{number}")
        assert await goaway(client) == (ErrorCodes.NO_ERROR, last, None)
        await client.until_eof()
        assert sorted(statuses(client)) == answered
        assert sorted(server.seen) == [f"/{number}" for number in answered]
        assert server.counters.streams == 0


async def test_goaway_waits_for_the_streams_behind() -> None:
    async with Echo(linger=0.05) as server, connect(server) as client:
        server.faults.add(GoAway(after=1, code=ErrorCodes.INTERNAL_ERROR, reason="Shutdown"))
        client.post("/1")
        await client.settled()
        assert client.of(ConnectionTerminated) == []
        assert server.seen == []
        assert server.counters.streams == 1
        client.post("/3")
        assert await goaway(client) == (ErrorCodes.INTERNAL_ERROR, 1, b'{"reason": "Shutdown"}')
        await client.until(lambda: client.of(StreamEnded, 1))
        assert server.seen == ["/1"]


async def test_goaway_lets_slow_lower_streams_end() -> None:
    async with Echo(linger=0.05) as server, connect(server) as client:
        server.faults.add(Delay(0.05), key="/slow")
        server.faults.add(GoAway(processed=False), key="/last")
        slow = client.post("/slow")
        client.post("/last")
        assert (await goaway(client))[1] == slow
        await client.until_eof()
        assert statuses(client) == {slow: 200}


async def test_goaway_after_requests_and_next_connection() -> None:
    async with Echo(goaway_after=3, linger=0.05) as server:
        async with connect(server) as client:
            for _ in range(5):
                client.post()
            assert (await goaway(client))[1] == 5
            await client.until_eof()
            assert sorted(statuses(client)) == [1, 3, 5]
        async with connect(server) as client:
            assert (await client.answer(client.post()))[0] == 200
        assert len(server.seen) == 4


async def test_goaway_all() -> None:
    async with Echo() as server, connect(server) as first, connect(server) as second:
        await first.answer(first.post())
        await second.settled()
        server.goaway_all(GoAway(reason="Shutdown"))
        assert await goaway(first) == (0, 1, b'{"reason": "Shutdown"}')
        assert await goaway(second) == (0, 0, b'{"reason": "Shutdown"}')


@pytest.mark.parametrize("after_bytes", [0, 100, 10_000])
async def test_cut_during_the_request(after_bytes: int) -> None:
    async with Echo() as server:
        server.faults.add(CutTls(after_bytes), key="/cut")
        async with connect(server) as client:
            client.post("/cut", bytes(200))
            await client.until_eof()
            assert client.of(ResponseReceived) == []
        assert server.seen == []
        async with connect(server) as client:
            assert (await client.answer(client.post()))[0] == 200


async def test_cut_leaves_a_long_request_unread() -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(CutTls(100))
        stream_id = client.begin()
        client.h2.send_data(stream_id, bytes(99))
        client.flush()
        await client.settled()
        assert server.counters.open == 1
        client.h2.send_data(stream_id, b"1")
        client.flush()
        await client.until_eof()
        await server.idle.wait()


async def test_cut_during_the_response() -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(CutTls(500, during="response"))
        await client.settled()
        stream_id = client.post("/x", bytes(range(250)) * 4)
        received = 0
        while data := await read_or_end(client.reader):
            received += len(data)
        assert received == 500
        assert server.seen == ["/x"]
        assert client.of(StreamEnded, stream_id) == []


async def read_or_end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        try:
            return await reader.read(65536)
        except (ConnectionError, ssl.SSLError):
            return b""


# --- outages ---


async def test_cut_all() -> None:
    async with Echo() as server, connect(server) as first, connect(server) as second:
        server.faults.add(Silence())
        first.post()
        await first.settled()
        await second.settled()
        server.cut_all()
        await first.until_eof()
        await second.until_eof()
        await server.idle.wait()
        assert (server.counters.open, server.counters.streams) == (0, 0)
        async with connect(server) as third:
            assert (await third.answer(third.post()))[0] == 200


async def test_stop_refuses_and_start_takes_the_same_port() -> None:
    async with Echo() as server:
        port = server.port
        async with connect(server) as client:
            await client.settled()
            await server.stop()
            await client.until_eof()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(server.host, port)
        await server.start()
        await server.start()  # a second time changes nothing
        assert server.port == port
        async with connect(server) as client:
            assert (await client.answer(client.post()))[0] == 200
        assert server.counters.opened == 2


async def test_stop_closes_what_was_accepted_but_not_begun() -> None:
    async with Echo() as server:
        with socket.create_connection((server.host, server.port), timeout=5) as peer:
            assert server._listener is not None
            server._accept(server._listener)  # the loop has no time to begin the handshake
            await server.stop()
            with contextlib.suppress(ConnectionResetError):
                assert peer.recv(1) == b""


async def test_blackhole_holds_everything_and_lets_go() -> None:
    async with Echo() as server, connect(server) as client:
        server.faults.add(Delay(0.02), key="/before")
        before = client.post("/before")
        await client.settled()
        server.blackhole()
        after = client.post("/after")
        context = server.tls.client_context(["h2"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):  # TCP connects, TLS gets no answer
                await asyncio.open_connection(server.host, server.port, ssl=context)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.read()
        assert "/after" not in server.seen
        assert server.counters.opened == 1
        server.blackhole(False)
        assert (await client.answer(before))[0] == 200
        assert (await client.answer(after))[0] == 200
        async with connect(server) as other:
            assert (await other.answer(other.post()))[0] == 200


async def test_blackhole_takes_in_a_handshake_under_way() -> None:
    async with Echo() as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        await eventually(lambda: server.handshakes)
        server.blackhole()
        await writer.start_tls(server.tls.client_context(["h2"]), server_hostname="localhost")
        await eventually(lambda: server.counters.opened)
        settings = asyncio.create_task(reader.readexactly(9))
        done, _ = await asyncio.wait([settings], timeout=0.05)
        assert not done
        server.blackhole(False)
        assert (await asyncio.wait_for(settings, 5))[3] == 4  # our SETTINGS
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_ends_with_connections_in_every_state() -> None:
    async with Echo(latency=60) as server:
        half_open = socket.create_connection((server.host, server.port))
        async with connect(server) as slow, connect(server) as gone:
            slow.post()
            await slow.settled()
            server.goaway_all()
            gone.h2.close_connection()
            gone.flush()
            server.blackhole()
            await server.stop()
        half_open.close()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


# --- hostile peers ---


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + bytes(600), b"\x00" * 99]
)
async def test_survives_cleartext_and_garbage(data: bytes) -> None:
    async with Echo() as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(data)
        await read_or_end(reader)
        writer.close()
        await writer.wait_closed()
        async with connect(server) as client:
            assert (await client.answer(client.post()))[0] == 200


async def test_survives_half_open_handshakes() -> None:
    async with Echo() as server:
        sockets = [socket.create_connection((server.host, server.port)) for _ in range(5)]
        sockets.pop().close()
        async with connect(server) as client:
            assert (await client.answer(client.post()))[0] == 200
        server.cut_all()
        for sock in sockets:
            sock.close()


async def test_handshake_timeout() -> None:
    async with Echo(handshake_timeout=0.05) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        assert await read_or_end(reader) == b""
        writer.close()
        await writer.wait_closed()


async def test_client_that_distrusts_us() -> None:
    async with Echo() as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(server.host, server.port, ssl=ssl.create_default_context())
        async with connect(server) as client:
            assert (await client.answer(client.post()))[0] == 200


async def test_http1_over_tls_is_dropped() -> None:
    async with Echo() as server:
        context = server.tls.client_context(["h2"])
        reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while await read_or_end(reader):
            pass
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_violation_gets_goaway() -> None:
    async with Echo() as server, connect(server) as client:
        await client.settled()
        client.writer.write(b"\x00\x00\x00\x00\x00\x00\x00\x00\x00")  # DATA on stream 0
        assert (await goaway(client))[0] == ErrorCodes.PROTOCOL_ERROR
        await client.until_eof()


async def test_client_that_resets_mid_request() -> None:
    async with Echo() as server, connect(server) as client:
        stream_id = client.begin()
        client.h2.send_data(stream_id, b"part")
        client.h2.reset_stream(stream_id)
        await client.settled()
        assert (server.counters.streams, server.counters.requests) == (0, 0)
        assert (await client.answer(client.post()))[0] == 200


async def test_client_that_resets_right_after_its_request() -> None:
    async with Echo(streams=1) as server, connect(server) as client:
        for _ in range(3):  # in one TLS record: h2 knows of the reset before we see the request
            stream_id = client.begin(end=True)
            client.h2.reset_stream(stream_id)
        client.flush()
        await client.settled()
        assert (server.seen, server.counters.streams, server.counters.refused) == ([], 0, 0)
        assert (await client.answer(client.post()))[0] == 200


async def test_body_over_the_limit_that_ends_at_once() -> None:
    async with Echo(max_body=10) as server, connect(server) as client:
        stream_id = client.post("/x", bytes(20))
        assert await client.answer(stream_id) == (200, bytes(20))
        await client.settled()
        assert client.of(StreamReset) == []


async def test_client_that_says_goaway_with_streams_in_flight() -> None:
    async with Echo(latency=0.02) as server, connect(server) as client:
        client.post()
        client.h2.close_connection()
        client.flush()
        while await read_or_end(client.reader):
            pass
        assert server.seen == []


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


def raw(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream_id.to_bytes(4) + payload


POST = b"\x83\x87\x84\x41\x01a"  # POST, https, /, authority a (RFC 7541)
HEAD, WHOLE = (1, 0x4, POST), (1, 0x5, POST)  # HEADERS; and with END_STREAM
PART, END = (0, 0x0, bytes(20)), (0, 0x1, bytes(20))  # DATA; and with END_STREAM
RESET = (3, 0x0, bytes(4))
WINDOW = (8, 0x0, b"\x00\x00\x00\x05")
exchanges = st.lists(
    st.sampled_from(
        [
            *([WHOLE], [WHOLE, RESET], [WHOLE, WINDOW, RESET], [HEAD], [HEAD, END, WINDOW], [HEAD, END, RESET]),
            *([HEAD, PART, END], [HEAD, PART, PART], [HEAD, PART, PART, RESET], [HEAD, PART, PART, END, RESET]),
        ]
    ),
    max_size=6,
).map(
    lambda streams: [
        raw(kind, flags, 2 * index + 1, payload)
        for index, frames in enumerate(streams)
        for kind, flags, payload in frames
    ]
)
on_connection = st.lists(
    st.sampled_from(
        [
            raw(4, 0, 0, b"\x00\x04\x00\x00\x00\x05"),  # SETTINGS_INITIAL_WINDOW_SIZE 5
            raw(8, 0, 0, b"\x00\x00\x00\x05"),
            raw(7, 0, 0, bytes(8)),  # GOAWAY
        ]
    ),
    max_size=1,
)
arbitrary = st.builds(
    raw, st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=50)
) | st.binary(max_size=50)


@settings(max_examples=300, deadline=None)
@given(on_connection, exchanges, st.lists(on_connection.map(b"".join) | arbitrary, max_size=2), st.booleans())
def test_no_bytes_raise(start: list[bytes], middle: list[bytes], end: list[bytes], joined: bool) -> None:
    chunks = start + middle + end

    async def feed() -> None:
        server = Echo(require_alpn=False, goaway_after=2, streams=2, max_body=30)
        transport = FakeTransport()
        connection = Connection(server)
        connection.connection_made(transport)
        connection.data_received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + raw(4, 0, 0))
        for chunk in [b"".join(chunks)] if joined else chunks:
            connection.data_received(chunk)
        connection.connection_lost(None)
        assert (server.counters.open, server.counters.streams) == (0, 0)

    asyncio.run(feed())
