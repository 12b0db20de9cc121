"""Who may look at the live page."""

import base64
import hashlib
from pathlib import Path

import pytest
from multidict import CIMultiDict

from ntf_server.admin.page.access import HEADERS, refusal
from ntf_server.config.page import Page

TOKEN = "nVQ2u6mPqTz0m8pSxg6uWQ=="
OPEN = Page("127.0.0.1", 9090, None, None, frozenset(["relay.example.org", "2001:db8::1"]))
CLOSED = Page(None, 9090, None, hashlib.sha256(TOKEN.encode()).digest(), frozenset())


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def status(page: Page, **headers: str) -> int | None:
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    refused = refusal(page, named)
    return None if refused is None else int(refused.status)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:9090",
        "127.0.0.1",
        "localhost:8080",  # the near end of a tunnel
        "LOCALHOST.",
        "[::1]:9090",
        "[::1]",
        "127.8.9.10:1",
        "relay.example.org",
        "Relay.Example.ORG:443",
        "[2001:db8::1]:443",
    ],
)
def test_names_of_this_machine(host: str) -> None:
    assert status(OPEN, host=host) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "attacker.example:9090",  # whose address is 127.0.0.1 by now
        "localhost.attacker.example",
        "127.0.0.1.attacker.example",
        "relay.example.org.attacker.example",
        "192.0.2.7:9090",
        "[2001:db8::2]",
        "127.0.0.1@attacker.example",
        "[::1",
    ],
)
def test_names_that_a_stranger_may_lead_here(host: str) -> None:
    assert status(OPEN, host=host) == 421


def test_an_address_that_is_bound_may_be_asked_by_it() -> None:
    page = Page("127.0.0.2", 9090, None, None, frozenset())
    assert status(page, host="127.0.0.2:9090") is None


def test_a_socket_is_asked_by_any_name() -> None:
    page = Page("127.0.0.1", 0, Path("/run/page.sock"), None, frozenset())
    assert status(page, host="whatever.example.org") is None


@pytest.mark.parametrize(
    "authorization",
    [basic("", TOKEN), basic("operator", TOKEN), f"Bearer {TOKEN}", f"bearer  {TOKEN} ", basic("a", TOKEN).upper()[:5]
     + basic("a", TOKEN)[5:]],
)  # fmt: skip
def test_the_token(authorization: str) -> None:
    assert status(CLOSED, host="any.example.org", authorization=authorization) is None


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic !!!",
        f"Basic {TOKEN}",
        basic(TOKEN, ""),
        basic("operator", TOKEN[:-1]),
        basic("operator", TOKEN + "x"),
        f"Digest {TOKEN}",
        f"{TOKEN}",
        "Bearer ",
        "Bearer \udcff",
    ],
)
def test_no_token(authorization: str) -> None:
    assert status(CLOSED, host="localhost", authorization=authorization) == 401


def test_who_has_no_token_is_asked_for_it_and_told_nothing() -> None:
    refused = refusal(CLOSED, {"Authorization": f"Bearer {TOKEN}x"})
    assert refused is not None
    assert refused.headers["WWW-Authenticate"].startswith('Basic realm="ntf-relay"')
    assert TOKEN not in str(refused)


@pytest.mark.parametrize(
    ("site", "mode", "expected"),
    [
        ("same-origin", "cors", None),
        ("none", "navigate", None),
        ("cross-site", "navigate", None),  # a link: what it leads to cannot be framed, nor read
        ("cross-site", "no-cors", 403),
        ("cross-site", "cors", 403),
        ("same-site", "cors", 403),
    ],
)
def test_what_other_sites_have_a_browser_ask(site: str, mode: str, expected: int | None) -> None:
    assert status(OPEN, host="localhost", sec_fetch_site=site, sec_fetch_mode=mode) == expected


def test_what_a_browser_may_do_with_it() -> None:
    policy = HEADERS["Content-Security-Policy"].split("; ")
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert (HEADERS["Referrer-Policy"], HEADERS["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
