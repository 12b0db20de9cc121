"""How servers are reached, and which hosts are kept away from: the addresses in SNEW are chosen by strangers."""

import asyncio
import contextlib
import ipaddress
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from aiohappyeyeballs import AddrInfoType, start_connection

from smp_bridge.address import ServerAddress
from smp_bridge.failure import ConnectError, Happened
from smp_bridge.names import Names
from smp_bridge.socks import SocksProxy

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_HAPPY_EYEBALLS_DELAY: Final = 0.25  # seconds (RFC 8305, section 5)
_MAX_PER_FAMILY: Final = 8  # a stranger's name may have thousands of addresses
_KEEP_ALIVE: Final = (  # the reference's
    (socket.TCP_KEEPIDLE, 30),
    (socket.TCP_KEEPINTVL, 15),
    (socket.TCP_KEEPCNT, 4),
)
_USER_TIMEOUT: Final = 45_000  # milliseconds that what was sent may go without an acknowledgement (RFC 5482)
_LOCAL_SUFFIXES: Final = ("localhost", "local", "internal", "localdomain", "home.arpa")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_IPV6_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")  # the only part that is assigned (RFC 4291)
# Python's `is_global` is another in each version. From IANA's special-purpose address registries:
_NOT_PUBLIC: Final[tuple[IPNetwork, ...]] = (
    *map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers' NAT; Alibaba's metadata
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's wire server: a public address that leads into the cloud
            "169.254.0.0/16",  # link-local; most clouds' metadata
            "172.16.0.0/12",
            "192.0.0.0/24",  # IETF protocols; Oracle's metadata
            "192.0.2.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    ),
    *map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # IETF protocols, with Teredo and ORCHID
            "2001:db8::/32",
            "3fff::/20",  # documentation (RFC 9637)
        ),
    ),
)


class HostNotAllowedError(ConnectError):
    """The host is, or resolves to, an address that is not on the public internet or is denied."""

    happened = Happened.HOST_NOT_ALLOWED


class ResolveError(ConnectError):
    """The host's name is none, does not exist, or has no address."""

    happened = Happened.NO_SUCH_HOST


class NoHostError(ConnectError):
    """The server has no host that may be tried."""

    happened = Happened.HOST_NOT_ALLOWED


class ProxyError(ConnectError):
    """The proxy cannot be reached, or refuses."""

    happened = Happened.PROXY_FAILED


# --- which hosts


def _unwrap(ip: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv6 one (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def is_public_ip(address: str) -> bool:
    """Whether an IP address is neither private, loopback, link-local, multicast, a cloud's own nor reserved.

    IPv4 addresses inside IPv6 ones (mapped, 6to4, NAT64) count as what they hold.
    """
    ip = _unwrap(ipaddress.ip_address(address.partition("%")[0]))
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _IPV6_GLOBAL_UNICAST:
        return False
    return not any(ip in network for network in _NOT_PUBLIC)


def is_public_host(host: str) -> bool:
    """Whether a host, as an address gives it, may be on the public internet. Names are not resolved here."""
    try:
        return is_public_ip(host)
    except ValueError:
        pass
    if all(label.isdigit() or label.lower().startswith("0x") for label in host.rstrip(".").split(".")):
        return False  # forms that inet_aton takes: 127.1, 2130706433, 0x7f.1
    name = host.rstrip(".").lower()
    return "." in name and not any(name == s or name.endswith("." + s) for s in _LOCAL_SUFFIXES)


def is_own_ip(address: str) -> bool:
    """Whether this machine has the address, on whatever interface: a socket can be bound to it.

    IPv4 addresses inside IPv6 ones as in `is_public_ip`.
    """
    address = str(_unwrap(ipaddress.ip_address(address.partition("%")[0])))
    nobodys = "2001:db8::1" if ":" in address else "192.0.2.1"
    return _can_be_bound(address) and not _can_be_bound(nobodys)  # else any can be, by the setting ip_nonlocal_bind


def _can_be_bound(address: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind((address, 0))
    except OSError:
        return False
    return True


def contains(networks: Iterable[IPNetwork], address: str) -> bool:
    """Whether any of the networks has this IP address, or the IPv4 address inside it. Raises ValueError."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return any(ip in network or _unwrap(ip) in network for network in networks)


def is_onion(host: str) -> bool:
    """Whether only Tor knows the host (RFC 7686)."""
    return host.rstrip(".").lower().endswith(".onion")


@dataclass(frozen=True, slots=True)
class Network:
    """How servers are reached.

    `host_mode`: which of a server's hosts are tried first; the others follow, unless `required_host_mode`;
    `socks_mode`: what goes through `socks_proxy`; `connect_timeout`: seconds for one host: TCP (or SOCKS), TLS and
    handshake together; `denied`: networks that are kept away from, also where a name leads there.
    """

    host_mode: Literal["public", "onion"] = "public"
    required_host_mode: bool = False
    socks_proxy: SocksProxy | None = None
    socks_mode: Literal["onion", "always"] = "onion"
    allow_private: bool = False
    connect_timeout: float = 45.0
    denied: tuple[IPNetwork, ...] = ()

    def hosts(self, address: ServerAddress) -> list[str]:
        """The hosts of a server in the order to try. Raises NoHostError."""
        usable = [h for h in address.reachable if self.socks_proxy or not is_onion(h)]
        onion_first = self.host_mode == "onion" and self.socks_proxy is not None
        hosts = [h for h in usable if is_onion(h) == onion_first]
        if not self.required_host_mode:
            hosts += [h for h in usable if is_onion(h) != onion_first]
        if not hosts:
            if not usable:
                raise NoHostError("the server has only .onion hosts, and there is no SOCKS proxy")
            wanted = ".onion" if onion_first else "public"
            raise NoHostError(f"the server has no {wanted} host, and others are not allowed (required_host_mode)")
        return hosts

    def proxy(self, host: str) -> SocksProxy | None:
        """What the host is connected to through. Raises NoHostError."""
        if is_onion(host):
            if self.socks_proxy is None:
                raise NoHostError(".onion hosts need a SOCKS proxy")  # a resolver must never be asked for them
            return self.socks_proxy
        return self.socks_proxy if self.socks_mode == "always" else None

    def check(self, addresses: Iterable[str]) -> None:
        """Raises HostNotAllowedError unless all these IP addresses may be connected to."""
        for address in addresses:
            if not self.allow_private and not is_public_ip(address):
                raise HostNotAllowedError("the host is not on the public internet")
            if contains(self.denied, address):
                raise HostNotAllowedError("the host is on a denied network")


# --- routes


def prefix(address: str) -> str:
    """What of an IP address tells whose it is: of IPv4 the /24, of IPv6 the /48. IPv4 inside IPv6 as `is_public_ip`."""
    return _network(address, 24, 48)


def _network(address: str, v4: int, v6: int) -> str:
    ip = _unwrap(ipaddress.ip_address(address.partition("%")[0]))
    return str(ipaddress.ip_network((ip, v4 if ip.version == 4 else v6), strict=False))


def _prefix_behind_proxy(host: str) -> str:
    """The same of a host whose address the proxy alone knows: a name's domain; onions cost nothing, and share one."""
    with contextlib.suppress(ValueError):
        return prefix(host)
    labels = host.lower().rstrip(".").split(".")
    return "onion" if is_onion(host) else ".".join(labels[-2:])


@dataclass(frozen=True, slots=True)
class Route:
    """How a host is reached: by its `addresses`, or through a `proxy`.

    `prefixes`: where that is (`prefix`); `destinations`: whom it concerns if it is tried too often, a machine or a /64.
    """

    host: str
    port: int
    addresses: tuple[AddrInfoType, ...] = field(default=(), repr=False)
    proxy: SocksProxy | None = None
    prefixes: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()


async def find_route(host: str, port: int, network: Network, names: Names | None = None) -> Route:
    """How to reach a host. `names` None: the C library is asked, in a thread.

    Raises HostNotAllowedError, ResolveError, NoHostError.
    """
    if (proxy := network.proxy(host)) is not None:
        _check_behind_proxy(host, network)
        return Route(host, port, (), proxy, (_prefix_behind_proxy(host),), (host,))
    chosen, count = [], Counter[int]()
    for info in await resolve(host, port, network, names):
        count[info[0]] += 1
        if count[info[0]] <= _MAX_PER_FAMILY:
            chosen.append(info)
    ips = [str(info[4][0]) for info in chosen]
    prefixes, destinations = dict.fromkeys(map(prefix, ips)), dict.fromkeys(_network(ip, 32, 64) for ip in ips)
    return Route(host, port, tuple(chosen), None, tuple(prefixes), tuple(destinations))


async def resolve(host: str, port: int, network: Network, names: Names | None = None) -> list[AddrInfoType]:
    """Where a host may be connected to, in the resolver's order, as `socket.getaddrinfo` gives it.

    Raises HostNotAllowedError if the network keeps away from any of its addresses, ResolveError if there is none.
    """
    try:
        found = await (_look_up(host, port) if names is None else _addresses(host, port, names))
    except UnicodeError as e:  # an empty or too long label
        raise ResolveError("the host is not a name") from e
    except socket.gaierror as e:
        raise ResolveError(e.errno, e.strerror) from e
    if not found:
        raise ResolveError("the host has no address")
    network.check(str(info[4][0]) for info in found)
    return found


async def _look_up(host: str, port: int) -> list[AddrInfoType]:
    loop = asyncio.get_running_loop()
    return list(dict.fromkeys(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


async def _addresses(host: str, port: int, names: Names) -> list[AddrInfoType]:
    try:
        ips = list(dict.fromkeys(await names.look_up(host)))
    except (OSError, ValueError) as e:
        raise ResolveError(str(e) or "no answer about the host's name") from e
    stream, tcp = socket.SOCK_STREAM, socket.IPPROTO_TCP
    return [
        (socket.AF_INET6, stream, tcp, "", (ip, port, 0, 0))
        if ":" in ip
        else (socket.AF_INET, stream, tcp, "", (ip, port))
        for ip in ips
    ]


def _check_behind_proxy(host: str, network: Network) -> None:
    """Raises HostNotAllowedError, ResolveError."""
    if not network.allow_private and not is_public_host(host):
        raise HostNotAllowedError("the host is not on the public internet")
    with contextlib.suppress(ValueError):
        network.check([str(ipaddress.ip_address(host))])
    try:
        if not host.isascii() or len(host.encode("idna")) > 255:
            raise ResolveError("the host is not a name")
    except UnicodeError as e:
        raise ResolveError("the host is not a name") from e


# --- connecting


async def open_socket(route: Route, isolation: str, timeout: float) -> socket.socket:
    """A connected, non-blocking socket; through a proxy, only those of the same `isolation` share a circuit.

    `timeout`: seconds that the proxy may take. Raises ProxyError, TimeoutError, and OSError if TCP fails.
    """
    if route.proxy is not None:
        sock = await _open_through(route.proxy, route, isolation, timeout)
    else:  # what was checked: names are not resolved a second time
        sock = await start_connection(route.addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY)
    keep_alive(sock)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT)
    return sock


def prefix_reached(route: Route, sock: socket.socket) -> str:
    """That one of the route's prefixes to which the socket leads."""
    if route.proxy is None:
        with contextlib.suppress(OSError):  # already disconnected, which the next read will say
            return prefix(str(sock.getpeername()[0]))
    return route.prefixes[0]


def keep_alive(sock: socket.socket) -> None:
    """Send small blocks at once, and notice within 90 s that the peer of a connection is gone that nothing is sent on.

    While something that was sent is not acknowledged there are no probes: see TCP_USER_TIMEOUT in `open_socket`.
    """
    with contextlib.suppress(OSError):  # already disconnected, which the next read will say
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def _open_through(proxy: SocksProxy, route: Route, isolation: str, timeout: float) -> socket.socket:
    """Connect by SOCKS5; the proxy resolves names, so that nobody else learns them."""
    # Here, because few need them and they take memory.
    import python_socks  # noqa: PLC0415
    from python_socks.async_.asyncio import Proxy  # noqa: PLC0415

    user, password = proxy.credentials(isolation) or (None, None)
    client = Proxy(python_socks.ProxyType.SOCKS5, proxy.host, proxy.port, user, password, rdns=True)
    try:
        return await client.connect(route.host, route.port, timeout=timeout)
    except python_socks.ProxyConnectionError as e:
        raise ProxyError(f"the SOCKS proxy cannot be reached: {e.strerror}") from e
    except python_socks.ProxyError as e:
        raise ProxyError(f"the SOCKS proxy says: {e}") from e
    except TimeoutError:
        raise
    except (OSError, ValueError) as e:  # it hung up, or its answer is malformed
        raise ProxyError(f"the SOCKS proxy failed: {e}") from e
