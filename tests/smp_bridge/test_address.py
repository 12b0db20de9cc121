import pytest
import wire_strategies as ws
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge.address import ServerAddress, twin
from smp_bridge.encoding import ParseError, Reader, b64url

HASH = bytes(range(32))
HASH_TEXT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def parse(data, scheme="smp"):
    r = Reader(data)
    address = ServerAddress.parse(r, scheme)
    r.end()
    return address


def spelled(address):
    return address.scheme, address.hosts, address.port, address.key_hash


@given(ws.addresses("smp", "ntf"))
def test_text(address):
    assert spelled(ServerAddress.from_text(str(address))) == spelled(address)


@given(ws.addresses("smp", "ntf"), st.text(st.characters(exclude_characters="@", codec="ascii", min_codepoint=33)))
def test_password(address, password):
    text = str(address).replace("@", f":{password}@")
    parsed = ServerAddress.from_text(text)
    assert parsed.password == password
    assert str(parsed) == str(address)
    assert spelled(parse(parsed.encode(), address.scheme)) == spelled(address)


def test_password_in_repr():
    assert "hunter2" not in repr(ServerAddress("smp", ("a.org",), "", HASH, "hunter2"))


@given(ws.addresses("smp", "ntf"))
def test_binary(address):
    assert spelled(parse(address.encode(), address.scheme)) == spelled(address)


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
    assert spelled(address) == spelled(ServerAddress.from_text(f"smp://{HASH_TEXT.rstrip('=')}@{rest}"))


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
        f"smp://{HASH_TEXT}@.",
        f"smp://{HASH_TEXT}@a.org,..",
        f"smp://{HASH_TEXT}@{'a' * 256}",  # which the binary form could not hold
        f"smp://{HASH_TEXT}@{'a,' * 255}a",
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
        b"\x01\x01.\x00\x20" + HASH,
        b"\x01\x02..\x00\x20" + HASH,
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
    assert spelled(parse(address.encode())) == spelled(address)
    assert spelled(ServerAddress.from_text(str(address))) == spelled(address)
    assert address.plain == address
    assert parse(address.identity) == address
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


# --- one server, many spellings

PRESETS = {
    "smp4.simplex.im": "o5vmywmrnaxalvz6wi3zicyftgio6psuvyniis6gco6bp6ekl4cqj4id.onion",
    "smp5.simplex.im": "jjbyvoemxysm7qxap7m5d5m35jzv5qq6gnlv7s4rsn7tdwwmuqciwpid.onion",
    "smp6.simplex.im": "bylepyau3ty4czmn77q4fglvperknl4bi2eb2fdy2bh4jxtf32kf73yd.onion",
    "smp8.simplex.im": "beccx4yfxxbvyhqypaavemqurytl6hozr47wfc7uuecacjqdvwpw2xid.onion",
    "smp9.simplex.im": "jssqzccmrcws6bhmn77vgmhfjmhwlyr3u7puw4erkyoosywgl67slqqd.onion",
    "smp10.simplex.im": "rb2pbttocvnbrngnwziclp2f4ckjq65kebafws6g4hy22cdaiv5dwjqd.onion",
}


def named(rest, scheme="smp"):
    return ServerAddress.from_text(f"{scheme}://{HASH_TEXT}@{rest}")


@pytest.mark.parametrize(
    ("rest", "same"),
    [
        ("smp.example.org", "SMP.Example.ORG"),
        ("smp.example.org", "smp.example.org."),
        ("smp.example.org", "smp.example.org:5223"),
        ("smp.example.org:443", "smp.example.org:00443"),
        ("smp.example.org", "smp.example.org,smp.example.org"),
        ("smp.example.org", "smp.example.org,SMP.example.org.:05223"),
        ("a.org,b.org", "b.org,a.org"),
        ("a.org,b.onion", "b.ONION,a.org,b.onion."),
        ("2001:db8::1", "[2001:DB8:0:0::1]"),
        ("192.0.2.1", "[::ffff:192.0.2.1]"),
        *((host, f"{host},{onion}") for host, onion in PRESETS.items()),
        *((f"{onion},{host}", host.upper()) for host, onion in PRESETS.items()),
        *((onion, f"{host}:5223") for host, onion in PRESETS.items()),
    ],
)
def test_one_server(rest, same):
    one, other = named(rest), named(same)
    assert one == other
    assert hash(one) == hash(other)
    assert one.identity == other.identity
    assert set(one.reachable) == set(other.reachable)


@pytest.mark.parametrize(
    ("rest", "another"),
    [
        ("a.org", "b.org"),
        ("a.org", "a.org,b.org"),
        ("a.org", "a.org:5224"),
        ("a.org", "a.org:443"),
        ("a.org", "www.a.org"),
        ("2001:db8::1", "2001:db8::2"),
        ("smp8.simplex.im", f"smp8.simplex.im,{PRESETS['smp9.simplex.im']}"),
        ("smp8.simplex.im", "smp8.simplex.im,a.org"),
        ("smp8.simplex.im", "smp9.simplex.im"),
        ("smp8.simplex.im", "smp8.simplex.im:443"),
        ("smp11.simplex.im", f"smp11.simplex.im,{PRESETS['smp8.simplex.im']}"),
    ],
)
def test_two_servers(rest, another):
    assert named(rest) != named(another)
    assert named(rest).identity != named(another).identity


def test_the_identity_certificate_and_the_protocol_tell_servers_apart():
    assert named("a.org") != ServerAddress("smp", ("a.org",), "", HASH[::-1])
    assert named("a.org:443") != named("a.org:443", "ntf")
    assert named("a.org", "ntf") == named("A.org:443", "ntf")
    assert named("smp8.simplex.im", "ntf").reachable == ("smp8.simplex.im",)
    assert named("a.org") != "a.org"


def test_what_is_connected_to_keeps_the_order():
    address = named("B.org.,a.org,b.org,10.0.0.1")
    assert address.reachable == ("b.org", "a.org", "10.0.0.1")
    assert str(address.plain) == f"smp://{HASH_TEXT}@b.org,a.org,10.0.0.1"
    onion = PRESETS["smp8.simplex.im"]
    assert named("smp8.simplex.im").reachable == ("smp8.simplex.im", onion)
    assert named(f"{onion},smp8.simplex.im").reachable == (onion, "smp8.simplex.im")
    assert (twin("SMP8.simplex.im"), twin(onion), twin("a.org")) == (onion, "smp8.simplex.im", None)


@given(ws.smp_addresses, st.randoms(use_true_random=False))
def test_any_spelling(address, rng):
    hosts = [h.upper() if ":" not in h and rng.random() < 0.5 else h for h in address.hosts]
    hosts += rng.choices(hosts, k=2)
    rng.shuffle(hosts)
    port = address.port or rng.choice(["", "5223"])
    other = ServerAddress("smp", tuple(hosts), port.zfill(rng.randint(0, 5)) if port else "", address.key_hash)
    assert other == address
    assert parse(other.encode()).identity == address.identity == address.plain.identity


def test_a_notification_servers_names_no_usual_port():
    assert str(ServerAddress.ntf("ntf.example.org", 443, bytes(32))).endswith("@ntf.example.org")
    assert str(ServerAddress.ntf("ntf.example.org", 5443, bytes(32))).endswith("@ntf.example.org:5443")
