"""Keys, boxes, padding and signatures (wire.md, sections 2 and 4)."""

import ctypes
import ctypes.util
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

import nacl.bindings
import nacl.exceptions
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey, X448PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from smp_bridge.encoding import ParseError, Reader, large

SignPrivateKey = Ed25519PrivateKey | Ed448PrivateKey
SignPublicKey = Ed25519PublicKey | Ed448PublicKey
AuthPrivateKey = SignPrivateKey | X25519PrivateKey
AuthPublicKey = SignPublicKey | X25519PublicKey
PublicKey = AuthPublicKey | X448PublicKey
PrivateKey = AuthPrivateKey | X448PrivateKey

TAG_SIZE = 16  # Poly1305
_PAD = b"#"
_ED25519_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")  # RFC 8410: what precedes the 32 bytes of a key
_X25519_PKCS8 = bytes.fromhex("302e020100300506032b656e04220420")
_ED25519_SPKI = bytes.fromhex("302a300506032b6570032100")  # likewise, of a public key
_X25519_SPKI = bytes.fromhex("302a300506032b656e032100")


class CryptoError(ValueError):
    """A box does not open, a signature is wrong, or a padding is broken."""


def pad(m: bytes, size: int) -> bytes:
    """word16 length, `m`, and `#` up to `size` bytes. Raises ValueError if `m` does not fit."""
    if len(m) + 2 > size or len(m) > 65535:
        raise ValueError("too large to pad")
    return (len(m).to_bytes(2, "big") + m).ljust(size, _PAD)


def unpad(p: bytes) -> bytes:
    """What `pad` padded. Raises CryptoError."""
    n = int.from_bytes(p[:2], "big")
    if len(p) < 2 or n > len(p) - 2:
        raise CryptoError("bad padding")
    return p[2 : 2 + n]


def _find_hsalsa20() -> Callable[..., int]:
    """libsodium's crypto_core_hsalsa20. PyNaCl does not bind it, but has the library in it or is linked with it."""
    spec = importlib.util.find_spec("nacl._sodium")
    library = ctypes.PyDLL(spec.origin if spec else None)
    if not hasattr(library, "crypto_core_hsalsa20"):
        library = ctypes.PyDLL(ctypes.util.find_library("sodium"))
    if not hasattr(library, "crypto_core_hsalsa20"):
        raise ImportError("PyNaCl hides crypto_core_hsalsa20 of its libsodium: install libsodium itself")
    library.crypto_core_hsalsa20.argtypes = [ctypes.c_char_p] * 4  # output, input, key, constants
    return library.crypto_core_hsalsa20


_hsalsa20 = _find_hsalsa20()


def box_key(secret: bytes) -> bytes:
    """HSalsa20(secret, 16 zero bytes): the XSalsa20 key for a 32-byte DH secret or chain key (wire.md, section 2).

    Raises ValueError if it is of another size.
    """
    if len(secret) != 32:
        raise ValueError("a secret has 32 bytes")
    out = ctypes.create_string_buffer(32)
    _hsalsa20(out, bytes(16), secret, None)
    return out.raw


def box(secret: bytes, nonce: bytes, m: bytes) -> bytes:
    """XSalsa20-Poly1305 of `m` under `box_key(secret)`: 16-byte tag, then len(m) bytes."""
    return secretbox(box_key(secret), nonce, m)


def secretbox(key: bytes, nonce: bytes, m: bytes) -> bytes:
    """XSalsa20-Poly1305 of `m` (NaCl): what `box` is under a key that `box_key` gave."""
    return nacl.bindings.crypto_secretbox_easy(m, nonce, key)


def unbox(secret: bytes, nonce: bytes, c: bytes) -> bytes:
    """Inverse of `box`. Raises CryptoError."""
    if len(c) < TAG_SIZE:
        raise CryptoError("box too short")
    try:
        return nacl.bindings.crypto_box_open_afternm(c, nonce, box_key(secret))
    except (nacl.exceptions.CryptoError, ValueError) as e:
        raise CryptoError("box does not open") from e


def dh(private: X25519PrivateKey, public: X25519PublicKey) -> bytes:
    """The raw 32-byte X25519 output. Raises CryptoError for a public key of low order."""
    try:
        return private.exchange(public)
    except ValueError as e:
        raise CryptoError("bad public key") from e


def x25519_keypair() -> tuple[bytes, bytes]:
    """A new X25519 key, raw: (private, public). By libsodium, in half of OpenSSL's time."""
    public, private = nacl.bindings.crypto_box_keypair()
    return private, public


def dh_box_key(private: bytes, public: X25519PublicKey) -> bytes:
    """`box_key` of the DH secret with a raw private key. Raises CryptoError for a public key of low order."""
    try:
        return nacl.bindings.crypto_box_beforenm(public.public_bytes_raw(), private)
    except nacl.exceptions.CryptoError as e:
        raise CryptoError("bad public key") from e


def dh_box(private: bytes, public: X25519PublicKey, nonce: bytes, m: bytes) -> bytes:
    """`box` under the DH secret with a raw private key: quicker where a key is used once. Raises CryptoError."""
    return secretbox(dh_box_key(private, public), nonce, m)


def sign_ed25519(key: bytes, data: bytes) -> bytes:
    """Ed25519 signature (64 bytes) with what `raw_ed25519` gives: quicker where a key is used once."""
    if len(key) == 32:
        _, key = nacl.bindings.crypto_sign_seed_keypair(key)
    return nacl.bindings.crypto_sign(data, key)[:64]


def quick_private(key: AuthPrivateKey) -> bytes:
    """`encode_private`, and of an Ed25519 key the public half after it: a third of signing is to compute that."""
    der = encode_private(key)
    return der + key.public_key().public_bytes_raw() if isinstance(key, Ed25519PrivateKey) else der


def quick_private_der(data: bytes) -> bytes:
    """`encode_private` of what `quick_private` wrote."""
    return data[:48] if raw_ed25519(data) else data


def to_quick_private(der: bytes) -> bytes:
    """`quick_private` of a key that can authorize commands, in DER PKCS#8. Raises ParseError."""
    if len(der) == 48 and (seed := raw_ed25519(der)):
        public, _ = nacl.bindings.crypto_sign_seed_keypair(seed)
        return der + public
    return der if raw_x25519(der) else quick_private(parse_auth_private(der))


def parse_quick_private(data: bytes) -> AuthPrivateKey:
    """What `quick_private` or `encode_private` wrote. Raises ParseError."""
    return parse_auth_private(quick_private_der(data))


def raw_ed25519(data: bytes) -> bytes | None:
    """Of an Ed25519 key as `encode_private` or `quick_private` writes it 32 or 64 bytes (RFC 8032 seed, public key)."""
    return data[16:] if len(data) in {48, 80} and data.startswith(_ED25519_PKCS8) else None


def raw_x25519(der: bytes) -> bytes | None:
    """The 32 bytes of an X25519 private key in PKCS#8 as `encode_private` writes it, else None."""
    return der[16:] if len(der) == 48 and der.startswith(_X25519_PKCS8) else None


def hkdf_sha512(salt: bytes, ikm: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 with SHA-512: `size` bytes."""
    return HKDF(hashes.SHA512(), size, salt, info).derive(ikm)


def sb_chain_init(session_id: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """First chain keys of block encryption, SMP >= 11: (server to client, client to server), 32 bytes each."""
    ck = hkdf_sha512(session_id, secret, b"SimpleXSbChainInit", 64)
    return ck[:32], ck[32:]


def sb_chain_step(ck: bytes) -> tuple[bytes, bytes, bytes]:
    """(next chain key, box secret, nonce) of one block."""
    out = hkdf_sha512(b"", ck, b"SimpleXSbChain", 88)
    return out[:32], out[32:64], out[64:]


def encode_public(key: PublicKey) -> bytes:
    """DER SubjectPublicKeyInfo (without the length byte that precedes it on the wire)."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def encode_private(key: PrivateKey) -> bytes:
    """DER PKCS#8, version 0, no attributes."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def parse_public(der: bytes) -> PublicKey:
    """An Ed25519, Ed448, X25519 or X448 key. Raises ParseError for any other and for non-canonical DER."""
    if len(der) == 44:  # in half of OpenSSL's time
        if der.startswith(_ED25519_SPKI):
            return Ed25519PublicKey.from_public_bytes(der[12:])
        if der.startswith(_X25519_SPKI):
            return X25519PublicKey.from_public_bytes(der[12:])
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as e:
        raise ParseError("not a public key") from e
    if not isinstance(key, PublicKey) or encode_public(key) != der:
        raise ParseError("not a public key of these protocols")
    return key


def parse_private(der: bytes) -> PrivateKey:
    """An Ed25519, Ed448, X25519 or X448 key. Raises ParseError."""
    try:
        key = serialization.load_der_private_key(der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as e:  # Internal: a wrong size for its type
        raise ParseError("not a private key") from e
    if not isinstance(key, PrivateKey):
        raise ParseError("not a private key of these protocols")
    return key


def parse_auth_public(der: bytes) -> AuthPublicKey:
    """A key that can authorize commands: Ed25519, Ed448 or X25519. Raises ParseError."""
    key = parse_public(der)
    if isinstance(key, X448PublicKey):
        raise ParseError("X448 keys authorize nothing")
    return key


def parse_auth_private(der: bytes) -> AuthPrivateKey:
    """Private half of `parse_auth_public`. Raises ParseError."""
    key = parse_private(der)
    if isinstance(key, X448PrivateKey):
        raise ParseError("X448 keys authorize nothing")
    return key


def parse_x25519(der: bytes) -> X25519PublicKey:
    """An X25519 public key. Raises ParseError."""
    key = parse_public(der)
    if not isinstance(key, X25519PublicKey):
        raise ParseError("not an X25519 key")
    return key


def verify(key: SignPublicKey, signature: bytes, data: bytes) -> bool:
    """Whether `signature` over `data` is by `key`. For Ed25519 by libsodium, which takes half of OpenSSL's time."""
    try:
        if isinstance(key, Ed25519PublicKey):
            if len(signature) != 64:  # libsodium takes both as one
                return False
            nacl.bindings.crypto_sign_open(signature + data, key.public_bytes_raw())
        else:
            key.verify(signature, data)
    except (InvalidSignature, nacl.exceptions.BadSignatureError):
        return False
    return True


def key_hash(certificate_der: bytes) -> bytes:
    """Server identity: SHA-256 of the DER of a certificate."""
    return hashlib.sha256(certificate_der).digest()


def _der(tag: int, content: bytes) -> bytes:
    n = len(content)
    if n < 0x80:
        return bytes([tag, n]) + content
    size = n.to_bytes((n.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content


def _der_take(r: Reader, tag: int) -> tuple[bytes, bytes]:
    """(whole element, its content)."""
    start = r.pos
    if r.byte() != tag:
        raise ParseError("unexpected DER tag")
    n = r.byte()
    if n >= 0x80:
        if not 1 <= n - 0x80 <= 2:
            raise ParseError("bad DER length")
        n = int.from_bytes(r.take(n - 0x80), "big")
    content = r.take(n)
    return r.data[start : r.pos], content


_ALGORITHM = {  # RFC 8410
    Ed25519PrivateKey: bytes.fromhex("300506032b6570"),
    Ed448PrivateKey: bytes.fromhex("300506032b6571"),
}


@dataclass(frozen=True, slots=True)
class SignedKey:
    """A session key signed by a certificate's key (wire.md, section 2).

    `tbs` is the DER of SEQUENCE { SubjectPublicKeyInfo }, which the signature covers.
    """

    der: bytes = field(repr=False)
    tbs: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    key: PublicKey = field(repr=False)

    @classmethod
    def sign(cls, signer: SignPrivateKey, key: PublicKey) -> "SignedKey":
        """Sign `key` by a TLS leaf key."""
        tbs = _der(0x30, encode_public(key))
        signature = signer.sign(tbs)
        algorithm = _ALGORITHM[Ed25519PrivateKey if isinstance(signer, Ed25519PrivateKey) else Ed448PrivateKey]
        der = _der(0x30, tbs + algorithm + _der(0x03, b"\0" + signature))
        return cls(der, tbs, signature, key)

    @classmethod
    def parse(cls, der: bytes) -> "SignedKey":
        """Raises ParseError. The signature is not checked: see `verify`."""
        outer = Reader(der)
        _, content = _der_take(outer, 0x30)
        outer.end()
        r = Reader(content)
        tbs, spki = _der_take(r, 0x30)
        _der_take(r, 0x30)
        _, bits = _der_take(r, 0x03)
        r.end()
        if not bits.startswith(b"\0"):
            raise ParseError("bad signature bits")
        return cls(der, tbs, bits[1:], parse_public(spki))

    def verify(self, signer: object) -> bool:
        """Whether `signer`, the public key of a certificate, signed this key."""
        return isinstance(signer, SignPublicKey) and verify(signer, self.signature, self.tbs)

    def encode(self) -> bytes:
        """`large` of the DER."""
        return large(self.der)
