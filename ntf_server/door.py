"""A client's connection before anything is spent on it: whose it is, and its turn to have a handshake.

No TLS is made before the first record of a client is whole (RFC 8446, section 5.1): until then a connection takes a few
KiB, and a client who never ends it nothing of what there is for handshakes.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from ntf_server.admission.addresses import Network, is_in
from ntf_server.admission.gate import Admission
from ntf_server.admission.proxy_header import HEAD, ProxyHeaderError, client_address, rest_size
from ntf_server.admission.sessions import Peer
from ntf_server.event_loop import descriptor, put_apart, put_back

log = logging.getLogger(__name__)

_HANDSHAKE: Final = 22  # type of a record
_HEADER: Final = 5  # bytes: type, version, length of the rest
_MAX_RECORD: Final = 2**14
_READ: Final = 2**14  # bytes at once


def _is_whole(received: bytearray) -> bool:
    """Whether TLS can do something with it: a whole record, or what is none of a handshake."""
    if len(received) < _HEADER:
        return False
    return received[0] != _HANDSHAKE or len(received) >= _HEADER + min(int.from_bytes(received[3:5]), _MAX_RECORD)


class Door(asyncio.BufferedProtocol):
    """One connection. `buffer`: at least 16 KiB that many may share; `timeout`: seconds until its record is whole.

    `proxies`: networks of balancers, which say first whose connection it is (`admission.proxy_header`); `let_in`: told
    of the transport, whose it is, and what came so far. It sets another protocol.
    """

    __slots__ = (
        "_admission",
        "_buffer",
        "_let_in",
        "_peer",
        "_proxies",
        "_received",
        "_timeout",
        "_timer",
        "_transport",
    )

    def __init__(
        self,
        admission: Admission,
        proxies: tuple[Network, ...],
        timeout: float,
        buffer: bytearray,
        let_in: Callable[[asyncio.Transport, Peer, bytes], None],
    ) -> None:
        self._admission = admission
        self._proxies = proxies
        self._timeout = timeout
        self._buffer = buffer
        self._let_in = let_in
        self._peer: Peer | None = None
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for its first record, or for its proxy; or close it at once, over a budget."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        put_apart(descriptor(transport))
        address = transport.get_extra_info("peername")
        host: str = address[0] if address else ""
        self._timer = asyncio.get_running_loop().call_later(self._timeout, transport.abort)
        if not is_in(host, self._proxies):
            self._open(host)

    def _open(self, host: str) -> None:
        assert self._transport is not None
        self._peer = self._admission.open(host, self._transport.abort)
        if self._peer is None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room for what arrived."""
        return memoryview(self._buffer)[:_READ]

    def buffer_updated(self, nbytes: int) -> None:
        """Some bytes arrived."""
        assert self._transport is not None
        self._received += memoryview(self._buffer)[:nbytes]
        if self._peer is None and not self._is_told():
            return
        if self._peer is not None and not self._transport.is_closing() and _is_whole(self._received):
            self._wait_no_longer()
            if wait := self._admission.handshake_wait(self._peer):
                self._transport.pause_reading()
                self._timer = asyncio.get_running_loop().call_later(wait, self._go_on)
            else:
                self._go_on()

    def _is_told(self) -> bool:
        """Whether the proxy has said whose it is."""
        assert self._transport is not None
        if self._transport.is_closing() or len(self._received) < HEAD:
            return False
        head = bytes(self._received[:HEAD])
        try:
            size = HEAD + rest_size(head)
            if len(self._received) < size:
                return False
            host = client_address(head, bytes(self._received[HEAD:size]))
        except ProxyHeaderError as e:
            log.debug("a connection was closed: %s", e)
            self._transport.abort()
            return False
        del self._received[:size]
        self._open(host or "")
        return True

    def _go_on(self) -> None:
        """It is its turn."""
        assert self._transport is not None
        assert self._peer is not None
        if not self._transport.is_closing():
            self._let_in(self._transport, self._peer, bytes(self._received))
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """As the base's."""
        assert self._transport is not None
        put_back(descriptor(self._transport))
        self._wait_no_longer()
        if self._peer is not None:
            self._admission.closed(self._peer)

    def _wait_no_longer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
