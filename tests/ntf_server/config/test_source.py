"""Settings out of the file and of variables; what is wrong in them, all at once, and what was meant."""

from pathlib import Path

import pytest

from ntf_server.config.mistakes import ConfigError
from ntf_server.config.settings import Settings
from ntf_server.config.source import CONFIG_FILE, load_settings, read_settings


def mistakes(folder: Path, text: str, **environ: str) -> list[str]:
    """Without the name of the file."""
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(ConfigError) as e:
        load_settings(folder, {f"NTF_SERVER__{key}": value for key, value in environ.items()})
    return [line.removeprefix(f"{folder / CONFIG_FILE}: ") for line in e.value.mistakes]


def test_every_mistake_at_once(tmp_path: Path) -> None:
    text = """
        [transport]
        port = 70000
        hots = "a"
        [log]
        level = "warn"
        [apns.test]
        port = 0
        [subscribe]
        host_mode = "onion"
    """
    assert mistakes(tmp_path, text, DELIVERY__TIMEOUT="soon", X="1") == [
        "NTF_SERVER__X: names no setting; give NTF_SERVER__SECTION__KEY, as in NTF_SERVER__TRANSPORT__PORT",
        "[transport] port: is 70000; give a whole number from 0 to 65535",
        "[transport] hots: unknown key; did you mean host?",
        "[log] level: unknown value 'warn'; did you mean warning? give one of debug, info, warning, error",
        "[apns.test] port: is 0; give a whole number from 1 to 65535",
        "[apns.test] host: is missing; set it",
        "subscribe: unknown section; did you mean subscriber?",
        "NTF_SERVER__DELIVERY__TIMEOUT: [delivery] timeout: is text; give a number from 0.001 to 86400",
    ]


def test_what_is_right_is_there_nevertheless(tmp_path: Path) -> None:
    text = "[transport]\nport = 5443\nhots = 'a'\n[apns.test]\nport = 1\n[log]\nlevel = 1\n"
    (tmp_path / CONFIG_FILE).write_text(text)
    settings, found = read_settings(tmp_path, {})
    assert found
    assert settings.transport.port == 5443
    assert settings.apns.test is None  # it has no host
    assert settings.log == Settings().log


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[transport]\nsocks_proxy = 'a'\n", "[transport] socks_proxy: is no key here; put it under [subscriber]"),
        ("socket = 'a'\n", "socket: is no key here; put it under [admin]"),
        (
            "[web_push]\ntopics = 'a'\n",
            "[web_push] topics: unknown key; remove it, or give one of key_file,",
        ),
        ("[log.level]\na = 1\n", "[log] level: is a section; give one of debug, info, warning, error"),
        ("[log]\nlevel = []\n", "[log] level: is an array; give one of"),
        ("[admin.sub]\na = 1\n", "[admin] sub: unknown section; remove it"),
        ("[delivery]\nin_flight = 2026-01-01\n", "[delivery] in_flight: is a date or a time; give a whole number"),
        ("[fcm]\nin_flight = 0\n", "[fcm] in_flight: is 0; give a whole number from 1 to 100000"),
        ("[apns]\nproduction = 'a'\n", "[apns] production: is text; give it as a section, [apns.production]"),
        ('[transport]\n"a\\nb" = 1\n', "[transport] a\\nb: unknown key; remove it, or give one of host, port, bind,"),
    ],
)
def test_what_was_meant(tmp_path: Path, text: str, line: str) -> None:
    [found] = mistakes(tmp_path, text)
    assert found.startswith(line)
    assert found.isprintable()


@pytest.mark.parametrize("text", ["[store]\nmaster_key = 7\n", "[store]\nwait_aof = 'hunter2'\n"])
def test_no_value_is_told_that_may_be_a_secret(tmp_path: Path, text: str) -> None:
    assert not any(value in mistakes(tmp_path, text)[0] for value in ("hunter2", "7;"))


def test_a_variable_is_named_as_what_is_wrong(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "[transport]\nport = 1\n", TRANSPORT__PORT="x", TRANSPROT__HOST="a", LOG__LEVLE="info")
    assert found == [
        "NTF_SERVER__TRANSPORT__PORT: [transport] port: is text; give a whole number from 0 to 65535",
        "NTF_SERVER__LOG__LEVLE: [log] levle: unknown key; did you mean level?",
        "NTF_SERVER__TRANSPROT__HOST: transprot: unknown section; did you mean transport?",
    ]


def test_the_hosts_of_apple_have_their_names_without_being_named(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("[apns.production]\nport = 2197\n[apns.sandbox]\nca_file = 'a.pem'\n")
    apns = load_settings(tmp_path, {}).apns
    assert (apns.production.host, apns.production.port) == ("api.push.apple.com", 2197)
    assert (apns.sandbox.host, apns.sandbox.ca_file) == ("api.sandbox.push.apple.com", "a.pem")


def test_no_file_in_a_folder_with_another_program_s_identity(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not found; run `ntf-server init --path .*`, or give --path$"):
        load_settings(tmp_path, {})
    (tmp_path / "ca.crt").touch()
    with pytest.raises(ConfigError, match=r"the identity of another program is there: .* and copy ca\.crt"):
        load_settings(tmp_path, {})
