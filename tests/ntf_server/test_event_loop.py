"""A crowd holds up nothing but itself: with real sockets, and asyncio's own transports."""

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ntf_server.event_loop import _MOST, _TURN, FEWEST, EventLoop, descriptor


@pytest.fixture
def run() -> Iterator[Callable[..., Any]]:
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        yield runner.run


@contextlib.contextmanager
def pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    with contextlib.ExitStack() as stack:
        made = [socket.socketpair() for _ in range(count)]
        for pair in made:
            for sock in pair:
                sock.setblocking(False)
                stack.enter_context(sock)
        yield made


class Echo(asyncio.Protocol):
    """One that is apart. `seen`: of all, in which order they had something."""

    def __init__(self, loop: EventLoop, seen: list[object]) -> None:
        self.loop, self.seen = loop, seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.loop.put_apart(descriptor(transport))

    def data_received(self, data: bytes) -> None:
        self.seen.append(self)
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.loop.put_back(descriptor(self.transport))


async def closed(*transports: asyncio.BaseTransport) -> None:
    for transport in transports:
        transport.close()
    await asyncio.sleep(0.01)


def current() -> EventLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, EventLoop)
    return loop


@pytest.mark.parametrize("each", [0.0, _TURN / 8, 2 * _TURN])
def test_of_many_that_are_apart_a_few_are_taken_in_a_turn_and_each_in_its_turn(
    run: Callable[..., Any], each: float
) -> None:
    """So many as a turn may take, each of which takes its time, and a few in any case."""

    class Slow(Echo):
        def data_received(self, data: bytes) -> None:
            time.sleep(each)
            super().data_received(data)

    async def main() -> None:
        loop, seen = current(), list[object]()
        with pairs(200 if each <= _TURN else 40) as crowd, pairs(1) as [(here, there)]:
            opened = [(await loop.create_connection(lambda: Slow(loop, seen), sock=ours))[0] for ours, _ in crowd]
            await asyncio.sleep(0.01)
            order = list[int]()
            loop.add_reader(here, lambda: order.append(len(seen)))  # it stays ready
            for _, theirs in crowd:
                theirs.send(b"x")
            there.send(b"x")
            while len(seen) < len(crowd):
                await asyncio.sleep(0)
            assert len(set(seen)) == len(crowd)
            most = max(b - a for a, b in itertools.pairwise(order))
            assert FEWEST <= most <= (_MOST if not each else 16 if each < _TURN else FEWEST)
            loop.remove_reader(here)
            await closed(*opened)

    run(main())


def test_what_is_apart_reads_writes_and_pauses_as_any_other(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop, size = current(), 2**21
        server = await loop.create_server(lambda: Echo(loop, []), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(bytes(size))  # more than the buffers hold
            assert await reader.readexactly(size) == bytes(size)
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.01)

    run(main())


def test_one_that_is_apart_may_pause(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop, seen = current(), list[object]()
        with pairs(1) as [(ours, theirs)]:
            transport, _ = await loop.create_connection(lambda: Echo(loop, seen), sock=ours)
            await asyncio.sleep(0.01)
            transport.pause_reading()
            theirs.send(b"x")
            await asyncio.sleep(0.05)
            assert not seen
            transport.resume_reading()
            while not seen:
                await asyncio.sleep(0.01)
            assert await loop.sock_recv(theirs, 1) == b"x"
            await closed(transport)

    run(main())


def test_a_number_that_comes_again_is_no_longer_apart(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = current()
        with pairs(1) as [(ours, theirs)]:
            fd = ours.fileno()
            transport, _ = await loop.create_connection(lambda: Echo(loop, []), sock=ours)
            await asyncio.sleep(0.01)
            assert fd in loop._sockets._apart.get_map()
            theirs.close()
            while not transport.is_closing():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
            with pairs(4) as others:
                [(mine, other)] = [p for pair in others for p in (pair, pair[::-1]) if p[0].fileno() == fd]
                other.send(b"x")
                ready = asyncio.Event()
                loop.add_reader(mine, ready.set)
                assert mine in loop._sockets._first.get_map()
                await asyncio.wait_for(ready.wait(), 5)
                loop.remove_reader(mine)

    run(main())


def test_one_that_has_a_pace_is_looked_at_now_and_then(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop, looked = current(), list[float]()
        with pairs(1) as [(here, there)]:
            loop.put_apart(here.fileno(), 0.02)
            loop.add_reader(here.fileno(), lambda: looked.append(loop.time()))  # it stays ready
            there.send(b"x")
            while len(looked) < 5:
                await asyncio.sleep(0)
            assert min(b - a for a, b in itertools.pairwise(looked)) >= 0.0199
            loop.remove_reader(here.fileno())
            await asyncio.sleep(0.05)
            assert len(looked) == 5
            loop.put_back(here.fileno())

    run(main())


def test_no_descriptor_is_left() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            runner.run(asyncio.sleep(0))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
