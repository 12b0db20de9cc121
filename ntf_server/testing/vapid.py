"""Checks of VAPID, by which an application server identifies itself to a web push service (RFC 8292)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.testing.jwt import InvalidJwtError, Jwt, decode_base64url

_MAX_LIFETIME = 24 * 3600  # seconds
_MAX_VERIFIED = 64  # headers remembered: a client shows the same one for hours
_NAME = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")  # two labels at least
_LOCAL = frozenset(["localhost", "local", "localdomain", "internal", "lan", "onion"])
_PARAMETER = re.compile(r'([A-Za-z]+)\s*=\s*"?([A-Za-z0-9._-]+)"?')


class VapidTokens:
    """Checks `authorization` headers; `clock` gives unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._verified: dict[tuple[str, str], tuple[bytes, int]] = {}  # header and origin to key and expiry

    def key(self, authorization: str, origin: str) -> bytes:
        """Return the application server's public key (65 bytes) by a valid header.

        Raises InvalidJwtError. `origin`: of the push service (RFC 6454), the token's audience.
        """
        seen = self._verified.get((authorization, origin))
        if seen is None:
            seen = _verify(authorization, origin)
            if len(self._verified) >= _MAX_VERIFIED:
                self._verified.clear()
            self._verified[authorization, origin] = seen
        key, expires_at = seen
        if not self._clock() < expires_at <= self._clock() + _MAX_LIFETIME:
            raise InvalidJwtError("exp is past, or beyond 24 hours")
        return key


def _verify(authorization: str, origin: str) -> tuple[bytes, int]:
    """Check all but the time, return key and expiry (RFC 8292 sections 2, 3 and 4.2)."""
    scheme, _, rest = authorization.partition(" ")
    parameters = [_PARAMETER.fullmatch(each.strip()) for each in rest.split(",")]
    named = {found[1].lower(): found[2] for found in parameters if found is not None}
    if scheme.lower() != "vapid" or len(named) != len(parameters) or not {"t", "k"} <= named.keys():
        raise InvalidJwtError("no t or no k")
    point = decode_base64url(named["k"])
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise InvalidJwtError("k is no P-256 key") from None
    jwt = Jwt.parse(named["t"])
    jwt.verify_es256(key)
    audience = jwt.claims.get("aud")
    if origin not in (audience if isinstance(audience, list) else [audience]):
        raise InvalidJwtError("aud is not the origin")
    subject = jwt.claims.get("sub")
    if not isinstance(subject, str) or not _is_public(_host(subject)):
        raise InvalidJwtError("sub is no contact at a public host")
    return point, jwt.seconds("exp")


def _host(subject: str) -> str:
    """Where the contact of a `sub` is, empty if it is none (RFC 8292, section 2.1)."""
    if subject.startswith("mailto:"):
        local, _, host = subject.removeprefix("mailto:").partition("?")[0].rpartition("@")
        return host if local else ""
    try:
        return (urlsplit(subject).hostname or "") if subject.startswith("https:") else ""
    except ValueError:
        return ""


def _is_public(host: str) -> bool:
    """Whether a host may be on the public internet, by name: Apple's push service takes no other (403 BadJwtToken)."""
    name = host.lower().removesuffix(".")
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return _NAME.fullmatch(name) is not None and name.rpartition(".")[2] not in _LOCAL
    return False
