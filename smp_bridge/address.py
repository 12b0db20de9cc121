"""Server addresses and identities (wire.md, section 1)."""

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal, Self

from smp_bridge.encoding import ParseError, Reader, b64url, listing, short, un_b64url

Scheme = Literal["smp", "ntf"]

DEFAULT_PORT: dict[Scheme, int] = {"smp": 5223, "ntf": 443}

_ADDRESS = re.compile(r"(smp|ntf)://([A-Za-z0-9_=-]+)(?::([^@]*))?@(.+)")
_HOST_NAME = re.compile(r"[\x21-\x7e]+")
_FORBIDDEN = frozenset("#,;/@[]:")


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
    if not _HOST_NAME.fullmatch(host) or _FORBIDDEN & set(host):
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


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server is and who it is.

    `hosts`: in order of preference, IPv6 without brackets; `port`: decimal text, empty for the default;
    `key_hash`: SHA-256 of the identity certificate (32 bytes); `password`: for creating queues, never on the wire.
    """

    scheme: Scheme
    hosts: tuple[str, ...]
    port: str
    key_hash: bytes
    password: str | None = field(default=None, repr=False)
    _text: str = field(default="", init=False, repr=False, compare=False)  # kept: it is asked for with each push

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
        return cls(scheme, tuple(parse_host(h) for h in hosts), _parse_port(port), key_hash, password)

    def encode(self) -> bytes:
        """Binary form: non-empty list of `short` hosts, `short` port, `short` key hash."""
        return listing(short(h.encode()) for h in self.hosts) + short(self.port.encode()) + short(self.key_hash)

    def __str__(self) -> str:
        """Text form without the password."""
        if not self._text:
            hosts = ",".join(f"[{h}]" if ":" in h else h for h in self.hosts)
            text = f"{self.scheme}://{b64url(self.key_hash)}@{hosts}" + (f":{self.port}" if self.port else "")
            object.__setattr__(self, "_text", text)
        return self._text

    @property
    def port_number(self) -> int:
        """The port to connect to."""
        return int(self.port) if self.port else DEFAULT_PORT[self.scheme]
