"""Places, and what a verdict comes to."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.observe.condition import WayFacts
from ntf_server.push.schedule import Schedule, ScheduleConfig
from ntf_server.push.verdict import Again, DeadToken, Delivered, Ours, Scope, Verdict
from ntf_server.store.records import Claim, Ended, Lane, Outcome, PushKind
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider


def claim(origin: bytes = b"", *, attempts: int = 0, delivered_before: bool = False) -> Claim:
    provider = Provider.WEB_PUSH if origin else Provider.APNS
    return Claim(
        1,
        1,
        Lane(provider, origin),
        DeviceToken(provider, b"token"),
        bytes(32),
        PushKind.MESSAGES,
        0,
        bytes(16),
        attempts=attempts,
        delivered_before=delivered_before,
    )


def schedule(places: int = 8, *, by_origin: bool = False, **config: float) -> Schedule:
    return Schedule("AP", ScheduleConfig(places, by_origin=by_origin, **config), lambda: 1.0)  # type: ignore[arg-type]


def push(s: Schedule, verdict: Verdict, c: Claim | None = None, now: float = 0.0) -> Outcome:
    c = c or claim()
    s.begin([c])
    outcome, _ = s.end(c, verdict, now, lambda _: "https://push.example")
    assert outcome.claim is c
    return outcome


def fill(s: Schedule, origins: Sequence[bytes], now: float = 0.0) -> list[Claim]:
    """As many as may be under way, in turn."""
    begun = []
    more = True
    while more:
        more = False
        for origin in origins:
            if s.free(now) and s.room(origin, now):
                begun.append(claim(origin))
                s.begin([begun[-1]])
                more = True
    return begun


def test_who_waits_for_a_provider_is_due_when_that_is_tried_again() -> None:
    """However often it was tried before: with one device, pushes began again five minutes after the provider did."""
    s, now = schedule(), 0.0
    for attempts in range(12):
        outcome = push(s, Again("connection refused", Scope.PROVIDER), claim(attempts=attempts), now)
        now += outcome.after
        assert s.health.is_probed(now)
        assert outcome.after <= 30


def test_a_push_service_that_a_stranger_chose_is_tried_less_and_less() -> None:
    s = schedule(by_origin=True)
    refused = Again("connection refused", Scope.ORIGIN)
    assert [push(s, refused, claim(b"o", attempts=n), 1000.0 * n).after for n in (0, 5, 12)] == [1, 32, 300]


def test_places_are_freed_by_verdicts_and_kept_by_reservations() -> None:
    s = schedule(3)
    s.begin([claim()])
    s.reserved = 1
    assert s.free(0) == 1
    push(s, Delivered())
    assert s.free(0) == 1
    s.reserved = 0
    assert s.free(0) == 2


@pytest.mark.parametrize(("attempts", "wait"), [(0, 1), (1, 2), (5, 32), (20, 300), (10_000, 300)])
def test_a_tokens_backoff_doubles_up_to_its_bound(attempts: int, wait: float) -> None:
    outcome = push(schedule(), Again("500"), claim(attempts=attempts))
    assert (outcome.ended, outcome.after, outcome.reason) == (Ended.AGAIN, wait, "500")


@pytest.mark.parametrize(("asked", "wait"), [(0.5, 0.5), (90, 90), (1e9, 3600)])
def test_retry_after_of_a_token(asked: float, wait: float) -> None:
    s = schedule()
    assert push(s, Again("429", after=asked)).after == wait
    assert s.free(0) == 8  # nobody else waits


def test_a_dead_token_of_a_way_that_works_is_dead() -> None:
    s = schedule()
    push(s, Delivered())
    outcome = push(s, DeadToken(InvalidReason.BAD), claim(delivered_before=True))
    assert (outcome.ended, outcome.dead) == (Ended.DEAD, InvalidReason.BAD)


@pytest.mark.parametrize("reason", [InvalidReason.BAD, InvalidReason.TOPIC])
def test_no_token_that_was_delivered_to_is_marked_before_the_first_success(reason: InvalidReason) -> None:
    s = schedule()
    outcomes = [push(s, DeadToken(reason), claim(delivered_before=True)) for _ in range(8)]
    assert {o.ended for o in outcomes} == {Ended.AGAIN}
    assert s.free(0) == 0  # the third paused it
    assert s.free(1000) == 1  # a probe
    push(s, Delivered(), now=1000)
    assert push(s, DeadToken(reason), claim(delivered_before=True)).ended is Ended.DEAD


def test_a_new_token_that_is_bad_and_one_that_was_unregistered_are_marked_at_once() -> None:
    s = schedule()
    assert push(s, DeadToken(InvalidReason.BAD)).ended is Ended.DEAD
    assert push(s, DeadToken(InvalidReason.UNREGISTERED), claim(delivered_before=True)).ended is Ended.DEAD


def test_after_a_reload_it_begins_anew() -> None:
    s = schedule()
    push(s, Delivered())
    s.mended(0)
    assert push(s, DeadToken(InvalidReason.TOPIC), claim(delivered_before=True)).ended is Ended.AGAIN


def test_a_fault_of_the_provider_pauses_it_and_one_probe_follows() -> None:
    s = schedule()
    outcome = push(s, Ours("403 InvalidProviderToken"))
    assert (outcome.ended, outcome.after) == (Ended.OURS, 0)  # the token is due at once: it is the way that waits
    assert s.free(0.5) == 0 and s.free(1) == 1
    s.begin([claim()])
    assert s.free(1) == 0


def test_a_fault_of_one_push_pauses_nobody() -> None:
    s = schedule()
    outcome = push(s, Ours("413 PayloadTooLarge", Scope.TOKEN))
    assert (outcome.ended, outcome.after) == (Ended.OURS, 120)
    assert s.free(0) == 8


def test_silence_of_a_provider_pauses_it() -> None:
    s = schedule()
    assert push(s, Again("connection refused", Scope.PROVIDER)).ended is Ended.AGAIN
    assert s.free(0) == 0


# --- origins


def test_an_origin_that_took_nothing_yet_has_one_place_and_all_such_together_half() -> None:
    s = schedule(8, by_origin=True)
    begun = fill(s, [b"a", b"b", b"c", b"d", b"e", b"f"])
    assert [c.lane.origin for c in begun] == [b"a", b"b", b"c", b"d"]
    assert s.free(0) == 4


def test_an_origin_that_takes_pushes_may_use_all_places_in_the_end() -> None:
    s = schedule(8, by_origin=True)
    for _ in range(8):
        push(s, Delivered(), claim(b"a"))
    assert len(fill(s, [b"a"])) == 8


def test_tarpits_leave_room_for_a_proven_origin() -> None:
    s = schedule(8, by_origin=True)
    for _ in range(4):
        push(s, Delivered(), claim(b"good"))
    fill(s, [b"%d" % n for n in range(100)])
    assert s.room(b"good", 0) >= 4 and s.free(0) == 4


def test_a_silent_origin_is_paused_alone() -> None:
    s = schedule(8, by_origin=True)
    push(s, Delivered(), claim(b"a"))
    push(s, Again("timed out", Scope.ORIGIN), claim(b"b"))
    assert s.room(b"b", 0) == 0 and s.room(b"a", 0) == 2 and s.free(0) == 8
    assert s.next_resume(0) == 1
    assert s.room(b"b", 1) == 1


def test_one_bad_endpoint_of_an_origin_pauses_nobody_else() -> None:
    s = schedule(8, by_origin=True)
    for _ in range(100):
        push(s, Ours("400", Scope.ORIGIN), claim(b"a"))
        push(s, Delivered(), claim(b"a"))
    assert s.room(b"a", 0) == 8


def test_an_origin_that_refuses_everything_is_paused() -> None:
    s = schedule(8, by_origin=True)
    for _ in range(10):
        push(s, Ours("403", Scope.ORIGIN), claim(b"a"))
    assert s.room(b"a", 0) == 0


def test_a_bounded_number_of_origins_is_remembered() -> None:
    s = schedule(8, by_origin=True, max_origins=10)
    for n in range(1000):
        push(s, Delivered(), claim(b"%d" % n))
    assert len(s._origins) == 10


@given(st.integers(0, 2**32), st.integers(2, 12))
def test_counts_never_drift(seed: int, places: int) -> None:
    rng = random.Random(seed)
    s = schedule(places, by_origin=True, max_origins=3)
    verdicts: list[Verdict] = [
        Delivered(),
        Again("x"),
        Again("x", Scope.ORIGIN),
        Again("x", Scope.PROVIDER),
        Ours("x"),
        Ours("x", Scope.ORIGIN),
        DeadToken(InvalidReason.UNREGISTERED),
    ]
    flying: list[Claim] = []
    now = 0.0
    for _ in range(200):
        now += rng.random() * 5
        origin = b"%d" % rng.randrange(6)
        if rng.random() < 0.05:
            s.mended(now)
        if rng.random() < 0.6 and s.free(now) and s.room(origin, now):
            flying.append(claim(origin))
            s.begin([flying[-1]])
        elif flying:
            s.end(flying.pop(rng.randrange(len(flying))), rng.choice(verdicts), now, lambda _: "")
        assert s.in_flight == len(flying) <= places
    for c in flying:
        s.end(c, Delivered(), now, lambda _: "")
    assert s.in_flight == s._unproven == 0
    assert all(o.in_flight == 0 for o in s._origins.values())


def test_a_pause_that_ends_while_the_store_is_asked_is_noticed() -> None:
    s = schedule(8, by_origin=True)
    push(s, Again("429", Scope.ORIGIN, 5.0), claim(origin=b"o"), now=10.0)
    end = s.next_resume(10.0)
    assert end is not None
    assert not s.resumed(10.0, end - 0.1)
    assert s.resumed(end - 0.1, end)
    assert not s.resumed(end, end + 100.0)


def test_origins_are_counted_by_their_way() -> None:
    s = schedule(by_origin=True)
    push(s, Delivered(), claim(b"a"))
    for origin in (b"b", b"c"):
        push(s, Again("refused", Scope.ORIGIN), claim(origin))
    assert s.origins(0) == {"open": 1, "paused": 2, "probed": 0}
    push(s, Delivered(), claim(b"c"), now=1.5)
    assert s.origins(1.5) == {"open": 2, "paused": 0, "probed": 1}
    assert schedule().origins(0) == {"open": 0, "paused": 0, "probed": 0}


def test_how_a_provider_is() -> None:
    s = schedule()
    push(s, Delivered(), now=1.0)
    s.begin([claim(), claim()])
    assert s.facts(3.0) == WayFacts("AP", in_flight=2, accepted_ago=2.0)
    assert push(s, Ours("403 InvalidProviderToken"), now=4.0).ended is Ended.OURS
    found = s.facts(5.5)
    assert (found.is_ours, found.is_probed, found.troubled_for, found.reason) == (
        True,
        True,
        1.5,
        "403 InvalidProviderToken",
    )


def test_how_web_push_is() -> None:
    """Those of its push services count that took something; what they do is no trouble of the whole."""
    s = schedule(by_origin=True)
    for origin in (b"one", b"two", b"three"):
        push(s, Delivered(), claim(origin), 1.0)
    push(s, Again("connection refused", Scope.ORIGIN), claim(b"one"), 2.0)
    push(s, Again("connection refused", Scope.ORIGIN), claim(b"stranger"), 2.0)
    assert s.facts(3.0) == WayFacts("AP", accepted_ago=2.0, services=3, services_in_trouble=1)
    push(s, Ours("our key"), claim(b"two"), 4.0)
    assert s.facts(4.0).is_ours


def test_the_push_services_that_an_operator_looks_at_first() -> None:
    """Those that took pushes, of these those in trouble; whatever strangers bring."""
    s = schedule(100, by_origin=True)

    def end(origin: str, verdict: Verdict, now: float) -> None:
        c = claim(origin.encode())
        s.begin([c])
        s.end(c, verdict, now, lambda _: f"https://{origin}")

    for n in range(50):
        end(f"tarpit{n}", Again("timeout", Scope.ORIGIN), 1.0)
    for name, now in (("idle", 2.0), ("busy", 9.0), ("late", 3.0), ("long", 3.0)):
        end(name, Delivered(), now)
    end("late", Again("503", Scope.ORIGIN), 8.0)
    end("long", Again("502", Scope.ORIGIN), 5.0)
    s.begin([claim(b"busy"), claim(b"new")])
    found = s.services(10.0, 5)
    assert [facts.name for facts in found[:4]] == ["https://long", "https://late", "https://busy", "https://idle"]
    assert found[0].troubled_for == 5.0 and found[0].reason == "502" and found[0].paused_for == 0.0
    assert (found[2].troubled_for, found[2].accepted_ago, found[2].in_flight) == (None, 1.0, 1)
    assert found[4].name.startswith("https://tarpit") and len(found) == 5
