"""What a Redis must have to be this store: its id, the schema's number, the number of shards, the wrapped key."""

import os
from typing import Final, NamedTuple

from ntf_server.store.contract import StoreConflictError
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.names import SHARDS, Names
from ntf_server.store.redis.script import Script
from ntf_server.store.sealing import KEY_SIZE, MasterKey

SCHEMA: Final = 1
_MAKE: Final = Script.load("make")


class Identity(NamedTuple):
    """Of a store: `key` seals its values."""

    store_id: bytes
    shards: int
    key: bytes


async def identify(database: Database, names: Names, master: MasterKey, shards: int = SHARDS) -> Identity:
    """The store that is there; made if nothing is. Raises StoreConflictError, SealingError (another master key)."""
    key = master.wrap(os.urandom(KEY_SIZE))
    fresh = (b"id", os.urandom(8).hex(), b"schema", SCHEMA, b"shards", shards, b"key", key)
    await database.run(Call(_MAKE, [names.store], fresh))
    store_id, schema, kept, wrapped = await database.command(
        b"HMGET", names.store, b"id", b"schema", b"shards", b"key", key=names.store, writes=False
    )
    if schema is None or int(schema) != SCHEMA:
        raise StoreConflictError(f"this Redis has schema {schema and int(schema)} of a relay, this one needs {SCHEMA}")
    return Identity(store_id, int(kept), master.unwrap(wrapped))
