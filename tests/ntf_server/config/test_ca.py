"""The system's CA bundle is found where it is, and nothing is made up where there is none."""

import ssl
from pathlib import Path

import pytest

from ntf_server.config import ca


def test_the_bundle_that_openssl_knows_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.touch()
    monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(bundle))
    assert ca.default_ca_file() == str(bundle)


@pytest.mark.parametrize("there", [True, False])
def test_else_where_systems_have_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    paths = ssl.get_default_verify_paths()
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths._replace(cafile=None))
    monkeypatch.setattr(ca, "_CA_FILES", (str(tmp_path / "missing.pem"), str(tmp_path / "system.pem")))
    if there:
        (tmp_path / "system.pem").touch()
    assert ca.default_ca_file() == (str(tmp_path / "system.pem") if there else None)
