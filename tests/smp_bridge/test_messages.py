"""What only the recipient reads."""

import contextlib

import pytest
import wire_strategies as ws
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import crypto
from smp_bridge.crypto import CryptoError
from smp_bridge.encoding import ParseError
from smp_bridge.messages import MessageBody, MessageMeta

RCV, _NONCE = bytes(range(24)), bytes(range(24))


@given(ws.shorts.filter(lambda i: len(i) <= 117), ws.int64s, ws.secrets32, ws.nonces)
def test_metadata(message_id, timestamp, secret, nonce):
    meta = MessageMeta(message_id, timestamp)
    sealed = meta.seal(secret, nonce)
    assert len(sealed) == 144
    assert MessageMeta.open(secret, nonce, sealed) == meta
    with pytest.raises(CryptoError):
        MessageMeta.open(secret, bytes(b ^ 1 for b in nonce), sealed)


def test_metadata_bytes():
    plain = b"\x18" + RCV + b"\0\0\0\0\0\0\x01\x02" + b"some future bytes"
    sealed = crypto.box(bytes(32), _NONCE, crypto.pad(plain, 128))
    meta = MessageMeta.open(bytes(32), _NONCE, sealed)
    assert meta == MessageMeta(RCV, 258)
    assert crypto.unpad(crypto.unbox(bytes(32), _NONCE, meta.seal(bytes(32), _NONCE))) == plain[:33]


@given(ws.int64s, st.booleans(), st.binary(max_size=200), ws.secrets32, ws.nonces)
def test_message_body(timestamp, notify, body, secret, message_id):
    message = MessageBody(timestamp, notify, body)
    sealed = message.seal(secret, message_id, 300)
    assert len(sealed) == 316
    assert MessageBody.open(secret, message_id, sealed) == message
    assert ws.hides(message)


def test_message_body_bytes():
    sealed = crypto.box(bytes(32), RCV, crypto.pad(b"\0\0\0\0\0\0\0\x07T body", 50))
    assert MessageBody(7, True, b"body").seal(bytes(32), RCV, 50) == sealed


@pytest.mark.parametrize("cls", [MessageMeta, MessageBody])
@given(ws.broken(st.just(b"\x18" + RCV + bytes(8))), st.booleans())
def test_open_any_bytes(cls, content, padded):
    """What the other side sealed may be anything, too."""
    sealed = crypto.box(bytes(32), _NONCE, crypto.pad(content, 700) if padded else content)
    for given_bytes in (sealed, content):
        with contextlib.suppress(ParseError, CryptoError):
            assert isinstance(cls.open(bytes(32), _NONCE, given_bytes), cls)
