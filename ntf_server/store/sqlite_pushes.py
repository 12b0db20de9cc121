"""Pushes in the SQLite store: what a token is to be sent, and what came of it. Run inside a transaction."""

import sqlite3
from typing import Any, Final

from ntf_server.store.base import MAX_ENTRIES, DeadToken, Delivered, Notification, Push, PushKind, StoredNotification
from ntf_server.store.sealing import Sealer
from ntf_server.store.sqlite_keys import CODE, DEVICE_TOKEN, SECRET
from ntf_server.store.sqlite_records import server_address
from smp_bridge.ntf import DeviceToken, Provider, TokenStatus

Held = tuple[StoredNotification, ...]

_NOTIFICATIONS: Final = (
    "SELECT n.subscription, n.seq, n.sent, v.address, s.notifier_id, n.received_at, n.nonce, n.meta"
    " FROM notifications n JOIN subscriptions s ON s.ref = n.subscription JOIN servers v ON v.ref = s.server"
)
_SAME_REGISTRATION: Final = "ref = ? AND registration = ?"


def _notification(row: tuple[Any, ...]) -> StoredNotification:
    subscription, seq, sent, address, notifier_id, received_at, nonce, meta = row
    notification = Notification(notifier_id, received_at, nonce, meta)
    return StoredNotification(subscription, seq, bool(sent), server_address(address), notification)


def load_push(
    c: sqlite3.Connection, sealer: Sealer, ref: int, now: int, *, message_ttl: int, verification_ttl: int
) -> Push | None:
    """What is to be pushed to the token `ref` now, if anything: a verification, else messages, else a check."""
    row = c.execute(
        "SELECT token_id, provider, device_token, secret, registration, registered_at, code, status,"
        " verification_due, check_due FROM tokens WHERE ref = ?",
        (ref,),
    ).fetchone()
    if row is None:
        return None
    token_id, provider, device_token, secret, registration, registered_at, code, status, *due = row
    verification_due, check_due = due

    def push(kind: PushKind, since: int, *, code: bytes = b"", held: Held = (), more: bool = False) -> Push:
        """Opens no more than what this push needs."""
        return Push(
            token=ref,
            registration=registration,
            device=DeviceToken(Provider(provider), sealer.open(device_token, DEVICE_TOKEN + token_id)),
            secret=sealer.open(secret, SECRET + token_id),
            kind=kind,
            since=since,
            code=code,
            notifications=held,
            more=more,
            registered_at=registered_at,
        )

    if verification_due is not None:
        if verification_due > now - verification_ttl:
            more = status == TokenStatus.ACTIVE  # messages or a check may wait behind it
            code = sealer.open(code, CODE + token_id)
            return push(PushKind.VERIFICATION, verification_due, code=code, more=more)
        c.execute("UPDATE tokens SET verification_due = NULL WHERE ref = ?", (ref,))
    if status != TokenStatus.ACTIVE:
        return None
    unsent = _unsent(c, ref, now - message_ttl)
    if unsent:
        chosen = unsent[:MAX_ENTRIES]
        room = MAX_ENTRIES - len(chosen)
        earlier = _sent_before(c, ref, room) if room else []
        ordered = sorted(earlier + chosen, key=lambda n: n.seq)
        more = len(unsent) > MAX_ENTRIES or check_due is not None
        return push(PushKind.MESSAGES, chosen[0].notification.received_at, held=tuple(ordered), more=more)
    return push(PushKind.CHECK, check_due) if check_due is not None else None


def _unsent(c: sqlite3.Connection, ref: int, oldest: int) -> list[StoredNotification]:
    """Up to MAX_ENTRIES + 1, oldest first; those over their time to live are given up here."""
    while True:
        rows = c.execute(
            f"{_NOTIFICATIONS} WHERE n.token = ? AND n.sent = 0 ORDER BY n.seq LIMIT ?", (ref, MAX_ENTRIES + 1)
        ).fetchall()
        found = [_notification(row) for row in rows]
        if not found or found[0].notification.received_at > oldest:
            return found
        c.execute("UPDATE notifications SET sent = 1 WHERE token = ? AND sent = 0 AND received_at <= ?", (ref, oldest))


def _sent_before(c: sqlite3.Connection, ref: int, count: int) -> list[StoredNotification]:
    """The newest that were sent already: they ride along, since providers coalesce and drop pushes."""
    rows = c.execute(f"{_NOTIFICATIONS} WHERE n.token = ? AND n.sent = 1 ORDER BY n.seq DESC LIMIT ?", (ref, count))
    return [_notification(row) for row in rows]


def record_delivered(c: sqlite3.Connection, outcome: Delivered) -> None:
    """The provider took it: what it held is sent, unless something newer replaced it."""
    push = outcome.push
    same = (push.token, push.registration)
    if push.kind is PushKind.VERIFICATION:
        c.execute(
            "UPDATE tokens SET verification_due = NULL, status = iif(status = 'REGISTERED', 'CONFIRMED', status)"
            f" WHERE {_SAME_REGISTRATION}",
            same,
        )
    elif push.kind is PushKind.CHECK:
        c.execute(f"UPDATE tokens SET check_due = NULL, period_at = ? WHERE {_SAME_REGISTRATION}", (outcome.at, *same))
    else:
        # A newer notification of the same queue has another seq, and stays unsent.
        c.executemany(
            "UPDATE notifications SET sent = 1 WHERE subscription = ? AND seq = ? AND sent = 0",
            [(n.subscription, n.seq) for n in outcome.notifications if not n.sent],
        )


def record_dead(c: sqlite3.Connection, outcome: DeadToken) -> None:
    """INVALID with its reason, unless the token was registered anew or replaced meanwhile."""
    push = outcome.push
    c.execute(
        "UPDATE tokens SET status = 'INVALID', reason = ?, verification_due = NULL, check_due = NULL"
        f" WHERE {_SAME_REGISTRATION}",
        (outcome.reason, push.token, push.registration),
    )
