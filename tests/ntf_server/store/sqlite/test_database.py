"""Group commit, reads beside it, and what happens when the medium is in trouble."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from database_world import FIRST, crash_image, insert, opened, values

from ntf_server.store.contract import (
    StoreConflictError,
    StoreFullError,
    StoreUnavailableError,
)
from ntf_server.store.sqlite import database as module
from ntf_server.store.sqlite.database import LINGER, After, Database

PAGE = 4096


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with opened(path) as database:
        yield database


class Gate:
    """An operation that holds the store's thread, so that what is asked meanwhile becomes one group."""

    def __init__(self, database: Database) -> None:
        self._open = threading.Event()
        self._entered = threading.Event()
        self._task = asyncio.create_task(database.run(self._wait))

    def _wait(self, _: sqlite3.Connection) -> None:
        self._entered.set()
        assert self._open.wait(10)

    async def __aenter__(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, 10)

    async def __aexit__(self, *exc: object) -> None:
        self._open.set()
        await self._task


async def grouped(database: Database, *operations: Callable[[sqlite3.Connection], object]) -> list[object]:
    async with Gate(database):
        tasks = [asyncio.create_task(database.run(o)) for o in operations]
        await asyncio.sleep(0)  # each task puts its operation into the queue
    return await asyncio.gather(*tasks, return_exceptions=True)


def traced(database: Database) -> list[str]:
    statements: list[str] = []
    database._connection.set_trace_callback(statements.append)
    return statements


# --- group commit


async def test_operations_that_wait_together_share_a_commit_and_keep_their_order(database: Database) -> None:
    wanted = [bytes([i, j]) for i in range(20) for j in range(10)]
    async with Gate(database):
        statements = traced(database)
        tasks = [asyncio.create_task(database.run(insert(v))) for v in wanted]
        await asyncio.sleep(0)
        statements.clear()
    assert await asyncio.gather(*tasks) == [2] * 200
    assert await database.run(values) == wanted
    assert statements.count("COMMIT") == 3  # the gate's, the group's, and that of the look at it


async def test_how_long_a_commit_took_is_told_before_its_answers(path: Path) -> None:
    commits: list[float] = []
    async with opened(path, FIRST, on_commit=commits.append) as database:
        await asyncio.gather(*(database.run(insert(bytes([i]))) for i in range(9)))
        assert len(commits) == 1
        await database.run(lambda _: time.sleep(0.05))
        assert 0.05 <= commits[1] < 5
        with pytest.raises(ZeroDivisionError):
            await database.run(lambda _: 1 / 0)
        await database.read(values)
        assert len(commits) == 2


async def test_a_huge_queue_is_committed_in_bounded_groups(database: Database) -> None:
    wanted = [i.to_bytes(2) for i in range(1100)]
    statements = traced(database)
    assert await grouped(database, *map(insert, wanted)) == [2] * 1100
    assert await database.run(values) == wanted
    assert statements.count("COMMIT") == 5  # the gate's, three of at most 512 operations, and the look at them


async def asked(database: Database, count: int) -> list[asyncio.Task[int]]:
    """Patient operations while others were done just now; they wait."""
    database._given_at = asyncio.get_running_loop().time() + 1000
    tasks = [asyncio.create_task(database.run(insert(b"%d" % i), linger=LINGER)) for i in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_a_patient_operation_waits_for_others_and_shares_their_commit(database: Database) -> None:
    statements = traced(database)
    tasks = await asked(database, 20)
    await asyncio.sleep(0.05)
    assert not any(t.done() for t in tasks)
    assert statements == []
    assert database._timer is not None
    database._timer.cancel()
    database._give_patient()  # as the timer does
    assert await asyncio.gather(*tasks) == [1] * 10 + [2] * 10
    assert statements.count("COMMIT") == 1
    assert await database.run(values) == [b"%d" % i for i in range(20)]


async def test_others_overtake_a_patient_operation_and_leave_it_waiting(database: Database) -> None:
    [patient] = await asked(database, 1)
    await database.run(insert(b"urgent"))
    assert await database.run(values) == [b"urgent"]
    assert not patient.done()


async def test_many_patient_operations_wait_no_more(database: Database) -> None:
    tasks = await asked(database, module._ENOUGH)
    assert await asyncio.wait_for(asyncio.gather(*tasks), 10)


async def test_a_patient_operation_after_a_pause_is_not_held_up(database: Database) -> None:
    """Whatever LINGER is."""
    await database.run(insert(b"1"), linger=LINGER)
    database._given_at -= 1000
    before = asyncio.get_running_loop().time()
    task = asyncio.create_task(database.run(insert(b"2"), linger=LINGER))
    await asyncio.sleep(0)
    assert database._timer is not None
    assert database._timer.when() <= asyncio.get_running_loop().time()
    assert database._timer.when() >= before
    assert await task == 1


async def test_closing_waits_for_patient_operations(path: Path) -> None:
    async with opened(path) as database:
        tasks = await asked(database, 3)
    assert await asyncio.gather(*tasks) == [1, 1, 1]
    async with opened(path) as database:
        assert await database.run(values) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("where", [0, 3, 6])
async def test_a_failing_operation_does_not_hurt_its_group(database: Database, where: int) -> None:
    def fail_late(c: sqlite3.Connection) -> None:
        insert(b"must be undone")(c)
        raise LookupError("a fault in the operation")

    operations: list[Callable[[sqlite3.Connection], object]] = [insert(bytes([i])) for i in range(6)]
    operations.insert(where, fail_late)
    results = await grouped(database, *operations)
    assert isinstance(results.pop(where), LookupError)
    assert results == [1] * 6
    assert await database.run(values) == [bytes([i]) for i in range(6)]


async def test_a_conflict_fails_the_later_operation_only(database: Database) -> None:
    first, second, third = await grouped(database, insert(b"same"), insert(b"same"), insert(b"other"))
    assert (first, third) == (4, 5)
    assert isinstance(second, StoreConflictError)
    assert "UNIQUE" in str(second)


async def test_a_cancelled_caller_does_not_disturb_the_others(database: Database) -> None:
    async with Gate(database):
        tasks = [asyncio.create_task(database.run(insert(v))) for v in (b"a", b"b", b"c")]
        await asyncio.sleep(0)
        tasks[1].cancel()
    assert await asyncio.gather(*tasks[::2]) == [1, 1]
    assert set(await database.run(values)) >= {b"a", b"c"}


async def test_what_has_returned_survives_a_crash(database: Database, path: Path, tmp_path: Path) -> None:
    await asyncio.gather(*(database.run(insert(bytes([i]))) for i in range(50)))
    crashed = crash_image(path, tmp_path / "crashed.db")
    async with opened(crashed) as other:
        assert sorted(await other.run(values)) == [bytes([i]) for i in range(50)]


# --- a full disk


async def test_a_full_disk_is_an_error_until_there_is_room(database: Database) -> None:
    async def limit(pages: int) -> None:
        await database.run(lambda c: c.execute(f"PRAGMA max_page_count = {pages}") and None)

    await database.run(insert(b"before"))
    await limit(20)
    with pytest.raises(StoreFullError, match="full"):
        await database.run(insert(bytes(100 * PAGE)))
    assert await database.run(insert(b"a")) == 1
    assert await database.read(values) == [b"before", b"a"]
    await limit(1_000_000)
    assert await database.run(insert(bytes(100 * PAGE))) == 100 * PAGE


# --- reads


class Locked:
    """Another program writes to the file, and does not end."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *exc: object) -> None:
        self.end()
        self._connection.close()

    def end(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


async def test_a_read_sees_what_was_written_before(database: Database) -> None:
    for i in range(50):
        await database.run(insert(b"%d" % i))
        assert len(await database.read(values)) == i + 1


async def test_a_read_waits_for_no_write(database: Database) -> None:
    await database.run(insert(b"before"))
    async with Gate(database):
        assert await asyncio.wait_for(database.read(values), 5) == [b"before"]


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(StoreUnavailableError):
        await database.read(insert(b"x"))
    assert await database.read(values) == []


async def test_many_reads_at_once(database: Database) -> None:
    await database.run(insert(b"x"))
    assert await asyncio.gather(*(database.read(values) for _ in range(200))) == [[b"x"]] * 200


async def test_a_failing_read_hurts_no_other(database: Database) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise LookupError("a fault in the operation")

    results = await asyncio.gather(database.read(fail), database.read(values), return_exceptions=True)
    assert isinstance(results[0], LookupError)
    assert results[1] == []


# --- another process's lock


async def test_under_anothers_lock_reads_go_on_and_writes_are_told_within_a_second(
    database: Database, path: Path
) -> None:
    await database.run(insert(b"before"))
    with Locked(path):
        began = time.monotonic()
        writes = [asyncio.create_task(database.run(insert(b"%d" % i))) for i in range(20)]
        for _ in range(20):
            looked = time.monotonic()
            assert await database.read(values) == [b"before"]
            assert time.monotonic() - looked < 0.5
            await asyncio.sleep(0.02)
        writes += [asyncio.create_task(database.run(insert(b"later %d" % i))) for i in range(20)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        took = time.monotonic() - began
    assert {type(r) for r in results} == {StoreUnavailableError}
    assert took < 0.4 + module.RETRY + 1
    assert await database.run(insert(b"after")) == 5
    assert await database.read(values) == [b"before", b"after"]


async def test_a_lock_that_passes_is_not_noticed(database: Database, path: Path) -> None:
    locked = Locked(path)
    with locked:
        write = asyncio.create_task(database.run(insert(b"x")))
        await asyncio.sleep(0.1)
        assert not write.done()
        locked.end()
        assert await write == 1


async def test_closing_under_anothers_lock_ends(path: Path) -> None:
    began = time.monotonic()
    async with opened(path) as database:
        locked = Locked(path)
        with locked:
            write = asyncio.create_task(database.run(insert(b"x")))
            await asyncio.sleep(0)
            await database.close()
    assert time.monotonic() - began < module.CLOSE + 2
    assert isinstance((await asyncio.gather(write, return_exceptions=True))[0], StoreUnavailableError)


async def test_what_can_never_be_done_is_not_called_passing(database: Database) -> None:
    for sql in ("INSERT INTO absent VALUES (1)", "INSERT INTO item (n, value) VALUES (1, NULL)", "nonsense"):
        with pytest.raises(StoreConflictError):
            await database.run(lambda c, sql=sql: c.execute(sql) and None)  # type: ignore[misc]


async def test_a_connection_that_cannot_roll_back_is_replaced(database: Database) -> None:
    class Broken:
        """A connection whose ROLLBACK fails, as after an error of the disk."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> object:
            return getattr(self._connection, name)

        def execute(self, sql: str) -> object:
            if sql == "ROLLBACK":
                raise sqlite3.OperationalError("disk I/O error")
            return self._connection.execute(sql)

    def fail(c: sqlite3.Connection) -> None:
        raise LookupError("a fault in the operation")

    await database.run(insert(b"before"))
    database._connection = Broken(database._connection)  # type: ignore[assignment]
    with pytest.raises(LookupError):
        await database.run(fail)
    assert await database.run(insert(b"after")) == 5
    assert await database.read(values) == [b"before", b"after"]


# --- what goes on beside


class Log:
    """Turns that write down what they are told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, c: sqlite3.Connection) -> None:
        assert c.in_transaction
        self.said.append("begin")

    def commit(self) -> After | None:
        self.said.append("commit")
        return lambda: self.said.append("told")

    def rollback(self) -> None:
        self.said.append("rollback")


async def test_memory_hears_what_became_of_every_transaction(path: Path) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise LookupError("a fault in the operation")

    log = Log()
    async with opened(path, turns=log) as database:
        await database.run(insert(b"x"))
        assert log.said == ["begin", "commit", "told"]
        log.said.clear()
        with pytest.raises(LookupError):
            await database.run(fail)
        assert log.said == ["begin", "rollback"]


async def test_what_was_done_for_a_caller_who_is_gone_is_given_back(database: Database) -> None:
    lost: list[int] = []
    async with Gate(database):
        task = asyncio.create_task(database.run(insert(b"x"), lost=lost.append))
        await asyncio.sleep(0)
        task.cancel()
    await database.run(insert(b"y"))
    assert lost == [1]


async def test_an_answer_that_comes_as_its_caller_is_cancelled_is_given_back(database: Database) -> None:
    """Cancelled in the turn of the loop that has the answer, before it wakes up."""
    lost: list[int] = []
    async with Gate(database):
        first = asyncio.create_task(database.run(insert(b"x"), lost=lost.append))
        second = asyncio.create_task(database.run(insert(b"y"), lost=lambda _: first.cancel() and None))
        await asyncio.sleep(0)
        second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert lost == [1]


async def test_errors_are_told_to_who_counts_them(path: Path) -> None:
    errors: list[Exception] = []
    async with opened(path, on_error=errors.append) as database:
        await database.run(insert(b"x"))
        with pytest.raises(StoreConflictError) as caught:
            await database.run(insert(b"x"))
        assert errors == [caught.value]


async def test_in_memory_everything_is_done_at_once(path: Path) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(FIRST)
    threads = threading.active_count()
    database = Database("memory", connection, connect=None)
    run = database.run(insert(b"x"))
    with pytest.raises(StopIteration) as stopped:
        run.send(None)
    assert stopped.value.value == 1
    assert await database.read(values) == [b"x"]
    assert threading.active_count() == threads
    await database.close()
    with pytest.raises(StoreConflictError, match="closed"):
        await database.run(values)
    connection.close()


# --- the end


async def test_close_finishes_what_was_asked(path: Path) -> None:
    async with opened(path) as database:
        tasks = [asyncio.create_task(database.run(insert(i.to_bytes(2)))) for i in range(600)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*tasks) == [2] * 600
    async with opened(path) as again:
        assert len(await again.run(values)) == 600


async def test_after_close_nothing_runs_and_nothing_is_left(path: Path) -> None:
    threads = threading.active_count()
    async with opened(path) as database:
        pass
    await database.close()
    with pytest.raises(StoreConflictError, match="closed"):
        await database.run(values)
    assert not {t.name for t in threading.enumerate()} & {"store", "store reads"}
    assert threading.active_count() <= threads + 1  # asyncio's own, for to_thread
    assert not path.with_name("relay.db-wal").exists()
