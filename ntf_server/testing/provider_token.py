"""Checks of APNs provider tokens: JWTs signed with ES256 (RFC 7515, RFC 7519, RFC 7518 section 3.4).

Source of the rules: Apple, "Establishing a token-based connection to APNs".
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

_MAX_AGE = 3600  # seconds
_MAX_VERIFIED = 64  # tokens remembered: a client shows the same one for many minutes
_MAX_CONNECTIONS = 4096  # whose last token is remembered
RENEWED_AFTER = 20 * 60  # seconds, at least
_COORDINATE = 32  # bytes of r and of s, P-256


class _InvalidError(ValueError):
    """The token is malformed, or not signed by the expected key."""


class _Header(msgspec.Struct):
    alg: str
    kid: str


class _Claims(msgspec.Struct):
    iss: str
    iat: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class _Verified(msgspec.Struct, frozen=True):
    """A token that is valid but for its age."""

    token: str
    key_id: str
    team_id: str
    issued_at: int
    first_shown_at: float

    def __repr__(self) -> str:
        return "_Verified()"


class ProviderTokens:
    """Checks `authorization` headers against a public key, key id and team id, each optional.

    Without a public key only the form of the signature is checked. `clock` gives unix seconds; `renewed_after`: how
    many a connection's token must have been in use before it may show another one.
    """

    def __init__(
        self,
        public_key: ec.EllipticCurvePublicKey | None = None,
        key_id: str | None = None,
        team_id: str | None = None,
        clock: Callable[[], float] = time.time,
        renewed_after: float = RENEWED_AFTER,
    ) -> None:
        self._public_key = public_key
        self._key_id = key_id
        self._team_id = team_id
        self._clock = clock
        self._renewed_after = renewed_after
        self._verified: dict[str, _Verified] = {}
        self._shown: dict[tuple[int, str, str], _Verified] = {}  # by connection, key and team

    def refusal(self, authorization: str | None, connection: int = 0) -> tuple[int, str] | None:
        """Return APNs's status and reason to refuse a request with that header, None to accept it."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return 403, "MissingProviderToken"
        verified = self._verified.get(token)
        if verified is None:
            try:
                verified = self._verify(token)
            except _InvalidError:
                return 403, "InvalidProviderToken"
            _keep(self._verified, token, verified, _MAX_VERIFIED)
        if not self._is_renewed_in_time(verified, connection):
            return 429, "TooManyProviderTokenUpdates"
        return (403, "ExpiredProviderToken") if abs(self._clock() - verified.issued_at) > _MAX_AGE else None

    def _is_renewed_in_time(self, token: _Verified, connection: int) -> bool:
        """Take the token as the connection's, unless the one that it shows until now is too young for that.

        Apple names no scope of its rule; by connection, servers that share a key, or start again, keep it too.
        """
        shown = connection, token.key_id, token.team_id
        last = self._shown.get(shown, token)
        if last != token and self._clock() - last.first_shown_at < self._renewed_after:
            return False
        _keep(self._shown, shown, token, _MAX_CONNECTIONS)
        return True

    def _verify(self, token: str) -> _Verified:
        """Check form, key, team and signature."""
        parts = token.split(".")
        if len(parts) != 3:
            raise _InvalidError
        raw_header, raw_claims, signature = (_decode_base64url(part) for part in parts)
        try:
            header = msgspec.json.decode(raw_header, type=_Header)
            claims = msgspec.json.decode(raw_claims, type=_Claims)
        except (ValueError, RecursionError):  # malformed, or invalid UTF-8
            raise _InvalidError from None
        if header.alg != "ES256" or len(signature) != 2 * _COORDINATE:
            raise _InvalidError
        if self._key_id not in (None, header.kid) or self._team_id not in (None, claims.iss):
            raise _InvalidError
        self._verify_signature(f"{parts[0]}.{parts[1]}".encode(), signature)
        return _Verified(token, header.kid, claims.iss, claims.iat, self._clock())

    def _verify_signature(self, signed: bytes, signature: bytes) -> None:
        if self._public_key is None:
            return
        r, s = (int.from_bytes(half) for half in (signature[:_COORDINATE], signature[_COORDINATE:]))
        try:
            self._public_key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise _InvalidError from None


K = TypeVar("K")
V = TypeVar("V")


def _keep(kept: dict[K, V], key: K, value: V, limit: int) -> None:
    """Remember it, and forget what was remembered first."""
    if key not in kept and len(kept) >= limit:
        del kept[next(iter(kept))]
    kept[key] = value


def _decode_base64url(part: str) -> bytes:
    """Decode unpadded base64url (RFC 7515 appendix C)."""
    if not part or "=" in part:
        raise _InvalidError
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise _InvalidError from None
