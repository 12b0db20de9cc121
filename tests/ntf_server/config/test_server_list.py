"""Which SMP servers may be subscribed on."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.config.server_list import ANY_SERVER, ServerList, parse_pattern
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import ParseError


def servers(allow: str = "", deny: str = "") -> ServerList:
    return ServerList(tuple(map(parse_pattern, allow.split())), tuple(map(parse_pattern, deny.split())))


def permits(listed: ServerList, *hosts: str) -> bool:
    return listed.permits(ServerAddress("smp", hosts, "", bytes(32)))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("smp.example.org", "smp.example.org"),
        ("Example.ORG.", "example.org"),
        (".example.org", "example.org"),
        ("*.example.org", "example.org"),
        ("onion", "onion"),
        ("8.8.8.8", ip_network("8.8.8.8/32")),
        ("203.0.113.0/24", ip_network("203.0.113.0/24")),
        ("2a00::/16", ip_network("2a00::/16")),
        ("::1", ip_network("::1/128")),
        ("[::1]", ip_network("::1/128")),
    ],
)
def test_patterns(text: str, pattern: object) -> None:
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "*",
        "**.org",
        "a..org",
        "a b",
        "a.org/24",
        "a.org:5223",
        "smp://x@a.org",
        "8.8.8.8/24",
        "8.8.8.300",
        "5",
        "127.0x1",  # an address, as resolvers take it: it would be held against names
        "0x7f.0.0.0X1",
    ],
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ParseError, match="is no host, domain or network"):
        parse_pattern(text)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text(text: str, host: str) -> None:
    try:
        pattern = parse_pattern(text)
    except ParseError:
        return
    assert permits(ServerList((), (pattern,)), host) != permits(ServerList((pattern,)), host)


HOSTS = ["a.org", "x.a.org", "A.ORG.", "b.org", "8.8.8.8", "::1", "127.1", "", "x" * 300, "a" * 56 + ".onion"]


@pytest.mark.parametrize("host", HOSTS)
def test_no_lists(host: str) -> None:
    assert permits(ANY_SERVER, host)
    assert permits(ServerList(), host)


MATCHES = [
    ("a.org", "a.org", True),
    ("a.org", "A.org.", True),
    ("a.org", "smp.a.org", True),
    ("a.org", "x.smp.a.org", True),
    ("a.org", "xa.org", False),
    ("a.org", "a.org.evil.net", False),
    ("a.org", "org", False),
    ("a.org", "8.8.8.8", False),
    ("smp.a.org", "a.org", False),
    ("onion", "a" * 56 + ".onion", True),
    ("8.8.8.8", "8.8.8.8", True),
    ("8.8.8.8", "8.8.8.8.", True),
    ("8.8.8.8", "8.8.8.9", False),
    ("8.8.8.0/24", "8.8.8.255", True),
    ("8.8.8.0/24", "8.8.9.0", False),
    ("8.8.8.0/24", "::ffff:8.8.8.8", True),
    ("8.8.8.0/24", "64:ff9b::808:808", True),
    ("8.8.8.0/24", "2002:808:808::", True),
    ("8.8.8.0/24", "134744072", True),  # the same in inet_aton's words
    ("8.8.8.0/24", "8.8.2056", True),
    ("8.8.8.0/24", "0x8.010.8.8", True),
    ("8.8.8.0/24", "8.8.8.8.a.org", False),
    ("2a00::/16", "2a00:1::1", True),
    ("2a00::/16", "2A00:1:0::1", True),
    ("2a00::/16", "2a01::1", False),
    ("0.0.0.0/0", "a.org", False),
]


@pytest.mark.parametrize(("pattern", "host", "matches"), MATCHES)
def test_matching(*, pattern: str, host: str, matches: bool) -> None:
    assert permits(servers(deny=pattern), host) != matches
    assert permits(servers(allow=pattern), host) == matches


def test_deny_wins() -> None:
    listed = servers("a.org 8.8.8.0/24", "bad.a.org 8.8.8.8")
    assert permits(listed, "smp.a.org")
    assert permits(listed, "8.8.8.9")
    assert not permits(listed, "bad.a.org")
    assert not permits(listed, "x.bad.a.org")
    assert not permits(listed, "8.8.8.8")
    assert not permits(servers("a.org", "a.org"), "a.org")
    assert not permits(servers("bad.a.org", "a.org"), "bad.a.org")


def test_every_host_has_to_pass() -> None:
    assert permits(servers("a.org b.org"), "a.org", "b.org")
    assert not permits(servers("a.org"), "a.org", "b.org")
    assert not permits(servers("a.org"), "b.org", "a.org")
    assert not permits(servers(deny="b.org"), "a.org", "b.org")


def test_denied_networks() -> None:
    listed = servers("9.9.9.9", "a.org 8.8.8.0/24 ::1")
    assert listed.denied_networks == (ip_network("8.8.8.0/24"), ip_network("::1"))


ONION = "beccx4yfxxbvyhqypaavemqurytl6hozr47wfc7uuecacjqdvwpw2xid.onion"


def test_a_preset_server_is_allowed_by_one_of_its_hosts_and_denied_by_either() -> None:
    spellings = [("smp8.simplex.im",), ("SMP8.simplex.im.", ONION), (ONION, "smp8.simplex.im"), (ONION,)]
    for hosts in spellings:
        assert permits(servers("smp8.simplex.im"), *hosts)
        assert permits(servers("onion"), *hosts)
        assert not permits(servers("smp9.simplex.im"), *hosts)
        assert not permits(servers("smp8.simplex.im", "onion"), *hosts)
        assert not permits(servers("", "simplex.im"), *hosts)
    assert not permits(servers("smp8.simplex.im"), "smp8.simplex.im", "b.org")
