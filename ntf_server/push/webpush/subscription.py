"""What a device token of Web Push is: a push service's endpoint and the keys to encrypt for it (wire.md, section 8)."""

import re
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError, Reader

# What else an address may hold would lead an URL to another host than the one that was checked: ? and %2e, say.
_HOST: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_PATH: Final = frozenset(b"!$%&'()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~")


@dataclass(frozen=True, slots=True)
class WebPushSubscription:
    """Where to push and how to encrypt.

    `key`: the user agent's P-256 key (65 bytes); `point`: the same, parsed; `auth`: its secret (16 bytes).
    """

    origin: str
    host: str
    path: str = field(repr=False)
    auth: bytes = field(repr=False)
    key: bytes = field(repr=False)
    point: ec.EllipticCurvePublicKey = field(repr=False)

    @classmethod
    def parse(cls, token: bytes) -> "WebPushSubscription":
        """From a device token of provider WP (wire.md, section 8). Raises ParseError."""
        r = Reader(token)
        host_bytes, port_bytes, path, auth, key = (r.short() for _ in range(5))
        r.end()
        try:
            host, port = parse_host(host_bytes.decode("ascii")).lower(), port_bytes.decode("ascii") or "443"
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
        except ValueError as e:  # ParseError and UnicodeDecodeError are ValueErrors
            raise ParseError("bad Web Push subscription") from e
        if not (port.isdigit() and 0 < int(port) < 65536) or len(auth) != 16:
            raise ParseError("bad Web Push subscription")
        if not (":" in host or _HOST.fullmatch(host)) or not set(path) <= _PATH:
            raise ParseError("bad Web Push subscription")
        authority = f"[{host}]" if ":" in host else host
        origin = f"https://{authority}" + ("" if int(port) == 443 else f":{int(port)}")
        return cls(origin, host, "/" + path.decode("ascii").removeprefix("/"), auth, key, point)
