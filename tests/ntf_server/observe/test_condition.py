"""What facts come to: states, sentences, and the three answers of the endpoint."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from ntf_server.observe import condition
from ntf_server.observe.condition import (
    LASTING,
    MAX_NAMED,
    STALLED,
    AwayFacts,
    Condition,
    Facts,
    Phase,
    ServersFacts,
    State,
    StoreFacts,
    WayFacts,
    assess,
)
from ntf_server.observe.names import CERTIFICATES

NOW = 1_800_000_000.0
UP = 10_000.0
REFUSED = "403 InvalidProviderToken"


def judged(**facts: Any) -> Condition:
    return assess(Facts(Phase.RUNNING, UP, **facts), NOW)


def of_way(**facts: Any) -> Condition:
    return judged(ways=(WayFacts("AP", **facts),))


def test_nothing_is_wrong() -> None:
    way = WayFacts("AP", accepted_ago=3.0, due=2, oldest_due=1.0, in_flight=1, reason="503")
    servers = ServersFacts(wanted=3, connected=2, away=(AwayFacts(5.0),))
    found = judged(ways=(way,), servers=servers, clients=7)
    assert (found.well, found.troubles, found.unready, found.delivers) == (True, (), "", True)
    assert (found.now, found.started, found.clients, found.leases) == (NOW, NOW - UP, 7, None)
    assert found.store == condition.StoreCondition(State.WELL)
    [provider] = found.providers
    assert (provider.state, provider.since, provider.paused_until) == (State.WELL, None, None)
    assert (provider.accepted_at, provider.oldest_due_since) == (NOW - 3, NOW - 1)
    assert (provider.due, provider.in_flight, provider.stalled, provider.reason) == (2, 1, False, "503")
    assert found.smp_servers == condition.ServersCondition(State.WELL, 3, 2, 1, NOW - 5, 0, ())


def test_what_is_told_can_be_read_again() -> None:
    """By `ntf-server status`, by whatever reads `/health`."""
    told = of_way(troubled_for=5.0, paused_for=2.0, reason=REFUSED)
    assert msgspec.json.decode(msgspec.json.encode(told), type=Condition) == told


# --- is it to have clients?


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.RUNNING])
def test_clients_go_elsewhere_while_it_does_not_run(phase: Phase) -> None:
    found = assess(Facts(phase), NOW)
    assert (found.unready, found.well, found.delivers) == (phase.value, True, True)


@pytest.mark.parametrize("kind", ["unavailable", "full", "corrupt", "silent"])
def test_a_store_that_fails(kind: str) -> None:
    found = judged(store=StoreFacts(200.0, kind))
    assert (found.well, found.delivers) == (False, False)
    assert found.troubles == (found.unready,)
    assert found.unready.startswith(f"the store fails, for 3 min: {kind}: ")
    assert not found.unready.endswith("see the log")
    assert found.store == condition.StoreCondition(State.FAILING, NOW - 200, kind)


def test_a_part_of_a_store_that_fails_keeps_no_clients_away() -> None:
    found = judged(store=StoreFacts(5.0, "unavailable", partly=True, shards=2, all_shards=4, silent_shards=1, nodes=2))
    assert (found.well, found.delivers, found.unready) == (False, True, "")
    assert found.troubles[0].startswith("a part of the store fails, for 5 s: unavailable: ")
    assert found.troubles[1:] == ("1 of 4 shards of tokens wait for a server that is away",)
    assert found.leases == condition.Leases(0, 2, 4, 1, 2)


def test_shards_that_cannot_be_had_make_trouble_also_if_nothing_is_asked_of_them() -> None:
    found = judged(store=StoreFacts(shards=2, all_shards=4, silent_shards=2, nodes=2))
    assert (found.well, found.delivers, found.unready) == (False, True, "")
    assert found.store == condition.StoreCondition(State.FAILING, kind="unavailable", partly=True)
    assert found.troubles == ("2 of 4 shards of tokens wait for a server that is away",)


def test_a_kind_of_error_that_nobody_knows_is_told() -> None:
    assert judged(store=StoreFacts(5.0, "new")).troubles == ("the store fails, for 5 s: new: see the log",)


# --- providers


def test_a_provider_that_refuses_us() -> None:
    """Also while it is tried: it stays the operator's to mend until it took something."""
    for more in ({"paused_for": 30.0}, {"is_probed": True}, {}):
        found = of_way(troubled_for=130.0, is_ours=True, reason=REFUSED, **more)
        assert (found.providers[0].state, found.well, found.delivers, found.unready) == (State.OURS, False, True, "")
        [text] = found.troubles
        assert text.startswith(f"APNs (AP) refuses pushes for what is this server's to mend, for 2 min: {REFUSED} (")
    assert of_way(troubled_for=1.0, is_ours=True, paused_for=30.0).troubles[0].endswith("(the next try is in 30 s)")
    assert of_way(troubled_for=1.0, is_ours=True).troubles[0].endswith("(it is tried now)")


def test_a_provider_that_is_away() -> None:
    """It keeps nobody's clients away: another node cannot reach it either."""
    paused = of_way(troubled_for=10.0, paused_for=4.0, reason="connection refused")
    assert paused.providers[0].state is State.PAUSED
    assert paused.providers[0].paused_until == NOW + 4
    assert paused.troubles == ("APNs (AP) takes no pushes, for 10 s: connection refused (the next try is in 4 s)",)
    assert (paused.unready, paused.delivers) == ("", True)
    probed = of_way(troubled_for=10.0, is_probed=True, reason="connection refused")
    assert probed.providers[0].state is State.PROBING
    assert probed.troubles == ("APNs (AP) takes no pushes, for 10 s: connection refused (it is tried now)",)


def test_pushes_that_fail_one_by_one() -> None:
    """For a while that is nobody's trouble, and not if nothing waits any more."""
    facts: dict[str, Any] = {"reason": "500 InternalServerError", "due": 1}
    assert of_way(troubled_for=LASTING - 1, **facts).well
    found = of_way(troubled_for=LASTING, **facts)
    assert found.providers[0].state is State.FAILING
    assert found.troubles == ("APNs (AP): no push has gone through for 30 s: 500 InternalServerError",)
    assert found.delivers
    assert of_way(**{"troubled_for": LASTING, **facts, "due": 0}).well


LATE = STALLED + 1


@pytest.mark.parametrize(
    ("facts", "is_stalled"),
    [
        ({"due": 1, "oldest_due": LATE}, True),
        ({"due": 1, "oldest_due": LATE, "accepted_ago": LATE}, True),
        ({"due": 1, "troubled_for": LATE}, True),  # what is tried again is due later each time
        ({"in_flight": 1, "troubled_for": LATE}, True),
        ({"due": 1, "oldest_due": LATE, "accepted_ago": STALLED}, False),  # something goes through
        ({"due": 1, "oldest_due": STALLED}, False),
        ({"due": 1, "oldest_due": None}, False),  # codes that wait for their turn
        ({"troubled_for": LATE}, False),  # nothing waits
        ({"oldest_due": LATE}, False),
    ],
)
def test_nothing_is_delivered_although_it_should_be(facts: dict[str, Any], is_stalled: bool) -> None:
    found = of_way(**facts)
    assert (found.providers[0].stalled, found.delivers) == (is_stalled, not is_stalled)
    assert any("nothing was delivered for" in text for text in found.troubles) is is_stalled
    assert not is_stalled or not found.well
    assert found.unready == ""
    strangers = judged(ways=(WayFacts("WP", **facts),))  # whoever subscribes chooses where that goes
    assert strangers.delivers and strangers.well


def test_a_server_that_has_just_started_has_its_time() -> None:
    way = WayFacts("AP", due=1, oldest_due=3600.0)  # as the store says, from before the start
    assert assess(Facts(Phase.RUNNING, STALLED, ways=(way,)), NOW).delivers
    assert not assess(Facts(Phase.RUNNING, STALLED + 1, ways=(way,)), NOW).delivers


def test_one_provider_of_two_that_is_stalled() -> None:
    ways = (
        WayFacts("FC", accepted_ago=1.0, due=9, oldest_due=2.0),
        WayFacts("AP", due=3, in_flight=1, oldest_due=LATE),
    )
    found = judged(ways=ways)
    assert not found.delivers
    assert found.troubles == ("APNs (AP): nothing was delivered for 5 min, and 4 device tokens wait",)


def test_push_services_are_strangers() -> None:
    """They are counted, and make no trouble of ours; what is Web Push's as a whole does."""
    way = WayFacts("WP", troubled_for=3600.0, due=5, services=3, services_in_trouble=2)
    found = judged(ways=(way,))
    assert found.well
    assert (found.providers[0].services, found.providers[0].services_in_trouble) == (3, 2)
    assert not judged(ways=(replace(way, paused_for=3.0),)).well


# --- SMP servers


def test_servers_that_are_away() -> None:
    """Others' come and go; an own one is missed after a minute; none at all is rather our network."""
    away = (AwayFacts(LASTING), AwayFacts(7200.0))
    found = judged(servers=ServersFacts(wanted=9, connected=3, away=away, never=4))
    assert found.well
    assert (found.smp_servers.away, found.smp_servers.away_since, found.smp_servers.never) == (2, NOW - 7200, 4)
    none = judged(servers=ServersFacts(wanted=6, connected=0, away=away, never=4))
    assert none.smp_servers.state is State.FAILING
    assert none.troubles == ("none of 2 SMP servers is connected, for 30 s: is this machine's network there?",)
    assert none.unready == ""
    assert judged(servers=ServersFacts(wanted=6, away=(*away, AwayFacts(LASTING - 1)))).well
    assert judged(servers=ServersFacts(wanted=4, never=4)).well  # strangers choose them


def test_own_servers_that_are_away() -> None:
    names = [f"smp{n:02}.example" for n in range(MAX_NAMED + 2)]
    away = tuple(AwayFacts(LASTING + n, name) for n, name in enumerate(names))
    found = judged(servers=ServersFacts(wanted=20, connected=3, away=away))
    assert found.smp_servers.own_away == tuple(names[:MAX_NAMED])
    [text] = found.troubles
    assert text.startswith("own SMP servers are not connected, for up to 41 s: smp00.example, ")
    assert text.endswith("smp09.example and 2 more")
    assert judged(servers=ServersFacts(wanted=1, connected=1, away=(AwayFacts(LASTING - 1, "a"),))).well


def test_parts_of_the_program_that_fail() -> None:
    found = judged(failing_parts=("audit",))
    assert found.failing_parts == ("audit",)
    assert found.troubles == (
        "a part of this server fails and is started again, by a fault of the program: audit; the log has more",
    )
    assert (found.delivers, found.unready) == (True, "")


def test_registrations_by_vapid_key() -> None:
    assert judged().vapid is None
    assert judged(vapid=condition.VapidFacts(5, 3, 1, 60.0)).vapid == condition.VapidCondition(5, 3, 1, NOW - 60)


# --- certificates

DAY = 86400.0


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_certificate_warns_for_30_days_and_is_trouble_once_it_ended(name: str) -> None:
    assert condition.certificate(name, NOW + 31 * DAY, NOW).state is State.WELL
    found = judged(certificates={name: 31 * DAY})
    assert (found.well, found.warnings, found.certificates[0].ends) == (True, (), NOW + 31 * DAY)
    found = judged(certificates={name: 29 * DAY})
    assert (found.well, found.troubles, found.certificates[0].state) == (True, (), State.ENDING)
    [warning] = found.warnings
    assert " certificate" in warning and " ends on 2027-02-13, in 29 days: " in warning
    found = judged(certificates={name: -1.0})
    assert (found.well, found.warnings, found.certificates[0].state) == (False, (), State.FAILING)
    [trouble] = found.troubles
    assert " has ended on 2027-01-15: " in trouble
    assert (found.delivers, found.unready) == (True, "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (400_000, "5 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert condition.duration(seconds) == text


def test_providers_are_named_as_the_field_names_them() -> None:
    assert condition.service("FC") == "FCM (FC)"
    assert condition.service("XX") == "XX"
