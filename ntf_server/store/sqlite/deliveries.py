"""Notifications and pushes in the SQLite store. Run inside a transaction.

Everything here takes a batch in a few statements of one row each (JSON): every row that a statement gives costs a turn
at Python's lock, which the other threads hold.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from ntf_server.store.records import (
    MAX_ENTRIES,
    DeadToken,
    Due,
    Notification,
    Notified,
    Outcome,
    Push,
    PushKind,
    StoredNotification,
)
from ntf_server.store.sealing import Sealer
from ntf_server.store.sqlite.keys import CODE, DEVICE_TOKEN, SECRET
from ntf_server.store.sqlite.sessions import Addresses
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider, TokenStatus

_Rows = list[list[Any]]

_PROVIDERS: Final = {p.value: p for p in Provider}

# A block of notifications, of one size each, is one value of each column; row n of `i` takes the n-th part of it.
_EACH: Final = "WITH RECURSIVE i(n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM i WHERE n + 1 < :count)"
_QUEUE: Final = (
    "i CROSS JOIN subscriptions s ON s.server = :server AND s.notifier_id = substr(:ids, n * :id_size + 1, :id_size)"
)
_NOTIFY: Final = (
    f"{_EACH} INSERT INTO notifications (subscription, token, seq, received_at, nonce, meta, sent)"
    # substr gives NULL for a part of nothing
    " SELECT s.ref, s.token, :first + n, :received_at,"
    " coalesce(substr(:nonces, n * :nonce_size + 1, :nonce_size), x''),"
    f" coalesce(substr(:metas, n * :meta_size + 1, :meta_size), x''), 0 FROM {_QUEUE} WHERE true"
    " ON CONFLICT (subscription) DO UPDATE SET seq = excluded.seq, received_at = excluded.received_at,"
    " nonce = excluded.nonce, meta = excluded.meta, sent = 0 WHERE excluded.seq > seq"
)
_OWNERS: Final = (
    f"{_EACH} SELECT json_group_array(json_array(t.ref, t.provider, t.status)) FROM {_QUEUE}"
    " CROSS JOIN tokens t ON t.ref = s.token"
)
_TOKENS: Final = (
    "SELECT json_group_array(json_array(t.ref, t.provider, t.registration, t.registered_at, t.status,"
    " t.verification_due, t.check_due, hex(t.token_id), hex(t.device_token), hex(t.secret),"
    " iif(t.verification_due IS NULL, '', hex(t.code)))) FROM json_each(:refs) j CROSS JOIN tokens t ON t.ref = j.value"
)
_NOTIFICATIONS: Final = (
    "SELECT json_group_array(json_array(n.token, n.subscription, n.seq, s.server, hex(s.notifier_id), n.received_at,"
    " hex(n.nonce), hex(n.meta))) FROM json_each(:refs) j CROSS JOIN notifications n ON n.subscription IN"
    " (SELECT o.subscription FROM notifications o WHERE o.token = j.value AND o.{chosen} LIMIT :limit)"
    " CROSS JOIN subscriptions s ON s.ref = n.subscription"
)
_UNSENT: Final = _NOTIFICATIONS.format(chosen="sent = 0 ORDER BY o.seq")
_SENT_BEFORE: Final = _NOTIFICATIONS.format(chosen="sent = 1 ORDER BY o.seq DESC")
_SAME_REGISTRATION: Final = "WHERE ref = json_extract(o.value, '$[0]') AND registration = json_extract(o.value, '$[1]')"


def _json(c: sqlite3.Connection, query: str, parameters: Mapping[str, Any]) -> _Rows:
    """What the one row of a query holds."""
    rows: _Rows = json.loads(c.execute(query, parameters).fetchone()[0])
    return rows


# --- NMSG


def notify(c: sqlite3.Connection, server: int, notifications: Sequence[Notification], first: int) -> Notified:
    """See `Store.notify`."""
    due: dict[int, Due] = {}
    known = 0
    for (received_at, *sizes), alike in groupby(notifications, _alike):
        run = list(alike)
        parameters = {
            "server": server,
            "count": len(run),
            "first": first,
            "received_at": received_at,
            **dict(zip(("id_size", "nonce_size", "meta_size"), sizes, strict=True)),
            "ids": b"".join([n.notifier_id for n in run]),
            "nonces": b"".join([n.nonce for n in run]),
            "metas": b"".join([n.meta for n in run]),
        }
        first += len(run)
        owners = _json(c, _OWNERS, parameters)
        if owners:
            c.execute(_NOTIFY, parameters)
        known += len(owners)
        for token, provider, status in owners:
            if status == TokenStatus.ACTIVE and token not in due:
                due[token] = Due(token, _PROVIDERS[provider], PushKind.MESSAGES)
    return Notified(list(due.values()), len(notifications) - known)


def _alike(n: Notification) -> tuple[int, int, int, int]:
    return n.received_at, len(n.notifier_id), len(n.nonce), len(n.meta)


# --- what is to be pushed


def load_pushes(
    c: sqlite3.Connection,
    sealer: Sealer,
    addresses: Addresses,
    refs: Sequence[int],
    now: int,
    *,
    message_ttl: int,
    verification_ttl: int,
) -> list[Push]:
    """See `Store.load_pushes`: of each token a verification, else messages, else a check."""
    rows = _json(c, _TOKENS, {"refs": json.dumps(list(refs))})
    oldest = now - verification_ttl
    late = [row[0] for row in rows if row[5] is not None and row[5] <= oldest]
    if late:
        query = "UPDATE tokens SET verification_due = NULL WHERE ref IN (SELECT value FROM json_each(?))"
        c.execute(query, (json.dumps(late),))
    pushes: list[Push] = []
    active: _Rows = []
    for row in rows:
        if row[5] is not None and row[5] > oldest:
            # Messages or a check may wait behind it.
            pushes.append(_push(row, sealer, PushKind.VERIFICATION, row[5], more=row[4] == TokenStatus.ACTIVE))
        elif row[4] == TokenStatus.ACTIVE:
            active.append(row)
    if active:
        messages = _messages(c, addresses, [row[0] for row in active], now - message_ttl)
        for row in active:
            check_due = row[6]
            unsent, held = messages.get(row[0], _NOTHING)
            if held:
                more = unsent > MAX_ENTRIES or check_due is not None
                since = next(n for n in held if not n.sent).notification.received_at
                pushes.append(_push(row, sealer, PushKind.MESSAGES, since, held=held, more=more))
            elif check_due is not None:
                pushes.append(_push(row, sealer, PushKind.CHECK, check_due))
    return pushes


_NOTHING: Final[tuple[int, tuple[StoredNotification, ...]]] = (0, ())


def _push(
    row: list[Any],
    sealer: Sealer,
    kind: PushKind,
    since: int,
    *,
    held: tuple[StoredNotification, ...] = (),
    more: bool = False,
) -> Push:
    """Opens no more than what this push needs."""
    ref, provider, registration, registered_at, _, _, _, token_id, device_token, secret, code = row
    public_id = bytes.fromhex(token_id)
    return Push(
        ref,
        registration,
        DeviceToken(_PROVIDERS[provider], sealer.open(bytes.fromhex(device_token), DEVICE_TOKEN + public_id)),
        sealer.open(bytes.fromhex(secret), SECRET + public_id),
        kind,
        since,
        sealer.open(bytes.fromhex(code), CODE + public_id) if kind is PushKind.VERIFICATION else b"",
        held,
        more,
        registered_at,
    )


def _messages(
    c: sqlite3.Connection, addresses: Addresses, refs: Sequence[int], oldest: int
) -> dict[int, tuple[int, tuple[StoredNotification, ...]]]:
    """Of each token that has any unsent: how many, MAX_ENTRIES + 1 at most, and what a push of it holds.

    The oldest unsent go first; then, since providers coalesce and drop pushes, the newest that were sent already ride
    along. All oldest first.
    """
    unsent = _by_token(_unsent(c, refs, oldest))
    room = [ref for ref, rows in unsent.items() if len(rows) < MAX_ENTRIES]
    limits = {"refs": json.dumps(room), "limit": MAX_ENTRIES - 1}
    earlier = _by_token(_json(c, _SENT_BEFORE, limits) if room else [])
    servers = {row[3] for rows in (*unsent.values(), *earlier.values()) for row in rows}
    known = addresses(c, servers)
    out: dict[int, tuple[int, tuple[StoredNotification, ...]]] = {}
    for ref, rows in unsent.items():
        chosen = [_stored(row, known, sent=False) for row in rows[:MAX_ENTRIES]]
        if (before := earlier.get(ref)) and (left := MAX_ENTRIES - len(chosen)) > 0:
            chosen = sorted([*(_stored(row, known, sent=True) for row in before[-left:]), *chosen], key=_seq)
        out[ref] = len(rows), tuple(chosen)
    return out


def _unsent(c: sqlite3.Connection, refs: Sequence[int], oldest: int) -> _Rows:
    """Up to MAX_ENTRIES + 1 of each token; those over their time to live are given up here."""
    parameters = {"refs": json.dumps(refs), "limit": MAX_ENTRIES + 1, "oldest": oldest}
    while True:
        rows = _json(c, _UNSENT, parameters)
        if all(row[5] > oldest for row in rows):
            return rows
        c.execute(
            "UPDATE notifications SET sent = 1 WHERE sent = 0 AND received_at <= :oldest"
            " AND token IN (SELECT value FROM json_each(:refs))",
            parameters,
        )


def _by_token(rows: _Rows) -> dict[int, _Rows]:
    """Rows of `_NOTIFICATIONS`, those of a token by growing seq."""
    out: defaultdict[int, _Rows] = defaultdict(list)
    for row in rows:
        out[row[0]].append(row)
    for of_token in out.values():
        if len(of_token) > 1:
            of_token.sort(key=lambda row: row[2])
    return out


def _stored(row: list[Any], addresses: Mapping[int, ServerAddress], *, sent: bool) -> StoredNotification:
    _, subscription, seq, server, notifier_id, received_at, nonce, meta = row
    fromhex = bytes.fromhex
    notification = Notification(fromhex(notifier_id), received_at, fromhex(nonce), fromhex(meta))
    return StoredNotification(subscription, seq, sent, addresses[server], notification)


def _seq(n: StoredNotification) -> int:
    return n.seq


# --- what came of it


def record(c: sqlite3.Connection, outcomes: Iterable[Outcome]) -> None:
    """See `Store.record`."""
    verified, checked, sent, dead = [], [], [], []
    for o in outcomes:
        push = o.push
        if isinstance(o, DeadToken):
            dead.append((push.token, push.registration, o.reason))
        elif push.kind is PushKind.VERIFICATION:
            verified.append((push.token, push.registration))
        elif push.kind is PushKind.CHECK:
            checked.append((push.token, push.registration, o.at))
        else:
            sent += [(n.subscription, n.seq) for n in o.notifications if not n.sent]
    for rows, update in ((sent, _SENT), (verified, _VERIFIED), (checked, _CHECKED), (dead, _DEAD)):
        if rows:
            c.execute(update, (json.dumps(rows),))


# A newer notification of the same queue has another seq, and stays unsent; a token that was registered anew or replaced
# meanwhile has another registration.
_SENT: Final = (
    "UPDATE notifications SET sent = 1 FROM json_each(?) o"
    " WHERE subscription = json_extract(o.value, '$[0]') AND seq = json_extract(o.value, '$[1]') AND sent = 0"
)
_VERIFIED: Final = (
    "UPDATE tokens SET verification_due = NULL, status = iif(status = 'REGISTERED', 'CONFIRMED', status)"
    f" FROM json_each(?) o {_SAME_REGISTRATION}"
)
_CHECKED: Final = (
    "UPDATE tokens SET check_due = NULL, period_at = json_extract(o.value, '$[2]')"
    f" FROM json_each(?) o {_SAME_REGISTRATION}"
)
_DEAD: Final = (
    "UPDATE tokens SET status = 'INVALID', reason = json_extract(o.value, '$[2]'), verification_due = NULL,"
    f" check_due = NULL FROM json_each(?) o {_SAME_REGISTRATION}"
)
