"""The command `ntf-server`, as operators and systemd run it."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ntf_server.cli import main as cli
from ntf_server.config.files import load_master_key, load_settings
from ntf_server.store.contract import Store
from ntf_server.store.open import open_store

COMMAND = [sys.executable, "-m", "ntf_server"]


def run(*arguments: Any, stdin: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def in_process(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command, without the time that a process takes."""
    with pytest.raises(SystemExit) as e:
        cli.main([str(a) for a in arguments])
    assert isinstance(e.value.code, int)
    return e.value.code, *capsys.readouterr()


def contents(directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in directory.rglob("*") if f.is_file()}


async def store_of(made: Path) -> Store:
    """Of a folder whose server does not run, open."""
    key = load_master_key(made, load_settings(made))
    return await open_store(f"sqlite:///{made}/ntf-server.db", directory=made, master_key=key)


async def stop(process: Any, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, out.decode(), err.decode()


def one_line(stderr: str) -> str:
    [line] = stderr.splitlines()
    assert line.startswith("ntf-server: ")
    return line
