"""Names of keys: what is used together is in one slot, and stores with other prefixes have others."""

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot
from redis_stores import Nodes, keys

from ntf_server.store.redis.names import BUCKETS, SHARDS, Names, server_id
from ntf_server.testing.store_suite.medium import OTHER_SMP, SMP, activate, subscribe
from smp_bridge.address import ServerAddress

ids = st.binary(min_size=1, max_size=64)
prefixes = st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True)


@given(prefixes, ids, st.integers(1, 200))
def test_all_of_a_token_is_in_the_slot_of_its_shard(prefix: str, token: bytes, shards: int) -> None:
    names = Names(prefix, shards)
    shard = names.shard(token)
    assert shard == names.shards[names.number(token)]
    found = (names.token(token), names.queues_of(token), names.gone(shard))
    for key in (*found, names.doubts(shard)):
        assert key_slot(key) == key_slot(shard)
        assert key.startswith(shard + b":")  # so scripts make it


@given(prefixes, st.binary(min_size=8, max_size=8), st.binary(max_size=300))
def test_each_of_a_servers_buckets_is_in_one_slot(prefix: str, server: bytes, notifier_id: bytes) -> None:
    names = Names(prefix)
    name, number = names.server(server), names.bucket_number(notifier_id)
    assert key_slot(name + b":b") == key_slot(name)
    bucket = names.bucket(server, number)
    assert key_slot(bucket + b":q") == key_slot(bucket + b":w:12") == key_slot(bucket)
    buckets = {names.bucket(server, n) for n in range(BUCKETS)}
    assert bucket in buckets and name not in buckets
    assert len({key_slot(key) for key in (name, *buckets)}) > BUCKETS / 2


@given(prefixes)
def test_what_all_nodes_look_at_is_in_one_slot(prefix: str) -> None:
    names = Names(prefix)
    found = (names.store, names.clock, names.nodes, names.servers, names.changes)
    assert len(set(found)) == len(found)
    assert len({key_slot(name) for name in found}) == 1


@given(st.lists(prefixes, min_size=2, max_size=2, unique=True), ids, st.binary(min_size=32, max_size=32))
def test_stores_with_other_prefixes_share_nothing(two: list[str], token: bytes, lookup: bytes) -> None:
    found = []
    for prefix in two:
        n = Names(prefix)
        found.append({
            *n.shards, n.store, n.clock, n.nodes, n.servers, n.changes, n.token(token), n.queues_of(token),
            n.gone(n.shard(token)), n.doubts(n.shard(token)), n.device(lookup),
            n.subscription(token), n.server(lookup[:8]), n.bucket(lookup[:8], 1), n.spent("registrations"),
            n.memo(lookup[:16]),
        })  # fmt: skip
    assert not found[0] & found[1]


def test_shards_are_even_and_never_change() -> None:
    names = Names("ntf")
    counts = [0] * SHARDS
    for _ in range(SHARDS * 200):
        counts[names.number(os.urandom(24))] += 1
    assert min(counts) > 100 and max(counts) < 300
    assert names.number(b"a token") == zlib.crc32(b"a token") % 64 == 63
    assert names.token(b"a token") == b"ntf:{t63}:t:a token"


def test_what_is_spread_is_spread() -> None:
    names = Names("ntf")
    assert len({names.device(bytes([n]) + bytes(31)).split(b"}")[0] for n in range(256)}) == 256
    assert len({names.subscription(os.urandom(24)) for _ in range(10_000)}) == 256


def test_a_server_is_the_same_however_it_is_spelled() -> None:
    others = [ServerAddress("smp", hosts, port, SMP.key_hash) for hosts, port in ((("SMP.example.org",), "5223"),)]
    assert {server_id(server) for server in others} == {server_id(SMP)}
    assert len(server_id(SMP)) == 8
    assert server_id(OTHER_SMP) != server_id(SMP)


@pytest.mark.parametrize("shards", [1, 7])
async def test_the_number_of_shards_is_that_of_the_stores_beginning(nodes: Nodes, shards: int) -> None:
    first = await nodes.open("one", shards=shards)
    await subscribe(first, await activate(first), b"a")
    second = await nodes.open("two", shards=64)
    assert len(second._node.names.shards) == shards
    tags = {key.partition(b"}")[0] for key in await keys(first) if key.startswith(b"{t")}
    assert tags <= {b"{t%d" % n for n in range(shards)}
