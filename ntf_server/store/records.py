"""What is kept, and what the store and its callers hand each other.

Times are Unix seconds of the engine's clock. A `Ref` is the engine's own key of a record: it says where the record
lives, is never sent to anyone, and nobody but the engine looks into it. No record is changed once it is made; those
that are made for every push are not frozen, since that takes three times as long.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum
from typing import Any, Final, NamedTuple, TypeAlias

from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

MAX_ENTRIES: Final = 6  # notifications in one push (wire.md, section 8)

ALIVE: Final = frozenset([TokenStatus.REGISTERED, TokenStatus.CONFIRMED, TokenStatus.ACTIVE])
SUBSCRIBABLE: Final = frozenset([TokenStatus.ACTIVE, TokenStatus.INVALID, TokenStatus.EXPIRED])
WANTED: Final = frozenset([SubscriptionStatus.NEW, SubscriptionStatus.PENDING, SubscriptionStatus.ACTIVE])

Ref: TypeAlias = Hashable
Cursor: TypeAlias = Any  # a place in the order of a server's pages: opaque, but cursors of one server compare


class Lane(NamedTuple):
    """Who is pushed through: a provider, and for Web Push whose service.

    `origin`: keyed hash of the push service's origin (scheme, host, port), 16 bytes; empty for other providers.
    """

    provider: Provider
    origin: bytes = b""


# --- tokens


@dataclass(frozen=True, slots=True)
class Token:
    """A registration, as far as nothing of it is sealed: to look one up takes no longer than to find none.

    `verify_key`: DER; `reason`: why it is INVALID; `period`: minutes, of TCRN.
    """

    ref: Ref
    token_id: bytes = field(repr=False)
    verify_key: bytes = field(repr=False)
    status: TokenStatus
    reason: InvalidReason | None
    period: int


@dataclass(frozen=True, slots=True)
class Registered(Token):
    """What TNEW came to; `server_dh`: raw X25519, of the registration as it was made first."""

    server_dh: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewToken:
    """What TNEW creates.

    `client_dh`, `server_dh`: raw X25519 public keys; `secret`: what pushes are boxed with (`crypto.box_key` of the DH
    secret); `origin`: the push service's origin, for Web Push; `app`: which topic or project it belongs to, empty while
    there is one; `vapid_key`: id of the VAPID key in force, for Web Push.
    """

    token_id: bytes = field(repr=False)
    device: DeviceToken
    verify_key: bytes = field(repr=False)
    client_dh: bytes = field(repr=False)
    server_dh: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    code: bytes = field(repr=False)
    origin: str = ""
    app: str = ""
    vapid_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Replacement:
    """What TRPL puts in the device token's place; fields as in `NewToken`."""

    device: DeviceToken
    code: bytes = field(repr=False)
    origin: str = ""
    app: str = ""
    vapid_key: bytes = b""


@dataclass(frozen=True, slots=True)
class LastPush:
    """What came of the last push to a token: `outcome` a value of `Ended`; `reason` the provider's words, or empty."""

    push_id: bytes
    at: int
    outcome: str
    reason: str


# --- queues


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscribed queue of a token.

    `associated`: our service on the server has it; `cursor`: its place in the order of the server's pages.
    """

    ref: Ref
    subscription_id: bytes = field(repr=False)
    server: ServerAddress
    notifier_id: bytes = field(repr=False)
    status: SubscriptionStatus
    error: str
    associated: bool
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class NewSubscription:
    """What SNEW creates; `notifier_key` is DER PKCS#8, or that and more (`crypto.quick_private`)."""

    subscription_id: bytes = field(repr=False)
    server: ServerAddress
    notifier_id: bytes = field(repr=False)
    notifier_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Added:
    """What SNEW came to: `created` is False when the token had this subscription already."""

    subscription_id: bytes = field(repr=False)
    created: bool


@dataclass(frozen=True, slots=True)
class Limits:
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


@dataclass(slots=True, eq=False)
class Notification:
    """An NMSG as it arrived; `seq` and `received_at` are those of its `Arrival`."""

    notifier_id: bytes = field(repr=False)
    seq: int
    received_at: int
    nonce: bytes = field(repr=False)
    meta: bytes = field(repr=False)


class Arrival(NamedTuple):
    """Stamp of notifications that arrived together: numbers from `first` on, which grow with every arrival, and the
    time.
    """

    first: int
    received_at: int


@dataclass(slots=True, eq=False)
class Entry:
    """The newest notification of a queue, as a push holds it; `seq` tells a newer one apart; `sent`: in an earlier
    push.
    """

    subscription: Ref
    seq: int
    sent: bool
    server: ServerAddress
    notifier_id: bytes = field(repr=False)
    received_at: int
    nonce: bytes = field(repr=False)
    meta: bytes = field(repr=False)


@dataclass(slots=True, eq=False)
class Claim:
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
    secret: bytes = field(repr=False)
    kind: PushKind
    since: int
    push_id: bytes = field(repr=False)
    code: bytes = field(default=b"", repr=False)
    entries: tuple[Entry, ...] = ()
    attempts: int = 0
    registered_at: int = 0
    delivered_before: bool = False
    app: str = ""
    vapid_key: bytes = b""


class Ended(StrEnum):
    """How a claim ends."""

    DELIVERED = "delivered"
    DEAD = "dead"  # the token is no longer valid
    AGAIN = "again"  # due again after a while
    OURS = "ours"  # the same, for a fault of the operator's or of ours
    EXPIRED = "expired"  # its time to live is over: it was not delivered
    UNTRIED = "untried"  # given back: nothing was sent


@dataclass(slots=True, eq=False)
class Outcome:
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


@dataclass(slots=True, eq=False)
class Taken:
    """What `take` gives; `next_in`: seconds until more is due where there is room, 0 if it is due now, None if nothing
    is.
    """

    claims: list[Claim]
    next_in: float | None = None


@dataclass(slots=True, eq=False)
class Notified:
    """What NMSGs came to: claims that were handed out at once, and how many NMSGs were for no subscription."""

    claims: list[Claim]
    unknown: int


# --- sessions


@dataclass(frozen=True, slots=True)
class Session:
    """The right to speak for an SMP server's subscriptions. Of two with one server the one with the higher fence
    counts.
    """

    server: ServerAddress
    fence: int


@dataclass(frozen=True, slots=True)
class ServiceState:
    """Our service on an SMP server, as this session has it.

    `associated`: how many wanted subscriptions it has; `released`: how many others the server may count, as their
    subscriptions were deleted here (SMP has no unsubscribe); `changed`: the service id is another than before;
    `ids_hash`: XOR of MD5(notifier id) over both (wire.md, section 7), 16 bytes.
    """

    associated: int
    released: int
    changed: bool = False
    ids_hash: bytes = bytes(16)


@dataclass(frozen=True, slots=True)
class ServiceCertificate:
    """The certificate chain (PEM) that an SMP server knows us by as a service, and its key (DER PKCS#8)."""

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A subscription that should be active; `fresh`: it was never confirmed; `associated`: our service has it."""

    ref: Ref
    associated: bool
    fresh: bool
    notifier_id: bytes = field(repr=False)
    notifier_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Page:
    """Subscriptions in the order of their cursors; `cursor`: behind the last of them, None: there are no more."""

    wanted: list[Wanted]
    cursor: Cursor | None


@dataclass(frozen=True, slots=True)
class Confirmed:
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


@dataclass(frozen=True, slots=True)
class Change:
    """For whoever holds the server, or should. `refs`: which ones; REMOVED names none."""

    kind: ChangeKind
    server: ServerAddress
    refs: tuple[Ref, ...] = ()


@dataclass(frozen=True, slots=True)
class ToAudit:
    """A subscription that should be active; `silent`: nothing was heard of it for long."""

    ref: Ref
    server: ServerAddress
    silent: bool
