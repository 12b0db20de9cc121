"""Checks of VAPID, by which an application server identifies itself to a web push service (RFC 8292)."""

from __future__ import annotations

import re
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.testing.jwt import InvalidJwtError, Jwt, decode_base64url

_MAX_LIFETIME = 24 * 3600  # seconds
_MAX_VERIFIED = 64  # headers remembered: a client shows the same one for hours
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
    if not isinstance(subject, str) or not subject.startswith(("mailto:", "https:")):
        raise InvalidJwtError("sub is no contact")
    return point, jwt.seconds("exp")
