"""That a token is due: by a row, unless memory knows it already. Run inside a transaction."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

from ntf_server.store.clock import TOLERANCE, Clock
from ntf_server.store.memory import State, provider_of
from ntf_server.store.sqlite.rows import one_row

# Of a token and its row in deliveries: it waits for nothing but its code's turn, and what else it has need not.
WAITS_FOR_CODE: Final = "d.due_at > :at AND d.due_at = t.verification_due * 1000"
_MARK: Final = (
    "UPDATE deliveries AS d SET due_at = :at FROM tokens t WHERE t.ref = d.token AND t.damaged IS NULL"
    f" AND d.token IN (SELECT value FROM json_each(:refs)) AND (d.due_at IS NULL OR ({WAITS_FOR_CODE}))"
)
_LANES: Final = (
    "SELECT json_group_array(lane) FROM (SELECT DISTINCT hex(d.lane) lane FROM json_each(:refs) j"
    " CROSS JOIN deliveries d ON d.token = j.value)"
)


def due_now(c: sqlite3.Connection, s: State, token: int, lane: bytes) -> None:
    """Something became due that waits for no retry, nor for what failed before."""
    if s.touch(token):
        return
    c.execute(
        "INSERT INTO deliveries (token, lane, due_at) VALUES (:token, :lane, :now) ON CONFLICT (token) DO UPDATE"
        " SET lane = :lane, due_at = min(coalesce(due_at, :now), :now), attempts = 0",
        {"token": token, "lane": lane, "now": s.now_ms},
    )
    s.owe(lane)
    s.effects.due(provider_of(lane), 0.0)


def due_when_free(c: sqlite3.Connection, s: State, tokens: Sequence[int]) -> None:
    """Something became due; those that wait for a retry go on waiting."""
    refs = [token for token in tokens if not s.touch(token)]
    if refs:
        mark(c, s, refs)


def mark(c: sqlite3.Connection, s: State, tokens: Sequence[int]) -> None:
    """Write it down, for tokens that memory does not know to be due."""
    refs = {"refs": json.dumps(tokens), "at": s.now_ms}
    c.execute(_MARK, refs)
    for text in one_row(c, _LANES, refs):
        lane = bytes.fromhex(text)
        s.owe(lane)
        s.effects.due(provider_of(lane), 0.0)


def is_due(c: sqlite3.Connection, s: State, lane: bytes) -> bool:
    """Whether a row of this lane really is due now; memory knows when none can be."""
    row = c.execute("SELECT 1 FROM deliveries WHERE lane = ? AND due_at <= ? LIMIT 1", (lane, s.now_ms)).fetchone()
    if row is None:
        s.backlog.drop(lane)
    return row is not None


def park(c: sqlite3.Connection, s: State, tokens: Sequence[int]) -> None:
    """What is ready in a lane without room waits in the store, not in memory."""
    c.executemany(
        "UPDATE deliveries SET due_at = ? WHERE token = ?", [(s.ready[token].since, token) for token in tokens]
    )
    for token in tokens:
        s.owe(s.ready[token].lane)
        s.ready.drop(token)


# What was claimed, or about to be, when the process ended; what was migrated.
_RECOVER: Final = (
    "UPDATE deliveries SET due_at = min(u.since * 1000, :now_ms)"
    " FROM (SELECT token, min(received_at) since FROM notifications WHERE sent = 0 GROUP BY token) u"
    " WHERE deliveries.token = u.token AND due_at IS NULL"
    " AND EXISTS (SELECT 1 FROM tokens t WHERE t.ref = u.token AND t.status = 'ACTIVE' AND t.damaged IS NULL)",
    "UPDATE deliveries SET due_at = min(coalesce(verification_due, check_due) * 1000, :now_ms) FROM tokens t"
    " WHERE t.ref = token"
    " AND (t.verification_due IS NOT NULL OR t.check_due IS NOT NULL) AND due_at IS NULL AND t.damaged IS NULL"
    " AND (t.verification_due IS NOT NULL OR t.status = 'ACTIVE')",
    # A clock that was wrong, and was set while nobody looked: what lies in the future is due now.
    "UPDATE deliveries SET due_at = :now_ms WHERE due_at > :latest",
    "UPDATE tokens SET verification_due = :now WHERE verification_due > :now"
    " AND (registered_at > :now OR verification_due > :last_turn)",
    "UPDATE tokens SET registered_at = :now WHERE registered_at > :now",
    "UPDATE servers SET unused_since = :now WHERE unused_since > :now",
    "UPDATE servers SET tried_since = :now WHERE tried_since > :now OR tried_since = 0",
    # Those that were migrated, and what a wrong clock wrote, were heard of now.
    "UPDATE tokens SET active_at = :now WHERE active_at = 0",
    "UPDATE tokens SET active_at = :now WHERE active_at > :now",
)
_DEAF: Final = 24 * 3600  # seconds without a command, when the database is opened, that count for nobody
LATEST: Final = 3600 * 1000  # milliseconds that anything may wait for its retry
LAST_TURN: Final = 4 * 3600  # seconds that a code may wait for its turn


def recover(c: sqlite3.Connection, s: State) -> None:
    """When the database is opened: what is unsent is due."""
    if step := step_meanwhile(c, s.clock):
        shift(c, s, step)
        s.effects.stepped = step
    remember_clock(c, s)
    times = {"now": s.now, "now_ms": s.now_ms, "latest": s.now_ms + LATEST, "last_turn": s.now + LAST_TURN}
    for statement in _RECOVER:
        c.execute(statement, {name: value for name, value in times.items() if f":{name}" in statement})
    _hear(c, s)
    lane = b""
    while row := c.execute(
        "SELECT lane FROM deliveries WHERE lane > ? AND due_at IS NOT NULL ORDER BY lane LIMIT 1", (lane,)
    ).fetchone():
        [lane] = row
        s.owe(lane)


def step_meanwhile(c: sqlite3.Connection, clock: Clock) -> int:
    """By how many seconds the clock was set while the database was closed, as far as the machine has run on."""
    row = c.execute("SELECT ahead FROM clock WHERE boot = ? AND boot <> ''", (clock.boot,)).fetchone()
    step = clock.offset - row[0] if row else 0.0
    return round(step) if abs(step) > TOLERANCE else 0


def remember_clock(c: sqlite3.Connection, s: State) -> None:
    """By how much it is ahead now."""
    c.execute("INSERT OR REPLACE INTO clock (ref, boot, ahead) VALUES (1, ?, ?)", (s.clock.boot, s.clock.offset))


def _hear(c: sqlite3.Connection, s: State) -> None:
    """Nobody was silent while there was nobody to hear, or while a wrong clock only seems to have gone on for years."""
    [newest] = c.execute("SELECT max(active_at) FROM tokens").fetchone()
    if newest is not None and s.now - newest > _DEAF:
        c.execute("UPDATE tokens SET active_at = active_at + ?", (s.now - newest,))


# Kept times that are moved with the clock. Those of the past stay in the past; what waits, waits for an hour at most.
_SHIFT: Final = (
    "UPDATE notifications SET received_at = min(received_at + :step, :now) WHERE sent = 0",
    "UPDATE deliveries SET due_at = min(due_at + :step * 1000, :now_ms + 3600000) WHERE due_at IS NOT NULL",
    "UPDATE tokens SET verification_due = min(verification_due + :step, max(verification_due, :now)),"
    " check_due = min(check_due + :step, :now)"
    " WHERE verification_due IS NOT NULL OR check_due IS NOT NULL",
    "UPDATE tokens SET period_at = min(period_at + :step, :now) WHERE period > 0",
    "UPDATE tokens SET registered_at = min(registered_at + :step, :now), active_at = min(active_at + :step, :now)",
    "UPDATE servers SET unused_since = min(unused_since + :step, :now), tried_since = min(tried_since + :step, :now)",
)


def shift(c: sqlite3.Connection, s: State, step: int) -> None:
    """The clock was set by so many seconds: nothing is to expire, or to wait, because of that."""
    times = {"step": step, "now": s.now, "now_ms": s.now_ms}
    for statement in _SHIFT:
        c.execute(statement, {name: value for name, value in times.items() if f":{name}" in statement})
