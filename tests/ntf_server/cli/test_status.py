"""`ntf-server status`: of a server that runs, that does not, and of which that cannot be told."""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, in_process, one_line, run, stop
from harness import Phone, environment
from redis_servers import Server

from ntf_server.cli import status
from ntf_server.cli.status import Answer, screen
from ntf_server.config.identity_files import load_credentials
from ntf_server.observe.condition import AwayFacts, Facts, Phase, ServersFacts, StoreFacts, VapidFacts, WayFacts, assess
from ntf_server.observe.moments import moment
from ntf_server.testing import Answer as Pushed
from ntf_server.testing import MockApns
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client

Start = Callable[..., Any]
Ask = Callable[..., Any]
NOW = 1_800_000_000.0


def of(mock_apns: MockApns) -> dict[str, str]:
    return environment(mock_apns) | {"NTF_SERVER__TRANSPORT__BIND": "127.0.0.1"}


async def client(made: Path, port: int) -> Client:
    return await Client.connect(ServerAddress("ntf", ("127.0.0.1",), str(port), load_credentials(made).key_hash))


def rows(text: str) -> dict[str, str]:
    return {line[:11].strip(): line[12:] for line in text.splitlines() if line[11:12] == " " and line[:1].strip()}


async def told(made: Path, *more: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(run, "status", "--path", made, *more)
    return done.returncode, done.stdout, done.stderr


async def until(made: Path, code: int) -> str:
    """What it says, as soon as it ends so."""
    end = time.monotonic() + 20
    while True:
        found, out, err = await told(made)
        if found == code:
            return out
        assert time.monotonic() < end, out + err
        await asyncio.sleep(0.1)


# --- one that runs


async def test_one_that_is_well(made: Path, start: Start) -> None:
    process, port = await start()
    code, out, err = await told(made)
    assert (code, err, out.splitlines()[0]) == (0, "", "ntf-server is well.")
    found = rows(out)
    assert found["process"].startswith(f"{process.pid}, up for ")
    assert found["listens on"] == str(port)
    key_hash = load_credentials(made).key_hash
    assert found["address"] == str(ServerAddress("ntf", ("localhost",), str(port), key_hash))
    assert found["store"] == f"{made}/ntf-server.db: well"
    assert found["SMP servers"] == "0 wanted, 0 connected"
    assert found["due"] == "0 tokens, 0 pushes under way"
    assert "APNs null (AN): well; nothing accepted yet" in out
    assert "leases" not in found
    assert "/aiohttp/" not in Path(f"/proc/{process.pid}/maps").read_text()  # as there is no live page
    code, out, err = await told(made, "--json")
    answer = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert (answer["pid"], answer["port"], answer["well"], answer["troubles"]) == (process.pid, port, True, [])
    assert await told(made, "--ready") == (0, "ready\n", "")
    assert (await stop(process))[0] == 0
    assert not (made / "ntf-server.sock").exists()


async def test_one_whose_key_is_refused_and_then_is_not(made: Path, start: Start, mock_apns: MockApns) -> None:
    mock_apns.script(*[Pushed(403, "InvalidProviderToken")] * 2)
    _, port = await start(**of(mock_apns))
    async with await client(made, port) as connected:
        device = Phone(mock_apns)
        await device.register(connected)
        lines = (await until(made, 1)).splitlines()
        assert lines[0] == "ntf-server is not well:"
        assert lines[1].startswith("- APNs test (AT) refuses pushes for what is this server's to mend, for ")
        assert "403 InvalidProviderToken" in lines[1]
        assert any("APNs test (AT): ours-to-mend for " in line for line in lines)
        code, out, _ = await told(made, "--json")
        assert (code, json.loads(out)["well"]) == (1, False)
        assert (await told(made, "--ready"))[:2] == (0, "ready\n")
        await device.verify(connected)
        out = await until(made, 0)
        assert "APNs test (AT): well; accepted " in out
        assert "; last trouble: 403 InvalidProviderToken" in out


async def test_one_that_shares_its_store(made: Path, start: Start, tmp_path: Path) -> None:
    with Server(tmp_path / "redis") as redis:
        process, _ = await start(NTF_SERVER__STORE__URL=redis.url)
        done = await asyncio.to_thread(run, "status", "--path", made, NTF_SERVER__STORE__URL=redis.url)
        assert done.returncode == 0, done.stdout
        assert rows(done.stdout)["leases"] == "64 of 64 shards of tokens, 0 SMP servers; 1 nodes live"
        await stop(process)
        done = await asyncio.to_thread(run, "status", "--path", made, NTF_SERVER__STORE__URL=redis.url)
        assert done.returncode == 1
        assert rows(done.stdout)["nodes"] == "0 live"


def test_what_the_screen_says() -> None:
    facts = Facts(
        Phase.DRAINING,
        90_000.0,
        StoreFacts(20.0, "unavailable", partly=True, shards=3, all_shards=8, silent_shards=1, nodes=2),
        (
            WayFacts("AP", 2, 30.0, 5.0, reason="503", accepted_ago=40.0, due=7, oldest_due=33.0),
            WayFacts("WP", services=4, services_in_trouble=1),
        ),
        ServersFacts(5, 2, (AwayFacts(130.0), AwayFacts(300.0)), 1),
        12,
        certificates={"apns": 5 * 86400.0},
        vapid=VapidFacts(5, 3, 1, 60.0),
    )
    answer = assess(facts, NOW)
    fields = {name: getattr(answer, name) for name in answer.__struct_fields__}
    text = "\n".join(screen(Answer(**fields, version="1", pid=3, port=443, address="ntf://x@y", url="redis://z")))
    assert text == (
        "ntf-server is draining, and not well:\n"
        "- a part of the store fails, for 20 s: unavailable: it cannot be reached, or another process locks it\n"
        "- 1 of 8 shards of tokens wait for a server that is away\n"
        "- APNs (AP) takes no pushes, for 30 s: 503 (the next try is in 5 s)\n"
        "And soon:\n"
        "- the client certificate for APNs ends on 2027-01-20, in 5 days: renew it at Apple, then `ntf-server reload`\n"
        "\n"
        "version     1\n"
        f"process     3, up for 25 h (since {moment(NOW - 90_000)})\n"
        "address     ntf://x@y\n"
        "listens on  443\n"
        "store       redis://z: failing for 20 s\n"
        "pushes to   APNs (AP): paused for 30 s; next try in 5 s; accepted 40 s ago; 503\n"
        "            Web Push (WP): well; nothing accepted yet; 4 push services, 1 in trouble\n"
        "SMP servers 5 wanted, 2 connected, 2 away for up to 5 min, 1 that never confirmed anything\n"
        "clients     12 sessions\n"
        "due         7 tokens, the oldest for 33 s, 2 pushes under way\n"
        "VAPID keys  5 registrations for the key in force, 3 for older ones, 1 not known; counted 60 s ago\n"
        "leases      3 of 8 shards of tokens, 5 SMP servers; 2 nodes live"
    )


# --- one that does not run


async def test_one_that_was_killed(made: Path, start: Start, mock_apns: MockApns) -> None:
    """Its store tells what waits; the look leaves nothing behind."""
    await mock_apns.stop()
    process, port = await start(**of(mock_apns))
    async with await client(made, port) as connected:
        await Phone(mock_apns).register(connected)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    before = sorted(made.iterdir())
    code, out, err = await told(made)
    assert (code, err) == (1, "")
    assert out.splitlines()[0] == f"ntf-server does not run: {made}/ntf-server.sock: no ntf-server is running there"
    found = rows(out)
    assert (found["store"], found["tokens"], found["queues"]) == (f"{made}/ntf-server.db", "1 REGISTERED", "0")
    assert found["due"].startswith("1 tokens") and found["due"].endswith(": APNs test (AT) 1")
    code, out, _ = await told(made, "--json")
    answer = json.loads(out)
    assert (code, answer["well"], answer["phase"], answer["registrations"]) == (1, False, "stopped", {"REGISTERED": 1})
    assert (answer["due"], len(answer["troubles"])) == ({"AT": 1}, 1)
    code, out, err = await told(made, "--ready")
    assert (code, out) == (1, "") and "no ntf-server is running there" in one_line(err)
    assert sorted(made.iterdir()) == before
    await start(**of(mock_apns))  # the socket that is left is in nobody's way
    assert (await told(made, "--ready"))[0] == 0


def test_one_that_never_ran(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(made.iterdir())
    code, out, err = in_process(capsys, "status", "--path", made)
    assert (code, err) == (1, "")
    assert rows(out)["store"] == f"{made}/ntf-server.db: there is no database; the first start makes one"
    code, out, _ = in_process(capsys, "status", "--path", made, "--json")
    assert (code, len(json.loads(out)["troubles"])) == (1, 2)
    assert sorted(made.iterdir()) == before


def test_a_store_that_cannot_be_read(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "ntf-server.db").write_bytes(b"rubbish" * 1000)
    code, out, err = in_process(capsys, "status", "--path", made)
    assert (code, err) == (1, "")
    assert "the database is corrupt" in rows(out)["store"]


# --- of which it cannot be told


@pytest.fixture
def dead_socket(made: Path) -> Iterator[socket.socket]:
    """Somebody listens there, who is no server of ours."""
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.fspath(made / "ntf-server.sock"))
        s.listen()
        yield s


def cannot_tell(capsys: pytest.CaptureFixture[str], made: Path, *more: str) -> str:
    """One line, whatever was asked for."""
    code, out, err = in_process(capsys, "status", "--path", made, *more)
    assert (code, out) == (2, "")
    return one_line(err)


@pytest.mark.parametrize("more", [(), ("--json",), ("--ready",)])
async def test_a_server_that_stalls(
    made: Path, start: Start, more: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "TIMEOUT", 0.3)
    process, _ = await start()
    process.send_signal(signal.SIGSTOP)
    line = await asyncio.to_thread(cannot_tell, capsys, made, *more)
    assert line.endswith("the server did not answer within 0.3 s; how it is cannot be told")
    process.send_signal(signal.SIGCONT)
    assert (await told(made))[0] == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "the server hung up; be its user, or root"),
        (b"rubbish\n", "who listens there does not answer as an ntf-server does; how it is cannot be told"),
        (b"[]\n", "who listens there does not answer as an ntf-server does; how it is cannot be told"),
        (b'{"ok": true, "version": "0.0.9"}\n', "the server that runs is 0.0.9, whose answer is another; restart it"),
        (b'{"ok": false, "error": "it failed"}\n', "it failed; how it is cannot be told"),
    ],
)
def test_who_answers_otherwise(
    made: Path, dead_socket: socket.socket, answer: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve() -> None:
        connection, _ = dead_socket.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    assert words in cannot_tell(capsys, made)
    thread.join()


async def test_a_socket_without_rights(made: Path, start: Start) -> None:
    """As anybody: who is root may do everything, unless he has given that up."""
    await start()
    (made / "ntf-server.sock").chmod(0)
    give_up = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", give_up, *COMMAND, "status", "--path", str(made)), stdout=-1, stderr=-1
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, out) == (2, b"")
    line = one_line(err.decode())
    assert line.endswith("ntf-server.sock: not allowed; be the server's user, or root; how it is cannot be told")


async def test_a_server_whose_socket_is_another(made: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """Or that only starts: its database is used."""
    await start(NTF_SERVER__ADMIN__SOCKET=str(made / "other.sock"))
    for more in ((), ("--json",), ("--ready",)):
        line = await asyncio.to_thread(cannot_tell, capsys, made, *more)
        assert line.startswith(f"ntf-server: {made}/ntf-server.db: a process uses the database, but nobody listens at ")


def test_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ntf-server.toml: not found" in cannot_tell(capsys, tmp_path)
