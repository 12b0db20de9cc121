"""Where the live page is shown, and to whom."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from ntf_server.config.mistakes import ConfigError
from ntf_server.config.page import Page, is_loopback, parse_page
from ntf_server.config.settings import Admin

TOKEN = "nVQ2u6mPqTz0m8pSxg6uWQ=="


def parse(tmp_path: Path, **admin: Any) -> Page | None:
    return parse_page(tmp_path, Admin(**admin))


def test_it_is_off() -> None:
    assert parse(Path("/nowhere")) is None
    assert parse(Path("/nowhere"), token_file="not-read", bind="0.0.0.0", hosts=("a b",)) is None


def test_loopback_needs_no_token(tmp_path: Path) -> None:
    assert parse(tmp_path, port=9090) == Page("127.0.0.1", 9090, None, None, frozenset())
    for bind, url in (
        ("127.0.0.1", "http://127.0.0.1:9090/"),
        ("::1", "http://[::1]:9090/"),
        ("localhost", "http://localhost:9090/"),
    ):
        page = parse(tmp_path, port=9090, bind=bind)
        assert page is not None and (page.url, page.setting) == (url, "bind, port")


def test_a_socket(tmp_path: Path) -> None:
    page = parse(tmp_path, page_socket="page.sock")
    assert page is not None
    assert (page.socket, page.url, page.setting) == (tmp_path / "page.sock", f"{tmp_path}/page.sock", "page_socket")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "LocalHost"])
def test_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.1", "relay.example.org", "localhost.example.org"])
def test_other_machines_too(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("text", [TOKEN, f"{TOKEN}\n", f"\n  {TOKEN}  \n"])
def test_a_token(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.token").write_text(text)
    page = parse(tmp_path, port=9090, bind="0.0.0.0", token_file="page.token", hosts=("Relay.Example.org", "[::1]"))
    assert page is not None
    assert page.token == hashlib.sha256(TOKEN.encode()).digest()
    assert page.hosts == {"relay.example.org", "::1"}
    assert TOKEN not in repr(page) and repr(page.token) not in repr(page)


@pytest.mark.parametrize(
    ("admin", "where", "cure"),
    [
        ({"bind": "0.0.0.0"}, "[admin] token_file: is missing, and 0.0.0.0 is open to other machines", "openssl rand"),
        (
            {"bind": ""},
            "[admin] token_file: is missing, and an empty bind is open",
            "and set token_file to it, or bind to 127.0.0.1",
        ),
        ({"token_file": "none"}, "[admin] token_file: {}/none: No such file or directory", "make one: `umask 077; "),
        ({"token_file": "short"}, "[admin] token_file: {}/short: is no token of 20 characters or more", "openssl rand"),
        ({"token_file": "spaced"}, "[admin] token_file: {}/spaced: is no token", "openssl rand"),
        ({"token_file": "long"}, "[admin] token_file: {}/long: is no token", "openssl rand"),
        ({"token_file": "empty"}, "[admin] token_file: {}/empty: is no token", "openssl rand"),
        ({"token_file": "."}, "[admin] token_file: {}: Is a directory", "openssl rand"),
        ({"hosts": ("a b",)}, "[admin] hosts: bad host name", "give host names or IP addresses, without ports"),
        ({"hosts": ("a:80",)}, "[admin] hosts: bad IPv6 address", "without ports"),
        ({"page_socket": "p.sock"}, "[admin] page_socket: goes without port", "remove one of them"),
        ({"port": 0, "page_socket": "s", "socket": "s"}, "[admin] page_socket: is [admin] socket", "give another path"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, admin: dict[str, Any], where: str, cure: str) -> None:
    secret = "correct horse battery staple"
    for name, text in (("short", "x" * 19), ("spaced", secret), ("long", "x" * 2000), ("empty", "")):
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as e:
        parse(tmp_path, **{"port": 9090, **admin})
    [line] = e.value.mistakes
    assert line.startswith(f"{tmp_path}/ntf-server.toml: {where.format(tmp_path)}"), line
    assert cure in line and "\n" not in line and secret not in line
