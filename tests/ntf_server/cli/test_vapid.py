"""`ntf-server vapid`, without a running server; of one: admin/test_vapid.py."""

import errno
import json
import re
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command_line import contents, in_process, one_line

from ntf_server.config import edit
from ntf_server.config.identity_files import write_file
from ntf_server.config.source import CONFIG_FILE
from ntf_server.push.jose import b64, generate_key, key_pem, load_key, public_point


@pytest.fixture
def key(made: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of Web Push, which is on: the public one."""
    monkeypatch.setenv("NTF_SERVER__WEB_PUSH__KEY_FILE", "vapid.key")
    return b64(public_point(load_key((made / "vapid.key").read_bytes())))


def test_of_the_files(
    made: Path, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = generate_key()
    (made / "old.key").write_bytes(key_pem(before))
    monkeypatch.setenv("NTF_SERVER__WEB_PUSH__OLD_KEY_FILES", "old.key")
    assert in_process(capsys, "vapid", "--path", made) == (0, f"VAPID: {key}\n", "")
    code, out, _ = in_process(capsys, "vapid", "--path", made, "--json")
    assert (code, json.loads(out)) == (0, {"key": key, "older": [b64(public_point(before))]})


def test_while_nobody_listens_at_the_socket(made: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It was left by a server that was killed."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(made / "ntf-server.sock"))
    assert in_process(capsys, "vapid", "--path", made) == (0, f"VAPID: {key}\n", "")


def test_without_web_push(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, "vapid", "--path", made)
    assert (code, out) == (2, "")
    wrong = f"{made / CONFIG_FILE}: [web_push] key_file: is not set, so Web Push is off; set it"
    assert one_line(err) == f"ntf-server: {wrong}"


@pytest.mark.usefixtures("key")
def test_without_the_key(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "vapid.key").unlink()
    code, out, err = in_process(capsys, "vapid", "--path", made)
    assert (code, out) == (2, "") and f"[web_push] key_file: {made}/vapid.key: No such file" in one_line(err)


# --- another key


@pytest.fixture
def on(made: Path) -> Path:
    """The configuration's file, with Web Push on."""
    file = made / CONFIG_FILE
    text = file.read_text().replace('contact = ""', "contact = 'mailto:push@relay.example'")
    assert text != file.read_text()
    file.write_text(text.replace("[web_push]\n", "[web_push]\nkey_file = 'vapid.key'  # the first\n"))
    file.chmod(0o640)
    return file


def public(file: Path) -> str:
    return b64(public_point(load_key(file.read_bytes())))


def test_rotate(made: Path, on: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice on a day; each older key stays, the newest first."""
    before, keys = on.read_text(), [public(made / "vapid.key")]
    for n in range(2):
        code, out, err = in_process(capsys, "vapid", "rotate", "--path", made)
        assert (code, err) == (0, "")
        name = tomllib.loads(on.read_text())["web_push"]["key_file"]
        assert re.fullmatch(r"vapid-20\d\d-\d\d-\d\d(-2)?\.key", name) and ("-2." in name) == (n == 1)
        keys.insert(0, public(made / name))
        assert (made / name).stat().st_mode & 0o777 == 0o600
        assert out.splitlines()[2] == f"VAPID: {keys[0]}"
        code, out, _ = in_process(capsys, "vapid", "--path", made, "--json")
        assert (code, json.loads(out)) == (0, {"key": keys[0], "older": keys[1:]})
    assert on.stat().st_mode & 0o777 == 0o640
    kept = [line for line in before.splitlines() if not line.startswith("key_file = 'vapid.key'")]
    assert [line for line in on.read_text().splitlines() if line in kept] == kept


def test_rotate_the_reference_s_key(made: Path, on: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "vapid.key").rename(made / "vapid.privkey")
    on.write_text(on.read_text().replace("key_file = 'vapid.key'  # the first\n", ""))
    code, out, _ = in_process(capsys, "vapid", "rotate", "--path", made, "--json")
    assert (code, json.loads(out)["older"]) == (0, [public(made / "vapid.privkey")])
    assert tomllib.loads(on.read_text())["web_push"]["old_key_files"] == ["vapid.privkey"]


def test_rotate_a_file_that_is_written_otherwise(made: Path, on: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on.write_text(on.read_text().replace("key_file = 'vapid", "'key_file' = 'vapid"))
    before = contents(made)
    code, out, err = in_process(capsys, "vapid", "rotate", "--path", made)
    assert (code, out, contents(made)) == (2, "", before)
    assert "is written in a way that is not changed here; run `umask 077; openssl genpkey " in one_line(err)
    assert 'old_key_files = ["vapid.key"]' in err


def test_rotate_on_a_full_disk(
    made: Path, on: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new key was written, and the configuration cannot be."""

    def full(path: Path, data: bytes, *args: Any, **options: Any) -> None:
        if path.name == CONFIG_FILE:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_file(path, data, *args, **options)

    monkeypatch.setattr(edit, "write_file", full)
    before = contents(made)
    code, out, err = in_process(capsys, "vapid", "rotate", "--path", made)
    assert (code, out, contents(made)) == (1, "", before)
    assert one_line(err) == f"ntf-server: {on}: No space left on device"


@pytest.mark.usefixtures("key")
def test_rotate_what_a_variable_sets(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(made)
    code, out, err = in_process(capsys, "vapid", "rotate", "--path", made)
    assert (code, out, contents(made)) == (2, "", before)
    assert one_line(err).startswith("ntf-server: NTF_SERVER__WEB_PUSH__KEY_FILE: is set, and wins over ")


def test_rotate_without_web_push(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(made)
    code, out, err = in_process(capsys, "vapid", "rotate", "--path", made)
    assert (code, out, contents(made)) == (2, "", before)
    assert "[web_push] key_file: is not set" in one_line(err)
