"""`ntf-server delete`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import contents, run

Start = Callable[..., Any]


@pytest.mark.parametrize(("arguments", "stdin"), [(["--yes"], None), ([], "DELETE\n")])
def test_delete(made: Path, arguments: list[str], stdin: str | None) -> None:
    for suffix in ("", "-wal", "-shm", ".lock"):
        (made / f"ntf-server.db{suffix}").touch()
    done = run("delete", "--path", made, *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    assert not made.exists()


@pytest.mark.parametrize("stdin", ["\n", "delete\n", "y\n", "DELETE it\n", "", None])
def test_delete_without_consent(made: Path, stdin: str | None) -> None:
    before = contents(made)
    done = run("delete", "--path", made, stdin=stdin)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Nothing was deleted." in done.stdout
    assert contents(made) == before


def test_delete_leaves_what_is_not_the_servers(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made / "notes.txt").write_text("mine")
    elsewhere = tmp_path / "data"
    elsewhere.mkdir()
    for name in ("ntf.db", "ntf.db-wal", "other.db"):
        (elsewhere / name).touch()
    done = run("delete", "--path", made, "--yes", NTF_SERVER__STORE__URL=f"sqlite:///{elsewhere}/ntf.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(made) == {"notes.txt": b"mine"}
    assert set(contents(elsewhere)) == {"other.db"}


async def test_delete_under_a_running_server(made: Path, start: Start) -> None:
    await start()
    done = run("delete", "--path", made, "--yes")
    assert done.returncode == 75
    assert (made / "ntf-server.db").exists()


def test_what_is_in_a_redis_stays(made: Path) -> None:
    """Other nodes may use it; nobody asks it."""
    done = run("delete", "--path", made, "--yes", NTF_SERVER__STORE__URL="redis://relay:s3cret@localhost:1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "What is in redis://localhost:1 stays" in done.stdout and "s3cret" not in done.stdout
    assert not made.exists()
