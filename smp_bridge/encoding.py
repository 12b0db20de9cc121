"""Primitive encodings of the SimpleX protocols (wire.md, section 1).

Encoders are functions that return `bytes`; `Reader` is their counterpart. All integers are big-endian.
"""

import base64
import binascii
import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

import pybase64

T = TypeVar("T")

_WORD16 = struct.Struct(">H")
_WORD32 = struct.Struct(">I")
_INT64 = struct.Struct(">q")

NONCE_SIZE = 24


class ParseError(ValueError):
    """The bytes do not follow the protocol: the one error that every `parse` raises.

    Its text never holds the bytes, which may be secret.
    """


def word16(n: int) -> bytes:
    """2 bytes; `n` in 0..65535."""
    return _WORD16.pack(n)


def word32(n: int) -> bytes:
    """4 bytes; `n` in 0..2**32 - 1."""
    return _WORD32.pack(n)


def int64(n: int) -> bytes:
    """8 bytes, signed; also the encoding of a time in Unix seconds."""
    return _INT64.pack(n)


def short(b: bytes) -> bytes:
    """1-byte length, then up to 255 bytes. Raises ValueError if `b` is longer."""
    if len(b) > 255:
        raise ValueError("a short string holds 255 bytes at most")
    return len(b).to_bytes(1, "big") + b


def large(b: bytes) -> bytes:
    """2-byte length, then up to 65535 bytes. Raises ValueError if `b` is longer."""
    if len(b) > 65535:
        raise ValueError("a large string holds 65535 bytes at most")
    return _WORD16.pack(len(b)) + b


def boolean(b: bool) -> bytes:
    """`T` or `F`."""
    return b"T" if b else b"F"


def maybe(encoded: bytes | None) -> bytes:
    """`0`, or `1` and the already encoded value."""
    return b"0" if encoded is None else b"1" + encoded


def listing(encoded: Iterable[bytes]) -> bytes:
    """1-byte count, then the already encoded items (255 at most, else ValueError)."""
    items = list(encoded)
    if len(items) > 255:
        raise ValueError("a list holds 255 items at most")
    return len(items).to_bytes(1, "big") + b"".join(items)


def b64url_bytes(b: bytes) -> bytes:
    """base64url with padding."""
    return pybase64.b64encode(b, b"-_")


def b64url(b: bytes) -> str:
    """base64url with padding: the text form of bytes."""
    return b64url_bytes(b).decode("ascii")


def un_b64url(text: str | bytes) -> bytes:
    """Inverse of `b64url`; missing padding is accepted. Raises ParseError."""
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
        raw += b"=" * (-len(raw) % 4)
        return base64.b64decode(raw, altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as e:
        raise ParseError("not base64url") from e


class Reader:
    """A cursor over `data`; every method takes its value off the front or raises ParseError."""

    __slots__ = ("data", "pos")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pos = 0

    def take(self, n: int) -> bytes:
        """Exactly `n` bytes."""
        end = self.pos + n
        if end > len(self.data):
            raise ParseError("too short")
        out = self.data[self.pos : end]
        self.pos = end
        return out

    def word16(self) -> int:
        """2 bytes as an int."""
        return int.from_bytes(self.take(2), "big")

    def word32(self) -> int:
        """4 bytes as an int."""
        return int.from_bytes(self.take(4), "big")

    def int64(self) -> int:
        """8 bytes as a signed int."""
        return int.from_bytes(self.take(8), "big", signed=True)

    def byte(self) -> int:
        """1 byte as an int."""
        return self.take(1)[0]

    def short(self) -> bytes:
        """A string with a 1-byte length."""
        return self.take(self.byte())

    def large(self) -> bytes:
        """A string with a 2-byte length."""
        return self.take(self.word16())

    def boolean(self) -> bool:
        """`T` or `F`."""
        return self.choice({b"T": True, b"F": False})

    def choice(self, options: dict[bytes, T]) -> T:
        """The value of a 1-byte tag."""
        tag = self.take(1)
        if tag not in options:
            raise ParseError("unknown tag byte")
        return options[tag]

    def maybe(self, parse: Callable[[], T]) -> T | None:
        """`0`, or `1` and what `parse` takes."""
        return parse() if self.choice({b"0": False, b"1": True}) else None

    def listing(self, parse: Callable[[], T], *, non_empty: bool = False) -> list[T]:
        """1-byte count, then so many items."""
        n = self.byte()
        if non_empty and n == 0:
            raise ParseError("empty list")
        return [parse() for _ in range(n)]

    def literal(self, b: bytes) -> None:
        """Exactly these bytes."""
        if self.take(len(b)) != b:
            raise ParseError("unexpected bytes")

    def nonce(self) -> bytes:
        """24 bytes."""
        return self.take(NONCE_SIZE)

    def rest(self) -> bytes:
        """Everything that is left."""
        out = self.data[self.pos :]
        self.pos = len(self.data)
        return out

    def end(self) -> None:
        """Nothing is left."""
        if self.pos != len(self.data):
            raise ParseError("trailing bytes")
