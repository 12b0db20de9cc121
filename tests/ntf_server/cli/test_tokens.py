"""`ntf-server tokens`, of a running server and on the database of one that is stopped."""

import asyncio
import json
import re
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import in_process, one_line, run, stop, store_of
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
    store = await store_of(made)
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


def test_as_json(with_tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, *BAD, "--json", "--path", with_tokens)
    assert (code, out, one_line(err)) == (2, "", "ntf-server: --json goes with --yes; nothing was changed")
    assert found(with_tokens) == [("ACTIVE", None)]
    assert in_process(capsys, *BAD, "--json", "--yes", "--path", with_tokens) == (0, '{"tokens": 3}\n', "")


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
    store = await store_of(with_tokens)
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
        ("tokens", "list", "--status", "NEW"),
        ("tokens", "list", "--provider", "APNS"),
        ("tokens", "list", "--limit", "0"),
        ("tokens", "list", "--limit", "9" * 5000),
        ("tokens", "show"),
        ("tokens", "purge", "--status", "ACTIVE"),
        ("tokens", "purge", "--days", "1"),
        ("tokens", "purge", "--status", "ACTIVE", "--days", "-1"),
        ("tokens", "purge", "--status", "ACTIVE", "--days", "nan"),
        ("tokens", "purge", "--status", "ACTIVE", "--days", "x"),
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


# --- list, show, purge


LINE = r"[0-9a-f]{12}  AP  ACTIVE      \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d       0  none"


def test_listed_and_shown_of_the_database(with_tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, "tokens", "list", "--path", with_tokens)
    head, *lines = out.splitlines()
    assert (code, err) == (0, "") and head.startswith("device ")
    assert len(lines) == 3 and all(re.fullmatch(LINE, line) for line in lines)
    code, out, _ = in_process(capsys, "tokens", "list", "--path", with_tokens, "--json", "--status", "ACTIVE")
    answer = json.loads(out)
    assert (len(answer["tokens"]), answer["more"]) == (3, False)
    for limit, more in ((1, True), (3, False), (500, False)):
        _, out, _ = in_process(capsys, "tokens", "list", "--path", with_tokens, "--limit", limit, "--json")
        answer = json.loads(out)
        assert (len(answer["tokens"]), answer["more"]) == (min(3, limit), more), limit
    _, out, _ = in_process(capsys, "tokens", "list", "--path", with_tokens, "--limit", 1)
    assert out.splitlines()[-1] == "These are the first 1: --limit shows more."
    _, out, _ = in_process(capsys, "tokens", "list", "--path", with_tokens, "--provider", "WP")
    assert out == "There are none.\n"
    fingerprint = answer["tokens"][0]["fingerprint"]
    code, out, _ = in_process(capsys, "tokens", "show", fingerprint, "--path", with_tokens)
    assert code == 0
    assert out.splitlines()[:2] == [f"device         AP {fingerprint}", "status         ACTIVE"]
    _, out, _ = in_process(capsys, "tokens", "show", fingerprint, "--path", with_tokens, "--json")
    assert json.loads(out)["tokens"] == [{**answer["tokens"][0], "statuses": {}}]


def test_purged_on_the_database(with_tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted first: without --yes nothing is changed. A socket that was left by a dead server is in nobody's way."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(with_tokens / "ntf-server.sock"))
    purge = ("tokens", "purge", "--status", "ACTIVE", "--path", with_tokens, "--days")
    would = "3 tokens with 0 subscriptions would be deleted. Nothing was changed: give --yes.\n"
    assert in_process(capsys, *purge, 0) == (1, would, "")
    assert found(with_tokens) == [("ACTIVE", None)]
    code, out, _ = in_process(capsys, *purge, "1.5", "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"tokens": 0, "subscriptions": 0, "deleted": True})
    done = "3 tokens with 0 subscriptions are deleted.\n"
    assert in_process(capsys, *purge, 0, "--yes")[:2] == (0, done)
    assert found(with_tokens) == []


async def test_of_a_running_server(with_tokens: Path, start: Start) -> None:
    process, _ = await start()
    listed = await asyncio.to_thread(run, "tokens", "list", "--json", "--path", with_tokens)
    assert len(json.loads(listed.stdout)["tokens"]) == 3
    unknown = await asyncio.to_thread(run, "tokens", "show", "0" * 12, "--path", with_tokens)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    nobody = "no registration has this id, and no device this fingerprint"
    assert one_line(unknown.stderr) == f"ntf-server: {nobody}"
    purge = ("tokens", "purge", "--status", "ACTIVE", "--days", "0", "--yes", "--path", with_tokens)
    done = await asyncio.to_thread(run, *purge)
    assert (done.returncode, done.stdout) == (0, "3 tokens with 0 subscriptions are deleted.\n")
    assert found(with_tokens) == []
    _, _, err = await stop(process)
    assert "3 tokens that were ACTIVE are deleted: an operator asked for it" in err


@pytest.mark.parametrize("action", [("list",), ("show", "0" * 12), ("purge", "--status=ACTIVE", "--days=0", "--yes")])
def test_without_a_database_nothing_is_made(
    made: Path, capsys: pytest.CaptureFixture[str], action: tuple[str, ...]
) -> None:
    code, out, err = in_process(capsys, "tokens", *action, "--path", made)
    assert (code, out) == (2, "")
    assert one_line(err) == f"ntf-server: {made}/ntf-server.db: not found; start the server first"
    assert not (made / "ntf-server.db").exists()


async def test_on_a_redis_too(made: Path, tmp_path: Path) -> None:
    """Of all nodes, and while another one runs."""
    with Server(tmp_path / "server") as server:
        master_key = load_master_key(made, load_settings(made))
        store = await open_store(parse_redis_url(server.url), directory=made, master_key=master_key)
        tokens = [await activate(store, DeviceToken(Provider.APNS, b"phone %d" % n)) for n in range(3)]
        environ = {"NTF_SERVER__STORE__URL": server.url}
        listed = await asyncio.to_thread(run, "tokens", "list", "--json", "--path", made, **environ)
        fingerprints = {t["fingerprint"] for t in json.loads(listed.stdout)["tokens"]}
        assert fingerprints == {store.fingerprint(DeviceToken(Provider.APNS, b"phone %d" % n)) for n in range(3)}
        shown = await asyncio.to_thread(run, "tokens", "show", min(fingerprints), "--path", made, **environ)
        assert shown.stdout.splitlines()[0] == f"device         AP {min(fingerprints)}"
        purge = ("tokens", "purge", "--status", "ACTIVE", "--days", "0", "--yes", "--path", made)
        done = await asyncio.to_thread(run, *purge, **environ)
        assert done.stdout == "3 tokens with 0 subscriptions are deleted.\n", done.stderr
        assert [await store.find_token(t.token_id) for t in tokens] == [None] * 3
        await store.close()
