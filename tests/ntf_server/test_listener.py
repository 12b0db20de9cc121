"""Sessions of NTF clients over real TLS (wire.md, sections 3 to 5): good ones, slow ones and hostile ones."""

import asyncio
import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_servers import Server
from redis_stores import How, Nodes, fault
from scrape import sample

from ntf_server.admission.gate import Admission
from ntf_server.admission.sessions import Peer
from ntf_server.app import Relay
from ntf_server.commands import Commands
from ntf_server.config.limits import parse_limits
from ntf_server.config.settings import Limits
from ntf_server.listener import ERR_STORE, Listener, ListenerConfig, ListenError
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, KindCounter, PairCounter
from ntf_server.store.contract import (
    StoreConflictError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, Request, ServerError
from smp_bridge.encoding import short, word16
from smp_bridge.handshake import IdentityMismatchError, ServerHello
from smp_bridge.identity import Credentials, generate_key, issue_leaf
from smp_bridge.network import open_socket
from smp_bridge.tls import client_context
from smp_bridge.transmission import ERR_BLOCK, Message, Session, Transmission, encode_blocks
from smp_bridge.transport import ConnectionClosedError

pytestmark = pytest.mark.usefixtures("quiet")

BLOCK = 512
ID = bytes(24)
KEY, DH_KEY = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()


class StubCommands(Commands):
    """PING is answered at once, TCHK when the test says so, TDEL by whatever `fault` is."""

    def __init__(self) -> None:
        self.metrics = self._metrics = Metrics()
        self.fault: Exception = StoreFullError("disk full")
        self.answer: Message = ntf.Ok()
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.done = 0

    async def handle(self, session: Session, t: Transmission, command: Message, peer: Peer) -> Message:
        if t.command == b"TCHK":
            self.started.set()
            await self.go_on.wait()
            self.done += 1
            return self.answer
        if t.command == b"TDEL":
            raise self.fault
        if command == ERR_STORE:
            return command
        return ntf.Pong() if t.command == b"PING" else self.answer


@pytest.fixture
def commands() -> StubCommands:
    return StubCommands()


@pytest.fixture
async def listen(identity: Any, commands: StubCommands) -> AsyncIterator[Callable[..., Any]]:
    """Starts listeners with stub commands."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(admission: Admission | None = None, **options: Any) -> Listener:
            listener = Listener(ListenerConfig("127.0.0.1", 0, **options), identity[0], commands, admission)
            stack.push_async_callback(listener.close)
            await listener.start()
            return listener

        yield start


@pytest.fixture
async def raw_tls() -> AsyncIterator[Callable[..., Any]]:
    """Opens TLS connections on which nothing was said yet: (reader, writer)."""
    writers: list[asyncio.StreamWriter] = []

    async def open_tls(
        server: Any, *, alpn: str | None = "ntf/1", host: str = ""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = client_context("ntf")
        context.set_alpn_protocols([alpn] if alpn else [])
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context, server_hostname=host)
        writers.append(writer)
        return reader, writer

    yield open_tls
    for writer in writers:
        writer.transport.abort()
    for writer in writers:
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def padded(content: bytes) -> bytes:
    return crypto.pad(content, BLOCK)


async def hello(reader: asyncio.StreamReader) -> ServerHello:
    async with asyncio.timeout(10):
        return ServerHello.parse(crypto.unpad(await reader.readexactly(BLOCK)), "ntf")


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the peer closes without another byte."""
    try:
        async with asyncio.timeout(10):
            return await reader.read(1) == b""
    except ConnectionError:
        return True


async def pong(wire: Any) -> bool:
    return bool(await wire.ask(ntf.Ping()) == ntf.Pong())


# --- handshake


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_versions(listen: Any, dial: Any, version: int) -> None:
    wire = await dial(await listen(), version)
    assert wire.session.version == version
    assert await pong(wire)


@pytest.mark.parametrize("alpn", [None, "h2"])
async def test_without_the_alpn_only_version_1_is_offered(listen: Any, raw_tls: Any, alpn: str | None) -> None:
    reader, _ = await raw_tls(await listen(), alpn=alpn)
    assert (await hello(reader)).versions == (1, 1)


async def test_a_session_without_alpn(listen: Any, dial: Any) -> None:
    assert await pong(await dial(await listen(), 1, alpn=False))


async def test_a_client_that_names_a_host(listen: Any, raw_tls: Any) -> None:
    reader, _ = await raw_tls(await listen(), host="localhost")
    assert (await hello(reader)).versions == (1, 3)


async def test_the_hello(listen: Any, raw_tls: Any, identity: Any) -> None:
    reader, writer = await raw_tls(await listen())
    got = await hello(reader)
    tls = writer.get_extra_info("ssl_object")
    assert got.versions == (1, 3)
    assert got.session_id == tls.get_channel_binding("tls-unique")
    assert got.key is not None
    assert got.key.verify(identity[0].chain[0].public_key())


async def test_another_identity_than_the_address_names(listen: Any) -> None:
    listener = await listen()
    with pytest.raises(IdentityMismatchError):
        await Client.connect(ServerAddress("ntf", ("127.0.0.1",), str(listener.port), bytes(32)))


def key_hash_of(identity: Any) -> bytes:
    return short(identity[0].key_hash)


@pytest.mark.parametrize(
    "answer",
    [
        lambda i: padded(word16(0) + key_hash_of(i)),
        lambda i: padded(word16(4) + key_hash_of(i)),
        lambda i: padded(word16(65535) + key_hash_of(i)),
        lambda i: padded(word16(3) + short(bytes(32))),
        lambda i: padded(word16(3) + short(b"")),
        lambda i: padded(word16(3)),
        lambda i: padded(b""),
        lambda i: b"\xff" * BLOCK,
        lambda i: b"\x01\xff" + bytes(BLOCK - 2),
        lambda i: bytes(BLOCK),
    ],
    ids=["version 0", "4", "65535", "another identity", "no identity", "short", "empty", "unpadded", "511", "zeros"],
)
async def test_a_bad_client_hello_closes(listen: Any, raw_tls: Any, dial: Any, identity: Any, answer: Any) -> None:
    listener = await listen()
    reader, writer = await raw_tls(listener)
    await hello(reader)
    writer.write(answer(identity))
    assert await is_closed(reader)
    assert await pong(await dial(listener))


async def test_unknown_trailing_bytes_of_a_hello_are_ignored(listen: Any, raw_tls: Any, identity: Any) -> None:
    reader, writer = await raw_tls(await listen())
    await hello(reader)
    writer.write(padded(word16(3) + key_hash_of(identity) + b"of a later version"))
    writer.write(padded(b"\x01" + word16(8) + b"\x00\x01c\x00PING"))
    async with asyncio.timeout(10):
        assert crypto.unpad(await reader.readexactly(BLOCK)) == b"\x01" + word16(8) + b"\x00\x01c\x00PONG"


async def test_slow_bytes(listen: Any, raw_tls: Any, identity: Any) -> None:
    reader, writer = await raw_tls(await listen())
    await hello(reader)
    blocks = padded(word16(2) + key_hash_of(identity)) + padded(b"\x01" + word16(8) + b"\x00\x01c\x00PING")
    for i in range(0, len(blocks), 7):
        writer.write(blocks[i : i + 7])
        await writer.drain()
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        assert b"PONG" in await reader.readexactly(BLOCK)


@pytest.mark.parametrize("stage", ["TCP", "TLS"])
async def test_the_handshake_must_be_done_in_time(listen: Any, raw_tls: Any, stage: str) -> None:
    listener = await listen(handshake_timeout=0.3)
    if stage == "TLS":
        reader, _ = await raw_tls(listener)
        await hello(reader)
        assert await is_closed(reader)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        assert await is_closed(reader)
        writer.close()


async def test_half_open_handshakes_hold_nobody_up(listen: Any, raw_tls: Any, dial: Any) -> None:
    listener = await listen(handshake_timeout=1)
    plain = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(100)]
    for _ in range(100):
        await raw_tls(listener)
    wires = await asyncio.gather(*(dial(listener) for _ in range(10)))
    assert all(await asyncio.gather(*map(pong, wires)))
    for reader, writer in plain:
        assert await is_closed(reader)
        writer.close()
    assert await pong(wires[0])


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(600), os.urandom(64), b""])
async def test_what_is_not_tls(listen: Any, dial: Any, data: bytes) -> None:
    listener = await listen()
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(data)
    writer.write_eof()
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert await pong(await dial(listener))


@pytest.mark.parametrize(
    ("host", "port"), [("999.1.1.1", 0), ("127.0.0.1", None), ("a" * 64, 0), ("a..b", 0), ("not a host", 0)]
)
async def test_what_cannot_be_listened_on(identity: Any, listen: Any, host: str, port: int | None) -> None:
    port = (await listen()).port if port is None else port
    with pytest.raises(ListenError, match=f"^{host}:{port}: "):
        await Listener(ListenerConfig(host, port), identity[0], StubCommands()).start()


# --- blocks


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("block", [b"\xff" * BLOCK, word16(511) + bytes(510), word16(0x7FFF) + os.urandom(510)])
async def test_an_unpadded_block(listen: Any, dial: Any, version: int, block: bytes) -> None:
    wire = await dial(await listen(), version)
    wire.send_raw(block)
    [answer] = await wire.receive()
    assert (answer.command, answer.corr_id, answer.entity_id) == (ERR_BLOCK.encode(version), b"", b"")
    assert await pong(wire)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\x01",
        b"\x01\x00",
        b"\x01\x00\x09\x00\x01c\x00PING",
        b"\x01\x00\x08\x00\x01c\x00PINGx",
        b"\x02\x00\x08\x00\x01c\x00PING",
        b"\xff" + bytes(400),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
async def test_a_bad_batch(listen: Any, dial: Any, version: int, content: bytes) -> None:
    wire = await dial(await listen(), version)
    wire.connection.send(content)
    answers = await wire.receive()
    assert {(a.command, a.corr_id, a.entity_id) for a in answers} == {(b"ERR BLOCK", b"", b"")}
    assert await pong(wire)


async def test_a_bad_transmission_among_good_ones(listen: Any, dial: Any) -> None:
    wire = await dial(await listen())
    wire.send(wire.encode(ntf.Ping(), corr_id=b"1"), b"\x00\x05abc", wire.encode(ntf.Ping(), corr_id=b"3"))
    answers = await wire.receive()
    assert [(a.corr_id, a.command) for a in answers] == [(b"1", b"PONG"), (b"", b"ERR BLOCK"), (b"3", b"PONG")]


@pytest.mark.parametrize("size", [1, 511, 513, 3 * BLOCK - 1])
async def test_bytes_that_are_no_whole_blocks_and_the_end(listen: Any, dial: Any, size: int) -> None:
    listener = await listen()
    wire = await dial(listener)
    wire.send_raw(b"\xff" * size)
    await wire.connection.close()
    assert await pong(await dial(listener))


@pytest.mark.parametrize("count", [1, 2, 40, 255])
async def test_answers_come_in_order_in_as_few_blocks_as_hold_them(listen: Any, dial: Any, count: int) -> None:
    wire = await dial(await listen())
    wire.send(*(wire.encode(ntf.Ping(), corr_id=i.to_bytes(1, "big")) for i in range(count)))
    room, size = BLOCK - 19, 2 + 1 + 2 + 1 + 4
    asked = -(-count // (room // size))  # as large as the answers
    answers = [a for _ in range(asked) for a in await wire.receive()]
    assert [a.corr_id[0] for a in answers] == list(range(count))


async def test_answers_larger_than_their_commands_are_split(listen: Any, dial: Any, commands: StubCommands) -> None:
    commands.answer = ntf.Sub(ntf.SubscriptionStatus.ERR, "x" * 100)
    wire = await dial(await listen())
    wire.send(*(wire.encode(ntf.SChk(), corr_id=bytes([i])) for i in range(9)))
    blocks = [await wire.receive() for _ in range(3)]
    assert [[a.corr_id[0] for a in block] for block in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


class Recording(StubCommands):
    """Every command takes some turns of the loop; says what began and ended, and how many were under way."""

    def __init__(self) -> None:
        super().__init__()
        self._metrics = Metrics()
        self.log: list[Message] = []
        self.under_way = 0
        self.most = 0

    async def handle(self, session: Session, t: Transmission, command: Message, peer: Peer) -> Message:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.log.append(command)
        for _ in range(10):
            await asyncio.sleep(0)
        self.log.append(command)
        self.under_way -= 1
        return ntf.Pong() if t.command == b"PING" else ntf.Ok()


async def test_what_may_be_done_together_is_if_it_came_together(listen: Any, dial: Any) -> None:
    listener = await listen()
    listener._commands = commands = Recording()
    wire = await dial(listener)
    device = ntf.DeviceToken(ntf.Provider.APNS_NULL, b"t")
    server = ServerAddress("smp", ("localhost",), "1", bytes(32))
    checks = [ntf.TChk(), ntf.SChk()]
    alone = [ntf.TDel(), ntf.TCrn(20), ntf.TRpl(device), ntf.SDel(), ntf.SDel()]
    new = [ntf.TNew(device, KEY.public_key(), DH_KEY.public_key()), ntf.SNew(ID, server, ID, KEY)]
    verify = [ntf.TVfy(bytes(32)), ntf.TVfy(bytes([1]) * 32)]
    sent: list[Message | bytes] = [*checks, *alone, *new, b"TNEWS x", *verify]
    ids = [os.urandom(24) for _ in sent]
    encoded = [wire.encode(c, b"" if c in new else ID, KEY, i) for c, i in zip(sent, ids, strict=True)]
    wire.send_raw(b"".join(padded(block) for block in encode_blocks(wire.session, encoded)))
    answers: list[Transmission] = []
    while len(answers) < len(sent):
        answers += await wire.receive()
    assert [a.corr_id for a in answers] == ids
    tags = [c.tag for c in commands.log]
    together = [b"TNEW", b"SNEW", b"ERR"]
    assert tags[:4] == [b"TCHK", b"SCHK"] * 2
    assert tags[4:14] == [c.tag for c in alone for _ in range(2)]
    assert tags[14:] == [*together * 2, b"TVFY", b"TVFY", b"TVFY", b"TVFY"]
    assert commands.log[-4:] == verify * 2
    assert commands.most == 3


async def test_a_command_is_parsed_once(relay: Relay, dial: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    parse = ntf.parse_command

    def spy(data: bytes, version: int) -> Message:
        parsed.append(data)
        return parse(data, version)

    monkeypatch.setattr(ntf, "parse_command", spy)
    wire = await dial(relay)
    sent: list[Message] = [
        ntf.Ping(),
        ntf.TNew(ntf.DeviceToken(ntf.Provider.APNS_NULL, b"t"), KEY.public_key(), DH_KEY.public_key()),
        ntf.TChk(),
        ntf.SChk(),
    ]
    for command in sent:
        ping, new = isinstance(command, ntf.Ping), isinstance(command, ntf.TNew)
        await wire.ask(command, b"" if ping or new else ID, None if ping else KEY)
    assert parsed == [c.encode(3) for c in sent]


async def test_blocks_that_came_together_are_answered_together(listen: Any, dial: Any) -> None:
    listener = await listen()
    listener._commands = commands = Recording()
    wire = await dial(listener)
    ids = [os.urandom(24) for _ in range(40)]
    for corr_id in ids:
        wire.send(wire.encode(b"TCHK", b"e", corr_id=corr_id))
    answers: list[Transmission] = []
    while len(answers) < len(ids):
        answers += await wire.receive()
    assert [a.corr_id for a in answers] == ids
    assert 2 <= commands.most <= 16


async def test_an_answer_larger_than_a_block(listen: Any, dial: Any, commands: StubCommands) -> None:
    commands.answer = ntf.Sub(ntf.SubscriptionStatus.ERR, "x" * BLOCK)
    wire = await dial(await listen())
    answer = await wire.ask_raw(wire.encode(ntf.SChk(), b"entity"))
    assert (answer.command, answer.corr_id, answer.entity_id) == (b"ERR BLOCK", b"", b"")
    assert await pong(wire)


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        (StoreFullError("disk full"), b"ERR STORE database"),
        (StoreUnavailableError("locked"), b"ERR STORE database"),
        (StoreCorruptError("damaged"), b"ERR STORE database"),
        (StoreError("cannot"), b"ERR STORE database"),
        (StoreConflictError("a fault of ours"), b"ERR INTERNAL"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else "",
)
async def test_a_failing_store(listen: Any, dial: Any, commands: StubCommands, fault: Exception, answer: bytes) -> None:
    commands.fault = fault
    wire = await dial(await listen())
    wire.send(wire.encode(ntf.TDel(), corr_id=b"1"), wire.encode(ntf.Ping(), corr_id=b"2"))
    answers = await wire.receive()
    assert [(a.corr_id, a.command) for a in answers] == [(b"1", answer), (b"2", b"PONG")]
    code = answer.split()[1].decode()
    assert sample(commands.metrics, PairCounter.COMMANDS, command="invalid", answer=code) == 1  # it is not signed
    assert sample(commands.metrics, PairCounter.COMMANDS, command="PING", answer="OK") == 1


# --- budgets of strangers


def admission(metrics: Metrics | None = None, **limits: Any) -> Admission:
    return Admission(parse_limits(Limits(**limits)), metrics=metrics)


async def test_a_connection_over_a_budget_is_closed_before_tls(listen: Any, dial: Any) -> None:
    metrics = Metrics()
    listener = await listen(admission(metrics, half_open_per_address=2))
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(("127.0.0.1", listener.port)))
        while sample(metrics, Gauge.CLIENT_HANDSHAKES) != 2:
            await asyncio.sleep(0.01)
        third = stack.enter_context(socket.create_connection(("127.0.0.1", listener.port)))
        third.setblocking(False)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(third, 1), 10) == b""
    assert metrics.value(KindCounter.LIMITS_CLOSED, "half_open_per_address") == 1
    while sample(metrics, Gauge.CLIENT_HANDSHAKES):
        await asyncio.sleep(0.01)
    assert await pong(await dial(listener))


async def test_a_handshake_over_the_budget_of_all_waits(listen: Any, dial: Any) -> None:
    metrics = Metrics()
    listener = await listen(admission(metrics, handshakes="1 + 2/s"))
    loop = asyncio.get_running_loop()
    began = loop.time()
    first, second = await dial(listener), await dial(listener)
    assert loop.time() - began >= 0.4
    assert await pong(first)
    assert await pong(second)
    assert metrics.value(KindCounter.LIMITS_DELAYED, "handshakes") == 1
    with socket.create_connection(("127.0.0.1", listener.port)):
        pass  # and is gone before its turn
    assert await pong(await dial(listener))


async def test_connections_are_counted_however_they_end(listen: Any, dial: Any, raw_tls: Any) -> None:
    metrics = Metrics()
    listener = await listen(admission(metrics), handshake_timeout=0.3)
    gauges = [Gauge.CLIENT_SESSIONS, Gauge.CLIENT_HANDSHAKES]
    wire = await dial(listener)
    assert await pong(wire)
    assert sample(metrics, Gauge.CLIENT_SESSIONS) == 1
    await raw_tls(listener)  # says nothing, until its time is over
    with socket.create_connection(("127.0.0.1", listener.port)) as raw:
        raw.send(b"no TLS at all" * 10)
        await wire.connection.close()
        async with asyncio.timeout(10):
            while any(sample(metrics, gauge) for gauge in gauges):
                await asyncio.sleep(0.01)


async def test_the_session_that_was_silent_longest_makes_room(listen: Any, dial: Any) -> None:
    listener = await listen(admission(sessions_per_address=2))
    first, second = await dial(listener), await dial(listener)
    assert await pong(first)
    third = await dial(listener)
    with pytest.raises(ConnectionClosedError):
        await second.connection.receive()
    assert await pong(first)
    assert await pong(third)


async def test_over_a_rate_a_session_waits_and_others_do_not(listen: Any, dial: Any) -> None:
    metrics = Metrics()
    listener = await listen(admission(metrics, commands_per_session="5 + 10/s"))
    flood, other = await dial(listener), await dial(listener)
    began = asyncio.get_running_loop().time()
    flood.send(*(flood.encode(ntf.Ping()) for _ in range(15)))
    answers: list[Transmission] = []
    assert await pong(other)
    assert asyncio.get_running_loop().time() - began < 0.9
    while len(answers) < 15:
        answers += await flood.receive()
    assert {a.command for a in answers} == {b"PONG"}  # delayed, not refused
    assert asyncio.get_running_loop().time() - began >= 0.95
    assert metrics.value(KindCounter.LIMITS_DELAYED, "commands_per_session") >= 1


async def test_what_nodes_count_together_and_cannot_now_is_answered_so(
    listen: Any, dial: Any, commands: StubCommands, tmp_path: Path
) -> None:
    """The store is away: TNEW and TRPL have its error, everything else its answer, and the session goes on."""
    device = ntf.DeviceToken(ntf.Provider.APNS, b"00" * 32)
    new = ntf.TNew(device, KEY.public_key(), DH_KEY.public_key())
    with Server(tmp_path / "redis") as server:
        nodes = Nodes(server.url)
        store = await nodes.open()
        shared = admission(registrations_per_address="2 + 2/s")
        shared.share(store.ledger)
        wire = await dial(await listen(shared))
        with fault(store, How.UNDONE, "spend") as happened:
            wire.send(*(wire.encode(command, ID, KEY) for command in (ntf.TCrn(20), ntf.TRpl(device))))
            wire.send(wire.encode(new, b"", KEY), wire.encode(ntf.Ping()))
            answers: list[bytes] = []
            while len(answers) < 4:
                answers += [a.command for a in await wire.receive()]
        assert answers == [b"OK", b"ERR STORE database", b"ERR STORE database", b"PONG"]
        assert happened
        began = asyncio.get_running_loop().time()
        for _ in range(3):
            assert await wire.ask(new, b"", KEY) == ntf.Ok()
        assert asyncio.get_running_loop().time() - began >= 0.4
        await nodes.close()


async def test_a_session_that_waits_for_its_turn_does_not_hold_up_a_stop(listen: Any, dial: Any) -> None:
    metrics = Metrics()
    listener = await listen(admission(metrics, commands_per_session="1 + 0.1/s"))
    wire = await dial(listener)
    wire.send(wire.encode(ntf.Ping()), wire.encode(ntf.Ping()))
    async with asyncio.timeout(10):
        while not metrics.value(KindCounter.LIMITS_DELAYED, "commands_per_session"):
            await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await listener.close(30)


# --- behind a balancer

PROXIES = (ipaddress.ip_network("127.0.0.0/8"),)


def said(address: str) -> bytes:
    """What a balancer says of a client."""
    packed = ipaddress.ip_address(address).packed
    rest = packed + bytes(len(packed)) + word16(40_000) + word16(443) + b"and more"
    family = b"\x11" if len(packed) == 4 else b"\x21"
    return b"\r\n\r\n\x00\r\nQUIT\n\x21" + family + word16(len(rest)) + rest


@pytest.fixture
def balanced(dial: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Opens sessions through a balancer, which says whose they are, byte by byte."""
    said_first: list[bytes] = []

    async def open_balanced(*args: Any) -> socket.socket:
        sock = await open_socket(*args)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for n in range(len(said_first[-1])):
            await asyncio.get_running_loop().sock_sendall(sock, said_first[-1][n : n + 1])
            await asyncio.sleep(0)
        return sock

    async def open_session(listener: Listener, address: str) -> Any:
        said_first.append(said(address))
        return await dial(listener)

    monkeypatch.setattr("smp_bridge.connecting.open_socket", open_balanced)
    return open_session


@pytest.mark.parametrize("address", ["198.51.100.7", "2001:db8::7"])
async def test_a_balancer_says_whose_connection_it_is(listen: Any, balanced: Callable[..., Any], address: str) -> None:
    listener = await listen(admission(sessions_per_address=1), proxies=PROXIES)
    first, other = await balanced(listener, address), await balanced(listener, "198.51.100.8")
    assert await pong(first)
    assert await pong(other)
    third = await balanced(listener, address)
    with pytest.raises(ConnectionClosedError):
        await first.connection.receive()
    assert await pong(other)
    assert await pong(third)


async def test_a_balancer_that_says_nothing_is_not_waited_for(listen: Any, dial: Any) -> None:
    listener = await listen(proxies=PROXIES, handshake_timeout=0.2)
    for sent in (b"", b"\x16\x03\x01" + bytes(50), said("198.51.100.7")[:20]):
        with socket.create_connection(("127.0.0.1", listener.port)) as raw:
            raw.setblocking(False)
            raw.send(sent)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(raw, 1), 10) == b""


async def test_who_is_no_balancer_is_not_believed(listen: Any, raw_tls: Any) -> None:
    listener = await listen(proxies=(ipaddress.ip_network("10.0.0.0/8"),), handshake_timeout=0.5)
    with socket.create_connection(("127.0.0.1", listener.port)) as raw:
        raw.setblocking(False)
        raw.send(said("198.51.100.7"))
        with contextlib.suppress(ConnectionError):
            received = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(raw, 100), 10)
            assert received[:1] in {b"", b"\x15"}  # an alert of TLS
    reader, _ = await raw_tls(listener)
    assert (await hello(reader)).versions[1] >= 1


# --- clients that come to rest


async def test_an_inactive_client_is_disconnected(listen: Any, dial: Any) -> None:
    listener = await listen(inactive_ttl=0.3)
    idle, other = await dial(listener), await dial(listener)
    with pytest.raises(ConnectionClosedError):
        async with asyncio.timeout(10):
            while True:  # the other one is active all the time
                assert await pong(other)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(idle.connection.receive(), 0.05)
    assert await pong(other)


async def test_no_limit_to_inactivity(listen: Any, dial: Any) -> None:
    wire = await dial(await listen(inactive_ttl=0))
    assert await pong(wire)


async def unread(listener: Listener, dial: Any, commands: StubCommands) -> Any:
    """A session that asks until nothing more goes through, and never reads the answers, of a block each."""
    commands.answer = ntf.Sub(ntf.SubscriptionStatus.ERR, "x" * 400)
    wire = await dial(listener)
    wire.connection._transport.pause_reading()
    for _ in range(10_000):
        if wire.connection._resumed is not None:
            return wire
        wire.send(*(wire.encode(ntf.SChk(), corr_id=b"") for _ in range(50)))
        await asyncio.sleep(0)
    raise AssertionError("everything was taken")


async def test_a_client_that_never_reads_is_disconnected_as_inactive(
    listen: Any, dial: Any, commands: StubCommands
) -> None:
    listener = await listen(inactive_ttl=0.5)
    with contextlib.suppress(ConnectionClosedError):  # that soon
        await unread(listener, dial, commands)
    assert await pong(await dial(listener))
    async with asyncio.timeout(10):
        while listener._sessions:
            await asyncio.sleep(0.02)


async def test_a_client_that_never_reads_does_not_hold_up_a_stop(
    listen: Any, dial: Any, commands: StubCommands
) -> None:
    listener = await listen()
    await unread(listener, dial, commands)
    async with asyncio.timeout(5):  # of 30 s of grace
        await listener.close(30)


# --- stopping


async def test_a_stop_lets_commands_finish(listen: Any, dial: Any, commands: StubCommands) -> None:
    listener = await listen()
    port, busy, idle = listener.port, await dial(listener), await dial(listener)
    busy.send(busy.encode(ntf.TChk(), corr_id=b"1"), busy.encode(ntf.Ping(), corr_id=b"2"))
    await commands.started.wait()
    closing = asyncio.create_task(listener.close(10))
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        while True:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
    commands.go_on.set()
    assert [a.command for a in await busy.receive()] == [b"OK", b"PONG"]
    await asyncio.wait_for(closing, 5)  # not all of the grace
    for wire in (busy, idle):
        with pytest.raises(ConnectionClosedError):
            await wire.receive()


async def test_a_stop_does_not_wait_for_ever(listen: Any, dial: Any, commands: StubCommands) -> None:
    listener = await listen()
    wire = await dial(listener)
    wire.send(wire.encode(ntf.TChk()))
    await commands.started.wait()
    async with asyncio.timeout(5):
        await listener.close(0.1)
    assert commands.done == 0
    with pytest.raises(ConnectionClosedError):
        await wire.receive()


async def test_a_stop_during_handshakes(listen: Any, raw_tls: Any) -> None:
    listener = await listen()
    reader, _ = await raw_tls(listener)
    await hello(reader)
    async with asyncio.timeout(5):
        await listener.close(30)
    assert await is_closed(reader)


# --- whatever clients send

FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    print_blob=True,
)
VERSIONS = st.sampled_from([1, 2, 3])
VALID: list[Message] = [
    ntf.Ping(),
    ntf.TChk(),
    ntf.TVfy(bytes(32)),
    ntf.TDel(),
    ntf.TCrn(20),
    ntf.TRpl(ntf.DeviceToken(ntf.Provider.APNS_NULL, b"t")),
    ntf.TNew(ntf.DeviceToken(ntf.Provider.APNS_NULL, b"t"), KEY.public_key(), DH_KEY.public_key()),
    ntf.SNew(bytes(24), ServerAddress("smp", ("localhost",), "1", bytes(32)), bytes(24), KEY),
    ntf.SChk(),
    ntf.SDel(),
]


async def survives(wire: Any) -> None:
    """Everything that was sent is answered, and then a PING."""
    mark = os.urandom(24)
    wire.send(wire.encode(ntf.Ping(), corr_id=mark))
    async with asyncio.timeout(10):
        while not any(a.corr_id == mark and a.command == b"PONG" for a in await wire.receive()):
            pass


@FUZZ
@given(version=VERSIONS, blocks=st.lists(st.binary(min_size=BLOCK, max_size=BLOCK), min_size=1, max_size=3))
async def test_random_blocks(relay: Relay, dial: Any, version: int, blocks: list[bytes]) -> None:
    wire = await dial(relay, version)
    wire.send_raw(b"".join(blocks))
    await survives(wire)


@FUZZ
@given(version=VERSIONS, content=st.binary(max_size=BLOCK - 2))
async def test_random_contents(relay: Relay, dial: Any, version: int, content: bytes) -> None:
    wire = await dial(relay, version)
    wire.connection.send(content)
    await survives(wire)


@FUZZ
@given(
    version=VERSIONS, ids=st.tuples(st.binary(max_size=255), st.binary(max_size=255)), command=st.binary(max_size=99)
)
async def test_random_transmissions(
    relay: Relay, dial: Any, version: int, ids: tuple[bytes, bytes], command: bytes
) -> None:
    wire = await dial(relay, version)
    raw = wire.encode(command, ids[1], corr_id=ids[0])
    if len(raw) <= BLOCK - 5:
        wire.connection.send(raw if version == 1 else b"\x01" + word16(len(raw)) + raw)
    await survives(wire)


@FUZZ
@given(
    version=VERSIONS,
    command=st.sampled_from(VALID),
    place=st.integers(0, 10_000),
    change=st.binary(max_size=6),
    cut=st.integers(0, 6),
    entity_id=st.sampled_from([b"", bytes(24)]),
)
async def test_mutated_commands(
    *, relay: Relay, dial: Any, version: int, command: Message, place: int, change: bytes, cut: int, entity_id: bytes
) -> None:
    wire = await dial(relay, version)
    raw = wire.encode(command, entity_id, KEY)
    place %= len(raw) + 1
    raw = raw[:place] + change + raw[place + cut :]
    if len(raw) <= BLOCK - 21:
        wire.send(raw)
    await survives(wire)


@FUZZ
@given(command=st.sampled_from(VALID), parameters=st.binary(max_size=120), place=st.integers(0, 1000))
async def test_signed_rubbish(relay: Relay, dial: Any, command: Message, parameters: bytes, place: int) -> None:
    wire = await dial(relay)
    whole = command.encode(3)
    rubbish = whole[: len(command.tag) + 1 + place % len(whole)] + parameters
    entity_id = b"" if isinstance(command, ntf.TNew | ntf.SNew) else bytes(24)
    raw = wire.encode(rubbish, entity_id, KEY)
    if len(raw) <= BLOCK - 21:
        wire.send(raw)
    await survives(wire)


async def test_many_commands_at_once(relay: Relay, client: Client) -> None:
    answers = await asyncio.gather(
        *client.send([Request(ntf.Ping()) if i % 2 else Request(ntf.TChk(), bytes(24), KEY) for i in range(500)]),
        return_exceptions=True,
    )
    assert all(a == ntf.Pong() if i % 2 else isinstance(a, ServerError) for i, a in enumerate(answers))


async def test_connections_that_are_cut(relay: Relay, dial: Any) -> None:
    for _ in range(20):
        wire = await dial(relay)
        wire.send(*(wire.encode(ntf.TChk(), bytes(24), KEY) for _ in range(30)))
        tcp: socket.socket = wire.connection._transport.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        wire.connection.abort()
    assert await pong(await dial(relay))


# --- another certificate


@pytest.fixture
def renewed(identity: Any) -> Credentials:
    """A new online certificate of the same identity."""
    credentials, ca_key = identity
    key = generate_key("ED25519")
    leaf = issue_leaf(key, "localhost", credentials.chain[1], ca_key, datetime.datetime.now(datetime.UTC))
    return Credentials((leaf, credentials.chain[1]), key)


async def leaf_of(raw_tls: Any, listener: Listener) -> bytes:
    _, writer = await raw_tls(listener)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return shown


async def test_a_new_certificate_is_shown_to_those_who_come_then(
    *, identity: Any, listen: Any, raw_tls: Any, dial: Any, renewed: Credentials
) -> None:
    listener = await listen()
    before = await dial(listener)
    assert await leaf_of(raw_tls, listener) == identity[0].chain_der[0]
    listener.prepare(renewed)()
    assert await leaf_of(raw_tls, listener) == renewed.chain_der[0]
    assert await pong(await dial(listener))
    assert await pong(before)  # its session stays


async def test_tls_and_handshake_show_the_same_certificate(*, listen: Any, dial: Any, renewed: Credentials) -> None:
    """Also when the new one comes after TCP, before TLS."""
    listener = await listen()
    connected, go_on = asyncio.Event(), asyncio.Event()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await go_on.wait()
                writer.write(data)
        writer.close()

    async def gate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", listener.port)
        connected.set()
        await asyncio.gather(forward(reader, there[1]), forward(there[0], writer))

    async with await asyncio.start_server(gate, "127.0.0.1", 0) as gates:

        class Gate:
            port = gates.sockets[0].getsockname()[1]

        dialing = asyncio.create_task(dial(Gate))
        await asyncio.wait_for(connected.wait(), 10)
        await asyncio.sleep(0.05)  # until the listener has accepted
        listener.prepare(renewed)()
        go_on.set()
        wire = await asyncio.wait_for(dialing, 10)
        assert await pong(wire)
        wire.connection.abort()


async def test_a_certificate_that_cannot_be_used_changes_nothing(
    *, identity: Any, listen: Any, raw_tls: Any, dial: Any, renewed: Credentials
) -> None:
    listener = await listen()
    with pytest.raises(ssl.SSLError):
        listener.prepare(Credentials(identity[0].chain, renewed.key))
    assert await leaf_of(raw_tls, listener) == identity[0].chain_der[0]
    assert await pong(await dial(listener))
