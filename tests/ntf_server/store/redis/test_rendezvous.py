"""Who should hold what."""

import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ntf_server.store.redis.rendezvous import Rendezvous, reweighed

NODES = [b"one", b"two", b"three", b"four"]
NAMES = [hashlib.sha256(b"%d" % n).digest()[:8] for n in range(1000)]


def rendezvous(nodes: list[bytes], weights: dict[bytes, int] | None = None) -> Rendezvous:
    made = Rendezvous()
    made.nodes, made.weights = nodes, weights or {}
    return made


def loads(made: Rendezvous) -> Counter[bytes]:
    found: Counter[bytes] = Counter()
    for name, weight in made.weights.items():
        node = made.holder(name)
        assert node is not None
        found[node] += weight
    return found


def test_nobody_lives() -> None:
    assert rendezvous([]).holder(b"name") is None
    assert rendezvous([], {b"name": 7}).holder(b"name") is None


def test_all_have_about_as_much() -> None:
    made = rendezvous(NODES)
    shares = Counter(made.holder(name) for name in NAMES)
    assert set(shares) == set(NODES)
    assert all(190 <= share <= 310 for share in shares.values())


def test_of_a_node_that_joins_or_leaves_only_its_share_moves() -> None:
    before, after = rendezvous(NODES[:3]), rendezvous(NODES)
    for name in NAMES:
        if after.holder(name) != NODES[3]:
            assert after.holder(name) == before.holder(name)
    made = after
    made.nodes = NODES[:3]
    assert all(made.holder(name) == before.holder(name) for name in NAMES)


def test_who_holds_what_is_remembered_until_the_nodes_are_others() -> None:
    made = rendezvous(NODES)
    before = {name: made.holder(name) for name in NAMES}
    assert {name: made.holder(name) for name in NAMES} == before
    made.nodes = NODES[:2]
    assert {name: made.holder(name) for name in NAMES} == {n: rendezvous(NODES[:2]).holder(n) for n in NAMES}
    made.nodes = []
    assert made.holder(NAMES[0]) is None


def test_a_few_servers_that_have_nearly_all_queues_are_spread() -> None:
    for number in range(50):
        names = NAMES[20 * number : 20 * number + 20]
        made = rendezvous(NODES, dict.fromkeys(names, 1_000_000))
        assert max(loads(made).values()) <= 6_000_000  # 20 of them on four nodes: by hash alone up to 10 on one


def test_one_that_is_larger_than_a_share_is_somebodys() -> None:
    made = rendezvous(NODES, {NAMES[0]: 10_000, **dict.fromkeys(NAMES[1:7], 10)})
    first = made.holder(NAMES[0])
    assert first in NODES
    made.nodes = NODES[:1]
    assert made.holder(NAMES[0]) == NODES[0]


def test_little_moves_of_what_is_large_too() -> None:
    weights = {name: 1000 + n for n, name in enumerate(NAMES[:60])}
    before, after = rendezvous(NODES[:3], weights), rendezvous(NODES, weights)
    moved = sum(before.holder(name) != after.holder(name) for name in weights)
    joined = sum(after.holder(name) == NODES[3] for name in weights)
    assert 0 < joined <= moved <= joined + 15


@given(st.permutations(NODES), st.dictionaries(st.sampled_from(NAMES), st.integers(1, 1 << 40), max_size=100))
def test_all_nodes_say_the_same_and_none_has_more_than_its_share_and_the_largest(
    nodes: list[bytes], weights: dict[bytes, int]
) -> None:
    made, other = rendezvous(nodes, weights), rendezvous(NODES, dict(sorted(weights.items())))
    assert all(made.holder(name) == other.holder(name) for name in NAMES[:20])
    if weights:
        assert max(loads(made).values()) <= 1.2 * sum(weights.values()) / len(NODES) + max(weights.values())


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 1 << 40)))
def test_what_is_large_has_a_weight(counts: dict[bytes, int]) -> None:
    weights = reweighed({}, counts)
    enough = max(1000, sum(counts.values()) / 100)
    assert weights == {name: n for name, n in counts.items() if n > enough}
    assert len(weights) <= 100
    assert reweighed(weights, counts) == weights


def test_a_weight_stays_while_it_is_about_right() -> None:
    small = dict.fromkeys(NAMES[10:400], 100)
    counts = {NAMES[0]: 10_000, NAMES[1]: 5000} | small
    weights = reweighed({}, counts)
    assert weights == {NAMES[0]: 10_000, NAMES[1]: 5000}
    assert reweighed(weights, counts | {NAMES[0]: 14_000, NAMES[1]: 3500}) == weights
    assert reweighed(weights, counts | {NAMES[0]: 16_000}) == {NAMES[0]: 16_000, NAMES[1]: 5000}
    assert reweighed(weights, counts | {NAMES[1]: 20}) == {NAMES[0]: 10_000}
    assert reweighed(weights, small) == {}


def test_what_is_about_as_large_as_has_to_be_neither_gets_nor_loses_a_weight() -> None:
    """Who makes and deletes a few queues would move servers to and fro."""
    others = {NAMES[0]: 990_000}
    assert NAMES[1] not in reweighed({}, others | {NAMES[1]: 9900})
    weights = reweighed({}, others | {NAMES[1]: 11_000})
    assert weights[NAMES[1]] == 11_000
    assert reweighed(weights, others | {NAMES[1]: 9000}) == weights
