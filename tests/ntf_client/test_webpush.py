"""`subscription_token`: what a browser gives, as the relay reads it."""

import json
import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ntf_client import subscription_token
from ntf_server.push.webpush.subscription import WebPushSubscription
from smp_bridge import ntf
from smp_bridge.encoding import ParseError, Reader, b64url, short
from smp_bridge.transmission import Session, encode_blocks, encode_transmission

POINT = (
    ec.derive_private_key(7, ec.SECP256R1()).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
)
AUTH = bytes(range(16))


def subscription(endpoint: Any = "https://push.example.org/send/abc", **keys: Any) -> dict[str, Any]:
    return {
        "endpoint": endpoint,
        "expirationTime": None,
        "keys": {"p256dh": b64url(POINT), "auth": b64url(AUTH), **keys},
    }


def test_its_bytes() -> None:
    """wire.md, section 8: location (host, port), path, auth secret, key."""
    token = subscription_token(subscription("https://push.example.org:8443/send/abc?d=1"))
    wire = short(b"push.example.org") + short(b"8443") + short(b"/send/abc?d=1") + short(AUTH) + short(POINT)
    assert token == ntf.DeviceToken(ntf.Provider.WEB_PUSH, wire)
    assert token.encode() == b"WP" + wire
    assert ntf.DeviceToken.parse(Reader(token.encode())) == token
    assert "push.example.org" not in repr(token)


@pytest.mark.parametrize(
    ("endpoint", "origin", "path"),
    [
        ("https://push.example.org/send/abc", "https://push.example.org", "/send/abc"),
        ("https://push.example.org:443/a", "https://push.example.org", "/a"),
        ("https://push.example.org", "https://push.example.org", "/"),
        ("https://push.example.org?a=b", "https://push.example.org", "/?a=b"),
        ("https://push.example.org//a?", "https://push.example.org", "//a?"),
        ("HTTPS://Push.Example.org:8443/A%20b/?c=/d", "https://push.example.org:8443", "/A%20b/?c=/d"),
        ("https://[::1]:8443/a", "https://[::1]:8443", "/a"),
        ("https://127.0.0.1/a", "https://127.0.0.1", "/a"),
        ("https://push.example.org/" + "a" * 254, "https://push.example.org", "/" + "a" * 254),
    ],
)
def test_the_relay_pushes_to_the_same_url(endpoint: str, origin: str, path: str) -> None:
    parsed = WebPushSubscription.parse(subscription_token(subscription(endpoint)).token)
    assert (parsed.origin, parsed.path, parsed.auth, parsed.key) == (origin, path, AUTH, POINT)


def test_equal_subscriptions_give_equal_tokens() -> None:
    one = subscription("https://push.example.org/a")
    two = subscription(
        "https://PUSH.example.org:443/a", auth=b64url(AUTH).rstrip("="), p256dh=b64url(POINT).rstrip("=")
    )
    text = json.dumps(two)
    assert subscription_token(one) == subscription_token(two) == subscription_token(text)
    assert subscription_token(text.encode()) == subscription_token(one)


@pytest.mark.parametrize(
    "given_",
    [
        b"",
        b"\xff",
        "[]",
        "null",
        "[" * 100_000,
        {},
        {"endpoint": "https://push.example.org/"},
        {"endpoint": "https://push.example.org/", "keys": "MARKER"},
        subscription(None),
        subscription(auth=None),
        subscription(auth=b64url(bytes(15))),
        subscription(auth="%"),
        subscription(p256dh=7),
        subscription(p256dh=b64url(POINT[:64])),
        subscription(p256dh=b64url(b"\2" + POINT[1:])),
        subscription(""),
        subscription("/send/MARKER"),
        subscription("http://push.example.org/MARKER"),
        subscription("https:///MARKER"),
        subscription("https://push.example.org:0/MARKER"),
        subscription("https://push.example.org:65536/MARKER"),
        subscription("https://push.example.org:http/MARKER"),
        subscription("https://user:MARKER@push.example.org/"),
        subscription("https://push.example.org/#MARKER"),
        subscription("https://push.example.org/MAR KER"),
        subscription("https://push.example.org/MAR\nKER"),
        subscription("https://push.example.org/Mädchen"),
        subscription("https://[MARKER/"),
        subscription("https://" + "a" * 256 + "/"),
        subscription("https://push.example.org/" + "a" * 255),
    ],
)
def test_what_is_no_subscription(given_: Any) -> None:
    with pytest.raises(ParseError) as caught:
        subscription_token(given_)
    assert "MARKER" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_how_long_an_endpoint_fits_a_registration() -> None:
    """The limit that docs/reference/ntf-client.md gives: host, port and path together."""
    key, dh_key = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    session = Session("ntf", 3, bytes(32))

    def blocks(size: int) -> list[bytes]:
        host, port = "push.example.org", "8443"
        path = "/" + "a" * (size - len(host + port) - 1)
        token = subscription_token(subscription(f"https://{host}:{port}{path}"))
        command = ntf.TNew(token, key.public_key(), dh_key.public_key()).encode(session.version)
        return encode_blocks(session, [encode_transmission(session, bytes(24), b"", command, key)])

    assert len(blocks(216)) == 1
    with pytest.raises(ValueError, match="too large"):
        blocks(217)


@given(st.text() | st.text(alphabet="https:/[]@?#%.-_~azAZ09\t ").map("https://a".__add__))
def test_any_endpoint_is_refused_or_kept(endpoint: str) -> None:
    try:
        token = subscription_token(subscription(endpoint)).token
    except ParseError:
        return
    r = Reader(token)
    host, port, path = r.short().decode(), r.short().decode(), r.short().decode()
    assert host
    assert path.startswith("/")
    assert endpoint.endswith(path.removeprefix("/"))
    assert not port or 0 < int(port) < 65536


@given(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_nothing_but_parse_error_comes_of_any_json(value: Any) -> None:
    for data in (json.dumps(value), json.dumps({"endpoint": value, "keys": value}), os.urandom(8)):
        with pytest.raises(ParseError):
            subscription_token(data)
