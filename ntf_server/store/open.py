"""Which engine a URL means."""

import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntf_server.observe.metrics import Metrics
from ntf_server.store.clock import Clock
from ntf_server.store.contract import Store, StoreConflictError, StoreCorruptError
from ntf_server.store.memory import Times
from ntf_server.store.redis.url import RedisUrl
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore

if TYPE_CHECKING:
    from ntf_server.store.redis.database import Database

log = logging.getLogger(__name__)

_SQLITE = "sqlite://"


@dataclass(frozen=True)
class Shared:
    """Of a store that nodes share. `node`: this one's name, empty: a new one in each run; `wait_replicas`, `wait_aof`:
    on so many replicas, on the disks of so many servers, a write has to be before it counts.
    """

    node: str = ""
    wait_replicas: int = 0
    wait_aof: int = 0


def sqlite_path(url: str, directory: Path) -> Path | None:
    """The file of a URL of SQLite: `sqlite:///relative` (to `directory`) or `sqlite:////absolute`; None: in memory.

    Raises StoreConflictError if it is none.
    """
    rest = url.removeprefix(_SQLITE)
    if rest == url or (rest and (not rest.startswith("/") or rest.endswith("/"))):
        raise StoreConflictError("the store's url has to be sqlite:///FILE, or sqlite:////FILE for an absolute path")
    return directory / rest[1:] if rest else None


async def open_store(
    place: str | Path | RedisUrl,
    *,
    directory: Path,
    master_key: MasterKey,
    times: Times | None = None,
    metrics: Metrics | None = None,
    on_corrupt: Callable[[StoreCorruptError], None] = lambda _: None,
    clock: Clock | None = None,
    random: Callable[[int], bytes] = os.urandom,
    shared: Shared = Shared(),
) -> Store:
    """Open or create a database (its file, or a URL of SQLite) or a Redis; the rest as in `SqliteStore.open`.

    `sqlite://` is in memory, gone at the end, and works in the loop's own thread. `shared` is for a Redis, whose own
    clock is the only one. Raises StoreError, StoreCorruptError.
    """
    if isinstance(place, RedisUrl):
        database = await _connect(place, shared)
        try:
            return await _open_redis(
                database,
                shared.node,
                master_key=master_key,
                times=times,
                metrics=metrics,
                on_corrupt=on_corrupt,
                random=random,
            )
        except BaseException:
            await database.close()
            raise
    path = sqlite_path(place, directory) if isinstance(place, str) else place
    return await SqliteStore.open(
        path if path is not None else sqlite3.connect(":memory:", isolation_level=None),
        master_key=master_key,
        times=times,
        metrics=metrics,
        on_corrupt=on_corrupt,
        clock=clock,
        random=random,
    )


async def _connect(url: RedisUrl, shared: Shared) -> "Database":
    from ntf_server.store.redis.database import Database  # noqa: PLC0415  not loaded where it is not used
    from ntf_server.store.redis.durability import Durability  # noqa: PLC0415
    from ntf_server.store.redis.facts import warnings  # noqa: PLC0415

    durability = Durability(shared.wait_replicas, shared.wait_aof)
    database = await Database.open(url, durability=durability)
    for warning in warnings(database.told, durability):
        log.warning("%s", warning)
    return database


async def _open_redis(database: "Database", name: str, **options: Any) -> Store:
    from ntf_server.store.redis.engine import RedisStore  # noqa: PLC0415

    return await RedisStore.open(database, name=name, **options)
