"""What servers say of themselves, and what follows from that; of real ones: test_database.py."""

from dataclasses import replace

import pytest
from redis_servers import Cluster, Server

from ntf_server.store.redis.durability import Durability
from ntf_server.store.redis.facts import CONFIG, Facts, read_facts, refusals, warnings
from ntf_server.store.redis.url import Endpoint, Kind

AT = Endpoint("r", 6379)
GOOD = Facts(
    at=AT,
    server="redis",
    version="7.2.4",
    redis_version=(7, 2, 4),
    in_cluster=False,
    append_only=True,
    append_sync="always",
    max_memory=1 << 30,
    eviction="noeviction",
    min_replicas=1,
    replicas=2,
)
INFO = b"""# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n\r\n# Memory\r\nmaxmemory:100\r
maxmemory_policy:volatile-lru\r\n# Persistence\r\naof_enabled:0\r\n# Replication\r\nconnected_slaves:1\r
# Cluster\r\ncluster_enabled:1\r\n"""
SETTINGS = [b"appendonly", b"yes", b"appendfsync", b"everysec", b"maxmemory", b"200", b"min-replicas-to-write", b"1"]


def test_what_it_says() -> None:
    assert read_facts(AT, INFO, [*SETTINGS, b"maxmemory-policy", b"noeviction"]) == Facts(
        at=AT,
        server="redis",
        version="7.0.15",
        redis_version=(7, 0, 15),
        in_cluster=True,
        append_only=True,
        append_sync="everysec",
        max_memory=200,
        eviction="noeviction",
        min_replicas=1,
        replicas=1,
    )


def test_what_info_tells_where_the_settings_are_denied() -> None:
    facts = read_facts(AT, INFO, None)
    assert (facts.append_only, facts.append_sync, facts.min_replicas) == (False, None, None)
    assert (facts.max_memory, facts.eviction) == (100, "volatile-lru")


def test_a_valkey_says_so() -> None:
    facts = read_facts(AT, b"redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n", [])
    assert (str(facts), facts.redis_version) == ("r:6379: valkey 9.1.2", (7, 2, 4))


def test_what_it_does_not_say_is_unknown() -> None:
    facts = read_facts(AT, b"", None)
    assert (facts.append_only, facts.max_memory, facts.eviction, facts.replicas) == (None, None, None, None)
    assert refusals([facts], Kind.ALONE, Durability()) == [
        "r:6379: redis ? is too old: the relay needs Redis 7.0 or newer, or Valkey"
    ]


def test_a_real_one_of_a_cluster(cluster: Cluster) -> None:
    facts = read_facts(AT, cluster.nodes[0].ask("INFO"), cluster.nodes[0].ask("CONFIG", "GET", *CONFIG))
    assert facts.in_cluster and facts.all_or_none is True


def test_a_real_one(server: Server) -> None:
    facts = read_facts(AT, server.ask("INFO"), server.ask("CONFIG", "GET", *CONFIG))
    assert facts.redis_version >= (7, 0)
    assert (facts.append_only, facts.append_sync, facts.max_memory) == (False, "everysec", 0)
    assert (facts.eviction, facts.min_replicas, facts.replicas, facts.in_cluster) == ("noeviction", 0, 0, False)
    assert refusals([facts], Kind.ALONE, Durability()) == []
    assert len(warnings([facts], Durability())) == 2  # no file, no limit


@pytest.mark.parametrize(
    ("change", "durability", "kind", "what"),
    [
        ({"redis_version": (6, 2, 14), "version": "6.2.14"}, Durability(), Kind.ALONE, "redis 6.2.14 is too old"),
        ({"eviction": "allkeys-lru"}, Durability(), Kind.ALONE, "maxmemory-policy allkeys-lru"),
        ({"eviction": "volatile-ttl", "max_memory": 0}, Durability(), Kind.SENTINEL, "maxmemory-policy volatile-ttl"),
        ({"in_cluster": True}, Durability(), Kind.ALONE, "is of a cluster"),
        ({}, Durability(), Kind.CLUSTER, "is of no cluster"),
        ({"redis_version": (7, 0, 15)}, Durability(disks=1), Kind.ALONE, "has no WAITAOF"),
        ({"append_only": False}, Durability(disks=1), Kind.ALONE, "has appendonly no: with wait_aof"),
    ],
)
def test_what_is_refused(change: dict[str, object], durability: Durability, kind: Kind, what: str) -> None:
    [line] = refusals([replace(GOOD, **change)], kind, durability)  # type: ignore[arg-type]
    assert what in line


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"append_only": False}, "has appendonly no"),
        ({"append_only": False, "append_sync": None}, "has appendonly no"),
        ({"append_sync": "everysec"}, "loses up to a second"),
        ({"append_sync": "no"}, "what the system had not written yet"),
        ({"append_sync": None}, "how much a crash can lose is unknown"),
        ({"append_sync": None, "append_only": None}, "how much a crash can lose is unknown"),
        ({"min_replicas": 0}, "min-replicas-to-write 0"),
        ({"max_memory": 0}, "has no maxmemory"),
        ({"in_cluster": True, "all_or_none": True}, "has cluster-require-full-coverage yes"),
    ],
)
def test_what_is_warned_of(change: dict[str, object], what: str) -> None:
    facts = replace(GOOD, **change)  # type: ignore[arg-type]
    assert refusals([facts], Kind.CLUSTER if facts.in_cluster else Kind.ALONE, Durability()) == []
    [line] = warnings([facts], Durability())
    assert what in line and line.startswith("r:6379: redis 7.2.4 ")


def test_nothing_is_to_be_said_of_a_good_one() -> None:
    assert refusals([GOOD], Kind.ALONE, Durability(disks=1)) == []
    assert warnings([GOOD, replace(GOOD, replicas=0, min_replicas=0)], Durability()) == []
    assert warnings([replace(GOOD, in_cluster=True, all_or_none=False)], Durability()) == []
    assert warnings([replace(GOOD, append_sync="everysec")], Durability(disks=1)) == []
    assert refusals([replace(GOOD, eviction=None)], Kind.ALONE, Durability()) == []
