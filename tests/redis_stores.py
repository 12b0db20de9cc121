"""Nodes of the store on one Redis, for the engine's own tests, and what may happen to what they ask for."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

from redis_servers import Server

from ntf_server.store import memory
from ntf_server.store.clock import Clock
from ntf_server.store.contract import StoreConflictError, StoreError, StoreUnavailableError
from ntf_server.store.redis.buckets import bucket_of
from ntf_server.store.redis.call import Call, Word
from ntf_server.store.redis.database import Bounds, Database
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.rows import Queue
from ntf_server.store.redis.script import Script
from ntf_server.store.redis.url import parse_redis_url
from ntf_server.store.sealing import MasterKey
from ntf_server.testing.store_suite import ManualClock
from ntf_server.testing.store_suite.medium import SMP
from smp_bridge.address import ServerAddress

MASTER = MasterKey(b"a master key of thirty-two bytes")
SHARDS = 16
BUCKETS = 4


class Nodes:
    """They share a prefix and a clock that moves when it is told to. What they do on their own is switched off."""

    def __init__(self, url: str, prefix: str = "nodes") -> None:
        self.clock = ManualClock()
        self.prefix = prefix
        self._url = url
        self._open: list[RedisStore] = []

    async def database(self, bounds: Bounds = Bounds()) -> Database:  # noqa: B008  it is frozen
        return await Database.open(parse_redis_url(f"{self._url}?prefix={self.prefix}"), bounds=bounds)

    async def open(
        self,
        name: str = "one",
        *,
        times: memory.Times = memory.Times(),  # noqa: B008
        bounds: Bounds = Bounds(),  # noqa: B008
        manual: bool = True,
        master: MasterKey = MASTER,
        shards: int = SHARDS,
        buckets: int = BUCKETS,
    ) -> RedisStore:
        """`manual`: the clock is the store's too; else that is the server's."""
        store = await RedisStore.open(
            await self.database(bounds),
            master_key=master,
            times=times,
            clock=Clock(self.clock.wall, self.clock.steady) if manual else None,
            name=name,
            shards=shards,
            buckets=buckets,
        )
        for task in store._tasks:
            task.cancel()
        self._open.append(store)
        return store

    async def kill(self, store: RedisStore) -> None:
        """As kill -9 does."""
        self._open.remove(store)
        await store._node.database.close()

    async def pass_(self, seconds: float, *stores: RedisStore) -> None:
        """Time goes by, and these nodes keep what they hold; the others are as good as dead."""
        while seconds > 0:
            self.clock.pass_(min(2.0, seconds))
            seconds -= 2.0
            for store in stores:
                await keep(store)

    async def close(self) -> None:
        for store in self._open:
            await store.close()


async def keep(store: RedisStore) -> None:
    """What each operation begins with."""
    await store._node.begin()
    store._node.done()


def each_by(run_one: Callable[[Call], Awaitable[Any]]) -> dict[str, Any]:
    """A database's ways to run calls, by one that runs one."""

    async def run_each(calls: Sequence[Call]) -> list[Any]:
        answers: list[Any] = []
        for call in calls:
            try:
                answers.append(await run_one(call))
            except StoreError as e:
                answers.append(e)
        return answers

    async def run_all(calls: Sequence[Call]) -> list[Any]:
        return [await run_one(call) for call in calls]

    return {"run": run_one, "run_all": run_all, "run_each": run_each, "run_prompt": run_each}


async def regained(store: RedisStore) -> None:
    """All shards can be had again."""
    async with asyncio.timeout(20):
        while store._node.silent:
            await asyncio.sleep(0.01)


class How(Enum):
    """What happens to what is asked for."""

    TWICE = "done twice, as when an answer was lost"
    LOST = "done, but the answer never comes"
    UNDONE = "not done: the server is away, or the node died before"


@contextmanager
def patched(of: object, **methods: Any) -> Iterator[None]:
    """They take the places of what it has."""
    had = dict(vars(of))
    vars(of).update(methods)
    try:
        yield
    finally:
        for name in methods:
            if name in had:
                vars(of)[name] = had[name]
            else:
                del vars(of)[name]


@contextmanager
def fault(store: RedisStore, how: How, *names: str) -> Iterator[list[str]]:
    """From now on this happens to scripts and commands of these names. Gives those that it happened to."""
    database = store._node.database
    happened: list[str] = []
    run, command = database.run, database.command

    async def ask(name: str, again: Any) -> Any:
        if name not in names:
            return await again()
        happened.append(name)
        if how is not How.UNDONE:
            answer = await again()
        if how is not How.TWICE:
            raise StoreUnavailableError(how.value)
        second = await again()
        return answer if second is None else second

    async def run_one(call: Call) -> Any:
        return await ask(call.script.name, lambda: run(call))

    async def command_one(*words: Word, key: bytes, writes: bool = True) -> Any:
        [word] = words[:1]
        assert isinstance(word, bytes)
        return await ask(word.decode(), lambda: command(*words, key=key, writes=writes))

    with patched(database, **each_by(run_one), command=command_one):
        yield happened


@contextmanager
def between(store: RedisStore, name: str, act: Callable[[], Awaitable[None]]) -> Iterator[list[str]]:
    """From now on the script of this name is done twice, as when its answer was lost, and this is done before the
    second time. Gives its name each time.
    """
    run = store._node.database.run
    happened: list[str] = []

    async def run_one(call: Call) -> Any:
        first = await run(call)
        if call.script.name == name:
            happened.append(name)
            await act()
            await run(call)
        return first

    with patched(store._node.database, **each_by(run_one)):
        yield happened


@contextmanager
def before(store: RedisStore, name: str, act: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """What somebody else does when the script of this name is asked for the first time, and is not yet done."""
    database = store._node.database
    run = database.run
    acts = [act]

    async def run_one(call: Call) -> Any:
        if call.script.name == name and acts:
            await acts.pop()()
        return await run(call)

    with patched(database, **each_by(run_one)):
        yield
    assert not acts, f"{name} was not asked for"


_ALL = "local call = redis.call\n"
_SOME = """local left = %d
local function call(...)
    if left == 0 then error('some keys have moved') end
    left = left - 1
    return redis.call(...)
end
"""


@contextmanager
def cut(store: RedisStore, name: str, commands: int) -> Iterator[list[str]]:
    """From now on this script ends behind so many commands, as in a slot that moves, and is done again.

    Gives its name each time that it ended so.
    """
    database = store._node.database
    run = database.run
    happened: list[str] = []

    async def run_one(call: Call) -> Any:
        if call.script.name == name:
            assert call.script.text.count(_ALL) == 1
            some = Script(name, call.script.text.replace(_ALL, _SOME % commands))
            try:
                await run(call._replace(script=some))
            except StoreConflictError as e:
                assert "some keys have moved" in str(e)
                happened.append(name)
        return await run(call)

    async def run_all(calls: Sequence[Call]) -> list[Any]:
        return [await run_one(call) for call in calls]

    with patched(database, run=run_one, run_all=run_all, run_prompt=run_all):
        yield happened


def commands(server: Server) -> int:
    """How many the server has done, those of scripts too: that is the same however slow the machine is just now."""
    return sum(map(int, re.findall(r"calls=(\d+)", server.ask("INFO", "COMMANDSTATS").decode())))


@contextmanager
def measured(server: Server, database: Database, names: Collection[str]) -> Iterator[dict[str, list[int]]]:
    """How many commands each run of these scripts was."""
    costs: dict[str, list[int]] = {}
    run = database.run

    async def run_one(call: Call) -> Any:
        if call.script.name not in names:
            return await run(call)
        before_ = commands(server)
        answer = await run(call)
        costs.setdefault(call.script.name, []).append(commands(server) - before_)
        return answer

    with patched(database, **each_by(run_one)):
        yield costs


def bucket(store: RedisStore, notifier_id: bytes, server: ServerAddress = SMP) -> bytes:
    """Key of the bucket that a queue is in."""
    return bucket_of(store._node, Queue(server_id(server), notifier_id))


async def keys(store: RedisStore) -> set[bytes]:
    """All of the store, without its prefix."""
    database = store._node.database
    found: set[bytes] = set()
    for told in (await database.command_everywhere(b"KEYS", f"{database.prefix}:*")).values():
        found.update(told)
    return {key.removeprefix(f"{database.prefix}:".encode()) for key in found}


async def ask(store: RedisStore, *words: Word) -> Any:
    """A plain command; the second word is a key."""
    [key] = words[1:2]
    assert isinstance(key, bytes)
    return await store._node.database.command(*words, key=key)
