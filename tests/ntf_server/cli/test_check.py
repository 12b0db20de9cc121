"""`ntf-server check`."""

import re
from pathlib import Path

import pytest
from certificates import client_certificate
from command_line import contents, in_process, one_line, run

from ntf_server.config import files as config
from ntf_server.config.identity_files import FILES
from ntf_server.push.jose import load_key
from ntf_server.push.webpush.vapid import Vapid


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
    (made / "ntf-server.db").touch()
    code, out, _ = in_process(capsys, "check", "--path", made)
    assert code == 0
    assert "push        AT through localhost:2197\n" in out
    assert f"{made / 'ntf-server.db'} (exists)" in out
    assert "warning" not in out


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
    assert "warning     the client certificate for APNs expires on " in out
    (made / "push.key").write_bytes((made / "vapid.key").read_bytes())
    code, out, err = in_process(capsys, "check", "--path", made)
    assert (code, out) == (2, "")
    assert "[apns] certificate_key_file: " in one_line(err)
    assert "is not the key of certificate_file" in err


def test_check_tells_which_redis(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NTF_SERVER__STORE__URL", "redis://relay:s3cret@localhost/1?prefix=a")
    code, out, _ = in_process(capsys, "check", "--path", made)
    assert code == 0
    assert "store       redis://localhost:6379/1, keys a:…\n" in out
    assert "database" not in out and "s3cret" not in out
