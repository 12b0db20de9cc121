"""The embedded engine: SQLite in WAL mode, synchronous=FULL, one writer thread with group commit, reads beside it.

A shell: what is done to the database stands in the modules by concern, and is handed to the writer or the reader here.
"""

import asyncio
import math
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Histogram, KindCounter
from ntf_server.store.changes import Changes, audits
from ntf_server.store.clock import Clock
from ntf_server.store.contract import (
    DamagedRecordError,
    Places,
    StoreConflictError,
    StoreCorruptError,
    StoreError,
)
from ntf_server.store.effects import Arrivals, give_back, tell
from ntf_server.store.memory import Effects, Seen, State, Times
from ntf_server.store.pulse import Pulse
from ntf_server.store.records import (
    NO_LIMITS,
    Added,
    Arrival,
    Backlog,
    Census,
    Change,
    Claim,
    Confirmed,
    Cursor,
    Device,
    LastPush,
    LimitReached,
    Limits,
    Lost,
    NewSubscription,
    NewToken,
    Notification,
    Notified,
    Outcome,
    Page,
    Ref,
    Registered,
    Replacement,
    ServiceCertificate,
    ServiceState,
    Session,
    Share,
    Space,
    Subscription,
    Taken,
    ToAudit,
    Token,
    Wanted,
)
from ntf_server.store.sealing import MasterKey, Sealer
from ntf_server.store.sqlite import census, deliveries, due, queues, sessions, standings, taking, tokens, upkeep
from ntf_server.store.sqlite.database import LINGER, LONG_LINGER, Database, Operation
from ntf_server.store.sqlite.file import DatabaseFile, opened
from ntf_server.store.sqlite.inspection import SqliteInspection
from ntf_server.store.sqlite.keys import load_key, prepare
from ntf_server.store.sqlite.migrations import migrate
from ntf_server.store.sqlite.rows import DamagedRowError, quarantine
from ntf_server.store.sqlite.schema import migrations
from ntf_server.store.sqlite.statistics import SqliteStatistics
from ntf_server.store.sqlite.turn import Turn
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus
from smp_bridge.places import Standing

T = TypeVar("T")


class SqliteStore:
    """Implements `store.contract.Store`; open it with `store.open.open_store`."""

    ledger: Final = None  # no other node may have the store

    def __init__(
        self,
        connection: sqlite3.Connection,
        state: State,
        file: DatabaseFile | None,
        metrics: Metrics,
        on_corrupt: Callable[[StoreCorruptError], None],
    ) -> None:
        self._state = state
        self._file = file
        self._metrics = metrics
        self._on_corrupt = on_corrupt
        self._on_due: Callable[[Provider, float], None] = lambda _provider, _seconds: None
        self._changes = Changes()
        self._arrivals = Arrivals()
        self._sweep = upkeep.Sweep()
        self._seen = Seen[int]()
        self.pulse: Final = Pulse()  # of what is written
        self.inspection: Final = SqliteInspection(self._read, state.clock.wall)
        self.statistics: Final = SqliteStatistics(self._read, self._write)
        self._given_back: set[asyncio.Task[None]] = set()
        self._database = Database(
            file.path if file else "memory",
            connection,
            connect=file.connect if file else None,
            turns=Turn(state, self._apply),
            on_error=self._on_error,
            on_commit=partial(metrics.observe, Histogram.STORE_COMMIT),
        )

    @classmethod
    async def open(
        cls,
        path: Path | sqlite3.Connection,
        *,
        master_key: MasterKey,
        times: Times | None = None,
        metrics: Metrics | None = None,
        on_corrupt: Callable[[StoreCorruptError], None] = lambda _: None,
        clock: Clock | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> Self:
        """Open or create a file; a connection (to `:memory:`) is used as it is, in this thread, and left open.

        `master_key` wraps the key that the values are sealed with. `on_corrupt` is called in the loop when the file
        turns out to be damaged or gone later: the relay should stop. `random` gives so many random bytes, for push ids.
        Raises StoreError, StoreUnavailableError (in use, no room), StoreCorruptError.
        """
        file: DatabaseFile | None = None
        if isinstance(path, sqlite3.Connection):
            connection = path
            migrate(connection, migrations(master_key), None)
            prepare(master_key)(connection)
        else:
            opening = partial(DatabaseFile.open, path, migrations(master_key), prepare(master_key))
            file = await opened(opening)
            connection = file.connection
        try:
            state = State(Sealer(load_key(connection, master_key)), times or Times(), clock or Clock(), random)
            [newest] = connection.execute("SELECT coalesce(max(seq), 0) FROM notifications").fetchone()
            state.fence = newest >> 32
            store = cls(connection, state, file, metrics or Metrics(), on_corrupt)
        except BaseException:
            if file is not None:
                connection.close()
                file.release()
            raise
        try:
            await store._database.run(lambda c: due.recover(c, state))
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """See `Store`."""
        await self._database.close()
        if self._file is not None:
            self._file.release()

    # --- the ways to the database

    async def _write(
        self, operation: Operation[T], *, linger: float = 0.0, lost: Callable[[T], None] | None = None
    ) -> T:
        try:
            return await self.pulse.watch(self._database.run(operation, linger=linger, lost=lost))
        except DamagedRowError as e:
            raise await self._set_aside(e) from e

    async def _read(self, operation: Operation[T]) -> T:
        try:
            return await self._database.read(operation)
        except DamagedRowError as e:
            raise await self._set_aside(e) from e

    async def _set_aside(self, damaged: DamagedRowError) -> DamagedRecordError:
        if not damaged.set_aside:
            await self._database.run(lambda c: quarantine(c, self._state, [damaged]))
        error = damaged.told()
        self._on_error(error)
        return error

    def _on_error(self, error: Exception) -> None:
        self._metrics.count_kind(KindCounter.STORE_ERRORS, getattr(error, "kind", StoreError.kind))
        if isinstance(error, StoreCorruptError):
            self._on_corrupt(error)

    def _apply(self, effects: Effects) -> None:
        """In the loop: what a transaction came to beside what was asked."""
        self._changes.tell(effects.changes)
        tell(effects, self._metrics, self._on_due)

    def _give_back(self, claims: Sequence[Claim]) -> None:
        """They were handed to somebody who is gone."""
        if not claims:
            return
        task = asyncio.get_running_loop().create_task(give_back(self.record, claims), name="claims given back")
        self._given_back.add(task)
        task.add_done_callback(self._given_back.discard)

    # --- tokens

    async def register(self, new: NewToken, wait: float = 0.0) -> Registered | None:
        """See `Store`."""
        return await self._write(lambda c: tokens.register(c, self._state, new, wait))

    async def find_registration(self, device: DeviceToken, verify_key: bytes) -> Token | None:
        """See `Store`."""
        return await self._read(lambda c: tokens.find_registration(c, self._state.sealer, device, verify_key))

    async def put_off(self, waits: Mapping[Ref, float | None]) -> None:
        """See `Store`."""
        await self._write(lambda c: tokens.put_off(c, self._state, waits))

    async def find_token(self, token_id: bytes) -> Token | None:
        """See `Store`."""
        return await self._read(lambda c: tokens.find(c, token_id))

    def seen(self, token: Token) -> None:
        """See `Store`."""
        self._seen.add(cast("int", token.ref), token.active_at, self._state.clock.wall())

    async def verify(self, token: Ref, code: bytes) -> bool:
        """See `Store`."""
        return await self._write(lambda c: tokens.verify(c, self._state, _number(token), code))

    async def replace(self, token: Ref, new: Replacement, wait: float = 0.0) -> bool:
        """See `Store`."""
        return await self._write(lambda c: tokens.replace(c, self._state, _number(token), new, wait))

    async def delete_token(self, token: Ref) -> None:
        """See `Store`."""
        await self._write(lambda c: tokens.drop(c, self._state, _number(token)))

    async def set_period(self, token: Ref, minutes: int) -> None:
        """See `Store`."""
        await self._write(lambda c: tokens.set_period(c, self._state, _number(token), minutes))

    async def set_vapid_key(self, token: Ref, key_id: bytes) -> None:
        """See `Store`."""
        await self._write(lambda c: tokens.set_vapid_key(c, _number(token), key_id))

    async def mark_checks(self, limit: int, *, quiet_only: bool = True) -> int:
        """See `Store`."""
        return await self._write(lambda c: tokens.mark_checks(c, self._state, limit, quiet_only))

    async def invalidate(
        self, status: TokenStatus, reason: InvalidReason, after: Cursor | None, limit: int
    ) -> tuple[int, Cursor | None]:
        """See `Store`."""
        return await self._write(lambda c: tokens.invalidate(c, status, reason, after, limit))

    async def census(self, after: Any, limit: int, *, everywhere: bool = False) -> tuple[Census, Cursor | None]:
        """See `Store`: there are no others."""
        return await self._read(lambda c: census.census(c, self._state, after, limit))

    async def last_push(self, token: Ref) -> LastPush | None:
        """See `Store`."""
        return await self._read(lambda c: tokens.last_push(c, _number(token)))

    async def device_of(self, token: Ref) -> Device | None:
        """See `Store`."""
        return await self._read(lambda c: tokens.device_of(c, _number(token)))

    def fingerprint(self, device: DeviceToken) -> str:
        """See `Store`."""
        return self._state.sealer.fingerprint(device.provider, device.token)

    # --- queues

    async def subscribe(
        self, token: Ref, new: NewSubscription, limits: Limits = NO_LIMITS
    ) -> Added | LimitReached | None:
        """See `Store`."""
        return await self._write(lambda c: queues.subscribe(c, self._state, _number(token), new, limits))

    async def find_subscription(self, subscription_id: bytes) -> tuple[Token, Subscription] | None:
        """See `Store`."""
        return await self._read(lambda c: queues.find(c, subscription_id))

    async def unsubscribe(self, subscription: Ref) -> None:
        """See `Store`."""
        await self._write(lambda c: queues.remove(c, self._state, [_number(subscription)]))

    async def subscription_count(self) -> int:
        """See `Store`."""
        return await self._read(queues.count)

    # --- deliveries

    def watch(self, on_due: Callable[[Provider, float], None]) -> None:
        """See `Store`."""
        self._on_due = on_due

    def arrive(self, session: Session, count: int) -> Arrival:
        """See `Store`."""
        return self._arrivals.stamp(session, count, self._state.clock.wall())

    async def notify(
        self, session: Session, notifications: Sequence[Notification], places: Mapping[Provider, Places]
    ) -> Notified:
        """See `Store`."""

        def operation(c: sqlite3.Connection) -> Notified:
            server = queues.find_server(c, session.server)
            return deliveries.notify(c, self._state, server, notifications, places)

        return await self._write(operation, linger=LINGER, lost=lambda notified: self._give_back(notified.claims))

    async def take(self, provider: Provider, places: Places) -> Taken:
        """See `Store`."""
        return await self._write(
            lambda c: taking.take(c, self._state, provider, places), lost=lambda taken: self._give_back(taken.claims)
        )

    async def record(self, outcomes: Sequence[Outcome]) -> int:
        """See `Store`."""
        return await self._write(lambda c: deliveries.record(c, self._state, outcomes), linger=LONG_LINGER)

    async def backlog(self, provider: Provider) -> Backlog:
        """See `Store`."""
        return await self._read(lambda c: taking.backlog(c, self._state, provider))

    # --- sessions

    async def servers(self) -> list[ServerAddress]:
        """See `Store`."""
        return await self._read(sessions.wanted_servers)

    async def is_wanted(self, server: ServerAddress) -> bool:
        """See `Store`."""
        return await self._read(lambda c: sessions.is_wanted(c, server))

    async def standing(self, server: ServerAddress) -> Standing | None:
        """See `Store`."""
        return await self._read(lambda c: standings.standing(c, server, self._state.clock.wall()))

    async def prove(self, session: Session, prefix: str) -> None:
        """See `Store`."""
        await self._write(lambda c: standings.prove(c, self._state, session, prefix))

    async def disprove(self, server: ServerAddress) -> None:
        """See `Store`."""
        await self._write(lambda c: standings.disprove(c, self._state, server))

    async def give_up(self, session: Session, error: str, limit: int) -> int:
        """See `Store`."""
        return await self._write(lambda c: standings.give_up(c, self._state, session, error=error, limit=limit))

    async def acquire(self, server: ServerAddress) -> Session | None:
        """See `Store`."""
        return await self._write(lambda c: sessions.acquire(c, self._state, server))

    @property
    def lease(self) -> float:
        """See `Store`."""
        return math.inf

    async def renew(self, sessions_: Sequence[Session]) -> list[Session]:
        """See `Store`."""
        fences = self._state.fences
        return [session for session in sessions_ if fences.get(session.server) != session.fence]

    async def release(self, session: Session) -> None:
        """See `Store`."""
        await self._write(lambda _: sessions.release(self._state, session))

    async def share(self, sessions_: Sequence[Session]) -> Share:
        """See `Store`: all of them."""
        held = {session.server for session in sessions_}
        return Share([server for server in await self.servers() if server not in held], [])

    async def leave(self) -> int:
        """See `Store`: there are no others."""
        return 0

    async def announce(self, session: Session, *, whole: bool) -> None:
        """See `Store`: there are no others."""

    def changes(self) -> AsyncIterator[Change]:
        """See `Store`."""
        return aiter(self._changes)

    async def begin(self, session: Session, service_id: bytes | None) -> ServiceState:
        """See `Store`."""
        return await self._write(lambda c: sessions.begin(c, self._state, session, service_id))

    async def service_state(self, session: Session) -> ServiceState:
        """See `Store`."""
        return await self._read(lambda c: sessions.service_state(c, self._state, session))

    async def reassociate(self, session: Session) -> ServiceState:
        """See `Store`."""
        return await self._write(lambda c: sessions.reassociate(c, self._state, session))

    async def set_released(self, session: Session, count: int, ids_hash: bytes | None = None) -> None:
        """See `Store`."""
        await self._write(lambda c: sessions.set_released(c, self._state, session, count, ids_hash))

    async def page(self, session: Session, after: Cursor | None, limit: int, *, associated: bool = False) -> Page:
        """See `Store`."""
        page, damaged = await self._read(
            lambda c: sessions.page(c, self._state, session, after, limit=limit, associated=associated)
        )
        await self._quarantine(damaged)
        return page

    async def load(self, session: Session, refs: Sequence[Ref]) -> list[Wanted]:
        """See `Store`."""
        wanted, damaged = await self._read(lambda c: sessions.load(c, self._state, session, [*map(_number, refs)]))
        await self._quarantine(damaged)
        return wanted

    async def _quarantine(self, damaged: Sequence[DamagedRowError]) -> None:
        if damaged:
            await self._write(lambda c: quarantine(c, self._state, damaged))

    async def confirm(self, session: Session, answers: Sequence[Confirmed]) -> None:
        """See `Store`."""
        await self._write(lambda c: sessions.confirm(c, self._state, session, answers))

    async def end(
        self, session: Session, notifier_ids: Sequence[bytes], status: SubscriptionStatus, number: int | None = None
    ) -> int:
        """See `Store`. What raised is not done, so nobody needs the number."""
        return await self._write(lambda c: sessions.end(c, self._state, session, notifier_ids, status))

    async def to_audit(
        self, after: Cursor | None, limit: int, silent_for: float
    ) -> tuple[list[ToAudit], Cursor | None]:
        """See `Store`."""
        since = self._state.clock.wall() - silent_for
        return await self._read(lambda c: sessions.to_audit(c, after, limit, since))

    async def request_audit(self, subscriptions: Sequence[ToAudit]) -> None:
        """See `Store`."""
        self._changes.tell(audits(subscriptions))

    async def mark_lost(self, session: Session, after: Cursor | None, limit: int, within: float) -> Lost:
        """See `Store`."""
        return await self._write(
            lambda c: sessions.mark_lost(c, self._state, session, after, limit=limit, within=within)
        )

    async def service_certificate(
        self, server: ServerAddress, make: Callable[[], ServiceCertificate]
    ) -> ServiceCertificate:
        """See `Store`."""
        kept = await self._read(lambda c: sessions.certificate(c, self._state.sealer, server))
        if kept is not None:
            return kept
        new = make()
        return await self._write(lambda c: sessions.keep_certificate(c, self._state, server, new))

    # --- upkeep

    async def space(self) -> Space:
        """See `Store`."""
        return Space(0, None, None) if self._file is None else await asyncio.to_thread(self._file.space)

    async def tend(self) -> float:
        """See `Store`."""
        if self._file is not None and (trouble := upkeep.file_trouble(self._file)) is not None:
            self._on_error(trouble)
            raise trouble
        seen = self._seen.take()
        pause = await self._write(lambda c: upkeep.run_slice(c, self._state, self._sweep, seen))
        if self._file is None:
            return pause
        await asyncio.to_thread(upkeep.shorten_wal, self._file)
        return min(pause, upkeep.LOOK)


def _number(ref: Ref) -> int:
    """A ref of this engine is the row's number."""
    return cast("Any", ref) if isinstance(ref, int) else _foreign()


def _foreign() -> int:
    raise StoreConflictError("a ref of another engine")
