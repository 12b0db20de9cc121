"""JSON Web Tokens in compact form: taken apart, and verified with ES256 or RS256 (RFC 7515, 7518, 7519)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

_COORDINATE = 32  # bytes of r and of s, P-256


class InvalidJwtError(ValueError):
    """The token is malformed, or not signed with the key."""


@dataclass(frozen=True, slots=True)
class Jwt:
    """A token whose signature is not verified yet."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @classmethod
    def parse(cls, token: str) -> Jwt:
        """Take a token apart; raises InvalidJwtError."""
        parts = token.split(".")
        if len(parts) != 3:
            raise InvalidJwtError("not three parts")
        header, claims = (_decode_object(part) for part in parts[:2])
        return cls(header, claims, f"{parts[0]}.{parts[1]}".encode(), decode_base64url(parts[2]))

    def verify_es256(self, key: ec.EllipticCurvePublicKey) -> None:
        """Verify with a P-256 key; raises InvalidJwtError."""
        if self.header.get("alg") != "ES256" or len(self.signature) != 2 * _COORDINATE:
            raise InvalidJwtError("not ES256")
        r, s = (int.from_bytes(half) for half in (self.signature[:_COORDINATE], self.signature[_COORDINATE:]))
        try:
            key.verify(encode_dss_signature(r, s), self.signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise InvalidJwtError("not signed with the key") from None

    def verify_rs256(self, key: rsa.RSAPublicKey) -> None:
        """Verify with an RSA key; raises InvalidJwtError."""
        if self.header.get("alg") != "RS256":
            raise InvalidJwtError("not RS256")
        try:
            key.verify(self.signature, self.signed, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            raise InvalidJwtError("not signed with the key") from None

    def seconds(self, claim: str) -> int:
        """Return a time claim (`iat`, `exp`) in unix seconds; raises InvalidJwtError."""
        value = self.claims.get(claim)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
            raise InvalidJwtError(f"no {claim}")
        return value


def decode_base64url(text: str) -> bytes:
    """Decode unpadded base64url (RFC 7515 appendix C); raises InvalidJwtError."""
    if not text or "=" in text:
        raise InvalidJwtError("not base64url")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise InvalidJwtError("not base64url") from None


def encode_base64url(data: bytes) -> str:
    """Encode as unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode_object(part: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(decode_base64url(part))
    except (ValueError, RecursionError):  # malformed, or invalid UTF-8
        raise InvalidJwtError("not JSON") from None
    if not isinstance(value, dict):
        raise InvalidJwtError("not a JSON object")
    return value
