"""The encryption of Web Push (RFC 8291: aes128gcm of RFC 8188)."""

import os
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
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
    peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), subscription.key)
    shared = private.exchange(ec.ECDH(), peer)
    info = b"WebPush: info\0" + subscription.key + public
    ikm = _hkdf(subscription.auth, shared, info, 32)
    content_key = _hkdf(salt, ikm, b"Content-Encoding: aes128gcm\0", 16)
    nonce = _hkdf(salt, ikm, b"Content-Encoding: nonce\0", 12)
    header = salt + _RECORD_SIZE.to_bytes(4, "big") + bytes([len(public)]) + public
    return header + AESGCM(content_key).encrypt(nonce, plain + b"\2", None)


def _hkdf(salt: bytes, ikm: bytes, info: bytes, size: int) -> bytes:
    return HKDF(hashes.SHA256(), size, salt, info).derive(ikm)
