"""`ntf-server backup`: of all, and with `--database`. What it holds: tests/ntf_server/archive."""

import asyncio
import json
import os
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, contents, in_process, one_line, run
from store_world import register

from ntf_server.store.records import Registered
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing.store_suite.medium import as_found
from smp_bridge.ntf import DeviceToken, Provider

Start = Callable[..., Any]
DONE = r"(.+): (\d+\.\d) MiB in \d+\.\d s\n"
LOAD = 8  # writers, each with a commit of its own to wait for
AT_MOST = 20.0  # seconds; sqlite3's .backup does not end at all under this load


async def opened(path: Path, made: Path) -> SqliteStore:
    return await SqliteStore.open(path, master_key=MasterKey.from_file(made / "master.key"))


async def one_token(made: Path) -> Registered:
    """Registered while no server runs."""
    store = await opened(made / "ntf-server.db", made)
    token = await register(store)
    await store.close()
    assert token is not None
    return token


async def has(path: Path, made: Path, token: Registered) -> bool:
    store = await opened(path, made)
    found = await store.find_token(token.token_id)
    await store.close()
    return found == as_found(token)


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
async def test_a_copy_can_be_put_in_the_place_of_the_database(
    made: Path, start: Start, tmp_path: Path, *, running: bool
) -> None:
    token = await one_token(made)
    process = (await start())[0] if running else None
    copy = tmp_path / "ntf-server.bak"
    done = await asyncio.to_thread(run, "backup", "--database", "--path", made, copy)
    assert (done.returncode, done.stderr) == (0, "")
    told = re.fullmatch(DONE, done.stdout)
    assert told is not None
    assert told.groups() == (str(copy), f"{copy.stat().st_size / 2**20:.1f}")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    if process is not None:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    for file in made.glob("ntf-server.db*"):
        file.unlink()
    copy.rename(made / "ntf-server.db")
    process, _ = await start()
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert await has(made / "ntf-server.db", made, token)


async def test_it_ends_while_much_is_written(made: Path, tmp_path: Path) -> None:
    first = await one_token(made)
    store = await opened(made / "ntf-server.db", made)
    written = 0

    async def write(writer: int) -> None:
        nonlocal written
        while True:
            name = b"%d %d" % (writer, written)
            await register(store, DeviceToken(Provider.APNS, name), name)
            written += 1

    writers = [asyncio.create_task(write(i)) for i in range(LOAD)]
    copy = tmp_path / "copy.db"
    try:
        await asyncio.sleep(0.3)
        before = written
        async with asyncio.timeout(AT_MOST):
            process = await asyncio.create_subprocess_exec(
                *COMMAND, "backup", "--database", "--path", str(made), str(copy)
            )
            assert await process.wait() == 0
        assert written > before > 0
    finally:
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)
        await store.close()
    assert await has(copy, made, first)
    saved = await opened(copy, made)
    assert (await saved.backlog(Provider.APNS)).tokens >= before
    await saved.close()


async def test_what_is_there_already_stays(made: Path, tmp_path: Path) -> None:
    await one_token(made)
    copy = tmp_path / "precious"
    copy.write_bytes(b"precious")
    before = contents(made)
    done = run("backup", "--database", "--path", made, copy)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is there already" in one_line(done.stderr)
    assert copy.read_bytes() == b"precious"
    assert contents(made) == before


@pytest.mark.parametrize("what", ["nothing to copy", "no folder", "not a database"])
async def test_what_cannot_be_copied(made: Path, tmp_path: Path, what: str) -> None:
    copy = tmp_path / "copy.db"
    if what == "no folder":
        await one_token(made)
        copy = tmp_path / "absent" / "copy.db"
    elif what == "not a database":
        (made / "ntf-server.db").write_bytes(os.urandom(8192))
    done = run("backup", "--database", "--path", made, copy)
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr)
    assert not copy.exists()


def test_a_redis_has_backups_of_its_own(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    done = run("backup", "--database", "--path", made, copy, NTF_SERVER__STORE__URL="redis://relay:s3cret@localhost")
    assert (done.returncode, done.stdout) == (2, "")
    assert "[store] url: redis://localhost:6379: is a Redis" in one_line(done.stderr)
    assert "s3cret" not in done.stderr and not copy.exists()


async def test_all_that_is_needed_in_one_file(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a server runs: test_restore.py."""
    await one_token(made)
    monkeypatch.setenv("NTF_SERVER__LOG__LEVEL", "error")
    code, out, err = await asyncio.to_thread(in_process, capsys, "backup", "--path", made, tmp_path / "backup")
    assert (code, err) == (0, "")
    first, holds, variables, key = out.splitlines()
    assert re.fullmatch(DONE.removesuffix(r"\n"), first)
    assert holds == "In it: ntf-server.toml, ca.crt, ca.key, server.crt, server.key, fingerprint, vapid.key, database."
    assert variables == "Not in it, as they are variables: NTF_SERVER__LOG__LEVEL."
    assert key == "It opens with the master key only, which is not in it: keep both, in different places."
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o600


async def test_json(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await one_token(made)
    code, out, err = await asyncio.to_thread(
        in_process, capsys, "backup", "--json", "--path", made, tmp_path / "backup"
    )
    told = json.loads(out)
    assert (code, err, told["file"], told["size"]) == (0, "", *file_and_size(tmp_path / "backup"))
    assert told["holds"][-1] == "database" and told["variables"] == []


def file_and_size(path: Path) -> tuple[str, int]:
    return str(path), path.stat().st_size


async def test_what_no_backup_is_made_of(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def asked(*words: object) -> tuple[int, str]:
        code, out, err = await asyncio.to_thread(in_process, capsys, "backup", "--path", made, *words)
        assert out == ""
        return code, one_line(err)

    code, line = await asked(tmp_path / "backup")
    assert code == 2 and "there is no database yet; start the server once" in line
    await one_token(made)
    (tmp_path / "taken").touch()
    code, line = await asked(tmp_path / "taken")
    assert code == 2 and f"{tmp_path}/taken: is there already, and is kept" in line
    code, line = await asked(tmp_path / "absent" / "backup")
    assert code == 2 and f"{tmp_path}/absent: no such folder" in line
    (made / "master.key").unlink()
    code, line = await asked(tmp_path / "backup")
    assert code == 2 and "restore it from your copy" in line
    assert {path.name for path in tmp_path.iterdir()} == {"relay", "taken"}
