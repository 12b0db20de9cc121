"""The examples run, against a relay in a process of its own."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from harness import RelayProcess

from ntf_client import Device, Queue
from ntf_server.testing import MockApns
from smp_bridge.testing import Recipient, SmpServer

EXAMPLES = Path(__file__).parent.parent / "examples"
TOKEN = "00ff" * 16


async def start(name: str, *argv: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / name), *argv),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(EXAMPLES.parent)},
    )


async def finish(process: asyncio.subprocess.Process, payload: object) -> str:
    out, err = await process.communicate(json.dumps(payload).encode() + b"\n")
    assert (process.returncode, err) == (0, b""), err.decode()
    return out.decode()


async def test_register_and_decrypt(
    relay_process: RelayProcess, mock_apns: MockApns, smp_server: SmpServer, tmp_path: Path
) -> None:
    path = tmp_path / "device.json"
    registering = await start("register_device.py", str(relay_process.address), "AT", TOKEN, str(path))
    code = (await mock_apns.next(TOKEN)).body
    assert "status: ACTIVE" in await finish(registering, code)
    assert "verification" in await finish(await start("decrypt_push.py", str(path)), code)
    assert "check" in await finish(await start("decrypt_push.py", str(path)), {"checkMessages": True})

    async with await Recipient.connect(smp_server.address) as recipient:
        known, unknown = await recipient.queue(), await recipient.queue()
        device = Device.load(path)
        async with device.connect() as client:
            for queue, secret in ((known, known.notifier_secret), (unknown, None)):
                given = Queue(smp_server.address, queue.notifier_id, queue.notifier_key, secret)
                await device.subscribe(client, given)
        await smp_server.until(lambda: all(smp_server.subscribed(q.notifier_id) for q in (known, unknown)))
        await known.send("hello")
        opened = await finish(await start("decrypt_push.py", str(path)), (await mock_apns.next(TOKEN)).body)
        received = await known.receive()
        assert f"{smp_server.address} message {received.message_id.hex()} at {received.timestamp}\n" in opened
        await unknown.send("hello")
        opened = await finish(await start("decrypt_push.py", str(path)), (await mock_apns.next(TOKEN)).body)
        assert f"{smp_server.address} unknown queue\n" in opened


def test_the_tests_of_an_app(tmp_path: Path) -> None:
    copy = shutil.copy(EXAMPLES / "test_my_app.py", tmp_path)
    options = ["-W", "error", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, "--rootdir", tmp_path, copy],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        check=False,
    )
    assert (result.returncode, result.stdout.splitlines()[-1].split(" in ")[0]) == (0, "2 passed"), result.stdout
