import pytest
import wire_strategies as ws
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import crypto, smp
from smp_bridge.encoding import ParseError
from smp_bridge.transmission import (
    ERR_AUTH,
    UnknownTagError,
)

VERSIONS = range(6, 19)
TYPES = [*smp.COMMANDS.values(), *smp.ANSWERS.values()]

AUTH = Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key()
NOTIFIER = Ed448PrivateKey.from_private_bytes(b"n" * 57).public_key()
DH, DH2 = (X25519PrivateKey.from_private_bytes(b * 32).public_key() for b in (b"d", b"e"))
AUTH_BYTES = b"\x2c" + bytes.fromhex("302a300506032b6570032100") + AUTH.public_bytes_raw()
NOTIFIER_BYTES = b"\x45" + bytes.fromhex("3043300506032b6571033a00") + NOTIFIER.public_bytes_raw()
DH_BYTES = b"\x2c" + bytes.fromhex("302a300506032b656e032100") + DH.public_bytes_raw()
DH2_BYTES = b"\x2c" + bytes.fromhex("302a300506032b656e032100") + DH2.public_bytes_raw()
RCV, SND, LINK, SERVICE, NID = (bytes([i]) * 24 for i in range(1, 6))
CREDS, SERVER_CREDS = smp.NtfCreds(NOTIFIER, DH2), smp.ServerNtfCreds(NID, DH2)


def parser(cls):
    return smp.parse_command if cls in smp.COMMANDS.values() else smp.parse_answer


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cls", TYPES)
def test_round_trip(cls, version):
    @given(ws.smp_messages(cls, version))
    def check(message):
        data = message.encode(version)
        parsed = parser(cls)(data, version)
        assert ws.plain(parsed) == ws.plain(message)
        assert parsed == message
        assert type(parsed) is cls
        assert data.split(b" ")[0] == cls.tag

    check()


@pytest.mark.parametrize("cls", TYPES)
@given(st.data())
def test_any_bytes(cls, data):
    version = data.draw(st.sampled_from(VERSIONS))
    broken = data.draw(ws.broken(ws.smp_messages(cls, version).map(lambda m: m.encode(version))))
    for parse in (smp.parse_command, smp.parse_answer):
        try:
            message = parse(broken, version)
        except ParseError as e:
            assert len(str(e)) < 60
        else:
            assert parse(message.encode(version), version) == message


@pytest.mark.parametrize("cls", TYPES)
@given(st.data())
def test_trailing_and_missing_bytes(cls, data):
    version = data.draw(st.sampled_from(VERSIONS))
    encoded = data.draw(ws.smp_messages(cls, version)).encode(version)
    tails = {smp.Send, smp.Msg, smp.ANSWERS[b"ERR"]}
    for bad in [encoded + b" "] * (cls not in tails) + [encoded[: len(cls.tag) + 1]] * (
        not cls.bare and cls.tag != b"ERR"
    ):
        with pytest.raises(ParseError):
            parser(cls)(bad, version)


@pytest.mark.parametrize("cls", TYPES)
@given(st.data())
def test_reprs(cls, data):
    message = data.draw(ws.smp_messages(cls, 18))
    assert ws.hides(message, shown={"message_id", "nonce"})


NEW = [
    (6, smp.New(AUTH, DH, None, "S", None), b"S"),
    (8, smp.New(AUTH, DH, b"pw", "C", None), b"A\x02pwC"),
    (9, smp.New(AUTH, DH, None, "S", "M"), b"0ST"),
    (14, smp.New(AUTH, DH, b"pw", "C", "C"), b"1\x02pwCF"),
    (15, smp.New(AUTH, DH, None, "S", None), b"0S0"),
    (15, smp.New(AUTH, DH, b"pw", "S", "M"), b"1\x02pwS1M0"),
    (16, smp.New(AUTH, DH, None, "C", "C"), b"0C1C0"),
    (17, smp.New(AUTH, DH, None, "S", "M"), b"0S1M00"),
    (17, smp.New(AUTH, DH, b"", "S", "M", CREDS), b"1\x00S1M01" + NOTIFIER_BYTES + DH2_BYTES),
    (18, smp.New(AUTH, DH, None, "C", None, CREDS), b"0C01" + NOTIFIER_BYTES + DH2_BYTES),
]
IDS = [
    (6, smp.Ids(RCV, SND, DH, None), b""),
    (8, smp.Ids(RCV, SND, DH, None), b""),
    (9, smp.Ids(RCV, SND, DH, "M"), b"T"),
    (14, smp.Ids(RCV, SND, DH, "C"), b"F"),
    (15, smp.Ids(RCV, SND, DH, "M", LINK), b"1M1\x18" + LINK),
    (15, smp.Ids(RCV, SND, DH, None), b"00"),
    (16, smp.Ids(RCV, SND, DH, "C", None, SERVICE), b"1C01\x18" + SERVICE),
    (17, smp.Ids(RCV, SND, DH, "M"), b"1M000"),
    (17, smp.Ids(RCV, SND, DH, "M", None, None, SERVER_CREDS), b"1M001\x18" + NID + DH2_BYTES),
    (
        18,
        smp.Ids(RCV, SND, DH, "M", LINK, SERVICE, SERVER_CREDS),
        (b"1M1\x18" + LINK + b"1\x18" + SERVICE + b"1\x18" + NID + DH2_BYTES),
    ),
]


@pytest.mark.parametrize(("version", "message", "rest"), NEW)
def test_new_bytes(version, message, rest):
    data = b"NEW " + AUTH_BYTES + DH_BYTES + rest
    assert message.encode(version) == data
    assert smp.parse_command(data, version) == message


@pytest.mark.parametrize(("version", "message", "rest"), IDS)
def test_ids_bytes(version, message, rest):
    data = b"IDS \x18" + RCV + b"\x18" + SND + DH_BYTES + rest
    assert message.encode(version) == data
    assert smp.parse_answer(data, version) == message


_NONCE, _META = bytes(range(24)), bytes(range(100, 244))


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (smp.Sub(), b"SUB"),
        (smp.Key(AUTH), b"KEY " + AUTH_BYTES),
        (smp.SKey(DH), b"SKEY " + DH_BYTES),
        (smp.NKey(CREDS), b"NKEY " + NOTIFIER_BYTES + DH2_BYTES),
        (smp.NDel(), b"NDEL"),
        (smp.Get(), b"GET"),
        (smp.Ack(RCV), b"ACK \x18" + RCV),
        (smp.Off(), b"OFF"),
        (smp.Del(), b"DEL"),
        (smp.Send(True, b"a b"), b"SEND T a b"),
        (smp.Send(False, b""), b"SEND F "),
        (smp.NSub(), b"NSUB"),
        (smp.Ping(), b"PING"),
        (smp.Nid(SERVER_CREDS), b"NID \x18" + NID + DH2_BYTES),
        (smp.Ok(), b"OK"),
        (smp.SOk(None), b"SOK 0"),
        (smp.SOk(SERVICE), b"SOK 1\x18" + SERVICE),
        (smp.Msg(RCV, b"box"), b"MSG \x18" + RCV + b"box"),
        (smp.NMsg(_NONCE, _META), b"NMSG " + _NONCE + b"\x90" + _META),
        (smp.End(), b"END"),
        (smp.Deld(), b"DELD"),
        (smp.Pong(), b"PONG"),
        (ERR_AUTH, b"ERR AUTH"),
    ],
)
@pytest.mark.parametrize("version", [6, 18, 20])
def test_bytes(version, message, data):
    assert message.encode(version) == data
    assert parser(type(message))(data, version) == message


@pytest.mark.parametrize(
    ("message", "before", "since"),
    [
        (smp.NSubs, b"NSUBS", b"NSUBS \0\0\0\0\0\0\x01\x02"),
        (smp.SOks, b"SOKS \0\0\0\0\0\0\x01\x02", b"SOKS \0\0\0\0\0\0\x01\x02"),
        (smp.Ends, b"ENDS \0\0\0\0\0\0\x01\x02", b"ENDS \0\0\0\0\0\0\x01\x02"),
    ],
)
def test_counts_have_hashes_since_version_19(message, before, since):
    parse, ids_hash = parser(message), bytes(range(16))
    counted = message(258, ids_hash)
    for version in (16, 18):
        assert counted.encode(version) == before
        plain = parse(before, version)
        assert plain == (smp.NSubs() if message is smp.NSubs else message(258))
        with pytest.raises(ParseError):
            parse(counted.encode(19), version)
    for version in (19, 20):
        assert counted.encode(version) == since + b"\x10" + ids_hash
        assert parse(since + b"\x10" + ids_hash, version) == counted
        for wrong in (before, since + b"\x0f" + ids_hash[:15], since + b"\0"):
            with pytest.raises(ParseError):
                parse(wrong, version)
    assert smp.NSubs().encode(19) == b"NSUBS " + b"\xff" * 8 + b"\x10" + bytes(16)  # it does not know
    assert smp.SOks(1).encode(19) == b"SOKS " + b"\0" * 7 + b"\x01\x10" + bytes(16)


@pytest.mark.parametrize("version", [6, 15, 16, 18, 19, 20])
@pytest.mark.parametrize("data", [b"OK", b"SOK 0", b"SOK 1\x18" + SERVICE])
def test_both_answers_to_nsub(version, data):
    assert isinstance(smp.parse_answer(data, version), smp.Ok | smp.SOk)


@pytest.mark.parametrize("flags", [b"T", b"T1", b"F123456"])
def test_reserved_flags_of_send(flags):
    assert smp.parse_command(b"SEND " + flags + b" body", 18) == smp.Send(flags.startswith(b"T"), b"body")


@pytest.mark.parametrize("data", [b"", b" ", b"sub", b"SUB\n", b"XSUB", b"OK", b"NEW\x00", b"SKIP T"])
def test_unknown_commands(data):
    with pytest.raises(UnknownTagError):
        smp.parse_command(data, 18)


_X448 = X448PrivateKey.from_private_bytes(bytes(56)).public_key()
_X448_BYTES = b"\x44" + crypto.encode_public(_X448)


@pytest.mark.parametrize(
    ("version", "data"),
    [
        (18, b"SUB "),
        (18, b"SUB x"),
        (18, b"KEY"),
        (18, b"KEY " + _X448_BYTES),
        (18, b"NKEY " + DH_BYTES + AUTH_BYTES),
        (6, b"NEW " + AUTH_BYTES + DH_BYTES),
        (6, b"NEW " + AUTH_BYTES + DH_BYTES + b"X"),
        (6, b"NEW " + AUTH_BYTES + DH_BYTES + b"ST"),
        (9, b"NEW " + AUTH_BYTES + DH_BYTES + b"S"),
        (9, b"NEW " + AUTH_BYTES + AUTH_BYTES + b"0ST"),
        (15, b"NEW " + AUTH_BYTES + DH_BYTES + b"0ST"),
        (17, b"NEW " + AUTH_BYTES + DH_BYTES + b"0S1M0"),
        (17, b"NEW " + AUTH_BYTES + DH_BYTES + b"0S1M01" + DH_BYTES + AUTH_BYTES),
        (18, b"SEND "),
        (18, b"SEND X body"),
        (18, b"SEND T1234567 body"),
        (18, b"SEND Tbody"),
    ],
)
def test_bad_parameters(version, data):
    with pytest.raises(ParseError) as raised:
        smp.parse_command(data, version)
    assert not isinstance(raised.value, UnknownTagError)
