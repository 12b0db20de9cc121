"""Registrations in the SQLite store. Run inside a transaction."""

import hmac
import json
import math
import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from ntf_server.store.clients import KeptClient, is_same_client
from ntf_server.store.memory import State
from ntf_server.store.records import ALIVE, Cursor, Device, LastPush, NewToken, Registered, Replacement, Token
from ntf_server.store.sealing import CODE, DEVICE_TOKEN, SERVER_DH, Sealer, SealingError, fingerprint
from ntf_server.store.sqlite.due import due_now, due_when_free
from ntf_server.store.sqlite.queues import clear_slice
from ntf_server.store.sqlite.rows import (
    TOKEN_COLUMNS,
    TOKEN_WIDTH,
    DamagedRowError,
    insert_token,
    lane_of,
    one_row,
    token_record,
)
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, TokenStatus

_AT_ONCE: Final = 500  # subscriptions that a deletion clears itself


def register(c: sqlite3.Connection, s: State, new: NewToken, wait: float) -> Registered | None:
    """See `Store.register`. What cannot be read is made anew."""
    lane = lane_of(s.sealer, new.device, new.origin)
    known = c.execute(
        f"SELECT {TOKEN_COLUMNS}, t.device_token, t.server_dh, t.client_dh, t.secret, t.server_private FROM tokens t"
        " WHERE device_lookup = ? AND verify_key = ?",
        (s.sealer.lookup(new.device.provider, new.device.token), new.verify_key),
    ).fetchone()
    if known is not None:
        try:
            token = token_record(known[:TOKEN_WIDTH])
            device_token, server_dh, client_dh, secret, private = known[TOKEN_WIDTH:]
            s.sealer.open(device_token, DEVICE_TOKEN + token.token_id)  # or it could not be pushed to
            server_dh = s.sealer.open(server_dh, SERVER_DH + token.token_id)
            kept = KeptClient(client_dh, secret, private)
            same = is_same_client(s.sealer, token.token_id, kept, new.client_dh)
        except (DamagedRowError, SealingError):
            drop(c, s, known[0])
            known = None
        else:
            if not same:
                return None
            status = _revive(c, s, token, lane, _turn(s, wait))
            t = token
            return Registered(t.ref, t.token_id, t.verify_key, status, None, t.period, s.now, t.proven, server_dh)
    made = insert_token(c, s, new, lane, _turn(s, wait))
    due_now(c, s, _number(made.ref), lane)
    return made


def _turn(s: State, wait: float) -> int:
    """When a code is due: `content.load` gives it to nobody before."""
    return s.now + math.ceil(wait)


def _revive(c: sqlite3.Connection, s: State, token: Token, lane: bytes, due: int) -> TokenStatus:
    """A code that was due before, and is not out, is not put off: this adds no push."""
    status = token.status if token.status in ALIVE else TokenStatus.REGISTERED
    ref = _number(token.ref)
    c.execute(
        "UPDATE tokens SET status = :status, reason = NULL, registration = registration + 1, registered_at = :now,"
        " active_at = :now, verification_due = iif(:is_out OR verification_due IS NULL, :due,"
        " max(:now, min(verification_due, :due))) WHERE ref = :ref",
        {"status": status, "due": due, "now": s.now, "is_out": ref in s.claims, "ref": ref},
    )
    s.anew(ref)
    due_now(c, s, ref, lane)
    return status


def find(c: sqlite3.Connection, token_id: bytes) -> Token | None:
    """See `Store.find_token`."""
    row = c.execute(f"SELECT {TOKEN_COLUMNS} FROM tokens t WHERE token_id = ?", (token_id,)).fetchone()
    return token_record(row) if row else None


def find_registration(c: sqlite3.Connection, sealer: Sealer, device: DeviceToken, verify_key: bytes) -> Token | None:
    """See `Store.find_registration`."""
    row = c.execute(
        f"SELECT {TOKEN_COLUMNS} FROM tokens t WHERE device_lookup = ? AND verify_key = ? AND damaged IS NULL",
        (sealer.lookup(device.provider, device.token), verify_key),
    ).fetchone()
    return token_record(row) if row else None


def put_off(c: sqlite3.Connection, s: State, waits: Mapping[Any, float | None]) -> None:
    """See `Store.put_off`."""
    for ref, wait in waits.items():
        if wait is None:
            waiting = "SELECT 1 FROM tokens WHERE ref = ? AND verification_due > ? AND NOT proven"
            if c.execute(waiting, (ref, s.now)).fetchone():
                drop(c, s, ref)
            continue
        moved = "UPDATE tokens SET verification_due = ? WHERE ref = ? AND verification_due > ? RETURNING lane"
        if row := c.execute(moved, (_turn(s, wait), ref, s.now)).fetchone():
            due_now(c, s, ref, row[0])


def verify(c: sqlite3.Connection, s: State, ref: int, code: bytes) -> bool:
    """See `Store.verify`."""
    row = c.execute(
        "SELECT token_id, device_lookup, code, status, check_due FROM tokens WHERE ref = ? AND damaged IS NULL", (ref,)
    ).fetchone()
    if row is None:
        return False
    token_id, device_lookup, sealed, status, check_due = row
    try:
        right = hmac.compare_digest(s.sealer.open(sealed, CODE + token_id), code)
    except SealingError as e:
        raise DamagedRowError("tokens", ref) from e
    if status not in ALIVE or not right:
        return False
    query = "UPDATE tokens SET status = 'ACTIVE', proven = 1, verification_due = NULL, active_at = ? WHERE ref = ?"
    c.execute(query, (s.now, ref))
    others = c.execute("SELECT ref FROM tokens WHERE device_lookup = ? AND ref <> ?", (device_lookup, ref)).fetchall()
    for (other,) in others:
        drop(c, s, other)
    unsent = c.execute("SELECT 1 FROM notifications WHERE token = ? AND sent = 0 LIMIT 1", (ref,)).fetchone()
    if not s.is_taken(ref):  # a retry of the code is for nothing, nor is there a reason to wait for it
        c.execute("UPDATE deliveries SET due_at = NULL, attempts = 0 WHERE token = ?", (ref,))
    if unsent or check_due is not None:
        due_when_free(c, s, [ref])
    return True


def replace(c: sqlite3.Connection, s: State, ref: int, new: Replacement, wait: float) -> bool:
    """See `Store.replace`."""
    row = c.execute("SELECT token_id, verify_key FROM tokens WHERE ref = ? AND damaged IS NULL", (ref,)).fetchone()
    if row is None:
        return False
    token_id, verify_key = row
    lookup = s.sealer.lookup(new.device.provider, new.device.token)
    taken = "SELECT 1 FROM tokens WHERE device_lookup = ? AND verify_key = ? AND ref <> ?"
    if c.execute(taken, (lookup, verify_key, ref)).fetchone():
        return False
    lane = lane_of(s.sealer, new.device, new.origin)
    c.execute(
        "UPDATE tokens SET provider = :provider, lane = :lane, app = :app, vapid_key = :vapid_key,"
        " device_lookup = :lookup, device_token = :device_token, code = :code, status = 'REGISTERED', reason = NULL,"
        " registration = registration + 1, verification_due = :due, registered_at = :now, active_at = :now,"
        " check_due = NULL WHERE ref = :ref",
        {
            "provider": new.device.provider,
            "lane": lane,
            "app": new.app,
            "vapid_key": new.vapid_key,
            "lookup": lookup,
            "device_token": s.sealer.seal(new.device.token, DEVICE_TOKEN + token_id),
            "code": s.sealer.seal(new.code, CODE + token_id),
            "due": _turn(s, wait),
            "now": s.now,
            "ref": ref,
        },
    )
    c.execute("UPDATE deliveries SET lane = ?, delivered_at = NULL WHERE token = ?", (lane, ref))
    s.anew(ref)
    due_now(c, s, ref, lane)
    return True


def drop(c: sqlite3.Connection, s: State, ref: int) -> None:
    """Delete a token. Nobody finds it or what is its from now on; what is more than a little is cleared later."""
    row = c.execute("DELETE FROM tokens WHERE ref = ? RETURNING subscriptions", (ref,)).fetchone()
    if row is None:
        return
    c.execute("DELETE FROM deliveries WHERE token = ?", (ref,))
    s.forget(ref)
    if row[0]:
        c.execute("INSERT INTO gone (token, subscriptions) VALUES (?, ?)", (ref, row[0]))
        clear_slice(c, s, ref, _AT_ONCE)


def set_period(c: sqlite3.Connection, s: State, ref: int, minutes: int) -> None:
    """See `Store.set_period`. A period that begins in the future was set by a clock that was wrong."""
    c.execute(
        "UPDATE tokens SET period_at = CASE WHEN period = :minutes AND period_at <= :now THEN period_at ELSE :now END,"
        " check_due = CASE WHEN :minutes = 0 THEN NULL ELSE check_due END, period = :minutes WHERE ref = :ref",
        {"minutes": minutes, "now": s.now, "ref": ref},
    )


def set_vapid_key(c: sqlite3.Connection, ref: int, key_id: bytes) -> None:
    """See `Store.set_vapid_key`."""
    c.execute("UPDATE tokens SET vapid_key = ? WHERE ref = ?", (key_id, ref))


# To the letter of the indexes tokens_check and tokens_period. A period that begins in the future counts as over.
# Each token has a delay of its own, up to a tenth of its period and another one in each period; the number is a prime
# larger than any period has seconds in a tenth, so that neighbours get different ones.
_TO_CHECK: Final = (
    "SELECT json_group_array(ref) FROM (SELECT ref FROM tokens WHERE period > 0 AND status = 'ACTIVE'"
    " AND check_due IS NULL AND period_at + period * 60 <= :now"
    " AND period_at + period * 60 + (ref * 1000003 + period_at) % (period * 6) <= :now"
    " ORDER BY period_at + period * 60 LIMIT :limit)"
)
_FROM_THE_FUTURE: Final = (
    "SELECT json_group_array(ref) FROM (SELECT ref FROM tokens WHERE period > 0 AND period_at > :now"
    " AND status = 'ACTIVE' AND check_due IS NULL LIMIT :limit)"
)


_WOKEN: Final = (  # by a push since their period began
    "SELECT json_group_array(t.ref) FROM json_each(:refs) j CROSS JOIN tokens t ON t.ref = j.value"
    " CROSS JOIN deliveries d ON d.token = t.ref WHERE d.delivered_at <= :now"
    " AND d.delivered_at > max(t.period_at, :now - t.period * 60)"
)
_PUT_OFF: Final = (
    "UPDATE tokens SET period_at = (SELECT d.delivered_at FROM deliveries d WHERE d.token = tokens.ref)"
    " WHERE ref IN (SELECT value FROM json_each(:refs))"
)


def mark_checks(c: sqlite3.Connection, s: State, limit: int, quiet_only: bool) -> int:
    """See `Store.mark_checks`."""
    refs: list[int] = []
    for query in (_TO_CHECK, _FROM_THE_FUTURE):
        if limit > len(refs):
            refs += one_row(c, query, {"now": s.now, "limit": limit - len(refs)})
    seen = len(refs)
    if refs and quiet_only:
        woken: set[int] = set(one_row(c, _WOKEN, {"now": s.now, "refs": json.dumps(refs)}))
        c.execute(_PUT_OFF, {"refs": json.dumps(list(woken))})
        refs = [ref for ref in refs if ref not in woken]
    if refs:
        c.execute(
            "UPDATE tokens SET check_due = :now, period_at = min(period_at, :now)"
            " WHERE ref IN (SELECT value FROM json_each(:refs))",
            {"now": s.now, "refs": json.dumps(refs)},
        )
        due_when_free(c, s, refs)
    return seen


def invalidate(
    c: sqlite3.Connection, status: TokenStatus, reason: InvalidReason, after: Cursor | None, limit: int
) -> tuple[int, Cursor | None]:
    """See `Store.invalidate`. A claim that is held goes on: what comes of it changes no status."""
    query = "SELECT ref, status FROM tokens WHERE ref > ? ORDER BY ref LIMIT ?"
    rows = c.execute(query, (after or 0, limit)).fetchall()
    chosen = json.dumps([ref for ref, found in rows if found == status])
    c.execute(
        "UPDATE tokens SET status = 'INVALID', reason = ?, verification_due = NULL, check_due = NULL"
        " WHERE ref IN (SELECT value FROM json_each(?))",
        (reason, chosen),
    )
    c.execute(
        "UPDATE deliveries SET due_at = NULL, attempts = 0 WHERE token IN (SELECT value FROM json_each(?))", (chosen,)
    )
    return sum(found == status for _, found in rows), rows[-1][0] if len(rows) == limit else None


def last_push(c: sqlite3.Connection, ref: int) -> LastPush | None:
    """See `Store.last_push`."""
    row = c.execute(
        "SELECT push_id, pushed_at, ended, reason FROM deliveries WHERE token = ? AND ended IS NOT NULL", (ref,)
    ).fetchone()
    return LastPush(row[0], row[1], row[2], row[3] or "") if row else None


def device_of(c: sqlite3.Connection, ref: int) -> Device | None:
    """See `Store.device_of`."""
    row = c.execute("SELECT provider, device_lookup FROM tokens WHERE ref = ?", (ref,)).fetchone()
    return Device(Provider(row[0]), fingerprint(row[1])) if row else None


def _number(ref: Any) -> int:
    return int(ref)
