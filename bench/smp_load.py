"""Many SMP servers in one process, of which nothing is asked but to keep up with the relay.

They speak TLS, handshake, block encryption and batches as real servers do, and are no servers otherwise: NO SIGNATURE
IS CHECKED, every NSUB of a known queue succeeds, and a queue costs two bits. A queue's notifier id follows from its
index, which it begins with; queue i is on server i modulo the number of servers. A service's id is the beginning of
its certificate's hash, and a server keeps the associations of one service only.

Controlled as `control` says:

    stats                      see `SmpLoad.stats`
    drop                       abort all connections at once
    notify queues=[...]        NMSG for those that are subscribed; how many that were
    prepare queues=[...] each=N  make NMSGs, N in a block (0: as many as fit), for `burst` to send; how many
    burst rate=R               send them, R a second (0: as fast as they are taken)
    written                    when each was written, time.monotonic_ns, in order; null while the burst is under way
    associate services=[...]   hex certificate hashes, one a server: all its queues are associated with that service
    delete every=N   one queue in N is deleted, and nobody is told
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final

from control import Command, obey

from smp_bridge import crypto, smp
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import NONCE_SIZE
from smp_bridge.handshake import HandshakeError, ServiceHello
from smp_bridge.identity import Credentials
from smp_bridge.service import ids_hash
from smp_bridge.testing.tls import OpenSslTls, service_context
from smp_bridge.tls import SslTls, TlsFactory, server_context
from smp_bridge.transmission import (
    ERR_AUTH,
    ERR_SERVICE,
    ERR_UNKNOWN,
    Err,
    Invalid,
    Message,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
)
from smp_bridge.transport import BlockConnection, ConnectionClosedError, accept, serve

HOST: Final = "127.0.0.1"
ID_SIZE: Final = 24
INDEX_SIZE: Final = 8
META_SIZE: Final = 144
_VERSIONS: Final = (smp.SERVICES, smp.VERSIONS[1])


def notifier_id(index: int) -> bytes:
    """The id of a queue: its index, and 16 bytes that look random, since those of real servers do."""
    prefix = index.to_bytes(INDEX_SIZE, "big")
    return prefix + hashlib.blake2b(prefix, digest_size=ID_SIZE - INDEX_SIZE).digest()


def service_id(certificate_hash: bytes) -> bytes:
    """The id that all servers here give a service."""
    return certificate_hash[:ID_SIZE]


class Bitmap:
    """A set of the integers below `size`, a bit each."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self._bits = bytearray((size + 7) // 8)

    def __contains__(self, i: int) -> bool:
        return bool(self._bits[i >> 3] & (1 << (i & 7)))

    def add(self, i: int) -> None:
        """Put one in."""
        if i not in self:
            self._bits[i >> 3] |= 1 << (i & 7)
            self.count += 1

    def discard(self, i: int) -> None:
        """Take one out."""
        if i in self:
            self._bits[i >> 3] &= ~(1 << (i & 7))
            self.count -= 1

    def update(self, other: "Bitmap") -> None:
        """Put in all of another one of the same size."""
        union = int.from_bytes(self._bits, "big") | int.from_bytes(other._bits, "big")
        self._bits[:] = union.to_bytes(len(self._bits), "big")
        self.count = union.bit_count()

    def clear(self) -> None:
        """Take all out."""
        self._bits[:] = bytes(len(self._bits))
        self.count = 0

    def fill(self) -> None:
        """Put all in."""
        self.clear()
        self._bits[:] = ((1 << self.size) - 1).to_bytes(len(self._bits), "little")
        self.count = self.size


class LoadServer:
    """One server: what is subscribed in its newest session, and what is associated with its service."""

    def __init__(self, number: int, queues: int) -> None:
        self.number = number
        self.subscribed = Bitmap(queues)
        self.associated = Bitmap(queues)
        self.deleted = Bitmap(queues)
        self.ids_hash = 0  # XOR of MD5(notifier id) of what is associated
        self.service_hash = b""
        self.connections: set[BlockConnection] = set()
        self.most_connections = 0
        self.session: tuple[BlockConnection, Session] | None = None

    def opened(self, connection: BlockConnection) -> None:
        """A TLS connection."""
        self.connections.add(connection)
        self.most_connections = max(self.most_connections, len(self.connections))

    def closed(self, connection: BlockConnection) -> None:
        """It ended, and with it what was subscribed in it."""
        self.connections.discard(connection)
        if self.session and self.session[0] is connection:
            self.session = None
            self.subscribed.clear()

    def begin(self, connection: BlockConnection, session: Session) -> None:
        """A session in place of the one before, if any."""
        self.subscribed.clear()
        self.session = connection, session
        if session.service and session.service.certificate_hash != self.service_hash:
            self.service_hash = session.service.certificate_hash
            self.associated.clear()
            self.ids_hash = 0

    def associate(self, queue: int, notifier: bytes, *, yes: bool) -> None:
        """It is the service's from now on, or nobody's."""
        if (queue in self.associated) is yes:
            return
        (self.associated.add if yes else self.associated.discard)(queue)
        self.ids_hash ^= int.from_bytes(ids_hash([notifier]))

    def subscribe(self, queue: int, notifier: bytes, session: Session) -> Message:
        """NSUB."""
        if queue in self.deleted:
            return ERR_AUTH
        self.subscribed.add(queue)
        self.associate(queue, notifier, yes=session.service is not None)
        return smp.SOk(session.service.service_id if session.service else None)

    def delete(self, queue: int, notifier: bytes) -> None:
        """Its recipient does, and whoever is subscribed is not told."""
        self.associate(queue, notifier, yes=False)
        self.subscribed.discard(queue)
        self.deleted.add(queue)

    def subscribe_service(self, session: Session, entity_id: bytes) -> Message:
        """NSUBS."""
        if session.service is None or session.service.service_id != entity_id:
            return ERR_SERVICE
        self.subscribed.update(self.associated)
        return smp.SOks(self.associated.count, self.ids_hash.to_bytes(16))


class SmpLoad:
    """All servers of this process, with `queues` on all of them together."""

    def __init__(self, servers: int, queues: int, *, services: bool) -> None:
        self._queues = queues
        self._services = services
        self._credentials = Credentials.generate("ED25519", "localhost")[0]
        self._servers = [LoadServer(i, len(range(i, queues, servers))) for i in range(servers)]
        self._listening: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._nsubs = self._refused = self._accepted = self._subscribed = self._deleted = 0
        self._first_at: float | None = None
        self._complete_at: float | None = None
        self._prepared: list[tuple[LoadServer, bytes, int]] = []
        self._written: list[int] = []
        self._burst: asyncio.Task[None] | None = None

    async def start(self) -> list[str]:
        """Listen; the addresses."""
        tls = self._tls()
        for server in self._servers:

            def connected(connection: BlockConnection, server: LoadServer = server) -> None:
                task = asyncio.create_task(self._run(server, connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

            self._listening.append(await serve("smp", self._credentials, connected, HOST, 0, tls=tls))
        ports = [s.sockets[0].getsockname()[1] for s in self._listening]
        return [str(ServerAddress("smp", (HOST,), str(p), self._credentials.key_hash)) for p in ports]

    def _tls(self) -> TlsFactory:
        if self._services:
            asking = service_context("smp", self._credentials)
            return lambda: OpenSslTls(asking)
        context = server_context("smp", self._credentials)
        return lambda: SslTls(context, server_side=True)

    # --- commands

    def stats(self) -> dict[str, Any]:
        """Counts since the start; `subscribed`: different queues now; times are those of time.monotonic.

        `first_at`: the first NSUB or NSUBS since the start or `drop`; `complete_at`: when all were subscribed, null
        while they are not; `cpu`: seconds of this process.
        """
        return {
            "nsubs": self._nsubs,
            "refused": self._refused,
            "accepted": self._accepted,
            "subscribed": self._subscribed,
            "connections": sum(len(s.connections) for s in self._servers),
            "most_connections_of_a_server": max(s.most_connections for s in self._servers),
            "first_at": self._first_at,
            "complete_at": self._complete_at,
            "cpu": time.process_time(),
        }

    def drop(self) -> float:
        """Abort all connections; when that was."""
        at = time.monotonic()
        self._first_at = None
        for server in self._servers:
            for connection in list(server.connections):
                connection.abort()
                self._closed(server, connection)
        return at

    def notify(self, queues: Sequence[int]) -> list[int]:
        """Send an NMSG for each that is subscribed, those of a server in one block if they fit; which those are."""
        of_server: defaultdict[int, list[int]] = defaultdict(list)
        for index in queues:
            of_server[index % len(self._servers)].append(index)
        told: list[int] = []
        for number, indices in of_server.items():
            server = self._servers[number]
            subscribed = [i for i in indices if i // len(self._servers) in server.subscribed]
            if server.session and subscribed:
                connection, session = server.session
                with contextlib.suppress(ConnectionClosedError):
                    for block in encode_blocks(session, (_event(session, i) for i in subscribed)):
                        connection.send(block)
                    told += subscribed
        return told

    def prepare(self, queues: Sequence[int], each: int = 0) -> int:
        """See the module's docstring. Only the encryption is left for `burst`."""
        self._prepared = []
        for number, server in enumerate(self._servers):
            if server.session is None:
                continue
            session = server.session[1]
            events = [_event(session, i) for i in queues if i % len(self._servers) == number]
            step = each or len(events) or 1
            for start in range(0, len(events), step):
                blocks = encode_blocks(session, events[start : start + step])
                self._prepared += [(server, content, content[0]) for content in blocks]
        return sum(count for _, _, count in self._prepared)

    def burst(self, rate: float = 0.0) -> None:
        """See the module's docstring."""
        self._written = []
        self._burst = asyncio.create_task(self._send_prepared(rate))

    def written(self) -> list[int] | None:
        """See the module's docstring. Raises what the burst failed with."""
        if self._burst is None or not self._burst.done():
            return None
        self._burst.result()
        return self._written

    async def _send_prepared(self, rate: float) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for server, content, count in self._prepared:
            if rate and (delay := start + len(self._written) / rate - loop.time()) > 0:
                await asyncio.sleep(delay)
            if server.session is None:
                raise ConnectionClosedError("the relay left in the middle of a burst")
            connection = server.session[0]
            at = time.monotonic_ns()
            connection.send(content)
            self._written += [at] * count
            await connection.drain()

    def associate(self, services: Sequence[str]) -> None:
        """See the module's docstring."""
        for server, certificate_hash in zip(self._servers, services, strict=True):
            server.service_hash = bytes.fromhex(certificate_hash)
            ids = (notifier_id(i) for i in range(server.number, self._queues, len(self._servers)))
            server.associated.fill()
            server.ids_hash = int.from_bytes(ids_hash(ids))

    def delete(self, every: int) -> int:
        """One queue in so many of each server is deleted, without a word: how many that are."""
        for server in self._servers:
            with self._counted(server):
                for queue in range(server.number % every, server.subscribed.size, every):
                    server.delete(queue, notifier_id(queue * len(self._servers) + server.number))
                    self._deleted += 1
        return self._deleted

    # --- sessions

    async def _run(self, server: LoadServer, connection: BlockConnection) -> None:
        server.opened(connection)
        self._accepted += 1
        try:
            session = await accept(
                connection, self._credentials, versions=_VERSIONS, services=_register if self._services else None
            )
            server.begin(connection, session)
            while True:
                content = await connection.receive()
                self._take(server, connection, session, content)
                await connection.drain()
        except (HandshakeError, ConnectionClosedError, TimeoutError):
            pass  # the relay left
        finally:
            connection.abort()
            self._closed(server, connection)

    def _take(self, server: LoadServer, connection: BlockConnection, session: Session, content: bytes) -> None:
        """Answer a block, in one block if it fits."""
        self._first_at = self._first_at or time.monotonic()
        with self._counted(server):
            answers = [self._answer(server, session, t) for t in parse_block(session, content)]
        for block in encode_blocks(session, answers):
            connection.send(block)

    def _answer(self, server: LoadServer, session: Session, t: Transmission | Invalid) -> bytes:
        if isinstance(t, Invalid):
            self._refused += 1
            return encode_transmission(session, t.corr_id, b"", t.error.encode(session.version))
        answer = self._do(server, session, t)
        if isinstance(answer, Err):
            self._refused += 1
        return encode_transmission(session, t.corr_id, t.entity_id, answer.encode(session.version))

    def _do(self, server: LoadServer, session: Session, t: Transmission) -> Message:
        if t.command == b"NSUB":
            self._nsubs += 1
            queue, number = divmod(int.from_bytes(t.entity_id[:INDEX_SIZE], "big"), len(self._servers))
            if number != server.number or queue >= server.subscribed.size:
                return ERR_AUTH
            if (t.service_signature is None) != (session.service is None):
                return ERR_SERVICE
            return server.subscribe(queue, t.entity_id, session)
        if t.command.startswith(b"NSUBS"):
            return server.subscribe_service(session, t.entity_id)
        return smp.Pong() if t.command == b"PING" else ERR_UNKNOWN

    def _closed(self, server: LoadServer, connection: BlockConnection) -> None:
        with self._counted(server):
            server.closed(connection)

    @contextlib.contextmanager
    def _counted(self, server: LoadServer) -> Iterator[None]:
        """Keep the sum over all servers."""
        before = server.subscribed.count
        yield
        self._subscribed += server.subscribed.count - before
        if self._subscribed < self._queues - self._deleted:
            self._complete_at = None
        elif self._complete_at is None:
            self._complete_at = time.monotonic()


def _register(hello: ServiceHello) -> bytes:
    return service_id(crypto.key_hash(hello.chain[min(1, len(hello.chain) - 1)]))


def _event(session: Session, index: int) -> bytes:
    event = smp.NMsg(os.urandom(NONCE_SIZE), os.urandom(META_SIZE))
    return encode_transmission(session, b"", notifier_id(index), event.encode(session.version))


async def _main(arguments: argparse.Namespace) -> None:
    load = SmpLoad(arguments.servers, arguments.queues, services=arguments.services)
    commands: dict[str, Command] = {
        "stats": load.stats,
        "drop": load.drop,
        "notify": load.notify,
        "prepare": load.prepare,
        "burst": load.burst,
        "written": load.written,
        "associate": load.associate,
        "delete": load.delete,
    }
    await obey(commands, {"servers": await load.start()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Many SMP servers that take every subscription.")
    parser.add_argument("--servers", type=int, default=200)
    parser.add_argument("--queues", type=int, default=1_000_000, help="on all servers together")
    parser.add_argument("--services", action="store_true", help="take services: ask for client certificates")
    asyncio.run(_main(parser.parse_args()))
