"""What the schema itself holds to."""

import sqlite3

import pytest
from store_world import MASTER, OTHER_KEY, TABLET, register

from ntf_server.store.contract import StoreConflictError
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.schema import migrations


def test_there_are_nine_schemas() -> None:
    assert len(migrations(MASTER)) == 9


async def test_a_device_and_a_key_are_one_registration(store: SqliteStore) -> None:
    await register(store)
    await register(store, key=OTHER_KEY)
    await register(store, TABLET)
    with pytest.raises(StoreConflictError, match="UNIQUE"):
        await store._database.run(lambda c: c.execute("UPDATE tokens SET verify_key = x'00'") and None)


async def test_every_token_has_its_row_of_deliveries(store: SqliteStore) -> None:
    tokens = [await register(store), await register(store, TABLET)]
    await store.delete_token(tokens[0].ref)

    def rows(c: sqlite3.Connection) -> list[tuple[int]]:
        return c.execute("SELECT token FROM deliveries").fetchall()

    assert await store._database.read(rows) == [(tokens[1].ref,)]
