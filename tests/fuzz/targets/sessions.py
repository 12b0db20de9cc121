"""Whole sessions, in memory and in virtual time: a stranger before the listener, and a hostile server.

An input is a script: a byte for the version, then steps: a byte that says which, a 2-byte length and so many bytes.
What is to be signed is signed, and what is to be an answer gets the id of its request: no fuzzer would come upon them.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fuzz import life, relay, samples
from fuzz.target import Target, add
from ntf_server.admission import proxy_header
from ntf_server.admission.gate import MAX_DELAY
from smp_bridge import crypto, ntf, smp
from smp_bridge.address import Scheme, ServerAddress
from smp_bridge.client import Client, Event, Request, ServerError, UnexpectedAnswerError
from smp_bridge.connecting import shake_hands
from smp_bridge.encoding import large, short
from smp_bridge.handshake import HandshakeError
from smp_bridge.testing.link import link
from smp_bridge.tls import SslTls, client_context, server_context
from smp_bridge.transmission import (
    CORR_ID_SIZE,
    ERR_BLOCK,
    Message,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
)
from smp_bridge.transport import BlockConnection, ConnectionClosedError, Scratch, accept

_MAX_STEPS: Final = 24
_QUEUED: Final = 20  # blocks that may have been read ahead, and some
_ENTITIES: Final = (b"", *relay.TOKENS, *relay.SUBSCRIPTIONS, samples.ID)

Step = tuple[int, bytes]


def _steps(data: bytes, kinds: int) -> Iterator[Step]:
    pos = 0
    for _ in range(_MAX_STEPS):
        if pos >= len(data):
            return
        kind = data[pos] % kinds
        length = int.from_bytes(data[pos + 1 : pos + 3], "big")
        yield kind, data[pos + 3 : pos + 3 + length]
        pos += 3 + length


def _script(first: int, steps: Sequence[Step]) -> bytes:
    return bytes([first]) + b"".join(bytes([kind]) + large(data) for kind, data in steps)


# --- a stranger before the listener

_BLOCK, _RAW, _SIGNED, _UNSIGNED, _SEND, _WAIT, _LEAVE = range(7)


class _Stranger:
    """What it sent, and what it has to get."""

    def __init__(self, connection: BlockConnection, session: Session) -> None:
        self.connection = connection
        self.session = session
        self.expected: list[bytes] = []  # correlation ids, in order
        self.in_step = True  # blocks begin where they should
        self._batch: list[bytes] = []
        self._number = 0

    def corr_id(self) -> bytes:
        self._number += 1
        return self._number.to_bytes(CORR_ID_SIZE, "big")

    def take(self, entity: int, command: bytes, key: Any = None) -> None:
        """One more transmission for the next block."""
        entity_id = _ENTITIES[entity % len(_ENTITIES)]
        if isinstance(key, X25519PrivateKey) and self.session.server_key is None:
            key = None
        self._batch.append(encode_transmission(self.session, self.corr_id(), entity_id, command, key))

    def flush(self) -> None:
        """Send what was taken."""
        batch, self._batch = self._batch, []
        fitting = [t for t in batch if len(t) <= self.session.block_size - 21]
        for content in encode_blocks(self.session, fitting):
            self.send(content)

    def send(self, content: bytes) -> None:
        """A block."""
        self.connection.send(content)
        if self.in_step:
            self.expected += [t.corr_id for t in parse_block(self.session, content)]

    def send_raw(self, data: bytes) -> None:
        """Bytes."""
        if len(data) % self.session.block_size or not data:
            self.in_step = False
        elif self.in_step:
            self.expected += self._of_raw(data)
        self.connection._tls.write(data or b"\0")
        self.connection._flush()

    def _of_raw(self, data: bytes) -> Iterator[bytes]:
        size = self.session.block_size
        for i in range(0, len(data), size):
            try:
                content = crypto.unpad(data[i : i + size])
            except crypto.CryptoError:
                yield b""
            else:
                yield from (t.corr_id for t in parse_block(self.session, content))

    async def answers(self) -> None:
        """Each command is answered, in order."""
        got: list[tuple[bytes, Message]] = []
        while len(got) < len(self.expected):
            # A block of commands waits for its turn for so long at most, and blocks do one after the other.
            async with asyncio.timeout(MAX_DELAY * (len(self.expected) + 2)):
                content = await self.connection.receive()
            for t in parse_block(self.session, content):
                assert isinstance(t, Transmission), t
                got.append((t.corr_id, ntf.parse_answer(t.command, self.session.version)))
        assert len(got) == len(self.expected)
        for (corr_id, answer), expected in zip(got, self.expected, strict=True):
            assert corr_id == expected or (corr_id, answer) == (b"", ERR_BLOCK), (corr_id, expected, answer)
        self.expected.clear()

    def play(self, kind: int, data: bytes) -> None:
        """A step that takes no time."""
        first, second = (*data[:2], 0, 0)[:2]
        if kind == _BLOCK:
            self.send(data[: self.session.block_size - 2])
        elif kind == _RAW:
            self.send_raw(data)
        elif kind == _SIGNED:
            self.take(second, data[2:], relay.KEYS[first % len(relay.KEYS)])
        elif kind == _UNSIGNED:
            self.take(first, data[1:])
        elif kind == _SEND:
            self.flush()


async def _meet_listener(data: bytes) -> None:
    inside = await relay.inside()
    try:
        client, session = await inside.dial(1 + (data[0] if data else 0) % 3)
        stranger = _Stranger(client, session)
        for kind, step in _steps(data[1:], 7):
            if kind == _WAIT:
                await asyncio.sleep(step[0] if step else 0)
            elif kind == _LEAVE:
                break
            else:
                stranger.play(kind, step)
        if stranger.in_step:
            stranger.flush()
            await stranger.answers()
            stranger.take(0, b"PING")
            stranger.flush()
            await stranger.answers()
        else:  # what is missing of a block is waited for: the server is left like that
            await asyncio.sleep(1)
        client.abort()
        await asyncio.sleep(MAX_DELAY * _QUEUED)  # what was read of a session that is gone has its turns all the same
        await _nothing_is_left(inside)
    finally:
        await inside.close()


async def _nothing_is_left(inside: relay.Inside) -> None:
    """Of the stranger's session; and the store is as sound as before."""
    assert not inside.listener._sessions
    assert not inside.listener._busy
    assert not inside.listener._admission._connections.sessions
    assert not inside.listener._admission._connections.half_open
    for token_id in relay.TOKENS:
        await inside.store.find_token(token_id)


def _many_queues() -> list[ntf.SNew]:
    """More than a token may have."""
    ids = [bytes([n]) * 24 for n in range(4)]
    return [ntf.SNew(relay.TOKENS[0], samples.ADDRESSES[0], notifier_id, samples.ED25519) for notifier_id in ids]


def _listener_seeds() -> list[bytes]:
    commands = [m for m in samples.ntf_messages() if m.tag in ntf.COMMANDS]
    hosts = ("localhost", "smp.denied.example")
    refused = [ServerAddress("smp", (host,), "", b"k" * 32) for host in hosts]
    nothing = X25519PublicKey.from_public_bytes(bytes(32))  # of low order: no secret comes of it
    own = [
        ntf.TNew(samples.device_tokens()[0], samples.ED25519.public_key(), nothing),
        *(ntf.SNew(relay.TOKENS[0], a, samples.ID, samples.ED25519) for a in refused),
        ntf.TVfy(relay.CODE),
        *(ntf.SNew(token, a, samples.ID, samples.ED25519) for token in relay.TOKENS for a in samples.ADDRESSES[:2]),
    ]
    out = []
    for version in (1, 2, 3):
        for m in [*commands, *own]:
            body = m.encode(version)
            key, entity = 0, 1
            if isinstance(m, ntf.SNew | ntf.TNew):
                entity = 0
                key = relay.TOKENS.index(m.token_id) if isinstance(m, ntf.SNew) and m.token_id in relay.TOKENS else 0
            elif isinstance(m, ntf.SChk | ntf.SDel):
                entity = 6
            if isinstance(m, ntf.Ping):
                out.append(_script(version - 1, [(_UNSIGNED, b"\0" + body), (_SEND, b"")]))
            out.append(_script(version - 1, [(_SIGNED, bytes([key, entity]) + body)]))
    every = [(_SIGNED, bytes([0, 1]) + m.encode(3)) for m in commands if not isinstance(m, ntf.TDel)]
    flood = [(_SIGNED, bytes([n % 4, 1 + n % 6]) + b"TCHK") for n in range(20)]
    out += [
        _script(2, every[:20]),
        _script(2, flood),
        _script(2, [(_SIGNED, b"\3\4" + ntf.TVfy(relay.CODE).encode(3)), (_SEND, b""), (_SIGNED, b"\3\4TCHK")]),
        _script(2, [(_SIGNED, b"\0\1TDEL"), (_SIGNED, b"\0\1TCHK"), (_SIGNED, b"\0\6SCHK")]),
        _script(2, [(_BLOCK, b"\1" + large(short(b"") + short(b"c" * 236) + short(b"e" * 237) + b"PING"))]),
        _script(2, [(_SIGNED, b"\0\0" + tnew) for tnew in [commands[0].encode(3)] * 6]),
        _script(2, [(_SIGNED, b"\0\1" + trpl.encode(3)) for trpl in commands if isinstance(trpl, ntf.TRpl)]),
        _script(2, [(_SIGNED, b"\0\0" + snew.encode(3)) for snew in _many_queues()]),
        _script(1, [(_BLOCK, b"\1\0\x08\0\1c\0PING"), (_WAIT, b"\x10"), (_BLOCK, b"\0"), (_BLOCK, b"")]),
        _script(2, [(_RAW, b"\xff" * 512), (_RAW, crypto.pad(b"\1\0\x08\0\1c\0PING", 512)), (_RAW, bytes(100))]),
        _script(0, [(_BLOCK, b"\0" + short(b"")), (_RAW, b"x"), (_LEAVE, b"")]),
    ]
    return out


add(
    Target(
        "listener",
        lambda data: life.run(_meet_listener(data)),
        _listener_seeds,
        ["ntf_server.commands.parse", "ntf_server.listener.Listener"],
        max_size=1600,
        share=0.01,
        words=[tag + b" " for tag in ntf.COMMANDS] + list(relay.TOKENS) + list(relay.SUBSCRIPTIONS),
    )
)


# --- before TLS


class _Raw(asyncio.BufferedProtocol):
    """The stranger's end of a connection: whether it was closed is all that it looks at."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room = bytearray(2**16)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        pass

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def _meet_door(data: bytes) -> None:
    """The first byte says whether a proxy connects, and how large the pieces are in which the rest comes."""
    first = data[0] if data else 0
    size = (1, 7, 16, 4096)[first // 2 % 4]
    inside = await relay.inside()
    try:
        raw = _Raw()
        inside.meet(raw, relay.PROXY if first % 2 else relay.HOST)
        for i in range(1, len(data), size):
            raw.transport.write(data[i : i + size])
        # Nobody gets through the handshake without an answer to ours: the deadline is for all of them.
        async with asyncio.timeout(inside.listener._config.handshake_timeout + 5):
            await raw.closed
        await asyncio.sleep(1)
        await _nothing_is_left(inside)
        client, session = await inside.dial(3)  # others are served
        other = _Stranger(client, session)
        other.take(0, b"PING")
        other.flush()
        await other.answers()
        await client.close()
    finally:
        await inside.close()


def _client_hello() -> bytes:
    tls = SslTls(client_context("ntf"))
    tls.handshake()
    return tls.output()


def _door_seeds() -> list[bytes]:
    header = proxy_header.SIGNATURE
    ipv4 = header + b"\x21\x11\0\x0c" + bytes([203, 0, 113, 1, 192, 0, 2, 2, 0, 80, 1, 187])
    heads = [b"", ipv4, header + b"\x20\0\0\0", header + b"\x21\x21\0\x24" + bytes(36), header + b"\x21\x31\0\0"]
    hello = _client_hello()
    return [bytes([f]) + head + rest for f in (1, 7) for head in heads for rest in (b"", hello)] + [b"\6" + hello]


add(
    Target(
        "door",
        lambda data: life.run(_meet_door(data)),
        _door_seeds,
        ["ntf_server.door.Door", "smp_bridge.transport.BlockConnection"],
        max_size=800,
        share=0.01,
        words=[proxy_header.SIGNATURE],
    )
)


# --- a hostile server

_ANSWER, _EVENT, _HOSTILE_BLOCK, _HOSTILE_RAW, _HOSTILE_SEND, _HOSTILE_WAIT, _ASK, _HANG_UP = range(8)
_VERSIONS: Final[list[tuple[Scheme, int]]] = [
    *(("smp", v) for v in range(6, 19)),
    *(("ntf", v) for v in range(1, 4)),
]  # type: ignore[list-item]  # literals
_BATCH: Final = 4


class _Server:
    """The hostile one: it shakes hands, and then does what the script says."""

    def __init__(self, scheme: Scheme, version: int) -> None:
        self.connection: BlockConnection
        self.session: Session
        self.asked: list[bytes] = [b""]  # correlation ids of what came, the oldest first
        self.in_step = True  # all blocks open
        self._batch: list[bytes] = []
        self._scheme, self._version = scheme, version

    async def begin(self, secured: BlockConnection) -> None:
        self.connection = secured
        versions = (self._version, self._version)
        self.session = await accept(secured, samples.credentials(), versions=versions, clock=samples.NOW.timestamp)

    async def listen(self) -> None:
        """Take what the client asks."""
        try:
            while True:
                content = await self.connection.receive()
                self.asked += [t.corr_id for t in parse_block(self.session, content)]
        except ConnectionClosedError:
            pass

    def play(self, kind: int, data: bytes) -> None:
        """A step that takes no time."""
        if kind == _ANSWER:
            which = data[0] if data else 0
            self._take(self.asked[which % len(self.asked)], data[1:])
        elif kind == _EVENT:
            self._take(b"", data)
        elif kind == _HOSTILE_BLOCK:
            self.connection.send(data[: self.session.block_size - 2 - crypto.TAG_SIZE])
        elif kind == _HOSTILE_RAW:
            self.in_step = False
            self.connection._tls.write((data or b"\0") * (1 + (self.session.block_size // max(1, len(data)))))
            self.connection._flush()
        elif kind == _HOSTILE_SEND:
            self.flush()

    def _take(self, corr_id: bytes, rest: bytes) -> None:
        """Entity and answer are the script's, as they stand."""
        sent = short(corr_id) + rest
        self._batch.append(b"\0" + (sent if self.session.implied_session_id else short(self.session.session_id) + sent))

    def flush(self) -> None:
        batch, self._batch = self._batch, []
        for content in encode_blocks(self.session, [t for t in batch if len(t) < self.session.block_size - 21]):
            self.connection.send(content)


async def _meet_server(data: bytes) -> None:
    scheme, version = _VERSIONS[(data[0] if data else 0) % len(_VERSIONS)]
    server, events = _Server(scheme, version), []
    secured: asyncio.Future[BlockConnection] = asyncio.get_running_loop().create_future()
    theirs = BlockConnection(scheme, SslTls(_context_of(scheme), server_side=True), secured.set_result)
    ours = BlockConnection(scheme, SslTls(client_context(scheme)))
    link(ours, theirs)

    async def on_events(taken: Sequence[Event]) -> None:
        events.extend(taken)

    async def accepted() -> None:
        await server.begin(await secured)

    address = ServerAddress(scheme, ("localhost",), "", samples.credentials().key_hash)
    accepting = asyncio.create_task(accepted())
    session = await shake_hands(ours, address, (version, version), None, samples.NOW.timestamp())
    await accepting
    client = Client(ours, session, on_events)
    listening = asyncio.create_task(server.listen())
    futures = client.send(_requests(scheme))
    batch = await client.send_block(_requests(scheme) * 2) if session.batch else None
    await asyncio.sleep(0)
    with contextlib.suppress(ConnectionClosedError):
        await _play(server, client, futures, data[1:])
    await asyncio.sleep(1)
    theirs.abort()
    async with asyncio.timeout(30):
        await asyncio.wait([client.closed])
    await listening
    for future in futures:
        assert future.done()
        error = future.exception()
        expected = ServerError | UnexpectedAnswerError | ConnectionClosedError
        assert isinstance(error, expected) or isinstance(future.result(), Message)
    await asyncio.sleep(0)
    assert not client._requests
    assert batch is None or all(isinstance(a, Message | UnexpectedAnswerError | None) for a in batch.answers)
    assert all(isinstance(e.entity_id, bytes) and isinstance(e.message, Message) for e in events)
    assert not client.untaken or not server.in_step
    await client.close()


async def _play(server: _Server, client: Client, futures: list[Any], data: bytes) -> None:
    for kind, step in _steps(data, 8):
        if kind == _HOSTILE_WAIT:
            await asyncio.sleep(step[0] if step else 0)
        elif kind == _ASK:
            futures += client.send(_requests(client.session.scheme)[:1])
            await asyncio.sleep(0.001)
        elif kind == _HANG_UP:
            return
        else:
            server.play(kind, step)
    server.flush()


def _requests(scheme: Scheme) -> list[Request]:
    key = samples.ED25519
    if scheme == "ntf":
        return [Request(ntf.TChk(), samples.ID, key), Request(ntf.SChk(), samples.ID, key)]
    return [Request(smp.NSub(), samples.ID, key), Request(smp.Sub(), samples.ID, key)]


_CONTEXTS: Final[dict[Scheme, Any]] = {}


def _context_of(scheme: Scheme) -> Any:
    if scheme not in _CONTEXTS:
        _CONTEXTS[scheme] = server_context(scheme, samples.credentials())
    return _CONTEXTS[scheme]


def _client_seeds() -> list[bytes]:
    out = []
    for i, (scheme, version) in enumerate(_VERSIONS):
        known, messages = (
            (smp.ANSWERS, samples.smp_messages()) if scheme == "smp" else (ntf.ANSWERS, samples.ntf_messages())
        )
        answers = [short(samples.ID) + m.encode(version) for m in messages if m.tag in known]
        steps = [(_ANSWER, bytes([1 + n]) + a) for n, a in enumerate(answers[:6])]
        out.append(_script(i, [*steps, (_HOSTILE_SEND, b""), (_ASK, b""), (_ANSWER, b"\7" + answers[-1])]))
        out.append(_script(i, [(_EVENT, a) for a in answers[:20]]))
        out += [_script(i, [(_EVENT, a), (_ANSWER, b"\1" + a)]) for a in answers[:: 1 if version in (3, 18) else 7]]
    nmsg = short(samples.ID) + smp.NMsg(b"n" * 24, b"m" * 144).encode(16)
    return [
        *out,
        _script(12, [(_EVENT, nmsg), (_EVENT, nmsg), (_HOSTILE_SEND, b""), (_EVENT, nmsg)]),
        _script(12, [(_HOSTILE_BLOCK, b"\0"), (_HOSTILE_BLOCK, b""), (_HOSTILE_RAW, b"\xff")]),
        _script(3, [(_HOSTILE_WAIT, b"\x28"), (_ANSWER, b"\7\0PONG"), (_HOSTILE_SEND, b""), (_HOSTILE_WAIT, b"\xff")]),
        _script(15, [(_HANG_UP, b"")]),
    ]


add(
    Target(
        "client",
        lambda data: life.run(_meet_server(data)),
        _client_seeds,
        ["smp_bridge.client.Client"],
        max_size=1600,
        share=0.01,
        words=[tag + b" " for tag in (*smp.ANSWERS, *ntf.ANSWERS)] + [short(samples.ID)],
    )
)


async def _meet_shaker(data: bytes) -> None:
    """The handshake of a hostile server over TLS: blocks instead of hellos."""
    scheme: Scheme = "ntf" if data[:1] and data[0] % 2 else "smp"
    secured: asyncio.Future[BlockConnection] = asyncio.get_running_loop().create_future()
    theirs = BlockConnection(scheme, SslTls(_context_of(scheme), server_side=True), secured.set_result)
    ours = BlockConnection(scheme, SslTls(client_context(scheme)), scratch=Scratch())
    link(ours, theirs)

    async def play() -> None:
        connection = await secured
        for kind, step in _steps(data[1:], 2):
            if kind:
                connection.send(step[: connection._size - 2])
            else:
                connection._tls.write((step or b"\0") * (1 + connection._size // max(1, len(step))))
                connection._flush()
        await asyncio.sleep(1)
        connection.abort()

    address = ServerAddress(scheme, ("localhost",), "", samples.credentials().key_hash)
    playing = asyncio.create_task(play())
    try:
        async with asyncio.timeout(30):
            await shake_hands(ours, address, None, None, samples.NOW.timestamp())
    except (HandshakeError, ConnectionClosedError):
        pass
    finally:
        ours.abort()
        await asyncio.wait([playing])
    if error := playing.exception():
        assert isinstance(error, ConnectionClosedError), error


add(
    Target(
        "hostile handshake",
        lambda data: life.run(_meet_shaker(data)),
        lambda: (
            [_script(f, [(1, b"\0\6\0\x12" + short(b"x" * 36)), (0, b"\xff")]) for f in (0, 1)]
            + [_script(f, [(1, b"")]) for f in (0, 1)]
            + [_script(f, [(0, b"\0")]) for f in (0, 1)]
        ),
        ["smp_bridge.connecting.shake_hands"],
        max_size=800,
        share=0.01,
    )
)
