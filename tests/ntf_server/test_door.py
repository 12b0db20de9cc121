"""What is spent on a connection before its client said something, over real sockets; its sessions: test_listener."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scrape import sample

from ntf_server.admission.gate import Admission
from ntf_server.admission.sessions import Peer
from ntf_server.config.limits import parse_limits
from ntf_server.config.settings import Limits
from ntf_server.door import Door, _is_whole
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, KindCounter
from smp_bridge.encoding import word16
from smp_bridge.tls import SslTls, client_context

PROXIES = (ipaddress.ip_network("127.0.0.0/8"),)
HEADER = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes([198, 51, 100, 7, 192, 0, 2, 1, 0, 80, 1, 187])


def client_hello() -> bytes:
    tls = SslTls(client_context("ntf"))
    tls.handshake()
    return tls.output()


class LetIn(asyncio.Protocol):
    """What comes after the door: it has it all."""

    def __init__(self, peer: Peer, received: bytes) -> None:
        self.peer = peer
        self.received = received
        self.at = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        self.received += data


class Doors:
    """A server of doors. `inside`: who was let in."""

    def __init__(self, proxies: Any = (), timeout: float = 5.0, **limits: Any) -> None:
        self.metrics = Metrics()
        budgets = parse_limits(msgspec.structs.replace(Limits(), **limits))
        self.admission = Admission(budgets, metrics=self.metrics)
        self.inside: list[LetIn] = []
        self.transports: list[asyncio.Transport] = []
        buffer = bytearray(2**16)
        self.make: Callable[[], Door] = lambda: Door(self.admission, proxies, timeout, buffer, self._let_in)

    def _let_in(self, transport: asyncio.Transport, peer: Peer, received: bytes) -> None:
        self.inside.append(LetIn(peer, received))
        self.transports.append(transport)
        transport.set_protocol(self.inside[-1])

    async def until_inside(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.inside) < count:
                await asyncio.sleep(0.01)

    def half_open(self) -> int:
        return int(sample(self.metrics, Gauge.CLIENT_HANDSHAKES))


@contextlib.asynccontextmanager
async def serving(doors: Doors) -> AsyncIterator[Callable[[], socket.socket]]:
    """Gives sockets that are connected to it."""
    server = await asyncio.get_running_loop().create_server(doors.make, "127.0.0.1", 0)
    with contextlib.ExitStack() as stack:

        def dial() -> socket.socket:
            sock = stack.enter_context(socket.create_connection(server.sockets[0].getsockname()[:2]))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            return sock

        async with server:
            yield dial
    for transport in doors.transports:
        transport.abort()
    doors.admission.end_half_open()
    await asyncio.sleep(0.02)


async def is_closed(sock: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 5) == b""
    return True


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_who_said_how_his_handshake_begins_is_let_in_with_all_that_he_said(size: int) -> None:
    doors, said = Doors(), client_hello() + b"and more"
    async with serving(doors) as dial:
        sock = dial()
        for n in range(0, len(said), size):
            sock.send(said[n : n + size])
            await asyncio.sleep(0)
        await doors.until_inside(1)
        async with asyncio.timeout(5):
            while doors.inside[0].received != said:
                await asyncio.sleep(0.01)


async def test_who_never_ends_it_costs_no_handshake_and_has_his_time() -> None:
    doors = Doors(handshakes="1 + 0.1/s", handshakes_per_address="1 + 0.1/s", timeout=0.5)
    async with serving(doors) as dial:
        silent = [dial() for _ in range(20)]
        for n, sock in enumerate(silent):
            sock.send(client_hello()[: n * 5])
        async with asyncio.timeout(5):
            while doors.half_open() < 20:
                await asyncio.sleep(0.01)
        honest = dial()
        honest.send(client_hello())
        await doors.until_inside(1)  # at once
        assert all([await is_closed(sock) for sock in silent])
    assert not doors.metrics.value(KindCounter.LIMITS_DELAYED, "handshakes_per_address")
    assert len(doors.inside) == 1


async def test_over_a_rate_his_turn_comes_later() -> None:
    doors = Doors(handshakes_per_address="1 + 4/s")
    async with serving(doors) as dial:
        socks = [dial() for _ in range(3)]
        for sock in socks:
            sock.send(client_hello())
        await doors.until_inside(3)
        first, second, third = (let_in.at for let_in in doors.inside)
        assert second - first >= 0.2
        assert third - second >= 0.2


async def test_who_left_before_his_turn_is_not_let_in() -> None:
    doors = Doors(handshakes_per_address="1 + 5/s", half_open_per_address=2)
    async with serving(doors) as dial:
        first, second = dial(), dial()
        for sock in (first, second):
            sock.send(client_hello())
        await doors.until_inside(1)
        doors.admission.end_half_open()
        await asyncio.sleep(0.4)
        assert len(doors.inside) == 1


async def test_a_balancers_header_and_what_follows_may_come_together() -> None:
    doors = Doors(PROXIES)
    async with serving(doors) as dial:
        said = client_hello()
        whole, split = dial(), dial()
        whole.send(HEADER + said)
        split.send(HEADER[:20])
        await doors.until_inside(1)
        split.send(HEADER[20:] + said[:3])
        await asyncio.sleep(0.05)
        split.send(said[3:])
        await doors.until_inside(2)
        assert {let_in.received for let_in in doors.inside} == {said}
        assert {let_in.peer.keys for let_in in doors.inside} == {(bytes([198, 51, 100, 7]),)}


async def test_what_is_no_header_of_a_balancer_is_closed() -> None:
    doors = Doors(PROXIES)
    async with serving(doors) as dial:
        sock = dial()
        sock.send(client_hello())
        assert await is_closed(sock)
    assert not doors.inside


async def test_what_is_no_tls_is_left_to_tls() -> None:
    doors = Doors()
    async with serving(doors) as dial:
        dial().send(b"GET / HTTP/1.1\r\n\r\n")
        await doors.until_inside(1)


async def test_over_a_count_it_is_closed() -> None:
    doors = Doors(half_open_per_address=1)
    async with serving(doors) as dial:
        dial()
        assert await is_closed(dial())


@given(st.binary(max_size=40), st.integers(0, 2**16 - 1))
def test_no_more_is_waited_for_than_a_record(rest: bytes, size: int) -> None:
    record = bytearray(b"\x16\x03\x01" + word16(size) + rest)
    assert _is_whole(record) == (len(rest) >= min(size, 2**14))
    assert _is_whole(record + bytes(2**14))
