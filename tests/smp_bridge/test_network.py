from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge.network import HostNotAllowedError, is_public_host, is_public_ip, resolve

PRIVATE_V4 = [
    "0.0.0.0",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.2.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
PRIVATE_V6 = [
    "::",
    "::1",
    "::7f00:1",  # IPv4-compatible
    "::ffff:0:7f00:1",  # IPv4-translated
    "64:ff9b:1::a00:1",  # local NAT64
    "100::1",
    "2001::1",  # Teredo
    "2001:db8::1",
    "4000::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.167.0.1"]
PUBLIC_V6 = ["2606:4700:4700::1111", "2001:4860:4860::8888", "2a00::1"]
EMBEDDINGS = {
    "mapped": "::ffff:{}".format,
    "nat64": "64:ff9b::{}".format,
    "6to4": lambda ip: str(IPv6Address(0x2002 << 112 | int(IPv4Address(ip)) << 80)),
}
NOT_PUBLIC_NAMES = [
    "",
    ".",
    "localhost",
    "LocalHost",
    "localhost.",
    "a.localhost",
    "printer.local",
    "db.internal",
    "router.home.arpa",
    "localhost.localdomain",
    "intranet",
    "127.1",
    "127.0.1",
    "10.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0X7F.0.0.1",
    "0177.0.0.1",
    "127.0.0.1.",
    "0",
]
PUBLIC_NAMES = [
    "example.org",
    "EXAMPLE.org.",
    "smp8.simplex.im",
    "3.example.org",
    "0x7f.example.org",
    "xlocalhost.org",
    "localhost.example.org",
    "a" * 56 + ".onion",
]


@pytest.mark.parametrize("ip", PRIVATE_V4 + PRIVATE_V6)
def test_not_public(ip):
    assert not is_public_ip(ip)
    assert not is_public_host(ip)


@pytest.mark.parametrize("ip", PUBLIC + PUBLIC_V6)
def test_public(ip):
    assert is_public_ip(ip)
    assert is_public_host(ip)


@pytest.mark.parametrize("embed", EMBEDDINGS.values(), ids=EMBEDDINGS)
@pytest.mark.parametrize(("ip", "public"), [(ip, False) for ip in PRIVATE_V4] + [(ip, True) for ip in PUBLIC])
def test_embedded(embed, ip, public):
    assert is_public_ip(embed(ip)) == public
    assert is_public_host(embed(ip)) == public


@pytest.mark.parametrize("address", ["::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::"])
def test_embedded_by_hand(address):
    assert not is_public_ip(address)


@pytest.mark.parametrize("name", NOT_PUBLIC_NAMES)
def test_names_that_are_not_public(name):
    assert not is_public_host(name)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_names_that_may_be_public(name):
    assert is_public_host(name)


@given(st.text(max_size=40))
def test_any_text(host):
    assert is_public_host(host) in (True, False)


async def test_resolve_localhost():
    addresses = await resolve("localhost", 80, allow_private=True)
    assert set(addresses) & {"127.0.0.1", "::1"}
    assert len(set(addresses)) == len(addresses)
    with pytest.raises(HostNotAllowedError):
        await resolve("localhost", 80, allow_private=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.1", "0x7f.1", "2130706433", "::ffff:127.0.0.1"])
async def test_resolve_loopback(host):
    with pytest.raises(HostNotAllowedError):
        await resolve(host, 80, allow_private=False)


async def test_resolve_numbers():
    assert await resolve("127.0.0.1", 80, allow_private=True) == ["127.0.0.1"]
    assert await resolve("8.8.8.8", 80, allow_private=False) == ["8.8.8.8"]


@pytest.mark.parametrize("host", ["a..b", ".a", "x" * 64 + ".org", "nothing.invalid", "%41.invalid"])
async def test_resolve_nothing(host):
    with pytest.raises(OSError) as raised:
        await resolve(host, 80, allow_private=True)
    assert not isinstance(raised.value, HostNotAllowedError)
