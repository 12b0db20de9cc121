"""What differs between two configurations, who takes it, and that a bad one changes nothing."""

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from certificates import client_certificate
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ntf_server.config import files, identity_files
from ntf_server.config.files import Config, ConfigError
from ntf_server.config.reload import Commit, Part, Reloader, Report, Swap, compare
from ntf_server.config.settings import Settings
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.store.contract import StoreConflictError
from ntf_server.store.sealing import generate_key_text

ALL = tuple(Part)
TEXT = """
[apns]
key_file = "apns.p8"
key_id = "ABC123DEFG"
team_id = "5NN7GUYB6T"
[fcm]
service_account_file = "account.json"
[web_push]
key_file = "vapid.key"
contact = "mailto:push@relay.example"
"""


def account() -> bytes:
    key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return b'{"project_id": "p", "client_email": "a@b", "private_key": %s}' % repr(key.decode()).encode().replace(
        b"'", b'"'
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    identity_files.create_identity(tmp_path, "ED25519", "localhost")
    (tmp_path / "master.key").write_text(generate_key_text())
    (tmp_path / "apns.p8").write_bytes(key_pem(generate_key()))
    (tmp_path / "vapid.key").write_bytes(key_pem(generate_key()))
    (tmp_path / "account.json").write_bytes(account())
    (tmp_path / "ca.pem").write_bytes((tmp_path / "ca.crt").read_bytes())
    (tmp_path / files.CONFIG_FILE).write_text(TEXT)
    return tmp_path


Load = Callable[..., Config]


@pytest.fixture
def load(directory: Path) -> Load:
    """With these variables."""
    ca = {"FCM__CA_FILE": "ca.pem", "WEB_PUSH__CA_FILE": "ca.pem"}
    for host in ("PRODUCTION", "SANDBOX"):
        ca |= {f"APNS__{host}__HOST": "localhost", f"APNS__{host}__CA_FILE": "ca.pem"}
    return lambda **environ: files.load(directory, {f"NTF_SERVER__{k}": v for k, v in (ca | environ).items()})


def test_what_is_the_same(load: Load) -> None:
    old = load()
    changes = compare(old, load(), ALL)
    assert (changes.swapped, changes.needs_restart) == ({}, ())
    assert changes.config.settings == old.settings


@pytest.mark.parametrize(
    ("name", "value", "shown", "part"),
    [
        ("APNS__KEY_ID", "ABC123DEF2", "[apns] key_id", Part.APNS),
        ("APNS__TOPIC", "org.example.app", "[apns] topic", Part.APNS),
        ("APNS__TEAM_ID", "5NN7GUYB62", "[apns] team_id", Part.APNS),
        ("WEB_PUSH__CONTACT", "mailto:x@relay.example", "[web_push] contact", Part.WEB_PUSH),
        ("WEB_PUSH__ALLOW_HOSTS", "ntfy.lan", "[web_push] allow_hosts", Part.WEB_PUSH),
        ("SUBSCRIBER__ALLOW_SERVERS", "a.org", "[subscriber] allow_servers", Part.SUBSCRIBER),
        ("SUBSCRIBER__DENY_SERVERS", "a.org", "[subscriber] deny_servers", Part.SUBSCRIBER),
        ("SUBSCRIBER__MAX_SUBSCRIPTIONS_PER_TOKEN", "7", "[subscriber] max_subscriptions_per_token", Part.SUBSCRIBER),
        ("LIMITS__ENABLED", "false", "[limits] enabled", Part.LIMITS),
        ("LIMITS__SHARED", "10.0.0.0/8", "[limits] shared", Part.LIMITS),
        ("LIMITS__SESSIONS", "10", "[limits] sessions", Part.LIMITS),
        ("LIMITS__REGISTRATIONS", "10 + 1/s", "[limits] registrations", Part.LIMITS),
        ("LOG__LEVEL", "debug", "[log] level", Part.LOG),
        ("LOG__FORMAT", "json", "[log] format", Part.LOG),
        ("ADMIN__HOSTS", "relay.example.org", "[admin] hosts", Part.PAGE),
        ("ADMIN__PORT", "9090", "[admin] port", None),
        ("TRANSPORT__PORT", "5443", "[transport] port", None),
        ("TRANSPORT__HOST", "a.org", "[transport] host", None),
        ("STORE__URL", "sqlite:///other.db", "[store] url", None),
        ("METRICS__PORT", "9100", "[metrics] port", None),
        ("APNS__PROXY", "http://a:1", "[apns] proxy", None),
        ("APNS__PRODUCTION__PORT", "2197", "[apns] production", None),
        ("SUBSCRIBER__REQUIRED_HOST_MODE", "true", "[subscriber] required_host_mode", None),
        ("ADMIN__SOCKET", "other.sock", "[admin] socket", None),
        ("DELIVERY__TIMEOUT", "5", "[delivery] timeout", None),
        ("DELIVERY__CHECKS", "off", "[delivery] checks", Part.CHECKS),
    ],
)
def test_a_setting(*, load: Load, name: str, value: str, shown: str, part: Part | None) -> None:
    old, new = load(), load(**{name: value})
    changes = compare(old, new, ALL)
    section, key = name.lower().split("__")[:2]
    in_force = getattr(getattr(changes.config.settings, section), key)
    if part is None:
        assert (changes.swapped, changes.needs_restart) == ({}, (shown,))
        assert in_force == getattr(getattr(old.settings, section), key)
    else:
        assert (changes.swapped, changes.needs_restart) == ({part: (shown,)}, ())
        assert in_force == getattr(getattr(new.settings, section), key)
        without = compare(old, new, [p for p in Part if p is not part])
        assert (without.swapped, without.needs_restart) == ({}, (shown,))
        assert without.config.settings == old.settings


def test_another_token_of_the_live_page(load: Load, directory: Path) -> None:
    """A page that is to be elsewhere after a restart does not lose its token where it is."""
    for name in ("one", "two"):
        (directory / name).write_text(name * 10)
    page = {"ADMIN__PORT": "9090", "ADMIN__BIND": "0.0.0.0"}
    old, new = load(**page, ADMIN__TOKEN_FILE="one"), load(**page, ADMIN__TOKEN_FILE="two")
    changes = compare(old, new, ALL)
    assert (changes.swapped, changes.needs_restart) == ({Part.PAGE: ("[admin] token_file",)}, ())
    assert changes.config.page == new.page != old.page
    (directory / "one").write_text("three" * 10)
    changes = compare(old, load(**page, ADMIN__TOKEN_FILE="one"), ALL)
    assert changes.swapped == {Part.PAGE: ("[admin] token_file",)}
    changes = compare(old, load(ADMIN__PORT="9090"), ALL)
    assert (changes.swapped, set(changes.needs_restart)) == ({}, {"[admin] bind", "[admin] token_file"})
    assert changes.config.page == old.page


def test_every_setting_that_is_swapped_is_one() -> None:
    from ntf_server.config.reload import _SWAPPED

    for name in _SWAPPED:
        section, key = name.split(".")
        assert key in getattr(Settings(), section).__struct_fields__


def test_files_that_are_other_ones_now(load: Load, directory: Path) -> None:
    old = load()
    (directory / "apns.p8").write_bytes(key_pem(generate_key()))
    (directory / "vapid.key").write_bytes(key_pem(generate_key()))
    (directory / "account.json").write_bytes(account())
    identity_files.renew_certificate(directory, directory / "ca.key", "ED25519", None)
    new = load()
    changes = compare(old, new, ALL)
    assert changes.needs_restart == ()
    assert changes.swapped == {
        Part.LISTENER: ("the online certificate",),
        Part.APNS: ("[apns] key_file",),
        Part.FCM: ("[fcm] service_account_file",),
        Part.WEB_PUSH: ("[web_push] key_file",),
    }
    for name in ("credentials", "apns_key", "service_account", "vapid_key"):
        assert getattr(changes.config, name) is getattr(new, name)


def test_older_vapid_keys(load: Load, directory: Path) -> None:
    (directory / "old.key").write_bytes(key_pem(generate_key()))
    none, one = load(), load(WEB_PUSH__OLD_KEY_FILES="old.key")
    (directory / "old.key").write_bytes(key_pem(generate_key()))
    other = load(WEB_PUSH__OLD_KEY_FILES="old.key")
    for old, new in ((none, one), (one, other), (one, none)):
        changes = compare(old, new, ALL)
        assert (changes.swapped, changes.needs_restart) == ({Part.WEB_PUSH: ("[web_push] old_key_files",)}, ())
        assert changes.config.old_vapid_keys is new.old_vapid_keys
        assert changes.config.settings == new.settings
    assert compare(other, load(WEB_PUSH__OLD_KEY_FILES="old.key"), ALL).swapped == {}


def test_an_identity_is_not_swapped(load: Load, directory: Path) -> None:
    old = load()
    identity_files.create_identity(directory, "ED25519", "localhost")
    changes = compare(old, load(), ALL)
    assert (changes.swapped, changes.needs_restart) == ({}, ("the server's identity",))
    assert changes.config.credentials is old.credentials


def test_a_master_key(load: Load, directory: Path) -> None:
    old = load()
    (directory / "new.key").write_text(generate_key_text())
    new = load(STORE__MASTER_KEY_FILE="new.key")
    changes = compare(old, new, ALL)
    named = ("[store] master_key_file", "the master key")
    assert (changes.swapped, changes.needs_restart) == ({Part.MASTER_KEY: named}, ())
    assert changes.config.master_key is new.master_key
    assert changes.config.settings.store.master_key_file == "new.key"


def test_networks_that_names_lead_to(load: Load) -> None:
    changes = compare(load(), load(SUBSCRIBER__DENY_SERVERS="8.8.8.0/24"), ALL)
    assert changes.swapped == {Part.SUBSCRIBER: ("[subscriber] deny_servers",)}
    assert changes.needs_restart == ("the networks of [subscriber] deny_servers, where names lead to them",)


def test_a_client_certificate(load: Load, directory: Path) -> None:
    client_certificate(directory)
    files_ = {"APNS__CERTIFICATE_FILE": "push.pem", "APNS__CERTIFICATE_KEY_FILE": "push.key"}
    with_key, first = load(), load(APNS__KEY_FILE="", **files_)
    client_certificate(directory)
    second = load(APNS__KEY_FILE="", **files_)
    assert compare(first, second, ALL).swapped == {Part.APNS: ("[apns] certificate_file",)}
    assert compare(first, second, ALL).config.client_certificate == second.client_certificate
    instead = compare(with_key, first, ALL)
    assert instead.swapped == {}
    assert set(instead.needs_restart) == {"[apns] key_file", "[apns] certificate_file", "[apns] certificate_key_file"}
    assert instead.config.apns_key is with_key.apns_key


def test_the_tls_files_of_a_redis(load: Load, directory: Path) -> None:
    client_certificate(directory)
    url = {"STORE__URL": "rediss://a?cert_file=push.pem&key_file=push.key"}
    old = load(**url)
    client_certificate(directory, name="renewed")
    new = load(**url)
    changes = compare(old, new, ALL)
    assert (changes.swapped, changes.needs_restart) == ({Part.STORE: ("the TLS files of [store] url",)}, ())
    assert changes.config.store_files == new.store_files != old.store_files
    changes = compare(old, load(STORE__URL="rediss://a?cert_file=push.pem"), ALL)  # its files are used after a restart
    assert (changes.swapped, changes.needs_restart) == ({}, ("[store] url",))


def test_a_provider_that_is_turned_off_or_on(load: Load) -> None:
    both, without = load(), load(WEB_PUSH__KEY_FILE="", FCM__SERVICE_ACCOUNT_FILE="")
    for old, new in ((both, without), (without, both)):
        changes = compare(old, new, ALL)
        assert changes.swapped == {}
        assert changes.needs_restart == ("[fcm] service_account_file", "[web_push] key_file")
        assert changes.config.settings == old.settings
        assert changes.config.vapid_key is old.vapid_key


# --- the reloader


def taken_by(given: list[Config]) -> Swap:
    return lambda config: partial(given.append, config)


async def test_parts_are_given_what_is_in_force(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    old, new = load(), load(APNS__KEY_ID="ABC123DEF2", TRANSPORT__PORT="5443")
    given: list[Config] = []
    take = taken_by(given)
    reloader = Reloader(old, {Part.APNS: take, Part.LOG: take}, lambda _: new)
    report = await reloader.reload()
    assert report == Report(("[apns] key_id",), ("[transport] port",))
    assert caplog.messages == ["reload: in use now: [apns] key_id; restart to use it: [transport] port"]
    [config] = given
    assert config is reloader.config
    assert (config.settings.apns.key_id, config.settings.transport.port) == ("ABC123DEF2", 443)
    assert await reloader.reload() == Report((), ("[transport] port",))  # the rest still waits for it
    assert len(given) == 1


async def test_nothing_differs(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert await Reloader(load(), {}, lambda c: c).reload() == Report()
    assert caplog.messages == ["reload: nothing differs"]


async def test_a_bad_configuration_changes_nothing(
    load: Load, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given: list[Config] = []
    reloader = Reloader(old := load(), dict.fromkeys(Part, taken_by(given)))
    (directory / "vapid.key").write_bytes(key_pem(generate_key()))
    (directory / "apns.p8").write_bytes(b"SECRET")
    report = await reloader.reload()
    assert "[apns] key_file: " in report.error
    assert report.error.endswith("; give the .p8 file from Apple")
    assert (given, reloader.config) == ([], old)
    [line] = caplog.messages
    assert line == f"reload: not changed: {report.error}"
    assert "SECRET" not in line


async def test_a_part_that_refuses_has_all_others_stay_as_they_are(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Config) -> Commit:
        raise StoreConflictError("no such thing; mend it")

    given: list[Config] = []
    take = taken_by(given)
    old, new = load(), load(APNS__KEY_ID="ABC123DEF2", LOG__LEVEL="debug", WEB_PUSH__CONTACT="mailto:x@relay.example")
    reloader = Reloader(old, {Part.APNS: take, Part.LOG: refuse, Part.WEB_PUSH: take}, lambda _: new)
    report = await reloader.reload()
    line = f"{old.directory}/ntf-server.toml: [log] level: no such thing; mend it"
    assert report == Report(error=line)
    assert given == []
    assert reloader.config is old
    assert [(r.getMessage(), r.exc_info) for r in caplog.records] == [(f"reload: not changed: {line}", None)]


async def test_reloads_take_turns_and_do_not_hold_up_the_loop(load: Load) -> None:
    config, running, most = load(), 0, 0
    release = threading.Event()

    def slow(_: Config) -> Config:
        nonlocal running, most
        running += 1
        most = max(most, running)
        release.wait(10)
        running -= 1
        return config

    reloader = Reloader(config, {}, slow)
    reloads = [asyncio.create_task(reloader.reload()) for _ in range(3)]
    async with asyncio.timeout(10):
        while not running:
            await asyncio.sleep(0.01)
    release.set()
    assert await asyncio.gather(*reloads) == [Report()] * 3
    assert most == 1


async def test_what_is_not_expected_is_no_report(load: Load) -> None:
    def fail(_: Config) -> Config:
        raise ConfigError("one line")

    assert await Reloader(load(), {}, fail).reload() == Report(error="one line")
