"""Budgets: so many at once, and then so many a second. Time is handed in, in seconds of a clock that nobody sets."""

import re
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Self

import msgspec

from ntf_server.admission.addresses import Network

PATTERN: Final = r"^[0-9]{1,7} \+ [0-9]{1,6}(\.[0-9]{1,6})?/s\Z"
MAX_DELAY: Final = 20.0  # seconds: a client that waits longer for an answer gives its session up
MAX_KEYS: Final = 65_536


class Rate(msgspec.Struct, frozen=True):
    """`at_once` (1 or more), and then `per_second` (more than 0): text `300 + 5/s`."""

    at_once: int
    per_second: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError."""
        if not re.match(PATTERN, text):
            raise ValueError("should be AT_ONCE + PER_SECOND/s, as in 300 + 5/s")
        at_once, _, rest = text.partition(" + ")
        rate = cls(int(at_once), float(rest.removesuffix("/s")))
        if not rate.at_once or not rate.per_second:
            raise ValueError("0 would let nobody through")
        return rate


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

    Of each key one number is kept: when all that it spent is paid for. At most `size` keys are remembered, those that
    spent last. What is forgotten begins with a full budget, as does a new address. That is of no use to who wants his
    own forgotten: he would have to spend from `size` other addresses meanwhile, each of which has a budget as large as
    what he wins.
    """

    def __init__(self, size: int = MAX_KEYS) -> None:
        self._size = size
        self._paid: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._paid)

    def spend(
        self, key: Hashable, n: int, rate: Rate, now: float, share: int = 1, *, longest: float = MAX_DELAY
    ) -> float:
        """Spend `n`, whatever is there: how long to wait before they are used, `longest` at most.

        A debt does not grow beyond that delay: who comes later does not pay for what others did long ago.
        """
        paid, ahead = self._look(key, n, rate, now, share)
        wait = paid - ahead - now
        if wait > longest:
            paid, wait = now + ahead + longest, longest
        self._keep(key, paid)
        return max(0.0, wait)

    def spend_if_there(self, key: Hashable, rate: Rate, now: float, share: int = 1) -> bool:
        """Spend one if it is there; else nothing is spent."""
        paid, ahead = self._look(key, 1, rate, now, share)
        if paid - ahead > now:
            return False
        self._keep(key, paid)
        return True

    def _look(self, key: Hashable, n: int, rate: Rate, now: float, share: int) -> tuple[float, float]:
        """When it would all be paid for, and how far ahead of now that may be."""
        each = 1.0 / (rate.per_second * share)
        return max(self._paid.get(key, now), now) + n * each, rate.at_once * share * each

    def _keep(self, key: Hashable, paid: float) -> None:
        self._paid[key] = paid
        self._paid.move_to_end(key)
        if len(self._paid) > self._size:
            self._paid.popitem(last=False)
