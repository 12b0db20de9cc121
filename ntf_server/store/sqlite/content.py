"""What pushes say: the content of claims, loaded for many tokens at once. Run inside a transaction.

Everything here takes a batch in a few statements of one row each (JSON): every row that a statement gives costs a turn
at Python's lock, which the other threads hold. Measured at 2,000 notifications a second: a row each costs more than
all that SQLite does for it. The tests hold each statement to a plain twin that asks row by row.
"""

import functools
import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from ntf_server.store.memory import Held, State, provider_of
from ntf_server.store.records import MAX_ENTRIES, Claim, Entry, Lane, PushKind
from ntf_server.store.sealing import CODE, DEVICE_TOKEN, SECRET, SealingError
from ntf_server.store.sqlite.rows import DamagedRowError, Rows, one_row, quarantine, server_address
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, TokenStatus

# A row of _TOKENS, and what the push says: since when, its notifications, whether more is due behind it.
_Content = tuple[list[Any], PushKind, int, tuple[Entry, ...], bool]

_MAX_ADDRESSES: Final = 4096  # strangers may invent any number of servers
_MAX_EXPIRED: Final = 2000  # notifications that one look gives up
SENT: Final = 1  # values of notifications.sent: a provider took it
EXPIRED: Final = 2  # its time to live is over

_TOKENS: Final = (
    "SELECT json_group_array(json_array(t.ref, hex(t.lane), t.registration, t.registered_at, t.status,"
    " t.verification_due, t.check_due, hex(t.token_id), hex(t.device_token), hex(t.secret),"
    " iif(t.verification_due IS NULL, '', hex(t.code)), coalesce(d.attempts, 0),"
    " iif(d.attempts > 0, hex(d.push_id), ''),"
    " d.delivered_at IS NOT NULL, t.app, hex(t.vapid_key))) FROM json_each(:refs) j"
    " CROSS JOIN tokens t ON t.ref = j.value LEFT JOIN deliveries d ON d.token = t.ref WHERE t.damaged IS NULL"
)
_NOTIFICATIONS: Final = (
    "SELECT json_group_array(json_array(n.token, n.subscription, n.seq, s.server, hex(s.notifier_id), n.received_at,"
    " hex(n.nonce), hex(n.meta), hex(s.spelling))) FROM json_each(:refs) j"
    " CROSS JOIN notifications n ON n.subscription IN"
    " (SELECT o.subscription FROM notifications o WHERE o.token = j.value AND o.{chosen} LIMIT :limit)"
    " CROSS JOIN subscriptions s ON s.ref = n.subscription"
)
_UNSENT: Final = _NOTIFICATIONS.format(chosen="sent = 0 ORDER BY o.seq")
_UNSENT_IN_TIME: Final = _NOTIFICATIONS.format(chosen="sent = 0 AND o.received_at > :oldest ORDER BY o.seq")
_SENT_BEFORE: Final = _NOTIFICATIONS.format(chosen="sent = 1 ORDER BY o.seq DESC")
_EXPIRE: Final = (
    f"UPDATE notifications SET sent = {EXPIRED} WHERE subscription IN (SELECT o.subscription FROM json_each(:refs) j"
    " CROSS JOIN notifications o ON o.token = j.value WHERE o.sent = 0 AND o.received_at <= :oldest LIMIT :limit)"
)


@functools.lru_cache(maxsize=4096)
def unhex_lane(text: str) -> tuple[bytes, Lane]:
    """A value of tokens.lane: as it is kept, and as others see it."""
    lane = bytes.fromhex(text)
    return lane, Lane(provider_of(lane), lane[2:])


def load(c: sqlite3.Connection, s: State, refs: Sequence[int]) -> list[Claim]:
    """Claim these tokens: of each a verification, else messages, else a check; those that have nothing are left out.

    What is over its time to live is given up, and counted.
    """
    if not refs:
        return []
    rows: Rows = one_row(c, _TOKENS, {"refs": json.dumps(refs)})
    _expire_due(c, s, rows)
    later = _not_yet(s, rows)
    active = [row[0] for row in rows if row[5] is None and row[4] == TokenStatus.ACTIVE]
    messages = _messages(c, s, active) if active else {}
    found: list[_Content] = []
    for row in rows:
        ref, status, verification_due, check_due = row[0], row[4], row[5], row[6]
        if verification_due is not None:  # messages or a check may wait behind it
            found.append((row, PushKind.VERIFICATION, verification_due, (), status == TokenStatus.ACTIVE))
        elif ref in messages:
            unsent, entries = messages[ref]
            since = next(e for e in entries if not e.sent).received_at
            found.append(
                (row, PushKind.MESSAGES, since, entries, unsent > MAX_ENTRIES or check_due is not None or ref in later)
            )
        elif check_due is not None and status == TokenStatus.ACTIVE:
            found.append((row, PushKind.CHECK, check_due, (), ref in later))
    if later:
        _put_off(c, s, later.keys() - {row[0] for row, *_ in found}, later)
    return _claim(c, s, found)


def _expire_due(c: sqlite3.Connection, s: State, rows: Rows) -> None:
    """Codes and checks that are over their time to live."""
    limits = (5, "verification", s.now - s.times.verification_ttl), (6, "check", s.now - s.times.message_ttl)
    for column, what, oldest in limits:
        late = [row for row in rows if row[column] is not None and row[column] <= oldest]
        if late:
            query = f"UPDATE tokens SET {what}_due = NULL WHERE ref IN (SELECT value FROM json_each(?))"
            c.execute(query, (json.dumps([row[0] for row in late]),))
            s.effects.expired[what] += len(late)
            for row in late:
                row[column] = None


def _not_yet(s: State, rows: Rows) -> dict[int, int]:
    """Codes that have to wait for their turn, and until when; their tokens are due for what else they have only."""
    later = {row[0]: row[5] for row in rows if row[5] is not None and row[5] > s.now}
    if later:
        for row in rows:
            if row[0] in later:
                row[5] = None
    return later


def _put_off(c: sqlite3.Connection, s: State, refs: Set[int], turns: Mapping[int, int]) -> None:
    """Nothing of these is due before their turn."""
    for ref in refs:
        query = "UPDATE deliveries SET due_at = ? WHERE token = ? RETURNING lane"
        if row := c.execute(query, (turns[ref] * 1000, ref)).fetchone():
            s.effects.due(provider_of(row[0]), turns[ref] - s.now_ms / 1000)


def _claim(c: sqlite3.Connection, s: State, found: Sequence[_Content]) -> list[Claim]:
    """Opens no more than what these pushes need. What cannot be opened is set aside."""
    claims: list[Claim] = []
    held: dict[int, Held] = {}
    damaged: list[DamagedRowError] = []
    fromhex, open_ = bytes.fromhex, s.sealer.open
    fresh = s.random(16 * len(found))  # at once: each call is a turn at Python's lock
    for i, (row, kind, since, entries, more) in enumerate(found):
        ref, lane_text, registration, registered_at, _, _, _, token_id, device_token, secret, code, *rest = row
        attempts, push_id, delivered_before, app, vapid_key = rest
        public_id = fromhex(token_id)
        kept, lane = unhex_lane(lane_text)
        try:
            claim = Claim(
                ref,
                registration,
                lane,
                DeviceToken(lane.provider, open_(fromhex(device_token), DEVICE_TOKEN + public_id)),
                open_(fromhex(secret), SECRET + public_id),
                kind,
                since,
                fromhex(push_id) if push_id else fresh[16 * i : 16 * i + 16],
                open_(fromhex(code), CODE + public_id) if kind is PushKind.VERIFICATION else b"",
                entries,
                attempts,
                registered_at,
                bool(delivered_before),
                app,
                fromhex(vapid_key) if vapid_key else b"",
            )
        except SealingError:
            damaged.append(DamagedRowError("tokens", ref))
            continue
        claims.append(claim)
        held[ref] = Held(claim, kept, more)
    s.claims.put_all(held)
    if damaged:
        quarantine(c, s, damaged)
    return claims


def _messages(c: sqlite3.Connection, s: State, refs: Sequence[int]) -> dict[int, tuple[int, tuple[Entry, ...]]]:
    """Of each token that has any unsent: how many, MAX_ENTRIES + 1 at most, and what a push of it holds.

    The oldest unsent go first; then, since providers coalesce and drop pushes, the newest that were sent already ride
    along. All oldest first.
    """
    unsent = _by_token(_unsent(c, s, refs))
    room = [ref for ref, rows in unsent.items() if len(rows) < MAX_ENTRIES]
    limits = {"refs": json.dumps(room), "limit": MAX_ENTRIES - 1}
    earlier = _by_token(one_row(c, _SENT_BEFORE, limits) if room else [])
    servers = {row[3] for rows in (*unsent.values(), *earlier.values()) for row in rows}
    known = _addresses(c, s, servers)
    out: dict[int, tuple[int, tuple[Entry, ...]]] = {}
    for ref, rows in unsent.items():
        chosen = [_entry(row, known, sent=False) for row in rows[:MAX_ENTRIES]]
        if (before := earlier.get(ref)) and (left := MAX_ENTRIES - len(chosen)) > 0:
            chosen = sorted([*(_entry(row, known, sent=True) for row in before[-left:]), *chosen], key=_seq)
        out[ref] = len(rows), tuple(chosen)
    return out


def _unsent(c: sqlite3.Connection, s: State, refs: Sequence[int]) -> Rows:
    """Up to MAX_ENTRIES + 1 of each token; those over their time to live are given up here."""
    oldest = s.now - s.times.message_ttl
    parameters = {"refs": json.dumps(refs), "limit": MAX_ENTRIES + 1}
    rows: Rows = one_row(c, _UNSENT, parameters)
    if any(row[5] <= oldest for row in rows):
        expire(c, s, refs, _MAX_EXPIRED)  # what is left by then goes in the sweep of `upkeep`
        rows = one_row(c, _UNSENT_IN_TIME, {**parameters, "oldest": oldest})
    return rows


def expire(c: sqlite3.Connection, s: State, refs: Sequence[int], limit: int) -> None:
    """Give up notifications of these tokens that are over their time to live."""
    parameters = {"refs": json.dumps(refs), "oldest": s.now - s.times.message_ttl, "limit": limit}
    s.effects.expired["notification"] += c.execute(_EXPIRE, parameters).rowcount


def _addresses(c: sqlite3.Connection, s: State, refs: Set[int]) -> Mapping[int, ServerAddress]:
    """Addresses of these servers, and of others."""
    known = s.addresses
    unknown: Set[int] = refs - known.keys()
    if unknown:
        if len(known) > _MAX_ADDRESSES:
            known.clear()
            unknown = refs
        query = "SELECT ref, address FROM servers WHERE ref IN (SELECT value FROM json_each(?))"
        rows = c.execute(query, (json.dumps(list(unknown)),))
        known.update((ref, server_address(address)) for ref, address in rows)
    return known


def _by_token(rows: Rows) -> dict[int, Rows]:
    """Rows of `_NOTIFICATIONS`, those of a token by growing seq."""
    out: defaultdict[int, Rows] = defaultdict(list)
    for row in rows:
        out[row[0]].append(row)
    for of_token in out.values():
        if len(of_token) > 1:
            of_token.sort(key=_row_seq)
    return out


def _row_seq(row: list[Any]) -> int:
    return int(row[2])


def _entry(row: list[Any], addresses: Mapping[int, ServerAddress], *, sent: bool) -> Entry:
    _, subscription, seq, server, notifier_id, received_at, nonce, meta, spelling = row
    fromhex = bytes.fromhex
    spelled = server_address(fromhex(spelling)) if spelling else addresses[server]
    return Entry(subscription, seq, sent, spelled, fromhex(notifier_id), received_at, fromhex(nonce), fromhex(meta))


def _seq(e: Entry) -> int:
    return e.seq
