"""Checks of APNs provider tokens: JWTs signed with ES256 (RFC 7515, RFC 7519, RFC 7518 section 3.4).

Source of the rules: Apple, "Establishing a token-based connection to APNs".
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

_MAX_AGE = 3600  # seconds
_MAX_VERIFIED = 64  # tokens remembered: a client shows the same one for many minutes
_COORDINATE = 32  # bytes of r and of s, P-256


class _InvalidError(ValueError):
    """The token is malformed, or not signed by the expected key."""


class _Header(msgspec.Struct):
    alg: str
    kid: str


class _Claims(msgspec.Struct):
    iss: str
    iat: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class ProviderTokens:
    """Checks `authorization` headers against a public key, key id and team id, each optional.

    Without a public key only the form of the signature is checked. `clock` gives unix seconds.
    """

    def __init__(
        self,
        public_key: ec.EllipticCurvePublicKey | None = None,
        key_id: str | None = None,
        team_id: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._public_key = public_key
        self._key_id = key_id
        self._team_id = team_id
        self._clock = clock
        self._verified: dict[str, int] = {}  # token to its iat

    def refusal(self, authorization: str | None) -> str | None:
        """Return APNs's reason to refuse (with status 403) a request with that header, None to accept it."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return "MissingProviderToken"
        issued_at = self._verified.get(token)
        if issued_at is None:
            try:
                issued_at = self._verify(token)
            except _InvalidError:
                return "InvalidProviderToken"
            if len(self._verified) >= _MAX_VERIFIED:
                self._verified.clear()
            self._verified[token] = issued_at
        return "ExpiredProviderToken" if abs(self._clock() - issued_at) > _MAX_AGE else None

    def _verify(self, token: str) -> int:
        """Check form, key, team and signature; return `iat`."""
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
        return claims.iat

    def _verify_signature(self, signed: bytes, signature: bytes) -> None:
        if self._public_key is None:
            return
        r, s = (int.from_bytes(half) for half in (signature[:_COORDINATE], signature[_COORDINATE:]))
        try:
            self._public_key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise _InvalidError from None


def _decode_base64url(part: str) -> bytes:
    """Decode unpadded base64url (RFC 7515 appendix C)."""
    if not part or "=" in part:
        raise _InvalidError
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise _InvalidError from None
