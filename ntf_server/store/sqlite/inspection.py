"""What operators look at in the SQLite store."""

import sqlite3
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from ntf_server.store.inspection import DAMAGED, Counted, Registered
from ntf_server.store.records import WANTED, LastPush, Ref
from ntf_server.store.sealing import fingerprint
from ntf_server.store.sqlite.rows import server_address
from smp_bridge.ntf import InvalidReason, Provider

Read = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]

_TOKENS: Final = (
    "SELECT t.ref, t.token_id, t.provider, t.device_lookup, t.status, t.reason, t.period, t.registered_at, t.active_at,"
    " t.damaged, t.subscriptions, d.push_id, d.pushed_at, d.ended, d.reason"
    " FROM tokens t LEFT JOIN deliveries d ON d.token = t.ref WHERE"
)
_SLICE: Final = f"{_TOKENS} t.ref > :after ORDER BY t.ref LIMIT :limit"
_OF_DEVICE: Final = (  # `+`: or the index of the other column is used, and every token is looked at
    f"{_TOKENS} t.device_lookup >= :first AND t.device_lookup < :behind AND +t.ref > :after ORDER BY t.ref LIMIT :limit"
)
_STATUSES: Final = (
    f"SELECT iif(damaged IS NULL, status, '{DAMAGED}'), count(*) FROM subscriptions WHERE token = ? GROUP BY 1"
)
_COUNT: Final = (
    f"SELECT v.address, iif(s.damaged IS NULL, s.status, '{DAMAGED}'),"
    " s.association > 0 AND s.association = v.generation, count(*), max(s.ref)"
    " FROM (SELECT ref, server, status, association, damaged FROM subscriptions WHERE ref > ? ORDER BY ref LIMIT ?) s"
    " JOIN servers v ON v.ref = s.server GROUP BY 1, 2, 3"
)
_HEARD: Final = (
    "SELECT subscription, received_at FROM notifications WHERE subscription > ? ORDER BY subscription LIMIT ?"
)
_END: Final = b"\xff" * 32  # behind all that begins alike


class SqliteInspection:
    """Implements `Inspection`. `read`: the store's way to the database; `clock` gives Unix seconds."""

    def __init__(self, read: Read, clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock

    async def tokens(
        self, after: str | None, limit: int, *, fingerprint: str = ""
    ) -> tuple[list[Registered], str | None]:
        """See `Inspection`."""
        values: dict[str, Any] = {"after": int(after or 0), "limit": limit}
        if fingerprint:
            first = bytes.fromhex(fingerprint)
            values |= {"first": first, "behind": first + _END}
        query = _OF_DEVICE if fingerprint else _SLICE
        rows = await self._read(lambda c: c.execute(query, values).fetchall())
        return [_registered(row) for row in rows], str(rows[-1][0]) if len(rows) == limit else None

    async def statuses(self, token: Ref) -> Mapping[str, int]:
        """See `Inspection`."""
        return dict(await self._read(lambda c: c.execute(_STATUSES, (token,)).fetchall()))

    async def heard(self, after: str | None, limit: int, spans: Sequence[int]) -> tuple[list[int], str | None]:
        """See `Inspection`."""
        since = [int(self._clock()) - span for span in spans]
        counts = ", ".join(f"count(*) FILTER (WHERE received_at > {at:d})" for at in since)
        query = f"SELECT count(*), max(subscription), {counts} FROM ({_HEARD})"
        row = await self._read(lambda c: c.execute(query, (int(after or 0), limit)).fetchone())
        looked_at, last, *found = row
        return found, str(last) if looked_at == limit else None

    async def subscriptions(self, after: str | None, limit: int) -> tuple[list[Counted], str | None]:
        """See `Inspection`."""
        rows = await self._read(lambda c: c.execute(_COUNT, (int(after or 0), limit)).fetchall())
        found: dict[bytes, Counted] = {}
        looked_at, last = 0, 0
        for address, status, associated, count, newest in rows:
            counted = found.get(address) or Counted(server_address(address), Tally(), 0)
            counted.statuses[status] += count
            if associated and status in WANTED:
                counted = counted._replace(associated=counted.associated + count)
            found[address] = counted
            looked_at, last = looked_at + count, max(last, newest)
        return list(found.values()), str(last) if looked_at == limit else None


def _registered(row: tuple[Any, ...]) -> Registered:
    ref, token_id, provider, lookup, status, reason, period, registered_at, active_at, damaged, count, *push = row
    push_id, at, ended, why = push
    return Registered(
        ref,
        token_id,
        Provider(provider),
        fingerprint(lookup),
        status if damaged is None else DAMAGED,
        InvalidReason(reason) if reason else None,
        period,
        registered_at,
        active_at,
        count,
        None if ended is None else LastPush(push_id, at, ended, why or ""),
    )
