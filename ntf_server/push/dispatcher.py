"""The dispatcher: takes claims from the store, has them pushed, and tells the store what came of them.

A shell: who may be pushed to is the schedule's to say, what is due the store's. Nothing that waits is kept here.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ntf_server.observe.condition import WayFacts
from ntf_server.observe.events import Event, EventLog
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindGauge, PairCounter, ServerCounter
from ntf_server.push.health import Notice
from ntf_server.push.journeys import Journeys, NoJourneys
from ntf_server.push.schedule import Schedule, ScheduleConfig
from ntf_server.push.verdict import Again, DeadToken, Ours, PushProvider, Verdict
from ntf_server.store.contract import Deliveries, PartlyUnavailableError, StoreError, StoreUnavailableError
from ntf_server.store.records import Claim, Ended, Entry, Outcome, PushKind
from smp_bridge.ntf import Provider

log = logging.getLogger(__name__)
events = EventLog(__name__)

_BATCH: Final = 100  # claims taken at once
_TAKERS: Final = 2  # of a lane: one waits for the store while the other sends

_KINDS: Final = {kind: kind.name.lower() for kind in PushKind}  # in metrics
_COUNTERS: Final[Mapping[type[Verdict], PairCounter]] = {
    DeadToken: PairCounter.PUSHES_FAILED,
    Again: PairCounter.PUSHES_RETRIED,
    Ours: PairCounter.PUSHES_REFUSED,
}


@dataclass(frozen=True, slots=True)
class DispatcherConfig:
    """`schedules`: of providers that are not as `schedule` has them; `store_backoff`: seconds."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    schedules: Mapping[Provider, ScheduleConfig] = field(default_factory=dict)
    store_backoff: float = 1.0


class Offer:
    """Places that are kept for what the store hands out; implements `Places`. The store may ask from another thread."""

    __slots__ = ("_lane", "at", "changes", "passed_over", "total")

    def __init__(self, lane: "_Lane", total: int, at: float) -> None:
        self._lane = lane
        self.total = total
        self.at = at
        self.changes = lane.changes
        self.passed_over = False  # some origin had something due, but no room

    def room(self, origin: bytes) -> int:
        """See `Places`."""
        room = self._lane.room(origin)
        if not room:
            self.passed_over = True
        return room


class _Lane:
    """A provider: when it is worth while to ask the store what is due."""

    def __init__(self, name: Provider, provider: PushProvider, schedule: Schedule) -> None:
        self.name = name
        self.provider = provider
        self.schedule = schedule
        self.to_send: deque[Claim] = deque()  # begun, but not yet given to the provider
        self.blocked = False  # origins were passed over
        self.changes = 0  # so often something ended, or was mended
        self._clock = asyncio.get_running_loop().time
        self._due_at: float | None = self._clock()
        self._wake = asyncio.Event()

    def room(self, origin: bytes) -> int:
        """See `Places`."""
        return self.schedule.room(origin, self._clock())

    def expect(self, seconds: float | None) -> None:
        """Something becomes due in so many seconds."""
        if seconds is None:
            return
        at = self._clock() + seconds
        if self._due_at is None or at < self._due_at:
            self._due_at = at
            self._wake.set()

    def changed(self) -> None:
        """A place became free, or a pause ended."""
        self.changes += 1
        if self.blocked:
            self.blocked = False
            self.expect(0.0)
        elif self._due_at is not None:
            self._wake.set()

    async def ready(self) -> Offer:
        """Wait until something is due and there is room for it; the places are reserved."""
        while True:
            now = self._clock()
            if self._due_at is not None and self._due_at <= now and self.schedule.free(now):
                self._due_at = None
                return self.offer(_BATCH)
            resume = self.schedule.next_resume(now) if self.blocked else None
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._next_look(now, resume)):
                    await self._wake.wait()
            if resume is not None and self._clock() >= resume:
                self.changed()

    def _next_look(self, now: float, resume: float | None) -> float | None:
        looks = [] if resume is None else [resume]
        if self._due_at is not None:
            if self._due_at > now:
                looks.append(self._due_at)
            elif self.schedule.health.is_paused(now):
                looks.append(self.schedule.health.paused_until)
        return min(looks, default=None)

    def offer(self, count: int) -> Offer:
        """Reserve up to `count` places."""
        now = self._clock()
        total = min(count, self.schedule.free(now))
        self.schedule.reserved += total
        return Offer(self, total, now)

    def withdraw(self, offer: Offer) -> None:
        """The store has answered: what it handed out counts by itself."""
        self.schedule.reserved -= offer.total
        if offer.passed_over and (self.changes != offer.changes or self.schedule.resumed(offer.at, self._clock())):
            self.expect(0.0)  # what there was no room for may have room by now, and nobody says so again
        else:
            self.blocked |= offer.passed_over
        if self._due_at is not None:  # somebody may have found no room meanwhile
            self._wake.set()


class Dispatcher:
    """Run its `parts` in a running loop, then `close` it."""

    def __init__(
        self,
        store: Deliveries,
        providers: Mapping[Provider, PushProvider],
        config: DispatcherConfig | None = None,
        *,
        service: Callable[[Claim], str] = lambda _: "",
        on_ended: Callable[[Outcome], None] = lambda _: None,
        metrics: Metrics | None = None,
        journeys: NoJourneys | None = None,
        rng: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`service`: the push service of a claim, in words, where a provider has many. `on_ended` hears of each try;
        `journeys`: None: they are measured; `clock`: Unix seconds.
        """
        self._store = store
        self._config = config = config or DispatcherConfig()
        self._service = service
        self._on_ended = on_ended
        self._metrics = metrics or Metrics()
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._wall = clock
        self.journeys: Final = journeys or Journeys(self._metrics, self._clock, clock)
        self._lanes = {
            name: _Lane(name, provider, Schedule(name.value, config.schedules.get(name, config.schedule), rng))
            for name, provider in providers.items()
        }
        self._pending: list[Outcome] = []
        self._late: list[Outcome] = []  # which what has their tokens did not take
        self._again: list[Outcome] = []  # of these, which it is time to try again
        self._work = asyncio.Event()
        self._recorded = asyncio.Event()
        self._recording = False
        self._closing = False
        self._show_lanes()
        store.watch(self._on_due)

    def _show_lanes(self) -> None:
        """As gauges."""

        def show(name: KindGauge, value: Callable[[_Lane], float]) -> None:
            self._metrics.kind_gauge(name, lambda: {lane.name: value(lane) for lane in self._lanes.values()})

        def delivered() -> Mapping[str, float]:
            ahead = self._wall() - self._clock()
            times = {p: lane.schedule.health.accepted_at for p, lane in self._lanes.items()}
            return {p: at + ahead for p, at in times.items() if at is not None}

        show(KindGauge.PUSHES_IN_FLIGHT, lambda lane: lane.schedule.in_flight)
        show(KindGauge.PUSHES_HELD, lambda lane: len(lane.to_send))
        show(KindGauge.PROVIDER_PAUSED, lambda lane: lane.schedule.health.is_paused(self._clock()))
        show(KindGauge.PROVIDER_PROBED, lambda lane: lane.schedule.health.is_probed(self._clock()))
        self._metrics.kind_gauge(KindGauge.LAST_DELIVERED, delivered)
        if (web_push := self._lanes.get(Provider.WEB_PUSH)) is not None:
            self._metrics.kind_gauge(KindGauge.ORIGINS, lambda: web_push.schedule.origins(self._clock()))

    @property
    def providers(self) -> frozenset[Provider]:
        """The providers that can be pushed through."""
        return frozenset(self._lanes)

    def parts(self) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        """What is to be run as long as the relay lives, by name."""
        for lane in self._lanes.values():
            for number in range(_TAKERS):
                yield f"push {lane.name.value} {number + 1}", partial(self._run, lane)
        yield "push outcomes", self._record_all

    async def warn_of_unserved(self) -> None:
        """Say which providers have something due, but are not configured. Raises StoreError."""
        off = [p.value for p in Provider if p not in self._lanes and (await self._store.backlog(p)).tokens]
        if off:
            text = "pushes wait for providers that are not configured: %s"
            events.tell(Event.PROVIDER_MISSING, text, ", ".join(off), providers=",".join(off))

    def offer(self, count: int) -> Mapping[Provider, Offer]:
        """Places for claims that the store may hand out together with something else; give it back with `accept`."""
        return {} if self._closing else {name: lane.offer(count) for name, lane in self._lanes.items()}

    def accept(self, offer: Mapping[Provider, Offer], claims: Sequence[Claim]) -> None:
        """Push what was handed out."""
        for name, places in offer.items():
            self._lanes[name].withdraw(places)
        if not claims:
            return
        by_provider: dict[Provider, list[Claim]] = {}
        for claim in claims:
            by_provider.setdefault(claim.lane.provider, []).append(claim)
        for name, those in by_provider.items():
            self._send(self._lanes[name], those)

    def ways(self) -> list[WayFacts]:
        """How each provider is, but for what the store alone knows."""
        now = self._clock()
        return [lane.schedule.facts(now) for lane in self._lanes.values()]

    def services(self, most: int) -> list[WayFacts]:
        """Push services of Web Push, by what they are called: those to look at first."""
        now = self._clock()
        lanes = self._lanes.values()
        return [facts for lane in lanes for facts in lane.schedule.services(now, most)][:most]

    def mended(self) -> None:
        """A fault of ours may be mended: what waits for that is tried at once."""
        for lane in self._lanes.values():
            lane.schedule.mended(self._clock())
            lane.changed()

    async def close(self, grace: float = 0.0) -> None:
        """Hand out no more places, wait up to `grace` seconds for what is in flight and until it is recorded.

        To be called while the part "push outcomes" still runs; may be called again.
        """
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self.under_way or self._recording:
                    self._recorded.clear()
                    await self._recorded.wait()
        if left := self.under_way:
            log.warning("%d pushes were still in flight: they will be sent again", left)

    @property
    def under_way(self) -> int:
        """Pushes that are in flight, or not recorded yet."""
        return self._in_flight() + len(self._pending) + len(self._late) + len(self._again)

    def _in_flight(self) -> int:
        return sum(lane.schedule.in_flight for lane in self._lanes.values())

    # --- pushing

    def _on_due(self, provider: Provider, seconds: float) -> None:
        lane = self._lanes.get(provider)
        if lane is not None:
            lane.expect(seconds)

    async def _run(self, lane: _Lane) -> None:
        while not self._closing:
            offer = await lane.ready()
            taken = None
            try:
                taken = await self._store.take(lane.name, offer)
            except StoreUnavailableError as e:
                log.debug("cannot read what is due: %s", e)  # the store itself says why
            finally:
                lane.withdraw(offer)
                lane.expect(0.0 if taken is None else taken.next_in)
            if taken is None:
                await asyncio.sleep(self._config.store_backoff)
            elif taken.claims:
                self._send(lane, taken.claims)

    def _send(self, lane: _Lane, claims: Sequence[Claim]) -> None:
        """Their places are taken at once; of many, the others' turns come between them."""
        if self._closing:  # another node is not to wait for them
            self._ended([Outcome(claim, Ended.UNTRIED) for claim in claims])
            return
        lane.schedule.begin(claims)
        is_sending = bool(lane.to_send)
        lane.to_send += claims
        if not is_sending:
            self._send_some(lane)

    def _send_some(self, lane: _Lane) -> None:
        left = lane.provider.at_once
        while left and lane.to_send:  # the first are on their way while the others are made
            batch = min(left, _BATCH, len(lane.to_send))
            left -= batch
            self._start(lane, [lane.to_send.popleft() for _ in range(batch)])
        if lane.to_send:
            self._loop.call_soon(self._send_some, lane)

    def _start(self, lane: _Lane, claims: Sequence[Claim]) -> None:
        left, since = set(claims), self._clock()

        def on_verdict(claim: Claim, verdict: Verdict) -> None:
            if claim in left:
                left.remove(claim)
                self._on_verdict(lane, claim, verdict, since)

        try:
            lane.provider.send(claims, on_verdict)
        except Exception:  # a fault of ours: none of them may be lost
            log.exception("pushes through %s could not be made", lane.name.value)
            for claim in [c for c in claims if c in left]:
                on_verdict(claim, Again("the push could not be made"))

    def _on_verdict(self, lane: _Lane, claim: Claim, verdict: Verdict, since: float) -> None:
        """`since`: when it was sent."""
        now = self._clock()
        outcome, notice = lane.schedule.end(claim, verdict, now, self._service)
        self.journeys.ended(lane.name, since, now, outcome.held)
        if outcome.ended is not Ended.DELIVERED:  # those are counted together
            self._count(lane, claim, verdict, outcome)
        if notice is not None:
            _tell(notice)
        self._on_ended(outcome)
        self._ended([outcome])
        lane.changed()

    def _ended(self, outcomes: Sequence[Outcome]) -> None:
        """To be recorded."""
        if not self._pending:
            self._work.set()
        self._pending += outcomes

    def _count(self, lane: _Lane, claim: Claim, verdict: Verdict, outcome: Outcome) -> None:
        suspected = isinstance(verdict, DeadToken) and outcome.ended is not Ended.DEAD  # but nothing is done to it
        counter = PairCounter.PUSHES_RETRIED if suspected else _COUNTERS[type(verdict)]
        self._metrics.count_pair(counter, lane.name, _KINDS[claim.kind])
        if isinstance(verdict, DeadToken) and not suspected:
            reason = verdict.reason.value
            events.tell(Event.TOKEN_DEAD, "a device token is invalid", provider=lane.name.value, reason=reason)
            self._count_entries(ServerCounter.FAILED, claim.entries)

    def _count_delivered(self, outcomes: Sequence[Outcome]) -> None:
        delivered = [o for o in outcomes if o.ended is Ended.DELIVERED]
        for (provider, kind), count in Tally([(o.claim.lane.provider, o.claim.kind) for o in delivered]).items():
            self._metrics.count_pair(PairCounter.PUSHES_DELIVERED, provider, _KINDS[kind], count)
        self._count_entries(ServerCounter.DELIVERED, [entry for o in delivered for entry in o.held])

    def _count_entries(self, name: ServerCounter, entries: Iterable[Entry]) -> None:
        servers = [entry.server for entry in entries if not entry.sent]
        by_id = {id(server): server for server in servers}  # most are the same object: to hash one takes long
        for key, count in Tally(map(id, servers)).items():
            self._metrics.count_server(name, by_id[key], count)

    # --- recording

    async def _record_all(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            outcomes, self._pending = self._pending, []
            self._count_delivered(outcomes)
            again, self._again = self._again, []
            self._recording = True
            try:
                await self._record([*again, *outcomes])
            finally:
                self._recording = False
                self._recorded.set()

    async def _record(self, outcomes: Sequence[Outcome]) -> None:
        while outcomes:
            try:
                await self._store.record(outcomes)
                return
            except PartlyUnavailableError as e:  # the others are not to wait for these
                if not self._late:
                    self._loop.call_later(self._config.store_backoff, self._try_late_again)
                self._late += e.left
                return
            except StoreUnavailableError as e:
                log.debug("cannot record what was pushed: %s", e)
                await asyncio.sleep(self._config.store_backoff)
            except StoreError as e:
                if len(outcomes) > 1:  # only the one that is at fault must suffer
                    for outcome in outcomes:
                        await self._record([outcome])
                else:
                    log.error("what came of a push cannot be recorded: %s", e)
                return

    def _try_late_again(self) -> None:
        self._again += self._late
        self._late = []
        self._work.set()


def _tell(notice: Notice) -> None:
    name, reason = notice.provider, notice.reason
    events.tell(notice.event, "%s", notice.text, provider=name, reason=reason, seconds=notice.seconds)
