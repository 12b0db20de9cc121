"""Certificates that tests show to servers."""

import base64
import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat


def client_certificate(
    directory: Path, password: bytes | None = None, name: str = "Apple Push Services: chat.example.app", days: int = 1
) -> tuple[str, str]:
    """PEM files of a certificate that it signed itself, and of its key; it ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(days))
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    cert, key_file = directory / "push.pem", directory / "push.key"
    cert.write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return str(cert), str(key_file)


def _pem(der: bytes, label: str) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.b64encode(der).decode()}\n-----END {label}-----\n".encode()


_ED25519, _NOBODYS = bytes.fromhex("06032b6570"), bytes.fromhex("06032b5570")  # object identifiers

# Well-formed keys that no library can use: of a type that nobody knows, and an Ed25519 key of 33 bytes.
ODD_KEYS = [
    _pem(bytes.fromhex("302e020100300506032b557004220420") + bytes(32), "PRIVATE KEY"),
    _pem(bytes.fromhex("302f020100300506032b657004230421") + bytes(33), "PRIVATE KEY"),
]


def odd_certificate() -> bytes:
    """PEM of a certificate for a key of a type that nobody knows."""
    key = ed25519.Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    certificate = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(1)).sign(key, None)
    return _pem(certificate.public_bytes(Encoding.DER).replace(_ED25519, _NOBODYS), "CERTIFICATE")
