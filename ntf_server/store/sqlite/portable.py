"""A database as a whole, for `ntf-server migrate`: read into records that are no engine's, and made from them.

Run while no relay uses it: a slice at a time, each a transaction.
"""

import asyncio
import json
import sqlite3
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from ntf_server.store.clock import Clock, boot_id
from ntf_server.store.contract import StoreConflictError, StoreError
from ntf_server.store.portable import (
    Mark,
    Moved,
    MovedNotification,
    MovedQueue,
    MovedServer,
    MovedToken,
    Servers,
    Slice,
    due_at,
    fitting,
    origin_of,
    read_mark,
)
from ntf_server.store.sealing import (
    CLIENT_DH,
    CODE,
    DEVICE_TOKEN,
    NOTIFIER_KEY,
    SECRET,
    SERVER_DH,
    SERVER_PRIVATE,
    SERVICE_KEY,
    MasterKey,
    Sealer,
    SealingError,
)
from ntf_server.store.sqlite import statistics
from ntf_server.store.sqlite.database import translate
from ntf_server.store.sqlite.due import step_meanwhile
from ntf_server.store.sqlite.file import FILLING, MARK, DatabaseFile
from ntf_server.store.sqlite.keys import load_key, prepare
from ntf_server.store.sqlite.queues import find_server
from ntf_server.store.sqlite.rows import lane_of, server_address
from ntf_server.store.sqlite.schema import migrations
from ntf_server.store.statistics import Counts
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

T = TypeVar("T")

_SERVERS: Final = 500  # at once
_MAX_SEQ: Final = 0xFFFF_FFFF

_TOKENS: Final = (
    "SELECT t.*, d.due_at, d.attempts, d.push_id, d.pushed_at, d.ended, d.reason AS ended_reason, d.delivered_at,"
    " iif(d.due_at IS NULL, (SELECT min(received_at) FROM notifications n WHERE n.token = t.ref AND n.sent = 0), NULL)"
    " AS unsent FROM tokens t LEFT JOIN deliveries d ON d.token = t.ref WHERE t.ref > ? ORDER BY t.ref LIMIT ?"
)
_QUEUES: Final = (
    "SELECT s.*, v.address, s.association > 0 AND s.association = v.generation AND s.status IN ('NEW', 'PENDING',"
    " 'ACTIVE') AS associated, n.seq, n.received_at, n.nonce, n.meta, n.sent FROM json_each(?) j"
    " CROSS JOIN subscriptions s ON s.token = j.value LEFT JOIN servers v ON v.ref = s.server"
    " LEFT JOIN notifications n ON n.subscription = s.ref ORDER BY s.ref"
)
_RUBBISH: Final = (SealingError, ValueError, TypeError, AttributeError)  # of a record that cannot be read


class PortableDatabase:
    """Implements `portable.Portable`."""

    def __init__(self, file: DatabaseFile, sealer: Sealer) -> None:
        self.name: Final = str(file.path)
        self.identity: Final = sealer.lookup("identity", b"").hex()[:16]
        self._file = file
        self._sealer = sealer
        # Times were written before the clock was set: they are behind it by that.
        self.ahead = -step_meanwhile(file.connection, Clock(boot=boot_id()))
        file.connection.row_factory = sqlite3.Row

    @classmethod
    def open(cls, path: Path, master: MasterKey, *, make: bool) -> Self:
        """Lock it, and bring it up to date; `make`: or make it. Raises StoreError, StoreUnavailableError (a relay uses
        it), StoreCorruptError.
        """
        if not make and not path.exists():
            raise StoreError(f"{path}: there is no database; give the path of an existing one")
        file = DatabaseFile.open(path, migrations(master), prepare(master), filling=make)
        try:
            return cls(file, Sealer(load_key(file.connection, master)))
        except BaseException:
            file.connection.close()
            file.release()
            raise

    async def close(self) -> None:
        """See `Portable`."""
        self._file.connection.close()
        self._file.release()

    def _all(self, query: str, *parameters: Any) -> list[sqlite3.Row]:
        try:
            return self._file.connection.execute(query, parameters).fetchall()
        except sqlite3.Error as e:
            raise translate(self._file.path, e) from e

    def _one(self, query: str, *parameters: Any) -> sqlite3.Row | None:
        return next(iter(self._all(query, *parameters)), None)

    def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._file.connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                done = operation(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as e:
            raise translate(self._file.path, e) from e
        return done

    # --- whose it is

    async def tokens(self) -> int:
        """See `Portable`."""
        [row] = self._all("SELECT count(*) AS n FROM tokens")
        return int(row["n"])

    async def is_empty(self) -> bool:
        """See `Portable`."""
        return self._one("SELECT 1 FROM tokens UNION ALL SELECT 1 FROM servers LIMIT 1") is None

    async def check_idle(self) -> None:
        """See `Portable`: the lock is ours."""

    async def mark(self) -> Mark | None:
        """See `Portable`."""
        if self._one(FILLING, "table", MARK) is None:
            return None
        row = self._one(f"SELECT mark FROM {MARK}")
        return read_mark(self.name, row["mark"] if row else b"")

    async def begin(self, mark: Mark) -> None:
        """See `Portable`."""
        if not await self.is_empty():
            raise StoreConflictError(
                f"{self.name}: has registrations or servers already, a whole store; give a file that is not there"
            )

        def operation(c: sqlite3.Connection) -> None:
            c.execute(f"CREATE TABLE {MARK} (ref INTEGER PRIMARY KEY CHECK (ref = 1), mark BLOB NOT NULL) STRICT")
            _keep(c, mark)

        self._write(operation)

    async def take_over(self) -> None:
        """See `Portable`: the lock is ours."""

    async def statistics(self) -> Mapping[str, Counts]:
        """See `Portable`."""
        return statistics.every(self._file.connection)

    async def write_statistics(self, rows: Mapping[str, Counts]) -> None:
        """See `Portable`."""

        def operation(c: sqlite3.Connection) -> None:
            for row, counts in rows.items():
                statistics.put(c, row, counts)

        self._write(operation)

    async def end(self, newest: int) -> None:
        """See `Portable`. When it is opened, what devices did last is known by their registrations."""
        self._write(lambda c: c.execute(f"DROP TABLE {MARK}"))

    # --- reading

    async def servers(self) -> AsyncIterator[Servers]:
        """See `Portable`."""
        after = 0
        while rows := self._all("SELECT * FROM servers WHERE ref > ? ORDER BY ref LIMIT ?", after, _SERVERS):
            moved, left_out = [], Tally[str]()
            for row in rows:
                try:
                    moved.append(self._server(row, left_out))
                except _RUBBISH:
                    left_out["servers"] += 1
            yield Servers(moved, left_out)
            after = rows[-1]["ref"]

    def _server(self, row: sqlite3.Row, left_out: Tally[str]) -> MovedServer:
        server_address(row["address"])
        chain, key = row["certificate"] or b"", b""
        if chain:
            try:
                key = self._sealer.open(row["certificate_key"] or b"", SERVICE_KEY + row["address"])
            except SealingError:
                chain = b""
                left_out["certificates"] += 1
        return MovedServer(
            row["address"],
            row["service_id"],
            row["assoc_count"],
            row["assoc_xor"],
            row["released"],
            row["released_xor"],
            row["prefixes"],
            self._read_time(row["proven"]),
            self._read_time(row["tried_since"]),
            self._read_time(row["unused_since"]),
            chain,
            key,
        )

    async def read(self, after: bytes, limit: int) -> Slice:
        """See `Portable`."""
        return await asyncio.to_thread(self._slice, after, limit)

    def _slice(self, after: bytes, limit: int) -> Slice:
        found = self._all(_TOKENS, int.from_bytes(after), limit)
        rows = found[: fitting([row["subscriptions"] for row in found])]
        by_token: defaultdict[int, list[sqlite3.Row]] = defaultdict(list)
        for queue in self._all(_QUEUES, json.dumps([row["ref"] for row in rows])):
            by_token[queue["token"]].append(queue)
        left_out: Tally[str] = Tally()
        moved = []
        for row in rows:
            of_token = by_token[row["ref"]]
            try:
                token = self._token(row)
            except _RUBBISH:
                left_out["registrations"] += 1
                left_out["subscriptions"] += len(of_token)
                continue
            moved.append(Moved(token, tuple(self._readable(of_token, left_out))))
        more = len(found) == limit or len(rows) < len(found)
        return Slice(moved, rows[-1]["ref"].to_bytes(8) if more else None, left_out)

    def _token(self, row: sqlite3.Row) -> MovedToken:
        if row["damaged"] is not None:
            raise ValueError("it is set aside")
        token_id, private, open_ = row["token_id"], row["server_private"], self._sealer.open
        device_token = open_(row["device_token"], DEVICE_TOKEN + token_id)
        unsent = row["unsent"] and self._read_time(row["unsent"])
        known = None if row["due_at"] is None else row["due_at"] - self.ahead * 1000
        status, verification_due, check_due = (
            TokenStatus(row["status"]),
            *map(self._read_time, (row["verification_due"], row["check_due"])),
        )
        return MovedToken(
            token_id=token_id,
            provider=Provider(row["provider"]).value,
            device_token=device_token,
            verify_key=row["verify_key"],
            client_dh=b"" if private is not None else open_(row["client_dh"], CLIENT_DH + token_id),
            server_private=b"" if private is None else open_(private, SERVER_PRIVATE + token_id),
            server_dh=open_(row["server_dh"], SERVER_DH + token_id),
            secret=open_(row["secret"], SECRET + token_id),
            code=open_(row["code"], CODE + token_id),
            app=row["app"],
            vapid_key=row["vapid_key"],
            status=status.value,
            reason=InvalidReason(row["reason"]).value if row["reason"] else "",
            registration=row["registration"],
            registered_at=self._read_time(row["registered_at"]),
            active_at=self._read_time(row["active_at"]),
            proven=bool(row["proven"]),
            period=row["period"],
            period_at=self._read_time(row["period_at"]),
            verification_due=verification_due,
            check_due=check_due,
            due_ms=due_at(known, status, unsent, verification_due, check_due),
            attempts=row["attempts"] or 0,
            push_id=row["push_id"] or b"",
            pushed_at=self._read_time(row["pushed_at"]),
            ended=row["ended"] or "",
            ended_reason=row["ended_reason"] or "",
            delivered_at=self._read_time(row["delivered_at"]),
        )

    def _readable(self, rows: Sequence[sqlite3.Row], left_out: Tally[str]) -> list[MovedQueue]:
        out = []
        for row in rows:
            try:
                out.append(self._queue(row))
            except _RUBBISH:
                left_out["subscriptions"] += 1
        return out

    def _queue(self, row: sqlite3.Row) -> MovedQueue:
        if row["damaged"] is not None:
            raise ValueError("it is set aside")
        for address in (row["address"], row["spelling"] or row["address"]):
            server_address(address)
        notification = None
        if row["seq"] is not None:
            fence, number = divmod(row["seq"], _MAX_SEQ + 1)
            received_at = self._read_time(row["received_at"])
            notification = MovedNotification(fence, number, received_at, row["nonce"], row["meta"], row["sent"])
        return MovedQueue(
            server=row["address"],
            notifier_id=row["notifier_id"],
            subscription_id=row["subscription_id"],
            key=self._sealer.open(row["notifier_key"], NOTIFIER_KEY + row["subscription_id"]),
            spelling=row["spelling"] or b"",
            status=SubscriptionStatus(row["status"]).value,
            error=row["error"],
            associated=bool(row["associated"]),
            created_at=self._read_time(row["created_at"]),
            place=row["ref"],
            notification=notification,
        )

    def _read_time(self, kept: int | None) -> int:
        return kept - self.ahead if kept else 0

    def _time(self, at: int) -> int:
        return at + self.ahead if at else 0

    # --- writing

    async def write_servers(self, servers: Sequence[MovedServer]) -> None:
        """See `Portable`. An association holds while it is of the generation of its server: 1, until it changes."""
        rows = [
            {
                "address": s.address,
                "canonical": server_address(s.address).identity,
                "generation": 1,
                "service_id": s.service_id,
                "assoc_count": s.counted,
                "assoc_xor": s.counted_hash,
                "released": s.released,
                "released_xor": s.released_hash,
                "prefixes": s.prefixes,
                "proven": self._time(s.proven),
                "tried_since": self._time(s.tried_since),
                "unused_since": self._time(s.unused_since),
                "certificate": s.chain or None,
                "certificate_key": self._sealer.seal(s.key, SERVICE_KEY + s.address) if s.chain else None,
            }
            for s in servers
        ]
        self._write(lambda c: [_insert(c, "servers", row) for row in rows])

    async def write(self, moved: Sequence[Moved], mark: Mark) -> None:
        """See `Portable`. Its queues get new numbers, in the order in which they come."""

        def operation(c: sqlite3.Connection) -> None:
            servers: dict[bytes, int | None] = {}
            for one in moved:
                ref = self._write_token(c, one.token)
                for queue in one.queues if ref is not None else ():
                    if queue.server not in servers:
                        servers[queue.server] = find_server(c, server_address(queue.server))
                    self._write_queue(c, queue, ref, servers[queue.server])
            _keep(c, mark)

        await asyncio.to_thread(self._write, operation)

    def _write_token(self, c: sqlite3.Connection, t: MovedToken) -> int | None:
        seal, device = self._sealer.seal, DeviceToken(Provider(t.provider), t.device_token)
        lane = lane_of(self._sealer, device, origin_of(t.device_token))
        ref = _insert(
            c,
            "tokens",
            {
                "token_id": t.token_id,
                "provider": t.provider,
                "lane": lane,
                "app": t.app,
                "vapid_key": t.vapid_key,
                "device_lookup": self._sealer.lookup(t.provider, t.device_token),
                "device_token": seal(t.device_token, DEVICE_TOKEN + t.token_id),
                "verify_key": t.verify_key,
                "client_dh": seal(t.client_dh, CLIENT_DH + t.token_id),
                "server_private": seal(t.server_private, SERVER_PRIVATE + t.token_id) if t.server_private else None,
                "server_dh": seal(t.server_dh, SERVER_DH + t.token_id),
                "secret": seal(t.secret, SECRET + t.token_id),
                "code": seal(t.code, CODE + t.token_id),
                "status": t.status,
                "reason": t.reason or None,
                "period": t.period,
                "period_at": self._time(t.period_at),
                "registration": t.registration,
                "verification_due": self._time(t.verification_due) or None,
                "check_due": self._time(t.check_due) or None,
                "registered_at": self._time(t.registered_at),
                "created_at": self._time(t.registered_at),
                "active_at": self._time(t.active_at),
                "proven": t.proven,
            },
        )
        if ref is not None:
            delivery = {
                "token": ref,
                "lane": lane,
                "due_at": None if t.due_ms is None else t.due_ms + self.ahead * 1000,
                "attempts": t.attempts,
                "push_id": t.push_id or None,
                "pushed_at": self._time(t.pushed_at) or None,
                "ended": t.ended or None,
                "reason": t.ended_reason or None,
                "delivered_at": self._time(t.delivered_at) or None,
            }
            _insert(c, "deliveries", delivery)
        return ref

    def _write_queue(self, c: sqlite3.Connection, q: MovedQueue, token: int | None, server: int | None) -> None:
        row = {
            "subscription_id": q.subscription_id,
            "token": token,
            "server": server,
            "notifier_id": q.notifier_id,
            "notifier_key": self._sealer.seal(q.key, NOTIFIER_KEY + q.subscription_id),
            "status": q.status,
            "error": q.error,
            "created_at": self._time(q.created_at),
            "association": int(q.associated),
            "spelling": q.spelling or None,
        }
        ref, n = _insert(c, "subscriptions", row), q.notification
        if ref is not None and n is not None:
            notification = {
                "subscription": ref,
                "token": token,
                "seq": (n.fence << 32) + n.number,
                "received_at": self._time(n.received_at),
                "nonce": n.nonce,
                "meta": n.meta,
                "sent": n.sent,
            }
            _insert(c, "notifications", notification)


def _insert(c: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> int | None:
    """Its number; None if there is one like it."""
    cursor = c.execute(f"INSERT OR IGNORE INTO {table} ({', '.join(row)}) VALUES (:{', :'.join(row)})", row)
    return cursor.lastrowid if cursor.rowcount else None


def _keep(c: sqlite3.Connection, mark: Mark) -> None:
    c.execute(f"INSERT OR REPLACE INTO {MARK} (ref, mark) VALUES (1, ?)", (msgspec.msgpack.encode(mark),))
