import base64
import contextlib
import datetime

import pytest
import wire_strategies as ws
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import crypto, identity
from smp_bridge.crypto import key_hash
from smp_bridge.identity import Credentials, IdentityError, issue_ca, issue_leaf, verify_chain

NOW = datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(5)]


def der(*certificates):
    return [c.public_bytes(Encoding.DER) for c in certificates]


def pem(*certificates):
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def long_chain(n, *, leaf_signer=KEYS[1]):
    """Leaf by KEYS[0], identity by KEYS[1], and so on; each signed by the next, the last by itself."""
    last = issue_ca(KEYS[n - 1], f"level {n - 1}", NOW)
    chain = [last]
    for i in range(n - 2, -1, -1):
        signer = leaf_signer if i == 0 else KEYS[i + 1]
        chain.insert(0, issue_leaf(KEYS[i], f"level {i}", chain[0], signer, NOW))
    return der(*chain)


CHAIN = long_chain(2)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_chains(n):
    chain = long_chain(n)
    assert verify_chain(chain, key_hash(chain[1]), NOW + DAY) == KEYS[0].public_key()


@pytest.mark.parametrize("n", [0, 1, 5])
def test_chains_of_a_wrong_length(n):
    chain = long_chain(5)[:n]
    with pytest.raises(IdentityError, match=f"chain of {n}"):
        verify_chain(chain, key_hash(chain[min(1, n - 1)]) if n else bytes(32), NOW + DAY)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_identity_is_the_second(n):
    chain = long_chain(n)
    for i in set(range(n)) - {1}:
        with pytest.raises(IdentityError, match="another identity"):
            verify_chain(chain, key_hash(chain[i]), NOW + DAY)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_wrong_signature(n):
    chain = long_chain(n, leaf_signer=KEYS[4])
    with pytest.raises(IdentityError, match="not validly signed"):
        verify_chain(chain, key_hash(chain[1]), NOW + DAY)


@pytest.mark.parametrize("n", [3, 4])
def test_wrong_signature_above_the_identity(n):
    chain = [*long_chain(n)[:-1], *der(issue_ca(KEYS[4], f"level {n - 1}", NOW))]
    with pytest.raises(IdentityError, match="not validly signed"):
        verify_chain(chain, key_hash(chain[1]), NOW + DAY)


def test_leaf_of_another_identity():
    (leaf, _), (_, other) = long_chain(2), der(issue_ca(KEYS[1], "other", NOW), issue_ca(KEYS[2], "ca", NOW))
    with pytest.raises(IdentityError):
        verify_chain([leaf, other], key_hash(other), NOW + DAY)


@pytest.mark.parametrize("now", [NOW - identity.BACKDATE - DAY, NOW + identity.VALIDITY + DAY])
def test_out_of_time(now):
    chain = long_chain(2)
    with pytest.raises(IdentityError, match="out of its time"):
        verify_chain(chain, key_hash(chain[1]), now)


def test_what_was_just_made_is_taken_by_those_whose_clocks_are_behind():
    chain = long_chain(2)
    assert verify_chain(chain, key_hash(chain[1]), NOW - datetime.timedelta(hours=1)) == KEYS[0].public_key()


def test_expired_leaf_of_a_valid_identity():
    ca = issue_ca(KEYS[1], "ca", NOW)
    leaf = issue_leaf(KEYS[0], "leaf", ca, KEYS[1], NOW + 2 * DAY + identity.BACKDATE)
    with pytest.raises(IdentityError, match="out of its time"):
        verify_chain(der(leaf, ca), key_hash(der(ca)[0]), NOW + DAY)


@pytest.mark.parametrize(
    "key", [generate_private_key(SECP256R1()), X25519PrivateKey.generate()], ids=["p256", "x25519"]
)
def test_leaf_key_of_another_type(key):
    ca = issue_ca(KEYS[1], "ca", NOW)
    leaf = x509.CertificateBuilder(ca.subject, ca.subject, key.public_key(), 1, NOW, NOW + 9 * DAY).sign(KEYS[1], None)
    with pytest.raises(IdentityError, match="neither"):
        verify_chain(der(leaf, ca), key_hash(der(ca)[0]), NOW + DAY)


def test_identity_key_that_signs_nothing():
    leaf, ca = long_chain(2)
    name = x509.load_der_x509_certificate(ca).subject
    odd = x509.CertificateBuilder(name, name, X25519PrivateKey.generate().public_key(), 1, NOW, NOW + 9 * DAY)
    chain = [leaf, *der(odd.sign(KEYS[1], None))]
    with pytest.raises(IdentityError, match="not validly signed"):
        verify_chain(chain, key_hash(chain[1]), NOW + DAY)


def test_p256_identity_is_checked_too():
    """Only the leaf has to be Ed25519 or Ed448."""
    key, name = generate_private_key(SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    ca = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + 9 * DAY).sign(key, SHA256())
    leaf = x509.CertificateBuilder(name, name, KEYS[0].public_key(), 2, NOW, NOW + 9 * DAY).sign(key, SHA256())
    assert verify_chain(der(leaf, ca), key_hash(der(ca)[0]), NOW + DAY) == KEYS[0].public_key()


@pytest.mark.filterwarnings("ignore")  # serial numbers, encodings that cryptography frowns upon
@given(st.integers(0, 1).flatmap(lambda i: st.tuples(st.just(i), ws.broken(st.just(CHAIN[i])))))
def test_any_bytes_as_certificate(case):
    i, certificate = case
    chain = list(CHAIN)
    chain[i] = certificate
    try:
        key = verify_chain(chain, key_hash(chain[1]), NOW + DAY)
    except IdentityError:
        return
    assert key == KEYS[0].public_key()


@pytest.mark.parametrize(
    ("old", "new"),
    [("a003020102", "a00302011d"), ("300506032b6570032100", "300506032b6515032100"), ("06032b6570", "06032b6515")],
    ids=["version", "key type", "algorithms"],
)
@pytest.mark.parametrize("i", [0, 1])
def test_unknown_versions_and_algorithms(i, old, new):
    chain = list(CHAIN)
    assert bytes.fromhex(old) in chain[i]
    chain[i] = chain[i].replace(bytes.fromhex(old), bytes.fromhex(new))
    with pytest.raises(IdentityError):
        verify_chain(chain, key_hash(chain[1]), NOW + DAY)


# --- credentials


@pytest.mark.parametrize("algorithm", ["ED448", "ED25519"])
def test_generated_credentials_load_back(algorithm):
    made, ca_key = Credentials.generate(algorithm, "relay.example.org")
    leaf, ca = made.chain
    key = identity.private_key_pem(made.key)
    loaded = Credentials.load(pem(leaf), pem(ca), key)
    assert loaded.chain == made.chain
    assert loaded.key_hash == made.key_hash == key_hash(der(ca)[0])
    assert loaded.chain_der == der(leaf, ca)
    assert x509.load_pem_x509_certificates(loaded.chain_pem) == [leaf, ca]
    assert isinstance(made.key, Ed448PrivateKey if algorithm == "ED448" else Ed25519PrivateKey)
    assert ca_key.public_key() == ca.public_key()
    assert Credentials.load(made.chain_pem, b"", key).chain == made.chain
    assert verify_chain(loaded.chain_der, made.key_hash, datetime.datetime.now(datetime.UTC)) == made.key.public_key()
    secret = made.key.private_bytes_raw()
    assert repr(secret)[2:-1] not in repr(made)
    assert b"PRIVATE" not in repr(made).encode()


@pytest.mark.parametrize("algorithm", ["ED448", "ED25519"])
def test_generated_names(algorithm):
    made, _ = Credentials.generate(algorithm, "relay.example.org")
    leaf, ca = made.chain
    assert ca.subject.rfc4514_string() == ca.issuer.rfc4514_string() == "O=SimpleX,CN=SMP server CA"
    assert leaf.subject.rfc4514_string() == "CN=relay.example.org"
    assert leaf.issuer == ca.subject


def test_new_leaf_keeps_the_identity():
    made, ca_key = Credentials.generate("ED25519", "a")
    key = identity.generate_key("ED25519")
    leaf = issue_leaf(key, "b", made.chain[1], ca_key, datetime.datetime.now(datetime.UTC))
    assert Credentials.load(pem(leaf), pem(made.chain[1]), identity.private_key_pem(key)).key_hash == made.key_hash


def test_long_chain_loads():
    chain = [x509.load_der_x509_certificate(c) for c in long_chain(4)]
    loaded = Credentials.load(pem(chain[0]), pem(*chain[1:]), identity.private_key_pem(KEYS[0]))
    assert loaded.chain == tuple(chain)


@pytest.mark.parametrize(
    ("crt", "ca", "key"),
    [
        ("leaf", "ca", "ca_key"),
        ("leaf", "ca", "leaf"),
        ("leaf", "ca", "encrypted"),
        ("leaf", "ca", "p256"),
        ("leaf", "leaf", "key"),
        ("ca", "ca", "key"),
        ("leaf", "none", "key"),
        ("none", "ca", "key"),
        ("leaf", "other_ca", "key"),
    ],
)
def test_credentials_that_do_not_fit(crt, ca, key):
    made, ca_key = Credentials.generate("ED25519", "localhost")
    other, _ = Credentials.generate("ED25519", "localhost")
    p256 = generate_private_key(SECP256R1())
    files = {
        "leaf": pem(made.chain[0]),
        "ca": pem(made.chain[1]),
        "other_ca": pem(other.chain[1]),
        "none": b"",
        "key": identity.private_key_pem(made.key),
        "ca_key": identity.private_key_pem(ca_key),
        "encrypted": made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")),
        "p256": p256.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
    with pytest.raises(IdentityError):
        Credentials.load(files[crt], files[ca], files[key])


def test_credentials_without_identity():
    made, _ = Credentials.generate("ED25519", "localhost")
    with pytest.raises(IdentityError):
        _ = Credentials(made.chain[:1], made.key).key_hash


@pytest.mark.parametrize("key_type", [Ed448PrivateKey, Ed25519PrivateKey])
def test_identity_in_the_form_of_the_reference(key_type):
    """As its `openssl` commands make it: CN before O, basic constraints not critical, leaf named localhost."""
    ca_key, key = key_type.generate(), key_type.generate()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "SMP server CA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SimpleX"),
        ]
    )

    def builder(subject, public_key):
        return (
            x509.CertificateBuilder(name, subject, public_key, x509.random_serial_number(), NOW, NOW + 999_999 * DAY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
        )

    ca = builder(name, ca_key.public_key()).add_extension(x509.BasicConstraints(True, None), False).sign(ca_key, None)
    usage = x509.KeyUsage(True, True, False, False, True, False, False, False, False)
    leaf = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), key.public_key())
        .add_extension(x509.BasicConstraints(False, None), False)
        .add_extension(usage, False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(ca_key, None)
    )
    loaded = Credentials.load(pem(leaf), pem(ca), identity.private_key_pem(key))
    assert loaded.key_hash == key_hash(der(ca)[0])
    assert verify_chain(loaded.chain_der, loaded.key_hash, NOW + DAY) == key.public_key()


def as_pem(label, data):
    return f"-----BEGIN {label}-----\n{base64.encodebytes(data).decode()}-----END {label}-----\n".encode()


@pytest.mark.parametrize("kind", ["2b6571", "2b6515", "2b6570ff"], ids=["size", "type", "content"])
def test_private_key_file_with_something_else(kind):
    data = crypto.encode_private(KEYS[0]).replace(bytes.fromhex("2b6570"), bytes.fromhex(kind))
    with pytest.raises(IdentityError):
        identity.load_private_key(as_pem("PRIVATE KEY", data))


def test_certificate_file_of_an_unknown_version():
    data = CHAIN[1].replace(bytes.fromhex("a003020102"), bytes.fromhex("a00302011d"))
    with pytest.raises(IdentityError):
        identity.load_certificates(as_pem("CERTIFICATE", data))


@given(ws.broken(st.just(identity.private_key_pem(KEYS[0]))))
def test_any_bytes_as_private_key_file(data):
    with contextlib.suppress(IdentityError):
        identity.load_private_key(data)


@pytest.mark.filterwarnings("ignore")
@given(ws.broken(st.just(pem(x509.load_der_x509_certificate(CHAIN[1])))))
def test_any_bytes_as_certificate_file(data):
    with contextlib.suppress(IdentityError):
        assert identity.load_certificates(data)
