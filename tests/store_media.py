"""Where the conformance suite tries SQLite: in a file, with its threads, and in memory, inline."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from weakref import WeakKeyDictionary

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter
from ntf_server.store import clock, contract, memory
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing.store_suite import ManualClock, Times

MASTER = MasterKey(b"a master key of thirty-two bytes")


async def open_store(
    place: Path | sqlite3.Connection, manual: ManualClock, times: Times, engine: type[SqliteStore] = SqliteStore
) -> SqliteStore:
    metrics = Metrics()
    store = await engine.open(
        place,
        master_key=MASTER,
        times=memory.Times(times.message_ttl, times.verification_ttl, times.spacing, silent_ttl=times.silent_ttl),
        clock=clock.Clock(manual.wall, manual.steady),
        metrics=metrics,
    )
    _METRICS[store] = metrics
    return store


_METRICS: WeakKeyDictionary[object, Metrics] = WeakKeyDictionary()


def _expired(store: object) -> int:
    kinds = KindCounter.EXPIRED.kinds
    return round(sum(_METRICS[store].value(KindCounter.EXPIRED, kind) for kind in kinds))


def _damage(c: sqlite3.Connection, table: str, public_id: str, value: bytes, columns: list[str]) -> None:
    changed = ", ".join(f"{column} = zeroblob(length({column}))" for column in columns)
    assert c.execute(f"UPDATE {table} SET {changed} WHERE {public_id} = ?", (value,)).rowcount == 1


_OF_TOKEN = ["device_token", "client_dh", "server_dh", "secret", "code"]


class FileMedium:
    """A file; after a kill it is a copy of what was in it at that moment."""

    shared = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "relay.db"

    async def open(self, manual: ManualClock, times: Times) -> contract.Store:
        return await open_store(self._path, manual, times)

    async def kill(self, store: contract.Store) -> None:
        copy = self._directory / os.urandom(4).hex() / "relay.db"
        copy.parent.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{self._path}{suffix}", f"{copy}{suffix}")
        await store.close()
        self._path = copy

    async def damage_token(self, store: contract.Store, token_id: bytes) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as c:
            _damage(c, "tokens", "token_id", token_id, _OF_TOKEN)

    async def damage_subscription(self, store: contract.Store, subscription_id: bytes) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as c:
            _damage(c, "subscriptions", "subscription_id", subscription_id, ["notifier_key"])

    async def expired(self, store: contract.Store) -> int:
        return _expired(store)

    async def close(self) -> None:
        pass


class MemoryMedium:
    """A database in memory, used in the loop's own thread; a node that is killed is only left."""

    shared = False

    def __init__(self, engine: type[SqliteStore] = SqliteStore) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._engine = engine

    async def open(self, manual: ManualClock, times: Times) -> contract.Store:
        return await open_store(self._connection, manual, times, self._engine)

    async def kill(self, store: contract.Store) -> None:
        pass

    async def damage_token(self, store: contract.Store, token_id: bytes) -> None:
        _damage(self._connection, "tokens", "token_id", token_id, _OF_TOKEN)

    async def damage_subscription(self, store: contract.Store, subscription_id: bytes) -> None:
        _damage(self._connection, "subscriptions", "subscription_id", subscription_id, ["notifier_key"])

    async def expired(self, store: contract.Store) -> int:
        return _expired(store)

    async def close(self) -> None:
        self._connection.close()
