"""What operators look at in a store: registrations, subscriptions and SMP servers, of all nodes, in slices.

Nothing that is sealed is opened. A cursor is text that only the engine reads; it may be sent to whoever asks.
"""

from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ntf_server.store.records import LastPush, Record, Ref
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import InvalidReason, Provider

DAMAGED = "damaged"  # in the place of a status: it cannot be read, and is set aside


class Registered(Record, frozen=True):
    """A registration, as operators see it. `status`: of `TokenStatus`, or DAMAGED; `active_at`: of its last command, up
    to a day more; `period`: minutes; `subscriptions`: how many; the rest as in `Token` and `Device`.
    """

    ref: Ref
    token_id: bytes
    provider: Provider
    fingerprint: str
    status: str
    reason: InvalidReason | None
    period: int
    registered_at: int
    active_at: int
    subscriptions: int
    last_push: LastPush | None


class Counted(NamedTuple):
    """Of an SMP server, or a part of its queues: how many subscriptions have which status (of `SubscriptionStatus`, or
    DAMAGED), and how many of those that should be active our service has.
    """

    server: ServerAddress
    statuses: Tally[str]
    associated: int


class Inspection(Protocol):
    """Implemented by each engine; methods raise StoreError."""

    async def tokens(
        self, after: str | None, limit: int, *, fingerprint: str = ""
    ) -> tuple[list[Registered], str | None]:
        """`limit` registrations behind a cursor, or those of them that have this fingerprint; where the next slice
        begins, None: that was the last.
        """
        ...

    async def statuses(self, token: Ref) -> Mapping[str, int]:
        """Of a registration: how many subscriptions have which status."""
        ...

    async def heard(self, after: str | None, limit: int, spans: Sequence[int]) -> tuple[list[int], str | None]:
        """Of about `limit` subscriptions behind a cursor, how many had a notification within each of these spans of the
        past (seconds); where the next slice begins, None: that was the last.
        """
        ...

    async def subscriptions(self, after: str | None, limit: int) -> tuple[list[Counted], str | None]:
        """About `limit` subscriptions behind a cursor, counted by their servers; where the next slice begins, None:
        that was the last. One that comes or goes meanwhile may be counted or not.
        """
        ...
