"""The TLS files of a Redis's URL: whether they are other ones now, and until when the client certificate is good.

What is wrong with them is found when they are used, by the store.
"""

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ntf_server.store.redis.url import TlsOptions


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """`digest`: of what is in them; `not_after`: of the client certificate, in UTC, None if there is none."""

    digest: bytes
    not_after: datetime.datetime | None

    @classmethod
    def read(cls, tls: TlsOptions) -> "StoreFiles":
        """As they are now. A file that cannot be read counts as empty."""
        found = [_content(file) for file in (tls.ca_file, tls.cert_file, tls.key_file)]
        digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in found)).digest()
        return cls(digest, _not_after(found[1]))


def _content(file: Path | None) -> bytes:
    try:
        return file.read_bytes() if file else b""
    except OSError:
        return b""


def _not_after(pem: bytes) -> datetime.datetime | None:
    try:
        return x509.load_pem_x509_certificates(pem)[0].not_valid_after_utc
    except (ValueError, IndexError, x509.InvalidVersion):
        return None
