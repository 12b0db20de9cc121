"""The shared engine: many nodes on one Redis (7.0 or newer) or Valkey, alone, behind Sentinels or as a cluster.

A shell: what is done stands in the modules by concern and their scripts. What crosses slots (SNEW's claim of a queue,
the uniqueness of TNEW and TRPL, TVFY's deletion of other registrations, TDEL) is steps of which each may be repeated.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

from ntf_server.observe.events import Event, EventLog
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter
from ntf_server.store.changes import Changes
from ntf_server.store.clock import Clock
from ntf_server.store.contract import (
    DamagedRecordError,
    FencedError,
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
from ntf_server.store.redis import census, deliveries, queues, sessions, standings, taking, tokens, upkeep
from ntf_server.store.redis import changes as stream
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.due import Due
from ntf_server.store.redis.inspection import RedisInspection
from ntf_server.store.redis.ledger import RedisLedger
from ntf_server.store.redis.names import SHARDS, Names
from ntf_server.store.redis.node import LEASE, Node, identity, unless_cancelled
from ntf_server.store.redis.rows import DamagedError, Queue
from ntf_server.store.redis.schema import identify, usual_buckets
from ntf_server.store.redis.statistics import RedisStatistics
from ntf_server.store.sealing import MasterKey, Sealer
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus
from smp_bridge.places import Standing

events = EventLog(__name__)

T = TypeVar("T")


class RedisStore:
    """Implements `store.contract.Store`; open it with `store.open.open_store`."""

    def __init__(self, node: Node, metrics: Metrics) -> None:
        self._node = node
        self._state = node.state
        self._metrics = metrics
        self._changes = Changes()
        self._arrivals = Arrivals()
        self._sweep = upkeep.Sweep()
        self._seen = Seen[bytes]()
        self.pulse: Final = Pulse(node.holding)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.ledger: Final = RedisLedger(node, self._do)
        self.inspection: Final = RedisInspection(node, self._do)
        self.statistics: Final = RedisStatistics(node.database, node.names, node.id.decode(), self._do)
        self._due = Due(node, self._spawn)
        node.made_due = self._due.ring
        upkeep.show(node, metrics)

    @classmethod
    async def open(
        cls,
        database: Database,
        *,
        master_key: MasterKey,
        times: Times | None = None,
        metrics: Metrics | None = None,
        on_corrupt: Callable[[StoreCorruptError], None] = lambda _: None,
        clock: Clock | None = None,
        random: Callable[[int], bytes] = os.urandom,
        shards: int = SHARDS,
        buckets: int | None = None,
        name: str = "",
    ) -> Self:
        """A node on this Redis, which it closes at the end. `clock` is a test's, `shards` and `buckets` those of a new
        store.

        `name`: the node's, which no other node has: what it held before a crash is its own again at once. Without one
        that is so after a lease. `on_corrupt` is called in the loop, once, when another store is there, or none.

        Raises StoreError, SealingError (another master key).
        """
        buckets = buckets or usual_buckets(database)
        names = Names(database.prefix, shards, buckets)
        found = await identify(database, names, master_key, shards, buckets)
        names = Names(database.prefix, found.shards, found.buckets)
        state = State(Sealer(found.key), times or Times(), clock or Clock(), random)
        node = Node(database, names, state, name.encode() or identity(random), found.store_id, manual=clock is not None)
        store = cls(node, metrics or Metrics())
        node.on_effects = store._apply

        def gone(error: StoreCorruptError) -> None:
            store._count_error(error)
            on_corrupt(error)

        node.on_corrupt = gone
        database.on_lost = store._doubt
        after = {key: await stream.newest(database, key) for key in (names.changes, names.bell)}
        await node.open()
        try:  # once more, now that others see that this node lives
            await identify(database, names, master_key, found.shards, found.buckets)
        except BaseException:
            with contextlib.suppress(StoreError, StoreCorruptError):
                await node.close()
            raise
        store._spawn(stream.follow(node, after, store._changes, store._due.hear), "changes")
        store._spawn(store._due.run(), "what is due")
        return store

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._closed:  # who takes this node's shards does it
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """See `Store`."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        if self._node.corrupt is None:
            with contextlib.suppress(StoreError, StoreCorruptError):
                await sessions.release_all(self._node)
                await self._node.close()
        await self._node.database.close()

    # --- the ways to the node

    async def _do(self, work: Callable[[], Awaitable[T]], lost: Callable[[T], None] | None = None) -> T:
        node = self._node

        async def done() -> T:
            await node.begin()
            try:
                return await work()
            except DamagedError as e:
                self._count_error(error := DamagedRecordError(str(e)))
                raise error from e
            except StoreError as e:
                self._count_error(e)
                if isinstance(e, FencedError):
                    node.doubt()
                raise
            finally:
                node.done()

        watched = self.pulse.watch(done())
        return await (unless_cancelled(watched, lost) if lost else watched)

    async def _handing(self, work: Awaitable[T]) -> T:
        with self._node.handed.under_way():
            return await work

    def _count_error(self, error: StoreError | StoreCorruptError) -> None:
        self._metrics.count_kind(KindCounter.STORE_ERRORS, error.kind)

    def _apply(self) -> None:
        """What an operation came to beside what was asked."""
        s = self._state
        if not s.effects:
            return
        effects, s.effects = s.effects, Effects()
        tell(effects, self._metrics, self._due.on_due)

    def _doubt(self) -> None:
        """What was written last may be lost: queues are to be subscribed again, and their devices to look. What came of
        pushes may be lost too: they are due again.
        """
        text = "Redis began anew, or another one is primary: what was written last may be lost, and is made good"
        events.tell(Event.STORE_DOUBTED, text)
        self._node.strand()
        self._spawn(stream.doubt(self._node, self._changes), "what may be lost")

    def _give_back(self, claims: Sequence[Claim]) -> None:
        """They were handed to somebody who is gone."""
        if claims:
            self._spawn(give_back(self.record, claims), "claims given back")

    # --- tokens

    async def register(self, new: NewToken, wait: float = 0.0) -> Registered | None:
        """See `Store`."""
        return await self._do(lambda: tokens.register(self._node, new, wait))

    async def find_registration(self, device: DeviceToken, verify_key: bytes) -> Token | None:
        """See `Store`."""
        return await self._do(lambda: tokens.find_registration(self._node, device, verify_key))

    async def put_off(self, waits: Mapping[Ref, float | None]) -> None:
        """See `Store`."""
        await self._do(lambda: tokens.put_off(self._node, waits))

    async def find_token(self, token_id: bytes) -> Token | None:
        """See `Store`."""
        return await self._do(lambda: tokens.find(self._node, token_id))

    def seen(self, token: Token) -> None:
        """See `Store`."""
        self._seen.add(token.token_id, token.active_at, self._node.wall())

    async def verify(self, token: Ref, code: bytes) -> bool:
        """See `Store`."""
        return await self._do(lambda: tokens.verify(self._node, _token(token), code))

    async def replace(self, token: Ref, new: Replacement, wait: float = 0.0) -> bool:
        """See `Store`."""
        return await self._do(lambda: tokens.replace(self._node, _token(token), new, wait))

    async def delete_token(self, token: Ref) -> None:
        """See `Store`."""
        await self._do(lambda: tokens.drop(self._node, _token(token)))

    async def set_period(self, token: Ref, minutes: int) -> None:
        """See `Store`."""
        await self._do(lambda: tokens.set_period(self._node, _token(token), minutes))

    async def set_vapid_key(self, token: Ref, key_id: bytes) -> None:
        """See `Store`."""
        await self._do(lambda: tokens.set_vapid_key(self._node, _token(token), key_id))

    async def mark_checks(self, limit: int, *, quiet_only: bool = True) -> int:
        """See `Store`."""
        return await self._do(lambda: tokens.mark_checks(self._node, limit, quiet_only))

    async def invalidate(
        self, status: TokenStatus, reason: InvalidReason, after: Cursor | None, limit: int
    ) -> tuple[int, Cursor | None]:
        """See `Store`."""
        return await self._do(lambda: tokens.invalidate(self._node, status, reason, after, limit))

    async def census(
        self, after: Cursor | None, limit: int, *, everywhere: bool = False
    ) -> tuple[Census, Cursor | None]:
        """See `Store`."""
        return await self._do(lambda: census.census(self._node, after, limit, everywhere=everywhere))

    async def last_push(self, token: Ref) -> LastPush | None:
        """See `Store`."""
        return await self._do(lambda: tokens.last_push(self._node, _token(token)))

    async def device_of(self, token: Ref) -> Device | None:
        """See `Store`."""
        return await self._do(lambda: tokens.device_of(self._node, _token(token)))

    def fingerprint(self, device: DeviceToken) -> str:
        """See `Store`."""
        return self._state.sealer.fingerprint(device.provider, device.token)

    # --- queues

    async def subscribe(
        self, token: Ref, new: NewSubscription, limits: Limits = NO_LIMITS
    ) -> Added | LimitReached | None:
        """See `Store`."""
        return await self._do(lambda: queues.subscribe(self._node, _token(token), new, limits))

    async def find_subscription(self, subscription_id: bytes) -> tuple[Token, Subscription] | None:
        """See `Store`."""
        return await self._do(lambda: queues.find(self._node, subscription_id))

    async def unsubscribe(self, subscription: Ref) -> None:
        """See `Store`."""
        await self._do(lambda: queues.unsubscribe(self._node, _queue(subscription)))

    async def subscription_count(self) -> int:
        """See `Store`."""
        return await self._do(lambda: queues.count(self._node))

    # --- deliveries

    def watch(self, on_due: Callable[[Provider, float], None]) -> None:
        """See `Store`."""
        self._due.on_due = on_due

    def arrive(self, session: Session, count: int) -> Arrival:
        """See `Store`."""
        return self._arrivals.stamp(session, count, self._node.wall())

    async def notify(
        self, session: Session, notifications: Sequence[Notification], places: Mapping[Provider, Places]
    ) -> Notified:
        """See `Store`."""
        return await self._do(
            lambda: deliveries.notify(self._node, session, notifications, places),
            lambda notified: self._give_back(notified.claims),
        )

    async def take(self, provider: Provider, places: Places) -> Taken:
        """See `Store`."""
        return await self._do(
            lambda: self._handing(taking.take(self._node, provider, places)),
            lambda taken: self._give_back(taken.claims),
        )

    async def record(self, outcomes: Sequence[Outcome]) -> int:
        """See `Store`."""
        return await self._do(lambda: deliveries.record(self._node, outcomes))

    async def backlog(self, provider: Provider) -> Backlog:
        """See `Store`."""
        return await self._do(lambda: taking.backlog(self._node, provider))

    # --- sessions

    async def servers(self) -> list[ServerAddress]:
        """See `Store`."""
        return await self._do(lambda: sessions.wanted_servers(self._node))

    async def is_wanted(self, server: ServerAddress) -> bool:
        """See `Store`."""
        return await self._do(lambda: sessions.is_wanted(self._node, server))

    async def standing(self, server: ServerAddress) -> Standing | None:
        """See `Store`."""
        return await self._do(lambda: standings.standing(self._node, server))

    async def prove(self, session: Session, prefix: str) -> None:
        """See `Store`."""
        await self._do(lambda: standings.prove(self._node, session, prefix))

    async def disprove(self, server: ServerAddress) -> None:
        """See `Store`."""
        await self._do(lambda: standings.disprove(self._node, server))

    async def give_up(self, session: Session, error: str, limit: int) -> int:
        """See `Store`."""
        return await self._do(lambda: standings.give_up(self._node, session, error, limit))

    async def acquire(self, server: ServerAddress) -> Session | None:
        """See `Store`."""
        return await self._do(lambda: sessions.acquire(self._node, server))

    @property
    def lease(self) -> float:
        """See `Store`."""
        return LEASE

    async def renew(self, sessions_: Sequence[Session]) -> list[Session]:
        """See `Store`."""
        return await self._do(lambda: sessions.renew(self._node, sessions_))

    async def release(self, session: Session) -> None:
        """See `Store`."""
        await self._do(lambda: sessions.release(self._node, session))

    async def share(self, sessions_: Sequence[Session]) -> Share:
        """See `Store`."""
        return await self._do(lambda: sessions.share(self._node, sessions_))

    async def leave(self) -> int:
        """See `Store`."""
        return await self._do(self._node.leave)

    async def announce(self, session: Session, *, whole: bool) -> None:
        """See `Store`."""
        await self._do(lambda: sessions.announce(self._node, session, whole=whole))

    def changes(self) -> AsyncIterator[Change]:
        """See `Store`."""
        return aiter(self._changes)

    async def begin(self, session: Session, service_id: bytes | None) -> ServiceState:
        """See `Store`."""
        return await self._do(lambda: sessions.begin(self._node, session, service_id))

    async def service_state(self, session: Session) -> ServiceState:
        """See `Store`."""
        return await self._do(lambda: sessions.service_state(self._node, session))

    async def reassociate(self, session: Session) -> ServiceState:
        """See `Store`."""
        return await self._do(lambda: sessions.reassociate(self._node, session))

    async def set_released(self, session: Session, count: int, ids_hash: bytes | None = None) -> None:
        """See `Store`."""
        await self._do(lambda: sessions.set_released(self._node, session, count, ids_hash))

    async def page(self, session: Session, after: Cursor | None, limit: int, *, associated: bool = False) -> Page:
        """See `Store`."""
        return await self._do(lambda: sessions.page(self._node, session, after, limit, associated=associated))

    async def load(self, session: Session, refs: Sequence[Ref]) -> list[Wanted]:
        """See `Store`."""
        return await self._do(lambda: sessions.load(self._node, session, [_queue(ref) for ref in refs]))

    async def confirm(self, session: Session, answers: Sequence[Confirmed]) -> None:
        """See `Store`."""
        await self._do(lambda: sessions.confirm(self._node, session, answers))

    async def end(
        self, session: Session, notifier_ids: Sequence[bytes], status: SubscriptionStatus, number: int | None = None
    ) -> int:
        """See `Store`."""
        number = self.arrive(session, 1).first if number is None else number
        return await self._do(lambda: sessions.end(self._node, session, notifier_ids, status, number))

    async def to_audit(
        self, after: Cursor | None, limit: int, silent_for: float
    ) -> tuple[list[ToAudit], Cursor | None]:
        """See `Store`."""
        return await self._do(lambda: sessions.to_audit(self._node, after, limit, silent_for))

    async def request_audit(self, subscriptions: Sequence[ToAudit]) -> None:
        """See `Store`."""
        await stream.request_audit(self._node, subscriptions)

    async def mark_lost(self, session: Session, after: Cursor | None, limit: int, within: float) -> Lost:
        """See `Store`."""
        return await self._do(lambda: sessions.mark_lost(self._node, session, after, limit=limit, within=within))

    async def service_certificate(
        self, server: ServerAddress, make: Callable[[], ServiceCertificate]
    ) -> ServiceCertificate:
        """See `Store`."""
        return await self._do(lambda: sessions.certificate(self._node, server, make))

    # --- upkeep

    async def space(self) -> Space:
        """See `Store`."""
        return await self._do(lambda: upkeep.space(self._node))

    async def tend(self) -> float:
        """See `Store`."""
        return await self._do(lambda: upkeep.run_slice(self._node, self._sweep, self._seen.take()))


def _token(ref: Ref) -> bytes:
    """A ref of a token is its id."""
    return ref if isinstance(ref, bytes) else _foreign()


def _queue(ref: Ref) -> Queue:
    return ref if isinstance(ref, Queue) else _foreign()


def _foreign() -> Any:
    raise StoreConflictError("a ref of another engine")
