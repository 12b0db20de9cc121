"""Opening a file: ours alone, whole, and of a schema that we know."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from database_world import FIRST, SECOND, ask, crash_image, insert, open_file, opened, values

from ntf_server.store.contract import StoreCorruptError, StoreError, StoreUnavailableError
from ntf_server.store.sqlite.database import Database
from ntf_server.store.sqlite.file import inspect
from ntf_server.store.sqlite.migrations import APPLICATION_ID, Progress

PAGE = 4096


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with opened(path) as database:
        yield database


# --- opening


async def test_settings_that_make_writes_durable(database: Database, path: Path) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "application_id": APPLICATION_ID}
    assert {name: await database.run(ask(f"PRAGMA {name}")) for name in wanted} == wanted
    assert await database.run(ask("PRAGMA user_version")) == 1


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_files_are_private(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        async with opened(path) as database:
            await database.run(insert(b"secret"))
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"relay.db": 0o600, "relay.db-wal": 0o600, "relay.db-shm": 0o600, "relay.db.lock": 0o600}


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
        with pytest.raises(StoreUnavailableError, match="another ntf-server"):
            open_file(second)
        await database.run(insert(b"unharmed"))
    async with opened(second) as database:
        assert await database.run(values) == [b"unharmed"]


async def test_another_process_is_refused_until_it_is_killed(path: Path) -> None:
    program = (
        "import sys, pathlib, time\n"
        "from ntf_server.store.sqlite.file import DatabaseFile\n"
        "file = DatabaseFile.open(pathlib.Path(sys.argv[1]), (sys.argv[2],))\n"
        "file.connection.execute('INSERT INTO item (value) VALUES (?)', (b'kept',))\n"
        "print('open', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = sys.executable, "-c", program, str(path), FIRST
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"open\n"
        with pytest.raises(StoreUnavailableError, match="another ntf-server"):
            open_file(path)
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
        open_file(tmp_path / place)


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


async def test_before_a_migration_the_file_is_copied(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(path, FIRST) as database:
        await database.run(insert(b"before"))
    copy = path.with_name("relay.db.schema1")
    assert not copy.exists()  # a new file needs none
    async with opened(path, FIRST, SECOND):
        pass
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert "To go back: stop the server" in caplog.text
    async with opened(copy, FIRST) as database:
        assert await database.run(values) == [b"before"]
    async with opened(path, FIRST, SECOND):
        assert not copy.with_name("relay.db.schema2").exists()


async def test_a_half_made_copy_of_an_earlier_start_is_made_anew(path: Path) -> None:
    async with opened(path, FIRST) as database:
        await database.run(insert(b"before"))
    for name in ("relay.db.schema1", "relay.db.schema1.part"):
        path.with_name(name).write_bytes(b"half")
    async with opened(path, FIRST, SECOND):
        pass
    async with opened(path.with_name("relay.db.schema1"), FIRST) as database:
        assert await database.run(values) == [b"before"]


async def test_a_lock_that_all_may_open_becomes_private(path: Path) -> None:
    path.with_name("relay.db.lock").touch(mode=0o644)
    async with opened(path):
        assert stat.S_IMODE(path.with_name("relay.db.lock").stat().st_mode) == 0o600


async def test_a_file_that_was_moved_or_replaced_is_noticed(path: Path) -> None:
    file = open_file(path)
    try:
        assert file.is_there()
        path.rename(path.with_name("moved"))
        assert not file.is_there()
        path.write_bytes(b"another")
        assert not file.is_there()
    finally:
        file.connection.close()
        file.release()


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    async with opened(path, FIRST, SECOND):
        pass
    before = contents(path)
    with pytest.raises(StoreError, match="newer ntf-server"):
        open_file(path)
    assert contents(path) == before


async def test_a_failing_migration_leaves_the_file_unchanged(path: Path) -> None:
    async with opened(path, FIRST) as database:
        await database.run(insert(b"x"))
    before = contents(path)
    broken = f"{SECOND} CREATE TABLE other (n INTEGER) STRICT; INSERT INTO absent VALUES (1);"
    with pytest.raises(StoreError, match="absent"):
        open_file(path, FIRST, broken)
    assert contents(path) == before
    async with opened(path, FIRST, SECOND) as database:
        assert await database.run(values) == [b"x"]


def grow(c: sqlite3.Connection, _: Progress) -> None:
    """SECOND, as a function."""
    assert c.in_transaction
    for statement in SECOND.split(";"):
        c.execute(statement)


async def test_a_migration_may_be_a_function(path: Path) -> None:
    async with opened(path, FIRST) as database:
        await database.run(insert(b"four"))
    for _ in range(2):  # once only: it would fail
        async with opened(path, FIRST, grow) as database:
            assert await database.run(lambda c: c.execute("SELECT value, size FROM item").fetchall()) == [(b"four", 4)]
            assert await database.run(ask("PRAGMA user_version")) == 2
            assert await database.run(ask("PRAGMA application_id")) == APPLICATION_ID


@pytest.mark.parametrize("error", [sqlite3.OperationalError("broken"), LookupError("broken")])
async def test_a_failing_function_leaves_the_file_unchanged(path: Path, error: Exception) -> None:
    async with opened(path, FIRST) as database:
        await database.run(insert(b"x"))
    before = contents(path)

    def fail(c: sqlite3.Connection, progress: Progress) -> None:
        grow(c, progress)
        raise error

    with pytest.raises(StoreError if isinstance(error, sqlite3.Error) else LookupError, match="broken"):
        open_file(path, FIRST, fail)
    assert contents(path) == before
    async with opened(path, FIRST, SECOND) as database:
        assert await database.run(values) == [b"x"]


async def test_prepare_runs_at_every_opening_outside_a_transaction(path: Path) -> None:
    seen: list[object] = []

    def prepare(c: sqlite3.Connection) -> None:
        assert not c.in_transaction
        seen.append(ask("SELECT count(*) FROM item")(c))

    for i in range(3):
        async with opened(path, prepare=prepare) as database:
            await database.run(insert(bytes([i])))
    assert seen == [0, 1, 2]


async def test_if_prepare_fails_nothing_is_left_open(path: Path) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("not now")

    with pytest.raises(StoreError, match="cannot open the database: not now"):
        open_file(path, prepare=fail)
    async with opened(path) as database:
        await database.run(insert(b"x"))


# --- damaged and foreign files


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
            open_file(path)
        assert str(path) in str(caught.value)
        assert contents(path) == before
    assert "\n" not in str(caught.value)


async def test_an_emptied_file_beside_its_wal_is_refused(path: Path, tmp_path: Path) -> None:
    path = await filled(path, tmp_path, crashed=True)
    os.truncate(path, 0)
    before = contents(path)
    with pytest.raises(StoreCorruptError, match="restore a backup"):
        open_file(path)
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
            open_file(path)
        assert contents(path) == before


async def test_corruption_that_shows_later_is_reported(path: Path, tmp_path: Path) -> None:
    await filled(path, tmp_path, crashed=False)
    reported: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    async with opened(path, on_error=lambda e: reported.done() or reported.set_result(e)) as database:
        await database.run(insert(b"before"))
        overwrite(path, 2 * PAGE, b"\xff" * 50 * PAGE)
        with pytest.raises(StoreCorruptError, match="restore a backup"):
            await database.run(values)
        assert isinstance(await asyncio.wait_for(reported, 10), StoreCorruptError)


async def test_the_space_that_it_takes(path: Path) -> None:
    file = open_file(path, FIRST)
    file.connection.execute("CREATE TABLE large AS SELECT zeroblob(200000)")
    used, log, room = file.space()
    assert log is not None and log > 200_000
    assert used == path.stat().st_size + log
    assert room is not None and room > 2**20
    file.connection.close()
    file.release()
    path.parent.rename(path.parent.with_name("gone"))
    assert file.space() == (0, 0, None)


# --- a look without opening it


def look(c: sqlite3.Connection) -> None:
    c.execute("SELECT * FROM sqlite_master").fetchall()


async def test_a_look_makes_and_changes_nothing(path: Path) -> None:
    before = sorted(path.parent.iterdir())
    assert inspect(path, 1, look, in_use=False) == 0
    assert sorted(path.parent.iterdir()) == before
    async with opened(path) as database:
        await database.run(insert(b"kept"))
        crashed = crash_image(path, path.with_name("crashed.db"))  # with a -wal
        with pytest.raises(StoreUnavailableError, match="another ntf-server uses this database"):
            inspect(path, 1, look, in_use=False)
        assert inspect(path, 1, look, in_use=True) == 1
    for file in (path, crashed):
        files = kept(path.parent)
        assert inspect(file, 1, look, in_use=False) == 1
        assert kept(path.parent) == files


def kept(folder: Path) -> dict[str, bytes]:
    """Without what is shared while it is read."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.endswith("-shm")}


async def test_a_look_finds_what_opening_would(path: Path) -> None:
    async with opened(path) as database:
        await database.run(insert(b"kept"))
    with pytest.raises(StoreError, match="of a newer ntf-server"):
        inspect(path, 0, look, in_use=False)
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreCorruptError, match="is corrupt"):
        inspect(path, 1, look, in_use=False)
    with pytest.raises(StoreError, match=r"absent: no such folder; create it"):
        inspect(path.parent / "absent" / "relay.db", 1, look, in_use=False)
