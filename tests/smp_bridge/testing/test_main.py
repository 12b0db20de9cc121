import asyncio
import signal
import sys

import pytest

from smp_bridge.address import ServerAddress
from smp_bridge.testing import Recipient, SmpServer


async def _run(*arguments: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "smp_bridge.testing", *arguments]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_serves_until_a_signal(stop: signal.Signals) -> None:
    process = await _run("--port", "0")
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
    address = ServerAddress.from_text(line.rstrip("\n"))
    assert address.hosts == ("localhost",)
    async with await Recipient.connect(address) as recipient:
        queue = await recipient.queue()
        await queue.send("x")
        assert (await queue.receive()).body == b"x"
        process.send_signal(stop)
        assert await asyncio.wait_for(process.communicate(), 10) == (b"", b"")
    assert process.returncode == 0


async def test_the_command_says_that_the_port_is_taken(server: SmpServer) -> None:
    process = await _run("--port", server.address.port)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out, err.count(b"\n")) == (2, b"", 1)
    assert server.address.port.encode() in err
