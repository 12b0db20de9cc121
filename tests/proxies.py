"""Real, small proxies: HTTP CONNECT (RFC 9110, section 9.3.6), over TLS too, and SOCKS5 (RFC 1928, RFC 1929), and a
way to one place that is slow, or lets nothing through.
"""

import asyncio
import base64
import ipaddress
import ssl
from typing import Literal, Self

Credentials = tuple[str, str]


class Proxy:
    """A proxy for `async with`. `targets`: where tunnels went, `refused`: how often credentials were not right.

    `swallow`: while it is set, what is sent through tunnels never arrives, and nobody is told. `delay`: seconds that
    each piece of it takes.
    """

    def __init__(
        self,
        kind: Literal["http", "https", "socks5"] = "http",
        credentials: Credentials | None = None,
        tls: ssl.SSLContext | None = None,
        headers: bytes = b"",
        names: dict[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.credentials = credentials
        self.targets: list[str] = []
        self.refused = 0
        self.swallow = False
        self.delay = 0.0
        self._tls = tls
        self._headers = headers
        self._names = names or {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def url(self, credentials: str = "", scheme: str = "") -> str:
        user = f"{credentials}@" if credentials else ""
        return f"{scheme or self.kind}://{user}127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            negotiate = self._socks if self.kind == "socks5" else self._connect
            target = await negotiate(reader, writer)
            if target is not None:
                await self._tunnel(reader, writer, *target)
        except (OSError, EOFError):
            pass
        finally:
            writer.transport.abort()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        there, to = await asyncio.open_connection(self._names.get(host, host), port)
        try:
            pumps = [asyncio.ensure_future(self._pump(reader, to)), asyncio.ensure_future(self._pump(there, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            to.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int] | None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.split("\r\n")
        method, target, _ = request.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        wanted = base64.b64encode(":".join(self.credentials).encode()).decode() if self.credentials else None
        if wanted and headers.get("proxy-authorization") != f"Basic {wanted}":
            self.refused += 1
            writer.write(
                b'HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic realm="p"\r\nContent-Length: 0\r\n\r\n'
            )
            await writer.drain()
            return None
        assert method == "CONNECT"
        self.targets.append(target)
        writer.write(b"HTTP/1.1 200 Connected\r\n" + self._headers + b"\r\n")
        host, _, port = target.rpartition(":")
        return host.strip("[]"), int(port)

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int] | None:
        version, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        method = 2 if self.credentials else 0
        if version != 5 or method not in methods:
            self.refused += 1
            writer.write(b"\x05\xff")
            await writer.drain()
            return None
        writer.write(bytes([5, method]))
        if self.credentials:
            given = []
            await reader.readexactly(1)
            for _ in range(2):
                given.append((await reader.readexactly((await reader.readexactly(1))[0])).decode())
            if tuple(given) != self.credentials:
                self.refused += 1
                writer.write(b"\x01\x01")
                await writer.drain()
                return None
            writer.write(b"\x01\x00")
        _, command, _, kind = await reader.readexactly(4)
        assert command == 1
        if kind in {1, 4}:
            host = str(ipaddress.ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        else:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        port = int.from_bytes(await reader.readexactly(2))
        self.targets.append(f"{host}:{port}")
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        return host, port

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        swallowed = False  # a stream with a hole is none: nothing of it arrives any more
        while data := await reader.read(65_536):
            swallowed = swallowed or self.swallow
            await asyncio.sleep(self.delay)
            if not swallowed:
                writer.write(data)
                await writer.drain()


class Way(Proxy):
    """To one port of this machine, for who knows of no proxy."""

    def __init__(self, to: int) -> None:
        super().__init__()
        self._to = to

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int] | None:
        return "127.0.0.1", self._to
