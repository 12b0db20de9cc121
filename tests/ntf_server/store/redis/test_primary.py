"""Pipelines to one primary: who goes with whom, how many at a time, and what becomes of them when it is none."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.exceptions import ReadOnlyError
from redis_servers import HOST, Server

from ntf_server.store.redis.call import Pending, Word
from ntf_server.store.redis.connection import Connection, Dialer
from ntf_server.store.redis.durability import Durability
from ntf_server.store.redis.primary import MAX_BYTES, MAX_CALLS, Primary
from ntf_server.store.redis.remedy import NotPrimaryError
from ntf_server.store.redis.url import NOBODY, Endpoint


class Asker:
    """Owns calls, and keeps what came of them."""

    def __init__(self) -> None:
        self.answers: dict[Pending, Any] = {}
        self.errors: dict[Pending, Exception] = {}
        self.histories: list[str] = []
        self.commits: list[float] = []
        self.on_commit = self.commits.append

    def pending(self, *words: Word, writes: bool = False) -> Pending:
        future = asyncio.get_running_loop().create_future()
        return Pending(words, script=None, writes=writes, slot=0, future=future, deadline=0.0)

    def answered(self, pending: Pending, answer: Any) -> None:
        self.answers[pending] = answer

    def failed(self, pending: Pending, at: Endpoint, error: Exception) -> None:
        self.errors[pending] = error

    def connected(self, at: Endpoint, history: str) -> None:
        self.histories.append(history)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.005)


@pytest.fixture
def asker() -> Asker:
    return Asker()


class Counted:
    """Connections that are made."""

    def __init__(self) -> None:
        self.dialled = 0

    async def __call__(self, endpoint: Endpoint) -> Connection:
        self.dialled += 1
        return await Dialer(NOBODY, None, 0, 5.0).dial(endpoint)


@pytest.fixture
def dial() -> Counted:
    return Counted()


@pytest.fixture
async def primary(server: Server, asker: Asker, dial: Counted) -> AsyncIterator[Primary]:
    at = Endpoint(HOST, server.port)
    primary = Primary(at, dial, asker, pipelines=3, patience=5.0, durability=Durability())
    yield primary
    await primary.close()


async def put(primary: Primary, asker: Asker, words: list[tuple[Word, ...]]) -> list[Any]:
    asked = [asker.pending(*each) for each in words]
    for pending in asked:
        primary.put(pending)
    await asker.until(lambda: all(pending in asker.answers for pending in asked))
    return [asker.answers[pending] for pending in asked]


async def test_one_connection_is_enough_for_who_asks_one_after_another(
    primary: Primary, asker: Asker, dial: Counted
) -> None:
    for i in range(10):
        assert await put(primary, asker, [(b"ECHO", i)]) == [b"%d" % i]
    assert (dial.dialled, primary.pipelines) == (1, 10)


async def test_a_pipeline_has_so_many_calls_and_bytes_at_most(primary: Primary, asker: Asker) -> None:
    many: list[tuple[Word, ...]] = [(b"ECHO", i) for i in range(2 * MAX_CALLS + 1)]
    assert await put(primary, asker, many) == [b"%d" % i for i in range(2 * MAX_CALLS + 1)]
    assert primary.pipelines == 3
    large = b"x" * MAX_BYTES
    assert await put(primary, asker, [(b"ECHO", large)] * 4) == [large] * 4
    assert primary.pipelines == 7


async def test_so_many_are_under_way_at_most(primary: Primary, asker: Asker, dial: Counted, server: Server) -> None:
    await put(primary, asker, [(b"PING",)])
    asked = []
    server.freeze()
    for _ in range(50):
        asked.append(asker.pending(b"PING"))
        primary.put(asked[-1])
        await asyncio.sleep(0.001)
    server.thaw()
    await asker.until(lambda: all(pending in asker.answers for pending in asked))
    assert dial.dialled <= 3 and primary.pipelines <= 1 + 3 + 1


async def test_who_is_gone_before_is_not_sent(primary: Primary, asker: Asker, server: Server) -> None:
    gone, there = asker.pending(b"SET", b"gone", 1), asker.pending(b"SET", b"there", 1)
    primary.put(gone)
    primary.put(there)
    gone.future.cancel()
    await asker.until(lambda: there in asker.answers and gone in asker.answers)
    assert (server.ask("EXISTS", "gone"), server.ask("EXISTS", "there")) == (0, 1)


async def test_all_that_waits_is_told_that_nobody_is_there(asker: Asker, own_server: Server, dial: Counted) -> None:
    own_server.kill()
    at = Endpoint(HOST, own_server.port)
    primary = Primary(at, dial, asker, pipelines=1, patience=0.5, durability=Durability())
    asked = [asker.pending(b"PING") for _ in range(3 * MAX_CALLS)]
    for pending in asked:
        primary.put(pending)
    await asker.until(lambda: len(asker.errors) == len(asked))
    assert dial.dialled == 1
    await primary.close()


async def test_asking_and_its_command_go_together(primary: Primary, asker: Asker) -> None:
    asked = [asker.pending(b"ECHO", i) for i in range(4)]
    for pending in asked:
        pending.asking = bool(asked.index(pending) % 2)
        primary.put(pending)
    await asker.until(lambda: len(asker.answers) + len(asker.errors) == 4)
    assert [asker.answers[pending] for pending in asked] == [b"0", b"1", b"2", b"3"]


async def test_what_was_not_sent_comes_back_when_it_retires(primary: Primary, asker: Asker, server: Server) -> None:
    await put(primary, asker, [(b"PING",)])
    server.freeze()
    under_way = asker.pending(b"PING")
    primary.put(under_way)
    await asyncio.sleep(0.05)
    waiting, asking = asker.pending(b"PING"), asker.pending(b"PING")
    asking.asking = True  # it can be done nowhere else
    primary.put(waiting)
    primary.put(asking)
    assert primary.retire() == [waiting]
    assert not primary.is_over
    server.thaw()
    await asker.until(lambda: under_way in asker.answers and asking in asker.answers)
    await asker.until(lambda: primary.is_over)
    assert waiting not in asker.answers


async def test_writes_wait_for_replicas_and_reads_do_not(asker: Asker, server: Server, dial: Counted) -> None:
    durability = Durability(replicas=1, timeout=0.05)
    at = Endpoint(HOST, server.port)
    primary = Primary(at, dial, asker, pipelines=1, patience=0.5, durability=durability)
    read, write, wrong = asker.pending(b"GET", b"k"), asker.pending(b"SET", b"k", 1, writes=True), asker.pending(b"NO")
    for pending in (read, write, wrong):
        primary.put(pending)
    await asker.until(lambda: len(asker.answers) + len(asker.errors) == 3)
    assert asker.answers == {read: None}
    assert "0 of 1 replicas" in str(asker.errors[write]) and "unknown command" in str(asker.errors[wrong])
    await primary.close()


async def test_how_long_writes_took_is_told(primary: Primary, asker: Asker, server: Server) -> None:
    await put(primary, asker, [(b"GET", b"k")])
    assert not asker.commits
    write = asker.pending(b"SET", b"k", 1, writes=True)
    server.freeze()
    primary.put(write)
    await asyncio.sleep(0.1)
    server.thaw()
    await asker.until(lambda: write in asker.answers)
    [seconds] = asker.commits
    assert 0.09 < seconds < 5


async def test_one_that_refuses_writes_is_asked_again_who_it_is(
    asker: Asker, own_server: Server, server: Server, dial: Counted
) -> None:
    """Behind its name may be another one by then."""
    at = Endpoint(HOST, own_server.port)
    primary = Primary(at, dial, asker, pipelines=1, patience=0.5, durability=Durability())
    await put(primary, asker, [(b"SET", b"k", 1)])
    own_server.ask("REPLICAOF", HOST, server.port)
    asked = []
    for error in (ReadOnlyError, NotPrimaryError):
        asked.append(asker.pending(b"SET", b"k", 1))
        primary.put(asked[-1])
        await asker.until(lambda: asked[-1] in asker.errors)
        assert isinstance(asker.errors[asked[-1]], error)
    assert dial.dialled == 2
    await primary.close()


async def test_a_fault_of_ours_is_not_the_end_of_it(
    primary: Primary, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ValueError("ours")

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "exchange", broken)
        lost = asker.pending(b"PING")
        primary.put(lost)
        await asker.until(lambda: lost in asker.errors)
    assert await put(primary, asker, [(b"PING",)]) == [b"PONG"]
