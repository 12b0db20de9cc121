"""Arguments that several commands take."""

import argparse
from pathlib import Path

import pytest

from ntf_server.cli.arguments import add_path, directory, host
from ntf_server.config.files import DEFAULT_DIR


def test_path(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_path(parser)
    monkeypatch.delenv("NTF_SERVER_CFG_PATH", raising=False)
    assert directory(parser.parse_args([])) == Path(DEFAULT_DIR)
    assert directory(parser.parse_args(["--path", "x"])) == Path("x")


def test_hosts() -> None:
    assert host("ntf.example.org") == "ntf.example.org"
    for text in ("a b", "x" * 65, ""):
        with pytest.raises(argparse.ArgumentTypeError):
            host(text)
