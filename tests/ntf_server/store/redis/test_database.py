"""One primary and many callers: who shares what, and what each is told when something fails."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from redis_servers import Server, programs, wait_until
from redis_world import BROKEN, COUNT, DROP, ECHO, FAIL, GET, PUT, count, echo, in_the_end, opened, sent

from ntf_server.store.contract import (
    FencedError,
    StoreConflictError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.database import Bounds, Database
from ntf_server.store.redis.durability import Durability
from ntf_server.store.redis.script import Script
from ntf_server.store.redis.url import Endpoint, parse_redis_url

IMPATIENT = Bounds(limit=1.0, connect=0.3, answer=0.3)


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@pytest.fixture
async def impatient(server: Server) -> AsyncIterator[Database]:
    async with opened(server.url, bounds=IMPATIENT) as database:
        yield database


# --- sharing


async def test_calls_of_one_turn_share_a_pipeline(database: Database) -> None:
    await database.run(echo(0))
    before = sent(database)
    assert await asyncio.gather(*(database.run(echo(i)) for i in range(100))) == [b"%d" % i for i in range(100)]
    assert sent(database) == before + 1


async def test_many_calls_take_few_pipelines_and_keep_their_order(database: Database) -> None:
    answers = await database.run_all([echo(i) for i in range(3000)])
    assert answers == [b"%d" % i for i in range(3000)]
    assert sent(database) < 50


async def test_what_comes_meanwhile_goes_together(database: Database, server: Server) -> None:
    await database.run(echo(0))
    before = sent(database)
    tasks = []
    with frozen(server):
        for i in range(300):  # each in a turn of its own
            tasks.append(asyncio.create_task(database.run(echo(i))))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    assert await asyncio.gather(*tasks) == [b"%d" % i for i in range(300)]
    assert sent(database) - before <= 4 + 3


async def test_nothing_asked_for_is_nothing_done(database: Database) -> None:
    assert await database.run_all([]) == []
    assert await database.run_each([]) == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("return 7", 7),
        ("return nil", None),
        ("return false", None),
        ("return {1, 'two', {3}}", [1, b"two", [3]]),
        ("return {}", []),
        ("return redis.status_reply('FINE')", b"FINE"),
        ("return ARGV[1] .. ARGV[2]", b"\x00\xffa7"),
        ("return KEYS[2]", b"k2"),
        ("return redis.call('TIME')[1] and 1", 1),
    ],
)
async def test_answers(database: Database, text: str, answer: object) -> None:
    assert await database.run(Call(Script("x", text), [b"k1", b"k2"], [b"\x00\xffa", 7])) == answer


async def test_a_large_argument(database: Database) -> None:
    large = bytes(range(256)) * 20_000
    assert await database.run_all([echo(large), echo(1), echo(large)]) == [large, b"1", large]


async def test_plain_commands(database: Database) -> None:
    assert await database.command(b"SET", b"k", "ü", key=b"k") == b"OK"
    assert await database.command(b"GET", b"k", key=b"k", writes=False) == "ü".encode()
    told = await database.command_everywhere(b"DBSIZE")
    assert list(told.values()) == [1]


async def test_what_is_no_argument_is_its_callers_fault_alone(database: Database) -> None:
    with pytest.raises(TypeError):
        await database.run(Call(ECHO, [b"k"], [None]))  # type: ignore[list-item]
    assert await database.run(echo(1)) == b"1"


async def test_what_it_tells_of_itself(server: Server) -> None:
    async with opened(f"{server.url}/2?prefix=relay7") as database:
        assert (database.prefix, database.spans) == ("relay7", True)
        await database.command(b"SET", b"k", 1, key=b"k")
        [facts] = await database.facts()
        assert facts.redis_version >= (7, 0) and facts.eviction == "noeviction" and facts.append_only is False
    assert server.ask("GET", "k") is None  # which asks database 0


# --- one fails, the others do not


async def test_an_error_fails_one_call_only(database: Database) -> None:
    await database.command(b"SET", b"text", "x", key=b"text")
    calls = [
        echo(1),
        Call(FAIL, [b"k"], ["FENCED fence 3 is over"]),
        Call(FAIL, [b"k"], ["CONFLICT no such shard"]),
        Call(FAIL, [b"k"], ["ERR other"]),
        Call(BROKEN, [b"k"]),
        Call(COUNT, [b"text"], [1]),  # of another type
        echo(2),
    ]
    before = sent(database)
    first, fenced, conflict, other, broken, typed, last = await database.run_each(calls)
    assert (first, last) == (b"1", b"2")
    assert isinstance(fenced, FencedError) and str(fenced) == "fence 3 is over"
    assert isinstance(conflict, StoreConflictError) and str(conflict) == "no such shard"
    for error, name in ((other, "fail"), (broken, "broken"), (typed, "count")):
        assert isinstance(error, StoreConflictError) and f"script {name}" in str(error)
    assert sent(database) <= before + 2  # all, and what was unknown
    with pytest.raises(FencedError):
        await database.run_all(calls)
    assert await database.run(echo(3)) == b"3"


async def test_a_command_that_is_none(database: Database) -> None:
    with pytest.raises(StoreConflictError, match="unknown command 'NONE'") as e:
        await database.command(b"NONE", b"secret", key=b"k")
    assert "secret" not in str(e.value)


async def test_a_script_that_the_server_lost_is_sent_once(database: Database, server: Server) -> None:
    await database.run(echo(0))
    server.ask("SCRIPT", "FLUSH")
    server.ask("CONFIG", "RESETSTAT")
    before = sent(database)
    assert await database.run_all([echo(i) for i in range(50)]) == [b"%d" % i for i in range(50)]
    assert sent(database) == before + 2
    stats = server.ask("INFO", "commandstats").decode()
    assert "cmdstat_eval:calls=1," in stats


async def test_who_is_cancelled_costs_nobody_an_answer(database: Database, server: Server) -> None:
    await database.run(echo(0))
    with frozen(server):
        mine = asyncio.create_task(database.run(echo("mine")))
        all_mine = asyncio.create_task(database.run_all([echo("mine"), echo("mine")]))
        beside = asyncio.create_task(database.run(echo("beside")))
        await asyncio.sleep(0.05)  # it is on the wire
        mine.cancel()
        all_mine.cancel()
        later = asyncio.create_task(database.run(echo("later")))
        await asyncio.sleep(0.05)
    assert await beside == b"beside"
    assert await later == b"later"
    assert mine.cancelled() and all_mine.cancelled()
    assert [await database.run(echo(i)) for i in range(20)] == [b"%d" % i for i in range(20)]


async def test_cancelled_at_any_moment(database: Database) -> None:
    chance = random.Random(1)
    asked: dict[int, asyncio.Task[bytes]] = {}
    for i in range(2000):
        asked[i] = asyncio.create_task(database.run(echo(i)))
        if chance.random() < 0.3:
            asked[chance.randrange(i + 1)].cancel()
        if chance.random() < 0.1:
            await asyncio.sleep(0)
    for i, task in asked.items():
        with suppress(asyncio.CancelledError):
            assert await task == b"%d" % i
    assert sum(task.cancelled() for task in asked.values()) > 50
    assert not database._asked


# --- room


async def test_too_many_calls_wait_for_room(server: Server) -> None:
    async with opened(server.url, bounds=Bounds(calls=10)) as database:
        most = 0

        async def ask(i: int) -> bytes:
            nonlocal most
            answer: bytes = await database.run(echo(i))
            most = max(most, len(database._asked))
            return answer

        assert await asyncio.gather(*(ask(i) for i in range(500))) == [b"%d" % i for i in range(500)]
        assert await database.run_all([echo(i) for i in range(500)]) == [b"%d" % i for i in range(500)]
        assert 0 < most <= 10


async def test_room_that_does_not_come_is_told(server: Server) -> None:
    async with opened(server.url, bounds=Bounds(limit=0.3, calls=10)) as database:
        with frozen(server):
            told = await asyncio.gather(*(database.run(echo(i)) for i in range(300)), return_exceptions=True)
            assert all(isinstance(error, StoreUnavailableError) for error in told)
            assert f"10 calls wait for {server.url} (tried for 0.3 s)" in map(str, told)
            async with asyncio.timeout(3):  # one limit for all of them
                told = await database.run_each([echo(i) for i in range(50)])
            assert len(told) == 50 and all(isinstance(error, StoreUnavailableError) for error in told)
        assert await in_the_end(database, echo(1)) == b"1"


# --- trouble


async def test_a_server_that_stands_still_for_a_while(server: Server) -> None:
    bounds = Bounds(limit=10.0, connect=0.3, answer=0.3)
    async with opened(server.url, bounds=bounds) as database:
        await database.run(count(b"k", 0))
        with frozen(server):
            tasks = [asyncio.create_task(database.run(count(b"k", i))) for i in range(100)]
            await asyncio.sleep(1.0)  # each was given up by then, more than once
            assert not any(task.done() for task in tasks)
        assert max(await asyncio.gather(*tasks)) == 100
        assert server.ask("SCARD", "k") == 100


async def test_a_server_that_stands_still_is_unavailable(impatient: Database, server: Server) -> None:
    errors: list[Exception] = []
    impatient._on_error = errors.append
    with frozen(server), pytest.raises(StoreUnavailableError, match=rf"{server.address}.*tried for 1 s"):
        await impatient.run(echo(1))
    assert len(errors) == 1
    assert await in_the_end(impatient, echo(1)) == b"1"


async def test_a_server_that_is_gone_and_comes_back(own_server: Server) -> None:
    async with opened(own_server.url, bounds=IMPATIENT) as database:
        await database.run(echo(1))
        own_server.kill()
        with pytest.raises(StoreUnavailableError, match=own_server.address):
            await database.run(echo(1))
        own_server.start()
        assert await in_the_end(database, echo(1)) == b"1"


async def test_a_restart_meanwhile_is_not_noticed(own_server: Server) -> None:
    async with opened(own_server.url) as database:
        await database.run(echo(1))
        own_server.restart()
        await asyncio.sleep(0.05)  # the loop hears of it
        before = sent(database)
        await database.run(Call(Script("x", "return 1"), [b"k"]))
        assert sent(database) == before + 2  # with one for the script that it does not know: none was lost


async def test_no_room_is_told_at_once_and_deletions_go_on(database: Database, server: Server) -> None:
    await database.run_all([Call(PUT, [b"large"], ["x" * 1_000_000]), Call(PUT, [b"k"], [1])])
    server.ask("CONFIG", "SET", "maxmemory", 500_000)
    put, got = await database.run_each([Call(PUT, [b"more"], [1]), Call(GET, [b"k"])])
    assert isinstance(put, StoreFullError) and str(put).endswith("maxmemory is reached")
    assert got == b"1"
    assert await database.run(Call(DROP, [b"large"])) == 1
    server.ask("CONFIG", "SET", "maxmemory", 0)
    assert await database.run(Call(PUT, [b"more"], [1])) == b"1"


async def test_a_server_that_loads(own_server: Server) -> None:
    own_server.ask("EVAL", "for i = 1, 3000 do redis.call('SET', 'key' .. i, i) end", 0)
    own_server.ask("SAVE")
    own_server.options |= {"key-load-delay": "500", "loading-process-events-interval-bytes": "1024"}
    patient = Bounds(limit=15.0)
    async with (
        opened(own_server.url, bounds=Bounds(limit=0.5)) as hasty,
        opened(own_server.url, bounds=patient) as database,
    ):
        own_server.kill()
        own_server.launch()
        with pytest.raises(StoreUnavailableError, match=r"LOADING|refused"):
            await hasty.run(echo(1))
        assert await database.run(Call(GET, [b"key3000"])) == b"3000"


async def test_a_replica_until_it_is_the_primary(own_server: Server, server: Server) -> None:
    async with opened(own_server.url, bounds=IMPATIENT) as hasty, opened(own_server.url) as database:
        await database.run(Call(PUT, [b"k"], [1]))
        own_server.ask("REPLICAOF", "127.0.0.1", server.port)
        with pytest.raises(StoreUnavailableError, match=rf"{own_server.address} is a replica|READONLY"):
            await hasty.run(Call(PUT, [b"k"], [1]))
        waiting = asyncio.create_task(database.run(Call(PUT, [b"k"], [2])))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        own_server.ask("REPLICAOF", "NO", "ONE")
        assert await waiting == b"2"


async def test_fewer_replicas_than_it_wants(impatient: Database, database: Database, server: Server) -> None:
    server.ask("CONFIG", "SET", "min-replicas-to-write", 1)
    with pytest.raises(StoreUnavailableError, match="NOREPLICAS"):
        await impatient.run(Call(PUT, [b"k"], [1]))
    assert await database.run(echo(1)) == b"1"
    waiting = asyncio.create_task(database.run(Call(PUT, [b"k"], [1])))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    server.ask("CONFIG", "SET", "min-replicas-to-write", 0)
    assert await waiting == b"1"


async def test_a_server_that_is_busy_with_a_script(own_server: Server) -> None:
    own_server.ask("CONFIG", "SET", "busy-reply-threshold", 20)
    async with opened(own_server.url) as database:

        def loop() -> None:
            with suppress(redis.ResponseError):
                own_server.ask("EVAL", "while true do end", 0)

        thread = threading.Thread(target=loop)
        thread.start()
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(database.run(echo(1)))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        own_server.ask("SCRIPT", "KILL")
        assert await waiting == b"1"
        thread.join()


# --- passwords and rights

SECRET = "hunter2"


@pytest.fixture(params=programs(), ids=lambda path: path.name)
def locked(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "locked", {"requirepass": SECRET}, request.param) as server:
        yield server


async def test_a_password(locked: Server) -> None:
    async with opened(f"redis://:{SECRET}@{locked.address}") as database:
        assert await database.run(echo(1)) == b"1"


@pytest.mark.parametrize(
    ("login", "what"),
    [
        ("", "it asks for a password, and .* has none"),
        ("wrong-password", "the user or the password of .* is wrong"),
        ("somebody:wrong-password", "the user or the password of .* is wrong"),
    ],
)
async def test_no_password_and_a_wrong_one(locked: Server, login: str, what: str) -> None:
    url = f"redis://{login if ':' in login or not login else ':' + login}{'@' if login else ''}{locked.address}"
    with pytest.raises(StoreError, match=what) as e:
        await Database.open(parse_redis_url(url))
    assert not isinstance(e.value, StoreUnavailableError) and "wrong-password" not in str(e.value)


async def test_a_password_where_none_is_set(server: Server) -> None:
    with pytest.raises(StoreError, match="does not take the password") as e:
        await Database.open(parse_redis_url(f"redis://:{SECRET}@{server.address}"))
    assert SECRET not in str(e.value)


RIGHTS = ("~*", "+evalsha", "+eval", "+info", "+get", "+set")


async def test_what_a_user_may_not_do(locked: Server) -> None:
    locked.ask("ACL", "SETUSER", "relay", "on", f">{SECRET}", *RIGHTS)
    async with opened(f"redis://relay:{SECRET}@{locked.address}") as database:
        assert await database.run(Call(PUT, [b"k"], [1])) == b"1"
        [facts] = await database.facts()
        assert facts.append_sync is None and facts.eviction == "noeviction" and facts.append_only is False
        good, denied, inside = await database.run_each([echo(1), Call(DROP, [b"k"]), Call(COUNT, [b"k"], [1])])
        assert good == b"1"
        for error in (denied, inside):
            assert isinstance(error, StoreError) and "lacks a right" in str(error)
        with pytest.raises(StoreError, match=r"PING: the user of .* lacks a right"):
            await database.command(b"PING", key=b"k")
    locked.ask("ACL", "SETUSER", "relay", "-info")
    with pytest.raises(StoreError, match=r"lacks a right.*info"):
        await Database.open(parse_redis_url(f"redis://relay:{SECRET}@{locked.address}"))


# --- a server that begins anew


@pytest.mark.parametrize(("disks", "told"), [(0, 1), (1, 0)])
async def test_what_a_server_had_not_on_disk_when_it_is_started_again_may_be_lost(
    tmp_path: Path, disks: int, told: int
) -> None:
    """That is told once for all connections, unless it has to be there; of a connection that is lost nothing is."""
    lost: list[None] = []
    with Server(tmp_path / "server", {"appendonly": "yes"}) as server:
        async with opened(server.url, durability=Durability(disks=disks)) as database:
            database.on_lost = lambda: lost.append(None)
            await database.run_all([count(b"a", 1) for _ in range(300)])
            server.ask("CLIENT", "KILL", "TYPE", "normal")
            await database.run_all([count(b"a", 2) for _ in range(300)])
            assert lost == []
            server.restart()
            await database.run_all([count(b"a", 3) for _ in range(300)])
            assert len(lost) == told


# --- replicas and disks


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A primary with an append-only file, and its replica without."""
    with Server(tmp_path / "a", {"appendonly": "yes"}) as primary, Server(tmp_path / "b") as replica:
        replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        wait_until(lambda: replica.info("master_link_status") == "up", "the replica is in step")
        yield primary, replica


async def test_replicas_have_it_when_it_is_done(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    async with opened(primary.url, durability=Durability(replicas=1, timeout=0.3)) as database:
        assert await database.run_all([Call(PUT, [b"k"], [1]), Call(GET, [b"k"])]) == [b"1", b"1"]
        assert replica.ask("GET", "k") == b"1"
        with frozen(replica):
            put, got = await database.run_each([Call(PUT, [b"k"], [2]), Call(GET, [b"k"])])
            assert isinstance(put, StoreUnavailableError) and "0 of 1 replicas have it" in str(put)
            assert got == b"2"
        assert await database.run(Call(PUT, [b"k"], [3])) == b"3"


async def test_disks_have_it_when_it_is_done(pair: tuple[Server, Server]) -> None:
    primary, _ = pair
    async with opened(primary.url, durability=Durability(replicas=1, disks=1)) as database:
        assert await database.run(Call(PUT, [b"k"], [1])) == b"1"
    async with opened(primary.url, durability=Durability(disks=2, timeout=0.1)) as database:
        with pytest.raises(StoreUnavailableError, match=r"[01] of 2 servers have it on disk"):
            await database.run(Call(PUT, [b"k"], [1]))


async def test_disks_that_cannot_be_waited_for(server: Server) -> None:
    reason = "has appendonly no: with wait_aof" if server.info("redis_version") > "7.2" else "has no WAITAOF"
    with pytest.raises(StoreConflictError, match=reason):
        await Database.open(parse_redis_url(server.url), durability=Durability(disks=1))


# --- opening and closing


async def test_what_cannot_serve_is_refused(server: Server) -> None:
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreConflictError, match="allkeys-lru, which throws records away"):
        await Database.open(parse_redis_url(server.url))


async def test_nobody_is_there(own_server: Server) -> None:
    own_server.kill()
    with pytest.raises(StoreUnavailableError, match=own_server.address):
        await Database.open(parse_redis_url(own_server.url), bounds=IMPATIENT)


async def test_what_was_asked_for_is_done_before_the_end(server: Server) -> None:
    async with opened(server.url) as database:
        tasks = [asyncio.create_task(database.run(count(b"k", i))) for i in range(500)]
        await asyncio.sleep(0)
        await database.close()
        assert max(await asyncio.gather(*tasks)) == 500
        with pytest.raises(StoreConflictError, match="closed"):
            await database.run(echo(1))
        await database.close()


async def test_a_server_in_trouble_does_not_hold_up_the_end(server: Server) -> None:
    async with opened(server.url, bounds=Bounds(calls=5)) as database:
        with frozen(server):
            tasks = [asyncio.create_task(database.run(echo(i))) for i in range(10)]
            await asyncio.sleep(0.05)
            async with asyncio.timeout(3):
                await database.close()
                told = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, StoreUnavailableError | StoreConflictError) for error in told)


async def test_a_socket_in_the_file_system(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with Server(tmp_path / "server", {"unixsocket": str(path)}):
        async with opened(f"unix://{path}?db=1") as database:
            assert await database.run(echo(1)) == b"1"
            assert database.primary_of(b"k") == Endpoint(str(path), 0)
