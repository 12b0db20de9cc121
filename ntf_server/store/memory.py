"""What the engine keeps in memory beside the database, and undoes when a transaction is undone.

Touched in the writer's turn only. Nothing of it is needed after a restart: what is unsent is due then.
"""

import itertools
import os
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec.structs import replace

from ntf_server.store.clock import Clock
from ntf_server.store.records import Backlog, Change, Claim, Record
from ntf_server.store.sealing import Sealer
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider

K = TypeVar("K")
V = TypeVar("V")

_MISSING: Final[Any] = object()
_MAX_STEPS: Final = 4
CROWD: Final = 256  # notifications in one transaction: more came than were stored, meanwhile
CROWDED: Final = 0.25  # seconds that it counts as crowded after that
SILENT_TTL: Final = 365 * 24 * 3600
MAX_LANES: Final = 10_000  # of Web Push origins that are remembered one by one
_SEEN_EVERY: Final = 24 * 3600
_SEEN_AT_ONCE: Final = 2000  # tokens whose last command is written down at once
_MAX_SEEN: Final = 100_000  # tokens that wait for that; others' next command comes


class Journal:
    """How to undo what was done to memory since the transaction began."""

    def __init__(self) -> None:
        self.notes: list[tuple[dict[Any, Any], Any, Any]] = []  # dict, key, and what that had before

    def undo(self) -> None:
        """The transaction failed."""
        while self.notes:
            kept, key, value = self.notes.pop()
            if value is _MISSING:
                kept.pop(key, None)
            else:
                kept[key] = value

    def forget(self) -> None:
        """The transaction is done."""
        self.notes.clear()


class Kept(dict[K, V], Generic[K, V]):
    """A dict whose changes are undone with the transaction: change it with `put` and `drop` only."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._notes = journal.notes

    def put(self, key: K, value: V) -> None:
        """Set it."""
        self._notes.append((self, key, self.get(key, _MISSING)))
        self[key] = value

    def put_all(self, values: Mapping[K, V]) -> None:
        """Set these."""
        self._notes += [(self, key, self.get(key, _MISSING)) for key in values]
        self.update(values)

    def drop(self, key: K) -> None:
        """Remove it, if it is there."""
        value = self.pop(key, _MISSING)
        if value is not _MISSING:
            self._notes.append((self, key, value))


class Held(Record, frozen=True, eq=False, gc=False):
    """A claim that was handed out.

    `more`: behind what it says something else is due; `again`: something came meanwhile; `stale`: the device token or
    the code is another by now; `mark`: the call that handed it out, where it may be done twice.
    """

    claim: Claim
    lane: bytes
    more: bool
    again: bool = False
    stale: bool = False
    mark: int = 0


class Cooling(Record, frozen=True, eq=False, gc=False):
    """A token whose push ended a moment ago: when (steady seconds), and whether it has more to be pushed."""

    since: float
    lane: bytes
    again: bool


class Ready(Record, frozen=True, eq=False, gc=False):
    """A token that is due though no row says so: since when, in Unix milliseconds."""

    lane: bytes
    since: int


class Round(msgspec.Struct):
    """Where in the order of a provider's lanes the last take stopped.

    `began`: where a round began that is not over yet; `wrapped`: it went on from the first lane; `next_at`: when, in
    Unix milliseconds, the first thing that it saw becomes due.
    """

    cursor: bytes
    began: bytes
    wrapped: bool = False
    next_at: int | None = None

    def see(self, at: int) -> None:
        """Something is due then, where there is room."""
        self.next_at = at if self.next_at is None else min(self.next_at, at)

    def stop(self, now: int, *, whole: bool, found: bool) -> int | None:
        """A take ends here: when the next one is worth while."""
        next_at = self.next_at if whole else now
        if whole or found:
            self.began, self.wrapped, self.next_at = self.cursor, False, None
        return next_at


class Times(Record, frozen=True):
    """Seconds: how long a message and a code are worth a push, and the least time between two pushes of one token.

    `silent_ttl`: how long a registration is kept that sends no command.

    `crowded_spacing`: that time while more notifications come than can be stored at once, also before the first push
    of a token that has several queues. It then holds what else has come, instead of going out for one of them alone.
    """

    message_ttl: int = 24 * 3600
    verification_ttl: int = 600
    spacing: float = 0.02
    crowded_spacing: float = 2.0
    silent_ttl: int = SILENT_TTL


class Effects(msgspec.Struct):
    """What the loop is told of when the transaction is durable."""

    wake: dict[Provider, float] = {}
    changes: list[Change] = []
    expired: Tally[str] = msgspec.field(default_factory=Tally)
    quarantined: Tally[str] = msgspec.field(default_factory=Tally)
    forgotten: Tally[str] = msgspec.field(default_factory=Tally)  # tokens, by kind
    servers_forgotten: int = 0
    stepped: float = 0.0

    def due(self, provider: Provider, seconds: float) -> None:
        """Something becomes due that nobody was handed."""
        known = self.wake.get(provider)
        if known is None or seconds < known:
            self.wake[provider] = seconds

    def count_expired(self, verifications: int, checks: int, notifications: int) -> None:
        """So many were over their time to live."""
        self.expired["verification"] += verifications
        self.expired["check"] += checks
        self.expired["notification"] += notifications

    def __bool__(self) -> bool:
        counted = self.expired or self.quarantined or self.forgotten or self.servers_forgotten
        return bool(self.wake or self.changes or counted or self.stepped)


class Seen(Generic[K]):
    """Tokens that sent a command, and of which that is not written yet."""

    def __init__(self) -> None:
        self._waiting: dict[K, None] = {}

    def add(self, ref: K, active_at: int, now: float) -> None:
        """It did, now (Unix seconds), and `active_at` is what is written: worth writing once a day."""
        if now - active_at >= _SEEN_EVERY and len(self._waiting) < _MAX_SEEN:
            self._waiting[ref] = None

    def take(self) -> list[K]:
        """Some of them. If that they were seen cannot be written, a later command tells it again."""
        taken = list(itertools.islice(self._waiting, _SEEN_AT_ONCE))
        for ref in taken:
            del self._waiting[ref]
        return taken


class State:
    """The engine's memory, and what its operations need: how to seal, the times, the time of this transaction."""

    def __init__(self, sealer: Sealer, times: Times, clock: Clock, random: Callable[[int], bytes] = os.urandom) -> None:
        self.sealer: Final = sealer
        self.times: Final = times
        self.clock: Final = clock
        self.random: Final = random
        self.journal: Final = Journal()
        self.claims: Final = Kept[Any, Held](self.journal)
        self.cooling: Final = Kept[Any, Cooling](self.journal)
        self.eager: Final = Kept[Any, bytes](self.journal)  # of those that cool, which have more: their lanes
        self.ready: Final = Kept[Any, Ready](self.journal)
        self.backlog: Final = Kept[bytes, bool](self.journal)  # lanes that may have a row that is due now
        self.fences: Final = Kept[ServerAddress, int](self.journal)  # of the sessions that count
        self.generations: Final = Kept[ServerAddress, int](self.journal)  # of their services; none: no service
        self.lost: Final = Kept[Any, float](self.journal)  # tokens that a check was owed for what was lost: since when
        self.rounds: Final[dict[Provider, Round]] = {}
        self.addresses: Final[dict[int, ServerAddress]] = {}  # of rows, which never change
        self.fence = 0
        self.arrived = 0  # notifications, in this transaction
        self.crowded_until = 0.0  # steady seconds
        self.steps: list[float] = []  # of the clock, the last ones
        self.effects = Effects()
        self.now = 0
        self.now_ms = 0
        self.steady = 0.0

    # --- times

    def stepped(self, step: float) -> None:
        """The clock was set."""
        self.steps = [*self.steps[-_MAX_STEPS + 1 :], step]

    def moved(self, stamp: int) -> int:
        """When something arrived that may have been stamped before the clock was set: whatever is nearest to now."""
        moved = stamp
        for step in reversed(self.steps):
            stamp += round(step)
            moved = min(moved, stamp, key=lambda at: abs(self.now - at))
        return min(moved, self.now)

    # --- lanes

    def owe(self, lane: bytes) -> None:
        """A row of this lane is due now, or was seen to be."""
        if lane not in self.backlog and len(self.backlog) < MAX_LANES:
            self.backlog.put(lane, True)

    def owes(self, lane: bytes) -> bool:
        """Whether something older may be due there, which goes first."""
        return lane in self.backlog or len(self.backlog) >= MAX_LANES

    # --- tokens

    def is_taken(self, token: Any) -> bool:
        """Whether no row is to say that it is due, since memory does."""
        return token in self.claims or token in self.cooling or token in self.ready

    def touch(self, token: Any) -> bool:
        """Something became due for it: whether memory knows it already, so that no row has to be written."""
        held = self.claims.get(token)
        if held is not None:
            if not held.again:
                self.claims.put(token, replace(held, again=True))
            return True
        cooling = self.cooling.get(token)
        if cooling is not None:
            if not cooling.again:
                self.cool(token, replace(cooling, again=True))
            return True
        return token in self.ready

    def anew(self, token: Any) -> None:
        """Its device token or its code is another: a claim of it is worth nothing, and there is no reason to wait."""
        held = self.claims.get(token)
        if held is not None:
            self.claims.put(token, replace(held, stale=True, again=True))
        self._warm(token)
        self.ready.drop(token)

    def forget(self, token: Any) -> None:
        """It was deleted."""
        self.claims.drop(token)
        self._warm(token)
        self.ready.drop(token)

    def checked_lately(self, tokens: Iterable[Any], within: float, every: float) -> float:
        """Seconds until each of these may be owed a check again that was owed one for what was lost less than `every`
        seconds ago, and before what is asked about, which is `within` so many; 0: there are none.
        """
        for token in [token for token, at in self.lost.items() if at <= self.steady - every]:
            self.lost.drop(token)
        before = self.steady - within
        return max((at + every - self.steady for t in tokens if (at := self.lost.get(t, before)) < before), default=0.0)

    # --- the time between two pushes of a token

    def crowd(self) -> None:
        """The transaction is done: did as many notifications come as can be stored at once?"""
        if self.arrived >= CROWD:
            self.crowded_until = self.steady + CROWDED
        self.arrived = 0

    @property
    def is_crowded(self) -> bool:
        """Notifications come faster than they can be stored."""
        return self.steady < self.crowded_until

    def cool(self, token: Any, cooling: Cooling) -> None:
        """Its push ended; or its first one waits for what else comes in a crowd."""
        self.cooling.put(token, cooling)
        if cooling.again:
            self.eager.put(token, cooling.lane)
            self.effects.due(provider_of(cooling.lane), self._left(cooling))

    def pushed(self, token: Any, lane: bytes, *, again: bool) -> None:
        """A push ended. The token's next one has to wait a little: what comes together is to go out together."""
        if self.times.spacing > 0:
            self.cool(token, Cooling(self.steady, lane, again))
        elif again:
            self.ready.put(token, Ready(lane, self.now_ms))
            self.effects.due(provider_of(lane), 0.0)

    def with_ready(self, lane: bytes, now_ms: float, written: Backlog) -> Backlog:
        """Of a provider: what rows say, and what only memory knows. Also from another thread."""
        ready = [ready.since for ready in list(self.ready.values()) if ready.lane[:2] == lane]
        eager = sum(of[:2] == lane for of in list(self.eager.values()))
        oldest = max([written.oldest, *((now_ms - since) / 1000 for since in ready)])
        return Backlog(written.due + len(ready), written.waiting + eager, max(0.0, oldest))

    def _warm(self, token: Any) -> None:
        self.cooling.drop(token)
        self.eager.drop(token)

    def _left(self, cooling: Cooling) -> float:
        """Seconds until it is worth a look whether its time is over."""
        usual = cooling.since + self.times.spacing - self.steady
        crowded = min(cooling.since + self.times.crowded_spacing, self.crowded_until) - self.steady
        return max(0.0, usual, crowded)

    def next_ripe(self, provider: Provider) -> float | None:
        """Seconds until a token of this provider, that cools and has more, may be ready; None: there is none."""
        for token, lane in self.eager.items():  # about in the order of their times
            if provider_of(lane) is provider:
                return self._left(self.cooling[token])
        return None

    def ripen(self) -> None:
        """Tokens whose time to cool is over are ready, if they have more."""
        latest = self.steady - (self.times.crowded_spacing if self.is_crowded else self.times.spacing)
        ripe: list[tuple[Any, Cooling]] = []
        for token, cooling in self.cooling.items():  # in the order of their times
            if cooling.since > latest:
                break
            ripe.append((token, cooling))
        for token, cooling in ripe:
            if cooling.again:
                self._warm(token)
                self.ready.put(token, Ready(cooling.lane, self.now_ms))
            else:
                del self.cooling[token]  # for good: it means nothing any more


def provider_of(lane: bytes) -> Provider:
    """A lane begins with its provider's code."""
    return PROVIDERS[lane[:2]]


PROVIDERS: Final = {p.value.encode(): p for p in Provider}
