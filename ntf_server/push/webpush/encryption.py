"""The encryption of Web Push (RFC 8291: aes128gcm of RFC 8188)."""

import hmac
import os
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ntf_server.push.webpush.subscription import WebPushSubscription

LIMIT: Final = 4096  # bytes of an encrypted body that every push service takes (RFC 8291, section 4)
_RECORD_SIZE: Final = 4096


def encrypt(
    plain: bytes,
    subscription: WebPushSubscription,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    salt: bytes | None = None,
) -> bytes:
    """One aes128gcm record (RFC 8291, section 3.4); `key` and `salt` are fresh unless a test vector gives them."""
    private = key or ec.generate_private_key(ec.SECP256R1())
    salt = salt or os.urandom(16)
    public = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    shared = private.exchange(ec.ECDH(), subscription.point)
    # HKDF (RFC 5869) as the RFC writes it out: each output is less than a hash, so that a step is one HMAC.
    info = b"WebPush: info\0" + subscription.key + public
    ikm = _hmac(_hmac(subscription.auth, shared), info + b"\1")
    prk = _hmac(salt, ikm)
    content_key = _hmac(prk, b"Content-Encoding: aes128gcm\0\1")[:16]
    nonce = _hmac(prk, b"Content-Encoding: nonce\0\1")[:12]
    header = salt + _RECORD_SIZE.to_bytes(4, "big") + bytes([len(public)]) + public
    return header + AESGCM(content_key).encrypt(nonce, plain + b"\2", None)


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")
