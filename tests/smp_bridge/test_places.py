"""Whose turn it is to connect."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from smp_bridge.places import ANYWHERE, Places, Standing, Ticket


def ask(places: Places, *prefixes: str, claim: str = "") -> Ticket:
    return places.ask(prefixes, [claim] if claim else [])


def test_so_many_have_a_turn_and_so_many_are_quick() -> None:
    places = Places(4, 2, 1)
    tickets = [ask(places) for _ in range(6)]
    assert places.turns() == tickets[:2]
    assert places.turns() == []
    places.slow(tickets[0])
    assert places.turns() == [tickets[2]]
    for ticket in tickets[1:3]:
        places.slow(ticket)
        places.slow(ticket)
    assert places.turns() == [tickets[3]]
    places.slow(tickets[3])
    assert places.turns() == []  # all places are taken
    places.leave(tickets[0])
    assert places.turns() == [tickets[4]]
    places.leave(tickets[5])  # it waits no more
    for ticket in tickets[1:5]:
        places.leave(ticket)
    assert len(places) == 0
    assert places.turns() == []
    assert len([ask(places) for _ in range(9)]) == 9
    assert len(places.turns()) == 2


def test_who_waits_no_more_has_no_turn() -> None:
    places = Places(1, 1, 1)
    first, second, third = ask(places), ask(places), ask(places)
    places.leave(second)
    assert places.turns() == [first]
    places.slow(second)  # a timer that comes late
    places.leave(first)
    assert places.turns() == [third]


def test_an_address_prefix_has_a_share() -> None:
    places = Places(8, 8, 4)
    flood = [ask(places, "victim", claim=str(n)) for n in range(10)]
    assert places.turns() == flood[:2]
    honest = [ask(places, "a", claim="phone"), ask(places, "b", claim="phone")]
    assert places.turns() == honest
    assert places.turns() == []
    both = ask(places, "c", "victim", claim="other")  # as crowded as its most crowded one
    assert places.turns() == []
    for ticket in flood:
        places.leave(ticket)
    assert places.turns() == [both]


def test_a_claim_has_a_share_and_what_several_want_counts_for_the_one_that_has_least() -> None:
    places = Places(8, 8, 4)
    flood = [ask(places, str(n), claim="stranger") for n in range(10)]
    assert places.turns() == flood[:2]
    shared = places.ask(["mine"], ["stranger", "phone"])
    assert shared.claim == "phone"
    assert places.turns() == [shared]


def test_claims_take_turns_and_of_a_claim_its_prefixes() -> None:
    places = Places(1, 1, 1)
    asked = [("a", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("b", "x"), ("c", "z")]
    for claim, prefix in asked:
        ask(places, prefix, claim=claim)
    served = []
    while turns := places.turns():
        [ticket] = turns
        served.append((ticket.claim, ticket.lane))
        places.leave(ticket)
    assert served == [("a", "x"), ("b", "x"), ("c", "z"), ("a", "y"), ("b", "x"), ("a", "x")]


@given(st.data())
def test_bounds_hold_and_nobody_waits_while_there_is_a_place(data: st.DataObject) -> None:
    total, quick, share = (data.draw(st.integers(1, n)) for n in (12, 6, 4))
    places, each = Places(total, quick, share), max(1, total // share)
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    waiting: list[Ticket] = []
    running: list[Ticket] = []
    for _ in range(data.draw(st.integers(1, 120))):
        match rng.randrange(4):
            case 0 | 1:
                prefixes = [rng.choice("uvwxyz") for _ in range(rng.randrange(3))]
                waiting.append(places.ask(list(dict.fromkeys(prefixes)), rng.sample("abc", rng.randrange(1, 3))))
            case 2 if running:
                places.slow(rng.choice(running))
            case 3 if waiting or running:
                of = waiting if waiting and (not running or rng.random() < 0.3) else running
                places.leave(of.pop(rng.randrange(len(of))))
        for ticket in places.turns():
            waiting.remove(ticket)
            running.append(ticket)
        assert len(places) == len(waiting) + len(running)
        assert len(running) <= total
        of_prefix = Counter(p for t in running for p in t.prefixes)
        of_claim = Counter(t.claim for t in running)
        assert all(n <= each for n in (*of_prefix.values(), *of_claim.values()))
        fresh = sum(not t.is_slow for t in running)
        assert fresh <= quick
        if len(running) < total and fresh < quick:  # then each that waits has a reason
            heads = {(t.claim, t.lane): t for t in reversed(waiting)}
            assert all(
                of_claim[t.claim] >= each or any(of_prefix[p] >= each for p in t.prefixes) for t in heads.values()
            )


def test_where_a_server_has_proved_itself() -> None:
    assert not Standing().is_proven_at(["192.0.2.0/24"])
    there = Standing(("192.0.2.0/24", "2001:db8::/48"))
    assert there.is_proven_at(["2001:db8::/48"])
    assert there.is_proven_at(["198.51.100.0/24", "192.0.2.0/24"])
    assert not there.is_proven_at(["198.51.100.0/24"])
    assert Standing((ANYWHERE,)).is_proven_at(["198.51.100.0/24"])
