import contextlib
import dataclasses
import datetime

import pytest
import wire_strategies as ws
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import crypto
from smp_bridge.encoding import ParseError, large
from smp_bridge.handshake import (
    VERSIONS,
    ClientHandshake,
    ClientHello,
    HandshakeError,
    IdentityMismatchError,
    ServerHandshake,
    ServerHello,
    ServiceCredentials,
    ServiceHello,
    ServiceRefusedError,
    ServiceUnreadyError,
)
from smp_bridge.identity import Credentials, generate_key, issue_ca
from smp_bridge.transmission import Service, encode_blocks, encode_transmission, parse_block, verify_transmission

SERVER, _ = Credentials.generate("ED448", "localhost", datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC))
OTHER, _ = Credentials.generate("ED25519", "localhost", datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC))
CHAIN = tuple(SERVER.chain_der)
SESSION_ID = bytes(range(48))
SERVER_KEY = X25519PrivateKey.from_private_bytes(b"server" + bytes(26))
CLIENT_KEY = X25519PrivateKey.from_private_bytes(b"client" + bytes(26))
SERVICE = ServiceCredentials(
    tuple(OTHER.chain_der), OTHER.key, Ed25519PrivateKey.from_private_bytes(b"service" + bytes(25))
)
USER_KEYS = [X25519PrivateKey.from_private_bytes(b"u" * 32), Ed25519PrivateKey.from_private_bytes(b"u" * 32)]
KEY_FROM = {"smp": 7, "ntf": 2}

RANGES = [("smp", 6, n) for n in range(6, 21)] + [("ntf", 1, n) for n in range(1, 4)]
PAIRS = [(scheme, (low, a), (low, b)) for scheme, low, a in RANGES for other, _, b in RANGES if scheme == other]


def server(scheme, *, alpn=True, versions=None, signer=SERVER.key, chain=CHAIN, **more):
    more = {"now": datetime.datetime.now(datetime.UTC), **more}
    return ServerHandshake(scheme, SESSION_ID, chain, signer, SERVER_KEY, alpn=alpn, versions=versions, **more)


def client(scheme, *, versions=None, session_id=SESSION_ID, chain=CHAIN, key_hash=SERVER.key_hash, service=None):
    return ClientHandshake(scheme, session_id, chain, key_hash, CLIENT_KEY, versions=versions, service=service)


def padded(content, scheme):
    """What the other side reads from the block."""
    return crypto.unpad(crypto.pad(content, 16384 if scheme == "smp" else 512))


def shake(scheme, ours, theirs):
    """(the client's session, the server's)"""
    answer = ours.receive(padded(theirs.hello, scheme))
    session = theirs.receive(padded(answer, scheme))
    return ours.session, session


def check_sessions(ours, theirs, scheme, version):
    assert (ours.scheme, ours.version, ours.session_id) == (scheme, version, SESSION_ID)
    assert (theirs.scheme, theirs.version, theirs.session_id) == (scheme, version, SESSION_ID)
    assert (ours.send_chain, ours.receive_chain) == (theirs.receive_chain, theirs.send_chain)
    if scheme == "smp" and version >= 11:
        to_client, to_server = crypto.sb_chain_init(SESSION_ID, crypto.dh(SERVER_KEY, CLIENT_KEY.public_key()))
        assert (theirs.send_chain, theirs.receive_chain) == (to_client, to_server)
    else:
        assert ours.send_chain is ours.receive_chain is None
    has_key = version >= KEY_FROM[scheme]
    assert ours.server_key == (SERVER_KEY.public_key() if has_key else None)
    assert theirs.server_key is (SERVER_KEY if has_key else None)
    for key in USER_KEYS[not has_key :]:
        (block,) = encode_blocks(ours, [encode_transmission(ours, bytes(24), b"id", b"PING", key)])
        (t,) = parse_block(theirs, block)
        assert verify_transmission(theirs, t, key.public_key())


@pytest.mark.parametrize(("scheme", "of_client", "of_server"), PAIRS)
def test_every_pair_of_versions(scheme, of_client, of_server):
    ours, theirs = shake(scheme, client(scheme, versions=of_client), server(scheme, versions=of_server))
    check_sessions(ours, theirs, scheme, min(of_client[1], of_server[1]))


@pytest.mark.parametrize(("scheme", "low", "high"), RANGES)
def test_no_alpn(scheme, low, high):
    ours, theirs = shake(scheme, client(scheme, versions=(low, high)), server(scheme, alpn=False))
    check_sessions(ours, theirs, scheme, low)


@pytest.mark.parametrize(("scheme", "low", "high"), [("smp", 6, 20), ("ntf", 1, 3)])
def test_default_versions(scheme, low, high):
    assert VERSIONS[scheme] == (low, high)
    ours, theirs = shake(scheme, client(scheme), server(scheme))
    check_sessions(ours, theirs, scheme, high)


@pytest.mark.parametrize(
    ("scheme", "of_client", "of_server"),
    [("smp", (6, 8), (9, 20)), ("smp", (10, 20), (6, 9)), ("ntf", (1, 1), (2, 3)), ("ntf", (3, 3), (1, 2))],
)
def test_no_common_version(scheme, of_client, of_server):
    with pytest.raises(HandshakeError, match="no common version"):
        client(scheme, versions=of_client).receive(server(scheme, versions=of_server).hello)


@pytest.mark.parametrize("scheme", ["smp", "ntf"])
@pytest.mark.parametrize("other", [b"", SESSION_ID[:32], bytes(48)])
def test_wrong_session_id(scheme, other):
    with pytest.raises(HandshakeError, match="session id"):
        client(scheme, session_id=other).receive(server(scheme).hello)


@pytest.mark.parametrize("chain", [(), CHAIN[:1], CHAIN[::-1], (*CHAIN, CHAIN[1]), tuple(OTHER.chain_der)])
def test_changed_chain(chain):
    signed = crypto.SignedKey.sign(SERVER.key, SERVER_KEY.public_key())
    hello = ServerHello((6, 18), SESSION_ID, chain, signed).encode("smp")
    with pytest.raises(IdentityMismatchError, match="chain"):
        client("smp").receive(hello)


@pytest.mark.parametrize("scheme", ["smp", "ntf"])
def test_session_key_signed_by_another(scheme):
    for signer in (OTHER.key, generate_key("ED448")):
        with pytest.raises(IdentityMismatchError, match="not signed"):
            client(scheme).receive(server(scheme, signer=signer).hello)


@pytest.mark.parametrize("scheme", ["smp", "ntf"])
def test_session_key_swapped_under_a_signature(scheme):
    good = server(scheme).hello
    raw = SERVER_KEY.public_key().public_bytes_raw()
    assert good.count(raw) == 1
    with pytest.raises(IdentityMismatchError, match="not signed"):
        client(scheme).receive(good.replace(raw, CLIENT_KEY.public_key().public_bytes_raw()))


def session_key_hello(scheme, key):
    chain = CHAIN if scheme == "smp" else ()
    return ServerHello(VERSIONS[scheme], SESSION_ID, chain, crypto.SignedKey.sign(SERVER.key, key)).encode(scheme)


@pytest.mark.parametrize("scheme", ["smp", "ntf"])
def test_session_key_of_another_type(scheme):
    with pytest.raises(HandshakeError, match="X25519"):
        client(scheme).receive(session_key_hello(scheme, Ed25519PrivateKey.generate().public_key()))


def test_session_key_of_low_order():
    low = X25519PublicKey.from_public_bytes(bytes(32))
    with pytest.raises(HandshakeError):
        client("smp").receive(session_key_hello("smp", low))
    with pytest.raises(HandshakeError):
        server("smp").receive(ClientHello(18, SERVER.key_hash, low).encode("smp"))


@pytest.mark.parametrize("scheme", ["smp", "ntf"])
@pytest.mark.parametrize("key_hash", [bytes(32), b"", SERVER.key_hash[:31], SERVER.key_hash + b".", OTHER.key_hash])
def test_wrong_key_hash(scheme, key_hash):
    theirs = server(scheme)
    answer = client(scheme, key_hash=key_hash).receive(theirs.hello)
    with pytest.raises(HandshakeError, match="identity"):
        theirs.receive(answer)


@pytest.mark.parametrize(
    ("scheme", "alpn", "version"),
    [
        ("smp", True, 5),
        ("smp", True, 21),
        ("smp", True, 65535),
        ("smp", False, 7),
        ("ntf", True, 0),
        ("ntf", True, 4),
        ("ntf", False, 2),
    ],
)
def test_version_out_of_range(scheme, alpn, version):
    hello = ClientHello(version, SERVER.key_hash, CLIENT_KEY.public_key()).encode(scheme)
    with pytest.raises(HandshakeError, match="out of range"):
        server(scheme, alpn=alpn).receive(hello)


# --- services


def service_client(version=20):
    return client("smp", versions=(6, version), service=SERVICE)


@pytest.mark.parametrize("version", [16, 17, 18, 20])
def test_service_accepted(version):
    ours = service_client(version)
    answer = ours.receive(server("smp").hello)
    assert ours.session is None
    hello = ClientHello.parse(answer, "smp")
    assert hello.service.chain == SERVICE.chain
    assert hello.service.role == b"N"
    assert hello.service.key.verify(SERVICE.signer.public_key())
    assert hello.service.key.key == SERVICE.session_key.public_key()
    assert ours.receive(padded(b"R\x0aservice id and more", "smp")) is None
    service = ours.session.service
    assert (service.service_id, service.key) == (b"service id", SERVICE.session_key)
    assert service.certificate_hash == OTHER.key_hash
    plain = client("smp", versions=(6, version))
    plain.receive(server("smp").hello)
    assert dataclasses.replace(ours.session, service=None) == plain.session


@pytest.mark.parametrize("answer", [b"E", b"E some text", b"R", b"R\x05four", b"", b"X"])
def test_service_refused(answer):
    ours = service_client()
    ours.receive(server("smp").hello)
    with pytest.raises(HandshakeError):
        ours.receive(answer)
    assert ours.session is None


@pytest.mark.parametrize("version", [6, 7, 15])
def test_no_service_below_16(version):
    ours, theirs = shake("smp", service_client(version), server("smp"))
    check_sessions(ours, theirs, "smp", version)
    assert ours.service is None


def self_signed(algorithm, now=None):
    key = generate_key(algorithm)
    return Credentials((issue_ca(key, "service", now or datetime.datetime.now(datetime.UTC)),), key)


def service_credentials(credentials):
    return ServiceCredentials(tuple(credentials.chain_der), credentials.key, SERVICE.session_key)


SERVICES = [
    service_credentials(Credentials.generate("ED25519", "service")[0]),
    service_credentials(Credentials.generate("ED448", "service")[0]),
    service_credentials(self_signed("ED25519")),
    service_credentials(self_signed("ED448")),
]


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("version", [16, 17, 18, 20])
def test_service(service, version):
    seen = []

    def services(hello):
        seen.append(hello)
        return b"the id"

    ours = client("smp", versions=(6, version), service=service)
    theirs = server("smp", peer_chain=list(service.chain), services=services)
    session = theirs.receive(padded(ours.receive(padded(theirs.hello, "smp")), "smp"))
    assert seen == [service.hello()]
    assert theirs.answer == b"R\x06the id"
    assert ours.session is None
    ours.receive(padded(theirs.answer, "smp"))
    check_sessions(ours.session, session, "smp", version)
    identity = service.chain[-1]
    assert session.service == Service(b"the id", crypto.key_hash(identity), service.session_key.public_key())
    assert ours.session.service == Service(b"the id", crypto.key_hash(identity), service.session_key)
    assert ws.hides(session)
    (block,) = encode_blocks(
        ours.session, [encode_transmission(ours.session, bytes(24), b"id", b"NSUB", USER_KEYS[0], as_service=True)]
    )
    (t,) = parse_block(session, block)
    assert t.service_signature
    assert verify_transmission(session, t, USER_KEYS[0].public_key())


def refuse(_):
    raise HandshakeError("not this one")


def never(_):
    raise AssertionError("a bad service was taken")


def check_refused(theirs, hello, answer):
    """The server raises, has this answer, and a client that gets it knows."""
    with pytest.raises(HandshakeError):
        theirs.receive(padded(hello, "smp"))
    assert theirs.answer == answer
    ours = service_client()
    ours.receive(theirs.hello)
    with pytest.raises(ServiceRefusedError):
        ours.receive(padded(theirs.answer, "smp"))
    assert ours.session is None


def hello_with(**changes):
    hello = dataclasses.replace(SERVICE.hello(), **changes)
    return ClientHello(18, SERVER.key_hash, CLIENT_KEY.public_key(), hello).encode("smp")


def test_a_server_that_cannot_take_the_service_for_now():
    def unready(_):
        raise ServiceUnreadyError("the store is busy")

    theirs = server("smp", peer_chain=SERVICE.chain, services=unready)
    with pytest.raises(ServiceUnreadyError):
        theirs.receive(padded(hello_with(), "smp"))
    assert theirs.answer == b"EHANDSHAKE BAD_SERVICE"
    ours = service_client()
    ours.receive(theirs.hello)
    with pytest.raises(ServiceUnreadyError):
        ours.receive(padded(theirs.answer, "smp"))


@pytest.mark.parametrize("services", [None, refuse])
def test_this_server_takes_no_service(services):
    theirs = server("smp", peer_chain=SERVICE.chain, services=services)
    check_refused(theirs, hello_with(), b"EHANDSHAKE BAD_AUTH")


@pytest.mark.parametrize("role", [b"M", b"P", b"n"])
def test_service_of_another_role(role):
    theirs = server("smp", peer_chain=SERVICE.chain, services=never)
    check_refused(theirs, hello_with(role=role), b"EHANDSHAKE BAD_AUTH")


@pytest.mark.parametrize(
    "peer_chain", [(), SERVICE.chain[:1], SERVICE.chain[::-1], (*SERVICE.chain, CHAIN[1]), SERVICES[0].chain]
)
def test_service_chain_that_is_not_tls(peer_chain):
    theirs = server("smp", peer_chain=peer_chain, services=never)
    check_refused(theirs, hello_with(), b"EHANDSHAKE BAD_AUTH")


NOW = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
EC_LEAF = ec.generate_private_key(ec.SECP256R1())
LATER = Credentials.generate("ED25519", "service", NOW + datetime.timedelta(2))[0]


def ec_certificate():
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "service")])
    builder = x509.CertificateBuilder(name, name, EC_LEAF.public_key(), 1, NOW, NOW + datetime.timedelta(9))
    return builder.sign(EC_LEAF, SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("chain", "signer"),
    [
        ((), SERVICE.signer),
        (SERVICE.chain[:1], SERVICE.signer),  # signed by another certificate
        ((SERVICE.chain[0], CHAIN[1]), SERVICE.signer),
        ((*SERVICE.chain, *[SERVICE.chain[1]] * 3), SERVICE.signer),  # five
        ((b"no certificate", SERVICE.chain[1]), SERVICE.signer),
        (tuple(LATER.chain_der), LATER.key),
        ((ec_certificate(),), SERVICE.signer),
    ],
)
def test_service_with_bad_certificates(chain, signer):
    signed = crypto.SignedKey.sign(signer, SERVICE.session_key.public_key())
    theirs = server("smp", peer_chain=chain, services=never, now=NOW)
    check_refused(theirs, hello_with(chain=chain, key=signed), b"EHANDSHAKE BAD_AUTH")


@pytest.mark.parametrize(
    "key",
    [
        crypto.SignedKey.sign(SERVER.key, SERVICE.session_key.public_key()),
        crypto.SignedKey.sign(SERVICE.signer, CLIENT_KEY.public_key()),
        crypto.SignedKey.sign(SERVICE.signer, SERVER.key.public_key()),  # Ed448
    ],
)
def test_service_with_a_bad_session_key(key):
    theirs = server("smp", peer_chain=SERVICE.chain, services=never)
    check_refused(theirs, hello_with(key=key), b"EHANDSHAKE BAD_AUTH")


@pytest.mark.parametrize("hash_of", [SERVER, OTHER])
def test_no_answer_without_a_service(hash_of):
    theirs = server("smp", peer_chain=SERVICE.chain, services=never)
    answer = client("smp", key_hash=hash_of.key_hash).receive(theirs.hello)
    with contextlib.suppress(HandshakeError):
        assert theirs.receive(answer).service is None
    assert theirs.answer is None


# --- bytes

_SPKI = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x6e\x03\x21\x00"
_CLIENT_KEY_BYTES = b"\x2c" + _SPKI + CLIENT_KEY.public_key().public_bytes_raw()
_TBS = b"\x30\x2c" + _SPKI + SERVER_KEY.public_key().public_bytes_raw()


def signed_by_hand(key):
    """Ed25519 only."""
    content = _TBS + bytes.fromhex("300506032b6570") + b"\x03\x41\x00" + key.sign(_TBS)
    return large(b"\x30\x78" + content)


@pytest.mark.parametrize(
    ("scheme", "versions", "start", "middle"),
    [
        ("smp", (6, 18), b"\x00\x06\x00\x12", b"\x02" + b"".join(map(large, OTHER.chain_der))),
        ("smp", (6, 7), b"\x00\x06\x00\x07", b"\x02" + b"".join(map(large, OTHER.chain_der))),
        ("smp", (6, 6), b"\x00\x06\x00\x06", None),
        ("ntf", (1, 3), b"\x00\x01\x00\x03", b""),
        ("ntf", (1, 2), b"\x00\x01\x00\x02", b""),
        ("ntf", (1, 1), b"\x00\x01\x00\x01", None),
    ],
)
def test_server_hello_bytes(scheme, versions, start, middle):
    expected = start + b"\x30" + SESSION_ID
    if middle is not None:
        expected += middle + signed_by_hand(OTHER.key)
    assert server(scheme, versions=versions, signer=OTHER.key, chain=OTHER.chain_der).hello == expected
    ours = client(scheme, chain=OTHER.chain_der, key_hash=OTHER.key_hash)
    ours.receive(expected + b"unknown trailing bytes")
    assert ours.session.version == versions[1]


@pytest.mark.parametrize(
    ("scheme", "version", "rest"),
    [
        ("smp", 6, b""),
        ("smp", 7, _CLIENT_KEY_BYTES),
        ("smp", 13, _CLIENT_KEY_BYTES),
        ("smp", 14, _CLIENT_KEY_BYTES + b"F"),
        ("smp", 15, _CLIENT_KEY_BYTES + b"F"),
        ("smp", 16, _CLIENT_KEY_BYTES + b"F0"),
        ("smp", 18, _CLIENT_KEY_BYTES + b"F0"),
        ("ntf", 1, b""),
        ("ntf", 2, b""),
        ("ntf", 3, b""),
    ],
)
def test_client_hello_bytes(scheme, version, rest):
    expected = b"\x00" + bytes([version]) + b"\x20" + SERVER.key_hash + rest
    low = VERSIONS[scheme][0]
    assert client(scheme, versions=(low, version)).receive(server(scheme).hello) == expected
    session = server(scheme).receive(expected + b"unknown trailing bytes" * (version != 16))
    assert session.version == version


def test_service_hello_bytes():
    key = crypto.SignedKey.sign(OTHER.key, SERVER_KEY.public_key())
    hello = ClientHello(16, SERVER.key_hash, CLIENT_KEY.public_key(), ServiceHello((b"leaf", b"ca"), key))
    start = b"\x00\x10\x20" + SERVER.key_hash + _CLIENT_KEY_BYTES
    expected = start + b"F1N\x02\x00\x04leaf\x00\x02ca" + signed_by_hand(OTHER.key)
    assert hello.encode("smp") == expected
    assert ClientHello.parse(expected, "smp") == hello


# --- properties

_chains = st.lists(st.binary(max_size=50), max_size=4).map(tuple)


def server_hellos(scheme):
    low, high = VERSIONS[scheme]
    chains = _chains if scheme == "smp" else st.just(())
    with_key = st.builds(
        ServerHello, st.tuples(st.just(low), st.integers(KEY_FROM[scheme], high)), ws.shorts, chains, ws.signed_keys
    )
    return with_key | st.builds(ServerHello, st.just((low, low)), ws.shorts)


def client_hellos(scheme):
    if scheme == "ntf":
        return st.builds(ClientHello, st.integers(1, 3), ws.shorts)
    services = st.builds(ServiceHello, _chains, ws.signed_keys, st.binary(min_size=1, max_size=1))
    return st.one_of(
        st.builds(ClientHello, st.just(6), ws.shorts),
        st.builds(ClientHello, st.integers(7, 15), ws.shorts, ws.x25519_keys),
        st.builds(ClientHello, st.integers(16, 18), ws.shorts, ws.x25519_keys, st.none() | services),
    )


HELLOS = {ServerHello: server_hellos, ClientHello: client_hellos}


@pytest.mark.parametrize("scheme", ["smp", "ntf"])
@pytest.mark.parametrize("cls", HELLOS)
@given(st.data(), st.binary(max_size=20))
def test_round_trip(cls, scheme, data, trailing):
    hello = data.draw(HELLOS[cls](scheme))
    assert cls.parse(hello.encode(scheme) + trailing, scheme) == hello
    assert ws.hides(hello, shown={"key_hash"})


@pytest.mark.parametrize("scheme", ["smp", "ntf"])
@pytest.mark.parametrize("cls", HELLOS)
@given(st.data())
def test_any_bytes(cls, scheme, data):
    content = data.draw(ws.broken(HELLOS[cls](scheme).map(lambda h: h.encode(scheme))))
    try:
        hello = cls.parse(content, scheme)
    except ParseError:
        return
    assert cls.parse(hello.encode(scheme), scheme) == hello


@pytest.mark.parametrize("scheme", ["smp", "ntf"])
@given(st.data())
def test_machines_with_any_bytes(scheme, data):
    """A handshake ends well or with HandshakeError, and never with another secret."""
    theirs = server(scheme)
    ours = client(scheme)
    with contextlib.suppress(HandshakeError):
        answer = ours.receive(data.draw(ws.broken(st.just(theirs.hello))))
        assert ours.session.server_key in (SERVER_KEY.public_key(), None)
        assert ours.session.version in range(VERSIONS[scheme][0], VERSIONS[scheme][1] + 1)
        theirs.receive(answer)
    good = client(scheme).receive(theirs.hello)
    with contextlib.suppress(HandshakeError):
        assert theirs.receive(data.draw(ws.broken(st.just(good)))).session_id == SESSION_ID


@pytest.mark.parametrize("scheme", ["smp", "ntf"])
def test_bad_version_range(scheme):
    hello = server(scheme).hello
    with pytest.raises(ParseError):
        ServerHello.parse(hello[2:4] + hello[:2] + hello[4:], scheme)


def test_reprs():
    ours, theirs = shake("smp", client("smp"), server("smp"))
    assert ws.hides(ours)
    assert ws.hides(theirs)
    assert ws.hides(SERVICE)
    assert ws.hides(SERVICE.hello())
