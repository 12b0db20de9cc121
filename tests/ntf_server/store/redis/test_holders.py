"""Which SMP servers a node looks at: all of which nothing is known, others in turn, and what a node has that failed."""

from ntf_server.store.redis.holders import LEAST, NOBODY, Holders

SERVERS = [b"%d" % n for n in range(20 * LEAST)]


def seen(*nodes: bytes) -> Holders:
    """All servers were: these have every other one."""
    holders = Holders()
    holders.live(nodes)
    assert holders.to_look_at(SERVERS) == SERVERS
    assert holders.saw(SERVERS, {server: nodes[n % len(nodes)] for n, server in enumerate(SERVERS)}) == []
    return holders


def test_all_have_their_turn() -> None:
    holders = seen(b"one", b"two")
    looked_at: list[bytes] = []
    rounds = 0
    while set(looked_at) < set(SERVERS):
        some = holders.to_look_at(SERVERS)
        assert LEAST <= len(some) < len(SERVERS) / 10
        assert holders.saw(some, {s: (b"one", b"two")[int(s) % 2] for s in some}) == []
        looked_at += some
        rounds += 1
    assert len(looked_at) < 1.1 * len(SERVERS) and rounds <= 16


def test_a_few_are_looked_at_each_time() -> None:
    holders = Holders()
    holders.live([b"one"])
    few = SERVERS[:LEAST]
    holders.saw(few, dict.fromkeys(few, b"one"))
    assert holders.to_look_at(few) == holders.to_look_at(few) == few


def test_where_one_lost_its_node_all_that_this_had_are_looked_at() -> None:
    holders = seen(b"one", b"two")
    first, *some = holders.to_look_at(SERVERS)
    more = holders.saw([first, *some], {s: (b"one", b"two")[int(s) % 2] for s in some})
    assert set(more) == {s for s in SERVERS if int(s) % 2 == int(first) % 2} - {first, *some}
    assert set(holders.saw(more, {})) < set(some)
    assert {first, *more} < set(holders.to_look_at(SERVERS))


def test_one_that_another_node_has_by_now_is_a_reason_too() -> None:
    holders = seen(b"one", b"two")
    some = holders.to_look_at(SERVERS)
    more = holders.saw(some, dict.fromkeys(some, b"two"))
    assert set(more) == {s for s in SERVERS if int(s) % 2 == 0} - set(some)


def test_after_a_change_of_nodes_nothing_is_known() -> None:
    holders = seen(b"one", b"two")
    holders.live([b"two", b"one"])
    assert len(holders.to_look_at(SERVERS)) < len(SERVERS)
    holders.live([b"one"])
    assert holders.to_look_at(SERVERS) == SERVERS


def test_what_a_node_has_that_does_not_live_is_looked_at_each_time() -> None:
    holders = Holders()
    holders.live([b"one"])
    holders.saw(SERVERS, dict.fromkeys(SERVERS, b"gone"))
    assert holders.to_look_at(SERVERS) == SERVERS


def test_what_nobody_needs_to_have_has_its_turn_too() -> None:
    holders = Holders()
    holders.live([b"one"])
    assert holders.saw(SERVERS, dict.fromkeys(SERVERS, NOBODY)) == []
    some = holders.to_look_at(SERVERS)
    assert len(some) < len(SERVERS) / 10
    assert holders.saw(some, {}) == []
    assert set(some) < set(holders.to_look_at(SERVERS))


def test_what_is_there_no_more_is_forgotten() -> None:
    holders = seen(b"one")
    assert set(holders.to_look_at(SERVERS[:5])) == set(SERVERS[:5])
    assert len(holders.to_look_at(SERVERS)) >= len(SERVERS) - 5
