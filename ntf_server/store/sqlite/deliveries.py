"""Notifications in, claims out, and what came of them, in the SQLite store. Run inside a transaction.

Batches as in content.py, and for the same reason.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from ntf_server.store.contract import Places
from ntf_server.store.memory import Cooling, Held, State, provider_of
from ntf_server.store.records import Claim, Ended, Notification, Notified, Outcome, PushKind
from ntf_server.store.sqlite.content import SENT, expire, load, unhex_lane
from ntf_server.store.sqlite.due import WAITS_FOR_CODE, is_due, mark
from ntf_server.store.sqlite.rows import Rows, one_row
from smp_bridge.ntf import Provider, TokenStatus

_MAX_REASON: Final = 200  # characters of a provider's words that are kept
_MAX_EXPIRED: Final = 2000

# A block of notifications, of one size each, is one value of each column; row n of `i` takes the n-th part of it.
_EACH: Final = "WITH RECURSIVE i(n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM i WHERE n + 1 < :count)"
_QUEUE: Final = (
    "i CROSS JOIN subscriptions s ON s.server = :server AND s.notifier_id = substr(:ids, n * :id_size + 1, :id_size)"
)
_NOTIFY: Final = (
    f"{_EACH} INSERT INTO notifications (subscription, token, seq, received_at, nonce, meta, sent)"
    " SELECT s.ref, s.token, :first + n, :received_at,"
    # substr gives NULL for a part of nothing
    " coalesce(substr(:nonces, n * :nonce_size + 1, :nonce_size), x''),"
    f" coalesce(substr(:metas, n * :meta_size + 1, :meta_size), x''), 0 FROM {_QUEUE} WHERE true"
    " ON CONFLICT (subscription) DO UPDATE SET seq = excluded.seq, received_at = excluded.received_at,"
    " nonce = excluded.nonce, meta = excluded.meta, sent = 0 WHERE excluded.seq > seq"
)
_OWNERS: Final = (
    f"{_EACH} SELECT json_group_array(json_array(t.ref, hex(t.lane), t.status, d.due_at IS NOT NULL,"
    f" coalesce({WAITS_FOR_CODE}, 0), t.damaged IS NOT NULL, t.subscriptions))"
    f" FROM {_QUEUE} CROSS JOIN tokens t ON t.ref = s.token"
    " LEFT JOIN deliveries d ON d.token = t.ref"
)


# --- NMSG


def notify(
    c: sqlite3.Connection,
    s: State,
    server: int | None,
    notifications: Sequence[Notification],
    places: Mapping[Provider, Places],
) -> Notified:
    """See `Store.notify`. A token that has room and nobody before it is claimed without a word in the database."""
    if server is None:
        return Notified([], len(notifications))
    s.arrived += len(notifications)
    s.ripen()
    due: dict[int, str] = {}  # token to lane
    ahead: list[int] = []  # tokens that waited for their code's turn only
    known = 0
    for run in _runs(notifications):
        head = run[0]
        parameters = {
            "server": server,
            "at": s.now_ms,
            "count": len(run),
            "first": head.seq,
            "received_at": s.moved(head.received_at),
            "id_size": len(head.notifier_id),
            "nonce_size": len(head.nonce),
            "meta_size": len(head.meta),
            "ids": b"".join([n.notifier_id for n in run]),
            "nonces": b"".join([n.nonce for n in run]),
            "metas": b"".join([n.meta for n in run]),
        }
        owners: Rows = one_row(c, _OWNERS, parameters)
        if owners:
            c.execute(_NOTIFY, parameters)
        known += len(owners)
        for token, lane, status, has_row, waits_for_code, damaged, queues in owners:
            if status != TokenStatus.ACTIVE or token in due or damaged or s.touch(token):
                continue
            if has_row:
                ahead += [token] * waits_for_code
                continue
            if queues > 1 and s.is_crowded:  # what comes next may be for it too
                s.cool(token, Cooling(s.steady, unhex_lane(lane)[0], again=True))
            else:
                due[token] = lane
    if ahead:
        mark(c, s, ahead)
    claimed = _places_for(c, s, due, places) if due else []
    if len(claimed) < len(due):
        placed = set(claimed)
        mark(c, s, [token for token in due if token not in placed])
    return Notified(load(c, s, claimed), len(notifications) - known)


def _runs(notifications: Sequence[Notification]) -> Iterator[list[Notification]]:
    """Those that arrived together and are of one size each, as one batch takes them."""
    run: list[Notification] = []
    alike: tuple[int, int, int, int] | None = None
    for n in notifications:
        this = n.received_at, len(n.notifier_id), len(n.nonce), len(n.meta)
        if run and (this != alike or n.seq != run[-1].seq + 1):
            yield run
            run = []
        alike = this
        run.append(n)
    if run:
        yield run


def _places_for(
    c: sqlite3.Connection, s: State, due: Mapping[int, str], places: Mapping[Provider, Places]
) -> list[int]:
    """Which of these tokens may be handed out now: where there is room, and nothing older is due."""
    out: list[int] = []
    totals: dict[Provider, int] = {}
    rooms: dict[str, int] = {}
    for token, text in due.items():
        kept, lane = unhex_lane(text)
        offer = places.get(lane.provider)
        if offer is None:
            continue
        if text not in rooms:
            totals.setdefault(lane.provider, offer.total)
            rooms[text] = 0 if s.owes(kept) and is_due(c, s, kept) else offer.room(lane.origin)
        if rooms[text] > 0 and totals[lane.provider] > 0:
            rooms[text] -= 1
            totals[lane.provider] -= 1
            out.append(token)
    return out


# --- what came of it


# A newer notification of the same queue has another seq, and stays unsent; a token that was registered anew or replaced
# meanwhile has another registration.
_SENT: Final = (
    f"UPDATE notifications SET sent = {SENT} FROM json_each(:rows) o"  # an object: subscription to seq
    " WHERE subscription = CAST(o.key AS INTEGER) AND seq = o.value AND sent = 0"
)
_SAME_REGISTRATION: Final = "WHERE ref = json_extract(o.value, '$[0]') AND registration = json_extract(o.value, '$[1]')"
_VERIFIED: Final = (
    "UPDATE tokens SET verification_due = NULL, status = iif(status = 'REGISTERED', 'CONFIRMED', status)"
    f" FROM json_each(:rows) o {_SAME_REGISTRATION}"
)
_CHECKED: Final = f"UPDATE tokens SET check_due = NULL, period_at = :now FROM json_each(:rows) o {_SAME_REGISTRATION}"
_DEAD: Final = (
    "UPDATE tokens SET status = 'INVALID', reason = json_extract(o.value, '$[2]'), verification_due = NULL,"
    f" check_due = NULL FROM json_each(:rows) o {_SAME_REGISTRATION}"
)
# Most pushes end so, hence without a parse of JSON for each row. The n-th row's push id is the n-th part of one value.
_DELIVERED: Final = (
    "UPDATE deliveries SET due_at = NULL, attempts = 0, push_id = substr(:push_ids, o.key * 16 + 1, 16),"
    " pushed_at = :now, ended = 'delivered', reason = '', delivered_at = :now"
    " FROM json_each(:rows) o WHERE token = o.value"
)
# Push ids as above. A row: token, when it is due again, attempts, how the push ended, why.
_ENDED: Final = (
    "UPDATE deliveries SET due_at = json_extract(o.value, '$[1]'), attempts = json_extract(o.value, '$[2]'),"
    " push_id = substr(:push_ids, o.key * 16 + 1, 16), pushed_at = :now, ended = json_extract(o.value, '$[3]'),"
    " reason = json_extract(o.value, '$[4]')"
    " FROM json_each(:rows) o WHERE token = json_extract(o.value, '$[0]')"
)
_UNTRIED: Final = (
    "UPDATE deliveries SET due_at = json_extract(o.value, '$[1]') FROM json_each(:rows) o"
    " WHERE token = json_extract(o.value, '$[0]')"
)


class _Batch(msgspec.Struct):
    """Rows for the statements above."""

    sent: dict[Any, int] = {}
    delivered: list[int] = []
    delivered_ids: list[bytes] = []
    verified: Rows = []
    checked: Rows = []
    dead: Rows = []
    untried: Rows = []
    ended: Rows = []
    ended_ids: list[bytes] = []
    over: list[int] = []
    stale: list[int] = []


def record(c: sqlite3.Connection, s: State, outcomes: Sequence[Outcome]) -> int:
    """See `Store.record`."""
    batch = _Batch()
    refused = 0
    for o in outcomes:
        token = cast("int", o.claim.token)
        held = s.claims.get(token)
        if held is None or held.claim is not o.claim:
            refused += 1
            continue
        s.claims.drop(token)
        if held.stale:
            refused += 1
            batch.stale.append(token)
        else:
            _sort(s, batch, token, held, o)
    _write(c, s, batch)
    return refused


def _sort(s: State, batch: _Batch, token: int, held: Held, o: Outcome) -> None:
    """Into the batch, and what memory has to know."""
    claim = o.claim
    due_at, attempts = None, 0
    match o.ended:
        case Ended.DELIVERED:
            if claim.kind is PushKind.MESSAGES:
                for entry in o.held:
                    if not entry.sent:
                        batch.sent[entry.subscription] = entry.seq
            elif claim.kind is PushKind.CHECK:
                batch.checked.append([token, claim.registration])
            else:
                batch.verified.append([token, claim.registration])
            batch.delivered.append(token)
            batch.delivered_ids.append(claim.push_id)
            s.pushed(token, held.lane, again=held.more or held.again or _left_out(claim, o))
            return
        case Ended.DEAD:
            batch.dead.append([token, claim.registration, o.dead])
        case Ended.EXPIRED:
            batch.over.append(token)
            s.pushed(token, held.lane, again=True)
        case Ended.AGAIN | Ended.OURS:
            due_at, attempts = _later(s, held, o.after), claim.attempts + 1
        case Ended.UNTRIED:
            batch.untried.append([token, _later(s, held, o.after)])
            return
    batch.ended.append([token, due_at, attempts, o.ended, o.reason[:_MAX_REASON]])
    batch.ended_ids.append(claim.push_id)


def _write(c: sqlite3.Connection, s: State, batch: _Batch) -> None:
    for rows, statement in (
        (batch.sent, _SENT),
        (batch.verified, _VERIFIED),
        (batch.dead, _DEAD),
        (batch.untried, _UNTRIED),
    ):
        if rows:
            c.execute(statement, {"rows": json.dumps(rows)})
    if batch.checked:
        c.execute(_CHECKED, {"rows": json.dumps(batch.checked), "now": s.now})
    for ended, push_ids, statement in (
        (batch.delivered, batch.delivered_ids, _DELIVERED),
        (batch.ended, batch.ended_ids, _ENDED),
    ):
        if ended:
            c.execute(statement, {"rows": json.dumps(ended), "push_ids": b"".join(push_ids), "now": s.now})
    if batch.over:
        _give_up(c, s, batch.over)
    if batch.stale:
        _register_anew(c, s, batch.stale)


def _left_out(claim: Claim, o: Outcome) -> bool:
    """Whether the push could not hold all that it was to hold."""
    held = o.held
    return held is not claim.entries and sum(not e.sent for e in claim.entries) > sum(not e.sent for e in held)


def _later(s: State, held: Held, after: float) -> int:
    """When it is due again, in milliseconds."""
    s.effects.due(provider_of(held.lane), max(0.0, after))
    if after <= 0:
        s.owe(held.lane)
    return s.now_ms + max(0, int(after * 1000))


def _give_up(c: sqlite3.Connection, s: State, tokens: Sequence[int]) -> None:
    """What of theirs is over its time to live; the rest is due."""
    expire(c, s, tokens, _MAX_EXPIRED)
    for what, oldest in (("verification", s.times.verification_ttl), ("check", s.times.message_ttl)):
        query = f"UPDATE tokens SET {what}_due = NULL WHERE {what}_due <= ? AND ref IN (SELECT value FROM json_each(?))"
        s.effects.expired[what] += c.execute(query, (s.now - oldest, json.dumps(tokens))).rowcount


def _register_anew(c: sqlite3.Connection, s: State, tokens: Sequence[int]) -> None:
    """What was pushed, or where to, is not what counts by now: of that nothing was tried."""
    c.execute(
        "UPDATE deliveries SET due_at = NULL, attempts = 0 WHERE token IN (SELECT value FROM json_each(?))",
        (json.dumps(tokens),),
    )
    mark(c, s, tokens)
