"""Is it well? What is known of a relay, and what that comes to, in states and sentences. No I/O, no clock.

Facts are counts, words and seconds; whoever gathers them (`admin.facts`) has the clocks. Times of a `Condition` are
Unix seconds. What a stranger can bring about makes no trouble: push services of Web Push, SMP servers that never
confirmed a subscription.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final

import msgspec

from ntf_server.observe.moments import day_of

STALLED: Final = 300.0  # seconds for which something was due and nothing was accepted
LASTING: Final = 30.0  # seconds after which what may pass by itself is trouble
ENDING: Final = 30 * 86400.0  # seconds before a certificate's end from which it is told of
MAX_NAMED: Final = 10  # servers that are named, of those that are missing

_SERVICES: Final = {
    "AD": "APNs sandbox (AD)",
    "AP": "APNs (AP)",
    "AT": "APNs test (AT)",
    "AN": "APNs null (AN)",
    "FC": "FCM (FC)",
    "WP": "Web Push (WP)",
}
_STORE: Final = {
    "unavailable": "it cannot be reached, or another process locks it",
    "full": "there is no room",
    "corrupt": "it is damaged, or another one is there",
    "silent": "it does not answer",
}

# Certificates by `names.CERTIFICATES`: what each is, and what to do before it ends.
CERTIFICATES: Final = {
    "online": ("the online certificate", "make one by `ntf-server cert`, then `ntf-server reload`"),
    "identity": ("the identity's certificate", "the server's address is made of it: a new one is another server's"),
    "apns": ("the client certificate for APNs", "renew it at Apple, then `ntf-server reload`"),
    "redis": ("the client certificate for Redis", "have it renewed, then `ntf-server reload`"),
}


class Phase(StrEnum):
    """Of the life of a process. `STOPPED`: there is none."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


class State(StrEnum):
    """Of what a relay depends on.

    FAILING: it does not do what it should; PAUSED: nothing is pushed that way until a moment; PROBING: one push shows
    whether that is over; OURS: it refuses pushes for what the operator has to mend; ENDING: it is well, but not for
    long.
    """

    WELL = "well"
    FAILING = "failing"
    PAUSED = "paused"
    PROBING = "probing"
    OURS = "ours-to-mend"
    ENDING = "ending"


# --- facts


class StoreFacts(msgspec.Struct, frozen=True):
    """`failing_for`: seconds, None: it does not fail; `kind`: of its last error, as in metrics, or "silent"; `partly`:
    something else was done meanwhile.

    Where nodes share it: `shards` of `all_shards` are this node's, `silent_shards` of all cannot be had now, since
    their server is away, and `nodes` live.
    """

    failing_for: float | None = None
    kind: str = ""
    partly: bool = False
    shards: int = 0
    all_shards: int = 0
    silent_shards: int = 0
    nodes: int = 0


class WayFacts(msgspec.Struct, frozen=True):
    """A provider. `troubled_for`: seconds since the first failure after which nothing was accepted; `paused_for`: until
    it is tried again, 0: now; `is_ours`: it is for the operator to mend; `reason`: the last failure in its own words;
    `accepted_ago`: None: never since the start.

    `due`: tokens, `oldest_due`: seconds that the oldest of them is due; None: it is not known, or nothing is.
    `services`: push services that took pushes, `services_in_trouble` of these: strangers choose them.
    """

    name: str
    in_flight: int = 0
    troubled_for: float | None = None
    paused_for: float = 0.0
    is_probed: bool = False
    is_ours: bool = False
    reason: str = ""
    accepted_ago: float | None = None
    due: int = 0
    oldest_due: float | None = None
    services: int = 0
    services_in_trouble: int = 0

    @property
    def is_strangers(self) -> bool:
        """Whether they choose where it pushes to, so that what waits there says nothing of this relay."""
        return self.name == "WP"


class AwayFacts(msgspec.Struct, frozen=True):
    """An SMP server without a session: for how long; `name` of an own one, empty of others."""

    seconds: float
    name: str = ""


class ServersFacts(msgspec.Struct, frozen=True):
    """SMP servers of this node: `wanted`, since something is subscribed there, and `connected` of these.

    `away`: those of the others that confirmed a subscription before; `never`: how many never did.
    """

    wanted: int = 0
    connected: int = 0
    away: tuple[AwayFacts, ...] = ()
    never: int = 0


class VapidFacts(msgspec.Struct, frozen=True):
    """Registrations of Web Push of this node that are pushed to, by the VAPID key that they are for: the one in force,
    older ones, or one that is not known, or not there any more; `counted_ago`: seconds.
    """

    in_force: int
    old: int
    unknown: int
    counted_ago: float


class Facts(msgspec.Struct, frozen=True):
    """All of it. `up_for`: seconds since the start; `failing_parts`: of the program, which wait to be started again;
    `certificates`: seconds until the end of each that is in use, by `names.CERTIFICATES`.
    """

    phase: Phase
    up_for: float = 0.0
    store: StoreFacts = StoreFacts()
    ways: tuple[WayFacts, ...] = ()
    servers: ServersFacts = ServersFacts()
    clients: int = 0
    failing_parts: tuple[str, ...] = ()
    certificates: Mapping[str, float] = {}
    vapid: VapidFacts | None = None


# --- what they come to


class StoreCondition(msgspec.Struct, frozen=True):
    """`since`: when it began to fail, if that is known; `kind`: of its last error; `partly`: a part of it does what it
    should.
    """

    state: State
    since: float | None = None
    kind: str = ""
    partly: bool = False


class WayCondition(msgspec.Struct, frozen=True):
    """A provider. `since`: when the first push failed after which none was accepted; `paused_until`: when it is tried
    again; `stalled`: something has been due for STALLED seconds, and it took nothing.
    """

    name: str
    state: State
    since: float | None
    paused_until: float | None
    accepted_at: float | None
    reason: str
    due: int
    oldest_due_since: float | None
    in_flight: int
    stalled: bool
    services: int
    services_in_trouble: int


class ServersCondition(msgspec.Struct, frozen=True):
    """`away`: that confirmed a subscription before, and are not connected, the first of them since `away_since`;
    `never`: that never did. `own_away`: names of own ones that are away for LASTING seconds.
    """

    state: State
    wanted: int
    connected: int
    away: int
    away_since: float | None
    never: int
    own_away: tuple[str, ...]


class Leases(msgspec.Struct, frozen=True):
    """Of a store that nodes share: what is this node's."""

    servers: int
    shards: int
    all_shards: int
    silent_shards: int
    nodes: int


class VapidCondition(msgspec.Struct, frozen=True):
    """Registrations as in `VapidFacts`, and when they were counted."""

    in_force: int
    old: int
    unknown: int
    counted_at: float


class CertificateCondition(msgspec.Struct, frozen=True):
    """One that is in use. `ends`: when; ENDING: within ENDING seconds, FAILING: it has ended."""

    name: str
    state: State
    ends: float


class Condition(msgspec.Struct, frozen=True):
    """`troubles`: sentences, none: it is well. `warnings`: sentences on what will be trouble if nobody does anything.
    `unready`: why no clients are to be sent here, empty: they are.

    `delivers`: False: the store fails, or a provider is stalled.
    """

    well: bool
    phase: Phase
    unready: str
    delivers: bool
    troubles: tuple[str, ...]
    warnings: tuple[str, ...]
    now: float
    started: float
    store: StoreCondition
    providers: tuple[WayCondition, ...]
    smp_servers: ServersCondition
    clients: int
    leases: Leases | None
    failing_parts: tuple[str, ...]
    certificates: tuple[CertificateCondition, ...]
    vapid: VapidCondition | None

    @property
    def due(self) -> int:
        """Tokens, of all providers."""
        return sum(way.due for way in self.providers)

    @property
    def oldest_due_since(self) -> float | None:
        """Since when the oldest of them is; None: none is due."""
        return min((way.oldest_due_since for way in self.providers if way.oldest_due_since is not None), default=None)


def assess(facts: Facts, now: float) -> Condition:
    """`now`: Unix seconds."""
    certificates = tuple(certificate(name, now + left, now) for name, left in facts.certificates.items())
    troubles = tuple(_troubles(facts, certificates, now))
    store_fails, vapid = facts.store.failing_for is not None and not facts.store.partly, facts.vapid
    return Condition(
        well=not troubles,
        phase=facts.phase,
        unready=_unready(facts, store_fails=store_fails),
        delivers=not store_fails and not any(is_stalled(way, facts.up_for) for way in facts.ways),
        troubles=troubles,
        warnings=tuple(certificate_sentence(c, now) for c in certificates if c.state is State.ENDING),
        now=now,
        started=now - facts.up_for,
        store=_store(facts.store, now),
        providers=tuple(_way(way, facts.up_for, now) for way in facts.ways),
        smp_servers=_servers(facts.servers, now),
        clients=facts.clients,
        leases=_leases(facts),
        failing_parts=facts.failing_parts,
        certificates=certificates,
        vapid=None
        if vapid is None
        else VapidCondition(vapid.in_force, vapid.old, vapid.unknown, now - vapid.counted_ago),
    )


def is_stalled(way: WayFacts, up_for: float) -> bool:
    """Whether something has been due for STALLED seconds, or has failed again and again for as long, and this provider
    took nothing in that time.
    """
    if way.is_strangers or not _waits(way):
        return False
    late = max(way.oldest_due or 0.0, way.troubled_for or 0.0)
    return late > STALLED and (up_for if way.accepted_ago is None else way.accepted_ago) > STALLED


def way_state(way: WayFacts, up_for: float) -> State:
    """Of a provider."""
    if way.troubled_for is not None:
        if way.is_ours:
            return State.OURS
        if way.paused_for > 0:
            return State.PAUSED
        if way.is_probed:
            return State.PROBING
        if way.troubled_for >= LASTING and _waits(way) and not way.is_strangers:
            return State.FAILING
    return State.FAILING if is_stalled(way, up_for) else State.WELL


def servers_state(servers: ServersFacts) -> State:
    """FAILING: an own one is away for long, or all are that ever confirmed anything, as without a network."""
    lasting = [away for away in servers.away if away.seconds >= LASTING]
    all_away = not servers.connected and lasting and len(lasting) == len(servers.away)
    return State.FAILING if all_away or any(away.name for away in lasting) else State.WELL


def certificate(name: str, ends: float, now: float) -> CertificateCondition:
    """How one is that ends then."""
    left = ends - now
    state = State.FAILING if left <= 0 else State.ENDING if left <= ENDING else State.WELL
    return CertificateCondition(name, state, ends)


def certificate_words(found: CertificateCondition, now: float) -> tuple[str, str]:
    """(What is so of one, what to do before it ends)"""
    what, cure = CERTIFICATES[found.name]
    day = day_of(found.ends)
    if found.state is State.FAILING:
        return f"{what} has ended on {day}", cure
    if found.state is State.ENDING:
        return f"{what} ends on {day}, in {duration(found.ends - now)}", cure
    return f"{what} is good until {day}", cure


def certificate_sentence(found: CertificateCondition, now: float) -> str:
    """What is to be done about one that ends."""
    return ": ".join(certificate_words(found, now))


def service(name: str) -> str:
    """A provider by its code, in words."""
    return _SERVICES.get(name, name)


def duration(seconds: float) -> str:
    """In the largest unit of which there are two, or in seconds."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def _waits(way: WayFacts) -> bool:
    return bool(way.due or way.in_flight)


def _before(now: float, seconds: float | None) -> float | None:
    return None if seconds is None else now - seconds


def _unready(facts: Facts, *, store_fails: bool) -> str:
    if facts.phase is not Phase.RUNNING:
        return facts.phase.value
    return _store_sentence(facts.store) if store_fails else ""


def _store(store: StoreFacts, now: float) -> StoreCondition:
    if store.failing_for is None and store.silent_shards:
        return StoreCondition(State.FAILING, kind="unavailable", partly=True)
    state = State.WELL if store.failing_for is None else State.FAILING
    return StoreCondition(state, _before(now, store.failing_for), store.kind, store.partly)


def _way(way: WayFacts, up_for: float, now: float) -> WayCondition:
    return WayCondition(
        way.name,
        way_state(way, up_for),
        _before(now, way.troubled_for),
        now + way.paused_for if way.paused_for > 0 else None,
        _before(now, way.accepted_ago),
        way.reason,
        way.due,
        _before(now, way.oldest_due),
        way.in_flight,
        is_stalled(way, up_for),
        way.services,
        way.services_in_trouble,
    )


def _servers(servers: ServersFacts, now: float) -> ServersCondition:
    longest = max((away.seconds for away in servers.away), default=None)
    own = sorted(away.name for away in servers.away if away.name and away.seconds >= LASTING)
    return ServersCondition(
        servers_state(servers),
        servers.wanted,
        servers.connected,
        len(servers.away),
        _before(now, longest),
        servers.never,
        tuple(own[:MAX_NAMED]),
    )


def _leases(facts: Facts) -> Leases | None:
    store = facts.store
    if not store.all_shards:
        return None
    return Leases(facts.servers.wanted, store.shards, store.all_shards, store.silent_shards, store.nodes)


# --- sentences


def _troubles(facts: Facts, certificates: Iterable[CertificateCondition], now: float) -> Iterator[str]:
    if facts.store.failing_for is not None:
        yield _store_sentence(facts.store)
    if facts.store.silent_shards:
        yield f"{facts.store.silent_shards} of {facts.store.all_shards} shards of tokens wait for a server that is away"
    for way in facts.ways:
        yield from _way_sentences(way, facts.up_for)
    if servers_state(facts.servers) is State.FAILING:
        yield _servers_sentence(facts.servers)
    for found in certificates:
        if found.state is State.FAILING:
            yield certificate_sentence(found, now)
    for part in facts.failing_parts:
        yield f"a part of this server fails and is started again, by a fault of the program: {part}; the log has more"


def _store_sentence(store: StoreFacts) -> str:
    what = "a part of the store fails" if store.partly else "the store fails"
    return f"{what}, for {duration(store.failing_for or 0.0)}: {store.kind}: {_STORE.get(store.kind, 'see the log')}"


def _way_sentences(way: WayFacts, up_for: float) -> Iterator[str]:
    name, state, lasted = service(way.name), way_state(way, up_for), duration(way.troubled_for or 0.0)
    next_try = f"the next try is in {duration(way.paused_for)}" if way.paused_for > 0 else "it is tried now"
    match state:
        case State.OURS:
            yield f"{name} refuses pushes for what is this server's to mend, for {lasted}: {way.reason} ({next_try})"
        case State.PAUSED | State.PROBING:
            yield f"{name} takes no pushes, for {lasted}: {way.reason} ({next_try})"
        case State.FAILING if way.troubled_for is not None:
            yield f"{name}: no push has gone through for {lasted}: {way.reason}"
    if is_stalled(way, up_for):
        late = duration(max(way.oldest_due or 0.0, way.troubled_for or 0.0))
        yield f"{name}: nothing was delivered for {late}, and {way.due + way.in_flight} device tokens wait"


def _servers_sentence(servers: ServersFacts) -> str:
    own = [away for away in servers.away if away.name and away.seconds >= LASTING]
    if own:
        names = sorted(away.name for away in own)
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        longest = duration(max(away.seconds for away in own))
        return f"own SMP servers are not connected, for up to {longest}: {', '.join(names[:MAX_NAMED])}{more}"
    shortest = duration(min(away.seconds for away in servers.away))
    return f"none of {len(servers.away)} SMP servers is connected, for {shortest}: is this machine's network there?"
