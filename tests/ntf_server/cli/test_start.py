"""`ntf-server start`."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, one_line, run, stop
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from harness import Phone

from ntf_server.cli import errors
from ntf_server.config import files as config
from ntf_server.supervisor import LEAST, STOP_DEADLINE
from ntf_server.testing import MockApns
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.encoding import b64url
from smp_bridge.identity import private_key_pem
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

Start = Callable[..., Any]


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


async def test_the_key_that_apps_subscribe_with_is_told(made: Path, start: Start) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    sec1 = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (made / "vapid.privkey").write_bytes(sec1)
    settings = {"CA_FILE": "ca.crt", "CONTACT": "mailto:push@ntf.example.org"}
    process, _ = await start(**{f"NTF_SERVER__WEB_PUSH__{name}": value for name, value in settings.items()})
    code, out, _ = await stop(process)
    assert code == 0
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert out == f"VAPID: {b64url(point).rstrip('=')}\n"


async def test_no_core_dump_is_written(start: Start) -> None:
    process, _ = await start()
    limits = await asyncio.to_thread(Path(f"/proc/{process.pid}/limits").read_text)
    assert re.search(r"^Max core file size +0 +0 +bytes", limits, re.MULTILINE)


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
    assert [(done.returncode, done.stdout) for done in (second, third)] == [(75, "")] * 2
    line = second.stderr.splitlines()[-1]
    assert f"[transport] bind, port: 127.0.0.1:{port}: " in line
    assert line.endswith(f"stop what uses it, which `ss -ltnp sport = :{port}` shows, or choose another one")
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
    assert "[log] level: unknown value 'loud'; give one of debug, info, warning, error" in one_line(done.stderr)


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
        NTF_SERVER__LIMITS__ENABLED="false",
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


# --- what may pass, and what no retry mends


@pytest.mark.parametrize(
    ("environ", "code", "what"),
    [
        ({"STORE__MASTER_KEY_COMMAND": "false"}, 75, "the master key's command false: ended with exit code 1"),
        ({"STORE__MASTER_KEY_COMMAND": "/nonexistent"}, 2, "No such file or directory"),
        ({"STORE__MASTER_KEY_FILE": "missing.key"}, 2, "No such file or directory"),
        ({"STORE__MASTER_KEY": "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg"}, 2, "the master key is not the one"),
        ({"TRANSPORT__BIND": "192.0.2.1"}, 75, "[transport] bind, port: 192.0.2.1:0: "),  # not there yet
        ({"METRICS__BIND": "192.0.2.1", "METRICS__PORT": "9100"}, 75, "[metrics] bind, port: 192.0.2.1:9100: "),
        (
            {"APNS__KEY_FILE": "missing.p8", "APNS__KEY_ID": "ABC123DEFG", "APNS__TEAM_ID": "5NN7GUYB6T"},
            2,
            "[apns] key_file: ",
        ),
    ],
)
async def test_exit_codes(*, made: Path, start: Start, environ: dict[str, str], code: int, what: str) -> None:
    process, _ = await start()
    await stop(process)  # there is a database now
    done = await asyncio.to_thread(run, "start", "--path", made, **{f"NTF_SERVER__{k}": v for k, v in environ.items()})
    assert (done.returncode, done.stdout) == (code, "")
    assert what in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_newer_database_is_final(made: Path) -> None:
    connection = sqlite3.connect(made / "ntf-server.db")
    connection.execute("PRAGMA application_id = 0x4E544652")
    connection.execute("PRAGMA user_version = 999")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    done = run("start", "--path", made)
    assert done.returncode == 2
    assert "of a newer ntf-server (schema 999)" in one_line(done.stderr)


# --- signals, from the first moment on


@pytest.fixture
def asking(made: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A master key's command that says when it is asked, and answers when the file `answer` is there."""
    script = tmp_path / "kms"
    wait = f"while ! [ -e {tmp_path}/answer ]; do sleep 0.05; done"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n{wait}\ncat {made}/master.key\n")
    script.chmod(0o755)
    return tmp_path, {"NTF_SERVER__STORE__MASTER_KEY_COMMAND": str(script)}


async def begun(made: Path, asking: tuple[Path, dict[str, str]]) -> asyncio.subprocess.Process:
    """A server that waits for its master key."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "start", "--path", str(made), env=os.environ | asking[1], stdout=-1, stderr=-1
    )
    async with asyncio.timeout(20):
        while not (asking[0] / "asked").exists():
            await asyncio.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_before_it_listens(
    made: Path, asking: tuple[Path, dict[str, str]], number: signal.Signals
) -> None:
    process = await begun(made, asking)
    async with asyncio.timeout(5):
        assert await stop(process, number) == (0, "", "")
    assert not (made / "ntf-server.db").exists()


async def test_sighup_before_it_listens_is_remembered(made: Path, asking: tuple[Path, dict[str, str]]) -> None:
    process = await begun(made, asking)
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.05)
    (asking[0] / "answer").touch()
    assert process.stdout is not None
    assert process.stderr is not None
    assert b"listening on" in await asyncio.wait_for(process.stdout.readline(), 20)
    async with asyncio.timeout(20):
        while b"reload: nothing differs" not in await process.stderr.readline():
            pass
    code, _, err = await stop(process)
    assert (code, "Traceback" in err) == (0, False)


async def test_many_signals_at_once(start: Start) -> None:
    process, _ = await start()
    for number in [signal.SIGHUP] * 20 + [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]:
        process.send_signal(number)
    code, _, err = await stop(process)
    assert (code, "Traceback" in err) == (0, False)


# --- a new configuration


async def leaf_of(port: int) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown


async def test_sighup_swaps_the_online_certificate(made: Path, start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(tmp_path / "notify"))
        s.settimeout(10)
        process, port = await start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert s.recv(100) == b"READY=1"
        key_hash = config.load(made, {}).credentials.key_hash
        address = ServerAddress("ntf", ("127.0.0.1",), str(port), key_hash)
        async with await Client.connect(address) as old:
            before = await leaf_of(port)
            done = await asyncio.to_thread(run, "cert", "--path", made, "--sign-algorithm", "ED25519")
            assert "`ntf-server reload`" in done.stdout
            process.send_signal(signal.SIGHUP)
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", await asyncio.to_thread(s.recv, 100))
            assert await asyncio.to_thread(s.recv, 100) == b"READY=1"
            now = config.load(made, {}).credentials.chain_der[0]
            assert await leaf_of(port) == now != before
            assert await old.request(ntf.Ping()) == ntf.Pong()  # its session stays
            async with await Client.connect(address) as client:
                assert await client.request(ntf.Ping()) == ntf.Pong()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(s.recv, 100) == b"STOPPING=1"
    _, _, err = await stop(process)
    assert "reload: in use now: the online certificate" in err


async def test_sighup_with_a_bad_configuration_changes_nothing(made: Path, start: Start) -> None:
    process, port = await start()
    before = await leaf_of(port)
    await asyncio.to_thread(run, "cert", "--path", made, "--sign-algorithm", "ED25519")
    with (made / config.CONFIG_FILE).open("a") as f:
        f.write("[loog]\n")
    process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(10):
        while b"reload: not changed: " not in (line := await process.stderr.readline()):
            pass
    assert b"ntf-server.toml: loog: unknown section; did you mean log? [" in line
    assert await leaf_of(port) == before
    assert (await stop(process))[0] == 0


# --- the unit


def test_the_unit_fits() -> None:
    unit = (Path(__file__).parents[3] / "deploy/ntf-server.service").read_text()
    values = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    assert int(values["TimeoutStopSec"]) >= STOP_DEADLINE + 10 * LEAST
    assert values["RestartPreventExitStatus"] == str(errors.FINAL)
    assert errors.TRY_AGAIN == os.EX_TEMPFAIL
    assert (values["Restart"], values["StartLimitIntervalSec"]) == ("on-failure", "0")
    assert values["TimeoutStartSec"] == "1h"  # a migration is not killed, again and again, by the usual 90 s
    assert (values["Type"], values["ExecReload"]) == ("notify", "/bin/kill -HUP $MAINPID")
    assert int(values["WatchdogSec"]) > 2 * STOP_DEADLINE  # nothing that a relay does holds its loop up for so long
    docker = (Path(__file__).parents[3] / "deploy/README.md").read_text()
    [seconds] = re.findall(r"--stop-timeout (\d+)", docker)
    assert seconds == values["TimeoutStopSec"]
