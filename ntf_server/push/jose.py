"""Signed JSON web tokens (RFC 7515, 7518, 7519), as push providers take them."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256


def b64(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, header: Mapping[str, str], claims: Mapping[str, Any]
) -> str:
    """A compact JWT: ES256 by a P-256 key, RS256 by an RSA key; `header` without `alg`."""
    algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    parts = ({"alg": algorithm, **header}, claims)
    signed = ".".join(b64(json.dumps(part).encode()) for part in parts)
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(signed.encode(), padding.PKCS1v15(), SHA256())
    else:
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")  # JOSE's form, not DER
    return f"{signed}.{b64(signature)}"
