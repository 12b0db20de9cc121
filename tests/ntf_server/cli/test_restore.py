"""`ntf-server restore`, and the page that says how. What it does to files: tests/ntf_server/archive."""

import asyncio
import json
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archive_world import has, one_token
from command_line import COMMAND, in_process, one_line, run, stop

Start = Callable[..., Any]
PAGE = Path(__file__).parents[3] / "docs/how-to/back-up.md"


async def test_what_the_page_says(made: Path, start: Start, tmp_path: Path) -> None:
    """Its commands as they stand there, in other folders; the server runs while it is backed up."""
    token = await one_token(made)
    process, _ = await start()
    (tmp_path / "etc").mkdir()
    moved = {
        "/etc/opt/simplex-notifications": str(tmp_path / "etc" / "relay"),
        "/backup/ntf-server-2026-11-27.backup": str(tmp_path / "backup"),
        "/backup/ntf-server-2026-11-27.backup.db": str(tmp_path / "backup.db"),
        "/safe/master.key": str(made / "master.key"),
    }
    commands = re.findall(r"^ntf-server (.+)$", PAGE.read_text(), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["backup", "backup", "restore", "check"]
    for name, *words in map(shlex.split, commands):
        here = [moved.get(word, word) for word in words]
        if name == "backup":
            here += ["--path", str(made)]
        elif process.returncode is None:
            assert (await stop(process))[0] == 0
        done = await asyncio.to_thread(run, name, *here)
        assert done.returncode == 0, done.stderr
        if name == "restore":
            assert "Never run the old server and this one at once" in done.stdout
            assert "Never run the old server and this one at once" in " ".join(PAGE.read_text().split())
    restored = tmp_path / "etc" / "relay"
    assert await has(restored, token)
    process, _ = await start(restored)
    assert (await stop(process))[0] == 0


async def test_json_and_the_ways_to_give_the_key(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await one_token(made)
    backup, key = tmp_path / "backup", made / "master.key"

    async def asked(*words: object) -> tuple[int, str, str]:
        return await asyncio.to_thread(in_process, capsys, *words)

    assert (await asked("backup", "--path", made, backup))[0] == 0
    code, out, err = await asked("restore", backup, "--path", tmp_path / "one", "--master-key-file", key, "--json")
    told = json.loads(out)
    assert (code, err, told["store"]) == (0, "", str(tmp_path / "one" / "ntf-server.db"))
    assert (told["master_key_file"], told["elsewhere"], told["variables"]) == (None, {}, [])
    command = ["restore", backup, "--path", tmp_path / "two", "--master-key-command", shlex.join(["cat", str(key)])]
    code, out, err = await asked(*command)
    assert (code, err) == (0, "") and f"Put the master key into {tmp_path}/two/master.key." in out
    monkeypatch.setenv("NTF_SERVER__STORE__MASTER_KEY", key.read_text())
    assert (await asked("restore", backup, "--path", tmp_path / "three"))[0] == 0


async def test_what_cannot_be_restored(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await one_token(made)
    backup, key = tmp_path / "backup", made / "master.key"
    assert (await asyncio.to_thread(in_process, capsys, "backup", "--path", made, backup))[0] == 0
    (tmp_path / "other.key").write_bytes(b"\x01" * 32)
    (tmp_path / "text").write_text("no backup")
    new = tmp_path / "new"
    for words, says in (
        ([backup, "--path", new], "the backup is sealed: give its master key by --master-key-file FILE"),
        ([backup, "--path", new, "--master-key-file", tmp_path / "none"], "none: No such file or directory"),
        ([backup, "--path", new, "--master-key-file", tmp_path / "text"], "characters that are no master key"),
        ([backup, "--path", new, "--master-key-file", tmp_path / "other.key"], "was sealed with another master key"),
        ([backup, "--path", new, "--master-key-command", "false"], "ended with exit code 1"),
        ([backup, "--path", made, "--master-key-file", key], "relay: is in use, and is kept"),
        ([tmp_path / "none", "--path", new, "--master-key-file", key], "none: No such file or directory"),
        ([tmp_path / "text", "--path", new, "--master-key-file", key], "text: is no backup of ntf-server"),
        ([tmp_path, "--path", new, "--master-key-file", key], "Is a directory"),
    ):
        code, out, err = await asyncio.to_thread(in_process, capsys, "restore", *words)
        assert (code, out) == (2, ""), err
        assert says in one_line(err)
    assert not new.exists()


async def test_ended_in_the_middle_it_leaves_nothing(made: Path, tmp_path: Path) -> None:
    """Either all of it or nothing, at whatever moment: here while it waits for the key of a folder's Redis."""
    await one_token(made)
    backup = tmp_path / "backup"
    done = await asyncio.to_thread(run, "backup", "--path", made, backup)
    assert done.returncode == 0, done.stderr
    (tmp_path / "out").mkdir()
    silent = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    async with silent:
        port = silent.sockets[0].getsockname()[1]
        command = ["restore", str(backup), "--path", str(tmp_path / "out" / "new")]
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *command,
            "--master-key-file",
            str(made / "master.key"),
            env={"NTF_SERVER__STORE__URL": f"redis://127.0.0.1:{port}", "PATH": "/usr/bin:/bin"},
            stdout=-1,
            stderr=-1,
        )
        async with asyncio.timeout(30):
            while not [*(tmp_path / "out").glob(".new.*/ntf-server.toml")]:
                assert process.returncode is None
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert [*(tmp_path / "out").iterdir()] == []
