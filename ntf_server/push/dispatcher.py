"""The dispatcher: one push in flight per token, many tokens at once; what is due is durable in the store.

What arrives for a token while its push is in flight or waits for a retry goes out in its next push.
"""

import asyncio
import logging
import random
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ntf_server.observe.metrics import Gauge, KindCounter, Metrics, ServerCounter
from ntf_server.push.provider import Accepted, Dead, Permanent, PushProvider, Result, Retry, Scope
from ntf_server.store.records import (
    DeadToken,
    Delivered,
    Due,
    Outcome,
    Push,
    PushKind,
    Store,
    StoreCorruptError,
    StoredNotification,
    StoreError,
)
from smp_bridge.ntf import Provider

log = logging.getLogger(__name__)

_LOAD: Final = 100  # pushes read from the store at once
_LOADERS: Final = 2  # of a lane: one waits for the store while the other sends
_MAX_PAUSE: Final = 30.0  # seconds after which a provider out of reach is tried again
_MAX_RETRY_AFTER: Final = 3600.0  # seconds; what asks for more is asked again
_REPEAT_LOG: Final = 60.0  # seconds between two lines about the same trouble


_KINDS: Final[Mapping[type[Result], KindCounter]] = {
    Accepted: KindCounter.PUSHES_DELIVERED,
    Dead: KindCounter.PUSHES_FAILED,
    Retry: KindCounter.PUSHES_RETRIED,
    Permanent: KindCounter.PUSHES_REFUSED,
}


@dataclass(frozen=True, slots=True)
class DispatcherConfig:
    """Seconds; `in_flight`: pushes that one provider may have under way, `in_flight_of` where it is another number;
    `max_due`: tokens kept in memory for each.
    """

    in_flight: int = 4000
    in_flight_of: Mapping[Provider, int] = field(default_factory=dict)
    max_due: int = 100_000
    min_backoff: float = 1.0
    max_backoff: float = 300.0
    permanent_backoff: float = 600.0
    store_backoff: float = 1.0


class _Due:
    """A token that has something due: queued, busy (loaded or in flight) or waiting for a retry."""

    __slots__ = ("again", "attempts", "busy", "lane", "ours", "queued", "timer", "token", "urgent")

    def __init__(self, token: int, lane: "_Lane") -> None:
        self.token = token
        self.lane = lane
        self.queued = False
        self.busy = False
        self.again = False
        self.urgent = False
        self.ours = False  # the last attempt failed for a fault of ours
        self.attempts = 0
        self.timer: asyncio.TimerHandle | None = None


class _Lane:
    """One provider: its queue, its pushes in flight, and its pause after trouble."""

    def __init__(self, name: Provider, provider: PushProvider) -> None:
        self.name = name
        self.provider = provider
        self.urgent: deque[_Due] = deque()
        self.normal: deque[_Due] = deque()
        self.in_flight = 0
        self.attempts = 0
        self.paused = False
        self.probing = False  # it was out of reach: one push shows whether it still is
        self.alone = 0  # so many are loaded one by one
        self.known = 0  # tokens in memory
        self.overflow = False  # more are due, but only the store knows which
        self.wake = asyncio.Event()
        self.turn = asyncio.Lock()

    def push_back(self, due: _Due) -> None:
        """Queue it; verifications go first. It may stand in a queue already: `take` takes it once."""
        due.queued = True
        (self.urgent if due.urgent else self.normal).append(due)
        self.wake.set()

    def take(self, limit: int) -> list[_Due]:
        """Up to `limit` queued tokens, which become busy."""
        out: list[_Due] = []
        while len(out) < limit and (self.urgent or self.normal):
            due = (self.urgent or self.normal).popleft()
            if due.queued and due.lane is self:
                due.queued, due.busy, due.again, due.urgent, due.ours = False, True, False, False, False
                out.append(due)
        return out


class Dispatcher:
    """Takes what is due, has it pushed, records what came of it. `start` it in a running loop; `close` it."""

    def __init__(
        self,
        store: Store,
        providers: Mapping[Provider, PushProvider],
        config: DispatcherConfig | None = None,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._config = config or DispatcherConfig()
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._rng = rng
        self._lanes = {name: _Lane(name, provider) for name, provider in providers.items()}
        self._due: dict[int, _Due] = {}
        self._results: list[tuple[Push, Result]] = []
        self._recording: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._logged: dict[str, float] = {}
        self._idle = asyncio.Event()
        self._metrics.gauge(Gauge.PUSHES_IN_FLIGHT, self._in_flight)
        self._metrics.gauge(Gauge.TOKENS_DUE, lambda: len(self._due))

    @property
    def providers(self) -> frozenset[Provider]:
        """The providers that can be pushed through."""
        return frozenset(self._lanes)

    async def start(self) -> None:
        """Take up what an earlier run left due, and begin. Raises StoreError, StoreCorruptError."""
        off = [p for p in Provider if p not in self._lanes and await self._store.all_due(p, 1)]
        if off:
            log.error("pushes wait for providers that are not configured: %s", ", ".join(off))
        for lane in self._lanes.values():
            await self._refill(lane)
        lanes = [lane for lane in self._lanes.values() for _ in range(_LOADERS)]
        self._tasks = [asyncio.create_task(self._run(lane), name="push lane") for lane in lanes]

    def mark(self, due: Iterable[Due]) -> None:
        """These tokens have something due in the store."""
        for item in due:
            lane = self._lanes.get(item.provider)
            if lane is not None:
                self._mark(item.token, lane, urgent=item.kind is PushKind.VERIFICATION)

    async def _refill(self, lane: _Lane) -> None:
        """Take from the store what is due, as much as is kept in memory."""
        lane.overflow = False
        due = await self._store.all_due(lane.name, self._config.max_due)
        lane.overflow |= len(due) == self._config.max_due
        self.mark(due)

    def _mark(self, token: int, lane: _Lane, *, urgent: bool) -> None:
        due = self._due.get(token)
        if due is None:
            if lane.known >= self._config.max_due and not urgent:
                lane.overflow = True
                return
            due = self._due[token] = _Due(token, lane)
            lane.known += 1
        elif due.busy:
            due.again = True
            due.urgent |= urgent
            return
        elif not urgent or (due.queued and due.urgent and due.lane is lane):
            return  # queued already, or waiting for its retry
        due.lane.known -= 1
        lane.known += 1
        due.lane = lane
        due.urgent = urgent
        self._cancel_timer(due)
        lane.push_back(due)

    def mended(self) -> None:
        """A fault of ours may be mended: what failed for one is tried again now."""
        for due in self._due.values():
            if due.ours and due.timer is not None:
                self._cancel_timer(due)
                due.lane.push_back(due)

    def _cancel_timer(self, due: _Due) -> None:
        if due.timer is not None:
            due.timer.cancel()
            due.timer = None

    async def close(self, grace: float = 0.0) -> None:
        """Start no more pushes, wait up to `grace` seconds for those in flight, record what came of them."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for due in self._due.values():
            self._cancel_timer(due)
        try:
            async with asyncio.timeout(grace):
                while self._in_flight():
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            log.warning("%d pushes were still in flight: they will be sent again", self._in_flight())
        if self._recording is not None:
            await asyncio.wait([self._recording], timeout=1.0)

    def _in_flight(self) -> int:
        return sum(lane.in_flight for lane in self._lanes.values())

    # --- pushing

    async def _run(self, lane: _Lane) -> None:
        while True:
            async with lane.turn:
                batch = await self._next(lane)
            try:
                pushes = await self._store.load_pushes([d.token for d in batch], int(self._clock()))
            except StoreError as e:
                self._loudly(f"cannot read what is due: {e}")
                for due in batch:
                    self._retry(due, self._config.store_backoff)
                continue
            except StoreCorruptError:
                return  # the store told the relay, which stops
            except asyncio.CancelledError:  # closing: none of them was sent
                lane.in_flight -= len(batch)
                raise
            except Exception:
                self._unreadable(lane, batch)
                continue
            self._send(lane, batch, pushes)

    async def _next(self, lane: _Lane) -> list[_Due]:
        """What is to be loaded next, once there is anything and room for it; it counts as in flight."""
        while True:
            if lane.overflow and lane.known <= self._config.max_due // 2:
                await self._refill_again(lane)
            if batch := [] if lane.paused else lane.take(self._room(lane)):
                lane.in_flight += len(batch)
                return batch
            lane.wake.clear()
            await lane.wake.wait()

    async def _refill_again(self, lane: _Lane) -> None:
        try:
            await self._refill(lane)
        except StoreError as e:
            lane.overflow = True
            self._loudly(f"cannot read what is due: {e}")
            await asyncio.sleep(self._config.store_backoff)

    def _room(self, lane: _Lane) -> int:
        """How many pushes may be loaded now: a provider that was out of reach is tried with one."""
        config = self._config
        limit = 1 if lane.probing else config.in_flight_of.get(lane.name, config.in_flight)
        return min(limit - lane.in_flight, 1 if lane.alone else _LOAD)

    def _unreadable(self, lane: _Lane, batch: list[_Due]) -> None:
        """Something damaged is in the store: read them one by one, so that only it waits."""
        if len(batch) > 1:
            lane.alone += len(batch)
        else:
            log.exception("what is due for a token of %s cannot be read", lane.name)
            lane.alone = max(0, lane.alone - 1)
        for due in batch:
            self._retry(due, 0.0 if len(batch) > 1 else self._config.permanent_backoff)

    def _send(self, lane: _Lane, batch: list[_Due], pushes: list[Push]) -> None:
        lane.alone = max(0, lane.alone - len(batch))
        loaded = {p.token: p for p in pushes}
        mine: list[Push] = []
        for due in batch:
            push = loaded.get(due.token)
            if push is not None and push.device.provider == lane.name:
                mine.append(push)
                continue
            self._release(due)
            if push is not None:  # replaced by a token of another provider
                self.mark([Due(push.token, push.device.provider, push.kind)])
        if mine:
            lane.provider.send(mine, self._on_result)

    def _on_result(self, push: Push, result: Result) -> None:
        self._results.append((push, result))
        if self._recording is None or self._recording.done():
            self._recording = asyncio.create_task(self._record(), name="push outcomes")

    async def _record(self) -> None:
        while self._results:
            results, self._results = self._results, []
            outcomes = self._outcomes(results)
            while outcomes:
                try:
                    await self._store.record(outcomes)
                    break
                except StoreError as e:
                    self._loudly(f"cannot record what was pushed: {e}")
                    await asyncio.sleep(self._config.store_backoff)
            self._count(results)
            for push, result in results:
                self._settle(self._due[push.token], push, result)
        self._idle.set()

    def _outcomes(self, results: Iterable[tuple[Push, Result]]) -> list[Outcome]:
        now = int(self._clock())
        out: list[Outcome] = []
        for push, result in results:
            if isinstance(result, Accepted):
                out.append(Delivered(push, now, result.notifications))
            elif isinstance(result, Dead):
                out.append(DeadToken(push, result.reason))
        return out

    def _count(self, results: Sequence[tuple[Push, Result]]) -> None:
        kinds = Tally((type(result), push.device.provider) for push, result in results)
        for (kind, provider), count in kinds.items():
            self._metrics.count_kind(_KINDS[kind], provider, count)
        delivered = [n.server for _, r in results if isinstance(r, Accepted) for n in r.notifications if not n.sent]
        failed = [n.server for p, r in results if isinstance(r, Dead) for n in p.notifications if not n.sent]
        for name, servers in ((ServerCounter.DELIVERED, delivered), (ServerCounter.FAILED, failed)):
            for server, count in Tally(servers).items():
                self._metrics.count_server(name, server, count)

    def _settle(self, due: _Due, push: Push, result: Result) -> None:
        lane = due.lane
        if not (isinstance(result, Retry) and result.scope is Scope.PROVIDER):
            lane.probing = False
            lane.attempts = 0
        match result:
            case Accepted(held):
                due.attempts = 0
                left_out = held is not push.notifications and _unsent(push.notifications) > _unsent(held)
                due.again |= push.more or left_out
                self._release(due)
            case Dead(reason):
                log.info("a token of %s is invalid: %s", lane.name, reason)
                self._release(due)
            case Retry(reason, scope, after):
                if scope is Scope.PROVIDER:
                    self._pause(lane, reason, after)
                log.debug("a push through %s is retried: %s", lane.name, reason)
                self._retry(due, self._backoff(due) if after is None else min(after, _MAX_RETRY_AFTER))
            case Permanent(reason):
                due.ours = True
                self._loudly(f"{lane.name} refuses pushes for a fault of this server: {reason}")
                self._retry(due, self._config.permanent_backoff)

    def _release(self, due: _Due) -> None:
        """No longer busy: queue it again if something came meanwhile, else forget it."""
        due.lane.in_flight -= 1
        due.lane.wake.set()
        due.busy = False
        if due.again:
            due.lane.push_back(due)
        else:
            del self._due[due.token]
            due.lane.known -= 1

    def _retry(self, due: _Due, delay: float) -> None:
        due.lane.in_flight -= 1
        due.lane.wake.set()
        due.busy = False
        if due.urgent:  # registered anew meanwhile: that must not wait
            due.lane.push_back(due)
            return
        due.timer = asyncio.get_running_loop().call_later(delay, self._requeue, due)

    def _requeue(self, due: _Due) -> None:
        due.timer = None
        due.lane.push_back(due)

    def _backoff(self, due: _Due) -> float:
        due.attempts += 1
        return self._delay(due.attempts)

    def _delay(self, attempts: int) -> float:
        bound = min(self._config.min_backoff * 2.0 ** min(attempts - 1, 30), self._config.max_backoff)
        return bound * (0.5 + 0.5 * self._rng())

    def _pause(self, lane: _Lane, reason: str, after: float | None) -> None:
        """The whole provider is in trouble: what is queued waits, instead of failing one by one."""
        if lane.paused:
            return
        lane.attempts += 1
        delay = max(min(self._delay(lane.attempts), _MAX_PAUSE), min(after or 0.0, _MAX_RETRY_AFTER))
        self._loudly(f"{lane.name} cannot be reached: {reason}")
        lane.paused = True
        asyncio.get_running_loop().call_later(delay, self._resume, lane)

    def _resume(self, lane: _Lane) -> None:
        lane.paused = False
        lane.probing = True
        lane.wake.set()

    def _loudly(self, message: str) -> None:
        """Log an error, once a minute for the same trouble."""
        now = asyncio.get_running_loop().time()
        if now >= self._logged.get(message, 0.0):
            self._logged[message] = now + _REPEAT_LOG
            log.error("%s", message)


def _unsent(notifications: Iterable[StoredNotification]) -> int:
    return sum(not n.sent for n in notifications)
