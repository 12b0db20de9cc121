"""The reference's PostgreSQL database as a source: a real one, in its schemas of 6.5 and 7.0."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from moving import read
from msgspec.structs import replace
from postgres_server import PASSWORD, QUOTED, WANTED, Postgres
from reference_world import (
    SMP,
    TODAY,
    V6_5,
    V7_0,
    Queue,
    Registration,
    Service,
    add_queue,
    add_server,
    fill,
    last_log,
    make_schema,
    many,
    store_log,
)  # fmt: skip
from store_world import MASTER

from ntf_server.store import migrate
from ntf_server.store.contract import StoreError, StoreUnavailableError
from ntf_server.store.portable import MovedServer, Source
from ntf_server.store.reference.postgres import PostgresSource
from ntf_server.store.reference.store_log import StoreLogSource
from ntf_server.store.sqlite.portable import PortableDatabase
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import b64url
from smp_bridge.service import ids_hash

pytestmark = WANTED
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def db(server: Postgres) -> Iterator[Any]:
    with server.connect() as connection:
        yield connection


@pytest.fixture
def schema() -> str:
    return f"ntf_server_{next(NUMBERS)}"


async def content(server: Postgres, schema: str, skip: Any = (), at_once: int = 2) -> tuple[list[Any], list[Any], Any]:
    source = await PostgresSource.open(server.url, schema, skip)
    try:
        source_: Source = source
        source_.ahead = TODAY + 5000
        return await read(source_, at_once)  # type: ignore[arg-type]
    finally:
        await source.close()


@pytest.mark.parametrize("migrations", [V6_5, V7_0, V7_0[:1], V7_0[:3]])
async def test_it_is_read_as_the_log_of_the_same_devices(
    server: Postgres, db: Any, schema: str, tmp_path: Path, migrations: Any
) -> None:
    known = many()
    fill(db, schema, known, migrations)
    (tmp_path / "log").write_bytes(store_log(known) + last_log(known))
    log = await StoreLogSource.open([tmp_path / "log"])
    log.ahead = TODAY + 5000
    from_log = await read(log)  # type: ignore[arg-type]
    await log.close()
    periods = {r.token_id: r.period_at for r in known if r.period_at}  # which a log does not keep
    servers, moved, left_out = await content(server, schema)
    assert left_out == {}
    for found, logged in zip(moved, from_log[1], strict=True):
        if found[0][0] not in periods:
            assert found == logged
        else:
            assert TODAY - 100 in found[0]
    assert servers == from_log[0]


async def test_services_of_7_0_and_none_of_6_5(server: Postgres, db: Any, schema: str) -> None:
    service = Service()
    r = Registration(queues=[Queue(associated=True), Queue(associated=True, status="INACTIVE"), Queue()])
    r.queues.append(Queue(associated=True, status="AUTH"))
    fill(db, schema, [r], V7_0, service)
    [server_], [(_, queues)], left_out = await content(server, schema)
    moved = MovedServer(*server_)
    assert moved.service_id == service.service_id
    assert moved.chain.startswith(b"-----BEGIN CERTIFICATE-----")
    counted = [q.notifier_id for q in r.queues[:2]]
    assert (moved.counted, moved.counted_hash) == (2, ids_hash(counted))
    assert {q[1] for q in queues if q[7]} == set(counted)
    assert left_out == {}
    db.execute(f"UPDATE {schema}.smp_servers SET ntf_service_priv_key = 'rubbish'")
    [server_], [(_, queues)], left_out = await content(server, schema)
    moved = MovedServer(*server_)
    assert (moved.service_id, moved.chain, moved.counted) == (None, b"", 0)
    assert not any(q[7] for q in queues)
    assert left_out == {"certificates: they, or their keys, cannot be read": 1}
    old = f"{schema}_old"
    fill(db, old, [r], V6_5)
    db.execute(f"UPDATE {old}.smp_servers SET ntf_service_id = 'service'")  # of one certificate for all servers
    [server_], [(_, queues)], _ = await content(server, old)
    assert MovedServer(*server_).service_id is None
    assert not any(q[7] for q in queues)


async def test_a_half_broken_database(server: Postgres, db: Any, schema: str) -> None:
    known = many()
    fill(db, schema, known)
    broken, other = known[0], known[1]
    db.execute(f"UPDATE {schema}.tokens SET verify_key = 'rubbish' WHERE token_id = %s", [broken.token_id])
    db.execute(f"UPDATE {schema}.subscriptions SET status = 'SAD' WHERE subscription_id = %s",
               [other.queues[0].subscription_id])  # fmt: skip
    lonely = Queue()
    add_queue(db, schema, other, lonely, add_server(db, schema, SMP, "no/host"))
    nowhere = Queue(last=(TODAY, bytes(24), b"meta"))
    add_queue(db, schema, other, nowhere, add_server(db, schema, ServerAddress("smp", ("b.example",), "", b"b" * 32)))
    db.execute(f"UPDATE {schema}.last_notifications SET nmsg_nonce = '' WHERE subscription_id = %s",
               [nowhere.subscription_id])  # fmt: skip
    db.execute(f"UPDATE {schema}.subscriptions SET smp_server_id = NULL WHERE subscription_id = %s",
               [other.queues[1].subscription_id])  # fmt: skip
    source = await PostgresSource.open(server.url, schema)
    _, moved, left_out = await read(source, 3)  # type: ignore[arg-type]
    await source.close()
    assert {token[0] for token, _ in moved} == {r.token_id for r in known} - {broken.token_id}
    assert left_out == {
        "registrations: the verify key cannot be read": 1,
        "subscriptions: their registration is left out": len(broken.queues),
        "subscriptions: the status is unknown": 1,
        "servers: the address cannot be read": 1,
        "subscriptions: their server is unknown, or cannot be read": 2,
        "notifications: its nonce or its metadata are not whole": 1,
    }
    assert source.left_out.ids["registrations: the verify key cannot be read"] == [b64url(broken.token_id)]


async def test_what_is_twice_and_what_is_skipped(server: Postgres, db: Any, schema: str) -> None:
    known = [Registration(queues=[Queue(status="PENDING")]), Registration(status="CONFIRMED"), Registration()]
    known[1].device_token, known[1].key = known[0].device_token.upper(), known[0].key
    fill(db, schema, known)
    twin = Queue(notifier_id=known[0].queues[0].notifier_id, status="ACTIVE")
    add_queue(db, schema, known[0], twin, add_server(db, schema, SMP, "SMP.Example.Org"))
    servers, moved, left_out = await content(server, schema, [known[2].token_id])
    assert [MovedServer(*s).address for s in servers] == [SMP.encode()]
    [(token, queues)] = moved
    assert token[0] == known[0].token_id
    [queue] = queues
    assert queue[2] == twin.subscription_id
    assert queue[4] == replace_hosts("SMP.Example.Org")
    assert left_out == {
        "registrations: another one has the device, with the same verify key": 1,
        "registrations: --skip-tokens names them": 1,
        "subscriptions: another one has the queue, under another spelling of its server": 1,
    }


def replace_hosts(host: str) -> bytes:
    return ServerAddress("smp", (host,), "", SMP.key_hash).encode()


async def test_places_grow_and_a_page_may_be_read_twice(server: Postgres, db: Any, schema: str) -> None:
    known = [Registration(queues=[Queue(), Queue()]) for _ in range(5)]
    fill(db, schema, known)
    source = await PostgresSource.open(server.url, schema)
    cursor: bytes | None = b""
    places: list[int] = []
    while cursor is not None:
        page = await source.read(cursor, 2)
        assert await source.read(cursor, 2) == replace(page)
        places += (q.place for m in page.moved for q in m.queues)
        cursor = page.cursor
    assert places == list(range(1, 11))
    assert await source.tokens() == 5
    await source.close()


async def test_who_uses_it(server: Postgres, db: Any, schema: str) -> None:
    fill(db, schema, [])
    source = await PostgresSource.open(server.url, schema)
    await source.check_idle()  # psql is no server
    with psycopg.connect(server.url):  # as the reference connects
        with pytest.raises(
            StoreUnavailableError, match=r"a server uses this database \(connections: 1\): stop the"
        ) as e:
            await source.check_idle()
        assert PASSWORD not in str(e.value)
    await source.close()


async def test_a_source_is_its_database(server: Postgres, db: Any, schema: str) -> None:
    for name in (schema, f"{schema}_b"):
        fill(db, name, [])
    identities = []
    for name, skip in ((schema, ()), (schema, ()), (f"{schema}_b", ()), (schema, (b"id",))):
        source = await PostgresSource.open(server.url, name, skip)
        identities.append(source.identity)
        await source.close()
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


async def test_what_is_not_the_reference_s(server: Postgres, db: Any, schema: str) -> None:
    with pytest.raises(StoreError, match="there is no such schema; give its name by --schema"):
        await PostgresSource.open(server.url, schema)
    db.execute(f"CREATE SCHEMA {schema}")
    with pytest.raises(StoreError, match="it has no tables migrations and subscriptions"):
        await PostgresSource.open(server.url, schema)
    newer, other = f"{schema}_newer", f"{schema}_other"
    make_schema(db, newer, [*V7_0, "20270101_shiny"])
    with pytest.raises(StoreError, match="with the migration 20270101_shiny; nothing was imported: update ntf-relay"):
        await PostgresSource.open(server.url, newer)
    make_schema(db, other, [])
    db.execute(f"DROP TABLE {other}.last_notifications")
    with pytest.raises(StoreError, match="the migration 20250417_initial is missing"):
        await PostgresSource.open(server.url, other)
    broken = f"{schema}_broken"
    make_schema(db, broken)
    db.execute(f"ALTER TABLE {broken}.tokens DROP COLUMN reg_code")
    source = await PostgresSource.open(server.url, broken)
    with pytest.raises(StoreError, match='column "reg_code" does not exist; nothing was changed there') as e:
        await source.read(b"", 1)
    assert "\n" not in str(e.value)
    await source.close()


async def test_the_password_is_told_nobody(server: Postgres, schema: str) -> None:
    for url, words in (
        (server.url.replace(QUOTED, "wr%40ng"), "PostgreSQL refuses: .*password authentication failed"),
        (server.url.replace("/postgres", "/nothing"), 'PostgreSQL refuses: .*database "nothing" does not exist'),
        (server.url.replace(f":{server.port}", ":1"), "PostgreSQL cannot be reached: .*Connection refused"),
        (server.url.replace(QUOTED, PASSWORD), "is no connection that PostgreSQL understands|cannot be reached"),
        (f"postgresql://ntf:{PASSWORD}%zz@host", "is no connection that PostgreSQL understands"),
        (f"pa ssword={PASSWORD}", "is no connection that PostgreSQL understands"),
        (f"{server.url}?nonsense={QUOTED}", "is no connection that PostgreSQL understands"),
    ):
        with pytest.raises(StoreError, match=words) as caught:
            await PostgresSource.open(url, schema)
        told = str(caught.value)
        assert "\n" not in told
        for secret in (PASSWORD, QUOTED, "word@sea", "wr%40ng", "wr@ng"):
            assert secret not in told
        assert caught.value.__cause__ is None


async def test_a_connection_that_is_lost(server: Postgres, db: Any, schema: str) -> None:
    fill(db, schema, many())
    source = await PostgresSource.open(server.url, schema)
    db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ntf-server import'")
    with pytest.raises(StoreUnavailableError, match="see whether PostgreSQL runs, then run this again: it goes on"):
        await source.read(b"", 1)
    await source.close()


async def test_a_user_that_may_only_read(server: Postgres, db: Any, schema: str) -> None:
    fill(db, schema, many())
    db.execute(f"CREATE ROLE {schema}_reader LOGIN PASSWORD 'reader'")
    url = server.url.replace(f"ntf:{QUOTED}", f"{schema}_reader:reader")
    with pytest.raises(StoreError, match=r"permission denied for schema .*may this user read it all"):
        await PostgresSource.open(url, schema)
    db.execute(f"GRANT USAGE ON SCHEMA {schema} TO {schema}_reader")
    with pytest.raises(StoreError, match=r"permission denied for table .*may this user read it all"):
        await PostgresSource.open(url, schema)
    db.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {schema}_reader")
    source = await PostgresSource.open(url, schema)
    assert len((await read(source))[1]) == 10  # type: ignore[arg-type]
    await source.check_idle()
    # of another user it does not see much
    with psycopg.connect(server.url), pytest.raises(StoreUnavailableError, match="a server uses this database"):
        await source.check_idle()
    await source.close()


async def test_it_goes_on_where_it_was_killed(server: Postgres, db: Any, schema: str, tmp_path: Path) -> None:
    known = [Registration(queues=[Queue(last=(TODAY, os.urandom(24), b"meta"))], period=20) for _ in range(7)]
    fill(db, schema, known)
    whole: list[Any] = []
    for number, killed in enumerate((None, 1, 2, 3)):
        target, steps = tmp_path / f"{number}.db", itertools.count(1)

        def tell(_what: str, _done: int, _total: int, steps: Any = steps, killed: int | None = killed) -> None:
            if next(steps) == killed:
                raise _Killed

        source = await PostgresSource.open(server.url, schema)
        source.ahead = TODAY + 5000
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ntf_server.store.migrate._AT_ONCE", 3)
            if killed:
                with pytest.raises(_Killed):
                    await migrate.fill(source, target, master_key=MASTER, tell=tell)
                source = await reopened(source, server, schema)
            done = await migrate.fill(source, target, master_key=MASTER, tell=lambda _w, _d, _t: None)
        await source.close()
        assert done.counts == {"servers": 1, "registrations": 7, "subscriptions": 7, "notifications": 7}
        store = PortableDatabase.open(target, MASTER, make=False)
        whole.append(await read(store))
        await store.close()
    assert all(one == whole[0] for one in whole)


class _Killed(BaseException):
    pass


async def reopened(source: PostgresSource, server: Postgres, schema: str) -> PostgresSource:
    """By another process, later."""
    await source.close()
    later = await PostgresSource.open(server.url, schema)
    later.ahead = source.ahead + 3600
    return later
