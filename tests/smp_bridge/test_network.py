"""Real sockets and a real SOCKS5 proxy; names are resolved by the test."""

import asyncio
import contextlib
import errno
import select
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import network as network_module
from smp_bridge.address import ServerAddress
from smp_bridge.names import Names as AddressesByName
from smp_bridge.network import (
    HostNotAllowedError,
    Network,
    NoHostError,
    ProxyError,
    ResolveError,
    contains,
    find_route,
    is_onion,
    is_own_ip,
    is_public_host,
    is_public_ip,
    open_socket,
    prefix,
    prefix_reached,
)
from smp_bridge.socks import SocksProxy

PRIVATE_V4 = [
    "0.0.0.0",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "100.100.100.200",  # Alibaba's metadata
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # Azure's wire server
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.9",
    "192.0.0.192",  # Oracle's metadata
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
PRIVATE_V6 = [
    "::",
    "::1",
    "::7f00:1",  # IPv4-compatible
    "::ffff:0:7f00:1",  # IPv4-translated
    "64:ff9b:1::a00:1",  # local NAT64
    "100::1",
    "2001::1",  # Teredo
    "2001:0:4136:e378:8000:63bf:f7f7:f7f7",  # Teredo, of a client at 8.8.8.8
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:1ff:ffff::1",
    "2001:db8::1",
    "3fff::1",
    "3fff:fff:ffff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fd00:ec2::254",  # Amazon's metadata
    "fd20:ce::254",  # Google's metadata
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.167.0.1"]
PUBLIC += ["168.63.129.15", "168.63.129.17", "192.0.1.1", "198.17.0.1", "198.20.0.1", "223.255.255.255"]
PUBLIC_V6 = ["2606:4700:4700::1111", "2001:4860:4860::8888", "2a00::1", "2001:200::1", "2001:db9::1", "3ffe::1"]
EMBEDDINGS = {
    "mapped": "::ffff:{}".format,
    "nat64": "64:ff9b::{}".format,
    "6to4": lambda ip: str(IPv6Address(0x2002 << 112 | int(IPv4Address(ip)) << 80)),
}
NOT_PUBLIC_NAMES = [
    "",
    ".",
    "localhost",
    "LocalHost",
    "localhost.",
    "a.localhost",
    "printer.local",
    "db.internal",
    "router.home.arpa",
    "localhost.localdomain",
    "intranet",
    "127.1",
    "127.0.1",
    "10.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0X7F.0.0.1",
    "0177.0.0.1",
    "127.0.0.1.",
    "0",
]
PUBLIC_NAMES = [
    "example.org",
    "EXAMPLE.org.",
    "smp8.simplex.im",
    "3.example.org",
    "0x7f.example.org",
    "xlocalhost.org",
    "localhost.example.org",
    "a" * 56 + ".onion",
]


@pytest.mark.parametrize("ip", PRIVATE_V4 + PRIVATE_V6)
def test_not_public(ip):
    assert not is_public_ip(ip)
    assert not is_public_host(ip)


@pytest.mark.parametrize("ip", PUBLIC + PUBLIC_V6)
def test_public(ip):
    assert is_public_ip(ip)
    assert is_public_host(ip)


@pytest.mark.parametrize("embed", EMBEDDINGS.values(), ids=EMBEDDINGS)
@pytest.mark.parametrize(("ip", "public"), [(ip, False) for ip in PRIVATE_V4] + [(ip, True) for ip in PUBLIC])
def test_embedded(embed, ip, public):
    assert is_public_ip(embed(ip)) == public
    assert is_public_host(embed(ip)) == public


@pytest.mark.parametrize("address", ["::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::"])
def test_embedded_by_hand(address):
    assert not is_public_ip(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"])
def test_an_address_of_this_machine(address):
    assert is_own_ip(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "192.0.2.1", "2001:db8::1", "::9%1"]
)
def test_an_address_of_others(address):
    assert not is_own_ip(address)


def test_where_any_address_can_be_bound_none_is_told_apart(monkeypatch):
    monkeypatch.setattr(network_module, "_can_be_bound", lambda _: True)
    assert not is_own_ip("8.8.8.8")


@pytest.mark.parametrize("name", NOT_PUBLIC_NAMES)
def test_names_that_are_not_public(name):
    assert not is_public_host(name)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_names_that_may_be_public(name):
    assert is_public_host(name)


@given(st.text(max_size=40))
def test_any_text(host):
    assert is_public_host(host) in (True, False)


async def resolve(host, port, *, allow_private):
    """The IP addresses alone."""
    return [info[4][0] for info in await network_module.resolve(host, port, Network(allow_private=allow_private))]


async def test_resolve_localhost():
    addresses = await resolve("localhost", 80, allow_private=True)
    assert set(addresses) & {"127.0.0.1", "::1"}
    assert len(set(addresses)) == len(addresses)
    with pytest.raises(HostNotAllowedError):
        await resolve("localhost", 80, allow_private=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.1", "0x7f.1", "2130706433", "::ffff:127.0.0.1"])
async def test_resolve_loopback(host):
    with pytest.raises(HostNotAllowedError):
        await resolve(host, 80, allow_private=False)


async def test_resolve_numbers():
    assert await resolve("127.0.0.1", 80, allow_private=True) == ["127.0.0.1"]
    assert await resolve("8.8.8.8", 80, allow_private=False) == ["8.8.8.8"]


@pytest.mark.parametrize("host", ["a..b", ".a", "x" * 64 + ".org", "nothing.invalid", "%41.invalid"])
async def test_resolve_nothing(host):
    with pytest.raises(ResolveError):
        await resolve(host, 80, allow_private=True)


# --- which hosts of a server


ONION, ONION_2 = "a" * 56 + ".onion", "b" * 56 + ".ONION."
PROXY = SocksProxy("127.0.0.1")


def server(*hosts: str) -> ServerAddress:
    return ServerAddress("smp", hosts, "", bytes(32))


@pytest.mark.parametrize(
    ("network", "hosts", "order"),
    [
        (Network(), ["a.org", "b.org"], ["a.org", "b.org"]),
        (Network(), [ONION, "a.org"], ["a.org"]),
        (Network(required_host_mode=True), ["a.org", ONION], ["a.org"]),
        (Network(host_mode="onion"), ["a.org", ONION, "b.org"], ["a.org", "b.org"]),
        (
            Network(socks_proxy=PROXY),
            [ONION, "a.org", ONION_2, "b.org"],
            ["a.org", "b.org", ONION, "b" * 56 + ".onion"],
        ),
        (Network(socks_proxy=PROXY), [ONION], [ONION]),
        (Network(socks_proxy=PROXY, required_host_mode=True), [ONION, "a.org"], ["a.org"]),
        (Network("onion", socks_proxy=PROXY), ["a.org", ONION_2, ONION], ["b" * 56 + ".onion", ONION, "a.org"]),
        (Network(), ["A.org.", "a.org", "b.org", "a.org"], ["a.org", "b.org"]),
        (Network("onion", socks_proxy=PROXY), ["a.org"], ["a.org"]),
        (Network("onion", required_host_mode=True, socks_proxy=PROXY), ["a.org", ONION], [ONION]),
        (Network(socks_proxy=PROXY, socks_mode="always"), ["a.org", "::1"], ["a.org", "::1"]),
    ],
)
def test_hosts(network: Network, hosts: list[str], order: list[str]) -> None:
    assert network.hosts(server(*hosts)) == order


@pytest.mark.parametrize(
    ("network", "host", "what"),
    [
        (Network(), ONION, "no SOCKS proxy"),
        (Network("onion", required_host_mode=True), ONION_2, "no SOCKS proxy"),
        (Network(socks_proxy=PROXY, required_host_mode=True), ONION, "no public host"),
        (Network("onion", socks_proxy=PROXY, required_host_mode=True), "a.org", "no .onion host"),
    ],
)
def test_no_host(network: Network, host: str, what: str) -> None:
    with pytest.raises(NoHostError, match=what):
        network.hosts(server(host))


def test_onion() -> None:
    assert is_onion(ONION)
    assert is_onion(ONION_2)
    assert not is_onion("onion")
    assert not is_onion("a.onion.org")
    assert not is_onion("xonion")


def test_contains() -> None:
    networks = [ip_network("8.8.8.0/24"), ip_network("2a00::/16")]
    for ip in ("8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::", "2a00::1"):
        assert contains(networks, ip)
    for ip in ("8.8.9.8", "2a01::1", "::1"):
        assert not contains(networks, ip)
    assert contains([ip_network("::ffff:0:0/96")], "::ffff:8.8.8.8")


# --- routes


@pytest.mark.parametrize(
    ("address", "whose"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("64:ff9b::192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2:3::7", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::/48"),
    ],
)
def test_prefix(address: str, whose: str) -> None:
    assert prefix(address) == whose


async def test_a_route_by_addresses(names: Any) -> None:
    names(("192.0.2.7", 5223), ("192.0.2.8", 5223), ("2001:db8::1:0:0:7", 5223))
    route = await find_route("smp.example.org", 5223, PRIVATE)
    assert [info[4][0] for info in route.addresses] == ["192.0.2.7", "192.0.2.8", "2001:db8::1:0:0:7"]
    assert route.prefixes == ("192.0.2.0/24", "2001:db8::/48")
    assert route.destinations == ("192.0.2.7/32", "192.0.2.8/32", "2001:db8::/64")
    assert "192.0.2.7" not in repr(route.addresses[:0])


@pytest.mark.parametrize(
    ("host", "whose"),
    [
        ("smp4.example.org", "example.org"),
        ("example.org.", "example.org"),
        ("192.0.2.7", "192.0.2.0/24"),
        ("2001:db8::7", "2001:db8::/48"),
        ("a" * 56 + ".onion", "onion"),
        ("b" * 56 + ".ONION.", "onion"),
    ],
)
async def test_a_route_through_a_proxy(host: str, whose: str) -> None:
    network = Network(socks_proxy=PROXY, socks_mode="always", allow_private=True)
    route = await find_route(host, 5223, network)
    assert (route.proxy, route.addresses, route.prefixes, route.destinations) == (PROXY, (), (whose,), (host,))


async def test_where_a_socket_leads(listener: socket.socket, names: Any) -> None:
    names(listener.getsockname(), ("192.0.2.7", 5223))
    route = await find_route("smp.example.org", 5223, PRIVATE)
    with await open_socket(route, "", 5.0) as sock:
        assert prefix_reached(route, sock) == "127.0.0.0/24"
    assert prefix_reached(route, sock) == "127.0.0.0/24"  # it is closed: one of them


async def test_names_are_asked_instead_of_the_c_library(names: Any) -> None:
    system = names(("192.0.2.1", 5223))

    class Known(AddressesByName):
        async def look_up(self, host: str) -> list[str]:
            return {"a.org": ["192.0.2.7", "2001:db8::7", "192.0.2.7"], "none.org": []}[host]

    known = Known()
    route = await find_route("a.org", 5223, PRIVATE, known)
    assert [info[4] for info in route.addresses] == [("192.0.2.7", 5223), ("2001:db8::7", 5223, 0, 0)]
    with pytest.raises(HostNotAllowedError):
        await find_route("a.org", 5223, Network(), known)
    with pytest.raises(ResolveError):
        await find_route("none.org", 5223, PRIVATE, known)
    assert not system.asked


@pytest.mark.parametrize("error", [OSError("no such name"), TimeoutError(), ValueError("not a host name")])
async def test_what_cannot_be_looked_up(error: Exception) -> None:
    class Unknown(AddressesByName):
        async def look_up(self, host: str) -> list[str]:
            raise error

    with pytest.raises(ResolveError, match=r"\w"):
        await find_route("a.org", 5223, PRIVATE, Unknown())


# --- TCP


PRIVATE = Network(allow_private=True)
Targets = list[tuple[str, int]]


class Names:
    """What names resolve to, instead of the system's resolver."""

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        self.asked: list[Any] = []

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append((host, port))
        found = []
        for ip, target_port in self.targets:
            v4 = ip_address(ip).version == 4
            rest = () if v4 else (0, 0)
            family = socket.AF_INET if v4 else socket.AF_INET6
            found.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (ip, target_port, *rest)))
        return found


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Names]:
    """Sets what every name leads to."""

    def install(*targets: tuple[str, int]) -> Names:
        made = Names(list(targets))
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", made.getaddrinfo)
        return made

    return install


@pytest.fixture
async def tried(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that are connected to: nothing leaves this machine, all refuse."""
    addresses: list[Any] = []

    async def refuse(_: socket.socket, address: Any) -> None:
        addresses.append(address[:2])
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refuse)
    return addresses


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Takes connections, at least into its backlog."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as sock:
        yield sock


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Bound, so that nobody else takes it, but not listened on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that does not answer: its backlog is full."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(100):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            if not select.select([], [sock], [], 0.2)[1]:
                yield full.getsockname()[1]
                return
        pytest.fail("the backlog has no end")


async def open_host(host: str, port: int, network: Network, isolation: str) -> socket.socket:
    route = await find_route(host, port, network)
    return await open_socket(route, isolation, network.connect_timeout)


def sockets() -> set[str]:
    """The sockets that this process has open."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(fd.readlink()))
    return {f for f in found if f.startswith("socket:")}


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_socket(listener: socket.socket) -> None:
    host, port = listener.getsockname()
    with await open_host(host, port, PRIVATE, "") as sock, listener.accept()[0] as accepted:
        assert accepted.getpeername() == sock.getsockname()
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        times = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in times] == [30, 15, 4]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 45_000


async def test_ipv6() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        with pytest.raises(OSError):  # without IPv6 it is a host that cannot be reached
            await open_host("::1", 5223, PRIVATE, "")
        return
    with listener, await open_host("::1", listener.getsockname()[1], PRIVATE, "") as sock:
        assert sock.family == socket.AF_INET6


async def test_the_next_address_when_one_refuses(listener: socket.socket, closed_port: int, names: Any) -> None:
    names(("127.0.0.1", closed_port), listener.getsockname())
    with await open_host("smp.example.org", 5223, PRIVATE, "") as sock:
        assert sock.getpeername() == listener.getsockname()


async def test_the_next_address_when_one_is_silent(listener: socket.socket, black_hole: int, names: Any) -> None:
    names(("127.0.0.1", black_hole), listener.getsockname())
    before = sockets()
    async with asyncio.timeout(20):  # TCP itself gives up after two minutes
        sock = await open_host("smp.example.org", 5223, PRIVATE, "")
    with sock:
        assert sock.getpeername() == listener.getsockname()
        assert len(sockets() - before) == 1  # the loser is closed
    assert sockets() == before


async def test_all_refuse(closed_port: int, names: Any) -> None:
    names(("127.0.0.1", closed_port), ("127.0.0.2", closed_port))
    before = sockets()
    with pytest.raises(ConnectionRefusedError):
        await open_host("smp.example.org", 5223, PRIVATE, "")
    assert sockets() == before


@pytest.mark.parametrize("private", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fe80::1"])
@pytest.mark.parametrize("first", [True, False])
async def test_one_private_address_is_enough(*, names: Any, tried: list[Any], private: str, first: bool) -> None:
    targets = [("8.8.8.8", 5223), (private, 5223), ("2a00::1", 5223)]
    names(*(sorted(targets, key=lambda t: t[0] != private) if first else targets))
    with pytest.raises(HostNotAllowedError):
        await open_host("smp.example.org", 5223, Network(), "")
    assert tried == []


async def test_a_private_address_behind_many(names: Any, tried: list[Any]) -> None:
    names(*((f"8.8.8.{i}", 5223) for i in range(100)), ("10.0.0.1", 5223))
    with pytest.raises(HostNotAllowedError):
        await open_host("smp.example.org", 5223, Network(), "")
    assert tried == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "::1", "::ffff:127.0.0.1", "localhost"])
async def test_private_hosts(host: str) -> None:
    with pytest.raises(HostNotAllowedError):
        await open_host(host, 5223, Network(), "")


async def test_denied_networks(names: Any, tried: list[Any]) -> None:
    names(("1.1.1.1", 5223), ("8.8.8.8", 5223))
    for allow_private in (True, False):
        network = Network(allow_private=allow_private, denied=(ip_network("8.8.8.0/24"),))
        with pytest.raises(HostNotAllowedError, match="denied"):
            await open_host("smp.example.org", 5223, network, "")
    assert tried == []


async def test_no_second_resolution(names: Any, tried: list[Any]) -> None:
    resolver = names(("8.8.8.8", 5223), ("2a00::1", 5223))
    opening = asyncio.ensure_future(open_host("smp.example.org", 5223, Network(), ""))
    await wait_for(lambda: bool(resolver.asked))
    resolver.targets = [("127.0.0.1", 5223)]  # what a rebinding attacker does
    with pytest.raises(ConnectionRefusedError):
        await opening
    assert resolver.asked == [("smp.example.org", 5223)]
    assert sorted(tried) == [("2a00::1", 5223), ("8.8.8.8", 5223)]


async def test_no_second_resolution_in_a_real_connect(listener: socket.socket, names: Any) -> None:
    resolver = names(listener.getsockname())
    (await open_host("smp.example.org", 5223, PRIVATE, "")).close()
    assert resolver.asked == [("smp.example.org", 5223)]


async def test_not_every_address_is_tried(names: Any, tried: list[Any]) -> None:
    names(*((f"8.8.8.{i}", 5223) for i in range(100)), *((f"2a00::{i}", 5223) for i in range(100)))
    with pytest.raises(ConnectionRefusedError):
        await open_host("smp.example.org", 5223, Network(), "")
    assert len(tried) == 16
    assert {":" in ip for ip, _ in tried} == {True, False}


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".org", "nothing.invalid"])
async def test_a_name_that_does_not_exist(host: str) -> None:
    with pytest.raises(ResolveError):
        await open_host(host, 5223, Network(), "")


async def test_a_name_without_an_address(names: Any) -> None:
    names()
    with pytest.raises(ResolveError, match="no address"):
        await open_host("smp.example.org", 5223, Network(), "")


async def test_a_resolver_is_never_asked_for_an_onion(names: Any) -> None:
    resolver = names(("8.8.8.8", 5223))
    for network in (Network(), PRIVATE, Network("onion")):
        with pytest.raises(NoHostError):
            await open_host(ONION_2, 5223, network, "")
    assert resolver.asked == []


async def cancel_at_each_step(open_one: Callable[[], Any], steps: int) -> int:
    """Cancel after so many rounds of the loop; how often it was done before that. Nothing stays open."""
    done = 0
    before = sockets()
    for step in range(steps):
        task = asyncio.ensure_future(open_one())
        for _ in range(step):
            await asyncio.sleep(0)
        task.cancel()
        try:
            (await task).close()
            done += 1
        except asyncio.CancelledError:
            pass
        await wait_for(lambda: sockets() == before)
    return done


@pytest.mark.parametrize("addresses", [1, 2])
async def test_a_cancelled_connect_leaves_nothing(listener: socket.socket, names: Any, addresses: int) -> None:
    names(*[listener.getsockname()] * addresses, ("127.0.0.2", listener.getsockname()[1]))
    assert await cancel_at_each_step(lambda: open_host("smp.example.org", 5223, PRIVATE, ""), 40) > 0


async def test_a_connect_cancelled_in_silence_leaves_nothing(black_hole: int, names: Any) -> None:
    names(("127.0.0.1", black_hole), ("127.0.0.2", black_hole))
    before = sockets()
    task = asyncio.ensure_future(open_host("smp.example.org", 5223, PRIVATE, ""))
    await wait_for(lambda: len(sockets() - before) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sockets() == before


# --- SOCKS5


class Socks5:
    """A SOCKS5 proxy (RFC 1928, RFC 1929) whose tunnels lead to one who says `TAIL`.

    `method`: what it chooses of those offered; `answers`: instead of what it says to greeting, credentials and
    request; None in them: it hangs up; `silent`: it never answers.
    """

    TAIL = b"hello"

    def __init__(self) -> None:
        self.method: int | None = None
        self.answers: dict[str, bytes | None] = {}
        self.silent = False
        self.methods: list[bytes] = []
        self.users: list[tuple[bytes, bytes]] = []
        self.requests: list[tuple[int, bytes, int]] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(EOFError, OSError):
            await self._negotiate(reader, writer)
            await reader.read()
        writer.transport.abort()

    async def _negotiate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version, count = await reader.readexactly(2)
        assert version == 5
        offered = await reader.readexactly(count)
        self.methods.append(offered)
        if self.silent:
            await reader.read()
        method = max(offered) if self.method is None else self.method
        self._say(writer, "greeting", bytes([5, method]))
        if method == 2:
            assert await reader.readexactly(1) == b"\x01"
            user = await reader.readexactly((await reader.readexactly(1))[0])
            self.users.append((user, await reader.readexactly((await reader.readexactly(1))[0])))
            self._say(writer, "credentials", b"\x01\x00")
        version, command, reserved, kind = await reader.readexactly(4)
        assert (version, command, reserved) == (5, 1, 0)
        size = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
        target = await reader.readexactly(size)
        self.requests.append((kind, target, int.from_bytes(await reader.readexactly(2))))
        self._say(writer, "request", b"\x05\x00\x00\x01" + bytes(6) + self.TAIL)

    def _say(self, writer: asyncio.StreamWriter, what: str, usual: bytes) -> None:
        answer = self.answers.get(what, usual)
        if answer is None:
            raise EOFError
        writer.write(answer)


@pytest.fixture
async def proxy() -> AsyncIterator[Socks5]:
    made = Socks5()
    running = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = running.sockets[0].getsockname()[1]
    before = sockets()
    yield made
    await wait_for(lambda: sockets() == before)  # both ends of each connection are closed
    running.close()


def through(proxy: Socks5 | int, auth: str = "", *, allow_private: bool = False, **other: Any) -> Network:
    port = proxy if isinstance(proxy, int) else proxy.port
    parsed = SocksProxy.parse(f"{auth}127.0.0.1:{port}")
    return Network(socks_proxy=parsed, socks_mode="always", allow_private=allow_private, **other)


@pytest.mark.parametrize(
    ("host", "kind", "target"),
    [
        (ONION, 3, ONION.encode()),
        ("smp.example.org", 3, b"smp.example.org"),
        ("8.8.8.8", 1, bytes([8, 8, 8, 8])),
        ("2a00::1", 4, IPv6Address("2a00::1").packed),
    ],
)
async def test_through_a_proxy(proxy: Socks5, names: Any, host: str, kind: int, target: bytes) -> None:
    resolver = names()
    with await open_host(host, 5223, through(proxy), "") as sock:
        assert proxy.requests == [(kind, target, 5223)]
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        # What follows the proxy's answer is the peer's, to the byte.
        received = b""
        while len(received) < len(Socks5.TAIL):
            received += await asyncio.get_running_loop().sock_recv(sock, 100)
        assert received == Socks5.TAIL
    assert resolver.asked == []


@pytest.mark.parametrize(
    "bound",
    [
        b"\x01" + bytes(6),
        b"\x04" + bytes(18),
        b"\x03\x05proxy" + bytes(2),
    ],
)
async def test_whatever_the_proxy_is_bound_to(proxy: Socks5, bound: bytes) -> None:
    proxy.answers["request"] = b"\x05\x00\x00" + bound
    (await open_host(ONION, 5223, through(proxy), "")).close()


async def test_only_onions_through_the_proxy(proxy: Socks5, listener: socket.socket) -> None:
    network = Network(socks_proxy=SocksProxy("127.0.0.1", proxy.port), allow_private=True)
    (await open_host("127.0.0.1", listener.getsockname()[1], network, "")).close()
    assert proxy.connections == 0
    (await open_host(ONION_2, 5223, network, "")).close()
    assert proxy.connections == 1


async def test_each_server_has_a_circuit_of_its_own(proxy: Socks5) -> None:
    network = through(proxy)
    for isolation in ("smp://a", "smp://b", "smp://a"):
        (await open_host(ONION, 5223, network, isolation)).close()
    assert all(2 in offered for offered in proxy.methods)
    first, second, again = proxy.users
    assert first == again
    assert first[0] != second[0]
    (await open_host(ONION, 5223, through(proxy), "smp://a")).close()
    assert proxy.users[-1] != first


async def test_given_credentials(proxy: Socks5) -> None:
    for isolation in ("smp://a", "smp://b"):
        (await open_host(ONION, 5223, through(proxy, "user:password@"), isolation)).close()
    assert proxy.users == [(b"user", b"password")] * 2


async def test_no_authentication(proxy: Socks5) -> None:
    (await open_host(ONION, 5223, through(proxy, "@"), "")).close()
    assert proxy.methods == [b"\x00"]
    assert proxy.users == []


async def test_a_proxy_that_wants_no_credentials(proxy: Socks5) -> None:
    proxy.method = 0
    (await open_host(ONION, 5223, through(proxy), "")).close()
    assert proxy.users == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "127.1", "0x7f.1", "2130706433"]
)
async def test_private_addresses_behind_a_proxy(proxy: Socks5, host: str) -> None:
    with pytest.raises(HostNotAllowedError):
        await open_host(host, 5223, through(proxy), "")
    assert proxy.connections == 0
    (await open_host(host, 5223, through(proxy, allow_private=True), "")).close()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "printer.local", "intranet"])
async def test_local_names_behind_a_proxy(proxy: Socks5, host: str) -> None:
    with pytest.raises(HostNotAllowedError):
        await open_host(host, 5223, through(proxy), "")
    assert proxy.connections == 0


@pytest.mark.parametrize("host", ["8.8.8.8", "::ffff:8.8.8.8"])
async def test_denied_addresses_behind_a_proxy(proxy: Socks5, host: str) -> None:
    with pytest.raises(HostNotAllowedError, match="denied"):
        await open_host(host, 5223, through(proxy, denied=(ip_network("8.8.8.0/24"),)), "")
    assert proxy.connections == 0


@pytest.mark.parametrize("host", ["a..org", "x" * 64 + ".org", "a." * 127 + "toolong.org", "smp.exämple.org"])
async def test_what_is_no_name_behind_a_proxy(proxy: Socks5, host: str) -> None:
    with pytest.raises(ResolveError):
        await open_host(host, 5223, through(proxy), "")
    assert proxy.connections == 0


REPLIES = {
    1: "General SOCKS server failure",
    2: "Connection not allowed by ruleset",
    3: "Network unreachable",
    4: "Host unreachable",
    5: "Connection refused",
    6: "TTL expired",
    7: "Command not supported",
    8: "Address type not supported",
    0xF4: "Invalid reply code",  # of Tor's own
}


@pytest.mark.parametrize("code", REPLIES)
async def test_the_proxy_says_no(proxy: Socks5, code: int) -> None:
    proxy.answers["request"] = bytes([5, code, 0, 1]) + bytes(6)
    with pytest.raises(ProxyError, match=f"the SOCKS proxy says: {REPLIES[code]}"):
        await open_host(ONION, 5223, through(proxy), "")


@pytest.mark.parametrize(
    ("when", "answer"),
    [
        ("greeting", b"\x05\xff"),
        ("greeting", b"\x05\x01"),
        ("greeting", b"\x05\x77"),
        ("greeting", b"\x04\x02"),
        ("greeting", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("greeting", None),
        ("credentials", b"\x01\x01"),
        ("credentials", b"\x05\x00"),
        ("credentials", None),
        ("request", None),
        ("request", b"\x04\x00\x00\x01" + bytes(6)),
        ("request", b"\x05\x00\x00\x09" + bytes(6)),
        ("request", b"\x05\x00\x00\x03\x02\xff\xff" + bytes(2)),
    ],
)
async def test_a_proxy_that_does_not_cooperate(proxy: Socks5, when: str, answer: bytes | None) -> None:
    proxy.answers[when] = answer
    network = through(proxy, "somebody:something@")
    with pytest.raises(ProxyError) as raised:
        await open_host(ONION, 5223, network, "")
    assert str(raised.value).startswith("the SOCKS proxy ")
    assert "some" not in str(raised.value)
    assert "some" not in repr(network)


async def test_a_proxy_that_does_not_listen(closed_port: int) -> None:
    with pytest.raises(ProxyError, match="cannot be reached"):
        await open_host(ONION, 5223, through(closed_port), "")


async def test_a_proxy_that_does_not_exist() -> None:
    network = Network(socks_proxy=SocksProxy.parse("nothing.invalid:9050"))
    with pytest.raises(ProxyError, match="cannot be reached"):
        await open_host(ONION, 5223, network, "")


async def test_a_silent_proxy(proxy: Socks5) -> None:
    proxy.silent = True
    with pytest.raises(TimeoutError):
        await open_host(ONION, 5223, through(proxy, connect_timeout=0.05), "")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await open_host(ONION, 5223, through(proxy), "")


async def test_a_connect_through_a_proxy_cancelled_leaves_nothing(proxy: Socks5) -> None:
    assert await cancel_at_each_step(lambda: open_host(ONION, 5223, through(proxy), ""), 60) > 0


def test_the_library_is_loaded_only_when_needed() -> None:
    code = "import sys, smp_bridge.network; sys.exit('python_socks' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
