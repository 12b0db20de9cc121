"""Honest SMP servers, each on an address and with an identity of its own, some milliseconds away from the relay.

They are those of `smp_load`, one a server: queue i of each server has the notifier id of index i. `honest_smp.py
--servers N --queues N --latency MS`; the addresses are told as names of `DOMAIN`. Controlled as `control` says:

    stats                see `Servers.stats`
    drop                 abort all connections at once; when that was, time.monotonic
    begin rate=R         NMSGs, R a second, to queues that are subscribed, in turn
    end                  no more of them; [[nonce in hex, when it was written, time.monotonic_ns], ...]
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import time
from collections import deque
from typing import Any, Final

import smp_load
from control import Command, obey

from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import NONCE_SIZE
from smp_bridge.identity import Credentials
from smp_bridge.tls import SslTls, server_context
from smp_bridge.transmission import encode_blocks, encode_transmission
from smp_bridge.transport import HANDSHAKE_TIMEOUT, BlockConnection, ConnectionClosedError, Scratch

DOMAIN: Final = "honest.example"


def host(i: int) -> str:
    """The address of the i-th server."""
    return f"127.0.20.{i + 1}"


def name(i: int) -> str:
    """Its name."""
    return f"smp{i}.{DOMAIN}"


class FarConnection(BlockConnection):
    """What comes is read so much later as a round trip takes."""

    __slots__ = ("_latency", "_under_way")

    def __init__(self, latency: float, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._latency = latency
        self._under_way: deque[bytes] = deque()

    def buffer_updated(self, nbytes: int) -> None:
        """Some bytes arrived on this machine."""
        self._under_way.append(bytes(memoryview(self.get_buffer(nbytes))[:nbytes]))
        asyncio.get_running_loop().call_later(self._latency, self._arrive)

    def _arrive(self) -> None:
        data = self._under_way.popleft()
        self.get_buffer(len(data))[: len(data)] = data
        super().buffer_updated(len(data))


class Server(smp_load.SmpLoad):
    """One server."""

    def __init__(self, number: int, queues: int, latency: float) -> None:
        super().__init__(1, queues, services=False)
        self._credentials = Credentials.generate("ED25519", name(number))[0]
        self._number = number
        self._latency = latency
        self._scratch = Scratch()

    async def start(self) -> list[str]:
        """Listen; the address."""
        [server] = self._servers
        context = server_context("smp", self._credentials)

        def connected(connection: BlockConnection) -> None:
            task = asyncio.create_task(self._run(server, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        def accepted() -> FarConnection:
            tls = SslTls(context, server_side=True)
            return FarConnection(self._latency, "smp", tls, connected, HANDSHAKE_TIMEOUT, self._scratch)

        listening = await asyncio.get_running_loop().create_server(accepted, host(self._number), 0, backlog=1024)
        self._listening.append(listening)
        port = listening.sockets[0].getsockname()[1]
        return [str(ServerAddress("smp", (name(self._number),), str(port), self._credentials.key_hash))]

    def tell(self, queue: int, nonce: bytes) -> bool:
        """NMSG, if the queue is subscribed."""
        [server] = self._servers
        if server.session is None or queue not in server.subscribed:
            return False
        connection, session = server.session
        event = smp.NMsg(nonce, os.urandom(smp_load.META_SIZE))
        encoded = encode_transmission(session, b"", smp_load.notifier_id(queue), event.encode(session.version))
        with contextlib.suppress(ConnectionClosedError):
            for block in encode_blocks(session, [encoded]):
                connection.send(block)
            return True
        return False


class Servers:
    """All of them, with so many queues each."""

    def __init__(self, servers: int, queues: int, latency: float) -> None:
        self._servers = [Server(i, queues, latency) for i in range(servers)]
        self._queues = queues
        self._told: list[tuple[str, int]] = []
        self._telling: asyncio.Task[None] | None = None

    async def start(self) -> list[str]:
        """Listen; the addresses."""
        return [address for server in self._servers for address in await server.start()]

    def stats(self) -> dict[str, Any]:
        """`subscribed`: queues now, by server; `complete_at`: when each server had all of its own, time.monotonic, null
        while it has not; `connections`: those that were ever made to each.
        """
        stats = [server.stats() for server in self._servers]
        return {
            "subscribed": [s["subscribed"] for s in stats],
            "complete_at": [s["complete_at"] for s in stats],
            "connections": [s["accepted"] for s in stats],
        }

    def drop(self) -> float:
        """See the module's docstring."""
        at = time.monotonic()
        for server in self._servers:
            server.drop()
        return at

    def begin(self, rate: float) -> None:
        """See the module's docstring."""
        self._told = []
        self._telling = asyncio.create_task(self._tell(rate))

    def end(self) -> list[tuple[str, int]]:
        """See the module's docstring."""
        if self._telling is not None:
            self._telling.cancel()
        return self._told

    async def _tell(self, rate: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for queue, server in itertools.cycle(itertools.product(range(self._queues), self._servers)):
            nonce = os.urandom(NONCE_SIZE)
            at = time.monotonic_ns()
            if server.tell(queue, nonce):
                self._told.append((nonce.hex(), at))
            due += 1 / rate
            await asyncio.sleep(due - loop.time())


async def _main(arguments: argparse.Namespace) -> None:
    servers = Servers(arguments.servers, arguments.queues, arguments.latency / 1000)
    commands: dict[str, Command] = {
        "stats": servers.stats,
        "drop": servers.drop,
        "begin": servers.begin,
        "end": servers.end,
    }
    await obey(commands, {"servers": await servers.start()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Honest SMP servers.")
    parser.add_argument("--servers", type=int, default=15)
    parser.add_argument("--queues", type=int, default=20, help="of each (%(default)s)")
    parser.add_argument("--latency", type=float, default=30.0, help="milliseconds (%(default)s)")
    asyncio.run(_main(parser.parse_args()))
