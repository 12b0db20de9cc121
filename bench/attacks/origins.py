"""A stranger's own push service (RFC 8030), which answers as he likes: HTTP/1.1 over TLS, under any name of his."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]

_HEAD: Final = 2**16
_CREATED: Final = b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n"


async def created(writer: asyncio.StreamWriter) -> None:
    """Taken, as an honest service says it."""
    writer.write(_CREATED)


async def busy(writer: asyncio.StreamWriter) -> None:
    """429: come again in a second."""
    writer.write(b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n")


async def slow(writer: asyncio.StreamWriter) -> None:
    """Taken, a little before the relay gives it up."""
    await asyncio.sleep(28)
    writer.write(_CREATED)


async def huge_body(writer: asyncio.StreamWriter) -> None:
    """An answer that never ends, as fast as it is read."""
    writer.write(b"HTTP/1.1 400 Bad Request\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    while True:
        await _pour(writer, chunk)


async def endless_headers(writer: asyncio.StreamWriter) -> None:
    """Headers without end."""
    writer.write(b"HTTP/1.1 201 Created\r\n")
    i = 0
    while True:
        await _pour(writer, b"".join(b"x-%d: %s\r\n" % (k, b"y" * 200) for k in range(i, i + 100)))
        i += 100


async def drip(writer: asyncio.StreamWriter) -> None:
    """A byte now and then."""
    for byte in _CREATED * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.5)


async def _pour(writer: asyncio.StreamWriter, data: bytes) -> None:
    """`drain` lets nobody else in while the peer takes all, and notices no peer who left."""
    writer.write(data)
    await writer.drain()
    await asyncio.sleep(0.001)


async def _left(reader: asyncio.StreamReader) -> None:
    while not reader.at_eof():  # noqa: ASYNC110  there is no event for it that takes nothing from the next request
        await asyncio.sleep(0.2)


async def garbage(writer: asyncio.StreamWriter) -> None:
    """What is no HTTP/2, to who speaks that."""
    writer.write(bytes(range(256)) * 64)
    await writer.drain()


class Origin:
    """Listens on one port. `answer`: to what comes from now on; `came`: body of the last push to each path."""

    def __init__(self, cert_file: str, key_file: str, answer: Answer = created, *, http2: bool = False) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert_file, key_file)
        self._context.set_alpn_protocols(["h2" if http2 else "http/1.1"])
        self._http2 = http2
        self.answer = answer
        self.came: dict[str, str] = {}
        self.pushes = 0
        self.open = 0

    async def listen(self, host: str) -> int:
        """The port."""
        self._server = await asyncio.start_server(
            self._serve, host, 0, ssl=self._context, limit=_HEAD, backlog=4096, ssl_handshake_timeout=60
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            if self._http2:
                await reader.read(_HEAD)
                self.pushes += 1
                await self.answer(writer)
            else:
                await self._requests(reader, writer)
        self.open -= 1
        with contextlib.suppress(OSError):
            writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request, *fields = head.split("\r\n")
            sizes = (f.partition(":")[2] for f in fields if f.lower().startswith("content-length:"))
            body = await reader.readexactly(int(next(sizes, "0")))
            self.came[request.split(" ")[1]] = body.decode("latin-1")
            self.pushes += 1
            await self._say(reader, writer)

    async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer, unless the relay leaves meanwhile. Raises ConnectionResetError."""
        saying = asyncio.ensure_future(self.answer(writer))
        leaving = asyncio.ensure_future(_left(reader))
        try:
            await asyncio.wait([saying, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not saying.done():
                raise ConnectionResetError
            saying.result()
            await writer.drain()
        finally:
            saying.cancel()
            leaving.cancel()
