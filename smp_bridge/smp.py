"""SMP commands and answers, versions 6 to 20, as far as notifiers, recipients and senders need them.

Source: wire.md, section 7. No I/O. Short links, proxying and queue information are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from smp_bridge import crypto
from smp_bridge.encoding import ParseError, Reader, boolean, int64, maybe, short
from smp_bridge.transmission import Err, Message, parse_message, tags

VERSIONS: Final = (6, 20)
LEGACY_VERSIONS: Final = (6, 6)  # for a client without ALPN

AUTH_KEY: Final = 7  # authenticators, implied session id, session key
FAST_HANDSHAKE: Final = 9
DELETED_EVENT: Final = 10
BLOCK_ENCRYPTION: Final = 11
PROXY_FLAG: Final = 14
SHORT_LINKS: Final = 15
SERVICES: Final = 16
NEW_NTF_CREDS: Final = 17
IDS_HASHES: Final = 19
IDS_HASH_SIZE: Final = 16  # XOR of MD5(notifier id)

SubMode = Literal["S", "C"]
QueueKind = Literal["M", "C"]
_SUB_MODES: Final[dict[bytes, SubMode]] = {b"S": "S", b"C": "C"}
_QUEUE_KINDS: Final[dict[bytes, QueueKind]] = {b"M": "M", b"C": "C"}


def _public(key: crypto.PublicKey) -> bytes:
    return short(crypto.encode_public(key))


@dataclass(frozen=True, slots=True)
class NtfCreds:
    """Notification credentials: the notifier's key, and an X25519 key for the metadata."""

    key: crypto.AuthPublicKey = field(repr=False)
    dh_key: X25519PublicKey = field(repr=False)

    def encode(self) -> bytes:
        """Two `short` public keys."""
        return _public(self.key) + _public(self.dh_key)

    @classmethod
    def parse(cls, r: Reader) -> Self:
        """Raises ParseError."""
        return cls(crypto.parse_auth_public(r.short()), crypto.parse_x25519(r.short()))


@dataclass(frozen=True, slots=True)
class New(Message):
    """Create a queue. `kind`: M messaging (the sender may secure it, SMP >= 9), C contact; link data is left out."""

    tag = b"NEW"
    bare = False
    key: crypto.AuthPublicKey = field(repr=False)
    dh_key: X25519PublicKey = field(repr=False)
    password: bytes | None = field(default=None, repr=False)
    mode: SubMode = "S"
    kind: QueueKind | None = "M"
    ntf_creds: NtfCreds | None = None

    def params(self, version: int) -> bytes:
        """See wire.md, section 7, for the layouts of versions 6-8, 9-14, 15-16, 17 and later."""
        keys = _public(self.key) + _public(self.dh_key)
        password = short(self.password) if self.password is not None else None
        mode = self.mode.encode()
        if version < FAST_HANDSHAKE:
            return keys + (b"A" + password if password is not None else b"") + mode
        out = keys + maybe(password) + mode
        if version < SHORT_LINKS:
            return out + boolean(self.kind == "M")
        out += maybe(self.kind.encode() + b"0" if self.kind else None)
        if version < NEW_NTF_CREDS:
            return out
        return out + maybe(self.ntf_creds.encode() if self.ntf_creds else None)

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        key, dh_key = crypto.parse_auth_public(r.short()), crypto.parse_x25519(r.short())
        if version < FAST_HANDSHAKE:
            has_password = r.data[r.pos : r.pos + 1] == b"A"
            if has_password:
                r.literal(b"A")
            password = r.short() if has_password else None
            return cls(key, dh_key, password, r.choice(_SUB_MODES), None)
        password = r.maybe(r.short)
        mode = r.choice(_SUB_MODES)
        if version < SHORT_LINKS:
            return cls(key, dh_key, password, mode, "M" if r.boolean() else "C")
        kind = r.maybe(lambda: r.choice(_QUEUE_KINDS))
        if kind:
            r.literal(b"0")
        creds = r.maybe(lambda: NtfCreds.parse(r)) if version >= NEW_NTF_CREDS else None
        return cls(key, dh_key, password, mode, kind, creds)


class Sub(Message):
    """Subscribe to a queue as its recipient."""

    tag = b"SUB"


@dataclass(frozen=True, slots=True)
class _KeyCommand(Message):
    bare = False
    key: crypto.AuthPublicKey = field(repr=False)

    def params(self, version: int) -> bytes:
        """`short` public key."""
        return _public(self.key)

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(crypto.parse_auth_public(r.short()))


class Key(_KeyCommand):
    """The recipient sets the sender's key."""

    __slots__ = ()
    tag = b"KEY"


class SKey(_KeyCommand):
    """The sender sets its own key (SMP >= 9)."""

    __slots__ = ()
    tag = b"SKEY"


@dataclass(frozen=True, slots=True)
class NKey(Message):
    """The recipient sets notification credentials."""

    tag = b"NKEY"
    bare = False
    creds: NtfCreds

    def params(self, version: int) -> bytes:
        """Notifier's public key, X25519 key."""
        return self.creds.encode()

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(NtfCreds.parse(r))


class NDel(Message):
    """The recipient removes the notification credentials."""

    tag = b"NDEL"


class Get(Message):
    """Take one message without a subscription."""

    tag = b"GET"


@dataclass(frozen=True, slots=True)
class Ack(Message):
    """Acknowledge a message, which deletes it."""

    tag = b"ACK"
    bare = False
    message_id: bytes

    def params(self, version: int) -> bytes:
        """`short` message id."""
        return short(self.message_id)

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(r.short())


class Off(Message):
    """Suspend a queue: no more messages are taken."""

    tag = b"OFF"


class Del(Message):
    """Delete a queue."""

    tag = b"DEL"


@dataclass(frozen=True, slots=True)
class Send(Message):
    """Send a message; `notify` asks for a notification."""

    tag = b"SEND"
    bare = False
    notify: bool
    body: bytes = field(repr=False)

    def params(self, version: int) -> bytes:
        """Flag, space, body."""
        return boolean(self.notify) + b" " + self.body

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Up to 6 reserved bytes may follow the flag. Raises ParseError."""
        notify = r.boolean()
        for _ in range(7):
            if r.take(1) == b" ":
                return cls(notify, r.rest())
        raise ParseError("flags too long")


class NSub(Message):
    """Subscribe to notifications of a queue, as its notifier."""

    tag = b"NSUB"


@dataclass(frozen=True, slots=True)
class NSubs(Message):
    """Subscribe to all queues associated with the session's service (SMP >= 16).

    From SMP 19 on with what the service has: `count`, -1 if it does not know, and `ids_hash`, the XOR of MD5(notifier
    id) of all of them (16 bytes).
    """

    tag = b"NSUBS"
    count: int = -1
    ids_hash: bytes = field(default=bytes(IDS_HASH_SIZE), repr=False)

    @classmethod
    def is_bare(cls, version: int) -> bool:
        """Below SMP 19."""
        return version < IDS_HASHES

    def params(self, version: int) -> bytes:
        """int64, `short` hash; nothing below SMP 19."""
        return b"" if self.is_bare(version) else int64(self.count) + short(self.ids_hash)

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls() if cls.is_bare(version) else cls(r.int64(), _ids_hash(r))


def _ids_hash(r: Reader) -> bytes:
    ids_hash = r.short()
    if len(ids_hash) != IDS_HASH_SIZE:
        raise ParseError("a hash of notifier ids has 16 bytes")
    return ids_hash


class Ping(Message):
    """Keep the connection alive."""

    tag = b"PING"


@dataclass(frozen=True, slots=True)
class ServerNtfCreds:
    """What a server answers to notification credentials: the notifier id and its X25519 key."""

    notifier_id: bytes = field(repr=False)
    dh_key: X25519PublicKey = field(repr=False)

    def encode(self) -> bytes:
        """`short` notifier id, `short` public key."""
        return short(self.notifier_id) + _public(self.dh_key)

    @classmethod
    def parse(cls, r: Reader) -> Self:
        """Raises ParseError."""
        return cls(r.short(), crypto.parse_x25519(r.short()))


@dataclass(frozen=True, slots=True)
class Ids(Message):
    """Answer to NEW: the queue's ids and the server's X25519 key."""

    tag = b"IDS"
    bare = False
    recipient_id: bytes = field(repr=False)
    sender_id: bytes = field(repr=False)
    dh_key: X25519PublicKey = field(repr=False)
    kind: QueueKind | None = "M"
    link_id: bytes | None = field(default=None, repr=False)
    service_id: bytes | None = field(default=None, repr=False)
    ntf_creds: ServerNtfCreds | None = None

    def params(self, version: int) -> bytes:
        """Ids and key, then what the version adds."""
        out = short(self.recipient_id) + short(self.sender_id) + _public(self.dh_key)
        if version < FAST_HANDSHAKE:
            return out
        if version < SHORT_LINKS:
            return out + boolean(self.kind == "M")
        out += maybe(self.kind.encode() if self.kind else None)
        out += maybe(short(self.link_id) if self.link_id is not None else None)
        if version >= SERVICES:
            out += maybe(short(self.service_id) if self.service_id is not None else None)
        if version >= NEW_NTF_CREDS:
            out += maybe(self.ntf_creds.encode() if self.ntf_creds else None)
        return out

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        recipient_id, sender_id, dh_key = r.short(), r.short(), crypto.parse_x25519(r.short())
        if version < FAST_HANDSHAKE:
            return cls(recipient_id, sender_id, dh_key, None)
        if version < SHORT_LINKS:
            return cls(recipient_id, sender_id, dh_key, "M" if r.boolean() else "C")
        kind = r.maybe(lambda: r.choice(_QUEUE_KINDS))
        link_id = r.maybe(r.short)
        service_id = r.maybe(r.short) if version >= SERVICES else None
        creds = r.maybe(lambda: ServerNtfCreds.parse(r)) if version >= NEW_NTF_CREDS else None
        return cls(recipient_id, sender_id, dh_key, kind, link_id, service_id, creds)


@dataclass(frozen=True, slots=True)
class Nid(Message):
    """Answer to NKEY."""

    tag = b"NID"
    bare = False
    creds: ServerNtfCreds

    def params(self, version: int) -> bytes:
        """`short` notifier id, `short` public key."""
        return self.creds.encode()

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(ServerNtfCreds.parse(r))


class Ok(Message):
    """Done."""

    tag = b"OK"


@dataclass(frozen=True, slots=True)
class SOk(Message):
    """Subscribed (SMP >= 16; before it, and from servers that have nothing to add, `OK`)."""

    tag = b"SOK"
    bare = False
    service_id: bytes | None = field(default=None, repr=False)

    def params(self, version: int) -> bytes:
        """maybe(`short` service id)."""
        return maybe(short(self.service_id) if self.service_id is not None else None)

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(r.maybe(r.short))


@dataclass(frozen=True, slots=True)
class _CountMessage(Message):
    bare = False
    count: int
    ids_hash: bytes | None = field(default=None, repr=False)

    def params(self, version: int) -> bytes:
        """int64, and from SMP 19 on `short` hash."""
        return int64(self.count) + (short(self.ids_hash or bytes(IDS_HASH_SIZE)) if version >= IDS_HASHES else b"")

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(r.int64(), _ids_hash(r) if version >= IDS_HASHES else None)


class SOks(_CountMessage):
    """Answer to NSUBS: how many queues are subscribed; `ids_hash`: the XOR of MD5(notifier id) of them (SMP >= 19)."""

    __slots__ = ()
    tag = b"SOKS"


class Ends(_CountMessage):
    """Event: another session of the service took so many subscriptions."""

    __slots__ = ()
    tag = b"ENDS"


@dataclass(frozen=True, slots=True)
class Msg(Message):
    """A message for the recipient; `body` is a box (see `MessageBody`)."""

    tag = b"MSG"
    bare = False
    message_id: bytes
    body: bytes = field(repr=False)

    def params(self, version: int) -> bytes:
        """`short` id, tail."""
        return short(self.message_id) + self.body

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(r.short(), r.rest())


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that would take three times as long
class NMsg(Message):
    """Event for the notifier: a message arrived; `meta` is the box of a `MessageMeta` (144 bytes)."""

    tag = b"NMSG"
    bare = False
    nonce: bytes
    meta: bytes = field(repr=False)

    def params(self, version: int) -> bytes:
        """Nonce, `short` metadata."""
        return self.nonce + short(self.meta)

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError."""
        return cls(r.nonce(), r.short())


class End(Message):
    """Event: another session took the subscription."""

    tag = b"END"


class Deld(Message):
    """Event: the queue was deleted (SMP >= 10)."""

    tag = b"DELD"


class Pong(Message):
    """Answer to PING."""

    tag = b"PONG"


Command = New | Sub | Key | SKey | NKey | NDel | Get | Ack | Off | Del | Send | NSub | NSubs | Ping
Answer = Ids | Nid | Ok | SOk | SOks | Ends | Msg | NMsg | End | Deld | Pong | Err

COMMANDS: Final[Mapping[bytes, type[Message]]] = tags(
    New, Sub, Key, SKey, NKey, NDel, Get, Ack, Off, Del, Send, NSub, NSubs, Ping
)
ANSWERS: Final[Mapping[bytes, type[Message]]] = tags(Ids, Nid, Ok, SOk, SOks, Ends, Msg, NMsg, End, Deld, Pong, Err)


def parse_command(data: bytes, version: int) -> Message:
    """A server's side. Raises UnknownTagError, ParseError."""
    return parse_message(COMMANDS, data, version)


def parse_answer(data: bytes, version: int) -> Message:
    """A client's side: an answer or an event. Raises UnknownTagError, ParseError."""
    return parse_message(ANSWERS, data, version)
