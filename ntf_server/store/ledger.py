"""What nodes that share a store count together: budgets that have to hold over all of them.

A store that one process has alone has no ledger: what that process counts in its memory is everybody's.
"""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

T = TypeVar("T")

Paces: TypeAlias = tuple[tuple[float, float], ...]  # so many at once, and then so many a second; all of them hold


class Charge(NamedTuple):
    """`n` of a kind that somebody asks for. `addresses`: what he is charged to, and how many times the budget `each`
    that has; the last one tells whether he asks for little, which is what `modest` allows. `total`: of each group.
    """

    kind: str
    n: int
    addresses: tuple[tuple[bytes, int], ...]
    each: Paces
    modest: Paces
    total: Paces


class Delays(NamedTuple):
    """Seconds to wait: for the budget of his own, else for that of his group."""

    own: float
    total: float


class Revision(NamedTuple, Generic[T]):
    """What a memo is to be, None: it is to be gone; for how many seconds it is kept; what the caller gets."""

    value: bytes | None
    keep: float
    result: T


Change: TypeAlias = Callable[[bytes | None, float], Revision[T]]  # of a memo's value and the store's time, in seconds


class Ledger(Protocol):
    """Methods raise StoreError. Refs of a store that has a ledger are bytes."""

    def mask(self, text: bytes) -> bytes:
        """What stands for an address, a device token or the like, 16 bytes: with all nodes the same, and without the
        store's key it tells nothing.
        """
        ...

    async def spend(self, charges: Sequence[Charge], longest: float) -> list[Delays]:
        """Spend all of it, whatever is there; a debt does not grow beyond `longest` seconds.

        First by address: what his own budget holds up is not charged to that of his group. That is the group of those
        who ask for little, of the others, or of those who have no address.
        """
        ...

    async def revise(self, key: bytes, change: Change[T]) -> T:
        """Change the memo of a key, which `mask` gave, and give the result.

        `change` is a pure function: it is repeated if another node changed the memo meanwhile. A value that it leaves
        as it is keeps its time too.
        """
        ...
