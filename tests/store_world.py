"""What tests of the store's contract begin with: registrations, subscriptions, notifications, pushes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ntf_server.store.clock import Clock
from ntf_server.store.contract import Places, Store
from ntf_server.store.records import (
    Added,
    Claim,
    Ended,
    Entry,
    NewSubscription,
    NewToken,
    Notification,
    Notified,
    Outcome,
    PushKind,
    Registered,
    Session,
    Token,
)
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus

MASTER = MasterKey(b"a master key of thirty-two bytes")
NOW = 1_800_000_000
SMP = ServerAddress("smp", ("smp.example.org", "abc.onion"), "", b"h" * 32)
OTHER_SMP = ServerAddress("smp", ("2001:db8::1",), "5224", b"i" * 32)
PHONE = DeviceToken(Provider.APNS, b"phone")
TABLET = DeviceToken(Provider.APNS_SANDBOX, b"tablet")
KEY, OTHER_KEY = b"verify key", b"other verify key"
CODE = b"c" * 32
VERIFICATION, MESSAGES, CHECK = PushKind


class FakeClock:
    """Stands still. `pass_` lets time pass; `set_by` sets the wall clock, as NTP does."""

    def __init__(self, now: float = NOW) -> None:
        self.now = float(now)
        self.steady = 1000.0
        self.clock = Clock(lambda: self.now, lambda: self.steady)

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.steady += seconds

    def set_by(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Room:
    """Implements `Places`."""

    total: int = 1000
    rooms: Mapping[bytes, int] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)

    def room(self, origin: bytes) -> int:
        self.asked.append(origin)
        return self.rooms.get(origin, self.total)


NO_PLACES: Mapping[Provider, Places] = {}


def anywhere(total: int = 1000) -> Mapping[Provider, Places]:
    return {provider: Room(total) for provider in Provider}


def new_token(
    device: DeviceToken = PHONE, key: bytes = KEY, dh: bytes = b"client dh", code: bytes = CODE, origin: str = ""
) -> NewToken:
    return NewToken(os.urandom(24), device, key, dh, b"server dh", os.urandom(32), code, origin)


def new_subscription(queue: bytes, server: ServerAddress = SMP, key: bytes = b"notifier key") -> NewSubscription:
    return NewSubscription(os.urandom(24), server, queue, key)


async def register(store: Store, device: DeviceToken = PHONE, key: bytes = KEY, origin: str = "") -> Registered:
    token = await store.register(new_token(device, key, origin=origin))
    assert token is not None
    return token


async def activate(store: Store, device: DeviceToken = PHONE, key: bytes = KEY, origin: str = "") -> Token:
    token = await register(store, device, key, origin)
    assert await store.verify(token.ref, CODE)
    return await look(store, token)


async def look(store: Store, token: Token) -> Token:
    found = await store.find_token(token.token_id)
    assert found is not None
    return found


async def subscribe(store: Store, token: Token, *queues: bytes, server: ServerAddress = SMP) -> list[Added]:
    added = [await store.subscribe(token.ref, new_subscription(q, server)) for q in queues]
    made = [a for a in added if isinstance(a, Added)]
    assert made == added
    return made


async def status(store: Store, subscription: Added) -> SubscriptionStatus:
    found = await store.find_subscription(subscription.subscription_id)
    assert found is not None
    return found[1].status


async def plan(store: SqliteStore, query: str, values: Any = ()) -> list[str]:
    """How SQLite would do it, in its words."""
    rows = await store._database.read(lambda c: c.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall())
    return [detail for *_, detail in rows]


async def acquire(store: Store, server: ServerAddress = SMP) -> Session:
    session = await store.acquire(server)
    assert session is not None
    return session


Block = Sequence[bytes | tuple[bytes, bytes]]


def arrived(store: Store, session: Session, block: Block, nonce: bytes = b"n" * 24) -> list[Notification]:
    """NMSGs of queues, with metadata if it matters, stamped now."""
    first, received_at = store.arrive(session, len(block))
    pairs = [n if isinstance(n, tuple) else (n, b"meta") for n in block]
    return [Notification(q, first + i, received_at, nonce, meta) for i, (q, meta) in enumerate(pairs)]


async def notify(
    store: Store, session: Session, *block: bytes | tuple[bytes, bytes], places: Mapping[Provider, Places] = NO_PLACES
) -> Notified:
    return await store.notify(session, arrived(store, session, block), places)


async def take(store: Store, provider: Provider = Provider.APNS, total: int = 1000) -> list[Claim]:
    return (await store.take(provider, Room(total))).claims


async def take_one(store: Store, provider: Provider = Provider.APNS) -> Claim:
    [claim] = await take(store, provider)
    return claim


def delivered(claim: Claim, held: tuple[Entry, ...] | None = None) -> Outcome:
    return Outcome(claim, Ended.DELIVERED, held=claim.entries if held is None else held)


def dead(claim: Claim, reason: InvalidReason = InvalidReason.BAD) -> Outcome:
    return Outcome(claim, Ended.DEAD, dead=reason)


def again(claim: Claim, after: float = 10.0) -> Outcome:
    return Outcome(claim, Ended.AGAIN, "busy", after=after)


def untried(claim: Claim, after: float = 0.0) -> Outcome:
    return Outcome(claim, Ended.UNTRIED, after=after)


async def deliver(store: Store, provider: Provider = Provider.APNS) -> Claim:
    claim = await take_one(store, provider)
    assert await store.record([delivered(claim)]) == 0
    return claim


async def kill(store: Store, token: Token, reason: InvalidReason = InvalidReason.BAD) -> None:
    """Of PHONE: the provider says that the token is dead, in answer to a push of its code."""
    await store.register(new_token(PHONE, token.verify_key))
    [claim] = [c for c in await take(store, PHONE.provider) if c.token == token.ref]
    assert await store.record([dead(claim, reason)]) == 0


def said(claim: Claim) -> list[bytes]:
    """The queues that a push tells of."""
    return [e.notifier_id for e in claim.entries]
