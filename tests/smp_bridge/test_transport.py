import asyncio
import contextlib
import gc
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from listening import Listener, exchange, listen

from smp_bridge import crypto
from smp_bridge.address import Scheme, ServerAddress
from smp_bridge.connecting import connect
from smp_bridge.handshake import (
    HandshakeError,
)
from smp_bridge.identity import Credentials, generate_key
from smp_bridge.tls import SslTls, client_context, server_context
from smp_bridge.transport import (
    MAX_QUEUED_BLOCKS,
    BadBlockError,
    BlockConnection,
    ConnectionClosedError,
    Scratch,
    serve,
)


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listen() as listener:
        yield listener


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
    assert server.reading_paused
    assert server.blocks < MAX_QUEUED_BLOCKS + 2**16 // 16384
    for _ in range(held):
        assert await server.receive() == b"x"
    assert sent > held
    sending.cancel()


async def test_all_connections_together_hold_so_many_blocks(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over that each holds what one read brings."""
    monkeypatch.setattr("smp_bridge.transport._MAX_QUEUED_IN_ALL", 20)
    scratch = Scratch()
    peers = [(await connect(listener.address, scratch=scratch))[0] for _ in range(4)]
    servers = [(await listener.accepted.get())[0] for _ in range(4)]
    for server in servers:
        for _ in range(60):
            server.send(b"x")
    async with asyncio.timeout(5):
        while not all(peer.reading_paused for peer in peers):
            await asyncio.sleep(0.01)
    assert scratch.queued == sum(peer.blocks for peer in peers) < 20 + 4 * 5
    for peer in peers[1:]:
        for _ in range(60):
            assert await peer.receive() == b"x"
    assert scratch.queued == peers[0].blocks > 0
    peers[0].abort()
    server.abort()
    del peer, peers
    async with asyncio.timeout(5):
        while scratch.queued:
            gc.collect()
            await asyncio.sleep(0.01)


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
    for i in range(22):
        client.send(bytes([i]))
    await client.close()
    assert [await server.receive() for _ in range(22)] == [bytes([i]) for i in range(22)]
    with pytest.raises(ConnectionClosedError):
        await server.receive()
    with pytest.raises(ConnectionClosedError):
        client.send(b"late")
    await client.close()


async def test_who_ends_sends_no_more_and_receives_what_the_peer_sent_before(listener: Listener) -> None:
    client, server = await listener.pair()
    for i in range(5):
        server.send(b"%d" % i)
    client.end()
    client.end()
    with pytest.raises(ConnectionClosedError):
        client.send(b"late")
    assert [await client.receive() for _ in range(5)] == [b"%d" % i for i in range(5)]
    with pytest.raises(ConnectionClosedError):
        await asyncio.wait_for(server.receive(), 5)  # it is told, and closes
    with pytest.raises(ConnectionClosedError):
        await asyncio.wait_for(client.receive(), 5)
    client.end()


async def test_what_was_read_is_received_after_an_abort(listener: Listener) -> None:
    client, server = await listener.pair()
    for i in range(5):
        server.send(b"%d" % i)
    async with asyncio.timeout(5):
        while client.blocks < 5:
            await asyncio.sleep(0.005)
    client.abort()
    assert [await client.receive() for _ in range(5)] == [b"%d" % i for i in range(5)]
    with pytest.raises(ConnectionClosedError):
        await client.receive()
    assert client.blocks == 0


async def test_what_the_socket_holds_is_read_when_sending_fails(listener: Listener) -> None:
    """Reading was paused, as nobody received; then the peer was gone."""
    client, server = await listener.pair()
    for i in range(22):
        server.send(b"%d" % i)
        await server.drain()
        await asyncio.sleep(0.002)
    assert client.reading_paused
    server.abort()
    await asyncio.sleep(0.05)
    with pytest.raises(ConnectionClosedError):
        for _ in range(5):
            client.send(b"x")
            await asyncio.sleep(0.05)
    assert not client.reading_paused
    assert [await client.receive() for _ in range(22)] == [b"%d" % i for i in range(22)]


async def test_a_close_that_is_cancelled_closes(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = await listener.pair()
    assert client._transport is not None
    monkeypatch.setattr(client._transport, "close", lambda: None, raising=False)  # the peer takes nothing
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    async with asyncio.timeout(1):
        while not client._is_closed:
            await asyncio.sleep(0.005)


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


# --- a peer that has TLS answer


class KeyUpdates:
    """A client's KeyUpdate messages that ask for one in return (RFC 8446, sections 4.6.3, 5.2, 7.1 to 7.3).

    Under TLS_AES_256_GCM_SHA384, which OpenSSL prefers.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _expand(self, label: bytes, length: int) -> bytes:
        name = b"tls13 " + label
        info = length.to_bytes(2) + bytes([len(name)]) + name + b"\0"
        return HKDFExpand(SHA384(), length, info).derive(self._secret)

    def next(self) -> bytes:
        """A record; under each key there is one."""
        header = b"\x17\x03\x03" + (6 + 16).to_bytes(2)
        sealed = AESGCM(self._expand(b"key", 32)).encrypt(self._expand(b"iv", 12), bytes([24, 0, 0, 1, 1, 22]), header)
        self._secret = self._expand(b"traffic upd", 48)
        return header + sealed


@pytest.mark.parametrize("reads", [True, False])
async def test_a_peer_that_floods_key_updates_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reads: bool
) -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    accepted: list[BlockConnection] = []

    def on_connected(connection: BlockConnection) -> None:
        assert connection._transport is not None
        connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        accepted.append(connection)

    server = await serve("ntf", credentials, on_connected, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    context = client_context("ntf")
    context.keylog_filename = str(tmp_path / "keys")
    tls = SslTls(context)
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(sock, server.sockets[0].getsockname())
        while not tls.handshake():
            await loop.sock_sendall(sock, tls.output())
            tls.feed(await loop.sock_recv(sock, 65536))
        await loop.sock_sendall(sock, tls.output())
        [line] = [x for x in (tmp_path / "keys").read_text().splitlines() if x.startswith("CLIENT_TRAFFIC_SECRET_0")]
        updates = KeyUpdates(bytes.fromhex(line.split()[2]))
        largest = 0

        async def read() -> None:
            while await loop.sock_recv(sock, 65536):
                pass

        reading = asyncio.create_task(read() if reads else asyncio.sleep(60))
        try:
            for _ in range(300):  # some come at once: a read holds many
                await asyncio.wait_for(loop.sock_sendall(sock, b"".join(updates.next() for _ in range(20))), 10)
                await asyncio.sleep(0)
                if accepted and accepted[0]._lost is None:
                    largest = max(largest, accepted[0]._transport.get_write_buffer_size())
        except ConnectionError:
            pass
        reading.cancel()
        await asyncio.wait([reading])
        [connection] = accepted
        assert connection._lost is not None
        assert largest < 10_000
        assert not caplog.records  # asyncio warns of each write to a connection that is gone
        connection.abort()
    server.close()


async def test_a_peer_that_reads_nothing_for_long_is_given_up_by_tcp(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smp_bridge.network._USER_TIMEOUT", 300)
    client, server = await listener.pair()
    assert server._transport is not None
    server._transport.pause_reading()
    with contextlib.suppress(ConnectionClosedError):
        while True:
            client.send(b"x")
            await asyncio.wait_for(client.drain(), 10)
    with pytest.raises(ConnectionClosedError):
        await client.receive()
    assert client.timed_out


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


async def test_openssl_refuses_a_key_of_another_certificate() -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    with pytest.raises(ssl.SSLError):
        server_context("smp", replace(credentials, key=generate_key("ED25519")))


async def test_no_timer_and_no_future_are_left_of_a_handshake(listener: Listener) -> None:
    client, server = await listener.pair()
    assert (client._deadline, client._secured) == (server._deadline, server._secured) == (None, None)
    await client.secured()
    client.abort()
    with pytest.raises(ConnectionClosedError):
        await client.secured()


# --- memory


def connections() -> int:
    return sum(isinstance(o, BlockConnection) for o in gc.get_objects())


@pytest.fixture
def without_collector() -> Iterator[None]:
    """The relay's looks for circles of what lived long after days only."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def lose(connection: BlockConnection) -> None:
    """Wait for a block, and for the handshake, that do not come."""
    for waiting in (connection.receive, connection.secured):
        with contextlib.suppress(ConnectionClosedError, ssl.SSLError):
            await waiting()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("politely", [True, False])
async def test_a_connection_that_is_over_leaves_nothing(politely: bool) -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    before = connections()

    async def ended(connection: BlockConnection) -> None:
        await lose(connection)
        await connection.close()

    async with asyncio.TaskGroup() as group:
        server = await serve("ntf", credentials, lambda c: group.create_task(ended(c)) and None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context("ntf"))
            (writer.close if politely else writer.transport.abort)()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    server.close()
    await asyncio.sleep(0.1)
    del reader, writer
    assert connections() == before


@pytest.mark.usefixtures("without_collector")
async def test_a_handshake_that_fails_leaves_nothing() -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    server = await serve("ntf", credentials, lambda _: None, "127.0.0.1", 0)
    before = connections()
    for _ in range(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
    server.close()
    await asyncio.sleep(0.1)
    assert connections() == before
