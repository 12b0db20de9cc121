"""`ntf-server drain`, as operators and scripts run it."""

import asyncio
import os
import pty
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, in_process, one_line, run
from harness import Phone

from ntf_server.config.identity_files import load_credentials
from ntf_server.testing import MockApns
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client

Start = Callable[..., Any]


@pytest.fixture
async def busy(made: Path, start: Start, mock_apns: MockApns) -> Any:
    """A server, one of whose pushes takes three seconds."""
    mock_apns.latency = 3.0
    process, port = await start(
        NTF_SERVER__APNS__TEST__HOST="localhost",
        NTF_SERVER__APNS__TEST__PORT=str(mock_apns.port),
        NTF_SERVER__APNS__TEST__CA_FILE=str(mock_apns.ca_file),
        NTF_SERVER__LIMITS__ENABLED="false",
    )
    address = ServerAddress("ntf", ("127.0.0.1",), str(port), load_credentials(made).key_hash)
    async with await Client.connect(address) as client:
        await Phone(mock_apns).register(client)
        async with asyncio.timeout(10):
            while not mock_apns.counters.streams:
                await asyncio.sleep(0.01)
        yield process


async def test_it_returns_when_the_server_has_ended(made: Path, busy: Any, mock_apns: MockApns) -> None:
    done = await asyncio.to_thread(run, "drain", "--path", made)
    assert (done.returncode, done.stderr) == (0, "")
    assert busy.returncode == 0 or await asyncio.wait_for(busy.wait(), 1) == 0
    *progress, last = done.stdout.splitlines()
    assert last == "Drained, and stopped."
    assert progress and all(line.startswith("still held: ") for line in progress)
    assert "1 pushes under way" in progress[0]
    assert len(set(progress)) == len(progress)
    assert len(mock_apns.pushes) == 1
    assert not (made / "ntf-server.sock").exists()


async def test_what_takes_too_long_is_given_back(made: Path, busy: Any) -> None:
    done = await asyncio.to_thread(run, "drain", "--path", made, "--timeout", "0.2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].endswith("Not finished in time, and given back: 1 pushes under way.")
    assert await asyncio.wait_for(busy.wait(), 1) == 0


async def test_twice_at_once(made: Path, busy: Any) -> None:
    both = await asyncio.gather(*(asyncio.to_thread(run, "drain", "--path", made) for _ in range(2)))
    assert [(done.returncode, done.stderr) for done in both] == [(0, "")] * 2
    assert all(done.stdout.splitlines()[-1] == "Drained, and stopped." for done in both)
    assert await asyncio.wait_for(busy.wait(), 1) == 0


async def test_sigterm_meanwhile(made: Path, busy: Any, mock_apns: MockApns) -> None:
    """A stop does the same in its own time, in which what is under way is finished too."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "drain", "--path", str(made), "--timeout", "600"), stdout=-1, stderr=-1
    )
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.readline(), 20)).startswith(b"still held: ")
    busy.terminate()
    assert await asyncio.wait_for(busy.wait(), 10) == 0
    _, err = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, err) == (0, b"")
    assert len(mock_apns.pushes) == 1


async def test_on_a_terminal_it_is_one_line(made: Path, busy: Any) -> None:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(*COMMAND, "drain", "--path", str(made), stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert await asyncio.wait_for(process.wait(), 20) == 0
    told = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\r\033[Kstill held: " in told
    assert told.count("\n") == 1 and told.endswith("\r\033[KDrained, and stopped.\r\n")


def test_no_server(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, "drain", "--path", made)
    assert (code, out) == (1, "")
    assert one_line(err) == f"ntf-server: {made}/ntf-server.sock: no ntf-server is running there"


@pytest.mark.parametrize("seconds", ["-1", "3601", "soon", "nan"])
def test_no_time(made: Path, capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    code, out, err = in_process(capsys, "drain", "--path", made, "--timeout", seconds)
    assert (code, out) == (2, "")
    assert "--timeout" in err
