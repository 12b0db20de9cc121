"""What HTTP/1.1 and HTTP/2 connections of a mock push service have in common: life, counters, writing."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from ntf_server.testing.endpoint import Endpoint
from ntf_server.testing.faults import GoAway


class Link(asyncio.Protocol, ABC):
    """A connection from the end of its TLS handshake on."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._live = False
        self._number = 0
        self._requests = 0
        self._out = bytearray()
        self._linger: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection in and greet the peer."""
        assert isinstance(transport, asyncio.Transport)
        endpoint = self._endpoint
        self._transport = transport
        self._live = True
        endpoint.connections.add(self)
        endpoint.idle.clear()
        endpoint.counters.opened += 1
        endpoint.counters.open += 1
        self._number = endpoint.counters.opened
        self._greet(transport)
        if endpoint.held:
            self.hold(True)
        self._flush()

    def pause_writing(self) -> None:
        """Read no more requests from a peer that does not read our answers."""
        if self._live and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        if self._live and self._transport is not None and not self._endpoint.held:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Count the connection out."""
        self._die()
        self._transport = None
        endpoint = self._endpoint
        endpoint.connections.discard(self)
        endpoint.counters.open -= 1
        if not endpoint.connections:
            endpoint.idle.set()

    # --- for the server ---

    def cut(self) -> None:
        """Abort the connection, without a TLS close."""
        self._die()
        if self._transport is not None:
            self._transport.abort()

    def hold(self, on: bool) -> None:
        """Stop reading and writing, or go on."""
        if not self._live or self._transport is None:
            return
        if on:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
            self._flush()

    @abstractmethod
    def go_away(self, fault: GoAway) -> None:
        """Take no new requests from now on."""

    # --- for the two protocols ---

    def _greet(self, transport: asyncio.Transport) -> None:
        """Say what comes before any request."""

    def _collect(self) -> None:
        """Move what is to be sent into `_out`."""

    def _count_stream(self, mine: int) -> None:
        """Count a begun request, one of `mine` on this connection."""
        counters = self._endpoint.counters
        counters.streams += 1
        counters.max_streams = max(counters.max_streams, counters.streams)
        counters.max_streams_per_connection = max(counters.max_streams_per_connection, mine)

    def _count_request(self) -> bool:
        """Count a whole request; say whether it is the last one that the connection may bring."""
        self._endpoint.counters.requests += 1
        self._requests += 1
        return self._endpoint.goaway_after is not None and self._requests >= self._endpoint.goaway_after

    def _flush(self) -> None:
        self._collect()
        if not self._live or self._transport is None or self._endpoint.held or not self._out:
            return
        self._transport.write(bytes(self._out))
        self._out.clear()

    def _close_later(self) -> None:
        # Closing at once could reset the connection under answers that the peer has not read.
        if self._live and self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(self._endpoint.linger, self._close)

    def _die(self) -> None:
        self._live = False
        if self._linger is not None:
            self._linger.cancel()

    def _close(self) -> None:
        self._die()
        if self._transport is not None:
            self._transport.close()
