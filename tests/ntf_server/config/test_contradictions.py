"""Settings that do not go together, each by its key and with its cure."""

from pathlib import Path
from typing import Any

import pytest

from ntf_server.config import settings as sections
from ntf_server.config.contradictions import apns_hosts, contradictions
from ntf_server.config.settings import Settings

FILE = Path("ntf-server.toml")
KEY = {"key_file": "AuthKey_ABC123DEFG.p8", "key_id": "ABC123DEFG", "team_id": "5NN7GUYB6T"}


def found(*, web_push: bool = False, **values: Any) -> list[str]:
    return [line for _, line in contradictions(FILE, Settings(**values), web_push=web_push)]


def apns(**values: str) -> list[str]:
    return found(apns=sections.Apns(**(KEY | values)))


def test_what_goes_together() -> None:
    assert found() == []
    assert apns() == []
    assert apns(key_file="keys/push.p8", key_id="OTHER12345") == []  # a name that says nothing
    assert found(subscriber=sections.Subscriber(host_mode="onion", socks_mode="always", socks_proxy="tor:9050")) == []
    assert found(web_push=True, **{"delivery": sections.Delivery()}) != []  # no contact


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"key_id": ""}, "key_id: goes with key_file; set it to the one that Apple shows"),
        ({"team_id": ""}, "team_id: goes with key_file; set it"),
        (
            {"key_id": "ABC"},
            "key_id: is not 10 capital letters and digits; set it to the one that Apple shows, which",
        ),
        ({"key_id": "abc123defg"}, "key_id: is not 10 capital letters and digits"),
        ({"team_id": "5NN7GUYB6T "}, "team_id: is not 10 capital letters and digits; set it"),
        ({"key_id": KEY["team_id"]}, "key_id: is not ABC123DEFG, which key_file is named after; set it to that"),
        ({"topic": ""}, "topic: is no bundle id; set it"),
        ({"topic": "a b"}, "topic: is no bundle id; set it"),
        ({"certificate_file": "push.pem"}, "certificate_file: goes without key_file; remove one of them"),
    ],
)
def test_apple(values: dict[str, str], what: str) -> None:
    [line] = apns(**values)
    assert line.startswith(f"{FILE}: [apns] {what}")


def test_all_of_a_section() -> None:
    assert len(apns(key_id="", team_id="", topic="a b", proxy="nowhere")) == 4


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("", True),
        ("http://proxy:3128", True),
        ("https://u:p@proxy:3128", True),
        ("socks5h://[::1]:1080", True),
        ("http://proxy", False),
        ("http://:3128", False),
        ("http://proxy:0", False),
        ("http://proxy:70000", False),
        ("socks4://proxy:1080", False),
        ("proxy:3128", False),
        ("http://[::1:3128", False),
        ("http://a b:1", False),
    ],
)
def test_a_proxy(url: str, is_one: bool) -> None:
    lines = found(fcm=sections.Fcm(proxy=url))
    assert lines == [] if is_one else "[fcm] proxy: is no proxy's URL with a port; give" in lines[0]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"host_mode": "onion"}, "host_mode: onion needs socks_proxy; set it, as in localhost:9050"),
        ({"host_mode": "onion", "required_host_mode": True}, "host_mode: onion needs socks_proxy; set it"),
        ({"socks_mode": "always"}, "socks_mode: always needs socks_proxy; set it"),
        ({"own_server_domains": ("a,b",)}, "own_server_domains: 'a,b' is none; give domains"),
    ],
)
def test_how_smp_servers_are_reached(values: dict[str, Any], key: str) -> None:
    [line] = found(subscriber=sections.Subscriber(**values))
    assert line.startswith(f"{FILE}: [subscriber] {key}")


def test_the_section_is_told_apart() -> None:
    test = sections.ApnsHost(host="a/b")
    settings = Settings(apns=sections.Apns(test=test), transport=sections.Transport(name_servers=("dns",)))
    assert [section for section, _ in contradictions(FILE, settings, web_push=False)] == ["transport", "apns"]
    assert apns_hosts(settings) == {"test": test}


def test_names_that_are_resolved_by_no_address() -> None:
    transport = sections.Transport(name_servers=("10.0.0.1", "10.0.0.1:53", "::1", "[::1]:53", "dns", "[::1:53"))
    assert len(found(transport=transport)) == 2
