"""The command `ntf-server`, as operators and systemd run it."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from harness import Phone

from ntf_server.cli import main as cli
from ntf_server.config import files as config
from ntf_server.config.identity_files import FILES, create_identity
from ntf_server.push.apns.request import generate_key, key_pem, load_key
from ntf_server.push.webpush.request import Vapid
from ntf_server.store.sealing import generate_key_text
from ntf_server.testing import MockApns
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.encoding import b64url
from smp_bridge.identity import private_key_pem
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

COMMAND = [sys.executable, "-m", "ntf_server"]


def run(*arguments: Any, stdin: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def in_process(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command, without the time that a process takes."""
    with pytest.raises(SystemExit) as e:
        cli.main([str(a) for a in arguments])
    assert isinstance(e.value.code, int)
    return e.value.code, *capsys.readouterr()


def contents(directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in directory.rglob("*") if f.is_file()}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder as `init` leaves it, for a server on any free port of loopback."""
    directory = tmp_path / "relay"
    directory.mkdir()
    create_identity(directory, "ED25519", "localhost")
    (directory / "master.key").write_text(generate_key_text())
    (directory / "vapid.key").write_bytes(key_pem(generate_key()))
    text = cli.config_text("localhost", 0, web_push=False)
    (directory / config.CONFIG_FILE).write_text(text.replace('# bind = ""  ', 'bind = "127.0.0.1"'))
    return directory


Start = Callable[..., Any]


@pytest.fixture
async def start(made: Path) -> AsyncIterator[Start]:
    """Starts servers: (process, port), when they listen."""
    processes = []

    async def start_server(directory: Path = made, **environ: str) -> tuple[asyncio.subprocess.Process, int]:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "start", "--path", str(directory), env=os.environ | environ, stdout=-1, stderr=-1
        )
        processes.append(process)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        found = re.fullmatch(rb"listening on 127\.0\.0\.1:(\d+)\n", line)
        assert found, line
        return process, int(found[1])

    yield start_server
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def stop(process: Any, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, out.decode(), err.decode()


def one_line(stderr: str) -> str:
    [line] = stderr.splitlines()
    assert line.startswith("ntf-server: ")
    return line


# --- usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["start", "--unknown"],
        ["start", "extra"],
        ["init", "--port", "x"],
        ["init", "--port", "0"],
        ["init", "--port", "-1"],
        ["init", "--port", "65536"],
        ["init", "--port", "\N{SUPERSCRIPT TWO}"],
        ["init", "--port", ""],
        ["init", "--ip", "ntf.example.org"],
        ["init", "--ip", "127.1"],
        ["init", "--ip", "fe80::1%eth0"],
        ["init", "--fqdn", "a b"],
        ["init", "--fqdn", "a,b"],
        ["init", "--fqdn", "a:443"],
        ["init", "--fqdn", "a/b"],
        ["init", "--fqdn", "b\xfccher.example"],
        ["init", "--fqdn", "a" * 65],
        ["init", "--sign-algorithm", "RSA"],
        ["init", "--sign-algorithm", "ed448"],
        ["cert", "--fqdn", "a b"],
        ["cert", "--sign-algorithm", "x"],
        ["delete", "--no"],
        ["check", "--yes"],
        ["demo", "--path", "x"],
    ],
    ids=" ".join,
)
def test_bad_usage(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NTF_SERVER_CFG_PATH", str(tmp_path / "relay"))
    code, out, err = in_process(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "error: " in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["init", "start", "cert", "check", "delete", "demo"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(capsys, command, "--help")[0] == 0


@pytest.mark.parametrize("command", ["start", "check", "delete"])
def test_a_folder_without_configuration(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, command, "--path", tmp_path)
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'ntf-server.toml'}: not found" in one_line(err)


# --- init


def test_init(tmp_path: Path) -> None:
    directory = tmp_path / "some" / "folder"
    done = run("init", "--path", directory, "--fqdn", "ntf.example.org")
    key_hash = (directory / "fingerprint").read_text().strip()
    assert (done.returncode, done.stdout) == (0, f"ntf://{key_hash}@ntf.example.org\n")
    assert f"Move {directory / 'ca.key'} offline" in done.stderr
    assert {f.name for f in directory.iterdir()} == {*FILES, config.CONFIG_FILE}
    loaded = config.load(directory, {})
    assert (loaded.settings.transport.host, loaded.settings.transport.port) == ("ntf.example.org", 443)
    assert loaded.credentials.key_hash == ServerAddress.from_text(done.stdout.strip()).key_hash


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["--fqdn", "ntf.example.org", "--port", "5443"], "ntf.example.org:5443"),
        (["--fqdn", "ntf.example.org", "--port", "443"], "ntf.example.org"),
        (["--fqdn", "ntf.example.org", "--ip", "192.0.2.1"], "ntf.example.org"),
        (["--ip", "192.0.2.1"], "192.0.2.1"),
        (["--ip", "2001:db8::1"], "[2001:db8::1]"),
        (["--ip", "2001:db8:0::1", "--port", "5443"], "[2001:db8::1]:5443"),
        (["--fqdn", "[2001:db8::1]", "--port", "5443"], "[2001:db8::1]:5443"),
    ],
)
@pytest.mark.parametrize("algorithm", ["ED448", "ED25519"])
def test_the_address_of_init_is_that_of_check(
    *, tmp_path: Path, arguments: list[str], address: str, algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = in_process(capsys, "init", "--path", tmp_path, *arguments, "--sign-algorithm", algorithm)
    assert code == 0
    assert out.endswith(f"@{address}\n")
    code, checked, err = in_process(capsys, "check", "--path", tmp_path)
    assert (code, err) == (0, "")
    assert f"address     {out}" in checked


@pytest.mark.parametrize("present", [*FILES, config.CONFIG_FILE])
def test_init_never_overwrites(tmp_path: Path, present: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / present).write_text("precious")
    code, out, err = in_process(capsys, "init", "--path", tmp_path, "--fqdn", "localhost")
    assert (code, out) == (2, "")
    assert f"{tmp_path / present}: exists; choose another folder" in one_line(err)
    assert contents(tmp_path) == {present: b"precious"}


def test_init_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    code, out, err = in_process(capsys, "init", "--path", tmp_path / "file" / "relay", "--fqdn", "localhost")
    assert (code, out) == (2, "")
    assert "choose a folder that can be written" in one_line(err)


def test_a_machine_whose_name_is_no_host_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "my machine")
    code, out, err = in_process(capsys, "init", "--path", tmp_path / "relay")
    assert (code, out) == (2, "")
    assert "give --fqdn or --ip" in one_line(err)
    assert not list(tmp_path.iterdir())


# --- start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_start_and_stop(made: Path, start: Start, number: signal.Signals) -> None:
    (made / "ca.key").unlink()
    process, port = await start()
    address = ServerAddress("ntf", ("127.0.0.1",), str(port), config.load(made, {}).credentials.key_hash)
    async with await Client.connect(address) as client:
        assert await client.request(ntf.Ping()) == ntf.Pong()
        code, out, err = await stop(process, number)
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    assert "stopping" in err


async def test_a_client_that_says_nothing_does_not_keep_it_from_stopping(start: Start) -> None:
    process, port = await start()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    code, _, err = await stop(process)
    assert code == 0
    assert "Traceback" not in err
    writer.close()


@pytest.mark.parametrize("abstract", [False, True])
async def test_systemd_is_told(tmp_path: Path, start: Start, abstract: bool) -> None:
    name = f"ntf-server-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind("\0" + name if abstract else name)
        s.settimeout(10)
        await start(NOTIFY_SOCKET="@" + name if abstract else name)
        assert s.recv(100) == b"READY=1"


async def test_a_broken_notify_socket_is_no_reason_to_stop(start: Start) -> None:
    process, _ = await start(NOTIFY_SOCKET="/nonexistent/notify")
    code, _, err = await stop(process)
    assert code == 0
    assert "$NOTIFY_SOCKET cannot be written to: No such file or directory" in err
    assert "Traceback" not in err


async def test_what_is_in_use(made: Path, start: Start, tmp_path: Path) -> None:
    _, port = await start()
    same_port = {"NTF_SERVER__TRANSPORT__PORT": str(port), "NTF_SERVER__STORE__URL": "sqlite:///other.db"}
    second, third = await asyncio.gather(
        asyncio.to_thread(run, "start", "--path", made, **same_port),
        asyncio.to_thread(run, "start", "--path", made),
    )
    assert [(done.returncode, done.stdout) for done in (second, third)] == [(2, "")] * 2
    line = second.stderr.splitlines()[-1]
    assert f"[transport] bind, port: 127.0.0.1:{port}: " in line
    assert line.endswith("choose another one, or stop what uses it")
    assert "another ntf-server uses this database" in third.stderr.splitlines()[-1]
    assert "Traceback" not in second.stderr + third.stderr


@pytest.mark.parametrize("bind", ["999.1.1.1", "a..b", "a" * 64])
def test_an_address_that_cannot_be_listened_on(made: Path, bind: str) -> None:
    done = run("start", "--path", made, NTF_SERVER__TRANSPORT__BIND=bind)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"[transport] bind, port: {bind}:0: " in done.stderr.splitlines()[-1]


def of_another_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()


def damaged(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 0x4E544652")
    connection.execute("CREATE TABLE t (x)")
    connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 100)
    connection.commit()
    connection.close()
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 4] = os.urandom(4096 * 2)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda p: p.write_bytes(b"not a database" * 1000), "the database is corrupt"),
        (damaged, "the database is corrupt"),
        (of_another_program, "this is the database of another program"),
    ],
    ids=["rubbish", "damaged", "another program's"],
)
def test_a_database_that_cannot_be_used_is_left_alone(made: Path, spoil: Callable[[Path], None], what: str) -> None:
    database = made / "ntf-server.db"
    spoil(database)
    before = database.read_bytes()
    done = run("start", "--path", made)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in one_line(done.stderr)
    assert str(database) in done.stderr
    assert database.read_bytes() == before


def test_a_mistake_in_the_settings(made: Path) -> None:
    done = run("start", "--path", made, NTF_SERVER__LOG__LEVEL="loud")
    assert (done.returncode, done.stdout) == (2, "")
    assert "[log] level: invalid enum value 'loud'" in one_line(done.stderr)


def shown_forms(secret: bytes) -> list[str]:
    """How a secret could show up in a log."""
    return [secret.hex(), b64url(secret).rstrip("="), repr(secret)[2:-1], secret.decode("latin-1")]


@pytest.mark.parametrize("form", ["text", "json"])
async def test_no_secret_is_logged(
    *, made: Path, start: Start, mock_apns: MockApns, smp_server: SmpServer, phone: Callable[[], Phone], form: str
) -> None:
    process, port = await start(
        NTF_SERVER__LOG__LEVEL="debug",
        NTF_SERVER__LOG__FORMAT=form,
        NTF_SERVER__APNS__TEST__HOST="localhost",
        NTF_SERVER__APNS__TEST__PORT=str(mock_apns.port),
        NTF_SERVER__APNS__TEST__CA_FILE=str(mock_apns.ca_file),
        NTF_SERVER__SUBSCRIBER__ALLOW_PRIVATE_HOSTS="true",
        PYTHONASYNCIODEBUG="1",
    )
    credentials = config.load(made, {}).credentials
    address = ServerAddress("ntf", ("127.0.0.1",), str(port), credentials.key_hash)
    device, dead = phone(), phone()
    mock_apns.reject_token(dead.token)
    async with await Client.connect(address) as client, await Recipient.connect(smp_server.address) as recipient:
        queue, refused = await recipient.queue(), await recipient.queue()
        await dead.register(client)
        await device.register(client)
        push = await mock_apns.next(device.token)
        code = device.open(push, "verification")
        await client.request(ntf.TVfy(code), device.token_id, device.key)
        refused.notifier_id = os.urandom(24)
        subscription_ids = [await device.subscribe(client, smp_server.address, q) for q in (queue, refused)]
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        await queue.send("secret text")
        [entry] = device.entries(await mock_apns.next(device.token))
    code_, _, err = await stop(process)
    assert code_ == 0
    lines = err.splitlines()
    assert len(lines) > 5
    if form == "json":
        assert {record["level"] for record in map(json.loads, lines)} >= {"info", "debug"}
    keys = [private_key_pem(k).decode().splitlines()[1].encode() for k in (device.key, credentials.key)]
    secrets = [
        *(device.token_id, device.secret, code, *subscription_ids, entry.nonce, entry.meta, *keys),
        *(device.token.encode(), dead.token.encode(), dead.token_id),
        *(queue.notifier_id, refused.notifier_id, crypto.encode_private(queue.notifier_key)),
        push.headers["authorization"].encode(),
    ]
    assert [s for s in secrets if any(form in err for form in shown_forms(s))] == []


# --- check


def test_check(made: Path) -> None:
    done = run("check", "--path", made)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(re.split(r" {2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    assert lines["listen on"] == "127.0.0.1:0"
    assert lines["database"] == f"{made / 'ntf-server.db'} (will be created)"
    assert lines["push"].startswith("no Apple devices")
    assert lines["warning"] == f"{made / 'ca.key'} should be offline"
    assert contents(made).keys() == {*FILES, config.CONFIG_FILE}


def test_check_tells_the_key_that_browsers_subscribe_with(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NTF_SERVER__WEB_PUSH__KEY_FILE", "vapid.key")
    monkeypatch.setenv("NTF_SERVER__WEB_PUSH__CA_FILE", "ca.crt")
    code, out, _ = in_process(capsys, "check", "--path", made)
    assert code == 0
    [shown] = re.findall(r"application server key ([\w-]{87})\n", out)
    assert shown == Vapid(load_key((made / "vapid.key").read_bytes()), "mailto:a@b").public_key


# --- rekey


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
    assert done.returncode == 2
    assert "another ntf-server uses this database" in done.stderr


def test_rekey_to_nothing(made: Path) -> None:
    done = run("rekey", "--path", made)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--new-key-file" in done.stderr


async def test_delete_under_a_running_server(made: Path, start: Start) -> None:
    await start()
    done = run("delete", "--path", made, "--yes")
    assert done.returncode == 2
    assert (made / "ntf-server.db").exists()


def test_check_tells_what_is_pushed_through(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in {"HOST": "localhost", "PORT": "2197", "CA_FILE": "ca.crt"}.items():
        monkeypatch.setenv(f"NTF_SERVER__APNS__TEST__{key}", value)
    (made / "ca.key").unlink()
    (made / "ntf-server.db").touch()
    code, out, _ = in_process(capsys, "check", "--path", made)
    assert code == 0
    assert "push        AT through localhost:2197\n" in out
    assert f"{made / 'ntf-server.db'} (exists)" in out
    assert "warning" not in out


# --- cert


async def test_cert(made: Path, start: Start, tmp_path: Path) -> None:
    key_hash = config.load(made, {}).credentials.key_hash
    (made / "ca.key").rename(tmp_path / "offline.key")
    done = run("cert", "--path", made, "--ca-key", tmp_path / "offline.key", "--sign-algorithm", "ED25519")
    assert (done.returncode, done.stderr) == (0, "")
    _, port = await start()
    async with await Client.connect(ServerAddress("ntf", ("127.0.0.1",), str(port), key_hash)) as client:
        assert await client.request(ntf.Ping()) == ntf.Pong()


def test_cert_with_a_wrong_key(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.key"
    wrong.write_bytes(private_key_pem(Ed25519PrivateKey.generate()))
    before = contents(made)
    code, out, err = in_process(capsys, "cert", "--path", made, "--ca-key", wrong)
    assert (code, out) == (2, "")
    assert f"{wrong}: is not the key of {made / 'ca.crt'}; give the identity's key" in one_line(err)
    assert contents(made) == before


def test_cert_where_nothing_can_be_written(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "server.key.new").mkdir()  # where it is written first
    before = contents(made)
    code, out, err = in_process(capsys, "cert", "--path", made)
    assert (code, out) == (1, "")
    assert f"{made / 'server.key.new'}: " in one_line(err)
    assert contents(made) == before


# --- delete


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
