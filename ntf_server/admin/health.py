"""The metrics and health endpoint: plain HTTP/1.1 (RFC 9112), GET and HEAD only, one request a connection.

`/live`: this process answers. `/ready`: clients may be sent here. `/health`: how everything is that it depends on.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import msgspec

from ntf_server.listener import listen_errors
from ntf_server.observe.condition import Condition

log = logging.getLogger(__name__)

TIMEOUT: Final = 10.0  # seconds for a whole connection
MAX_HEAD: Final = 8192  # bytes of request line and fields together
MAX_CONNECTIONS: Final = 100

_REQUEST: Final = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (?:[Hh][Tt][Tt][Pp]://[!-.0->@-~]+)?(/[!->@-~]*)(?:\?[!-~]*)? HTTP/1\.([0-9])\r\n"
)
_HOST: Final = re.compile(rb"^host:", re.IGNORECASE | re.MULTILINE)
_ACCEPT: Final = re.compile(rb"^accept:[ \t]*(.*)\r$", re.IGNORECASE | re.MULTILINE)
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"


class Admin:
    """The endpoint's socket and the connections on it. `start` it in a running loop; `close` it.

    `host` None: all interfaces; `render` gives the metrics, for a header `Accept`: their content type and text;
    `condition`: how the relay is; `timeout` in seconds.
    """

    def __init__(
        self,
        host: str | None,
        port: int,
        render: Callable[[str], tuple[str, str]],
        condition: Callable[[], Condition],
        *,
        timeout: float = TIMEOUT,
    ) -> None:
        self._host = host
        self._port = port
        self._render = render
        self._condition = condition
        self._timeout = timeout
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Accept connections. Raises ListenError (port in use, no such address)."""
        with listen_errors(self._host, self._port):
            self._server = await asyncio.start_server(self._on_connected, self._host, self._port, limit=MAX_HEAD)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Stop accepting, disconnect all."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections))

    def _on_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._run(reader, writer), name="admin connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                writer.write(await self._answer_to(reader))
                await writer.drain()
                writer.write_eof()
                while await reader.read(MAX_HEAD):  # closed on unread bytes, TCP would take the answer back
                    pass
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as e:
            log.debug("a request for metrics or health came to nothing: %s", type(e).__name__)
        finally:
            writer.transport.abort()

    async def _answer_to(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        try:
            return self._answer_head(head)
        except Exception:
            log.exception("metrics or health cannot be read")
            return _answer(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _answer_head(self, head: bytes) -> bytes:
        request = _REQUEST.match(head)
        if request is None:
            return _answer(HTTPStatus.BAD_REQUEST)
        method, path, minor = request.groups()
        if minor != b"0" and not _HOST.search(head):
            return _answer(HTTPStatus.BAD_REQUEST)
        pages = {
            b"/metrics": lambda: self._metrics(head),
            b"/live": lambda: (HTTPStatus.OK, "live\n", _TEXT),
            b"/ready": self._ready,
            b"/health": self._health,
        }
        if path not in pages:
            return _answer(HTTPStatus.NOT_FOUND, with_body=method != b"HEAD")
        if method not in (b"GET", b"HEAD"):
            return _answer(HTTPStatus.METHOD_NOT_ALLOWED, fields="Allow: GET, HEAD\r\n")
        return _answer(*pages[path](), with_body=method == b"GET")

    def _metrics(self, head: bytes) -> tuple[HTTPStatus, str, str]:
        accept = b",".join(_ACCEPT.findall(head)).decode("latin-1")
        kind, text = self._render(accept)
        return HTTPStatus.OK, text, kind

    def _ready(self) -> tuple[HTTPStatus, str, str]:
        unready = self._condition().unready
        return _status(well=not unready), f"{unready or 'ready'}\n", _TEXT

    def _health(self) -> tuple[HTTPStatus, str, str]:
        condition = self._condition()
        return _status(well=condition.delivers), msgspec.json.encode(condition).decode() + "\n", _JSON


def _status(*, well: bool) -> HTTPStatus:
    return HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE


def _answer(
    status: HTTPStatus, text: str = "", content_type: str = _TEXT, *, fields: str = "", with_body: bool = True
) -> bytes:
    """A whole answer; an error's text is its name. A HEAD is told the length of the body that GET gets."""
    body = (text or f"{status.phrase}\n").encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"{fields}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode()
    return head + body if with_body else head
