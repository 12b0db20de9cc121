"""`ntf-server status`, and what CLI commands say when no server runs."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import in_process, one_line, run, stop

Start = Callable[..., Any]


async def test_a_running_server(made: Path, start: Start) -> None:
    process, port = await start()
    done = await asyncio.to_thread(run, "status", "--path", made)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.replace("listens on", "listens").splitlines())
    assert lines["process"] == str(process.pid)
    assert lines["listens"] == str(port)
    done = await asyncio.to_thread(run, "status", "--path", made, "--json")
    answer = json.loads(done.stdout)
    assert (answer["pid"], answer["port"], answer["waiting"]) == (process.pid, port, [])
    assert "AN" in answer["providers"]
    assert (await stop(process))[0] == 0
    assert not (made / "ntf-server.sock").exists()


async def test_a_server_that_was_killed(made: Path, start: Start) -> None:
    process, _ = await start()
    process.send_signal(signal.SIGKILL)
    await process.wait()
    done = await asyncio.to_thread(run, "status", "--path", made)
    assert (done.returncode, done.stdout) == (1, "")
    assert one_line(done.stderr) == f"ntf-server: {made}/ntf-server.sock: no ntf-server is running there"
    await start()  # the socket that is left is in nobody's way
    assert (await asyncio.to_thread(run, "status", "--path", made)).returncode == 0


@pytest.mark.parametrize("command", ["status", "reload"])
def test_no_server(made: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, command, "--path", made)
    assert (code, out) == (1, "")
    assert "no ntf-server is running there" in one_line(err)
