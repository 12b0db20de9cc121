"""The mock that push engines are measured with: `apns_load`, with answers that other clients understand too.

APNs: they name the `apns-id`, which aioapns tells requests apart by. It is taken to be the `:path`, which goes back as
it came, so that no table of headers need be followed: who looks for the id must ask with that one.

FCM (`--fcm`): they are a JSON object that is the name of a message and an access token in one, and HTTP/1.1 is spoken
as well, without checks: pyfcm knows nothing else.

Controlled as `control` says, with `set`, `reset` and `stats` of `apns_load`; its rate of errors is not for here.
"""

import argparse
import asyncio
import re
import resource
import ssl
import time
from typing import Final

import apns_load
from apns_load import HOST, Mock, frame
from control import Command, obey

_HEADERS, _DATA, _END_STREAM, _END_HEADERS = 1, 0, 1, 4
_STATUS_200: Final = b"\x88"
_APNS_ID: Final = b"\x00\x07apns-id"  # a literal without indexing (RFC 7541, section 6.2.2), its value still to come
_BOTH: Final = (
    b'{"name": "projects/bench/messages/0", "access_token": "bench", "expires_in": 3599, "token_type": "Bearer"}'
)
_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BOTH) + _BOTH
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BACKLOG: Final = 4096  # pyfcm connects for every message


class EngineMock(Mock):
    """Remembers the paths of requests until they are answered."""

    def __init__(self, streams: int, *, fcm: bool) -> None:
        super().__init__(streams, seed=1)
        self.fcm = fcm
        self._fresh: list[bytes] = []

    def arrived(self, at: int, raw: bytes, body: bytearray | None) -> None:
        """A whole request came; `paths` gives it out before anything else comes."""
        super().arrived(at, raw, body)
        self._fresh.append(raw)

    def paths(self) -> list[bytes]:
        """Of the requests that came since the last call."""
        out, self._fresh = self._fresh, []
        return out

    def accept(self, stream: int, path: bytes) -> bytes:
        """The frames of an answer."""
        self.accepted += 1
        if not self.fcm:
            return frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _STATUS_200 + _APNS_ID + path)
        return frame(_HEADERS, _END_HEADERS, stream, _STATUS_200) + frame(_DATA, _END_STREAM, stream, _BOTH)


class _Connection(apns_load.Connection):
    """A client that speaks HTTP/2."""

    def __init__(self, mock: EngineMock) -> None:
        super().__init__(mock)
        self._engine_mock = mock

    def _answer(self, out: list[bytes], ended: list[int]) -> None:
        mock = self._engine_mock
        answers = b"".join(map(mock.accept, ended, mock.paths()))
        if mock.latency and answers:
            asyncio.get_running_loop().call_later(mock.latency, self._write, answers)
        else:
            out.append(answers)
        self._write(b"".join(out))


class _Http1(asyncio.Protocol):
    """A client that speaks HTTP/1.1 (RFC 9112), one request after the other, with Content-Length."""

    def __init__(self, mock: EngineMock) -> None:
        self._mock = mock
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._mock.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Some bytes came; maybe they are the end of a request."""
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if not end or len(rest) < size:
            return
        self._buffer = rest[size:]
        self._mock.arrived(time.monotonic_ns(), b"", None)
        self._mock.paths()
        self._mock.received += size
        self._mock.accepted += 1
        asyncio.get_running_loop().call_later(self._mock.latency, self._answer)

    def _answer(self) -> None:
        if self._transport is not None:
            self._transport.write(_OK)


class _Either(asyncio.Protocol):
    """What ALPN chose, when it is known."""

    def __init__(self, mock: EngineMock) -> None:
        self._mock = mock

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up."""
        alpn = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        protocol = _Connection(self._mock) if alpn == "h2" else _Http1(self._mock)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


async def _main(arguments: argparse.Namespace) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.cert, arguments.key)
    context.set_alpn_protocols(["h2", "http/1.1"] if arguments.fcm else ["h2"])
    mock = EngineMock(arguments.streams, fcm=arguments.fcm)
    server = await asyncio.get_running_loop().create_server(
        lambda: _Either(mock), HOST, 0, ssl=context, backlog=_BACKLOG
    )
    commands: dict[str, Command] = {"set": mock.set, "reset": mock.reset, "stats": mock.stats}
    await obey(commands, {"port": server.sockets[0].getsockname()[1]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fast mock APNs or FCM.")
    parser.add_argument("--cert", required=True, help="PEM chain")
    parser.add_argument("--key", required=True, help="PEM key")
    parser.add_argument("--streams", type=int, default=1000, help="that a connection may have at once (%(default)s)")
    parser.add_argument("--fcm", action="store_true", help="be FCM, and Google's OAuth endpoint")
    asyncio.run(_main(parser.parse_args()))
