"""What the service manager is told."""

import asyncio
import os
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


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("60000000", "", 60.0),
        ("1500000", str(os.getpid()), 1.5),
        ("60000000", "1", None),  # of the process that started this one
        ("0", "", None),
        ("soon", "", None),
        (None, "", None),
    ],
)
def test_who_is_watched(monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str, seconds: float | None) -> None:
    monkeypatch.setenv("WATCHDOG_PID", pid)
    monkeypatch.setenv("WATCHDOG_USEC", usec) if usec is not None else monkeypatch.delenv(
        "WATCHDOG_USEC", raising=False
    )
    assert systemd.watchdog() == seconds


async def test_who_is_watched_says_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(tmp_path / "notify"))
        s.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        watched = asyncio.create_task(systemd.watch(0.03))
        assert [await asyncio.to_thread(s.recv, 100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        watched.cancel()
