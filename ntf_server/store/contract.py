"""What every store does, by concern. The conformance suite (`ntf_server.testing.store_suite`) holds engines to it.

The engine owns the clock: no method takes a time, and those that ask for a delay take seconds from now. What a method
wrote is durable when it returns. A method that was cancelled, or that raised, may or may not have been done; each may
be repeated.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from ntf_server.store.inspection import Inspection
from ntf_server.store.ledger import Ledger
from ntf_server.store.pulse import Pulse
from ntf_server.store.records import (
    NO_LIMITS,
    Added,
    Arrival,
    Backlog,
    Census,
    Change,
    Confirmed,
    Cursor,
    Device,
    LastPush,
    LimitReached,
    Limits,
    Lost,
    NewSubscription,
    NewToken,
    Notification,
    Notified,
    Outcome,
    Page,
    Ref,
    Registered,
    Replacement,
    ServiceCertificate,
    ServiceState,
    Session,
    Share,
    Space,
    Subscription,
    Taken,
    ToAudit,
    Token,
    Wanted,
)
from ntf_server.store.statistics import Statistics
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus
from smp_bridge.places import Standing


class StoreError(Exception):
    """What a store cannot do. The class says who tries again; `kind` is its name in metrics."""

    kind: ClassVar[str] = "conflict"


class StoreUnavailableError(StoreError):
    """Not now: another process holds a lock, the server cannot be reached. The caller tries again, later."""

    kind = "unavailable"


class PartlyUnavailableError(StoreUnavailableError):
    """What has a part of the store does not answer. Of what was given `left` is not done, or not known to be: the
    caller tries that again, later. All else is done, with `result`.
    """

    def __init__(self, text: str, result: Any, left: Sequence[Any]) -> None:
        super().__init__(text)
        self.result = result
        self.left = left


class StoreFullError(StoreUnavailableError):
    """There is no room. The caller tries again, later; the operator makes room."""

    kind = "full"


class FencedError(StoreError):
    """Another session speaks for the server by now. Nobody tries again."""

    kind = "fenced"


class StoreConflictError(StoreError):
    """The engine was asked for what cannot be: a fault of ours. Nobody tries again."""

    kind = "conflict"


class DamagedRecordError(StoreError):
    """A record cannot be read. It is set aside and counted; nobody tries again, and everything else goes on."""

    kind = "damaged"


class StoreCorruptError(Exception):
    """Nothing that is stored can be trusted; an operator has to restore it. The text says how."""

    kind = "corrupt"


class Places(Protocol):
    """How many claims may be handed out. Asked by the engine, perhaps in another thread: reads only."""

    @property
    def total(self) -> int:
        """Of the provider."""
        ...

    def room(self, origin: bytes) -> int:
        """Of these, in the lane of one origin; 0: it is paused, or has as many as it may."""
        ...


class Tokens(Protocol):
    """Registrations."""

    async def register(self, new: NewToken, wait: float = 0.0) -> Registered | None:
        """TNEW: create, or find the same registration and revive it; its verification becomes due, after `wait`
        seconds, which do not count against its time to live. One that is due already, and is not out, is not put off.

        The same: device token (that of APNs without regard to case) and verify key. None if it exists with another
        client DH key. One that cannot be read is made anew.
        """
        ...

    async def find_token(self, token_id: bytes) -> Token | None:
        """A token by its id; opens nothing that is sealed. Raises DamagedRecordError if it was set aside."""
        ...

    def seen(self, token: Token) -> None:
        """A command of it was authorized: it is not silent. At once; written by `tend`, at most once a day a token."""
        ...

    async def find_registration(self, device: DeviceToken, verify_key: bytes) -> Token | None:
        """What `register` with this device token and verify key (DER) would find, if it can be read."""
        ...

    async def put_off(self, waits: Mapping[Ref, float | None]) -> None:
        """Of tokens whose code has to wait (`register`, `replace`): so many seconds from now instead.

        None: delete the token, if it never was ACTIVE. Those that are gone, or whose code waits no longer, are left.
        """
        ...

    async def verify(self, token: Ref, code: bytes) -> bool:
        """TVFY: ACTIVE from now on, other registrations of the device token deleted. False: wrong code or status."""
        ...

    async def replace(self, token: Ref, new: Replacement, wait: float = 0.0) -> bool:
        """TRPL: another device token and code, REGISTERED, verification due after `wait` seconds.

        False: the token is gone, or another registration has that device token and this verify key.
        """
        ...

    async def delete_token(self, token: Ref) -> None:
        """TDEL: with all its subscriptions. From now on nobody finds them; what they take up is cleared by `tend`."""
        ...

    async def set_period(self, token: Ref, minutes: int) -> None:
        """TCRN: the first period begins now, unless one of this length runs."""
        ...

    async def set_vapid_key(self, token: Ref, key_id: bytes) -> None:
        """A push service showed that a token of Web Push is for this VAPID key. Nothing if the token is gone."""
        ...

    async def mark_checks(self, limit: int, *, quiet_only: bool = True) -> int:
        """Make a check due for ACTIVE tokens whose period is over, `limit` of these at most: how many there were.

        It becomes due up to a tenth of the period later, of each token at another time: what began together is not to
        go on together. `quiet_only`: one that was pushed to within its period is owed none (wire.md, section 6): its
        next period began then.
        """
        ...

    async def invalidate(
        self, status: TokenStatus, reason: InvalidReason, after: Cursor | None, limit: int
    ) -> tuple[int, Cursor | None]:
        """An operator's: of `limit` tokens behind a cursor those of a status are INVALID now, as if a provider had said
        that they are dead. How many; where the next slice begins, None: that was the last.
        """
        ...

    async def census(
        self, after: Cursor | None, limit: int, *, everywhere: bool = False
    ) -> tuple[Census, Cursor | None]:
        """Count `limit` tokens behind a cursor, of those that this node has, or of all; where the next slice begins,
        None: that was the last.
        """
        ...

    async def last_push(self, token: Ref) -> LastPush | None:
        """What came of the last push to a token."""
        ...

    async def device_of(self, token: Ref) -> Device | None:
        """Which device it is; None: the registration is gone."""
        ...

    def fingerprint(self, device: DeviceToken) -> str:
        """The same of a device token."""
        ...


class Queues(Protocol):
    """Subscriptions of tokens."""

    async def subscribe(
        self, token: Ref, new: NewSubscription, limits: Limits = NO_LIMITS
    ) -> Added | LimitReached | None:
        """SNEW: None if the queue is another token's, or was subscribed with another key.

        One that ended (END, DELETED, AUTH, …) is wanted again. Limits hold up to commands that are under way together.
        """
        ...

    async def find_subscription(self, subscription_id: bytes) -> tuple[Token, Subscription] | None:
        """A subscription by its id, and its token; as `find_token`. Raises DamagedRecordError."""
        ...

    async def unsubscribe(self, subscription: Ref) -> None:
        """SDEL."""
        ...

    async def subscription_count(self) -> int:
        """All subscriptions, in whatever status."""
        ...


class Deliveries(Protocol):
    """What is to be pushed.

    A token is due while it has a notification that no push held, a code or a check that was not pushed. There is one
    claim of a token at a time; what arrives meanwhile is due when that claim has ended, and not before a few
    milliseconds after a push, so that what comes together goes out together. What waits for a retry waits in the store.
    """

    def watch(self, on_due: Callable[[Provider, float], None]) -> None:
        """Have `on_due` called, in the loop, when something becomes due that nobody was handed: seconds until it is."""
        ...

    def arrive(self, session: Session, count: int) -> Arrival:
        """A stamp for `count` notifications that arrived now. At once, without the store's medium."""
        ...

    async def notify(
        self, session: Session, notifications: Sequence[Notification], places: Mapping[Provider, Places]
    ) -> Notified:
        """Each becomes its queue's newest, unless a later one is there; its token is due, or handed out where there is
        room.

        Those that cannot be stored now are told, where others could be. Those of an earlier session of this node are
        taken too: nobody else has them. Raises FencedError if another node holds the server.
        """
        ...

    async def take(self, provider: Provider, places: Places) -> Taken:
        """Claims of tokens that are due, oldest first; lanes in turn where a provider has several.

        Lanes without room are passed over. What is over its time to live is not handed out, but counted as expired.
        """
        ...

    async def record(self, outcomes: Sequence[Outcome]) -> int:
        """End claims. How many were not claimed any more: of these nothing is recorded.

        Raises PartlyUnavailableError, too.
        """
        ...

    async def backlog(self, provider: Provider) -> Backlog:
        """Tokens that have something to be pushed and are not claimed, as far as this node has them."""
        ...


class Sessions(Protocol):
    """SMP servers, and what is subscribed on them. Methods that take a session raise FencedError once another one
    counts.
    """

    async def servers(self) -> list[ServerAddress]:
        """Those that have subscriptions to keep active."""
        ...

    async def is_wanted(self, server: ServerAddress) -> bool:
        """Whether the server has any of them."""
        ...

    async def standing(self, server: ServerAddress) -> Standing | None:
        """What is known of a server that is wanted; None: it is not. `claims` are some of the tokens that want it."""
        ...

    async def prove(self, session: Session, prefix: str) -> None:
        """In this session, which leads to an address of this prefix, the server confirmed a subscription.

        The last few prefixes of it are kept.
        """
        ...

    async def disprove(self, server: ServerAddress) -> None:
        """What the server has proved holds no more; from now on it is tried in vain."""
        ...

    async def give_up(self, session: Session, error: str, limit: int) -> int:
        """Of subscriptions that should be active, `limit` at most get the status ERR with this text; how many did."""
        ...

    async def acquire(self, server: ServerAddress) -> Session | None:
        """Speak for a server from now on, with a fence above all before; None: another node does."""
        ...

    @property
    def lease(self) -> float:
        """Seconds for which a session lasts that is not renewed; infinite: no other node may have the store."""
        ...

    async def renew(self, sessions: Sequence[Session]) -> list[Session]:
        """Keep them; gives those that are lost. Raises PartlyUnavailableError, with these as its result, and as what is
        left those which may last until their leases end and no longer.
        """
        ...

    async def release(self, session: Session) -> None:
        """Speak for it no more."""
        ...

    async def share(self, sessions: Sequence[Session]) -> Share:
        """Which servers are this node's, which of these sessions another's: joining and leaving moves a share only."""
        ...

    async def leave(self) -> int:
        """This node is to stop: from now on no server is its share, and what it may push is other nodes' to push, but
        for claims that are out; they hear of it at once. Of how many parts of the store it still has such claims.

        Without others: nothing. To be asked again until it is 0, or for as long as there is time.
        """
        ...

    async def announce(self, session: Session, *, whole: bool) -> None:
        """Have other nodes know whether all that should be is confirmed in this session: `Subscription.elsewhere`."""
        ...

    def changes(self) -> AsyncIterator[Change]:
        """Changes of servers that this node holds or that nobody holds, as they happen."""
        ...

    async def begin(self, session: Session, service_id: bytes | None) -> ServiceState:
        """The session is a service's with this id, or nobody's: if it is another id than before, no association
        holds.
        """
        ...

    async def service_state(self, session: Session) -> ServiceState:
        """As it is now."""
        ...

    async def reassociate(self, session: Session) -> ServiceState:
        """The server does not have what it should: from now on no association holds."""
        ...

    async def set_released(self, session: Session, count: int, ids_hash: bytes | None = None) -> None:
        """See `ServiceState.released`. `ids_hash`: of these, None if it is not known."""
        ...

    async def page(self, session: Session, after: Cursor | None, limit: int, *, associated: bool = False) -> Page:
        """Subscriptions that should be active behind a cursor, without those that the session's service has.

        `associated`: those alone.
        """
        ...

    async def load(self, session: Session, refs: Sequence[Ref]) -> list[Wanted]:
        """Those of these subscriptions that should be active."""
        ...

    async def confirm(self, session: Session, answers: Sequence[Confirmed]) -> None:
        """Answers to NSUBs; a subscription that ended meanwhile stays so."""
        ...

    async def end(
        self, session: Session, notifier_ids: Sequence[bytes], status: SubscriptionStatus, number: int | None = None
    ) -> int:
        """END and DELD: how many of them there are here. `number`: by which those are known that are asked for again
        (`arrive` gives it): what was ended by them, and was subscribed anew since, stays so.
        """
        ...

    async def to_audit(
        self, after: Cursor | None, limit: int, silent_for: float
    ) -> tuple[list[ToAudit], Cursor | None]:
        """Subscriptions that should be active, of all servers; where the next page begins, None: that was the last.

        Silent: nothing arrived for it for so many seconds.
        """
        ...

    async def request_audit(self, subscriptions: Sequence[ToAudit]) -> None:
        """Have who holds their servers look at these: a change of kind AUDIT."""
        ...

    async def mark_lost(self, session: Session, after: Cursor | None, limit: int, within: float) -> Lost:
        """The server's newest notifications were lost within so many seconds: make a check due for ACTIVE tokens with
        queues on it, of `limit` subscriptions behind a cursor.

        None is owed to a token that messages are due for, or that took a push within these seconds. One that this was
        done for within an hour, and before these seconds, is to be asked for again when that is over; a node that was
        started again may not know that of one.
        """
        ...

    async def service_certificate(
        self, server: ServerAddress, make: Callable[[], ServiceCertificate]
    ) -> ServiceCertificate:
        """What our service on this server shows: the one that is kept; `make` gives the first, and the first stays."""
        ...


class Store(Tokens, Queues, Deliveries, Sessions, Protocol):
    """All of it. Methods raise StoreError in one of its classes, and StoreCorruptError."""

    @property
    def ledger(self) -> Ledger | None:
        """What nodes count together; None: no other node may have the store."""
        ...

    @property
    def statistics(self) -> Statistics:
        """What was counted on which day."""
        ...

    @property
    def inspection(self) -> Inspection:
        """What operators look at."""
        ...

    @property
    def pulse(self) -> Pulse:
        """Whether it does what it is asked for, and what of it is this node's."""
        ...

    async def tend(self) -> float:
        """A slice of upkeep (deletions, what expired, the file); seconds until the next one is due.

        Deleted are registrations that never were ACTIVE, a day after their last TNEW or TRPL, and those that sent no
        command for long. Servers without subscriptions and session are forgotten: at once if none was ever confirmed
        there, else after a week.
        """
        ...

    async def space(self) -> Space:
        """What it takes of its medium, and may still take."""
        ...

    async def close(self) -> None:
        """Finish what was asked, within a second if the medium fails, and close."""
        ...
