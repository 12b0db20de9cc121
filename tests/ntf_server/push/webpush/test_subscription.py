import contextlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.push.jose import public_point as point
from ntf_server.push.webpush.subscription import WebPushSubscription, subscription_token
from smp_bridge.encoding import ParseError, b64url, short

KEY = ec.generate_private_key(ec.SECP256R1())


def token(
    host: str = "push.example.org",
    port: str = "",
    path: str = "/p/1",
    auth: bytes = bytes(16),
    key: bytes = point(KEY),
) -> bytes:
    return b"".join(short(part) for part in (host.encode(), port.encode(), path.encode(), auth, key))


@pytest.mark.parametrize(
    ("host", "port", "path", "url"),
    [
        ("push.example.org", "", "/p/1", "https://push.example.org/p/1"),
        ("push.example.org", "443", "p/1", "https://push.example.org/p/1"),
        ("push.example.org", "00443", "", "https://push.example.org/"),
        ("push.example.org", "8443", "/a?b=c%20d&e=~", "https://push.example.org:8443/a?b=c%20d&e=~"),
        ("Push.Example.ORG", "", "/P", "https://push.example.org/P"),  # RFC 6454, section 4: the origin's host
        ("push.example.org.", "", "/p", "https://push.example.org./p"),
        ("192.0.2.1", "", "/p", "https://192.0.2.1/p"),
        ("2001:DB8::1", "", "/p", "https://[2001:db8::1]/p"),
        ("[2001:db8::1]", "8443", "/p", "https://[2001:db8::1]:8443/p"),
        ("a_b.example", "", "//x", "https://a_b.example//x"),
    ],
)
def test_where_a_subscription_leads(host: str, port: str, path: str, url: str) -> None:
    s = WebPushSubscription.parse(token(host, port, path, b"a" * 16))
    assert s.origin + s.path == url
    assert (s.auth, s.key) == (b"a" * 16, point(KEY))
    assert "path" not in repr(s)
    assert "aaaa" not in repr(s)


@pytest.mark.parametrize(
    "bad",
    [
        token(host=""),
        token(host="a b"),
        token(host="ü.example"),
        token(host="a/b.example"),
        token(host="user@push.example"),
        token(host="a.example#x"),
        token(host="169.254.169.254?x.example"),  # libcurl would connect to what is before the mark
        token(host="127%2e0%2e0%2e1.example"),  # and it decodes names
        token(host="a\\b.example"),
        token(host="a..example"),
        token(host="fe80::1%eth0"),
        token(host="::g"),
        token(port="0"),
        token(port="65536"),
        token(port="-1"),
        token(port="4 4"),
        token(port="²"),
        token(port="9" * 255),
        token(path="/a b"),
        token(path="/a#b"),
        token(path="/a\r\nx-evil: 1"),
        token(path="/\0"),
        token(path="/ü"),
        token(auth=bytes(15)),
        token(auth=bytes(17)),
        token(key=bytes(65)),
        token(key=b"\4" + bytes(64)),
        token(key=point(KEY)[:-1]),
        token(key=b"\2" + point(KEY)[1:]),
        token()[:-1],
        token() + b"x",
        b"",
    ],
)
def test_a_subscription_that_is_none(bad: bytes) -> None:
    with pytest.raises(ParseError) as caught:
        WebPushSubscription.parse(bad)
    assert "example" not in str(caught.value)


@given(st.binary(max_size=300))
def test_other_bytes_are_refused_without_another_error(data: bytes) -> None:
    with contextlib.suppress(ParseError):
        WebPushSubscription.parse(data)


def given(endpoint: str, auth: str = b64url(bytes(16)), key: str = b64url(point(KEY))) -> str:
    return json.dumps({"endpoint": endpoint, "keys": {"p256dh": key, "auth": auth}})


def test_what_browsers_give_and_its_text_form_are_one_device_token() -> None:
    endpoint = "https://push.example.org:8443/a?b=c%20d"
    expected = token(port="8443", path="/a?b=c%20d")
    assert subscription_token(given(endpoint)) == expected
    assert subscription_token(f" webpush {endpoint} {b64url(bytes(16))} {b64url(point(KEY))} ") == expected
    assert subscription_token(given("https://push.example.org:443/p/1")) == token()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "neither the JSON"),
        ("{}", "neither the JSON"),
        ("webpush https://push.example.org/p", "neither the JSON"),
        (given("https://push.example.org/p", auth="!"), "neither the JSON"),
        (given("http://push.example.org/p"), "is an https URL in ASCII"),
        (given("https://u:p@push.example.org/p"), "is an https URL in ASCII"),
        (given("https:///p"), "is an https URL in ASCII"),
        (given("https://push.example.org/\u00fc"), "is an https URL in ASCII"),
        (given("https://push.example.org:99999/p"), "neither the JSON"),
        (given("https://push.example.org/p#x"), "no fragment"),
        (given("https://push.example.org/" + "p" * 255), "255 bytes at most"),
        (given("https://push.example.org/p", auth=b64url(bytes(15))), "bad Web Push subscription"),
        (given("https://push.example.org/p", key=b64url(bytes(65))), "bad Web Push subscription"),
    ],
)
def test_what_is_no_subscription(text: str, words: str) -> None:
    with pytest.raises(ParseError, match=words) as e:
        subscription_token(text)
    assert "push.example" not in str(e.value)
