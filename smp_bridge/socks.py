"""The text form of a SOCKS5 proxy, and what a connection shows to it (RFC 1928, RFC 1929)."""

import hashlib
import os
import re
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import unquote

from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError, b64url

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 9050  # Tor's

_HOST_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_OTHER_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PASSWORD: Final = "-"  # noqa: S105  # Tor takes any, but an empty one would make python-socks offer no authentication


@dataclass(frozen=True, slots=True)
class SocksProxy:
    """A SOCKS5 proxy.

    `user`: what it shows to the proxy, None for nothing; `isolate`: each server gets credentials of its own instead,
    for which Tor builds circuits of their own (IsolateSOCKSAuth).
    """

    host: str
    port: int = DEFAULT_PORT
    user: tuple[str, str] | None = field(default=None, repr=False)
    isolate: bool = True
    _salt: bytes = field(default_factory=lambda: os.urandom(16), repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`[socks5://|socks5h://][user:password@][host][:port]`; `@host` is a proxy without authentication.

        In a URL user and password may be percent-encoded. Raises ParseError, which holds nothing of the text.
        """
        plain = re.sub(r"^socks5h?://", "", text)
        auth, at, where = plain.rpartition("@")
        m = _HOST_PORT.fullmatch(where)
        if not m or not where or _OTHER_SCHEME.match(plain) or (m[2] and not 0 < int(m[2]) < 65536):
            raise ParseError("not a SOCKS5 proxy ([user:password@]host:port)")
        host = parse_host(m[1]) if m[1] else DEFAULT_HOST
        if not _is_name(host):
            raise ParseError("bad host name")
        user = _parse_user(auth, url=plain != text) if auth else None
        return cls(host, int(m[2]) if m[2] else DEFAULT_PORT, user, isolate=not at)

    def credentials(self, isolation: str) -> tuple[str, str] | None:
        """(user, password) for connections that may share a circuit: those with the same `isolation`."""
        if not self.isolate:
            return self.user
        return b64url(hashlib.sha256(self._salt + isolation.encode()).digest()), _PASSWORD


def _parse_user(auth: str, *, url: bool) -> tuple[str, str]:
    user, _, password = (unquote(part) if url else part for part in auth.partition(":"))
    if not all(0 < len(part) < 256 and part.isascii() for part in (user, password)):
        raise ParseError("a user and a password go together, each of at most 255 ASCII characters")
    return user, password


def _is_name(host: str) -> bool:
    try:
        return len(host.encode("idna")) < 256
    except UnicodeError:
        return False
