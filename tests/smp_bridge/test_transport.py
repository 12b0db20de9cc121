import asyncio
import contextlib
import datetime
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from smp_bridge import crypto
from smp_bridge.address import Scheme, ServerAddress
from smp_bridge.handshake import (
    HandshakeError,
    IdentityMismatchError,
    ServiceCredentials,
    ServiceRefusedError,
    Versions,
)
from smp_bridge.identity import Credentials, SignAlgorithm, generate_key, issue_leaf
from smp_bridge.network import HostNotAllowedError, Network
from smp_bridge.testing import SmpServer
from smp_bridge.tls import SslTls, client_context, server_context
from smp_bridge.transmission import Session
from smp_bridge.transport import (
    BadBlockError,
    BlockConnection,
    ConnectionClosedError,
    Scratch,
    accept,
    connect,
    serve,
)

NOW = datetime.datetime.now(datetime.UTC)


@dataclass
class Listener:
    """A server that shakes hands and leaves the rest to the test."""

    address: ServerAddress
    accepted: asyncio.Queue[tuple[BlockConnection, Session]] = field(default_factory=asyncio.Queue)
    failed: asyncio.Queue[Exception] = field(default_factory=asyncio.Queue)

    async def pair(self) -> tuple[BlockConnection, BlockConnection]:
        """(client's, server's) side of a new connection."""
        client, _ = await connect(self.address)
        return client, (await self.accepted.get())[0]


@contextlib.asynccontextmanager
async def listen(
    credentials: Credentials | None = None,
    scheme: Scheme = "smp",
    versions: Versions | None = None,
    timeout: float = 10.0,
) -> AsyncIterator[Listener]:
    credentials = credentials or Credentials.generate("ED25519", "localhost")[0]
    tasks: set[asyncio.Task[None]] = set()
    connections: list[BlockConnection] = []

    async def run(connection: BlockConnection) -> None:
        try:
            session = await accept(connection, credentials, versions=versions, timeout=timeout)
        except Exception as e:
            connection.abort()
            out.failed.put_nowait(e)
        else:
            out.accepted.put_nowait((connection, session))

    def on_connected(connection: BlockConnection) -> None:
        connections.append(connection)
        task = asyncio.create_task(run(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await serve(scheme, credentials, on_connected, "127.0.0.1", 0)
    port = str(server.sockets[0].getsockname()[1])
    out = Listener(ServerAddress(scheme, ("localhost",), port, credentials.key_hash))
    try:
        yield out
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        for connection in connections:
            connection.abort()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listen() as listener:
        yield listener


async def exchange(client: BlockConnection, server: BlockConnection) -> None:
    client.send(b"ping")
    assert await server.receive() == b"ping"
    server.send(b"pong")
    assert await client.receive() == b"pong"


def without_alpn() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# --- versions


@pytest.mark.parametrize(("scheme", "version"), [("smp", v) for v in range(6, 19)] + [("ntf", v) for v in (1, 2, 3)])
async def test_every_version(scheme: Scheme, version: int) -> None:
    async with listen(scheme=scheme) as listener:
        client, ours = await connect(listener.address, versions=(1, version))
        server, theirs = await listener.accepted.get()
        assert ours.version == theirs.version == version
        assert ours.session_id == theirs.session_id != b""
        encrypted = scheme == "smp" and version >= 11
        assert (ours.send_chain is not None) == (theirs.receive_chain is not None) == encrypted
        for _ in range(3):
            await exchange(client, server)


async def test_the_server_limits_the_version() -> None:
    async with listen(versions=(8, 12)) as listener:
        _, session = await connect(listener.address)
        assert session.version == 12
        with pytest.raises(HandshakeError, match="version"):
            await connect(listener.address, versions=(6, 7))


@pytest.mark.parametrize(("scheme", "legacy"), [("smp", 6), ("ntf", 1)])
async def test_a_client_without_alpn_gets_the_legacy_version(scheme: Scheme, legacy: int) -> None:
    async with listen(scheme=scheme) as listener:
        client, session = await connect(listener.address, context=without_alpn())
        assert session.version == legacy
        await exchange(client, (await listener.accepted.get())[0])
        with pytest.raises(HandshakeError, match="version"):
            await connect(listener.address, context=without_alpn(), versions=(legacy + 1, legacy + 2))


async def test_only_tls_with_chacha20(listener: Listener) -> None:
    client, _ = await listener.pair()
    assert isinstance(client._tls, SslTls)
    assert client._tls.tls.version() == "TLSv1.3"
    assert client._tls.tls.session is not None
    assert not client._tls.tls.session.has_ticket
    context = client_context("smp")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM")
    with pytest.raises(OSError):  # a TLS alert, or already the reset that follows
        await connect(listener.address, context=context)
    assert listener.accepted.empty()
    context.set_ciphers("ECDHE+CHACHA20")
    older, session = await connect(listener.address, context=context)
    assert isinstance(older._tls, SslTls)
    assert older._tls.tls.version() == "TLSv1.2"
    assert session.version == 18


# --- identity


async def test_another_identity_than_the_address_says(listener: Listener) -> None:
    with pytest.raises(IdentityMismatchError):
        await connect(replace(listener.address, key_hash=bytes(32)))
    assert isinstance(await listener.failed.get(), ConnectionClosedError)


async def test_the_leaf_is_not_the_identity() -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    async with listen(credentials) as listener:
        leaf = crypto.key_hash(credentials.chain_der[0])
        with pytest.raises(IdentityMismatchError):
            await connect(replace(listener.address, key_hash=leaf))


@pytest.mark.parametrize("algorithm", ["ED25519", "ED448"])
async def test_both_kinds_of_credentials(algorithm: SignAlgorithm) -> None:
    credentials, _ = Credentials.generate(algorithm, "localhost")
    async with listen(credentials) as listener:
        await exchange(*await listener.pair())


def authority(
    name: str, key: Ed25519PrivateKey, issuer: x509.Certificate | None, issuer_key: Ed25519PrivateKey
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=1))
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(issuer_key, None)
    )


def chain_of(length: int, *, forged: bool = False) -> Credentials:
    """Credentials whose chain has this length; with `forged` the identity did not sign the leaf."""
    certificates: list[x509.Certificate] = []
    key = issuer_key = Ed25519PrivateKey.generate()
    for i in range(length - 1):
        certificates.insert(0, authority(f"CA {i}", key, certificates[0] if certificates else None, issuer_key))
        issuer_key, key = key, Ed25519PrivateKey.generate()
    leaf_key = generate_key("ED25519")
    leaf = issue_leaf(leaf_key, "localhost", certificates[0], key if forged else issuer_key, NOW)
    return Credentials((leaf, *certificates), leaf_key)


@pytest.mark.parametrize("length", [2, 3, 4])
async def test_chains(length: int) -> None:
    credentials = chain_of(length)
    assert len(credentials.chain) == length
    async with listen(credentials) as listener:
        client, server = await listener.pair()
        assert client.peer_chain == tuple(credentials.chain_der)
        await exchange(client, server)


@pytest.mark.parametrize("credentials", [chain_of(5), chain_of(3, forged=True)])
async def test_chains_that_do_not_hold(credentials: Credentials) -> None:
    async with listen(credentials) as listener:
        with pytest.raises(IdentityMismatchError):
            await connect(listener.address)


async def test_a_leaf_whose_session_key_another_key_signed() -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    liar = replace(credentials, key=generate_key("ED25519"))

    def on_connected(connection: BlockConnection) -> None:
        tasks.append(asyncio.create_task(accept(connection, liar)))

    tasks: list[asyncio.Task[Session]] = []
    server = await serve("smp", credentials, on_connected, "127.0.0.1", 0)
    address = ServerAddress("smp", ("localhost",), str(server.sockets[0].getsockname()[1]), credentials.key_hash)
    with pytest.raises(IdentityMismatchError, match="session key"):
        await connect(address)
    assert isinstance((await asyncio.gather(*tasks, return_exceptions=True))[0], ConnectionClosedError)
    server.close()


async def test_openssl_refuses_a_key_of_another_certificate() -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    with pytest.raises(ssl.SSLError):
        server_context("smp", replace(credentials, key=generate_key("ED25519")))


# --- addresses


async def test_the_first_host_that_answers(listener: Listener) -> None:
    await connect(replace(listener.address, hosts=("127.0.0.2", "a" * 64, "localhost")))
    assert (await listener.accepted.get())[1].version == 18


async def test_no_host_answers(listener: Listener) -> None:
    with pytest.raises(ConnectionRefusedError):
        await connect(replace(listener.address, hosts=("127.0.0.2",)))
    with pytest.raises(OSError):
        await connect(replace(listener.address, hosts=()))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_private_hosts_are_not_connected_to_unless_allowed(listener: Listener, host: str) -> None:
    with pytest.raises(HostNotAllowedError):
        await connect(replace(listener.address, hosts=(host,)), network=Network())
    await listener.pair()
    assert listener.accepted.empty()
    assert listener.failed.empty()


async def test_a_server_that_says_nothing(listener: Listener) -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = str(server.sockets[0].getsockname()[1])
    with pytest.raises(TimeoutError):
        await connect(replace(listener.address, port=port), network=Network(allow_private=True, connect_timeout=0.1))
    server.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


# --- blocks


@pytest.mark.parametrize(("scheme", "version"), [("smp", 6), ("smp", 18), ("ntf", 3)])
async def test_block_sizes(scheme: Scheme, version: int) -> None:
    size = {"smp": 16384, "ntf": 512}[scheme] - 2 - (16 if version == 18 else 0)
    async with listen(scheme=scheme) as listener:
        client, _ = await connect(listener.address, versions=(1, version))
        server, _ = await listener.accepted.get()
        with pytest.raises(ValueError, match="large"):
            client.send(bytes(size + 1))
        for content in (b"", b"x" * size):  # what could not be sent disturbs nothing
            client.send(content)
            assert await server.receive() == content


async def test_many_blocks_come_in_order(listener: Listener) -> None:
    client, server = await listener.pair()

    async def send() -> None:
        for i in range(300):
            client.send(i.to_bytes(2, "big"))
            await client.drain()

    sending = asyncio.create_task(send())
    assert [await server.receive() for _ in range(300)] == [i.to_bytes(2, "big") for i in range(300)]
    await sending


async def test_a_reader_that_is_too_slow_holds_the_sender_back(listener: Listener) -> None:
    client, server = await listener.pair()
    sent = 0

    async def send() -> None:
        nonlocal sent
        while True:
            client.send(b"x")
            sent += 1
            await client.drain()

    sending = asyncio.create_task(send())
    await asyncio.wait([sending], timeout=0.3)
    held = sent
    await asyncio.wait([sending], timeout=0.1)
    assert sent == held > 16
    for _ in range(held):
        assert await server.receive() == b"x"
    assert sent > held
    sending.cancel()


@pytest.mark.parametrize("wrong", ["not encrypted", "another key"])
async def test_a_block_that_does_not_open(listener: Listener, wrong: str) -> None:
    client, session = await connect(listener.address)
    server, _ = await listener.accepted.get()
    client.send(b"good")
    client.encrypt(replace(session, send_chain=None if wrong == "not encrypted" else os.urandom(32)))
    client.send(b"bad")
    assert await server.receive() == b"good"
    with pytest.raises(BadBlockError):
        await server.receive()


async def test_a_block_with_broken_padding() -> None:
    async with listen(scheme="ntf") as listener:
        client, server = await listener.pair()
        client._tls.write(b"\xff" * 512)
        client._flush()
        with pytest.raises(BadBlockError):
            await server.receive()


async def test_half_a_block(listener: Listener) -> None:
    client, server = await listener.pair()
    client.send(b"whole")
    client._tls.write(bytes(100))
    client._flush()
    await client.close()
    assert await server.receive() == b"whole"
    with pytest.raises(ConnectionClosedError):
        await server.receive()


async def test_a_hello_that_is_garbage(listener: Listener) -> None:
    reader, writer = await raw_tls(listener)
    await reader.readexactly(16384)
    writer.write(os.urandom(16384))
    assert await reader.read() == b""
    assert isinstance(await listener.failed.get(), HandshakeError | BadBlockError)
    await close(writer)


async def test_close_sends_what_is_queued(listener: Listener) -> None:
    client, server = await listener.pair()
    for i in range(10):
        client.send(bytes([i]))
    await client.close()
    assert [await server.receive() for _ in range(10)] == [bytes([i]) for i in range(10)]
    with pytest.raises(ConnectionClosedError):
        await server.receive()
    with pytest.raises(ConnectionClosedError):
        client.send(b"late")
    await client.close()


async def test_abort_wakes_who_waits(listener: Listener) -> None:
    client, server = await listener.pair()
    receiving = [asyncio.create_task(c.receive()) for c in (client, server)]
    await asyncio.sleep(0)
    client.abort()
    for task in receiving:
        with pytest.raises(ConnectionClosedError):
            await asyncio.wait_for(task, 5)


# --- slow and many


async def raw_tls(listener: Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", listener.address.port_number, ssl=client_context("smp"))


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_half_open_handshakes_do_not_stop_others(listener: Listener) -> None:
    port = listener.address.port_number
    tcp = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
    tls = await asyncio.gather(*(raw_tls(listener) for _ in range(50)))
    async with asyncio.timeout(5):
        await exchange(*await listener.pair())
    for reader, writer in [*tcp, *tls]:
        if writer.get_extra_info("ssl_object") is None:
            writer.write_eof()
            await reader.read()  # the server's end of it is closed
        await close(writer)


async def test_a_client_that_says_no_hello_is_dropped() -> None:
    async with listen(timeout=0.2) as listener:
        reader, writer = await raw_tls(listener)
        await reader.readexactly(16384)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert isinstance(await listener.failed.get(), TimeoutError)
        await close(writer)


async def test_a_port_in_use(listener: Listener) -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    with pytest.raises(OSError):
        await serve("smp", credentials, lambda _: None, "127.0.0.1", listener.address.port_number)


# --- TLS on the socket


class Relay:
    """A TCP relay between a client and a listener, for what TCP may do to bytes, and what may be done to TCP."""

    def __init__(self, port: int, segment: int) -> None:
        self._port = port
        self._segment = segment
        self._tasks: set[asyncio.Task[None]] = set()
        self.segments = 0
        self.left: int | None = None  # bytes to the server before it closes
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.writers += [writer, server_writer]
        for args in ((reader, server_writer, True), (server_reader, writer, False)):
            task = asyncio.create_task(self._pass_on(*args))
            self._tasks.add(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(self._segment):
                self.segments += 1
                if to_server and self.left is not None:
                    data = data[: self.left]
                    self.left -= len(data)
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(0)  # so that it is read before the next one comes
                if self.left == 0:
                    break
        writer.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for writer in self.writers:
            await close(writer)


@contextlib.asynccontextmanager
async def relayed(listener: Listener, segment: int) -> AsyncIterator[tuple[ServerAddress, Relay]]:
    relay = Relay(listener.address.port_number, segment)
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield replace(listener.address, port=str(server.sockets[0].getsockname()[1])), relay
    finally:
        server.close()
        await relay.close()


async def test_a_thousand_small_segments(listener: Listener) -> None:
    async with relayed(listener, 40) as (address, relay):
        client, _ = await connect(address)
        server, _ = await listener.accepted.get()
        for i in range(2):
            client.send(bytes([i]) * 5000)
            server.send(bytes([i]) * 6000)
        for i in range(2):
            assert await server.receive() == bytes([i]) * 5000
            assert await client.receive() == bytes([i]) * 6000
        assert relay.segments > 1000
        client.abort()


@pytest.mark.parametrize("left", [1, 1000, 16384, 16400])
async def test_a_connection_that_is_cut_in_a_block(listener: Listener, left: int) -> None:
    async with relayed(listener, 2**16) as (address, relay):
        client, _ = await connect(address)
        server, _ = await listener.accepted.get()
        client.send(b"whole")
        assert await server.receive() == b"whole"
        relay.left = left
        client.send(b"cut")
        with pytest.raises(ConnectionClosedError):
            await asyncio.wait_for(server.receive(), 5)
        with pytest.raises(ConnectionClosedError):
            await asyncio.wait_for(client.receive(), 5)


class Written:
    """A transport that sends nothing."""

    def __init__(self) -> None:
        self.data = b""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.data += data


async def test_connections_that_share_buffers_do_not_mix_blocks(listener: Listener) -> None:
    """Halves of blocks of many connections come in turns; on both sides all share one Scratch."""
    scratch = Scratch()
    pairs = [
        ((await connect(listener.address, scratch=scratch))[0], (await listener.accepted.get())[0]) for _ in range(6)
    ]
    assert len({id(c._scratch) for c, _ in pairs}) == len({id(s._scratch) for _, s in pairs}) == 1
    for senders, receivers in (
        ([c for c, _ in pairs], [s for _, s in pairs]),
        ([s for _, s in pairs], [c for c, _ in pairs]),
    ):
        receiving = [asyncio.create_task(r.receive()) for r in receivers]
        halves = []
        for i, sender in enumerate(senders):
            assert isinstance(sender._tls, SslTls)
            written = Written()
            transport, sender._transport = sender._transport, written  # type: ignore[assignment]
            sender.send(bytes([i]) * 16000)
            sender._transport = transport
            assert transport is not None
            half = 3000 + 1500 * i
            halves.append((sender, written.data[half:]))
            transport.write(written.data[:half])
        await asyncio.wait(receiving, timeout=0.05)
        assert not any(task.done() for task in receiving)
        for sender, rest in reversed(halves):
            assert sender._transport is not None
            sender._transport.write(rest)
        assert await asyncio.gather(*receiving) == [bytes([i]) * 16000 for i in range(6)]
    for client, server in pairs:
        await exchange(client, server)


async def test_records_that_end_in_the_midst_of_a_block(listener: Listener) -> None:
    """Blocks and TLS records need not be the same."""
    client, server = await listener.pair()
    server.encrypt(replace((await connect(listener.address))[1], receive_chain=None))
    blocks = b"".join(crypto.pad(bytes([i]) * 9, 16384) for i in range(5))
    for size in (1, 5000, 16384, 20, 16384, 16384):
        client._tls.write(blocks[:size])
        blocks = blocks[size:]
        client._flush()
    while blocks:
        client._tls.write(blocks[:10000])
        blocks = blocks[10000:]
    client._flush()
    assert [await asyncio.wait_for(server.receive(), 5) for _ in range(5)] == [bytes([i]) * 9 for i in range(5)]


async def test_idle_connections_hold_no_buffer(listener: Listener) -> None:
    client, server = await listener.pair()
    await exchange(client, server)
    for connection in (client, server):
        assert connection._partial == b""
        assert not connection._blocks
        assert connection._tls.output() == b""


async def test_a_peer_that_does_not_read_holds_drain_back_until_it_does(listener: Listener) -> None:
    client, server = await listener.pair()
    assert server._transport is not None
    server._transport.pause_reading()
    sent = 0
    draining = asyncio.create_task(client.drain())
    while draining.done() or sent < 2:
        client.send(sent.to_bytes(4, "big"))
        sent += 1
        draining = asyncio.create_task(client.drain())
        await asyncio.sleep(0)
    assert sent > 3
    server._transport.resume_reading()
    assert [await server.receive() for _ in range(sent)] == [i.to_bytes(4, "big") for i in range(sent)]
    await asyncio.wait_for(draining, 5)


async def test_drain_ends_with_the_connection(listener: Listener) -> None:
    client, server = await listener.pair()
    assert server._transport is not None
    server._transport.pause_reading()
    draining = asyncio.create_task(client.drain())
    await asyncio.sleep(0)
    while draining.done():
        client.send(bytes(16000))
        draining = asyncio.create_task(client.drain())
        await asyncio.sleep(0)
    client.abort()
    await asyncio.wait_for(draining, 5)


async def test_goodbye_is_answered_by_the_end(listener: Listener) -> None:
    client, server = await listener.pair()
    client._tls.close()
    client._flush()
    with pytest.raises(ConnectionClosedError):
        await asyncio.wait_for(server.receive(), 5)
    with pytest.raises(ConnectionClosedError):
        server.send(b"late")
    async with asyncio.timeout(5):
        while not client._is_closed:
            await asyncio.sleep(0.005)


async def test_garbage_after_the_handshake(listener: Listener) -> None:
    client, server = await listener.pair()
    client.send(b"good")
    assert await server.receive() == b"good"
    assert client._transport is not None
    client._transport.write(os.urandom(5000))
    with pytest.raises(ConnectionClosedError, match="TLS failed"):
        await asyncio.wait_for(server.receive(), 5)
    with pytest.raises(ConnectionClosedError):
        await asyncio.wait_for(client.receive(), 5)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x40\x00" + bytes(2**17)])
async def test_garbage_instead_of_tls(listener: Listener, garbage: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.address.port_number)
    writer.write(garbage)
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 5)
    await close(writer)
    await exchange(*await listener.pair())
    assert listener.accepted.empty()
    assert listener.failed.empty()


@pytest.mark.parametrize("begin", [b"", b"\x16\x03\x01"])
async def test_a_client_that_does_not_shake_hands_in_time(begin: bytes) -> None:
    connected: list[BlockConnection] = []
    credentials, _ = Credentials.generate("ED25519", "localhost")
    server = await serve("smp", credentials, connected.append, "127.0.0.1", 0, handshake_timeout=0.2)
    start = asyncio.get_running_loop().time()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    writer.write(begin)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert asyncio.get_running_loop().time() - start >= 0.19
    assert connected == []
    await close(writer)
    server.close()


async def test_the_time_limit_of_the_handshake_ends_with_it() -> None:
    connected: asyncio.Queue[BlockConnection] = asyncio.Queue()
    credentials, _ = Credentials.generate("ED25519", "localhost")
    server = await serve("smp", credentials, connected.put_nowait, "127.0.0.1", 0, handshake_timeout=0.3)
    port = server.sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context("smp"))
    connection = await asyncio.wait_for(connected.get(), 5)
    receiving = asyncio.create_task(connection.receive())
    await asyncio.wait([receiving], timeout=0.5)
    assert not receiving.done()
    receiving.cancel()
    connection.abort()
    await close(writer)
    server.close()


async def test_a_service_that_is_refused_ends_the_search(listener: Listener) -> None:
    """As an impostor does: no other host's failure may hide it."""
    service, _ = Credentials.generate("ED25519", "service")
    proof = ServiceCredentials(tuple(service.chain_der), service.key, Ed25519PrivateKey.generate())
    async with SmpServer() as server:
        server.refuse_services = True
        address = replace(server.address, hosts=("127.0.0.1", "127.0.0.2"))
        with pytest.raises(ServiceRefusedError):
            await connect(address, context=client_context("smp", service), service=proof)
        with pytest.raises(IdentityMismatchError):
            await connect(replace(address, key_hash=bytes(32)))


async def test_no_timer_and_no_future_are_left_of_a_handshake(listener: Listener) -> None:
    client, server = await listener.pair()
    assert (client._deadline, client._secured) == (server._deadline, server._secured) == (None, None)
    await client.secured()
    client.abort()
    with pytest.raises(ConnectionClosedError):
        await client.secured()
