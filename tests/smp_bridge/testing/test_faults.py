import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import smp
from smp_bridge.client import Client
from smp_bridge.connecting import connect
from smp_bridge.testing import Queue, Recipient, SmpServer
from smp_bridge.testing.faults import duplicate, lose_every, mix_blocks, reverse
from smp_bridge.transmission import Session, encode_blocks, encode_transmission, parse_block
from smp_bridge.transport import BlockConnection, ConnectionClosedError

_blocks = st.lists(st.lists(st.binary(min_size=1, max_size=3), max_size=5))


@given(_blocks, st.integers(1, 4))
def test_lose_every(blocks: list[list[bytes]], n: int) -> None:
    fault = lose_every(n)
    out = [a for block in blocks for a in fault(block)]
    sent = [a for block in blocks for a in block]
    assert out == [a for i, a in enumerate(sent) if i % n != n - 1]


@given(_blocks, st.integers(1, 4))
def test_mix_blocks(blocks: list[list[bytes]], n: int) -> None:
    fault = mix_blocks(n)
    out = [fault(block) for block in blocks]
    assert all(b == [] for b in out[: n - 1])
    if len(blocks) >= n:
        assert out[n - 1] == [a for block in blocks[:n] for a in block][::-1]
        assert out[n:] == blocks[n:]


@given(st.lists(st.binary(max_size=3)))
def test_duplicate_and_reverse(answers: list[bytes]) -> None:
    assert Counter(duplicate(answers)) == Counter(answers + answers)
    assert duplicate(answers)[::2] == duplicate(answers)[1::2] == answers
    assert reverse(reverse(answers)) == answers
    assert reverse(answers)[-1:] == answers[:1]


# --- on a server


@pytest.fixture
async def queues(server: SmpServer) -> AsyncIterator[list[Queue]]:
    async with await Recipient.connect(server.address) as recipient:
        yield [await recipient.queue() for _ in range(4)]


class Raw:
    """A notifier's session that sees answers as they come: the indices of the queues, -1 for PONG."""

    def __init__(self, connection: BlockConnection, session: Session, queues: list[Queue]) -> None:
        self.connection = connection
        self._session = session
        self._queues = queues

    def send(self, *indices: int) -> None:
        """One block of NSUBs, and PING for -1."""
        self.connection.send(*encode_blocks(self._session, [self._encode(i) for i in indices]))

    def _encode(self, i: int) -> bytes:
        if i == -1:
            return encode_transmission(self._session, bytes(24), b"", b"PING")
        queue = self._queues[i]
        return encode_transmission(self._session, bytes(24), queue.notifier_id, b"NSUB", queue.notifier_key)

    async def receive(self) -> list[int]:
        """The answers of one block."""
        ids = {b"": -1} | {q.notifier_id: i for i, q in enumerate(self._queues)}
        content = await asyncio.wait_for(self.connection.receive(), 5)
        return [ids[t.entity_id] for t in parse_block(self._session, content)]


@pytest.fixture
async def raw(server: SmpServer, queues: list[Queue]) -> AsyncIterator[Raw]:
    connection, session = await connect(server.address)
    yield Raw(connection, session, queues)
    await connection.close()


async def test_no_fault(raw: Raw) -> None:
    raw.send(0, -1, 1)
    assert await raw.receive() == [0, -1, 1]


async def test_lost_answers(server: SmpServer, queues: list[Queue], raw: Raw) -> None:
    server.answers = lose_every(2)
    raw.send(0, 1, -1, 2)
    raw.send(3, 0)
    raw.send(-1)
    assert [await raw.receive() for _ in range(3)] == [[0, 2, -1], [0], [-1]]
    assert all(server.subscribed(q.notifier_id) for q in queues)
    server.answers = lose_every(1)
    raw.send(0, 1)
    raw.send(-1)
    assert await raw.receive() == [-1]


async def test_nested_faults(server: SmpServer, raw: Raw) -> None:
    server.answers = lambda answers: duplicate(reverse(answers))
    raw.send(0, 1, 2)
    assert await raw.receive() == [2, 2, 1, 1, 0, 0]


async def test_answers_of_many_blocks(server: SmpServer, raw: Raw) -> None:
    server.answers = mix_blocks(2)
    raw.send(0, 1, -1)
    raw.send(-1)
    raw.send(2, 3)
    raw.send(0, 1)
    assert [await raw.receive() for _ in range(4)] == [[-1], [-1], [3, 2, 1, 0], [0, 1]]


async def test_more_answers_than_a_block_holds(server: SmpServer, raw: Raw) -> None:
    server.answers = lambda answers: answers * 300
    raw.send(0)
    received: list[int] = []
    while len(received) < 300:
        received += await raw.receive()
    assert received == [0] * 300


async def test_only_answers_to_notifiers_are_spoilt(server: SmpServer, queues: list[Queue], raw: Raw) -> None:
    server.answers = lambda answers: []
    await queues[0].send("x")
    assert (await queues[0].receive()).body == b"x"
    raw.send(0, -1)
    assert await raw.receive() == [-1]


@pytest.mark.parametrize("nsubs", [1, 3, 4])
async def test_cut_in_the_middle_of_a_batch(server: SmpServer, queues: list[Queue], raw: Raw, nsubs: int) -> None:
    server.cut_after(nsubs)
    before = server.connections
    raw.send(0)
    if nsubs > 1:
        assert await raw.receive() == [0]
        raw.send(-1, 1, 2, 3)
    with pytest.raises(ConnectionClosedError):
        await raw.receive()
    await server.until(lambda: server.connections == before - 1)
    assert server.nsubs() == nsubs
    assert [server.nsubs(q.notifier_id) for q in queues] == [1] * nsubs + [0] * (4 - nsubs)
    async with await Client.connect(server.address) as client:  # only once
        for queue in queues:
            assert await client.request(smp.NSub(), queue.notifier_id, queue.notifier_key) == smp.SOk()


async def test_slow_answers_and_events(server: SmpServer, queues: list[Queue], raw: Raw) -> None:
    clock = asyncio.get_running_loop().time
    server.slow = 0.1
    start = clock()
    raw.send(0)
    raw.send(-1)
    assert [await raw.receive() for _ in range(2)] == [[0], [-1]]
    assert clock() - start >= 0.1
    start = clock()
    server.notify(queues[0].notifier_id)
    assert await raw.receive() == [0]
    assert clock() - start >= 0.1
    server.slow = 0.0
    raw.send(1)
    assert await raw.receive() == [1]


async def test_answers_that_come_too_late(server: SmpServer, raw: Raw) -> None:
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    server.slow = 0.05
    raw.send(0)
    await server.until(lambda: server.nsubs() == 1)
    await raw.connection.close()
    async with await Client.connect(server.address) as client:
        assert await client.request(smp.Ping()) == smp.Pong()  # it waited longer than what was lost
    assert failed == []
