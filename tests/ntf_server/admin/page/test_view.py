"""What the live page shows, of facts that a test makes up; of a real relay: test_site.py, and test_page.py."""

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from ntf_server.admin.page.view import SERVERS, SERVICES, TROUBLES, Sources, View
from ntf_server.observe.condition import (
    AwayFacts,
    Condition,
    Facts,
    Phase,
    ServersFacts,
    StoreFacts,
    WayFacts,
    assess,
)
from ntf_server.observe.events import Event
from ntf_server.observe.history import STEP
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
from ntf_server.observe.recent import LONGEST, Recent
from smp_bridge.address import ServerAddress

T = 1_800_000_000.0


def server(host: str) -> ServerAddress:
    return ServerAddress("smp", (host,), "", bytes(32))


class World:
    """A relay that a test makes up."""

    def __init__(self, **facts: Any) -> None:
        self.metrics = Metrics(["example.org"])
        self.recent = Recent()
        self.at = T
        self.facts = Facts(Phase.RUNNING, 600.0, **facts)
        self.services: list[WayFacts] = []
        self.view = View(
            Sources(
                {"version": "1"},
                self.metrics,
                self.condition,
                lambda most: self.services[:most],
                lambda: self.facts.servers,
                lambda: self.at,
            ),
            self.recent,
        )

    def condition(self) -> Condition:
        return assess(self.facts, self.at)

    def become(self, **facts: Any) -> None:
        self.facts = msgspec.structs.replace(self.facts, up_for=self.facts.up_for + STEP, **facts)
        self.at += STEP
        self.view.look()

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = msgspec.json.decode(self.view.state())
        return state

    @property
    def whole(self) -> dict[str, Any]:
        whole: dict[str, Any] = msgspec.json.decode(self.view.whole())
        return whole


def test_one_that_is_well() -> None:
    world = World(ways=(WayFacts("AP", accepted_ago=3.0),), clients=7)
    state = world.state
    assert (state["well"], state["since"], state["phase"], state["clients"]) == (True, T - 600, "running", 7)
    assert (state["point"], state["troubles"], state["limits"], state["services"]) == (None, [], [], [])
    [provider] = state["providers"]
    assert (provider["title"], provider["state"], provider["accepted_at"]) == ("APNs (AP)", "well", T - 3)
    whole = world.whole
    assert (whole["about"], whole["step"], whole["points"], whole["events"]) == ({"version": "1"}, STEP, [], [])
    assert {**state, **whole} == whole


def test_since_when_it_is_not_well_and_since_when_it_is_again() -> None:
    world = World()
    world.become()
    world.become(store=StoreFacts(2.0, "full"))
    world.become(store=StoreFacts(4.0, "full"))
    state = world.state
    assert (state["well"], state["since"], state["store"]["kind"]) == (False, T + 2 * STEP, "full")
    assert state["troubles"] == ["the store fails, for 4 s: full: there is no room"]
    assert [point["troubled"] for point in world.whole["points"]] == [0.0, 1.0, 1.0]
    world.become(store=StoreFacts())
    state = world.state
    assert (state["well"], state["since"]) == (True, T + 4 * STEP)
    assert state["begun"]["troubled"] == 0.5


def test_one_that_is_not_well_from_the_start() -> None:
    state = World(store=StoreFacts(2.0, "full")).state
    assert (state["well"], state["since"]) == (False, T)


def test_what_flows() -> None:
    world = World(ways=(WayFacts("AP", 3, due=5, oldest_due=8.0), WayFacts("FC", due=2, oldest_due=1.0)))
    world.metrics.kind_gauge(KindGauge.TOKENS_WAITING, lambda: {"AP": 4})
    world.metrics.count_server(ServerCounter.RECEIVED, server("smp.example.org"), 20)
    world.metrics.count_server(ServerCounter.DELIVERED, server("b.example.net"), 10)
    world.metrics.count_kind(KindCounter.EXPIRED, "notification", 3)
    for name, counter in (("delivered", PairCounter.PUSHES_DELIVERED), ("refused", PairCounter.PUSHES_REFUSED)):
        world.metrics.count_pair(counter, "AP", "messages", len(name))
    world.metrics.observe(Histogram.PUSH_ANSWERED, 0.02, "AP")
    world.metrics.observe(Histogram.NOTIFICATION_DELIVERED, 0.07)
    world.become()
    state = world.state
    assert (state["point"]["received"], state["point"]["delivered"]) == (10.0, 5.0)
    assert (state["point"]["due"], state["point"]["oldest"]) == (7, 8.0)
    assert state["totals"] == {"received": 20, "delivered": 10, "unknown": 0, "expired": 3}
    apns, fcm = state["providers"]
    assert (apns["due"], apns["waiting"], apns["in_flight"], fcm["waiting"]) == (5, 4, 3, 0)
    assert (apns["delivered"], apns["refused"], apns["retried"], apns["dead"]) == (9, 7, 0, 0)
    assert apns["answered"][0] == pytest.approx(0.0175) and fcm["answered"] == [None, None, None]
    assert state["lately"]["ntf_notification_delivered_seconds"][0] == pytest.approx(0.075)


def test_smp_servers_are_own_ones_and_all_others_together() -> None:
    away = (AwayFacts(90.0, "A.example.org"), AwayFacts(100.0), AwayFacts(1.0))
    world = World(servers=ServersFacts(6, 3, away, never=1))
    gauges: Mapping[ServerGauge, Mapping[str, int]] = {
        ServerGauge.SESSIONS: {"b.example.org": 1, "c.example.org": 1, "x.net": 1, "y.net": 1},
        ServerGauge.SUBSCRIPTIONS: {"b.example.org": 5, "c.example.org": 9, "x.net": 2, "y.net": 3},
        ServerGauge.PENDING: {"c.example.org": 4, "y.net": 6},
    }
    for name, values in gauges.items():
        world.metrics.server_gauge(name, lambda v=values: [(server(h), n) for h, n in v.items()])  # type: ignore[misc]
    world.metrics.count_server(ServerCounter.RECEIVED, server("c.example.org"), 3)
    world.metrics.count_server(ServerCounter.RECEIVED, server("y.net"), 2)
    servers = world.state["servers"]
    assert servers == {
        "own": [
            {"host": "a.example.org", "state": "failing", "since": T - 90, "active": 0, "pending": 0, "received": 0},
            {"host": "c.example.org", "state": "well", "since": None, "active": 9, "pending": 4, "received": 3},
            {"host": "b.example.org", "state": "well", "since": None, "active": 5, "pending": 0, "received": 0},
        ],
        "more": 0,
        "other": {"connected": 2, "away": 2, "never": 1, "active": 5, "pending": 6, "received": 2},
    }


def test_where_there_are_many_one_thing_is_looked_at_in_a_look() -> None:
    """So that the event loop is not held up for long."""
    world, reads = World(), []
    for name in (ServerGauge.SESSIONS, ServerGauge.SUBSCRIPTIONS, ServerGauge.PENDING):
        world.metrics.server_gauge(name, lambda name=name: reads.append(name) or [])  # type: ignore[misc]
    world.become()
    assert len(world.state["servers"]) and len(reads) == 3
    for _ in range(10):
        before = len(reads)
        world.become()
        assert len(world.state["servers"]) and len(reads) - before <= 1
    assert len(reads) == 9 and len(set(reads)) == 3


def test_budgets_that_were_hit_and_when_that_was_last() -> None:
    world = World()
    world.metrics.count_kind(KindCounter.LIMITS_CLOSED, "sessions", 2)
    world.become()
    world.metrics.count_kind(KindCounter.LIMITS_DELAYED, "commands", 5)
    world.become()
    world.become()
    assert world.state["limits"] == [
        {"how": "delayed", "what": "commands", "count": 5, "at": T + 2 * STEP},
        {"how": "closed", "what": "sessions", "count": 2, "at": T + STEP},
    ]


def test_store_leases_registrations_and_certificates() -> None:
    world = World(store=StoreFacts(shards=20, all_shards=64, silent_shards=1, nodes=3), servers=ServersFacts(4, 4))
    assert (world.state["store"]["bytes"], world.state["tokens"]["subscriptions"]) == (None, None)
    for name, value in ((Gauge.STORE_BYTES, 900), (Gauge.STORE_ROOM, 100), (Gauge.SUBSCRIPTIONS_STORED, 12)):
        world.metrics.gauge(name, lambda v=value: v)  # type: ignore[misc]
    counted = {("AP", "ACTIVE"): 3, ("FC", "ACTIVE"): 2, ("FC", "INVALID"): 1}
    world.metrics.pair_gauge(PairGauge.TOKENS, lambda: counted)
    world.metrics.kind_gauge(KindGauge.TOKENS_ACTIVE, lambda: {"day": 4})
    world.become(certificates={"online": 86400.0})
    state = world.state
    assert state["leases"] == {"servers": 4, "shards": 20, "all_shards": 64, "silent_shards": 1, "nodes": 3}
    assert (state["store"]["bytes"], state["store"]["log"], state["store"]["room"]) == (900, None, 100)
    assert state["tokens"] == {"status": {"ACTIVE": 5, "INVALID": 1}, "active": {"day": 4}, "subscriptions": 12}
    assert state["certificates"] == [{"name": "online", "state": "ending", "ends": world.at + 86400}]
    assert len(state["warnings"]) == 1 and state["warnings"][0] not in state["troubles"]


def test_what_strangers_choose_is_bounded_and_on_one_line() -> None:
    long = "<img src=x onerror=alert(1)>\n\u202e" + "x" * 10_000
    own = tuple(AwayFacts(100.0, f"{n}.example.org") for n in range(SERVERS + 30))
    world = World(ways=(WayFacts("WP", 1, 100.0, 5.0, reason=long),), servers=ServersFacts(900, 0, own))
    world.services = [WayFacts(f"https://{n}.{long}", troubled_for=9.0, paused_for=3.0, reason=long) for n in range(99)]
    world.become(failing_parts=tuple(f"{n} {long}" for n in range(90)))
    for n in range(500):
        world.recent.emit(record(f"{n} {long}"))
    whole = world.whole
    assert len(whole["troubles"]) == TROUBLES
    assert (len(whole["services"]), len(whole["servers"]["own"]), whole["servers"]["more"]) == (SERVICES, SERVERS, 30)
    texts = [*whole["troubles"], whole["providers"][0]["reason"], *(event[4] for event in whole["events"])]
    texts += [service[key] for service in whole["services"] for key in ("name", "reason")]
    assert all(len(text) <= LONGEST and text.isprintable() for text in texts)
    assert len(world.view.whole()) < 60_000
    assert whole["services"][0] == {
        "name": world.services[0].name.replace("\n", "·").replace("\u202e", "·")[: LONGEST - 1] + "…",
        "state": "paused",
        "since": world.at - 9,
        "accepted_at": None,
        "in_flight": 0,
        "reason": whole["services"][0]["reason"],
    }


def record(text: str) -> logging.LogRecord:
    """As an event is told."""
    told = logging.makeLogRecord({"levelno": logging.ERROR, "levelname": "ERROR", "msg": "%s", "args": (text,)})
    told.event = Event.STORE_TROUBLE
    return told
