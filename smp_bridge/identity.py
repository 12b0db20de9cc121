"""Certificates: a server's identity, its online credentials, and chains checked by pinning (wire.md, section 2)."""

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from smp_bridge.crypto import SignPrivateKey, SignPublicKey, key_hash

SignAlgorithm = Literal["ED448", "ED25519"]
VALIDITY = datetime.timedelta(days=999_999)  # as the reference's; identities are pinned, not expired
BACKDATE = datetime.timedelta(days=1)  # so that peers whose clocks are behind take what was just made


class IdentityError(ValueError):
    """A certificate chain is not the one that was asked for, or does not hold."""


def verify_chain(chain: Sequence[bytes], expected_key_hash: bytes, now: datetime.datetime) -> SignPublicKey:
    """Check a peer's chain of DER certificates, leaf first, and give the leaf's key.

    Raises IdentityError: a chain of 0, 1 or more than 4, a wrong identity, a bad signature, an expired certificate.
    """
    if not 2 <= len(chain) <= 4:
        raise IdentityError(f"a chain of {len(chain)} certificates")
    if key_hash(chain[1]) != expected_key_hash:
        raise IdentityError("another identity than the address says")
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        for certificate, issuer in itertools.pairwise(certificates):
            certificate.verify_directly_issued_by(issuer)
        for certificate in certificates:
            if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
                raise IdentityError("a certificate is out of its time")
        key = certificates[0].public_key()
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion) as e:
        raise e if isinstance(e, IdentityError) else IdentityError("the chain is not validly signed") from e
    if not isinstance(key, SignPublicKey):
        raise IdentityError("the leaf key is neither Ed25519 nor Ed448")
    return key


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def generate_key(algorithm: SignAlgorithm) -> SignPrivateKey:
    """A new private key."""
    return Ed448PrivateKey.generate() if algorithm == "ED448" else Ed25519PrivateKey.generate()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: SignPrivateKey, issuer_key: SignPrivateKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )


def issue_ca(key: SignPrivateKey, common_name: str, now: datetime.datetime) -> x509.Certificate:
    """A self-signed identity certificate: its hash is the server's identity."""
    name = _name(common_name, "SimpleX")
    return _builder(name, name, key, key, now).add_extension(x509.BasicConstraints(True, None), True).sign(key, None)


def issue_leaf(
    key: SignPrivateKey, common_name: str, ca: x509.Certificate, ca_key: SignPrivateKey, now: datetime.datetime
) -> x509.Certificate:
    """An online certificate by the identity's key."""
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=True,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=True,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(_name(common_name), ca.subject, key, ca_key, now)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(usage, False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(ca_key, None)
    )


def private_key_pem(key: SignPrivateKey) -> bytes:
    """PKCS#8 PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_private_key(pem: bytes) -> SignPrivateKey:
    """Raises IdentityError unless it is an unencrypted Ed25519 or Ed448 key."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as e:
        raise IdentityError("not an unencrypted PEM private key") from e
    if not isinstance(key, SignPrivateKey):
        raise IdentityError("the key is neither Ed25519 nor Ed448")
    return key


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM file, in order. Raises IdentityError."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as e:
        raise IdentityError("not a PEM certificate file") from e


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a server shows: `chain` (leaf, identity, and up to two above it) and the leaf's private key."""

    chain: tuple[x509.Certificate, ...]
    key: SignPrivateKey = field(repr=False)

    @classmethod
    def load(cls, server_crt: bytes, ca_crt: bytes, server_key: bytes, now: datetime.datetime | None = None) -> Self:
        """From the PEM files that the reference uses too: `ca.crt` begins with the identity certificate.

        Raises IdentityError for a chain that no client would accept.
        """
        leaves = load_certificates(server_crt)
        chain = (leaves[0], *load_certificates(ca_crt)) if len(leaves) == 1 else tuple(leaves)
        out = cls(chain, load_private_key(server_key))
        leaf = verify_chain(out.chain_der, out.key_hash, now or datetime.datetime.now(datetime.UTC))
        if leaf != out.key.public_key():
            raise IdentityError("the private key is not the certificate's")
        return out

    @classmethod
    def generate(
        cls, algorithm: SignAlgorithm, common_name: str, now: datetime.datetime | None = None
    ) -> tuple[Self, SignPrivateKey]:
        """A new identity and its first online certificate: (credentials, the identity's private key)."""
        now = now or datetime.datetime.now(datetime.UTC)
        ca_key, key = generate_key(algorithm), generate_key(algorithm)
        ca = issue_ca(ca_key, "SMP server CA", now)
        return cls((issue_leaf(key, common_name, ca, ca_key, now), ca), key), ca_key

    @property
    def chain_der(self) -> list[bytes]:
        """DER of the chain, leaf first."""
        return [c.public_bytes(Encoding.DER) for c in self.chain]

    @property
    def chain_pem(self) -> bytes:
        """PEM of the chain, leaf first."""
        return b"".join(c.public_bytes(Encoding.PEM) for c in self.chain)

    @property
    def key_hash(self) -> bytes:
        """The server's identity (32 bytes). Raises IdentityError if there is no identity certificate."""
        if len(self.chain) < 2:
            raise IdentityError("there is no identity certificate")
        return key_hash(self.chain[1].public_bytes(Encoding.DER))
