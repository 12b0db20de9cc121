"""The same push by aioapns and pyfcm."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import wrong_pushes
from certificates import client_certificate
from proxies import Proxy
from wrong_pushes import DEVICE, REGISTRATION, World

from ntf_server.config.files import load
from ntf_server.config.identity_files import write_file
from ntf_server.findings import Finding, Standing
from ntf_server.second_opinion import second_opinion
from ntf_server.testing import Answer, Silence, fcm_error, grant_error
from smp_bridge.ntf import DeviceToken, Provider

APPLE = DeviceToken(Provider.APNS, DEVICE.encode())
GOOGLE = DeviceToken(Provider.FCM, REGISTRATION.encode())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with wrong_pushes.world(tmp_path) as made:
        yield made


async def asked(world: World, device: DeviceToken, first: str, *, dry: bool = False) -> Finding:
    return await second_opinion(load(world.folder, world.variables), device, first, dry=dry)


async def test_both_are_served(world: World) -> None:
    found = await asked(world, APPLE, "200")
    assert (found.standing, found.text.partition(": ")[2]) == (Standing.WELL, "200: the same as ours")
    [push] = world.apns.pushes
    assert push.body == {"aps": {"content-available": 1}, "notificationData": {"checkMessages": True}}
    assert (push.push_type, push.priority) == ("background", 5)
    found = await asked(world, GOOGLE, "200")
    assert (found.standing, found.text.partition(": ")[2]) == (Standing.WELL, "200: the same as ours")
    [message] = world.fcm.pushes
    assert message.data == {"checkMessages": "true"}


async def test_refusals_are_read_as_ours_are(world: World) -> None:
    world.apns.reject_token(DEVICE)
    assert (await asked(world, APPLE, "400 BadDeviceToken")).standing is Standing.WELL
    world.fcm.mismatch_sender(REGISTRATION)
    assert (await asked(world, GOOGLE, "403 SENDER_ID_MISMATCH")).standing is Standing.WELL
    world.fcm.reregister(REGISTRATION)
    world.fcm.script(fcm_error("UNAVAILABLE", retry_after=3600))  # pyfcm itself would sleep for as long
    assert (await asked(world, GOOGLE, "503 UNAVAILABLE")).standing is Standing.WELL
    world.fcm.script_grants(grant_error("invalid_grant", "No."))
    assert (await asked(world, GOOGLE, "400 invalid_grant")).standing is Standing.WELL


async def test_another_answer_is_told(world: World) -> None:
    world.apns.script(Answer(503, "ServiceUnavailable"))
    found = await asked(world, APPLE, "200")
    assert (found.standing, found.text.partition(": ")[2]) == (
        Standing.WARNING,
        "503 ServiceUnavailable: ours was 200",
    )


async def test_what_never_comes(world: World) -> None:
    """aioapns tells a reset stream by nothing: the deadline is ours."""
    world.set(DELIVERY__TIMEOUT="0.2")
    world.fcm.script(Silence())
    assert "no answer (ReadTimeout)" in (await asked(world, GOOGLE, "200")).text
    world.set(APNS__PRODUCTION__PORT="1")
    assert "no answer, or no connection, it does not say which" in (await asked(world, APPLE, "")).text


async def test_an_answer_that_comes_in_drops_is_not_waited_for(world: World) -> None:
    """Each drop is in time for requests, which has no deadline for all of them."""
    over = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not over.is_set():
            writer.write(b" ")
            await asyncio.sleep(0.05)
        writer.transport.abort()

    async with await asyncio.start_server(drip, "127.0.0.1", 0, ssl=world.fcm.tls.server_context()) as server:
        world.set(FCM__PORT=str(server.sockets[0].getsockname()[1]), DELIVERY__TIMEOUT="0.2")
        found = await asked(world, GOOGLE, "200")
        over.set()
        await asyncio.sleep(0.1)
    assert "no answer in time" in found.text


async def test_a_dry_run(world: World) -> None:
    assert (await asked(world, APPLE, "", dry=True)).standing is Standing.LEFT_OUT
    assert (await asked(world, GOOGLE, "200", dry=True)).standing is Standing.WELL
    assert (world.apns.pushes, world.fcm.pushes) == ([], [])


async def test_by_way_of_proxies(world: World) -> None:
    async with Proxy("http") as proxy:
        world.set(FCM__PROXY=f"http://127.0.0.1:{proxy.port}")
        assert (await asked(world, GOOGLE, "200")).standing is Standing.WELL
    assert proxy.targets
    world.set(APNS__PROXY="socks5://127.0.0.1:9", FCM__PROXY="socks5://127.0.0.1:9")
    assert "not asked: it does not get through a proxy" in (await asked(world, APPLE, "200")).text
    assert "not asked: it knows HTTP proxies only" in (await asked(world, GOOGLE, "200")).text


async def test_a_client_certificate_in_two_files_is_not_for_aioapns(world: World) -> None:
    certificate, key = client_certificate(world.folder)
    world.set(APNS__KEY_FILE="", APNS__KEY_ID="", APNS__TEAM_ID="", APNS__CERTIFICATE_FILE=certificate)
    world.set(APNS__CERTIFICATE_KEY_FILE=key)
    found = await asked(world, APPLE, "200")
    assert found.standing is Standing.LEFT_OUT and "from one file only" in found.text
    write_file(world.folder / "both.pem", Path(certificate).read_bytes() + Path(key).read_bytes())
    world.set(APNS__CERTIFICATE_FILE="both.pem", APNS__CERTIFICATE_KEY_FILE="both.pem")
    assert "403 MissingProviderToken" in (await asked(world, APPLE, "403 MissingProviderToken")).text


def test_who_does_not_ask_loads_neither() -> None:
    script = (
        "import sys, ntf_server.second_opinion, ntf_server.app\n"
        "print(sorted({'aioapns', 'pyfcm', 'aiohttp', 'requests', 'jwt', 'google.auth'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
