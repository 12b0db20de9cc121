"""VAPID: the server's identity towards push services (RFC 8292)."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.push import jose

_LIFETIME: Final = 12 * 3600  # seconds; RFC 8292 allows 24 h
_MAX_ORIGINS: Final = 1000


def key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    """What a registration keeps of the key in force: 16 bytes, a hash of the public one."""
    return hashlib.sha256(jose.public_point(key)).digest()[:16]


class Vapid:
    """One key; `contact` is a mailto: or https: URL."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, contact: str, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._contact = contact
        self._clock = clock
        self._tokens: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self.key_id = key_id(key)
        self.public_key = jose.b64(jose.public_point(key))  # base64url: what apps subscribe with

    def __repr__(self) -> str:
        return "Vapid()"

    def authorization(self, origin: str) -> str:
        """Value of the header `authorization` (RFC 8292, section 3)."""
        now = self._clock()
        expires, token = self._tokens.get(origin, (0.0, ""))
        if not _LIFETIME / 2 <= expires - now <= _LIFETIME:  # or the clock was set back
            expires = now + _LIFETIME
            token = jose.sign(self._key, {"typ": "JWT"}, {"aud": origin, "exp": int(expires), "sub": self._contact})
            self._tokens[origin] = expires, token
            if len(self._tokens) > _MAX_ORIGINS:
                self._tokens.popitem(last=False)
        return f"vapid t={token}, k={self.public_key}"
