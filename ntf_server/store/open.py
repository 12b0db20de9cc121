"""Which engine a URL means."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from ntf_server.observe.metrics import Metrics
from ntf_server.store.clock import Clock
from ntf_server.store.contract import Store, StoreConflictError, StoreCorruptError
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.memory import Times

_SQLITE = "sqlite://"


def sqlite_path(url: str, directory: Path) -> Path | None:
    """The file of a URL of SQLite: `sqlite:///relative` (to `directory`) or `sqlite:////absolute`; None: in memory.

    Raises StoreConflictError if it is none.
    """
    rest = url.removeprefix(_SQLITE)
    if rest == url or (rest and (not rest.startswith("/") or rest.endswith("/"))):
        raise StoreConflictError("the store's url has to be sqlite:///FILE, or sqlite:////FILE for an absolute path")
    return directory / rest[1:] if rest else None


async def open_store(
    url: str,
    *,
    directory: Path,
    master_key: MasterKey,
    times: Times | None = None,
    metrics: Metrics | None = None,
    on_corrupt: Callable[[StoreCorruptError], None] = lambda _: None,
    clock: Clock | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> Store:
    """Open or create what the URL names; the rest as in `SqliteStore.open`.

    `sqlite://` is in memory, gone at the end, and works in the loop's own thread. Raises StoreError,
    StoreCorruptError.
    """
    path = sqlite_path(url, directory)
    place = path if path is not None else sqlite3.connect(":memory:", isolation_level=None)
    return await SqliteStore.open(
        place,
        master_key=master_key,
        times=times,
        metrics=metrics,
        on_corrupt=on_corrupt,
        clock=clock,
        random=random,
    )
