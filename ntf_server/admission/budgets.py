"""Budgets: so many at once, and then so many a second. Time is handed in, in seconds of a clock that nobody sets."""

import re
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Self, TypeAlias

import msgspec

from ntf_server.admission.addresses import Network
from ntf_server.store.ledger import Paces

_PACE: Final = r"[0-9]{1,7} \+ [0-9]{1,6}(\.[0-9]{1,6})?/s"
PATTERN: Final = rf"^{_PACE}( and {_PACE})?\Z"
MAX_DELAY: Final = 20.0  # seconds: a client that waits longer for an answer gives its session up
MAX_KEYS: Final = 65_536


Paid: TypeAlias = tuple[float, ...]  # by pace


class Pace(msgspec.Struct, frozen=True):
    """`at_once` (1 or more), and then `per_second` (more than 0)."""

    at_once: int
    per_second: float


class Rate(msgspec.Struct, frozen=True):
    """One pace, or two that both hold: text `300 + 5/s`, `30 + 10/s and 300 + 5/s`.

    The second way says how fast what may be used at once is used up: a crowd takes its time, a flood does not.
    """

    paces: tuple[Pace, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError."""
        if not re.match(PATTERN, text):
            raise ValueError("should be AT_ONCE + PER_SECOND/s, as in 300 + 5/s, or two such with ` and ` between them")
        paces = []
        for part in text.removesuffix("/s").split("/s and "):
            at_once, _, per_second = part.partition(" + ")
            paces.append(Pace(int(at_once), float(per_second)))
        if not all(pace.at_once and pace.per_second for pace in paces):
            raise ValueError("0 would let nobody through")
        return cls(tuple(paces))

    @property
    def plain(self) -> Paces:
        """For a ledger."""
        return tuple((pace.at_once, pace.per_second) for pace in self.paces)

    def part(self, n: int) -> Self:
        """The nth part of it, but one at once at least."""
        return type(self)(tuple(Pace(max(1, pace.at_once // n), pace.per_second / n) for pace in self.paces))

    def spend(
        self, paid: Paid, n: int, now: float, share: int = 1, *, longest: float = MAX_DELAY
    ) -> tuple[float, Paid]:
        """See `Buckets.spend`. `paid`, in and out: by pace, when all that was spent is paid for.

        A rate that was replaced meanwhile may have had more paces, or fewer.
        """
        longest_wait, out = 0.0, []
        for i, pace in enumerate(self.paces):
            per_second = pace.per_second * share
            ahead = pace.at_once * share / per_second
            wait = (max(paid[i], now) if i < len(paid) else now) + n / per_second - ahead - now
            wait = min(wait, longest)
            out.append(now + ahead + wait)
            longest_wait = max(longest_wait, wait)
        return longest_wait, tuple(out)


class Budgets(msgspec.Struct, frozen=True):
    """What is allowed; see docs/reference/limits.md. `shared`: networks whose addresses are many clients' each."""

    shared: tuple[Network, ...]
    sessions: int
    sessions_per_address: int
    half_open: int
    half_open_per_address: int
    handshakes: Rate
    handshakes_per_address: Rate
    commands: Rate
    commands_per_session: Rate
    commands_per_address: Rate
    registrations: Rate
    registrations_per_address: Rate
    replacements: Rate
    replacements_per_address: Rate
    new_servers_per_token: Rate
    new_servers_per_address: Rate
    connects: Rate
    connects_per_destination: Rate
    log_lines: Rate


class Buckets:
    """What was spent of a rate, by key.

    Of each key one number is kept for each pace: when all that it spent is paid for. At most `size` keys are
    remembered, those that spent last. What is forgotten begins with a full budget, as does a new address. That is of no
    use to who wants his own forgotten: he would have to spend from `size` other addresses meanwhile, each of which has
    a budget as large as what he wins.
    """

    def __init__(self, size: int = MAX_KEYS) -> None:
        self._size = size
        self._paid: OrderedDict[Hashable, Paid] = OrderedDict()

    def __len__(self) -> int:
        return len(self._paid)

    def spend(
        self, key: Hashable, n: int, rate: Rate, now: float, share: int = 1, *, longest: float = MAX_DELAY
    ) -> float:
        """Spend `n`, whatever is there: how long to wait before they are used, `longest` at most.

        A debt does not grow beyond that delay: who comes later does not pay for what others did long ago.
        """
        wait, paid = rate.spend(self._paid.get(key, ()), n, now, share, longest=longest)
        self._keep(key, paid)
        return wait

    def spend_if_there(self, key: Hashable, n: int, rate: Rate, now: float) -> bool:
        """Spend `n` if they are there; else nothing is spent."""
        wait, paid = rate.spend(self._paid.get(key, ()), n, now)
        if wait:
            return False
        self._keep(key, paid)
        return True

    def _keep(self, key: Hashable, paid: Paid) -> None:
        self._paid[key] = paid
        self._paid.move_to_end(key)
        if len(self._paid) > self._size:
            self._paid.popitem(last=False)
