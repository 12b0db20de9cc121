"""Which hosts may be connected to: the addresses in SNEW are chosen by strangers."""

import asyncio
import ipaddress
import socket

_IPV6_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # the only part that is assigned (RFC 4291)
_LOCAL_SUFFIXES = ("localhost", "local", "internal", "localdomain", "home.arpa")


class HostNotAllowedError(OSError):
    """The host is, or resolves to, an address that is not on the public internet."""


def is_public_ip(address: str) -> bool:
    """Whether an IP address is neither private, loopback, link-local, multicast nor reserved.

    IPv4 addresses inside IPv6 ones (mapped, 6to4, NAT64) count as what they hold.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if ip in ipaddress.IPv6Network("64:ff9b::/96"):
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded:
            ip = embedded
        elif ip not in _IPV6_GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


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


async def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """IP addresses of a host, in the resolver's order.

    Raises HostNotAllowedError if any of them is not public and `allow_private` is off, OSError if there is none.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as e:  # an empty or too long label
        raise OSError("the host is not a name") from e
    addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
    if not addresses:
        raise OSError("the host has no address")
    if not allow_private and not all(is_public_ip(a) for a in addresses):
        raise HostNotAllowedError("the host is not on the public internet")
    return addresses
