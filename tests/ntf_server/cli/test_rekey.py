"""`ntf-server rekey`."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import one_line, run

Start = Callable[..., Any]


async def test_rekey_with_a_new_file(made: Path, start: Start, tmp_path: Path) -> None:
    process, _ = await start()
    process.send_signal(signal.SIGTERM)
    await process.wait()
    new = tmp_path / "new.key"
    done = run("rekey", "--path", made, "--new-key-file", new, "--reseal")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Sealed anew: 0 tokens, 0 subscriptions." in done.stdout
    assert new.stat().st_mode & 0o777 == 0o600
    refused = run("start", "--path", made)
    assert refused.returncode == 2
    assert "the master key is not the one" in refused.stderr
    (made / "master.key").write_bytes(new.read_bytes())
    await start()


async def test_rekey_under_a_running_server(made: Path, start: Start) -> None:
    await start()
    done = run("rekey", "--path", made, "--reseal")
    assert done.returncode == 75
    assert "another ntf-server uses this database" in done.stderr


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
