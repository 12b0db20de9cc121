"""URLs of stores."""

from pathlib import Path

import pytest
from store_world import MASTER, register, take_one

from ntf_server.store.contract import StoreConflictError, StoreError
from ntf_server.store.open import open_store, sqlite_path
from ntf_server.testing.store_suite.medium import as_found


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///relay.db", Path("/data/relay.db")),
        ("sqlite:///sub/relay.db", Path("/data/sub/relay.db")),
        ("sqlite:////var/lib/relay.db", Path("/var/lib/relay.db")),
        ("sqlite:///with space?.db", Path("/data/with space?.db")),
        ("sqlite://", None),
    ],
)
def test_what_a_url_names(url: str, path: Path | None) -> None:
    assert sqlite_path(url, Path("/data")) == path


@pytest.mark.parametrize("url", ["", "relay.db", "sqlite:relay.db", "sqlite:///", "sqlite://host/db", "redis://host"])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(StoreConflictError, match="sqlite:///FILE"):
        sqlite_path(url, Path("/data"))


async def test_a_file_is_opened_and_kept(tmp_path: Path) -> None:
    for _ in range(2):
        store = await open_store("sqlite:///relay.db", directory=tmp_path, master_key=MASTER)
        await register(store)
        assert await take_one(store)
        await store.close()
    assert (tmp_path / "relay.db").exists()


async def test_one_in_memory_leaves_nothing(tmp_path: Path) -> None:
    store = await open_store("sqlite://", directory=tmp_path, master_key=MASTER)
    token = await register(store)
    assert await store.find_token(token.token_id) == as_found(token)
    await store.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_place_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="absent"):
        await open_store("sqlite:///absent/relay.db", directory=tmp_path, master_key=MASTER)
