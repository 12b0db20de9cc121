"""Scripted faults of the mock push services, and the queues they wait in.

HTTP/1.1 has no streams: there RstStream and an unprocessed GoAway end the connection without an answer, and a
processed GoAway ends it after the answer, which says `connection: close` (RFC 9112 section 9.6).
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

from h2.errors import ErrorCodes


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: status, and a body made of `reason` and `timestamp` (ms) as JSON unless `body` is given."""

    status: int = 200
    reason: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    timestamp: int | None = None
    body: bytes | None = None

    def payload(self) -> bytes:
        """Return the body's bytes, empty if there is neither a body nor a reason."""
        if self.body is not None:
            return self.body
        if self.reason is None:
            return b""
        fields: dict[str, str | int] = {"reason": self.reason}
        if self.timestamp is not None:
            fields["timestamp"] = self.timestamp
        return json.dumps(fields).encode()


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait `seconds` once the request is whole, then apply `then`, or answer as usual."""

    seconds: float
    then: Fault | None = None


@dataclass(frozen=True, slots=True)
class RstStream:
    """Reset the stream (RFC 9113 section 6.4); with `processed`, only after the request took effect."""

    code: int = ErrorCodes.INTERNAL_ERROR
    processed: bool = False


@dataclass(frozen=True, slots=True)
class Silence:
    """Never answer this stream; with `processed`, the request takes effect nevertheless."""

    processed: bool = False


@dataclass(frozen=True, slots=True)
class GoAway:
    """Send GOAWAY (RFC 9113 section 6.8) once `after` more streams were opened behind this request.

    The last stream is this request's, or the one before if not `processed`, or `last_stream_id`. Later ones
    are dropped unprocessed, the others are answered, then the connection ends. `reason` goes as JSON into
    the debug data, as APNs does.
    """

    after: int = 0
    processed: bool = True
    last_stream_id: int | None = None
    code: int = ErrorCodes.NO_ERROR
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CutTls:
    """Abort the connection, without a TLS close, amid this exchange.

    During the request: once `after_bytes` of its body came, at the latest at its end; it has no effect.
    During the response: after `after_bytes` of its frames were sent; the request took effect.
    """

    after_bytes: int = 0
    during: Literal["request", "response"] = "request"


Fault: TypeAlias = Answer | Delay | RstStream | Silence | GoAway | CutTls


class Script:
    """Queues of faults, one taken per request: those of the request's key come before those for all."""

    def __init__(self) -> None:
        self._queues: dict[str | None, deque[Fault]] = {}

    def add(self, *faults: Fault, key: str | None = None) -> None:
        """Append faults for requests with that key, or for any request."""
        self._queues.setdefault(key, deque()).extend(faults)

    def take(self, key: str | None) -> Fault | None:
        """Remove and return the next fault for a request with that key, None if there is none."""
        for queue in (self._queues.get(key), self._queues.get(None)):
            if queue:
                return queue.popleft()
        return None

    @property
    def keyed(self) -> bool:
        """Whether a fault waits for requests of one key."""
        return any(queue for key, queue in self._queues.items() if key is not None)

    def clear(self) -> None:
        """Forget every fault."""
        self._queues.clear()
