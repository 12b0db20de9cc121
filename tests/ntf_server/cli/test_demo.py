"""`ntf-server demo`: its arguments; tests/ntf_server/test_demo.py runs it."""

import argparse
from typing import Any

import pytest

from ntf_server import demo
from ntf_server.cli import demo as command
from ntf_server.cli.errors import UsageError


def test_what_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    async def run(**options: Any) -> int:
        asked.append(options)
        return 1

    monkeypatch.setattr(demo, "run", run)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args(["--provider", "fcm", "--keep"])) == 1
    assert command.run(parser.parse_args([])) == 1
    assert command.run(parser.parse_args(["--nodes", "3"])) == 1
    assert asked == [
        {"provider": "fcm", "keep": True, "nodes": 1},
        {"provider": "apns", "keep": False, "nodes": 1},
        {"provider": "apns", "keep": False, "nodes": 3},
    ]


def test_without_a_valkey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "program", lambda: None)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(UsageError, match="there is no Valkey"):
        command.run(parser.parse_args(["--nodes", "2"]))


@pytest.mark.parametrize("count", ["0", "10", "-1", "many"])
def test_no_number_of_nodes(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--nodes", count])
    assert "--nodes" in capsys.readouterr().err
