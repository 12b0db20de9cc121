"""A store moved to another one, both ways: what relays made, what they see and do, whatever ends the move."""

import asyncio
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import HealthCheck, given, settings
from moving import contents, mixed, ordered, read, seen, used, written
from msgspec.structs import replace
from redis_servers import Cluster, Server
from store_world import MASTER, activate, new_token, subscribe

from ntf_server.store.contract import Store, StoreConflictError, StoreError, StoreUnavailableError
from ntf_server.store.migrate import DifferentError, Place, _open, migrate
from ntf_server.store.open import Shared, open_store
from ntf_server.store.redis.url import RedisUrl, parse_redis_url
from ntf_server.store.sealing import SERVER_PRIVATE, MasterKey, WrongMasterKeyError
from smp_bridge import crypto
from smp_bridge.ntf import Provider

NUMBERS = itertools.count()
OTHER = MasterKey(b"another key of thirty-two bytes.")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), replicas=0) as cluster:
        yield cluster


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


def prefixed(at: Server | Cluster) -> RedisUrl:
    return parse_redis_url(f"{at.url}?prefix=moved{next(NUMBERS)}")


async def opened(place: Place, master: MasterKey = MASTER) -> Store:
    return await open_store(place, directory=Path(), master_key=master)


async def move(source: Place, target: Place, **options: Any) -> Any:
    return await migrate(source, target, master_key=MASTER, **options)


async def all_of(place: Place) -> Any:
    """As it is kept, whoever keeps it."""
    store = await _open(place, MASTER, Shared(), make=True)
    try:
        return await read(store)
    finally:
        await store.close()


@pytest.mark.parametrize("where", ["alone", "cluster"])
async def test_there_and_back_relays_see_and_do_the_same(
    server: Server, cluster: Cluster, file: Path, tmp_path: Path, where: str
) -> None:
    there, back = prefixed(server if where == "alone" else cluster), tmp_path / "back.db"
    store = await opened(file)
    known = await mixed(store)
    before = await seen(store, known)
    await store.close()
    done = await move(file, there)
    assert done.counts == {"servers": 2, "registrations": 6, "subscriptions": 20, "notifications": 13}
    assert not done.left_out
    assert (await move(there, back)).counts == done.counts
    copy, doing = tmp_path / "copy.db", {}
    await move(file, copy)
    for place in (file, there, back, copy):
        store = await opened(place)
        assert await seen(store, known) == before
        doing[place] = await used(store)
        await store.close()
    assert doing[there] == doing[file]
    assert doing[back] == doing[file]
    assert doing[copy] == doing[file]
    assert len(doing[file][Provider.APNS.value]) == 2


async def test_days_move_too(server: Server, file: Path, tmp_path: Path) -> None:
    there, back = prefixed(server), tmp_path / "back.db"
    rows = {"2027-01-15:": {"one": 1}, "2027-01-15": {"level": 2}, "2027-01-16:a node": {"one": 2**40}}
    store = await opened(file)
    for row, counts in rows.items():
        await store.statistics.keep(row, counts)
    await store.close()
    await move(file, there)
    await move(there, back)
    for place in (there, back):
        store = await opened(place)
        assert await store.statistics.rows() == rows
        await store.close()


async def test_from_a_redis_with_other_shards(server: Server, cluster: Cluster, file: Path) -> None:
    first, second = prefixed(server), prefixed(cluster)
    store = await opened(first)
    known = await mixed(store)
    before = await seen(store, known)
    await store.close()
    await move(first, second, shards=3, buckets=5)
    await move(second, file)
    doing = []
    for place in (first, second, file):
        store = await opened(place)
        assert await seen(store, known) == before
        doing.append(await used(store))
        await store.close()
    assert doing[0] == doing[1] == doing[2]
    with pytest.raises(StoreConflictError, match="has 3 shards, which never changes"):
        await move(file, second, shards=4)
    with pytest.raises(StoreConflictError, match="has 5 buckets, which never changes"):
        await move(file, second, buckets=4)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents())
async def test_any_content_is_the_same_there_and_back(server: Server, tmp_path: Path, content: Any) -> None:
    number = next(NUMBERS)
    source, there, back = tmp_path / f"{number}.db", prefixed(server), tmp_path / f"{number}.back"
    store = await _open(source, MASTER, Shared(), make=True)
    await written(store, *content)
    await store.close()
    await move(source, there)
    await move(there, back)
    for place in (source, there, back):
        servers, moved, left_out = await all_of(place)
        assert (servers, moved) == ordered(*content)
        assert left_out == {}


class _Killed(BaseException):
    pass


def killed_at(step: int) -> Callable[[str, int, int], None]:
    steps = itertools.count()

    def tell(_what: str, _done: int, _total: int) -> None:
        if next(steps) == step:
            raise _Killed

    return tell


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one registration each."""
    monkeypatch.setattr("ntf_server.store.migrate._AT_ONCE", 1)


@pytest.mark.parametrize("to_redis", [True, False])
@pytest.mark.usefixtures("slices")
async def test_it_goes_on_wherever_it_ended_and_no_relay_starts_meanwhile(
    server: Server, file: Path, tmp_path: Path, *, to_redis: bool
) -> None:
    source: Place = file if to_redis else prefixed(server)
    store = await opened(source)
    await mixed(store)
    await store.close()
    whole: Place = prefixed(server) if to_redis else tmp_path / "whole.db"
    await move(source, whole)
    total = await all_of(source)
    steps = 0
    ended = False
    while not ended:
        target: Place = prefixed(server) if to_redis else tmp_path / f"{steps}.db"
        try:
            await move(source, target, tell=killed_at(steps))
            ended = True
        except _Killed:
            with pytest.raises(StoreConflictError, match="being filled by `ntf-server migrate`"):
                await opened(target)
            with pytest.raises(StoreConflictError, match="being filled by"):
                await move(target, tmp_path / f"{steps}.other")
            await move(source, target)
        assert await all_of(target) == total
        await (await opened(target)).close()
        steps += 1
    assert steps > 12


@pytest.mark.usefixtures("slices")
async def test_a_target_belongs_to_the_source_that_it_began_with(server: Server, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    for path in (file, other):
        store = await opened(path)
        await mixed(store)
        await store.close()
    for target in (prefixed(server), tmp_path / "target.db"):
        with pytest.raises(_Killed):
            await move(file, target, tell=killed_at(3))
        with pytest.raises(StoreConflictError, match="is being filled from another store"):
            await move(other, target)


@pytest.mark.usefixtures("slices")
async def test_a_source_that_was_used_meanwhile_is_noticed(server: Server, file: Path, tmp_path: Path) -> None:
    store = await opened(file)
    await mixed(store)
    await store.close()
    target = prefixed(server)
    with pytest.raises(_Killed):
        await move(file, target, tell=killed_at(4))
    with closing(sqlite3.connect(file)) as c, c:
        c.execute("UPDATE tokens SET period = 77 WHERE ref = 1")
    with pytest.raises(DifferentError, match="the registrations are not those of") as caught:
        await move(file, target)
    assert "\n" not in str(caught.value)
    await move(file, target)  # what changed was only changed
    assert await all_of(target) == await all_of(file)


async def test_both_must_be_idle(server: Server, file: Path, tmp_path: Path) -> None:
    redis, other = prefixed(server), tmp_path / "other.db"
    relays = [await opened(file), await opened(redis)]
    for used_, why in ((file, "another ntf-server uses this database"), (redis, "a relay uses this store")):
        for pair in ((used_, other), (used_, prefixed(server))):
            with pytest.raises(StoreUnavailableError, match=why):
                await move(*pair)
        assert not other.exists()
    await relays[0].close()
    with pytest.raises(StoreUnavailableError, match="a relay uses this store"):
        await move(file, redis)
    await relays[1].close()
    relays = [await opened(other)]
    with pytest.raises(StoreUnavailableError, match="another ntf-server uses this database"):
        await move(redis, other)
    await relays[0].close()
    await move(file, redis)  # both are empty


async def test_a_store_that_has_something_is_not_filled(server: Server, file: Path, tmp_path: Path) -> None:
    redis, other = prefixed(server), tmp_path / "other.db"
    for place in (file, redis, other):
        store = await opened(place)
        await subscribe(store, await activate(store), b"queue")
        await store.close()
    for source, target in ((file, redis), (redis, file), (file, other)):
        before = await all_of(target)
        with pytest.raises(StoreConflictError, match="registrations or servers already"):
            await move(source, target)
        assert await all_of(target) == before
        await (await opened(target)).close()


async def test_what_cannot_be_moved(server: Server, file: Path, tmp_path: Path) -> None:
    redis = prefixed(server)
    with pytest.raises(StoreError, match="there is no database"):
        await move(file, redis)
    with pytest.raises(StoreError, match="there is no store under the prefix"):
        await move(redis, tmp_path / "other.db")
    await (await opened(file)).close()
    await (await opened(redis)).close()
    with pytest.raises(StoreConflictError, match="FROM and TO are the same store"):
        await move(file, file)
    with pytest.raises(StoreConflictError, match="FROM and TO are the same store"):
        await move(redis, parse_redis_url(f"{server.url.replace('127.0.0.1', 'localhost')}?prefix={redis.prefix}"))
    with pytest.raises(StoreConflictError, match="only a Redis has shards and buckets"):
        await move(redis, tmp_path / "new.db", buckets=4)
    with pytest.raises(StoreError, match="the master key is not the one"):
        await migrate(file, redis, master_key=OTHER)
    with pytest.raises(WrongMasterKeyError):
        await migrate(redis, tmp_path / "new.db", master_key=OTHER)


async def test_a_registration_from_the_reference_is_known_by_its_dh_secret(
    server: Server, file: Path, tmp_path: Path
) -> None:
    """Which keeps the server's private key instead of the client's public one."""
    client, other = (X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2))
    private = X25519PrivateKey.generate().private_bytes_raw()
    secret = crypto.dh_box_key(private, X25519PublicKey.from_public_bytes(client))
    store: Any = await opened(file)
    token = await store.register(replace(new_token(dh=b""), secret=secret))
    sealed = store._state.sealer.seal(private, SERVER_PRIVATE + token.token_id)
    await store.close()
    with closing(sqlite3.connect(file)) as c, c:
        c.execute("UPDATE tokens SET server_private = ?", (sealed,))
    redis, back = prefixed(server), tmp_path / "back.db"
    await move(file, redis)
    await move(redis, back)
    for place in (redis, back):
        store = await opened(place)
        assert await store.register(new_token(dh=other)) is None
        again = await store.register(new_token(dh=client))
        assert again is not None and again.token_id == token.token_id
        await store.close()


async def test_nobody_is_silent_because_of_the_time_between(server: Server, file: Path) -> None:
    """As with a database that was closed for long."""
    store = await opened(file)
    token = await activate(store)
    await store.close()
    long_ago = token.active_at - 300 * 24 * 3600
    with closing(sqlite3.connect(file)) as c, c:
        c.execute("UPDATE tokens SET active_at = ?", (long_ago,))
    redis = prefixed(server)
    await move(file, redis)
    store = await opened(redis)
    await asyncio.sleep(0)
    found = await store.find_token(token.token_id)
    assert found is not None and found.active_at > token.active_at - 60
    await store.close()
