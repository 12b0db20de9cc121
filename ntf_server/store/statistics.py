"""What was counted on which day, kept in the store: rows of numbers by name, of each node and of all.

A node counts what happens there, and adds it to what it kept of that day before. It writes the sum as a whole, so that
it may be written again; so no two nodes write one row, and a day is the sum of its rows. What is counted of all nodes
together is in a row of its own, which any of them may write.
"""

from collections import Counter as Tally
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

Counts = Mapping[str, int]

KEPT: Final = 800  # days for which rows are kept
_OF_NODE: Final = ":"  # between a day and a node's name
_DAY: Final = len("2027-01-15")


class Statistics(Protocol):
    """Implemented by each engine; methods raise StoreError. Rows are named by `own_row` and `shared_row`."""

    @property
    def node(self) -> str:
        """This node's name; of one that has none another in each run."""
        ...

    async def kept(self, row: str) -> Counts | None:
        """What it says."""
        ...

    async def keep(self, row: str, counts: Counts) -> None:
        """It says this from now on."""
        ...

    async def rows(self) -> Mapping[str, Counts]:
        """All of them."""
        ...

    async def forget(self, before: str) -> None:
        """Rows of days before this one go."""
        ...


packed = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, int]).decode


def unpacked(kept: bytes | str) -> dict[str, int]:
    """What a row says; nothing if it cannot be read."""
    try:
        return _decode(kept)
    except msgspec.DecodeError:
        return {}


def own_row(day: str, node: str) -> str:
    """Of a node. `day`: ISO 8601, UTC."""
    return f"{day}{_OF_NODE}{node}"


def shared_row(day: str) -> str:
    """Of all nodes together."""
    return day


def by_day(rows: Mapping[str, Counts]) -> dict[str, dict[str, int]]:
    """The sums of days, in their order."""
    days: dict[str, Tally[str]] = {}
    for row in sorted(rows):
        days.setdefault(row[:_DAY], Tally()).update(rows[row])
    return {day: dict(counts) for day, counts in days.items()}
