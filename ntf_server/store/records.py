"""What is kept and how it is asked for: records, and the protocol that every engine implements.

Times are Unix seconds. A `ref` is the engine's own small key of a record, never sent to anyone. No record is changed
once it is made; those that are made for every push are not frozen, since that takes three times as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

MAX_ENTRIES = 6  # notifications in one push (wire.md, section 8)

ALIVE = frozenset([TokenStatus.REGISTERED, TokenStatus.CONFIRMED, TokenStatus.ACTIVE])
SUBSCRIBABLE = frozenset([TokenStatus.ACTIVE, TokenStatus.INVALID, TokenStatus.EXPIRED])
WANTED = frozenset([SubscriptionStatus.NEW, SubscriptionStatus.PENDING, SubscriptionStatus.ACTIVE])


class StoreError(Exception):
    """The engine could not do it now (disk full, busy): it may be tried again."""


class StoreCorruptError(Exception):
    """What is stored cannot be trusted; an operator has to restore it. The text says how."""


@dataclass(frozen=True, slots=True)
class Token:
    """A registered device token. Keys: `verify_key` DER, the X25519 ones raw, `secret` what pushes are boxed with
    (`crypto.box_key` of the DH secret).
    """

    ref: int
    token_id: bytes = field(repr=False)
    device: DeviceToken
    verify_key: bytes = field(repr=False)
    client_dh: bytes = field(repr=False)
    server_dh: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    code: bytes = field(repr=False)
    status: TokenStatus
    reason: InvalidReason | None
    period: int


@dataclass(frozen=True, slots=True)
class NewToken:
    """What TNEW creates."""

    token_id: bytes = field(repr=False)
    device: DeviceToken
    verify_key: bytes = field(repr=False)
    client_dh: bytes = field(repr=False)
    server_dh: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    code: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscribed queue. `association`: see `ServiceState.generation`; 0 if it was never associated."""

    ref: int
    subscription_id: bytes = field(repr=False)
    server: ServerAddress
    notifier_id: bytes = field(repr=False)
    notifier_key: bytes = field(repr=False)
    status: SubscriptionStatus
    error: str
    association: int


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

    ref: int
    subscription_id: bytes = field(repr=False)
    created: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """How many subscriptions one token, and one SMP server, may have; 0: no limit."""

    per_token: int = 0
    per_server: int = 0


NO_LIMITS = Limits()


class LimitReached(Enum):
    """Whose limit SNEW would exceed."""

    TOKEN = "token"
    SERVER = "server"


Position = tuple[int, int]  # (association, ref): the order in which a server's subscriptions are paged
START: Position = (0, 0)
ALL_ASSOCIATIONS = 2**62


@dataclass(frozen=True, slots=True)
class Wanted:
    """A subscription that should be active; `fresh`: it was never confirmed."""

    ref: int
    association: int
    fresh: bool
    notifier_id: bytes = field(repr=False)
    notifier_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServiceCertificate:
    """The certificate chain (PEM) that an SMP server knows us by as a service, and its key (DER PKCS#8)."""

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServiceState:
    """Our service on an SMP server.

    `generation`: associations with this number hold, older ones do not; `associated`: how many wanted subscriptions
    have it; `released`: how many others the server may count, as their subscriptions were deleted here (SMP has no
    unsubscribe); `changed`: the service id is another than before.
    """

    generation: int
    associated: int
    released: int
    changed: bool = False


@dataclass(frozen=True, slots=True)
class ToAudit:
    """A subscription that should be active; `silent`: nothing was heard of it for long."""

    ref: int
    server: ServerAddress
    silent: bool


@dataclass(slots=True, unsafe_hash=True)
class Notified:
    """What NMSGs came to: the tokens that have to be pushed to, and how many were for no subscription."""

    due: list["Due"]
    unknown: int


@dataclass(slots=True, unsafe_hash=True)
class Notification:
    """An NMSG as it arrived."""

    notifier_id: bytes = field(repr=False)
    received_at: int
    nonce: bytes = field(repr=False)
    meta: bytes = field(repr=False)


class PushKind(IntEnum):
    """What a push says; the lower goes first."""

    VERIFICATION = 0
    MESSAGES = 1
    CHECK = 2


@dataclass(slots=True, unsafe_hash=True)
class Due:
    """A token that has something to be pushed, and where."""

    token: int
    provider: Provider
    kind: PushKind


@dataclass(slots=True, unsafe_hash=True)
class StoredNotification:
    """The newest notification of a queue; `seq` grows with every arrival, so that a newer one is told apart."""

    subscription: int
    seq: int
    sent: bool
    server: ServerAddress
    notification: Notification


@dataclass(slots=True, unsafe_hash=True)
class Push:
    """What is to be pushed to a token now.

    `registration` tells this code and device token from later ones; `notifications`: oldest first;
    `more`: others wait behind them; `registered_at`: when the device token was last registered (TNEW, TRPL).
    """

    token: int
    registration: int
    device: DeviceToken
    secret: bytes = field(repr=False)
    kind: PushKind
    since: int
    code: bytes = field(default=b"", repr=False)
    notifications: tuple[StoredNotification, ...] = ()
    more: bool = False
    registered_at: int = 0


@dataclass(slots=True, unsafe_hash=True)
class Delivered:
    """The provider took the push. `notifications` are those that it held."""

    push: Push
    at: int
    notifications: tuple[StoredNotification, ...] = ()


@dataclass(frozen=True, slots=True)
class DeadToken:
    """The provider says that the token is no longer valid."""

    push: Push
    reason: InvalidReason


Outcome = Delivered | DeadToken


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What an NSUB changed; `association`: the generation in which the service has it from now on."""

    ref: int
    status: SubscriptionStatus
    error: str = ""
    association: int | None = None


class Store(Protocol):
    """All methods raise StoreError or StoreCorruptError; what they write is durable when they return."""

    async def register_token(self, new: NewToken, now: int) -> Token | None:
        """TNEW: create, or find the same registration and revive it; its verification becomes due.

        None if the registration exists with another client DH key.
        """
        ...

    async def find_token(self, token_id: bytes) -> Token | None:
        """A token by its id."""
        ...

    async def verify_token(self, ref: int, code: bytes) -> list[Due] | None:
        """TVFY: None for a wrong code or status; else ACTIVE, other registrations deleted; gives what is now due."""
        ...

    async def replace_token(self, ref: int, device: DeviceToken, code: bytes, now: int) -> bool:
        """TRPL: another device token and code, REGISTERED, verification due; False if the token is gone."""
        ...

    async def delete_token(self, ref: int) -> None:
        """TDEL: with all its subscriptions."""
        ...

    async def set_period(self, ref: int, minutes: int, now: int) -> None:
        """TCRN: the first period begins now, unless one of this length runs."""
        ...

    async def due_checks(self, now: int) -> list[Due]:
        """Mark the tokens whose period is over; gives the newly marked."""
        ...

    async def add_subscription(
        self, token: int, new: NewSubscription, now: int, limits: Limits = NO_LIMITS
    ) -> Added | LimitReached | None:
        """SNEW: None if the queue is another token's or was subscribed with another key."""
        ...

    async def find_subscription(self, subscription_id: bytes) -> tuple[Token, Subscription] | None:
        """A subscription by its id, and its token."""
        ...

    async def delete_subscription(self, ref: int) -> None:
        """SDEL."""
        ...

    async def servers(self) -> list[ServerAddress]:
        """SMP servers that have subscriptions to keep active."""
        ...

    async def is_wanted(self, server: ServerAddress) -> bool:
        """Whether the server has any of them."""
        ...

    async def page(self, server: ServerAddress, after: Position, below: int, limit: int) -> list[Wanted]:
        """Subscriptions that should be active, behind a position, with associations below a generation."""
        ...

    async def load_wanted(self, refs: Sequence[int]) -> list[Wanted]:
        """Those of these subscriptions that should be active."""
        ...

    async def confirm(self, results: Sequence[Confirmed]) -> None:
        """Answers to NSUBs; a subscription that ended meanwhile stays so."""
        ...

    async def end_subscriptions(
        self, server: ServerAddress, notifier_ids: Sequence[bytes], status: SubscriptionStatus
    ) -> int:
        """END and DELD: how many of them there are here."""
        ...

    async def subscription_count(self) -> int:
        """All subscriptions, in whatever status."""
        ...

    async def to_audit(self, after: int, limit: int, silent_since: int) -> list[ToAudit]:
        """Subscriptions that should be active, by growing ref after `after`."""
        ...

    async def service_certificate(self, server: ServerAddress) -> ServiceCertificate | None:
        """What `set_service_certificate` kept."""
        ...

    async def set_service_certificate(self, server: ServerAddress, certificate: ServiceCertificate) -> None:
        """Keep it."""
        ...

    async def begin_service(self, server: ServerAddress, service_id: bytes | None) -> ServiceState:
        """A session begins with this service id, or without: if it is another than before, no association holds."""
        ...

    async def service_state(self, server: ServerAddress) -> ServiceState:
        """As it is now."""
        ...

    async def reassociate(self, server: ServerAddress) -> ServiceState:
        """The server does not have what it should: from now on no association holds."""
        ...

    async def set_released(self, server: ServerAddress, count: int) -> None:
        """See `ServiceState.released`."""
        ...

    def arrival(self, count: int) -> int:
        """First of `count` numbers for notifications that arrived now: they grow with every arrival, for ever."""
        ...

    async def notify(
        self, server: ServerAddress, notifications: Sequence[Notification], first: int | None = None
    ) -> Notified:
        """NMSGs of a block, numbered from `first`: each becomes its queue's newest, unless a later one is there."""
        ...

    async def all_due(self, provider: Provider | None = None, limit: int = -1) -> list[Due]:
        """What was not delivered, of one provider or of all; `limit` -1 for no limit."""
        ...

    async def load_pushes(self, tokens: Sequence[int], now: int) -> list[Push]:
        """What is to be pushed to these tokens now; tokens that have nothing are left out."""
        ...

    async def record(self, outcomes: Sequence[Outcome]) -> None:
        """What came of pushes."""
        ...

    async def close(self) -> None:
        """Finish what was asked and close."""
        ...
