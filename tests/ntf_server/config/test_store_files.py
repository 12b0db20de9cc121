"""The TLS files of a Redis's URL."""

from pathlib import Path

import pytest
from certificates import client_certificate
from cryptography import x509

from ntf_server.config.store_files import StoreFiles
from ntf_server.store.redis.url import TlsOptions


@pytest.fixture
def tls(tmp_path: Path) -> TlsOptions:
    cert, key = client_certificate(tmp_path)
    return TlsOptions(None, Path(cert), Path(key))


def test_until_when_the_client_certificate_is_good(tls: TlsOptions) -> None:
    assert tls.cert_file is not None
    ends = x509.load_pem_x509_certificate(tls.cert_file.read_bytes()).not_valid_after_utc
    assert StoreFiles.read(tls).not_after == ends
    assert StoreFiles.read(TlsOptions(ca_file=tls.cert_file)).not_after is None


@pytest.mark.parametrize("name", ["ca_file", "cert_file", "key_file"])
def test_another_file_is_another_digest(tls: TlsOptions, tmp_path: Path, name: str) -> None:
    before = StoreFiles.read(tls)
    assert StoreFiles.read(tls) == before
    other = TlsOptions(**{"cert_file": tls.cert_file, "key_file": tls.key_file, name: tmp_path / "other"})
    (tmp_path / "other").write_bytes(b"other")
    assert StoreFiles.read(other).digest != before.digest


def test_files_that_cannot_be_read_are_the_store_s_to_tell(tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_text("-----BEGIN CERTIFICATE-----\n")
    for name in ("missing", "rubbish"):
        assert StoreFiles.read(TlsOptions(cert_file=tmp_path / name)).not_after is None
