"""`ntf-server check`."""

import asyncio
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import client_certificate
from command_line import contents, in_process, one_line, run
from redis_servers import Server

from ntf_server.config import files as config
from ntf_server.config import source
from ntf_server.config.identity_files import FILES
from ntf_server.push.jose import load_key
from ntf_server.push.webpush.vapid import Vapid
from ntf_server.store.open import open_store
from ntf_server.store.redis.url import parse_redis_url

LOCALHOST = (
    "warning     the address says localhost, which apps elsewhere do not reach: set [transport] host to the server's"
    " name"
)


def test_check(made: Path) -> None:
    done = run("check", "--path", made)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(re.split(r" {2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    assert lines["listen on"] == "127.0.0.1:0"
    assert lines["database"] == f"{made / 'ntf-server.db'} (will be created)"
    assert lines["push"].startswith("no Apple devices")
    assert lines["SMP hosts"] == "public ones first, without a proxy"
    assert (
        lines["warning"]
        == f"{made / 'ca.key'} should be offline; keep it elsewhere, as only `ntf-server cert` needs it"
    )
    assert LOCALHOST in done.stdout.splitlines()
    assert contents(made).keys() == {*FILES, config.CONFIG_FILE}


def test_check_tells_the_key_that_browsers_subscribe_with(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NTF_SERVER__WEB_PUSH__KEY_FILE", "vapid.key")
    monkeypatch.setenv("NTF_SERVER__WEB_PUSH__CA_FILE", "ca.crt")
    monkeypatch.setenv("NTF_SERVER__WEB_PUSH__CONTACT", "mailto:push@ntf.example.org")
    code, out, _ = in_process(capsys, "check", "--path", made)
    assert code == 0
    [shown] = re.findall(r"application server key ([\w-]{87})\n", out)
    assert shown == Vapid(load_key((made / "vapid.key").read_bytes()), "mailto:a@b").public_key


def test_check_tells_what_is_pushed_through(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in {"HOST": "localhost", "PORT": "2197", "CA_FILE": "ca.crt"}.items():
        monkeypatch.setenv(f"NTF_SERVER__APNS__TEST__{key}", value)
    (made / "ca.key").unlink()
    (made / "ntf-server.db").touch(mode=0o600)
    code, out, _ = in_process(capsys, "check", "--path", made)
    assert code == 0
    assert "push        AT through localhost:2197\n" in out
    assert f"{made / 'ntf-server.db'} (will be created)" in out  # an empty file has nothing in it
    assert [line for line in out.splitlines() if line.startswith("warning")] == [LOCALHOST]


def test_check_tells_how_long_a_client_certificate_is_good(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cert, key = client_certificate(made)
    hosts = {f"{section}__CA_FILE": "ca.crt" for section in ("PRODUCTION", "SANDBOX")}
    hosts |= {"PRODUCTION__HOST": "localhost", "SANDBOX__HOST": "localhost"}
    for name, value in {"CERTIFICATE_FILE": cert, "CERTIFICATE_KEY_FILE": key, **hosts}.items():
        monkeypatch.setenv(f"NTF_SERVER__APNS__{name}", value)
    code, out, err = in_process(capsys, "check", "--path", made)
    assert (code, err) == (0, "")
    assert re.search(
        r"^certificate Apple Push Services: chat\.example\.app, good until \d{4}-\d\d-\d\d$", out, re.MULTILINE
    )
    assert "warning     the client certificate for APNs ends on " in out
    (made / "push.key").write_bytes((made / "vapid.key").read_bytes())
    code, out, err = in_process(capsys, "check", "--path", made)
    assert (code, out) == (2, "")
    assert "[apns] certificate_key_file: " in one_line(err)
    assert "is not the key of certificate_file" in err


def test_check_tells_which_redis(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(tmp_path / "valkey") as server:
        url = f"redis://{server.address}/1?prefix=a"
        for there in ("will be created", "exists, 64 shards, and opens with the key"):
            code, out, err = asked(capsys, made, STORE__URL=url)
            assert (code, err) == (0, "")
            assert f"store       redis://{server.address}/1, keys a:… ({there})\n" in out
            assert re.search(r"^warning .* has appendonly no: ", out, re.MULTILINE)
            assert "database" not in out
            asyncio.run(made_store(made, url))
        assert server.ask("DBSIZE") == 0  # it was in another database, and check makes nothing


async def made_store(made: Path, url: str) -> None:
    store = await open_store(parse_redis_url(url), directory=made, master_key=config.load(made, {}).master_key)
    await store.close()


def test_how_smp_servers_are_reached(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tor:
        proxy = f"127.0.0.1:{tor.getsockname()[1]}"
        environ = {"SUBSCRIBER__SOCKS_PROXY": proxy, "SUBSCRIBER__HOST_MODE": "onion"}
        _, out, _ = asked(capsys, made, **environ)
        assert f"SMP hosts   onion ones first, onion ones through {proxy}\n" in out
        assert "Tor" not in out
    _, out, _ = asked(capsys, made, **environ, SUBSCRIBER__REQUIRED_HOST_MODE="true", SUBSCRIBER__SOCKS_MODE="always")
    assert f"SMP hosts   onion ones only, all through {proxy}\n" in out
    assert f"warning     [subscriber] socks_proxy: nobody listens at {proxy}: is Tor running?\n" in out


async def test_a_running_server_is_in_nobodys_way(
    made: Path, start: Callable[..., Any], tmp_path: Path, unused_tcp_port: int
) -> None:
    """What it listens on is its own, and its database can be looked into."""
    metrics = {"NTF_SERVER__METRICS__PORT": str(unused_tcp_port)}
    process, port = await start(**metrics)
    environ = {"NTF_SERVER__TRANSPORT__PORT": str(port), **metrics}
    done = await asyncio.to_thread(run, "check", "--path", made, **environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"running     process {process.pid}, " in done.stdout
    assert "(exists, and opens with the key)" in done.stdout
    wrong = {"NTF_SERVER__STORE__MASTER_KEY": "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg"}
    done = await asyncio.to_thread(run, "check", "--path", made, **environ, **wrong)
    assert done.returncode == 2
    assert "the master key is not the one that this database was sealed with" in one_line(done.stderr)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = {"NTF_SERVER__METRICS__PORT": str(other.getsockname()[1])}
        done = await asyncio.to_thread(run, "check", "--path", made, **environ | taken)
    assert done.returncode == 75
    assert "[metrics] bind, port: " in one_line(done.stderr)


def test_nothing_is_left_behind(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(made_file(made))
    before = contents(made)
    assert asked(capsys, made)[0] == 0
    assert contents(made) == before


async def made_file(made: Path) -> None:
    store = await open_store(made / "ntf-server.db", directory=made, master_key=config.load(made, {}).master_key)
    await store.close()


def test_all_mistakes_at_once(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the file, of variables, of other files, of ports."""
    with (made / source.CONFIG_FILE).open("a") as file:
        file.write("[delivry]\ntimeout = 3\n")
    (made / "server.key").unlink()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        code, out, err = asked(capsys, made, METRICS__PORT=port, LOG__LEVEL="warn", APNS__KEY_FILE="no.p8")
    assert (code, out) == (2, "")
    wanted = [
        "ntf-server.toml: delivry: unknown section; did you mean delivery?",
        "NTF_SERVER__LOG__LEVEL: [log] level: unknown value 'warn'; did you mean warning?",
        "server.key: No such file or directory",
        "[apns] key_id: goes with key_file",
        "[apns] team_id: goes with key_file",
        "no.p8: No such file or directory",
        f"[metrics] bind, port: 127.0.0.1:{port}: is in use",
    ]
    lines = err.splitlines()
    assert len(lines) == len(wanted)
    assert [words for words in wanted if not any(words in line for line in lines)] == []


def test_as_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, "check", "--json", "--path", made)
    told = json.loads(out)
    assert (code, err, told["exit_code"], told["wrong"]) == (0, "", 0, [])
    assert ["listen on", "127.0.0.1:0"] in told["found"]
    assert [
        "warning",
        f"{made / 'ca.key'} should be offline; keep it elsewhere, as only `ntf-server cert` needs it",
    ] in told["found"]
    (made / "server.key").unlink()
    code, out, err = in_process(capsys, "check", "--json", "--path", made)
    told = json.loads(out)
    assert (code, err, told["exit_code"], told["found"]) == (2, "", 2, [])
    assert [line.partition(":")[0] for line in told["wrong"]] == [str(made / "server.key")]


def asked(capsys: pytest.CaptureFixture[str], made: Path, **environ: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environ.items():
            patch.setenv(f"NTF_SERVER__{key}", value)
        return in_process(capsys, "check", "--path", made)
