"""What was read from SMP servers and is not in the store yet.

SMP acknowledges no NMSG: what a socket has read must reach the store, and outlives the session that it came in. Whoever
reads waits while much of its own session waits here, so that TCP slows that server down; all sessions together have a
bound too, but each may put a block in. What cannot be stored because what has its tokens is away lets the rest pass:
of each queue the last one of these is kept apart, as it is all that the store would keep, and tried again. Ends of
subscriptions are stored apart too, since what has these may be away.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter, ServerCounter
from ntf_server.push.dispatcher import Dispatcher
from ntf_server.store.contract import FencedError, Store, StoreCorruptError, StoreError, StoreUnavailableError
from ntf_server.store.records import Notification, Notified, Session
from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Event
from smp_bridge.ntf import SubscriptionStatus

log = logging.getLogger(__name__)

T = TypeVar("T")
Spawn = Callable[[Coroutine[Any, Any, None], str], object]
OnEnded = Callable[[Session, int], None]

_PER_SESSION: Final = 512  # events that may wait before no more of that session is read
_IN_ALL: Final = 8192
_LATE_PER_SESSION: Final = 4096  # queues with what could not be stored, likewise
_LATE_IN_ALL: Final = 32_768
_STORE_BACKOFF: Final = 1.0
_ENDS: Final = ((smp.End, SubscriptionStatus.END), (smp.Deld, SubscriptionStatus.DELETED))


class _Waiting:
    """Events of one session; `count`: also those that the store is just asked to take. `late`: by queue, apart."""

    __slots__ = ("count", "ended", "ending", "late", "notifications", "repeating", "writing")

    def __init__(self) -> None:
        self.count = 0
        self.writing = False
        self.late: dict[bytes, Notification] = {}
        self.repeating = False
        self.notifications: list[Notification] = []
        self.ending = False
        self.ended: list[Event] = []


class Inbox:
    """Takes events to the store. `spawn` runs a task to its end; `close` it last of all that reads."""

    def __init__(
        self, store: Store, dispatcher: Dispatcher, spawn: Spawn, on_ended: OnEnded, metrics: Metrics | None = None
    ) -> None:
        """`on_ended`: so many of a session's subscriptions ended."""
        self._store = store
        self._dispatcher = dispatcher
        self._spawn = spawn
        self._on_ended = on_ended
        self._metrics = metrics or Metrics()
        self._sessions: dict[Session, _Waiting] = {}
        self._count = 0
        self._late = 0
        self._changed = asyncio.Event()
        self.is_over = False  # the store takes nothing any more, which ends the relay

    @property
    def waiting(self) -> int:
        """Events that are not in the store yet."""
        return self._count + self._late

    async def take(self, session: Session, events: Sequence[Event]) -> None:
        """Events of a block; returns when more of this session may be read."""
        waiting = self._sessions.get(session)
        while waiting is not None and self._is_full(waiting):
            self._changed.clear()
            await self._changed.wait()
            waiting = self._sessions.get(session)
        if waiting is None:
            waiting = self._sessions[session] = _Waiting()
        messages = [(e.entity_id, e.message) for e in events if isinstance(e.message, smp.NMsg)]
        if messages:
            first, now = self._store.arrive(session, len(messages))
            self._dispatcher.journeys.arrived(first, len(messages))
            waiting.notifications += [
                Notification(notifier_id, seq, now, message.nonce, message.meta)
                for seq, (notifier_id, message) in enumerate(messages, first)
            ]
        ended: list[Event] = []
        if len(messages) != len(events):
            ended = [e for e in events if isinstance(e.message, smp.End | smp.Deld)]
            waiting.ended += ended
        waiting.count += len(messages) + len(ended)
        self._count += len(messages) + len(ended)
        if messages and not waiting.writing:
            waiting.writing = True
            self._spawn(self._write(session, waiting), "smp events")
        if ended and not waiting.ending:
            waiting.ending = True
            self._spawn(self._write_ends(session, waiting), "ends of subscriptions")
        self._forget_if_empty(session, waiting)

    def _is_full(self, waiting: _Waiting) -> bool:
        if waiting.late and (len(waiting.late) >= _LATE_PER_SESSION or self._late >= _LATE_IN_ALL):
            return True
        return waiting.count >= _PER_SESSION or self._count >= _IN_ALL

    async def close(self, grace: float) -> int:
        """Wait until all is in the store, `grace` seconds at most: how many events are not."""
        try:
            async with asyncio.timeout(grace):
                while self.waiting:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.error("%d events of SMP servers could not be stored before the stop", self.waiting)
        return self.waiting

    async def empty(self, server: ServerAddress) -> None:
        """Wait until all that a server sent is in the store."""
        while any(session.server == server for session in self._sessions):
            self._changed.clear()
            await self._changed.wait()

    async def _write(self, session: Session, waiting: _Waiting) -> None:
        """Store notifications of a session, with what comes while the store is busy."""
        try:
            while some := waiting.notifications:
                waiting.notifications = []
                with self._taking(waiting, len(some)):
                    self._keep_late(session, waiting, await self._store_notifications(session, some))
        finally:
            waiting.writing = False
            self._forget_if_empty(session, waiting)

    async def _write_ends(self, session: Session, waiting: _Waiting) -> None:
        """The same of ends. What has their queues may be away, which holds up no notification of others."""
        try:
            while some := waiting.ended:
                waiting.ended = []
                with self._taking(waiting, len(some)):
                    for kind, status in _ENDS:
                        ids = [e.entity_id for e in some if isinstance(e.message, kind)]
                        if ids:
                            await self._end(session, ids, status)
        finally:
            waiting.ending = False
            self._forget_if_empty(session, waiting)

    @contextmanager
    def _taking(self, waiting: _Waiting, count: int) -> Iterator[None]:
        """The store is asked to take so many events."""
        try:
            yield
        except StoreError as e:  # no other try mends it, and what came behind must not wait for that
            log.error("%d events of SMP servers cannot be stored: %s", count, e)
        finally:
            waiting.count -= count
            self._count -= count
            self._changed.set()

    def _forget_if_empty(self, session: Session, waiting: _Waiting) -> None:
        if self._sessions.get(session) is waiting and not waiting.count and not waiting.late:
            del self._sessions[session]
            self._changed.set()

    async def _repeat(self, session: Session, waiting: _Waiting) -> None:
        """Store what could not be stored, a part of it each time, as others may be away than before."""
        try:
            while waiting.late:
                await asyncio.sleep(_STORE_BACKOFF)
                unstored: Sequence[Notification] = ()
                while waiting.late and not unstored:
                    some = list(itertools.islice(waiting.late.values(), _PER_SESSION))
                    unstored = await self._store_late(session, some)
                    for n in some:
                        if waiting.late.get(n.notifier_id) is n:  # else a later one came meanwhile
                            del waiting.late[n.notifier_id]
                            self._late -= 1
                    self._keep_late(session, waiting, unstored)
                    self._changed.set()
        finally:
            waiting.repeating = False
            self._forget_if_empty(session, waiting)

    async def _store_late(self, session: Session, notifications: Sequence[Notification]) -> Sequence[Notification]:
        try:
            return await self._store_notifications(session, notifications, again=True)
        except StoreError as e:
            log.error("%d events of SMP servers cannot be stored: %s", len(notifications), e)
            return ()

    def _keep_late(self, session: Session, waiting: _Waiting, unstored: Sequence[Notification]) -> None:
        for n in unstored:
            before = waiting.late.pop(n.notifier_id, None)
            self._late += before is None
            waiting.late[n.notifier_id] = max(before or n, n, key=lambda n: n.seq)
        if waiting.late and not waiting.repeating:
            waiting.repeating = True
            self._spawn(self._repeat(session, waiting), "late smp events")

    async def _store_notifications(
        self, session: Session, notifications: Sequence[Notification], *, again: bool = False
    ) -> Sequence[Notification]:
        """Those that cannot be stored now. `again`: they were counted the first time."""
        try:
            notified = await self.insist(lambda: self._notify(session, notifications))
        except FencedError:
            log.error("%d notifications came in a session that another node has taken over", len(notifications))
            return ()
        if not again:
            self._metrics.count_server(ServerCounter.RECEIVED, session.server, len(notifications))
        self._dispatcher.journeys.stored(notifications, but=notified.unstored)
        if notified.unknown:
            self._metrics.count_server(ServerCounter.RECEIVED_UNKNOWN, session.server, notified.unknown)
        return notified.unstored

    async def _notify(self, session: Session, notifications: Sequence[Notification]) -> Notified:
        offer = self._dispatcher.offer(len(notifications))
        try:
            notified = await self._store.notify(session, notifications, offer)
        except BaseException:
            self._dispatcher.accept(offer, [])
            raise
        self._dispatcher.accept(offer, notified.claims)
        return notified

    async def _end(self, session: Session, notifier_ids: Sequence[bytes], status: SubscriptionStatus) -> None:
        number = self._store.arrive(session, 1).first
        try:
            known = await self.insist(lambda: self._store.end(session, notifier_ids, status, number))
        except FencedError:
            log.debug("%d subscriptions ended in a session that is over: they are another's now", len(notifier_ids))
            return
        self._on_ended(session, known)
        self._metrics.count_kind(KindCounter.SUBSCRIPTIONS_ENDED, status.value.lower(), known)

    async def insist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Do it until the store can: nothing that was received is dropped, reading waits instead. Raises StoreError.

        Of a store that is corrupt whoever waits here learns nothing: that ends the relay, and so cancels him.
        """
        while True:
            try:
                return await operation()
            except StoreUnavailableError as e:
                log.debug("the store fails, trying again: %s", e)  # which it says itself
                await asyncio.sleep(_STORE_BACKOFF)
            except StoreCorruptError:
                self.is_over = True
                await asyncio.get_running_loop().create_future()
