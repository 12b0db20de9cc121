"""`open_push`: every form of every kind, and that nothing else than PushError comes of a bad payload."""

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_client import CheckMessages, NotificationInfo, Notifications, PushError, VerificationCode, open_push
from smp_bridge import crypto
from smp_bridge.encoding import b64url
from smp_bridge.messages import MessageMeta
from smp_bridge.ntf import Entry

SECRET, QUEUE_SECRET = bytes(range(32)), bytes(range(32, 64))
NONCE, CODE = bytes(range(24)), bytes(range(100, 132))
META = MessageMeta(b"message id of 24 bytes..", 1_700_000_000)
SERVER = f"smp://{b64url(bytes(32))}@smp.example.org"


def sealed(kind: str, plain: bytes, secret: bytes = SECRET) -> dict[str, Any]:
    return {"nonce": b64url(NONCE), kind: b64url(crypto.box(secret, NONCE, crypto.pad(plain, 2000)))}


def entry(notifier_id: bytes = b"notifier", nonce: bytes = NONCE, server: str = SERVER) -> Entry:
    return Entry(server, notifier_id, 1_700_000_001, nonce, META.seal(QUEUE_SECRET, nonce[:24].ljust(24)))


VERIFICATION = sealed("verification", CODE)
MESSAGE = sealed("message", b";".join(entry(i).encode() for i in (b"one", b"two")))


def forms(data: dict[str, Any]) -> list[Any]:
    """The same push as APNs, FCM and Web Push bring it; as the server builds it, FCM's data is that of the latter."""
    apns = {"aps": {"mutable-content": 1, "alert": "text"}, "notificationData": data}
    fcm = {"notificationData": json.dumps(data)}
    as_text = [json.dumps(body) for body in (apns, data, fcm)]
    return [apns, data, fcm, *as_text, *(text.encode() for text in as_text)]


@pytest.mark.parametrize("payload", forms(VERIFICATION))
def test_verification(payload: Any) -> None:
    assert open_push(payload, SECRET) == VerificationCode(CODE)


@pytest.mark.parametrize("payload", [*forms({"checkMessages": True}), *forms({"checkMessages": "true"})])
def test_check_messages(payload: Any) -> None:
    assert open_push(payload, SECRET) == CheckMessages()


@pytest.mark.parametrize("payload", forms(MESSAGE))
def test_messages(payload: Any) -> None:
    content = open_push(payload, SECRET)
    assert isinstance(content, Notifications)
    assert [i.notifier_id for i in content.infos] == [b"one", b"two"]
    for info in content.infos:
        assert (info.server, info.received_at, info.nonce) == (SERVER, 1_700_000_001, NONCE)
        assert info.key_hash == bytes(32)
        assert info.open(QUEUE_SECRET) == META


def test_base64url_without_padding_is_taken() -> None:
    assert open_push({k: v.rstrip("=") for k, v in VERIFICATION.items()}, SECRET) == VerificationCode(CODE)


@pytest.mark.parametrize("secret", [bytes(32), SECRET, b"", QUEUE_SECRET[:31]])
def test_a_notification_of_another_queue_does_not_open(secret: bytes) -> None:
    content = open_push(MESSAGE, SECRET)
    assert isinstance(content, Notifications)
    with pytest.raises(PushError, match="queue"):
        content.infos[0].open(secret)


@pytest.mark.parametrize("inside", [b"", b"\xff", b"\x18short"])
def test_metadata_that_opens_but_does_not_parse(inside: bytes) -> None:
    info = NotificationInfo(SERVER, b"id", 1, NONCE, crypto.box(QUEUE_SECRET, NONCE, crypto.pad(inside, 128)))
    with pytest.raises(PushError):
        info.open(QUEUE_SECRET)


def test_a_server_that_is_no_address() -> None:
    content = open_push(sealed("message", entry(server="newer://form").encode()), SECRET)
    assert isinstance(content, Notifications)
    assert (content.infos[0].server, content.infos[0].key_hash) == ("newer://form", None)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"null",
        "[]",
        "{",
        "[" * 100_000,
        "1" * 10_000,
        {},
        {"notificationData": None},
        {"notificationData": []},
        {"notificationData": "not JSON"},
        {"notificationData": '"text"'},
        {"checkMessages": False},
        {"checkMessages": 1},
        {"checkMessages": True, **VERIFICATION},
        {**VERIFICATION, **MESSAGE},
        {"verification": VERIFICATION["verification"]},
        {**VERIFICATION, "nonce": None},
        {**VERIFICATION, "nonce": "%"},
        {**VERIFICATION, "nonce": "\ud800"},
        {**VERIFICATION, "nonce": b64url(NONCE[:23])},
        {**VERIFICATION, "nonce": b64url(bytes(24))},
        {**VERIFICATION, "verification": ""},
        {"nonce": VERIFICATION["nonce"], "message": VERIFICATION["verification"]},
        sealed("verification", CODE, QUEUE_SECRET),
        sealed("verification", b""),
        sealed("verification", bytes(256)),
        sealed("message", b""),
        sealed("message", entry().encode() + b";"),
        sealed("message", entry(nonce=bytes(23)).encode()),
        sealed("message", entry().encode().replace(b" 1700000001 ", b" -1 ")),
        {"nonce": b64url(NONCE), "message": b64url(crypto.box(SECRET, NONCE, b"\xff\xff"))},
    ],
)
def test_bad_payloads(payload: Any) -> None:
    with pytest.raises(PushError):
        open_push(payload, SECRET)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=64).map(b64url),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
DATA = st.dictionaries(st.sampled_from(["nonce", "verification", "message", "checkMessages", "x"]), VALUES)


def opens_or_push_error(payload: Any, secret: bytes = SECRET) -> None:
    try:
        content = open_push(payload, secret)
        if isinstance(content, Notifications):
            assert content.infos
            for info in content.infos:
                assert info.key_hash is None or len(info.key_hash) == 32
                info.open(QUEUE_SECRET)
    except PushError as e:
        assert str(e)


@given(st.binary() | st.text() | VALUES.map(json.dumps) | DATA | st.fixed_dictionaries({"notificationData": DATA}))
def test_nothing_but_push_error_comes_of_any_payload(payload: Any) -> None:
    opens_or_push_error(payload)


@given(st.binary(max_size=300), st.sampled_from(["verification", "message"]))
def test_nor_of_what_is_sealed_for_this_device(plain: bytes, kind: str) -> None:
    opens_or_push_error(sealed(kind, plain))


@given(st.lists(st.one_of(st.just(entry().encode()), st.binary(max_size=40), st.just(b" ")), min_size=1), st.data())
def test_nor_of_damaged_entries(parts: list[bytes], data: st.DataObject) -> None:
    plain = bytearray(b";".join(parts)[:1900])
    if plain:
        plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
    opens_or_push_error(sealed("message", bytes(plain)))


@given(st.binary(max_size=40))
def test_nor_of_a_secret_of_the_wrong_size(secret: bytes) -> None:
    opens_or_push_error(MESSAGE, secret)


def test_secrets_are_in_no_repr() -> None:
    code, marker = os.urandom(16), b"MARKER"
    assert repr(VerificationCode(code)) == "VerificationCode()"
    assert "MARKER" not in repr(Notifications([NotificationInfo(SERVER, marker, 1, marker, marker)]))
