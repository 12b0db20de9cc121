import asyncio
import contextlib
import os
import shutil
import sqlite3
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ntf_server.store.records import StoreCorruptError, StoreError
from ntf_server.store.sqlite import database as module
from ntf_server.store.sqlite.database import APPLICATION_ID, Database

PAGE = 4096
FIRST = "CREATE TABLE item (n INTEGER PRIMARY KEY, value BLOB NOT NULL UNIQUE) STRICT;"
SECOND = "ALTER TABLE item ADD COLUMN size INTEGER NOT NULL DEFAULT 0; UPDATE item SET size = length(value);"


def unexpected(error: StoreCorruptError) -> None:
    raise AssertionError from error


@contextlib.asynccontextmanager
async def opened(
    path: Path, *migrations: str, on_corrupt: Callable[[StoreCorruptError], None] = unexpected
) -> AsyncIterator[Database]:
    database = Database.open(path, migrations or (FIRST,), on_corrupt)
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with opened(path) as database:
        yield database


def insert(value: bytes) -> Callable[[sqlite3.Connection], int]:
    def operation(c: sqlite3.Connection) -> int:
        c.execute("INSERT INTO item (value) VALUES (?)", (value,))
        return len(value)

    return operation


def values(c: sqlite3.Connection) -> list[bytes]:
    return [value for (value,) in c.execute("SELECT value FROM item ORDER BY n")]


def ask(sql: str) -> Callable[[sqlite3.Connection], object]:
    return lambda c: c.execute(sql).fetchone()[0]


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


async def test_a_huge_queue_is_committed_in_bounded_groups(database: Database) -> None:
    wanted = [i.to_bytes(2) for i in range(1100)]
    statements = traced(database)
    assert await grouped(database, *map(insert, wanted)) == [2] * 1100
    assert await database.run(values) == wanted
    assert statements.count("COMMIT") == 5  # the gate's, three of at most 512 operations, and the look at them


async def asked(database: Database, count: int) -> list[asyncio.Task[int]]:
    """Patient operations while others were done just now; they wait."""
    database._given_at = asyncio.get_running_loop().time() + 1000
    tasks = [asyncio.create_task(database.run(insert(b"%d" % i), patient=True)) for i in range(count)]
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
    await database.run(insert(b"1"), patient=True)
    database._given_at -= 1000
    before = asyncio.get_running_loop().time()
    task = asyncio.create_task(database.run(insert(b"2"), patient=True))
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
    assert isinstance(second, StoreError)
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


# --- opening


async def test_settings_that_make_writes_durable(database: Database, path: Path) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "application_id": APPLICATION_ID}
    assert {name: await database.run(ask(f"PRAGMA {name}")) for name in wanted} == wanted
    assert await database.run(ask("PRAGMA user_version")) == 1


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_files_are_private(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        async with opened(path) as database:
            await database.run(insert(b"secret"))
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir() if p.suffix != ".lock"}
    finally:
        os.umask(before)
    assert modes == {"relay.db": 0o600, "relay.db-wal": 0o600, "relay.db-shm": 0o600}


async def test_reopening_finds_everything(path: Path) -> None:
    for i in range(3):
        async with opened(path) as database:
            await database.run(insert(bytes([i])))
            assert await database.run(values) == [bytes([j]) for j in range(i + 1)]


@pytest.mark.parametrize("name", ["with space.db", "per%41cent.db", "what?mode=memory.db", "hash#1.db", "ümlaut.db"])
async def test_any_file_name(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path / name) as database:
        await database.run(insert(b"x"))
        crashed = crash_image(tmp_path / name, tmp_path / ("2" + name))
    for each in (tmp_path / name, crashed):
        async with opened(each) as database:
            assert await database.run(values) == [b"x"]


@pytest.mark.parametrize("link", ["symbolic", "folder", None])
async def test_a_second_instance_is_refused(tmp_path: Path, link: str | None) -> None:
    (tmp_path / "data").mkdir()
    path = second = tmp_path / "data" / "relay.db"
    if link == "symbolic":
        second = tmp_path / "link.db"
        second.symlink_to(path)
    elif link == "folder":
        (tmp_path / "linked").symlink_to(tmp_path / "data")
        second = tmp_path / "linked" / "relay.db"
    async with opened(path) as database:
        with pytest.raises(StoreError, match="another ntf-server"):
            Database.open(second, (FIRST,), unexpected)
        await database.run(insert(b"unharmed"))
    async with opened(second) as database:
        assert await database.run(values) == [b"unharmed"]


async def test_another_process_is_refused_until_it_is_killed(path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from ntf_server.store.sqlite.database import Database\n"
        "async def main():\n"
        "    database = Database.open(pathlib.Path(sys.argv[1]), (sys.argv[2],), print)\n"
        "    await database.run(lambda c: c.execute('INSERT INTO item (value) VALUES (?)', (b'kept',)) and None)\n"
        "    print('open', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    command = sys.executable, "-c", program, str(path), FIRST
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"open\n"
        with pytest.raises(StoreError, match="another ntf-server"):
            Database.open(path, (FIRST,), unexpected)
    finally:
        process.kill()
        await process.wait()
    async with opened(path) as database:
        assert await database.run(values) == [b"kept"]


@pytest.mark.parametrize("place", ["absent/relay.db", "folder.db", "file/relay.db"])
async def test_a_place_that_cannot_hold_a_database(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=place):
        Database.open(tmp_path / place, (FIRST,), unexpected)


# --- migrations


async def test_a_database_of_version_1_is_upgraded(path: Path) -> None:
    async with opened(path, FIRST) as database:
        await database.run(insert(b"four"))
    async with opened(path, FIRST, SECOND) as database:
        assert await database.run(lambda c: c.execute("SELECT value, size FROM item").fetchall()) == [(b"four", 4)]
        assert await database.run(ask("PRAGMA user_version")) == 2
    async with opened(path, FIRST, SECOND) as database:  # and once only: it would fail
        assert await database.run(values) == [b"four"]


async def test_a_new_database_goes_through_all_migrations(path: Path) -> None:
    async with opened(path, FIRST, SECOND) as database:
        await database.run(insert(b"x"))
        assert await database.run(ask("SELECT size FROM item")) == 0


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    async with opened(path, FIRST, SECOND):
        pass
    before = contents(path)
    with pytest.raises(StoreError, match="newer ntf-server"):
        Database.open(path, (FIRST,), unexpected)
    assert contents(path) == before


async def test_a_failing_migration_leaves_the_file_unchanged(path: Path) -> None:
    async with opened(path, FIRST) as database:
        await database.run(insert(b"x"))
    before = contents(path)
    broken = f"{SECOND} CREATE TABLE other (n INTEGER) STRICT; INSERT INTO absent VALUES (1);"
    with pytest.raises(StoreError, match="absent"):
        Database.open(path, (FIRST, broken), unexpected)
    assert contents(path) == before
    async with opened(path, FIRST, SECOND) as database:
        assert await database.run(values) == [b"x"]


async def test_a_migration_may_remake_a_table_that_others_refer_to(path: Path) -> None:
    first = f"{FIRST} CREATE TABLE part (item INTEGER NOT NULL REFERENCES item ON DELETE CASCADE) STRICT;"
    remake = (
        "CREATE TABLE item_2 (n INTEGER PRIMARY KEY, value BLOB NOT NULL, added INTEGER) STRICT;"
        "INSERT INTO item_2 SELECT n, value, 0 FROM item; DROP TABLE item; ALTER TABLE item_2 RENAME TO item;"
    )
    async with opened(path, first) as database:
        await database.run(insert(b"x"))
        await database.run(lambda c: c.execute("INSERT INTO part VALUES (1)") and None)
    async with opened(path, first, remake) as database:
        assert await database.run(ask("SELECT count(*) FROM part")) == 1
        await database.run(lambda c: c.execute("DELETE FROM item") and None)
        assert await database.run(ask("SELECT count(*) FROM part")) == 0


def grow(c: sqlite3.Connection) -> None:
    """SECOND, as a function."""
    assert c.in_transaction
    for statement in SECOND.split(";"):
        c.execute(statement)


async def test_a_migration_may_be_a_function(path: Path) -> None:
    async with opened(path, FIRST) as database:
        await database.run(insert(b"four"))
    for _ in range(2):  # once only: it would fail
        database = Database.open(path, (FIRST, grow), unexpected)
        assert await database.run(lambda c: c.execute("SELECT value, size FROM item").fetchall()) == [(b"four", 4)]
        assert await database.run(ask("PRAGMA user_version")) == 2
        assert await database.run(ask("PRAGMA application_id")) == APPLICATION_ID
        await database.close()


@pytest.mark.parametrize("error", [sqlite3.OperationalError("broken"), LookupError("broken")])
async def test_a_failing_function_leaves_the_file_unchanged(path: Path, error: Exception) -> None:
    async with opened(path, FIRST) as database:
        await database.run(insert(b"x"))
    before = contents(path)

    def fail(c: sqlite3.Connection) -> None:
        grow(c)
        raise error

    with pytest.raises(StoreError if isinstance(error, sqlite3.Error) else LookupError, match="broken"):
        Database.open(path, (FIRST, fail), unexpected)
    assert contents(path) == before
    async with opened(path, FIRST, SECOND) as database:
        assert await database.run(values) == [b"x"]


async def test_prepare_runs_at_every_opening_outside_a_transaction(path: Path) -> None:
    seen: list[object] = []

    def prepare(c: sqlite3.Connection) -> None:
        assert not c.in_transaction
        seen.append(ask("SELECT count(*) FROM item")(c))

    for i in range(3):
        database = Database.open(path, (FIRST,), unexpected, prepare)
        await database.run(insert(bytes([i])))
        await database.close()
    assert seen == [0, 1, 2]


async def test_if_prepare_fails_nothing_is_left_open(path: Path) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("not now")

    with pytest.raises(StoreError, match="cannot open the database: not now"):
        Database.open(path, (FIRST,), unexpected, fail)
    async with opened(path) as database:
        await database.run(insert(b"x"))


# --- damaged and foreign files


def crash_image(path: Path, to: Path) -> Path:
    """The files as a power failure would leave them: the -wal not yet moved into the database."""
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{to}{suffix}")
    return to


def contents(path: Path) -> dict[str, bytes]:
    """What counts: not the lock, nor the -shm, which can be made again."""
    files = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-journal")]
    return {file.name: file.read_bytes() for file in files if file.exists()}


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


async def filled(path: Path, tmp_path: Path, *, crashed: bool) -> Path:
    """A database of many pages; `crashed`: with a -wal that was not moved into it."""
    async with opened(path) as database:
        await database.run(lambda c: [insert(i.to_bytes(2) * 700)(c) for i in range(100)])
    if not crashed:
        return path
    async with opened(path) as database:
        await database.run(insert(b"in the wal"))
        return crash_image(path, tmp_path / "crashed.db")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "garbage": lambda p: overwrite(p, 0, b"\x5a" * 200),
    "only garbage": lambda p: p.write_bytes(b"not a database\n" * 20) and None,
    "a few bytes": lambda p: p.write_bytes(b"SQLite") and None,
    "truncated": lambda p: os.truncate(p, p.stat().st_size // 2),
    "cut in a page": lambda p: os.truncate(p, p.stat().st_size - 20 * PAGE - 100),
    "first page only": lambda p: os.truncate(p, PAGE),
    "pages of zeros": lambda p: overwrite(p, 5 * PAGE, bytes(10 * PAGE)),
    "flipped pages": lambda p: overwrite(p, 2 * PAGE, b"\xff" * 3 * PAGE),
    "last page": lambda p: overwrite(p, p.stat().st_size - PAGE, b"\x11" * PAGE),
}


@pytest.mark.parametrize("crashed", [False, True], ids=["closed", "crashed"])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_corrupt_file_is_refused_and_left_as_it_is(
    path: Path, tmp_path: Path, damage: str, crashed: bool
) -> None:
    path = await filled(path, tmp_path, crashed=crashed)
    DAMAGES[damage](path)
    before = contents(path)
    assert len(before) == (2 if crashed else 1)
    for _ in range(2):
        with pytest.raises(StoreCorruptError, match="restore a backup") as caught:
            Database.open(path, (FIRST,), unexpected)
        assert str(path) in str(caught.value)
        assert contents(path) == before
    assert "\n" not in str(caught.value)


async def test_an_emptied_file_beside_its_wal_is_refused(path: Path, tmp_path: Path) -> None:
    path = await filled(path, tmp_path, crashed=True)
    os.truncate(path, 0)
    before = contents(path)
    with pytest.raises(StoreCorruptError, match="restore a backup"):
        Database.open(path, (FIRST,), unexpected)
    assert contents(path) == before


async def test_an_empty_file_becomes_a_database(path: Path) -> None:
    os.mknod(path)
    async with opened(path) as database:
        await database.run(insert(b"x"))


@pytest.mark.parametrize("journal", ["delete", "wal"])
async def test_the_database_of_another_program_is_refused_and_left_as_it_is(path: Path, journal: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"PRAGMA journal_mode = {journal}")
        other.execute("CREATE TABLE theirs (n)")
        before = contents(path)
        assert len(before) == (2 if journal == "wal" else 1)
        with pytest.raises(StoreCorruptError, match="another program"):
            Database.open(path, (FIRST,), unexpected)
        assert contents(path) == before


async def test_corruption_that_shows_later_is_reported(path: Path, tmp_path: Path) -> None:
    await filled(path, tmp_path, crashed=False)
    reported: asyncio.Future[StoreCorruptError] = asyncio.get_running_loop().create_future()
    async with opened(path, on_corrupt=lambda e: reported.done() or reported.set_result(e)) as database:
        await database.run(insert(b"before"))
        overwrite(path, 2 * PAGE, b"\xff" * 50 * PAGE)
        with pytest.raises(StoreCorruptError, match="restore a backup"):
            await database.run(values)
        assert isinstance(await asyncio.wait_for(reported, 10), StoreCorruptError)


# --- a full disk


async def test_a_full_disk_is_an_error_until_there_is_room(database: Database) -> None:
    async def limit(pages: int) -> None:
        await database.run(lambda c: c.execute(f"PRAGMA max_page_count = {pages}") and None)

    await database.run(insert(b"before"))
    await limit(20)
    results = await grouped(database, insert(b"a"), insert(bytes(100 * PAGE)), insert(b"b"))
    assert results[::2] == [1, 1]
    assert isinstance(results[1], StoreError)
    assert "full" in str(results[1])
    assert await database.run(values) == [b"before", b"a", b"b"]
    await limit(1_000_000)
    assert await database.run(insert(bytes(100 * PAGE))) == 100 * PAGE


# --- the end


async def test_close_finishes_what_was_asked(path: Path) -> None:
    database = Database.open(path, (FIRST,), unexpected)
    tasks = [asyncio.create_task(database.run(insert(i.to_bytes(2)))) for i in range(600)]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*tasks) == [2] * 600
    async with opened(path) as again:
        assert len(await again.run(values)) == 600


async def test_after_close_nothing_runs_and_nothing_is_left(path: Path) -> None:
    threads = threading.active_count()
    database = Database.open(path, (FIRST,), unexpected)
    await database.close()
    await database.close()
    with pytest.raises(StoreError, match="closed"):
        await database.run(values)
    assert "store" not in {t.name for t in threading.enumerate()}
    assert threading.active_count() <= threads + 1  # asyncio's own, for to_thread
    assert not path.with_name("relay.db-wal").exists()
