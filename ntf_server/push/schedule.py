"""Who may be pushed to now, and when again: the places of one provider. No I/O, no clock.

A provider has so many places, pushes under way at once. Where it has origins (Web Push: strangers choose them) an
origin that took nothing yet has one place, and all such together half of them; with every push that goes through it
gets one more, up to all places. So a service that is alone may use everything, and one that is silent holds next to
nothing.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from msgspec.structs import replace

from ntf_server.observe.condition import WayFacts
from ntf_server.observe.names import WAYS
from ntf_server.push.health import Health, HealthConfig, Notice
from ntf_server.push.verdict import Again, DeadToken, Delivered, Ours, Scope, Verdict
from ntf_server.store.records import Claim, Ended, Outcome
from smp_bridge.ntf import InvalidReason

_DOUBTFUL = frozenset([InvalidReason.BAD, InvalidReason.TOPIC])


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """`places`: of the provider; `by_origin`: it has many, chosen by strangers; `max_origins`: that are remembered.

    Seconds: the backoff of a token grows from `min_backoff` to `max_backoff`; `ours_backoff`: of a push that is refused
    for a fault of its own; `longest_asked`: of what Retry-After may ask for.
    """

    places: int = 4000
    by_origin: bool = False
    max_origins: int = 4096
    min_backoff: float = 1.0
    max_backoff: float = 300.0
    ours_backoff: float = 120.0
    longest_asked: float = 3600.0
    health: HealthConfig = field(default_factory=HealthConfig)


class Origin:
    """One push service: how it is, how many pushes are under way to it, how many may be; its name once one ended."""

    __slots__ = ("health", "in_flight", "name", "window")

    def __init__(self, health: Health) -> None:
        self.health = health
        self.name = ""
        self.in_flight = 0
        self.window = 1


class Schedule:
    """The places of a provider. `now` is a monotonic clock's, in seconds. What is under way counts, and what is
    reserved.
    """

    def __init__(self, name: str, config: ScheduleConfig, rng: Callable[[], float]) -> None:
        self.name = name
        self.health = Health(config.health, rng, loud=not config.by_origin)
        self.in_flight = 0
        self.reserved = 0
        self._config = config
        self._rng = rng
        self._origins: OrderedDict[bytes, Origin] = OrderedDict()
        self._unproven = 0  # in flight to origins that took nothing yet

    # --- places

    def free(self, now: float) -> int:
        """Places that nobody has."""
        if self.health.is_paused(now):
            return 0
        limit = 1 if self.health.is_probed(now) else self._config.places
        return max(0, limit - self.in_flight - self.reserved)

    def room(self, key: bytes, now: float) -> int:
        """Places that one origin may take of those that are free."""
        if not self._config.by_origin:
            return self._config.places
        origin = self._origins.get(key)
        if origin is None:
            return 1 if self._unproven < self._half else 0
        if origin.health.is_paused(now):
            return 0
        if origin.health.is_probed(now):
            return max(0, 1 - origin.in_flight)
        room = max(0, origin.window - origin.in_flight)
        return room if origin.health.proven else min(room, max(0, self._half - self._unproven))

    @property
    def _half(self) -> int:
        return max(1, self._config.places // 2)

    def begin(self, claims: Sequence[Claim]) -> None:
        """Their pushes are under way."""
        self.in_flight += len(claims)
        if not self._config.by_origin:
            return
        for claim in claims:
            origin = self._origin(claim.lane.origin)
            origin.in_flight += 1
            self._unproven += not origin.health.proven

    def next_resume(self, now: float) -> float | None:
        """When the first origin that is paused now may be tried again."""
        ends = [o.health.paused_until for o in self._origins.values() if o.health.is_paused(now)]
        return min(ends, default=None)

    def resumed(self, since: float, now: float) -> bool:
        """Whether the pause of an origin ended in between."""
        return any(since < o.health.paused_until <= now for o in self._origins.values())

    def origins(self, now: float) -> Mapping[str, int]:
        """How many of them are open, paused and probed."""
        ways = Counter(o.health.way(now) for o in self._origins.values())
        return {way: ways[way] for way in WAYS}

    def facts(self, now: float) -> WayFacts:
        """How this provider is."""
        proven = [origin.health for origin in self._origins.values() if origin.health.proven]
        return replace(
            self.health.facts(self.name, now),
            in_flight=self.in_flight,
            services=len(proven),
            services_in_trouble=sum(health.troubled_since is not None for health in proven),
        )

    def services(self, now: float, most: int) -> list[WayFacts]:
        """The push services that an operator looks at first: that took pushes, and of these those in trouble, the
        longest one first.
        """

        def rank(origin: Origin) -> tuple[bool, bool, float]:
            health = origin.health
            since = health.troubled_since
            return not health.proven, since is None, -(health.accepted_at or 0.0) if since is None else since

        first = nsmallest(most, (o for o in self._origins.values() if o.name), key=rank)
        return [replace(o.health.facts(o.name, now), in_flight=o.in_flight) for o in first]

    def mended(self, now: float) -> None:
        """The operator may have mended what was wrong: everything is tried at once."""
        self.health.mended(now)
        for origin in self._origins.values():
            origin.health.mended(now)
        self._unproven = sum(origin.in_flight for origin in self._origins.values())

    def _origin(self, key: bytes) -> Origin:
        origin = self._origins.get(key)
        if origin is None:
            if len(self._origins) >= self._config.max_origins:
                self._forget_one()
            origin = self._origins[key] = Origin(Health(self._config.health, self._rng, loud=False))
        else:
            self._origins.move_to_end(key)
        return origin

    def _forget_one(self) -> None:
        """The one that was not pushed to for longest; if all have pushes under way there is one too many for a
        while.
        """
        for key, origin in self._origins.items():
            if not origin.in_flight:
                del self._origins[key]
                return

    # --- what a verdict comes to

    def end(
        self, claim: Claim, verdict: Verdict, now: float, service: Callable[[Claim], str]
    ) -> tuple[Outcome, Notice | None]:
        """The push is over: what the store is told, and the operator. `service` names the push service of a claim."""
        self.in_flight -= 1
        if not self._config.by_origin:
            return self._judge(self.health, self.name, claim, verdict, now)
        origin = self._origins[claim.lane.origin]
        origin.in_flight -= 1
        proven = origin.health.proven
        self._unproven -= not proven
        if isinstance(verdict, Delivered):
            origin.window = min(origin.window + 1, self._config.places)
        elif isinstance(verdict, Again) and verdict.scope is not Scope.TOKEN:
            origin.window = max(1, origin.window // 2)
        origin.name = service(claim)
        name = f"{self.name} {origin.name}"
        whole = isinstance(verdict, Ours | Again) and verdict.scope is Scope.PROVIDER
        result = self._judge(self.health if whole else origin.health, self.name if whole else name, claim, verdict, now)
        if origin.health.proven is not proven:  # its other pushes count among the proven from now on
            self._unproven -= origin.in_flight if origin.health.proven else -origin.in_flight
        if isinstance(verdict, Delivered):
            self.health.succeeded(self.name, now)
        return result

    def _judge(
        self, health: Health, name: str, claim: Claim, verdict: Verdict, now: float
    ) -> tuple[Outcome, Notice | None]:
        if isinstance(verdict, Delivered):  # as almost all are
            return Outcome(claim, Ended.DELIVERED, held=verdict.held), health.succeeded(name, now)
        match verdict:
            case DeadToken(reason):
                if claim.delivered_before and not health.proven and reason in _DOUBTFUL:
                    notice = health.suspect(name, now, reason.value)
                    return Outcome(claim, Ended.AGAIN, reason.value, after=self._backoff(claim)), notice
                health.answered(now)
                return Outcome(claim, Ended.DEAD, reason.value, dead=reason), None
            case Again(reason, Scope.TOKEN, after):
                health.answered(now)
                wait = self._backoff(claim) if after is None else min(after, self._config.longest_asked)
                return Outcome(claim, Ended.AGAIN, reason, after=wait), health.failed(name, now, reason)
            case Again(reason, _, after):
                health.unreachable(now, reason, after)
                wait = self._backoff(claim)
                if health is self.health:  # due for its next try: failures say nothing of this token
                    wait = min(wait, max(0.0, health.paused_until - now))
                return Outcome(claim, Ended.AGAIN, reason, after=wait), health.failed(name, now, reason)
            case Ours(reason, Scope.TOKEN):
                health.answered(now)
                return Outcome(claim, Ended.OURS, reason, after=self._config.ours_backoff), health.failed(
                    name, now, reason
                )
            case Ours(reason, Scope.ORIGIN):
                notice = health.refuse(name, now, reason)
                return Outcome(claim, Ended.AGAIN, reason, after=self._backoff(claim)), notice
            case Ours(reason):
                return Outcome(claim, Ended.OURS, reason), health.ours(name, now, reason)

    def _backoff(self, claim: Claim) -> float:
        bound = min(self._config.min_backoff * 2.0 ** min(claim.attempts, 30), self._config.max_backoff)
        return bound * (0.5 + 0.5 * self._rng())
