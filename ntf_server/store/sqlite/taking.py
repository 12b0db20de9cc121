"""Which tokens are next, in the SQLite store: oldest first, lanes in turn. Run inside a transaction."""

import bisect
import json
import sqlite3
from collections import defaultdict
from typing import Final

from ntf_server.store.contract import Places
from ntf_server.store.memory import Round, State, provider_of
from ntf_server.store.records import Backlog, Taken
from ntf_server.store.sqlite.content import load
from ntf_server.store.sqlite.due import park
from ntf_server.store.sqlite.rows import Rows, one_row
from smp_bridge.ntf import Provider

_LANES: Final = 256  # that one take looks at
_QUANTUM: Final = 8  # tokens of a lane, before others have their turn
_OLDEST: Final = (
    "SELECT json_group_array(json_array(token, due_at)) FROM (SELECT token, due_at FROM deliveries"
    " WHERE lane = :lane AND due_at <= :now ORDER BY due_at LIMIT :limit)"
)
_NEXT_LANE: Final = (
    "SELECT lane, due_at FROM deliveries WHERE lane > :lane AND due_at IS NOT NULL ORDER BY lane, due_at LIMIT 1"
)
_NEXT_DUE: Final = "SELECT min(due_at) FROM deliveries WHERE lane = :lane AND due_at IS NOT NULL"
_TAKEN: Final = "UPDATE deliveries SET due_at = NULL WHERE token IN (SELECT value FROM json_each(?))"


def take(c: sqlite3.Connection, s: State, provider: Provider, places: Places) -> Taken:
    """See `Store.take`."""
    s.ripen()
    if provider is Provider.WEB_PUSH:
        tokens, next_at = _in_turn(c, s, provider, places)
    else:
        lane = provider.encode()
        tokens = _oldest(c, s, lane, places.total)
        next_at = _next_due(c, s, lane)
    next_in = None if next_at is None else max(0.0, (next_at - s.now_ms) / 1000)
    ripe_in = s.next_ripe(provider)
    if ripe_in is not None:
        next_in = ripe_in if next_in is None else min(next_in, ripe_in)
    return Taken(load(c, s, tokens), next_in)


def _oldest(c: sqlite3.Connection, s: State, lane: bytes, limit: int) -> list[int]:
    """Take up to `limit` tokens that are due in a lane, whether a row says so or memory."""
    if limit <= 0:
        return []
    found: Rows = one_row(c, _OLDEST, {"lane": lane, "now": s.now_ms, "limit": limit})
    rows: list[tuple[int, int, bool]] = [(at, token, True) for token, at in found]
    ready = [(ready.since, token, False) for token, ready in s.ready.items() if ready.lane == lane]
    chosen = sorted([*rows, *ready])[:limit] if ready else rows
    written = [token for _, token, is_row in chosen if is_row]
    if written:
        c.execute(_TAKEN, (json.dumps(written),))
    for _, token, is_row in chosen:
        if not is_row:
            s.ready.drop(token)
    if len(written) == len(rows) < limit:
        s.backlog.drop(lane)
    else:
        s.owe(lane)
    return [token for _, token, _ in chosen]


def _next_due(c: sqlite3.Connection, s: State, lane: bytes) -> int | None:
    """When the next one of a lane is due, in milliseconds."""
    if any(ready.lane == lane for ready in s.ready.values()):
        return s.now_ms
    [due_at] = c.execute(_NEXT_DUE, {"lane": lane}).fetchone()
    return None if due_at is None else int(due_at)


def _in_turn(c: sqlite3.Connection, s: State, provider: Provider, places: Places) -> tuple[list[int], int | None]:
    """Take from lane after lane, from where the last take stopped; then what else there is room for.

    Gives the tokens, and when there is more. A look at _LANES lanes that found nothing is gone on with by the next
    take, which is due at once; not so a whole round.
    """
    start = provider.encode()[:1]  # before all its lanes
    round_ = s.rounds.setdefault(provider, Round(start, start))
    waiting: defaultdict[bytes, list[int]] = defaultdict(list)
    for token, ready in s.ready.items():
        if provider_of(ready.lane) is provider:
            waiting[ready.lane].append(token)
    ready_lanes = sorted(waiting)
    tokens: list[int] = []
    served: dict[bytes, int] = {}  # lanes that had their turn, and how much room they have left
    whole = False
    for _ in range(_LANES):
        if len(tokens) >= places.total:
            break
        found = _next_lane(c, ready_lanes, provider, round_.cursor)
        if found is None and not round_.wrapped:
            round_.cursor, round_.wrapped = start, True
            found = _next_lane(c, ready_lanes, provider, round_.cursor)
        if found is None or (round_.wrapped and found[0] > round_.began):
            whole = True
            break
        lane, due_at = found
        round_.cursor = lane
        if lane not in waiting and due_at is not None and due_at > s.now_ms:
            round_.see(due_at)
            continue
        room = places.room(lane[2:])
        if room <= 0:
            if lane in waiting:
                park(c, s, waiting.pop(lane))
                ready_lanes.remove(lane)
            continue
        taken = _oldest(c, s, lane, min(room, _QUANTUM, places.total - len(tokens)))
        tokens += taken
        served[lane] = room - _QUANTUM if len(taken) == _QUANTUM else 0
    for lane, room in served.items():
        tokens += _oldest(c, s, lane, min(room, places.total - len(tokens)))
        if (next_at := _next_due(c, s, lane)) is not None:
            round_.see(next_at)
    return tokens, round_.stop(s.now_ms, whole=whole, found=bool(tokens))


def _next_lane(
    c: sqlite3.Connection, ready: list[bytes], provider: Provider, cursor: bytes
) -> tuple[bytes, int | None] | None:
    """The lane behind this one, and when its first row is due; None as time: memory has something that is."""
    row = c.execute(_NEXT_LANE, {"lane": cursor}).fetchone()
    written: tuple[bytes, int] | None = row if row and row[0].startswith(provider.encode()) else None
    place = bisect.bisect_right(ready, cursor)
    if place < len(ready) and (written is None or ready[place] < written[0]):
        return ready[place], None
    return written


def backlog(c: sqlite3.Connection, s: State, provider: Provider) -> Backlog:
    """See `Store.backlog`. Also from the reader's thread."""
    lane, now = provider.encode(), round(s.clock.wall() * 1000)
    count, due, since = c.execute(
        "SELECT count(*), count(*) FILTER (WHERE due_at <= :now), min(due_at) FROM deliveries"
        " WHERE lane >= :lane AND lane < :end AND due_at IS NOT NULL",
        {"lane": lane, "end": lane + b"\xff" * 17, "now": now},
    ).fetchone()
    return s.with_ready(lane, now, Backlog(due, count - due, 0.0 if since is None else (now - since) / 1000))
