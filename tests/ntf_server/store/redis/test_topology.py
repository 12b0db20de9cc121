"""Who is primary: what nodes of a cluster and Sentinels tell, and what is made of it when that changes."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.crc import key_slot
from redis_servers import HOST, SERVICE, Cluster, Node, Replicated, Sentinel, Server, wait_until
from redis_world import COUNT, GET, PUT, PUT_BOTH, count, opened, sent

from ntf_server.store.contract import StoreConflictError, StoreUnavailableError
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.connection import Dialer
from ntf_server.store.redis.database import PROMPT, Bounds, Database
from ntf_server.store.redis.durability import Durability
from ntf_server.store.redis.script import Script
from ntf_server.store.redis.topology import SLOTS, Topology, slot_table
from ntf_server.store.redis.url import NOBODY, Endpoint, parse_redis_url

PATIENT = Bounds(limit=15.0, connect=0.5, answer=1.0)
NODE = Endpoint("10.0.0.1", 6379)


# --- what nodes tell


def test_a_table_of_slots() -> None:
    table = slot_table([[0, 1, [b"a", 1, b"id"], [b"replica", 9, b"id"]], [3, SLOTS - 1, [b"b", 2, b"id", []]]], NODE)
    assert len(table) == SLOTS
    assert table[:4] == [Endpoint("a", 1), Endpoint("a", 1), None, Endpoint("b", 2)]
    assert set(table[3:]) == {Endpoint("b", 2)}


@pytest.mark.parametrize("host", [None, b"", b"?"])
def test_a_node_that_does_not_know_its_own_name(host: bytes | None) -> None:
    assert slot_table([[0, SLOTS - 1, [host, 7]]], NODE)[0] == Endpoint("10.0.0.1", 7)


async def test_another_node_is_asked_first_each_time(cluster: Cluster) -> None:
    """One may be cut off from the rest, and tell what is over."""
    url = parse_redis_url(cluster.url)
    topology = Topology(url, Dialer(NOBODY, None, 0, 2.0, check_role=False))
    for node in cluster.primaries:
        node.ask("CONFIG", "RESETSTAT")
    tables = [await topology.look() for _ in cluster.primaries]
    assert all(table == tables[0] for table in tables) and set(tables[0]) == set(url.hosts)
    for node in cluster.primaries:
        assert b"cmdstat_cluster|slots:calls=1," in node.ask("INFO", "commandstats")


async def test_nodes_that_do_not_answer_are_passed_over(cluster: Cluster) -> None:
    first, second, third = cluster.primaries
    url = parse_redis_url(f"redis+cluster://{HOST}:1,{first.address},{second.address}")
    topology = Topology(url, Dialer(NOBODY, None, 0, 0.2, check_role=False))
    first.freeze()
    try:
        for _ in range(3):
            assert Endpoint(HOST, third.port) in await topology.look()
    finally:
        first.thaw()
    with pytest.raises(StoreUnavailableError, match=f"{HOST}:1: .*; {HOST}:2: |{HOST}:2: .*; {HOST}:1: "):
        await Topology(parse_redis_url(f"redis+cluster://{HOST}:1,{HOST}:2"), topology._dialer).look()


# --- load


@asynccontextmanager
async def load(database: Database, keys: list[bytes], *, patient: bool = False) -> AsyncIterator[Callable[[], int]]:
    """Counts on all keys, in pace with the answers; gives how many were answered. None of these may be missing in the
    end, nor be there twice. `patient`: what was unavailable is asked for again, as callers do.
    """
    numbers = itertools.count()
    asked: dict[bytes, int] = dict.fromkeys(keys, 0)
    over = False

    async def one(key: bytes) -> None:
        number = next(numbers)
        while not over:
            try:
                await database.run(count(key, number))
            except StoreUnavailableError:
                assert patient
                continue
            asked[key] += 1
            number = next(numbers)
            await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(one(key)) for key in keys for _ in range(3)]
    try:
        yield lambda: sum(asked.values())
    finally:
        over = True
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks)
    for key in keys:
        there = await database.run(Call(COUNT, [key], [-1])) - 1
        assert asked[key] <= there <= asked[key] + 3 * patient  # the last ones may have had no answer


@asynccontextmanager
async def loaded(url: str, durability: Durability) -> AsyncIterator[tuple[Database, Callable[[], int]]]:
    """A database whose callers are patient, and how many of them were answered."""
    async with (
        opened(url, bounds=PATIENT, durability=durability) as database,
        load(database, [b"a", b"b"], patient=True) as answered,
    ):
        yield database, answered


async def grows(answered: Callable[[], int], by: int) -> None:
    """So many more were answered."""
    target = answered() + by
    async with asyncio.timeout(20):
        while answered() < target:
            await asyncio.sleep(0.01)


# --- a cluster


@pytest.fixture
async def database(cluster: Cluster) -> AsyncIterator[Database]:
    async with opened(cluster.url) as database:
        yield database


async def test_calls_go_to_who_has_their_slots(database: Database, cluster: Cluster) -> None:
    assert not database.spans
    keys = [b"{%d}" % i for i in range(300)]
    assert await database.run_all([Call(PUT, [key], [key]) for key in keys]) == keys
    assert await database.run_all([Call(GET, [key]) for key in keys]) == keys
    assert sent(database) <= 30
    for node in cluster.primaries:
        assert node.ask("DBSIZE") == sum(cluster.owner(key_slot(key)) is node for key in keys)
    assert len(await database.facts()) == 3


async def test_who_waits_for_one_primary_takes_no_room_from_the_others(cluster: Cluster) -> None:
    keys = [next(cluster.keys_of(node)) for node in cluster.primaries]
    async with opened(cluster.url, bounds=Bounds(calls=5)) as database:
        cluster.primaries[2].freeze()
        try:
            waiting = [asyncio.create_task(database.run(count(keys[2], i))) for i in range(20)]
            await asyncio.sleep(0.05)
            async with asyncio.timeout(4):  # less than the limit of those that wait
                for i in range(20):
                    await database.run_all([count(key, i) for key in keys[:2]])
            assert not any(task.done() for task in waiting)
        finally:
            cluster.primaries[2].thaw()
        assert max(await asyncio.gather(*waiting)) == 20


async def test_who_has_other_slots_is_not_held_up_by_a_primary_that_is_away(cluster: Cluster) -> None:
    """Its calls fail after a moment; it is waited for where nothing else is asked for."""
    keys = [next(cluster.keys_of(node)) for node in cluster.primaries]
    async with opened(cluster.url) as database:
        assert await database.run_prompt([count(key, 0) for key in keys]) == [1, 1, 1]
        cluster.primaries[2].freeze()
        try:
            async with asyncio.timeout(2 * PROMPT):
                *others, error = await database.run_prompt([count(key, 1) for key in keys])
            assert others == [2, 2] and isinstance(error, StoreUnavailableError)
            assert database.is_mute(keys[2])
            assert database.patience(keys[2]) < PROMPT / 2 < database.patience(keys[0])
            async with asyncio.timeout(PROMPT / 2):  # who comes next does not wait that long again
                [error] = await database.run_prompt([count(keys[2], 1)])
            assert isinstance(error, StoreUnavailableError)
            waiting = asyncio.create_task(database.run(count(keys[2], 2)))
        finally:
            cluster.primaries[2].thaw()
        assert await waiting == 3
        assert not database.is_mute(keys[2])
        assert database.patience(keys[2]) == PROMPT
        assert await database.run_prompt([count(key, 2) for key in keys]) == [3, 3, 3]


async def test_a_primary_that_answers_slowly_is_not_away(cluster: Cluster) -> None:
    """What waits behind much else is not given up, as long as something is answered."""
    key = next(cluster.keys_of(cluster.primaries[0]))
    slow = Script("slow", "local until_ = os.clock() + 0.0045 repeat until os.clock() > until_ return 1")
    async with opened(cluster.url, bounds=Bounds(limit=30.0, answer=10.0, pipelines=1)) as database:
        calls = [Call(slow, [key], [n]) for n in range(200)]
        began = asyncio.get_running_loop().time()
        assert await database.run_prompt(calls) == [1] * 200
        assert asyncio.get_running_loop().time() - began > PROMPT


async def test_a_primary_whose_replicas_or_disk_are_slow_is_not_away(cluster: Cluster) -> None:
    """A write waits for these for as long as it may."""
    key = next(cluster.keys_of(cluster.primaries[0]))
    began = asyncio.get_running_loop().time()
    async with opened(cluster.url, durability=Durability(replicas=1, timeout=2 * PROMPT)) as database:
        [error] = await database.run_prompt([count(key, 0)])
    assert isinstance(error, StoreUnavailableError) and "0 of 1 replicas have it" in str(error)
    assert asyncio.get_running_loop().time() - began >= 2 * PROMPT


async def test_one_node_is_enough_to_begin_with(cluster: Cluster) -> None:
    async with opened(f"redis+cluster://{HOST}:1,{cluster.nodes[1].address}") as database:
        assert await database.run_all([Call(PUT, [b"{%d}" % i], [1]) for i in range(50)]) == [b"1"] * 50


async def test_keys_of_two_slots_are_refused(database: Database, cluster: Cluster) -> None:
    first, second, *_ = itertools.islice(cluster.keys_of(cluster.primaries[0]), 2)
    with pytest.raises(StoreConflictError, match="script put both: CROSSSLOT"):
        await database.run(Call(PUT_BOTH, [first, second]))


async def test_a_url_of_another_kind(cluster: Cluster, server: Server) -> None:
    with pytest.raises(StoreConflictError, match="is of a cluster: the store's url has to say so"):
        await Database.open(parse_redis_url(cluster.primaries[0].url))
    with pytest.raises(StoreConflictError, match=r"is no cluster: the store's url has to be redis://"):
        await Database.open(parse_redis_url(f"redis+cluster://{server.address}"))


@pytest.fixture
def moving(cluster: Cluster) -> tuple[bytes, int, Node]:
    """A key of the first primary, its slot, and where it is to go."""
    key = next(cluster.keys_of(cluster.primaries[0]))
    return key, key_slot(key), cluster.primaries[1]


@asynccontextmanager
async def moved(cluster: Cluster, slot: int, to: Node) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The slot is half moved; the function moves the rest. In the end it is where it was."""
    source = cluster.owner(slot)

    async def finish() -> None:
        while cluster.move_keys(slot, source, to, 10):
            await asyncio.sleep(0)
        cluster.end_move(slot, source, to)

    cluster.begin_move(slot, source, to)
    try:
        yield finish
    finally:
        await finish()
        cluster.move(slot, to, source)


async def test_a_slot_moves_under_load(database: Database, cluster: Cluster, moving: tuple[bytes, int, Node]) -> None:
    key, slot, to = moving
    others = [key + b"%d" % i for i in range(200)]  # of the same slot
    await database.run_all([Call(PUT, [other], [1]) for other in others])
    beside = next(cluster.keys_of(cluster.primaries[2]))
    async with moved(cluster, slot, to) as finish, load(database, [key + b"a", key + b"b", beside]) as answered:
        for i in range(20):  # one after another: they are not here yet, and so asked for there
            new = key + b"new%d" % i
            assert await database.command(b"SET", new, i, key=new) == b"OK"
        cluster.move_keys(slot, cluster.owner(slot), to, 100)
        for other in others:
            assert await database.command(b"GET", other, key=other, writes=False) == b"1"
        await grows(answered, 100)
        await finish()
        await grows(answered, 100)
        assert await database.run_all([Call(GET, [other]) for other in others]) == [b"1"] * 200
        assert database.primary_of(key) == Endpoint(HOST, to.port)


async def test_keys_that_are_apart_wait_for_each_other(
    database: Database, cluster: Cluster, moving: tuple[bytes, int, Node]
) -> None:
    key, slot, to = moving
    await database.run(Call(PUT_BOTH, [key + b"1", key + b"2"]))
    async with moved(cluster, slot, to) as finish:
        assert cluster.move_keys(slot, cluster.owner(slot), to, 1) == 1
        waiting = asyncio.create_task(database.run(Call(PUT_BOTH, [key + b"1", key + b"2"])))
        await asyncio.sleep(0.3)
        assert not waiting.done()  # TRYAGAIN
        await finish()
        assert await waiting == 2


async def test_a_script_is_sent_to_who_is_asked_in_between(
    database: Database, cluster: Cluster, moving: tuple[bytes, int, Node]
) -> None:
    key, slot, to = moving
    alone = Script("alone", "-- It uses no other keys.\nredis.call('SET', KEYS[1], ARGV[1]) return ARGV[1]")
    async with moved(cluster, slot, to):
        to.ask("SCRIPT", "FLUSH")
        calls = [Call(alone, [key + b"%d" % i], [i]) for i in range(20)]
        assert await database.run_all(calls) == [b"%d" % i for i in range(20)]


async def test_a_script_waits_for_keys_that_it_makes_from_its_own(
    database: Database, cluster: Cluster, moving: tuple[bytes, int, Node]
) -> None:
    """Where its key is already, the others seem not to exist."""
    key, slot, to = moving
    both = Script("both", "return redis.call('INCR', KEYS[1]) + redis.call('GET', KEYS[1] .. 'b')")
    await database.run_all([Call(PUT, [key], [1]), Call(PUT, [key + b"b"], [10])])
    async with moved(cluster, slot, to) as finish:
        source = cluster.owner(slot)
        source.ask("MIGRATE", HOST, to.port, "", 0, 5000, "KEYS", key)
        waiting = asyncio.create_task(database.run(Call(both, [key])))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await finish()
        assert await waiting == 12


async def test_a_script_that_makes_keys_does_all_or_nothing_where_they_move(
    database: Database, cluster: Cluster, moving: tuple[bytes, int, Node], tmp_path: Path
) -> None:
    """What it takes from one of them would be lost if it ended where another one cannot be had: a token was, due no
    more and not handed out, until its next message.
    """
    key, slot, to = moving
    (tmp_path / "both.lua").write_text("redis.call('INCR', KEYS[1]) return redis.call('INCR', KEYS[1] .. 'b')")
    await database.run(Call(PUT, [key], [0]))
    async with moved(cluster, slot, to) as finish:
        waiting = asyncio.create_task(database.run(Call(Script.load("both", tmp_path), [key])))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert cluster.owner(slot).ask("GET", key) == b"0"
        await finish()
        assert await waiting == 1
        assert await database.run(Call(GET, [key])) == b"1"


async def test_leases_are_kept_while_their_slot_moves(
    database: Database, cluster: Cluster, moving: tuple[bytes, int, Node]
) -> None:
    """For as long as that takes: their scripts use no keys but their own."""
    key, slot, to = moving
    hold = Script.load("hold")
    [fence] = await database.run(Call(hold, [key], [0, "one", 6000, ""]))
    async with moved(cluster, slot, to):
        for _ in range(2):
            assert await database.run(Call(hold, [key], [0, "one", 6000, fence])) == [fence]
            assert await database.run(Call(hold, [key], [0, "two", 6000, ""])) == [b""]
            cluster.move_keys(slot, cluster.owner(slot), to, 100)


async def test_a_slot_that_nobody_has(cluster: Cluster) -> None:
    key = next(cluster.keys_of(cluster.primaries[0]))
    with cluster.unserved(key_slot(key)) as give_back:
        async with (
            opened(cluster.url, bounds=Bounds(limit=0.5)) as hasty,
            opened(cluster.url, bounds=PATIENT) as database,
        ):
            assert database.primary_of(key) is None
            with pytest.raises(StoreUnavailableError, match=f"no server of redis.* has the slot {key_slot(key)}"):
                await hasty.run(count(key, 1))
            waiting = asyncio.create_task(database.run(count(key, 1)))
            await asyncio.sleep(0.1)
            give_back()
            assert await waiting == 1


async def test_a_cluster_that_is_down_until_a_node_is_back(database: Database, cluster: Cluster) -> None:
    alive, dead = cluster.primaries[0], cluster.primaries[2]
    key, lost = next(cluster.keys_of(alive)), next(cluster.keys_of(dead))
    await database.run_all([count(key, 0), count(lost, 0)])
    async with opened(cluster.url, bounds=Bounds(limit=0.5)) as hasty:
        dead.kill()
        wait_until(lambda: b"cluster_state:fail" in alive.ask("CLUSTER", "INFO"), "the cluster is down")
        with pytest.raises(StoreUnavailableError, match="CLUSTERDOWN"):
            await hasty.run(count(key, 1))
    tasks = [asyncio.create_task(database.run(count(k, 1))) for k in (key, lost)]
    await asyncio.sleep(0.3)
    dead.start()
    assert await asyncio.gather(*tasks) == [2, 1]  # it kept nothing
    for node in cluster.nodes:
        wait_until(lambda node=node: node.is_well(len(cluster.nodes)), "the cluster is well")


async def test_a_primary_of_a_cluster_is_killed(own_cluster: Cluster) -> None:
    dead = own_cluster.primaries[0]
    keys = [next(own_cluster.keys_of(node)) for node in own_cluster.primaries]
    async with opened(own_cluster.url, bounds=PATIENT) as database:
        async with load(database, keys[1:]) as healthy, load(database, keys[:1]) as answered:
            await grows(answered, 50)
            wait_until(lambda: all(n.ask("WAIT", 1, 100) for n in own_cluster.primaries), "replicas have it")
            dead.kill()
            await grows(healthy, 200)  # the others are not held up
            await grows(answered, 50)
        told = database.primary_of(keys[0])
        assert told is not None and told != Endpoint(HOST, dead.port)
        assert len(await database.command_everywhere(b"DBSIZE")) == 3
        wait_until(lambda: not database._retired or all(p.is_over for p in database._retired), "the dead one is over")


# --- Sentinels


async def test_the_primary_is_killed_under_load(replicated: Replicated) -> None:
    old = replicated.primary
    durability = Durability(replicas=1)  # Sentinels choose the replica that has the most
    async with loaded(replicated.url, durability) as (database, answered):
        await grows(answered, 50)
        assert database.primary_of(b"a") == Endpoint(HOST, old.port)
        old.kill()
        await grows(answered, 50)
        assert database.primary_of(b"a") == Endpoint(HOST, replicated.primary.port) != Endpoint(HOST, old.port)


async def test_another_primary_may_lack_what_was_written(replicated: Replicated) -> None:
    """That is told, unless a replica has to have it."""
    told: list[str] = []
    async with (
        opened(replicated.url, bounds=PATIENT) as careless,
        opened(replicated.url, bounds=PATIENT, durability=Durability(replicas=1)) as careful,
    ):
        careless.on_lost = lambda: told.append("careless")
        careful.on_lost = lambda: told.append("careful")
        careless.look()
        await asyncio.gather(careless.run(count(b"a", 1)), careful.run(count(b"a", 2)))
        assert told == []
        replicated.primary.kill()
        await asyncio.gather(careless.run(count(b"a", 3)), careful.run(count(b"a", 4)))
        assert told == ["careless"]


async def test_an_operator_changes_the_primary(tmp_path: Path) -> None:
    with Replicated(tmp_path / "replicated", replicas=1, sentinels=1) as replicated:
        old, new = replicated.servers
        async with loaded(replicated.url, Durability(replicas=1)) as (database, answered):
            await grows(answered, 50)
            wait_until(lambda: replicated.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE), "it begins")
            wait_until(lambda: new.ask("ROLE")[0] == b"master", "it is the primary")
            old.ask("REPLICAOF", HOST, new.port)  # who is connected to it stays so, and reads READONLY
            await grows(answered, 50)
            assert database.primary_of(b"a") == Endpoint(HOST, new.port)


@pytest.mark.long
@pytest.mark.parametrize("how", ["frozen", "changed"])
async def test_an_old_primary_is_let_go_before_it_is_a_replica(replicated: Replicated, how: str) -> None:
    """It answers us for some ten seconds, until Sentinels tell it that it is none."""
    old = replicated.primary
    durability = Durability(replicas=2, timeout=0.2)
    async with loaded(replicated.url, durability) as (database, answered):
        await grows(answered, 50)
        if how == "frozen":
            old.freeze()
            async with asyncio.timeout(20):
                while database.primary_of(b"a") == Endpoint(HOST, old.port):
                    await asyncio.sleep(0.05)
            old.thaw()
        else:
            replicated.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)
        await asyncio.to_thread(wait_until, lambda: old.ask("ROLE")[0] == b"slave", "it is a replica")
        await grows(answered, 50)
        new = Endpoint(HOST, replicated.primary.port)
        assert database.primary_of(b"a") == new != Endpoint(HOST, old.port)


async def test_a_sentinel_that_knows_an_old_primary_is_passed_over(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        old, new = (stack.enter_context(Server(tmp_path / name)) for name in ("old", "new"))
        # each alone, and wanting another's consent: none acts on what it sees
        stale = stack.enter_context(Sentinel(tmp_path / "stale", old))
        right = stack.enter_context(Sentinel(tmp_path / "right", new))
        old.ask("REPLICAOF", HOST, new.port)
        url = f"redis+sentinel://{HOST}:1,{stale.address},{right.address}/{SERVICE}"
        for _ in range(3):
            async with opened(url) as database:
                assert database.primary_of(b"k") == Endpoint(HOST, new.port)
                assert await database.run(Call(PUT, [b"k"], [1])) == b"1"
        hasty = Bounds(limit=0.5)
        with pytest.raises(StoreUnavailableError, match=f"{old.address} is a replica"):
            await Database.open(parse_redis_url(f"redis+sentinel://{stale.address}/{SERVICE}"), bounds=hasty)
        with pytest.raises(StoreUnavailableError, match="knows no service 'other'"):
            await Database.open(parse_redis_url(f"redis+sentinel://{right.address}/other"), bounds=hasty)
        with pytest.raises(StoreConflictError, match=r"is a Sentinel: .* has to be redis\+sentinel://"):
            await Database.open(parse_redis_url(right.url))
