"""What the suite needs of an engine to try it, and what its checks are made of."""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from ntf_server.store.contract import Places, Store
from ntf_server.store.records import (
    Added,
    Claim,
    Cursor,
    Ended,
    NewSubscription,
    NewToken,
    Notification,
    Notified,
    Outcome,
    PushKind,
    Registered,
    Session,
    Subscription,
    Token,
    Wanted,
)
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

SMP: Final = ServerAddress("smp", ("smp.example.org",), "", b"h" * 32)
OTHER_SMP: Final = ServerAddress("smp", ("other.example.org",), "", b"i" * 32)
START: Final = 1_800_000_000.25  # Unix seconds
DAY: Final = 86_400.0
NOWHERE: Final[Mapping[Provider, Places]] = {}
FOREVER: Final = 10_000  # turns of a loop that has to end


class ManualClock:
    """A wall clock, and a steady one beside it, that move when they are told to."""

    def __init__(self) -> None:
        self._wall = START
        self._steady = 1000.0

    def wall(self) -> float:
        """Unix seconds."""
        return self._wall

    def steady(self) -> float:
        """Seconds since some moment, never set."""
        return self._steady

    def pass_(self, seconds: float) -> None:
        """Time goes by."""
        self._wall += seconds
        self._steady += seconds

    def step(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self._wall += seconds


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: times to live of a message, of a code and of a token without commands; between two pushes of a token."""

    message_ttl: int = 86_400
    verification_ttl: int = 600
    spacing: float = 0.02
    silent_ttl: int = 365 * 86_400


class Medium(Protocol):
    """A fresh and empty place that an engine's nodes keep everything in; the suite takes one for each check."""

    @property
    def shared(self) -> bool:
        """Whether several nodes may have it open."""
        ...

    async def open(self, clock: ManualClock, times: Times) -> Store:
        """Open a node on it: the first, another one if it is shared, or again after `close` or `kill`."""
        ...

    async def kill(self, store: Store) -> None:
        """End a node as kill -9 does: of what it did not answer, anything may be missing."""
        ...

    async def damage_token(self, store: Store, token_id: bytes) -> None:
        """Alter the sealed values of a token."""
        ...

    async def damage_subscription(self, store: Store, subscription_id: bytes) -> None:
        """Alter the sealed values of a subscription."""
        ...

    async def expired(self, store: Store) -> int:
        """How much a node has counted as expired: notifications, codes, checks."""
        ...

    async def close(self) -> None:
        """It is not used any more."""
        ...


class Room(NamedTuple):
    """Places: so many for all, and for each origin; implements `Places`."""

    total: int = 1000
    each: int = 1000
    origins: Mapping[bytes, int] = {}

    def room(self, origin: bytes) -> int:
        """See `Places`."""
        return self.origins.get(origin, self.each)


ROOM: Final = Room()


@dataclass
class Bench:
    """A medium with its clock, and what checks do on it."""

    medium: Medium
    clock: ManualClock = field(default_factory=ManualClock)
    times: Times = Times()
    nodes: list[Store] = field(default_factory=list)

    async def open(self, times: Times | None = None) -> Store:
        """A node."""
        self.times = times or self.times
        node = await self.medium.open(self.clock, self.times)
        self.nodes.append(node)
        return node

    async def reopen(self, node: Store, *, kill: bool = False) -> Store:
        """The same node after a restart, or after a kill."""
        self.nodes.remove(node)
        await (self.medium.kill(node) if kill else node.close())
        return await self.open()

    async def close(self) -> None:
        """Close it all."""
        for node in self.nodes:
            await node.close()
        await self.medium.close()


# --- tokens


def device(number: int, provider: Provider = Provider.APNS) -> DeviceToken:
    """A device token that looks like one of its provider."""
    return DeviceToken(provider, b"%064x" % (0xAB << 240 | number))


def new_token(number: int = 0, provider: Provider = Provider.APNS, *, key: bytes = b"", origin: str = "") -> NewToken:
    """A registration: that of a number has one device token, verify key and client DH key."""
    client_dh, server_dh, secret = (hashlib.sha256(b"%d %s" % (number, n)).digest() for n in (b"dh", b"server", b"box"))
    verify_key = key or b"verify key %033d" % number
    if provider is Provider.WEB_PUSH and not origin:
        origin = "https://push.example.org"
    return NewToken(
        token_id=os.urandom(24),
        device=device(number, provider),
        verify_key=verify_key,
        client_dh=client_dh,
        server_dh=server_dh,
        secret=secret,
        code=os.urandom(32),
        origin=origin,
        vapid_key=b"vapid",
    )


async def register(store: Store, new: NewToken) -> Registered:
    """TNEW."""
    token = await store.register(new)
    assert token is not None
    return token


async def activate(store: Store, number: int = 0, provider: Provider = Provider.APNS, *, origin: str = "") -> Token:
    """An ACTIVE token that nothing is due for."""
    new = new_token(number, provider, origin=origin)
    token = await register(store, new)
    assert await store.verify(token.ref, new.code)
    return token


async def known(store: Store, token: Token) -> Token:
    """As it is now."""
    found = await store.find_token(token.token_id)
    assert found is not None
    return found


def as_found(token: Registered) -> Token:
    """What `find_token` gives of it."""
    t = token
    return Token(t.ref, t.token_id, t.verify_key, t.status, t.reason, t.period, t.active_at, t.proven)


async def status(store: Store, token: Token) -> tuple[TokenStatus, InvalidReason | None]:
    """As it is now."""
    found = await known(store, token)
    return found.status, found.reason


# --- queues


def new_queue(name: bytes, server: ServerAddress = SMP) -> NewSubscription:
    """A queue's subscription."""
    return NewSubscription(os.urandom(24), server, name, b"notifier key of " + name)


async def subscribe(store: Store, token: Token, *names: bytes, server: ServerAddress = SMP) -> list[bytes]:
    """SNEW of queues that were not there, all together; the subscription ids."""
    out = []
    for added in await asyncio.gather(*(store.subscribe(token.ref, new_queue(name, server)) for name in names)):
        assert isinstance(added, Added)
        assert added.created
        out.append(added.subscription_id)
    return out


async def found(store: Store, subscription_id: bytes) -> Subscription:
    """As it is now."""
    pair = await store.find_subscription(subscription_id)
    assert pair is not None
    return pair[1]


# --- sessions


async def acquire(store: Store, server: ServerAddress = SMP) -> Session:
    """A session that begins."""
    session = await store.acquire(server)
    assert session is not None
    return session


async def pages(store: Store, session: Session, limit: int = 3) -> list[Wanted]:
    """All of them."""
    out: list[Wanted] = []
    after: Cursor | None = None
    for _ in range(FOREVER):
        page = await store.page(session, after, limit)
        assert len(page.wanted) <= limit
        out += page.wanted
        after = page.cursor
        if after is None:
            return out
    raise AssertionError("pages do not end")


def ids_hash(names: Sequence[bytes]) -> bytes:
    """XOR of the MD5 of notifier ids (wire.md, section 7)."""
    total = 0
    for name in names:
        total ^= int.from_bytes(hashlib.md5(name, usedforsecurity=False).digest())
    return total.to_bytes(16)


# --- deliveries


def stamp(store: Store, session: Session, *names: bytes, meta: bytes = b"meta") -> list[Notification]:
    """Notifications that arrive now."""
    first, received_at = store.arrive(session, len(names))
    return [Notification(name, first + n, received_at, b"n" * 24, meta) for n, name in enumerate(names)]


async def notify(
    store: Store,
    session: Session,
    *names: bytes,
    meta: bytes = b"meta",
    places: Mapping[Provider, Places] = NOWHERE,
) -> Notified:
    """They arrive and are stored; as few as there are here, all are for a subscription."""
    notified = await store.notify(session, stamp(store, session, *names, meta=meta), places)
    assert notified.unknown == 0
    return notified


async def take(store: Store, provider: Provider = Provider.APNS, places: Places = ROOM) -> list[Claim]:
    """What is due."""
    return (await store.take(provider, places)).claims


async def take_one(store: Store, provider: Provider = Provider.APNS) -> Claim:
    """The one claim that is due."""
    [claim] = await take(store, provider)
    return claim


async def take_nothing(store: Store, provider: Provider = Provider.APNS) -> None:
    """Nothing is due, and the store has found that out: what comes next may be handed out at once."""
    assert await take(store, provider) == []


async def take_cool(bench: Bench, store: Store, provider: Provider = Provider.APNS) -> list[Claim]:
    """What is due once the time between two pushes of a token is over."""
    bench.clock.pass_(bench.times.spacing + 0.01)
    return await take(store, provider)


def delivered(claim: Claim) -> Outcome:
    """The provider took it, with all its entries."""
    return Outcome(claim, Ended.DELIVERED, held=claim.entries)


def again(claim: Claim, after: float = 0.0, reason: str = "busy") -> Outcome:
    """The provider wants it later."""
    return Outcome(claim, Ended.AGAIN, reason, after=after)


def dead(claim: Claim, reason: InvalidReason = InvalidReason.UNREGISTERED) -> Outcome:
    """The token is no more."""
    return Outcome(claim, Ended.DEAD, "Unregistered", dead=reason)


async def record(store: Store, *outcomes: Outcome) -> None:
    """All of them are of claims that are held."""
    assert await store.record(outcomes) == 0


def names(claim: Claim) -> list[bytes]:
    """Of which queues it tells, in its order."""
    assert claim.kind is PushKind.MESSAGES
    return [entry.notifier_id for entry in claim.entries]


async def drain(bench: Bench, store: Store, provider: Provider = Provider.APNS) -> list[Claim]:
    """Deliver all that is due, until nothing is."""
    out: list[Claim] = []
    for _ in range(FOREVER):
        claims = await take_cool(bench, store, provider)
        if not claims:
            return out
        await record(store, *map(delivered, claims))
        out += claims
    raise AssertionError("pushes do not end")


async def tend(bench: Bench, store: Store) -> None:
    """All upkeep that is due by now."""
    for _ in range(FOREVER):
        if await store.tend() > 1:
            return
        bench.clock.pass_(0.01)
    raise AssertionError("upkeep does not end")


MANY: Final = 1200  # subscriptions of a token that is deleted: more than an engine takes at once
ENDED: Final = (SubscriptionStatus.END, SubscriptionStatus.DELETED)
Check = Callable[[Bench], Awaitable[None]]
