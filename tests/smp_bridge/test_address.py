import pytest
import wire_strategies as ws
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge.address import ServerAddress
from smp_bridge.encoding import ParseError, Reader, b64url

HASH = bytes(range(32))
HASH_TEXT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def parse(data, scheme="smp"):
    r = Reader(data)
    address = ServerAddress.parse(r, scheme)
    r.end()
    return address


@given(ws.addresses("smp", "ntf"))
def test_text(address):
    assert ServerAddress.from_text(str(address)) == address


@given(ws.addresses("smp", "ntf"), st.text(st.characters(exclude_characters="@", codec="ascii", min_codepoint=33)))
def test_password(address, password):
    text = str(address).replace("@", f":{password}@")
    parsed = ServerAddress.from_text(text)
    assert parsed.password == password
    assert str(parsed) == str(address)
    assert parse(parsed.encode(), address.scheme) == address


def test_password_in_repr():
    assert "hunter2" not in repr(ServerAddress("smp", ("a.org",), "", HASH, "hunter2"))


@given(ws.addresses("smp", "ntf"))
def test_binary(address):
    assert parse(address.encode(), address.scheme) == address


def test_known_bytes():
    address = ServerAddress("smp", ("smp.example.org", "abc.onion"), "5224", HASH)
    assert address.encode() == b"\x02\x0fsmp.example.org\x09abc.onion\x045224\x20" + HASH
    assert str(address) == f"smp://{HASH_TEXT}@smp.example.org,abc.onion:5224"


@pytest.mark.parametrize(
    ("rest", "hosts", "port", "number"),
    [
        ("a.org", ("a.org",), "", 5223),
        ("a.org:443", ("a.org",), "443", 443),
        ("10.0.0.1,a.org:1", ("10.0.0.1", "a.org"), "1", 1),
        ("[::1]", ("::1",), "", 5223),
        ("[::1]:65535", ("::1",), "65535", 65535),
        ("::1", ("::1",), "", 5223),
        ("2001:DB8:0::1,b.onion", ("2001:db8::1", "b.onion"), "", 5223),
        ("[::1],[::2]:7", ("::1", "::2"), "7", 7),
        ("localhost", ("localhost",), "", 5223),
    ],
)
def test_texts(rest, hosts, port, number):
    address = ServerAddress.from_text(f"smp://{HASH_TEXT}@{rest}")
    assert (address.hosts, address.port, address.port_number, address.key_hash) == (hosts, port, number, HASH)
    assert address == ServerAddress.from_text(f"smp://{HASH_TEXT.rstrip('=')}@{rest}")


def test_default_port_of_ntf():
    assert ServerAddress.from_text(f"ntf://{HASH_TEXT}@a.org").port_number == 443


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.org",
        f"https://{HASH_TEXT}@a.org",
        f"smp://{HASH_TEXT}",
        f"smp://{HASH_TEXT}@",
        f"smp://{HASH_TEXT}@a.org,",
        f"smp://{HASH_TEXT}@,a.org",
        f"smp://{HASH_TEXT}@a.org:0",
        f"smp://{HASH_TEXT}@a.org:65536",
        f"smp://{HASH_TEXT}@a.org:٣",
        f"smp://{HASH_TEXT}@a.org:+1",
        f"smp://{HASH_TEXT}@a.org:1,b.org",
        f"smp://{HASH_TEXT}@a b",
        f"smp://{HASH_TEXT}@a.org/",
        f"smp://{HASH_TEXT}@a.org#",
        f"smp://{HASH_TEXT}@a.org\n",
        f"smp://{HASH_TEXT}@ä.org",
        f"smp://{HASH_TEXT}@a@b.org",
        f"smp://{HASH_TEXT}@[::1",
        f"smp://{HASH_TEXT}@[::1]1",
        f"smp://{HASH_TEXT}@[a.org]",
        f"smp://{HASH_TEXT}@[]",
        f"smp://{HASH_TEXT}@[::1]:443,a.org",
        f"smp://{HASH_TEXT}@1:2:3",
        f"smp://{HASH_TEXT}@fe80::1%eth0",
        f"smp://{HASH_TEXT}@[fe80::1%a;b c]",
        f"smp://{b64url(HASH[:31])}@a.org",
        f"smp://{b64url(HASH + b'.')}@a.org",
        "smp://====@a.org",
    ],
)
def test_bad_texts(text):
    with pytest.raises(ParseError):
        ServerAddress.from_text(text)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x20" + HASH,
        b"\x01\x00\x00\x20" + HASH,
        b"\x01\x05a.org\x00\x1f" + HASH[:31],
        b"\x01\x05a.org\x010\x20" + HASH,
        b"\x01\x02\xc3\xa4\x00\x20" + HASH,
        b"\x01\x05a.org\x02\xd9\xa3\x20" + HASH,
        b"\x01\x08fe80::1%\x00\x20" + HASH,
        b"\x01\x0c::1%a b;c@d\n\x00\x20" + HASH,
        b"\x01\x05a;org\x00\x20" + HASH,
        b"\x01\x05a org\x00\x20" + HASH,
        b"\x01\x05a\x00org\x00\x20" + HASH,
    ],
)
def test_bad_binaries(data):
    with pytest.raises(ParseError):
        parse(data)


@given(ws.broken(ws.smp_addresses.map(ServerAddress.encode)))
def test_any_bytes(data):
    try:
        address = parse(data)
    except ParseError:
        return
    assert parse(address.encode()) == address
    assert ServerAddress.from_text(str(address)) == address
    assert 0 < address.port_number < 65536


@given(st.text() | st.tuples(ws.addresses("smp", "ntf").map(str), st.integers(0, 90), st.text(max_size=4)))
def test_any_text(text):
    if isinstance(text, tuple):
        text, at, inserted = text
        text = text[:at] + inserted + text[at:]
    try:
        address = ServerAddress.from_text(text)
    except ParseError:
        return
    assert str(ServerAddress.from_text(str(address))) == str(address)
