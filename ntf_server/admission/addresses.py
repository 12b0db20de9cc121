"""Whose budget an address is charged to.

An IPv4 address stands for itself. Of IPv6 one customer has at least a /64, and often a /48: both are charged, the /48
with a larger budget, so that neighbours in it do not starve each other.
"""

import ipaddress
from collections.abc import Sequence
from typing import Final, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Key: TypeAlias = bytes  # 4 bytes: an IPv4 address; 8: a /64; 6: a /48

_SITE: Final = 6
SITE_SHARE: Final = 4  # budgets of a /64 that a /48 has


def keys(host: str, shared: Sequence[Network] = ()) -> tuple[Key, ...]:
    """What an address is charged to, the narrowest first; nothing for one in `shared`, nor for what is no address.

    IPv4 inside IPv6 (::ffff:192.0.2.7) is IPv4. Loopback is an address as any other.
    """
    address = _parse(host)
    if address is None or any(address in network for network in shared):
        return ()
    packed = address.packed
    return (packed,) if len(packed) == 4 else (packed[:8], packed[:_SITE])


def is_in(host: str, networks: Sequence[Network]) -> bool:
    """Whether it is an address of these."""
    address = _parse(host) if networks else None
    return address is not None and any(address in network for network in networks)


def _parse(host: str) -> Address | None:
    try:
        address: Address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def share(key: Key) -> int:
    """How many times the budget of an address a key has."""
    return SITE_SHARE if len(key) == _SITE else 1


def network(key: Key) -> bytes:
    """Where it is: what one owner of addresses often has many of, an IPv4 /16 or an IPv6 /32."""
    return key[:2] if len(key) == 4 else key[:4]


def text(key: Key) -> str:
    """For people: `192.0.2.7`, `2001:db8::/64`."""
    if len(key) == 4:
        return str(ipaddress.IPv4Address(key))
    return f"{ipaddress.IPv6Address(key.ljust(16, bytes(1)))}/{8 * len(key)}"
