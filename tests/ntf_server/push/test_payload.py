import base64
import json
import os
from collections.abc import Sequence

import pytest
from claims import claim
from hypothesis import given, settings
from hypothesis import strategies as st

from ntf_server.push import payload
from ntf_server.push.payload import APNS_LIMIT, PADDED_SIZE, entries
from ntf_server.store.records import MAX_ENTRIES, Claim, PushKind
from ntf_server.store.records import Entry as Stored
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Entry, Provider

SECRET = bytes(range(32))
CODE = bytes(range(100, 132))
BACKGROUND = {"content-available": 1}
ALERT = {
    "mutable-content": 1,
    "alert": "Encrypted message or another app event",
    "category": "NTF_CAT_CHECK_MESSAGE",
}
SERVER = ServerAddress("smp", ("smp8.simplex.im", "a" * 56 + ".onion"), "5223", b"h" * 32)
LONG = ServerAddress("smp", ("h" * 200, "i" * 200), "5223", b"h" * 32)  # SNEW, in a block of 512 bytes, has no room


def stored(seq: int, *, sent: bool = False, server: ServerAddress = SERVER) -> Stored:
    return Stored(seq, seq, sent, server, seq.to_bytes(24), 1_800_000_000 + seq, bytes([seq]) * 24, bytes([seq]) * 144)


def push(kind: PushKind, notifications: Sequence[Stored] = (), code: bytes = CODE) -> Claim:
    return claim(Provider.APNS, b"device", kind, code=code, entries=tuple(notifications))


def apns_body(push: Claim) -> tuple[bytes, tuple[Stored, ...]]:
    return payload.apns_body(push, os.urandom(24))


def opened(body: bytes, name: str) -> bytes:
    data = json.loads(body)["notificationData"]
    nonce, sealed = base64.urlsafe_b64decode(data["nonce"]), base64.urlsafe_b64decode(data[name])
    padded = crypto.unbox(SECRET, nonce, sealed)
    assert len(padded) == PADDED_SIZE
    return crypto.unpad(padded)


def parsed(body: bytes) -> list[Entry]:
    return [Entry.parse(entry) for entry in opened(body, "message").split(b";")]


def entry(s: Stored) -> Entry:
    return Entry(str(s.server), s.notifier_id, s.received_at, s.nonce, s.meta)


# --- the bodies, to the letter


def test_verification() -> None:
    body, held = apns_body(push(PushKind.VERIFICATION))
    data = json.loads(body)["notificationData"]
    assert json.loads(body) == {"aps": BACKGROUND, "notificationData": data}
    assert set(data) == {"nonce", "verification"}
    assert opened(body, "verification") == CODE
    assert held == ()


def test_messages() -> None:
    notifications = [stored(1, sent=True), stored(2)]
    body, held = apns_body(push(PushKind.MESSAGES, notifications))
    data = json.loads(body)["notificationData"]
    assert json.loads(body) == {"aps": ALERT, "notificationData": data}
    assert set(data) == {"nonce", "message"}
    assert parsed(body) == [entry(n) for n in notifications]
    assert list(held) == notifications


def test_check() -> None:
    body, held = apns_body(push(PushKind.CHECK))
    assert json.loads(body) == {"aps": BACKGROUND, "notificationData": {"checkMessages": True}}
    assert held == ()


def test_an_entry_is_text_that_the_apps_read() -> None:
    plain, _ = entries([stored(7)])
    server, seconds, nonce, meta = plain.decode("ascii").split(" ")
    b64 = base64.urlsafe_b64encode
    hosts = ",".join(SERVER.hosts)
    queue = b64((7).to_bytes(24)).decode()
    assert server == f"smp://{b64(b'h' * 32).decode()}@{hosts}:5223/{queue}"
    assert (seconds, nonce, meta) == ("1800000007", b64(b"\7" * 24).decode(), b64(b"\7" * 144).decode())


def test_a_body_has_the_given_nonce() -> None:
    nonce = bytes(range(24))
    for kind, notifications in ((PushKind.VERIFICATION, []), (PushKind.MESSAGES, [stored(1)])):
        body, _ = payload.apns_body(push(kind, notifications), nonce)
        assert base64.urlsafe_b64decode(json.loads(body)["notificationData"]["nonce"]) == nonce


def test_no_body_opens_with_another_secret() -> None:
    data = json.loads(apns_body(push(PushKind.VERIFICATION))[0])["notificationData"]
    nonce, sealed = (base64.urlsafe_b64decode(data[name]) for name in ("nonce", "verification"))
    with pytest.raises(crypto.CryptoError):
        crypto.unbox(bytes(32), nonce, sealed)


# --- sizes

SERVERS = st.builds(
    ServerAddress,
    st.just("smp"),
    st.lists(st.text("abcdefghi.-", min_size=1, max_size=255), min_size=1, max_size=5).map(tuple),
    st.sampled_from(["", "5223", "65535"]),
    st.binary(min_size=32, max_size=32),
)
NOTIFICATIONS = st.tuples(
    st.binary(max_size=255),
    st.integers(0, 2**40),
    st.binary(min_size=24, max_size=24),
    st.binary(max_size=255),
)


@st.composite
def pushed(draw: st.DrawFn) -> list[Stored]:
    """Up to six, in the order of arrival, at least one of them not sent."""
    count = draw(st.integers(1, MAX_ENTRIES))
    sent = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(lambda s: not all(s)))
    servers = draw(st.lists(SERVERS, min_size=1, max_size=2))
    return [Stored(i, i, s, servers[i % len(servers)], *draw(NOTIFICATIONS)) for i, s in enumerate(sent)]


@settings(max_examples=150, deadline=None)
@given(pushed())
def test_whatever_it_holds_a_body_has_one_size_and_nothing_is_left_out_in_silence(
    notifications: list[Stored],
) -> None:
    body, held = apns_body(push(PushKind.MESSAGES, notifications))
    assert len(body) == len(apns_body(push(PushKind.MESSAGES, [stored(1)]))[0]) <= APNS_LIMIT
    assert parsed(body) == [entry(n) for n in held]
    assert [n for n in notifications if n in held] == list(held)  # in order
    unsent = [n for n in notifications if not n.sent]
    fresh = [n for n in held if not n.sent]
    assert fresh  # so that each push gets something done
    assert fresh == unsent[: len(fresh)]  # the oldest: the rest goes next
    if len(fresh) < len(unsent):
        assert held == tuple(fresh)  # only after all that was sent before had to go
    if len(held) < len(notifications):
        left = next(n for n in reversed(notifications) if n not in held)
        assert len(b";".join(entry(n).encode() for n in (*held, left))) > PADDED_SIZE - 2


def test_all_of_a_kind_have_one_size() -> None:
    for kind, name in ((PushKind.VERIFICATION, "verification"), (PushKind.MESSAGES, "message")):
        few = apns_body(push(kind, [stored(1)], b""))[0]
        many = apns_body(push(kind, [stored(i, server=LONG) for i in range(MAX_ENTRIES)], b"x" * 500))[0]
        assert len(few) == len(many) <= APNS_LIMIT
        assert len(opened(few, name)) < len(opened(many, name))


def test_the_padded_size_is_the_largest_that_fits() -> None:
    nonce = base64.urlsafe_b64encode(bytes(24)).decode()

    def length(size: int) -> int:
        sealed = base64.urlsafe_b64encode(crypto.box(SECRET, bytes(24), bytes(size))).decode()
        data = {"nonce": nonce, "message": sealed}
        return len(json.dumps({"aps": ALERT, "notificationData": data}, separators=(",", ":")))

    assert len(apns_body(push(PushKind.MESSAGES, [stored(1)]))[0]) == length(PADDED_SIZE) <= APNS_LIMIT
    assert length(PADDED_SIZE + 1) > APNS_LIMIT


def test_six_queues_of_a_usual_server_fit() -> None:
    notifications = [stored(i, sent=i < 5) for i in range(MAX_ENTRIES)]
    assert entries(notifications)[1] == notifications


def test_the_longest_notification_there_can_be_fits() -> None:
    longest = Stored(1, 1, False, LONG, bytes(255), 2**40, bytes(24), bytes(255))
    body, held = apns_body(push(PushKind.MESSAGES, [longest]))
    assert len(held) == 1
    assert len(body) <= APNS_LIMIT


@pytest.mark.parametrize(
    ("sent", "size", "kept"),
    [
        ("ssssuu", 6, "012345"),
        ("ssssuu", 5, "12345"),
        ("ssssuu", 3, "345"),
        ("ssssuu", 2, "45"),
        ("ssssuu", 1, "4"),
        ("susuuu", 4, "1345"),
        ("susuuu", 2, "13"),
        ("uuuuuu", 5, "01234"),
        ("uuuuuu", 1, "0"),
        ("us", 1, "0"),
        ("su", 1, "1"),
        ("u", 0, "0"),
    ],
)
def test_what_was_sent_goes_first_then_the_newest(sent: str, size: int, kept: str) -> None:
    notifications = [stored(i, sent=s == "s") for i, s in enumerate(sent)]
    each = len(entry(notifications[0]).encode()) + 1
    plain, held = entries(notifications, each * size - 1 + 2)
    assert [n.seq for n in held] == [int(c) for c in kept]
    assert plain == b";".join(entry(n).encode() for n in held)


def test_a_single_notification_that_does_not_fit_is_an_error() -> None:
    server = ServerAddress("smp", ("h" * 255,) * 12, "", bytes(32))
    with pytest.raises(ValueError, match="too large"):
        apns_body(push(PushKind.MESSAGES, [stored(1, server=server)]))
