"""Whose turn it is to connect, and what a server has shown so far. No I/O; times are handed in.

Whoever subscribes a queue chooses a server. So there are few places for servers that nobody knows, and those that have
proved themselves have places of their own, of which no address prefix and no token may hold more than a share.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

K = TypeVar("K", bound=Hashable)

ANYWHERE: Final = "*"  # a server has proved itself, but it is not known where


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a server that something is wanted of.

    `prefixes`: of the addresses where it confirmed subscriptions (`network.prefix`), the newest first, or ANYWHERE;
    none: it is unproven;
    `tried_for`: seconds since it was first wanted, or lost what it had proved; `claims`: some of those that want it.
    """

    prefixes: tuple[str, ...] = ()
    tried_for: float = 0.0
    claims: tuple[Hashable, ...] = ()

    @property
    def is_proven(self) -> bool:
        """Whether it has proved itself anywhere."""
        return bool(self.prefixes)

    def is_proven_at(self, prefixes: Iterable[str]) -> bool:
        """Whether it has proved itself at one of these."""
        return ANYWHERE in self.prefixes or not set(self.prefixes).isdisjoint(prefixes)


class Ticket:
    """One that waits for its turn, or has it."""

    __slots__ = ("claim", "has_turn", "is_slow", "lane", "prefixes")

    def __init__(self, prefixes: Sequence[str], claim: Hashable) -> None:
        self.prefixes = prefixes
        self.lane = prefixes[0] if prefixes else ""
        self.claim = claim
        self.has_turn = False
        self.is_slow = False


_Lanes = OrderedDict[str, deque[Ticket]]


class Places:
    """`total` turns at once, `quick` of them of tickets that are not slow yet. Claims take turns, and of a claim its
    address prefixes; of all turns a prefix, or a claim, has one in `share` at most.
    """

    def __init__(self, total: int, quick: int, share: int) -> None:
        self._total = total
        self._quick = quick
        self._each = max(1, total // share)
        self._waiting: OrderedDict[Hashable, _Lanes] = OrderedDict()
        self._used = self._slow = 0
        self._of_prefix: Counter[str] = Counter()
        self._of_claim: Counter[Hashable] = Counter()  # turns
        self._asked: Counter[Hashable] = Counter()  # turns, and tickets that wait

    def __len__(self) -> int:
        return self._asked.total()

    def ask(self, prefixes: Sequence[str], claims: Sequence[Hashable]) -> Ticket:
        """Wait for a turn at these prefixes, on behalf of that one of `claims` that has the fewest tickets."""
        claim = min(claims, key=lambda c: self._asked[c], default=None)
        ticket = Ticket(prefixes, claim)
        self._asked[claim] += 1
        lanes = self._waiting.setdefault(claim, OrderedDict())
        lanes.setdefault(ticket.lane, deque()).append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Its turn is over, or it waits no more."""
        take_one(self._asked, ticket.claim)
        if not ticket.has_turn:
            self._waiting[ticket.claim][ticket.lane].remove(ticket)
            self._tidy(ticket)
            return
        self._used -= 1
        self._slow -= ticket.is_slow
        take_one(self._of_claim, ticket.claim)
        for prefix in ticket.prefixes:
            take_one(self._of_prefix, prefix)

    def slow(self, ticket: Ticket) -> None:
        """It takes its time: another one may be quick beside it."""
        if ticket.has_turn and not ticket.is_slow:
            ticket.is_slow = True
            self._slow += 1

    def turns(self) -> list[Ticket]:
        """Those whose turn it is from now on."""
        out: list[Ticket] = []
        while self._used < self._total and self._used - self._slow < self._quick and (ticket := self._next()):
            ticket.has_turn = True
            self._used += 1
            self._of_claim[ticket.claim] += 1
            for prefix in ticket.prefixes:
                self._of_prefix[prefix] += 1
            out.append(ticket)
        return out

    def _next(self) -> Ticket | None:
        for claim, lanes in self._waiting.items():
            if self._of_claim[claim] >= self._each:
                continue
            for name, lane in lanes.items():
                if all(self._of_prefix[prefix] < self._each for prefix in lane[0].prefixes):
                    ticket = lane.popleft()
                    lanes.move_to_end(name)
                    self._waiting.move_to_end(claim)
                    self._tidy(ticket)
                    return ticket
        return None

    def _tidy(self, ticket: Ticket) -> None:
        lanes = self._waiting[ticket.claim]
        if not lanes[ticket.lane]:
            del lanes[ticket.lane]
        if not lanes:
            del self._waiting[ticket.claim]


def take_one(counter: Counter[K], key: K) -> None:
    """Count one less; what is at zero takes up no memory."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
