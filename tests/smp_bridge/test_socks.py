import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge.encoding import ParseError
from smp_bridge.socks import SocksProxy

USER = ("user", "password")


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("localhost:9150", SocksProxy("localhost", 9150)),
        ("tor", SocksProxy("tor", 9050)),
        (":1080", SocksProxy("127.0.0.1", 1080)),
        ("10.0.0.1:1", SocksProxy("10.0.0.1", 1)),
        ("[::1]:65535", SocksProxy("::1", 65535)),
        ("[::1]", SocksProxy("::1", 9050)),
        ("@tor:9050", SocksProxy("tor", 9050, isolate=False)),
        ("@:9050", SocksProxy("127.0.0.1", 9050, isolate=False)),
        ("@[::1]:9050", SocksProxy("::1", 9050, isolate=False)),
        ("user:password@tor", SocksProxy("tor", 9050, USER, isolate=False)),
        ("user:p@ss:w%41rd@tor:1", SocksProxy("tor", 1, ("user", "p@ss:w%41rd"), isolate=False)),
        ("socks5://tor", SocksProxy("tor")),
        ("socks5h://tor:1", SocksProxy("tor", 1)),
        ("socks5h://user:p%40ss%3a@tor:1", SocksProxy("tor", 1, ("user", "p@ss:"), isolate=False)),
    ],
)
def test_texts(text: str, proxy: SocksProxy) -> None:
    assert SocksProxy.parse(text) == proxy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "socks5://",
        "user:password@",
        "tor:",
        "tor:0",
        "tor:65536",
        "tor:-1",
        "tor:x",
        "tor:9050/",
        "to r:9050",
        "a..b:9050",
        "x" * 64 + ":9050",
        "::1",
        "[::1",
        "[::1]9050",
        "[tor]:9050",
        "[fe80::1%eth0]:9050",
        "user@tor",
        "user:@tor",
        ":password@tor",
        "u" * 256 + ":p@tor",
        "usér:password@tor",
        "socks4://tor:9050",
        "http://tor:9050",
        "ftp://user:password@tor:9050",
        "socks5://socks5://tor",
        "tor:9050\n",
        "tor:٩",
    ],
)
def test_what_is_no_proxy(text: str) -> None:
    with pytest.raises(ParseError) as raised:
        SocksProxy.parse(text)
    assert "password@" not in str(raised.value).replace("[user:password@]", "")


@given(st.text(max_size=40) | st.from_regex(r"(socks5h?://)?([^@]*@)?[^@]*(:[0-9]+)?", fullmatch=True))
def test_any_text(text: str) -> None:
    try:
        proxy = SocksProxy.parse(text)
    except ParseError:
        return
    assert proxy.host
    assert 0 < proxy.port < 65536
    assert proxy.isolate == ("@" not in text)


def test_each_isolation_has_credentials_of_its_own() -> None:
    proxy = SocksProxy.parse("tor")
    first, second = proxy.credentials("smp://a@example.org"), proxy.credentials("smp://b@example.org")
    assert first is not None
    assert second is not None
    assert first == proxy.credentials("smp://a@example.org")
    assert first[0] != second[0]
    for user, password in (first, second):
        assert "example" not in user
        # RFC 1929 has room for 255; python-socks sends no credentials at all if one of them is empty.
        assert 0 < len(user) < 256
        assert 0 < len(password) < 256
    assert SocksProxy.parse("tor").credentials("smp://a@example.org") != first  # nobody else can guess them


def test_given_credentials_are_for_all() -> None:
    proxy = SocksProxy.parse("user:password@tor")
    assert proxy.credentials("a") == proxy.credentials("b") == USER
    assert SocksProxy.parse("@tor").credentials("a") is None


def test_a_repr_shows_no_credentials() -> None:
    shown = repr(SocksProxy.parse("somebody:something@tor:9050"))
    assert "tor" in shown
    assert "9050" in shown
    assert "somebody" not in shown
    assert "something" not in shown
    assert "salt" not in shown
