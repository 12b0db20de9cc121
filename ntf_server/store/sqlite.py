"""The embedded store: SQLite in WAL mode, synchronous=FULL, one writer thread with group commit."""

import hmac
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from ntf_server.store.base import (
    ALIVE,
    Added,
    Confirmed,
    Delivered,
    Due,
    NewSubscription,
    NewToken,
    Notification,
    Outcome,
    Push,
    PushKind,
    StoreCorruptError,
    Subscription,
    Token,
)
from ntf_server.store.database import Database
from ntf_server.store.schema import MIGRATIONS
from ntf_server.store.sqlite_pushes import load_push, record_dead, record_delivered
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import Reader
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

MESSAGE_TTL: Final = 24 * 3600
VERIFICATION_TTL: Final = 600

_TOKEN: Final = (
    "t.ref, t.token_id, t.provider, t.device_token, t.verify_key, t.client_dh, t.server_dh, t.secret, t.code,"
    " t.status, t.reason, t.period"
)
_SUBSCRIPTION: Final = (
    "s.ref, s.subscription_id, v.address, s.notifier_id, s.notifier_key, s.status, s.error, s.session"
)
_WANTED: Final = "status IN ('NEW', 'PENDING', 'ACTIVE')"  # to the letter of the index subscriptions_server
Row = tuple[Any, ...]


def _token(row: Row) -> Token:
    ref, token_id, provider, device_token, verify_key, client_dh, server_dh, secret, code, *rest = row
    status, reason, period = rest
    return Token(
        ref,
        token_id,
        DeviceToken(Provider(provider), device_token),
        verify_key,
        client_dh,
        server_dh,
        secret,
        code,
        TokenStatus(status),
        InvalidReason(reason) if reason else None,
        period,
    )


def _address(blob: bytes) -> ServerAddress:
    return ServerAddress.parse(Reader(blob), "smp")


def _subscription(row: Row) -> Subscription:
    ref, subscription_id, address, notifier_id, notifier_key, status, error, session = row
    return Subscription(
        ref,
        subscription_id,
        _address(address),
        notifier_id,
        notifier_key,
        SubscriptionStatus(status),
        error,
        session,
    )


class SqliteStore:
    """Implements `store.base.Store`."""

    def __init__(self, database: Database, message_ttl: int, verification_ttl: int, seq: int) -> None:
        self._database = database
        self._message_ttl = message_ttl
        self._verification_ttl = verification_ttl
        self._seq = seq

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        message_ttl: int = MESSAGE_TTL,
        verification_ttl: int = VERIFICATION_TTL,
        on_corrupt: Callable[[StoreCorruptError], None] = lambda _: None,
    ) -> Self:
        """Open or create a file; the times to live are in seconds. Raises StoreError, StoreCorruptError.

        `on_corrupt` is called when the file turns out to be damaged later: the relay should stop.
        """
        database = Database.open(path, MIGRATIONS, on_corrupt)
        try:
            [seq] = await database.run(
                lambda c: c.execute("SELECT coalesce(max(seq), 0) FROM notifications").fetchone()
            )
        except BaseException:
            await database.close()
            raise
        return cls(database, message_ttl, verification_ttl, seq)

    async def close(self) -> None:
        """Finish what was asked and close the file."""
        await self._database.close()

    # --- tokens

    async def register_token(self, new: NewToken, now: int) -> Token | None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> Token | None:
            device = new.device
            known = c.execute(
                f"SELECT {_TOKEN} FROM tokens t WHERE provider = ? AND device_token = ? AND verify_key = ?",
                (device.provider, device.token, new.verify_key),
            ).fetchone()
            if known is None:
                ref = _insert_token(c, new, now)
            else:
                token = _token(known)
                if token.client_dh != new.client_dh:
                    return None
                ref = token.ref
                status = token.status if token.status in ALIVE else TokenStatus.REGISTERED
                c.execute(
                    "UPDATE tokens SET status = ?, reason = NULL, registration = registration + 1,"
                    " verification_due = ? WHERE ref = ?",
                    (status, now, ref),
                )
            return _token(c.execute(f"SELECT {_TOKEN} FROM tokens t WHERE ref = ?", (ref,)).fetchone())

        return await self._database.run(operation)

    async def find_token(self, token_id: bytes) -> Token | None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> Token | None:
            row = c.execute(f"SELECT {_TOKEN} FROM tokens t WHERE token_id = ?", (token_id,)).fetchone()
            return _token(row) if row else None

        return await self._database.run(operation)

    async def verify_token(self, ref: int, code: bytes) -> list[Due] | None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> list[Due] | None:
            row = c.execute(f"SELECT {_TOKEN} FROM tokens t WHERE ref = ?", (ref,)).fetchone()
            token = _token(row) if row else None
            if token is None or token.status not in ALIVE or not hmac.compare_digest(token.code, code):
                return None
            device = token.device
            c.execute("UPDATE tokens SET status = 'ACTIVE', verification_due = NULL WHERE ref = ?", (ref,))
            c.execute(
                "DELETE FROM tokens WHERE provider = ? AND device_token = ? AND ref <> ?",
                (device.provider, device.token, ref),
            )
            unsent = c.execute("SELECT 1 FROM notifications WHERE token = ? AND sent = 0 LIMIT 1", (ref,)).fetchone()
            return [Due(ref, device.provider, PushKind.MESSAGES)] if unsent else []

        return await self._database.run(operation)

    async def replace_token(self, ref: int, device: DeviceToken, code: bytes, now: int) -> bool:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> bool:
            cursor = c.execute(
                "UPDATE tokens SET provider = ?, device_token = ?, code = ?, status = 'REGISTERED', reason = NULL,"
                " registration = registration + 1, verification_due = ?, check_due = NULL WHERE ref = ?",
                (device.provider, device.token, code, now, ref),
            )
            return cursor.rowcount > 0

        return await self._database.run(operation)

    async def delete_token(self, ref: int) -> None:
        """See `Store`."""
        await self._execute("DELETE FROM tokens WHERE ref = ?", (ref,))

    async def set_period(self, ref: int, minutes: int, now: int) -> None:
        """See `Store`."""
        await self._execute(
            "UPDATE tokens SET period_at = CASE WHEN period = :minutes THEN period_at ELSE :now END,"
            " check_due = CASE WHEN :minutes = 0 THEN NULL ELSE check_due END, period = :minutes WHERE ref = :ref",
            {"minutes": minutes, "now": now, "ref": ref},
        )

    async def due_checks(self, now: int) -> list[Due]:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> list[Due]:
            rows = c.execute(
                "UPDATE tokens SET check_due = :now WHERE period > 0 AND period_at + period * 60 <= :now"
                " AND status = 'ACTIVE' AND check_due IS NULL RETURNING ref, provider",
                {"now": now},
            ).fetchall()
            return [Due(ref, Provider(provider), PushKind.CHECK) for ref, provider in rows]

        return await self._database.run(operation)

    # --- subscriptions

    async def add_subscription(self, token: int, new: NewSubscription, now: int) -> Added | None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> Added | None:
            server = _server_ref(c, new.server)
            known = c.execute(
                "SELECT ref, token, subscription_id, notifier_key FROM subscriptions"
                " WHERE server = ? AND notifier_id = ?",
                (server, new.notifier_id),
            ).fetchone()
            if known is not None:
                ref, owner, subscription_id, notifier_key = known
                same = owner == token and hmac.compare_digest(notifier_key, new.notifier_key)
                return Added(ref, subscription_id, created=False) if same else None
            if c.execute("SELECT 1 FROM tokens WHERE ref = ?", (token,)).fetchone() is None:
                return None  # deleted since the command was authorized
            cursor = c.execute(
                "INSERT INTO subscriptions (subscription_id, token, server, notifier_id, notifier_key, status,"
                " created_at) VALUES (?, ?, ?, ?, ?, 'NEW', ?)",
                (new.subscription_id, token, server, new.notifier_id, new.notifier_key, now),
            )
            assert cursor.lastrowid is not None
            return Added(cursor.lastrowid, new.subscription_id, created=True)

        return await self._database.run(operation)

    async def find_subscription(self, subscription_id: bytes) -> tuple[Token, Subscription] | None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> tuple[Token, Subscription] | None:
            row = c.execute(
                f"SELECT {_TOKEN}, {_SUBSCRIPTION} FROM subscriptions s JOIN tokens t ON t.ref = s.token"
                " JOIN servers v ON v.ref = s.server WHERE s.subscription_id = ?",
                (subscription_id,),
            ).fetchone()
            return (_token(row[:12]), _subscription(row[12:])) if row else None

        return await self._database.run(operation)

    async def delete_subscription(self, ref: int) -> None:
        """See `Store`."""
        await self._execute("DELETE FROM subscriptions WHERE ref = ?", (ref,))

    # --- SMP servers

    async def servers(self) -> list[ServerAddress]:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> list[ServerAddress]:
            rows = c.execute(
                f"SELECT address FROM servers v WHERE EXISTS"
                f" (SELECT 1 FROM subscriptions WHERE server = v.ref AND {_WANTED})"
            )
            return [_address(address) for (address,) in rows]

        return await self._database.run(operation)

    async def is_wanted(self, server: ServerAddress) -> bool:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> bool:
            row = c.execute(
                f"SELECT 1 FROM subscriptions WHERE server = ? AND {_WANTED} LIMIT 1", (_server_ref(c, server),)
            ).fetchone()
            return row is not None

        return await self._database.run(operation)

    async def new_session(self, server: ServerAddress) -> int:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> int:
            [session] = c.execute(
                "UPDATE servers SET session = session + 1 WHERE ref = ? RETURNING session", (_server_ref(c, server),)
            ).fetchone()
            return int(session)

        return await self._database.run(operation)

    async def unconfirmed(
        self, server: ServerAddress, session: int, after: int, limit: int
    ) -> list[tuple[int, bytes, bytes]]:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> list[tuple[int, bytes, bytes]]:
            return c.execute(
                f"SELECT ref, notifier_id, notifier_key FROM subscriptions"
                f" WHERE server = ? AND ref > ? AND {_WANTED} AND session <> ? ORDER BY ref LIMIT ?",
                (_server_ref(c, server), after, session, limit),
            ).fetchall()

        return await self._database.run(operation)

    async def confirm(self, server: ServerAddress, session: int, results: Sequence[Confirmed]) -> None:
        """See `Store`."""
        rows = [(r.status, r.error, session, r.ref) for r in results]

        def operation(c: sqlite3.Connection) -> None:
            # An END that came with the answers must not be undone.
            c.executemany(
                f"UPDATE subscriptions SET status = ?, error = ?, session = ? WHERE ref = ? AND {_WANTED}", rows
            )

        await self._database.run(operation)

    async def end_subscriptions(
        self, server: ServerAddress, notifier_ids: Sequence[bytes], status: SubscriptionStatus
    ) -> None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> None:
            ref = _server_ref(c, server)
            c.executemany(
                "UPDATE subscriptions SET status = ? WHERE server = ? AND notifier_id = ?",
                [(status, ref, notifier_id) for notifier_id in notifier_ids],
            )

        await self._database.run(operation)

    # --- notifications and pushes

    async def notify(self, server: ServerAddress, notifications: Sequence[Notification]) -> list[Due]:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> list[Due]:
            ref = _server_ref(c, server)
            due: dict[int, Due] = {}
            for n in notifications:
                owner = c.execute(
                    "SELECT s.ref, t.ref, t.provider, t.status FROM subscriptions s JOIN tokens t ON t.ref = s.token"
                    " WHERE s.server = ? AND s.notifier_id = ?",
                    (ref, n.notifier_id),
                ).fetchone()
                if owner is None:
                    continue
                subscription, token, provider, status = owner
                self._seq += 1
                c.execute(
                    "INSERT OR REPLACE INTO notifications (subscription, token, seq, received_at, nonce, meta, sent)"
                    " VALUES (?, ?, ?, ?, ?, ?, 0)",
                    (subscription, token, self._seq, n.received_at, n.nonce, n.meta),
                )
                if status == TokenStatus.ACTIVE:
                    due[token] = Due(token, Provider(provider), PushKind.MESSAGES)
            return list(due.values())

        return await self._database.run(operation)

    async def all_due(self) -> list[Due]:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> list[Due]:
            rows = c.execute(
                "SELECT ref, provider, iif(verification_due IS NULL, 2, 0) FROM tokens"
                " WHERE verification_due IS NOT NULL OR check_due IS NOT NULL"
                " UNION ALL SELECT DISTINCT n.token, t.provider, 1 FROM notifications n JOIN tokens t"
                " ON t.ref = n.token WHERE n.sent = 0 AND t.status = 'ACTIVE'"
            )
            return [Due(ref, Provider(provider), PushKind(kind)) for ref, provider, kind in rows]

        return await self._database.run(operation)

    async def load_pushes(self, tokens: Sequence[int], now: int) -> list[Push]:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> list[Push]:
            ttl = {"message_ttl": self._message_ttl, "verification_ttl": self._verification_ttl}
            pushes = (load_push(c, ref, now, **ttl) for ref in tokens)
            return [p for p in pushes if p is not None]

        return await self._database.run(operation)

    async def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> None:
            for outcome in outcomes:
                if isinstance(outcome, Delivered):
                    record_delivered(c, outcome)
                else:
                    record_dead(c, outcome)

        await self._database.run(operation)

    async def _execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any]) -> None:
        def operation(c: sqlite3.Connection) -> None:
            c.execute(sql, parameters)

        await self._database.run(operation)


def _insert_token(c: sqlite3.Connection, new: NewToken, now: int) -> int:
    cursor = c.execute(
        "INSERT INTO tokens (token_id, provider, device_token, verify_key, client_dh, server_dh, secret, code,"
        " status, verification_due, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'REGISTERED', ?, ?)",
        (
            new.token_id,
            new.device.provider,
            new.device.token,
            new.verify_key,
            new.client_dh,
            new.server_dh,
            new.secret,
            new.code,
            now,
            now,
        ),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _server_ref(c: sqlite3.Connection, server: ServerAddress) -> int:
    address = server.encode()
    row = c.execute("SELECT ref FROM servers WHERE address = ?", (address,)).fetchone()
    if row is None:
        row = c.execute("INSERT INTO servers (address) VALUES (?) RETURNING ref", (address,)).fetchone()
    return int(row[0])
