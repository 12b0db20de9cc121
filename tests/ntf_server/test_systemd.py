"""What the service manager is told."""

import re
import socket
import time
from pathlib import Path

import pytest

from ntf_server import systemd


def test_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        before = time.monotonic_ns() // 1000
        systemd.reloading()
        systemd.ready()
        systemd.stopping()
        found = re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=(\d+)", s.recv(100))
        assert found
        assert before <= int(found[1]) <= time.monotonic_ns() // 1000
        assert [s.recv(100), s.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_nobody_wants_to_know(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.ready()
    assert caplog.messages == []
