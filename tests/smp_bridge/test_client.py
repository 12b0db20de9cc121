import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto, ntf, smp
from smp_bridge.address import Scheme, ServerAddress
from smp_bridge.client import Client, Event, Request, ServerError, UnexpectedAnswerError
from smp_bridge.encoding import ParseError
from smp_bridge.handshake import IdentityMismatchError
from smp_bridge.identity import Credentials
from smp_bridge.testing import SmpServer
from smp_bridge.transmission import (
    ERR_AUTH,
    ERR_INTERNAL,
    AuthKey,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
)
from smp_bridge.transport import MAX_QUEUED_BLOCKS, BlockConnection, ConnectionClosedError, accept, serve

Answer = tuple[bytes, bytes, bytes]  # correlation id, entity id, answer


class Peer:
    """A server whose answers are the test's: it gives the transmissions of each block, and sends what it is told."""

    def __init__(self, connection: BlockConnection, session: Session) -> None:
        self.connection = connection
        self.session = session

    async def receive(self) -> list[Transmission]:
        content = await asyncio.wait_for(self.connection.receive(), 5)
        transmissions = parse_block(self.session, content)
        assert all(isinstance(t, Transmission) for t in transmissions)
        return [t for t in transmissions if isinstance(t, Transmission)]

    def send(self, *answers: Answer) -> None:
        encoded = [encode_transmission(self.session, c, e, m) for c, e, m in answers]
        for block in encode_blocks(self.session, encoded):
            self.connection.send(block)


class Peers:
    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self.accepted: asyncio.Queue[Peer] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def pair(
        self, on_events: Callable[[Sequence[Event]], asyncio.Future[None]] | None = None, **options: float
    ) -> AsyncIterator[tuple[Client, Peer]]:
        events = {} if on_events is None else {"on_events": on_events}
        async with await Client.connect(self.address, **options, **events) as client:  # type: ignore[arg-type]
            yield client, await self.accepted.get()


@contextlib.asynccontextmanager
async def listen(scheme: Scheme) -> AsyncIterator[Peers]:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    tasks: set[asyncio.Task[None]] = set()
    connections: list[BlockConnection] = []

    async def run(connection: BlockConnection) -> None:
        with contextlib.suppress(ConnectionClosedError):
            out.accepted.put_nowait(Peer(connection, await accept(connection, credentials)))

    def on_connected(connection: BlockConnection) -> None:
        connections.append(connection)
        tasks.add(asyncio.create_task(run(connection)))

    server = await serve(scheme, credentials, on_connected, "127.0.0.1", 0)
    port = str(server.sockets[0].getsockname()[1])
    out = Peers(ServerAddress(scheme, ("localhost",), port, credentials.key_hash))
    try:
        yield out
    finally:
        server.close()
        for connection in connections:
            connection.abort()
        await asyncio.gather(*tasks)


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    async with listen("smp") as peers:
        yield peers


PINGS = [Request(smp.Ping()) for _ in range(3)]
NSUB = Request(smp.NSub(), b"n" * 24, Ed25519PrivateKey.generate())
END: Answer = (b"", b"e" * 24, b"END")


# --- requests


async def test_answers_are_matched_by_correlation_id(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        sent = [*client.send(PINGS[:2]), *client.send(PINGS[2:])]
        transmissions = [*await peer.receive(), *await peer.receive()]
        assert len({t.corr_id for t in transmissions}) == 3
        assert all(len(t.corr_id) == 24 for t in transmissions)
        counts = [b"SOKS " + i.to_bytes(8, "big") + b"\x10" + bytes(16) for i in range(3)]
        answers: list[Answer] = [(t.corr_id, b"", c) for t, c in zip(transmissions, counts, strict=True)]
        peer.send(*reversed(answers))
        assert await asyncio.gather(*sent) == [smp.SOks(i, bytes(16)) for i in range(3)]


async def test_commands_are_batched(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        key = Ed448PrivateKey.generate()  # its signatures are the largest
        futures = client.send([Request(smp.NSub(), bytes(24), key) for _ in range(100)])
        assert [len(await peer.receive()), len(await peer.receive())] == [95, 5]
        for future in futures:
            future.cancel()


async def test_each_kind_of_key_authorizes() -> None:
    async with SmpServer() as server, await Client.connect(server.address) as client:
        for key in (Ed25519PrivateKey.generate(), X25519PrivateKey.generate()):
            new = smp.New(key.public_key(), X25519PrivateKey.generate().public_key())
            ids = await client.request(new, key=key)
            assert isinstance(ids, smp.Ids)
            assert await client.request(smp.Off(), ids.recipient_id, key) == smp.Ok()


async def test_no_server_key_for_authenticators() -> None:
    async with SmpServer() as server, await Client.connect(server.address, versions=(6, 6)) as client:
        with pytest.raises(crypto.CryptoError):
            client.send([Request(smp.NSub(), bytes(24), X25519PrivateKey.generate())])
        assert await client.request(smp.Ping()) == smp.Pong()


async def test_an_error_answer(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        request = asyncio.create_task(client.request(smp.Ping()))
        [t] = await peer.receive()
        peer.send((t.corr_id, b"", b"ERR AUTH"))
        with pytest.raises(ServerError, match="AUTH") as e:
            await request
        assert e.value.error == ERR_AUTH


@pytest.mark.parametrize("answer", [b"WHAT", b"SOK", b"ERR WHAT", b""])
async def test_an_answer_that_the_protocol_does_not_know(peers: Peers, answer: bytes) -> None:
    async with peers.pair() as (client, peer):
        request = asyncio.create_task(client.request(smp.Ping()))
        [t] = await peer.receive()
        peer.send((t.corr_id, b"", answer))
        with pytest.raises(UnexpectedAnswerError):
            await request
        assert not client.closed.done()


async def test_a_timeout_and_the_answer_that_comes_after_it(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        with pytest.raises(TimeoutError):
            await client.request(smp.Ping(), timeout=0.05)
        [late] = await peer.receive()
        request = asyncio.create_task(client.request(smp.Ping()))
        [t] = await peer.receive()
        peer.send((late.corr_id, b"", b"OK"), (t.corr_id, b"", b"PONG"), (t.corr_id, b"", b"OK"))
        assert await request == smp.Pong()


async def test_what_cannot_be_sent_leaves_nothing_behind(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        with pytest.raises(ValueError, match="large"):
            client.send([Request(smp.Ping()), Request(smp.Send(True, bytes(16384)), bytes(24))])
        request = asyncio.create_task(client.request(smp.Ping()))
        [t] = await peer.receive()
        peer.send((t.corr_id, b"", b"PONG"))
        assert await request == smp.Pong()
        assert not client._requests


# --- batches


def nsub(key: AuthKey | None = None) -> Request:
    return Request(smp.NSub(), bytes(24), key or KEY)


KEY = crypto.encode_private(Ed25519PrivateKey.generate())


async def test_a_batch_is_one_full_block(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        batch = await client.send_block([nsub() for _ in range(140)])
        assert len(batch.answers) == 134
        transmissions = await peer.receive()
        assert [t.corr_id for t in transmissions] == [batch.prefix + i.to_bytes(2, "big") for i in range(134)]
        other = await client.send_block([nsub()])
        assert len(await peer.receive()) == 1
        assert other.prefix != batch.prefix


async def test_answers_to_a_batch_in_any_order_the_first_counts(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        one, two = await client.send_block([nsub()] * 3), await client.send_block([nsub()] * 2)
        a, b, c = (t.corr_id for t in await peer.receive())
        d, e = (t.corr_id for t in await peer.receive())
        waiting = [asyncio.create_task(batch.wait(5)) for batch in (one, two)]
        peer.send((e, b"", b"ERR INTERNAL"), (c, b"", b"OK"), (a, b"", b"ERR AUTH"), (a, b"", b"OK"), (b, b"", b"WHAT"))
        await waiting[0]
        assert one.answers[0] == ERR_AUTH
        assert isinstance(one.answers[1], UnexpectedAnswerError)
        assert one.answers[2] == smp.Ok()
        assert not waiting[1].done()
        assert two.answers == [None, ERR_INTERNAL]
        peer.send((d, b"", b"OK"))
        await waiting[1]
        assert two.answers == [smp.Ok(), ERR_INTERNAL]


async def test_answers_that_are_none_of_a_batch(peers: Peers) -> None:
    events: asyncio.Queue[Sequence[Event]] = asyncio.Queue()
    async with peers.pair(events.put) as (client, peer):  # type: ignore[arg-type]
        batch = await client.send_block([nsub()])
        [t] = await peer.receive()
        index = (1).to_bytes(2, "big")
        peer.send((batch.prefix + index, b"", b"OK"), (batch.prefix + b"\xff\xff", b"", b"OK"), (bytes(24), b"", b"OK"))
        peer.send((b"", b"n" * 24, b"END"))
        assert await events.get() == [Event(b"n" * 24, smp.End())]
        assert batch.answers == [None]
        peer.send((t.corr_id, b"", b"OK"))
        await batch.wait(5)
        assert batch.answers == [smp.Ok()]
        assert events.empty()


async def test_a_batch_that_is_not_answered_in_time(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        batch = await client.send_block([nsub()] * 2)
        transmissions = await peer.receive()
        peer.send((transmissions[0].corr_id, b"", b"OK"))
        await batch.wait(0.1)
        assert batch.answers == [smp.Ok(), None]
        client.forget(batch)
        client.forget(batch)
        assert not client._batches
        peer.send((transmissions[1].corr_id, b"", b"OK"))
        assert await ping(client, peer) == smp.Pong()
        assert batch.answers == [smp.Ok(), None]
        await asyncio.wait_for(batch.wait(1000), 5)


async def ping(client: Client, peer: Peer) -> object:
    request = asyncio.create_task(client.request(smp.Ping()))
    [t] = await peer.receive()
    peer.send((t.corr_id, b"", b"PONG"))
    return await request


async def test_no_answers_come_after_the_connection(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        batch = await client.send_block([nsub()] * 2)
        [first, _] = await peer.receive()
        peer.send((first.corr_id, b"", b"OK"))
        await peer.connection.close()
        await asyncio.wait_for(batch.wait(1000), 5)
        assert batch.answers == [smp.Ok(), None]
        assert not client._batches
        with pytest.raises(ConnectionClosedError):
            await client.send_block([nsub()])
        assert not client._batches


@pytest.mark.parametrize("close", [Client.close, lambda client: client._connection.close()])
async def test_a_batch_whose_connection_is_closed_while_it_is_signed(
    peers: Peers, close: Callable[[Client], Awaitable[None]]
) -> None:
    async with peers.pair() as (client, _):
        sending = asyncio.create_task(client.send_block([nsub()] * 134))
        await asyncio.sleep(0)
        assert not sending.done()
        await close(client)
        with pytest.raises(ConnectionClosedError):
            await sending
        assert not client._batches


async def test_others_have_the_loop_while_a_batch_is_signed(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await client.send_block([nsub() for _ in range(134)])
        counting.cancel()
        assert turns > 3
        assert len(await peer.receive()) == 134


@pytest.mark.parametrize("bad", [b"", b"garbage", KEY[:-1]])
async def test_a_bad_key_sends_nothing_of_the_batch(peers: Peers, bad: bytes) -> None:
    async with peers.pair() as (client, peer):
        with pytest.raises(ParseError):
            await client.send_block([nsub(), Request(smp.NSub(), bytes(24), bad), nsub()])
        assert not client._batches
        assert await ping(client, peer) == smp.Pong()


async def test_ntf_answers() -> None:
    async with listen("ntf") as peers, peers.pair() as (client, peer):
        request = asyncio.create_task(client.request(ntf.Ping()))
        [t] = await peer.receive()
        peer.send((t.corr_id, b"", b"PONG"))
        assert await request == ntf.Pong()


# --- events


async def test_the_events_of_a_block_come_together(peers: Peers) -> None:
    events: asyncio.Queue[Sequence[Event]] = asyncio.Queue()
    async with peers.pair(events.put) as (client, peer):  # type: ignore[arg-type]
        request = asyncio.create_task(client.request(smp.Ping()))
        [t] = await peer.receive()
        nmsg = smp.NMsg(b"n" * 24, b"m" * 144)
        peer.send(END, (t.corr_id, b"", b"PONG"), (b"", b"", b"WHAT"), (b"", b"q" * 24, nmsg.encode(18)))
        assert await events.get() == [Event(b"e" * 24, smp.End()), Event(b"q" * 24, nmsg)]
        assert await request == smp.Pong()
        peer.send((b"", b"", b"ERR BLOCK"))
        [error] = await events.get()
        assert str(error.message) == "BLOCK"


async def test_the_next_block_waits_for_the_events_of_this_one(peers: Peers) -> None:
    began, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    handled = 0

    async def on_events(events: Sequence[Event]) -> None:
        nonlocal handled
        began.set()
        await go_on.wait()
        handled += len(events)
        done.set()

    async with peers.pair(on_events) as (client, peer):  # type: ignore[arg-type]
        peer.send(END)
        await began.wait()
        request = asyncio.create_task(client.request(smp.Ping()))
        [t] = await peer.receive()
        peer.send((t.corr_id, b"", b"PONG"))
        finished, _ = await asyncio.wait([request], timeout=0.1)
        assert not finished
        assert handled == 0
        go_on.set()
        assert await request == smp.Pong()
        assert handled == 1


async def test_a_handler_that_fails_closes_the_connection(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    async def on_events(events: Sequence[Event]) -> None:
        raise RuntimeError("the store is gone")

    async with peers.pair(on_events) as (client, peer):  # type: ignore[arg-type]
        request = asyncio.create_task(client.request(smp.Ping()))
        await peer.receive()
        peer.send(END)
        with pytest.raises(ConnectionClosedError):
            await request
        await asyncio.wait_for(client.closed, 5)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == [
        "handling events failed; the connection is closed"
    ]


async def test_a_handler_that_fails_gets_the_blocks_that_came_after_it(
    peers: Peers, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[bytes] = []
    came = asyncio.Event()

    async def on_events(events: Sequence[Event]) -> None:
        await came.wait()
        [event] = events
        if event.entity_id in (b"1" * 24, b"3" * 24):
            raise RuntimeError("the store is gone")
        taken.append(event.entity_id)

    async with peers.pair(on_events) as (client, peer):  # type: ignore[arg-type]
        ids = [b"%d" % i * 24 for i in range(6)]
        for entity_id in ids:
            peer.send((b"", entity_id, b"END"))
        async with asyncio.timeout(5):
            while client.untaken < 6:
                await asyncio.sleep(0.01)
        came.set()
        await asyncio.wait_for(client.closed, 5)
        assert taken == [i for i in ids if i[:1] not in b"13"]
        assert client.untaken == 2
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1


# --- pings


async def test_an_idle_connection_is_pinged(peers: Peers) -> None:
    async with peers.pair(ping_interval=0.02) as (client, peer):
        for _ in range(6):
            [ping] = await peer.receive()
            assert (ping.command, ping.authenticator, ping.entity_id) == (b"PING", b"", b"")
            peer.send((ping.corr_id, b"", b"PONG"))
        assert not client.closed.done()


async def test_an_unanswered_ping_is_the_end_of_a_dead_way(peers: Peers) -> None:
    async with peers.pair(ping_interval=0.1, ping_timeout=0.1) as (client, peer):
        await peer.receive()
        started = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionClosedError):
            await peer.receive()
        assert asyncio.get_running_loop().time() - started < 1
        await asyncio.wait_for(client.closed, 5)
        assert client.way_is_dead


async def test_a_connection_that_is_closed_is_no_dead_way(peers: Peers) -> None:
    async with peers.pair(ping_interval=0.1, ping_timeout=0.1) as (client, peer):
        await peer.connection.close()
        await asyncio.wait_for(client.closed, 5)
        assert not client.way_is_dead


@pytest.mark.parametrize("given_up", [False, True])
async def test_a_command_at_work_holds_up_the_answer_to_a_ping(peers: Peers, given_up: bool) -> None:
    async with peers.pair(ping_interval=0.05, ping_timeout=0.05) as (client, peer):
        [request] = client.send([NSUB])
        if given_up:
            request.cancel()
        [nsub], [ping] = await peer.receive(), await peer.receive()
        await asyncio.sleep(0.5)
        assert not client.closed.done()
        peer.send((nsub.corr_id, nsub.entity_id, b"OK"), (ping.corr_id, b"", b"PONG"))
        [ping] = await peer.receive()
        with pytest.raises(ConnectionClosedError):  # this one waits for nothing
            await peer.receive()
        await asyncio.wait_for(client.closed, 5)
        assert client.way_is_dead
        assert given_up or await request == smp.Ok()


async def test_a_command_that_was_passed_over_holds_up_nothing(peers: Peers) -> None:
    async with peers.pair(ping_interval=0.05, ping_timeout=0.05) as (client, peer):
        batch = await client.send_block([NSUB])
        await peer.receive()
        [ping] = await peer.receive()
        peer.send((ping.corr_id, b"", b"PONG"))  # so the answer before it is lost
        await peer.receive()
        with pytest.raises(ConnectionClosedError):
            await peer.receive()
        assert client.way_is_dead
        client.forget(batch)


async def test_a_command_is_not_at_work_for_ever(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smp_bridge.client._MAX_SILENCE", 0.5)
    async with peers.pair(ping_interval=0.05, ping_timeout=0.05) as (client, _):
        [request] = client.send([NSUB])
        await asyncio.wait_for(client.closed, 5)
        assert client.way_is_dead
        assert isinstance(request.exception(), ConnectionClosedError)


async def test_anything_received_counts_as_a_sign_of_life(peers: Peers) -> None:
    async with peers.pair(ping_interval=0.05, ping_timeout=0.05) as (client, peer):
        for _ in range(8):
            await peer.receive()
            peer.send(END)  # not an answer
        assert not client.closed.done()


async def test_no_pings_while_blocks_come(peers: Peers) -> None:
    async with peers.pair(ping_interval=0.5) as (client, peer):
        receiving = asyncio.create_task(peer.connection.receive())
        for _ in range(40):
            peer.send(END)
            await asyncio.wait([receiving], timeout=0.02)
        assert not receiving.done()
        receiving.cancel()
        await asyncio.wait([receiving])
        assert not client.closed.done()


async def test_an_error_answers_a_ping_too(peers: Peers) -> None:
    async with peers.pair(ping_interval=0.02) as (client, peer):
        for _ in range(5):
            [ping] = await peer.receive()
            peer.send((ping.corr_id, b"", b"ERR INTERNAL"))
        assert not client.closed.done()


# --- the end


async def test_the_server_closes(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        sent = client.send(PINGS)
        await peer.connection.close()
        for future in sent:
            with pytest.raises(ConnectionClosedError):
                await future
        await client.closed
        with pytest.raises(ConnectionClosedError):
            await client.request(smp.Ping())
        await asyncio.sleep(0)
        assert not client._requests


async def test_close_ends_what_waits(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        request = asyncio.create_task(client.request(smp.Ping()))
        await peer.receive()
        await client.close()
        with pytest.raises(ConnectionClosedError):
            await request
        with pytest.raises(ConnectionClosedError):
            await peer.receive()
        await client.close()


async def test_close_at_once(peers: Peers) -> None:
    client = await Client.connect(peers.address)
    [unanswered] = client.send(PINGS[:1])
    await client.close()
    with pytest.raises(ConnectionClosedError):
        await asyncio.wait_for(unanswered, 1)


async def test_a_bad_block_ends_it(peers: Peers) -> None:
    async with peers.pair() as (client, peer):
        peer.connection.encrypt(peer.session)  # the chain begins anew: what is sent now does not open
        peer.send(END)
        peer.connection.send(b"")
        peer.connection.encrypt(peer.session)
        peer.send(END)
        await asyncio.wait_for(client.closed, 5)


async def test_finish_hands_over_what_comes_until_the_peer_closes(peers: Peers) -> None:
    taken: list[Event] = []

    async def on_events(events: Sequence[Event]) -> None:
        await asyncio.sleep(0.01)
        taken.extend(events)

    async with peers.pair(on_events) as (client, peer):  # type: ignore[arg-type]
        for _ in range(30):
            peer.send(END)
        await asyncio.wait_for(client.finish(), 5)
        assert (len(taken), client.untaken) == (30, 0)
        with pytest.raises(ConnectionClosedError):
            client.send(PINGS)
        with pytest.raises(ConnectionClosedError):
            await peer.receive()


async def test_finish_ends_with_a_peer_that_does_not_close(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends on; the reading has a bound, and what was read is handed over."""
    monkeypatch.setattr("smp_bridge.client._READ_ON", 0.5)
    taken: list[Event] = []

    async def on_events(events: Sequence[Event]) -> None:
        taken.extend(events)

    async def send_on() -> None:
        while True:
            peer.send(END)
            await asyncio.sleep(0.05)

    async with peers.pair(on_events) as (client, peer):  # type: ignore[arg-type]
        monkeypatch.setattr(type(client._connection._tls), "close", lambda _: None)  # it hears nothing of the end
        sending = asyncio.create_task(send_on())
        start = asyncio.get_running_loop().time()
        await client.finish()
        assert 0.4 < asyncio.get_running_loop().time() - start < 3
        assert len(taken) >= 5
        sending.cancel()


async def test_finish_ends_soon_with_a_silent_peer(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    async with peers.pair() as (client, _):
        monkeypatch.setattr(type(client._connection._tls), "close", lambda _: None)
        start = asyncio.get_running_loop().time()
        await client.finish()
        assert asyncio.get_running_loop().time() - start < 4


async def test_finish_hands_over_what_a_far_peer_sends_before_it_hears_of_the_end(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Event] = []

    async def on_events(events: Sequence[Event]) -> None:
        taken.extend(events)

    async with peers.pair(on_events) as (client, peer):  # type: ignore[arg-type]
        monkeypatch.setattr(type(client._connection._tls), "close", lambda _: None)  # it is on its way
        finishing = asyncio.create_task(client.finish())
        await asyncio.sleep(1.0)
        peer.send(END)
        await asyncio.sleep(0.1)
        peer.connection.abort()
        await asyncio.wait_for(finishing, 5)
    assert len(taken) == 1


async def test_finish_waits_for_the_handler(peers: Peers) -> None:
    """However long it takes, though reading stopped: blocks that wait are handed over."""
    go_on, taken = asyncio.Event(), 0

    async def on_events(events: Sequence[Event]) -> None:
        nonlocal taken
        await go_on.wait()
        taken += len(events)

    async with peers.pair(on_events) as (client, peer):  # type: ignore[arg-type]
        for _ in range(60):
            peer.send(END)
        finishing = asyncio.create_task(client.finish())
        await asyncio.sleep(0.8)
        assert not finishing.done()
        assert client.untaken >= MAX_QUEUED_BLOCKS
        go_on.set()
        await asyncio.wait_for(finishing, 5)
        assert (taken, client.untaken) == (60, 0)


async def test_close_says_what_was_not_taken(peers: Peers) -> None:
    async def on_events(events: Sequence[Event]) -> None:
        await asyncio.Event().wait()

    async with peers.pair(on_events) as (client, peer):  # type: ignore[arg-type]
        for _ in range(3):
            peer.send(END)
        async with asyncio.timeout(5):
            while client.untaken < 3:
                await asyncio.sleep(0.01)
        await client.close()
        assert client.untaken == 3


async def test_a_handler_that_takes_long_is_not_the_silence_of_the_peer(peers: Peers) -> None:
    go_on, done = asyncio.Event(), asyncio.Event()

    async def on_events(events: Sequence[Event]) -> None:
        await go_on.wait()
        done.set()

    async with peers.pair(on_events, ping_interval=0.05, ping_timeout=0.05) as (client, peer):  # type: ignore[arg-type]
        peer.send(END)
        await asyncio.sleep(0.5)
        [unanswered] = client.send(PINGS[:1])  # which an aborted connection does not take
        unanswered.cancel()
        go_on.set()
        await asyncio.wait_for(done.wait(), 5)
        assert not client.closed.done()


async def test_connect_refuses_another_identity(peers: Peers) -> None:
    wrong = ServerAddress("smp", peers.address.hosts, peers.address.port, bytes(32))
    with pytest.raises(IdentityMismatchError):
        await Client.connect(wrong)


async def test_secrets_are_not_in_reprs() -> None:
    request = Request(smp.NSub(), b"secret-id", Ed25519PrivateKey.generate())
    assert "secret" not in repr(request) + repr(Event(b"secret-id", smp.End()))
    assert "Ed25519" not in repr(request)
