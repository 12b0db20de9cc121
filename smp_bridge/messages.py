"""What MSG and NMSG tell the recipient alone, in boxes that nobody else opens (wire.md, section 7). No I/O."""

from dataclasses import dataclass, field
from typing import Final, Self

from smp_bridge import crypto
from smp_bridge.encoding import Reader, boolean, int64, short
from smp_bridge.smp import VERSIONS, Send

MESSAGE_META_SIZE: Final = 128  # padded plaintext of NMSG


@dataclass(frozen=True, slots=True)
class MessageMeta:
    """What NMSG tells the recipient, and nobody else: `message_id`, and `timestamp` in Unix seconds."""

    message_id: bytes
    timestamp: int

    def seal(self, secret: bytes, nonce: bytes) -> bytes:
        """144 bytes, boxed with the DH secret of the notification keys."""
        meta = crypto.pad(short(self.message_id) + int64(self.timestamp), MESSAGE_META_SIZE)
        return crypto.box(secret, nonce, meta)

    @classmethod
    def open(cls, secret: bytes, nonce: bytes, sealed: bytes) -> Self:
        """Raises CryptoError for a wrong secret, ParseError for wrong content."""
        r = Reader(crypto.unpad(crypto.unbox(secret, nonce, sealed)))
        return cls(r.short(), r.int64())


@dataclass(frozen=True, slots=True)
class MessageBody:
    """What MSG tells the recipient: `timestamp` in Unix seconds, `notify` flag, `body`."""

    timestamp: int
    notify: bool
    body: bytes = field(repr=False)

    def seal(self, secret: bytes, message_id: bytes, size: int) -> bytes:
        """Boxed, padded to `size`; the nonce is the message id (24 bytes)."""
        plain = int64(self.timestamp) + boolean(self.notify) + b" " + self.body
        return crypto.box(secret, message_id, crypto.pad(plain, size))

    @classmethod
    def open(cls, secret: bytes, message_id: bytes, sealed: bytes) -> Self:
        """Raises CryptoError for a wrong secret, ParseError for wrong content."""
        r = Reader(crypto.unpad(crypto.unbox(secret, message_id, sealed)))
        timestamp = r.int64()
        sent = Send.parse_params(r, VERSIONS[1])
        return cls(timestamp, sent.notify, sent.body)
