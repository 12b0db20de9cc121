"""A relay that strangers attack, and what is honest around it: devices, SMP servers, push services, a DNS server."""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import honest_smp
from control import Child, child
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from devices import Device, new_browsers, new_devices, register, verify
from ntf_load import Command, Connection, connected, run
from phones import Pushes
from smp_load import notifier_id
from wire_relay import Folder, Running, Side, new_folder, running

from ntf_server.testing.tls import TlsFiles, throwaway_tls
from smp_bridge import ntf
from smp_bridge.address import ServerAddress

SERVERS: Final = 15
QUEUES: Final = 20  # of each
LATENCY: Final = 30.0  # milliseconds to an SMP server and back
PHONES: Final = 40  # of Apple; and half as many browsers
PUSH_NAME: Final = "push.honest.example"
EVIL: Final = "evil.example"  # names that lead to strangers' servers
EVIL_HOST: Final = "127.0.66.6"
SILENT: Final = "silent.example"  # names that nobody answers for
_WINDOW: Final = 32
_TIMEOUT: Final = 60.0
_POLL: Final = 0.02

_CONFIG: Final = """\
[transport]
host = "localhost"
port = 0
bind = "127.0.0.1"

[apns.test]
host = "localhost"
port = {port}
ca_file = "{ca_file}"

[web_push]
key_file = "vapid.key"
contact = "mailto:bench@example.org"
ca_file = "{ca_file}"
allow_hosts = ["127.0.0.0/8"]

[subscriber]
allow_private_hosts = true
"""


@dataclass(frozen=True, slots=True)
class World:
    """What is there before any relay is."""

    folder: Path
    side: Side
    tls: TlsFiles
    mock: Child
    smp: Child
    sink: Child
    servers: Sequence[ServerAddress]

    @property
    def sink_address(self) -> ServerAddress:
        """Of the sink, as a notification server."""
        ready = self.sink.ready
        return ServerAddress("ntf", ("127.0.0.1",), str(ready["port"]), bytes.fromhex(ready["key_hash"]))


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """Until the block ends."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ntf-strangers-")))
        tls = stack.enter_context(throwaway_tls(("localhost", "127.0.0.1", PUSH_NAME, f"*.{EVIL}")))
        mock = await enter(child("apns_load.py", "--cert", str(tls.cert_file), "--key", str(tls.key_file)))
        smp = await enter(child("honest_smp.py", f"--servers={SERVERS}", f"--queues={QUEUES}", f"--latency={LATENCY}"))
        sink = await enter(child("sink.py"))
        dns = await enter(child("dns_load.py", _json_zone()))
        servers = [ServerAddress.from_text(text) for text in smp.ready["servers"]]
        yield World(folder, _side(folder, dns), tls, mock, smp, sink, servers)


def _json_zone() -> str:
    zone: dict[str, list[str] | None] = {honest_smp.name(i): [honest_smp.host(i)] for i in range(SERVERS)}
    return json.dumps(zone | {PUSH_NAME: ["127.0.0.1"], EVIL: [EVIL_HOST], SILENT: None})


def _side(folder: Path, dns: Child) -> Side:
    """This tree's relay, as the command that operators start, with the bench's DNS."""
    script = Path(__file__).with_name("named_relay.py")
    command = folder / "ntf-server"
    command.write_text(f'#!/bin/sh\nBENCH_DNS=127.0.0.1:{dns.ready["port"]} exec "{sys.executable}" "{script}" "$@"\n')
    command.chmod(0o700)
    return Side("the relay", folder)


@dataclass(frozen=True, slots=True)
class Besieged:
    """A relay with honest devices, whose queues are subscribed. `spare`: devices that were ACTIVE when it began."""

    world: World
    relay: Running
    log: Path
    owners: Sequence[Device]
    spare: Sequence[Device]
    pushes: Pushes

    def log_lines(self) -> int:
        """So far."""
        return self.log.read_bytes().count(b"\n")

    def descriptors(self) -> int:
        """Open now."""
        return sum(1 for _ in Path(f"/proc/{self.relay.pid}/fd").iterdir())

    async def subscribed(self) -> float | None:
        """When the last server had all its queues subscribed, time.monotonic; None: not all have."""
        times = (await self.world.smp.call("stats"))["complete_at"]
        return None if None in times else max(times)

    async def until_subscribed(self) -> None:
        """Raises TimeoutError."""
        deadline = time.monotonic() + _TIMEOUT
        while await self.subscribed() is None:
            if time.monotonic() > deadline:
                raise TimeoutError("the honest queues are not subscribed")
            await asyncio.sleep(_POLL)


@asynccontextmanager
async def besieged(world: World, spare: int) -> AsyncIterator[Besieged]:
    """A new relay until the block ends; `spare`: ACTIVE devices without queues. Raises TimeoutError."""
    values = {"port": world.mock.ready["port"], "ca_file": world.tls.ca_file}
    path = Path(tempfile.mkdtemp(dir=world.folder), "relay")
    folder: Folder = await new_folder(world.side, path, [_CONFIG.format(**values)], ())
    await world.mock.call("set")
    async with running(world.side, folder) as relay:
        owners = [
            *new_devices(PHONES, "ed25519"),
            *new_browsers(PHONES // 2, f"https://{PUSH_NAME}:{world.mock.ready['port']}"),
        ]
        others = new_devices(spare, "ed25519")
        async with connected(relay.address, 4) as connections:
            for devices in (owners[:PHONES], owners[PHONES:], others):
                await register(connections, devices, world.mock, window=_WINDOW)
                await verify(connections, devices, window=_WINDOW)
            await _subscribe(connections, owners, world.servers)
        await world.mock.call("reset")
        await world.mock.call("keep", on=True)
        pushes = Pushes(world.mock)
        out = Besieged(world, relay, path / "log", owners, others, pushes)
        await out.until_subscribed()
        collecting = asyncio.create_task(pushes.run())
        try:
            yield out
        finally:
            pushes.stop()
            await asyncio.wait([collecting])


async def _subscribe(
    connections: Sequence[Connection], owners: Sequence[Device], servers: Sequence[ServerAddress]
) -> None:
    """All queues of all servers, which belong to the devices in turn."""
    version = connections[0][1].version
    commands = []
    for i in range(QUEUES * len(servers)):
        server, queue = divmod(i, QUEUES)
        owner = owners[i % len(owners)]
        new = ntf.SNew(owner.token_id, servers[server], notifier_id(queue), Ed25519PrivateKey.generate())
        commands.append(Command(new.encode(version), b"", owner.key))
    (await run(connections, commands, window=_WINDOW)).check(b"IDSUB")
