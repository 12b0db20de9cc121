"""Which engine a URL means."""

import asyncio
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntf_server.observe.metrics import Metrics
from ntf_server.store.clock import Clock
from ntf_server.store.contract import Store, StoreConflictError, StoreCorruptError, StoreUnavailableError
from ntf_server.store.memory import Times
from ntf_server.store.portable import being_filled
from ntf_server.store.redis.tls import Tls
from ntf_server.store.redis.url import RedisUrl
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite import rekey
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.file import inspect
from ntf_server.store.sqlite.keys import look_at_key
from ntf_server.store.sqlite.schema import migrations

if TYPE_CHECKING:
    from ntf_server.store.redis.database import Database

log = logging.getLogger(__name__)

_SQLITE = "sqlite://"


@dataclass(frozen=True)
class Shared:
    """Of a store that nodes share. `node`: this one's name, empty: a new one in each run; `wait_replicas`, `wait_aof`:
    on so many replicas, on the disks of so many servers, a write has to be before it counts; `tls`: of connections.
    """

    node: str = ""
    wait_replicas: int = 0
    wait_aof: int = 0
    tls: Tls | None = None


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
        database, warnings = await _connect(place, shared)
        for warning in warnings:
            log.warning("%s", warning)
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


def opens(place: Path | RedisUrl, known: MasterKey, master_key: MasterKey) -> bool:
    """Whether a master key opens a store that is in use; `known`: the one that it was opened with, which a Redis keeps.
    Raises StoreError, StoreCorruptError.
    """
    if isinstance(place, RedisUrl):
        return master_key.key_id == known.key_id
    return rekey.opens(place, master_key)


@dataclass(frozen=True)
class Inspected:
    """What is in a store, in words, and what an operator has to know about it."""

    what: str
    warnings: tuple[str, ...] = ()


async def inspect_store(
    place: Path | RedisUrl, *, master_key: MasterKey, shared: Shared = Shared(), in_use: bool = False
) -> Inspected:
    """What opening it would meet; nothing is made or changed. `in_use`: it is known that a relay uses the file. Raises
    as `open_store`.
    """
    if isinstance(place, RedisUrl):
        return await _inspect_redis(place, master_key, shared)
    return await asyncio.to_thread(_inspect_file, place, master_key, in_use)


def _inspect_file(path: Path, master_key: MasterKey, in_use: bool) -> Inspected:
    newest = len(migrations(master_key))
    found = inspect(path, newest, lambda c: look_at_key(c, master_key), in_use=in_use)
    if found == 0:
        return Inspected("will be created")
    if found == newest:
        return Inspected("exists, and opens with the key")
    free, needed = shutil.disk_usage(path.parent).free, 2 * path.stat().st_size  # the copy, and what is written anew
    no_room = f"{path.parent}: {free >> 20} MiB are free, and the upgrade takes {needed >> 20}: make room first"
    what = f"is of schema {found}: start brings it to {newest}, and keeps a copy"
    return Inspected(what, () if free > needed else (no_room,))


async def _inspect_redis(url: RedisUrl, master_key: MasterKey, shared: Shared) -> Inspected:
    from ntf_server.store.redis.names import Names  # noqa: PLC0415  not loaded where it is not used
    from ntf_server.store.redis.schema import look  # noqa: PLC0415

    database, warnings = await _connect(url, shared)
    try:
        found = await look(database, Names(database.prefix), master_key)
        if found is not None and found.mark is not None:
            raise being_filled(str(url))
        what = "will be created" if found is None else f"exists, {found.shards} shards, and opens with the key"
        return Inspected(what, tuple(warnings))
    finally:
        await database.close()


async def _connect(url: RedisUrl, shared: Shared) -> "tuple[Database, list[str]]":
    """With what an operator has to know."""
    from ntf_server.store.redis.database import Database  # noqa: PLC0415  not loaded where it is not used
    from ntf_server.store.redis.durability import Durability  # noqa: PLC0415
    from ntf_server.store.redis.facts import warnings  # noqa: PLC0415

    durability = Durability(shared.wait_replicas, shared.wait_aof)
    try:
        database = await Database.open(url, durability=durability, tls=shared.tls)
    except StoreUnavailableError as e:
        raise type(e)(f"{url}: {e}; start it, or mend [store] url") from e
    return database, warnings(database.told, durability)


async def _open_redis(database: "Database", name: str, **options: Any) -> Store:
    from ntf_server.store.redis.engine import RedisStore  # noqa: PLC0415

    return await RedisStore.open(database, name=name, **options)
