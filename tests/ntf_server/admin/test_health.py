"""The metrics and health endpoint over real sockets: as a client of HTTP sees it, and hostile ones."""

import asyncio
import contextlib
import http.client
import logging
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_servers import free_port

from ntf_server.admin import health as admin
from ntf_server.admin.health import MAX_HEAD, Admin
from ntf_server.app import Relay
from ntf_server.config.files import Config
from ntf_server.listener import ListenError
from ntf_server.observe.condition import Condition, Facts, Phase, StoreFacts, WayFacts, assess

KIND = "text/plain; version=0.0.4; charset=utf-8"
TEXT = "# HELP ntf_x X.\n# TYPE ntf_x gauge\nntf_x 1\n"
GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"

Listen = Callable[..., Awaitable[Admin]]


def how(phase: Phase = Phase.RUNNING, **facts: Any) -> Condition:
    """A relay is."""
    return assess(Facts(phase, 1000.0, **facts), 1_800_000_000.0)


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """Starts endpoints."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            render: Callable[[], str] = lambda: TEXT,
            timeout: float = admin.TIMEOUT,
            condition: Callable[[], Condition] = how,
        ) -> Admin:
            endpoint = Admin("127.0.0.1", 0, lambda accept: (KIND + accept, render()), condition, timeout=timeout)
            stack.push_async_callback(endpoint.close)
            await endpoint.start()
            return endpoint

        yield start


def fetch(port: int, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    """(status, fields, body), by the client of the standard library."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


async def ask(port: int, *parts: bytes, half_close: bool = False) -> bytes:
    """All that comes back until the server closes its side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(10):
            for part in parts:
                writer.write(part)
                await writer.drain()
            if half_close:
                writer.write_eof()
            return await reader.read()
    finally:
        writer.transport.abort()


FULL = StoreFacts(5.0, "full")
STALLED = (WayFacts("AP", due=1, oldest_due=600.0),)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("condition", "ready", "health"),
    [
        (how(), (200, "ready\n"), 200),
        (how(Phase.STARTING), (503, "starting\n"), 200),
        (how(Phase.DRAINING), (503, "draining\n"), 200),
        (how(Phase.STOPPING), (503, "stopping\n"), 200),
        (how(store=FULL), (503, "the store fails, for 5 s: full: there is no room\n"), 503),
        (how(ways=STALLED), (200, "ready\n"), 503),
    ],
)
async def test_who_is_live_who_is_ready_and_how_it_is(
    listen: Listen, condition: Condition, ready: tuple[int, str], health: int
) -> None:
    """Whoever answers lives; metrics go on in any case."""
    port = (await listen(condition=lambda: condition)).port
    assert (await asyncio.to_thread(fetch, port, "/live"))[::2] == (200, b"live\n")
    assert (await asyncio.to_thread(fetch, port, "/metrics"))[0] == 200
    for path, status, body in (
        ("/ready", ready[0], ready[1].encode()),
        ("/health", health, msgspec.json.encode(condition) + b"\n"),
    ):
        assert (await asyncio.to_thread(fetch, port, path))[::2] == (status, body)
        assert (await asyncio.to_thread(fetch, port, path, "HEAD"))[::2] == (status, b"")


# --- good requests


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("path", "body", "content_type"),
    [
        ("/metrics", TEXT.encode(), KIND),
        ("/metrics?name=a&b", TEXT.encode(), KIND),
        ("http://127.0.0.1/metrics", TEXT.encode(), KIND),
        ("/live", b"live\n", "text/plain; charset=utf-8"),
        ("/ready", b"ready\n", "text/plain; charset=utf-8"),
        ("/health", msgspec.json.encode(how()) + b"\n", "application/json"),
    ],
)
async def test_get_and_head(listen: Listen, path: str, body: bytes, content_type: str) -> None:
    port = (await listen()).port
    status, fields, got = await asyncio.to_thread(fetch, port, path)
    assert (status, fields["Content-Type"], got) == (200, content_type, body)
    assert (fields["Connection"], fields["Content-Length"]) == ("close", str(len(body)))
    assert await asyncio.to_thread(fetch, port, path, "HEAD") == (200, fields, b"")


async def test_metrics_are_shown_as_the_request_accepts_them(listen: Listen) -> None:
    endpoint = await listen()
    for fields, accept in (
        (b"", ""),
        (b"Accept: application/openmetrics-text\r\n", "application/openmetrics-text"),
        (b"accept:a;q=0.5, b \r\nX: c\r\nACCEPT:\td\r\n", "a;q=0.5, b ,d"),
    ):
        answer = await ask(endpoint.port, GET + fields + b"\r\n")
        assert f"\r\nContent-Type: {KIND}{accept}\r\n" in answer.decode()


async def test_metrics_are_read_for_each_request(listen: Listen) -> None:
    reads = iter("12")
    port = (await listen(lambda: f"ntf_x {next(reads)}\n")).port
    assert [(await asyncio.to_thread(fetch, port, "/metrics"))[2] for _ in "12"] == [b"ntf_x 1\n", b"ntf_x 2\n"]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("half_close", [False, True])
async def test_a_request_in_pieces_and_one_of_http_1_0(listen: Listen, half_close: bool) -> None:
    big = "ntf_x 1\n" * 500_000  # more than the socket's buffers take
    port = (await listen(lambda: big)).port
    for request in (GET + b"\r\n", b"GET /metrics HTTP/1.0\r\n\r\n"):
        answer = await ask(port, *(bytes([b]) for b in request), half_close=half_close)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.partition(b"\r\n\r\n")[2] == big.encode()


# --- bad requests


@pytest.mark.usefixtures("quiet")
async def test_other_paths_and_methods(listen: Listen) -> None:
    port = (await listen()).port
    for path in ("/", "/metrics/", "/METRICS", "/%6detrics", "//metrics", "/health/../metrics"):
        for method in ("GET", "POST"):
            assert (await asyncio.to_thread(fetch, port, path, method))[0] == 404
    assert (await asyncio.to_thread(fetch, port, "/nothing", "HEAD"))[::2] == (404, b"")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "get"):
        status, fields, _ = await asyncio.to_thread(fetch, port, "/metrics", method)
        assert (status, fields["Allow"]) == (405, "GET, HEAD")


@pytest.mark.usefixtures("quiet")
async def test_a_body_that_nobody_wants_does_not_lose_the_answer(listen: Listen) -> None:
    port = (await listen()).port
    assert (await asyncio.to_thread(fetch, port, "/health", "POST", bytes(4_000_000)))[0] == 405


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, b"\r\n\r\n"),
        (400, b"GET /metrics\r\n\r\n"),
        (400, b"GET  /metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /metrics HTTP/2.0\r\nHost: a\r\n\r\n"),
        (400, b"GET /metrics HTTP/1.1\r\n\r\n"),
        (400, b"GET /metrics HTTP/1.1\r\nX-Host: a\r\n\r\n"),
        (400, b"GET /metr\x00ics HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\r\n\r\n"),
        (431, GET + b"X: " + b"x" * MAX_HEAD + b"\r\n\r\n"),
        (431, b"x" * 1_000_000),
    ],
)
async def test_bad_requests(listen: Listen, status: int, request_: bytes) -> None:
    answer = await ask((await listen()).port, request_)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"ntf_x" not in answer


@pytest.mark.usefixtures("quiet")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.binary())
def test_any_bytes_are_answered_or_not_but_never_more(data: bytes) -> None:
    async def attack() -> None:
        endpoint = Admin("127.0.0.1", 0, lambda _: (KIND, TEXT), how)
        await endpoint.start()
        try:
            answer = await ask(endpoint.port, data, half_close=True)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
            assert (await ask(endpoint.port, GET + b"\r\n")).endswith(TEXT.encode())
        finally:
            await endpoint.close()

    asyncio.run(attack())


# --- slow and hostile clients


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("sent", [b"", GET])
async def test_time_is_limited(listen: Listen, sent: bytes) -> None:
    assert await ask((await listen(timeout=0.05)).port, sent) == b""


@pytest.mark.usefixtures("quiet")
async def test_a_client_that_does_not_read_is_disconnected(listen: Listen) -> None:
    endpoint = await listen(lambda: "x" * 20_000_000, timeout=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port, limit=1)
    try:
        writer.write(GET + b"\r\n")
        async with asyncio.timeout(10):
            got = len(await reader.read(1))
            while endpoint._connections:
                await asyncio.sleep(0.001)
            with contextlib.suppress(ConnectionResetError):
                while data := await reader.read(65536):
                    got += len(data)
        assert 0 < got < 20_000_000
    finally:
        writer.transport.abort()


@pytest.mark.usefixtures("quiet")
async def test_a_client_that_resets_its_connection(listen: Listen) -> None:
    endpoint = await listen(lambda: "x" * 20_000_000)
    for request in (b"", GET, GET + b"\r\n"):
        _, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        writer.write(request)
        async with asyncio.timeout(10):
            while not endpoint._connections:
                await asyncio.sleep(0.001)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            while endpoint._connections:
                await asyncio.sleep(0.001)


@pytest.mark.usefixtures("quiet")
async def test_connections_are_limited(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "MAX_CONNECTIONS", 2)
    endpoint = await listen()
    writers = [(await asyncio.open_connection("127.0.0.1", endpoint.port))[1] for _ in range(2)]
    async with asyncio.timeout(10):
        while len(endpoint._connections) < 2:
            await asyncio.sleep(0.001)
        with contextlib.suppress(ConnectionResetError):
            assert await ask(endpoint.port, GET + b"\r\n") == b""
        writers[0].transport.abort()
        while len(endpoint._connections) > 1:
            await asyncio.sleep(0.001)
    assert (await ask(endpoint.port, GET + b"\r\n")).endswith(TEXT.encode())
    writers[1].transport.abort()


async def test_metrics_that_cannot_be_read_are_an_error_without_a_traceback(
    listen: Listen, logged: list[logging.LogRecord]
) -> None:
    def fail() -> str:
        raise RuntimeError("a secret")

    port = (await listen(fail)).port
    for _ in range(2):
        status, _, body = await asyncio.to_thread(fetch, port, "/metrics")
        assert (status, body) == (500, b"Internal Server Error\n")
    assert [r.getMessage() for r in logged if r.levelno >= logging.ERROR] == ["metrics or health cannot be read"] * 2
    assert (await asyncio.to_thread(fetch, port, "/health"))[0] == 200


# --- start and stop


@pytest.mark.usefixtures("quiet")
async def test_a_stop_disconnects(listen: Listen) -> None:
    endpoint = await listen()
    waiting = asyncio.create_task(ask(endpoint.port, GET))
    async with asyncio.timeout(10):
        while not endpoint._connections:
            await asyncio.sleep(0.001)
        port = endpoint.port
        await endpoint.close()
        with contextlib.suppress(ConnectionResetError):
            assert await waiting == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_where_it_cannot_listen(listen: Listen) -> None:
    port = (await listen()).port
    for host, number in (("127.0.0.1", port), ("999.1.1.1", 0), ("a" * 64, 0)):
        with pytest.raises(ListenError, match=f"^{host}:{number}: "):
            await Admin(host, number, lambda _: (KIND, TEXT), how).start()


# --- in a relay


@pytest.mark.usefixtures("quiet")
async def test_a_relay_has_it_when_it_is_asked_for(make_config: Callable[..., Config]) -> None:
    port = free_port()
    async with Relay(make_config(metrics__port=port)):
        assert await asyncio.to_thread(fetch, port, "/health")
        status, _, body = await asyncio.to_thread(fetch, port, "/metrics")
        assert status == 200
        for name in (
            'ntf_pushes_in_flight{provider="AN"} 0',
            'ntf_tokens_due{provider="AN"} 0',
            "process_start_time_seconds ",
            "ntf_build_info{",
            'ntf_certificate_end_time_seconds{certificate="online"} ',
        ):
            assert f"\n{name}" in body.decode()
        asking = GET + b"Accept: application/openmetrics-text;version=1.0.0\r\n\r\n"
        assert (await ask(port, asking)).endswith(b"\n# EOF\n")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(fetch, port, "/health")


async def test_a_relay_does_without_it(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admin, "start", None)
    async with Relay(make_config()):
        pass


async def test_a_port_in_use_is_one_line_and_everything_is_closed(
    make_config: Callable[..., Config], listen: Listen
) -> None:
    config = make_config(metrics__port=(await listen()).port)
    port = config.settings.metrics.port
    with pytest.raises(ListenError) as e:
        await Relay(config).__aenter__()
    where = f"{config.directory}/ntf-server.toml: [metrics] bind, port: 127.0.0.1:{port}: "
    assert str(e.value).startswith(where)
    assert str(e.value).endswith(" shows, or choose another one")
    assert "\n" not in str(e.value)
    async with Relay(make_config()):  # it let go of port and database
        pass


async def test_a_port_in_use_on_the_command_line(
    make_config: Callable[..., Config], listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = (await listen()).port
    for name, value in (("METRICS__PORT", port), ("TRANSPORT__PORT", 0), ("TRANSPORT__BIND", "127.0.0.1")):
        monkeypatch.setenv(f"NTF_SERVER__{name}", str(value))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ntf_server", "start", "--path", make_config().directory),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, out) == (75, b"")
    line = err.decode().splitlines()[-1]
    assert line.startswith("ntf-server: ")
    assert f"[metrics] bind, port: 127.0.0.1:{port}: " in line
    assert "Traceback" not in err.decode()
