import pytest
import wire_strategies as ws
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import ParseError, short
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus
from smp_bridge.transmission import ERR_AUTH, UnknownTagError

VERSIONS = range(1, 4)
TYPES = [*ntf.COMMANDS.values(), *ntf.ANSWERS.values()]

PRIVATE = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
AUTH = PRIVATE.public_key()
AUTH448 = Ed448PrivateKey.from_private_bytes(b"k" * 57).public_key()
DH = X25519PrivateKey.from_private_bytes(b"d" * 32).public_key()
AUTH_BYTES = b"\x2c" + bytes.fromhex("302a300506032b6570032100") + AUTH.public_bytes_raw()
AUTH448_BYTES = b"\x45" + bytes.fromhex("3043300506032b6571033a00") + AUTH448.public_bytes_raw()
DH_BYTES = b"\x2c" + bytes.fromhex("302a300506032b656e032100") + DH.public_bytes_raw()
PRIVATE_BYTES = b"\x30" + bytes.fromhex("302e020100300506032b657004220420") + b"k" * 32
TOKEN_ID, NOTIFIER_ID, CODE, HASH = b"t" * 24, b"n" * 24, bytes(range(32)), b"h" * 32
SERVER = ServerAddress("smp", ("smp.example.org", "127.0.0.1"), "5223", HASH)
SERVER_BYTES = b"\x02\x0fsmp.example.org\x09127.0.0.1\x045223\x20" + HASH
WEB_PUSH = b"\x08push.org\x03443\x05/path\x10" + b"a" * 16 + b"\x41" + b"p" * 65
TEST_TOKEN = DeviceToken(Provider.APNS_TEST, b"token")


def parser(cls):
    return ntf.parse_command if cls in ntf.COMMANDS.values() else ntf.parse_answer


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cls", TYPES)
def test_round_trip(cls, version):
    @given(ws.ntf_messages(cls, version))
    def check(message):
        data = message.encode(version)
        parsed = parser(cls)(data, version)
        assert ws.plain(parsed) == ws.plain(message)
        assert parsed.encode(version) == data
        assert type(parsed) is cls

    check()


@pytest.mark.parametrize("cls", TYPES)
@given(st.data())
def test_any_bytes(cls, data):
    version = data.draw(st.sampled_from(VERSIONS))
    broken = data.draw(ws.broken(ws.ntf_messages(cls, version).map(lambda m: m.encode(version))))
    for parse in (ntf.parse_command, ntf.parse_answer):
        try:
            message = parse(broken, version)
        except ParseError as e:
            assert len(str(e)) < 60
        else:
            again = parse(message.encode(3), 3)
            assert ws.plain(again) == ws.plain(message)


@pytest.mark.parametrize("cls", TYPES)
@given(st.data())
def test_reprs(cls, data):
    assert ws.hides(data.draw(ws.ntf_messages(cls, 3)), shown={"server"})


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (ntf.TNew(TEST_TOKEN, AUTH, DH), b"TNEW TAT\x05token" + AUTH_BYTES + DH_BYTES),
        (
            ntf.TNew(DeviceToken(Provider.APNS, b""), AUTH448, DH),
            b"TNEW TAP\x00" + AUTH448_BYTES + DH_BYTES,
        ),
        (
            ntf.TNew(DeviceToken(Provider.WEB_PUSH, WEB_PUSH), DH, DH),
            b"TNEW TWP" + WEB_PUSH + DH_BYTES + DH_BYTES,
        ),
        (ntf.TVfy(CODE), b"TVFY \x20" + CODE),
        (ntf.TChk(), b"TCHK"),
        (ntf.TRpl(DeviceToken(Provider.FCM, b"a b")), b"TRPL FC\x03a b"),
        (ntf.TDel(), b"TDEL"),
        (ntf.TCrn(258), b"TCRN \x01\x02"),
        (ntf.TCrn(0x2020), b"TCRN   "),
        (ntf.SChk(), b"SCHK"),
        (ntf.SDel(), b"SDEL"),
        (ntf.Ping(), b"PING"),
        (ntf.IdTkn(TOKEN_ID, DH), b"IDTKN \x18" + TOKEN_ID + DH_BYTES),
        (ntf.IdSub(NOTIFIER_ID), b"IDSUB \x18" + NOTIFIER_ID),
        (ntf.Ok(), b"OK"),
        (ntf.Tkn(TokenStatus.CONFIRMED), b"TKN CONFIRMED"),
        (ntf.Tkn(TokenStatus.INVALID), b"TKN INVALID"),
        (ntf.Sub(SubscriptionStatus.ACTIVE), b"SUB ACTIVE"),
        (ntf.Sub(SubscriptionStatus.ERR, "some text"), b"SUB ERR some text"),
        (ntf.Pong(), b"PONG"),
        (ERR_AUTH, b"ERR AUTH"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_bytes(version, message, data):
    assert message.encode(version) == data
    assert parser(type(message))(data, version) == message


@pytest.mark.parametrize("version", VERSIONS)
def test_snew_bytes(version):
    data = b"SNEW S\x18" + TOKEN_ID + SERVER_BYTES + b"\x18" + NOTIFIER_ID + PRIVATE_BYTES
    message = ntf.SNew(TOKEN_ID, SERVER, NOTIFIER_ID, PRIVATE)
    assert message.encode(version) == data
    parsed = ntf.parse_command(data, version)
    assert parsed == ntf.SNew(TOKEN_ID, SERVER, NOTIFIER_ID, crypto.quick_private(PRIVATE))
    assert parsed.encode(version) == data


@pytest.mark.parametrize("reason", InvalidReason)
def test_reason_is_told_from_version_3(reason):
    message = ntf.Tkn(TokenStatus.INVALID, reason)
    assert message.encode(3) == b"TKN INVALID," + reason.encode()
    assert message.encode(2) == message.encode(1) == b"TKN INVALID"
    assert ntf.parse_answer(message.encode(3), 3) == message


def test_statuses_are_those_of_the_protocol():
    assert set(TokenStatus) == {"NEW", "REGISTERED", "CONFIRMED", "ACTIVE", "EXPIRED", "INVALID"}
    statuses = {"NEW", "PENDING", "ACTIVE", "INACTIVE", "END", "DELETED", "AUTH", "SERVICE", "ERR"}
    assert set(SubscriptionStatus) == statuses
    assert set(InvalidReason) == {"BAD", "TOPIC", "EXPIRED", "UNREGISTERED"}
    assert set(Provider) == {"AD", "AP", "AT", "AN", "FC", "WP"}


@pytest.mark.parametrize("data", [b"", b"tchk", b"TCHK\x00", b"NSUB", b"OK"])
def test_unknown_commands(data):
    with pytest.raises(UnknownTagError):
        ntf.parse_command(data, 3)


_X448 = X448PrivateKey.from_private_bytes(bytes(56))
_SNEW = b"SNEW S\x18" + TOKEN_ID + SERVER_BYTES + b"\x18" + NOTIFIER_ID


@pytest.mark.parametrize(
    "data",
    [
        b"TCHK ",
        b"TNEW",
        b"TNEW SAT\x05token" + AUTH_BYTES + DH_BYTES,
        b"TNEW TXX\x05token" + AUTH_BYTES + DH_BYTES,
        b"TNEW TAT\x05token" + AUTH_BYTES + AUTH_BYTES,
        b"TNEW TAT\x05token" + short(crypto.encode_public(_X448.public_key())) + DH_BYTES,
        b"TNEW TAT\x05token" + AUTH_BYTES + DH_BYTES + b".",
        b"TNEW TAT\x05token" + AUTH_BYTES,
        b"TRPL WP" + WEB_PUSH[:-1],
        b"TRPL WP\x00" + WEB_PUSH[9:],
        b"TRPL WP" + WEB_PUSH.replace(b"\x10" + b"a" * 16, b"\x0f" + b"a" * 15),
        b"TRPL WP" + WEB_PUSH.replace(b"\x41" + b"p" * 65, b"\x40" + b"p" * 64),
        b"TCRN \x01",
        b"TCRN \x01\x02\x03",
        b"TVFY \x20" + CODE[:-1],
        _SNEW,
        _SNEW + PRIVATE_BYTES + b".",
        _SNEW + AUTH_BYTES,
        _SNEW + short(crypto.encode_private(_X448)),
        b"SNEW T" + (_SNEW + PRIVATE_BYTES)[6:],
        (_SNEW + PRIVATE_BYTES).replace(b"\x20" + HASH, b"\x1f" + HASH[:31]),
        (_SNEW + PRIVATE_BYTES).replace(b"127.0.0.1", b"127 0 0 1"),
    ],
)
def test_bad_parameters(data):
    with pytest.raises(ParseError) as raised:
        ntf.parse_command(data, 3)
    assert not isinstance(raised.value, UnknownTagError)


@pytest.mark.parametrize(
    "data",
    [
        b"TKN",
        b"TKN ",
        b"TKN \xff",
        b"TKN active",
        b"TKN ACTIVE,BAD",
        b"TKN INVALID,",
        b"TKN INVALID,NEW",
        b"TKN INVALID,BAD,BAD",
        b"SUB ",
        b"SUB ERR",
        b"SUB NONE",
        b"SUB NONE x",
        b"SUB ACTIVE x",
        b"IDSUB \x18",
    ],
)
def test_bad_answers(data):
    with pytest.raises(ParseError):
        ntf.parse_answer(data, 3)


# --- entries of a push

ENTRIES = st.builds(ntf.Entry, ws.smp_addresses.map(str), ws.shorts, ws.times, ws.nonces, ws.shorts)


@given(ENTRIES)
def test_entries(entry):
    data = entry.encode()
    assert ntf.Entry.parse(data) == entry
    assert b";" not in data
    assert data.count(b" ") == 3
    assert ws.hides(entry, shown={"server"})


def test_entry_bytes():
    entry = ntf.Entry("smp://aGFzaA==@a.org:5223", b"\xfb\xff\xbe", 1700000000, b"nonce", b"m")
    data = b"smp://aGFzaA==@a.org:5223/-_--  1700000000 bm9uY2U= bQ==".replace(b"  ", b" ")
    assert entry.encode() == data
    assert ntf.Entry.parse(data) == entry


@given(ws.broken(ENTRIES.map(ntf.Entry.encode)))
def test_any_bytes_as_entry(data):
    try:
        entry = ntf.Entry.parse(data)
    except ParseError:
        return
    assert ntf.Entry.parse(entry.encode()) == entry


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"server 1 AA== AA==",
        b"server/AA== x AA== AA==",
        b"server/AA== -1 AA== AA==",
        b"server/AA==  1 AA== AA==",
        b"server/AA== 1 AA==",
        b"server/AA== 1 AA== AA== ",
        b"server/AA== 1 A AA==",
        b"server/AA== 10000000000000000000 AA== AA==",
        "server/AA== \N{ARABIC-INDIC DIGIT ONE} AA== AA==".encode(),
    ],
)
def test_bad_entries(data):
    with pytest.raises(ParseError):
        ntf.Entry.parse(data)
