"""The client certificate for APNs: two PEM files that belong together, or one line that says why not."""

import datetime
from pathlib import Path

import pytest
from certificates import ODD_KEYS, client_certificate, odd_certificate
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

from ntf_server.config.client_certificate import ClientCertificate, ClientCertificateError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    cert, key = client_certificate(tmp_path_factory.mktemp("certificate"))
    return Path(cert).read_bytes(), Path(key).read_bytes()


def test_a_pair(files: tuple[bytes, bytes]) -> None:
    cert, key = files
    parsed = ClientCertificate.parse(cert, key)
    assert (parsed.chain, parsed.key) == files
    assert parsed.name == "Apple Push Services: chat.example.app"
    left = parsed.not_after - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(0) < left <= datetime.timedelta(1)
    assert key.decode().splitlines()[1] not in repr(parsed)


def test_one_file_with_both(files: tuple[bytes, bytes]) -> None:
    for both in (files[0] + files[1], files[1] + files[0]):
        assert ClientCertificate.parse(both, both).name.startswith("Apple Push Services")


def test_one_that_expired(files: tuple[bytes, bytes]) -> None:
    with pytest.raises(ClientCertificateError) as e:
        ClientCertificate.parse(*files, datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC))
    not_after = x509.load_pem_x509_certificate(files[0]).not_valid_after_utc
    assert str(e.value) == f"expired on {not_after:%Y-%m-%d}; renew it at Apple"
    assert e.value.setting == "certificate_file"


def test_files_that_are_no_pair(files: tuple[bytes, bytes]) -> None:
    cert, key_pem = files
    other = ec.generate_private_key(ec.SECP256R1())
    key = load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    pkcs8 = Encoding.PEM, PrivateFormat.PKCS8
    another = other.private_bytes(*pkcs8, NoEncryption())
    encrypted = key.private_bytes(*pkcs8, BestAvailableEncryption(b"x"))
    p12 = serialize_key_and_certificates(None, key, x509.load_pem_x509_certificate(cert), None, NoEncryption())
    for first, second, setting, what in (
        (
            cert,
            another,
            "certificate_key_file",
            "is not the key of certificate_file",
        ),
        (cert, encrypted, "certificate_key_file", "is encrypted; give a key without a passphrase"),
        (cert, cert, "certificate_key_file", "holds no private key in PEM"),
        (cert, b"", "certificate_key_file", "holds no private key in PEM"),
        (cert, p12, "certificate_key_file", "maybe a .p12 file; `openssl pkcs12"),
        (key_pem, cert, "certificate_file", "holds no certificate in PEM"),
        (b"rubbish", key_pem, "certificate_file", "holds no certificate in PEM"),
        (b"", key_pem, "certificate_file", "holds no certificate in PEM"),
        (odd_certificate(), key_pem, "certificate_file", "holds no certificate in PEM"),
        *((cert, odd, "certificate_key_file", "holds no private key in PEM") for odd in ODD_KEYS),
        (p12, key_pem, "certificate_file", "maybe a .p12 file; `openssl pkcs12"),
    ):
        with pytest.raises(ClientCertificateError) as e:
            ClientCertificate.parse(first, second)
        assert e.value.setting == setting
        assert what in str(e.value)
