"""What has to be reached: mocks over real sockets, and an in-memory SMP server."""

import email.utils
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import wrong_pushes
from redis_servers import free_port
from wrong_pushes import World

from ntf_server.config.files import load
from ntf_server.doctor.online import online
from ntf_server.findings import Finding, Standing
from ntf_server.testing import Answer, Silence
from smp_bridge.testing import SmpServer


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with wrong_pushes.world(tmp_path) as made:
        made.set(APNS__SANDBOX__HOST="127.0.0.1", APNS__SANDBOX__PORT=str(made.apns.port))
        made.set(APNS__SANDBOX__CA_FILE=str(made.apns.ca_file))
        yield made


async def looked(world: World, port: int = 5223, **settings: str) -> dict[str, Finding]:
    world.set(**settings)
    return {f.name: f for f in await online(load(world.folder, world.variables), port)}


async def test_all_is_well(world: World, smp_server: SmpServer) -> None:
    hosts = {"SUBSCRIBER__ALLOW_SERVERS": "localhost", "SUBSCRIBER__ALLOW_PRIVATE_HOSTS": "true"}
    found = await looked(world, int(smp_server.address.port), TRANSPORT__HOST="localhost", **hosts)
    assert found.keys() == {
        *("clock", "address", "APNs", "APNs sandbox", "FCM", "Google OAuth", "SMP server", "Web Push"),
    }
    assert {f.standing for n, f in found.items() if n != "Web Push"} == {Standing.WELL}, found
    assert found["clock"].text.startswith("this machine's clock agrees with ")
    assert "smp/1" in found["SMP server"].text
    assert (world.apns.pushes, world.fcm.pushes, world.fcm.grants) == ([], [], 0)


@pytest.mark.parametrize(("ahead", "standing"), [(-120, Standing.WARNING), (7200, Standing.WRONG)])
async def test_a_clock_that_is_off(world: World, ahead: int, standing: Standing) -> None:
    date = email.utils.formatdate(time.time() + ahead, usegmt=True)
    world.apns.script(*[Answer(404, "BadPath", headers=(("date", date),))] * 2)
    found = await looked(world)
    assert found["clock"].standing is standing
    assert "Apple's" in found["clock"].text and "timedatectl" in found["clock"].cure


async def test_each_is_told_though_others_fail(world: World) -> None:
    world.dns.refused.add("relay.example")
    world.set(APNS__PRODUCTION__PORT=str(free_port()), APNS__SANDBOX__CA_FILE="ca.crt", TRANSPORT__HOST="relay.example")
    world.fcm.script_grants(Silence())
    found = await looked(world, DELIVERY__TIMEOUT="0.5", SUBSCRIBER__ALLOW_SERVERS="127.0.0.1/32,smp.absent")
    assert "connection: 127.0.0.1:" in found["APNs"].text and "Connection refused" in found["APNs"].text
    assert "its certificate is not trusted" in found["APNs sandbox"].text
    assert "asked for the time: timed out" in found["Google OAuth"].text
    assert "relay.example: the server's own name leads nowhere" in found["address"].text
    wrong = {name for name, f in found.items() if f.standing is Standing.WRONG}
    assert wrong == {"APNs", "APNs sandbox", "Google OAuth", "address"}
    assert all(found[name].cure for name in wrong)
    assert found["FCM"].standing is Standing.WELL
    assert found["SMP server"].standing is Standing.LEFT_OUT  # a domain may stand for others


async def test_smp_servers(world: World) -> None:
    hosts = {"SUBSCRIBER__ALLOW_SERVERS": "localhost", "SUBSCRIBER__ALLOW_PRIVATE_HOSTS": "true"}
    found = await looked(world, free_port(), **hosts)
    assert found["SMP server"].standing is Standing.WRONG
    found = await looked(world, world.web_push.port, **hosts)
    assert found["SMP server"].standing in {Standing.WRONG, Standing.WARNING}  # TLS, and no SMP
    found = await looked(world, world.web_push.port, SUBSCRIBER__ALLOW_PRIVATE_HOSTS="false")
    assert "not on the public internet" in found["SMP server"].text
    found = await looked(world, SUBSCRIBER__ALLOW_SERVERS="")
    assert "apps choose them" in found["SMP server"].text
