"""What is kept, and what the store and its callers hand each other.

Times are Unix seconds of the engine's clock. A `Ref` is the engine's own key of a record: it says where the record
lives, is never sent to anyone, and nobody but the engine looks into it. No record is changed once it is made. Those
that are made for every push are without `gc`: none is part of a cycle, and the collector has less to go through.
"""

from collections import Counter as Tally
from collections.abc import Hashable
from enum import Enum, IntEnum, StrEnum
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

MAX_ENTRIES: Final = 6  # notifications in one push (wire.md, section 8)

ALIVE: Final = frozenset([TokenStatus.REGISTERED, TokenStatus.CONFIRMED, TokenStatus.ACTIVE])
SUBSCRIBABLE: Final = frozenset([TokenStatus.ACTIVE, TokenStatus.INVALID, TokenStatus.EXPIRED])
WANTED: Final = frozenset([SubscriptionStatus.NEW, SubscriptionStatus.PENDING, SubscriptionStatus.ACTIVE])

Ref: TypeAlias = Hashable
Cursor: TypeAlias = Any  # a place in the order of a server's pages: opaque, but cursors of one server compare


class Record(msgspec.Struct, frozen=True):
    """Made in half the time, and of a sixth of the code, of a dataclass. Its repr shows no bytes: most are secret."""

    def __repr__(self) -> str:
        values = [(name, getattr(self, name)) for name in self.__struct_fields__]
        shown = ", ".join(f"{name}={value!r}" for name, value in values if not isinstance(value, bytes))
        return f"{type(self).__name__}({shown})"


class Lane(NamedTuple):
    """Who is pushed through: a provider, and for Web Push whose service.

    `origin`: keyed hash of the push service's origin (scheme, host, port), 16 bytes; empty for other providers.
    """

    provider: Provider
    origin: bytes = b""


# --- tokens


class Token(Record, frozen=True):
    """A registration, as far as nothing of it is sealed: to look one up takes no longer than to find none.

    `verify_key`: DER; `reason`: why it is INVALID; `period`: minutes, of TCRN; `active_at`: of its last command, up to
    a day more; `proven`: it was ACTIVE once.
    """

    ref: Ref
    token_id: bytes
    verify_key: bytes
    status: TokenStatus
    reason: InvalidReason | None
    period: int
    active_at: int
    proven: bool


class Registered(Token, frozen=True):
    """What TNEW came to; `server_dh`: raw X25519, of the registration as it was made first."""

    server_dh: bytes


class NewToken(Record, frozen=True):
    """What TNEW creates.

    `client_dh`, `server_dh`: raw X25519 public keys; `secret`: what pushes are boxed with (`crypto.box_key` of the DH
    secret); `origin`: the push service's origin, for Web Push; `app`: which topic or project it belongs to, empty while
    there is one; `vapid_key`: id of the VAPID key in force, for Web Push.
    """

    token_id: bytes
    device: DeviceToken
    verify_key: bytes
    client_dh: bytes
    server_dh: bytes
    secret: bytes
    code: bytes
    origin: str = ""
    app: str = ""
    vapid_key: bytes = b""


class Replacement(Record, frozen=True):
    """What TRPL puts in the device token's place; fields as in `NewToken`."""

    device: DeviceToken
    code: bytes
    origin: str = ""
    app: str = ""
    vapid_key: bytes = b""


# Spans of the past, in seconds, by which tokens count as active.
ACTIVE_SPANS: Final = {"day": 24 * 3600, "week": 7 * 24 * 3600, "month": 30 * 24 * 3600}


class Census:
    """How many tokens there are by provider and status (`damaged`: they are set aside), and how many took a push within
    each of ACTIVE_SPANS. `vapid_keys`: how many of Web Push, of those that are pushed to, by the id of the VAPID key
    that they are for; empty: it is not known.
    """

    def __init__(self) -> None:
        self.tokens: Tally[tuple[str, str]] = Tally()
        self.active: Tally[str] = Tally()
        self.vapid_keys: Tally[bytes] = Tally()

    def count(self, provider: str, status: str, vapid_key: bytes, number: int) -> None:
        """So many of a kind."""
        self.tokens[provider, status] += number
        if provider == Provider.WEB_PUSH and status in ALIVE:
            self.vapid_keys[vapid_key] += number

    def add(self, other: "Census") -> None:
        """What was counted elsewhere."""
        self.tokens.update(other.tokens)
        self.active.update(other.active)
        self.vapid_keys.update(other.vapid_keys)


class LastPush(Record, frozen=True):
    """What came of the last push to a token: `outcome` a value of `Ended`; `reason` the provider's words, or empty."""

    push_id: bytes
    at: int
    outcome: str
    reason: str


class Device(Record, frozen=True):
    """A registration's device, as operators see it; `fingerprint`: see `Sealer.fingerprint`."""

    provider: Provider
    fingerprint: str


# --- queues


class Subscription(Record, frozen=True):
    """A subscribed queue of a token.

    `associated`: our service on the server has it; `cursor`: its place in the order of the server's pages;
    `elsewhere`: another node has a session with the server, in which all is confirmed that should be.
    """

    ref: Ref
    subscription_id: bytes
    server: ServerAddress
    notifier_id: bytes
    status: SubscriptionStatus
    error: str
    associated: bool
    cursor: Cursor
    elsewhere: bool = False


class NewSubscription(Record, frozen=True):
    """What SNEW creates; `notifier_key` is DER PKCS#8, or that and more (`crypto.quick_private`).

    `server`: as the device spells it, which is how its pushes name it.
    """

    subscription_id: bytes
    server: ServerAddress
    notifier_id: bytes
    notifier_key: bytes


class Added(Record, frozen=True):
    """What SNEW came to: `created` is False when the token had this subscription already."""

    subscription_id: bytes
    created: bool


class Limits(Record, frozen=True):
    """How many subscriptions one token, and one SMP server, may have; 0: no limit."""

    per_token: int = 0
    per_server: int = 0


NO_LIMITS: Final = Limits()


class LimitReached(Enum):
    """Whose limit SNEW would exceed."""

    TOKEN = "token"
    SERVER = "server"


# --- deliveries


class PushKind(IntEnum):
    """What a push says. A token that has several due gets the lower first."""

    VERIFICATION = 0
    MESSAGES = 1
    CHECK = 2


class Notification(Record, frozen=True, eq=False, gc=False):
    """An NMSG as it arrived; `seq` and `received_at` are those of its `Arrival`."""

    notifier_id: bytes
    seq: int
    received_at: int
    nonce: bytes
    meta: bytes


class Arrival(NamedTuple):
    """Stamp of notifications that arrived together: numbers from `first` on, which grow with every arrival, and the
    time.
    """

    first: int
    received_at: int


class Entry(Record, frozen=True, eq=False, gc=False):
    """The newest notification of a queue, as a push holds it; `seq` tells a newer one apart; `sent`: in an earlier
    push; `server`: as the SNEW spelled it.
    """

    subscription: Ref
    seq: int
    sent: bool
    server: ServerAddress
    notifier_id: bytes
    received_at: int
    nonce: bytes
    meta: bytes


class Claim(Record, frozen=True, eq=False, gc=False):
    """What is to be pushed to a token, and the right to do so now: there is one claim of a token at a time.

    `registration` tells this device token and code from later ones; `since`: when what it says became due; `entries`:
    oldest first; `attempts`: tries that failed so far; `push_id`: 16 random bytes, the same over all tries;
    `registered_at`: of the last TNEW or TRPL; `delivered_before`: a push to this device token was once accepted; the
    rest as in `NewToken`.
    """

    token: Ref
    registration: int
    lane: Lane
    device: DeviceToken
    secret: bytes
    kind: PushKind
    since: int
    push_id: bytes
    code: bytes = b""
    entries: tuple[Entry, ...] = ()
    attempts: int = 0
    registered_at: int = 0
    delivered_before: bool = False
    app: str = ""
    vapid_key: bytes = b""


def push_uuid(push_id: bytes) -> str:
    """A push's id as Apple and operators see it: a UUID of version 4 (RFC 9562, section 5.4), of 16 bytes; `uuid` takes
    four times as long.
    """
    h = push_id.hex()
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:]}"


class Ended(StrEnum):
    """How a claim ends."""

    DELIVERED = "delivered"
    DEAD = "dead"  # the token is no longer valid
    AGAIN = "again"  # due again after a while
    OURS = "ours"  # the same, for a fault of the operator's or of ours
    EXPIRED = "expired"  # its time to live is over: it was not delivered
    UNTRIED = "untried"  # given back: nothing was sent


class Outcome(Record, frozen=True, eq=False, gc=False):
    """What came of a claim.

    `reason`: the provider's words; `dead`: the token's status from now on, if DEAD; `after`: seconds until it is due
    again (AGAIN, OURS, UNTRIED); `held`: the entries that went out, if DELIVERED.
    """

    claim: Claim
    ended: Ended
    reason: str = ""
    dead: InvalidReason | None = None
    after: float = 0.0
    held: tuple[Entry, ...] = ()


class Taken(Record, frozen=True, eq=False, gc=False):
    """What `take` gives; `next_in`: seconds until more is due where there is room, 0 if it is due now, None if nothing
    is.
    """

    claims: list[Claim]
    next_in: float | None = None


class Backlog(NamedTuple):
    """Tokens that are `due` now, that are `waiting` for a retry or their turn; for how many seconds the first of those
    that are due has been.
    """

    due: int
    waiting: int
    oldest: float

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.due + self.waiting


class Space(NamedTuple):
    """Bytes: what the store takes; of these what its log does, None: that is not apart; what it may still take, None:
    that has no limit, or is not known.
    """

    used: int
    log: int | None
    room: int | None


class Notified(Record, frozen=True, eq=False, gc=False):
    """What NMSGs came to: claims that were handed out at once, and how many NMSGs were for no subscription.

    `unstored`: what has their tokens does not answer now; they are to be given again, later.
    """

    claims: list[Claim]
    unknown: int
    unstored: list[Notification] = []


# --- sessions


class Session(Record, frozen=True):
    """The right to speak for an SMP server's subscriptions. Of two with one server the one with the higher fence
    counts.
    """

    server: ServerAddress
    fence: int


class Share(Record, frozen=True):
    """What of the servers is a node's: those that it should speak for and nobody does, and sessions that another node
    should have.

    `unsettled`: others are about to lose their node, or have lost it, and nobody has taken them yet: look again soon.
    """

    take: list[ServerAddress]
    give: list[Session]
    unsettled: bool = False


class Glance(Record, frozen=True):
    """What a store tells whoever has not opened it: registrations by status, or "all" of them; tokens that are due, by
    provider, and for how many seconds the oldest is; nodes that live. None: it cannot tell.
    """

    registrations: dict[str, int]
    subscriptions: int | None
    due: dict[str, int] = {}
    oldest_due: float | None = None
    nodes: int | None = None


class ServiceState(Record, frozen=True):
    """Our service on an SMP server, as this session has it.

    `associated`: how many wanted subscriptions it has; `released`: how many others the server may count, as their
    subscriptions were deleted here (SMP has no unsubscribe); `changed`: the service id is another than before;
    `ids_hash`, `released_hash`: XOR of MD5(notifier id) over both, and over the released ones (wire.md, section 7), 16
    bytes.
    """

    associated: int
    released: int
    changed: bool = False
    ids_hash: bytes = bytes(16)
    released_hash: bytes = bytes(16)


class ServiceCertificate(Record, frozen=True):
    """The certificate chain (PEM) that an SMP server knows us by as a service, and its key (DER PKCS#8)."""

    chain: bytes
    key: bytes


class Wanted(Record, frozen=True):
    """A subscription that should be active; `fresh`: it was never confirmed; `associated`: our service has it."""

    ref: Ref
    associated: bool
    fresh: bool
    notifier_id: bytes
    notifier_key: bytes


class Lost(NamedTuple):
    """What `mark_lost` gives: how many tokens are owed a check; `cursor` as in `Page`; `later`: seconds until all may
    be that had one too lately, 0: there are none.
    """

    marked: int
    cursor: Cursor | None
    later: float = 0.0


class Page(Record, frozen=True):
    """Subscriptions in the order of their cursors; `cursor`: behind the last of them, None: there are no more."""

    wanted: list[Wanted]
    cursor: Cursor | None


class Confirmed(Record, frozen=True):
    """What an NSUB came to; `associated`: our service has it from now on, None: that did not change."""

    ref: Ref
    status: SubscriptionStatus
    error: str = ""
    associated: bool | None = None


class ChangeKind(StrEnum):
    """What happened to subscriptions of a server."""

    ADDED = "added"
    REMOVED = "removed"
    AUDIT = "audit"  # they should be active: is that so?
    FREE = "free"  # nobody speaks for the server any more, and this node should
    LOST = "lost"  # what was stored of it last may be lost, whoever holds it


class Removed(Record, frozen=True):
    """A subscription that was deleted while it was wanted; `active`: it was kept as ACTIVE; the rest as it was."""

    ref: Ref
    active: bool
    associated: bool
    cursor: Cursor


class Change(Record, frozen=True):
    """For whoever holds the server, or should. `refs`: which ones; `removed`: the same for REMOVED."""

    kind: ChangeKind
    server: ServerAddress
    refs: tuple[Ref, ...] = ()
    removed: tuple[Removed, ...] = ()


class ToAudit(Record, frozen=True):
    """A subscription that should be active; `silent`: nothing was heard of it for long."""

    ref: Ref
    server: ServerAddress
    silent: bool
