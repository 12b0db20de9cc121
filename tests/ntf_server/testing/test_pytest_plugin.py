"""The pytest plugin, as another project uses it: in a pytest of its own, in strict mode, with warnings as errors."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

PROJECT = """
import json

import pytest

from ntf_server.testing import Answer, Device
from smp_bridge import ntf
from smp_bridge.client import Client, ServerError
from smp_bridge.encoding import short, un_b64url
from smp_bridge.testing import Recipient

pytest_plugins = ["ntf_server.testing.pytest_plugin"]
pytestmark = pytest.mark.asyncio
seen = set()


@pytest.mark.parametrize("again", [False, True])
async def test_every_test_has_parts_of_its_own(again, relay, mock_apns, mock_fcm, mock_web_push, smp_server):
    assert (relay.apns, relay.fcm, relay.web_push) == (mock_apns, mock_fcm, mock_web_push)
    assert not mock_apns.pushes and not smp_server.queues
    addresses = {str(relay.address), str(smp_server.address)}
    assert not addresses & seen
    seen.update(addresses)


async def test_a_life(relay, device, smp_server, mock_apns):
    assert await device.status() is ntf.TokenStatus.ACTIVE
    assert (device.token in repr(device), device.secret.hex() in repr(device)) == (False, False)
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        subscription = await device.subscribe(smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        mock_apns.script(Answer(500, "InternalServerError"), token=device.token)
        await queue.send("hello")
        [entry] = await device.woken()
        assert queue.open_notification(entry.nonce, entry.meta).message_id == (await queue.receive()).message_id
        await device.unsubscribe(subscription)
        with pytest.raises(ServerError):
            await device.unsubscribe(subscription)
    await device.register()
    with pytest.raises(ValueError, match="no message, but nonce, verification"):
        await device.woken()
    mock_apns.script(Answer(410, "Unregistered"), token=device.token)
    await device.register()
    with pytest.raises(TimeoutError):
        await device.verify(timeout=0.01)


async def test_two_devices(relay, mock_apns, device, smp_server):
    async with await Client.connect(relay.address) as client:
        other = Device(client, mock_apns)
        await other.register()
        await other.verify()
        async with await Recipient.connect(smp_server.address) as recipient:
            queues = [await recipient.queue() for _ in range(2)]
            for one, queue in zip((device, other), queues):
                await one.subscribe(smp_server.address, queue)
            await smp_server.until(lambda: all(smp_server.subscribed(q.notifier_id) for q in queues))
            for one, queue in reversed(list(zip((device, other), queues))):
                await queue.send("hello")
                assert [e.notifier_id for e in await one.woken()] == [queue.notifier_id]


async def test_every_provider(relay, device, mock_fcm, mock_web_push):
    async def replace(provider, token):
        await device.command(ntf.TRpl(ntf.DeviceToken(provider, token)))

    async def verify(data):
        await device.command(ntf.TVfy(device.open({"notificationData": data}, "verification")))
        assert await device.status() is ntf.TokenStatus.ACTIVE

    await replace(ntf.Provider.FCM, b"fcm-token")
    await verify((await mock_fcm.next("fcm-token")).data)
    s = mock_web_push.subscribe(relay.application_server_key)
    fields = [b"localhost", str(mock_web_push.port).encode(), s.path.encode(), s.auth, s.p256dh]
    await replace(ntf.Provider.WEB_PUSH, b"".join(map(short, fields)))
    await verify(json.loads((await mock_web_push.next(s)).data))
    await replace(ntf.Provider.APNS_TEST, device.token.encode())
    await device.verify()
"""

FAILING = """
pytest_plugins = ["ntf_server.testing.pytest_plugin"]


async def test_fails(device, mock_apns):
    assert mock_apns.pushes == [], device
"""


def run_pytest(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-W", "error", "-p", "no:cacheprovider"]
    command += ["-o", "asyncio_default_fixture_loop_scope=function"]  # some releases warn where it is not set
    return subprocess.run(
        [*command, "--rootdir", str(directory), *options],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_a_project_that_uses_it(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text(PROJECT)
    result = run_pytest(tmp_path)
    assert (result.returncode, result.stdout.splitlines()[-1].split(" in ")[0]) == (0, "5 passed"), result.stdout


def test_its_fixtures_are_listed_with_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text(FAILING)
    lines = run_pytest(tmp_path, "--fixtures").stdout.splitlines()
    for name in ("smp_server", "mock_apns", "mock_fcm", "mock_web_push", "relay", "device"):
        [at] = [i for i, line in enumerate(lines) if line.startswith(f"{name} -- ")]
        assert "no docstring available" not in lines[at + 1]


def test_a_test_that_fails_ends_well_and_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text(FAILING)
    out = run_pytest(tmp_path, "-o", "asyncio_mode=auto").stdout
    assert "1 failed" in out
    assert "error" not in out.splitlines()[-1]
    assert "Device()" in out


def test_the_mocks_alone_load_no_relay() -> None:
    heavy = "{'pycurl', 'ntf_server.app', 'ntf_client'}"
    code = f"import sys, ntf_server.testing.pytest_plugin; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out == "[]\n"
