"""Records as the Redis store keeps them: sealed on the way in, opened on the way out."""

import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from ntf_server.store.records import Entry, LastPush, NewToken, Replacement, Subscription, Token
from ntf_server.store.redis.names import server_id
from ntf_server.store.sealing import CLIENT_DH, DEVICE_TOKEN, SECRET, SERVER_DH, Sealer
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import Reader
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

STATUSES: Final = tuple(SubscriptionStatus)
NUMBERS: Final = {status: number for number, status in enumerate(STATUSES)}  # in this order, which never changes
WANTED: Final = NUMBERS[SubscriptionStatus.ACTIVE]  # those up to it should be active
HEAD: Final = struct.Struct(">BBIdd")  # of a subscription: status, damaged, generation, number, created at
STAMP: Final = struct.Struct(">dId?")  # of a notification: fence, number, received at, sent
ARRIVAL: Final = struct.Struct(">dB")
_ORDER: Final = struct.Struct(">dI")
_PUSH: Final = struct.Struct(">dB")  # of a last push: when, size of its id
_TIME: Final = struct.Struct(">d")
_SENT: Final = 8  # where in an arrival that stands
_SIZE: Final = struct.Struct(">H")
_ID: Final = 8  # bytes of a server's id
ATTEMPT: Final = 8  # bytes by which a TNEW or TRPL, and each of its tries, is told apart from all others

FIND: Final = (b"s", b"w", b"p", b"aa", b"o", b"x", b"r")  # fields of what `token_record` takes


class DamagedError(Exception):
    """A record that cannot be read: of `tokens`, `subscriptions` or `notifications`. `key`: the token, or the queue."""

    def __init__(self, what: str, key: bytes) -> None:
        super().__init__(f"a record of {what} cannot be read")
        self.what = what
        self.key = key


class Queue(NamedTuple):
    """Ref of a subscription: the SMP server's id, and the notifier id."""

    server: bytes
    notifier_id: bytes

    @property
    def packed(self) -> bytes:
        """As a token's shard names it."""
        return self.server + self.notifier_id


def split(kept: Mapping[bytes, bytes]) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """Of what is kept of a token: its own fields, and its queues' newest notifications."""
    names = {name for name in kept if len(name) < _ID}
    return {n: kept[n] for n in kept if n in names}, {n: kept[n] for n in kept if n not in names}


def queue(packed: bytes) -> Queue:
    """The other way."""
    return Queue(packed[:_ID], packed[_ID:])


class Cursor(NamedTuple):
    """Place of a subscription in the order of a server's pages."""

    bucket: int
    generation: int
    number: int


class Lead(NamedTuple):
    """Whose a pair of device token and verify key is, and by which attempt."""

    token: bytes
    attempt: bytes

    @property
    def packed(self) -> bytes:
        """As the device's hash has it."""
        return self.token + self.attempt


def lead(packed: bytes) -> Lead:
    """The other way."""
    return Lead(packed[:-ATTEMPT], packed[-ATTEMPT:])


class Registration(msgspec.Struct, frozen=True, array_like=True):
    """What of a registration no script looks into; sealed values. `attempt`: by which it has its device token."""

    provider: str
    verify_key: bytes
    lookup: bytes
    device_token: bytes
    client_dh: bytes
    server_dh: bytes
    secret: bytes
    app: str
    vapid_key: bytes
    attempt: bytes
    server_private: bytes = b""  # of those that keep no client key, as they come from the reference

    def __repr__(self) -> str:
        return "Registration()"


pack_registration = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Registration).decode


def registration(packed: bytes) -> Registration:
    """The record. Raises DamagedError."""
    try:
        return _unpack(packed)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise DamagedError("tokens", b"") from e


def new_registration(s: Sealer, new: NewToken, attempt: bytes) -> bytes:
    """Of TNEW."""
    seal, token_id = s.seal, new.token_id
    return pack_registration(
        Registration(
            new.device.provider.value,
            new.verify_key,
            s.lookup(new.device.provider, new.device.token),
            seal(new.device.token, DEVICE_TOKEN + token_id),
            seal(new.client_dh, CLIENT_DH + token_id),
            seal(new.server_dh, SERVER_DH + token_id),
            seal(new.secret, SECRET + token_id),
            new.app,
            new.vapid_key,
            attempt,
        )
    )


def replaced(s: Sealer, token_id: bytes, old: Registration, new: Replacement, attempt: bytes) -> bytes:
    """Of TRPL."""
    device = new.device
    return pack_registration(
        msgspec.structs.replace(
            old,
            provider=device.provider.value,
            lookup=s.lookup(device.provider, device.token),
            device_token=s.seal(device.token, DEVICE_TOKEN + token_id),
            app=new.app,
            vapid_key=new.vapid_key,
            attempt=attempt,
        )
    )


def lane_of(s: Sealer, device: DeviceToken, origin: str) -> bytes:
    """The lane that a device token is pushed through, as it is kept."""
    provider = device.provider
    return provider.encode() + (s.origin(origin) if provider is Provider.WEB_PUSH else b"")


def token_record(token_id: bytes, values: list[Any]) -> Token | None:
    """Of the fields FIND. Raises DamagedError."""
    status, reason, period, active_at, proven, damaged, packed = values
    if status is None:
        return None
    if damaged is not None:
        raise DamagedError("tokens", token_id)
    return Token(
        token_id,
        token_id,
        registration(packed).verify_key,
        TokenStatus(status.decode()),
        InvalidReason(reason.decode()) if reason else None,
        int(period),
        int(active_at),
        proven is not None,
    )


# --- the last push of a token

NO_PUSH: Final = LastPush(b"", 0, "", "")


def packed_push(push: LastPush) -> bytes:
    """As scripts keep it."""
    return _TIME.pack(push.at) + push_tail(push.push_id, push.outcome, push.reason)


def push_tail(push_id: bytes, outcome: str, reason: str) -> bytes:
    """What of it is behind its time."""
    ended = outcome.encode()
    return b"".join((bytes([len(push_id)]), push_id, bytes([len(ended)]), ended, reason.encode()))


def pushed(packed: bytes) -> LastPush:
    """The other way. Raises DamagedError."""
    try:
        at, size = _PUSH.unpack_from(packed)
        end = _PUSH.size + size
        first = end + 1
        last = first + packed[end]
        return LastPush(packed[_PUSH.size : end], int(at), packed[first:last].decode(), packed[last:].decode())
    except _RUBBISH as e:
        raise DamagedError("tokens", b"") from e


# --- subscriptions


class Row(NamedTuple):
    """A subscription's record, without its head: `spelling` of the server's address, if another than the server's."""

    token: bytes
    subscription_id: bytes
    spelling: bytes
    key: bytes

    @property
    def packed(self) -> bytes:
        """As it is kept."""
        t, s, w = self.token, self.subscription_id, self.spelling
        return b"".join((bytes([len(t)]), t, bytes([len(s)]), s, _SIZE.pack(len(w)), w, self.key))


def row(record: bytes) -> Row:
    """Of a record with its head. Raises DamagedError."""
    at = HEAD.size
    try:
        token = record[at + 1 : (at := at + 1 + record[at])]
        subscription_id = record[at + 1 : (at := at + 1 + record[at])]
        [size] = _SIZE.unpack_from(record, at)
    except (IndexError, struct.error) as e:
        raise DamagedError("subscriptions", b"") from e
    at += _SIZE.size
    if at + size > len(record):
        raise DamagedError("subscriptions", b"")
    return Row(token, subscription_id, record[at : at + size], record[at + size :])


def owner(record: bytes) -> bytes | None:
    """The token that has this subscription, as scripts read it, whatever is behind; None: that cannot be read."""
    begin = HEAD.size + 1
    end = begin + record[HEAD.size] if len(record) > HEAD.size else 0
    return record[begin:end] if begin <= end <= len(record) else None


def address(packed: bytes) -> ServerAddress:
    """Of an SMP server, as it is kept."""
    return ServerAddress.parse(Reader(packed), "smp")


def subscription_record(
    ref: Queue, record: bytes, error: bytes, generation: int, server: bytes, *, bucket: int, elsewhere: bool = False
) -> Subscription:
    """Raises DamagedError."""
    try:
        status, damaged, association, number, _ = HEAD.unpack_from(record)
        if damaged:
            raise DamagedError("subscriptions", ref.packed)
        wanted = status <= WANTED
        return Subscription(
            ref,
            row(record).subscription_id,
            address(server),
            ref.notifier_id,
            STATUSES[status],
            error.decode(),
            wanted and association > 0 and association == generation,
            Cursor(bucket, association, int(number)),
            elsewhere,
        )
    except _RUBBISH as e:
        raise DamagedError("subscriptions", ref.packed) from e


# --- notifications


def stamp(seq: int) -> bytes:
    """What a notification begins with: its session's fence, its number there."""
    return _ORDER.pack(seq >> 32, seq & 0xFFFF_FFFF)


def arrival(received_at: int, spelling: bytes, nonce: bytes, meta: bytes) -> bytes:
    """What of a notification is behind its fence and number."""
    head = ARRIVAL.pack(received_at, 0)
    return b"".join((head, _SIZE.pack(len(spelling)), spelling, _SIZE.pack(len(nonce)), nonce, meta))


def entry(packed: bytes, value: bytes | None, addresses: dict[bytes, ServerAddress], shift: int) -> Entry:
    """A notification, as a push holds it. `shift`: seconds that the store's clock is ahead. Raises DamagedError."""
    try:
        return _entry(packed, value, addresses, shift)
    except _RUBBISH as e:
        raise DamagedError("notifications", packed) from e


def _entry(packed: bytes, value: bytes | None, addresses: dict[bytes, ServerAddress], shift: int) -> Entry:
    if value is None:
        raise ValueError("it is not there")
    fence, number, received_at, sent = STAMP.unpack_from(value)
    spelled, nonce, meta = contents(value)
    ref = queue(packed)
    server = addresses.get(spelled)
    if server is None:
        if len(addresses) > _MAX_ADDRESSES:
            addresses.clear()
        server = addresses[spelled] = address(spelled)
    return Entry(
        ref,
        (int(fence) << 32) + number,
        bool(sent),
        server,
        ref.notifier_id,
        int(received_at) - shift,
        nonce,
        meta,
    )


def contents(value: bytes) -> tuple[bytes, bytes, bytes]:
    """Of a notification: the server's address as its queue spells it, nonce, metadata. Raises struct.error."""
    at = STAMP.size + _SIZE.size
    [size] = _SIZE.unpack_from(value, STAMP.size)
    spelled = value[at : (at := at + size)]
    [size] = _SIZE.unpack_from(value, at)
    at += _SIZE.size
    if at + size > len(value):
        raise struct.error("it is cut")
    return spelled, value[at : at + size], value[at + size :]


def stored(fence: int, number: int, sent: int, arrived: bytes) -> bytes:
    """A notification; `arrived`: what `arrival` gives."""
    return b"".join((_ORDER.pack(fence, number), arrived[:_SENT], bytes([sent]), arrived[_SENT + 1 :]))


_RUBBISH: Final = (struct.error, IndexError, ValueError, OverflowError)
_MAX_ADDRESSES: Final = 4096  # strangers may invent any number of servers


def queue_on(server: ServerAddress, notifier_id: bytes) -> Queue:
    """Its ref."""
    return Queue(server_id(server), notifier_id)
