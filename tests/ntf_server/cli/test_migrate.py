"""`ntf-server migrate`, with real processes and a real Redis."""

import asyncio
import contextlib
import io
import os
import pty
import re
import shlex
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from command_line import COMMAND, one_line, run, stop
from moving import mixed, seen, used
from redis_servers import Server
from store_world import new_token

from ntf_server.cli.migrate import Progress, told
from ntf_server.store.migrate import Migrated
from ntf_server.store.open import open_store
from ntf_server.store.redis.schema import SCHEMA
from ntf_server.store.redis.url import parse_redis_url
from ntf_server.store.sealing import MasterKey, generate_key_text
from smp_bridge.ntf import DeviceToken, Provider

Start = Callable[..., Any]
ROOT = Path(__file__).parents[3]
DATABASE = "sqlite:///ntf-server.db"
MANY = 3000  # registrations: more than are moved before a test looks


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.ask("FLUSHALL")
    return shared_server


async def opened(made: Path, place: str) -> Any:
    where = parse_redis_url(place) if place.startswith("redis") else place
    return await open_store(where, directory=made, master_key=MasterKey.from_file(made / "master.key"))


def migrate(made: Path, *arguments: Any, **environ: str) -> subprocess.CompletedProcess[str]:
    return run("migrate", "--path", made, *arguments, **environ)


async def test_there_and_back(made: Path, server: Server, start: Start) -> None:
    store = await opened(made, DATABASE)
    known = await mixed(store)
    before = await seen(store, known)
    await store.close()
    there = await asyncio.to_thread(migrate, made, DATABASE, server.url, "--shards", 5, "--buckets", 3)
    assert there.returncode == 0, there.stderr
    counts = "2 servers, 6 registrations, 20 subscriptions, 13 notifications"
    assert there.stdout.startswith(f"Moved, read back and found the same: {counts}.\nPut TO-URL into {made}")
    assert there.stderr.splitlines()[-1] == "compared: 6 of 6 registrations"
    process, _ = await start(**{"NTF_SERVER__STORE__URL": server.url})
    assert (await stop(process))[0] == 0
    back = await asyncio.to_thread(migrate, made, server.url, "sqlite:///back.db")
    assert back.returncode == 0, back.stderr
    assert f"same: {counts}" in back.stdout
    doing = []
    for place in (DATABASE, server.url, "sqlite:///back.db"):
        store = await opened(made, place)
        assert await seen(store, known) == before
        doing.append(await used(store))
        await store.close()
    assert doing[0] == doing[1] == doing[2]


async def many(made: Path, place: str) -> None:
    store = await opened(made, place)
    devices = [DeviceToken(Provider.APNS, b"%d" % n) for n in range(MANY)]
    await asyncio.gather(*(store.register(new_token(device, b"key")) for device in devices))
    await store.close()


async def test_what_the_page_says(made: Path, server: Server, tmp_path: Path) -> None:
    await many(made, DATABASE)
    page = (ROOT / "docs/how-to/move-a-store.md").read_text()
    commands = [shlex.split(line) for line in re.findall(r"^ntf-server (.+)$", page, re.MULTILINE)]
    assert [command[0] for command in commands] == ["backup", "migrate", "migrate"]
    for name, *arguments in commands:
        here = [a.replace("redis.example.org:6379", server.address) for a in arguments]
        here = [str(tmp_path / a) if a == "before-redis.backup" else a for a in here]
        done = await asyncio.to_thread(run, name, "--path", made, *here)
        assert done.returncode == 0, done.stderr
    assert (made / "back.db").exists() and (tmp_path / "before-redis.backup").exists()
    said = re.findall(r"^(copied|compared|Moved, read back and found the same): ", page, re.MULTILINE)
    assert all(word in done.stdout + done.stderr for word in said) and len(said) == 3


def there(made: Path, place: str) -> int:
    """Registrations, while they are written."""
    if place == DATABASE:
        with closing(sqlite3.connect(made / "ntf-server.db")) as c:
            return int(c.execute("SELECT count(*) FROM tokens").fetchone()[0])
    with redis.Redis.from_url(place) as client, client.pipeline(transaction=False) as asked:
        for shard in range(64):
            asked.zcard(f"ntf:{{t{shard}}}:all")
        return sum(asked.execute())


async def killed(made: Path, source: str, target: str, at: int) -> None:
    """A move that was ended when so many registrations had arrived: before all was read back."""
    command = [*COMMAND, "migrate", "--path", str(made), source, target]
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    assert process.stderr is not None
    assert b"copied: " in await asyncio.wait_for(process.stderr.readline(), 30)  # it is marked by then
    while there(made, target) < at:
        assert process.returncode is None
        await asyncio.sleep(0.001)
    process.kill()
    out, _ = await process.communicate()
    assert (process.returncode, out) == (-signal.SIGKILL, b"")


@pytest.mark.parametrize("to_redis", [True, False])
async def test_killed_in_the_middle_it_goes_on(made: Path, server: Server, *, to_redis: bool) -> None:
    pair = [DATABASE, server.url] if to_redis else [server.url, DATABASE]
    await many(made, pair[0])
    for at in (0, 1, MANY // 3, 2 * MANY // 3):
        await killed(made, *pair, at)
        refused = await asyncio.to_thread(run, "start", "--path", made, **{"NTF_SERVER__STORE__URL": pair[1]})
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "being filled by `ntf-server migrate`" in refused.stderr
    done = await asyncio.to_thread(migrate, made, *pair)
    assert done.returncode == 0, done.stderr
    assert f"{MANY} registrations" in done.stdout
    store = await opened(made, pair[1])
    assert (await store.backlog(Provider.APNS)).tokens == MANY
    await store.close()


@contextlib.asynccontextmanager
async def slow(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """It gets on little meanwhile, but lives."""

    async def slowing() -> None:
        while True:
            for number, seconds in ((signal.SIGSTOP, 0.2), (signal.SIGCONT, 0.05)):
                process.send_signal(number)
                await asyncio.sleep(seconds)

    task = asyncio.create_task(slowing())
    try:
        yield
    finally:
        task.cancel()
        process.send_signal(signal.SIGCONT)


async def test_of_two_at_once_the_second_is_refused(made: Path, server: Server) -> None:
    source, target = (f"{server.url}?prefix={prefix}" for prefix in ("from", "to"))
    await many(made, source)
    command = [*COMMAND, "migrate", "--path", str(made), source, target]
    first = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    assert first.stderr is not None
    assert b"copied: " in await asyncio.wait_for(first.stderr.readline(), 30)
    async with slow(first):
        second = await asyncio.to_thread(migrate, made, source, target)
    assert (second.returncode, second.stdout) == (2, "")
    assert "another `ntf-server migrate` is filling this store" in one_line(second.stderr)
    out, _ = await first.communicate()
    assert first.returncode == 0
    assert f"{MANY} registrations" in out.decode()


async def test_nothing_that_a_relay_uses(made: Path, server: Server, start: Start) -> None:
    store = await opened(made, server.url)
    await store.close()
    process, _ = await start()
    for pair in ((DATABASE, server.url), (server.url, DATABASE)):
        done = await asyncio.to_thread(migrate, made, *pair)
        assert (done.returncode, done.stdout) == (75, "")
        assert "another ntf-server uses this database" in one_line(done.stderr)
    await stop(process)
    process, _ = await start(**{"NTF_SERVER__STORE__URL": server.url})
    for pair in ((DATABASE, server.url), (server.url, "sqlite:///new.db")):
        done = await asyncio.to_thread(migrate, made, *pair)
        assert (done.returncode, done.stdout) == (75, "")
        assert "a relay uses this store: stop all its nodes" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (("mysql://host", DATABASE), "FROM-URL: mysql: must be sqlite:///PATH"),
        ((DATABASE, "redis://relay:s3cret@"), "TO-URL: "),
        ((DATABASE, "sqlite://"), "TO-URL: sqlite: must be"),
        ((DATABASE, "sqlite:///absent/new.db"), "absent: no such folder; create it"),
        ((DATABASE, DATABASE), "FROM and TO are the same store"),
        (("sqlite:///absent.db", "sqlite:///new.db"), "absent.db: there is no database"),
        ((DATABASE, "sqlite:///new.db", "--shards", "4"), "only a Redis has shards and buckets"),
        ((DATABASE, "redis://localhost", "--shards", "0"), "--shards: from 1 to"),
        ((DATABASE, "redis://localhost", "--buckets", "257"), "--buckets: from 1 to"),
    ],
)
async def test_bad_arguments(made: Path, pair: tuple[str, ...], says: str) -> None:
    await (await opened(made, DATABASE)).close()
    done = await asyncio.to_thread(migrate, made, *pair)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in one_line(done.stderr)
    assert "s3cret" not in done.stderr


async def test_a_redis_that_is_not_there(made: Path) -> None:
    await (await opened(made, DATABASE)).close()
    done = await asyncio.to_thread(migrate, made, DATABASE, "redis://relay:s3cret@127.0.0.1:1")
    assert (done.returncode, done.stdout) == (75, "")
    assert "127.0.0.1:1" in one_line(done.stderr) and "s3cret" not in done.stderr


async def test_another_master_key(made: Path, server: Server) -> None:
    for place in (DATABASE, server.url):
        await (await opened(made, place)).close()
    key = {"NTF_SERVER__STORE__MASTER_KEY": generate_key_text()}
    for pair in ((DATABASE, server.url), (server.url, "sqlite:///new.db")):
        done = await asyncio.to_thread(migrate, made, *pair, **key)
        assert (done.returncode, done.stdout) == (2, "")
        assert "master key" in one_line(done.stderr)


async def test_a_source_that_changed_meanwhile(made: Path, server: Server) -> None:
    """Here: between two runs, of which the first one ended before its end."""
    await many(made, DATABASE)
    await killed(made, DATABASE, server.url, 1)
    store = await opened(made, DATABASE)
    found = await store.find_registration(DeviceToken(Provider.APNS, b"0"), b"key")
    assert found is not None
    await store.delete_token(found.ref)
    await store.close()
    done = await asyncio.to_thread(migrate, made, DATABASE, server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the registrations are not those of" in done.stderr.splitlines()[-1]


async def test_a_node_of_another_schema_does_not_start(made: Path, server: Server) -> None:
    await (await opened(made, server.url)).close()
    url = {"NTF_SERVER__STORE__URL": server.url.replace("redis://", "redis://relay:s3cret@")}
    server.ask("ACL", "SETUSER", "relay", "on", ">s3cret", "~*", "+@all")
    for schema, says in ((99, "of a newer ntf-server"), (0, "of an older ntf-server")):
        server.ask("HSET", "ntf:{g}:store", "schema", schema)
        done = await asyncio.to_thread(run, "start", "--path", made, **url)
        assert (done.returncode, done.stdout) == (2, "")
        line = next(line for line in done.stderr.splitlines() if line.startswith("ntf-server: "))
        assert f"{says} (schema {schema}, this one has {SCHEMA})" in line
        assert "Traceback" not in done.stderr and "s3cret" not in done.stderr


def test_on_a_terminal_it_is_one_line(made: Path) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as out:
        progress = Progress(out)
        progress("copied", 0, 10)
        progress("copied", 10, 10)
        progress.end()
        progress.end()
    text = os.read(master, 1000).decode()
    os.close(master)
    assert text.count("\n") == 1 and text.count("\r[") == 2
    assert f"[{'#' * 30}] 100% copied: 10 of 10 registrations" in text
    assert not (made / "ntf-server.db").exists()


def test_elsewhere_it_is_lines() -> None:
    out = io.StringIO()
    progress = Progress(out)
    for done in range(11):
        progress("copied", done, 10)
    progress("compared", 0, 0)
    progress.end()
    lines = ["copied: 0 of 10", "copied: 10 of 10", "compared: 0 of 0"]
    assert out.getvalue().splitlines() == [f"{line} registrations" for line in lines]


def test_what_was_left_out_is_told() -> None:
    text = told(Migrated({"registrations": 3}, {"subscriptions": 2, "registrations": 1}))
    assert "0 servers, 3 registrations, 0 subscriptions, 0 notifications" in text
    assert text.endswith("Left out, since they cannot be read or count no more: 1 registrations, 2 subscriptions.")
    assert "Left out" not in told(Migrated({}, {}))
