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
from ntf_server.store.schema import migrations
from ntf_server.store.sealing import MasterKey, Sealer
from ntf_server.store.sqlite_keys import CODE, DEVICE_TOKEN, NOTIFIER_KEY, load_key, prepare
from ntf_server.store.sqlite_pushes import load_push, record_dead, record_delivered
from ntf_server.store.sqlite_records import (
    SUBSCRIPTION_COLUMNS,
    TOKEN_COLUMNS,
    TOKEN_WIDTH,
    insert_token,
    server_address,
    subscription_record,
    token_record,
)
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider, SubscriptionStatus, TokenStatus

MESSAGE_TTL: Final = 24 * 3600
VERIFICATION_TTL: Final = 600

_WANTED: Final = "status IN ('NEW', 'PENDING', 'ACTIVE')"  # to the letter of the index subscriptions_server


class SqliteStore:
    """Implements `store.base.Store`."""

    def __init__(self, database: Database, sealer: Sealer, message_ttl: int, verification_ttl: int, seq: int) -> None:
        self._database = database
        self._sealer = sealer
        self._message_ttl = message_ttl
        self._verification_ttl = verification_ttl
        self._seq = seq

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        master_key: MasterKey,
        message_ttl: int = MESSAGE_TTL,
        verification_ttl: int = VERIFICATION_TTL,
        on_corrupt: Callable[[StoreCorruptError], None] = lambda _: None,
    ) -> Self:
        """Open or create a file; the times to live are in seconds. Raises StoreError, StoreCorruptError.

        `master_key` wraps the key that the file's values are sealed with. `on_corrupt` is called when the file turns
        out to be damaged later: the relay should stop.
        """
        database = Database.open(path, migrations(master_key), on_corrupt, prepare(master_key))
        try:
            sealer = Sealer(await database.run(lambda c: load_key(c, master_key)))
            [seq] = await database.run(
                lambda c: c.execute("SELECT coalesce(max(seq), 0) FROM notifications").fetchone()
            )
        except BaseException:
            await database.close()
            raise
        return cls(database, sealer, message_ttl, verification_ttl, seq)

    async def close(self) -> None:
        """Finish what was asked and close the file."""
        await self._database.close()

    # --- tokens

    async def register_token(self, new: NewToken, now: int) -> Token | None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> Token | None:
            known = c.execute(
                f"SELECT {TOKEN_COLUMNS} FROM tokens t WHERE device_lookup = ? AND verify_key = ?",
                (self._lookup(new.device), new.verify_key),
            ).fetchone()
            if known is None:
                ref = insert_token(c, self._sealer, new, now)
            else:
                token = token_record(known, self._sealer)
                if token.client_dh != new.client_dh:
                    return None
                ref = token.ref
                status = token.status if token.status in ALIVE else TokenStatus.REGISTERED
                c.execute(
                    "UPDATE tokens SET status = ?, reason = NULL, registration = registration + 1,"
                    " verification_due = ?, registered_at = ? WHERE ref = ?",
                    (status, now, now, ref),
                )
            return token_record(
                c.execute(f"SELECT {TOKEN_COLUMNS} FROM tokens t WHERE ref = ?", (ref,)).fetchone(), self._sealer
            )

        return await self._database.run(operation)

    async def find_token(self, token_id: bytes) -> Token | None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> Token | None:
            row = c.execute(f"SELECT {TOKEN_COLUMNS} FROM tokens t WHERE token_id = ?", (token_id,)).fetchone()
            return token_record(row, self._sealer) if row else None

        return await self._database.run(operation)

    async def verify_token(self, ref: int, code: bytes) -> list[Due] | None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> list[Due] | None:
            row = c.execute(f"SELECT {TOKEN_COLUMNS} FROM tokens t WHERE ref = ?", (ref,)).fetchone()
            token = token_record(row, self._sealer) if row else None
            if token is None or token.status not in ALIVE or not hmac.compare_digest(token.code, code):
                return None
            device = token.device
            c.execute("UPDATE tokens SET status = 'ACTIVE', verification_due = NULL WHERE ref = ?", (ref,))
            c.execute("DELETE FROM tokens WHERE device_lookup = ? AND ref <> ?", (self._lookup(device), ref))
            unsent = c.execute("SELECT 1 FROM notifications WHERE token = ? AND sent = 0 LIMIT 1", (ref,)).fetchone()
            return [Due(ref, device.provider, PushKind.MESSAGES)] if unsent else []

        return await self._database.run(operation)

    async def replace_token(self, ref: int, device: DeviceToken, code: bytes, now: int) -> bool:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> bool:
            row = c.execute("SELECT token_id FROM tokens WHERE ref = ?", (ref,)).fetchone()
            if row is None:
                return False
            [token_id] = row
            sealed = (
                self._lookup(device),
                self._sealer.seal(device.token, DEVICE_TOKEN + token_id),
                self._sealer.seal(code, CODE + token_id),
            )
            c.execute(
                "UPDATE tokens SET provider = ?, device_lookup = ?, device_token = ?, code = ?, status = 'REGISTERED',"
                " reason = NULL, registration = registration + 1, verification_due = ?, registered_at = ?,"
                " check_due = NULL WHERE ref = ?",
                (device.provider, *sealed, now, now, ref),
            )
            return True

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
                ref, owner, subscription_id, sealed = known
                notifier_key = self._sealer.open(sealed, NOTIFIER_KEY + subscription_id)
                same = owner == token and hmac.compare_digest(notifier_key, new.notifier_key)
                return Added(ref, subscription_id, created=False) if same else None
            if c.execute("SELECT 1 FROM tokens WHERE ref = ?", (token,)).fetchone() is None:
                return None  # deleted since the command was authorized
            sealed = self._sealer.seal(new.notifier_key, NOTIFIER_KEY + new.subscription_id)
            cursor = c.execute(
                "INSERT INTO subscriptions (subscription_id, token, server, notifier_id, notifier_key, status,"
                " created_at) VALUES (?, ?, ?, ?, ?, 'NEW', ?)",
                (new.subscription_id, token, server, new.notifier_id, sealed, now),
            )
            assert cursor.lastrowid is not None
            return Added(cursor.lastrowid, new.subscription_id, created=True)

        return await self._database.run(operation)

    async def find_subscription(self, subscription_id: bytes) -> tuple[Token, Subscription] | None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> tuple[Token, Subscription] | None:
            row = c.execute(
                f"SELECT {TOKEN_COLUMNS}, {SUBSCRIPTION_COLUMNS} FROM subscriptions s JOIN tokens t ON t.ref = s.token"
                " JOIN servers v ON v.ref = s.server WHERE s.subscription_id = ?",
                (subscription_id,),
            ).fetchone()
            return (
                (token_record(row[:TOKEN_WIDTH], self._sealer), subscription_record(row[TOKEN_WIDTH:], self._sealer))
                if row
                else None
            )

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
            return [server_address(address) for (address,) in rows]

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
            rows = c.execute(
                f"SELECT ref, notifier_id, notifier_key, subscription_id FROM subscriptions"
                f" WHERE server = ? AND ref > ? AND {_WANTED} AND session <> ? ORDER BY ref LIMIT ?",
                (_server_ref(c, server), after, session, limit),
            )
            opened = self._sealer.open
            return [(ref, notifier, opened(key, NOTIFIER_KEY + id_)) for ref, notifier, key, id_ in rows]

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

    def arrival(self, count: int) -> int:
        """See `Store`."""
        first = self._seq + 1
        self._seq += count
        return first

    async def notify(
        self, server: ServerAddress, notifications: Sequence[Notification], first: int | None = None
    ) -> list[Due]:
        """See `Store`."""
        first = self.arrival(len(notifications)) if first is None else first

        def operation(c: sqlite3.Connection) -> list[Due]:
            ref = _server_ref(c, server)
            due: dict[int, Due] = {}
            for seq, n in enumerate(notifications, first):
                owner = c.execute(
                    "SELECT s.ref, t.ref, t.provider, t.status FROM subscriptions s JOIN tokens t ON t.ref = s.token"
                    " WHERE s.server = ? AND s.notifier_id = ?",
                    (ref, n.notifier_id),
                ).fetchone()
                if owner is None:
                    continue
                subscription, token, provider, status = owner
                c.execute(
                    "INSERT INTO notifications (subscription, token, seq, received_at, nonce, meta, sent)"
                    " VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (subscription) DO UPDATE SET seq = excluded.seq,"
                    " received_at = excluded.received_at, nonce = excluded.nonce, meta = excluded.meta, sent = 0"
                    " WHERE excluded.seq > seq",
                    (subscription, token, seq, n.received_at, n.nonce, n.meta),
                )
                if status == TokenStatus.ACTIVE:
                    due[token] = Due(token, Provider(provider), PushKind.MESSAGES)
            return list(due.values())

        return await self._database.run(operation)

    async def all_due(self, provider: Provider | None = None, limit: int = -1) -> list[Due]:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> list[Due]:
            rows = c.execute(
                "SELECT ref, provider, iif(verification_due IS NULL, 2, 0) FROM tokens"
                " WHERE (verification_due IS NOT NULL OR check_due IS NOT NULL) AND provider = coalesce(?1, provider)"
                " UNION ALL SELECT DISTINCT n.token, t.provider, 1 FROM notifications n JOIN tokens t"
                " ON t.ref = n.token WHERE n.sent = 0 AND t.status = 'ACTIVE' AND t.provider = coalesce(?1, t.provider)"
                " LIMIT ?2",
                (provider, limit),
            )
            return [Due(ref, Provider(name), PushKind(kind)) for ref, name, kind in rows]

        return await self._database.run(operation)

    async def load_pushes(self, tokens: Sequence[int], now: int) -> list[Push]:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> list[Push]:
            ttl = {"message_ttl": self._message_ttl, "verification_ttl": self._verification_ttl}
            pushes = (load_push(c, self._sealer, ref, now, **ttl) for ref in tokens)
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

    def _lookup(self, device: DeviceToken) -> bytes:
        return self._sealer.lookup(device.provider, device.token)


def _server_ref(c: sqlite3.Connection, server: ServerAddress) -> int:
    address = server.encode()
    row = c.execute("SELECT ref FROM servers WHERE address = ?", (address,)).fetchone()
    if row is None:
        row = c.execute("INSERT INTO servers (address) VALUES (?) RETURNING ref", (address,)).fetchone()
    return int(row[0])
