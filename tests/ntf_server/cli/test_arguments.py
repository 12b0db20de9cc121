"""Arguments that several commands take."""

import argparse
from pathlib import Path

import pytest

from ntf_server.cli.arguments import add_path, count, days, directory, host, printable
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


def test_numbers() -> None:
    assert [count(text) for text in ("1", "07", "1000000000")] == [1, 7, 10**9]
    assert [days(text) for text in ("0", "1.5", "30")] == [0, 1.5, 30]
    no_counts, no_days = ("", "0", "-1", "1.5", "x", "1" * 5000, "\N{SUPERSCRIPT TWO}"), ("", "-1", "nan", "inf")
    for take, texts in ((count, no_counts), (days, no_days)):
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match="must be a number"):
                take(text)


def test_what_others_chose_does_not_control_the_terminal() -> None:
    assert printable("refused \x1b[2J\nby é\u202e") == "refused ?[2J?by é?"
