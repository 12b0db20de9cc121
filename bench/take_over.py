"""How long the queues of a relay that ends are nobody's: three relays on one Redis, under load, ended in turn.

Each SMP server keeps a message for a queue from the moment at which the relay that ends has let go of it; what is
measured is the time from the signal to its push. The SMP servers and APNs are in this process.
"""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis
import redis_server
from percentiles import percentile
from report import Row, say, show

from ntf_client.client import NtfClient
from ntf_client.device import Device, Queue
from ntf_client.push import VerificationCode
from ntf_server.admin.drain import DRAIN
from ntf_server.admin.socket import ask
from ntf_server.store.redis.names import Names, server_id
from ntf_server.testing import MockApns, Push
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

NODES: Final = 3
GOALS: Final = {"SIGKILL": 10.0, "SIGTERM": 1.0, "drain": 1.0}  # seconds, p95
_RATE: Final = 200  # messages a second to queues of the other nodes meanwhile
_PATIENCE: Final = 60.0
_SETTLED: Final = 3.0  # seconds that all is as it should be before the next round


@dataclass
class Node:
    """A relay process; `port` stays once it is known."""

    name: str
    folder: Path
    environment: dict[str, str]
    identity: str = ""  # its address without the port
    port: int = 0
    process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> ServerAddress:
        """Of clients."""
        return ServerAddress.from_text(f"{self.identity}:{self.port}")

    async def start(self) -> None:
        """And wait until it listens."""
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *_command("start", self.folder),
                env=os.environ | self.environment | {"NTF_SERVER__TRANSPORT__PORT": str(self.port)},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), _PATIENCE)).decode()
        if not line.startswith("listening on "):
            raise RuntimeError(f"{self.name} did not start: see {self.folder / 'log'}")
        self.port = int(line.rpartition(":")[2])

    async def end(self, how: str) -> None:
        """By a signal, or by what `ntf-server drain` asks for; does not wait."""
        assert self.process is not None
        if how == "drain":
            await asyncio.to_thread(ask, self.folder / "ntf-server.sock", DRAIN, seconds=_PATIENCE)
        else:
            self.process.send_signal(signal.Signals[how])

    async def ended(self) -> int:
        """Its exit code."""
        assert self.process is not None
        return await asyncio.wait_for(self.process.wait(), _PATIENCE)


def _command(name: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "ntf_server", name, "--path", str(folder)]


@dataclass
class World:
    """Nodes, SMP servers, and queues by (number of their server, notifier id); each queue has a device of its own."""

    nodes: list[Node]
    servers: list[SmpServer]
    store: redis_server.Server
    came: dict[str, float] = field(default_factory=dict)  # device tokens whose push is waited for, and when it came
    all_came: asyncio.Event = field(default_factory=asyncio.Event)
    codes: dict[str, asyncio.Future[Mapping[str, Any]]] = field(default_factory=dict)  # of devices that register
    queues: list[tuple[SmpServer, bytes, str]] = field(default_factory=list)

    def on_push(self, push: Push) -> None:
        """The first one counts."""
        if (code := self.codes.pop(push.token, None)) is not None:
            code.set_result(push.body)
        if self.came.get(push.token) == 0.0:
            self.came[push.token] = time.monotonic()
            if all(self.came.values()):
                self.all_came.set()

    def expect(self, tokens: Sequence[str]) -> None:
        """From now on the first push to each of these counts."""
        self.came = dict.fromkeys(tokens, 0.0)
        self.all_came.clear()

    def holders(self) -> dict[SmpServer, str]:
        """Which node holds each server; nobody: ''."""
        names = Names("ntf")
        with redis.Redis.from_url(self.store.url) as client:
            found = {s: client.hget(names.server(server_id(s.address)), "node") for s in self.servers}
        return {server: bytes(node or b"").decode() for server, node in found.items()}

    async def settled(self) -> dict[SmpServer, str]:
        """Each node has servers, and all queues are subscribed, for a while: who holds what."""
        since, before = time.monotonic(), self.holders()
        async with asyncio.timeout(_PATIENCE):
            while time.monotonic() - since < _SETTLED:
                await asyncio.sleep(0.1)
                now = self.holders()
                whole = all(server.subscribed(queue) for server, queue, _ in self.queues)
                if now != before or set(now.values()) != {node.name for node in self.nodes} or not whole:
                    since, before = time.monotonic(), now
        return before

    async def load(self, queues: Sequence[tuple[SmpServer, bytes, str]]) -> None:
        """Messages to these, in turn, until cancelled."""
        while True:
            for server, queue, _ in queues:
                server.notify(queue)
                await asyncio.sleep(1 / _RATE)


@dataclass
class Round:
    """Of one end: seconds from the signal to the push of each queue, and to the end of the process; its exit code."""

    pushed: list[float]
    ended: float
    code: int


async def end_one(world: World, node: Node, how: str) -> Round:
    """While the others are under load."""
    holders = await world.settled()
    mine = [queue for queue in world.queues if holders[queue[0]] == node.name]
    others = [queue for queue in world.queues if holders[queue[0]] != node.name]
    loading = asyncio.create_task(world.load(others))
    try:
        await asyncio.sleep(1.0)
        world.expect([token for _, _, token in mine])
        began = time.monotonic()
        async with asyncio.timeout(_PATIENCE):
            sending = [asyncio.create_task(_send_when_free(*queue[:2])) for queue in mine]
            await node.end(how)
            code = await node.ended()
            ended = time.monotonic() - began
            await asyncio.gather(*sending)
            await world.all_came.wait()
    finally:
        loading.cancel()
    return Round([at - began for at in world.came.values()], ended, code)


async def _send_when_free(server: SmpServer, queue: bytes) -> None:
    await server.until(lambda: not server.subscribed(queue), _PATIENCE)
    server.notify(queue)


async def measure(folder: Path, store: redis_server.Server, rounds: int, servers: int, queues: int) -> bool:
    """So many ends of each kind, of the nodes in turn; `queues` on each of so many SMP servers. Are goals met?"""
    met = True
    async with _world(folder, store, servers) as world:
        say(f"{NODES} relays, {servers} SMP servers with {queues} queues each")
        await _register(world, queues)
        for how, goal in GOALS.items():
            done: list[Round] = []
            for number in range(rounds):
                node = world.nodes[number % NODES]
                done.append(await end_one(world, node, how))
                say(f"{how} {number + 1} of {rounds}: {len(done[-1].pushed)} queues, {max(done[-1].pushed):.2f} s")
                await node.start()
            met = _shown(how, goal, done) and met
    return met


def _shown(how: str, goal: float, rounds: Sequence[Round]) -> bool:
    pushed = sorted(seconds for r in rounds for seconds in r.pushed)
    expected = {-signal.SIGKILL} if how == "SIGKILL" else {0}
    rows = [
        Row("queues that the node held", len(pushed), ""),
        Row(f"{how} to push p50", percentile(pushed, 50), "s"),
        Row(f"{how} to push p95", percentile(pushed, 95), "s", goal),
        Row(f"{how} to push, the last", percentile(pushed, 100), "s"),
        Row("end of the process, the last", max(r.ended for r in rounds), "s"),
        Row("other exit codes", len([r for r in rounds if r.code not in expected]), "", 0),
    ]
    show(f"take-over: {how}, {len(rounds)} times", rows)
    return all(row.met for row in rows)


async def _register(world: World, queues: int) -> None:
    """A device with one queue, `queues` times on each SMP server."""
    async with NtfClient.connect(world.nodes[0].address) as client:
        for server in world.servers:
            async with await Recipient.connect(server.address) as recipient:
                for _ in range(queues):
                    token = os.urandom(32).hex()
                    device = Device.create(
                        world.nodes[0].address, ntf.DeviceToken(ntf.Provider.APNS_TEST, token.encode())
                    )
                    code = asyncio.get_running_loop().create_future()
                    world.codes[token] = code
                    await device.register(client)
                    content = device.open_push(await asyncio.wait_for(code, _PATIENCE))
                    assert isinstance(content, VerificationCode)
                    await device.verify(client, content.code)
                    queue = await recipient.queue()
                    await device.subscribe(client, Queue(server.address, queue.notifier_id, queue.notifier_key))
                    world.queues.append((server, queue.notifier_id, token))


@asynccontextmanager
async def _world(folder: Path, store: redis_server.Server, servers: int) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        smp_servers = [await stack.enter_async_context(SmpServer()) for _ in range(servers)]
        world = World([], smp_servers, store)
        apns = await stack.enter_async_context(MockApns(on_push=world.on_push, record=False))
        environment = {
            "NTF_SERVER__APNS__TEST__HOST": "localhost",
            "NTF_SERVER__APNS__TEST__PORT": str(apns.port),
            "NTF_SERVER__APNS__TEST__CA_FILE": str(apns.ca_file),
            "NTF_SERVER__SUBSCRIBER__ALLOW_PRIVATE_HOSTS": "true",
            "NTF_SERVER__LIMITS__ENABLED": "false",
            "NTF_SERVER__TRANSPORT__BIND": "localhost",
            "NTF_SERVER__LOG__LEVEL": "warning",
            "NTF_SERVER__STORE__URL": store.url,
        }
        for number in range(NODES):
            name = f"node{number}"
            node = Node(name, folder / name, environment | {"NTF_SERVER__STORE__NODE": name})
            await _init(node, world.nodes[0] if world.nodes else None)
            world.nodes.append(node)
            stack.push_async_callback(_killed, node)
            await node.start()
        yield world


async def _init(node: Node, like: Node | None) -> None:
    """An identity for the first, which the others have too."""
    if like is not None:
        shutil.copytree(like.folder, node.folder, ignore=shutil.ignore_patterns("*.sock", "log"))
        node.identity = like.identity
        return
    process = await asyncio.create_subprocess_exec(
        *_command("init", node.folder), "--fqdn", "localhost", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    node.identity = out.decode().strip()


async def _killed(node: Node) -> None:
    if node.process is not None and node.process.returncode is None:
        node.process.kill()
        await node.process.wait()
