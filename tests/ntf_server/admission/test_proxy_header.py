"""PROXY protocol, version 2."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.admission.proxy_header import HEAD, MAX_REST, SIGNATURE, ProxyHeaderError, client_address, rest_size

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def header(address: Address, more: bytes = b"") -> bytes:
    """As a balancer sends it."""
    family = 0x11 if address.version == 4 else 0x21
    rest = address.packed + bytes(len(address.packed)) + struct.pack("!HH", 40_000, 443) + more
    return SIGNATURE + struct.pack("!BBH", 0x21, family, len(rest)) + rest


@given(st.ip_addresses(), st.binary(max_size=200))
def test_the_address_of_the_client(address: Address, more: bytes) -> None:
    whole = header(address, more)
    head, rest = whole[:HEAD], whole[HEAD:]
    assert rest_size(head) == len(rest)
    assert client_address(head, rest) == str(address)


def test_a_proxy_that_speaks_for_itself() -> None:
    head = SIGNATURE + bytes([0x20, 0x00, 0, 0])
    assert rest_size(head) == 0
    assert client_address(head, b"") is None


@pytest.mark.parametrize(
    "head",
    [
        b"PROXY TCP4 1.2.3.4",
        b"\x16\x03\x01\x02\x00" + bytes(11),
        SIGNATURE + bytes([0x11, 0x11, 0, 12]),
        SIGNATURE + bytes([0x22, 0x11, 0, 12]),
        SIGNATURE + b"\x21\x11" + (MAX_REST + 1).to_bytes(2),
    ],
)
def test_what_is_no_header(head: bytes) -> None:
    with pytest.raises(ProxyHeaderError, match="no header"):
        rest_size(head[:HEAD])


@pytest.mark.parametrize(("family", "size"), [(0x00, 0), (0x11, 11), (0x12, 12), (0x21, 35), (0x31, 216)])
def test_a_header_without_an_address_of_tcp(family: int, size: int) -> None:
    head = SIGNATURE + bytes([0x21, family]) + size.to_bytes(2)
    with pytest.raises(ProxyHeaderError, match="no TCP address"):
        client_address(head, bytes(size))


@given(st.binary(min_size=HEAD, max_size=HEAD), st.binary(max_size=300))
def test_whatever_comes(head: bytes, rest: bytes) -> None:
    try:
        rest_size(head)
        client_address(head, rest)
    except ProxyHeaderError:
        pass
