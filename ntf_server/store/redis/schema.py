"""What a Redis must have to be this store: its id, the schema's number, the numbers of shards and
buckets, the wrapped key.

The number is that of the form of what is kept: docs/explanation/rolling-upgrades.md says what may change without a new
one.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from ntf_server.store.contract import StoreConflictError
from ntf_server.store.portable import being_filled
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.names import BUCKETS, SHARDS, Names
from ntf_server.store.redis.script import Script
from ntf_server.store.sealing import ANOTHER_KEY, KEY_SIZE, MasterKey, SealingError, WrongMasterKeyError

SCHEMA: Final = 3
MARK: Final = b"filling"  # the field that a store has while another one is moved into it
_FIELDS: Final = (b"id", b"schema", b"shards", b"buckets", b"key", MARK)
_MAKE: Final = Script.load("make")


class Identity(NamedTuple):
    """Of a store: `key` seals its values; `mark`: it is being filled (`portable.Mark`)."""

    store_id: bytes
    shards: int
    buckets: int
    key: bytes
    mark: bytes | None = None


def usual_buckets(database: Database) -> int:
    """Of a new store: on one primary there is nothing to spread."""
    return 1 if database.spans else BUCKETS


def fresh(master: MasterKey, shards: int, buckets: int) -> tuple[bytes | str | int, ...]:
    """Fields and values of a new one."""
    key = master.wrap(os.urandom(KEY_SIZE))
    return b"id", os.urandom(8).hex(), b"schema", SCHEMA, b"shards", shards, b"buckets", buckets, b"key", key


async def identify(
    database: Database, names: Names, master: MasterKey, shards: int = SHARDS, buckets: int = BUCKETS
) -> Identity:
    """The store that is there, for a node; made if nothing is.

    Raises StoreConflictError (another schema, being filled), SealingError (another master key).
    """
    with _may_be_another_s(database):
        await database.run(Call(_MAKE, [names.store], fresh(master, shards, buckets)))
    found = await look(database, names, master)
    if found is None:
        raise StoreConflictError(f"{database.url}: was emptied just now")
    if found.mark is not None:
        raise being_filled(str(database.url))
    return found


@contextlib.contextmanager
def _may_be_another_s(database: Database) -> Iterator[None]:
    """Another program may keep something else under the same key."""
    try:
        yield
    except StoreConflictError as e:
        raise _another_s(database) if "WRONGTYPE" in str(e) else e from None


def _another_s(database: Database) -> StoreConflictError:
    what = f"what is there under the prefix {database.prefix} is no relay's store"
    return StoreConflictError(f"{database.url}: {what}; set ?prefix= in [store] url to another one")


async def look(database: Database, names: Names, master: MasterKey) -> Identity | None:
    """The store that is there. Raises as `identify`, but for one that is being filled."""
    with _may_be_another_s(database):
        kept: Sequence[Any] = await database.command(b"HMGET", names.store, *_FIELDS, key=names.store, writes=False)
    store_id, schema, shards, buckets, wrapped, mark = kept
    if not any(kept):
        return None
    if schema is None or not schema.isdigit():
        raise _another_s(database)
    if int(schema) > SCHEMA:
        raise StoreConflictError(
            f"{database.url}: the store is of a newer ntf-server (schema {int(schema)}, this one has {SCHEMA}); upgrade"
            " ntf-relay on this node"
        )
    if int(schema) < SCHEMA:
        raise StoreConflictError(
            f"{database.url}: the store is of an older ntf-server (schema {int(schema)}, this one has {SCHEMA});"
            " install the ntf-relay that made it, and upgrade as its CHANGELOG says"
        )
    try:
        return Identity(store_id, int(shards), int(buckets), master.unwrap(wrapped), mark)
    except WrongMasterKeyError as e:
        raise WrongMasterKeyError(
            f"{database.url}: the master key is not the one that this store was sealed with ({e}); {ANOTHER_KEY}"
        ) from e
    except SealingError as e:
        raise SealingError(f"{database.url}: {e}; restore the store from a backup") from e
