"""Whether we are a service on one SMP server: what its sessions came to decides. No I/O; the clock is handed in.

And what follows from the count that NSUBS is answered with, and from SMP 19 on from the hash beside it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from smp_bridge import smp
from smp_bridge.failure import TABLE, Happened, Remedy

_MAX_DOUBLINGS: Final = 4  # of `ended_backoff`
_FEW: Final = 20  # queues that a server may lack, whatever the number of all
_FEW_OF: Final = 20  # or one in so many


@dataclass(frozen=True, slots=True)
class Associations:
    """What our service has on a server, as far as we know: `count` queues, `released` ones included.

    Those were deleted here, but may still be there, as SMP has no unsubscribe. `ids_hash`, `released_hash`: XOR of
    MD5(notifier id) of all, and of the released ones (16 bytes).
    """

    count: int
    released: int
    ids_hash: bytes = field(repr=False)
    released_hash: bytes = field(repr=False)

    @property
    def wanted(self) -> int:
        """How many are not released."""
        return self.count - self.released


class Todo(Enum):
    """What is to be done after NSUBS."""

    NOTHING = auto()  # all that should be associated is
    AUDIT = auto()  # a few may not be: all are looked at, little by little
    PAGES = auto()  # many are not: all that the pages give is subscribed one by one


def after_count(ours: Associations, said: smp.SOks) -> Todo:
    """What the server's count, and its hash, call for.

    Below SMP 19 there is no hash: who has lost some of ours, and still counts as many released ones, is not found out.
    """
    missing = ours.wanted - said.count
    if ours.wanted and (said.count <= 0 or missing > max(_FEW, ours.wanted // _FEW_OF)):
        return Todo.PAGES
    if said.ids_hash is None:
        return Todo.AUDIT if missing > 0 else Todo.NOTHING
    if (said.count, said.ids_hash) == (ours.count, ours.ids_hash):
        return Todo.NOTHING
    if (said.count, said.ids_hash) == (ours.wanted, xor(ours.ids_hash, ours.released_hash)):
        return Todo.NOTHING  # whoever had the released ones deleted them too
    return Todo.AUDIT if ours.wanted else Todo.NOTHING


def ids_hash(notifier_ids: Iterable[bytes]) -> bytes:
    """XOR of MD5(notifier id) (wire.md, section 7)."""
    out = 0
    for notifier_id in notifier_ids:
        out ^= int.from_bytes(hashlib.md5(notifier_id, usedforsecurity=False).digest())
    return out.to_bytes(16)


def xor(a: bytes, b: bytes) -> bytes:
    """Of two such hashes."""
    return (int.from_bytes(a) ^ int.from_bytes(b)).to_bytes(16)


class ServiceLife:
    """A service's life on one server. Times are of one monotonic clock, in seconds.

    `without_service`: how long a server that refuses the service is not asked again; `ended_backoff`: before
    subscriptions that another session took over are taken back, twice as long each time in a row.
    """

    def __init__(self, without_service: float, ended_backoff: float) -> None:
        self._without_service = without_service
        self._ended_backoff = ended_backoff
        self._not_before = 0.0
        self._ends = 0  # sessions in a row that were taken over
        self._taken_over = False  # this session
        self._lost = False  # by the session before

    def may_be_one(self, now: float) -> bool:
        """Whether the next session may be a service's."""
        return now >= self._not_before

    def give_up(self, now: float) -> None:
        """The server does not take the service; not before `without_service` has passed."""
        self._not_before = now + self._without_service

    def begin_session(self) -> None:
        """A session begins."""
        self._taken_over = False

    def taken_over(self) -> float | None:
        """ENDS came. After so many seconds the session should end, for the next to take back; None: known already."""
        if self._taken_over:
            return None
        self._taken_over = True
        return self._ended_backoff * float(2 ** min(self._ends, _MAX_DOUBLINGS))

    def end_session(self, remedy: Remedy) -> Remedy:
        """A session ended, with what NSUB and NSUBS called for in it. What that is in the row of sessions."""
        again = remedy is Remedy.RECONNECT and self._lost
        self._lost = remedy is Remedy.RECONNECT  # another handshake should mend it, once
        self._ends = self._ends + 1 if self._taken_over else 0
        return TABLE[Happened.NSUBS_AUTH_AGAIN].remedy if again else remedy
