"""What a relay takes when nothing happens: memory, time to start, memory of idle clients."""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bursts import process_rss
from control import Child, child
from devices import until_subscribed
from fill import Content, environment, fill, init
from report import MIB, Row, say, show

from ntf_server.config import files as config
from smp_bridge.address import ServerAddress

# Goals of the issue.
START: Final = 0.5  # seconds
IDLE: Final = 45  # MiB
SUBSCRIBED: Final = 50  # MiB, with 10,000 subscriptions
CONNECTION: Final = 25  # kB of an idle client

_STARTS: Final = 5
_SETTLE: Final = 1.0


async def measure(arguments: argparse.Namespace, load: Child) -> None:
    """All of it, with databases of its own; `load` has the queues."""
    env = os.environ | environment(services=False)
    with tempfile.TemporaryDirectory(prefix="ntf-bench-") as folder:
        directory, starts = Path(folder), []
        await init(directory)
        for _ in range(_STARTS):
            async with _running(directory, env) as relay:
                starts.append(relay.seconds)
        async with _running(directory, env) as relay:
            idle = await relay.rss()
            say(f"opening {arguments.idle:,} connections")
            began = time.monotonic()
            async with child("idle_load.py", str(relay.address), str(arguments.idle)):
                opened = time.monotonic() - began
                connected = await relay.rss()
        servers = [ServerAddress.from_text(text) for text in load.ready["servers"]]
        await fill(config.load(directory), servers, Content(arguments.subscriptions))
        async with _running(directory, env) as relay:
            await until_subscribed(load, arguments.subscriptions, arguments.timeout)
            subscribed = await relay.rss()
    each = (connected - idle) / arguments.idle / 1000 if arguments.idle else 0.0
    show(
        "Idle",
        [
            Row(f"start of the process to `listening`, median of {_STARTS}", statistics.median(starts), "s", START),
            Row("  longest", max(starts), "s"),
            Row("RSS, nothing in the database", idle / MIB, "MiB", IDLE),
            Row(f"RSS, {arguments.subscriptions:,} subscriptions", subscribed / MIB, "MiB", SUBSCRIBED),
            Row(f"an idle client, of {arguments.idle:,}", each, "kB", CONNECTION),
            Row("  handshakes a second, with a client as slow as that", arguments.idle / opened, "/s"),
        ],
    )


def address(relay: Child) -> ServerAddress:
    """Of a relay that `relay_process` runs."""
    return ServerAddress("ntf", ("127.0.0.1",), str(relay.ready["port"]), bytes.fromhex(relay.ready["key_hash"]))


@dataclass(frozen=True, slots=True)
class _Running:
    """`ntf-server` as operators run it; `seconds`: from the start of its process until it said that it listens."""

    pid: int
    address: ServerAddress
    seconds: float

    async def rss(self) -> int:
        """Bytes, when all is quiet."""
        await asyncio.sleep(_SETTLE)
        return process_rss(self.pid)


@asynccontextmanager
async def _running(directory: Path, env: Mapping[str, str]) -> AsyncIterator[_Running]:
    began = time.monotonic()
    command = (sys.executable, "-m", "ntf_server", "start", "--path", str(directory))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=env
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode().strip()
    seconds = time.monotonic() - began
    if not line.startswith("listening on "):
        raise RuntimeError("the relay did not start")
    key_hash = config.load(directory).credentials.key_hash
    try:
        yield _Running(process.pid, ServerAddress("ntf", ("127.0.0.1",), line.rpartition(":")[2], key_hash), seconds)
    finally:
        process.terminate()
        await process.wait()
