"""Server addresses and identities (wire.md, section 1)."""

import contextlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Self

from smp_bridge.encoding import ParseError, Reader, b64url, listing, short, un_b64url

Scheme = Literal["smp", "ntf"]

DEFAULT_PORT: dict[Scheme, int] = {"smp": 5223, "ntf": 443}

_ADDRESS = re.compile(r"(smp|ntf)://([A-Za-z0-9_=-]+)(?::([^@]*))?@(.+)")
_HOST_NAME = re.compile(r"[\x21-\x7e]+")
_FORBIDDEN = frozenset("#,;/@[]:")
_MAX = 255  # characters of a host, and hosts: a text could hold more than the binary form
_PRESETS: Final = {  # servers that apps name by one host or by both (wire.md, section 6)
    "smp4.simplex.im": "o5vmywmrnaxalvz6wi3zicyftgio6psuvyniis6gco6bp6ekl4cqj4id.onion",
    "smp5.simplex.im": "jjbyvoemxysm7qxap7m5d5m35jzv5qq6gnlv7s4rsn7tdwwmuqciwpid.onion",
    "smp6.simplex.im": "bylepyau3ty4czmn77q4fglvperknl4bi2eb2fdy2bh4jxtf32kf73yd.onion",
    "smp8.simplex.im": "beccx4yfxxbvyhqypaavemqurytl6hozr47wfc7uuecacjqdvwpw2xid.onion",
    "smp9.simplex.im": "jssqzccmrcws6bhmn77vgmhfjmhwlyr3u7puw4erkyoosywgl67slqqd.onion",
    "smp10.simplex.im": "rb2pbttocvnbrngnwziclp2f4ckjq65kebafws6g4hy22cdaiv5dwjqd.onion",
}
_TWINS: Final = _PRESETS | {onion: host for host, onion in _PRESETS.items()}


def parse_host(text: str) -> str:
    """A host without brackets. Raises ParseError."""
    bracketed = text.startswith("[") and text.endswith("]")
    host = text[1:-1] if bracketed else text
    if bracketed or ":" in host:
        try:
            if "%" in host:  # a zone means nothing to others, and may hold any characters
                raise ValueError("zone")
            return str(ipaddress.IPv6Address(host))
        except ValueError as e:
            raise ParseError("bad IPv6 address") from e
    if not _HOST_NAME.fullmatch(host) or _FORBIDDEN & set(host) or len(host) > _MAX or not host.strip("."):
        raise ParseError("bad host name")
    return host


def _parse_port(text: str) -> str:
    if text and not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise ParseError("bad port")
    return text


def _split_port(text: str) -> tuple[str, str]:
    """(host, port) of the last host of a list, where a bare IPv6 address takes no port."""
    if text.startswith("["):
        host, bracket, port = text.partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ParseError("bad IPv6 address")
        return host + "]", port[1:]
    if text.count(":") > 1:
        return text, ""
    host, _, port = text.partition(":")
    return host, port


def _usual(host: str) -> str:
    """The one spelling of a host."""
    if ":" in host:
        with contextlib.suppress(ValueError):
            ip = ipaddress.IPv6Address(host)
            return str(ip.ipv4_mapped or ip)
    return host.lower().rstrip(".")


def twin(host: str) -> str | None:
    """The other host of a preset server, which its operators answer for as well."""
    return _TWINS.get(_usual(host))


@dataclass(frozen=True, slots=True, eq=False)
class ServerAddress:
    """Where a server is and who it is, in somebody's spelling. All spellings of one server are equal (`identity`).

    `hosts`: in order of preference, IPv6 without brackets; `port`: decimal text, empty for the default;
    `key_hash`: SHA-256 of the identity certificate (32 bytes); `password`: for creating queues, never on the wire.
    """

    scheme: Scheme
    hosts: tuple[str, ...]
    port: str
    key_hash: bytes
    password: str | None = field(default=None, repr=False)
    _text: str = field(default="", init=False, repr=False)  # kept: it is asked for with each push
    _identity: bytes = field(default=b"", init=False, repr=False)  # kept: it is asked for with each block

    @classmethod
    def ntf(cls, host: str, port: int, key_hash: bytes) -> Self:
        """A notification server's, as apps are given it."""
        return cls("ntf", (host,), "" if port == DEFAULT_PORT["ntf"] else str(port), key_hash)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse `smp://KEYHASH[:password]@host[,host…][:port]` or `ntf://…`. Raises ParseError."""
        m = _ADDRESS.fullmatch(text)
        if not m:
            raise ParseError("not a server address (smp:// or ntf://KEYHASH@host[:port])")
        scheme: Scheme = "smp" if m[1] == "smp" else "ntf"
        *hosts, last = m[4].split(",")
        host, port = _split_port(last)
        return cls._checked(scheme, [*hosts, host], port, un_b64url(m[2]), m[3])

    @classmethod
    def parse(cls, r: Reader, scheme: Scheme) -> Self:
        """Take the binary form. Raises ParseError."""
        try:
            hosts = [b.decode("ascii") for b in r.listing(r.short, non_empty=True)]
            port = r.short().decode("ascii")
        except UnicodeDecodeError as e:
            raise ParseError("bad host or port") from e
        return cls._checked(scheme, hosts, port, r.short(), None)

    @classmethod
    def _checked(cls, scheme: Scheme, hosts: list[str], port: str, key_hash: bytes, password: str | None) -> Self:
        if len(key_hash) != 32:
            raise ParseError("a key hash has 32 bytes")
        if len(hosts) > _MAX:
            raise ParseError("too many hosts")
        return cls(scheme, tuple(parse_host(h) for h in hosts), _parse_port(port), key_hash, password)

    def encode(self) -> bytes:
        """Binary form: non-empty list of `short` hosts, `short` port, `short` key hash."""
        return self._encode(self.hosts, self.port)

    def _encode(self, hosts: Iterable[str], port: str) -> bytes:
        return listing(short(h.encode()) for h in hosts) + short(port.encode()) + short(self.key_hash)

    def __str__(self) -> str:
        """Text form without the password."""
        if not self._text:
            hosts = ",".join(f"[{h}]" if ":" in h else h for h in self.hosts)
            text = f"{self.scheme}://{b64url(self.key_hash)}@{hosts}" + (f":{self.port}" if self.port else "")
            object.__setattr__(self, "_text", text)
        return self._text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ServerAddress):
            return NotImplemented
        return self is other or (self.identity == other.identity and self.scheme == other.scheme)

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def identity(self) -> bytes:
        """What the server is known by, the same for all its spellings: the binary form with `reachable` hosts, sorted.

        What counts (wire.md, section 6): the key hash, the set of hosts, and the port, by number.
        """
        if not self._identity:
            object.__setattr__(self, "_identity", self._encode(sorted(self.reachable), self._plain_port))
        return self._identity

    @property
    def _plain_port(self) -> str:
        return "" if self.port_number == DEFAULT_PORT[self.scheme] else str(self.port_number)

    @property
    def plain(self) -> Self:
        """The same server in its usual spelling, with the order of hosts kept."""
        return replace(self, hosts=self.reachable, port=self._plain_port)

    @property
    def reachable(self) -> tuple[str, ...]:
        """The hosts to connect to, in order of preference: each once, and both of a preset server."""
        hosts = tuple(dict.fromkeys(map(_usual, self.hosts)))
        if self.scheme == "smp" and len(hosts) == 1 and (other := twin(hosts[0])):
            return *hosts, other
        return hosts

    @property
    def port_number(self) -> int:
        """The port to connect to."""
        return int(self.port) if self.port else DEFAULT_PORT[self.scheme]
