import dataclasses
import hashlib
import itertools

import nacl.bindings
import pytest
import wire_strategies as ws
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import crypto
from smp_bridge.encoding import ParseError, large, short
from smp_bridge.smp import parse_answer
from smp_bridge.transmission import (
    BLOCK_SIZE,
    ERR_BLOCK,
    ERR_SESSION,
    Block,
    Err,
    Invalid,
    Service,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    nobodys_key,
    parse_block,
    verify_service,
    verify_transmission,
)

SERVER_KEY = X25519PrivateKey.from_private_bytes(b"server" + bytes(26))
KEYS = {
    "ed25519": Ed25519PrivateKey.from_private_bytes(b"a" * 32),
    "ed448": Ed448PrivateKey.from_private_bytes(b"a" * 57),
    "x25519": X25519PrivateKey.from_private_bytes(b"a" * 32),
}
OTHERS = {
    "ed25519": Ed25519PrivateKey.from_private_bytes(b"b" * 32),
    "ed448": Ed448PrivateKey.from_private_bytes(b"b" * 57),
    "x25519": X25519PrivateKey.from_private_bytes(b"b" * 32),
}
CORR, ENTITY = bytes(range(24)), bytes(range(100, 124))
SERVICE_KEY = Ed25519PrivateKey.from_private_bytes(b"service" + bytes(25))
SERVICE = Service(b"service id", hashlib.sha256(b"certificate").digest(), SERVICE_KEY)

ALL_VERSIONS = [("smp", v) for v in range(6, 21)] + [("ntf", v) for v in range(1, 4)]
WITH_KEYS = [(s, v) for s, v in ALL_VERSIONS if v >= {"smp": 7, "ntf": 2}[s]]
BATCHED = [("smp", 6), ("smp", 18), ("ntf", 2)]


def pair(scheme, version, **more):
    """(the client's session, the server's)"""
    keys = (SERVER_KEY.public_key(), SERVER_KEY) if (scheme, version) in WITH_KEYS else (None, None)
    return tuple(Session(scheme, version, ws.SESSION_ID, key, **more) for key in keys)


def block(session, *transmissions):
    (content,) = encode_blocks(session, transmissions)
    return content


def one(session, transmission):
    (parsed,) = parse_block(session, block(session, transmission))
    return parsed


# --- one transmission

_ids = st.tuples(ws.shorts, st.binary(max_size=24)) | st.tuples(st.binary(max_size=24), st.binary(max_size=140))


@pytest.mark.parametrize(("scheme", "version"), ALL_VERSIONS)
@given(_ids, st.binary(max_size=60), st.sampled_from([None, *KEYS]))
def test_round_trip(scheme, version, ids, command, key_type):
    corr_id, entity_id = ids
    if key_type == "x25519" and (scheme, version) not in WITH_KEYS:
        key_type = "ed25519"
    client, server = pair(scheme, version)
    key = KEYS[key_type] if key_type else None
    data = encode_transmission(client, corr_id, entity_id, command, key)
    t = one(server, data)
    assert (t.corr_id, t.entity_id, t.command, t.service_signature) == (corr_id, entity_id, command, None)
    assert t.authorized == short(ws.SESSION_ID) + short(corr_id) + short(entity_id) + command
    assert bool(t.authenticator) == (key is not None)
    assert verify_transmission(server, t, key.public_key() if key else KEYS["ed25519"].public_key()) == bool(key)


_BODY = b"\x18" + CORR + b"\x18" + ENTITY + b"TCHK"
_SESSION = b"\x20" + ws.SESSION_ID


@pytest.mark.parametrize(
    ("scheme", "version", "sent"),
    [
        ("ntf", 1, _SESSION + _BODY),
        ("ntf", 2, _BODY),
        ("ntf", 3, _BODY),
        ("smp", 6, _SESSION + _BODY),
        ("smp", 7, _BODY),
        ("smp", 15, _BODY),
    ],
)
def test_bytes(scheme, version, sent):
    client, _ = pair(scheme, version)
    signature = KEYS["ed25519"].sign(_SESSION + _BODY)
    assert encode_transmission(client, CORR, ENTITY, b"TCHK") == b"\x00" + sent
    assert encode_transmission(client, CORR, ENTITY, b"TCHK", KEYS["ed25519"]) == b"\x40" + signature + sent


@pytest.mark.parametrize("version", [16, 17, 18, 20])
def test_bytes_with_room_for_a_service(version):
    client, _ = pair("smp", version)
    signature = KEYS["ed448"].sign(_SESSION + _BODY)
    assert encode_transmission(client, CORR, ENTITY, b"TCHK") == b"\x00" + _BODY
    assert encode_transmission(client, CORR, ENTITY, b"TCHK", KEYS["ed448"]) == b"\x72" + signature + b"0" + _BODY


@pytest.mark.parametrize(("scheme", "version"), [("ntf", 2), ("ntf", 3), ("smp", 7), ("smp", 15)])
@given(st.binary(max_size=40))
def test_authenticator_bytes(scheme, version, corr_id):
    client, _ = pair(scheme, version)
    authorized = _SESSION + short(corr_id) + b"\x00PING"
    expected = nacl.bindings.crypto_box(
        hashlib.sha512(authorized).digest(),
        (corr_id + bytes(24))[:24],
        SERVER_KEY.public_key().public_bytes_raw(),
        KEYS["x25519"].private_bytes_raw(),
    )
    sent = encode_transmission(client, corr_id, b"", b"PING", KEYS["x25519"])
    assert sent == b"\x50" + expected + short(corr_id) + b"\x00PING"


@pytest.mark.parametrize(("scheme", "version"), [("smp", 6), ("ntf", 1)])
def test_no_authenticator_without_a_server_key(scheme, version):
    client, server = pair(scheme, version)
    with pytest.raises(crypto.CryptoError):
        encode_transmission(client, CORR, ENTITY, b"TCHK", KEYS["x25519"])
    t = Transmission(bytes(80), None, CORR, ENTITY, b"TCHK", b"")
    assert not verify_transmission(server, t, KEYS["x25519"].public_key())


# --- verification


@pytest.mark.parametrize(("scheme", "version"), [("ntf", 2), ("smp", 15), ("smp", 18)])
@pytest.mark.parametrize("signed_by", KEYS)
def test_verify(scheme, version, signed_by):
    client, server = pair(scheme, version)
    t = one(server, encode_transmission(client, CORR, ENTITY, b"TCHK", KEYS[signed_by]))
    for name, key in KEYS.items():
        assert verify_transmission(server, t, key.public_key()) == (name == signed_by)
    for key in OTHERS.values():
        assert not verify_transmission(server, t, key.public_key())
    assert not verify_transmission(server, t, None)


@pytest.mark.parametrize("signed_by", KEYS)
@pytest.mark.parametrize("field", ["authenticator", "authorized"])
@given(st.integers(0, 79), st.integers(0, 7))
def test_verify_what_was_changed(signed_by, field, i, bit):
    client, server = pair("ntf", 3)
    t = one(server, encode_transmission(client, CORR, ENTITY, b"TCHK", KEYS[signed_by]))
    data = bytearray(getattr(t, field))
    data[i % len(data)] ^= 1 << bit
    changed = dataclasses.replace(t, **{field: bytes(data)})
    assert not verify_transmission(server, changed, KEYS[signed_by].public_key())


def test_authenticator_depends_on_the_correlation_id_and_the_session():
    client, server = pair("ntf", 3)
    t = one(server, encode_transmission(client, CORR, ENTITY, b"TCHK", KEYS["x25519"]))
    key = KEYS["x25519"].public_key()
    assert not verify_transmission(server, dataclasses.replace(t, corr_id=bytes(24)), key)
    elsewhere = dataclasses.replace(server, session_id=bytes(32))
    moved = one(elsewhere, encode_transmission(client, CORR, ENTITY, b"TCHK", KEYS["x25519"]))
    assert not verify_transmission(elsewhere, moved, key)
    other_key = dataclasses.replace(server, server_key=X25519PrivateKey.generate())
    assert not verify_transmission(other_key, t, key)


def test_the_dummy_keys_open_nothing():
    """Their private halves are known to all."""
    client, server = pair("ntf", 3)
    dummies = Ed25519PrivateKey, bytes(32), Ed448PrivateKey, bytes(57), X25519PrivateKey, bytes(32)
    for cls, raw in zip(dummies[::2], dummies[1::2], strict=True):
        t = one(server, encode_transmission(client, CORR, ENTITY, b"TCHK", cls.from_private_bytes(raw)))
        assert not verify_transmission(server, t, None)
        assert not any(verify_transmission(server, t, key.public_key()) for key in KEYS.values())


@pytest.mark.parametrize("key_type", KEYS)
def test_nobodys_key_is_of_the_authenticators_type(key_type):
    client, server = pair("ntf", 3)
    t = one(server, encode_transmission(client, CORR, ENTITY, b"TCHK", KEYS[key_type]))
    assert type(crypto.parse_auth_public(nobodys_key(t))) is type(KEYS[key_type].public_key())
    assert not verify_transmission(server, t, crypto.parse_auth_public(nobodys_key(t)))


@given(st.binary(max_size=120), st.sampled_from([None, *KEYS]))
def test_verify_any_authenticator(authenticator, key_type):
    _, server = pair("ntf", 3)
    t = Transmission(authenticator, None, CORR, ENTITY, b"TCHK", b"authorized")
    assert not verify_transmission(server, t, KEYS[key_type].public_key() if key_type else None)


def test_a_key_of_low_order_verifies_nothing():
    _, server = pair("ntf", 3)
    key = X25519PublicKey.from_public_bytes(bytes(32))
    assert not verify_transmission(server, Transmission(bytes(80), None, CORR, ENTITY, b"", b""), key)


# --- services


@pytest.mark.parametrize("key_type", KEYS)
@pytest.mark.parametrize("version", [16, 17, 18, 20])
def test_service_signature(version, key_type):
    client, server = pair("smp", version, service=SERVICE)
    key, authorized = KEYS[key_type], _SESSION + _BODY
    data = encode_transmission(client, CORR, ENTITY, b"TCHK", key, as_service=True)
    t = one(server, data)
    assert t.authorized == authorized
    SERVICE_KEY.public_key().verify(t.service_signature, authorized)
    if key_type != "x25519":
        key.public_key().verify(t.authenticator, SERVICE.certificate_hash + authorized)
    assert data == short(t.authenticator) + b"1\x40" + SERVICE_KEY.sign(authorized) + _BODY
    assert verify_transmission(server, t, key.public_key())
    assert not verify_transmission(dataclasses.replace(server, service=None), t, key.public_key())
    assert not verify_transmission(server, t, OTHERS[key_type].public_key())


def service_pair():
    """(the client's session, the server's, which has the service's public key only)"""
    client, server = pair("smp", 18, service=SERVICE)
    return client, dataclasses.replace(server, service=dataclasses.replace(SERVICE, key=SERVICE_KEY.public_key()))


@pytest.mark.parametrize("key_type", KEYS)
@pytest.mark.parametrize("field", ["authenticator", "service_signature", "authorized"])
@given(st.integers(0, 63), st.integers(0, 7))
def test_verify_both_signatures(field, key_type, i, bit):
    client, server = service_pair()
    key = KEYS[key_type]
    t = one(server, encode_transmission(client, CORR, ENTITY, b"NSUB", key, as_service=True))
    assert verify_transmission(server, t, key.public_key())
    assert verify_service(server, t)
    data = bytearray(getattr(t, field))
    data[i] ^= 1 << bit
    changed = dataclasses.replace(t, **{field: bytes(data)})
    assert not verify_transmission(server, changed, key.public_key())
    assert verify_service(server, changed) == (field == "authenticator")


@pytest.mark.parametrize("key_type", KEYS)
def test_verify_in_a_service_session(key_type):
    client, server = service_pair()
    key, public = KEYS[key_type], KEYS[key_type].public_key()
    single = one(server, encode_transmission(client, CORR, ENTITY, b"PING", key))
    double = one(server, encode_transmission(client, CORR, ENTITY, b"NSUB", key, as_service=True))
    assert verify_transmission(server, single, public)
    assert not verify_service(server, single)
    for wrong in (None, *(k.public_key() for k in OTHERS.values())):
        assert not verify_transmission(server, double, wrong)
    without = dataclasses.replace(server, service=None)
    assert not verify_transmission(without, double, public)
    assert not verify_service(without, double)
    stranger = dataclasses.replace(SERVICE, key=OTHERS["ed25519"].public_key())
    assert not verify_transmission(dataclasses.replace(server, service=stranger), double, public)
    other_hash = dataclasses.replace(SERVICE, certificate_hash=bytes(32))
    assert not verify_transmission(dataclasses.replace(server, service=other_hash), double, public)


def test_a_signature_of_the_plain_command_is_none_of_a_double_signed_one():
    """Nor the other way round: what the entity's key covers differs."""
    client, server = service_pair()
    key = KEYS["ed25519"]
    single = one(server, encode_transmission(client, CORR, ENTITY, b"NSUB", key))
    double = one(server, encode_transmission(client, CORR, ENTITY, b"NSUB", key, as_service=True))
    added = dataclasses.replace(single, service_signature=double.service_signature)
    removed = dataclasses.replace(double, service_signature=None)
    assert not verify_transmission(server, added, key.public_key())
    assert not verify_transmission(server, removed, key.public_key())


def test_the_same_work_for_every_failure(monkeypatch):
    client, server = service_pair()
    verified = []
    verify = crypto.verify
    monkeypatch.setattr(crypto, "verify", lambda *args: verified.append(type(args[0])) or verify(*args))
    key = KEYS["ed25519"]
    good = one(server, encode_transmission(client, CORR, ENTITY, b"NSUB", key, as_service=True))
    bad = dataclasses.replace(good, service_signature=bytes(64))
    for t in (good, bad):
        for public in (key.public_key(), None, KEYS["x25519"].public_key(), OTHERS["ed25519"].public_key()):
            verified.clear()
            assert verify_transmission(server, t, public) == (t is good and public == key.public_key())
            assert len(verified) == 2


@pytest.mark.parametrize(
    ("version", "key", "service", "as_service"),
    [
        (18, KEYS["ed25519"], SERVICE, False),
        (18, KEYS["ed25519"], None, True),
        (18, None, SERVICE, True),
        (18, KEYS["ed25519"], dataclasses.replace(SERVICE, key=SERVICE_KEY.public_key()), True),
    ],
)
def test_no_service_signature(version, key, service, as_service):
    client, server = pair("smp", version, service=service)
    data = encode_transmission(client, CORR, ENTITY, b"TCHK", key, as_service=as_service)
    t = one(server, data)
    assert t.service_signature is None
    assert data == (short(key.sign(_SESSION + _BODY)) + b"0" if key else b"\x00") + _BODY


# --- bad transmissions


@pytest.mark.parametrize("other", [bytes(32), b"", ws.SESSION_ID[:31], ws.SESSION_ID + b"."])
@pytest.mark.parametrize(("scheme", "version"), [("smp", 6), ("ntf", 1)])
def test_wrong_session_id(scheme, version, other):
    client, server = pair(scheme, version)
    stranger = dataclasses.replace(client, session_id=other)
    for key in (None, KEYS["ed25519"]):
        t = one(server, encode_transmission(stranger, CORR, ENTITY, b"TCHK", key))
        assert t == Invalid(ERR_SESSION, CORR)


@pytest.mark.parametrize(("scheme", "version"), [v for v in ALL_VERSIONS if v not in [("smp", 6), ("ntf", 1)]])
@pytest.mark.parametrize("size", [1, 63, 65, 79, 81, 113, 115, 128, 255])
def test_authenticator_of_a_wrong_size(scheme, version, size):
    _, server = pair(scheme, version)
    room = b"0" if server.service_auth else b""
    assert one(server, short(bytes(size)) + room + _BODY) == Invalid(ERR_BLOCK, CORR)


@pytest.mark.parametrize(("scheme", "version"), [("smp", 6), ("ntf", 1)])
def test_authenticator_of_a_wrong_size_with_explicit_session(scheme, version):
    _, server = pair(scheme, version)
    assert one(server, short(bytes(65)) + _SESSION + _BODY) == Invalid(ERR_BLOCK, CORR)


@pytest.mark.parametrize("size", [0, 63, 65, 114])
def test_service_signature_of_a_wrong_size(size):
    _, server = pair("smp", 16)
    data = short(bytes(64)) + b"1" + short(bytes(size)) + _BODY
    assert one(server, data) == Invalid(ERR_BLOCK, CORR)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x01", b"\x00", b"\x00\x18" + CORR[:-1], b"\x00\x18" + CORR, b"\x00\x18" + CORR + b"\x18" + ENTITY[:-1]],
)
def test_truncated(raw):
    _, server = pair("ntf", 3)
    assert one(server, raw) == Invalid(ERR_BLOCK)


def test_bad_ones_do_not_spoil_their_neighbours():
    client, server = pair("ntf", 3)
    good = encode_transmission(client, CORR, b"", b"PING")
    parsed = parse_block(server, block(client, good, b"\x07", good, short(b"x") + _BODY))
    assert [type(t) for t in parsed] == [Transmission, Invalid, Transmission, Invalid]
    assert parsed[1::2] == [Invalid(ERR_BLOCK), Invalid(ERR_BLOCK, CORR)]


# --- blocks


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"\x00\x00\x01.", b"\x01", b"\x01\x00", b"\x01\x00\x02.", b"\x02\x00\x01."]
)
@pytest.mark.parametrize(("scheme", "version"), BATCHED)
def test_bad_batches(scheme, version, content):
    _, server = pair(scheme, version)
    assert parse_block(server, content) == [Invalid(ERR_BLOCK)]


@pytest.mark.parametrize(("scheme", "version"), BATCHED)
def test_trailing_bytes(scheme, version):
    client, server = pair(scheme, version)
    content = block(client, encode_transmission(client, CORR, b"", b"PING"))
    assert parse_block(server, content + b"#") == [Invalid(ERR_BLOCK)]


def test_batch_bytes():
    client, _ = pair("ntf", 2)
    assert encode_blocks(client, [b"ab", b"", b"c"]) == [b"\x03\x00\x02ab\x00\x00\x00\x01c"]
    assert encode_blocks(client, []) == []


def batch_items(content):
    items, rest = [], content[1:]
    while rest:
        n = int.from_bytes(rest[:2], "big")
        items.append(rest[2 : 2 + n])
        rest = rest[2 + n :]
    assert len(items) == content[0]
    return items


@pytest.mark.parametrize(("scheme", "version"), BATCHED)
@given(st.data())
def test_batches(scheme, version, data):
    client, _ = pair(scheme, version)
    room = BLOCK_SIZE[scheme] - 19
    sizes = data.draw(st.lists(st.integers(0, 40) | st.integers(0, room - 2), max_size=30))
    sent = [bytes([i % 256]) * n for i, n in enumerate(sizes)]
    blocks = encode_blocks(client, sent)
    parsed = [batch_items(b) for b in blocks]
    assert [t for items in parsed for t in items] == sent
    assert all(1 <= len(items) <= 255 for items in parsed)
    assert all(len(b) - 1 <= room for b in blocks)
    for items, following in itertools.pairwise(parsed):  # no block could take one more
        assert sum(len(t) + 2 for t in items) + len(following[0]) + 2 > room


def test_255_in_a_block():
    client, _ = pair("smp", 18)
    blocks = encode_blocks(client, [b"x"] * 600)
    assert [b[0] for b in blocks] == [255, 255, 90]


@pytest.mark.parametrize(("scheme", "version"), BATCHED)
def test_largest_transmission(scheme, version):
    client, _ = pair(scheme, version)
    largest = bytes(BLOCK_SIZE[scheme] - 21)
    (content,) = encode_blocks(client, [largest])
    padded = crypto.pad(content, BLOCK_SIZE[scheme] - 16)
    assert len(padded) == BLOCK_SIZE[scheme] - 16
    with pytest.raises(ValueError, match="too large"):
        encode_blocks(client, [b"", largest + b"."])


def test_blocks_of_ntf_1():
    client, server = pair("ntf", 1)
    sent = [encode_transmission(client, bytes([i]) * 24, ENTITY, b"TCHK") for i in range(3)]
    assert encode_blocks(client, sent) == sent
    assert [t.corr_id for b in sent for t in parse_block(server, b)] == [bytes([i]) * 24 for i in range(3)]
    assert encode_blocks(client, [bytes(510)]) == [bytes(510)]
    with pytest.raises(ValueError, match="too large"):
        encode_blocks(client, [bytes(511)])


def valid_blocks(session):
    keys = [None, KEYS["ed25519"], KEYS["ed448"]]
    transmissions = st.builds(
        lambda key, command: encode_transmission(session, CORR, ENTITY, command, key),
        st.sampled_from(keys),
        st.binary(max_size=20),
    )
    return st.lists(transmissions, min_size=1, max_size=2).map(lambda ts: encode_blocks(session, ts)[0])


@given(ws.sessions().flatmap(lambda s: st.tuples(st.just(s), ws.broken(valid_blocks(s)))))
def test_parse_block_never_raises(case):
    session, content = case
    parsed = parse_block(session, content)
    assert parsed
    for t in parsed:
        assert isinstance(t, Transmission | Invalid)
        if isinstance(t, Transmission):
            assert verify_transmission(session, t, KEYS["ed25519"].public_key()) in (True, False)
            assert t.authorized.endswith(t.command)


# --- errors and reprs


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"ERR AUTH", Err("AUTH")),
        (b"ERR CMD SYNTAX", Err("CMD", "SYNTAX")),
        (b"ERR CMD NO_QUEUE", Err("CMD", "NO_ENTITY")),
        (b"ERR STORE some text", Err("STORE", "some text")),
        (b"ERR BLOCKED reason=spam", Err("BLOCKED", "reason=spam")),
        (b"ERR BLOCKED reason=content,notice={}", Err("BLOCKED", "reason=content,notice={}")),
        (b"ERR PROXY BROKER TIMEOUT", Err("PROXY", "BROKER TIMEOUT")),
        (b"ERR LARGE_MSG", Err("LARGE_MSG")),
    ],
)
def test_errors(data, expected):
    assert parse_answer(data, 18) == expected


@pytest.mark.parametrize(
    "data", [b"ERR", b"ERR ", b"ERR NONE", b"ERR CMD", b"ERR CMD NONE", b"ERR AUTH x", b"ERR  AUTH"]
)
def test_bad_errors(data):
    with pytest.raises(ParseError):
        parse_answer(data, 18)


@given(ws.nonces, st.sampled_from([*KEYS.values()]), st.binary(min_size=8))
def test_reprs(entity_id, key, command):
    client, server = pair("smp", 18, service=SERVICE, send_chain=b"s" * 32, receive_chain=b"r" * 32)
    t = one(server, encode_transmission(client, CORR, entity_id, command, key, as_service=True))
    shown = {"corr_id"}
    assert all(ws.hides(value, shown) for value in (client, server, SERVICE, t))


def test_large_is_what_batches_hold():
    client, _ = pair("ntf", 3)
    t = encode_transmission(client, CORR, b"", b"PING")
    assert block(client, t) == b"\x01" + large(t)


# --- one full block


@pytest.mark.parametrize(("scheme", "version"), BATCHED)
@given(st.data())
def test_full_block(scheme, version, data):
    client, _ = pair(scheme, version)
    room = BLOCK_SIZE[scheme] - 19
    sizes = data.draw(st.lists(st.integers(0, 40) | st.integers(0, room - 2), min_size=1, max_size=400))
    sent = [bytes([i % 256]) * n for i, n in enumerate(sizes)]
    filled = Block(client)
    count = next((i for i, t in enumerate(sent) if not filled.add(t)), len(sent))
    assert len(filled) == count
    assert batch_items(filled.content) == sent[:count]
    assert 1 <= count <= 255
    assert len(filled.content) - 1 <= room
    if count < min(len(sent), 255):  # the next one would not have fitted
        assert len(filled.content) - 1 + len(sent[count]) + 2 > room
    assert filled.content == encode_blocks(client, sent)[0]
    crypto.pad(filled.content, BLOCK_SIZE[scheme] - 16)


def test_a_block_takes_no_more_than_255():
    client, _ = pair("smp", 18)
    filled = Block(client)
    assert [filled.add(b"x") for _ in range(257)] == [True] * 255 + [False] * 2
    assert (filled.content[0], len(filled)) == (255, 255)


def test_a_block_of_what_fits_none():
    client, _ = pair("smp", 18)
    filled = Block(client)
    with pytest.raises(ValueError, match="too large"):
        filled.add(bytes(16384 - 20))
    assert filled.add(bytes(16384 - 21))
    assert not filled.add(b"")
    assert len(filled) == 1


# --- keys as DER


@pytest.mark.parametrize("as_service", [False, True])
@pytest.mark.parametrize("version", [7, 15, 16, 18, 20])
@given(st.sampled_from(list(KEYS)), ws.auth_private_keys, st.binary(max_size=30))
def test_der_keys_authorize_as_key_objects_do(version, as_service, kind, other, corr_id):
    client, server = pair("smp", version, service=SERVICE if version >= 16 else None)
    for key in (KEYS[kind], other):
        der = crypto.encode_private(key)
        as_object = encode_transmission(client, corr_id, ENTITY, b"NSUB", key, as_service=as_service)
        assert encode_transmission(client, corr_id, ENTITY, b"NSUB", der, as_service=as_service) == as_object
        assert verify_transmission(server, one(server, as_object), key.public_key())


@given(st.binary(max_size=80).filter(bool) | st.sampled_from([crypto.encode_private(k)[:-1] for k in KEYS.values()]))
def test_der_that_is_no_key(der):
    client, _ = pair("smp", 18)
    with pytest.raises(ParseError):
        encode_transmission(client, CORR, ENTITY, b"NSUB", der)


@pytest.mark.parametrize("der", [b"", crypto.encode_private(KEYS["x25519"])])
def test_der_that_cannot_be_used(der):
    client, _ = pair("smp", 6)
    with pytest.raises((ParseError, crypto.CryptoError)):
        encode_transmission(client, CORR, ENTITY, b"NSUB", der)
