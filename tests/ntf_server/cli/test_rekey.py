"""`ntf-server rekey`."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import one_line, run, stop

from ntf_server.config.files import load_master_key
from ntf_server.config.source import CONFIG_FILE, load_settings
from ntf_server.store.open import open_store
from ntf_server.store.sealing import generate_key_text

Start = Callable[..., Any]


async def test_rekey_with_a_new_file(made: Path, start: Start, tmp_path: Path) -> None:
    """Which the configuration names then; the old one stays, for old backups."""
    process, _ = await start()
    await stop(process)
    new, old = tmp_path / "new.key", (made / "master.key").read_bytes()
    done = await asyncio.to_thread(run, "rekey", "--path", made, "--new-key-file", new, "--reseal")
    assert (done.returncode, done.stderr) == (0, "")
    first, named, keep = done.stdout.splitlines()
    assert first == "Sealed anew: 0 tokens, 0 subscriptions."
    assert named.endswith(f"{made / CONFIG_FILE} says so: [store] master_key_file = {new}")
    assert keep == "Keep the old master key: backups from before open with it, and with no other."
    assert new.stat().st_mode & 0o777 == 0o600
    assert (made / "master.key").read_bytes() == old
    process, _ = await start()
    await stop(process)
    (made / CONFIG_FILE).write_text((made / CONFIG_FILE).read_text().replace(str(new), "master.key"))
    refused = await asyncio.to_thread(run, "start", "--path", made)
    assert refused.returncode == 2
    assert "the master key is not the one" in refused.stderr


async def test_rekey_under_a_running_server(made: Path, start: Start) -> None:
    """It goes on, and says by a reload whether its next start will find the key."""
    process, _ = await start()
    done = await asyncio.to_thread(run, "rekey", "--path", made, "--reseal")
    assert done.returncode == 75
    assert "another ntf-server uses this database" in done.stderr
    new, file = made / "new.key", made / CONFIG_FILE
    before = file.read_text()
    done = await asyncio.to_thread(run, "rekey", "--path", made, "--new-key-file", new)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[store] master_key_file = new.key" in done.stdout
    assert "The server goes on. `ntf-server reload` " in done.stdout
    after = file.read_text()
    for text, code, told in ((before, 0, ""), (after, 0, "the master key")):
        file.write_text(text)
        done = await asyncio.to_thread(run, "reload", "--path", made)
        assert (done.returncode, done.stderr) == (code, "")
        assert told in done.stdout
    file.write_text(before)
    done = await asyncio.to_thread(run, "reload", "--path", made)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the master key: it does not open the store; set the one that does, or run `ntf-server rekey`" in done.stderr
    file.write_text(after)
    assert (await stop(process))[0] == 0
    await start()


def test_rekey_to_the_key_that_it_is(made: Path) -> None:
    done = run("rekey", "--path", made, "--new-key-file", made / "master.key")
    assert (done.returncode, done.stdout) == (2, "")
    assert one_line(done.stderr) == "ntf-server: rekey: this is the master key already; give another one"


def test_rekey_by_a_command_and_where_a_variable_names_the_key(made: Path) -> None:
    asyncio.run(opened(made))
    (made / "new.key").write_text(generate_key_text())
    before = (made / CONFIG_FILE).read_bytes()
    variable = {"NTF_SERVER__STORE__MASTER_KEY_FILE": "master.key"}
    done = run("rekey", "--path", made, "--new-key-command", f"cat {made / 'new.key'}", **variable)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"name it in {made / CONFIG_FILE}, [store], and let" in done.stdout
    assert (made / CONFIG_FILE).read_bytes() == before
    (made / "newest.key").write_text(generate_key_text())
    done = run(
        "rekey", "--path", made, "--new-key-command", f"cat {made / 'newest.key'}", NTF_SERVER__STORE__MASTER_KEY="x"
    )
    assert done.returncode == 2
    (made / "master.key").write_bytes((made / "new.key").read_bytes())
    done = run("rekey", "--path", made, "--new-key-command", f"cat {made / 'newest.key'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert load_settings(made, {}).store.master_key_command == f"cat {made / 'newest.key'}"
    asyncio.run(opened(made))


async def opened(made: Path) -> None:
    """The database, with the key that is configured."""
    key = load_master_key(made, load_settings(made, {}))
    await (await open_store(made / "ntf-server.db", directory=made, master_key=key)).close()


def test_rekey_to_nothing(made: Path) -> None:
    done = run("rekey", "--path", made)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--new-key-file" in done.stderr


def test_a_redis_keeps_its_key(made: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.key"
    redis = {"NTF_SERVER__STORE__URL": "redis://relay:s3cret@localhost"}
    for option in (["--reseal"], ["--new-key-file", new]):
        done = run("rekey", "--path", made, *option, **redis)
        assert (done.returncode, done.stdout) == (2, "")
        assert "[store] url: redis://localhost:6379: is a Redis" in one_line(done.stderr)
        assert "s3cret" not in done.stderr
    assert not new.exists()
