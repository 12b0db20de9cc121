"""The TLS of a Redis's URL, and files that were replaced while connections are made."""

import ssl
from pathlib import Path

import pytest
from certificates import client_certificate

from ntf_server.store.contract import StoreConflictError
from ntf_server.store.redis.tls import Tls, tls_context
from ntf_server.store.redis.url import TlsOptions, parse_redis_url


@pytest.mark.parametrize("options", [{"ca_file": "absent"}, {"ca_file": "odd"}, {"cert_file": "absent"}])
def test_files_that_cannot_be_read(tmp_path: Path, options: dict[str, str]) -> None:
    (tmp_path / "odd").write_text("odd")
    [(name, value)] = options.items()
    with pytest.raises(StoreConflictError, match=f"^the files of the store's url cannot be read: {name} ") as e:
        tls_context(TlsOptions(**{name: tmp_path / value}))
    assert str(tmp_path / value) in str(e.value) and "; give a " in str(e.value)


def test_a_key_with_a_passphrase_is_told_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    cert, key = client_certificate(tmp_path, password=b"hunter2")
    with pytest.raises(StoreConflictError, match="without a passphrase"):
        tls_context(TlsOptions(cert_file=Path(cert), key_file=Path(key)))


def test_of_a_url(tmp_path: Path) -> None:
    assert Tls.of(parse_redis_url("redis://a")) is None
    tls = Tls.of(parse_redis_url("rediss://a"))
    assert tls is not None
    assert tls.context.verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(StoreConflictError):
        Tls.of(parse_redis_url("rediss://a?cert_file=absent", tmp_path))


def test_files_are_used_once_that_is_said_and_bad_ones_never(tmp_path: Path) -> None:
    cert, key = client_certificate(tmp_path)
    tls = Tls(TlsOptions(ca_file=Path(cert), cert_file=Path(cert), key_file=Path(key)))
    first = tls.context
    client_certificate(tmp_path, name="renewed")
    commit = tls.prepare()
    assert tls.context is first
    commit()
    assert tls.context is not first
    second = tls.context
    Path(key).write_text("SECRET")
    with pytest.raises(StoreConflictError) as e:
        tls.prepare()
    assert "SECRET" not in str(e.value)
    assert tls.context is second
