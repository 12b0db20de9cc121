"""Signed JSON web tokens (RFC 7515, 7518, 7519), as push providers take them, and the P-256 keys that sign them."""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)


class KeyFileError(ValueError):
    """The file is not an unencrypted P-256 private key in PEM."""


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The `.p8` file that Apple gives out, or a VAPID key. Raises KeyFileError."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as e:
        raise KeyFileError("not an unencrypted PEM private key") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError("not a P-256 key")
    return key


def generate_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """PKCS#8 PEM, not encrypted: what `load_key` reads, if it is of P-256."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The uncompressed point, 65 bytes."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def b64(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, header: Mapping[str, str], claims: Mapping[str, Any]
) -> str:
    """A compact JWT: ES256 by a P-256 key, RS256 by an RSA key; `header` without `alg`."""
    algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    parts = ({"alg": algorithm, **header}, claims)
    signed = ".".join(b64(msgspec.json.encode(part)) for part in parts)
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(signed.encode(), padding.PKCS1v15(), SHA256())
    else:
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")  # JOSE's form, not DER
    return f"{signed}.{b64(signature)}"
