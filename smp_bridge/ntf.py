"""NTF commands and answers, versions 1 to 3 (wire.md, section 6), and what a push carries (section 8). No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import ParseError, Reader, b64url_bytes, short, un_b64url, word16
from smp_bridge.transmission import AuthKey, Err, Message, parse_message, tags

VERSIONS: Final = (1, 3)
LEGACY_VERSIONS: Final = (1, 1)  # for a client without ALPN

AUTH_BATCH: Final = 2  # batching, authenticators, implied session id, session key
INVALID_REASON: Final = 3

ENTITY_ID_SIZE: Final = 24
CODE_SIZE: Final = 32
MIN_PERIOD: Final = 20  # minutes, of TCRN


class Provider(StrEnum):
    """Push provider codes. The last two are additions of this project."""

    APNS_SANDBOX = "AD"
    APNS = "AP"
    APNS_TEST = "AT"
    APNS_NULL = "AN"
    FCM = "FC"
    WEB_PUSH = "WP"


@dataclass(frozen=True, slots=True)
class DeviceToken:
    """A provider and its token.

    `token`: up to 255 bytes; for Web Push the encoded location, path, auth secret and P-256 key (wire.md, section 8).
    """

    provider: Provider
    token: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Provider code, then `short` token (Web Push: its fields as they are)."""
        code = self.provider.encode()
        return code + (self.token if self.provider is Provider.WEB_PUSH else short(self.token))

    @classmethod
    def parse(cls, r: Reader) -> Self:
        """Raises ParseError."""
        try:
            provider = Provider(r.take(2).decode("latin-1"))
        except ValueError as e:
            raise ParseError("unknown push provider") from e
        if provider is not Provider.WEB_PUSH:
            return cls(provider, r.short())
        start = r.pos
        host, _port, _path, auth, key = (r.short() for _ in range(5))
        if not host or len(auth) != 16 or len(key) != 65:
            raise ParseError("bad Web Push subscription")
        return cls(provider, r.data[start : r.pos])


class TokenStatus(StrEnum):
    """Status of a device token."""

    NEW = "NEW"
    REGISTERED = "REGISTERED"
    CONFIRMED = "CONFIRMED"
    ACTIVE = "ACTIVE"
    EXPIRED = "EXPIRED"
    INVALID = "INVALID"


class InvalidReason(StrEnum):
    """Why a token is INVALID (NTF 3)."""

    BAD = "BAD"
    TOPIC = "TOPIC"
    EXPIRED = "EXPIRED"
    UNREGISTERED = "UNREGISTERED"


class SubscriptionStatus(StrEnum):
    """Status of a subscription."""

    NEW = "NEW"
    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    END = "END"
    DELETED = "DELETED"
    AUTH = "AUTH"
    SERVICE = "SERVICE"
    ERR = "ERR"


@dataclass(frozen=True, slots=True)
class TNew(Message):
    """Register a token: its verify key, and the client's X25519 key for pushes."""

    tag = b"TNEW"
    bare = False
    token: DeviceToken
    verify_key: crypto.AuthPublicKey = field(repr=False)
    dh_key: X25519PublicKey = field(repr=False)

    def params(self, version: int) -> bytes:
        """`T`, token, two `short` public keys."""
        keys = short(crypto.encode_public(self.verify_key)) + short(crypto.encode_public(self.dh_key))
        return b"T" + self.token.encode() + keys

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        r.literal(b"T")
        token = DeviceToken.parse(r)
        return cls(token, crypto.parse_auth_public(r.short()), crypto.parse_x25519(r.short()))


@dataclass(frozen=True, slots=True)
class TVfy(Message):
    """Prove that the token is held, by the code that was pushed to it."""

    tag = b"TVFY"
    bare = False
    code: bytes = field(repr=False)

    def params(self, version: int) -> bytes:
        """`short` code."""
        return short(self.code)

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(r.short())


class TChk(Message):
    """Ask for the token's status."""

    tag = b"TCHK"


@dataclass(frozen=True, slots=True)
class TRpl(Message):
    """Replace the device token."""

    tag = b"TRPL"
    bare = False
    token: DeviceToken

    def params(self, version: int) -> bytes:
        """Token."""
        return self.token.encode()

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(DeviceToken.parse(r))


class TDel(Message):
    """Delete the token with its subscriptions."""

    tag = b"TDEL"


@dataclass(frozen=True, slots=True)
class TCrn(Message):
    """Ask for periodic pushes; `minutes` 0 turns them off."""

    tag = b"TCRN"
    bare = False
    minutes: int

    def params(self, version: int) -> bytes:
        """word16."""
        return word16(self.minutes)

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(r.word16())


@dataclass(frozen=True, slots=True)
class SNew(Message):
    """Subscribe a queue for a token. Parsing gives `notifier_key` as bytes (see `crypto.quick_private`)."""

    tag = b"SNEW"
    bare = False
    token_id: bytes = field(repr=False)
    server: ServerAddress
    notifier_id: bytes = field(repr=False)
    notifier_key: AuthKey = field(repr=False)

    def params(self, version: int) -> bytes:
        """`S`, `short` token id, server, `short` notifier id, `short` private key."""
        key = self.notifier_key
        der = crypto.quick_private_der(key) if isinstance(key, bytes) else crypto.encode_private(key)
        return b"S" + short(self.token_id) + self.server.encode() + short(self.notifier_id) + short(der)

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        r.literal(b"S")
        token_id, server, notifier_id = r.short(), ServerAddress.parse(r, "smp"), r.short()
        return cls(token_id, server, notifier_id, crypto.to_quick_private(r.short()))


class SChk(Message):
    """Ask for the subscription's status."""

    tag = b"SCHK"


class SDel(Message):
    """Delete the subscription."""

    tag = b"SDEL"


class Ping(Message):
    """Keep the connection alive."""

    tag = b"PING"


@dataclass(frozen=True, slots=True)
class IdTkn(Message):
    """Answer to TNEW: token id and the server's X25519 key."""

    tag = b"IDTKN"
    bare = False
    token_id: bytes = field(repr=False)
    dh_key: X25519PublicKey = field(repr=False)

    def params(self, version: int) -> bytes:
        """`short` token id, `short` public key."""
        return short(self.token_id) + short(crypto.encode_public(self.dh_key))

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(r.short(), crypto.parse_x25519(r.short()))


@dataclass(frozen=True, slots=True)
class IdSub(Message):
    """Answer to SNEW: subscription id."""

    tag = b"IDSUB"
    bare = False
    subscription_id: bytes = field(repr=False)

    def params(self, version: int) -> bytes:
        """`short` subscription id."""
        return short(self.subscription_id)

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(r.short())


class Ok(Message):
    """Done."""

    tag = b"OK"


@dataclass(frozen=True, slots=True)
class Tkn(Message):
    """Answer to TCHK; the reason of INVALID is told from version 3."""

    tag = b"TKN"
    bare = False
    status: TokenStatus
    reason: InvalidReason | None = None

    def params(self, version: int) -> bytes:
        """`STATUS` or `INVALID,REASON`."""
        told = self.reason is not None and version >= INVALID_REASON
        return f"{self.status},{self.reason}".encode() if told else self.status.encode()

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        status, comma, reason = r.rest().decode("latin-1").partition(",")
        if comma and status != TokenStatus.INVALID:
            raise ParseError("only INVALID has a reason")
        try:
            return cls(TokenStatus(status), InvalidReason(reason) if comma else None)
        except ValueError as e:
            raise ParseError("unknown token status") from e


@dataclass(frozen=True, slots=True)
class Sub(Message):
    """Answer to SCHK; `error` goes with the status ERR only."""

    tag = b"SUB"
    bare = False
    status: SubscriptionStatus
    error: str = ""

    def params(self, version: int) -> bytes:
        """`STATUS` or `ERR text`."""
        return f"ERR {self.error}".encode() if self.status is SubscriptionStatus.ERR else self.status.encode()

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        status, space, error = r.rest().decode("utf-8", "replace").partition(" ")
        if bool(space) != (status == SubscriptionStatus.ERR):
            raise ParseError("only ERR has a text")
        try:
            return cls(SubscriptionStatus(status), error)
        except ValueError as e:
            raise ParseError("unknown subscription status") from e


class Pong(Message):
    """Answer to PING."""

    tag = b"PONG"


Command = TNew | TVfy | TChk | TRpl | TDel | TCrn | SNew | SChk | SDel | Ping
Answer = IdTkn | IdSub | Ok | Tkn | Sub | Pong | Err

COMMANDS: Final[Mapping[bytes, type[Message]]] = tags(TNew, TVfy, TChk, TRpl, TDel, TCrn, SNew, SChk, SDel, Ping)
ANSWERS: Final[Mapping[bytes, type[Message]]] = tags(IdTkn, IdSub, Ok, Tkn, Sub, Pong, Err)


def parse_command(data: bytes, version: int) -> Message:
    """A server's side. Raises UnknownTagError, ParseError."""
    return parse_message(COMMANDS, data, version)


def parse_answer(data: bytes, version: int) -> Message:
    """A client's side. Raises UnknownTagError, ParseError."""
    return parse_message(ANSWERS, data, version)


def encode_entry(server: bytes, notifier_id: bytes, timestamp: int, nonce: bytes, meta: bytes) -> bytes:
    """`SERVER/b64url(notifier id) SECONDS b64url(nonce) b64url(metadata)`; see `Entry`."""
    b64 = b64url_bytes
    return b"%b/%b %d %b %b" % (server, b64(notifier_id), timestamp, b64(nonce), b64(meta))


@dataclass(frozen=True, slots=True)
class Entry:
    """One notification inside a push: which queue, when the relay got it (Unix seconds), nonce and sealed metadata.

    Source: wire.md, section 8. `server` is the text of the SMP server's address.
    """

    server: str
    notifier_id: bytes = field(repr=False)
    timestamp: int
    nonce: bytes = field(repr=False)
    meta: bytes = field(repr=False)

    def encode(self) -> bytes:
        """See `encode_entry`."""
        return encode_entry(self.server.encode(), self.notifier_id, self.timestamp, self.nonce, self.meta)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises ParseError."""
        try:
            queue, seconds, nonce, meta = data.decode("ascii").split(" ")
        except (UnicodeDecodeError, ValueError) as e:
            raise ParseError("bad notification entry") from e
        server, slash, notifier_id = queue.rpartition("/")
        if not slash or not seconds.isdigit() or len(seconds) > 19:
            raise ParseError("bad notification entry")
        return cls(server, un_b64url(notifier_id), int(seconds), un_b64url(nonce), un_b64url(meta))
