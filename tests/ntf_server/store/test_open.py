"""URLs of stores."""

from collections.abc import Iterator
from pathlib import Path

import old_databases
import pytest
from redis_servers import Server
from store_world import MASTER, register, take_one

from ntf_server.store.contract import StoreConflictError, StoreError, StoreUnavailableError
from ntf_server.store.open import Inspected, Shared, inspect_store, open_store, opens, sqlite_path
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.url import parse_redis_url
from ntf_server.store.sealing import MasterKey, WrongMasterKeyError
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


@pytest.mark.parametrize("schema", [1, 3, 5])
async def test_a_look_at_an_older_file_leaves_it_so(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "relay.db"
    old_databases.make(path, schema, [])
    seen = await inspect_store(path, master_key=old_databases.MASTER)
    assert seen.what.startswith(f"is of schema {schema}: start brings it to ")
    assert old_databases.version(path) == schema
    if schema > 1:  # the first one had no keys
        with pytest.raises(StoreError, match="the master key is not the one"):
            await inspect_store(path, master_key=MasterKey(b"another key of thirty-two bytes."))


# --- a Redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server") as server:
        yield server


async def test_a_redis_is_opened_and_kept(server: Server, tmp_path: Path) -> None:
    url = parse_redis_url(f"{server.url}?prefix=relay")
    for _ in range(2):
        store = await open_store(url, directory=tmp_path, master_key=MASTER, shared=Shared("one"))
        assert isinstance(store, RedisStore)
        await register(store)  # type: ignore[arg-type]
        assert await take_one(store)  # type: ignore[arg-type]
        await store.close()
    assert all(key.startswith(b"relay:") for key in server.ask("KEYS", "*"))


async def test_nodes_that_share_a_redis(server: Server, tmp_path: Path) -> None:
    """Each has a name of its own, though none was given."""
    url = parse_redis_url(server.url)
    stores = [await open_store(url, directory=tmp_path, master_key=MASTER) for _ in range(2)]
    token = await register(stores[0])  # type: ignore[arg-type]
    assert await stores[1].find_token(token.token_id) == as_found(token)
    assert server.ask("ZCARD", "ntf:{g}:nodes") == 2
    for store in stores:
        await store.close()


async def test_what_may_be_lost_is_told(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await (await open_store(parse_redis_url(server.url), directory=tmp_path, master_key=MASTER)).close()
    assert "appendonly" in caplog.text


async def test_a_redis_that_cannot_be_opened_leaves_no_connection(server: Server, tmp_path: Path) -> None:
    url = parse_redis_url(server.url)
    await (await open_store(url, directory=tmp_path, master_key=MASTER)).close()
    with pytest.raises(WrongMasterKeyError):
        await open_store(url, directory=tmp_path, master_key=MasterKey(b"another key of thirty-two bytes."))
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    server.ask("CONFIG", "SET", "maxmemory", "1gb")
    with pytest.raises(StoreConflictError) as e:
        await open_store(url, directory=tmp_path, master_key=MASTER)
    assert "maxmemory-policy" in str(e.value) and "\n" not in str(e.value)
    assert "id=" in server.ask("CLIENT", "LIST").decode()
    assert len(server.ask("CLIENT", "LIST").decode().splitlines()) == 1  # ours, that asks


async def test_a_redis_with_too_few_replicas(server: Server, tmp_path: Path) -> None:
    """What counts only when it is on a replica is not done without one."""
    with pytest.raises(StoreError):
        await open_store(
            parse_redis_url(server.url), directory=tmp_path, master_key=MASTER, shared=Shared(wait_replicas=1)
        )


async def test_a_look_at_a_redis_makes_nothing(server: Server, tmp_path: Path) -> None:
    url = parse_redis_url(server.url)
    seen = await inspect_store(url, master_key=MASTER)
    assert seen.what == "will be created"
    assert any("appendonly no" in warning for warning in seen.warnings)
    assert server.ask("DBSIZE") == 0
    await (await open_store(url, directory=tmp_path, master_key=MASTER)).close()
    before = sorted(server.ask("KEYS", "*"))
    assert await inspect_store(url, master_key=MASTER) == Inspected(
        "exists, 64 shards, and opens with the key", seen.warnings
    )
    assert sorted(server.ask("KEYS", "*")) == before
    server.ask("HSET", "ntf:{g}:store", "filling", "mark")
    with pytest.raises(StoreConflictError, match="being filled by `ntf-server migrate`"):
        await inspect_store(url, master_key=MASTER)
    assert len(server.ask("CLIENT", "LIST").decode().splitlines()) == 1  # ours, that asks


async def test_a_redis_that_is_not_there(tmp_path: Path) -> None:
    url = parse_redis_url("redis://127.0.0.1:1")
    for opening in (inspect_store(url, master_key=MASTER), open_store(url, directory=tmp_path, master_key=MASTER)):
        with pytest.raises(
            StoreUnavailableError, match=r"^redis://127\.0\.0\.1:1: .*; start it, or mend \[store\] url$"
        ):
            await opening


async def test_which_master_key_opens_a_store_in_use(tmp_path: Path) -> None:
    other = MasterKey(b"o" * 32)
    store = await open_store(tmp_path / "relay.db", directory=tmp_path, master_key=MASTER)
    for key, right in ((MASTER, True), (other, False)):
        assert opens(tmp_path / "relay.db", MASTER, key) == right
        assert opens(parse_redis_url("redis://localhost"), MASTER, key) == right  # which keeps its key
    await store.close()
