"""`ntf-server tokens invalidate`, on a running server and on the database of one that is stopped."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import in_process, one_line, run, stop
from redis_servers import Server
from store_world import activate

from ntf_server.config.files import load_master_key, load_settings
from ntf_server.store.open import open_store
from ntf_server.store.redis.url import parse_redis_url
from smp_bridge.ntf import DeviceToken, Provider

Start = Callable[..., Any]
BAD = ("tokens", "invalidate", "--status", "ACTIVE", "--reason", "BAD")


@pytest.fixture
async def with_tokens(made: Path) -> Path:
    """The folder of a server that has three ACTIVE tokens."""
    store = await open_store(
        f"sqlite:///{made}/ntf-server.db", directory=made, master_key=load_master_key(made, load_settings(made))
    )
    for number in range(3):
        await activate(store, DeviceToken(Provider.APNS, b"phone %d" % number))
    await store.close()
    return made


def found(made: Path) -> list[tuple[str, str | None]]:
    connection = sqlite3.connect(made / "ntf-server.db")
    try:
        return connection.execute("SELECT DISTINCT status, reason FROM tokens").fetchall()
    finally:
        connection.close()


async def test_on_a_running_server(with_tokens: Path, start: Start) -> None:
    process, _ = await start()
    done = await asyncio.to_thread(run, *BAD, "--yes", "--path", with_tokens)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "3 tokens are INVALID now."
    assert found(with_tokens) == [("INVALID", "BAD")]
    code, _, err = await stop(process)
    assert code == 0
    assert "3 tokens that were ACTIVE are INVALID (BAD) now: an operator asked for it" in err


def test_on_the_database(with_tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for expected in (3, 0):
        code, out, _ = in_process(capsys, *BAD, "--yes", "--path", with_tokens)
        assert (code, out.splitlines()[-1]) == (0, f"{expected} tokens are INVALID now.")
    assert found(with_tokens) == [("INVALID", "BAD")]


def test_without_consent(with_tokens: Path) -> None:
    for stdin in ("\n", "invalidate\n", "y\n", None):
        done = run(*BAD, "--path", with_tokens, stdin=stdin)
        assert (done.returncode, done.stderr) == (1, "")
        assert "Nothing was changed." in done.stdout
    assert found(with_tokens) == [("ACTIVE", None)]
    done = run(*BAD, "--path", with_tokens, stdin="INVALIDATE\n")
    assert done.returncode == 0
    assert found(with_tokens) == [("INVALID", "BAD")]


async def test_while_another_program_has_the_database(with_tokens: Path) -> None:
    """A server that starts, say: its socket comes last."""
    master_key = load_master_key(with_tokens, load_settings(with_tokens))
    store = await open_store(f"sqlite:///{with_tokens}/ntf-server.db", directory=with_tokens, master_key=master_key)
    done = await asyncio.to_thread(run, *BAD, "--yes", "--path", with_tokens)
    await store.close()
    assert done.returncode == 75
    assert "another ntf-server uses this database" in one_line(done.stderr)
    assert found(with_tokens) == [("ACTIVE", None)]


def test_without_a_database(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = in_process(capsys, *BAD, "--yes", "--path", made)
    assert code == 2
    assert one_line(err) == f"ntf-server: {made}/ntf-server.db: not found; nothing was changed"
    assert not (made / "ntf-server.db").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("tokens",),
        ("tokens", "revive"),
        ("tokens", "invalidate", "--status", "ACTIVE"),
        ("tokens", "invalidate", "--reason", "BAD"),
        ("tokens", "invalidate", "--status", "active", "--reason", "BAD"),
        ("tokens", "invalidate", "--status", "ACTIVE", "--reason", "bad"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, err = in_process(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "usage: ntf-server tokens" in err


async def test_on_a_redis(made: Path, tmp_path: Path) -> None:
    """Whether or not another node runs: of all nodes."""
    with Server(tmp_path / "server") as server:
        master_key = load_master_key(made, load_settings(made))
        store = await open_store(parse_redis_url(server.url), directory=made, master_key=master_key)
        for number in range(3):
            await activate(store, DeviceToken(Provider.APNS, b"phone %d" % number))  # type: ignore[arg-type]
        for expected in (3, 0):
            done = await asyncio.to_thread(run, *BAD, "--yes", "--path", made, NTF_SERVER__STORE__URL=server.url)
            assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
            assert done.stdout.splitlines()[-1] == f"{expected} tokens are INVALID now."
        await store.close()
