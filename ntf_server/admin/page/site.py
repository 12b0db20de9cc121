"""The live page over HTTP: its files, its state as JSON, and server-sent events of what changes. Only to be looked at.

`/`, its files, `/api/state` and `/api/stream` are all there is; who may have them is `access`'s to say.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import resources
from typing import Final

import msgspec
from aiohttp import web

from ntf_server.admin import socket as unix
from ntf_server.admin.page import files
from ntf_server.admin.page.access import HEADERS, Refusal, refusal
from ntf_server.admin.page.streams import Streams, message
from ntf_server.admin.page.view import Sources, View
from ntf_server.config.page import Page
from ntf_server.listener import listen_errors
from ntf_server.observe.history import STEP
from ntf_server.observe.recent import Recent

log = logging.getLogger(__name__)

CONNECTIONS: Final = 64
PATIENCE: Final = 10.0  # seconds for a request to come, and for a browser to take what it is sent
_NEW: Final = 1.0  # seconds within which a connection that was accepted is there
_SOCKET_MODE: Final = 0o660  # the server's group may have a proxy in it
_KINDS: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_TELLS: Final = "ntf_server"  # the logger above all of ours
_ENOUGH: Final = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "as many browsers look already as may", {"Retry-After": "10"})

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """`start` it in a running loop, `run` it as a part of the relay, and `close` it. `view` is made at the start."""

    def __init__(self, page: Page, sources: Sources, *, step: float | None = None, patience: float = PATIENCE) -> None:
        """Seconds between two states; `patience`: see PATIENCE."""
        self._page = page
        self._step = STEP if step is None else step
        self._patience = patience
        self._recent = Recent()
        self._view = View(sources, self._recent)
        self._streams = Streams()
        self._silent: dict[asyncio.BaseProtocol, float] = {}  # connections without a request yet, since when
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def use(self, page: Page | None) -> None:
        """Another token, and other names, from the next request on; who looks already goes on."""
        if page is not None:
            self._page = page

    async def start(self) -> None:
        """Listen. Raises ListenError."""
        app = web.Application(middlewares=[self._guard], client_max_size=1)
        app.on_response_prepare.append(_seal)
        for file in resources.files(files).iterdir():
            stem, _, kind = file.name.rpartition(".")
            if kind in _KINDS:
                path = "/" if stem == "index" else f"/{file.name}"
                app.router.add_get(path, _file(file.read_bytes(), _KINDS[kind]))
        app.router.add_get("/api/state", self._on_state)
        app.router.add_get("/api/stream", self._on_stream, allow_head=False)
        # what aiohttp says of what strangers send is not the log's, and faults of ours are told by `_guard`
        silent = logging.Logger("http")
        silent.addHandler(logging.NullHandler())
        self._runner = web.AppRunner(
            app, access_log=None, logger=silent, keepalive_timeout=30.0, lingering_time=1.0, shutdown_timeout=0.5
        )
        await self._runner.setup()
        logging.getLogger(_TELLS).addHandler(self._recent)
        await self._listen()

    async def _listen(self) -> None:
        loop, path = asyncio.get_running_loop(), self._page.socket
        if path is not None:
            bound = unix.bind(path, "[admin] page_socket", _SOCKET_MODE)
            self._inode = unix.identity(path)
            self._server = await loop.create_unix_server(self._connection, sock=bound)
            return
        with listen_errors(self._page.host, self._page.port):
            self._server = await loop.create_server(self._connection, self._page.host, self._page.port)

    async def run(self) -> None:
        """Look, and tell who looks, until cancelled."""
        told = 0
        while True:
            await asyncio.sleep(self._step)
            self._lose_silent(self._patience)
            self._view.look()
            new = self._view.events(told)
            told = new[-1].number if new else told
            if len(self._streams):
                events = [message("event", msgspec.json.encode(event)) for event in new]
                self._streams.publish(message("state", self._view.state()), events)

    async def close(self) -> None:
        """Stop listening; browsers are told that it is over."""
        logging.getLogger(_TELLS).removeHandler(self._recent)
        if self._server is not None:
            self._server.close()
        self._streams.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._page.socket is not None:
            unix.remove(self._page.socket, self._inode)

    # --- connections

    def _connection(self) -> asyncio.BaseProtocol:
        """For a new one: no more than CONNECTIONS, and as many that have not asked for anything yet."""
        assert self._runner is not None
        server = self._runner.server
        if len(self._silent) >= CONNECTIONS:
            self._lose_silent(self._patience)
        if server is None or len(server.connections) >= CONNECTIONS or len(self._silent) >= 2 * CONNECTIONS:
            return _Full()
        handler = server()
        self._silent[handler] = asyncio.get_running_loop().time()
        return handler

    def _lose_silent(self, patience: float) -> None:
        """Those that have asked for nothing for so many seconds, and those that have gone."""
        assert self._runner is not None
        now, server = asyncio.get_running_loop().time(), self._runner.server
        there = set() if server is None else set(server.connections)
        for handler, since in [*self._silent.items()]:
            if handler not in there and now - since > _NEW:
                del self._silent[handler]
            elif handler in there and now - since > patience:
                del self._silent[handler]
                transport = getattr(handler, "transport", None)
                if transport is not None:
                    transport.abort()

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        self._silent.pop(request.protocol, None)
        if (refused := refusal(self._page, request.headers)) is not None:
            return _refused(refused)
        try:
            return await handler(request)
        except web.HTTPException as e:
            return _refused(Refusal(HTTPStatus(e.status), e.reason, _allow(e)))
        except Exception:
            log.exception("the live page cannot be shown")
            return _refused(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "it failed; the server's log says why"))

    # --- what is asked for

    async def _on_state(self, _: web.Request) -> web.StreamResponse:
        return web.Response(body=self._view.whole(), content_type="application/json")

    async def _on_stream(self, request: web.Request) -> web.StreamResponse:
        viewer = self._streams.join()
        if viewer is None:
            return _refused(_ENOUGH)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        try:
            await response.prepare(request)
            while (told := await viewer.next()) is not None:
                async with asyncio.timeout(self._patience):
                    await response.write(told)
        except (ConnectionError, TimeoutError) as e:
            log.debug("a browser has gone: %s", type(e).__name__)
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._streams.leave(viewer)
        return response


class _Full(asyncio.Protocol):
    """There is no room for this connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _file(content: bytes, kind: str) -> _Handler:
    tag = hashlib.sha256(content).hexdigest()[:16]

    async def on_file(request: web.Request) -> web.StreamResponse:
        response = web.Response(content_type=kind, charset="utf-8")
        response.etag = tag
        response.headers["Cache-Control"] = "no-cache"  # asked for again each time, and not sent again
        if any(known.value == tag for known in request.if_none_match or ()):
            response.set_status(HTTPStatus.NOT_MODIFIED)
        else:
            response.body = content
        return response

    return on_file


def _allow(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def _refused(refused: Refusal) -> web.Response:
    return web.Response(status=refused.status, text=f"ntf-relay: {refused.text}\n", headers=refused.headers)


async def _seal(_: web.Request, response: web.StreamResponse) -> None:
    """What is said to browsers with everything."""
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.pop("Server", None)
