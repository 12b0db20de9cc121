import pytest
import wire_strategies as ws
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge.encoding import (
    ParseError,
    Reader,
    b64url,
    boolean,
    int64,
    large,
    listing,
    maybe,
    short,
    un_b64url,
    word16,
    word32,
)

_METHODS = ["word16", "word32", "int64", "byte", "short", "large", "boolean", "nonce"]


def whole(data, parse):
    r = Reader(data)
    value = parse(r)
    r.end()
    return value


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (word16(0x0102), b"\x01\x02"),
        (word32(0x01020304), b"\x01\x02\x03\x04"),
        (int64(2**32 + 2), b"\0\0\0\x01\0\0\0\x02"),
        (int64(-1), b"\xff" * 8),
        (short(b"abc"), b"\x03abc"),
        (large(b"abc"), b"\x00\x03abc"),
        (boolean(True) + boolean(False), b"TF"),
        (maybe(None) + maybe(b"x"), b"01x"),
        (listing([b"a", b"bc"]), b"\x02abc"),
        (b64url(b"\xfb\xff"), "-_8="),
    ],
)
def test_known_bytes(encoded, expected):
    assert encoded == expected


@given(st.integers(0, 65535), st.integers(0, 2**32 - 1), ws.int64s)
def test_numbers(a, b, c):
    assert whole(word16(a) + word32(b) + int64(c), lambda r: (r.word16(), r.word32(), r.int64())) == (a, b, c)


@given(ws.shorts, st.binary(max_size=2000), st.booleans(), ws.nonces, st.binary())
def test_strings(a, b, c, d, e):
    data = short(a) + large(b) + boolean(c) + d + e
    got = whole(data, lambda r: (r.short(), r.large(), r.boolean(), r.nonce(), r.rest()))
    assert got == (a, b, c, d, e)


@given(st.lists(ws.shorts, max_size=255), st.none() | ws.shorts)
def test_containers(items, value):
    data = listing(map(short, items)) + maybe(None if value is None else short(value))
    assert whole(data, lambda r: (r.listing(r.short), r.maybe(r.short))) == (items, value)


@given(st.binary())
def test_base64url(b):
    text = b64url(b)
    assert len(text) % 4 == 0
    assert un_b64url(text) == un_b64url(text.encode()) == un_b64url(text.rstrip("=")) == b


@given(st.text() | st.binary())
def test_bad_base64url(text):
    try:
        un_b64url(text)
    except ParseError as e:
        assert str(e) == "not base64url"


@pytest.mark.parametrize("text", ["A", "A===", "AA=A", "AA AA", "é", "AA\n=="])
def test_not_base64url(text):
    with pytest.raises(ParseError):
        un_b64url(text)


@given(st.lists(st.sampled_from([*_METHODS, "maybe", "listing", "non_empty"])), st.binary())
def test_any_bytes_parse_or_raise_parse_error(methods, data):
    r = Reader(data)
    try:
        for method in methods:
            match method:
                case "maybe":
                    r.maybe(r.short)
                case "listing" | "non_empty":
                    r.listing(r.short, non_empty=method == "non_empty")
                case _:
                    getattr(r, method)()
            assert r.pos <= len(data)
        r.end()
    except ParseError:
        pass


@pytest.mark.parametrize(
    ("data", "parse"),
    [
        (b"\x00", Reader.word16),
        (b"\x00" * 3, Reader.word32),
        (b"\x00" * 7, Reader.int64),
        (b"", Reader.byte),
        (b"\x02a", Reader.short),
        (b"\x00\x02a", Reader.large),
        (b"t", Reader.boolean),
        (b"\x01", Reader.boolean),
        (b"2", lambda r: r.maybe(r.byte)),
        (b"1", lambda r: r.maybe(r.byte)),
        (b"\x02a", lambda r: r.listing(r.byte)),
        (b"\x00", lambda r: r.listing(r.byte, non_empty=True)),
        (b"\x00" * 23, Reader.nonce),
        (b"ab", lambda r: r.literal(b"ac")),
        (b"a", Reader.end),
    ],
)
def test_refused(data, parse):
    with pytest.raises(ParseError):
        parse(Reader(data))


@pytest.mark.parametrize(
    "encode", [lambda: short(bytes(256)), lambda: large(bytes(65536)), lambda: listing([b""] * 256)]
)
def test_too_large_to_encode(encode):
    with pytest.raises(ValueError, match="at most"):
        encode()
