"""The core of mock push services: an HTTP/2 over TLS server with scripted faults (RFC 9113), HTTP/1.1 if wanted.

`Http2Server` gathers whole requests and asks its subclass for two things: the fault to apply to a request
(`draw`) and the answer to it (`respond`). All of it runs on one event loop, in protocol callbacks.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from ntf_server.testing.connection import Connection
from ntf_server.testing.endpoint import Endpoint, Options
from ntf_server.testing.faults import GoAway
from ntf_server.testing.http1 import Http1Connection
from ntf_server.testing.tls import TlsFiles, throwaway_tls

_BACKLOG = 1024
_TLS_CLOSE_TIMEOUT = 1.0  # seconds


class _Negotiated(asyncio.Protocol):
    """Hands a new connection to the protocol that ALPN chose (RFC 7301)."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        link = Connection(self._endpoint) if chosen == "h2" else Http1Connection(self._endpoint)
        transport.set_protocol(link)
        link.connection_made(transport)


class Http2Server(Endpoint):
    """A server for `async with`: listens on entry; on exit ends every connection and removes its CA.

    Entering and `start` raise OSError if the address is taken.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._tls: TlsFiles | None = None
        self._resources = ExitStack()
        self._listener: socket.socket | None = None
        self._context: ssl.SSLContext | None = None
        self.handshakes: set[asyncio.Task[None]] = set()
        self._accepted: set[socket.socket] = set()  # whose handshake has not begun

    @property
    def tls(self) -> TlsFiles:
        """The certificate files; they exist inside `async with` only."""
        if self._tls is None:
            raise RuntimeError("the server was not entered")
        return self._tls

    @property
    def ca_file(self) -> Path:
        """The PEM file of the CA that clients must trust."""
        return self.tls.ca_file

    @property
    def url(self) -> str:
        """The origin, `https://HOST:PORT`."""
        return f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        """Make the certificates and listen."""
        self._tls = self._resources.enter_context(throwaway_tls())
        try:
            await self.start()
        except BaseException:
            self._tls = None
            self._resources.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and remove the certificates."""
        try:
            await self.stop()
        finally:
            self._tls = None
            self._resources.close()

    async def start(self) -> None:
        """Listen, after `stop` on the same port again."""
        if self._listener is not None:
            return
        self._context = self.tls.server_context(self._protocols())
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.create_server((self.host, self.port), family=family, backlog=_BACKLOG)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self.held = False
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _protocols(self) -> list[str]:
        if not self.alpn:
            return []
        return ["h2", "http/1.1"] if self.http1 else ["h2"]

    async def stop(self) -> None:
        """Refuse connections from now on and abort the open ones: an outage."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        handshakes = tuple(self.handshakes)
        self.cut_all()
        await asyncio.gather(*handshakes, return_exceptions=True)
        await self.idle.wait()
        await asyncio.sleep(0)  # the loop closes the aborted handshakes' sockets in its next round

    def cut_all(self) -> None:
        """Abort every connection, TLS handshakes too, without a TLS close."""
        for handshake in tuple(self.handshakes):
            handshake.cancel()
        for sock in self._accepted:  # a task that is cancelled before it begins closes nothing
            sock.close()
        self._accepted.clear()
        for connection in tuple(self.connections):
            connection.cut()

    def goaway_all(self, fault: GoAway = GoAway()) -> None:  # noqa: B008  (frozen)
        """Send GOAWAY on every connection, by default after the newest stream; end idle HTTP/1.1 ones."""
        for connection in tuple(self.connections):
            connection.go_away(fault)

    def blackhole(self, on: bool = True) -> None:
        """Stop reading, answering and accepting, without closing anything; or, with False, go on."""
        self.held = on
        if self._listener is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            if not on:
                loop.add_reader(self._listener, self._accept, self._listener)
        for connection in tuple(self.connections):
            connection.hold(on)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # the peer has gone, or files have run out: the next round tries again
            return
        sock.setblocking(False)
        self._accepted.add(sock)
        handshake = asyncio.get_running_loop().create_task(self._handshake(sock))
        self.handshakes.add(handshake)
        handshake.add_done_callback(self.handshakes.discard)

    async def _handshake(self, sock: socket.socket) -> None:
        self._accepted.discard(sock)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Negotiated(self) if self.http1 else Connection(self),
                sock,
                ssl=self._context,
                ssl_handshake_timeout=self.handshake_timeout,
                ssl_shutdown_timeout=_TLS_CLOSE_TIMEOUT,
            )
        except OSError:
            return  # not TLS, a half-open handshake, a CA that the peer does not trust
