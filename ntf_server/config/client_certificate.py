"""The client certificate that APNs takes instead of a key: its two PEM files, checked to belong together."""

import datetime
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

_DER: Final = b"\x30"  # a SEQUENCE: PKCS #12 and DER certificates begin so, PEM never
_NAMES: Final = (NameOID.USER_ID, NameOID.COMMON_NAME)  # Apple puts the topic into the first
_CONVERT: Final = "`openssl pkcs12 -in FILE -nodes -clcerts` makes PEM of it"


class ClientCertificateError(ValueError):
    """What is wrong; `setting`: certificate_file or certificate_key_file."""

    def __init__(self, setting: str, what: str) -> None:
        super().__init__(what)
        self.setting = setting


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """`chain` and `key`: PEM as in the files; `name`: what it is issued for; `not_after` in UTC."""

    chain: bytes
    key: bytes = field(repr=False)
    name: str
    not_after: datetime.datetime

    @classmethod
    def parse(cls, chain: bytes, key: bytes, now: datetime.datetime | None = None) -> "ClientCertificate":
        """Both files may be the same one. Raises ClientCertificateError."""
        public_key, not_after, name = _leaf(chain)
        if _public_key_of(key) != public_key:
            raise ClientCertificateError("certificate_key_file", "is not the key of certificate_file")
        if not_after <= (now or datetime.datetime.now(datetime.UTC)):
            raise ClientCertificateError("certificate_file", f"expired on {not_after:%Y-%m-%d}; renew it at Apple")
        return cls(chain, key, name, not_after)


def _leaf(pem: bytes) -> tuple[bytes, datetime.datetime, str]:
    """(DER of its public key, its end, its name) of the first certificate."""
    setting = "certificate_file"
    if pem.startswith(_DER):
        raise ClientCertificateError(setting, f"is not PEM, maybe a .p12 file; {_CONVERT}")
    try:
        leaf = x509.load_pem_x509_certificates(pem)[0]
        names = [a for oid in _NAMES for a in leaf.subject.get_attributes_for_oid(oid)]
        public_key = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return public_key, leaf.not_valid_after_utc, str(names[0].value) if names else "no name"
    except (ValueError, IndexError, UnsupportedAlgorithm, x509.InvalidVersion) as e:  # what is inside is read late
        raise ClientCertificateError(setting, "holds no certificate in PEM") from e


def _public_key_of(pem: bytes) -> bytes:
    setting = "certificate_key_file"
    if pem.startswith(_DER):
        raise ClientCertificateError(setting, f"is not PEM, maybe a .p12 file; {_CONVERT}")
    try:
        key = load_pem_private_key(pem, None)
    except TypeError:
        raise ClientCertificateError(setting, "is encrypted; give a key without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm, InternalError):  # which might quote what was given
        raise ClientCertificateError(setting, "holds no private key in PEM") from None
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
