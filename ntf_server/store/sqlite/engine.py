"""The embedded store: SQLite in WAL mode, synchronous=FULL, one writer thread with group commit."""

import hmac
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from ntf_server.store.records import (
    ALIVE,
    NO_LIMITS,
    Added,
    Confirmed,
    Due,
    LimitReached,
    Limits,
    NewSubscription,
    NewToken,
    Notification,
    Notified,
    Outcome,
    Position,
    Push,
    PushKind,
    ServiceCertificate,
    ServiceState,
    StoreCorruptError,
    Subscription,
    ToAudit,
    Token,
    Wanted,
)
from ntf_server.store.sealing import MasterKey, Sealer
from ntf_server.store.sqlite import deliveries as sqlite_pushes
from ntf_server.store.sqlite import sessions as sqlite_servers
from ntf_server.store.sqlite.database import Database
from ntf_server.store.sqlite.keys import CODE, DEVICE_TOKEN, NOTIFIER_KEY, load_key, prepare
from ntf_server.store.sqlite.rows import (
    SUBSCRIPTION_COLUMNS,
    TOKEN_COLUMNS,
    TOKEN_WIDTH,
    insert_token,
    subscription_record,
    token_record,
)
from ntf_server.store.sqlite.schema import migrations
from ntf_server.store.sqlite.sessions import Addresses, server_ref
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider, SubscriptionStatus, TokenStatus

MESSAGE_TTL: Final = 24 * 3600
VERIFICATION_TTL: Final = 600


class SqliteStore:
    """Implements `store.base.Store`."""

    def __init__(self, database: Database, sealer: Sealer, message_ttl: int, verification_ttl: int, seq: int) -> None:
        self._database = database
        self._sealer = sealer
        self._message_ttl = message_ttl
        self._verification_ttl = verification_ttl
        self._seq = seq
        self._addresses = Addresses()

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
                return insert_token(c, self._sealer, new, now)
            token = token_record(known, self._sealer)
            if token.client_dh != new.client_dh:
                return None
            status = token.status if token.status in ALIVE else TokenStatus.REGISTERED
            c.execute(
                "UPDATE tokens SET status = ?, reason = NULL, registration = registration + 1,"
                " verification_due = ?, registered_at = ? WHERE ref = ?",
                (status, now, now, token.ref),
            )
            return replace(token, status=status, reason=None)

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
            row = c.execute(
                "SELECT token_id, provider, device_lookup, code, status FROM tokens WHERE ref = ?", (ref,)
            ).fetchone()
            if row is None:
                return None
            token_id, provider, device_lookup, sealed, status = row
            if status not in ALIVE or not hmac.compare_digest(self._sealer.open(sealed, CODE + token_id), code):
                return None
            c.execute("UPDATE tokens SET status = 'ACTIVE', verification_due = NULL WHERE ref = ?", (ref,))
            c.execute("DELETE FROM tokens WHERE device_lookup = ? AND ref <> ?", (device_lookup, ref))
            unsent = c.execute("SELECT 1 FROM notifications WHERE token = ? AND sent = 0 LIMIT 1", (ref,)).fetchone()
            return [Due(ref, Provider(provider), PushKind.MESSAGES)] if unsent else []

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

    async def add_subscription(
        self, token: int, new: NewSubscription, now: int, limits: Limits = NO_LIMITS
    ) -> Added | LimitReached | None:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> Added | LimitReached | None:
            known = c.execute(
                "SELECT ref, token, subscription_id, notifier_key FROM subscriptions"
                " WHERE server = (SELECT ref FROM servers WHERE address = ?) AND notifier_id = ?",
                (new.server.encode(), new.notifier_id),
            ).fetchone()
            if known is not None:
                ref, owner, subscription_id, sealed = known
                notifier_key = self._sealer.open(sealed, NOTIFIER_KEY + subscription_id)
                # An older relay kept the key without its public half, which follows it now.
                same = owner == token and hmac.compare_digest(notifier_key, new.notifier_key[: len(notifier_key)])
                return Added(ref, subscription_id, created=False) if same else None
            owned = c.execute("SELECT subscriptions FROM tokens WHERE ref = ?", (token,)).fetchone()
            if owned is None:
                return None  # deleted since the command was authorized
            if limits.per_token and owned[0] >= limits.per_token:
                return LimitReached.TOKEN
            server = server_ref(c, new.server)  # not before: what is refused must not fill the table of servers
            if limits.per_server and _subscriptions_on(c, server) >= limits.per_server:
                return LimitReached.SERVER
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
        return await self._database.run(sqlite_servers.wanted_servers)

    async def is_wanted(self, server: ServerAddress) -> bool:
        """See `Store`."""
        return await self._database.run(lambda c: sqlite_servers.is_wanted(c, server))

    async def page(self, server: ServerAddress, after: Position, below: int, limit: int) -> list[Wanted]:
        """See `Store`."""
        return await self._database.run(
            lambda c: sqlite_servers.page(c, self._sealer, server, after=after, below=below, limit=limit)
        )

    async def load_wanted(self, refs: Sequence[int]) -> list[Wanted]:
        """See `Store`."""
        return await self._database.run(lambda c: sqlite_servers.load_wanted(c, self._sealer, refs))

    async def confirm(self, results: Sequence[Confirmed]) -> None:
        """See `Store`."""
        await self._database.run(lambda c: sqlite_servers.confirm(c, results))

    async def end_subscriptions(
        self, server: ServerAddress, notifier_ids: Sequence[bytes], status: SubscriptionStatus
    ) -> int:
        """See `Store`."""
        return await self._database.run(lambda c: sqlite_servers.end(c, server, notifier_ids, status))

    async def subscription_count(self) -> int:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> int:
            [count] = c.execute("SELECT coalesce(sum(subscriptions), 0) FROM servers").fetchone()
            return int(count)

        return await self._database.run(operation)

    async def to_audit(self, after: int, limit: int, silent_since: int) -> list[ToAudit]:
        """See `Store`."""
        return await self._database.run(lambda c: sqlite_servers.to_audit(c, after, limit, silent_since))

    async def service_certificate(self, server: ServerAddress) -> ServiceCertificate | None:
        """See `Store`."""
        return await self._database.run(lambda c: sqlite_servers.certificate(c, self._sealer, server))

    async def set_service_certificate(self, server: ServerAddress, certificate: ServiceCertificate) -> None:
        """See `Store`."""
        await self._database.run(lambda c: sqlite_servers.set_certificate(c, self._sealer, server, certificate))

    async def begin_service(self, server: ServerAddress, service_id: bytes | None) -> ServiceState:
        """See `Store`."""
        return await self._database.run(lambda c: sqlite_servers.begin_service(c, server, service_id))

    async def service_state(self, server: ServerAddress) -> ServiceState:
        """See `Store`."""
        return await self._database.run(lambda c: sqlite_servers.service_state(c, server))

    async def reassociate(self, server: ServerAddress) -> ServiceState:
        """See `Store`."""
        return await self._database.run(lambda c: sqlite_servers.reassociate(c, server))

    async def set_released(self, server: ServerAddress, count: int) -> None:
        """See `Store`."""
        await self._database.run(lambda c: sqlite_servers.set_released(c, server, count))

    # --- notifications and pushes

    def arrival(self, count: int) -> int:
        """See `Store`."""
        first = self._seq + 1
        self._seq += count
        return first

    async def notify(
        self, server: ServerAddress, notifications: Sequence[Notification], first: int | None = None
    ) -> Notified:
        """See `Store`."""
        first = self.arrival(len(notifications)) if first is None else first

        return await self._database.run(
            lambda c: sqlite_pushes.notify(c, server_ref(c, server), notifications, first), patient=True
        )

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

        return await self._database.run(
            lambda c: sqlite_pushes.load_pushes(
                c,
                self._sealer,
                self._addresses,
                tokens,
                now,
                message_ttl=self._message_ttl,
                verification_ttl=self._verification_ttl,
            )
        )

    async def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        await self._database.run(lambda c: sqlite_pushes.record(c, outcomes), patient=True)

    async def _execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any]) -> None:
        def operation(c: sqlite3.Connection) -> None:
            c.execute(sql, parameters)

        await self._database.run(operation)

    def _lookup(self, device: DeviceToken) -> bytes:
        return self._sealer.lookup(device.provider, device.token)


def _subscriptions_on(c: sqlite3.Connection, server: int) -> int:
    [count] = c.execute("SELECT subscriptions FROM servers WHERE ref = ?", (server,)).fetchone()
    return int(count)
