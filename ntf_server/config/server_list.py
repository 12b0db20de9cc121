"""Lists of hosts, domains and networks; which SMP servers may be subscribed on: an allow-list and a deny-list."""

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

from smp_bridge.address import ServerAddress, twin
from smp_bridge.encoding import ParseError
from smp_bridge.network import IPNetwork, contains

Pattern = str | IPNetwork  # a domain in lower case, which stands for its subdomains too; or a network

_DOMAIN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # no domain ends in one: resolvers take it for an address (127.1, 0x7f.1)


def parse_pattern(text: str) -> Pattern:
    """A host, a domain (also `.example.org`, `*.example.org`), an IP address or a network. Raises ParseError."""
    try:
        return ipaddress.ip_network(text.strip("[]"))
    except ValueError:
        pass
    domain = text.lower().removeprefix("*").removeprefix(".").removesuffix(".")
    last = domain.rpartition(".")[2]
    if not _DOMAIN.fullmatch(domain) or _NUMBER.fullmatch(last):  # such as 203.0.113.300, or a bare port
        raise ParseError(f"{text!r} is no host, domain or network")
    return domain


@dataclass(frozen=True, slots=True)
class ServerList:
    """Patterns; those denied win, and no pattern in `allow` allows all."""

    allow: tuple[Pattern, ...] = ()
    deny: tuple[Pattern, ...] = ()

    def permits(self, server: ServerAddress) -> bool:
        """Whether every host of the server is allowed, and none denied. Of a preset server one allowed host will do."""
        if not self.allow and not self.deny:
            return True
        return all(not matches(host, self.deny) and self._allows(host) for host in server.reachable)

    def _allows(self, host: str) -> bool:
        other = twin(host)
        return not self.allow or matches(host, self.allow) or (other is not None and matches(other, self.allow))

    @property
    def denied_networks(self) -> tuple[IPNetwork, ...]:
        """What must not be connected to by a name either."""
        return tuple(p for p in self.deny if not isinstance(p, str))


ANY_SERVER: Final = ServerList()


def matches(host: str, patterns: tuple[Pattern, ...]) -> bool:
    """Whether a host, as it is written, is one of these, or below or in one."""
    name = host.lower().rstrip(".")
    networks = [p for p in patterns if not isinstance(p, str)]
    try:
        return contains(networks, name)
    except ValueError:
        pass
    try:
        return contains(networks, socket.inet_ntoa(socket.inet_aton(name)))  # 127.1, 0x7f.1, as resolvers take them
    except (OSError, ValueError):  # the latter: a null byte
        return any(isinstance(p, str) and (name == p or name.endswith("." + p)) for p in patterns)
