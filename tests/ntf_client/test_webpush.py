"""`subscription_token`: what a browser gives, as the relay reads it."""

import dataclasses
import json
import os
import re
from typing import Any
from urllib.parse import unquote

import idna
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ntf_client import subscription_text, subscription_token
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


@pytest.mark.parametrize(
    ("endpoint", "origin", "path"),
    [
        ("https://bücher.example/up?token=é", "https://xn--bcher-kva.example", "/up?token=%C3%A9"),
        ("https://BÜCHER.example:8443/Mädchen", "https://xn--bcher-kva.example:8443", "/M%C3%A4dchen"),
        ("https://пример.example/%d0%b6/ж", "https://xn--e1afmkfd.example", "/%d0%b6/%D0%B6"),
        ('https://例え.example/{a}|^`"<>[]\\', "https://xn--r8jz45g.example", "/%7Ba%7D%7C%5E%60%22%3C%3E%5B%5D%5C"),
    ],
)
def test_an_endpoint_that_is_not_ascii(endpoint: str, origin: str, path: str) -> None:
    """RFC 3987, section 3.1: IDNA for the host, percent-encoded UTF-8 for the rest."""
    parsed = WebPushSubscription.parse(subscription_token(subscription(endpoint)).token)
    assert (parsed.origin, parsed.path) == (origin, path)


@given(st.text(st.sampled_from("aäöüéßñçøæœшжλω東京アb-1"), min_size=1, max_size=20))
def test_a_host_name_is_that_of_another_library_or_none(label: str) -> None:
    try:
        by_another = idna.encode(label, uts46=True).decode()
    except idna.IDNAError:
        return
    try:
        token = subscription_token(subscription(f"https://{label}.example/")).token
    except ParseError:
        assert "ß" in label
        return
    assert Reader(token).short().decode() == f"{by_another}.example"


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("https://push.example.org/send/abc?d=1", "https://push.example.org/send/abc?d=1"),
        ("https://push.example.org:8443", "https://push.example.org:8443/"),
        ("https://push.example.org:443/a", "https://push.example.org/a"),
        ("https://[2001:db8::1]:8443/a", "https://[2001:db8::1]:8443/a"),
        ("https://bücher.example/ä", "https://xn--bcher-kva.example/%C3%A4"),
    ],
)
def test_the_text_form(endpoint: str, text: str) -> None:
    token = subscription_token(subscription(endpoint))
    assert subscription_text(token) == f"webpush {text} {b64url(AUTH)} {b64url(POINT)}"
    unpadded = f" webpush  {endpoint} {b64url(AUTH).rstrip('=')}\t{b64url(POINT).rstrip('=')}\n"
    for given_ in (subscription_text(token), unpadded, unpadded.encode()):
        assert subscription_token(given_) == token


def test_the_text_form_of_what_is_no_web_push_token() -> None:
    good = subscription_token(subscription())
    ascii_only = good.token.replace(b"/send", b"/\xffend")
    for token in (ntf.DeviceToken(ntf.Provider.APNS, b"ab"), dataclasses.replace(good, token=good.token[:-1])):
        with pytest.raises(ParseError):
            subscription_text(token)
    with pytest.raises(ParseError):
        subscription_text(dataclasses.replace(good, token=ascii_only))


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
        subscription("https://push.example.org/\u200bMARKER"),
        subscription("https://MARKER\u00df.example/"),
        subscription("https://\u03c2MARKER.example/"),
        subscription("https://MARKER$.example/"),  # the relay takes no such names
        subscription("https://push..example.org/MARKER"),
        subscription("https://ä" + "a" * 63 + ".example/"),
        subscription("https://push.example.org/" + "ä" * 43),
        "webpush",
        "webpush https://push.example.org/ MARKER",
        f"webpush https://push.example.org/ {b64url(POINT)} {b64url(AUTH)}",
        f"webpush https://push.example.org/ {b64url(AUTH)} {b64url(POINT)} MARKER",
        f"webpush {b64url(AUTH)} {b64url(POINT)}",
        f"Webpush https://push.example.org/ {b64url(AUTH)} {b64url(POINT)}",
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
    assert unquote(endpoint).endswith(unquote(path).removeprefix("/"))
    assert re.fullmatch(r"/[!$%&'()*+,\-./0-9:;=?@A-Z_a-z~]*", path)
    assert not port or 0 < int(port) < 65536


@given(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_nothing_but_parse_error_comes_of_any_json(value: Any) -> None:
    for data in (json.dumps(value), json.dumps({"endpoint": value, "keys": value}), os.urandom(8)):
        with pytest.raises(ParseError):
            subscription_token(data)
