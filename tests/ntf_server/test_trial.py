"""One push, each step told. Those that come to nothing: tests/test_wrong_pushes.py."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import wrong_pushes
from proxies import Proxy
from wrong_pushes import DEVICE, REGISTRATION, TOPIC, World

from ntf_server.config.files import load
from ntf_server.findings import Finding, Standing
from ntf_server.push.webpush.subscription import subscription_token
from ntf_server.testing import Answer
from ntf_server.trial import OffError, Trial
from smp_bridge.ntf import DeviceToken, Provider


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with wrong_pushes.world(tmp_path) as made:
        yield made


APPLE = DeviceToken(Provider.APNS, DEVICE.encode())
GOOGLE = DeviceToken(Provider.FCM, REGISTRATION.encode())


async def tried(world: World, device: DeviceToken, *, dry: bool = False) -> tuple[list[Finding], str]:
    trial = Trial(load(world.folder, world.variables), device, dry=dry)
    return [finding async for finding in trial.steps()], trial.said


def names(findings: list[Finding]) -> list[str]:
    assert {finding.standing for finding in findings} <= {Standing.WELL, Standing.LEFT_OUT}
    return [finding.name for finding in findings]


async def test_to_apple(world: World) -> None:
    findings, said = await tried(world, APPLE)
    assert names(findings) == ["credentials", "JWT", "connection", "request", "answer"]
    assert (findings[0].text, said) == (f"key ABC123DEFG of team 5NN7GUYB6T, topic {TOPIC}", "200")
    [push] = world.apns.pushes
    assert push.body == {"aps": {"content-available": 1}, "notificationData": {"checkMessages": True}}
    assert (push.push_type, push.priority) == ("background", 5)
    assert push.apns_id in findings[3].text


async def test_to_google(world: World) -> None:
    findings, said = await tried(world, GOOGLE)
    connections = ["connection", "connection"]  # for the access token, and for the message
    assert names(findings) == ["credentials", *connections, "access token", "request", "answer"]
    assert (said, world.fcm.grants) == ("200", 1)
    [message] = world.fcm.pushes
    assert message.data == {"checkMessages": "true"}


async def test_to_a_push_service(world: World) -> None:
    findings, said = await tried(world, DeviceToken(Provider.WEB_PUSH, subscription_token(world.text())))
    assert names(findings) == ["credentials", "JWT", "name", "connection", "request", "answer"]
    assert said == "201"
    assert len(world.web_push.pushes) == 1


@pytest.mark.parametrize("device", [APPLE, GOOGLE], ids=["apple", "google"])
async def test_a_dry_run_wakes_nobody(world: World, device: DeviceToken) -> None:
    findings, said = await tried(world, device, dry=True)
    assert world.apns.counters.requests == 0
    assert (world.apns.pushes, world.fcm.pushes) == ([], [])
    if device is APPLE:
        assert (names(findings)[-1], said) == ("request", "")
        assert "APNs has no dry run of its own" in findings[-1].text
    else:
        assert (names(findings)[-1], said) == ("answer", "200")
        assert "validate_only" in findings[-2].text


async def test_google_judges_a_dry_run_as_a_push(world: World) -> None:
    world.fcm.unregister(REGISTRATION)
    findings, said = await tried(world, GOOGLE, dry=True)
    assert (findings[-1].standing, said) == (Standing.WRONG, "404 UNREGISTERED")


async def test_a_mock_needs_no_key(world: World) -> None:
    world.set(APNS__KEY_FILE="", APNS__KEY_ID="", APNS__TEAM_ID="", APNS__TEST__HOST="127.0.0.1")
    world.set(APNS__TEST__PORT=str(world.apns.port), APNS__TEST__CA_FILE=str(world.apns.ca_file))
    findings, said = await tried(world, DeviceToken(Provider.APNS_TEST, b"short"))
    assert "the key is made up: mocks take any" in findings[0].text
    assert said == "403 InvalidProviderToken"  # this one does not


async def test_by_way_of_a_proxy(world: World) -> None:
    async with Proxy("http") as proxy:
        world.set(APNS__PROXY=f"http://127.0.0.1:{proxy.port}")
        findings, _ = await tried(world, APPLE)
    assert names(findings) == ["credentials", "JWT", "connection", "request", "answer"]
    assert "by way of the proxy: TLSv1.3" in findings[2].text
    assert len(proxy.targets) == 2  # to look, and to push


async def test_the_clock_is_told_of_where_the_provider_says_its_time(world: World) -> None:
    world.apns.script(Answer(400, "BadDeviceToken"))
    findings, _ = await tried(world, APPLE)
    assert [f.name for f in findings[-3:]] == ["clock", "request", "answer"]
    assert findings[-3].text == "this machine's clock agrees with Apple's"


@pytest.mark.parametrize(
    ("device", "off", "words"),
    [
        (APPLE, {"APNS__KEY_FILE": "", "APNS__KEY_ID": "", "APNS__TEAM_ID": ""}, "key_file, key_id and team_id"),
        (GOOGLE, {"FCM__SERVICE_ACCOUNT_FILE": ""}, "devices of FC: set [fcm] service_account_file"),
        (DeviceToken(Provider.WEB_PUSH, b""), {"WEB_PUSH__KEY_FILE": ""}, "devices of WP: set [web_push] key_file"),
    ],
)
def test_of_a_provider_that_is_off(tmp_path: Path, device: DeviceToken, off: dict[str, str], words: str) -> None:
    from ntf_server.config.identity_files import create_identity, write_file
    from ntf_server.store.sealing import generate_key_text

    create_identity(tmp_path, "ED25519", "localhost")
    write_file(tmp_path / "master.key", generate_key_text().encode())
    (tmp_path / "ntf-server.toml").touch()
    config = load(tmp_path, {f"NTF_SERVER__{key}": value for key, value in off.items()})
    with pytest.raises(OffError) as e:
        Trial(config, device, dry=False)
    assert words in str(e.value)
