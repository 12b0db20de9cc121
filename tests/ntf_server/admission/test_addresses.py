"""Whose budget an address is charged to."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.admission.addresses import SITE_SHARE, keys, network, share, text


@pytest.mark.parametrize(
    ("host", "texts"),
    [
        ("192.0.2.7", ["192.0.2.7"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("::ffff:192.0.2.7", ["192.0.2.7"]),
        ("2001:db8:1:2:3:4:5:6", ["2001:db8:1:2::/64", "2001:db8:1::/48"]),
        ("::1", ["::/64", "::/48"]),
        ("fe80::1%eth0", ["fe80::/64", "fe80::/48"]),
        ("", []),
        ("/run/a.sock", []),
    ],
)
def test_what_an_address_is_charged_to(host: str, texts: list[str]) -> None:
    assert [text(key) for key in keys(host)] == texts


@given(st.ip_addresses(v=6), st.ip_addresses(v=6))
def test_a_customer_of_ipv6_cannot_choose_whom_to_be(one: ipaddress.IPv6Address, other: ipaddress.IPv6Address) -> None:
    neighbour = ipaddress.IPv6Address(one.packed[:8] + other.packed[8:])
    site = ipaddress.IPv6Address(one.packed[:6] + other.packed[6:])
    assert one.ipv4_mapped or neighbour.ipv4_mapped or keys(str(one)) == keys(str(neighbour))
    assert one.ipv4_mapped or site.ipv4_mapped or keys(str(one))[1] == keys(str(site))[1]


def test_a_site_has_a_larger_budget() -> None:
    assert [share(key) for key in keys("2001:db8::1")] == [1, SITE_SHARE]
    assert [share(key) for key in keys("192.0.2.7")] == [1]


def test_shared_networks_have_no_budget_by_address() -> None:
    shared = [ipaddress.ip_network("172.17.0.0/16"), ipaddress.ip_network("2001:db8::/32")]
    assert keys("172.17.0.1", shared) == keys("::ffff:172.17.0.1", shared) == keys("2001:db8::1", shared) == ()
    assert keys("172.18.0.1", shared) != ()


def test_a_network_is_larger_than_what_is_charged() -> None:
    [near, far] = [network(keys(host)[-1]) for host in ("192.0.2.7", "192.1.2.7")]
    assert near == network(keys("192.0.99.1")[-1]) != far
    assert network(keys("2001:db8:1::1")[-1]) == network(keys("2001:db8:2::1")[-1]) != network(keys("2001:db9::1")[-1])
