"""PROXY protocol, version 2 (haproxy.org, proxy-protocol.txt 2.2): what a balancer says before the first byte."""

import ipaddress
from typing import Final

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
HEAD: Final = 16  # bytes: signature, version and command, family, length of the rest
MAX_REST: Final = 2048  # addresses, and what a balancer adds to them
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21


class ProxyHeaderError(Exception):
    """What came is no such header, or one without the client's address."""


def rest_size(head: bytes) -> int:
    """How many bytes follow the first HEAD ones. Raises ProxyHeaderError."""
    size = int.from_bytes(head[14:16])
    if head[:12] != SIGNATURE or head[12] not in {_LOCAL, _PROXY} or size > MAX_REST:
        raise ProxyHeaderError("the proxy sent no header of version 2")
    return size


def client_address(head: bytes, rest: bytes) -> str | None:
    """The client's address; None: the proxy speaks for itself, as for a health check. Raises ProxyHeaderError."""
    if head[12] == _LOCAL:
        return None
    if head[13] == _TCP4 and len(rest) >= 12:
        return str(ipaddress.IPv4Address(rest[:4]))
    if head[13] == _TCP6 and len(rest) >= 36:
        return str(ipaddress.IPv6Address(rest[:16]))
    raise ProxyHeaderError("the proxy's header has no TCP address")
