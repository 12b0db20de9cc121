"""The JWT of all requests to Apple (Apple, "Establishing a token-based connection to APNs")."""

import math
import time
from collections.abc import Callable
from typing import Final

from ntf_server.push import jose
from ntf_server.push.apns.settings import SigningKey

RENEW_AFTER: Final = 40 * 60  # seconds; Apple takes a token for 60 minutes
RENEW_AT_MOST: Final = 20 * 60  # seconds in which Apple takes one renewal (TooManyProviderTokenUpdates), whoever asks
_STEPPED: Final = 60  # seconds by which the wall clock went otherwise than time: what the token says may be wrong


class ProviderToken:
    """An ES256 JWT (RFC 7515, 7518), renewed when it is 40 minutes old, and never when it is less than 20; but once in
    these when Apple refuses one that was made by a clock that somebody has set since.

    `clock` gives Unix seconds, which go into the token; its age is told by `monotonic`.
    """

    def __init__(
        self,
        signing: SigningKey,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._signing = signing
        self._clock = clock
        self._monotonic = monotonic
        self._issued_at = 0.0  # by the wall clock
        self._signed_at = 0.0  # by the monotonic one
        self._hurried_at = -math.inf  # when it was renewed in less than 20 minutes
        self._expired = False
        self._token = ""

    def __repr__(self) -> str:
        return "ProviderToken()"

    def get(self) -> str:
        """The current token."""
        age = self._monotonic() - self._signed_at
        due = age >= RENEW_AFTER or (age >= RENEW_AT_MOST and self._is_stepped(age))
        if not self._token or self._expired or due:
            self._sign()
        return self._token

    def _is_stepped(self, age: float) -> bool:
        return abs(self._clock() - self._issued_at - age) > _STEPPED

    def _sign(self) -> None:
        now = self._clock()
        self._issued_at, self._signed_at, self._expired = now, self._monotonic(), False
        s = self._signing
        self._token = jose.sign(s.key, {"kid": s.key_id}, {"iss": s.team_id, "iat": int(now)})

    def use(self, signing: SigningKey) -> None:
        """Sign with this from now on: another key at once; of the same one the token stays."""
        if _identity(signing) != _identity(self._signing):
            self._token = ""
        self._signing = signing

    def expire(self, token: str) -> bool:
        """Apple says that `token` is too old. Whether the next `get` gives another."""
        if token != self._token:
            return True
        now = self._monotonic()
        age = now - self._signed_at
        if age < RENEW_AT_MOST and self._is_stepped(age) and now - self._hurried_at >= RENEW_AT_MOST:
            self._hurried_at = now
            self._expired = True
        self._expired |= age >= RENEW_AT_MOST
        return self._expired


def _identity(signing: SigningKey) -> tuple[bytes, str, str]:
    return jose.public_point(signing.key), signing.key_id, signing.team_id
