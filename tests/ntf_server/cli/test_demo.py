"""`ntf-server demo`: its arguments; tests/ntf_server/test_demo.py runs it."""

import argparse
from typing import Any

import pytest

from ntf_server import demo
from ntf_server.cli import demo as command


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
    assert asked == [{"provider": "fcm", "keep": True}, {"provider": "apns", "keep": False}]
