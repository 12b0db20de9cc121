import ctypes.util
import hashlib
import hmac
import importlib.util
from types import SimpleNamespace

import nacl._sodium
import nacl.bindings
import pytest
import wire_strategies as ws
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey, X448PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import crypto
from smp_bridge.crypto import CryptoError, SignedKey
from smp_bridge.encoding import ParseError, Reader

PUBLIC_PREFIX = {  # RFC 8410
    Ed25519PublicKey: "302a300506032b6570032100",
    X25519PublicKey: "302a300506032b656e032100",
    Ed448PublicKey: "3043300506032b6571033a00",
    X448PublicKey: "3042300506032b656f033900",
}
PRIVATE_PREFIX = {
    Ed25519PrivateKey: "302e020100300506032b657004220420",
    X25519PrivateKey: "302e020100300506032b656e04220420",
    Ed448PrivateKey: "3047020100300506032b6571043b0439",
    X448PrivateKey: "3046020100300506032b656f043a0438",
}
ED25519, ED448 = Ed25519PrivateKey.from_private_bytes(bytes(32)), Ed448PrivateKey.from_private_bytes(bytes(57))
X25519, X448 = X25519PrivateKey.from_private_bytes(bytes(32)), X448PrivateKey.from_private_bytes(bytes(56))


# --- boxes


@given(ws.secrets32, ws.secrets32)
def test_box_key_is_nacl_beforenm(a, b):
    public = nacl.bindings.crypto_scalarmult_base(b)
    secret = nacl.bindings.crypto_scalarmult(a, public)
    assert crypto.box_key(secret) == nacl.bindings.crypto_box_beforenm(public, a)


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_box_key_of_a_secret_of_another_size(size):
    with pytest.raises(ValueError, match="32 bytes"):
        crypto.box_key(bytes(size))


def test_libsodium_is_looked_for_where_pynacl_hides_its_own(monkeypatch):
    hiding = ctypes.util.find_library("c")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=hiding))
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: hiding)
    with pytest.raises(ImportError, match="install libsodium"):
        crypto._find_hsalsa20()
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: nacl._sodium.__file__)
    assert crypto._find_hsalsa20()


def test_box_key_vector():
    """From NaCl's own tests: firstkey of Alice's secret with Bob."""
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    expected = "1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389"
    assert crypto.box_key(shared).hex() == expected


@given(ws.secrets32, ws.secrets32, ws.nonces, st.binary(max_size=300))
def test_box_is_nacl_box(a, b, nonce, m):
    private, public = X25519PrivateKey.from_private_bytes(a), X25519PrivateKey.from_private_bytes(b).public_key()
    secret = crypto.dh(private, public)
    sealed = crypto.box(secret, nonce, m)
    assert sealed == nacl.bindings.crypto_box(m, nonce, public.public_bytes_raw(), a)
    assert len(sealed) == len(m) + crypto.TAG_SIZE
    assert crypto.unbox(secret, nonce, sealed) == m


@given(ws.secrets32, ws.nonces, st.binary(max_size=100), st.data())
def test_unbox_refuses_what_was_changed(secret, nonce, m, data):
    sealed = crypto.box(secret, nonce, m)
    other = data.draw(ws.broken(st.just(sealed)).filter(lambda c: c != sealed))
    with pytest.raises(CryptoError):
        crypto.unbox(secret, nonce, other)
    with pytest.raises(CryptoError):
        crypto.unbox(secret, bytes(b ^ 1 for b in nonce), sealed)
    with pytest.raises(CryptoError):
        crypto.unbox(bytes(b ^ 1 for b in secret), nonce, sealed)


@given(st.binary(max_size=40).filter(lambda n: len(n) != 24), st.binary(max_size=40))
def test_unbox_of_a_wrong_nonce_size(nonce, c):
    with pytest.raises(CryptoError):
        crypto.unbox(bytes(32), nonce, c)


def test_box_is_not_secretbox():
    assert crypto.box(bytes(32), bytes(24), b"m") != nacl.bindings.crypto_secretbox(b"m", bytes(24), bytes(32))


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_dh_with_a_low_order_point(point):
    with pytest.raises(CryptoError):
        crypto.dh(X25519, X25519PublicKey.from_public_bytes(point))


# --- padding


def test_pad_bytes():
    assert crypto.pad(b"abc", 8) == b"\x00\x03abc###"


@given(st.binary(max_size=300), st.integers(0, 300), st.binary(max_size=50))
def test_pad(m, more, junk):
    padded = crypto.pad(m, len(m) + 2 + more)
    assert len(padded) == len(m) + 2 + more
    assert crypto.unpad(padded) == crypto.unpad(padded + junk) == m
    with pytest.raises(ValueError, match="too large"):
        crypto.pad(m, len(m) + 1)


@given(st.binary(max_size=20))
def test_unpad_any_bytes(p):
    try:
        m = crypto.unpad(p)
    except CryptoError:
        assert len(p) < 2 or int.from_bytes(p[:2], "big") > len(p) - 2
    else:
        assert p[2:].startswith(m)


# --- chains of keys


def hkdf_by_hand(salt, ikm, info, size):
    prk = hmac.digest(salt or bytes(64), ikm, "sha512")
    out, t = b"", b""
    while len(out) < size:
        t = hmac.digest(prk, t + info + bytes([len(out) // 64 + 1]), "sha512")
        out += t
    return out[:size]


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=40), st.integers(1, 300))
def test_hkdf(salt, ikm, info, size):
    assert crypto.hkdf_sha512(salt, ikm, info, size) == hkdf_by_hand(salt, ikm, info, size)


@given(st.binary(min_size=32, max_size=48), ws.secrets32)
def test_chain_keys(session_id, secret):
    ck = hkdf_by_hand(session_id, secret, b"SimpleXSbChainInit", 64)
    assert crypto.sb_chain_init(session_id, secret) == (ck[:32], ck[32:])
    step = hkdf_by_hand(b"", ck[:32], b"SimpleXSbChain", 88)
    assert crypto.sb_chain_step(ck[:32]) == (step[:32], step[32:64], step[64:])


# --- keys


def prefix(table, key):
    return next(value for cls, value in table.items() if isinstance(key, cls))


@given(ws.all_private_keys)
def test_keys(private):
    public = private.public_key()
    der, private_der = crypto.encode_public(public), crypto.encode_private(private)
    assert der.hex() == prefix(PUBLIC_PREFIX, public) + public.public_bytes_raw().hex()
    assert private_der.hex() == prefix(PRIVATE_PREFIX, private) + private.private_bytes_raw().hex()
    assert crypto.parse_public(der) == public
    assert crypto.encode_private(crypto.parse_private(private_der)) == private_der


@given(ws.all_private_keys)
def test_key_types(private):
    der, private_der = crypto.encode_public(private.public_key()), crypto.encode_private(private)
    allowed = {
        crypto.parse_auth_public: not isinstance(private, X448PrivateKey),
        crypto.parse_auth_private: not isinstance(private, X448PrivateKey),
        crypto.parse_x25519: isinstance(private, X25519PrivateKey),
    }
    for parse, ok in allowed.items():
        encoded = private_der if parse is crypto.parse_auth_private else der
        if ok:
            assert parse(encoded)
        else:
            with pytest.raises(ParseError):
                parse(encoded)


@given(ws.broken(ws.all_public_keys.map(crypto.encode_public)))
def test_any_bytes_as_public_key(der):
    try:
        key = crypto.parse_public(der)
    except ParseError:
        return
    assert crypto.encode_public(key) == der


@given(ws.broken(ws.all_private_keys.map(crypto.encode_private)))
def test_any_bytes_as_private_key(der):
    try:
        key = crypto.parse_private(der)
    except ParseError:
        return
    assert isinstance(key, crypto.PrivateKey)


@pytest.mark.parametrize(("kind", "size"), [("6f", 32), ("71", 32), ("70", 31), ("6e", 33), ("70", 0)])
def test_private_key_of_a_wrong_size(kind, size):
    inner = bytes([4, size]) + bytes(size)
    content = bytes.fromhex("020100300506032b65" + kind) + bytes([4, len(inner)]) + inner
    with pytest.raises(ParseError):
        crypto.parse_private(bytes([0x30, len(content)]) + content)


def test_other_key_types():
    p256 = generate_private_key(SECP256R1())
    with pytest.raises(ParseError):
        crypto.parse_public(crypto.encode_public(p256.public_key()))
    with pytest.raises(ParseError):
        crypto.parse_private(crypto.encode_private(p256))


# --- raw private keys


@given(ws.secrets32, st.binary(max_size=300))
def test_sign_ed25519_is_the_same_signature(seed, data):
    key = Ed25519PrivateKey.from_private_bytes(seed)
    assert crypto.sign_ed25519(seed, data) == key.sign(data)


@given(ws.secrets32, ws.secrets32, ws.nonces, st.binary(max_size=300))
def test_dh_box_is_box_under_the_secret(a, b, nonce, m):
    private, public = X25519PrivateKey.from_private_bytes(a), X25519PrivateKey.from_private_bytes(b).public_key()
    assert crypto.dh_box(a, public, nonce, m) == crypto.box(crypto.dh(private, public), nonce, m)


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31)])
def test_dh_box_with_a_low_order_point(point):
    with pytest.raises(CryptoError):
        crypto.dh_box(b"a" * 32, X25519PublicKey.from_public_bytes(point), bytes(24), b"m")


@given(ws.all_private_keys)
def test_raw_keys(private):
    der = crypto.encode_private(private)
    raw = private.private_bytes_raw()
    assert crypto.raw_ed25519(der) == (raw if isinstance(private, Ed25519PrivateKey) else None)
    assert crypto.raw_x25519(der) == (raw if isinstance(private, X25519PrivateKey) else None)


@given(ws.auth_private_keys, st.binary(max_size=100))
def test_quick_keys(private, data):
    quick = crypto.quick_private(private)
    assert quick.startswith(crypto.encode_private(private))
    for form in (quick, crypto.encode_private(private)):
        assert crypto.parse_quick_private(form).private_bytes_raw() == private.private_bytes_raw()
    if isinstance(private, Ed25519PrivateKey):
        assert crypto.sign_ed25519(crypto.raw_ed25519(quick), data) == private.sign(data)
    else:
        assert quick == crypto.encode_private(private)


@given(ws.auth_private_keys)
def test_to_quick_keys(private):
    der = crypto.encode_private(private)
    quick = crypto.to_quick_private(der)
    assert quick == crypto.quick_private(private)
    assert crypto.quick_private_der(quick) == crypto.quick_private_der(der) == der


@given(ws.broken(ws.all_private_keys.map(crypto.encode_private)))
def test_what_is_no_key_is_refused_in_whatever_way_it_is_parsed(der):
    try:
        expected = crypto.quick_private(crypto.parse_auth_private(der))
    except ParseError:
        with pytest.raises(ParseError):
            crypto.to_quick_private(der)
    else:
        assert crypto.to_quick_private(der) == expected


def test_a_new_x25519_key():
    private, public = crypto.x25519_keypair()
    assert X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw() == public
    assert len({crypto.x25519_keypair()[0] for _ in range(20)}) == 20


@given(ws.secrets32, ws.secrets32)
def test_the_key_of_boxes_in_one_step(a, b):
    private, public = X25519PrivateKey.from_private_bytes(a), X25519PrivateKey.from_private_bytes(b).public_key()
    assert crypto.dh_box_key(a, public) == crypto.box_key(crypto.dh(private, public))


@pytest.mark.parametrize("low", [bytes(32), (1).to_bytes(32, "little")])
def test_the_key_of_boxes_with_a_public_key_of_low_order(low):
    with pytest.raises(CryptoError):
        crypto.dh_box_key(bytes(range(32)), X25519PublicKey.from_public_bytes(low))


@given(ws.sign_private_keys, st.binary(max_size=100), st.integers(0, 130))
def test_verify_a_signature_of_another_length(key, data, size):
    """libsodium takes signature and data as one: what is between them must not move."""
    signature = key.sign(data)
    signed = signature + data
    assert crypto.verify(key.public_key(), signed[:size], signed[size:]) == (signed[:size] == signature)


@pytest.mark.parametrize("private", [ED25519, X25519])
@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b"\x31" + d[1:], lambda d: b""])
def test_raw_keys_of_other_bytes(private, change):
    der = change(crypto.encode_private(private))
    assert crypto.raw_ed25519(der) is None
    assert crypto.raw_x25519(der) is None


# --- signatures


@given(ws.sign_private_keys, st.binary(max_size=100), st.data())
def test_verify(key, message, data):
    signature = key.sign(message)
    assert crypto.verify(key.public_key(), signature, message)
    assert not crypto.verify(key.public_key(), signature, message + b".")
    other = data.draw(ws.broken(st.just(signature)).filter(lambda s: s != signature))
    assert not crypto.verify(key.public_key(), other, message)


@given(ws.secrets32, st.binary(min_size=64, max_size=64))
def test_verify_with_any_point(point, signature):
    key = Ed25519PublicKey.from_public_bytes(point)
    assert isinstance(crypto.verify(key, signature, b""), bool)


def test_key_hash():
    assert crypto.key_hash(b"certificate") == hashlib.sha256(b"certificate").digest()


# --- signed keys


@pytest.mark.parametrize(
    ("signer", "start", "algorithm"), [(ED25519, "3078", "300506032b6570"), (ED448, "3081aa", "300506032b6571")]
)
def test_signed_key_bytes(signer, start, algorithm):
    tbs = bytes.fromhex("302c" + PUBLIC_PREFIX[X25519PublicKey]) + X25519.public_key().public_bytes_raw()
    signature = signer.sign(tbs)
    bits = b"\x03" + bytes([len(signature) + 1]) + b"\x00" + signature
    expected = bytes.fromhex(start) + tbs + bytes.fromhex(algorithm) + bits
    assert SignedKey.sign(signer, X25519.public_key()).der == expected
    assert SignedKey.parse(expected).key == X25519.public_key()


@given(ws.sign_private_keys, ws.all_public_keys, ws.sign_private_keys)
def test_signed_key(signer, key, other):
    signed = SignedKey.sign(signer, key)
    parsed = SignedKey.parse(Reader(signed.encode()).large())
    assert parsed == signed
    assert parsed.key == key
    assert parsed.verify(signer.public_key())
    assert parsed.verify(other.public_key()) == (other.public_key() == signer.public_key())
    assert not parsed.verify(key if isinstance(key, X25519PublicKey | X448PublicKey) else None)


@given(ws.broken(ws.signed_keys.map(lambda s: s.der)))
def test_any_bytes_as_signed_key(der):
    try:
        parsed = SignedKey.parse(der)
    except ParseError:
        return
    assert parsed.encode()[2:] == der
    assert isinstance(parsed.verify(ED25519.public_key()), bool)


def test_signed_key_with_bad_signature_bits():
    good = SignedKey.sign(ED25519, X25519.public_key()).der
    with pytest.raises(ParseError):
        SignedKey.parse(good.replace(b"\x03\x41\x00", b"\x03\x41\x01"))


@given(ws.signed_keys)
def test_repr(signed):
    assert ws.hides(signed)
