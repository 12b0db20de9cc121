"""The receiving side of encrypted web push messages: `aes128gcm` in one record (RFC 8188, RFC 8291)."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_SALT = 16  # bytes
_HEADER = _SALT + 4 + 1  # salt, record size, length of the key id
_POINT = 65  # an uncompressed P-256 point
_LAST_RECORD = b"\x02"


class DecryptionError(ValueError):
    """The message is malformed, or not encrypted for this subscription."""


def public_point(key: ec.EllipticCurvePublicKey) -> bytes:
    """Encode a P-256 key as the 65 bytes that web push uses (X9.62, uncompressed)."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def decrypt(body: bytes, private_key: ec.EllipticCurvePrivateKey, auth: bytes) -> bytes:
    """Decrypt a message with the subscription's key and 16-byte authentication secret.

    Raises DecryptionError.
    """
    salt, record_size, sender, record = _split(body)
    try:
        sender_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender)
    except ValueError:
        raise DecryptionError("the key id is no P-256 key") from None
    if record_size <= len(record):  # RFC 8291 section 4
        raise DecryptionError("more than one record")
    info = b"WebPush: info\0" + public_point(private_key.public_key()) + sender
    secret = _hkdf(auth, private_key.exchange(ec.ECDH(), sender_key), info, 32)
    key = _hkdf(salt, secret, b"Content-Encoding: aes128gcm\0", 16)
    nonce = _hkdf(salt, secret, b"Content-Encoding: nonce\0", 12)
    try:
        padded = AESGCM(key).decrypt(nonce, record, None)
    except InvalidTag:
        raise DecryptionError("not encrypted for this subscription") from None
    data = padded.rstrip(b"\0")
    if not data.endswith(_LAST_RECORD):
        raise DecryptionError("the padding is malformed")
    return data[:-1]


def _split(body: bytes) -> tuple[bytes, int, bytes, bytes]:
    """Return salt, record size, the sender's public key and the record (RFC 8188 section 2.1)."""
    if len(body) < _HEADER + _POINT or body[_HEADER - 1] != _POINT:
        raise DecryptionError("the header is malformed")
    record_size = int.from_bytes(body[_SALT : _HEADER - 1])
    return body[:_SALT], record_size, body[_HEADER : _HEADER + _POINT], body[_HEADER + _POINT :]


def _hkdf(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)
