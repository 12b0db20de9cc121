"""What a server says of itself, and what an operator has to know about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ntf_server.store.redis.connection import info_fields
from ntf_server.store.redis.durability import Durability
from ntf_server.store.redis.url import Endpoint, Kind

OLDEST: Final = (7, 0)  # of Redis
OLDEST_WITH_WAITAOF: Final = (7, 2)
CONFIG: Final = (
    "appendfsync",
    "appendonly",
    "cluster-require-full-coverage",
    "maxmemory",
    "maxmemory-policy",
    "min-replicas-to-write",
)
_KEEPS: Final = "noeviction"


@dataclass(frozen=True)
class Facts:
    """None: it does not say, or not to us. `redis_version` is that of the Redis whose commands it has."""

    at: Endpoint
    server: str  # redis, valkey
    version: str  # its own
    redis_version: tuple[int, ...]
    in_cluster: bool
    append_only: bool | None
    append_sync: str | None  # always, everysec, no
    max_memory: int | None  # bytes, 0: no limit
    eviction: str | None
    min_replicas: int | None  # to write
    replicas: int | None  # connected
    all_or_none: bool | None = None  # of a cluster: it serves nothing while a slot has no primary

    def __str__(self) -> str:
        return f"{self.at}: {self.server} {self.version}"


def read_facts(at: Endpoint, info: bytes, config: Sequence[bytes] | None) -> Facts:
    """From the answers to INFO and to CONFIG GET of CONFIG; None: it may not be asked for."""
    told = info_fields(info)
    settings = dict(zip(_texts(config or ())[::2], _texts(config or ())[1::2], strict=True))
    append_only = settings.get("appendonly", told.get("aof_enabled"))
    valkey = told.get("valkey_version")
    return Facts(
        at=at,
        server=told.get("server_name", "valkey" if valkey else "redis"),
        version=valkey or told.get("redis_version", "?"),
        redis_version=tuple(int(part) for part in told.get("redis_version", "0").split(".") if part.isdigit()),
        in_cluster=told.get("cluster_enabled") == "1",
        append_only=None if append_only is None else append_only in ("yes", "1"),
        append_sync=settings.get("appendfsync"),
        max_memory=_number(settings.get("maxmemory", told.get("maxmemory"))),
        eviction=settings.get("maxmemory-policy", told.get("maxmemory_policy")),
        min_replicas=_number(settings.get("min-replicas-to-write")),
        replicas=_number(told.get("connected_slaves")),
        all_or_none=None if (full := settings.get("cluster-require-full-coverage")) is None else full == "yes",
    )


def refusals(facts: Sequence[Facts], kind: Kind, durability: Durability) -> list[str]:
    """Why the relay cannot be served by these, a sentence each; none: it can."""
    return [line for each in facts for line in _refusals(each, kind, durability)]


def warnings(facts: Sequence[Facts], durability: Durability) -> list[str]:
    """What can be lost with these, a sentence each."""
    return [line for each in facts for line in _warnings(each, durability)]


def _refusals(facts: Facts, kind: Kind, durability: Durability) -> list[str]:
    out = []
    if facts.redis_version < OLDEST:
        out.append(f"{facts} is too old: the relay needs Redis 7.0 or newer, or Valkey")
    if facts.eviction not in (None, _KEEPS):
        out.append(f"{facts} has maxmemory-policy {facts.eviction}, which throws records away: set it to {_KEEPS}")
    if facts.in_cluster != (kind is Kind.CLUSTER):
        what = "is of a cluster" if facts.in_cluster else "is of no cluster"
        out.append(f"{facts} {what}: the store's url has to say so (redis+cluster://)")
    if durability.disks and facts.redis_version < OLDEST_WITH_WAITAOF:
        out.append(f"{facts} has no WAITAOF: wait_aof needs Redis 7.2 or newer, or Valkey")
    elif durability.disks and facts.append_only is False:
        out.append(f"{facts} has appendonly no: with wait_aof it has to be yes")
    return out


def _warnings(facts: Facts, durability: Durability) -> list[str]:
    out = []
    if facts.append_only is False:
        out.append(f"{facts} has appendonly no: what came since its last snapshot is lost when it ends")
    elif facts.append_only and facts.append_sync == "no":
        out.append(f"{facts} has appendfsync no: a crash of the machine loses what the system had not written yet")
    elif facts.append_only and facts.append_sync == "everysec" and not durability.disks:
        out.append(f"{facts} has appendfsync everysec: a crash of the machine loses up to a second")
    if facts.replicas and facts.min_replicas == 0:
        out.append(
            f"{facts} has replicas and min-replicas-to-write 0: what it takes while it is cut off from them is lost in"
            " a failover"
        )
    if facts.in_cluster and facts.all_or_none:
        out.append(
            f"{facts} has cluster-require-full-coverage yes: while one primary is away, and no replica in its place, no"
            " other one serves what it has"
        )
    if facts.max_memory == 0:
        out.append(f"{facts} has no maxmemory: when memory runs out the system ends it, instead of it taking no more")
    if facts.append_sync is None and facts.append_only is not False:
        out.append(f"{facts} does not let us CONFIG GET: how much a crash can lose is unknown")
    return out


def _texts(words: Sequence[Any]) -> list[str]:
    return [word.decode(errors="replace") for word in words]


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
