"""The live page over real sockets: its files, headers, JSON, events, and who gets none of it."""

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis_servers import free_port

from ntf_server.admin.page import files, site
from ntf_server.admin.page.access import HEADERS
from ntf_server.admin.page.site import CONNECTIONS, Site
from ntf_server.admin.page.streams import MOST
from ntf_server.admin.page.view import Sources
from ntf_server.app import Relay
from ntf_server.config.files import Config
from ntf_server.config.page import Page
from ntf_server.listener import ListenError
from ntf_server.observe.condition import Condition, Facts, Phase, ServersFacts, WayFacts, assess
from ntf_server.observe.events import Event, EventLog
from ntf_server.observe.metrics import Metrics

FILES = Path(files.__file__).parent
TOKEN = "nVQ2u6mPqTz0m8pSxg6uWQ=="
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LOOPBACK = Page("127.0.0.1", 0, None, None, frozenset())
GUARDED = Page("127.0.0.1", 0, None, hashlib.sha256(TOKEN.encode()).digest(), frozenset())
events = EventLog("ntf_server.test_site")

Open = Callable[..., Awaitable[Site]]


def well() -> Condition:
    return assess(Facts(Phase.RUNNING, 60.0, ways=(WayFacts("AP"),)), 1_800_000_000.0)


def sources(condition: Callable[[], Condition] = well) -> Sources:
    return Sources({}, Metrics(), condition, lambda _: [], ServersFacts, lambda: 1_800_000_000.0)


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """Starts sites, and runs them."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(page: Page = LOOPBACK, *, condition: Callable[[], Condition] = well, **options: Any) -> Site:
            made = Site(page, sources(condition), **{"step": 0.02, **options})
            stack.push_async_callback(made.close)
            await made.start()
            running = asyncio.create_task(made.run())
            stack.callback(running.cancel)
            return made

        yield start


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


def url(made: Site, path: str = "/") -> str:
    return f"http://127.0.0.1:{made.port}{path}"


async def messages(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """(event, data) of server-sent events."""
    name = ""
    async for line in answer.content:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


async def first(answer: aiohttp.ClientResponse, wanted: str) -> Any:
    async with asyncio.timeout(20):
        async for name, data in messages(answer):
            if name == wanted:
                return data
    raise AssertionError(f"no {wanted}")


# --- files


async def test_files_are_served_as_they_are(opened: Open, client: aiohttp.ClientSession) -> None:
    made = await opened()
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for file in FILES.iterdir():
        if file.suffix not in kinds:
            continue
        path = "/" if file.name == "index.html" else f"/{file.name}"
        async with client.get(url(made, path)) as answer:
            assert (answer.status, answer.content_type, answer.charset) == (200, kinds[file.suffix], "utf-8")
            assert await answer.read() == file.read_bytes()
            tag = answer.headers["ETag"]
        async with client.get(url(made, path), headers={"If-None-Match": tag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
        async with client.head(url(made, path)) as answer:
            assert (answer.status, answer.content_length) == (200, file.stat().st_size)


def test_files_are_small_and_name_nothing_outside() -> None:
    shown = [f for f in FILES.iterdir() if f.suffix != ".py" and f.is_file()]
    assert sum(f.stat().st_size for f in shown) <= 150_000
    for file in shown:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", text), file
        for name in re.findall(r'(?:src|href)="([^"#]+)"|from "\./([^"]+)"', text):
            assert (FILES / (name[0] or name[1])).exists()


def test_the_page_has_nothing_inline_and_says_what_things_are() -> None:
    """Scripts, styles and handlers inside would need a weaker policy; every table has headers, every section a name."""
    inside: list[str] = []
    found: list[tuple[str, dict[str, str | None]]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attributes)))

        def handle_data(self, data: str) -> None:
            if found and found[-1][0] in {"script", "style"} and data.strip():
                inside.append(data)

    Parser().feed((FILES / "index.html").read_text())
    assert inside == [] and not any(tag == "style" for tag, _ in found)
    assert not [name for _, attributes in found for name in attributes if name.startswith("on") or name == "style"]
    assert [attributes["lang"] for tag, attributes in found if tag == "html"] == ["en"]
    assert all(attributes.get("scope") == "col" for tag, attributes in found if tag == "th")
    ids = {attributes["id"] for _, attributes in found if "id" in attributes}
    for tag, attributes in found:
        label = attributes.get("aria-labelledby")
        assert label is None or label in ids
        if tag == "section":
            assert label or attributes.get("aria-label")
    assert sum(tag == "h1" for tag, _ in found) == 1


# --- headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/api/state", 200),
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/__init__.py", 404),
        ("POST", "/", 405),
        ("PUT", "/api/state", 405),
        ("DELETE", "/page.css", 405),
        ("HEAD", "/api/stream", 405),
    ],
)
async def test_everything_says_what_a_browser_may_do(
    opened: Open, client: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    made = await opened()
    async with client.request(method, url(made, path)) as answer:
        assert answer.status == status
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert answer.headers["Cache-Control"] in {"no-cache", "no-store"}
        assert "Server" not in answer.headers
        if status == 405:
            assert "GET" in answer.headers["Allow"]
        if status >= 400:
            assert answer.content_type == "text/plain"


# --- who may look


async def test_a_token_is_needed_for_everything(opened: Open, client: aiohttp.ClientSession) -> None:
    made = await opened(GUARDED)
    for path in ("/", "/page.js", "/api/state", "/api/stream", "/nothing"):
        for headers in ({}, {"Authorization": f"Bearer {TOKEN[:-1]}"}):
            async with client.get(url(made, path), headers=headers) as answer:
                assert (answer.status, answer.headers["WWW-Authenticate"][:5]) == (401, "Basic")
                assert TOKEN[:-1] not in await answer.text()
    for headers in ({"Authorization": aiohttp.encode_basic_auth("me", TOKEN)}, BEARER):
        async with client.get(url(made, "/api/state"), headers=headers) as answer:
            assert answer.status == 200


async def test_another_token_counts_from_the_next_request_on(opened: Open, client: aiohttp.ClientSession) -> None:
    made = await opened(GUARDED)
    async with client.get(url(made, "/api/stream"), headers=BEARER) as looking:
        await first(looking, "state")
        made.use(Page("127.0.0.1", 0, None, hashlib.sha256(b"another").digest(), frozenset()))
        async with client.get(url(made), headers=BEARER) as answer:
            assert answer.status == 401
        async with client.get(url(made), headers={"Authorization": "Bearer another"}) as answer:
            assert answer.status == 200
        await first(looking, "state")


async def test_a_name_that_a_stranger_leads_here_gets_nothing(opened: Open, client: aiohttp.ClientSession) -> None:
    made = await opened()
    for path in ("/", "/api/state", "/api/stream"):
        async with client.get(url(made, path), headers={"Host": f"attacker.example:{made.port}"}) as answer:
            assert answer.status == 421
            assert "[admin] hosts" in await answer.text()
    async with client.get(url(made), headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}) as answer:
        assert answer.status == 403


# --- what is shown


@pytest.mark.usefixtures("logged")
async def test_the_state_of_a_relay(make_config: Callable[..., Config], client: aiohttp.ClientSession) -> None:
    config = make_config(admin__port=free_port())
    async with Relay(config) as relay:
        assert config.page is not None
        async with client.get(f"{config.page.url}api/state") as answer:
            state = await answer.json()
        assert (state["well"], state["phase"], state["leases"]) == (True, "running", None)
        assert state["about"]["address"] == str(relay._address)
        assert [provider["name"] for provider in state["providers"]] == ["AN", "AT"]
        assert "relay.started" in [event[3] for event in state["events"]]
        assert not relay.condition().failing_parts
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(config.page.url)


async def test_who_looks_is_told_what_changes(
    opened: Open, client: aiohttp.ClientSession, logged: list[logging.LogRecord]
) -> None:
    made = await opened()
    async with client.get(url(made, "/api/stream")) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert answer.headers["Cache-Control"] == "no-store"
        assert (await first(answer, "state"))["well"]
        events.tell(Event.STORE_TROUBLE, "the store fails: %s", "<script>", reason="x")
        told = await first(answer, "event")
        assert told[2:] == ["error", "store.trouble", "the store fails: <script>"]
    async with client.get(url(made, "/api/state")) as answer:
        assert (await answer.json())["events"][-1] == told
    assert logged


async def test_a_failure_is_one_answer_and_the_next_one_is_right(
    opened: Open, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, logged: list[logging.LogRecord]
) -> None:
    made = await opened()
    with monkeypatch.context() as broken:
        broken.setattr(made._view, "whole", lambda: 1 / 0)
        async with client.get(url(made, "/api/state")) as answer:
            assert (answer.status, await answer.text()) == (500, "ntf-relay: it failed; the server's log says why\n")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert any(r.name == site.__name__ and r.exc_info for r in logged)
    async with client.get(url(made, "/api/state")) as answer:
        assert answer.status == 200


# --- bounds


@pytest.mark.usefixtures("quiet")
async def test_so_many_browsers_and_no_more(opened: Open, client: aiohttp.ClientSession) -> None:
    made = await opened()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MOST):
            answer = await stack.enter_async_context(client.get(url(made, "/api/stream")))
            assert answer.status == 200
        async with client.get(url(made, "/api/stream")) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
        async with client.get(url(made, "/api/state")) as answer:
            assert answer.status == 200
    async with asyncio.timeout(20):  # they have gone
        while len(made._streams):
            await asyncio.sleep(0.01)
    async with client.get(url(made, "/api/stream")) as answer:
        assert answer.status == 200


@pytest.mark.usefixtures("quiet")
async def test_a_browser_that_takes_nothing_is_let_go_and_holds_up_nobody(
    opened: Open, client: aiohttp.ClientSession
) -> None:
    big = assess(Facts(Phase.RUNNING, failing_parts=tuple(f"{n:0>280}" for n in range(20))), 1_800_000_000.0)
    made = await opened(condition=lambda: big, patience=0.3, step=0.001)
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stuck, ("127.0.0.1", made.port))
        await asyncio.get_running_loop().sock_sendall(stuck, b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with client.get(url(made, "/api/stream")) as answer:
            async with asyncio.timeout(20):
                while len(made._streams) != 2:
                    await asyncio.sleep(0.01)
                while len(made._streams) == 2:
                    await first(answer, "state")
            await first(answer, "state")


@pytest.mark.usefixtures("quiet")
async def test_who_asks_for_nothing_is_let_go(opened: Open, client: aiohttp.ClientSession) -> None:
    """There is room for so many connections, and whoever waits for it gets it."""
    made = await opened(patience=0.3)
    silent = [await asyncio.open_connection("127.0.0.1", made.port) for _ in range(CONNECTIONS)]
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    for reader, writer in silent:
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    async with client.get(url(made)) as answer:
        assert answer.status == 200


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 500 + b"\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"nothing\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 1000,
    ],
)
async def test_what_is_no_request_gets_an_error_and_no_log_line(opened: Open, sent: bytes) -> None:
    made = await opened(patience=2.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            line = await reader.readline()
            assert re.match(rb"HTTP/1\.[01] 4\d\d |$", line), line
    writer.close()


# --- its life


@pytest.mark.usefixtures("quiet")
async def test_browsers_are_told_of_the_end_and_hold_it_up_no_longer(
    opened: Open, client: aiohttp.ClientSession
) -> None:
    made = await opened()
    async with client.get(url(made, "/api/stream")) as answer:
        await first(answer, "state")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await made.close()
        assert loop.time() - began < 5
        assert await first(answer, "end") == {}
        assert (await answer.content.read()).strip() == b""


async def test_who_takes_nothing_holds_up_no_stop(opened: Open) -> None:
    big = assess(Facts(Phase.RUNNING, failing_parts=tuple(f"{n:0>280}" for n in range(20))), 1_800_000_000.0)
    made = await opened(condition=lambda: big, step=0.001)
    loop = asyncio.get_running_loop()

    def connections() -> list[Any]:
        assert made._runner is not None and made._runner.server is not None
        return made._runner.server.connections

    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.setblocking(False)
        await loop.sock_connect(stuck, ("127.0.0.1", made.port))
        await loop.sock_sendall(stuck, b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(20):
            while not any(c.transport.get_write_buffer_size() > 2**16 for c in connections()):
                await asyncio.sleep(0.02)
        began = loop.time()
        await made.close()
        assert 0.2 < loop.time() - began < 5  # it gets half a second


async def test_a_port_that_is_in_use(opened: Open) -> None:
    made = await opened()
    again = Site(Page("127.0.0.1", made.port, None, None, frozenset()), sources())
    with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{made.port}: is in use"):
        await again.start()
    await again.close()


async def test_a_relay_whose_page_has_no_port_names_the_setting(make_config: Callable[..., Config]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        relay = Relay(make_config(admin__port=taken.getsockname()[1]))
        with pytest.raises(ListenError, match=r"\[admin\] bind, port: 127\.0\.0\.1:\d+: is in use"):
            await relay.__aenter__()


async def test_a_unix_socket(opened: Open, tmp_path: Path) -> None:
    """Its user and its group may come in; what a dead server left behind is replaced, and nothing is left."""
    path = tmp_path / "page.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    made = await opened(Page("127.0.0.1", 0, path, None, frozenset()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://anything.example.org/api/state") as answer,
    ):
        assert (answer.status, (await answer.json())["well"]) == (200, True)
    again = Site(Page("127.0.0.1", 0, path, None, frozenset()), sources())
    with pytest.raises(ListenError, match="another ntf-server listens there"):
        await again.start()
    await again.close()
    assert path.exists()
    await made.close()
    assert not path.exists()
