"""What the live page shows, as JSON: a state every few seconds, and with it, for who has just come, what was before.

Lists are as long as these numbers say, and texts that others chose as long as LONGEST: the page escapes them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ntf_server.observe.condition import Condition, ServersFacts, State, WayCondition, WayFacts, service, way_state
from ntf_server.observe.history import LONG_STEP, STEP, History, Lately, Now, Point
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import (
    Gauge,
    Histogram,
    KindCounter,
    KindGauge,
    PairCounter,
    PairGauge,
    ServerCounter,
    ServerGauge,
)
from ntf_server.observe.recent import LONGEST, Recent, Told, plain

TROUBLES: Final = 20
SERVICES: Final = 20  # of Web Push
SERVERS: Final = 50  # own SMP servers
_SELDOM: Final = 5  # looks between two at one of what takes long where there are many
_OF_SERVERS: Final = (ServerGauge.SESSIONS, ServerGauge.SUBSCRIPTIONS, ServerGauge.PENDING)
_LIMITS: Final = {
    "closed": KindCounter.LIMITS_CLOSED,
    "delayed": KindCounter.LIMITS_DELAYED,
    "refused": KindCounter.LIMITS_REFUSED,
}


@dataclass(frozen=True)
class Sources:
    """Of a relay that runs. `about`: what does not change, in words; `services`: the first so many push services of
    Web Push; `clock`: Unix seconds.
    """

    about: Mapping[str, str]
    metrics: Metrics
    condition: Callable[[], Condition]
    services: Callable[[int], list[WayFacts]]
    servers: Callable[[], ServersFacts]
    clock: Callable[[], float]


class View:
    """`look` every STEP seconds; then `state` is what is to be told of it, and `whole` that with all before."""

    def __init__(self, sources: Sources, recent: Recent) -> None:
        self._sources = sources
        self._recent = recent
        metrics = sources.metrics
        self._history = History(metrics, sources.clock())
        self._lately = {h: Lately(metrics.distribution(h)) for h in Histogram if not h.kinds}
        answered = Histogram.PUSH_ANSWERED
        self._answered = {kind: Lately(metrics.distribution(answered, kind)) for kind in answered.kinds}
        self._limits: dict[tuple[str, str], tuple[int, float]] = {}  # how often, and when last
        self._since: tuple[bool, float] | None = None  # whether it is well, and since when
        self._point: Point | None = None
        self._looks = 0
        self._of_servers: dict[ServerGauge, Mapping[str, float]] = {}
        self._services: list[dict[str, Any]] | None = None
        self._whole = b""
        self.look()

    def look(self) -> None:
        """Some seconds have passed."""
        self._whole = b""
        self._condition = condition = self._sources.condition()
        if self._since is None or self._since[0] != condition.well:
            began = condition.started if self._since is None and condition.well else condition.now
            self._since = condition.well, began
        for lately in (*self._lately.values(), *self._answered.values()):
            lately.look()
        self._count_limits(condition.now)
        since = condition.oldest_due_since
        oldest = 0.0 if since is None else max(0.0, condition.now - since)
        now = Now(condition.due, oldest, condition.clients, condition.well)
        self._point = self._history.take(condition.now, now)
        self._looks += 1

    def state(self) -> bytes:
        """How it is."""
        return msgspec.json.encode(self._state())

    def whole(self) -> bytes:
        """With what was before, and what happened; made once for all who ask meanwhile."""
        if self._whole:
            return self._whole
        before = {
            "about": self._sources.about,
            "step": STEP,
            "long_step": LONG_STEP,
            "points": self._history.points,
            "long": self._history.long,
            "events": self._recent.since(),
        }
        self._whole = msgspec.json.encode({**before, **self._state()})
        return self._whole

    def events(self, after: int) -> list[Told]:
        """That happened after that one."""
        return self._recent.since(after)

    def _state(self) -> dict[str, Any]:
        condition, metrics = self._condition, self._sources.metrics
        self._look_around()
        assert self._since is not None
        return {
            "now": condition.now,
            "started": condition.started,
            "well": condition.well,
            "since": self._since[1],
            "phase": condition.phase,
            "troubles": [plain(trouble, LONGEST) for trouble in condition.troubles[:TROUBLES]],
            "warnings": [plain(warning, LONGEST) for warning in condition.warnings[:TROUBLES]],
            "point": self._point,
            "begun": self._history.begun,
            "totals": {
                "received": metrics.total(ServerCounter.RECEIVED),
                "delivered": metrics.total(ServerCounter.DELIVERED),
                "unknown": metrics.total(ServerCounter.RECEIVED_UNKNOWN),
                "expired": metrics.value(KindCounter.EXPIRED, "notification"),
            },
            "lately": {name: lately.quantiles for name, lately in self._lately.items()},
            "providers": [self._provider(way) for way in condition.providers],
            "smp": condition.smp_servers,
            "clients": condition.clients,
            "limits": [
                {"how": how, "what": what, "count": count, "at": at}
                for (how, what), (count, at) in sorted(self._limits.items(), key=lambda item: -item[1][1])
            ],
            "leases": condition.leases,
            "store": {
                "state": condition.store.state,
                "since": condition.store.since,
                "kind": condition.store.kind,
                "bytes": metrics.read(Gauge.STORE_BYTES),
                "log": metrics.read(Gauge.STORE_LOG),
                "room": metrics.read(Gauge.STORE_ROOM),
            },
            "tokens": self._tokens(),
            "certificates": condition.certificates,
            "services": self._services,
            "servers": self._servers(),
        }

    def _look_around(self) -> None:
        """At what takes long where there are many: at one thing in a look, and at all of it in the first."""
        turn = self._looks % _SELDOM
        for n, name in enumerate(_OF_SERVERS):
            if n == turn or name not in self._of_servers:
                self._of_servers[name] = self._sources.metrics.read_servers(name)
        if turn == len(_OF_SERVERS) or self._services is None:
            self._services = [*map(self._service, self._sources.services(SERVICES))]

    def _provider(self, way: WayCondition) -> dict[str, Any]:
        metrics = self._sources.metrics
        return {
            **msgspec.structs.asdict(way),
            "reason": plain(way.reason, LONGEST),
            "title": service(way.name),
            "waiting": metrics.read_kinds(KindGauge.TOKENS_WAITING).get(way.name, 0),
            "answered": self._answered[way.name].quantiles,
            "delivered": metrics.value(PairCounter.PUSHES_DELIVERED, way.name),
            "dead": metrics.value(PairCounter.PUSHES_FAILED, way.name),
            "retried": metrics.value(PairCounter.PUSHES_RETRIED, way.name),
            "refused": metrics.value(PairCounter.PUSHES_REFUSED, way.name),
        }

    def _service(self, way: WayFacts) -> dict[str, Any]:
        """A push service of Web Push."""
        now, up_for = self._condition.now, self._condition.now - self._condition.started
        return {
            "name": plain(way.name, LONGEST),
            "state": way_state(way, up_for),
            "since": None if way.troubled_for is None else now - way.troubled_for,
            "accepted_at": None if way.accepted_ago is None else now - way.accepted_ago,
            "in_flight": way.in_flight,
            "reason": plain(way.reason, LONGEST),
        }

    def _servers(self) -> dict[str, Any]:
        """SMP servers: own ones by host, those that are away first; all others together."""
        metrics, facts, now = self._sources.metrics, self._sources.servers(), self._condition.now
        sessions, active, pending = (self._of_servers[name] for name in _OF_SERVERS)
        away = {server.name.lower(): now - server.seconds for server in facts.away if server.name}
        own = [
            {
                "host": plain(host, LONGEST),
                "state": State.FAILING if host in away else State.WELL,
                "since": away.get(host),
                "active": active.get(host, 0),
                "pending": pending.get(host, 0),
                "received": metrics.value(ServerCounter.RECEIVED, host),
            }
            for host in sorted({*sessions, *away} - {""}, key=lambda host: (host not in away, -active.get(host, 0)))
        ]
        return {
            "own": own[:SERVERS],
            "more": max(0, len(own) - SERVERS),
            "other": {
                "connected": sessions.get("", 0),
                "away": sum(not server.name for server in facts.away),
                "never": facts.never,
                "active": active.get("", 0),
                "pending": pending.get("", 0),
                "received": metrics.value(ServerCounter.RECEIVED),
            },
        }

    def _tokens(self) -> dict[str, Any]:
        metrics = self._sources.metrics
        by_status: dict[str, float] = {}
        for (_, status), count in metrics.read_pairs(PairGauge.TOKENS).items():
            by_status[status] = by_status.get(status, 0) + count
        return {
            "status": by_status,
            "active": metrics.read_kinds(KindGauge.TOKENS_ACTIVE),
            "subscriptions": metrics.read(Gauge.SUBSCRIPTIONS_STORED),
        }

    def _count_limits(self, now: float) -> None:
        """Budgets that strangers used up, and when that was last."""
        for how, counter in _LIMITS.items():
            for what in counter.kinds:
                count = self._sources.metrics.value(counter, what)
                if count != self._limits.get((how, what), (0, 0.0))[0]:
                    self._limits[how, what] = count, now
